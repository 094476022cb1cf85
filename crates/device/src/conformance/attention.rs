//! Paged attention: schedules of mixed steps over several sequences, against attention over the plain history.

use half::f16;

use super::random::Random;
use super::tiny_model::{BOUNDS, Chunk, TinyBatch};
use super::{Expected, Subject};
use crate::{AttentionSpec, BLOCK_SIZE, Ctx, DType, HostTensor, KvConfig, StepBounds, Weight, WeightFormat};

/// Sequences of one block each in a step that fills the cache.
const FILL_SEQS: usize = 4;

/// One attention layer and the sequences that run through it.
#[derive(Debug, Clone)]
pub(super) struct Case {
    pub(super) spec: AttentionSpec,
    pub(super) dtype: DType,
    /// Tokens of each sequence in the end.
    pub(super) lens: Vec<usize>,
    pub(super) seed: u64,
}

/// One step: sequences with how many of their next tokens run.
pub(super) type Plan = Vec<(usize, usize)>;

impl Case {
    pub(super) fn new(heads: [usize; 2], head_dim: usize, dtype: DType, lens: &[usize]) -> Self {
        let [num_heads, num_kv_heads] = heads;
        let scale = (head_dim as f32).sqrt().recip();
        let spec = AttentionSpec { num_heads, num_kv_heads, head_dim, scale, window: None, softcap: None };
        Case { spec, dtype, lens: lens.to_vec(), seed: 0 }
    }

    /// Query, key and value of one token: a function of sequence and position, whatever the schedule.
    fn token(&self, seq: usize, position: usize) -> [Vec<f32>; 3] {
        let AttentionSpec { num_heads, num_kv_heads, head_dim, .. } = self.spec;
        let mut random = Random::new(self.seed << 40 ^ (seq as u64) << 20 ^ position as u64);
        [num_heads, num_kv_heads, num_kv_heads]
            .map(|heads| (0..heads * head_dim).map(|_| random.range(-1.8..1.8)).collect())
    }

    /// Everything at once.
    pub(super) fn one_shot(&self) -> Vec<Plan> {
        vec![self.lens.iter().copied().enumerate().collect()]
    }

    /// Random chunks of random subsets, decode rows beside chunks of prompts, until all is done.
    pub(super) fn random_plans(&self, random: &mut Random) -> Vec<Plan> {
        let mut left = self.lens.clone();
        let mut plans = Vec::new();
        while left.iter().any(|&n| n > 0) {
            let mut plan = Plan::new();
            for (seq, left) in left.iter_mut().enumerate() {
                if *left > 0 && random.below(3) > 0 {
                    let n = random.pick(&[1, 1, 2, 5, 16, 17, 40]).min(*left);
                    plan.push((seq, n));
                    *left -= n;
                }
            }
            if !plan.is_empty() {
                plans.push(plan);
            }
        }
        plans
    }

    /// Two more than are needed.
    fn num_blocks(&self) -> usize {
        2 + self.lens.iter().map(|len| len.div_ceil(BLOCK_SIZE)).sum::<usize>()
    }

    /// Queries, keys and values as tables to look tokens up in, sequence after sequence, and a last row of NaN: operands
    /// then depend on nothing but the step's contents.
    fn load_tokens(&self, ctx: &mut Ctx) -> [Weight; 3] {
        let mut tables: [Vec<u8>; 3] = Default::default();
        let mut num_tokens = 0;
        let positions = self.lens.iter().enumerate().flat_map(|(seq, &len)| (0..len).map(move |p| (seq, p)));
        for (seq, position) in positions {
            num_tokens += 1;
            for (table, values) in tables.iter_mut().zip(self.token(seq, position)) {
                table.extend(values.iter().flat_map(|v| v.to_le_bytes()));
            }
        }
        tables.map(|mut bytes| {
            let row_bytes = bytes.len() / num_tokens;
            bytes.extend(f32::NAN.to_le_bytes().repeat(row_bytes / 4));
            let (rows, cols) = (num_tokens + 1, row_bytes / 4);
            ctx.load_weight(&HostTensor { format: WeightFormat::F32, rows, cols, bytes: &bytes }).unwrap()
        })
    }

    /// Runs the plans; the outputs of each sequence, `[len, heads * head_dim]`. Every block of the cache has held NaN
    /// before: that is what a sequence may find in a block that it was given.
    pub(super) fn run(&self, subject: &Subject, plans: &[Plan]) -> Vec<Vec<f32>> {
        let AttentionSpec { num_heads, num_kv_heads, head_dim, .. } = self.spec;
        let steps = plans.iter().map(|plan| plan.iter().map(|(_, n)| n).sum::<usize>());
        let max_rows = steps.max().unwrap_or(0).max(BLOCK_SIZE * FILL_SEQS);
        let mut ctx = subject.ctx(4 * max_rows * 2 * (num_heads + num_kv_heads) * head_dim + 1024);
        let num_blocks = self.num_blocks();
        let config = KvConfig { num_layers: 2, num_blocks, num_kv_heads, head_dim, dtype: self.dtype };
        let mut cache = ctx.kv_cache(config).unwrap();
        let tokens = self.load_tokens(&mut ctx);
        let bounds = StepBounds { vocab_size: tokens[0].rows(), num_blocks, ..BOUNDS };
        let nan_token = tokens[0].rows() as u32 - 1;
        let mut step = |batch: &TinyBatch| {
            let out = ctx.run_step(&batch.inputs(), &bounds, |ctx, step| {
                let [q, k, v] = tokens.each_ref().map(|table| ctx.embed(&step.token_ids, table));
                ctx.paged_attention([&q?, &k?, &v?], &self.spec, cache.layer_mut(1)?, step)
            });
            ctx.read_f32(&out.unwrap()).unwrap()
        };
        // Many sequences of one block each: quicker than a long one.
        let used: Vec<Chunk> =
            (0..num_blocks as u32).map(|b| Chunk::of(vec![nan_token; BLOCK_SIZE], 0, vec![b])).collect();
        for chunks in used.chunks(FILL_SEQS) {
            step(&TinyBatch { chunks: chunks.to_vec() });
        }
        let blocks = Random::new(self.seed ^ 5).shuffled(num_blocks);
        let mut rest = blocks.as_slice();
        let mut first_token = 0;
        let sequences: Vec<(u32, &[u32])> = self
            .lens
            .iter()
            .map(|&len| {
                let (table, others) = rest.split_at(len.div_ceil(BLOCK_SIZE));
                rest = others;
                first_token += len as u32;
                (first_token - len as u32, table)
            })
            .collect();
        let mut done = vec![0; self.lens.len()];
        let mut outs = vec![Vec::new(); self.lens.len()];
        for plan in plans {
            let chunk = |&(seq, n): &(usize, usize)| {
                let (first_token, table) = sequences[seq];
                let first = first_token + done[seq] as u32;
                let blocks = table[..(done[seq] + n).div_ceil(BLOCK_SIZE)].to_vec();
                Chunk::of((first..first + n as u32).collect(), done[seq], blocks)
            };
            let out = step(&TinyBatch { chunks: plan.iter().map(chunk).collect() });
            let mut rows = out.chunks(num_heads * head_dim);
            for &(seq, n) in plan {
                done[seq] += n;
                rows.by_ref().take(n).for_each(|row| outs[seq].extend_from_slice(row));
            }
        }
        assert_eq!(done, self.lens, "the plans run every token");
        outs
    }

    fn rounded(&self, v: f32) -> f64 {
        if self.dtype == DType::F16 { f16::from_f32(v).to_f64() } else { f64::from(v) }
    }

    /// Attention of one row over its sequence's history.
    fn expected(&self, history: &[[Vec<f32>; 3]], position: usize) -> Vec<Expected> {
        let AttentionSpec { num_heads, num_kv_heads, head_dim, scale, window, softcap } = self.spec;
        let from = window.map_or(0, |w| (position + 1).saturating_sub(w));
        let seen = &history[from..=position];
        let mut out = Vec::new();
        for head in 0..num_heads {
            let q = &history[position][0][head * head_dim..][..head_dim];
            let at = head / (num_heads / num_kv_heads) * head_dim;
            let mut scores = Vec::new();
            let mut largest_terms = 0f64;
            for token in seen {
                let mut score = Expected::default();
                for (&q, &k) in q.iter().zip(&token[1][at..]) {
                    score.add(f64::from(q) * self.rounded(k) * f64::from(scale));
                }
                largest_terms = largest_terms.max(score.magnitude);
                scores.push(softcap.map_or(score.value, |cap| {
                    let cap = f64::from(cap);
                    cap * (score.value / cap).tanh()
                }));
            }
            let best = scores.iter().copied().fold(f64::MIN, f64::max);
            let weights: Vec<f64> = scores.iter().map(|s| (s - best).exp()).collect();
            let total: f64 = weights.iter().sum();
            for d in 0..head_dim {
                let mut sum = Expected::default();
                for (token, weight) in seen.iter().zip(&weights) {
                    sum.add(weight / total * self.rounded(token[2][at + d]));
                }
                // An error in a score is a relative error of its weight.
                sum.magnitude *= 1.0 + largest_terms;
                out.push(sum);
            }
        }
        out
    }

    /// Compares every `stride`-th row.
    fn check(&self, subject: &Subject, plans: &[Plan], stride: usize) {
        let outs = self.run(subject, plans);
        let width = self.spec.num_heads * self.spec.head_dim;
        for (seq, out) in outs.iter().enumerate() {
            let history: Vec<_> = (0..self.lens[seq]).map(|p| self.token(seq, p)).collect();
            for position in (0..self.lens[seq]).rev().step_by(stride) {
                let what = format!("{:?} {:?}, sequence {seq}, position {position}", self.spec, self.dtype);
                subject.check(&what, &out[position * width..][..width], &self.expected(&history, position));
            }
        }
    }
}

pub(super) fn ragged_batches(subject: &Subject) {
    let mut random = Random::new(51);
    let shapes =
        [([1, 1], 64), ([2, 1], 64), ([3, 1], 80), ([8, 1], 96), ([4, 2], 128), ([9, 3], 64), ([2, 1], 320)];
    for (turn, (heads, head_dim)) in shapes.into_iter().enumerate() {
        for dtype in [DType::F32, DType::F16] {
            let case = Case { seed: turn as u64, ..Case::new(heads, head_dim, dtype, &[1, 37, 16, 70, 17]) };
            let plans = case.random_plans(&mut random);
            case.check(subject, &plans, 3);
        }
    }
}

pub(super) fn long_contexts(subject: &Subject) {
    let mut random = Random::new(52);
    for dtype in [DType::F32, DType::F16] {
        let case = Case { seed: 9, ..Case::new([3, 1], 64, dtype, &[600, 257]) };
        case.check(subject, &case.one_shot(), 61);
        case.check(subject, &case.random_plans(&mut random), 61);
    }
}

pub(super) fn windows(subject: &Subject) {
    let mut random = Random::new(53);
    for (window, lens) in [
        (1, [20, 5]),
        (5, [40, 3]),
        (16, [33, 16]),
        (40, [100, 41]),
        (300, [560, 299]),
        (usize::MAX, [70, 9]),
    ] {
        for dtype in [DType::F32, DType::F16] {
            let mut case = Case::new([2, 1], 64, dtype, &lens);
            case.spec.window = Some(window);
            case.check(subject, &case.random_plans(&mut random), 7);
        }
    }
}

/// Bounds near the scores, so that these are far from what they were.
pub(super) fn bounded_scores(subject: &Subject) {
    let mut random = Random::new(54);
    let shapes = [([3, 1], 64, None), ([4, 2], 80, Some(20)), ([8, 1], 96, None), ([2, 1], 128, Some(5))];
    for (turn, (heads, head_dim, window)) in shapes.into_iter().enumerate() {
        for (dtype, cap) in [(DType::F32, 1.5), (DType::F16, 4.0), (DType::F32, 50.0)] {
            let mut case = Case { seed: turn as u64, ..Case::new(heads, head_dim, dtype, &[1, 37, 70, 17]) };
            (case.spec.window, case.spec.softcap) = (window, Some(cap));
            let plans = case.random_plans(&mut random);
            case.check(subject, &plans, 3);
        }
    }
}
