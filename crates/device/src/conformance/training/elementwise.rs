//! The row-wise and elementwise ops that not every architecture has.

use super::{ARENA_BYTES, Operands, check, exact, gradient, weighted};
use crate::GeluKind;
use crate::conformance::elementwise::{gelu_of, layer_norms, rms_norms};
use crate::conformance::random::Random;
use crate::conformance::{Subject, upload};

pub(in crate::conformance) fn rms_norm_of_heads(subject: &Subject) {
    if !subject.promises.trains {
        return;
    }
    let mut random = Random::new(81);
    for (rows, heads, head_dim) in [(1, 1, 16), (7, 3, 33), (20, 4, 64)] {
        let n = rows * heads * head_dim;
        let (x, w, seed) = (random.normals(n), random.normals(head_dim), random.normals(n));
        let mut ctx = subject.ctx(ARENA_BYTES);
        let (xt, wt) = (upload(&mut ctx, [rows, heads * head_dim], &x), upload(&mut ctx, [head_dim], &w));
        let got = gradient(&mut ctx, &xt, &seed, &[], |ctx| ctx.rms_norm_heads(&xt, &wt, 1e-5));
        let loss = |o: &Operands| weighted(&rms_norms(&o[0], &o[1], None), &seed);
        check(subject, "rms_norm of heads", &loss, &exact(&[&x, &w]), (0, &got), &mut random);
    }
}

/// The input, the residual, and both at once.
pub(in crate::conformance) fn rms_norm_with_a_residual(subject: &Subject) {
    if !subject.promises.trains {
        return;
    }
    let mut random = Random::new(82);
    for (rows, len) in [(1, 5), (7, 33), (20, 576)] {
        let n = rows * len;
        let (x, w, r) = (random.normals(n), random.normals(len), random.normals(n));
        let seed = random.normals(n);
        let mut ctx = subject.ctx(ARENA_BYTES);
        let (xt, wt) = (upload(&mut ctx, [rows, len], &x), upload(&mut ctx, [len], &w));
        let rt = upload(&mut ctx, [rows, len], &r);
        let loss = |o: &Operands| weighted(&rms_norms(&o[0], &o[1], Some(&o[2])), &seed);
        for (idx, of) in [(0, &xt), (2, &rt)] {
            let got = gradient(&mut ctx, of, &seed, &[], |ctx| ctx.rms_norm_add(&xt, &wt, 1e-5, &rt));
            let what = format!("rms_norm with a residual, operand {idx}");
            check(subject, &what, &loss, &exact(&[&x, &w, &r]), (idx, &got), &mut random);
        }
        let got = gradient(&mut ctx, &xt, &seed, &[], |ctx| ctx.rms_norm_add(&xt, &wt, 1e-5, &xt));
        let loss = |o: &Operands| weighted(&rms_norms(&o[0], &o[1], Some(&o[0])), &seed);
        check(subject, "rms_norm beside its input", &loss, &exact(&[&x, &w]), (0, &got), &mut random);
    }
}

pub(in crate::conformance) fn layer_norm(subject: &Subject) {
    if !subject.promises.trains {
        return;
    }
    let mut random = Random::new(83);
    for (rows, len) in [(1, 5), (3, 16), (7, 33), (40, 576)] {
        let (w, b, seed) = (random.normals(len), random.normals(len), random.normals(rows * len));
        let x: Vec<f32> = random.normals(rows * len).into_iter().map(|v| v + 2.0).collect();
        let mut ctx = subject.ctx(ARENA_BYTES);
        let xt = upload(&mut ctx, [rows, len], &x);
        let (wt, bt) = (upload(&mut ctx, [len], &w), upload(&mut ctx, [len], &b));
        let got = gradient(&mut ctx, &xt, &seed, &[], |ctx| ctx.layer_norm(&xt, [&wt, &bt], 1e-5));
        let loss = |o: &Operands| weighted(&layer_norms(&o[0], &o[1], &o[2]), &seed);
        check(subject, "layer_norm", &loss, &exact(&[&x, &w, &b]), (0, &got), &mut random);
    }
}

pub(in crate::conformance) fn gelu(subject: &Subject) {
    if !subject.promises.trains {
        return;
    }
    let mut random = Random::new(84);
    for kind in [GeluKind::Erf, GeluKind::Tanh] {
        for (rows, len) in [(1, 3), (2, 48), (5, 100)] {
            let n = rows * len;
            let (up, seed) = (random.normals(n), random.normals(n));
            let x: Vec<f32> = random.normals(n).into_iter().map(|v| 2.0 * v).collect();
            let mut ctx = subject.ctx(ARENA_BYTES);
            let (xt, ut) = (upload(&mut ctx, [rows, len], &x), upload(&mut ctx, [rows, len], &up));
            let got = gradient(&mut ctx, &xt, &seed, &[], |ctx| ctx.gelu(&xt, kind));
            let loss =
                |o: &Operands| weighted(&o[0].iter().map(|&x| gelu_of(x, kind)).collect::<Vec<_>>(), &seed);
            check(subject, &format!("gelu {kind:?}"), &loss, &exact(&[&x]), (0, &got), &mut random);
            let loss = |o: &Operands| {
                let pairs = o[0].iter().zip(&o[1]);
                weighted(&pairs.map(|(&x, u)| gelu_of(x, kind) * u).collect::<Vec<_>>(), &seed)
            };
            for (idx, of) in [(0, &xt), (1, &ut)] {
                let got = gradient(&mut ctx, of, &seed, &[], |ctx| ctx.gelu_mul(&xt, &ut, kind));
                let what = format!("gelu_mul {kind:?}, operand {idx}");
                check(subject, &what, &loss, &exact(&[&x, &up]), (idx, &got), &mut random);
            }
        }
        // Far out the slope is 1 or 0, and a number.
        let far = [-1e30, -1e4, -30.0, 30.0, 1e4, 1e30];
        let mut ctx = subject.ctx(ARENA_BYTES);
        let xt = upload(&mut ctx, [1, far.len()], &far);
        let got = gradient(&mut ctx, &xt, &[1.0; 6], &[], |ctx| ctx.gelu(&xt, kind));
        for (x, got) in far.iter().zip(got) {
            let want = f32::from(u8::from(*x > 0.0));
            assert!((got - want).abs() < 1e-6, "{}: a slope of {got} at {x}", subject.device.name());
        }
    }
}

pub(in crate::conformance) fn softcap(subject: &Subject) {
    if !subject.promises.trains {
        return;
    }
    let mut random = Random::new(85);
    for (rows, len) in [(1, 3), (2, 48), (5, 100)] {
        let n = rows * len;
        let (x, seed) = (random.normals(n), random.normals(n));
        let x: Vec<f32> = x.into_iter().map(|v| 2.0 * v).collect();
        let mut ctx = subject.ctx(ARENA_BYTES);
        let xt = upload(&mut ctx, [rows, len], &x);
        let got = gradient(&mut ctx, &xt, &seed, &[], |ctx| ctx.softcap(&xt, 3.0));
        let loss =
            |o: &Operands| weighted(&o[0].iter().map(|x| 3.0 * (x / 3.0).tanh()).collect::<Vec<_>>(), &seed);
        check(subject, "softcap", &loss, &exact(&[&x]), (0, &got), &mut random);
    }
}

/// One part, whose neighbours get no gradient; and all of them.
pub(in crate::conformance) fn split(subject: &Subject) {
    if !subject.promises.trains {
        return;
    }
    let mut random = Random::new(86);
    for (rows, groups, widths) in [(1, 1, [4, 4]), (13, 3, [16, 33]), (5, 2, [1, 80])] {
        let group: usize = widths.iter().sum();
        let n = rows * groups * group;
        let x = random.normals(n);
        let mut ctx = subject.ctx(ARENA_BYTES);
        let xt = upload(&mut ctx, [rows, groups * group], &x);
        let mut from = 0;
        for (which, width) in widths.into_iter().enumerate() {
            let seed = random.normals(rows * groups * width);
            let got =
                gradient(&mut ctx, &xt, &seed, &[], |ctx| Ok(ctx.split(&xt, groups, widths)?[which].clone()));
            let mut want = vec![0.0; n];
            for (group, seed) in want.chunks_mut(group).zip(seed.chunks(width)) {
                group[from..from + width].copy_from_slice(seed);
            }
            assert_eq!(got, want, "{}: part {which} of {widths:?}", subject.device.name());
            from += width;
        }
        // x0 * gelu(x0), of parts of one width.
        if widths[0] == widths[1] {
            let seed = random.normals(n / 2);
            let got = gradient(&mut ctx, &xt, &seed, &[], |ctx| {
                let [gate, up] = ctx.split(&xt, groups, widths)?;
                ctx.gelu_mul(&gate, &up, GeluKind::Tanh)
            });
            let loss = |o: &Operands| {
                let pairs = o[0].chunks(group).flat_map(|g| g[..widths[0]].iter().zip(&g[widths[0]..]));
                weighted(&pairs.map(|(&g, u)| gelu_of(g, GeluKind::Tanh) * u).collect::<Vec<_>>(), &seed)
            };
            check(subject, "a gated split", &loss, &exact(&[&x]), (0, &got), &mut random);
        }
    }
}
