//! Low-rank updates, and dropout before them.

use std::sync::Arc;

use super::{ARENA_BYTES, Operands, check, exact, gradient, step_of};
use crate::conformance::quant::HostWeight;
use crate::conformance::random::Random;
use crate::conformance::tiny_model::BOUNDS;
use crate::conformance::{Expected, Subject, bits, upload, upload_u32};
use crate::{
    Ctx, DType, Dropout, LoraBatch, LoraFactors, LoraGrads, LoraModules, LoraTable, ModuleIdx, Projection,
    Tensor, TrainedModule, WeightFormat,
};

/// A layer in training.
pub(super) struct Trained {
    /// Weight, A `[rank, in]`, B `[out, rank]`, magnitudes, output scale, bias.
    pub(super) host: [Vec<f32>; 6],
    pub(super) module: TrainedModule,
    pub(super) weight: crate::Weight,
    bias: Tensor,
    table: Arc<LoraTable>,
}

impl Trained {
    pub(super) fn new(ctx: &mut Ctx, random: &mut Random, [cols, out, rank]: [usize; 3], dora: bool) -> Self {
        let weight = HostWeight::random(random, WeightFormat::F32, out, cols);
        let loaded = weight.load(ctx);
        let (a, b) = (random.normals(rank * cols), random.normals(out * rank));
        let b_t: Vec<f32> = (0..rank * out).map(|i| b[i % out * rank + i / out]).collect();
        let (a_t, b_tt) = (upload(ctx, [rank, cols], &a), upload(ctx, [rank, out], &b_t));
        let empty = |ctx: &Ctx, n: usize, m: usize| ctx.persistent("a factor", [n, m], DType::F32).unwrap();
        let (packed_a, a_panels) = (empty(ctx, cols, rank), empty(ctx, cols, rank));
        let (b_rows, packed_b) = (empty(ctx, out, rank), empty(ctx, out, rank));
        ctx.pack_factor(&a_t, &packed_a, &a_panels).unwrap();
        ctx.pack_factor(&b_tt, &b_rows, &packed_b).unwrap();
        let magnitude: Vec<f32> = (0..out).map(|_| random.range(0.5..2.0)).collect();
        let norms = ctx.device().update_norms(&loaded, [&a, &b], 0.5).unwrap();
        let scales: Vec<f32> = magnitude.iter().zip(&norms).map(|(m, n)| m / n).collect();
        let vector = |ctx: &mut Ctx, values: &[f32]| upload(ctx, [values.len()], values);
        let out_scale = dora.then(|| vector(ctx, &scales));
        let factors = LoraFactors { a: packed_a, b: packed_b, scale: 0.5, out_scale };
        let table = LoraTable::new(1, [[out, cols]]);
        table.bind(0, LoraModules::from(vec![Some(factors.clone())])).unwrap();
        let bias = random.normals(out);
        let module = TrainedModule {
            factors,
            a_panels,
            b_rows,
            magnitude: dora.then(|| vector(ctx, &magnitude)),
            grads: LoraGrads {
                a: empty(ctx, rank, cols),
                b: empty(ctx, rank, out),
                magnitude: dora.then(|| ctx.persistent("a gradient", [out], DType::F32).unwrap()),
            },
        };
        let weight: Vec<f32> = (0..out).flat_map(|o| weight.row(o).iter().map(|&w| w as f32)).collect();
        let bias_t = vector(ctx, &bias);
        Trained {
            host: [weight, a, b, magnitude, scales, bias],
            module,
            weight: loaded,
            bias: bias_t,
            table: Arc::new(table),
        }
    }
}

pub(in crate::conformance) fn low_rank_updates(subject: &Subject) {
    if !subject.promises.trains {
        return;
    }
    let mut random = Random::new(77);
    for (dims, lens, dora) in [
        ([7, 5, 2], vec![3], false),
        ([64, 48, 16], vec![20, 1], false),
        ([160, 70, 5], vec![130], false),
        ([48, 33, 8], vec![9, 70], true),
    ] {
        let [cols, out, rank] = dims;
        let mut ctx = subject.ctx(ARENA_BYTES);
        let trained = Trained::new(&mut ctx, &mut random, dims, dora);
        let inputs = step_of(&lens, 0).inputs();
        let rows = inputs.positions.len();
        let step = ctx.stage(&inputs, &BOUNDS).unwrap();
        let (x, residual) = (random.normals(rows * cols), random.normals(rows * out));
        let seed = random.normals(rows * out);
        let (xt, rt) = (upload(&mut ctx, [rows, cols], &x), upload(&mut ctx, [rows, out], &residual));
        let modules = [Some(trained.module.clone())];
        let d_x = gradient(&mut ctx, &xt, &seed, &modules, |ctx| {
            let lora = step.lora(&trained.table);
            let projection = Projection {
                weight: &trained.weight,
                bias: Some(&trained.bias),
                module: Some(ModuleIdx(0)),
                residual: Some(&rt),
            };
            let [out] = ctx.linear(&xt, [projection], Some(&lora))?;
            Ok(out)
        });
        let [weight, a, b, magnitude, scales, bias] = &trained.host;
        let loss = |operands: &Operands| {
            let [x, a, b, magnitude] = &operands[..] else { panic!("four operands") };
            let mut result = 0.0;
            for (row, x) in x.chunks(cols).enumerate() {
                let dot = |w: &[f64]| w.iter().zip(x).map(|(w, x)| w * x).sum::<f64>();
                let low: Vec<f64> = a.chunks(cols).map(dot).collect();
                for o in 0..out {
                    let w = &weight[o * cols..(o + 1) * cols];
                    let mut y: f64 = w.iter().zip(x).map(|(&w, x)| f64::from(w) * x).sum();
                    y += 0.5 * low.iter().zip(&b[o * rank..]).map(|(l, b)| l * b).sum::<f64>();
                    if dora {
                        // The norm is a constant: the scale moves with the magnitude alone.
                        y *= f64::from(scales[o]) * magnitude[o] / f64::from(trained.host[3][o]);
                    }
                    y += f64::from(bias[o]) + f64::from(residual[row * out + o]);
                    result += y * f64::from(seed[row * out + o]);
                }
            }
            result
        };
        let exact = exact(&[&x, a, b, magnitude]);
        let grads = &trained.module.grads;
        let d_a = ctx.read_f32(&grads.a).unwrap();
        let d_bt = ctx.read_f32(&grads.b).unwrap();
        let d_b: Vec<f32> = (0..out * rank).map(|i| d_bt[i % rank * out + i / rank]).collect();
        let what = |part: &str| format!("a low-rank update of {dims:?}, DoRA {dora}, {part}");
        check(subject, &what("x"), &loss, &exact, (0, &d_x), &mut random);
        check(subject, &what("A"), &loss, &exact, (1, &d_a), &mut random);
        check(subject, &what("B"), &loss, &exact, (2, &d_b), &mut random);
        if let Some(d_magnitude) = &grads.magnitude {
            let d_magnitude = ctx.read_f32(d_magnitude).unwrap();
            check(subject, &what("magnitude"), &loss, &exact, (3, &d_magnitude), &mut random);
            let norms = ctx.device().update_norms(&trained.weight, [a, b], 0.5).unwrap();
            let want: Vec<Expected> = (0..out)
                .map(|o| {
                    let row = (0..cols).map(|k| {
                        let low = (0..rank).map(|r| f64::from(b[o * rank + r]) * f64::from(a[r * cols + k]));
                        f64::from(weight[o * cols + k]) + 0.5 * low.sum::<f64>()
                    });
                    let norm = row.map(|w| w * w).sum::<f64>().sqrt();
                    Expected { value: norm, magnitude: norm, extra: 0.0 }
                })
                .collect();
            subject.check("update_norms", &norms, &want);
        }
    }
}

/// Dropout leaves out the share that it should, the same in another step's place, and its gradient the same values.
pub(in crate::conformance) fn dropout(subject: &Subject) {
    if !subject.promises.trains {
        return;
    }
    let mut random = Random::new(78);
    let (cols, out) = (64, 48);
    let mut ctx = subject.ctx(ARENA_BYTES);
    let trained = Trained::new(&mut ctx, &mut random, [cols, out, 4], false);
    let modules = [Some(trained.module.clone())];
    let dropout = |step| Dropout { probability: 0.25, seed: 5, step };
    let mut run = |lens: &[usize], examples: &[u32], x: &[f32], seed: &[f32], dropout| {
        let inputs = step_of(lens, 0).inputs();
        let rows = inputs.positions.len();
        let step = ctx.stage(&inputs, &BOUNDS).unwrap();
        let example_idx: Vec<u32> =
            lens.iter().zip(examples).flat_map(|(&len, &e)| std::iter::repeat_n(e, len)).collect();
        let example_idx = upload_u32(&mut ctx, &example_idx);
        let xt = upload(&mut ctx, [rows, cols], x);
        ctx.set_dropout(Some((dropout, &example_idx))).unwrap();
        let mut value = Vec::new();
        let d_x = gradient(&mut ctx, &xt, seed, &modules, |ctx| {
            let lora = step.lora(&trained.table);
            let module = Some(ModuleIdx(0));
            let projection = Projection { weight: &trained.weight, bias: None, module, residual: None };
            let [out] = ctx.linear(&xt, [projection], Some(&lora))?;
            value = ctx.read_f32(&out)?;
            Ok(out)
        });
        ctx.set_dropout(None).unwrap();
        (value, d_x)
    };
    let (x, seed) = (random.normals(30 * cols), random.normals(30 * out));
    let (whole, d_x) = run(&[20, 10], &[3, 8], &x, &seed, dropout(1));
    // The same example in another step: the same values are left out.
    let (alone, d_alone) = run(&[10], &[8], &x[20 * cols..], &seed[20 * out..], dropout(1));
    for (beside, alone) in [(&whole[20 * out..], &alone), (&d_x[20 * cols..], &d_alone)] {
        if subject.promises.batch_invariant {
            assert_eq!(bits(beside), bits(alone));
        }
        // A value that one of the two leaves out would be off by far more.
        let largest = alone.iter().fold(0.0f32, |most, v| most.max(v.abs()));
        assert!(
            beside.iter().zip(alone).all(|(a, b)| (a - b).abs() <= 1e-4 * largest),
            "other values are left out"
        );
    }
    let (other, _) = run(&[10], &[8], &x[20 * cols..], &seed[20 * out..], dropout(2));
    assert_ne!(alone, other, "another step leaves out other values");
    // With the mask fixed the layer is linear: a large step in x shows the gradient.
    let moved: Vec<f32> = x.iter().zip(&d_x).map(|(x, d)| x + d).collect();
    let (there, _) = run(&[20, 10], &[3, 8], &moved, &seed, dropout(1));
    let sum = |out: &[f32]| out.iter().zip(&seed).map(|(&o, &s)| f64::from(o) * f64::from(s)).sum::<f64>();
    let (rise, want) = (sum(&there) - sum(&whole), d_x.iter().map(|&d| f64::from(d).powi(2)).sum::<f64>());
    assert!((rise / want - 1.0).abs() < 1e-4, "{}: rises by {rise}, expected {want}", subject.device.name());
    // The update without and with dropout, of a row of ones through A of ones, tells how much was kept.
    let kept = kept_share(subject, 0.25);
    assert!((kept - 1.0).abs() < 0.02, "{}: expectation changes by {kept}", subject.device.name());
}

/// What dropout leaves of the sum of many ones.
fn kept_share(subject: &Subject, probability: f32) -> f64 {
    let (cols, rows) = (512, 64);
    let mut ctx = subject.ctx(ARENA_BYTES);
    let inputs = step_of(&[rows], 0).inputs();
    let step = ctx.stage(&inputs, &BOUNDS).unwrap();
    let host = HostWeight::random(&mut Random::new(1), WeightFormat::F32, 1, cols);
    let weight = host.load(&mut ctx);
    let ones = |ctx: &mut Ctx, n: usize, m: usize| upload(ctx, [n, m], &vec![1.0; n * m]);
    let factors =
        LoraFactors { a: ones(&mut ctx, cols, 1), b: ones(&mut ctx, 1, 1), scale: 1.0, out_scale: None };
    let table = LoraTable::new(1, [[1, cols]]);
    table.bind(0, LoraModules::from(vec![Some(factors)])).unwrap();
    let table = Arc::new(table);
    let x = ones(&mut ctx, rows, cols);
    let example_idx = upload_u32(&mut ctx, &vec![0; rows]);
    let run = |ctx: &mut Ctx, with: bool| {
        let lora = step.lora(&table);
        let module = Some(ModuleIdx(0));
        let projection = Projection { weight: &weight, bias: None, module, residual: None };
        let dropout = Dropout { probability, seed: 9, step: 0 };
        ctx.set_dropout(with.then_some((dropout, &example_idx))).unwrap();
        let lora: Option<&LoraBatch<'_>> = Some(&lora);
        let [out] = ctx.linear(&x, [projection], lora).unwrap();
        ctx.read_f32(&out).unwrap().iter().map(|&v| f64::from(v)).sum::<f64>()
    };
    let base: f64 = rows as f64 * host.row(0).iter().sum::<f64>();
    let (with, without) = (run(&mut ctx, true), run(&mut ctx, false));
    (with - base) / (without - base)
}
