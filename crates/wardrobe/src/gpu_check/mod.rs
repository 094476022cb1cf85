//! Whether a GPU computes what the CPU does, and how fast: on a machine where there is nothing but this program.

mod conformance;
mod goldens;
mod speed;
mod swaps;

use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;
use wardrobe_device_cuda::{CardLimits, CudaDevice, CudaOptions, Survey};
use wardrobe_hub::Cache;

use crate::bench::adapters::TemporaryFolder;
use crate::error::{Error, Result};

pub use conformance::CaseResult;
pub use goldens::Goldens;
pub use speed::SpeedResult;
pub use swaps::Swaps;

/// What to check.
#[derive(Debug, Clone)]
pub struct GpuCheckOptions {
    /// Which card.
    pub ordinal: usize,
    /// What all random operands follow from.
    pub seed: u64,
    /// Whether to time steps, which takes a model of several GB.
    pub speed: bool,
    /// `config.json` of the model whose steps are timed; `None` takes that of Llama-3.1-8B.
    pub config: Option<PathBuf>,
}

/// What was found.
#[derive(Debug, Clone, Serialize)]
pub struct GpuReport {
    /// The card's name.
    pub card: String,
    /// Its memory.
    pub memory_bytes: usize,
    /// Streaming multiprocessors.
    pub num_multiprocessors: u32,
    /// The driver's version of CUDA.
    pub driver_cuda: Option<u32>,
    /// NVRTC's version.
    pub nvrtc: Option<(u32, u32)>,
    /// Whether kernels were built in.
    pub has_kernels: bool,
    /// What random operands followed from.
    pub seed: u64,
    /// Seconds until the card was ready, its kernels compiled or read.
    pub open_s: f64,
    /// Each case of the conformance suite.
    pub cases: Vec<CaseResult>,
    /// A small model on the card and on the CPU.
    pub goldens: Goldens,
    /// Adapters that are replaced while requests run.
    pub swaps: Swaps,
    /// Bytes per second of a large copy, read and written.
    pub copy_bytes_per_second: f64,
    /// Operations per second of a large bf16 product.
    pub gemm_ops_per_second: Option<f64>,
    /// Times of steps.
    pub speed: Vec<SpeedResult>,
    /// Why there are no more of them.
    pub speed_error: Option<String>,
}

impl GpuReport {
    /// What did not hold, in words; empty if all did.
    pub fn failures(&self) -> Vec<String> {
        let cases = self.cases.iter().filter_map(|case| {
            let error = case.error.as_ref()?;
            Some(format!(
                "{}{}: {error}",
                case.name,
                if case.deterministic { " (deterministic)" } else { "" }
            ))
        });
        cases
            .chain(self.goldens.failures())
            .chain(self.swaps.failures())
            .chain(self.speed_error.clone())
            .collect()
    }
}

/// The model whose steps are timed.
const LLAMA_8B: &str = include_str!("../../../../benches/configs/llama-3.1-8b.json");
/// A small one, of the same parts, that the CPU computes quickly too.
const SMALL: &str = include_str!("small.json");

/// Checks a card.
///
/// # Errors
/// [`Error::Device`] if there is none, or it fails as a whole. What is only wrong is in the report.
pub fn gpu_check(options: &GpuCheckOptions, progress: &mut dyn FnMut(&str)) -> Result<GpuReport> {
    let survey = Survey::new();
    let started = std::time::Instant::now();
    let open = |deterministic| -> Result<CudaDevice> {
        let cache = Cache::open_default().ok().map(|cache| cache.root().join("kernels"));
        let ordinal = options.ordinal;
        Ok(CudaDevice::open(&CudaOptions { ordinal, deterministic, fp8_weights: false, cache })?)
    };
    progress("opening the card");
    let (fast, deterministic) = (open(false)?, open(true)?);
    let open_s = started.elapsed().as_secs_f64();
    let mut cases = Vec::new();
    for (device, is_deterministic) in [(&fast, false), (&deterministic, true)] {
        cases.extend(conformance::run(device, is_deterministic, options.seed, progress));
    }
    let folder = TemporaryFolder::new()?;
    let config = |name: &str, text: &str| -> Result<PathBuf> {
        let path = folder.path().join(name);
        let failed = |e| Error::Setting(format!("cannot write {}: {e}", path.display()));
        std::fs::write(&path, text).map_err(failed)?;
        Ok(path)
    };
    let small = config("small.json", SMALL)?;
    progress("a small model on the card and on the CPU");
    let goldens = goldens::run(&small, Arc::new(fast.clone()), options.seed)?;
    progress("adapters that are replaced under load");
    let swaps = swaps::run(&small, Arc::new(deterministic), options.seed)?;
    progress("the card's limits");
    let CardLimits { copy_bytes_per_second, gemm_ops_per_second } = fast.limits()?;
    let (mut speed, mut speed_error) = (Vec::new(), None);
    if options.speed {
        let path = match &options.config {
            Some(path) => path.clone(),
            None => config("llama-3.1-8b.json", LLAMA_8B)?,
        };
        let limits = CardLimits { copy_bytes_per_second, gemm_ops_per_second };
        let timed = speed::run(&path, Arc::new(fast.clone()), limits, &mut speed, progress);
        speed_error = timed.err().map(|error| format!("timing steps: {error}"));
    }
    let card = fast.card();
    Ok(GpuReport {
        card: card.name.clone(),
        memory_bytes: card.memory_bytes,
        num_multiprocessors: card.num_multiprocessors,
        driver_cuda: survey.driver_cuda,
        nvrtc: survey.nvrtc,
        has_kernels: survey.has_kernels,
        seed: options.seed,
        open_s,
        cases,
        goldens,
        swaps,
        copy_bytes_per_second,
        gemm_ops_per_second,
        speed,
        speed_error,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::DeviceSpec;
    use crate::model::ModelOptions;

    /// What is asked of a card holds for the CPU too, which is all that can be seen where there is none.
    #[test]
    fn the_checks_pass_on_the_cpu() {
        let folder = TemporaryFolder::new().unwrap();
        let small = folder.path().join("small.json");
        std::fs::write(&small, SMALL).unwrap();
        let options = ModelOptions { device: DeviceSpec::Cpu, ..ModelOptions::default() };
        let cpu = options.open_device().unwrap();
        let goldens = goldens::run(&small, cpu.clone(), 5).unwrap();
        assert_eq!(goldens.failures(), None);
        assert_eq!(goldens.same_choice, 1.0);
        let swaps = swaps::run(&small, cpu, 5).unwrap();
        assert_eq!(swaps.failures(), None);
        assert!(swaps.num_answers > 6, "{swaps:?}");
    }

    #[test]
    fn what_does_not_hold_is_a_failure() {
        let goldens = |largest_difference| Goldens {
            num_positions: 1,
            largest_difference,
            mean_difference: 0.0,
            same_choice: 1.0,
            bound: 0.1,
        };
        assert_eq!(goldens(0.05).failures(), None);
        assert!(goldens(0.2).failures().is_some() && goldens(f64::NAN).failures().is_some());
        let swaps = |num_answers, num_wrong, num_failed| {
            Swaps { num_replacements: 1, num_answers, num_wrong, num_failed, first_failure: None }.failures()
        };
        assert_eq!(swaps(9, 0, 0), None);
        assert!(swaps(9, 1, 0).is_some() && swaps(9, 0, 1).is_some() && swaps(0, 0, 0).is_some());
    }
}
