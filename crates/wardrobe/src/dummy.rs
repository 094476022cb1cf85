//! A model without files: what a configuration says, with weights and a vocabulary that are made up. It computes at the
//! speed and in the memory of the real one, and says nothing that makes sense.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use wardrobe_device::Device;
use wardrobe_engine::TokenId;
use wardrobe_formats::{HfConfigFile, StorageType};
use wardrobe_models::{DummySize, DummySpec, LoadOptions, ModelConfig};
use wardrobe_text::{ChatTemplate, TemplateLimits, Tokenizer};

use crate::error::{Error, Result};
use crate::memory::available_memory_bytes;
use crate::model::{Model, ModelOptions, OpenProgress, loading_context};
use crate::model_text::ModelText;

/// Lets a conversation be asked for; no model was trained on it.
const CHAT_TEMPLATE: &str = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}\
                             {% if add_generation_prompt %}assistant:{% endif %}";

/// What a model's weights are made up of. The same options and configuration give the same model, on every device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DummyOptions {
    /// How matrices are stored: F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q4_K or Q6_K. `None`: as the configuration says
    /// (`dtype` or `torch_dtype`), else BF16.
    pub storage: Option<StorageType>,
    /// What the random numbers follow from.
    pub seed: u64,
}

/// A configuration that was read, and what weights for it are made up of.
#[derive(Debug, Clone)]
pub(crate) struct DummyModel {
    path: PathBuf,
    config: ModelConfig,
    spec: DummySpec,
}

impl DummyModel {
    pub(crate) fn read(path: &Path, dummy: &DummyOptions) -> Result<Self> {
        let file = HfConfigFile::read(path)?;
        let storage = dummy.storage.or(file.storage).unwrap_or(StorageType::BF16);
        let spec = DummySpec { storage, seed: dummy.seed };
        wardrobe_models::arch::check(&file.config)?;
        Ok(Self { path: path.to_owned(), config: file.config, spec })
    }

    /// What the weights are, for reports.
    pub(crate) fn description(&self) -> String {
        format!("{} of seed {}", self.spec.storage, self.spec.seed)
    }

    pub(crate) fn open(&self, options: &ModelOptions, progress: &OpenProgress<'_>) -> Result<Model> {
        self.open_on(options.open_device()?, options, progress)
    }

    /// The same on a device that is open.
    pub(crate) fn open_on(
        &self,
        device: Arc<dyn Device>,
        options: &ModelOptions,
        progress: &OpenProgress<'_>,
    ) -> Result<Model> {
        let size = self.spec.size(&self.config, options.precision);
        check_memory(&size, device.free_bytes(), available_memory_bytes())?;
        let text = self.text()?;
        let mut ctx = loading_context(&device)?;
        let load = LoadOptions {
            precision: options.precision,
            progress: &|_, made_bytes, total_bytes| progress(made_bytes, total_bytes),
        };
        let decoder = wardrobe_models::load_dummy(&mut ctx, &self.config, &self.spec, &load)?;
        Ok(Model::of_parts(device, decoder, text, vec![name(&self.path)]))
    }

    fn text(&self) -> Result<ModelText> {
        let c = &self.config;
        let ends: Vec<TokenId> = c.eos_token_ids.iter().map(|&id| TokenId(id)).collect();
        let tokenizer = Tokenizer::made_up(c.vocab_size, c.bos_token_id.map(TokenId), &ends)?;
        let template = ChatTemplate::new(CHAT_TEMPLATE, TemplateLimits::default())?;
        Ok(ModelText { tokenizer, chat_template: Some(Arc::new(template)) })
    }
}

/// The name of a configuration's file, or of its folder where that says more.
fn name(path: &Path) -> String {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let stem = path.file_stem().filter(|stem| *stem != "config");
    let name = stem.or_else(|| path.parent()?.file_name()).or_else(|| path.file_stem());
    name.map_or_else(|| "dummy".to_owned(), |name| name.to_string_lossy().into_owned())
}

/// Refuses weights that are more than is free: on the device where it has memory of its own, else on this machine.
fn check_memory(size: &DummySize, device_bytes: Option<u64>, host_bytes: Option<u64>) -> Result<()> {
    let refuse = |available_bytes| {
        let DummySize { weight_bytes, staging_bytes } = *size;
        Err(Error::WeightMemory { weight_bytes, staging_bytes, available_bytes })
    };
    let mut host_needed = size.staging_bytes;
    match device_bytes {
        Some(free) if size.weight_bytes > free => return refuse(free),
        Some(_) => {}
        None => host_needed = host_needed.saturating_add(size.weight_bytes),
    }
    match host_bytes {
        Some(free) if host_needed > free => refuse(free),
        _ => Ok(()),
    }
}

impl Model {
    /// Makes up the model that a `config.json` describes, of any architecture that is supported: random weights, and a
    /// tokenizer to which a text is its bytes. For measurements and for planning, where the real one is not at hand.
    ///
    /// # Errors
    /// [`Error`] naming the file and key at fault; [`Error::WeightMemory`], before anything is made, for more than the
    /// device or this machine has room for.
    pub fn dummy(
        config_path: impl AsRef<Path>,
        dummy: &DummyOptions,
        options: &ModelOptions,
    ) -> Result<Self> {
        Self::dummy_with_progress(config_path, dummy, options, &|_, _| {})
    }

    /// The same; `progress` is told after each tensor how far it is.
    ///
    /// # Errors
    /// Those of [`Model::dummy`].
    pub fn dummy_with_progress(
        config_path: impl AsRef<Path>,
        dummy: &DummyOptions,
        options: &ModelOptions,
        progress: &OpenProgress<'_>,
    ) -> Result<Self> {
        DummyModel::read(config_path.as_ref(), dummy)?.open(options, progress)
    }

    /// What [`Model::dummy`] calls the model of this configuration.
    pub fn dummy_name(config_path: impl AsRef<Path>) -> String {
        name(config_path.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_which_model_it_is() {
        assert_eq!(name("benches/configs/llama-3.1-8b.json".as_ref()), "llama-3.1-8b");
        assert_eq!(name("/models/mine/config.json".as_ref()), "mine");
        assert_eq!(name("/config.json".as_ref()), "config");
    }

    #[test]
    fn weights_have_to_fit_where_they_go() {
        let size = DummySize { weight_bytes: 100, staging_bytes: 10 };
        for (device, host) in [(None, None), (None, Some(110)), (Some(100), Some(10)), (Some(100), None)] {
            check_memory(&size, device, host).unwrap();
        }
        for (device, host, free) in
            [(None, Some(109), 109), (Some(99), Some(1000), 99), (Some(1000), Some(9), 9)]
        {
            let refused = check_memory(&size, device, host).unwrap_err();
            assert!(
                matches!(refused, Error::WeightMemory { weight_bytes: 100, available_bytes, .. } if available_bytes == free),
                "{refused}"
            );
        }
    }
}
