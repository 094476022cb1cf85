//! Ops that work row by row or element by element.

use super::quant::{FORMATS, HostWeight};
use super::random::Random;
use super::tiny_model::{BOUNDS, Chunk, TinyBatch};
use super::{Expected, Subject, bits, upload, upload_u32};

const ROW_COUNTS: [usize; 6] = [1, 2, 3, 5, 13, 33];

pub(super) fn embed(subject: &Subject) {
    let mut random = Random::new(21);
    for format in FORMATS {
        for cols in [1, 3].map(|n| n * format.block_len()) {
            let table = HostWeight::random(&mut random, format, 37, cols);
            // Room for every count of rows below.
            let mut ctx = subject.ctx(4 * 60 * cols + 1024);
            let weight = table.load(&mut ctx);
            for rows in ROW_COUNTS {
                let mut ids: Vec<u32> = (0..rows).map(|_| random.below(37) as u32).collect();
                ids[rows - 1] = 36;
                let ids_tensor = upload_u32(&mut ctx, &ids);
                let out = ctx.embed(&ids_tensor, &weight).unwrap();
                assert_eq!(out.shape().dims(), [rows, cols]);
                let want: Vec<Expected> =
                    ids.iter().flat_map(|&id| table.row(id as usize)).copied().map(weight_value).collect();
                subject.check(
                    &format!("embed {format:?}, {rows} rows of {cols}"),
                    &ctx.read_f32(&out).unwrap(),
                    &want,
                );
            }
        }
    }
}

/// What the host reads back of a weight.
pub(super) fn dequantised_rows(subject: &Subject) {
    let mut random = Random::new(25);
    for format in FORMATS {
        let cols = 2 * format.block_len().max(10);
        let table = HostWeight::random(&mut random, format, 37, cols);
        let mut ctx = subject.ctx(1 << 12);
        let weight = table.load(&mut ctx);
        for (first, rows) in [(0, 1), (5, 32), (36, 1), (0, 37)] {
            let mut out = vec![f32::NAN; rows * cols];
            subject.device.dequantise_rows(&weight, first, &mut out).unwrap();
            let want: Vec<Expected> =
                (first..first + rows).flat_map(|r| table.row(r)).copied().map(weight_value).collect();
            subject.check(&format!("rows {first}..+{rows} of a weight in {format:?}"), &out, &want);
        }
    }
}

/// A weight's own value: exact but for what f32 cannot hold of scale times quant plus minimum.
fn weight_value(value: f64) -> Expected {
    Expected { value, magnitude: 0.0, extra: 3e-7 * value.abs().max(0.1) }
}

pub(super) fn rms_norm(subject: &Subject) {
    let mut random = Random::new(22);
    for len in [1, 15, 16, 64, 100, 577] {
        for rows in ROW_COUNTS {
            for eps in [1e-5, 1e-6] {
                let spreads: Vec<f32> = (0..rows).map(|_| random.pick(&[1.0, 1e-3, 0.0, 300.0])).collect();
                let x: Vec<f32> = (0..rows * len).map(|i| random.normal() * spreads[i / len]).collect();
                let weight = random.normals(len);
                let mut ctx = subject.ctx(4 * rows * len + 256);
                let (x_tensor, weight_tensor) =
                    (upload(&mut ctx, [rows, len], &x), upload(&mut ctx, [len], &weight));
                let out = ctx.rms_norm(&x_tensor, &weight_tensor, eps).unwrap();
                let want: Vec<Expected> = x
                    .chunks(len)
                    .flat_map(|x| {
                        let mean = x.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / len as f64;
                        let norm = (mean + f64::from(eps)).sqrt();
                        x.iter().zip(&weight).map(move |(&x, &w)| {
                            let mut sum = Expected::default();
                            sum.add(f64::from(x) / norm * f64::from(w));
                            sum
                        })
                    })
                    .collect();
                let what = format!("rms_norm of {rows} rows of {len}, spreads {spreads:?}");
                subject.check(&what, &ctx.read_f32(&out).unwrap(), &want);
            }
        }
    }
}

pub(super) fn silu_mul(subject: &Subject) {
    let mut random = Random::new(23);
    for len in [1, 15, 16, 17, 100, 577] {
        for rows in ROW_COUNTS {
            let mut gate: Vec<f32> = random.normals(rows * len).iter().map(|v| v * 4.0).collect();
            // Where the exponential leaves the range of f32 on either side.
            for (at, extreme) in [-1e4, -103.0, -88.0, 0.0, 88.0, 1e4].into_iter().enumerate() {
                if let Some(v) = gate.get_mut(at * 7) {
                    *v = extreme;
                }
            }
            let up = random.normals(rows * len);
            let mut ctx = subject.ctx(4 * rows * len + 256);
            let (g, u) = (upload(&mut ctx, [rows, len], &gate), upload(&mut ctx, [rows, len], &up));
            let out = ctx.silu_mul(&g, &u).unwrap();
            let want: Vec<Expected> = gate
                .iter()
                .zip(&up)
                .map(|(&g, &u)| {
                    let (g, u) = (f64::from(g), f64::from(u));
                    let mut sum = Expected::default();
                    sum.add(g / (1.0 + (-g).exp()) * u);
                    // Below here f32 has no normal numbers to hold the quotient.
                    sum.extra = if g < -80.0 { 1e-30 } else { 0.0 };
                    sum
                })
                .collect();
            subject.check(&format!("silu_mul of {rows} rows of {len}"), &ctx.read_f32(&out).unwrap(), &want);
        }
    }
}

pub(super) fn gather_rows(subject: &Subject) {
    let mut random = Random::new(24);
    for len in [1, 16, 100] {
        for rows in ROW_COUNTS {
            let x = random.normals(rows * len);
            let wanted: Vec<u32> = (0..rows as u32).filter(|_| random.below(2) == 0).collect();
            let batch = TinyBatch { chunks: vec![Chunk::of(vec![0; rows], 0, vec![0, 1, 2])] };
            let mut inputs = batch.inputs();
            inputs.logit_rows.clone_from(&wanted);
            let mut ctx = subject.ctx(4 * rows * len + 256);
            let x_tensor = upload(&mut ctx, [rows, len], &x);
            let step = ctx.stage(&inputs, &BOUNDS).unwrap();
            let out = ctx.gather_logit_rows(&x_tensor, &step).unwrap();
            let want: Vec<f32> =
                wanted.iter().flat_map(|&r| &x[r as usize * len..][..len]).copied().collect();
            assert_eq!(bits(&ctx.read_f32(&out).unwrap()), bits(&want), "gather_rows {wanted:?} of {rows}");
        }
    }
}
