//! Backward ops, against finite differences of each op's definition in f64; the frozen layers, which are linear, against
//! their transposed product.

use std::sync::Arc;

use super::quant::{FORMATS, HostWeight};
use super::random::Random;
use super::tiny_model::{BOUNDS, Chunk, TinyBatch, rope_table};
use super::{Expected, Subject, upload, upload_u32};
use crate::{
    AdamW, AttentionMemo, AttentionSpec, BLOCK_SIZE, BlockMemo, Ctx, DType, Dropout, KvConfig, LoraBatch,
    LoraFactors, LoraGrads, LoraModules, LoraTable, MemoUse, ModuleIdx, Projection, Result, RopeTables, Seed,
    Tensor, TrainedModule, WeightFormat,
};

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

pub(super) fn rms_norm(subject: &Subject) {
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

pub(super) fn silu_mul(subject: &Subject) {
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

pub(super) fn rope(subject: &Subject) {
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

/// Causal attention within sequences, by definition.
fn attend(operands: &Operands, spec: &AttentionSpec, lens: &[usize]) -> Vec<f64> {
    let AttentionSpec { num_heads, num_kv_heads, head_dim, scale, window } = *spec;
    let group = num_heads / num_kv_heads;
    let mut out = vec![0.0; operands[0].len()];
    let mut first = 0;
    for &len in lens {
        for i in 0..len {
            let from = window.map_or(0, |w| (i + 1).saturating_sub(w));
            for head in 0..num_heads {
                let q = ((first + i) * num_heads + head) * head_dim;
                let of_key = |j: usize| ((first + j) * num_kv_heads + head / group) * head_dim;
                let scores: Vec<f64> = (from..=i)
                    .map(|j| {
                        let k = of_key(j);
                        f64::from(scale)
                            * (0..head_dim).map(|d| operands[0][q + d] * operands[1][k + d]).sum::<f64>()
                    })
                    .collect();
                let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = scores.iter().map(|s| (s - most).exp()).sum();
                for (j, score) in (from..=i).zip(scores) {
                    let weight = (score - most).exp() / sum;
                    (0..head_dim).for_each(|d| out[q + d] += weight * operands[2][of_key(j) + d]);
                }
            }
        }
        first += len;
    }
    out
}

pub(super) fn attention(subject: &Subject) {
    if !subject.promises.trains {
        return;
    }
    let mut random = Random::new(74);
    // Heads of both kinds, length of a head, lengths of the sequences, window.
    type Case = ([usize; 2], usize, &'static [usize], Option<usize>);
    let cases: [Case; 5] = [
        ([3, 1], 64, &[1, 17, 70], None),
        ([1, 1], 16, &[560], None),
        ([2, 2], 16, &[130], None),
        ([4, 2], 48, &[64, 65, 3], None),
        ([2, 1], 32, &[150, 20], Some(40)),
    ];
    for ([num_heads, num_kv_heads], head_dim, lens, window) in cases {
        let scale = (head_dim as f32).sqrt().recip();
        let spec = AttentionSpec { num_heads, num_kv_heads, head_dim, scale, window };
        let mut ctx = subject.ctx(ARENA_BYTES);
        let inputs = step_of(lens, 0).inputs();
        let rows = inputs.positions.len();
        let step = ctx.stage(&inputs, &BOUNDS).unwrap();
        let widths = [num_heads, num_kv_heads, num_kv_heads].map(|h| h * head_dim);
        let operands = widths.map(|w| random.normals(rows * w));
        let seed = random.normals(rows * widths[0]);
        let tensors: [Tensor; 3] = std::array::from_fn(|i| upload(&mut ctx, [rows, widths[i]], &operands[i]));
        let mut kv = ctx
            .kv_cache(KvConfig {
                num_layers: 1,
                num_blocks: BOUNDS.num_blocks,
                num_kv_heads,
                head_dim,
                dtype: DType::F32,
            })
            .unwrap();
        let attention = AttentionMemo {
            out: ctx.persistent("kept", [rows, widths[0]], DType::F32).unwrap(),
            lse: ctx.persistent("kept", [rows, num_heads], DType::F32).unwrap(),
        };
        let mut memo = BlockMemo { attention, linears: None };
        let [q, k, v] = &tensors;
        let mut run = |ctx: &mut Ctx, use_: MemoUse| {
            let kv = kv.layer_mut(0)?;
            ctx.with_memo(&mut memo, use_, |ctx| ctx.paged_attention([q, k, v], &spec, kv, &step))
        };
        ctx.scratch(|ctx| run(ctx, MemoUse::Keep)).unwrap();
        let loss = |operands: &Operands| weighted(&attend(operands, &spec, lens), &seed);
        let exact = exact(&[&operands[0], &operands[1], &operands[2]]);
        for (idx, of) in tensors.iter().enumerate() {
            let got = gradient(&mut ctx, of, &seed, &[], |ctx| run(ctx, MemoUse::Recall));
            let what = format!("attention over {lens:?}, operand {idx}");
            check(subject, &what, &loss, &exact, (idx, &got), &mut random);
        }
    }
}

pub(super) fn gathered_rows(subject: &Subject) {
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

/// Three layers of every format over one input, one of them with a residual that is the input.
pub(super) fn frozen_layers(subject: &Subject) {
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

/// A layer in training.
struct Trained {
    /// Weight, A `[rank, in]`, B `[out, rank]`, magnitudes, output scale, bias.
    host: [Vec<f32>; 6],
    module: TrainedModule,
    weight: crate::Weight,
    bias: Tensor,
    table: Arc<LoraTable>,
}

impl Trained {
    fn new(ctx: &mut Ctx, random: &mut Random, [cols, out, rank]: [usize; 3], dora: bool) -> Self {
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

pub(super) fn low_rank_updates(subject: &Subject) {
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
pub(super) fn dropout(subject: &Subject) {
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
    assert_eq!(super::bits(&whole[20 * out..]), super::bits(&alone));
    assert_eq!(super::bits(&d_x[20 * cols..]), super::bits(&d_alone));
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

pub(super) fn cross_entropy(subject: &Subject) {
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

pub(super) fn adamw(subject: &Subject) {
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
