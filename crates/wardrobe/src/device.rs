//! Devices by name: the only place that knows concrete ones.

use std::str::FromStr;
use std::sync::Arc;

use wardrobe_device::Device;
use wardrobe_device::cpu::CpuDevice;
pub use wardrobe_device::cpu::{CpuOptions, Isa};

use crate::error::{Error, Result};

/// Which device to compute on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum DeviceSpec {
    /// The best that this machine has.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
}

impl FromStr for DeviceSpec {
    type Err = String;

    fn from_str(s: &str) -> std::result::Result<Self, String> {
        match s {
            "auto" => Ok(DeviceSpec::Auto),
            "cpu" => Ok(DeviceSpec::Cpu),
            _ => Err(format!("unknown device {s:?}: auto or cpu")),
        }
    }
}

/// Opens a device. `cpu` is how the CPU is set up if it is chosen; an instruction set that is not given there can be
/// forced by the environment variable `WARDROBE_ISA`.
///
/// # Errors
/// [`Error::Device`] if the device is not there, [`Error::Setting`] for an unknown instruction set.
pub fn open_device(spec: DeviceSpec, cpu: CpuOptions) -> Result<Arc<dyn Device>> {
    match spec {
        DeviceSpec::Auto | DeviceSpec::Cpu => Ok(Arc::new(open_cpu(cpu)?)),
    }
}

/// The CPU as [`open_device`] opens it.
pub(crate) fn open_cpu(mut cpu: CpuOptions) -> Result<CpuDevice> {
    let forced = std::env::var(wardrobe_device::cpu::ISA_ENV).ok().filter(|v| !v.is_empty());
    if let (None, Some(name)) = (cpu.isa, forced) {
        cpu.isa = Some(name.parse().map_err(Error::Setting)?);
    }
    Ok(CpuDevice::new(cpu)?)
}
