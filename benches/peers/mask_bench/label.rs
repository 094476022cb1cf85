//! Masks of a small closed schema, as labels by the thousand have them.

use std::time::Duration;

use serde_json::json;
use wardrobe_grammar::{Compiler, Spec, Whitespace};
use wardrobe_text::Tokenizer;

use crate::measure::{percentile, thread_time};

const LABELS: usize = 1000;

/// Follows records of people and prints how long their masks take: those of states that no label was in before, and all.
pub fn run(tokenizer: &Tokenizer, compiler: &Compiler) -> Result<(), Box<dyn std::error::Error>> {
    let schema = json!({
        "type": "object",
        "properties": {
            "nationality": {"type": "string"}, "born": {"type": "integer"}, "died": {"type": "integer"},
            "sportsperson": {"type": "boolean"}, "politician": {"type": "boolean"},
        },
        "required": ["nationality", "born", "died", "sportsperson", "politician"],
        "additionalProperties": false,
    });
    let template = compiler.compile(&Spec::JsonSchema { schema, strict: true }, Whitespace::Spaced)?;
    let (mut first, mut all, mut ways) = (Vec::new(), Vec::new(), Vec::new());
    let nationalities = ["Greek", "Swiss-born American", "French", "Côte d'Ivoire", "Kingdom of Hungary"];
    for label in 0..LABELS {
        let record = json!({
            "nationality": nationalities[label % nationalities.len()], "born": 900 + label, "died": 1000 + 3 * label % 1000,
            "sportsperson": label % 2 == 0, "politician": label % 3 == 0,
        });
        let text = crate::measure::spaced(&record);
        let mut session = template.session();
        let mut mask = vec![0; compiler.vocabulary()?.mask_len()];
        for token in tokenizer.encode_ordinary(&text)? {
            let start = thread_time();
            let known = session.known_mask();
            let is_new = known.is_none();
            if is_new {
                session.fill_mask(&mut mask)?;
            }
            let took = thread_time() - start;
            all.push(took);
            if is_new {
                first.push(took);
            }
            session.accept(token)?;
            let start = thread_time();
            session.shortest_end(1000)?;
            ways.push(thread_time() - start);
        }
    }
    let show = |what: &str, times: &mut Vec<Duration>| {
        let [p50, p99, max] = [0.5, 0.99, 1.0].map(|share| percentile(times, share));
        println!("label, {what}: p50 {p50:?}, p99 {p99:?}, longest {max:?} of {}", times.len());
    };
    println!("label: {LABELS} records by the engine {:?}", template.engine());
    show("masks of new states", &mut first);
    show("masks", &mut all);
    show("ways to the end", &mut ways);
    Ok(())
}
