//! Batch invariance: a row is the same bits under any neighbours, chunking and number of threads.

use super::attention::Case;
use super::random::Random;
use super::tiny_model::{Chunk, TinyBatch, TinyModel};
use super::{Subject, bits, lora};
use crate::{Ctx, DType, NULL_SLOT};

const ARENA_BYTES: usize = 3 << 19;

/// Every row of a mixed batch against the row alone.
pub(super) fn linear_rows(subject: &Subject) {
    if subject.promises.batch_invariant {
        lora::rows_alone(subject);
    }
}

/// Prompts in one piece, in random chunks beside other sequences, alone, and token by token.
pub(super) fn attention_chunks(subject: &Subject) {
    if !subject.promises.batch_invariant {
        return;
    }
    let mut random = Random::new(61);
    let shapes = [([3, 1], 64, None), ([4, 2], 80, Some(20)), ([8, 1], 128, None)];
    for (heads, head_dim, window) in shapes {
        for dtype in [DType::F32, DType::F16] {
            let lens = if head_dim == 64 { [280, 18, 3] } else { [40, 17, 5] };
            let mut case = Case::new(heads, head_dim, dtype, &lens);
            case.spec.window = window;
            let expected = case.run(subject, &case.one_shot());
            let alone = (0..3).map(|seq| vec![(seq, lens[seq])]).collect::<Vec<_>>();
            let singly = (0..3).flat_map(|seq| vec![vec![(seq, 1)]; lens[seq]]).collect();
            let plans = [alone, singly, case.random_plans(&mut random), case.random_plans(&mut random)];
            for plans in plans {
                for (seq, (got, want)) in case.run(subject, &plans).iter().zip(&expected).enumerate() {
                    assert_eq!(
                        bits(got),
                        bits(want),
                        "{}: {:?} {dtype:?}: sequence {seq} depends on {plans:?}",
                        subject.device.name(),
                        case.spec
                    );
                }
            }
        }
    }
}

/// Three sequences: base, and two adapters, one of them under the other RoPE table.
struct Sequences {
    tokens: [Vec<u32>; 3],
    blocks: [Vec<u32>; 3],
}

impl Sequences {
    fn random(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let tokens = [45, 20, 33].map(|len| (0..len).map(|_| random.below(97) as u32).collect());
        let blocks = random.shuffled(80);
        Sequences { tokens, blocks: [0, 20, 40].map(|at| blocks[at..at + 3].to_vec()) }
    }

    fn chunk(&self, seq: usize, start: usize, len: usize) -> Chunk {
        Chunk {
            slot: [NULL_SLOT, 3, 0][seq],
            scale: [1.0, 0.5, 1.0][seq],
            rope_idx: [0, 0, 1][seq],
            ..Chunk::of(self.tokens[seq][start..start + len].to_vec(), start, self.blocks[seq].clone())
        }
    }

    /// Logits of each sequence over the given steps.
    fn run(&self, ctx: &mut Ctx, model: &mut TinyModel, plans: &[Vec<(usize, usize)>]) -> [Vec<f32>; 3] {
        let mut done = [0; 3];
        let mut logits: [Vec<f32>; 3] = Default::default();
        for plan in plans {
            let chunks = plan.iter().map(|&(seq, len)| self.chunk(seq, done[seq], len)).collect();
            let outs = model.run(ctx, &TinyBatch { chunks });
            for (&(seq, len), out) in plan.iter().zip(outs) {
                done[seq] += len;
                logits[seq].extend(out);
            }
        }
        logits
    }
}

fn model_on(subject: &Subject, dtype: DType) -> (Ctx, TinyModel) {
    let mut ctx = subject.ctx(ARENA_BYTES);
    let model = TinyModel::new(&mut ctx, 62, dtype);
    model.bind_adapter(&mut ctx, 3, 8, 1);
    model.bind_adapter(&mut ctx, 0, 5, 3);
    (ctx, model)
}

pub(super) fn model(subject: &Subject) {
    if !subject.promises.batch_invariant {
        return;
    }
    let sequences = Sequences::random(63);
    for dtype in [DType::F16, DType::F32] {
        // The cache goes on from run to run, as blocks do from sequence to sequence.
        let (mut ctx, mut model) = model_on(subject, dtype);
        let mut run = |plans: &[Vec<(usize, usize)>]| sequences.run(&mut ctx, &mut model, plans);
        let expected = run(&[vec![(0, 45), (1, 20), (2, 33)]]);
        assert!(expected.iter().flatten().all(|v| v.is_finite()));
        let plans: [&[Vec<(usize, usize)>]; 4] = [
            &[vec![(2, 33)], vec![(0, 45)], vec![(1, 20)]],
            &[vec![(1, 7)], vec![(0, 31), (1, 1), (2, 16)], vec![(0, 14), (1, 12)], vec![(2, 17)]],
            &[vec![(2, 32), (1, 19), (0, 44)], vec![(0, 1), (1, 1), (2, 1)]],
            &vec![vec![(0, 1)]; 45],
        ];
        for plans in plans {
            let got = run(plans);
            for (seq, (got, want)) in got.iter().zip(&expected).enumerate() {
                if !got.is_empty() {
                    let name = subject.device.name();
                    assert_eq!(bits(got), bits(want), "{name}: sequence {seq} depends on {plans:?}");
                }
            }
        }
    }
}

/// The bits of a model's logits over a few mixed steps: equal on devices that promise to agree, as do those of one
/// kind with different numbers of threads.
pub fn fingerprint(subject: &Subject) -> Vec<u32> {
    let sequences = Sequences::random(64);
    let plans = [vec![(0, 40), (1, 1)], vec![(1, 19), (0, 5), (2, 30)], vec![(2, 1)], vec![(2, 2)]];
    let (mut ctx, mut model) = model_on(subject, DType::F16);
    sequences.run(&mut ctx, &mut model, &plans).iter().flat_map(|logits| bits(logits)).collect()
}
