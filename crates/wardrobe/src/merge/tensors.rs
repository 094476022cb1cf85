//! The tensors of a merged model on their way to disk: computed, rounded and put in order a few rows at a time.

use std::cell::Cell;
use std::ops::Range;

use wardrobe_formats::gguf::RowOrder;
use wardrobe_formats::{FormatError, StorageType, TensorInfo, TensorSink, convert, finite};
use wardrobe_models::{MergedTensor, MergedTensors};

use super::{MergeFormat, MergeProgress, MergeReport, MergedWeight};

type Result<T> = std::result::Result<T, FormatError>;

/// Elements in memory at once, about: 16 MiB in f64.
const CHUNK_ELEMENTS: usize = 1 << 21;
const MAX_THREADS: usize = 32;

/// A tensor to be written.
pub(super) struct Item<'a> {
    pub(super) tensor: &'a MergedTensor,
    /// How it is stored in the output.
    pub(super) storage: StorageType,
    /// In what order its rows stand there.
    pub(super) order: RowOrder,
    /// What its elements there have added.
    pub(super) offset: f32,
}

impl Item<'_> {
    /// Its bytes in the output.
    pub(super) fn size_bytes(&self) -> u64 {
        self.storage.bytes_for(self.tensor.info.numel()).map_or(u64::MAX, |bytes| bytes as u64)
    }

    /// As it is in the output, in Hugging Face's naming.
    pub(super) fn info(&self) -> TensorInfo {
        TensorInfo { storage: self.storage, ..self.tensor.info.clone() }
    }
}

/// Tells how far a merge is.
pub(super) struct Progress<'a> {
    tell: &'a MergeProgress<'a>,
    done_bytes: Cell<u64>,
    total_bytes: Cell<u64>,
}

impl<'a> Progress<'a> {
    pub(super) fn new(tell: &'a MergeProgress<'a>) -> Self {
        Self { tell, done_bytes: Cell::new(0), total_bytes: Cell::new(0) }
    }

    fn start(&self, total_bytes: u64) {
        self.total_bytes.set(total_bytes);
        (self.tell)(0, total_bytes);
    }

    fn advance(&self, bytes: usize) {
        self.done_bytes.set(self.done_bytes.get().saturating_add(bytes as u64));
        (self.tell)(self.done_bytes.get(), self.total_bytes.get());
    }
}

/// Computes tensors for a writer, and keeps what is to be reported of them.
pub(super) struct Writing<'a> {
    merged: &'a MergedTensors<'a>,
    progress: Progress<'a>,
    threads: usize,
    weights: Vec<MergedWeight>,
}

/// Sums of squares over the rows of a merged tensor.
#[derive(Clone, Copy, Default)]
struct Squares {
    base: f64,
    change: f64,
    merged: f64,
    rounding: f64,
}

impl<'a> Writing<'a> {
    pub(super) fn new(merged: &'a MergedTensors<'a>, progress: Progress<'a>) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(MAX_THREADS));
        Self { merged, progress, threads, weights: Vec::new() }
    }

    /// Says how much there is to do.
    pub(super) fn start(&self, total_bytes: u64) {
        self.progress.start(total_bytes);
    }

    /// Computes a tensor and puts it into the file.
    pub(super) fn put(&mut self, item: &Item<'_>, sink: &mut TensorSink) -> Result<()> {
        let info = &item.tensor.info;
        let mut squares = Squares::default();
        for rows in chunks(info, item) {
            let num_rows = rows.len();
            let bytes = if item.tensor.is_merged() {
                let (bytes, of_rows) = self.merged_chunk(item, rows)?;
                squares = squares.plus(of_rows);
                bytes
            } else {
                let stored = self.merged.stored_rows(item.tensor, rows)?;
                if item.offset != 0.0 {
                    let numel = num_rows.saturating_mul(info.row_numel());
                    let mut values = convert::to_f32(info.storage, &stored, numel)?;
                    values.iter_mut().for_each(|v| *v += item.offset);
                    convert::from_f32(item.storage, &values, numel.max(1))?
                } else if item.storage == info.storage {
                    stored
                } else {
                    let numel = num_rows.saturating_mul(info.row_numel());
                    let row_numel = if info.shape.len() > 1 { info.row_numel() } else { numel };
                    let bytes = convert::convert(info.storage, &stored, numel, row_numel, item.storage)?;
                    check_range(info, item.storage, &bytes)?;
                    bytes
                }
            };
            let row_bytes = bytes.len() / num_rows.max(1);
            let len = bytes.len();
            sink.put(&item.order.to_file(bytes, row_bytes))?;
            self.progress.advance(len);
        }
        if item.tensor.is_merged() {
            let relative = |part: f64, whole: f64| (part / whole.max(f64::MIN_POSITIVE)).sqrt();
            self.weights.push(MergedWeight {
                name: info.name.clone(),
                storage: item.storage,
                change: relative(squares.change, squares.base),
                rounding: relative(squares.rounding, squares.merged),
            });
        }
        Ok(())
    }

    /// Rows of a merged tensor in their type, computed on all threads: each row by itself, so that their number changes
    /// no bit.
    fn merged_chunk(&self, item: &Item<'_>, rows: Range<usize>) -> Result<(Vec<u8>, Squares)> {
        let per_thread = rows.len().div_ceil(self.threads).max(1);
        let parts: Vec<Range<usize>> = rows
            .clone()
            .step_by(per_thread)
            .map(|first| first..rows.end.min(first.saturating_add(per_thread)))
            .collect();
        let merged = self.merged;
        let computed: Vec<Result<(Vec<u8>, Squares)>> = match parts.as_slice() {
            [one] => vec![merged_part(merged, item, one.clone())],
            _ => std::thread::scope(|scope| {
                let running: Vec<_> = parts
                    .into_iter()
                    .map(|part| scope.spawn(move || merged_part(merged, item, part)))
                    .collect();
                let ended = running.into_iter().map(|thread| match thread.join() {
                    Ok(result) => result,
                    Err(panic) => std::panic::resume_unwind(panic),
                });
                ended.collect()
            }),
        };
        let (mut bytes, mut squares) = (Vec::new(), Squares::default());
        for part in computed {
            let (part, of_part) = part?;
            bytes.extend_from_slice(&part);
            squares = squares.plus(of_part);
        }
        Ok((bytes, squares))
    }

    /// What was done.
    pub(super) fn report(
        self,
        format: MergeFormat,
        num_tensors: usize,
        size_bytes: u64,
        mut notes: Vec<String>,
    ) -> MergeReport {
        let drowned = self.weights.iter().filter(|weight| weight.is_drowned()).count();
        if drowned > 0 {
            notes.push(format!(
                "in {drowned} of {} merged tensors the error of rounding is larger than what the adapter changed: answers \
                 may be the base's; bf16, or q8_0 in a GGUF file, loses less",
                self.weights.len()
            ));
        }
        MergeReport { format, merged: self.weights, num_tensors, size_bytes, notes }
    }
}

impl Squares {
    fn plus(self, other: Self) -> Self {
        Squares {
            base: self.base + other.base,
            change: self.change + other.change,
            merged: self.merged + other.merged,
            rounding: self.rounding + other.rounding,
        }
    }
}

fn merged_part(
    merged: &MergedTensors<'_>,
    item: &Item<'_>,
    rows: Range<usize>,
) -> Result<(Vec<u8>, Squares)> {
    let info = &item.tensor.info;
    let part = merged.merged_rows(item.tensor, rows)?;
    let bytes = convert::from_f32(item.storage, &part.values, info.row_numel())?;
    check_range(info, item.storage, &bytes)?;
    let mut squares = Squares { base: part.base_squared, change: part.change_squared, ..Squares::default() };
    squares.merged = part.values.iter().map(|v| f64::from(*v).powi(2)).sum();
    if item.storage != StorageType::F32 {
        let stored = convert::to_f32(item.storage, &bytes, part.values.len())?;
        let lost = stored.iter().zip(&part.values).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2));
        squares.rounding = lost.sum();
    }
    Ok((bytes, squares))
}

/// Refuses numbers that the output's type does not reach.
fn check_range(info: &TensorInfo, storage: StorageType, bytes: &[u8]) -> Result<()> {
    match finite::first_not_finite(storage, bytes) {
        None => Ok(()),
        Some(_) => Err(FormatError::Conversion {
            from: StorageType::F32,
            to: storage,
            problem: format!("a value of {} is over what this type holds", info.name),
        }),
    }
}

/// Ranges of rows of about [`CHUNK_ELEMENTS`], in the order of the output. A vector is one, unless its parts move.
fn chunks(info: &TensorInfo, item: &Item<'_>) -> Vec<Range<usize>> {
    let num_rows = info.rows();
    let max_rows = if info.shape.len() > 1 { CHUNK_ELEMENTS / info.row_numel().max(1) } else { num_rows };
    item.order.pieces(num_rows, max_rows)
}
