//! The result: an adapter in PEFT's form.

use std::path::Path;

use serde_json::{Map, Value};
use wardrobe_data::SplitMix64;
use wardrobe_formats::peft::{
    AdapterRope, Canary, LoraModule, ParityRecord, PeftContents, PeftLimits, SCHEMA_FILE, tensors_digest,
    write_peft,
};
use wardrobe_formats::{AdapterConfig, AdapterTensor, Digest, PeftAdapter};

use crate::checkpoint::Progress;
use crate::config::LoraConfig;
use crate::error::Result;
use crate::parameters::Parameters;
use crate::trainer::{Plan, Trainer};

/// Tokens of the text that a parity record holds: few, since whoever loads the adapter computes them.
const CANARY_TOKENS: usize = 16;

/// The text of a parity record: random tokens, the same for every adapter of a vocabulary, so that it gives nothing of the
/// training data away.
pub(crate) fn canary_text(vocab_size: usize, max_tokens: usize) -> Vec<u32> {
    let mut random = SplitMix64::new(0x7761_7264_726f_6265);
    (0..CANARY_TOKENS.min(max_tokens)).map(|_| random.below(vocab_size as u64) as u32).collect()
}

/// What an adapter says of its making.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    lora: LoraConfig,
    base_name: Option<String>,
    rope: Option<AdapterRope>,
    base_digest: Digest,
    device: String,
}

impl Origin {
    pub(crate) fn new(trainer: &Trainer, plan: &Plan) -> Self {
        Origin {
            lora: trainer.config().lora.clone(),
            base_name: trainer.base_name().map(str::to_owned),
            rope: plan.rope.clone(),
            base_digest: trainer.model.content_digest(),
            device: trainer.device.name(),
        }
    }

    fn config(&self) -> AdapterConfig {
        AdapterConfig {
            lora_dropout: f64::from(self.lora.dropout),
            use_rslora: self.lora.use_rslora,
            use_dora: self.lora.use_dora,
            target_modules: self.lora.selector(),
            base_model_name_or_path: self.base_name.clone(),
            ..AdapterConfig::new(self.lora.rank, self.lora.alpha, Vec::new())
        }
    }

    /// Calls `f` with the contents of an adapter folder, of the parameters' flat `values`.
    pub(crate) fn with_contents<R>(
        &self,
        parameters: &Parameters,
        values: &[f32],
        f: impl FnOnce(&PeftContents<'_>) -> Result<R>,
    ) -> Result<R> {
        let config = self.config();
        let modules = parameters
            .export(values)
            .map(|module| {
                let layout = module.layout;
                let tensor =
                    |shape: Vec<usize>, values: &[f32]| AdapterTensor::from_f32(&layout.path, shape, values);
                Ok(LoraModule {
                    module_path: layout.path.clone(),
                    a: tensor(vec![layout.rank, layout.input], module.a)?,
                    b: tensor(vec![layout.out, layout.rank], &module.b)?,
                    magnitude: module.magnitude.map(|m| tensor(vec![layout.out], m)).transpose()?,
                    rank: layout.rank,
                    scale: layout.scale,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        f(&PeftContents {
            config: &config,
            modules: &modules,
            embeddings: &[],
            saved: &[],
            rope: self.rope.as_ref(),
            parity: None,
            extra_files: &[],
        })
    }
}

/// A trained adapter in host memory.
#[derive(Debug, Clone)]
pub struct TrainedAdapter {
    adapter: PeftAdapter,
    progress: Progress,
}

impl TrainedAdapter {
    pub(crate) fn new(
        origin: &Origin,
        parameters: &Parameters,
        values: &[f32],
        canaries: Vec<Canary>,
        progress: &Progress,
    ) -> Result<Self> {
        let adapter = origin.with_contents(parameters, values, |contents| {
            let parity = ParityRecord {
                base_digest: origin.base_digest,
                tensors_digest: tensors_digest(contents),
                device: origin.device.clone(),
                canaries,
            };
            let contents = PeftContents { parity: Some(&parity), ..*contents };
            Ok(PeftAdapter::from_contents("the trainer", &contents, &PeftLimits::default())?)
        })?;
        Ok(TrainedAdapter { adapter, progress: progress.clone() })
    }

    /// The adapter: what an engine loads in process.
    pub fn adapter(&self) -> &PeftAdapter {
        &self.adapter
    }

    /// The same, to keep.
    pub fn into_adapter(self) -> PeftAdapter {
        self.adapter
    }

    /// The same with a JSON schema that its answers are to be held to wherever it is served.
    pub fn with_schema(mut self, schema: Map<String, Value>) -> Self {
        self.adapter = self.adapter.with_schema(Some(schema));
        self
    }

    /// Optimizer steps that were done.
    pub fn steps(&self) -> usize {
        self.progress.step
    }

    /// Tokens that were computed.
    pub fn tokens(&self) -> u64 {
        self.progress.tokens
    }

    /// Step and loss, in nats a token, of the best evaluation: the adapter's own, where there were any.
    pub fn best_eval(&self) -> Option<(usize, f64)> {
        self.progress.best
    }

    /// Seconds of all steps.
    pub fn seconds(&self) -> f64 {
        self.progress.seconds
    }

    /// Writes it as a PEFT folder, whole or not at all. With `replace` a folder that is there makes room.
    ///
    /// # Errors
    /// [`crate::TrainError::Format`].
    pub fn save(&self, dir: &Path, replace: bool) -> Result<()> {
        let adapter = &self.adapter;
        let schema = adapter.schema().map(|schema| format!("{schema:#}\n"));
        let extra_files: Vec<(&str, &[u8])> =
            schema.iter().map(|schema| (SCHEMA_FILE, schema.as_bytes())).collect();
        let contents = PeftContents {
            config: adapter.config(),
            modules: adapter.modules(),
            embeddings: adapter.embeddings(),
            saved: adapter.saved(),
            rope: adapter.rope(),
            parity: adapter.parity(),
            extra_files: &extra_files,
        };
        Ok(write_peft(dir, &contents, replace)?)
    }
}
