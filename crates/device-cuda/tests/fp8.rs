//! Weights that are rounded to 8 bits when they are loaded, on kernels that run on the CPU.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test fails by panicking.

mod support;

use std::sync::Arc;

use half::{bf16, f16};
use wardrobe_device::{Ctx, CtxConfig, Device, HostTensor, Projection, StepLimits, WeightFormat};
use wardrobe_device_cuda::driver::emulated::EmulatedDriver;
use wardrobe_device_cuda::{CudaDevice, CudaOptions};

const ROWS: usize = 40;
const COLS: usize = 200;

fn ctx(fp8_weights: bool) -> Option<Ctx> {
    let driver = EmulatedDriver::new(support::kernels()?, 64 << 20);
    let options = CudaOptions { fp8_weights, ..CudaOptions::default() };
    let device: Arc<dyn Device> = Arc::new(CudaDevice::over(Arc::new(driver), &options).unwrap());
    let step = StepLimits { max_rows: 1, max_seqs: 1, max_blocks: 1 };
    Some(Ctx::new(device, CtxConfig { arena_bytes: 1 << 20, step }).unwrap())
}

/// From -1 to 1, some of them small.
fn values(seed: u32, len: usize) -> Vec<f32> {
    let mut state = seed;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let value = (state >> 8) as f32 / (1 << 23) as f32 - 1.0;
            if state >> 28 == 0 { value * 1e-3 } else { value }
        })
        .collect()
}

/// The bytes of a matrix, and its values as they hold them.
fn stored(format: WeightFormat, values: &[f32]) -> (Vec<u8>, Vec<f32>) {
    let (mut bytes, mut held) = (Vec::new(), Vec::new());
    for &v in values {
        match format {
            WeightFormat::F16 => {
                bytes.extend(f16::from_f32(v).to_le_bytes());
                held.push(f16::from_f32(v).to_f32());
            }
            WeightFormat::BF16 => {
                bytes.extend(bf16::from_f32(v).to_le_bytes());
                held.push(bf16::from_f32(v).to_f32());
            }
            _ => {
                bytes.extend(v.to_le_bytes());
                held.push(v);
            }
        }
    }
    (bytes, held)
}

/// How far a weight may be off: half a unit in the last of e4m3's places, 2^-4 of it, or of its smallest steps, the row's largest
/// magnitude being 448 (Micikevicius et al., arXiv 2209.05433).
fn bounds(weights: &[f32]) -> Vec<f64> {
    let of_row = |row: &[f32]| -> Vec<f64> {
        let scale = f64::from(row.iter().fold(0f32, |m, w| m.max(w.abs()))) / 448.0;
        row.iter().map(|w| (f64::from(w.abs()) / 16.0).max(scale * 2f64.powi(-10)) * 1.000_001).collect()
    };
    weights.chunks(COLS).flat_map(of_row).collect()
}

#[test]
fn layers_are_within_the_rounding_of_their_weights() {
    let Some(mut ctx) = ctx(true) else { return };
    for format in [WeightFormat::F32, WeightFormat::F16, WeightFormat::BF16] {
        let (bytes, weights) = stored(format, &values(1, ROWS * COLS));
        let host = HostTensor { format, rows: ROWS, cols: COLS, bytes: &bytes };
        let weight = ctx.load_weight(&host).unwrap();
        assert!(ctx.device().rounds_weights());
        assert_eq!(weight.format(), format, "what the host had");
        assert!(weight.size_bytes() < ROWS * 264, "{} bytes", weight.size_bytes());
        let bounds = bounds(&weights);
        let mut read = vec![0.0; ROWS * COLS];
        ctx.device().dequantise_rows(&weight, 0, &mut read).unwrap();
        for ((got, want), bound) in read.iter().zip(&weights).zip(&bounds) {
            assert!(f64::from((got - want).abs()) <= *bound, "{format:?}: {got} for {want}");
        }
        assert_ne!(read, weights, "{format:?}: nothing was rounded");
        // Few rows and many take different ways.
        for num_rows in [1, 12, 70] {
            let x_values = values(2, num_rows * COLS);
            let x = ctx.upload_f32("a test's operand", [num_rows, COLS], &x_values).unwrap();
            let got = ctx.scratch(|ctx| {
                let layer = Projection { weight: &weight, bias: None, module: None, residual: None };
                let [out] = ctx.linear(&x, [layer], None)?;
                ctx.read_f32(&out)
            });
            for (i, got) in got.unwrap().into_iter().enumerate() {
                let (row, feature) = (i / ROWS, i % ROWS);
                let (mut exact, mut bound) = (0.0, 1e-6);
                for col in 0..COLS {
                    let (x, at) = (f64::from(x_values[row * COLS + col]), feature * COLS + col);
                    let product = x * f64::from(weights[at]);
                    exact += product;
                    // And what the products round of x and of the dequantised weight.
                    bound += x.abs() * bounds[at] + 8.5e-3 * product.abs();
                }
                let error = (f64::from(got) - exact).abs();
                assert!(error <= bound, "{format:?}, {num_rows} rows: {got} for {exact}, within {bound}");
            }
        }
    }
}

#[test]
fn quantised_weights_stay_as_they_are() {
    let (Some(mut rounding), Some(mut plain)) = (ctx(true), ctx(false)) else { return };
    let bytes: Vec<u8> = (0..4 * 34 * 2).map(|i| if i % 34 < 2 { 0x2c } else { (i * 37) as u8 }).collect();
    let host = HostTensor { format: WeightFormat::Q8_0, rows: 4, cols: 64, bytes: &bytes };
    let [got, want] = [&mut rounding, &mut plain].map(|ctx| {
        let weight = ctx.load_weight(&host).unwrap();
        let mut read = vec![0.0; 4 * 64];
        ctx.device().dequantise_rows(&weight, 0, &mut read).unwrap();
        read
    });
    assert_eq!(got, want);
}
