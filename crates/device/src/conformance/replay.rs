//! Steps that may be recorded: run again with new contents they give what a fresh context gives.

use super::random::Random;
use super::tiny_model::{Chunk, TinyBatch, TinyModel};
use super::{Subject, bits};
use crate::DType;

/// A prompt beside a decoding row would need history; two prompts of fixed lengths with random contents do not.
fn random_batch(random: &mut Random) -> TinyBatch {
    let blocks = random.shuffled(80);
    let mut chunk = |len: usize, at: usize| Chunk {
        slot: random.below(3) as u32,
        scale: random.range(0.5..1.5),
        rope_idx: random.below(2) as u32,
        ..Chunk::of((0..len).map(|_| random.below(97) as u32).collect(), 0, blocks[at..at + 2].to_vec())
    };
    TinyBatch { chunks: vec![chunk(19, 0), chunk(1, 40), chunk(6, 60)] }
}

pub(super) fn new_contents(subject: &Subject) {
    let mut random = Random::new(71);
    let batches: Vec<TinyBatch> = (0..4).map(|_| random_batch(&mut random)).collect();
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
            assert_eq!(bits(got), bits(want), "{}: turn {turn} of equal keys", subject.device.name());
        }
    }
}
