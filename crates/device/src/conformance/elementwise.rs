//! The row-wise and elementwise ops that not every architecture has.

use super::quant::HostWeight;
use super::random::Random;
use super::{Expected, Subject, bits, upload, upload_u32};
use crate::{GeluKind, WeightFormat};

/// Error function (Abramowitz & Stegun, formulas 7.1.6 and 7.1.14), to about 1e-15.
pub(super) fn erf(x: f64) -> f64 {
    let a = x.abs();
    let of_magnitude = if a < 3.0 {
        let (mut term, mut sum) = (a, a);
        for n in 1..120 {
            term *= 2.0 * a * a / f64::from(2 * n + 1);
            sum += term;
        }
        2.0 / std::f64::consts::PI.sqrt() * (-a * a).exp() * sum
    } else {
        let fraction = (1..=60).rev().fold(0.0, |below, n| f64::from(n) / 2.0 / (a + below));
        1.0 - (-a * a).exp() / std::f64::consts::PI.sqrt() / (a + fraction)
    };
    of_magnitude.copysign(x)
}

pub(super) fn gelu_of(x: f64, kind: GeluKind) -> f64 {
    let p = match kind {
        GeluKind::Erf => erf(x / std::f64::consts::SQRT_2),
        GeluKind::Tanh => ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh(),
    };
    0.5 * x * (1.0 + p)
}

pub(super) fn scaled_embed(subject: &Subject) {
    let mut random = Random::new(31);
    for format in [WeightFormat::F32, WeightFormat::Q8_0] {
        let table = HostWeight::random(&mut random, format, 20, 96);
        let mut ctx = subject.ctx(1 << 14);
        let weight = table.load(&mut ctx);
        let ids: Vec<u32> = (0..13).map(|_| random.below(20) as u32).collect();
        let ids_tensor = upload_u32(&mut ctx, &ids);
        let scale = 9.75_f32;
        let out = ctx.embed_scaled(&ids_tensor, &weight, scale).unwrap();
        let value = |v: &f64| {
            let value = v * f64::from(scale);
            Expected { value, magnitude: 0.0, extra: 5e-7 * value.abs().max(1.0) }
        };
        let want: Vec<Expected> = ids.iter().flat_map(|&id| table.row(id as usize)).map(value).collect();
        subject.check(&format!("scaled embed {format:?}"), &ctx.read_f32(&out).unwrap(), &want);
    }
}

/// The norm of each run of `weight`'s length, and what is added to it.
pub(super) fn rms_norms(x: &[f64], weight: &[f64], residual: Option<&[f64]>) -> Vec<f64> {
    let runs = x.chunks(weight.len()).flat_map(|run| {
        let mean = run.iter().map(|v| v * v).sum::<f64>() / run.len() as f64;
        run.iter().zip(weight).map(move |(x, w)| x / (mean + f64::from(1e-5_f32)).sqrt() * w)
    });
    match residual {
        Some(residual) => runs.zip(residual).map(|(a, b)| a + b).collect(),
        None => runs.collect(),
    }
}

fn exact(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

pub(super) fn rms_norm_of_heads(subject: &Subject) {
    let mut random = Random::new(32);
    for (rows, heads, head_dim) in [(1, 1, 16), (3, 4, 64), (13, 3, 80), (2, 2, 33), (5, 9, 128)] {
        let n = rows * heads * head_dim;
        let (x, weight) = (random.normals(n), random.normals(head_dim));
        let mut ctx = subject.ctx(4 * n + 256);
        let (xt, wt) =
            (upload(&mut ctx, [rows, heads * head_dim], &x), upload(&mut ctx, [head_dim], &weight));
        let out = ctx.rms_norm_heads(&xt, &wt, 1e-5).unwrap();
        assert_eq!(out.shape().dims(), [rows, heads * head_dim]);
        let want: Vec<Expected> = rms_norms(&exact(&x), &exact(&weight), None)
            .into_iter()
            .map(|value| Expected { value, magnitude: value.abs(), extra: 0.0 })
            .collect();
        let what = format!("rms_norm of {heads} heads of {head_dim} in {rows} rows");
        subject.check(&what, &ctx.read_f32(&out).unwrap(), &want);
    }
    let mut ctx = subject.ctx(1 << 12);
    let (xt, wt) = (upload(&mut ctx, [1, 10], &[1.0; 10]), upload(&mut ctx, [4], &[1.0; 4]));
    assert!(ctx.rms_norm_heads(&xt, &wt, 1e-5).is_err(), "runs that do not fill a row");
}

pub(super) fn rms_norm_with_a_residual(subject: &Subject) {
    let mut random = Random::new(33);
    for (rows, len) in [(1, 1), (2, 15), (5, 64), (33, 577)] {
        let n = rows * len;
        let (x, weight, residual) = (random.normals(n), random.normals(len), random.normals(n));
        let mut ctx = subject.ctx(4 * n + 256);
        let (xt, wt) = (upload(&mut ctx, [rows, len], &x), upload(&mut ctx, [len], &weight));
        let rt = upload(&mut ctx, [rows, len], &residual);
        let out = ctx.rms_norm_add(&xt, &wt, 1e-5, &rt).unwrap();
        let normed = rms_norms(&exact(&x), &exact(&weight), None);
        let want: Vec<Expected> = (normed.iter().zip(&residual))
            .map(|(&n, &r)| {
                let mut sum = Expected::default();
                sum.add(n);
                sum.add(f64::from(r));
                sum
            })
            .collect();
        let what = format!("rms_norm of {rows} rows of {len} and a residual");
        subject.check(&what, &ctx.read_f32(&out).unwrap(), &want);
    }
}

pub(super) fn layer_norms(x: &[f64], weight: &[f64], bias: &[f64]) -> Vec<f64> {
    let rows = x.chunks(weight.len()).flat_map(|row| {
        let len = row.len() as f64;
        let mean = row.iter().sum::<f64>() / len;
        let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / len;
        let factor = 1.0 / (variance + f64::from(1e-5_f32)).sqrt();
        row.iter().zip(weight).zip(bias).map(move |((x, w), b)| (x - mean) * factor * w + b)
    });
    rows.collect()
}

pub(super) fn layer_norm(subject: &Subject) {
    let mut random = Random::new(34);
    for len in [1, 15, 16, 64, 100, 577] {
        for rows in [1, 3, 13, 33] {
            // Rows far from zero, where the variance would be lost in the squares.
            let offset: Vec<f32> = (0..rows).map(|_| random.pick(&[0.0, 5.0, -40.0])).collect();
            let x: Vec<f32> = (0..rows * len).map(|i| random.normal() + offset[i / len]).collect();
            let (weight, bias) = (random.normals(len), random.normals(len));
            let mut ctx = subject.ctx(4 * rows * len + 256);
            let xt = upload(&mut ctx, [rows, len], &x);
            let (wt, bt) = (upload(&mut ctx, [len], &weight), upload(&mut ctx, [len], &bias));
            let out = ctx.layer_norm(&xt, [&wt, &bt], 1e-5).unwrap();
            let of = |bias: &[f32]| layer_norms(&exact(&x), &exact(&weight), &exact(bias));
            let (whole, scaled) = (of(&bias), of(&vec![0.0; len]));
            let want: Vec<Expected> = (0..rows * len)
                .map(|i| {
                    let (b, w) = (f64::from(bias[i % len]), f64::from(weight[i % len]));
                    // What f32 cannot tell of a difference from the mean.
                    let lost = 1e-6
                        * f64::from(offset[i / len]).abs()
                        * w.abs()
                        * if len == 1 { 320.0 } else { 4.0 };
                    Expected { value: whole[i], magnitude: scaled[i].abs() + b.abs(), extra: lost }
                })
                .collect();
            let what = format!("layer_norm of {rows} rows of {len}, offsets {offset:?}");
            subject.check(&what, &ctx.read_f32(&out).unwrap(), &want);
        }
    }
}

/// Values where exponentials leave the range of f32 on either side, and near zero.
const EXTREMES: [f32; 8] = [-1e30, -1e4, -14.0, -1e-20, 0.0, 1e-20, 14.0, 1e30];

pub(super) fn gelu(subject: &Subject) {
    let mut random = Random::new(35);
    for kind in [GeluKind::Erf, GeluKind::Tanh] {
        for (rows, len) in [(1, 1), (2, 15), (3, 16), (5, 100), (13, 577)] {
            let mut x: Vec<f32> = random.normals(rows * len).iter().map(|v| v * 3.0).collect();
            for (at, extreme) in EXTREMES.into_iter().enumerate() {
                if let Some(v) = x.get_mut(at * 7) {
                    *v = extreme;
                }
            }
            let up = random.normals(rows * len);
            let mut ctx = subject.ctx(8 * rows * len + 512);
            let (xt, ut) = (upload(&mut ctx, [rows, len], &x), upload(&mut ctx, [rows, len], &up));
            for gated in [false, true] {
                let out = if gated { ctx.gelu_mul(&xt, &ut, kind) } else { ctx.gelu(&xt, kind) }.unwrap();
                let want: Vec<Expected> = (x.iter().zip(&up))
                    .map(|(&x, &u)| {
                        let (x, u) = (f64::from(x), if gated { f64::from(u) } else { 1.0 });
                        let value = gelu_of(x, kind) * u;
                        // Below zero two parts cancel.
                        Expected { value, magnitude: value.abs(), extra: 1e-6 * (x * u).abs().min(20.0) }
                    })
                    .collect();
                let what = format!("gelu {kind:?} of {rows} rows of {len}, gated {gated}");
                subject.check(&what, &ctx.read_f32(&out).unwrap(), &want);
            }
        }
    }
}

pub(super) fn softcap(subject: &Subject) {
    let mut random = Random::new(36);
    for (rows, len) in [(1, 1), (2, 15), (5, 100), (3, 1030)] {
        for cap in [0.5, 30.0] {
            let mut x: Vec<f32> = random.normals(rows * len).iter().map(|v| v * 20.0).collect();
            for (at, extreme) in EXTREMES.into_iter().enumerate() {
                if let Some(v) = x.get_mut(at * 7) {
                    *v = extreme;
                }
            }
            let mut ctx = subject.ctx(4 * rows * len + 256);
            let xt = upload(&mut ctx, [rows, len], &x);
            let out = ctx.softcap(&xt, cap).unwrap();
            let want: Vec<Expected> = (x.iter())
                .map(|&x| {
                    let value = f64::from(cap) * (f64::from(x) / f64::from(cap)).tanh();
                    Expected { value, magnitude: value.abs(), extra: 0.0 }
                })
                .collect();
            let what = format!("softcap {cap} of {rows} rows of {len}");
            subject.check(&what, &ctx.read_f32(&out).unwrap(), &want);
        }
    }
    let mut ctx = subject.ctx(1 << 10);
    let xt = upload(&mut ctx, [1, 2], &[1.0, 2.0]);
    for cap in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        assert!(ctx.softcap(&xt, cap).is_err(), "a bound of {cap}");
    }
}

pub(super) fn split(subject: &Subject) {
    let mut random = Random::new(37);
    for (rows, groups, widths) in [
        (1, 1, [4, 4, 4]),
        (3, 1, [64, 16, 16]),
        (13, 4, [16, 16, 16]),
        (2, 3, [5, 1, 33]),
        (40, 2, [80, 8, 1]),
    ] {
        let group: usize = widths.iter().sum();
        let x = random.normals(rows * groups * group);
        let mut ctx = subject.ctx(4 * x.len() + 1024);
        let xt = upload(&mut ctx, [rows, groups * group], &x);
        let parts = ctx.split(&xt, groups, widths).unwrap();
        let mut from = 0;
        for (part, width) in parts.iter().zip(widths) {
            assert_eq!(part.shape().dims(), [rows, groups * width]);
            let want: Vec<f32> = x.chunks(group).flat_map(|g| &g[from..from + width]).copied().collect();
            let got = ctx.read_f32(part).unwrap();
            assert_eq!(bits(&got), bits(&want), "split of {rows} rows of {groups} groups of {widths:?}");
            from += width;
        }
        assert!(ctx.split(&xt, groups, [widths[0], widths[1] + 1]).is_err(), "other widths");
    }
}
