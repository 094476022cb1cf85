//! A model ready to use: weights on a device, tokenizer, chat template; and engines over it.

use std::path::Path;
use std::sync::Arc;

use wardrobe_device::{Ctx, CtxConfig, DType, Device, StepLimits};
use wardrobe_engine::model::{ModelExecutor, ModelExecutorConfig, PeftLoader};
use wardrobe_engine::{Engine, EngineConfig, TokenId};
use wardrobe_formats::ModelFiles;
use wardrobe_grammar::{Compiler, Limits};
use wardrobe_models::{Decoder, LoadOptions, LoraOptions, ModelConfig, WeightPrecision};
use wardrobe_text::{ChatTemplate, Message, Tokenizer};

use crate::device::{CpuOptions, DeviceOptions, DeviceSpec, open_device};
use crate::error::Result;
use crate::memory::available_memory_bytes;
use crate::model_text::ModelText;

/// How to open a model.
#[derive(Debug, Clone, Default)]
pub struct ModelOptions {
    /// Where to compute.
    pub device: DeviceSpec,
    /// The CPU's settings.
    pub cpu: CpuOptions,
    /// On a GPU: see [`DeviceOptions::deterministic`].
    pub deterministic: bool,
    /// On a GPU: see [`DeviceOptions::fp8`].
    pub fp8: bool,
    /// Precision of the weights.
    pub precision: WeightPrecision,
}

impl ModelOptions {
    /// Opens the device.
    ///
    /// # Errors
    /// Those of [`open_device`].
    pub fn open_device(&self) -> Result<Arc<dyn Device>> {
        let ModelOptions { cpu, deterministic, fp8, .. } = *self;
        let options = DeviceOptions { cpu, deterministic, fp8, ..DeviceOptions::default() };
        open_device(self.device, &options)
    }
}

/// Hears of a model that is being opened: bytes of weights read so far, of all.
pub type OpenProgress<'a> = dyn Fn(u64, u64) + 'a;

/// How to run an engine over a model.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Scheduling, limits, adapters. `eos_token_ids` is filled from the model if it is empty.
    pub config: EngineConfig,
    /// Bytes for keys and values; `None` takes 512 MiB, or, on a device with memory of its own, nine tenths of what is free there
    /// beside everything else.
    pub kv_bytes: Option<usize>,
    /// Their element type: F16, BF16 or F32; `None` takes the device's own.
    pub kv_dtype: Option<DType>,
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
            kv_bytes: None,
            kv_dtype: None,
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
    text: ModelText,
    compiler: Arc<Compiler>,
    /// What it is called, to compare with the base that an adapter names.
    names: Vec<String>,
}

/// A context for loading, which needs no scratch memory.
pub(crate) fn loading_context(device: &Arc<dyn Device>) -> Result<Ctx> {
    let step = StepLimits { max_rows: 1, max_seqs: 1, max_blocks: 1 };
    Ok(Ctx::new(device.clone(), CtxConfig { arena_bytes: 0, step })?)
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
        Self::open_files(options.open_device()?, &files, options, progress)
    }

    /// The same on a device that is open, which several models may share.
    ///
    /// # Errors
    /// Those of [`Model::open`].
    pub fn open_on(device: Arc<dyn Device>, path: impl AsRef<Path>, options: &ModelOptions) -> Result<Self> {
        Self::open_files(device, &ModelFiles::open(path.as_ref())?, options, &|_, _| {})
    }

    fn open_files(
        device: Arc<dyn Device>,
        files: &ModelFiles,
        options: &ModelOptions,
        progress: &OpenProgress<'_>,
    ) -> Result<Self> {
        let mut ctx = loading_context(&device)?;
        let load = LoadOptions {
            precision: options.precision,
            progress: &|_, read_bytes, total_bytes| progress(read_bytes, total_bytes),
        };
        let decoder = wardrobe_models::load(&mut ctx, files, &load)?;
        Ok(Self::of_parts(device, decoder, ModelText::of(files)?, files.names()))
    }

    /// Joins what a model is made of.
    pub(crate) fn of_parts(
        device: Arc<dyn Device>,
        decoder: Arc<dyn Decoder>,
        text: ModelText,
        names: Vec<String>,
    ) -> Self {
        let ends: Vec<TokenId> = decoder.config().eos_token_ids.iter().map(|&id| TokenId(id)).collect();
        let compiler = Arc::new(Compiler::of_tokenizer(text.tokenizer.clone(), &ends, Limits::default()));
        Model { device, decoder, text, compiler, names }
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
        &self.text.tokenizer
    }

    /// The compiler of what answers are held to, which engines and servers of this model share.
    pub fn compiler(&self) -> &Arc<Compiler> {
        &self.compiler
    }

    /// The chat template, if the model has one.
    pub fn chat_template(&self) -> Option<&Arc<ChatTemplate>> {
        self.text.chat_template.as_ref()
    }

    /// Tokens of a conversation, up to where the answer begins.
    ///
    /// # Errors
    /// [`Error::Setting`] if the model has no chat template, [`Error::Template`] if it refuses.
    pub fn chat_prompt(&self, messages: &[Message]) -> Result<Vec<TokenId>> {
        self.text.chat_prompt(messages)
    }

    /// The element type of keys and values in an engine with these options.
    pub fn kv_dtype(&self, options: &EngineOptions) -> DType {
        options.kv_dtype.unwrap_or_else(|| self.device.kv_dtype())
    }

    /// The options with what they leave to the device filled in. What that is depends on the memory that is free: who tells of an
    /// engine's memory later settles its options before it is started.
    pub fn settled(&self, options: &EngineOptions) -> EngineOptions {
        EngineOptions {
            kv_bytes: Some(self.kv_bytes(options)),
            kv_dtype: Some(self.kv_dtype(options)),
            ..options.clone()
        }
    }

    /// Starts an engine over this model.
    ///
    /// # Errors
    /// [`Error::Engine`] naming the setting at fault, [`Error::Memory`] for more memory than is free.
    pub fn engine(&self, options: &EngineOptions) -> Result<Engine> {
        let options = &self.settled(options);
        self.memory_plan(options).check(self.device.free_bytes().or_else(available_memory_bytes))?;
        let mut config = options.config.clone();
        if config.eos_token_ids.is_empty() {
            config.eos_token_ids = self.config().eos_token_ids.iter().map(|&id| TokenId(id)).collect();
        }
        let kv_dtype = self.kv_dtype(options);
        let model_context = self.config().max_position_embeddings;
        let executor = ModelExecutor::new(
            self.device.clone(),
            self.decoder.clone(),
            *self.decoder.content_digest().as_bytes(),
            &ModelExecutorConfig {
                kv_bytes: self.kv_bytes(options),
                kv_dtype,
                num_slots: options.num_slots,
                max_batch_tokens: config.max_batch_tokens,
                max_num_sequences: config.max_num_sequences,
                max_context_tokens: options.max_context_tokens.unwrap_or(model_context),
            },
        )?;
        let lora = LoraOptions { precision: options.lora.precision.beside(kv_dtype), ..options.lora };
        let loader = PeftLoader::new(self.device.clone(), self.decoder.clone(), lora)
            .with_model_names(self.names.clone())
            .with_compiler(self.compiler.clone())
            .with_max_context(executor.max_positions());
        Ok(Engine::start(
            Box::new(executor),
            Arc::new(loader),
            Arc::new(self.text.tokenizer.clone()),
            config,
        )?)
    }
}
