//! Steps that may be recorded: run again with new contents they give what a fresh context gives.

use super::random::Random;
use super::tiny_model::{Chunk, TinyBatch, TinyModel};
use super::{Subject, bits};
use crate::DType;

/// A prompt beside a decoding row would need history; prompts of fixed lengths with random contents do not.
fn random_batch(random: &mut Random, lens: &[usize]) -> TinyBatch {
    let blocks = random.shuffled(80);
    let mut chunk = |(&len, at): (&usize, usize)| Chunk {
        slot: random.below(3) as u32,
        scale: random.range(0.5..1.5),
        rope_idx: random.below(2) as u32,
        ..Chunk::of((0..len).map(|_| random.below(97) as u32).collect(), 0, blocks[at..at + 2].to_vec())
    };
    TinyBatch { chunks: lens.iter().zip((0..).step_by(20)).map(&mut chunk).collect() }
}

pub(super) fn new_contents(subject: &Subject) {
    // A mixed step, one row a sequence, and several rows of one sequence.
    for lens in [&[19, 1, 6][..], &[1, 1, 1], &[6]] {
        run(subject, lens);
    }
}

fn run(subject: &Subject, lens: &[usize]) {
    let mut random = Random::new(71);
    let batches: Vec<TinyBatch> = (0..4).map(|_| random_batch(&mut random, lens)).collect();
    let open = || {
        let mut ctx = subject.ctx(1 << 19);
        let model = TinyModel::new(&mut ctx, 72, DType::F16);
        (ctx, model)
    };
    let (mut ctx, mut model) = open();
    for (turn, batch) in batches.iter().enumerate() {
        let bind = |ctx: &mut crate::Ctx, model: &TinyModel| {
            for slot in 0..3 {
                model.bind_adapter(ctx, slot, 4 + turn, 10 * turn as u64 + u64::from(slot));
            }
        };
        bind(&mut ctx, &model);
        let got = model.run(&mut ctx, batch);
        let (mut fresh_ctx, mut fresh_model) = open();
        bind(&mut fresh_ctx, &fresh_model);
        let want = fresh_model.run(&mut fresh_ctx, batch);
        for (got, want) in got.iter().zip(&want) {
            assert_eq!(bits(got), bits(want), "{}: turn {turn} of {lens:?} rows", subject.device.name());
        }
    }
}
