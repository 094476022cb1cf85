//! Frozen layers.

use super::{ARENA_BYTES, gradient};
use crate::Projection;
use crate::conformance::quant::{FORMATS, HostWeight};
use crate::conformance::random::Random;
use crate::conformance::{Expected, Subject, upload};

/// Three layers of every format over one input, one of them with a residual that is the input.
pub(in crate::conformance) fn frozen_layers(subject: &Subject) {
    if !subject.promises.trains {
        return;
    }
    let mut random = Random::new(76);
    for format in FORMATS {
        let cols_of: &[usize] = match format.block_len() {
            1 => &[7, 64, 130],
            32 => &[32, 96, 160],
            _ => &[256, 512],
        };
        for (&cols, rows) in cols_of.iter().zip([1, 9, 70]) {
            let weights = [1, 150, cols].map(|out| HostWeight::random(&mut random, format, out, cols));
            let x = random.normals(rows * cols);
            let mut ctx = subject.ctx(ARENA_BYTES);
            let xt = upload(&mut ctx, [rows, cols], &x);
            let loaded = weights.each_ref().map(|w| w.load(&mut ctx));
            let projection =
                |i: usize, residual| Projection { weight: &loaded[i], bias: None, module: None, residual };
            for (i, weight) in weights.iter().enumerate() {
                let seed = random.normals(rows * weight.rows);
                let has_residual = i == 2;
                let got = gradient(&mut ctx, &xt, &seed, &[], |ctx| {
                    let residual = has_residual.then_some(&xt);
                    let outs = ctx.linear(
                        &xt,
                        [projection(0, None), projection(1, None), projection(2, residual)],
                        None,
                    )?;
                    Ok(outs[i].clone())
                });
                let mut want = vec![Expected::default(); rows * cols];
                for (row, seed) in seed.chunks(weight.rows).enumerate() {
                    for (o, &s) in seed.iter().enumerate() {
                        for (k, w) in weight.row(o).iter().enumerate() {
                            want[row * cols + k].add(f64::from(s) * w);
                        }
                    }
                    if has_residual {
                        (0..cols).for_each(|k| want[row * cols + k].add(f64::from(seed[k])));
                    }
                }
                subject.check(
                    &format!("linear backward {format:?}, {rows} rows, {cols} inputs, target {i}"),
                    &got,
                    &want,
                );
            }
        }
    }
}
