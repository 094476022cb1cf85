//! Parting a file into one to train on and one to test with.
//!
//! Records that say the same go to the same side, so that nothing is tested that was trained on. The file is read twice:
//! once to know every record by digest, place and length (40 bytes each), once to copy.

use std::collections::HashMap;
use std::hash::Hash;
use std::path::Path;

use crate::error::{DataError, Result};
use crate::filter::raw;
use crate::output::Output;
use crate::records::{ReadOptions, Records};
use crate::shuffle::SplitMix64;

/// How many records are for testing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum TestSize {
    /// A part of all, above 0 and below 1.
    Fraction(f64),
    /// So many.
    Records(usize),
}

/// How a file is parted.
#[derive(Debug, Clone, PartialEq)]
pub struct SplitOptions {
    /// How the file is read.
    pub read: ReadOptions,
    /// How much is for testing.
    pub test_size: TestSize,
    /// Which records these are.
    pub seed: u64,
    /// Replace outputs that are there.
    pub replace: bool,
}

/// What a file was parted into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SplitReport {
    /// Records to train on.
    pub num_train: usize,
    /// Records to test with.
    pub num_test: usize,
    /// Records that say the same as an earlier one.
    pub num_duplicates: usize,
}

/// Copies every record, byte by byte, into one of two files. Which one is chosen by the seed; in both, records stay in the
/// order of the file. The header of CSV is kept; of Parquet, JSONL is written.
///
/// # Errors
/// A record that cannot be read; one of the files would be empty; an output exists; what the system says. Then there is
/// no output, or, where the system failed between the two, the second is missing.
pub fn split(path: &Path, train: &Path, test: &Path, options: &SplitOptions) -> Result<SplitReport> {
    if train == test {
        return Err(DataError::Options("both outputs are the same file".to_owned()));
    }
    let mut outputs = [Output::create(train, options.replace)?, Output::create(test, options.replace)?];
    let mut digests = Vec::new();
    let mut records = Records::open(path, &options.read)?;
    while let Some(entry) = records.next_record() {
        digests.push(entry?.record.digest());
    }
    let num_records = digests.len();
    let num_test = match options.test_size {
        TestSize::Records(records) => records,
        TestSize::Fraction(fraction) if fraction > 0.0 && fraction < 1.0 => {
            ((num_records as f64 * fraction).round() as usize).clamp(1, num_records.saturating_sub(1).max(1))
        }
        TestSize::Fraction(fraction) => {
            return Err(DataError::Options(format!("a fraction of {fraction} is not between 0 and 1")));
        }
    };
    if num_test == 0 || num_test >= num_records {
        let message =
            format!("of {num_records} records {num_test} for testing leave one of the two files empty");
        return Err(DataError::Options(message));
    }
    let is_test = choose(&digests, num_test, options.seed);
    let num_chosen = is_test.iter().filter(|is_test| **is_test).count();
    if num_chosen == 0 {
        let message =
            format!("no set of equal records is as small as {num_test}: nothing is left for testing");
        return Err(DataError::Options(message));
    }
    let mut distinct = digests;
    distinct.sort_unstable();
    distinct.dedup();
    let num_duplicates = num_records - distinct.len();

    let mut records = Records::open(path, &options.read)?;
    let format = records.format();
    if !records.header().is_empty() {
        for output in &mut outputs {
            output.write_record(records.header())?;
        }
    }
    let [train_output, test_output] = &mut outputs;
    let mut sides = is_test.into_iter();
    while let Some(entry) = records.next_record() {
        let entry = entry?;
        let Some(is_test) = sides.next() else { return Err(changed(path)) };
        let output = if is_test { &mut *test_output } else { &mut *train_output };
        output.write_record(&raw(format, &entry.record, entry.raw))?;
    }
    if sides.next().is_some() {
        return Err(changed(path));
    }
    let [train_output, test_output] = outputs;
    train_output.finish()?;
    test_output.finish()?;
    Ok(SplitReport { num_train: num_records - num_chosen, num_test: num_chosen, num_duplicates })
}

fn changed(path: &Path) -> DataError {
    DataError::file(path, "changed while it was read")
}

/// Which items are for testing: at most `num_test`, equal ones together, chosen by seed.
pub(crate) fn choose<K: Eq + Hash>(keys: &[K], num_test: usize, seed: u64) -> Vec<bool> {
    // Groups of equal items, in the order of their first.
    let mut group_of_key: HashMap<&K, usize> = HashMap::new();
    let mut group_of_item = Vec::with_capacity(keys.len());
    let mut sizes: Vec<usize> = Vec::new();
    for key in keys {
        let group = *group_of_key.entry(key).or_insert(sizes.len());
        match sizes.get_mut(group) {
            Some(size) => *size += 1,
            None => sizes.push(1),
        }
        group_of_item.push(group);
    }
    let mut order: Vec<usize> = (0..sizes.len()).collect();
    SplitMix64::new(seed).shuffle(&mut order);
    let mut is_test_group = vec![false; sizes.len()];
    let mut room = num_test;
    for group in order {
        let size = sizes.get(group).copied().unwrap_or(0);
        if let (true, Some(is_test)) = (size <= room, is_test_group.get_mut(group)) {
            *is_test = true;
            room -= size;
        }
    }
    group_of_item.into_iter().map(|group| is_test_group.get(group).copied().unwrap_or(false)).collect()
}
