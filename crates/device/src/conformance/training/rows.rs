//! Ops that work row by row.

use super::{ARENA_BYTES, Operands, check, exact, gradient, step_of, weighted};
use crate::RopeTables;
use crate::conformance::random::Random;
use crate::conformance::tiny_model::{BOUNDS, rope_table};
use crate::conformance::{Expected, Subject, upload};

pub(in crate::conformance) fn rms_norm(subject: &Subject) {
    if !subject.promises.trains {
        return;
    }
    let mut random = Random::new(71);
    for (rows, len) in [(1, 5), (3, 16), (7, 33), (40, 576)] {
        let (x, w, seed) = (random.normals(rows * len), random.normals(len), random.normals(rows * len));
        let mut ctx = subject.ctx(ARENA_BYTES);
        let (xt, wt) = (upload(&mut ctx, [rows, len], &x), upload(&mut ctx, [len], &w));
        let got = gradient(&mut ctx, &xt, &seed, &[], |ctx| ctx.rms_norm(&xt, &wt, 1e-5));
        let loss = |operands: &Operands| {
            let out = operands[0].chunks(len).flat_map(|x| {
                let mean = x.iter().map(|v| v * v).sum::<f64>() / len as f64;
                x.iter().zip(&operands[1]).map(move |(v, w)| v / (mean + 1e-5).sqrt() * w)
            });
            weighted(&out.collect::<Vec<_>>(), &seed)
        };
        check(subject, "rms_norm", &loss, &exact(&[&x, &w]), (0, &got), &mut random);
    }
}

pub(in crate::conformance) fn silu_mul(subject: &Subject) {
    if !subject.promises.trains {
        return;
    }
    let mut random = Random::new(72);
    let loss_of = |seed: Vec<f32>| {
        move |operands: &Operands| {
            let pairs = operands[0].iter().zip(&operands[1]);
            weighted(&pairs.map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect::<Vec<_>>(), &seed)
        }
    };
    for (rows, len) in [(1, 3), (2, 48), (5, 100)] {
        let n = rows * len;
        let (gate, up, seed) = (random.normals(n), random.normals(n), random.normals(n));
        let gate: Vec<f32> = gate.into_iter().map(|g| 4.0 * g).collect();
        let mut ctx = subject.ctx(ARENA_BYTES);
        let (g, u) = (upload(&mut ctx, [rows, len], &gate), upload(&mut ctx, [rows, len], &up));
        let loss = loss_of(seed.clone());
        for (idx, of) in [(0, &g), (1, &u)] {
            let got = gradient(&mut ctx, of, &seed, &[], |ctx| ctx.silu_mul(&g, &u));
            check(subject, "silu_mul", &loss, &exact(&[&gate, &up]), (idx, &got), &mut random);
        }
    }
}

pub(in crate::conformance) fn rope(subject: &Subject) {
    if !subject.promises.trains {
        return;
    }
    let mut random = Random::new(73);
    for (head_dim, half, heads) in [(64, 32, 3), (16, 8, 1), (80, 33, 2)] {
        let table = rope_table(half, 2.0);
        let mut ctx = subject.ctx(ARENA_BYTES);
        let table_t = upload(&mut ctx, [BOUNDS.max_positions, half, 2], &table);
        let tables = RopeTables { tables: vec![table_t.clone(), table_t] };
        let inputs = step_of(&[5, 1, 9], 1).inputs();
        let (rows, row) = (inputs.positions.len(), heads * head_dim);
        let (x, seed) = (random.normals(rows * row), random.normals(rows * row));
        let step = ctx.stage(&inputs, &BOUNDS).unwrap();
        let xt = upload(&mut ctx, [rows, row], &x);
        let got = gradient(&mut ctx, &xt, &seed, &[], |ctx| {
            let [out] = ctx.rope([&xt], head_dim, &step, &tables)?;
            Ok(out)
        });
        let loss = |operands: &Operands| {
            let mut out = operands[0].clone();
            for (at, head) in out.chunks_mut(head_dim).enumerate() {
                let position = inputs.positions[at / heads] as usize;
                for i in 0..half {
                    let angle = 2 * (half * position + i);
                    let (cos, sin) = (f64::from(table[angle]), f64::from(table[angle + 1]));
                    let (a, b) = (head[i], head[i + half]);
                    (head[i], head[i + half]) = (a * cos - b * sin, b * cos + a * sin);
                }
            }
            weighted(&out, &seed)
        };
        check(subject, "rope", &loss, &exact(&[&x]), (0, &got), &mut random);
    }
}

pub(in crate::conformance) fn gathered_rows(subject: &Subject) {
    if !subject.promises.trains {
        return;
    }
    let mut random = Random::new(75);
    let mut inputs = step_of(&[4, 6], 0).inputs();
    inputs.logit_rows = vec![1, 2, 9];
    let (x, seed) = (random.normals(10 * 7), random.normals(3 * 7));
    let mut ctx = subject.ctx(ARENA_BYTES);
    let step = ctx.stage(&inputs, &BOUNDS).unwrap();
    let xt = upload(&mut ctx, [10, 7], &x);
    let got = gradient(&mut ctx, &xt, &seed, &[], |ctx| ctx.gather_logit_rows(&xt, &step));
    let mut want = vec![Expected::default(); 70];
    for (i, row) in [1, 2, 9].into_iter().enumerate() {
        (0..7).for_each(|d| want[row * 7 + d].add(f64::from(seed[i * 7 + d])));
    }
    subject.check("gather_rows backward", &got, &want);
}

pub(in crate::conformance) fn cross_entropy(subject: &Subject) {
    if !subject.promises.trains {
        return;
    }
    let mut random = Random::new(79);
    for (rows, vocab) in [(1, 3), (4, 97), (5, 1000)] {
        let logits: Vec<f32> = random.normals(rows * vocab).into_iter().map(|l| 3.0 * l).collect();
        let targets: Vec<u32> = (0..rows).map(|_| random.below(vocab) as u32).collect();
        let weights: Vec<f32> = (0..rows).map(|_| random.range(0.1..2.0)).collect();
        let mut ctx = subject.ctx(ARENA_BYTES);
        let t = upload(&mut ctx, [rows, vocab], &logits);
        let losses = ctx.cross_entropy(&t, &targets, &weights).unwrap();
        let got = ctx.read_f32(&t).unwrap();
        let of_rows = |logits: &[f64]| -> Vec<f64> {
            let rows = logits.chunks(vocab).zip(&targets);
            rows.map(|(row, &t)| row.iter().map(|l| l.exp()).sum::<f64>().ln() - row[t as usize]).collect()
        };
        let operands = exact(&[&logits]);
        for (&got, want) in losses.iter().zip(of_rows(&operands[0])) {
            assert!((f64::from(got) - want).abs() < 1e-5 * (1.0 + want), "a loss of {got}, expected {want}");
        }
        let loss = |operands: &Operands| weighted(&of_rows(&operands[0]), &weights);
        check(subject, "cross_entropy", &loss, &operands, (0, &got), &mut random);
    }
    let mut ctx = subject.ctx(ARENA_BYTES);
    let t = upload(&mut ctx, [1, 3], &[0.0; 3]);
    assert!(ctx.cross_entropy(&t, &[3], &[1.0]).is_err(), "a target beyond the vocabulary");
}
