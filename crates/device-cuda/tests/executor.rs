//! What the device does with recorded steps, with memory, and with a card that is lost, on kernels that run on the CPU.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test fails by panicking.

mod support;

use std::sync::Arc;

use wardrobe_device::conformance::{Chunk, TinyBatch, TinyModel};
use wardrobe_device::{
    Ctx, CtxConfig, DType, Device, DeviceError, HostTensor, KvConfig, Result, StepLimits, WeightFormat,
};
use wardrobe_device_cuda::driver::emulated::EmulatedDriver;
use wardrobe_device_cuda::{CudaDevice, CudaOptions};

const LIMITS: StepLimits = StepLimits { max_rows: 64, max_seqs: 16, max_blocks: 64 };
const ARENA_BYTES: usize = 1 << 20;

/// A context with a model on a card of its own.
struct Rig {
    model: TinyModel,
    ctx: Ctx,
    driver: Arc<EmulatedDriver>,
    /// How often the model's code ran.
    forwards: usize,
}

fn card(memory_bytes: usize) -> Option<(Arc<EmulatedDriver>, Arc<dyn Device>)> {
    let driver = Arc::new(EmulatedDriver::new(support::kernels()?, memory_bytes));
    let device = CudaDevice::over(driver.clone(), &CudaOptions::default()).unwrap();
    Some((driver, Arc::new(device)))
}

fn rig() -> Option<Rig> {
    let (driver, device) = card(64 << 20)?;
    let mut ctx = Ctx::new(device, CtxConfig { arena_bytes: ARENA_BYTES, step: LIMITS }).unwrap();
    let model = TinyModel::new(&mut ctx, 5, DType::BF16);
    let mut rig = Rig { model, ctx, driver, forwards: 0 };
    // More than any other step needs: from here on no room grows, which would drop what was recorded.
    rig.plainly(&TinyBatch { chunks: vec![Chunk::of((0..64).collect(), 0, vec![1, 2, 3, 4])] });
    rig.plainly(&generation(&[0; 8], None));
    rig.forwards = 0;
    Some(rig)
}

impl Rig {
    /// Runs a step and reads its logits.
    fn step(&mut self, batch: &TinyBatch) -> Result<Vec<u32>> {
        let Rig { model, ctx, forwards, .. } = self;
        let logits = ctx.run_step(&batch.inputs(), &TinyModel::bounds(), |ctx, step| {
            *forwards += 1;
            model.forward(ctx, step)
        })?;
        Ok(ctx.read_f32(&logits)?.into_iter().map(f32::to_bits).collect())
    }

    /// The same step where nothing was recorded.
    fn plainly(&mut self, batch: &TinyBatch) -> Vec<u32> {
        self.ctx.forget_steps();
        let logits = self.step(batch).unwrap();
        self.ctx.forget_steps();
        logits
    }
}

/// A step of generation: sequences of one token each.
fn generation(tokens: &[u32], slot: Option<u32>) -> TinyBatch {
    let chunk = |(i, &token): (usize, &u32)| {
        let chunk = Chunk::of(vec![token], 0, vec![3 * i as u32]);
        Chunk { slot: slot.unwrap_or(chunk.slot), ..chunk }
    };
    TinyBatch { chunks: tokens.iter().enumerate().map(chunk).collect() }
}

#[test]
fn steps_are_recorded_at_their_second_sight_and_replayed() {
    let (Some(mut rig), Some(mut other)) = (rig(), rig()) else { return };
    // Three rows, padded to four; four of them share what is recorded.
    let batches = [[1, 2, 3].as_slice(), &[4, 5, 6], &[7, 8, 9, 10], &[11, 12, 13], &[14, 15, 16, 17]];
    let mut of_one_step = 0;
    for (turn, tokens) in batches.into_iter().enumerate() {
        let (batch, before) = (generation(tokens, None), rig.driver.launches());
        let got = rig.step(&batch).unwrap();
        assert_eq!(got, other.plainly(&batch), "turn {turn}");
        assert_eq!(rig.driver.num_graphs(), usize::from(turn > 0), "turn {turn}");
        assert_eq!(rig.forwards, (turn + 1).min(2), "turn {turn}");
        let launches = rig.driver.launches() - before;
        of_one_step = if turn == 0 { launches } else { of_one_step };
        assert_eq!(launches, of_one_step, "turn {turn}");
    }
    // Another shape is another graph; a prompt is none.
    for _ in 0..3 {
        let batch = generation(&[20, 21, 22, 23, 24], None);
        assert_eq!(rig.step(&batch).unwrap(), other.plainly(&batch));
        let prompt = TinyBatch { chunks: vec![Chunk::of(vec![1, 2, 3], 0, vec![9])] };
        assert_eq!(rig.step(&prompt).unwrap(), other.plainly(&prompt));
    }
    assert_eq!((rig.driver.num_graphs(), rig.forwards), (2, 2 + 2 + 3));
    // One row is not the last of five: each replay finds its own result.
    for tokens in [[1, 2, 3].as_slice(), &[20, 21, 22, 23, 24]] {
        let batch = generation(tokens, None);
        assert_eq!(rig.step(&batch).unwrap(), other.plainly(&batch));
    }
    assert_eq!(rig.forwards, 2 + 2 + 3);
}

#[test]
fn threads_in_any_order_give_the_same() {
    let (Some(mut rig), Some(mut other)) = (rig(), rig()) else { return };
    let prompt =
        TinyBatch { chunks: vec![Chunk { slot: 2, ..Chunk::of((0..40).collect(), 0, vec![1, 2, 3]) }] };
    for rig in [&mut rig, &mut other] {
        rig.model.bind_adapter(&mut rig.ctx, 2, 20, 1);
    }
    for (order, batch) in [(7, &prompt), (8, &generation(&[1, 2, 3], Some(2))), (9, &generation(&[4], None))]
    {
        other.driver.set_order(order);
        assert_eq!(rig.step(batch).unwrap(), other.step(batch).unwrap(), "order {order}");
    }
}

#[test]
fn recorded_steps_see_adapters_that_are_bound_later() {
    let (Some(mut rig), Some(mut other)) = (rig(), rig()) else { return };
    let batch = generation(&[1, 2, 3, 4], Some(2));
    let mut seen = Vec::new();
    // Ranks up to the bound of 16 that the first steps are made for.
    for (turn, (rank, seed)) in [(4, 1), (4, 2), (4, 3), (16, 4), (7, 5)].into_iter().enumerate() {
        for rig in [&mut rig, &mut other] {
            rig.model.bind_adapter(&mut rig.ctx, 2, rank, seed);
        }
        let got = rig.step(&batch).unwrap();
        assert_eq!(got, other.plainly(&batch), "turn {turn}");
        assert!(!seen.contains(&got), "the adapter of turn {turn} changes the result");
        seen.push(got);
        assert_eq!((rig.driver.num_graphs(), rig.forwards), (usize::from(turn > 0), (turn + 1).min(2)));
    }
    // A larger rank: what was recorded has no room for it.
    for rig in [&mut rig, &mut other] {
        rig.model.bind_adapter(&mut rig.ctx, 2, 40, 6);
    }
    for turn in 0..4 {
        assert_eq!(rig.step(&batch).unwrap(), other.plainly(&batch), "turn {turn} of rank 40");
        assert_eq!((rig.driver.num_graphs(), rig.forwards), (usize::from(turn > 0), 2 + (turn + 1).min(2)));
    }
    // And back: what has room for much has room for little.
    for rig in [&mut rig, &mut other] {
        rig.model.bind_adapter(&mut rig.ctx, 2, 4, 1);
    }
    assert_eq!(rig.step(&batch).unwrap(), seen[0]);
    assert_eq!((rig.driver.num_graphs(), rig.forwards), (1, 4));
}

#[test]
fn recorded_steps_are_told_of_other_rope_tables() {
    let (Some(mut rig), Some(mut other)) = (rig(), rig()) else { return };
    // Several tokens of one sequence, one a step, so that positions matter.
    let token = |position: usize| TinyBatch {
        chunks: vec![Chunk { rope_idx: 1, ..Chunk::of(vec![position as u32 + 1], position, vec![4]) }],
    };
    for position in 0..4 {
        assert_eq!(rig.step(&token(position)).unwrap(), other.plainly(&token(position)));
    }
    assert_eq!((rig.driver.num_graphs(), rig.forwards), (1, 2));
    let before = rig.step(&token(4)).unwrap();
    assert_eq!(before, other.plainly(&token(4)));
    rig.model.rebind_rope(&mut rig.ctx, 16.0).unwrap();
    other.model.exchange_rope(&mut other.ctx, 16.0);
    let after = rig.step(&token(4)).unwrap();
    assert_eq!(after, other.plainly(&token(4)));
    assert_ne!(after, before, "the table counts");
    assert_eq!((rig.driver.num_graphs(), rig.forwards), (1, 2));
}

fn is_out_of(result: Result<impl Sized>, purpose: &str) {
    match result.map(|_| ()) {
        Err(DeviceError::OutOfMemory { what, .. }) => assert_eq!(what, purpose),
        other => panic!("{other:?} instead of no memory for {purpose}"),
    }
}

#[test]
fn too_little_memory_is_an_error_and_nothing_leaks() {
    let Some((driver, device)) = card(8 << 20) else { return };
    assert_eq!((driver.used_bytes(), device.free_bytes()), (0, Some(8 << 20)));
    let config = |arena_bytes| CtxConfig { arena_bytes, step: LIMITS };
    is_out_of(Ctx::new(device.clone(), config(9 << 20)), "the arena");
    is_out_of(Ctx::new(device.clone(), config((8 << 20) - 64)), "the step's inputs");
    assert_eq!(driver.used_bytes(), 0);

    let ctx = Ctx::new(device.clone(), config(1 << 20)).unwrap();
    let of_ctx = driver.used_bytes();
    let bytes = vec![0; 2048 * 1024 * 4];
    let host = HostTensor { format: WeightFormat::F32, rows: 2048, cols: 1024, bytes: &bytes };
    is_out_of(device.load_weight(&host), "a weight");
    // Some layers fit, and the others do not.
    let kv = |num_layers| KvConfig {
        num_layers,
        num_blocks: 63,
        num_kv_heads: 1,
        head_dim: 64,
        dtype: DType::BF16,
    };
    is_out_of(ctx.kv_cache(kv(64)), "the key-value cache");
    assert_eq!(driver.used_bytes(), of_ctx);
    let cache = ctx.kv_cache(kv(2)).unwrap();
    assert_eq!(device.free_bytes(), Some((8 << 20) - driver.used_bytes() as u64));
    assert!(driver.used_bytes() > of_ctx);
    drop(cache);
    assert_eq!(driver.used_bytes(), of_ctx);
    drop(ctx);
    assert_eq!(driver.used_bytes(), 0);
}

#[test]
fn a_step_without_room_fails_and_the_next_one_runs() {
    let (Some((driver, device)), Some(mut other)) = (card(64 << 20), rig()) else { return };
    let mut ctx = Ctx::new(device, CtxConfig { arena_bytes: ARENA_BYTES, step: LIMITS }).unwrap();
    let model = TinyModel::new(&mut ctx, 5, DType::BF16);
    let mut rig = Rig { model, ctx, driver, forwards: 0 };
    let prompt = TinyBatch { chunks: vec![Chunk::of((0..40).collect(), 0, vec![1, 2, 3])] };
    // All but a little is taken: room for what ops keep meanwhile is not to be had.
    let taken = rig.ctx.device().free_bytes().unwrap() as usize - 4096;
    let filler = rig.ctx.device().alloc("a test's filler", taken).unwrap();
    is_out_of(rig.step(&prompt), "room for ops");
    drop(filler);
    assert_eq!(rig.step(&prompt).unwrap(), other.plainly(&prompt));
}

#[test]
fn everything_is_given_back() {
    let Some(Rig { model, mut ctx, driver, .. }) = rig() else { return };
    let of_model = driver.used_bytes();
    for slot in 0..3 {
        model.bind_adapter(&mut ctx, slot, 8, u64::from(slot));
    }
    let with_adapters = driver.used_bytes();
    assert!(with_adapters > of_model);
    let mut rig = Rig { model, ctx, driver, forwards: 0 };
    // Those without adapters last: room for adapters grows at their first step.
    for slot in [Some(0), Some(1), None] {
        for _ in 0..3 {
            rig.step(&generation(&[1, 2], slot)).unwrap();
        }
    }
    assert_eq!(rig.driver.num_graphs(), 2, "with adapters and without");
    // A second context over the same device.
    let step = LIMITS;
    let second = Ctx::new(rig.ctx.device().clone(), CtxConfig { arena_bytes: ARENA_BYTES, step }).unwrap();
    let Rig { model, ctx, driver, .. } = rig;
    // In this order the model's memory outlives the context that made it.
    drop(ctx);
    assert_eq!(driver.num_graphs(), 0);
    drop(model);
    drop(second);
    assert_eq!(driver.used_bytes(), 0);
}

/// What a person would do with a device until it fails; then that it stays failed, and that all of it can be dropped.
fn use_until_lost(lose: impl FnOnce(&EmulatedDriver), during_recording: bool, what: &str) {
    let Some(mut rig) = rig() else { return };
    let is_lost = |result: Result<()>| {
        assert!(matches!(result, Err(DeviceError::Lost { .. })), "{what}: {result:?}");
    };
    rig.model.bind_adapter(&mut rig.ctx, 1, 4, 1);
    let batch = generation(&[1, 2, 3], Some(1));
    let first = if during_recording {
        rig.step(&batch).unwrap();
        let Rig { model, ctx, driver, .. } = &mut rig;
        let recording = ctx.run_step(&batch.inputs(), &TinyModel::bounds(), |ctx, step| {
            lose(driver);
            model.forward(ctx, step)
        });
        recording.map(|_| ())
    } else {
        lose(&rig.driver);
        (0..50).try_for_each(|_| rig.step(&batch).map(|_| ()))
    };
    is_lost(first);
    for _ in 0..3 {
        is_lost(rig.step(&batch).map(|_| ()));
    }
    let prompt = TinyBatch { chunks: vec![Chunk::of(vec![1, 2, 3], 0, vec![9])] };
    is_lost(rig.step(&prompt).map(|_| ()));
    let device = rig.ctx.device().clone();
    is_lost(device.alloc("a test's memory", 64).map(|_| ()));
    let host = HostTensor { format: WeightFormat::F32, rows: 1, cols: 1, bytes: &[0; 4] };
    is_lost(device.load_weight(&host).map(|_| ()));
    let config = CtxConfig { arena_bytes: 64, step: LIMITS };
    is_lost(Ctx::new(device.clone(), config).map(|_| ()));
    assert_eq!(device.free_bytes(), Some(0), "{what}");
    let Rig { model, ctx, driver, .. } = rig;
    drop((ctx, model, device));
    assert_eq!((driver.used_bytes(), driver.num_graphs()), (0, 0), "{what}");
}

#[test]
fn a_lost_card_is_an_error_from_then_on() {
    // In the first step, in the one that is recorded, and in those that are replayed.
    for launches in [0, 1, 7, 31, 50, 90, 150, 300] {
        use_until_lost(|driver| driver.lose_after(launches), false, &format!("after {launches} launches"));
    }
    use_until_lost(|driver| driver.lose_after(0), true, "while a step was recorded");
}
