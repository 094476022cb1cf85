//! Mixtures of experts: routing, the layers of experts with adapters, and their sum.

use std::sync::Arc;

use super::linear::product;
use super::lora::HostFactors;
use super::quant::{FORMATS, HostWeight};
use super::random::Random;
use super::tiny_model::{BOUNDS, Chunk, TinyBatch};
use super::{Expected, Subject, bits, run_step, upload, upload_u32};
use crate::{
    Ctx, DType, ExpertModules, Experts, LoraBatch, LoraModules, LoraTable, ModuleIdx, NULL_SLOT, Projection,
    Routing, Step, Tensor, Weight, WeightFormat,
};

const ARENA_BYTES: usize = 1 << 21;
const SLOTS: usize = 3;
const RANKS: [usize; 4] = [1, 4, 16, 24];

pub(super) fn read_u32(ctx: &mut Ctx, t: &Tensor) -> Vec<usize> {
    let mut bytes = vec![0; t.size_bytes()];
    // SAFETY: live, and as long as the tensor.
    unsafe { ctx.ops_mut().read(t, &mut bytes).unwrap() };
    bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b) as usize).collect()
}

/// A row's experts and what each counts, from the definition: the softmax over all, of which the largest are brought to the
/// sum of one.
fn routed(logits: &[f32], top_k: usize) -> (Vec<usize>, Vec<f64>) {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    order.truncate(top_k);
    let most = f64::from(logits[order[0]]);
    let exps: Vec<f64> = logits.iter().map(|&l| (f64::from(l) - most).exp()).collect();
    let sum: f64 = exps.iter().sum();
    let softmax: Vec<f64> = order.iter().map(|&e| exps[e] / sum).collect();
    let of_taken: f64 = softmax.iter().sum();
    (order, softmax.iter().map(|p| p / of_taken).collect())
}

pub(super) fn routing(subject: &Subject) {
    let mut random = Random::new(91);
    for (num_experts, top_k) in [(1, 1), (3, 2), (8, 2), (8, 8), (40, 3)] {
        for rows in [1, 2, 7, 33, 300] {
            let mut logits: Vec<f32> = (0..rows * num_experts).map(|_| 2.0 * random.normal()).collect();
            // Equal ones, of which the first counts more, and ones far from all others.
            logits.iter_mut().for_each(|l| {
                *l = if random.below(4) == 0 { 0.5 } else { *l };
                *l = if random.below(16) == 0 { 200.0 * *l } else { *l };
            });
            let mut ctx = subject.ctx(ARENA_BYTES);
            let logits_t = upload(&mut ctx, [rows, num_experts], &logits);
            let routing = ctx.route(&logits_t, top_k).unwrap();
            let what = format!("{}: {rows} rows to {top_k} of {num_experts}", subject.device.name());
            let (experts, weights) = (read_u32(&mut ctx, routing.experts()), routing.weights().clone());
            let weights = ctx.read_f32(&weights).unwrap();
            let (mut wanted_experts, mut wanted) = (Vec::new(), Vec::new());
            for logits in logits.chunks(num_experts) {
                let (order, counts) = routed(logits, top_k);
                wanted_experts.extend(order);
                wanted.extend(counts.into_iter().map(|w| Expected { value: w, magnitude: w, extra: 1e-7 }));
            }
            assert_eq!(experts, wanted_experts, "{what}");
            subject.check(&what, &weights, &wanted);
            // Pairs stand expert by expert, rows ascending.
            let mut pairs: Vec<(usize, usize)> =
                experts.iter().enumerate().map(|(pair, &e)| (e, pair)).collect();
            pairs.sort_unstable();
            let rows_wanted: Vec<usize> = pairs.iter().map(|(_, pair)| pair / top_k).collect();
            assert_eq!(read_u32(&mut ctx, routing.rows()), rows_wanted, "{what}");
            let places = read_u32(&mut ctx, routing.places());
            pairs.iter().enumerate().for_each(|(at, &(_, pair))| assert_eq!(places[pair], at, "{what}"));
            let starts: Vec<usize> =
                (0..=num_experts).map(|e| pairs.partition_point(|(of, _)| *of < e)).collect();
            assert_eq!(read_u32(&mut ctx, routing.starts()), starts, "{what}");
        }
    }
    // Whatever a broken model's logits are, a row goes to experts that exist, each once.
    let mut ctx = subject.ctx(ARENA_BYTES);
    let nan = f32::NAN;
    let logits = [nan, nan, nan, 1.0, nan, 2.0, f32::NEG_INFINITY, nan, f32::INFINITY];
    let logits = upload(&mut ctx, [3, 3], &logits);
    let routing = ctx.route(&logits, 2).unwrap();
    for experts in read_u32(&mut ctx, routing.experts()).chunks(2) {
        assert!(experts[0] != experts[1] && experts.iter().all(|&e| e < 3), "{experts:?}");
    }
    assert!(ctx.route(&logits, 0).is_err() && ctx.route(&logits, 4).is_err());
}

/// A gated MLP of experts, its router, and adapters for all of them.
struct Mixture {
    top_k: usize,
    router: HostWeight,
    /// Gate, up and down, by expert.
    layers: [Vec<HostWeight>; 3],
    /// By slot and module: the router's, then each expert's three.
    adapters: Vec<Vec<Option<HostFactors>>>,
}

/// The same on a device.
struct Loaded {
    router: Weight,
    layers: [Experts; 3],
    table: Arc<LoraTable>,
}

impl Mixture {
    fn random(random: &mut Random, format: WeightFormat, num_experts: usize, top_k: usize) -> Self {
        let (hidden, inner) = match format.block_len() {
            1 => random.pick(&[(24, 40), (48, 33)]),
            32 => (64, 96),
            n => (n, n),
        };
        let router = HostWeight::random(random, WeightFormat::F32, num_experts, hidden);
        let mut layer = |out, input| -> Vec<HostWeight> {
            (0..num_experts).map(|_| HostWeight::random(random, format, out, input)).collect()
        };
        let layers = [layer(inner, hidden), layer(inner, hidden), layer(hidden, inner)];
        let dtypes = [DType::F32, DType::F16, DType::BF16];
        let adapters = (0..SLOTS)
            .map(|slot| {
                (0..1 + 3 * num_experts)
                    .map(|module| {
                        let weight = match module.checked_sub(1) {
                            None => &router,
                            Some(m) => &layers[m % 3][m / 3],
                        };
                        let (rank, dtype) = (random.pick(&RANKS), dtypes[(slot + module) % 3]);
                        let dora = slot == 2 && module % 2 == 1;
                        let dims = [weight.cols, weight.rows];
                        let factors = HostFactors::random(random, dtype, rank, dims, dora);
                        (module == 0 || random.below(4) > 0).then_some(factors)
                    })
                    .collect()
            })
            .collect();
        Mixture { top_k, router, layers, adapters }
    }

    fn num_experts(&self) -> usize {
        self.router.rows
    }

    fn load(&self, ctx: &mut Ctx) -> Loaded {
        let router = self.router.load(ctx);
        let mut idx = 0;
        let layers = self.layers.each_ref().map(|layer| {
            idx += 1;
            let weights = layer.iter().map(|w| w.load(ctx)).collect();
            ctx.experts(weights, Some(ExpertModules { first: ModuleIdx(idx), stride: 3 })).unwrap()
        });
        let of_module = |m: usize| match m.checked_sub(1) {
            None => &self.router,
            Some(m) => &self.layers[m % 3][m / 3],
        };
        let shapes = (0..1 + 3 * self.num_experts()).map(|m| [of_module(m).rows, of_module(m).cols]);
        let table = LoraTable::new(SLOTS, shapes);
        for (slot, adapter) in self.adapters.iter().enumerate() {
            let modules: Vec<_> = adapter.iter().map(|f| f.as_ref().map(|f| f.upload(ctx))).collect();
            table.bind(slot as u32, LoraModules::from(modules)).unwrap();
        }
        Loaded { router, layers, table: Arc::new(table) }
    }

    /// An expert's layer of one row, with the row's adapter.
    fn layer(
        &self,
        subject: &Subject,
        (layer, expert): (usize, usize),
        x: &[f32],
        adapter: (u32, f32),
    ) -> Vec<Expected> {
        let out = product(subject, x, &self.layers[layer][expert]);
        let mut out: Vec<Expected> = out.into_iter().map(|(sum, _)| sum).collect();
        let adapter_of = self.adapters.get(adapter.0 as usize);
        if let Some(factors) = adapter_of.and_then(|a| a[1 + 3 * expert + layer].as_ref()) {
            factors.apply(x, adapter.1, &mut out);
        }
        out
    }
}

impl Loaded {
    /// What a block does after attention, without its norm.
    fn run(
        &self,
        ctx: &mut Ctx,
        x: &Tensor,
        top_k: usize,
        lora: Option<&LoraBatch<'_>>,
    ) -> crate::Result<Tensor> {
        let module = Some(ModuleIdx(0));
        let router = Projection { weight: &self.router, bias: None, module, residual: None };
        let [logits] = ctx.linear(x, [router], lora)?;
        let routing = ctx.route(&logits, top_k)?;
        let [gate, up, down] = &self.layers;
        let dispatched = ctx.dispatch(x, &routing)?;
        let [gate, up] = ctx.expert_linear(&dispatched, [gate, up], &routing, lora)?;
        let inner = ctx.silu_mul(&gate, &up)?;
        let [down] = ctx.expert_linear(&inner, [down], &routing, lora)?;
        ctx.combine(&down, &routing, x)
    }
}

/// Rows of several slots, mostly adjacent.
fn random_slots(random: &mut Random, rows: usize) -> (Vec<u32>, Vec<f32>) {
    let mut slots = Vec::new();
    while slots.len() < rows {
        let slot = random.pick(&[NULL_SLOT, 0, 1, 2]);
        slots.extend(std::iter::repeat_n(slot, 1 + random.below(5)));
    }
    slots.truncate(rows);
    (slots, (0..rows).map(|_| random.range(0.5..1.5)).collect())
}

pub(super) fn layers(subject: &Subject) {
    for (turn, format) in FORMATS.into_iter().enumerate() {
        let mut random = Random::new(92 + turn as u64);
        let shapes = [(5, 2, 1), (4, 3, 3), (8, 2, 13), (3, 2, 40), (4, 2, 170)];
        // Of layers that are long for a reference the smaller steps.
        let num_shapes = if format.block_len() > 32 { 4 } else { shapes.len() };
        for (num_experts, top_k, rows) in shapes.into_iter().take(num_shapes) {
            let mixture = Mixture::random(&mut random, format, num_experts, top_k);
            let mut ctx = subject.ctx(ARENA_BYTES);
            let loaded = mixture.load(&mut ctx);
            let hidden = mixture.router.cols;
            let (x, logits) = (random.normals(rows * hidden), random.normals(rows * num_experts));
            let (slots, scales) = random_slots(&mut random, rows);
            let (xt, lt) =
                (upload(&mut ctx, [rows, hidden], &x), upload(&mut ctx, [rows, num_experts], &logits));
            let (slots_t, scales_t) = (upload_u32(&mut ctx, &slots), upload(&mut ctx, [rows], &scales));
            let lora = LoraBatch { table: &loaded.table, slots: &slots_t, scales: &scales_t };
            let routing = ctx.route(&lt, top_k).unwrap();
            let dispatched = ctx.dispatch(&xt, &routing).unwrap();
            let inner = mixture.layers[2][0].cols;
            let wide = random.normals(rows * top_k * inner);
            let wide_t = upload(&mut ctx, [rows * top_k, inner], &wide);
            for with_lora in [false, true] {
                let lora = with_lora.then_some(&lora);
                let [gate, up, down] = &loaded.layers;
                let outs = ctx.scratch(|ctx| {
                    let [gate, up] = ctx.expert_linear(&dispatched, [gate, up], &routing, lora)?;
                    let [down] = ctx.expert_linear(&wide_t, [down], &routing, lora)?;
                    let read = |ctx: &mut Ctx, t: &Tensor| Ok((t.shape().row_len(), ctx.read_f32(t)?));
                    Ok([read(ctx, &gate)?, read(ctx, &up)?, read(ctx, &down)?])
                });
                let outs = outs.unwrap();
                let placed = |ctx: &mut Ctx, routing: &Routing| {
                    (read_u32(ctx, routing.places()), read_u32(ctx, routing.experts()))
                };
                let (places, experts) = placed(&mut ctx, &routing);
                for (layer, (features, got)) in outs.iter().enumerate() {
                    for (pair, (&place, &expert)) in places.iter().zip(&experts).enumerate() {
                        let row = pair / top_k;
                        let x = match layer {
                            2 => &wide[place * inner..][..inner],
                            _ => &x[row * hidden..][..hidden],
                        };
                        let slot = if with_lora { slots[row] } else { NULL_SLOT };
                        let want = mixture.layer(subject, (layer, expert), x, (slot, scales[row]));
                        let what = format!(
                            "layer {layer} of {num_experts} experts, {format:?}, {rows} rows, row {row} to {expert}, slot {slot}"
                        );
                        subject.check(&what, &got[place * features..][..*features], &want);
                    }
                }
            }
            let summed = ctx.combine(&dispatched, &routing, &xt).unwrap();
            let summed = ctx.read_f32(&summed).unwrap();
            for (row, logits) in logits.chunks(num_experts).enumerate() {
                let x = &x[row * hidden..][..hidden];
                let of_one = |&x: &f32| {
                    let mut sum = Expected::default();
                    sum.add(f64::from(x));
                    routed(logits, top_k).1.iter().for_each(|w| sum.add(w * f64::from(x)));
                    sum
                };
                let want: Vec<Expected> = x.iter().map(of_one).collect();
                subject.check("combine", &summed[row * hidden..][..hidden], &want);
            }
        }
    }
}

/// Every row of a mixed batch is the bits that it is alone.
pub(super) fn rows_alone(subject: &Subject) {
    if !subject.promises.batch_invariant {
        return;
    }
    for (turn, format) in FORMATS.into_iter().enumerate() {
        let mut random = Random::new(110 + turn as u64);
        let mixture = Mixture::random(&mut random, format, 5, 2);
        let mut ctx = subject.ctx(ARENA_BYTES);
        let loaded = mixture.load(&mut ctx);
        let (rows, hidden) = (60, mixture.router.cols);
        let x = random.normals(rows * hidden);
        let (slots, scales) = random_slots(&mut random, rows);
        let mut run = |rows: std::ops::Range<usize>| {
            let xt = upload(&mut ctx, [rows.len(), hidden], &x[rows.start * hidden..rows.end * hidden]);
            let slots = upload_u32(&mut ctx, &slots[rows.clone()]);
            let scales = upload(&mut ctx, [rows.len()], &scales[rows]);
            let lora = LoraBatch { table: &loaded.table, slots: &slots, scales: &scales };
            let out = ctx.scratch(|ctx| {
                let out = loaded.run(ctx, &xt, mixture.top_k, Some(&lora))?;
                ctx.read_f32(&out)
            });
            out.unwrap()
        };
        let together = run(0..rows);
        for part in [0..1, 7..8, 20..37, 59..60] {
            let alone = run(part.clone());
            let beside = &together[part.start * hidden..part.end * hidden];
            assert_eq!(bits(beside), bits(&alone), "{}: {format:?}, {part:?}", subject.device.name());
        }
    }
}

/// A step that may be recorded finds its rows' experts and adapters anew.
pub(super) fn new_contents(subject: &Subject) {
    for (format, seqs) in [(WeightFormat::Q8_0, 3), (WeightFormat::BF16, 1), (WeightFormat::F32, 9)] {
        let mut random = Random::new(120);
        let mixture = Mixture::random(&mut random, format, 6, 2);
        let table =
            HostWeight::random(&mut random, WeightFormat::F32, BOUNDS.vocab_size, mixture.router.cols);
        let open = || {
            let mut ctx = subject.ctx(ARENA_BYTES);
            let loaded = mixture.load(&mut ctx);
            let table = table.load(&mut ctx);
            (ctx, loaded, table)
        };
        let run = |ctx: &mut Ctx, loaded: &Loaded, table: &Weight, batch: &TinyBatch| {
            let out = run_step(ctx, &batch.inputs(), |ctx: &mut Ctx, step: &Step| {
                let x = ctx.embed(step.token_ids(), table)?;
                loaded.run(ctx, &x, mixture.top_k, Some(&step.lora(&loaded.table)))
            });
            ctx.read_f32(&out).unwrap()
        };
        let (mut ctx, loaded, embedding) = open();
        for turn in 0..5 {
            let chunk = |seq: u32| Chunk {
                slot: random.below(SLOTS) as u32,
                ..Chunk::of(vec![random.below(BOUNDS.vocab_size) as u32], 0, vec![seq])
            };
            let batch = TinyBatch { chunks: (0..seqs).map(chunk).collect() };
            let got = run(&mut ctx, &loaded, &embedding, &batch);
            let (mut fresh, fresh_loaded, fresh_table) = open();
            let want = run(&mut fresh, &fresh_loaded, &fresh_table, &batch);
            assert_eq!(bits(&got), bits(&want), "{}: {format:?}, turn {turn}", subject.device.name());
        }
    }
}
