//! The CPU device passes the conformance cases on every instruction set that this machine has, with and without the
//! recording device between.

// Helpers of tests fail as tests do.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use wardrobe_device::conformance::{Promises, Subject, fingerprint};
use wardrobe_device::conformance_suite;
use wardrobe_device::cpu::{CpuDevice, CpuOptions, Isa};
use wardrobe_device::fake_async::FakeAsyncDevice;
use wardrobe_device::{Ctx, CtxConfig, HostTensor, Projection, StepLimits, WeightFormat};

fn subject(isa: Isa, threads: usize) -> Subject {
    let device =
        CpuDevice::new(CpuOptions { threads: Some(threads), isa: Some(isa), ..Default::default() }).unwrap();
    let promises = Promises {
        activation_steps: Some(2032),
        tolerance: 1e-5,
        batch_invariant: true,
        trains: true,
        f16_saturates: false,
    };
    Subject { device: Arc::new(device), promises }
}

fn recording(subject: Subject) -> Subject {
    let promises = Promises { trains: false, ..subject.promises };
    Subject { device: Arc::new(FakeAsyncDevice::new(subject.device)), promises }
}

mod plain {
    use super::*;
    conformance_suite!(Isa::available().into_iter().map(|isa| subject(isa, 2)));
}

mod recorded {
    use super::*;
    conformance_suite!([recording(subject(Isa::best(), 1))]);
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    for isa in Isa::available() {
        let one = fingerprint(&subject(isa, 1));
        for threads in [2, 3] {
            assert!(one == fingerprint(&subject(isa, threads)), "{isa} with {threads} threads");
        }
    }
}

#[test]
fn tiles_give_the_bits_of_vectors() {
    let all = Isa::available();
    if !all.contains(&Isa::Amx) {
        eprintln!("SKIPPED: this machine has no AMX");
        return;
    }
    assert!(fingerprint(&subject(Isa::Amx, 1)) == fingerprint(&subject(Isa::Avx512, 1)));
}

#[test]
fn tiles_give_the_bits_of_vectors_for_all_left_overs() {
    if !Isa::available().contains(&Isa::Amx) {
        eprintln!("SKIPPED: this machine has no AMX");
        return;
    }
    let product = |isa, format, block_bytes: usize, rows: usize, cols: usize| {
        const FEATURES: usize = 150;
        let options = CpuOptions { isa: Some(isa), threads: Some(1), ..CpuOptions::default() };
        let step = StepLimits { max_rows: rows, max_seqs: 1, max_blocks: 1 };
        let config = CtxConfig { arena_bytes: 1 << 20, step };
        let mut ctx = Ctx::new(Arc::new(CpuDevice::new(options).unwrap()), config).unwrap();
        // Quants of all values; the upper byte of each 16-bit scale makes it a small number.
        let bytes: Vec<u8> =
            (0..FEATURES * cols / 32 * block_bytes)
                .map(|i| {
                    if i % block_bytes < 4 {
                        [7, 0x20, 3, 0x1c][i % block_bytes]
                    } else {
                        (i * 37 % 251) as u8
                    }
                })
                .collect();
        let weight = ctx.load_weight(&HostTensor { format, rows: FEATURES, cols, bytes: &bytes }).unwrap();
        let x: Vec<f32> = (0..rows * cols).map(|i| ((i * 7919 % 1009) as f32 - 500.0) / 300.0).collect();
        let y = ctx.scratch(|ctx| {
            let x = ctx.upload_f32("x", [rows, cols], &x)?;
            let target = Projection { weight: &weight, bias: None, module: None, residual: None };
            let y = ctx.linear(&x, [target], None)?;
            ctx.read_f32(&y[0])
        });
        y.unwrap().into_iter().map(f32::to_bits).collect::<Vec<_>>()
    };
    // Blocks of a last chunk from one to four, in one tile, two and five, the last of them full, half and in between.
    for (format, block_bytes) in
        [(WeightFormat::Q4_0, 18), (WeightFormat::Q4_1, 20), (WeightFormat::Q8_0, 34)]
    {
        for rows in [6, 16, 22, 24, 31, 40, 72] {
            for cols in [32, 64, 96, 128, 160, 192, 224, 576] {
                let tiles = product(Isa::Amx, format, block_bytes, rows, cols);
                let vectors = product(Isa::Avx512, format, block_bytes, rows, cols);
                assert!(tiles == vectors, "{format:?}, {rows} rows of {cols}");
            }
        }
    }
}

#[test]
fn instruction_sets_with_fused_multiply_add_agree() {
    let fused: Vec<Isa> = Isa::available().into_iter().filter(|isa| *isa != Isa::Portable).collect();
    if let [first, others @ ..] = &fused[..] {
        let expected = fingerprint(&subject(*first, 2));
        for isa in others {
            assert!(expected == fingerprint(&subject(*isa, 2)), "{first} and {isa}");
        }
    }
    if fused.len() < 2 {
        println!("SKIPPED: this machine has {} such instruction sets", fused.len());
    }
}
