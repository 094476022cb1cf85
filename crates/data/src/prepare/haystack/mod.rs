//! A needle in a haystack of biographies: one person's facts among many others', at a wished place and length.
//!
//! Everyone gets a name that is not theirs, so that nothing can be known by heart. The haystack and the place of the needle
//! are measured with the tokenizer of the model that will read them.

mod build;
mod corpus;
mod forget;
mod swap;

use serde_json::{Map, Value, json};

use super::draw::{generator, subset};
use super::inputs::{InputRecord, Source};
use super::product::{Dropped, Made, Output, Product};
use super::span::Span;
use super::words::Counting;
use crate::error::{DataError, Result};
use build::{Builder, Cell};
use corpus::Corpus;

/// What a field has of which the text does not tell.
const UNKNOWN: &str = "unknown";
/// The schema of the records.
const SCHEMA: &str = include_str!("../../../../../datasets/biographies/schema.json");
const SCHEMA_ENDING: &str = "schema.json";
const MAX_ITEMS: usize = 10_000_000;

/// Which haystacks.
#[derive(Debug, Clone)]
pub struct HaystackOptions<'a> {
    /// Biographies, with the columns that [`bios`](super::bios) writes: `name`, `text`, `nationality`, `born`, `died`,
    /// `sportsperson`, `politician`, and `names` (all of a person's), `doubtful` and `synset` or `id` where they are there.
    pub source: Source,
    /// The tokenizer that measures.
    pub counting: Counting<'a>,
    /// Tokens of a prompt, with its question.
    pub lengths: Vec<usize>,
    /// Places of the needle: 0 at the front, 1 at the end.
    pub depths: Vec<f64>,
    /// Items of each length and depth.
    pub per_cell: usize,
    /// Tokens of a biography that is asked for.
    pub needle_tokens: Span,
    /// The part of the items, from 0 to 1, of which a fact was taken out of the text, so that `"unknown"` is right.
    pub unknown_share: f64,
    /// What is drawn.
    pub seed: u64,
    /// Where they are written.
    pub output: Output,
}

/// What was made of one length and depth.
#[derive(Debug, Clone, PartialEq)]
pub struct HaystackCell {
    /// The length that was wished for, in tokens.
    pub length: usize,
    /// The depth that was wished for.
    pub depth: f64,
    /// The mean of the lengths.
    pub mean_tokens: f64,
    /// The greatest difference of a length from the wish, in tokens.
    pub worst_tokens: usize,
    /// The mean of the depths.
    pub mean_depth: f64,
    /// The greatest difference of a depth from the wish.
    pub worst_depth: f64,
}

/// What was made.
#[derive(Debug, Clone, PartialEq)]
pub struct HaystackReport {
    /// Files that were read.
    pub inputs: Vec<InputRecord>,
    /// Items that were written.
    pub num_items: u64,
    /// Items with an unknown field.
    pub num_unknown: u64,
    /// Biographies in use, and those of them that can be asked for.
    pub num_biographies: usize,
    /// Biographies that can be asked for.
    pub num_needles: usize,
    /// Every length and depth.
    pub cells: Vec<HaystackCell>,
    /// Biographies that are not used, by reason.
    pub dropped: Dropped,
    /// Biographies that are never asked for, by reason.
    pub not_asked: Dropped,
}

/// Writes items `{"prompt", "completion", "length", "depth", "tokens", "depth_tokens", "asked", "biographies", "unknown"}`.
/// `length` and `depth` are what was wished for; `tokens` are the prompt's, `depth_tokens` the part of the other
/// biographies' tokens that stand before the needle. Both are nearer to the wish than one biography is long. `unknown` is
/// the field whose fact was taken out of the text, or null. Beside the output is `NAME.schema.json`, to which answers can
/// be held.
///
/// # Errors
/// Lengths that no needle fits in; too few biographies or names; records that cannot be read, unless those are skipped;
/// what the system says. Then there is no output.
pub fn haystack(options: &HaystackOptions<'_>) -> Result<HaystackReport> {
    options.check()?;
    let mut product = Product::create(&options.output, &[SCHEMA_ENDING], &options.source.files)?;
    let corpus = Corpus::read(options)?;
    let builder = Builder::new(options, &corpus)?;

    let num_items = options.lengths.len() * options.depths.len() * options.per_cell;
    let num_unknown = (num_items as f64 * options.unknown_share).round() as u64;
    let drawn = subset(num_items as u64, num_unknown, &mut generator(options.seed, "haystack unknown"));
    let unknown: std::collections::HashSet<u64> = drawn.into_iter().collect();
    let mut needles = builder.needles()?;
    let (mut number, mut cells) = (0, Vec::new());
    for &length in &options.lengths {
        for &depth in &options.depths {
            let cell = Cell { length, depth };
            let mut items = Vec::new();
            for _ in 0..options.per_cell {
                let (needle, fact) = needles.next(length, unknown.contains(&number))?;
                let item = builder.item(cell, number, needle, fact)?;
                product.push(item.to_json().to_string().as_bytes())?;
                items.push((item.tokens, item.depth_tokens));
                number += 1;
            }
            cells.push(HaystackCell::new(cell, &items));
        }
    }
    product.beside(SCHEMA_ENDING, schema(options.unknown_share > 0.0)?);
    let report = HaystackReport {
        num_items: product.num_records(),
        num_unknown,
        num_biographies: corpus.bios.len(),
        num_needles: builder.num_needles(),
        cells,
        inputs: corpus.inputs,
        dropped: corpus.dropped,
        not_asked: corpus.not_asked,
    };
    product.finish(Made {
        command: "haystack",
        seed: Some(options.seed),
        settings: options.settings(),
        inputs: &report.inputs,
        dropped: &report.dropped,
        figures: report.figures(),
    })?;
    Ok(report)
}

/// The schema that the shipped records have, in which years may be unknown, too. A nationality is any text.
fn schema(has_unknown: bool) -> Result<Vec<u8>> {
    if !has_unknown {
        return Ok(SCHEMA.into());
    }
    let wrong =
        |error: &dyn std::fmt::Display| DataError::Options(format!("the schema of biographies: {error}"));
    let mut schema: Value = serde_json::from_str(SCHEMA).map_err(|error| wrong(&error))?;
    for field in ["born", "died"] {
        let place =
            schema.pointer_mut(&format!("/properties/{field}")).ok_or_else(|| wrong(&"no such field"))?;
        *place = json!({"anyOf": [place.take(), {"const": UNKNOWN}]});
    }
    Ok(format!("{schema:#}\n").into_bytes())
}

impl HaystackOptions<'_> {
    fn check(&self) -> Result<()> {
        let wrong = |message: String| Err(DataError::Options(message));
        if self.lengths.is_empty() || self.depths.is_empty() || self.per_cell == 0 {
            return wrong(
                "there is nothing to make: lengths, depths and items of each are needed".to_owned(),
            );
        }
        if let Some(depth) = self.depths.iter().find(|depth| !(0.0..=1.0).contains(*depth)) {
            return wrong(format!("a depth of {depth} is not from 0 to 1"));
        }
        if !(0.0..=1.0).contains(&self.unknown_share) {
            return wrong(format!("a share of {} is not from 0 to 1", self.unknown_share));
        }
        let items = self.lengths.len().saturating_mul(self.depths.len()).saturating_mul(self.per_cell);
        if items > MAX_ITEMS {
            return wrong(format!("{items} items are over the limit of {MAX_ITEMS}"));
        }
        Ok(())
    }

    fn settings(&self) -> Map<String, Value> {
        Map::from_iter([
            ("tokenizer".to_owned(), self.counting.to_json()),
            ("lengths".to_owned(), self.lengths.clone().into()),
            ("depths".to_owned(), self.depths.clone().into()),
            ("per_cell".to_owned(), self.per_cell.into()),
            ("needle_tokens".to_owned(), self.needle_tokens.to_string().into()),
            ("unknown_share".to_owned(), self.unknown_share.into()),
            ("skip_unreadable".to_owned(), self.source.skip_unreadable.into()),
        ])
    }
}

impl HaystackCell {
    fn new(cell: Cell, items: &[(usize, f64)]) -> Self {
        let count = items.len().max(1) as f64;
        let worst = items.iter().map(|(_, depth)| (depth - cell.depth).abs());
        Self {
            length: cell.length,
            depth: cell.depth,
            mean_tokens: items.iter().map(|(tokens, _)| *tokens as f64).sum::<f64>() / count,
            worst_tokens: items.iter().map(|(tokens, _)| tokens.abs_diff(cell.length)).max().unwrap_or(0),
            mean_depth: items.iter().map(|(_, depth)| depth).sum::<f64>() / count,
            worst_depth: worst.fold(0.0, f64::max),
        }
    }
}

impl HaystackReport {
    fn figures(&self) -> Map<String, Value> {
        let cells = self.cells.iter().map(|cell| {
            json!({
                "length": cell.length, "depth": cell.depth, "mean_tokens": cell.mean_tokens,
                "worst_tokens": cell.worst_tokens, "mean_depth": cell.mean_depth, "worst_depth": cell.worst_depth,
            })
        });
        Map::from_iter([
            ("biographies".to_owned(), self.num_biographies.into()),
            ("needles".to_owned(), self.num_needles.into()),
            ("unknown".to_owned(), self.num_unknown.into()),
            ("not_asked".to_owned(), self.not_asked.to_json()),
            ("cells".to_owned(), cells.collect()),
        ])
    }
}
