//! Speed of the costly ops beside what the processor could do: linear layers, there and back, and attention, there and
//! back, with the sizes of SmolLM2-135M. Nothing else should run on the machine meanwhile.
//!
//! `cargo run --release -p wardrobe-device --example op_speed -- [THREADS] [ROWS] [CONTEXT]`

use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

use wardrobe_device::cpu::{CpuDevice, CpuOptions, ISA_ENV};
use wardrobe_device::{
    AttentionMemo, AttentionSpec, BLOCK_SIZE, BlockMemo, Ctx, CtxConfig, DType, HostTensor, KvConfig,
    MemoUse, NULL_SLOT, Projection, Seed, StepBounds, StepInputs, StepLimits, Tensor, WeightFormat,
};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const ROUNDS: usize = 7;
const HEADS: usize = 9;
const KV_HEADS: usize = 3;
const HEAD_DIM: usize = 64;
const HIDDEN: usize = 576;
const INNER: usize = 1536;

/// Median over the rounds, in seconds, of `f`, which tells its own times.
fn medians<const N: usize>(mut f: impl FnMut() -> Result<[f64; N]>) -> Result<[f64; N]> {
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        times.push(f()?);
    }
    let mut median = [0.0; N];
    for (i, median) in median.iter_mut().enumerate() {
        let mut of_one: Vec<f64> = times.iter().map(|t| t[i]).collect();
        of_one.sort_by(f64::total_cmp);
        *median = of_one[ROUNDS / 2];
    }
    Ok(median)
}

fn seconds<T>(f: impl FnOnce() -> wardrobe_device::Result<T>) -> Result<f64> {
    let start = Instant::now();
    f()?;
    Ok(start.elapsed().as_secs_f64())
}

/// The same on every run, between -1 and 1.
fn noise(len: usize) -> Vec<f32> {
    let mut state = 12345_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

struct Bench {
    ctx: Ctx,
    threads: usize,
    /// Multiply-adds a second and thread that are possible.
    f32_limit: f64,
    int8_limit: f64,
}

impl Bench {
    fn show(&self, what: &str, seconds: f64, multiply_adds: f64, limit: f64) {
        let rate = multiply_adds / seconds / self.threads as f64;
        println!("{what:44} {:8.2} ms {:7.1} G/s {:5.0} %", seconds * 1e3, rate / 1e9, 100.0 * rate / limit);
    }

    fn persistent(&self, shape: [usize; 2]) -> Result<Tensor> {
        Ok(self.ctx.persistent("an operand", shape, DType::F32)?)
    }

    /// Quantised weights multiply activations of two bytes: two products each.
    fn linear(&mut self, format: WeightFormat, rows: usize, [cols, out]: [usize; 2]) -> Result<()> {
        let values = noise(out * cols);
        let bytes: Vec<u8> = match format {
            WeightFormat::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            // Any byte is a quant; scales of 2^-6 everywhere.
            _ => (0..out * format.row_bytes(cols).ok_or("no row of that length")?)
                .map(|i| match i % format.row_bytes(32).unwrap_or(1) {
                    0 => 0,
                    1 => 0x24,
                    k if format == WeightFormat::Q4_1 && k < 4 => 0,
                    _ => (values[i % values.len()] * 127.0) as i8 as u8,
                })
                .collect(),
        };
        let weight = self.ctx.load_weight(&HostTensor { format, rows: out, cols, bytes: &bytes })?;
        let x = self.ctx.upload_f32("x", [rows, cols], &noise(rows * cols))?;
        let seed = self.ctx.upload_f32("gradient", [rows, out], &noise(rows * out))?;
        let d_x = self.persistent([rows, cols])?;
        let projection = Projection { weight: &weight, bias: None, module: None, residual: None };
        let ctx = &mut self.ctx;
        let [there, back] = medians(|| {
            let mut times = [0.0; 2];
            ctx.scratch(|ctx| {
                let start = Instant::now();
                let ([y], tape) = ctx.record(|ctx| ctx.linear(&x, [projection], None))?;
                times[0] = start.elapsed().as_secs_f64();
                let start = Instant::now();
                ctx.backward(tape, Seed { value: &y, gradient: seed.clone() }, &x, &d_x, &[])?;
                times[1] = start.elapsed().as_secs_f64();
                Ok(())
            })?;
            Ok(times)
        })?;
        let macs = (rows * cols * out) as f64;
        let (products, limit) =
            if format == WeightFormat::F32 { (1.0, self.f32_limit) } else { (2.0, self.int8_limit) };
        self.show(&format!("linear {format:?} [{rows}, {cols}] x {out}"), there, products * macs, limit);
        self.show("  backward", back, macs, self.f32_limit);
        Ok(())
    }

    fn attention(&mut self, len: usize) -> Result<()> {
        let num_blocks = len.div_ceil(BLOCK_SIZE);
        let bounds = StepBounds {
            vocab_size: 1,
            max_positions: len,
            num_rope_tables: 1,
            num_slots: 1,
            num_blocks,
            block_size: BLOCK_SIZE,
        };
        let step = self.ctx.stage(
            &StepInputs {
                token_ids: vec![0; len],
                positions: (0..len as u32).collect(),
                seq_starts: vec![0, len as u32],
                block_tables: (0..num_blocks as u32).collect(),
                max_blocks: num_blocks,
                rope_idx: vec![0; len],
                lora_slots: vec![NULL_SLOT; len],
                lora_scales: vec![1.0; len],
                context_lens: vec![len as u32],
                logit_rows: vec![0],
            },
            &bounds,
        )?;
        let (q_size, kv_size) = (HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM);
        let mut upload = |width: usize| self.ctx.upload_f32("an operand", [len, width], &noise(len * width));
        let (q, k, v, seed) = (upload(q_size)?, upload(kv_size)?, upload(kv_size)?, upload(q_size)?);
        let config = KvConfig {
            num_layers: 1,
            num_blocks,
            num_kv_heads: KV_HEADS,
            head_dim: HEAD_DIM,
            dtype: DType::F32,
        };
        let mut kv = self.ctx.kv_cache(config)?;
        let attention =
            AttentionMemo { out: self.persistent([len, q_size])?, lse: self.persistent([len, HEADS])? };
        let mut memo = BlockMemo { attention, linears: None };
        let d_q = self.persistent([len, q_size])?;
        let spec = AttentionSpec {
            num_heads: HEADS,
            num_kv_heads: KV_HEADS,
            head_dim: HEAD_DIM,
            scale: 0.125,
            window: None,
            softcap: None,
        };
        let ctx = &mut self.ctx;
        let [there, back] = medians(|| {
            let mut attend = |ctx: &mut Ctx, use_| {
                ctx.with_memo(&mut memo, use_, |ctx| {
                    ctx.paged_attention([&q, &k, &v], &spec, kv.layer_mut(0)?, &step)
                })
            };
            let there = seconds(|| ctx.scratch(|ctx| attend(ctx, MemoUse::Keep).map(drop)))?;
            let back = seconds(|| {
                ctx.scratch(|ctx| {
                    let (out, tape) = ctx.record(|ctx| attend(ctx, MemoUse::Recall))?;
                    ctx.backward(tape, Seed { value: &out, gradient: seed.clone() }, &q, &d_q, &[])
                })
            })?;
            Ok([there, back])
        })?;
        // Over half of the square: two products there, five back.
        let macs = (q_size * len) as f64 * (len + 1) as f64 / 2.0;
        self.show(&format!("attention over {len}"), there, 2.0 * macs, self.f32_limit);
        self.show("  backward", back, 5.0 * macs, self.f32_limit);
        Ok(())
    }
}

fn main() -> Result<()> {
    let given: Vec<usize> =
        std::env::args().skip(1).map(|arg| arg.parse()).collect::<std::result::Result<_, _>>()?;
    let rows = given.get(1).copied().unwrap_or(512);
    let len = given.get(2).copied().unwrap_or(4096);
    let isa = std::env::var(ISA_ENV).ok().map(|isa| isa.parse()).transpose()?;
    let device = CpuDevice::new(CpuOptions { threads: given.first().copied(), isa, op_by_op: false })?;
    let threads = device.num_threads();
    let limits = device.measure_limits(&[])?;
    let arena_bytes = 4 * (len * 12 * HIDDEN).max(rows * 4 * INNER) + (16 << 20);
    let limit = StepLimits { max_rows: len, max_seqs: 1, max_blocks: len.div_ceil(BLOCK_SIZE) };
    println!(
        "{}; multiply-adds a second and thread, and the share of what is possible",
        wardrobe_device::Device::name(&device)
    );
    let ctx = Ctx::new(Arc::new(device), CtxConfig { arena_bytes, step: limit })?;
    let of_one = |ops_per_second: f64| ops_per_second / 2.0 / threads as f64;
    let mut bench = Bench {
        ctx,
        threads,
        f32_limit: of_one(limits.f32_ops_per_second),
        int8_limit: of_one(limits.int8_ops_per_second),
    };
    for format in [WeightFormat::Q4_1, WeightFormat::Q4_0, WeightFormat::Q8_0, WeightFormat::F32] {
        bench.linear(format, rows, [HIDDEN, INNER])?;
        bench.linear(format, rows, [INNER, HIDDEN])?;
    }
    bench.attention(len)
}
