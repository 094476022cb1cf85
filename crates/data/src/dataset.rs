//! A data set: examples in memory, ready for a trainer.
//!
//! State: the tokens and masks of all examples (five bytes a token), and no text. Immutable once made.
//!
//! The digest ties a checkpoint to its data: resuming on other tokens, another mask or another order of records is told
//! apart by it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use sha2::{Digest as _, Sha256};
use wardrobe_text::{ChatTemplate, Tokenizer};

use crate::encode::Encoder;
use crate::error::{DataError, Finding, Result};
use crate::example::{DropReason, Encoded, Example};
use crate::options::DataOptions;
use crate::record::Record;
use crate::records::Records;
use crate::shuffle;
use crate::stats::LengthStats;

/// What a data set holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Records that were read.
    pub records: usize,
    /// Examples that they gave.
    pub examples: usize,
    /// Records that were left out, by reason.
    pub dropped: BTreeMap<DropReason, usize>,
    /// Tokens of all examples.
    pub tokens: u64,
    /// Those of them that are learnt.
    pub supervised_tokens: u64,
    /// The longest example, in tokens.
    pub longest_tokens: usize,
}

impl Counts {
    fn add(&mut self, encoded: &Encoded) {
        self.records += 1;
        match encoded {
            Encoded::Example(example) => {
                self.examples += 1;
                self.tokens += example.token_ids.len() as u64;
                self.supervised_tokens += example.num_supervised_tokens() as u64;
                self.longest_tokens = self.longest_tokens.max(example.token_ids.len());
            }
            Encoded::Dropped(reason) => *self.dropped.entry(*reason).or_default() += 1,
        }
    }

    /// Records that were left out.
    pub fn num_dropped(&self) -> usize {
        self.dropped.values().sum()
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} records, {} examples", self.records, self.examples)?;
        for (reason, count) in &self.dropped {
            write!(f, ", {count} left out ({reason})")?;
        }
        Ok(())
    }
}

/// Tokenized examples.
#[derive(Debug, Clone)]
pub struct Dataset {
    examples: Vec<Example>,
    counts: Counts,
    digest: [u8; 32],
}

/// What a file's examples are like.
#[derive(Debug, Clone, PartialEq)]
pub struct DataStats {
    /// What was read and left out.
    pub counts: Counts,
    /// Tokens of each example.
    pub tokens: LengthStats,
    /// Those that are learnt.
    pub supervised_tokens: LengthStats,
}

/// Tokenizes a file's records as [`Dataset::load`] does, and keeps lengths alone.
///
/// # Errors
/// As for [`Dataset::load`]; without records, too.
pub fn measure(path: &Path, encoder: &Encoder<'_>, options: &DataOptions) -> Result<DataStats> {
    let (mut counts, mut tokens, mut supervised_tokens) = (Counts::default(), Vec::new(), Vec::new());
    each_encoded(path, encoder, options, |encoded| {
        counts.add(&encoded);
        if let Encoded::Example(example) = encoded {
            tokens.push(example.token_ids.len());
            supervised_tokens.push(example.num_supervised_tokens());
        }
    })?;
    if tokens.is_empty() {
        return Err(DataError::NoExamples(format!("{}: {counts}", path.display())));
    }
    Ok(DataStats {
        counts,
        tokens: LengthStats::new(tokens),
        supervised_tokens: LengthStats::new(supervised_tokens),
    })
}

/// Tokenizes the records of a file, one after the other.
fn each_encoded(
    path: &Path,
    encoder: &Encoder<'_>,
    options: &DataOptions,
    mut take: impl FnMut(Encoded),
) -> Result<()> {
    let mut records = Records::open(path, &options.read_options())?;
    while let Some(entry) = records.next_record() {
        let entry = entry?;
        take(encoder.encode(&entry.record).map_err(|message| DataError::Record {
            path: path.to_owned(),
            finding: Finding::at(entry.place, message),
        })?);
    }
    Ok(())
}

impl Dataset {
    /// Reads a file and tokenizes its records.
    ///
    /// # Errors
    /// The first record that cannot be read or tokenized, by its place; that nothing is left; settings that do not fit
    /// the model; what the system says.
    pub fn load(
        path: &Path,
        tokenizer: &Tokenizer,
        chat_template: Option<&ChatTemplate>,
        options: &DataOptions,
    ) -> Result<Self> {
        let encoder = Encoder::new(tokenizer, chat_template, options)?;
        let mut builder = Builder::default();
        each_encoded(path, &encoder, options, |encoded| builder.push(encoded))?;
        builder.finish(&format!("{}: ", path.display()))
    }

    /// Tokenizes records that come from no file.
    ///
    /// # Errors
    /// As for [`load`](Self::load).
    pub fn from_records(
        records: impl IntoIterator<Item = Record>,
        tokenizer: &Tokenizer,
        chat_template: Option<&ChatTemplate>,
        options: &DataOptions,
    ) -> Result<Self> {
        let encoder = Encoder::new(tokenizer, chat_template, options)?;
        let mut builder = Builder::default();
        for (number, record) in (1..).zip(records) {
            let encoded =
                encoder.encode(&record).map_err(|message| DataError::InProcess { number, message })?;
            builder.push(encoded);
        }
        builder.finish("")
    }

    /// Takes ready examples.
    ///
    /// # Errors
    /// [`DataError::Example`] for one whose mask is of another length, that learns its first token, or none;
    /// [`DataError::NoExamples`] if there are none.
    pub fn from_examples(examples: Vec<Example>) -> Result<Self> {
        let problem = |(idx, example): (usize, &Example)| {
            example.problem().map(|message| DataError::Example { idx, message })
        };
        if let Some(error) = examples.iter().enumerate().find_map(problem) {
            return Err(error);
        }
        let mut builder = Builder::default();
        examples.into_iter().for_each(|example| builder.push(Encoded::Example(example)));
        builder.finish("")
    }

    /// The examples, in the order of the records.
    pub fn examples(&self) -> &[Example] {
        &self.examples
    }

    /// How many there are; at least one.
    pub fn len(&self) -> usize {
        self.examples.len()
    }

    /// Never: a data set has an example.
    pub fn is_empty(&self) -> bool {
        self.examples.is_empty()
    }

    /// What it holds, and what was left out.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// The length of every example, in tokens.
    pub fn lengths_tokens(&self) -> Vec<usize> {
        self.examples.iter().map(|example| example.token_ids.len()).collect()
    }

    /// Figures of the examples' lengths, for the start of a job.
    pub fn stats(&self) -> DataStats {
        let supervised_tokens = self.examples.iter().map(Example::num_supervised_tokens);
        DataStats {
            counts: self.counts.clone(),
            tokens: LengthStats::new(self.lengths_tokens()),
            supervised_tokens: LengthStats::new(supervised_tokens),
        }
    }

    /// SHA-256 over tokens and masks, in order.
    pub fn digest(&self) -> &[u8; 32] {
        &self.digest
    }

    /// The order of the examples in an epoch; see [`epoch_order`](shuffle::epoch_order).
    pub fn epoch_order(&self, seed: u64, epoch: u64) -> Vec<usize> {
        shuffle::epoch_order(self.examples.len(), seed, epoch)
    }

    /// Parts it by seed into one for training and one of `num_test` examples to evaluate on. Equal examples stay
    /// together, so that nothing is evaluated that was learnt; the second part may therefore be smaller. Both keep the
    /// order of the examples.
    ///
    /// # Errors
    /// [`DataError::NoExamples`] if one of the two would be empty.
    pub fn split(self, num_test: usize, seed: u64) -> Result<(Self, Self)> {
        let keys: Vec<[u8; 32]> =
            self.examples.iter().map(|example| digest(std::slice::from_ref(example))).collect();
        let is_test = crate::split::choose(&keys, num_test, seed);
        let (mut train, mut test) = (Builder::default(), Builder::default());
        for (example, is_test) in self.examples.into_iter().zip(is_test) {
            if is_test { &mut test } else { &mut train }.push(Encoded::Example(example));
        }
        Ok((train.finish("for training: ")?, test.finish("to evaluate on: ")?))
    }
}

fn digest(examples: &[Example]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    hasher.update(b"wardrobe examples 1");
    hasher.update((examples.len() as u64).to_le_bytes());
    for example in examples {
        hasher.update((example.token_ids.len() as u64).to_le_bytes());
        let ids: Vec<u8> = example.token_ids.iter().flat_map(|id| id.0.to_le_bytes()).collect();
        hasher.update(&ids);
        let mask: Vec<u8> = example.loss.iter().map(|learnt| u8::from(*learnt)).collect();
        hasher.update(&mask);
    }
    hasher.finalize().into()
}

#[derive(Debug, Default)]
struct Builder {
    examples: Vec<Example>,
    counts: Counts,
}

impl Builder {
    fn push(&mut self, encoded: Encoded) {
        self.counts.add(&encoded);
        if let Encoded::Example(example) = encoded {
            self.examples.push(example);
        }
    }

    fn finish(self, of: &str) -> Result<Dataset> {
        if self.examples.is_empty() {
            return Err(DataError::NoExamples(format!("{of}{}", self.counts)));
        }
        let digest = digest(&self.examples);
        Ok(Dataset { examples: self.examples, counts: self.counts, digest })
    }
}
