//! The cases that every device has to pass, with operands that no test has seen.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;
use wardrobe_device::conformance::{CASES, Promises, Subject, with_seed};
use wardrobe_device_cuda::CudaDevice;

/// A case's outcome.
#[derive(Debug, Clone, Serialize)]
pub struct CaseResult {
    /// Its name.
    pub name: String,
    /// Whether the device was a deterministic one.
    pub deterministic: bool,
    /// How long it took.
    pub seconds: f64,
    /// What did not hold; `None` if it passed.
    pub error: Option<String>,
}

pub(super) fn run(
    device: &CudaDevice,
    deterministic: bool,
    seed: u64,
    progress: &mut dyn FnMut(&str),
) -> Vec<CaseResult> {
    let promises = Promises { batch_invariant: deterministic, ..Promises::CUDA };
    let subject = Subject { device: Arc::new(device.clone()), promises };
    let cases = CASES.iter().map(|(name, case)| {
        progress(&format!("{name}{}", if deterministic { ", deterministic" } else { "" }));
        let started = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| with_seed(seed, || case(&subject))));
        CaseResult {
            name: (*name).to_owned(),
            deterministic,
            seconds: started.elapsed().as_secs_f64(),
            error: outcome.err().map(|panic| words(panic.as_ref())),
        }
    });
    cases.collect()
}

/// What a case said when it failed.
fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it failed");
    // A comparison of long vectors says enough at its beginning.
    text.chars().take(400).collect()
}
