//! The optimizer.

use super::{ARENA_BYTES, exact};
use crate::conformance::random::Random;
use crate::conformance::{Expected, Subject, upload};
use crate::{AdamW, DType};

pub(in crate::conformance) fn adamw(subject: &Subject) {
    if !subject.promises.trains {
        return;
    }
    let mut random = Random::new(80);
    let n = 40_000;
    let start = random.normals(n);
    let mut ctx = subject.ctx(ARENA_BYTES);
    let p = upload(&mut ctx, [n], &start);
    let moments = [0, 1].map(|_| ctx.persistent("moments", [n], DType::F32).unwrap());
    let (mut want, mut m, mut v) = (exact(&[&start]).remove(0), vec![0.0; n], vec![0.0; n]);
    for step in 1..=3 {
        let gradients = random.normals(n);
        let g = upload(&mut ctx, [n], &gradients);
        let options = AdamW {
            learning_rate: 0.01,
            beta1: 0.9,
            beta2: 0.99,
            epsilon: 1e-8,
            weight_decay: 0.1,
            step,
            gradient_scale: 0.5,
        };
        ctx.adamw(&options, &p, &g, [&moments[0], &moments[1]]).unwrap();
        let squares: f64 = gradients.iter().map(|&g| f64::from(g).powi(2)).sum();
        assert!((ctx.sum_of_squares(&g).unwrap() / squares - 1.0).abs() < 1e-6);
        for i in 0..n {
            let g = 0.5 * f64::from(gradients[i]);
            want[i] -= 0.01 * 0.1 * want[i];
            m[i] = 0.9 * m[i] + 0.1 * g;
            v[i] = 0.99 * v[i] + 0.01 * g * g;
            let (m, v) =
                (m[i] / (1.0 - 0.9_f64.powi(step as i32)), v[i] / (1.0 - 0.99_f64.powi(step as i32)));
            want[i] -= 0.01 * m / (v.sqrt() + 1e-8);
        }
    }
    let want: Vec<Expected> =
        want.into_iter().map(|w| Expected { value: w, magnitude: w.abs() + 0.05, extra: 0.0 }).collect();
    subject.check("adamw", &ctx.read_f32(&p).unwrap(), &want);
}
