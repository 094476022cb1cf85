//! The measuring, for any tokenizer.
//!
//! A file is `{"schema": ..., "tests": [{"valid": bool, "data": ...}]}`. An instance is a value, and what a session allows are
//! texts: white space is fixed, so is the order of members where a schema gives one, and numbers and characters have one
//! spelling of several. So it is asked three things of an instance, in this order: whether its own text can be had, that is
//! the members in the instance's own order and numbers as the file has them; whether it can be had with the members in the
//! order in which the schema names them, and numbers spelled plainly (`75` for `75.0`, `0.001` for `1e-3`); and whether it can
//! be had with the members in any order. An invalid instance's numbers stay as they are: to some drafts `75.0` is not whole.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;
use wardrobe_grammar::{Compiler, GrammarError, Limits, Spec, Template, Vocabulary, Whitespace};
use wardrobe_text::{TokenId, Tokenizer};

use self::instances::Numbers;

#[path = "../../../crates/grammar/tests/support/instances.rs"]
mod instances;

/// What became of instances of a kind.
#[derive(Default)]
struct Told {
    instances: usize,
    /// Their own text cannot be had.
    not_as_it_is: usize,
    /// Nor in the schema's order.
    not_in_schemas_order: usize,
    /// Nor in any.
    not_at_all: usize,
    /// Can be had, though by other tokens than the tokenizer's.
    by_other_tokens: usize,
}

#[derive(Default)]
struct Totals {
    schemas: usize,
    compiled: usize,
    /// All of whose instances were told right.
    right: usize,
    valid: Told,
    invalid: Told,
    compile: Vec<Duration>,
    steps: Steps,
    refusals: BTreeMap<String, usize>,
}

/// Thread's time of what is done at every token.
#[derive(Default)]
struct Steps {
    mask: Vec<Duration>,
    /// To find a way to the end within [`BUDGET`].
    way: Vec<Duration>,
    without_way: usize,
}

/// Tokens that are left, and twice those of the shortest text: the engine asks after every token.
const BUDGET: usize = 1000;

/// Processor time of this thread: what else the machine does is not counted.
#[cfg(unix)]
pub fn thread_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.try_into().unwrap_or(0))
}

#[cfg(not(unix))]
pub fn thread_time() -> Duration {
    std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default()
}

/// A value as a constraint has it written.
pub fn spaced(value: &Value) -> String {
    instances::spaced(value, Numbers::Plain)
}

/// Texts as tokens of masks.
struct Writer<'a> {
    tokenizer: &'a Tokenizer,
    ids: HashMap<&'a [u8], TokenId>,
    mask: Vec<u32>,
}

/// How a text was written.
#[derive(PartialEq)]
enum Written {
    /// By the tokenizer's own tokens.
    Usual,
    Otherwise,
    /// Not beyond this byte.
    UpTo(usize),
}

impl<'a> Writer<'a> {
    fn new(tokenizer: &'a Tokenizer, mask_len: usize) -> Self {
        let ids =
            tokenizer.tokens().filter(|(id, _)| !tokenizer.is_special(*id)).map(|(id, bytes)| (bytes, id));
        Writer { tokenizer, ids: ids.collect(), mask: vec![0; mask_len] }
    }

    fn byte(&self, byte: u8) -> TokenId {
        self.ids.get(&[byte][..]).copied().unwrap_or(TokenId(u32::MAX))
    }

    /// Takes a token that is in the mask and goes on with the text at every step: the tokenizer's own where it can, else the
    /// longest.
    fn write(
        &mut self,
        template: &Template,
        text: &str,
        steps: &mut Steps,
    ) -> Result<Written, Box<dyn std::error::Error>> {
        let mut own = HashMap::new();
        let mut at = 0;
        for token in self.tokenizer.encode_ordinary(text)? {
            own.insert(at, token);
            at += self.tokenizer.token_bytes(token).unwrap_or_default().len();
        }
        let (mut session, mut at, mut is_usual) = (template.session(), 0, true);
        while at < text.len() {
            let start = thread_time();
            session.fill_mask(&mut self.mask)?;
            steps.mask.push(thread_time() - start);
            let mask = &self.mask;
            let has =
                |id: &TokenId| mask.get(id.index() / 32).is_some_and(|word| word >> (id.0 % 32) & 1 == 1);
            let rest = text.as_bytes().get(at..).unwrap_or_default();
            let prefixes =
                || (1..=rest.len().min(64)).rev().filter_map(|len| self.ids.get(&rest[..len]).copied());
            let usual = own.get(&at).copied().filter(has);
            is_usual &= usual.is_some();
            let Some(token) = usual.or_else(|| prefixes().find(has)) else {
                return Ok(Written::UpTo(at));
            };
            if let Err(error) = session.accept(token) {
                return Err(format!("a token of the mask is refused: {error}").into());
            }
            let start = thread_time();
            let way = session.shortest_end(BUDGET + 2 * template.shortest().len())?;
            steps.way.push(thread_time() - start);
            steps.without_way += usize::from(way.is_none());
            at += self.tokenizer.token_bytes(token).unwrap_or_default().len();
        }
        Ok(match (session.may_end()?, is_usual) {
            (false, _) => Written::UpTo(at),
            (true, true) => Written::Usual,
            (true, false) => Written::Otherwise,
        })
    }
}

/// The time that this share of them does not exceed.
pub fn percentile(times: &mut [Duration], share: f64) -> Duration {
    times.sort_unstable();
    let last = times.len().saturating_sub(1);
    times.get((share * last as f64) as usize).copied().unwrap_or_default()
}

/// The files of a folder, with their schemas and instances.
fn files(folder: &Path) -> std::io::Result<Vec<(String, Value)>> {
    let paths = std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path()));
    let mut paths: Vec<PathBuf> = paths.collect::<std::io::Result<_>>()?;
    paths.sort();
    let is_json = |path: &&PathBuf| path.extension().is_some_and(|extension| extension == "json");
    let read = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok((name, serde_json::from_slice(&std::fs::read(path)?)?))
    };
    paths.iter().filter(is_json).map(read).collect()
}

/// Goes through a folder and prints what it finds.
pub fn run(
    tokenizer: &Tokenizer,
    ends: &[TokenId],
    folder: &Path,
    options: &[String],
) -> Result<(), Box<dyn std::error::Error>> {
    let has = |option: &str| options.iter().any(|given| given == option);
    let (strict, verbose) = (!has("lenient"), has("verbose"));
    let compiler = Compiler::new(Vocabulary::new(tokenizer.clone(), ends)?, Limits::default());
    compiler.compile(&Spec::JsonObject, Whitespace::Spaced)?;
    let mut writer = Writer::new(tokenizer, compiler.vocabulary()?.mask_len());
    let mut totals = Totals::default();
    for (name, file) in files(folder)? {
        totals.schemas += 1;
        let start = Instant::now();
        let spec = Spec::JsonSchema { schema: file["schema"].clone(), strict };
        let compiled = compiler.compile(&spec, Whitespace::Spaced);
        let took = start.elapsed();
        totals.compile.push(took);
        if verbose && took > Duration::from_millis(20) {
            println!("{name}: compiled in {took:?}");
        }
        match compiled {
            Ok(template) => {
                totals.compiled += 1;
                totals.right +=
                    usize::from(instances_of(&name, &file, &template, &mut writer, &mut totals, verbose)?);
            }
            Err(error) => {
                let kind = match &error {
                    GrammarError::Unsupported { keyword, .. } => keyword.clone(),
                    other => other.to_string().chars().take(90).collect(),
                };
                if verbose {
                    println!("{name}: {error}");
                }
                *totals.refusals.entry(kind).or_default() += 1;
            }
        }
    }
    report(&mut totals);
    crate::label::run(tokenizer, &compiler)
}

/// Whether all instances of a file are told right.
fn instances_of(
    name: &str,
    file: &Value,
    template: &Template,
    writer: &mut Writer<'_>,
    totals: &mut Totals,
    verbose: bool,
) -> Result<bool, Box<dyn std::error::Error>> {
    let mut all_right = true;
    for (idx, test) in file["tests"].as_array().into_iter().flatten().enumerate() {
        let is_valid = test["valid"] == true;
        let told = if is_valid { &mut totals.valid } else { &mut totals.invalid };
        told.instances += 1;
        let show = |what: &str, text: &str, at: usize| {
            if verbose && is_valid {
                let rest: String = text.get(at..).unwrap_or_default().chars().take(80).collect();
                println!("{name}: valid instance {idx} {what} at {rest:?}");
            }
        };
        let numbers = if is_valid { Numbers::Plain } else { Numbers::AsTheyAre };
        let as_it_is = instances::spaced(&test["data"], Numbers::AsTheyAre);
        let mut written = writer.write(template, &as_it_is, &mut totals.steps)?;
        if let Written::UpTo(at) = written {
            told.not_as_it_is += 1;
            show("is not allowed as it is,", &as_it_is, at);
            let ordered = instances::in_schemas_order(&test["data"], &file["schema"], &file["schema"]);
            let text = instances::spaced(&ordered, numbers);
            written = writer.write(template, &text, &mut totals.steps)?;
            if let Written::UpTo(at) = written {
                told.not_in_schemas_order += 1;
                show("is not allowed in the schema's order,", &text, at);
                let found = instances::spelling_of(&ordered, numbers, template, &|byte| writer.byte(byte));
                if let Some(text) = found {
                    written = writer.write(template, &text, &mut totals.steps)?;
                }
                if let Written::UpTo(at) = written {
                    told.not_at_all += 1;
                    show("is REJECTED,", &text, at);
                }
            }
        }
        told.by_other_tokens += usize::from(written == Written::Otherwise);
        let accepted = !matches!(written, Written::UpTo(_));
        if accepted && !is_valid {
            println!("{name}: ACCEPTS the invalid instance {idx}: {as_it_is}");
        }
        all_right &= accepted == is_valid;
    }
    Ok(all_right)
}

fn report(totals: &mut Totals) {
    let share = |n: usize, of: usize| format!("{n} of {of} ({:.2} %)", 100.0 * n as f64 / of.max(1) as f64);
    let Told { instances, not_as_it_is, not_in_schemas_order, not_at_all, by_other_tokens } = &totals.valid;
    println!("compiled: {}", share(totals.compiled, totals.schemas));
    println!("fully right: {}", share(totals.right, totals.schemas));
    println!(
        "invalid instances accepted: {}",
        share(totals.invalid.instances - totals.invalid.not_at_all, totals.invalid.instances)
    );
    println!("valid instances rejected:");
    println!("  in whatever order of members: {}", share(*not_at_all, *instances));
    println!(
        "  members in the order in which the schema names them: {}",
        share(*not_in_schemas_order, *instances)
    );
    println!("  members in their own order, numbers as they are: {}", share(*not_as_it_is, *instances));
    println!("accepted by other tokens than the tokenizer's: {}", share(*by_other_tokens, *instances));
    println!("tokens after which no way to the end was found: {}", totals.steps.without_way);
    let Steps { mask, way, .. } = &mut totals.steps;
    for (what, times) in [
        ("compile", &mut totals.compile),
        ("mask, thread's time", mask),
        ("way to the end, thread's time", way),
    ] {
        let [p50, p99, max] = [0.5, 0.99, 1.0].map(|share| percentile(times, share));
        println!("{what}: p50 {p50:?}, p99 {p99:?}, longest {max:?} of {}", times.len());
    }
    for (kind, n) in &totals.refusals {
        println!("{n:5} refused: {kind}");
    }
}
