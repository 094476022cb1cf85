//! The recording device: equal to plain runs for honest models, and unequal, or an error, for others.

// Helpers of tests fail as tests do.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use wardrobe_device::conformance::{Chunk, TinyBatch, TinyModel};
use wardrobe_device::cpu::{CpuDevice, CpuOptions};
use wardrobe_device::fake_async::FakeAsyncDevice;
use wardrobe_device::{
    Ctx, CtxConfig, DType, Device, DeviceError, Result, Step, StepInputs, StepLimits, Tensor,
};

fn open(device: Arc<dyn Device>) -> (Ctx, TinyModel) {
    let step = StepLimits { max_rows: 64, max_seqs: 8, max_blocks: 64 };
    let mut ctx = Ctx::new(device, CtxConfig { arena_bytes: 2 << 20, step }).unwrap();
    let model = TinyModel::new(&mut ctx, 1, DType::F16);
    (ctx, model)
}

fn plain() -> Arc<dyn Device> {
    Arc::new(CpuDevice::new(CpuOptions { threads: Some(1), op_by_op: true, ..Default::default() }).unwrap())
}

/// Every step under a known key is a replay.
fn recording() -> Arc<dyn Device> {
    Arc::new(FakeAsyncDevice::new(plain()))
}

fn run_step(
    ctx: &mut Ctx,
    inputs: &StepInputs,
    forward: impl FnOnce(&mut Ctx, &Step) -> Result<Tensor>,
) -> Result<Tensor> {
    ctx.run_step(inputs, &TinyModel::bounds(), forward)
}

/// A prompt of six tokens and one of three, then three steps that decode both; `turn` varies all contents.
fn batches(turn: u32) -> Vec<TinyBatch> {
    let blocks = [vec![11 * turn % 80], vec![(11 * turn + 1) % 80]];
    let chunk = |seq: usize, start: usize, len: usize| Chunk {
        slot: (turn + seq as u32) % 2,
        scale: 1.0 + turn as f32 * 0.25,
        rope_idx: (turn + seq as u32) % 2,
        ..Chunk::of(
            (0..len).map(|i| (turn * 31 + (start + i) as u32 * 7 + seq as u32) % 97).collect(),
            start,
            blocks[seq].clone(),
        )
    };
    let mut batches = vec![TinyBatch { chunks: vec![chunk(0, 0, 6), chunk(1, 0, 3)] }];
    batches.extend((0..3).map(|i| TinyBatch { chunks: vec![chunk(0, 6 + i, 1), chunk(1, 3 + i, 1)] }));
    batches
}

type Forward = fn(&mut TinyModel, &mut Ctx, &Step, &StepInputs) -> Result<Tensor>;

/// The logits of several rounds of equal keys, adapters rebound in the same slots in between, and how often the model
/// was called.
fn run(device: Arc<dyn Device>, forward: Forward) -> (Vec<Vec<f32>>, usize) {
    let (mut ctx, mut model) = open(device);
    let mut calls = 0;
    let mut logits = Vec::new();
    for turn in 0..3 {
        model.bind_adapter(&mut ctx, 0, 4, u64::from(turn));
        model.bind_adapter(&mut ctx, 1, 3 + turn as usize, 100 + u64::from(turn));
        for batch in batches(turn) {
            let inputs = batch.inputs();
            let out = run_step(&mut ctx, &inputs, |ctx, step| {
                calls += 1;
                forward(&mut model, ctx, step, &inputs)
            });
            logits.push(ctx.read_f32(&out.unwrap()).unwrap());
        }
    }
    (logits, calls)
}

fn bits(logits: &[Vec<f32>]) -> Vec<Vec<u32>> {
    logits.iter().map(|l| l.iter().map(|v| v.to_bits()).collect()).collect()
}

#[test]
fn replayed_steps_equal_plain_ones() {
    let honest: Forward = |model, ctx, step, _| model.forward(ctx, step);
    let (want, plain_calls) = run(plain(), honest);
    let (got, recorded_calls) = run(recording(), honest);
    assert!(want.iter().flatten().all(|v| v.is_finite()));
    assert_eq!(bits(&want), bits(&got));
    // Twelve steps under two keys: the model itself ran once for each.
    assert_eq!((plain_calls, recorded_calls), (12, 2));
    // The contents mattered: no two steps gave the same.
    for (i, a) in want.iter().enumerate() {
        assert!(want[..i].iter().all(|b| a != b));
    }
}

/// The CPU keeps steps of one row a sequence; the longer ones it runs op by op.
#[test]
fn steps_that_the_cpu_keeps_equal_plain_ones() {
    let honest: Forward = |model, ctx, step, _| model.forward(ctx, step);
    let (want, _) = run(plain(), honest);
    for threads in 1..4 {
        let options = CpuOptions { threads: Some(threads), ..Default::default() };
        let (got, calls) = run(Arc::new(CpuDevice::new(options).unwrap()), honest);
        assert_eq!(bits(&want), bits(&got), "{threads} threads");
        // Three prompts, and the first of nine steps of one key.
        assert_eq!(calls, 4);
    }
}

#[test]
fn steps_that_the_cpu_forgot_are_kept_anew() {
    // More lengths of block tables, and so more keys, than are kept.
    let lengths = || (1..=60).chain(1..=60).chain(51..=60);
    let run = |device: Arc<dyn Device>| {
        let (mut ctx, mut model) = open(device);
        let mut calls = 0;
        let logits: Vec<Vec<f32>> = lengths()
            .zip(0..)
            .map(|(max_blocks, turn)| {
                let mut inputs =
                    TinyBatch { chunks: vec![Chunk::of(vec![turn % 97], 0, vec![turn % 80])] }.inputs();
                inputs.max_blocks = max_blocks;
                inputs.block_tables.truncate(max_blocks);
                let out = run_step(&mut ctx, &inputs, |ctx, step| {
                    calls += 1;
                    model.forward(ctx, step)
                });
                ctx.read_f32(&out.unwrap()).unwrap()
            })
            .collect();
        (logits, calls)
    };
    let (want, _) = run(plain());
    let (got, calls) = run(Arc::new(CpuDevice::new(CpuOptions::default()).unwrap()));
    assert_eq!(bits(&want), bits(&got));
    assert_eq!(calls, 120, "the last ten were kept");
}

#[test]
fn the_cpu_keeps_no_step_that_exchanges_data_with_the_host() {
    let (mut ctx, mut model) = open(Arc::new(CpuDevice::new(CpuOptions::default()).unwrap()));
    model.bind_adapter(&mut ctx, 0, 4, 0);
    model.bind_adapter(&mut ctx, 1, 4, 1);
    let inputs = batches(0)[1].inputs();
    let mut sums = Vec::new();
    for _ in 0..3 {
        let out = run_step(&mut ctx, &inputs, |ctx, step| {
            let logits = model.forward(ctx, step)?;
            sums.push(ctx.read_f32(&logits)?.iter().sum::<f32>());
            Ok(logits)
        });
        assert!(out.is_ok());
    }
    assert_eq!(sums, [sums[0]; 3]);
}

#[test]
fn a_model_that_uses_host_data_beside_the_key_is_caught() {
    let cheating: Forward = |model, ctx, step, inputs| {
        let logits = model.forward(ctx, step)?;
        // Looks at a token id on the host, which a replay will not do again.
        if inputs.token_ids.first().is_some_and(|t| t % 2 == 0) {
            ctx.silu_mul(&logits, &logits)
        } else {
            Ok(logits)
        }
    };
    let (want, _) = run(plain(), cheating);
    let (got, _) = run(recording(), cheating);
    // Steps that were recorded agree; later ones under their keys do not.
    assert_eq!(bits(&want[..2]), bits(&got[..2]));
    assert_ne!(bits(&want), bits(&got));
}

#[test]
fn replays_need_no_more_memory_than_plain_steps() {
    let peak = |device: Arc<dyn Device>| {
        let (mut ctx, mut model) = open(device);
        // Every length is a key of its own; each is recorded right after another was replayed.
        for round in 0..2 {
            for len in 1..30 {
                let chunk = Chunk::of(vec![(len + round) as u32; len], 0, vec![0, 1]);
                let batch = TinyBatch { chunks: vec![chunk] };
                for _ in 0..2 {
                    model.run(&mut ctx, &batch);
                }
            }
        }
        ctx.arena_peak_bytes()
    };
    assert_eq!(peak(plain()), peak(recording()));
}

#[test]
fn a_result_that_a_replay_could_not_find_is_refused() {
    for device in [plain(), recording()] {
        let (mut ctx, mut model) = open(device);
        model.bind_adapter(&mut ctx, 0, 4, 0);
        model.bind_adapter(&mut ctx, 1, 4, 1);
        let inputs = batches(0)[0].inputs();
        let kept = ctx.upload_f32("no scratch", [2, 97], &[0.0; 2 * 97]).unwrap();
        let persistent = run_step(&mut ctx, &inputs, |_, _| Ok(kept.clone()));
        let view = run_step(&mut ctx, &inputs, |ctx, step| model.forward(ctx, step)?.rows(1, 2));
        for out in [persistent, view] {
            assert!(matches!(out, Err(DeviceError::Invalid { .. })), "{out:?}");
        }
    }
}

#[test]
fn exchanging_data_with_the_host_in_a_recorded_step_is_an_error() {
    let (mut ctx, mut model) = open(recording());
    model.bind_adapter(&mut ctx, 0, 4, 0);
    model.bind_adapter(&mut ctx, 1, 4, 1);
    let inputs = batches(0)[0].inputs();
    let steps: [fn(&mut Ctx, &Tensor) -> Result<()>; 4] = [
        |ctx, logits| ctx.read_f32(logits).map(drop),
        |ctx, _| ctx.upload_f32("host data", [1], &[1.0]).map(drop),
        |ctx, logits| ctx.sample(logits, &vec![Default::default(); 9]).map(drop),
        |ctx, logits| {
            let rows = [wardrobe_device::LogprobRow { target: 0, top: 0 }; 9];
            ctx.logprobs(logits, &rows).map(drop)
        },
    ];
    for exchange in steps {
        let out = run_step(&mut ctx, &inputs, |ctx, step| {
            let logits = model.forward(ctx, step)?;
            exchange(ctx, &logits)?;
            Ok(logits)
        });
        assert!(matches!(out, Err(DeviceError::Invalid { .. })), "{out:?}");
    }
    // What failed was not recorded, and the context goes on.
    let mut called = false;
    let out = run_step(&mut ctx, &inputs, |ctx, step| {
        called = true;
        model.forward(ctx, step)
    });
    assert!(called);
    assert!(ctx.read_f32(&out.unwrap()).unwrap().iter().all(|v| v.is_finite()));
}

#[test]
fn an_adapter_that_does_not_fit_its_layers_is_refused() {
    let (mut ctx, mut model) = open(recording());
    model.bind_adapter(&mut ctx, 0, 4, 0);
    model.bind_adapter(&mut ctx, 1, 4, 1);
    let inputs = batches(0)[0].inputs();
    let step = |ctx: &mut Ctx, model: &mut TinyModel| {
        let out = run_step(ctx, &inputs, |ctx, step| model.forward(ctx, step)).unwrap();
        ctx.read_f32(&out).unwrap()
    };
    let before = step(&mut ctx, &mut model);
    let refused = model.bind_misfit(&mut ctx, 0);
    assert!(matches!(refused, Err(DeviceError::Shape { .. })), "{refused:?}");
    // The slot holds what it held.
    assert_eq!(step(&mut ctx, &mut model), before);
}

#[test]
fn no_step_refers_to_a_rope_table_that_was_exchanged() {
    let run = |device: Arc<dyn Device>| {
        let (mut ctx, mut model) = open(device);
        let mut logits = Vec::new();
        for (turn, factor) in [4.0, 9.0, 2.0].into_iter().enumerate() {
            model.exchange_rope(&mut ctx, factor);
            for _ in 0..2 {
                let chunk = Chunk { rope_idx: 1, ..Chunk::of(vec![turn as u32 + 3], 0, vec![7]) };
                let prompt = Chunk { rope_idx: 1, ..Chunk::of(vec![5, 6], 1, vec![7]) };
                for chunk in [chunk, prompt, Chunk { rope_idx: 1, ..Chunk::of(vec![9], 3, vec![7]) }] {
                    let inputs = TinyBatch { chunks: vec![chunk] }.inputs();
                    let out = run_step(&mut ctx, &inputs, |ctx, step| model.forward(ctx, step));
                    logits.push(ctx.read_f32(&out.unwrap()).unwrap());
                }
            }
        }
        logits
    };
    let want = run(plain());
    assert!(want[2] != want[8] && want[8] != want[14], "the tables matter");
    for device in [recording(), Arc::new(CpuDevice::new(CpuOptions::default()).unwrap())] {
        assert_eq!(bits(&want), bits(&run(device)));
    }
}
