//! From examples to the steps that a worker computes.
//!
//! A micro-batch is some examples side by side in one step, each a sequence of its own: no token of one sees another's.
//! How a batch is divided depends on lengths and settings alone, never on the number of threads, so that gradients are
//! summed in one order everywhere.

use wardrobe_data::Example;
use wardrobe_device::{BLOCK_SIZE, StepInputs};
use wardrobe_text::TokenId;

/// Rows of an example that have to be computed: those up to the one that predicts the last supervised token.
pub(crate) fn num_rows(example: &Example) -> usize {
    let supervised = |i: &usize| example.loss.get(*i).copied().unwrap_or(false);
    (1..example.token_ids.len()).rev().find(supervised).unwrap_or(0)
}

/// Examples of one step, with what is to be predicted.
#[derive(Debug, Clone, Default)]
pub(crate) struct MicroBatch {
    pub(crate) inputs: StepInputs,
    /// Token that each logit row should predict.
    pub(crate) targets: Vec<u32>,
    /// `[rows]`: number of each row's example.
    pub(crate) example_idx: Vec<u32>,
}

impl MicroBatch {
    /// `examples` with their numbers in the run, in this order.
    pub(crate) fn new<'a>(examples: impl IntoIterator<Item = (u32, &'a Example)>) -> Self {
        let mut batch = MicroBatch::default();
        let inputs = &mut batch.inputs;
        inputs.seq_starts.push(0);
        let mut tables: Vec<Vec<u32>> = Vec::new();
        let mut next_block = 0;
        for (idx, example) in examples {
            let rows = num_rows(example);
            if rows == 0 {
                continue;
            }
            let first = inputs.token_ids.len();
            inputs.token_ids.extend(example.token_ids.iter().take(rows).map(|t| t.0));
            inputs.positions.extend(0..rows as u32);
            inputs.seq_starts.push((first + rows) as u32);
            inputs.context_lens.push(rows as u32);
            batch.example_idx.extend(std::iter::repeat_n(idx, rows));
            let blocks = rows.div_ceil(BLOCK_SIZE) as u32;
            tables.push((next_block..next_block + blocks).collect());
            next_block += blocks;
            for (row, (token, &supervised)) in
                example.token_ids.iter().zip(&example.loss).skip(1).enumerate().take(rows)
            {
                if supervised {
                    inputs.logit_rows.push((first + row) as u32);
                    batch.targets.push(token.0);
                }
            }
        }
        let rows = inputs.token_ids.len();
        inputs.rope_idx = vec![0; rows];
        inputs.lora_slots = vec![0; rows];
        inputs.lora_scales = vec![1.0; rows];
        inputs.max_blocks = tables.iter().map(Vec::len).max().unwrap_or(0);
        for table in &mut tables {
            table.resize(inputs.max_blocks, 0);
        }
        inputs.block_tables = tables.concat();
        batch
    }

    /// One text, every position of which gives logits.
    pub(crate) fn text(tokens: &[TokenId]) -> Self {
        let token_ids = tokens.iter().copied().chain(tokens.last().copied()).collect();
        let loss = std::iter::once(false).chain(std::iter::repeat_n(true, tokens.len())).collect();
        Self::new([(0, &Example { token_ids, loss })])
    }

    /// Blocks of keys and values.
    pub(crate) fn num_blocks(rows: usize, seqs: usize) -> usize {
        rows / BLOCK_SIZE + seqs
    }
}

/// Divides examples of `rows` rows each among micro-batches of at most `max_rows` rows (an example that is longer has one
/// for itself), and at least `min_parts` where there are examples enough. Indices into `rows`, ascending in each part.
pub(crate) fn divide(rows: &[usize], max_rows: usize, min_parts: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..rows.len()).filter(|&i| rows.get(i).is_some_and(|&r| r > 0)).collect();
    let len = |i: usize| rows.get(i).copied().unwrap_or(0);
    let total: usize = order.iter().map(|&i| len(i)).sum();
    // The longest first, each to the emptiest part: parts come out even.
    order.sort_by_key(|&i| (std::cmp::Reverse(len(i)), i));
    let wanted = total.div_ceil(max_rows.max(1)).max(min_parts.min(order.len()));
    let mut parts: Vec<(usize, Vec<usize>)> = vec![(0, Vec::new()); wanted];
    for i in order {
        let emptiest =
            parts.iter_mut().filter(|(rows, _)| *rows == 0 || *rows + len(i) <= max_rows).min_by_key(|p| p.0);
        match emptiest {
            Some((rows, part)) => {
                *rows += len(i);
                part.push(i);
            }
            None => parts.push((len(i), vec![i])),
        }
    }
    let mut parts: Vec<Vec<usize>> =
        parts.into_iter().map(|(_, part)| part).filter(|p| !p.is_empty()).collect();
    parts.iter_mut().for_each(|part| part.sort_unstable());
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(len: usize, supervised: &[usize]) -> Example {
        Example {
            token_ids: (0..len as u32).map(wardrobe_text::TokenId).collect(),
            loss: (0..len).map(|i| supervised.contains(&i)).collect(),
        }
    }

    #[test]
    fn rows_end_at_the_last_prediction() {
        assert_eq!(num_rows(&example(5, &[2, 3])), 3);
        assert_eq!(num_rows(&example(5, &[0])), 0);
        assert_eq!(num_rows(&example(5, &[0, 4])), 4);
        assert_eq!(num_rows(&example(0, &[])), 0);
    }

    #[test]
    fn targets_follow_their_rows() {
        let (a, b) = (example(20, &[18, 19]), example(4, &[1, 3]));
        let batch = MicroBatch::new([(7, &a), (9, &example(3, &[])), (8, &b)]);
        let inputs = &batch.inputs;
        assert_eq!(inputs.seq_starts, [0, 19, 22]);
        assert_eq!(inputs.context_lens, [19, 3]);
        assert_eq!(inputs.logit_rows, [17, 18, 19, 21]);
        assert_eq!(batch.targets, [18, 19, 1, 3]);
        assert_eq!(inputs.block_tables, [0, 1, 2, 0]);
        assert_eq!((batch.example_idx[18], batch.example_idx[19]), (7, 8));
    }

    #[test]
    fn parts_hold_all_and_no_more_than_fits() {
        let rows = [5, 300, 0, 120, 120, 700, 60];
        let parts = divide(&rows, 512, 1);
        let mut all: Vec<usize> = parts.concat();
        all.sort_unstable();
        assert_eq!(all, [0, 1, 3, 4, 5, 6]);
        for part in &parts {
            assert!(part.len() == 1 || part.iter().map(|&i| rows[i]).sum::<usize>() <= 512, "{parts:?}");
        }
        assert_eq!(divide(&[10, 10, 10, 10, 10], 512, 4).len(), 4);
        assert_eq!(divide(&[10, 10], 512, 4).len(), 2);
        assert!(divide(&[0, 0], 512, 4).is_empty());
    }
}
