//! scratch
use std::sync::Arc;
use wardrobe_device::cpu::{CpuDevice, CpuOptions};
use wardrobe_device::*;
use wardrobe_train::*;
struct P;
impl Observer for P {
    fn event(&mut self, e: &Event<'_>) {
        match e {
            Event::Step(m) => println!(
                "{} loss {:.4} gn {:.3} {:.2}s {:.0} tok/s",
                m.step,
                m.loss,
                m.grad_norm,
                m.seconds,
                m.tokens as f64 / m.seconds
            ),
            Event::Started { plan, .. } => println!("{plan:?}"),
            e => println!("{e:?}"),
        }
    }
}
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let n = |i: usize, d: usize| a.get(i).and_then(|s| s.parse().ok()).unwrap_or(d);
    let (s, bs, steps, threads) = (n(2, 256), n(3, 4), n(4, 4), n(5, 2));
    let device: Arc<dyn Device> = Arc::new(CpuDevice::new(CpuOptions::default()).unwrap());
    let files = wardrobe_formats::ModelFiles::open(std::path::Path::new(&a[1])).unwrap();
    let mut ctx = Ctx::new(
        device.clone(),
        CtxConfig { arena_bytes: 0, step: StepLimits { max_rows: 1, max_seqs: 1, max_blocks: 1 } },
    )
    .unwrap();
    let model = wardrobe_models::load(&mut ctx, &files, &Default::default()).unwrap();
    drop(files);
    let mut x = 1u64;
    let mut r = || {
        x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (x >> 33) as u32 % 40000
    };
    let examples: Vec<Example> = (0..bs * steps)
        .map(|_| Example { token_ids: (0..s + 1).map(|_| r()).collect(), loss: vec![true; s + 1] })
        .collect();
    let cfg =
        TrainConfig { batch_size: BatchSize::Examples(bs), threads: Some(threads), ..Default::default() };
    let t = Trainer::new(device, model, cfg).unwrap();
    t.train(&Examples::new(examples), None, &mut P).unwrap();
    println!(
        "{}",
        std::fs::read_to_string("/proc/self/status")
            .unwrap()
            .lines()
            .find(|l| l.starts_with("VmHWM"))
            .unwrap()
    );
}
