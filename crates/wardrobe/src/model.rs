//! A model ready to use: weights on a device, tokenizer, chat template; and engines over it.

use std::path::Path;
use std::sync::Arc;

use wardrobe_device::{Ctx, CtxConfig, DType, Device, StepLimits};
use wardrobe_engine::model::{ModelExecutor, ModelExecutorConfig, PeftLoader};
use wardrobe_engine::{Engine, EngineConfig, TokenId};
use wardrobe_formats::ModelFiles;
use wardrobe_models::{Decoder, LoadOptions, LoraOptions, ModelConfig, WeightPrecision};
use wardrobe_text::{
    ChatInput, ChatTemplate, GgufVocab, Message, TemplateLimits, Tokenizer, TokenizerConfig,
};

use crate::device::{CpuOptions, DeviceSpec, open_device};
use crate::error::{Error, Result};
use crate::memory::available_memory_bytes;

/// How to open a model.
#[derive(Debug, Clone, Default)]
pub struct ModelOptions {
    /// Where to compute.
    pub device: DeviceSpec,
    /// The CPU's settings.
    pub cpu: CpuOptions,
    /// Precision of the weights.
    pub precision: WeightPrecision,
}

/// Hears of a model that is being opened: bytes of weights read so far, of all.
pub type OpenProgress<'a> = dyn Fn(u64, u64) + 'a;

/// How to run an engine over a model.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Scheduling, limits, adapters. `eos_token_ids` is filled from the model if it is empty.
    pub config: EngineConfig,
    /// Bytes for keys and values.
    pub kv_bytes: usize,
    /// Their element type: F16 or F32.
    pub kv_dtype: DType,
    /// Adapters that can be used in one step.
    pub num_slots: usize,
    /// Longest context, in tokens; `None` takes the model's. More than that is for adapters that bring RoPE scaling.
    pub max_context_tokens: Option<usize>,
    /// What adapters may be, and how they are held.
    pub lora: LoraOptions,
}

impl Default for EngineOptions {
    fn default() -> Self {
        EngineOptions {
            config: EngineConfig::default(),
            kv_bytes: 512 << 20,
            kv_dtype: DType::F16,
            num_slots: 16,
            max_context_tokens: None,
            lora: LoraOptions::default(),
        }
    }
}

/// A model on a device, with everything that text needs. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Model {
    device: Arc<dyn Device>,
    decoder: Arc<dyn Decoder>,
    tokenizer: Tokenizer,
    chat_template: Option<Arc<ChatTemplate>>,
    /// What it is called, to compare with the base that an adapter names.
    names: Vec<String>,
}

impl Model {
    /// Opens a folder in Hugging Face's layout or a `.gguf` file.
    ///
    /// # Errors
    /// [`Error`] naming the file, tensor or key at fault.
    pub fn open(path: impl AsRef<Path>, options: &ModelOptions) -> Result<Self> {
        Self::open_with_progress(path, options, &|_, _| {})
    }

    /// The same; `progress` is told after each tensor how far it is.
    ///
    /// # Errors
    /// Those of [`Model::open`].
    pub fn open_with_progress(
        path: impl AsRef<Path>,
        options: &ModelOptions,
        progress: &OpenProgress<'_>,
    ) -> Result<Self> {
        let files = ModelFiles::open(path.as_ref())?;
        let device = open_device(options.device, options.cpu)?;
        let step = StepLimits { max_rows: 1, max_seqs: 1, max_blocks: 1 };
        let mut ctx = Ctx::new(device.clone(), CtxConfig { arena_bytes: 0, step })?;
        let load = LoadOptions {
            precision: options.precision,
            progress: &|_, read_bytes, total_bytes| progress(read_bytes, total_bytes),
        };
        let decoder = wardrobe_models::load(&mut ctx, &files, &load)?;
        let tokenizer = tokenizer(&files)?;
        let chat_template = files
            .tokenizer
            .chat_template
            .as_deref()
            .map(|source| ChatTemplate::new(source, TemplateLimits::default()).map(Arc::new))
            .transpose()?;
        Ok(Model { device, decoder, tokenizer, chat_template, names: files.names() })
    }

    /// Shape and constants.
    pub fn config(&self) -> &ModelConfig {
        self.decoder.config()
    }

    /// What its files call it: names of file or folder, and the one in its metadata.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The device it is on.
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }

    /// The network itself.
    pub fn decoder(&self) -> &Arc<dyn Decoder> {
        &self.decoder
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The chat template, if the model has one.
    pub fn chat_template(&self) -> Option<&Arc<ChatTemplate>> {
        self.chat_template.as_ref()
    }

    /// Tokens of a conversation, up to where the answer begins.
    ///
    /// # Errors
    /// [`Error::Setting`] if the model has no chat template, [`Error::Template`] if it refuses.
    pub fn chat_prompt(&self, messages: &[Message]) -> Result<Vec<TokenId>> {
        let Some(template) = &self.chat_template else {
            return Err(Error::Setting("the model has no chat template".to_owned()));
        };
        let special = |id: Option<TokenId>| id.and_then(|id| self.tokenizer.token_str(id));
        let (bos, eos) = (special(self.tokenizer.bos()), special(self.tokenizer.eos()));
        let text = template.render(&ChatInput {
            messages,
            add_generation_prompt: true,
            bos_token: bos.as_deref(),
            eos_token: eos.as_deref(),
            ..ChatInput::default()
        })?;
        Ok(self.tokenizer.encode(&text, false)?)
    }

    /// Starts an engine over this model.
    ///
    /// # Errors
    /// [`Error::Engine`] naming the setting at fault, [`Error::Memory`] for more memory than is free.
    pub fn engine(&self, options: &EngineOptions) -> Result<Engine> {
        self.memory_plan(options).check(available_memory_bytes())?;
        let mut config = options.config.clone();
        if config.eos_token_ids.is_empty() {
            config.eos_token_ids = self.config().eos_token_ids.iter().map(|&id| TokenId(id)).collect();
        }
        let model_context = self.config().max_position_embeddings;
        let executor = ModelExecutor::new(
            self.device.clone(),
            self.decoder.clone(),
            *self.decoder.content_digest().as_bytes(),
            &ModelExecutorConfig {
                kv_bytes: options.kv_bytes,
                kv_dtype: options.kv_dtype,
                num_slots: options.num_slots,
                max_batch_tokens: config.max_batch_tokens,
                max_num_sequences: config.max_num_sequences,
                max_context_tokens: options.max_context_tokens.unwrap_or(model_context),
            },
        )?;
        let lora = LoraOptions { precision: options.lora.precision.beside(options.kv_dtype), ..options.lora };
        let loader = PeftLoader::new(self.device.clone(), self.decoder.clone(), lora)
            .with_model_names(self.names.clone())
            .with_max_context(executor.max_positions());
        Ok(Engine::start(Box::new(executor), Arc::new(loader), Arc::new(self.tokenizer.clone()), config)?)
    }
}

/// The tokenizer that the model's files describe.
pub(crate) fn tokenizer(files: &ModelFiles) -> Result<Tokenizer> {
    if let Some(json) = files.tokenizer.read_tokenizer_json()? {
        let config = tokenizer_config(files)?;
        return Ok(Tokenizer::from_tokenizer_json(&json, config.as_ref())?);
    }
    let Some(meta) = files.gguf_metadata() else {
        let path = files.path().display();
        return Err(Error::Setting(format!("{path} has no tokenizer.json, which a safetensors model needs")));
    };
    let strings = |key: &str| -> Result<Vec<String>> { Ok(meta.strings(key)?.unwrap_or_default().to_vec()) };
    let id = |key: &str| meta.u32(&format!("tokenizer.ggml.{key}_token_id"));
    Ok(Tokenizer::from_gguf(GgufVocab {
        model: meta.str("tokenizer.ggml.model")?.unwrap_or_default().to_owned(),
        pre: meta.str("tokenizer.ggml.pre")?.map(str::to_owned),
        tokens: strings("tokenizer.ggml.tokens")?,
        scores: meta.f32s("tokenizer.ggml.scores")?.map(<[f32]>::to_vec),
        token_types: meta
            .integers("tokenizer.ggml.token_type")?
            .unwrap_or_default()
            .into_iter()
            .map(|t| i32::try_from(t).unwrap_or(0))
            .collect(),
        merges: strings("tokenizer.ggml.merges")?,
        bos_id: id("bos")?,
        eos_id: id("eos")?,
        eot_id: id("eot")?,
        unk_id: id("unknown")?,
        pad_id: id("padding")?,
        add_bos: meta.bool("tokenizer.ggml.add_bos_token")?,
        add_eos: meta.bool("tokenizer.ggml.add_eos_token")?,
        add_space_prefix: meta.bool("tokenizer.ggml.add_space_prefix")?,
    })?)
}

/// What `tokenizer_config.json` says, if there is one.
pub(crate) fn tokenizer_config(files: &ModelFiles) -> Result<Option<TokenizerConfig>> {
    let map = files.tokenizer.tokenizer_config.as_ref();
    Ok(map.map(|map| TokenizerConfig::from_json(map_bytes(map).as_bytes())).transpose()?)
}

fn map_bytes(map: &serde_json::Map<String, serde_json::Value>) -> String {
    serde_json::Value::Object(map.clone()).to_string()
}
