//! The machine: what it is and what it can do.

use serde::Serialize;

use crate::device::{CpuOptions, open_cpu};
use crate::error::Result;

/// Sizes of the buffers that are read: about a small model's weights, and more than last-level caches hold.
const READ_BUFFER_BYTES: [usize; 2] = [96 << 20, 768 << 20];

/// What it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Machine {
    /// The processor's name, if the system tells it.
    pub cpu: String,
    /// Threads that the system offers.
    pub num_threads: usize,
    /// Load of the system (runnable tasks, averaged over a minute) when the run began, if the system tells it.
    pub load_average: String,
}

impl Machine {
    /// This machine.
    pub fn this() -> Self {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let name = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        Machine {
            cpu: name.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned()),
            num_threads: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            load_average: read("/proc/loadavg").split(' ').next().unwrap_or_default().to_owned(),
        }
    }
}

/// How fast a buffer is read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Read {
    /// Its size.
    pub buffer_bytes: usize,
    /// Bytes a second.
    pub bytes_per_second: f64,
}

/// What it can do: the best that was measured in this run.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Limits {
    /// The device that measured, with its instruction set and threads.
    pub device: String,
    /// Read bandwidth by size of the buffer, ascending.
    pub read: Vec<Read>,
    /// int8 operations a second.
    pub int8_ops_per_second: f64,
    /// f32 operations a second.
    pub f32_ops_per_second: f64,
}

impl Limits {
    /// Measures.
    ///
    /// # Errors
    /// Those of the device, as for want of memory.
    pub fn measure(cpu: CpuOptions) -> Result<Self> {
        let device = open_cpu(cpu)?;
        let measured = device.measure_limits(&READ_BUFFER_BYTES)?;
        let read = |r: &wardrobe_device::cpu::ReadBandwidth| Read {
            buffer_bytes: r.buffer_bytes,
            bytes_per_second: r.bytes_per_second,
        };
        Ok(Limits {
            device: wardrobe_device::Device::name(&device),
            read: measured.read.iter().map(read).collect(),
            int8_ops_per_second: measured.int8_ops_per_second,
            f32_ops_per_second: measured.f32_ops_per_second,
        })
    }

    /// Keeps the better of two measurements of one machine.
    pub fn best(mut self, other: &Self) -> Self {
        for (ours, theirs) in self.read.iter_mut().zip(&other.read) {
            ours.bytes_per_second = ours.bytes_per_second.max(theirs.bytes_per_second);
        }
        self.int8_ops_per_second = self.int8_ops_per_second.max(other.int8_ops_per_second);
        self.f32_ops_per_second = self.f32_ops_per_second.max(other.f32_ops_per_second);
        self
    }

    /// Bandwidth of memory proper: of the largest buffer.
    pub fn memory_bytes_per_second(&self) -> f64 {
        self.read.last().map_or(0.0, |r| r.bytes_per_second)
    }

    /// Bandwidth where the last-level cache may help: of the smallest buffer.
    pub fn cached_bytes_per_second(&self) -> f64 {
        self.read.first().map_or(0.0, |r| r.bytes_per_second)
    }
}
