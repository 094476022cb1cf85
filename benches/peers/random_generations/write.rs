//! The texts, for any tokenizer.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use wardrobe_grammar::{Compiler, Limits, Spec, Template, Vocabulary, Whitespace};
use wardrobe_text::{TokenId, Tokenizer};

#[path = "../../../crates/grammar/tests/support/generations.rs"]
mod generations;

use self::generations::{Leaning, Random, generate};

/// What the program is to be told.
pub const USAGE: &str = "usage: random_generations MODEL FOLDER NUMBER OUT.jsonl [cut] [SEED]";

/// Tokens of a text that is not cut by a budget of its own.
const MAX_TOKENS: usize = 400;

/// A schema that compiled.
struct Compiled {
    name: String,
    template: std::sync::Arc<Template>,
    /// The seed of its next text.
    random: Random,
}

fn compiled(
    folder: &Path,
    compiler: &Compiler,
    seed: u64,
) -> Result<Vec<Compiled>, Box<dyn std::error::Error>> {
    let paths = std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path()));
    let mut paths: Vec<PathBuf> = paths.collect::<std::io::Result<_>>()?;
    paths.sort();
    let mut found = Vec::new();
    for (idx, path) in paths.iter().filter(|path| path.extension().is_some_and(|e| e == "json")).enumerate() {
        let file: Value = serde_json::from_slice(&std::fs::read(path)?)?;
        let spec = Spec::JsonSchema { schema: file["schema"].clone(), strict: true };
        if let Ok(template) = compiler.compile(&spec, Whitespace::Spaced) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            found.push(Compiled { name, template, random: Random(seed ^ (idx as u64) << 32) });
        }
    }
    Ok(found)
}

/// Writes texts, one a line with its schema's file, the schemas taking turns.
pub fn run(
    tokenizer: &Tokenizer,
    ends: &[TokenId],
    options: &[String],
) -> Result<(), Box<dyn std::error::Error>> {
    let [folder, number, out, rest @ ..] = options else { return Err(USAGE.into()) };
    let number: usize = number.parse()?;
    let is_cut = rest.iter().any(|option| option == "cut");
    let seed: u64 = rest.iter().find_map(|option| option.parse().ok()).unwrap_or(1);
    let vocabulary = Vocabulary::new(tokenizer.clone(), ends)?;
    let leaning = Leaning::new(tokenizer, &vocabulary);
    let compiler =
        Compiler::new(vocabulary, Limits { deadline: Duration::from_secs(20), ..Limits::default() });
    let mut schemas = compiled(folder.as_ref(), &compiler, seed)?;
    let mut out = std::io::BufWriter::new(std::fs::File::create(out)?);
    let (mut written, mut cut, mut failed, mut tokens) = (0, 0, 0, 0);
    let start = Instant::now();
    'all: loop {
        for schema in &mut schemas {
            if written == number {
                break 'all;
            }
            let shortest = schema.template.shortest().len();
            let max_tokens =
                if is_cut { shortest + schema.random.below(80) } else { MAX_TOKENS.max(shortest) };
            let outcome = generate(&schema.template, &leaning, ends, max_tokens, &mut schema.random);
            written += 1;
            let (drawn, fault) = match outcome {
                Ok(generated) => {
                    cut += usize::from(generated.is_cut);
                    (generated.tokens, None)
                }
                Err((message, drawn)) => {
                    failed += 1;
                    (drawn, Some(message))
                }
            };
            let bytes: Vec<u8> =
                drawn.iter().flat_map(|&id| tokenizer.token_bytes(id).unwrap_or_default().to_vec()).collect();
            tokens += drawn.len();
            let text = String::from_utf8_lossy(&bytes);
            if let Some(fault) = &fault {
                println!("{}: {fault}, within {max_tokens} tokens after {text:?}", schema.name);
            }
            writeln!(
                out,
                "{}",
                json!({"file": schema.name, "text": text, "fault": fault, "max_tokens": max_tokens})
            )?;
        }
    }
    out.flush()?;
    println!(
        "{written} texts of {} schemas in {:.0?}, {tokens} tokens; {cut} met their budget, {failed} failed",
        schemas.len(),
        start.elapsed()
    );
    Ok(())
}
