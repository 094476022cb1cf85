//! Absurd data and absurd answers: bounded in time and size, told by line, and no number in a report that JSON lacks.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::time::{Duration, Instant};

use wardrobe_eval::{
    EvalOptions, Price, Report, TASKS, Target, TaskSettings, Way, evaluate, read_documents, read_items,
    read_text, task,
};
use wardrobe_generator::{
    Answer, AskError, Generator, Message, Question, RetryPolicy, Scorer, Stopped, TokenScore, Usage,
};

/// Answers with the same whatever it is asked, and finds texts infinitely unlikely if it is told so.
struct Absurd {
    answer: String,
    logprob: f64,
    num_scores: Option<usize>,
}

impl Absurd {
    fn answering(answer: impl Into<String>) -> Self {
        Self { answer: answer.into(), logprob: -1.0, num_scores: None }
    }
}

impl Generator for Absurd {
    fn name(&self) -> &str {
        "absurd \u{1b}[2J</script><script>"
    }

    fn identity(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    fn concurrency(&self) -> usize {
        4
    }

    fn generate(&self, _: &Question, _: &Stopped<'_>) -> Result<Answer, AskError> {
        let usage = Usage { prompt_tokens: u64::MAX / 4, cached_tokens: u64::MAX / 2, completion_tokens: 1 };
        Ok(Answer { text: self.answer.clone(), finish_reason: "length".to_owned(), usage })
    }

    fn scorer(&self) -> Option<&dyn Scorer> {
        Some(self)
    }
}

impl Scorer for Absurd {
    fn tokenize(&self, text: &str, _: bool) -> Result<Vec<u32>, AskError> {
        Ok(text.chars().map(u32::from).collect())
    }

    fn tokenize_chat(&self, _: &[Message]) -> Result<Vec<u32>, AskError> {
        Ok(Vec::new())
    }

    fn max_context_tokens(&self) -> Option<usize> {
        None
    }

    fn score(&self, tokens: &[u32], _: &Stopped<'_>) -> Result<Vec<TokenScore>, AskError> {
        let num = self.num_scores.unwrap_or(tokens.len().saturating_sub(1));
        Ok(vec![TokenScore { logprob: self.logprob, is_likeliest: false }; num])
    }
}

fn options() -> EvalOptions<'static> {
    let ms = Duration::from_millis;
    let retry = RetryPolicy { first_wait: ms(1), max_wait: ms(1), patience: ms(10) };
    EvalOptions { retry, group_by: vec![vec!["x".to_owned(), "y".to_owned()]], ..EvalOptions::default() }
}

/// A line that every task can read some way.
fn line(at: usize) -> String {
    let text = "word </script> ".repeat(1 + at % 3);
    serde_json::json!({
        "prompt": text, "completion": "{\"a\": 1}", "text": text, "choices": ["a", "b"], "answer": 0,
        "length": at % 40, "depth": at as f64 / 7.0, "x": at % 30, "y": -1e300 * (at % 2) as f64, "n": 1e308,
    })
    .to_string()
        + "\n"
}

fn check(report: &Report) {
    let json = serde_json::to_string(report).unwrap();
    // serde writes what is no number as null; the only nulls are those that are documented.
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    let mut stack = vec![("", &value)];
    while let Some((key, value)) = stack.pop() {
        match value {
            serde_json::Value::Null => {
                let known = [
                    "model",
                    "data",
                    "baseline",
                    "max_tokens",
                    "cost",
                    "standard_error",
                    "cached_input_per_million",
                ];
                assert!(known.contains(&key), "{key} is null");
            }
            serde_json::Value::Array(list) => stack.extend(list.iter().map(|value| (key, value))),
            serde_json::Value::Object(map) => {
                stack.extend(map.iter().map(|(key, value)| (key.as_str(), value)))
            }
            _ => {}
        }
    }
    let html = report.to_html();
    assert_eq!((html.matches("<script").count(), html.matches("</script").count()), (1, 1));
    assert!(!html.contains("NaN\"") && !html.contains("inf\"") && html.len() < 12 << 20, "{}", html.len());
    let text = report.to_text();
    assert!(!text.contains('\u{1b}') && !text.contains("NaN") && !text.contains("inf "), "{text}");
}

#[test]
fn every_task_stands_absurd_answers() {
    let started = Instant::now();
    let settings = TaskSettings::default();
    let lines: String = (0..60).map(line).collect();
    let answers = [
        String::new(),
        "\u{0}\u{1b}]0;x\u{7}".repeat(100),
        "a b ".repeat(50_000),
        "漢".repeat(100_000),
        "{\"a\":".repeat(50_000),
        "\n".repeat(100_000),
        "{\"a\": 1e999}".to_owned(),
    ];
    for task in TASKS {
        let (items, problems) = read_items(lines.as_bytes(), task, &settings).unwrap();
        assert!(!items.is_empty(), "{}: {problems:?}", task.name());
        let few = &items[..items.len().min(5)];
        let mut generators: Vec<Absurd> = match task.way() {
            Way::Answers(_) => answers.iter().map(Absurd::answering).collect(),
            Way::Likelihoods(_) => vec![Absurd::answering("")],
        };
        let bad = |logprob, num_scores| Absurd { answer: String::new(), logprob, num_scores };
        generators.extend([
            bad(f64::NEG_INFINITY, None),
            bad(f64::NAN, None),
            bad(-1e300, None),
            bad(1.0, Some(0)),
            bad(1.0, Some(3)),
        ]);
        for generator in &generators {
            let targets = [Target::new(generator), Target::new(generator).named("again")];
            let mut report = evaluate(few, task, &targets, options()).unwrap();
            let price = Price {
                input_per_million: 1e12,
                output_per_million: 0.0,
                cached_input_per_million: Some(0.0),
            };
            report.set_prices(&[("again".to_owned(), price)]);
            check(&report);
        }
        let own = Absurd::answering("{\"a\": 1}");
        check(&evaluate(&items, task, &[Target::new(&own)], options()).unwrap());
    }
    assert!(started.elapsed() < Duration::from_secs(1200), "{:?}", started.elapsed());
}

#[test]
fn absurd_lines_are_told_and_end_nothing() {
    let settings = TaskSettings::default();
    let deep = format!("{{\"prompt\": {}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let many_answers = serde_json::json!({"prompt": "q", "answers": vec!["a"; 5000]}).to_string();
    let many_choices =
        serde_json::json!({"question": "q", "choices": vec!["a"; 5000], "answer": 0}).to_string();
    let bad = [
        "[]",
        "3",
        "\"x\"",
        "{",
        "{}",
        "null",
        "{\"prompt\": null, \"completion\": null}",
        &deep,
        &many_answers,
        &many_choices,
        "{\"messages\": 3}",
        "{\"messages\": [3]}",
        "{\"messages\": []}",
        "{\"question\": [], \"answer\": 1}",
        "{\"question\": \"q\", \"documents\": {}, \"answer\": \"\"}",
        "{\"text\": 3}",
        "{\"text\": \"\"}",
        "{\"prompt\": \"\", \"choices\": [\"a\", \"b\"], \"answer\": 18446744073709551616}",
        "{\"question\": {\"stem\": 3}, \"choices\": [\"a\", \"b\"], \"answer\": \"\"}",
    ];
    let text = bad.join("\n");
    for task in TASKS {
        let (items, problems) = read_items(text.as_bytes(), task, &settings).unwrap();
        assert_eq!(items.len() + problems.len(), bad.len(), "{}", task.name());
        assert!(items.is_empty(), "{}: {items:?}", task.name());
        let lines: Vec<usize> = problems.iter().map(|problem| problem.line).collect();
        assert_eq!(lines, (1..=bad.len()).collect::<Vec<_>>());
    }
    // A file of something else is not read to its end.
    let (items, problems) =
        read_items("x\n".repeat(50_000).as_bytes(), task("record").unwrap(), &settings).unwrap();
    assert!(
        items.is_empty() && problems.len() == 10_001 && problems.last().unwrap().message.contains("ended")
    );
}

#[test]
fn absurd_files_beside_the_items_are_refused() {
    let (perplexity, settings) = (task("perplexity").unwrap(), TaskSettings::default());
    assert!(
        read_text(std::io::repeat(b'a'), perplexity, &settings).unwrap_err().to_string().contains("bytes")
    );
    assert!(read_text(&b"\xff"[..], perplexity, &settings).is_err());
    assert!(read_text(&b""[..], perplexity, &settings).is_err());
    assert!(read_text(&b"text"[..], task("record").unwrap(), &settings).is_err());
    let items = read_text(&b"some text"[..], perplexity, &settings).unwrap();
    assert_eq!(items.len(), settings.contexts.len());
    assert!(read_documents(&b"\"a\"\n{\"title\": \"t\"}\n"[..]).unwrap_err().to_string().contains("line 2"));
    assert_eq!(read_documents(&b"\"a\"\n\n{\"title\": \"t\", \"text\": \"b\"}\n"[..]).unwrap().len(), 2);
}

#[test]
fn a_page_says_what_it_leaves_out() {
    let settings = TaskSettings::default();
    let task = task("last-words").unwrap();
    let lines: String = (0..1500)
        .map(|at| serde_json::json!({"prompt": format!("q{at}"), "completion": "x"}).to_string() + "\n")
        .collect();
    let (items, _) = read_items(lines.as_bytes(), task, &settings).unwrap();
    let short = Absurd::answering("x");
    let report = evaluate(&items, task, &[Target::new(&short)], options()).unwrap();
    assert!(report.to_html().contains(">500 more items are left out"));
    let long = Absurd::answering("<&\"".repeat(1000));
    let targets: Vec<Target<'_>> = (0..12).map(|at| Target::new(&long).named(at.to_string())).collect();
    let html = evaluate(&items[..900], task, &targets, options()).unwrap().to_html();
    assert!(html.len() < 9 << 20 && html.contains("more items are left out"), "{}", html.len());
}
