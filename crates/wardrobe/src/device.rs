//! Devices by name: the only place that knows concrete ones.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use wardrobe_device::Device;
use wardrobe_device::cpu::CpuDevice;
pub use wardrobe_device::cpu::{CpuOptions, Isa};
use wardrobe_device_cuda::driver::cuda::num_cards;
use wardrobe_device_cuda::{CudaDevice, CudaOptions};
use wardrobe_hub::Cache;

use crate::error::{Error, Result};

/// Which device to compute on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum DeviceSpec {
    /// The best that this machine has: the first GPU, if it can be used, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// A GPU of NVIDIA's.
    Cuda {
        /// Which one, from 0.
        ordinal: usize,
    },
}

impl FromStr for DeviceSpec {
    type Err = String;

    fn from_str(s: &str) -> std::result::Result<Self, String> {
        let unknown = || format!("unknown device {s:?}: auto, cpu, cuda or cuda:N");
        match s.split_once(':') {
            None if s == "auto" => Ok(DeviceSpec::Auto),
            None if s == "cpu" => Ok(DeviceSpec::Cpu),
            None if s == "cuda" => Ok(DeviceSpec::Cuda { ordinal: 0 }),
            Some(("cuda", ordinal)) => {
                ordinal.parse().map(|ordinal| DeviceSpec::Cuda { ordinal }).map_err(|_| unknown())
            }
            _ => Err(unknown()),
        }
    }
}

impl fmt::Display for DeviceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceSpec::Auto => f.write_str("auto"),
            DeviceSpec::Cpu => f.write_str("cpu"),
            DeviceSpec::Cuda { ordinal: 0 } => f.write_str("cuda"),
            DeviceSpec::Cuda { ordinal } => write!(f, "cuda:{ordinal}"),
        }
    }
}

/// How devices are set up.
#[derive(Debug, Clone, Default)]
pub struct DeviceOptions {
    /// The CPU, if it is chosen. An instruction set that is not given there can be forced by the environment variable
    /// `WARDROBE_ISA`.
    pub cpu: CpuOptions,
    /// On a GPU: a sequence's logits do not depend on what else is computed beside it, as they never do on the CPU. It costs speed.
    pub deterministic: bool,
    /// On a GPU: matrices of floats are rounded to 8 bits (e4m3, with a scale a row), which halves what steps read of them. Quantised
    /// ones stay as they are.
    pub fp8: bool,
    /// Where kernels that were compiled for a GPU are kept; `None` for a folder in the cache.
    pub kernel_cache: Option<PathBuf>,
}

/// Opens a device.
///
/// # Errors
/// [`Error::Device`] if the device is not there, [`Error::Setting`] for an unknown instruction set, or for what the CPU cannot do.
pub fn open_device(spec: DeviceSpec, options: &DeviceOptions) -> Result<Arc<dyn Device>> {
    match spec {
        DeviceSpec::Cpu => open_cpu_for(options),
        DeviceSpec::Cuda { ordinal } => Ok(Arc::new(open_cuda(ordinal, options)?)),
        DeviceSpec::Auto => match num_cards() {
            Ok(_) => match open_cuda(0, options) {
                Ok(device) => Ok(Arc::new(device)),
                Err(error) => {
                    tracing::warn!(%error, "the GPU cannot be used; the CPU computes");
                    open_cpu_for(options)
                }
            },
            Err(_) => open_cpu_for(options),
        },
    }
}

fn open_cuda(ordinal: usize, options: &DeviceOptions) -> Result<CudaDevice> {
    // Without a cache, kernels are compiled at each start.
    let cache = || Cache::open_default().ok().map(|cache| cache.root().join("kernels"));
    let cache = options.kernel_cache.clone().or_else(cache);
    let DeviceOptions { deterministic, fp8, .. } = *options;
    Ok(CudaDevice::open(&CudaOptions { ordinal, deterministic, fp8_weights: fp8, cache })?)
}

fn open_cpu_for(options: &DeviceOptions) -> Result<Arc<dyn Device>> {
    if options.fp8 {
        return Err(Error::Setting(
            "weights in fp8 are for a GPU; the CPU reads them as they are stored".to_owned(),
        ));
    }
    Ok(Arc::new(open_cpu(options.cpu)?))
}

/// The CPU as [`open_device`] opens it.
pub(crate) fn open_cpu(mut cpu: CpuOptions) -> Result<CpuDevice> {
    let forced = std::env::var(wardrobe_device::cpu::ISA_ENV).ok().filter(|v| !v.is_empty());
    if let (None, Some(name)) = (cpu.isa, forced) {
        cpu.isa = Some(name.parse().map_err(Error::Setting)?);
    }
    Ok(CpuDevice::new(cpu)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_refuses_fp8() {
        let options = DeviceOptions { fp8: true, ..DeviceOptions::default() };
        let error = open_device(DeviceSpec::Cpu, &options).unwrap_err().to_string();
        assert!(error.contains("fp8") && error.contains("GPU"), "{error}");
    }

    #[test]
    fn devices_by_name() {
        for (name, spec) in [
            ("auto", DeviceSpec::Auto),
            ("cpu", DeviceSpec::Cpu),
            ("cuda", DeviceSpec::Cuda { ordinal: 0 }),
            ("cuda:3", DeviceSpec::Cuda { ordinal: 3 }),
        ] {
            assert_eq!(name.parse(), Ok(spec));
            assert_eq!(spec.to_string(), name);
        }
        for wrong in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "cpu:0", "auto:1", "CUDA"] {
            assert!(wrong.parse::<DeviceSpec>().is_err(), "{wrong:?}");
        }
    }
}
