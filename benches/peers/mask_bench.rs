//! Schemas with valid and invalid instances (MaskBench's files, https://github.com/guidance-ai/jsonschemabench): how many
//! compile, whether every instance is told right, and how long compiling and masks take.
//!
//! `cargo run --release --example mask_bench -- MODEL FOLDER [lenient]`
//!
//! A file is `{"schema": ..., "tests": [{"valid": bool, "data": ...}]}`. Instances are written as the constraint would have
//! them written: `{"a": 1, "b": [2]}`, members in the order of the schema's properties.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::Value;
use wardrobe::{Model, ModelOptions};
use wardrobe_grammar::{Compiler, GrammarError, Limits, Spec, Vocabulary, Whitespace};

#[derive(Deserialize)]
struct File {
    schema: Value,
    #[serde(default)]
    tests: Vec<Instance>,
}

#[derive(Deserialize)]
struct Instance {
    valid: bool,
    data: Value,
}

#[derive(Default)]
struct Totals {
    schemas: usize,
    compiled: usize,
    /// All of whose instances were told right.
    right: usize,
    invalid: usize,
    invalid_accepted: usize,
    valid: usize,
    valid_rejected: usize,
    compile: Vec<Duration>,
    mask: Vec<Duration>,
    refusals: std::collections::BTreeMap<String, usize>,
}

/// The schemas that may say something of a value: the one given, and what it refers to or combines.
fn parts<'a>(schema: &'a Value, root: &'a Value, depth: usize, found: &mut Vec<&'a Value>) {
    if depth > 8 || !schema.is_object() {
        return;
    }
    found.push(schema);
    let reference = schema["$ref"].as_str().and_then(|r| r.strip_prefix('#'));
    if let Some(target) = reference.and_then(|pointer| root.pointer(pointer)) {
        parts(target, root, depth + 1, found);
    }
    for keyword in ["allOf", "anyOf", "oneOf"] {
        for part in schema[keyword].as_array().into_iter().flatten() {
            parts(part, root, depth + 1, found);
        }
    }
    for keyword in ["if", "then", "else"] {
        parts(&schema[keyword], root, depth + 1, found);
    }
}

/// As Python's `json.dumps` writes it, but for characters beyond ASCII, which stay; with the members in the order in which
/// the schema names them, those that it does not name last.
fn spaced(value: &Value, schema: &Value, root: &Value, out: &mut String) {
    let mut of_value = Vec::new();
    parts(schema, root, 0, &mut of_value);
    match value {
        Value::Array(items) => {
            let schema = of_value.iter().find_map(|part| part.get("items")).unwrap_or(&Value::Null);
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                spaced(item, schema.get(i).unwrap_or(schema), root, out);
            }
            out.push(']');
        }
        Value::Object(members) => {
            let properties: Vec<_> =
                of_value.iter().filter_map(|part| part["properties"].as_object()).collect();
            let named: Vec<&String> = properties.iter().flat_map(|properties| properties.keys()).collect();
            let place = |name: &String| named.iter().position(|known| *known == name).unwrap_or(usize::MAX);
            let mut members: Vec<_> = members.iter().collect();
            members.sort_by_key(|(name, _)| place(name));
            out.push('{');
            for (i, (name, member)) in members.into_iter().enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                out.push_str(&Value::String(name.clone()).to_string());
                out.push_str(": ");
                let schema = properties.iter().find_map(|properties| properties.get(name));
                let others = || of_value.iter().find_map(|part| part.get("additionalProperties"));
                spaced(member, schema.or_else(others).unwrap_or(&Value::Null), root, out);
            }
            out.push('}');
        }
        _ => out.push_str(&value.to_string()),
    }
}

fn percentile(times: &mut [Duration], share: f64) -> Duration {
    times.sort_unstable();
    let last = times.len().saturating_sub(1);
    times.get((share * last as f64) as usize).copied().unwrap_or_default()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, folder, rest @ ..] = args.as_slice() else {
        return Err("usage: mask_bench MODEL FOLDER [lenient]".into());
    };
    let strict = !rest.iter().any(|arg| arg == "lenient");
    let verbose = rest.iter().any(|arg| arg == "verbose");
    let model = Model::open(model, &ModelOptions::default())?;
    let tokenizer = model.tokenizer().clone();
    let ends: Vec<_> = model.config().eos_token_ids.iter().map(|&id| wardrobe::TokenId(id)).collect();
    let compiler = Compiler::new(Vocabulary::new(tokenizer.clone(), &ends)?, Limits::default());
    compiler.compile(&Spec::JsonObject, Whitespace::Spaced)?;
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    paths.sort();
    let mut totals = Totals::default();
    let mut mask = vec![0_u32; compiler.vocabulary()?.mask_len()];
    for path in paths.iter().filter(|path| path.extension().is_some_and(|e| e == "json")) {
        let file: File = serde_json::from_slice(&std::fs::read(path)?)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        totals.schemas += 1;
        let start = Instant::now();
        let compiled =
            compiler.compile(&Spec::JsonSchema { schema: file.schema.clone(), strict }, Whitespace::Spaced);
        let took = start.elapsed();
        totals.compile.push(took);
        if verbose && took > Duration::from_millis(50) {
            println!("{name}: compiled in {took:?}");
        }
        let template = match compiled {
            Ok(template) => template,
            Err(error) => {
                let kind = match &error {
                    GrammarError::Unsupported { keyword, .. } => keyword.clone(),
                    other => other.to_string().chars().take(90).collect(),
                };
                if verbose {
                    println!("{name}: {error}");
                }
                *totals.refusals.entry(kind).or_default() += 1;
                continue;
            }
        };
        totals.compiled += 1;
        let mut all_right = true;
        for (idx, test) in file.tests.iter().enumerate() {
            let mut text = String::new();
            spaced(&test.data, &file.schema, &file.schema, &mut text);
            let mut session = template.session();
            let (mut accepted, mut followed) = (true, String::new());
            for token in tokenizer.encode_ordinary(&text)? {
                let start = Instant::now();
                session.fill_mask(&mut mask)?;
                totals.mask.push(start.elapsed());
                let in_mask =
                    mask.get(token.index() / 32).is_some_and(|word| word >> (token.0 % 32) & 1 == 1);
                if !in_mask || session.accept(token).is_err() {
                    accepted = false;
                    break;
                }
                followed.push_str(&tokenizer.token_str(token).unwrap_or_default());
            }
            accepted &= session.may_end()?;
            totals.valid += usize::from(test.valid);
            totals.invalid += usize::from(!test.valid);
            all_right &= accepted == test.valid;
            if accepted && !test.valid {
                totals.invalid_accepted += 1;
                println!("{name}: accepts the invalid instance {idx}");
            }
            if !accepted && test.valid {
                totals.valid_rejected += 1;
                if verbose {
                    let rest: String =
                        text.get(followed.len()..).unwrap_or_default().chars().take(60).collect();
                    println!("{name}: rejects the valid instance {idx} at {rest:?}");
                }
            }
        }
        totals.right += usize::from(all_right);
    }
    let share = |n: usize, of: usize| 100.0 * n as f64 / of.max(1) as f64;
    let t = &mut totals;
    println!(
        "{} schemas, {} compiled ({:.1} %), {} fully right ({:.1} %)",
        t.schemas,
        t.compiled,
        share(t.compiled, t.schemas),
        t.right,
        share(t.right, t.schemas)
    );
    println!("invalid instances accepted: {} of {}", t.invalid_accepted, t.invalid);
    println!(
        "valid instances rejected: {} of {} ({:.2} %)",
        t.valid_rejected,
        t.valid,
        share(t.valid_rejected, t.valid)
    );
    println!(
        "compile p50 {:?}, p99 {:?}, max {:?}",
        percentile(&mut t.compile, 0.5),
        percentile(&mut t.compile, 0.99),
        percentile(&mut t.compile, 1.0)
    );
    println!(
        "mask p50 {:?}, p99 {:?}, max {:?} ({} masks)",
        percentile(&mut t.mask, 0.5),
        percentile(&mut t.mask, 0.99),
        percentile(&mut t.mask, 1.0),
        t.mask.len()
    );
    for (kind, n) in &t.refusals {
        println!("{n:5} refused: {kind}");
    }
    Ok(())
}
