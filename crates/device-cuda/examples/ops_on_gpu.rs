//! The conformance suite on a card, then the time that ops take in the shapes of Llama-3.1-8B.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use wardrobe_device::conformance::{CASES, Promises, Subject};
use wardrobe_device_cuda::{CudaDevice, CudaOptions};

fn main() {
    let started = Instant::now();
    let names: Vec<String> = std::env::args().skip(1).collect();
    let cache = std::env::var_os("KERNEL_CACHE").map(Into::into);
    let options = CudaOptions { cache, ..CudaOptions::default() };
    let device = match CudaDevice::open(&options) {
        Ok(device) => device,
        Err(error) => {
            eprintln!("{error}");
            std::process::exit(1);
        }
    };
    println!("opened in {:.1} s: {:?} {:?}", started.elapsed().as_secs_f64(), device.card(), device.memory_info());
    for deterministic in [false, true] {
        let options = CudaOptions { deterministic, ..options.clone() };
        let device = CudaDevice::open(&options).unwrap();
        let promises = Promises { activation_steps: None, tolerance: 8.5e-3, batch_invariant: deterministic, trains: true };
        let subject = Subject { device: Arc::new(device), promises };
        for (name, case) in CASES.iter().filter(|(name, _)| names.is_empty() || names.iter().any(|n| n == name)) {
            let started = Instant::now();
            let outcome = catch_unwind(AssertUnwindSafe(|| case(&subject)));
            let verdict = if outcome.is_ok() { "ok" } else { "FAILED" };
            println!("deterministic {deterministic} {name}: {verdict} {:.2} s", started.elapsed().as_secs_f64());
        }
    }
}
