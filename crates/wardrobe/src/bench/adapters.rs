//! Adapters of random numbers, as large as real ones: what they answer does not matter here.

use std::path::{Path, PathBuf};

use wardrobe_formats::peft::{LoraModule, PeftContents, PeftLimits, is_head, write_peft};
use wardrobe_formats::{AdapterConfig, AdapterTensor, PeftAdapter};
use wardrobe_models::Decoder;

use crate::error::{Error, Result};

/// An adapter of rank `rank` for every linear layer but the head ("all-linear"), in f32 as PEFT saves it.
pub(crate) fn random_adapter(decoder: &dyn Decoder, rank: usize, seed: u64) -> Result<PeftAdapter> {
    let (config, modules) = random_contents(decoder, rank, seed)?;
    let contents = contents(&config, &modules);
    let limits = PeftLimits { max_rank: rank.max(PeftLimits::default().max_rank), ..PeftLimits::default() };
    Ok(PeftAdapter::from_contents(&format!("random adapter {seed}"), &contents, &limits)?)
}

/// Writes such an adapter to `dir`.
pub(super) fn write_random(decoder: &dyn Decoder, rank: usize, seed: u64, dir: &Path) -> Result<()> {
    let (config, modules) = random_contents(decoder, rank, seed)?;
    Ok(write_peft(dir, &contents(&config, &modules), true)?)
}

/// f32 operations that an adapter adds to each row.
pub(super) fn f32_ops_per_row(decoder: &dyn Decoder, rank: usize) -> f64 {
    let features = |m: &&wardrobe_models::Module| (m.weight.rows() + m.weight.cols()) as f64;
    2.0 * rank as f64 * linears(decoder).map(|m| features(&m)).sum::<f64>()
}

fn linears(decoder: &dyn Decoder) -> impl Iterator<Item = &wardrobe_models::Module> {
    decoder.modules().iter().filter(|m| !is_head(&m.path))
}

fn contents<'a>(config: &'a AdapterConfig, modules: &'a [LoraModule]) -> PeftContents<'a> {
    PeftContents { config, modules, embeddings: &[], saved: &[], rope: None, parity: None, extra_files: &[] }
}

fn random_contents(
    decoder: &dyn Decoder,
    rank: usize,
    seed: u64,
) -> Result<(AdapterConfig, Vec<LoraModule>)> {
    if rank == 0 || rank > decoder.config().hidden_size {
        let most = decoder.config().hidden_size;
        return Err(Error::Setting(format!("the adapters' rank is {rank}, not in 1..={most}")));
    }
    let mut random = Random(seed);
    let mut modules = Vec::new();
    let mut targets: Vec<String> = Vec::new();
    for module in linears(decoder) {
        let (rows, cols) = (module.weight.rows(), module.weight.cols());
        let mut tensor = |part: &str, shape: [usize; 2]| -> Result<AdapterTensor> {
            let values: Vec<f32> = (0..shape[0] * shape[1]).map(|_| random.next()).collect();
            Ok(AdapterTensor::from_f32(&format!("{}.{part}", module.path), shape.to_vec(), &values)?)
        };
        modules.push(LoraModule {
            module_path: module.path.clone(),
            a: tensor("lora_A", [rank, cols])?,
            b: tensor("lora_B", [rows, rank])?,
            magnitude: None,
            rank,
            scale: 1.0,
        });
        let name = module.path.rsplit('.').next().unwrap_or(&module.path);
        if !targets.iter().any(|t| t == name) {
            targets.push(name.to_owned());
        }
    }
    Ok((AdapterConfig::new(rank, rank as f64, targets), modules))
}

/// SplitMix64 (Steele, Lea and Flood 2014): any numbers do.
struct Random(u64);

impl Random {
    /// In -0.01..0.01, the size of trained factors.
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z >> 40) as f32 / (1_u64 << 24) as f32 - 0.5) * 0.02
    }
}

/// A folder of this process that is removed in the end.
#[derive(Debug)]
pub(crate) struct TemporaryFolder(PathBuf);

impl TemporaryFolder {
    /// A new folder where the system keeps temporary files.
    pub(crate) fn new() -> Result<Self> {
        use std::sync::atomic::{AtomicU64, Ordering};
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("wardrobe-bench-{}-{id}", std::process::id()));
        let failed = |e| Error::Setting(format!("cannot make the folder {}: {e}", path.display()));
        std::fs::create_dir(&path).map_err(failed)?;
        Ok(TemporaryFolder(path))
    }

    /// Its path.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        // Temporary by name and place: that it cannot be removed hurts nobody.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_numbers_are_small_and_differ() {
        let mut random = Random(1);
        let values: Vec<f32> = (0..1000).map(|_| random.next()).collect();
        assert!(values.iter().all(|v| v.abs() <= 0.01));
        assert!(values.iter().sum::<f32>().abs() < 1.0);
        assert!(values.windows(2).all(|w| w[0] != w[1]));
    }

    #[test]
    fn the_folder_goes_away() {
        let folder = TemporaryFolder::new().unwrap();
        let path = folder.path().to_owned();
        std::fs::write(path.join("file"), "x").unwrap();
        drop(folder);
        assert!(!path.exists());
    }
}
