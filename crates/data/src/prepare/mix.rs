//! Several sources in one file, in shares and shuffled.

use std::str::FromStr;

use serde_json::{Map, Value, json};

use super::draw::{generator, subset};
use super::inputs::{InputRecord, Reader, Source};
use super::product::{Dropped, Made, Output, Product};
use super::spool::Spool;
use crate::columns::{ColumnMap, Layout};
use crate::error::{DataError, Result};

/// How much of a source is taken.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Share {
    /// So many records.
    Count(u64),
    /// So many percent of all that is written.
    Percent(f64),
    /// Every record once.
    All,
}

/// `1000`, `30%` or `all`.
impl FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text == "all" {
            return Ok(Self::All);
        }
        if let Some(percent) = text.strip_suffix('%') {
            return match percent.trim().parse::<f64>() {
                Ok(percent) if percent > 0.0 && percent <= 100.0 => Ok(Self::Percent(percent)),
                _ => Err(format!("{text:?} is no share above 0 % and up to 100 %")),
            };
        }
        match text.parse() {
            Ok(count) if count > 0 => Ok(Self::Count(count)),
            _ => Err(format!("{text:?} is neither a count, nor a share such as 30%, nor all")),
        }
    }
}

impl std::fmt::Display for Share {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Count(count) => write!(f, "{count}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
            Self::All => f.write_str("all"),
        }
    }
}

/// One of the sources.
#[derive(Debug, Clone)]
pub struct MixSource {
    /// What messages call it.
    pub name: String,
    /// Its files.
    pub source: Source,
    /// How much of it is taken.
    pub share: Share,
}

/// What is mixed.
#[derive(Debug, Clone)]
pub struct MixOptions {
    /// The sources.
    pub sources: Vec<MixSource>,
    /// Records of the output. Needed where all shares are percentages; else it follows from the sources, and must agree.
    pub total: Option<u64>,
    /// Records of a source that has too few are taken several times, none of them more than once more often than others.
    pub repeat: bool,
    /// Which records, and their order.
    pub seed: u64,
    /// Where they are written.
    pub output: Output,
}

/// What was mixed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MixReport {
    /// Files that were read.
    pub inputs: Vec<InputRecord>,
    /// For every source: records that it has, and records that were written of it.
    pub sources: Vec<(u64, u64)>,
    /// Records that could not be read.
    pub dropped: Dropped,
    /// What the records of each source are, if that is known and not the same for all.
    pub layouts: Vec<Option<String>>,
}

/// Writes records of several sources in a random order. Every file is read twice: to count its records, and to take those
/// that were drawn. Lines of JSONL are copied byte by byte.
///
/// # Errors
/// Shares that do not add up; a source that runs short, with the number that is missing; a record that cannot be read,
/// unless those are skipped; what the system says. Then there is no output.
pub fn mix(options: &MixOptions) -> Result<MixReport> {
    let files = || options.sources.iter().flat_map(|source| &source.source.files);
    let mut product = Product::create(&options.output, &[], files())?;
    if options.sources.is_empty() {
        return Err(DataError::Options("there is no source to mix".to_owned()));
    }
    let mut names: Vec<&str> = files().map(|file| file.name()).collect();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|pair| pair.first() == pair.last())
        && !options.repeat
    {
        let name = twice.first().copied().unwrap_or_default();
        return Err(DataError::Options(format!(
            "{name} is in two sources, so that its records could come twice"
        )));
    }
    let mut dropped = Dropped::default();
    let mut counted = Vec::new();
    for source in &options.sources {
        counted.push(count(&source.source, &mut dropped)?);
    }
    let available: Vec<u64> = counted.iter().map(|counted| counted.num_records).collect();
    let wanted = shares(options, &available)?;
    check(options, &available, &wanted)?;

    let mut spool = Spool::new(&options.output.path)?;
    for (idx, ((source, counted), wanted)) in options.sources.iter().zip(&counted).zip(&wanted).enumerate() {
        let mut generator = generator(options.seed, &format!("mix {idx}"));
        take(source, counted, *wanted, &mut generator, &mut spool)?;
    }
    // What was set aside is in the order of reading; this is the order of writing.
    let mut order: Vec<usize> = (0..spool.len()).collect();
    generator(options.seed, "mix order").shuffle(&mut order);
    for at in order {
        product.push(&spool.read(at)?)?;
    }
    let layouts: Vec<Option<String>> = counted.iter().map(|counted| counted.layout.clone()).collect();
    let is_mixed = layouts.windows(2).any(|pair| pair.first() != pair.last());
    let report = MixReport {
        inputs: counted.into_iter().flat_map(|counted| counted.inputs).collect(),
        sources: available.into_iter().zip(wanted).collect(),
        dropped,
        layouts: if is_mixed { layouts } else { Vec::new() },
    };
    product.finish(Made {
        command: "mix",
        seed: Some(options.seed),
        settings: options.settings(),
        inputs: &report.inputs,
        dropped: &report.dropped,
        figures: report.figures(options),
    })?;
    Ok(report)
}

impl MixOptions {
    fn settings(&self) -> Map<String, Value> {
        let source = |source: &MixSource| json!({"name": source.name, "share": source.share.to_string()});
        let skips: Vec<bool> = self.sources.iter().map(|source| source.source.skip_unreadable).collect();
        Map::from_iter([
            ("sources".to_owned(), self.sources.iter().map(source).collect()),
            ("total".to_owned(), self.total.into()),
            ("repeat".to_owned(), self.repeat.into()),
            ("skip_unreadable".to_owned(), skips.contains(&true).into()),
        ])
    }
}

impl MixReport {
    fn figures(&self, options: &MixOptions) -> Map<String, Value> {
        let sources = options.sources.iter().zip(&self.sources);
        let sources = sources.map(|(source, (available, written))| {
            json!({"name": source.name, "available": available, "written": written})
        });
        Map::from_iter([("sources".to_owned(), sources.collect())])
    }
}

struct Counted {
    inputs: Vec<InputRecord>,
    num_records: u64,
    layout: Option<String>,
}

fn count(source: &Source, dropped: &mut Dropped) -> Result<Counted> {
    let mut reader = Reader::new(source);
    let (mut num_records, mut layout) = (0, None);
    while let Some(document) = reader.next(dropped)? {
        if num_records == 0 {
            let known = Layout::detect(&document.columns, &ColumnMap::default(), None);
            layout = known.ok().map(|layout| layout.to_string());
        }
        num_records += 1;
    }
    Ok(Counted { inputs: reader.records, num_records, layout })
}

/// How many records of each source are written.
fn shares(options: &MixOptions, available: &[u64]) -> Result<Vec<u64>> {
    let wrong = |message: String| Err(DataError::Options(message));
    let (mut counts, mut percent) = (0_u64, 0.0);
    for (source, available) in options.sources.iter().zip(available) {
        match source.share {
            Share::Count(count) => counts = counts.saturating_add(count),
            Share::All => counts = counts.saturating_add(*available),
            Share::Percent(share) => percent += share,
        }
    }
    // Shares such as 33.3 % three times are meant to be all.
    const SLACK_PERCENT: f64 = 0.5;
    let total = match (options.total, counts) {
        (None, 0) => return wrong("shares in percent need the total that they are shares of".to_owned()),
        (Some(total), 0) if (percent - 100.0).abs() > SLACK_PERCENT => {
            return wrong(format!("the shares are {percent} % of {total} together, not 100 %"));
        }
        (Some(total), 0) => total,
        (total, counts) if percent > 0.0 => {
            if percent >= 100.0 {
                return wrong(format!(
                    "the shares are {percent} % together, and there are counts beside them"
                ));
            }
            let derived = (counts as f64 / (1.0 - percent / 100.0)).round() as u64;
            if let Some(total) = total
                && total.abs_diff(derived) > 1
            {
                let rest = 100.0 - percent;
                return wrong(format!(
                    "{counts} records by count are the {rest} % that the other shares leave of {derived} records, not of {total}"
                ));
            }
            total.unwrap_or(derived)
        }
        (Some(total), counts) if total != counts => {
            return wrong(format!("the sources are {counts} records together, not {total}"));
        }
        (_, counts) => counts,
    };
    if total == 0 {
        return wrong("nothing is to be written".to_owned());
    }
    let left = total.saturating_sub(counts);
    Ok(by_largest_remainder(options, available, left, percent))
}

/// Parts what the counts leave by the shares, whole numbers that add up to it.
fn by_largest_remainder(options: &MixOptions, available: &[u64], left: u64, percent: f64) -> Vec<u64> {
    let mut remainders = Vec::new();
    let mut given = 0;
    let mut wanted: Vec<u64> = Vec::new();
    for (idx, (source, available)) in options.sources.iter().zip(available).enumerate() {
        wanted.push(match source.share {
            Share::Count(count) => count,
            Share::All => *available,
            Share::Percent(share) => {
                let exact = left as f64 * share / percent;
                let whole = exact.floor() as u64;
                given += whole;
                remainders.push((exact - exact.floor(), idx));
                whole
            }
        });
    }
    remainders.sort_by(|(a, i), (b, j)| b.total_cmp(a).then(i.cmp(j)));
    let missing = usize::try_from(left.saturating_sub(given)).unwrap_or(0);
    for (_, idx) in remainders.into_iter().take(missing) {
        if let Some(wanted) = wanted.get_mut(idx) {
            *wanted += 1;
        }
    }
    wanted
}

/// That no source runs short.
fn check(options: &MixOptions, available: &[u64], wanted: &[u64]) -> Result<()> {
    let mut short = Vec::new();
    for ((source, available), wanted) in options.sources.iter().zip(available).zip(wanted) {
        let name = &source.name;
        if *available == 0 && *wanted > 0 {
            short.push(format!("{name} has no record"));
        } else if wanted > available && !options.repeat {
            short.push(format!(
                "{name} has {available} records, {} fewer than the {wanted} asked for",
                wanted - available
            ));
        }
    }
    if short.is_empty() { Ok(()) } else { Err(DataError::Insufficient(short.join("; "))) }
}

/// Sets `wanted` records of a source aside: each as often as all fit, and some of them, drawn, once more.
fn take(
    source: &MixSource,
    counted: &Counted,
    wanted: u64,
    generator: &mut crate::shuffle::SplitMix64,
    spool: &mut Spool,
) -> Result<()> {
    let rounds = wanted.checked_div(counted.num_records).unwrap_or(0);
    let mut drawn = subset(counted.num_records, wanted - rounds * counted.num_records, generator);
    drawn.sort_unstable();
    let mut drawn = drawn.into_iter().peekable();
    let mut reader = Reader::again(&source.source, &counted.inputs);
    let mut unreadable = Dropped::default();
    let mut left = wanted;
    while left > 0 {
        let Some(document) = reader.next(&mut unreadable)? else {
            return Err(DataError::Insufficient(format!("{} changed while it was read", source.name)));
        };
        let once_more = u64::from(drawn.next_if_eq(&document.number).is_some());
        let line = document.line();
        for _ in 0..rounds + once_more {
            spool.push(&line)?;
        }
        left = left.saturating_sub(rounds + once_more);
    }
    Ok(())
}
