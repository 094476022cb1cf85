//! What an engine over a model takes in memory, told before it is taken.

use wardrobe_device::{BLOCK_SIZE, KvConfig};
use wardrobe_models::arena_bytes;

use crate::error::{Error, Result};
use crate::model::{EngineOptions, Model};

/// Keys and values where they share the host's memory with all else.
const DEFAULT_KV_BYTES: usize = 512 << 20;

/// Memory of a model and an engine over it. Tokenizer, tables and the program itself come on top: some ten MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryPlan {
    /// The model's weights.
    pub weight_bytes: u64,
    /// Keys and values.
    pub kv_bytes: u64,
    /// Tokens whose keys and values fit, over all sequences.
    pub kv_tokens: u64,
    /// Intermediate results of one step.
    pub arena_bytes: u64,
    /// The most that loaded adapters may take, those on the device included: the CPU computes with the same memory.
    pub max_adapters_bytes: u64,
}

/// Memory that the system says can be taken without swapping out others: the least of what the machine has
/// (`MemAvailable`) and what the process's control group leaves. `None` where the system does not tell.
pub fn available_memory_bytes() -> Option<u64> {
    let read = |path| std::fs::read_to_string(path).ok();
    let machine = available_bytes(&read("/proc/meminfo")?);
    let group = group_bytes(
        read("/sys/fs/cgroup/memory.max").as_deref(),
        read("/sys/fs/cgroup/memory.current").as_deref(),
        read("/sys/fs/cgroup/memory.stat").as_deref(),
    );
    machine.into_iter().chain(group).min()
}

fn available_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// What a control group leaves: its limit less what it uses, of which cached files can be dropped.
fn group_bytes(max: Option<&str>, current: Option<&str>, stat: Option<&str>) -> Option<u64> {
    let max: u64 = max?.trim().parse().ok()?;
    let current: u64 = current?.trim().parse().ok()?;
    let cached = stat.unwrap_or("").lines().find_map(|line| line.strip_prefix("inactive_file "));
    let cached: u64 = cached.and_then(|bytes| bytes.trim().parse().ok()).unwrap_or(0);
    Some(max.saturating_sub(current.saturating_sub(cached)))
}

impl MemoryPlan {
    /// What an engine takes besides the open model, and cannot do without.
    pub fn engine_bytes(&self) -> u64 {
        self.kv_bytes.saturating_add(self.arena_bytes)
    }

    /// Refuses a plan for more than is free.
    pub(crate) fn check(&self, available_bytes: Option<u64>) -> Result<()> {
        match available_bytes {
            Some(available_bytes) if self.engine_bytes() > available_bytes => {
                Err(Error::Memory { kv_bytes: self.kv_bytes, arena_bytes: self.arena_bytes, available_bytes })
            }
            _ => Ok(()),
        }
    }
}

impl Model {
    /// Bytes for keys and values in an engine with these options.
    pub(crate) fn kv_bytes(&self, options: &EngineOptions) -> usize {
        let chosen = || match self.device().free_bytes() {
            None => DEFAULT_KV_BYTES,
            Some(free) => {
                let max_rows = options.config.max_batch_tokens;
                // What ops need while they run is taken later, as they need it; adapters as they come.
                let others = arena_bytes(self.decoder().as_ref(), max_rows) as u64
                    + options.config.max_adapters_device_bytes.unwrap_or(0);
                usize::try_from(free.saturating_sub(others) / 10 * 9).unwrap_or(usize::MAX)
            }
        };
        options.kv_bytes.unwrap_or_else(chosen)
    }

    /// What [`Model::engine`] with these options would take.
    pub fn memory_plan(&self, options: &EngineOptions) -> MemoryPlan {
        let config = self.config();
        let kv = KvConfig {
            num_layers: config.num_layers,
            num_blocks: 1,
            num_kv_heads: config.num_kv_heads,
            head_dim: config.head_dim,
            dtype: self.kv_dtype(options),
        };
        let num_blocks = self.kv_bytes(options) / kv.block_bytes().max(1);
        let max_rows = options.config.max_batch_tokens;
        MemoryPlan {
            weight_bytes: self.decoder().weight_bytes() as u64,
            kv_bytes: num_blocks.saturating_mul(kv.block_bytes()) as u64,
            kv_tokens: num_blocks.saturating_mul(BLOCK_SIZE) as u64,
            arena_bytes: arena_bytes(self.decoder().as_ref(), max_rows) as u64,
            max_adapters_bytes: options.config.max_adapters_host_bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_systems_words_are_read() {
        assert_eq!(available_bytes("MemTotal: 9 kB\nMemAvailable:    3 kB\n"), Some(3072));
        assert_eq!(available_bytes("MemTotal: 9 kB\n"), None);
        assert_eq!(group_bytes(Some("100\n"), Some("70\n"), Some("anon 9\ninactive_file 20\n")), Some(50));
        assert_eq!(group_bytes(Some("100\n"), Some("170\n"), None), Some(0));
        assert_eq!(group_bytes(Some("max\n"), Some("70\n"), None), None);
        assert_eq!(group_bytes(None, None, None), None);
    }

    #[test]
    fn a_plan_for_more_than_is_free_is_refused() {
        let plan = MemoryPlan {
            weight_bytes: 1000,
            kv_bytes: 60,
            kv_tokens: 1,
            arena_bytes: 40,
            max_adapters_bytes: 1000,
        };
        assert!(plan.check(Some(100)).is_ok() && plan.check(None).is_ok());
        let refused = plan.check(Some(99)).unwrap_err();
        assert!(matches!(refused, Error::Memory { kv_bytes: 60, available_bytes: 99, .. }), "{refused}");
    }
}
