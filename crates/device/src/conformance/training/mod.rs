//! Backward ops, against finite differences of each op's definition in f64; the frozen layers, which are linear, against
//! their transposed product.

mod adapters;
mod attention;
mod elementwise;
mod experts;
mod layers;
mod optimizer;
mod rows;

pub(super) use self::adapters::{dropout, low_rank_updates};
pub(super) use self::attention::attention;
pub(super) use self::elementwise::{
    gelu, layer_norm, rms_norm_of_heads, rms_norm_with_a_residual, softcap, split,
};
pub(super) use self::experts::{experts, experts_dropout};
pub(super) use self::layers::frozen_layers;
pub(super) use self::optimizer::adamw;
pub(super) use self::rows::{cross_entropy, gathered_rows, rms_norm, rope, silu_mul};

use super::Subject;
use super::random::Random;
use super::tiny_model::{Chunk, TinyBatch};
use crate::{BLOCK_SIZE, Ctx, DType, Result, Seed, Tensor, TrainedModule};

/// What a gradient may be off, of the largest of its tensor.
const TOLERANCE: f64 = 1e-4;
const ARENA_BYTES: usize = 1 << 21;

/// Operands in f64.
type Operands = Vec<Vec<f64>>;
fn exact(values: &[&[f32]]) -> Operands {
    values.iter().map(|v| v.iter().map(|&x| f64::from(x)).collect()).collect()
}

/// Holds `gradient` of operand `idx` against central differences of `loss`, along some axes and some other directions.
fn check(
    subject: &Subject,
    what: &str,
    loss: &dyn Fn(&Operands) -> f64,
    operands: &Operands,
    (idx, gradient): (usize, &[f32]),
    random: &mut Random,
) {
    const STEP: f64 = 1e-4;
    const AXES: usize = 24;
    const DIRECTIONS: usize = 4;
    let len = gradient.len();
    assert_eq!(len, operands[idx].len(), "{what}");
    let largest = gradient.iter().fold(0.0, |m: f64, &g| m.max(f64::from(g).abs()));
    assert!(largest > 0.0, "{}: {what}: a gradient of zeros", subject.device.name());
    for turn in 0..AXES.min(len) + DIRECTIONS {
        let direction: Vec<f64> = if turn < AXES.min(len) {
            let axis = if len <= AXES { turn } else { random.below(len) };
            (0..len).map(|i| f64::from(u8::from(i == axis))).collect()
        } else {
            (0..len).map(|_| f64::from(random.normal())).collect()
        };
        let norm = direction.iter().map(|d| d * d).sum::<f64>().sqrt();
        let at = |step: f64| {
            let mut moved = operands.clone();
            moved[idx].iter_mut().zip(&direction).for_each(|(x, d)| *x += step * d / norm);
            loss(&moved)
        };
        let want = (at(STEP) - at(-STEP)) / (2.0 * STEP);
        let got: f64 = gradient.iter().zip(&direction).map(|(&g, d)| f64::from(g) * d / norm).sum();
        let bound = TOLERANCE * largest * (norm.recip() * len as f64).clamp(1.0, 10.0);
        assert!(
            (got - want).abs() <= bound,
            "{}: {what}: slope {turn} is {got:e}, expected {want:e} within {bound:e}",
            subject.device.name()
        );
    }
}

/// The gradient of `of` where the sum of `weights * out` is the loss, `f` giving `out`.
fn gradient(
    ctx: &mut Ctx,
    of: &Tensor,
    weights: &[f32],
    modules: &[Option<TrainedModule>],
    f: impl FnOnce(&mut Ctx) -> Result<Tensor>,
) -> Vec<f32> {
    let d_of = ctx.persistent("a gradient", of.shape(), DType::F32).unwrap();
    ctx.scratch(|ctx| {
        let (out, tape) = ctx.record(f)?;
        let seed = ctx.upload_f32("a seed", out.shape(), weights)?;
        ctx.backward(tape, Seed { value: &out, gradient: seed }, of, &d_of, modules)
    })
    .unwrap();
    ctx.read_f32(&d_of).unwrap()
}

fn weighted(out: &[f64], weights: &[f32]) -> f64 {
    out.iter().zip(weights).map(|(o, &w)| o * f64::from(w)).sum()
}

/// A step of whole sequences.
fn step_of(lens: &[usize], rope_idx: u32) -> TinyBatch {
    let mut next = 0;
    let chunks = lens.iter().map(|&len| {
        let blocks = len.div_ceil(BLOCK_SIZE) as u32;
        next += blocks;
        Chunk { rope_idx, slot: 0, ..Chunk::of(vec![0; len], 0, (next - blocks..next).collect()) }
    });
    TinyBatch { chunks: chunks.collect() }
}
