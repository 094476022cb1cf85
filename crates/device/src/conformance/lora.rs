//! Adapters on linear layers.

use std::sync::Arc;

use half::{bf16, f16};

use super::linear::{product, representable};
use super::quant::HostWeight;
use super::random::Random;
use super::{Expected, Subject, bits, upload, upload_u32};
use crate::{
    Ctx, DType, LoraBatch, LoraFactors, LoraModules, LoraTable, ModuleIdx, NULL_SLOT, Projection, Tensor,
    WeightFormat,
};

const ARENA_BYTES: usize = 1 << 16;

/// One adapter's factors for one layer, as the device gets them and as f64.
#[derive(Debug)]
pub(super) struct HostFactors {
    dtype: DType,
    rank: usize,
    /// `[rank, in]`.
    a: Vec<f32>,
    /// `[out, rank]`.
    b: Vec<f32>,
    scale: f32,
    out_scale: Option<Vec<f32>>,
}

impl HostFactors {
    pub(super) fn random(
        random: &mut Random,
        dtype: DType,
        rank: usize,
        [cols, rows]: [usize; 2],
        dora: bool,
    ) -> Self {
        let mut rounded = |n: usize| -> Vec<f32> {
            (0..n)
                .map(|_| {
                    let v = random.normal() * 0.2;
                    match dtype {
                        DType::F16 => f16::from_f32(v).to_f32(),
                        DType::BF16 => bf16::from_f32(v).to_f32(),
                        DType::F32 | DType::U32 => v,
                    }
                })
                .collect()
        };
        let (a, b) = (rounded(rank * cols), rounded(rows * rank));
        let out_scale = dora.then(|| (0..rows).map(|_| random.range(0.5..1.5)).collect());
        HostFactors { dtype, rank, a, b, scale: random.range(0.5..2.0), out_scale }
    }

    pub(super) fn upload(&self, ctx: &mut Ctx) -> LoraFactors {
        let bytes = |values: &[f32]| -> Vec<u8> {
            match self.dtype {
                DType::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
                DType::BF16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
                DType::F32 | DType::U32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            }
        };
        let (rank, size) = (self.rank, self.dtype.size_bytes());
        let a = LoraFactors::pack_a(&bytes(&self.a), rank, size);
        let b = LoraFactors::pack_b(&bytes(&self.b), rank, size);
        let mut factor = |packed: &[u8]| -> Tensor {
            ctx.upload("a factor", [packed.len() / size / rank, rank], self.dtype, packed).unwrap()
        };
        let (a, b) = (factor(&a), factor(&b));
        let out_scale = self.out_scale.as_ref().map(|s| upload(ctx, [s.len()], s));
        LoraFactors { a, b, scale: self.scale, out_scale }
    }

    /// Adds the update of one row to the base product.
    pub(super) fn apply(&self, x: &[f32], row_scale: f32, out: &mut [Expected]) {
        let scale = f64::from(self.scale) * f64::from(row_scale);
        for (r, a) in self.a.chunks(x.len()).enumerate() {
            let mut low = Expected::default();
            a.iter().zip(x).for_each(|(&a, &x)| low.add(f64::from(a) * f64::from(x)));
            for (sum, b) in out.iter_mut().zip(self.b.chunks(self.rank)) {
                let b = b[r];
                sum.value += scale * low.value * f64::from(b);
                sum.magnitude += (scale * low.magnitude * f64::from(b)).abs();
            }
        }
        for (sum, &s) in out.iter_mut().zip(self.out_scale.iter().flatten()) {
            sum.value *= f64::from(s);
            sum.magnitude *= f64::from(s);
            sum.extra *= f64::from(s);
        }
    }
}

const RANKS: [usize; 5] = [1, 3, 8, 16, 40];

/// Three layers over one input, the second with a bias and a residual, and adapters in slots 0 to 5: by rank and
/// element type, slot 5 with DoRA's factor; slot 6 stays empty. The third layer belongs to no module. Slot 1 leaves
/// module 1 alone, and slot 2 knows of module 0 only.
struct Wardrobe {
    weights: [HostWeight; 3],
    bias: Vec<f32>,
    adapters: Vec<[Option<HostFactors>; 2]>,
}

impl Wardrobe {
    fn random(random: &mut Random, format: WeightFormat, cols: usize, turn: usize) -> Self {
        let outs = [random.pick(&[16, 33, 70]), random.pick(&[1, 15, 64]), 17];
        let weights = outs.map(|out| HostWeight::random(random, format, out, cols));
        let dtypes = [DType::F32, DType::F16, DType::BF16];
        let adapters = (0..6)
            .map(|slot| {
                let mut factors = |module: usize| {
                    let dtype = dtypes[(slot + module + turn) % 3];
                    let rank = RANKS[(slot + 2 * module + turn) % RANKS.len()];
                    HostFactors::random(random, dtype, rank, [cols, outs[module]], slot == 5)
                };
                let (first, second) = (factors(0), factors(1));
                [Some(first), (slot != 1 && slot != 2).then_some(second)]
            })
            .collect();
        Wardrobe { weights, bias: random.normals(outs[1]), adapters }
    }

    fn table(&self, ctx: &mut Ctx) -> Arc<LoraTable> {
        let table = LoraTable::new(7, [0, 1].map(|i| [self.weights[i].rows, self.weights[i].cols]));
        for (slot, adapter) in self.adapters.iter().enumerate() {
            let known = if slot == 2 { &adapter[..1] } else { &adapter[..] };
            let modules: Vec<_> = known.iter().map(|f| f.as_ref().map(|f| f.upload(ctx))).collect();
            table.bind(slot as u32, LoraModules::from(modules)).unwrap();
        }
        table.bind(6, LoraModules::from(vec![self.adapters[0][0].as_ref().map(|f| f.upload(ctx))])).unwrap();
        table.clear(6).unwrap();
        Arc::new(table)
    }

    /// Runs the three layers; `None` for slots runs without adapters.
    fn run(
        &self,
        ctx: &mut Ctx,
        x: &[f32],
        residual: &[f32],
        rows: Option<(&[u32], &[f32])>,
    ) -> [Vec<f32>; 3] {
        let cols = self.weights[0].cols;
        let num_rows = x.len() / cols;
        let weights = self.weights.each_ref().map(|w| w.load(ctx));
        let bias = upload(ctx, [self.bias.len()], &self.bias);
        let residual = upload(ctx, [num_rows, self.bias.len()], residual);
        let table = self.table(ctx);
        let x = upload(ctx, [num_rows, cols], x);
        let operands = rows.map(|(slots, scales)| (upload_u32(ctx, slots), upload(ctx, [num_rows], scales)));
        let batch = operands.as_ref().map(|(slots, scales)| LoraBatch { table: &table, slots, scales });
        let projection = |i: usize, module: Option<u32>| Projection {
            weight: &weights[i],
            bias: (i == 1).then_some(&bias),
            module: module.map(ModuleIdx),
            residual: (i == 1).then_some(&residual),
        };
        let projections = [projection(0, Some(0)), projection(1, Some(1)), projection(2, None)];
        let outs = ctx.linear(&x, projections, batch.as_ref()).unwrap();
        outs.each_ref().map(|out| ctx.read_f32(out).unwrap())
    }

    fn expected(
        &self,
        subject: &Subject,
        i: usize,
        x: &[f32],
        residual: &[f32],
        (slots, scales): (&[u32], &[f32]),
    ) -> Vec<Expected> {
        let features = self.weights[i].rows;
        let base = product(subject, x, &self.weights[i]);
        // The activations of these cases are representable.
        let mut out: Vec<Expected> = base.iter().map(|(e, _)| Expected { extra: 0.0, ..*e }).collect();
        let rows = out.chunks_mut(features).zip(x.chunks(self.weights[i].cols));
        for (row, (out, x)) in rows.enumerate() {
            let adapter = self.adapters.get(slots[row] as usize).and_then(|a| a.get(i)?.as_ref());
            if let Some(factors) = adapter {
                factors.apply(x, scales[row], out);
            }
            if i == 1 {
                for (o, sum) in out.iter_mut().enumerate() {
                    sum.add(f64::from(self.bias[o]));
                    sum.add(f64::from(residual[row * features + o]));
                }
            }
        }
        out
    }
}

/// Slots of rows, runs of one slot side by side, as the engine orders them; at times in any order.
fn random_slots(random: &mut Random, rows: usize) -> Vec<u32> {
    let mut slots: Vec<u32> =
        (0..rows).map(|_| random.pick(&[0, 1, 2, 3, 4, 5, 6, NULL_SLOT, NULL_SLOT])).collect();
    if random.below(2) == 0 {
        slots.sort_unstable();
    }
    slots
}

fn each_batch(
    subject: &Subject,
    seed: u64,
    mut look: impl FnMut(&Wardrobe, &str, &[f32], &[f32], (&[u32], &[f32])),
) {
    let shapes = [
        (WeightFormat::F32, 7),
        (WeightFormat::F32, 100),
        (WeightFormat::F16, 33),
        (WeightFormat::BF16, 48),
        (WeightFormat::Q4_0, 96),
        (WeightFormat::Q8_0, 32),
        (WeightFormat::Q4_1, 160),
        (WeightFormat::Q4K, 256),
        (WeightFormat::Q6K, 512),
    ];
    let mut random = Random::new(seed);
    for (turn, (format, cols)) in shapes.into_iter().enumerate() {
        for rows in [1, 2, 5, 13, 33] {
            let wardrobe = Wardrobe::random(&mut random, format, cols, turn + rows);
            let x: Vec<f32> = (0..rows).flat_map(|_| representable(subject, &mut random, cols)).collect();
            let residual = random.normals(rows * wardrobe.bias.len());
            let slots = random_slots(&mut random, rows);
            let scales: Vec<f32> = (0..rows).map(|_| random.pick(&[1.0, 0.5, -2.0, 0.0])).collect();
            let what = format!(
                "{} with adapters: {format:?}, {cols} inputs, slots {slots:?}",
                subject.device.name()
            );
            look(&wardrobe, &what, &x, &residual, (&slots, &scales));
        }
    }
}

pub(super) fn mixed_slots(subject: &Subject) {
    each_batch(subject, 11, |wardrobe, what, x, residual, rows| {
        let mut ctx = subject.ctx(ARENA_BYTES);
        let outs = wardrobe.run(&mut ctx, x, residual, Some(rows));
        for (i, out) in outs.iter().enumerate() {
            subject.check(
                &format!("{what}, target {i}"),
                out,
                &wardrobe.expected(subject, i, x, residual, rows),
            );
        }
    });
}

/// Rows without an adapter, or whose adapter leaves the layer alone, are what they are without any adapters.
pub(super) fn other_rows_unchanged(subject: &Subject) {
    if !subject.promises.batch_invariant {
        return;
    }
    each_batch(subject, 12, |wardrobe, what, x, residual, rows| {
        let mut ctx = subject.ctx(ARENA_BYTES);
        let with = wardrobe.run(&mut ctx, x, residual, Some(rows));
        let without = wardrobe.run(&mut ctx, x, residual, None);
        for i in 0..3 {
            let features = wardrobe.weights[i].rows;
            let pairs = with[i].chunks(features).zip(without[i].chunks(features));
            for ((with, without), &slot) in pairs.zip(rows.0) {
                if wardrobe.adapters.get(slot as usize).and_then(|a| a.get(i)?.as_ref()).is_none() {
                    assert_eq!(bits(with), bits(without), "{what}, target {i}, a row of slot {slot}");
                }
            }
        }
    });
}

/// Every row of a mixed batch is the bits that it is alone.
pub(super) fn rows_alone(subject: &Subject) {
    each_batch(subject, 13, |wardrobe, what, x, residual, (slots, scales)| {
        let mut ctx = subject.ctx(ARENA_BYTES);
        let together = wardrobe.run(&mut ctx, x, residual, Some((slots, scales)));
        let (cols, width) = (wardrobe.weights[0].cols, wardrobe.bias.len());
        // A few rows of each batch: the first, the last, and some between.
        for row in (0..slots.len()).filter(|r| r % 5 == 0 || r + 1 == slots.len()) {
            let alone = wardrobe.run(
                &mut ctx,
                &x[row * cols..][..cols],
                &residual[row * width..][..width],
                Some((&slots[row..=row], &scales[row..=row])),
            );
            for (i, alone) in alone.iter().enumerate() {
                let features = wardrobe.weights[i].rows;
                let beside = &together[i][row * features..][..features];
                assert_eq!(bits(beside), bits(alone), "{what}, target {i}, row {row} alone");
            }
        }
    });
}
