//! Linear layers in every weight format.

use super::quant::{FORMATS, HostWeight};
use super::random::Random;
use super::{Expected, Subject, upload};
use crate::{Ctx, Projection, WeightFormat};

/// Inputs that share a scale where activations are rounded to bytes.
const ACTIVATION_GROUP: usize = 128;
const ROW_COUNTS: [usize; 7] = [1, 2, 3, 5, 13, 33, 90];
/// Output features, mostly no multiple of any vector.
const OUT_FEATURES: [usize; 6] = [1, 15, 16, 17, 48, 70];

/// Input features: the fewest that the format allows, and more.
fn in_features(format: WeightFormat) -> Vec<usize> {
    match format.block_len() {
        1 => vec![1, 7, 33, 256],
        32 => vec![32, 96, 160, 576],
        n => vec![n, 2 * n],
    }
}

/// `x Wᵀ` with what rounding the activations may cost: in the worst case, and the variance if errors are uniform.
pub(super) fn product(subject: &Subject, x: &[f32], weight: &HostWeight) -> Vec<(Expected, f64)> {
    let steps = subject.promises.activation_steps.filter(|_| weight.format.is_quantised());
    let mut out = Vec::new();
    for x in x.chunks(weight.cols) {
        for o in 0..weight.rows {
            let mut sum = Expected::default();
            let mut variance = 0.0;
            for (x, w) in x.chunks(ACTIVATION_GROUP).zip(weight.row(o).chunks(ACTIVATION_GROUP)) {
                x.iter().zip(w).for_each(|(&x, &w)| sum.add(f64::from(x) * w));
                if let Some(steps) = steps {
                    let step = x.iter().fold(0f32, |m, v| m.max(v.abs())) as f64 / f64::from(steps);
                    // Half a step, and a little for quotients that are rounded across a half.
                    sum.extra += 0.5001 * step * w.iter().map(|w| w.abs()).sum::<f64>();
                    variance += step * step / 12.0 * w.iter().map(|w| w * w).sum::<f64>();
                }
            }
            out.push((sum, variance));
        }
    }
    out
}

/// Three layers that share an input: one with a bias, one with a residual, one with both.
struct Shared {
    weights: [HostWeight; 3],
    biases: [Option<Vec<f32>>; 3],
    residuals: [Option<Vec<f32>>; 3],
}

impl Shared {
    fn random(random: &mut Random, format: WeightFormat, rows: usize, cols: usize) -> Self {
        let weights: [HostWeight; 3] = std::array::from_fn(|_| {
            let out = random.pick(&OUT_FEATURES);
            HostWeight::random(random, format, out, cols)
        });
        let outs = weights.each_ref().map(|w| w.rows);
        Shared {
            biases: [Some(random.normals(outs[0])), None, Some(random.normals(outs[2]))],
            residuals: [None, Some(random.normals(rows * outs[1])), Some(random.normals(rows * outs[2]))],
            weights,
        }
    }

    fn run(&self, ctx: &mut Ctx, rows: usize, x: &[f32]) -> [Vec<f32>; 3] {
        let cols = self.weights[0].cols;
        let x = upload(ctx, [rows, cols], x);
        let weights = self.weights.each_ref().map(|w| w.load(ctx));
        let biases = self.biases.each_ref().map(|b| b.as_ref().map(|b| upload(ctx, [b.len()], b)));
        let residuals =
            self.residuals.each_ref().map(|r| r.as_ref().map(|r| upload(ctx, [rows, r.len() / rows], r)));
        let projections = std::array::from_fn(|i| Projection {
            weight: &weights[i],
            bias: biases[i].as_ref(),
            module: None,
            residual: residuals[i].as_ref(),
        });
        let outs = ctx.linear(&x, projections, None).unwrap();
        outs.each_ref().map(|out| ctx.read_f32(out).unwrap())
    }

    /// What layer `i` should give, and the variance of rounding.
    fn expected(&self, subject: &Subject, i: usize, x: &[f32]) -> Vec<(Expected, f64)> {
        let mut out = product(subject, x, &self.weights[i]);
        let features = self.weights[i].rows;
        for (at, (sum, _)) in out.iter_mut().enumerate() {
            if let Some(bias) = &self.biases[i] {
                sum.add(f64::from(bias[at % features]));
            }
            if let Some(residual) = &self.residuals[i] {
                sum.add(f64::from(residual[at]));
            }
        }
        out
    }
}

/// Runs every format and input length with some of the row counts on activations made by `make`; calls `look` with
/// each result.
fn each_shape(
    subject: &Subject,
    (seed, row_counts): (u64, &[usize]),
    make: impl Fn(&mut Random, usize) -> Vec<f32>,
    mut look: impl FnMut(WeightFormat, &str, &[f32], &[(Expected, f64)]),
) {
    for format in FORMATS {
        let mut random = Random::new(seed);
        for cols in in_features(format) {
            for &rows in row_counts {
                let shared = Shared::random(&mut random, format, rows, cols);
                let x: Vec<f32> = (0..rows).flat_map(|_| make(&mut random, cols)).collect();
                let outputs: usize = shared.weights.iter().map(|w| w.rows).sum();
                let mut ctx = subject.ctx(4 * rows * outputs + 256);
                let outs = shared.run(&mut ctx, rows, &x);
                for (i, out) in outs.iter().enumerate() {
                    let what = format!(
                        "linear {format:?}, {rows} rows, {cols} inputs, target {i} of {} outputs",
                        shared.weights[i].rows
                    );
                    look(format, &what, out, &shared.expected(subject, i, &x));
                }
            }
        }
    }
}

pub(super) fn random_activations(subject: &Subject) {
    // Error and expected error over all outputs of a format: rounding must behave as rounding to nearest does.
    let mut squares = std::collections::HashMap::new();
    each_shape(
        subject,
        (1, &ROW_COUNTS),
        |random, cols| random.normals(cols),
        |format, what, got, want| {
            let expected: Vec<Expected> = want.iter().map(|w| w.0).collect();
            subject.check(what, got, &expected);
            let (error, allowed) = squares.entry(format).or_insert((0.0, 0.0));
            for (&got, (want, variance)) in got.iter().zip(want) {
                *error += (f64::from(got) - want.value).powi(2);
                *allowed += variance + (subject.promises.tolerance * want.magnitude).powi(2);
            }
        },
    );
    for (format, (error, allowed)) in squares {
        assert!(
            error <= 1.25 * allowed,
            "{}: linear {format:?}: mean square error {} times that of rounding to nearest",
            subject.device.name(),
            error / allowed
        );
    }
}

/// Activations that whole numbers and the group's scale hold without loss: the result has no rounding of the input in
/// it.
pub(super) fn representable(subject: &Subject, random: &mut Random, cols: usize) -> Vec<f32> {
    let most = f32::from(subject.promises.activation_steps.unwrap_or(127));
    let mut x = Vec::with_capacity(cols);
    while x.len() < cols {
        let len = ACTIVATION_GROUP.min(cols - x.len());
        let step = f32::powi(2.0, random.below(12) as i32 - 9);
        let largest = random.below(len);
        x.extend((0..len).map(|i| {
            let q = if i == largest {
                random.pick(&[-most, most])
            } else {
                random.below(2 * most as usize + 1) as f32 - most
            };
            q * step
        }));
    }
    x
}

pub(super) fn representable_activations(subject: &Subject) {
    let make = |random: &mut Random, cols: usize| representable(subject, random, cols);
    each_shape(subject, (2, &[2, 5, 33]), make, |_, what, got, want| {
        let exact: Vec<Expected> = want.iter().map(|(w, _)| Expected { extra: 0.0, ..*w }).collect();
        subject.check(what, got, &exact);
    });
}

/// Blocks of zeros, of very small and very large numbers, and single outliers.
pub(super) fn awkward_activations(subject: &Subject) {
    let make = |random: &mut Random, cols: usize| {
        let mut x = random.normals(cols);
        for block in x.chunks_mut(ACTIVATION_GROUP) {
            let factor = random.pick(&[0.0, 1.0, 1e-41, 1e-37, 1e-20, 1e15]);
            block.iter_mut().for_each(|v| *v *= factor);
            if random.below(4) == 0 {
                block[random.below(block.len())] = 1e4;
            }
        }
        x
    };
    each_shape(subject, (3, &[1, 13]), make, |format, what, got, want| {
        if format == WeightFormat::F16 && subject.promises.f16_saturates {
            return;
        }
        let expected: Vec<Expected> = want.iter().map(|w| w.0).collect();
        subject.check(what, got, &expected);
    });
}
