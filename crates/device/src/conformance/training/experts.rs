//! Mixtures of experts, with updates of all their layers and of their router.

use std::sync::Arc;

use super::adapters::Trained;
use super::{ARENA_BYTES, Operands, check, exact, gradient, step_of};
use crate::conformance::random::Random;
use crate::conformance::tiny_model::BOUNDS;
use crate::conformance::{Subject, upload, upload_u32};
use crate::{
    Ctx, Dropout, ExpertModules, Experts, LoraModules, LoraTable, ModuleIdx, Projection, Result, Step,
    Tensor, TrainedModule,
};

const EXPERTS: usize = 4;
const TOP_K: usize = 2;

/// A router and a gated MLP of experts in training; modules are the router's, then each expert's gate, up and down.
struct Mixture {
    /// Router, gate, up, down by expert.
    layers: [Vec<Trained>; 4],
    experts: [Experts; 3],
    table: Arc<LoraTable>,
    modules: Vec<Option<TrainedModule>>,
}

impl Mixture {
    fn new(ctx: &mut Ctx, random: &mut Random, [hidden, inner, rank]: [usize; 3], dora: bool) -> Self {
        let mut layer = |ctx: &mut Ctx, count: usize, dims: [usize; 3]| -> Vec<Trained> {
            (0..count).map(|_| Trained::new(ctx, random, dims, dora)).collect()
        };
        let layers = [
            layer(ctx, 1, [hidden, EXPERTS, rank.min(EXPERTS)]),
            layer(ctx, EXPERTS, [hidden, inner, rank]),
            layer(ctx, EXPERTS, [hidden, inner, rank]),
            layer(ctx, EXPERTS, [inner, hidden, rank]),
        ];
        let [router, experts @ ..] = &layers;
        let mut modules = vec![Some(router[0].module.clone())];
        let mut shapes = vec![[router[0].weight.rows(), router[0].weight.cols()]];
        for expert in 0..EXPERTS {
            for layer in experts {
                modules.push(Some(layer[expert].module.clone()));
                shapes.push([layer[expert].weight.rows(), layer[expert].weight.cols()]);
            }
        }
        let table = LoraTable::new(1, shapes);
        let factors: Vec<_> = modules.iter().map(|m| m.as_ref().map(|m| m.factors.clone())).collect();
        table.bind(0, LoraModules::from(factors)).unwrap();
        let mut first = 0;
        let experts = experts.each_ref().map(|layer| {
            first += 1;
            let weights = layer.iter().map(|l| l.weight.clone()).collect();
            ctx.experts(weights, Some(ExpertModules { first: ModuleIdx(first), stride: 3 })).unwrap()
        });
        Mixture { layers, experts, table: Arc::new(table), modules }
    }

    fn run(&self, ctx: &mut Ctx, x: &Tensor, step: &Step) -> Result<Tensor> {
        let lora = step.lora(&self.table);
        let lora = Some(&lora);
        let router = Projection {
            weight: &self.layers[0][0].weight,
            bias: None,
            module: Some(ModuleIdx(0)),
            residual: None,
        };
        let [logits] = ctx.linear(x, [router], lora)?;
        let routing = ctx.route(&logits, TOP_K)?;
        let dispatched = ctx.dispatch(x, &routing)?;
        let [gate, up, down] = &self.experts;
        let [gate, up] = ctx.expert_linear(&dispatched, [gate, up], &routing, lora)?;
        let inner = ctx.silu_mul(&gate, &up)?;
        let [down] = ctx.expert_linear(&inner, [down], &routing, lora)?;
        ctx.combine(&down, &routing, x)
    }

    /// A layer of one row in f64: `operands` are A and B of all experts.
    fn layer(
        &self,
        (layer, expert): (usize, usize),
        x: &[f64],
        a: &[f64],
        b: &[f64],
        dora: bool,
    ) -> Vec<f64> {
        let host = &self.layers[layer][expert].host;
        let (cols, rank) = (x.len(), host[1].len() / x.len());
        let out = host[0].len() / cols;
        let a = &a[expert * rank * cols..][..rank * cols];
        let b = &b[expert * out * rank..][..out * rank];
        let dot = |w: &[f64]| w.iter().zip(x).map(|(w, x)| w * x).sum::<f64>();
        let low: Vec<f64> = a.chunks(cols).map(dot).collect();
        (0..out)
            .map(|o| {
                let w = &host[0][o * cols..(o + 1) * cols];
                let base: f64 = w.iter().zip(x).map(|(&w, x)| f64::from(w) * x).sum();
                let update: f64 = low.iter().zip(&b[o * rank..]).map(|(l, b)| l * b).sum();
                (base + 0.5 * update) * if dora { f64::from(host[4][o]) } else { 1.0 }
            })
            .collect()
    }

    /// The experts of each row.
    fn chosen(&self, operands: &Operands, hidden: usize, dora: bool) -> Vec<Vec<usize>> {
        let choose = |x: &[f64]| {
            let logits = self.layer((0, 0), x, &operands[1], &operands[2], dora);
            let mut order: Vec<usize> = (0..EXPERTS).collect();
            order.sort_by(|&i, &j| logits[j].total_cmp(&logits[i]));
            order.truncate(TOP_K);
            order
        };
        operands[0].chunks(hidden).map(choose).collect()
    }

    /// `Σ seed out`, of x and of all factors: those of router, gate, up and down, A before B. Rows stay with the experts that
    /// were `chosen`.
    fn loss(&self, operands: &Operands, chosen: &[Vec<usize>], seed: &[f32], dora: bool) -> f64 {
        let [x, ra, rb, ga, gb, ua, ub, da, db] = &operands[..] else { panic!("nine operands") };
        let hidden = x.len() / chosen.len();
        let mut loss = 0.0;
        for ((x, seed), chosen) in x.chunks(hidden).zip(seed.chunks(hidden)).zip(chosen) {
            let logits = self.layer((0, 0), x, ra, rb, dora);
            let exps: Vec<f64> = chosen.iter().map(|&e| (logits[e] - logits[chosen[0]]).exp()).collect();
            let sum: f64 = exps.iter().sum();
            let mut out = x.to_vec();
            for (&expert, exp) in chosen.iter().zip(&exps) {
                let gate = self.layer((1, expert), x, ga, gb, dora);
                let up = self.layer((2, expert), x, ua, ub, dora);
                let inner: Vec<f64> = gate.iter().zip(&up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
                let down = self.layer((3, expert), &inner, da, db, dora);
                out.iter_mut().zip(&down).for_each(|(out, y)| *out += exp / sum * y);
            }
            loss += out.iter().zip(seed).map(|(o, &s)| o * f64::from(s)).sum::<f64>();
        }
        loss
    }
}

pub(in crate::conformance) fn experts(subject: &Subject) {
    if !subject.promises.trains {
        return;
    }
    let mut random = Random::new(79);
    for (dims, lens, dora) in
        [([12, 20, 3], vec![5], false), ([48, 33, 8], vec![30, 1], false), ([24, 16, 4], vec![9, 3], true)]
    {
        let [hidden, inner, rank] = dims;
        let mut ctx = subject.ctx(ARENA_BYTES);
        let mixture = Mixture::new(&mut ctx, &mut random, dims, dora);
        let inputs = step_of(&lens, 0).inputs();
        let rows = inputs.positions.len();
        let step = ctx.stage(&inputs, &BOUNDS).unwrap();
        let (x, seed) = (random.normals(rows * hidden), random.normals(rows * hidden));
        let xt = upload(&mut ctx, [rows, hidden], &x);
        let d_x = gradient(&mut ctx, &xt, &seed, &mixture.modules, |ctx| mixture.run(ctx, &xt, &step));
        let all = |layer: usize, part: usize| -> Vec<f32> {
            mixture.layers[layer].iter().flat_map(|l| l.host[part].iter().copied()).collect()
        };
        let factors: Vec<Vec<f32>> = (0..4).flat_map(|layer| [all(layer, 1), all(layer, 2)]).collect();
        let mut operands: Vec<&[f32]> = vec![&x];
        operands.extend(factors.iter().map(Vec::as_slice));
        let operands = exact(&operands);
        let chosen = mixture.chosen(&operands, hidden, dora);
        let loss = |operands: &Operands| mixture.loss(operands, &chosen, &seed, dora);
        let what = |part: &str| format!("experts of {dims:?}, DoRA {dora}, {part}");
        check(subject, &what("x"), &loss, &operands, (0, &d_x), &mut random);
        for (layer, name) in ["router", "gate", "up", "down"].into_iter().enumerate() {
            let (cols, out, rank) = match layer {
                0 => (hidden, EXPERTS, rank.min(EXPERTS)),
                3 => (inner, hidden, rank),
                _ => (hidden, inner, rank),
            };
            let (mut d_a, mut d_b) = (Vec::new(), Vec::new());
            for trained in &mixture.layers[layer] {
                d_a.extend(ctx.read_f32(&trained.module.grads.a).unwrap());
                let d_bt = ctx.read_f32(&trained.module.grads.b).unwrap();
                d_b.extend((0..out * rank).map(|i| d_bt[i % rank * out + i / rank]));
            }
            assert_eq!(d_a.len() % cols, 0);
            check(
                subject,
                &what(&format!("A of {name}")),
                &loss,
                &operands,
                (1 + 2 * layer, &d_a),
                &mut random,
            );
            check(
                subject,
                &what(&format!("B of {name}")),
                &loss,
                &operands,
                (2 + 2 * layer, &d_b),
                &mut random,
            );
        }
    }
}

/// Dropout before the experts' adapters leaves out the same values of an example in another step's place, and its gradient
/// the same: with the routing as it is, a small step along the gradient rises by its square.
pub(in crate::conformance) fn experts_dropout(subject: &Subject) {
    if !subject.promises.trains {
        return;
    }
    let mut random = Random::new(80);
    let (hidden, inner) = (32, 24);
    let mut ctx = subject.ctx(ARENA_BYTES);
    let mixture = Mixture::new(&mut ctx, &mut random, [hidden, inner, 4], false);
    let (x, seed) = (random.normals(30 * hidden), random.normals(30 * hidden));
    let mut run = |lens: &[usize], examples: &[u32], x: &[f32], seed: &[f32], step_idx: u32| {
        let inputs = step_of(lens, 0).inputs();
        let rows = inputs.positions.len();
        let step = ctx.stage(&inputs, &BOUNDS).unwrap();
        let example_idx: Vec<u32> =
            lens.iter().zip(examples).flat_map(|(&len, &e)| std::iter::repeat_n(e, len)).collect();
        let example_idx = upload_u32(&mut ctx, &example_idx);
        let xt = upload(&mut ctx, [rows, hidden], x);
        let dropout = Dropout { probability: 0.25, seed: 5, step: step_idx };
        ctx.set_dropout(Some((dropout, &example_idx))).unwrap();
        let mut value = Vec::new();
        let d_x = gradient(&mut ctx, &xt, seed, &mixture.modules, |ctx| {
            let out = mixture.run(ctx, &xt, &step)?;
            value = ctx.read_f32(&out)?;
            Ok(out)
        });
        ctx.set_dropout(None).unwrap();
        (value, d_x)
    };
    let (whole, d_x) = run(&[20, 10], &[3, 8], &x, &seed, 1);
    let (alone, d_alone) = run(&[10], &[8], &x[20 * hidden..], &seed[20 * hidden..], 1);
    for (beside, alone) in [(&whole[20 * hidden..], &alone), (&d_x[20 * hidden..], &d_alone)] {
        let largest = alone.iter().fold(0.0f32, |most, v| most.max(v.abs()));
        assert!(
            beside.iter().zip(alone).all(|(a, b)| (a - b).abs() <= 1e-4 * largest),
            "{}: other values are left out",
            subject.device.name()
        );
    }
    let (other, _) = run(&[10], &[8], &x[20 * hidden..], &seed[20 * hidden..], 2);
    assert_ne!(alone, other, "another step leaves out other values");
    let squares = d_x.iter().map(|&d| f64::from(d).powi(2)).sum::<f64>();
    let step = 1e-3 / squares.sqrt();
    let mut at = |step: f64| {
        let moved: Vec<f32> = x.iter().zip(&d_x).map(|(x, d)| x + (step * f64::from(*d)) as f32).collect();
        let (there, _) = run(&[20, 10], &[3, 8], &moved, &seed, 1);
        there.iter().zip(&seed).map(|(&o, &s)| f64::from(o) * f64::from(s)).sum::<f64>()
    };
    let slope = (at(step) - at(-step)) / (2.0 * step);
    assert!((slope / squares - 1.0).abs() < 0.02, "{}: {slope}, {squares}", subject.device.name());
}
