//! Linear layers of a whole small model on few rows, as one step of generation has them: how a step's time grows with its
//! rows, where the first waits for the weights' bytes. Nothing else should run on the machine meanwhile.
//!
//! `cargo run --release -p wardrobe-device --example few_rows -- [THREADS] [FORMAT]`

use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

use wardrobe_device::cpu::{CpuDevice, CpuOptions, ISA_ENV};
use wardrobe_device::{Ctx, CtxConfig, HostTensor, Projection, StepLimits, Weight, WeightFormat};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const ROUNDS: usize = 41;
const HIDDEN: usize = 576;
const KV: usize = 192;
const INNER: usize = 1536;
const LAYERS: usize = 30;
const VOCAB: usize = 49152;

fn weight(ctx: &mut Ctx, format: WeightFormat, rows: usize, cols: usize) -> Result<Weight> {
    let mut state = 12345_u32;
    let len = rows * format.row_bytes(cols).ok_or("no row of that length")?;
    let block = format.row_bytes(32).unwrap_or(1);
    // Any byte is a quant; small scales everywhere.
    let bytes: Vec<u8> = (0..len)
        .map(|i| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            match i % block {
                0 | 2 => 0,
                1 | 3 => 0x24,
                _ => (state >> 24) as u8,
            }
        })
        .collect();
    Ok(ctx.load_weight(&HostTensor { format, rows, cols, bytes: &bytes })?)
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let threads = args.next().map(|arg| arg.parse()).transpose()?;
    let format = match args.next().as_deref() {
        None | Some("q4_1") => WeightFormat::Q4_1,
        Some("q8_0") => WeightFormat::Q8_0,
        Some("q4_0") => WeightFormat::Q4_0,
        Some(other) => return Err(format!("no such format here: {other}").into()),
    };
    let isa = std::env::var(ISA_ENV).ok().map(|isa| isa.parse()).transpose()?;
    let device = CpuDevice::new(CpuOptions { threads, isa, op_by_op: false })?;
    println!("{}, {format:?}", wardrobe_device::Device::name(&device));
    let limit = StepLimits { max_rows: 64, max_seqs: 64, max_blocks: 1 };
    let mut ctx = Ctx::new(Arc::new(device), CtxConfig { arena_bytes: 64 << 20, step: limit })?;
    let mut layers = Vec::new();
    for _ in 0..LAYERS {
        let shapes = [
            (HIDDEN, HIDDEN),
            (KV, HIDDEN),
            (KV, HIDDEN),
            (HIDDEN, HIDDEN),
            (INNER, HIDDEN),
            (INNER, HIDDEN),
            (HIDDEN, INNER),
        ];
        let all = shapes.map(|(rows, cols)| weight(&mut ctx, format, rows, cols));
        layers.push(all.into_iter().collect::<Result<Vec<_>>>()?);
    }
    let head = weight(&mut ctx, format, VOCAB, HIDDEN)?;
    let bytes = head.size_bytes() + layers.iter().flatten().map(Weight::size_bytes).sum::<usize>();
    let plain = |weight| Projection { weight, bias: None, module: None, residual: None };
    let mut first = 0.0;
    for rows in [1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16, 24, 32] {
        let x: Vec<f32> = (0..rows * HIDDEN).map(|i| ((i * 7919) % 1000) as f32 / 500.0 - 1.0).collect();
        let x = ctx.upload_f32("x", [rows, HIDDEN], &x)?;
        let inner: Vec<f32> = (0..rows * INNER).map(|i| ((i * 7919) % 1000) as f32 / 500.0 - 1.0).collect();
        let inner = ctx.upload_f32("inner", [rows, INNER], &inner)?;
        let mut times = Vec::new();
        for _ in 0..ROUNDS {
            let start = Instant::now();
            ctx.scratch(|ctx| {
                for layer in &layers {
                    let [q, k, v, o, gate, up, down] = layer.as_slice() else { continue };
                    let [..] = ctx.linear(&x, [plain(q), plain(k), plain(v)], None)?;
                    let [_] = ctx.linear(&x, [plain(o)], None)?;
                    let [..] = ctx.linear(&x, [plain(gate), plain(up)], None)?;
                    let [_] = ctx.linear(&inner, [plain(down)], None)?;
                }
                let [_] = ctx.linear(&x, [plain(&head)], None)?;
                Ok(())
            })?;
            times.push(start.elapsed().as_secs_f64());
        }
        times.sort_by(f64::total_cmp);
        let median = times[ROUNDS / 2] * 1e3;
        if rows == 1 {
            first = median;
        }
        println!(
            "{rows:3} rows {median:8.2} ms, {:6.1} GB/s, {:5.2} ms a further row",
            bytes as f64 / median / 1e6,
            (median - first) / (rows.max(2) - 1) as f64
        );
    }
    Ok(())
}
