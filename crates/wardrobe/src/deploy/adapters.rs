//! The adapters of a deployment: copied file by file, and checked as the copies that they are.

use std::path::Path;

use wardrobe_engine::model::PeftLoader;
use wardrobe_engine::{AdapterLoader as _, AdapterSource, EngineConfig};
use wardrobe_formats::PeftAdapter;
use wardrobe_formats::peft::{CONFIG_FILE, RECORD_FILE, SCHEMA_FILE, WEIGHTS_FILE};

use super::error::{DeployError, Result};
use super::files::{Files, Mode};
use super::{AdapterToDeploy, DeployOptions};
use crate::deploy::quote::slug;

/// An adapter in a deployment.
#[derive(Debug, Clone)]
pub struct DeployedAdapter {
    /// The name that clients ask for.
    pub name: String,
    /// Its rank.
    pub rank: usize,
    /// Size of its tensors.
    pub size_bytes: u64,
    /// Digest of its content.
    pub digest: String,
    /// Whether its answers are held to a schema.
    pub has_schema: bool,
    /// Whether its trainer vouches for it.
    pub has_parity_record: bool,
    /// Whether it was held against its base model.
    pub is_verified: bool,
}

/// A copied adapter.
pub(super) struct Prepared {
    pub deployed: DeployedAdapter,
    /// Below the deployment.
    pub folder: String,
    /// The schema of its answers.
    pub schema: Option<serde_json::Value>,
}

/// Refuses names that no endpoint would serve.
pub(super) fn check_names(adapters: &[AdapterToDeploy], base_names: &[String]) -> Result<()> {
    let refuse = |text: String| Err(DeployError::Setting(text));
    let max_bytes = EngineConfig::default().limits.max_name_bytes;
    for (idx, adapter) in adapters.iter().enumerate() {
        let name = &adapter.name;
        if name.trim().is_empty() || name.len() > max_bytes || name.chars().any(char::is_control) {
            let path = adapter.path.display();
            return refuse(format!("the adapter {path} cannot be called {name:?}; write NAME=PATH"));
        }
        if base_names.contains(name) {
            return refuse(format!("the adapter {name} has a name of the base model; write NAME=PATH"));
        }
        if let Some(other) = adapters.iter().take(idx).find(|other| other.name == *name) {
            let (one, two) = (other.path.display(), adapter.path.display());
            return refuse(format!("{one} and {two} would both be called {name}; write NAME=PATH"));
        }
    }
    Ok(())
}

/// Reads the adapters where they are, with all that their files alone can be checked for.
pub(super) fn open(adapters: &[AdapterToDeploy]) -> Result<Vec<PeftAdapter>> {
    adapters.iter().map(|adapter| read(&adapter.name, &adapter.path)).collect()
}

fn read(name: &str, path: &Path) -> Result<PeftAdapter> {
    let files = |error| DeployError::Files { name: name.to_owned(), source: Box::new(error) };
    let adapter = PeftAdapter::open(path).map_err(files)?;
    match adapter.parity() {
        Some(record) if record.tensors_digest != adapter.tensors_digest() => {
            let reason = "has other tensors than its parity record (wardrobe.json) vouches for";
            Err(DeployError::Adapter { name: name.to_owned(), reason })
        }
        _ => Ok(adapter),
    }
}

/// Copies the adapters, each into a folder of its own.
pub(super) fn copy(
    adapters: &[AdapterToDeploy],
    sources: &[PeftAdapter],
    files: &mut Files<'_>,
) -> Result<Vec<Prepared>> {
    let mut prepared: Vec<Prepared> = Vec::new();
    for (adapter, source) in adapters.iter().zip(sources) {
        let slug = slug(&adapter.name, "adapter");
        let names = (1..).map(|n| if n == 1 { slug.clone() } else { format!("{slug}-{n}") });
        let mut folders = names.map(|name| format!("adapters/{name}"));
        let is_free = |folder: &String| !prepared.iter().any(|other| other.folder == *folder);
        let folder = folders.find(is_free).unwrap_or_default();
        for name in [CONFIG_FILE, WEIGHTS_FILE, RECORD_FILE, SCHEMA_FILE] {
            let from = adapter.path.join(name);
            // What has to be there was read; the others an adapter may have or not.
            if from.exists() {
                files.copy(&from, &format!("{folder}/{name}"), Mode::Plain)?;
            }
        }
        let deployed = DeployedAdapter {
            name: adapter.name.clone(),
            rank: source.max_rank(),
            size_bytes: source.total_bytes(),
            digest: source.digest().to_string(),
            has_schema: source.schema().is_some(),
            has_parity_record: source.parity().is_some(),
            is_verified: false,
        };
        prepared.push(Prepared { deployed, folder, schema: source.schema().cloned() });
    }
    Ok(prepared)
}

/// Checks the copies in `root`: that they are what was read, and against the base model if it is there.
pub(super) fn verify(
    prepared: &mut [Prepared],
    root: &Path,
    options: &DeployOptions<'_>,
    notes: &mut Vec<String>,
) -> Result<()> {
    let loader = options.model.map(|model| {
        PeftLoader::new(model.device().clone(), model.decoder().clone(), options.lora)
            .with_model_names(model.names().to_vec())
            .with_compiler(model.compiler().clone())
    });
    for adapter in prepared {
        let deployed = &mut adapter.deployed;
        let path = root.join(&adapter.folder);
        let copy = read(&deployed.name, &path)?;
        if copy.digest().to_string() != deployed.digest || copy.schema() != adapter.schema.as_ref() {
            let reason = "was changed while it was copied";
            return Err(DeployError::Adapter { name: deployed.name.clone(), reason });
        }
        let Some(loader) = &loader else { continue };
        if let Some(base) = loader.other_base(&copy) {
            let base: String = base.chars().take(256).collect();
            notes.push(format!("the adapter {} names another base model: {base}", deployed.name));
        }
        loader
            .load(&AdapterSource::Path(path))
            .map_err(|source| DeployError::Refused { name: deployed.name.clone(), source })?;
        deployed.is_verified = true;
    }
    Ok(())
}
