//! What drafts from a text itself bring: the same questions to two engines over one model, one that drafts and one that does not,
//! in turns. Answers must be the same.
//!
//! `cargo run --release --example speculation -- MODEL DATA.jsonl ADAPTER|- SCHEMA|- [CONCURRENCY] [ITEMS] [MIN_N] [MAX_TOKENS]`
//!
//! `DATA` has lines with a `prompt`, as `datasets/` has; with `MIN_N` only those whose `n` is at least that. Each group of
//! `CONCURRENCY` questions is asked of both engines twice: when nothing is known of their prompts, and again when these are in
//! the prefix cache, so that nearly all of the time is that of the answers. Told are tokens a second of all groups together, and
//! the median of the groups' ratios.

use std::time::Instant;

use wardrobe::grammar::Spec;
use wardrobe::{
    AdapterSource, Completion, Engine, EngineConfig, EngineOptions, LoadOptions, Message, Model,
    ModelOptions, Request, SamplingParams, Speculation,
};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// One way of asking.
#[derive(Default)]
struct Side {
    tokens: usize,
    seconds: f64,
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, data, adapter, schema, numbers @ ..] = args.as_slice() else {
        let usage =
            "usage: speculation MODEL DATA ADAPTER|- SCHEMA|- [CONCURRENCY] [ITEMS] [MIN_N] [MAX_TOKENS]";
        return Err(usage.into());
    };
    let number = |idx: usize, default: usize| numbers.get(idx).map_or(Ok(default), |text| text.parse());
    let (concurrency, items) = (number(0, 1)?.max(1), number(1, 16)?);
    let (min_n, max_tokens) = (number(2, 0)?, number(3, 256)?);
    let model = Model::open(model, &ModelOptions::default())?;
    let template = match schema.as_str() {
        "-" => None,
        path => Some(model.compile(&Spec::JsonSchema {
            schema: serde_json::from_slice(&std::fs::read(path)?)?,
            strict: true,
        })?),
    };
    let engines = [Speculation::Off, Speculation::Auto].map(|speculation| -> Result<Engine> {
        let config = EngineConfig { speculation, ..EngineConfig::default() };
        let options = EngineOptions { config, kv_bytes: Some(192 << 20), ..EngineOptions::default() };
        let engine = model.engine(&options)?;
        if adapter != "-" {
            let source = AdapterSource::Path(adapter.into());
            engine.load_adapter("tuned", source, LoadOptions::default())?;
        }
        Ok(engine)
    });
    let [off, auto] = engines;
    let engines = [off?, auto?];

    let mut requests = Vec::new();
    for line in std::fs::read_to_string(data)?.lines() {
        let record: serde_json::Value = serde_json::from_str(line)?;
        if record["n"].as_u64().unwrap_or(0) < min_n as u64 {
            continue;
        }
        let prompt = record["prompt"].as_str().ok_or("a line without a prompt")?;
        let prompt = model.chat_prompt(&[Message::text("user", prompt)])?;
        let mut request =
            Request::new(prompt).with_sampling(SamplingParams::greedy()).with_max_tokens(max_tokens);
        if adapter != "-" {
            request = request.with_adapter("tuned");
        }
        if let Some(template) = &template {
            request = request.with_constraint(template.clone());
        }
        requests.push(request);
    }
    requests.truncate(items);
    let (mut cold, mut warm) = ([Side::default(), Side::default()], [Side::default(), Side::default()]);
    let (mut cold_ratios, mut warm_ratios) = (Vec::new(), Vec::new());
    let mut differ = 0;
    for (idx, group) in requests.chunks(concurrency).enumerate() {
        for (sides, ratios) in [(&mut cold, &mut cold_ratios), (&mut warm, &mut warm_ratios)] {
            let (mut answers, mut seconds) = ([Vec::new(), Vec::new()], [0.0; 2]);
            for side in [idx % 2, 1 - idx % 2] {
                let started = Instant::now();
                answers[side] = ask(&engines[side], group)?;
                seconds[side] = started.elapsed().as_secs_f64();
                sides[side].tokens +=
                    answers[side].iter().map(|a| a.summary.usage.completion_tokens).sum::<usize>();
                sides[side].seconds += seconds[side];
            }
            ratios.push(seconds[0] / seconds[1]);
            let [without, with] = &answers;
            differ += without.iter().zip(with).filter(|(a, b)| a.choices != b.choices).count();
        }
    }
    let median = |ratios: &mut Vec<f64>| {
        ratios.sort_by(f64::total_cmp);
        ratios.get(ratios.len() / 2).copied()
    };
    let speed = |side: &Side| (side.tokens as f64 / side.seconds * 10.0).round() / 10.0;
    let [plain, drafting] = engines.map(|engine| engine.stats());
    println!(
        "{}",
        serde_json::json!({
            "device": model.device().name(),
            "questions": requests.len(),
            "concurrency": concurrency,
            "tokens": warm[0].tokens,
            "answers_that_differ": differ,
            "with_prompts": { "off": speed(&cold[0]), "auto": speed(&cold[1]), "median_ratio": median(&mut cold_ratios) },
            "answers_alone": { "off": speed(&warm[0]), "auto": speed(&warm[1]), "median_ratio": median(&mut warm_ratios) },
            "steps": { "off": plain.steps, "auto": drafting.steps },
            "drafted": drafting.drafted_tokens,
            "accepted": drafting.accepted_tokens,
        })
    );
    Ok(())
}

fn ask(engine: &Engine, group: &[Request]) -> Result<Vec<Completion>> {
    let streams: std::result::Result<Vec<_>, _> =
        group.iter().map(|request| engine.submit(request.clone())).collect();
    Ok(streams?.into_iter().map(|stream| stream.completion_blocking()).collect())
}
