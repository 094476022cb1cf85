//! Whole runs over a simulated engine.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::sync::Arc;

use wardrobe_engine::simulation::{SimAdapter, SimCodec, SimExecutor, SimLoader};
use wardrobe_engine::{Engine, EngineConfig, LoadOptions, Request, SamplingParams, TokenId};
use wardrobe_eval::{EvalError, EvalOptions, Item, Outcome, Target, Turn, evaluate, read_items, task};

const CONTEXT_TOKENS: usize = 64;
const MAX_TOKENS: usize = 12;

fn engine(config: EngineConfig) -> Engine {
    let executor = SimExecutor::new(256, 2, 1000, CONTEXT_TOKENS);
    Engine::start(Box::new(executor), Arc::new(SimLoader::new()), Arc::new(SimCodec), config).unwrap()
}

fn tokens(turns: &[Turn]) -> Result<Vec<TokenId>, String> {
    match turns {
        [turn] if turn.content == "unrenderable" => Err("the template refuses".to_owned()),
        turns => Ok(turns.iter().flat_map(|t| t.content.bytes()).map(|b| TokenId(b.into())).collect()),
    }
}

fn items(contents: &[&str]) -> Vec<Item> {
    let lines: Vec<String> = contents
        .iter()
        .map(|content| format!("{}\n", serde_json::json!({"prompt": content, "completion": "the end"})))
        .collect();
    let (items, problems) = read_items(lines.concat().as_bytes(), task("last-words").unwrap()).unwrap();
    assert!(problems.is_empty());
    items
}

fn options() -> EvalOptions<'static> {
    EvalOptions { max_tokens: MAX_TOKENS, ..EvalOptions::default() }
}

#[test]
fn answers_are_those_of_single_requests_for_base_and_adapter() {
    let engine = engine(EngineConfig::default());
    engine.load_adapter("tuned", SimAdapter::new(1).in_process("test"), LoadOptions::default()).unwrap();
    let contents: Vec<String> = (0..40).map(|i| format!("question {i}")).collect();
    let items = items(&contents.iter().map(String::as_str).collect::<Vec<_>>());
    let targets = [Target::base("base"), Target::adapter("tuned")];
    let task = task("last-words").unwrap();
    let report = evaluate(&engine, &tokens, &items, task, &targets, options()).unwrap();
    for (target, result) in targets.iter().zip(&report.results) {
        assert_eq!((result.num_scored, result.outcomes.len()), (40, 40));
        for (item, outcome) in items.iter().zip(&result.outcomes) {
            let request = Request {
                adapter: target.adapter.clone(),
                sampling: SamplingParams::greedy(),
                max_tokens: Some(MAX_TOKENS),
                ..Request::new(tokens(&item.turns).unwrap())
            };
            let alone = engine.generate(request).unwrap();
            let answer = outcome.answer().unwrap();
            assert_eq!(answer.text, alone.choices[0].text);
            assert_eq!(answer.completion_tokens, alone.summary.usage.completion_tokens);
            assert_eq!(answer.score, task.score("the end", &answer.text));
        }
    }
    assert_ne!(report.results[0].outcomes, report.results[1].outcomes);
    assert!(report.baseline.is_none());
    let again = evaluate(&engine, &tokens, &items, task, &targets, options()).unwrap();
    assert_eq!(report.results, again.results);
}

#[test]
fn what_cannot_be_asked_is_told_and_in_no_mean() {
    let engine = engine(EngineConfig { max_num_sequences: 2, queue_capacity: 1, ..EngineConfig::default() });
    let long = "x".repeat(CONTEXT_TOKENS);
    let items = items(&["short", &long, "unrenderable", "another"]);
    let mut heard = Vec::new();
    let report = evaluate(
        &engine,
        &tokens,
        &items,
        task("last-words").unwrap(),
        &[Target::base("base")],
        EvalOptions { progress: Some(Box::new(|done, all| heard.push((done, all)))), ..options() },
    )
    .unwrap();
    let result = &report.results[0];
    assert_eq!(result.num_scored, 2);
    assert_eq!(result.metrics[0].num_items, 2);
    assert_eq!(result.failed.iter().map(|problem| problem.line).collect::<Vec<_>>(), [2, 3]);
    assert!(result.failed[0].message.contains("context is 64 tokens"), "{}", result.failed[0]);
    assert_eq!(result.failed[1].message, "the template refuses");
    assert!(matches!(&result.outcomes[1], Outcome::Failed { .. }));
    assert_eq!(heard.last(), Some(&(3, 4)));
    let text = report.to_text();
    assert!(text.contains("2 items failed, the first at line 2"), "{text}");
}

#[test]
fn more_items_than_the_queue_holds_are_all_asked() {
    let engine = engine(EngineConfig { max_num_sequences: 2, queue_capacity: 1, ..EngineConfig::default() });
    let contents: Vec<String> = (0..100).map(|i| format!("q{i}")).collect();
    let items = items(&contents.iter().map(String::as_str).collect::<Vec<_>>());
    let task = task("last-words").unwrap();
    let report = evaluate(&engine, &tokens, &items, task, &[Target::base("base")], options()).unwrap();
    assert_eq!(report.results[0].num_scored, 100);
}

#[test]
fn a_missing_adapter_and_a_stopped_engine_end_the_run() {
    let engine = engine(EngineConfig::default());
    let task = task("last-words").unwrap();
    let items = items(&["a", "b", "c"]);
    let ask = |target: Target| evaluate(&engine, &tokens, &items, task, &[target], options());
    let error = ask(Target::adapter("absent")).unwrap_err();
    assert!(matches!(&error, EvalError::Target { target, .. } if target == "absent"), "{error}");
    assert!(matches!(evaluate(&engine, &tokens, &[], task, &[], options()), Err(EvalError::NoItems { .. })));
    assert!(matches!(evaluate(&engine, &tokens, &items, task, &[], options()), Err(EvalError::NoTargets)));
    engine.shutdown(std::time::Duration::ZERO);
    assert!(matches!(ask(Target::base("base")), Err(EvalError::Target { .. })));
}

#[test]
fn the_report_has_the_majority_and_no_markup_of_others() {
    let engine = engine(EngineConfig::default());
    let task = task("record").unwrap();
    let lines = br#"{"prompt": "<script>", "completion": "{\"a\": \"<b>\", \"s\": true}"}
{"prompt": "two", "completion": "{\"a\": \"<b>\", \"s\": false}"}
{"prompt": "bad", "completion": "none"}"#;
    let (items, problems) = read_items(lines.as_slice(), task).unwrap();
    let train = [r#"{"a": "x", "s": false}"#.to_owned()];
    let options = EvalOptions { train_golds: Some(&train), ..options() };
    let mut report =
        evaluate(&engine, &tokens, &items, task, &[Target::base("<i>base</i>")], options).unwrap();
    report.problems = problems;
    let baseline = report.baseline.as_ref().unwrap();
    assert_eq!(baseline.answer, r#"{"a":"x","s":false}"#);
    let value = |name: &str| baseline.metrics.iter().find(|m| m.name == name).unwrap().value;
    assert_eq!((value("valid"), value("fields"), value("field s")), (1.0, 0.25, 0.5));

    let html = report.to_html();
    for raw in ["<script", "<b>", "<i>"] {
        assert!(!html.contains(raw), "{raw}");
    }
    assert!(html.contains("&lt;script&gt;") && html.contains("line 3"));
    let text = report.to_text();
    assert!(text.lines().nth(2).unwrap().starts_with("majority"), "{text}");
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["items"][1]["line"], 2);
    assert_eq!(json["results"][0]["outcomes"].as_array().unwrap().len(), 2);
}
