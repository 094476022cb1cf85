//! Whole runs over a generator that computes nothing.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use wardrobe_eval::{
    EvalError, EvalOptions, Item, Outcome, Target, TaskSettings, evaluate, read_items, task,
};
use wardrobe_generator::{Answer, AskError, Generator, Held, Prompt, Question, RetryPolicy, Stopped, Usage};

const MAX_TOKENS: usize = 12;

/// Answers with what it was asked, in capitals if it is the loud one; `busy` is refused at first, `long` always.
#[derive(Default)]
struct Echo {
    is_loud: bool,
    num_busy: AtomicUsize,
    fails_after: Option<usize>,
    num_asked: AtomicUsize,
}

impl Generator for Echo {
    fn name(&self) -> &str {
        if self.is_loud { "loud" } else { "quiet" }
    }

    fn identity(&self) -> Vec<(&'static str, String)> {
        vec![("model", self.name().to_owned())]
    }

    fn concurrency(&self) -> usize {
        3
    }

    fn check(&self, question: &Question) -> Result<(), AskError> {
        match &question.held {
            Held::Schema(schema) if schema["bad"] == true => Err(AskError::Fatal("a bad schema".to_owned())),
            _ => Ok(()),
        }
    }

    fn generate(&self, question: &Question, _: &Stopped<'_>) -> Result<Answer, AskError> {
        assert_eq!((question.max_tokens, question.temperature), (MAX_TOKENS, 0.0));
        let asked = self.num_asked.fetch_add(1, Ordering::Relaxed);
        if self.fails_after.is_some_and(|num| asked >= num) {
            return Err(AskError::Fatal("the other side is gone".to_owned()));
        }
        let mut text = match &question.prompt {
            Prompt::Text(text) => format!("raw {text}"),
            Prompt::Chat(messages) => {
                let texts: Vec<String> =
                    messages.iter().map(|m| format!("{} {}", m.role, serde_json::json!(m.content))).collect();
                texts.join("\n")
            }
        };
        if text.contains("long") {
            let message = "it is too long".to_owned();
            return Err(AskError::Question { kind: "context_length_exceeded", message });
        }
        if text.contains("busy") && self.num_busy.fetch_add(1, Ordering::Relaxed) < 3 {
            return Err(AskError::Again { after: None, reason: "busy".to_owned() });
        }
        if self.is_loud {
            text = text.to_uppercase();
        }
        let usage = Usage { prompt_tokens: 2, cached_tokens: 0, completion_tokens: text.len() as u64 };
        Ok(Answer { text, finish_reason: "length".to_owned(), usage })
    }
}

fn items(contents: &[&str]) -> Vec<Item> {
    let lines: Vec<String> = contents
        .iter()
        .map(|content| format!("{}\n", serde_json::json!({"prompt": content, "completion": "the end"})))
        .collect();
    let (items, problems) =
        read_items(lines.concat().as_bytes(), task("last-words").unwrap(), &TaskSettings::default()).unwrap();
    assert!(problems.is_empty());
    items
}

fn options() -> EvalOptions<'static> {
    let ms = Duration::from_millis;
    let retry = RetryPolicy { first_wait: ms(1), max_wait: ms(2), patience: ms(10_000) };
    EvalOptions { max_tokens: MAX_TOKENS, retry, ..EvalOptions::default() }
}

#[test]
fn every_target_answers_every_item_in_its_place() {
    let (quiet, loud) = (Echo::default(), Echo { is_loud: true, ..Echo::default() });
    let contents: Vec<String> = (0..40).map(|i| format!("question {i}")).chain(["busy".to_owned()]).collect();
    let items = items(&contents.iter().map(String::as_str).collect::<Vec<_>>());
    let targets = [Target::new(&quiet), Target::new(&loud).named("another")];
    let task = task("last-words").unwrap();
    let report = evaluate(&items, task, &targets, options()).unwrap();
    for (result, is_loud) in report.results.iter().zip([false, true]) {
        assert_eq!((result.num_scored, result.num_cut, result.prompt_tokens), (41, 41, 82));
        for (content, outcome) in contents.iter().zip(&result.outcomes) {
            let expected = format!("user {}", serde_json::json!(content));
            let expected = if is_loud { expected.to_uppercase() } else { expected };
            let answer = outcome.answer().unwrap();
            assert_eq!(answer.text, expected);
            assert_eq!(
                Some(&answer.score),
                task.score(&items[0], &expected, &TaskSettings::default()).as_ref()
            );
        }
    }
    assert_eq!([&report.results[0].name, &report.results[1].name], ["quiet", "another"]);
    assert!(report.baseline.is_none());
}

#[test]
fn questions_are_chats_with_a_system_message_or_raw_texts() {
    let echo = Echo::default();
    let items = items(&["q"]);
    let task = task("last-words").unwrap();
    let asked = |options| {
        let report = evaluate(&items, task, &[Target::new(&echo)], options).unwrap();
        report.results[0].outcomes[0].answer().unwrap().text.clone()
    };
    assert_eq!(
        asked(EvalOptions { system: Some("be brief"), ..options() }),
        "system \"be brief\"\nuser \"q\""
    );
    assert_eq!(asked(EvalOptions { raw: true, ..options() }), "raw q");
}

#[test]
fn what_cannot_be_asked_is_told_and_in_no_mean() {
    let echo = Echo::default();
    let items = items(&["short", "too long", "another"]);
    let mut heard = Vec::new();
    let options = EvalOptions { progress: Some(Box::new(|done, all| heard.push((done, all)))), ..options() };
    let report = evaluate(&items, task("last-words").unwrap(), &[Target::new(&echo)], options).unwrap();
    let result = &report.results[0];
    assert_eq!(result.num_scored, 2);
    assert_eq!(result.metrics[0].num_items, 2);
    assert_eq!(result.failed.iter().map(|problem| problem.line).collect::<Vec<_>>(), [2]);
    assert_eq!(result.failed[0].message, "it is too long");
    assert!(matches!(&result.outcomes[1], Outcome::Failed { .. }));
    assert_eq!(heard, [(1, 3), (2, 3), (3, 3)]);
    let text = report.to_text();
    assert!(text.contains("1 items failed, the first at line 2"), "{text}");
}

#[test]
fn who_cannot_answer_at_all_and_a_stop_end_the_run() {
    let task = task("last-words").unwrap();
    let items = items(&["a", "b", "c", "d", "e"]);
    let quiet = Echo::default();
    let bad = Target::new(&quiet).held(Held::Schema(serde_json::json!({"bad": true})));
    let error = evaluate(&items, task, &[bad], options()).unwrap_err();
    assert!(matches!(&error, EvalError::Target { target, .. } if target == "quiet"), "{error}");
    assert_eq!(quiet.num_asked.load(Ordering::Relaxed), 0);

    let dying = Echo { fails_after: Some(2), ..Echo::default() };
    let error = evaluate(&items, task, &[Target::new(&quiet), Target::new(&dying).named("dying")], options());
    let error = error.unwrap_err();
    assert!(matches!(&error, EvalError::Target { target, .. } if target == "dying"), "{error}");

    let stopped = EvalOptions { stopped: &|| true, ..options() };
    assert!(matches!(evaluate(&items, task, &[Target::new(&quiet)], stopped), Err(EvalError::Stopped)));
    assert!(matches!(evaluate(&[], task, &[], options()), Err(EvalError::NoItems { .. })));
    assert!(matches!(evaluate(&items, task, &[], options()), Err(EvalError::NoTargets)));
}

#[test]
fn the_report_has_the_majority_and_no_markup_of_others() {
    let echo = Echo::default();
    let task = task("record").unwrap();
    let lines = br#"{"prompt": "<script>", "completion": "{\"a\": \"<b>\", \"s\": true}"}
{"prompt": "two", "completion": "{\"a\": \"<b>\", \"s\": false}"}
{"prompt": "bad", "completion": "none"}"#;
    let (items, problems) = read_items(lines.as_slice(), task, &TaskSettings::default()).unwrap();
    let train = [r#"{"a": "x", "s": false}"#.to_owned()];
    let options = EvalOptions { train_golds: Some(&train), ..options() };
    let target = Target::new(&echo).named("<i>base</i>");
    let mut report = evaluate(&items, task, &[target], options).unwrap();
    report.problems = problems;
    let baseline = report.baseline.as_ref().unwrap();
    assert_eq!(baseline.answer, r#"{"a":"x","s":false}"#);
    let value = |name: &str| baseline.metrics.iter().find(|m| m.name == name).unwrap().value;
    assert_eq!((value("valid"), value("fields"), value("field s")), (1.0, 0.25, 0.5));

    let html = report.to_html();
    for raw in ["<b>", "<i>"] {
        assert!(!html.contains(raw), "{raw}");
    }
    assert_eq!(html.matches("<script").count(), 1, "the page's own");
    assert!(html.contains("&lt;script&gt;") && html.contains("line 3"));
    let text = report.to_text();
    assert!(text.lines().nth(2).unwrap().starts_with("majority"), "{text}");
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["items"][1]["line"], 2);
    assert_eq!(json["results"][0]["outcomes"].as_array().unwrap().len(), 2);
}
