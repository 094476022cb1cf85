//! The result: an adapter in PEFT's form.

use std::path::Path;

use wardrobe_formats::peft::{AdapterRope, LoraModule, PeftContents, PeftLimits, write_peft};
use wardrobe_formats::{AdapterConfig, AdapterTensor, PeftAdapter};

use crate::checkpoint::Progress;
use crate::config::LoraConfig;
use crate::error::Result;
use crate::parameters::Parameters;
use crate::trainer::{Plan, Trainer};

/// What an adapter says of its making.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    lora: LoraConfig,
    base_name: Option<String>,
    rope: Option<AdapterRope>,
}

impl Origin {
    pub(crate) fn new(trainer: &Trainer, plan: &Plan) -> Self {
        Origin {
            lora: trainer.config().lora.clone(),
            base_name: trainer.base_name().map(str::to_owned),
            rope: plan.rope.clone(),
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
        progress: &Progress,
    ) -> Result<Self> {
        let adapter = origin.with_contents(parameters, values, |contents| {
            Ok(PeftAdapter::from_contents("the trainer", contents, &PeftLimits::default())?)
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
        let contents = PeftContents {
            config: adapter.config(),
            modules: adapter.modules(),
            embeddings: adapter.embeddings(),
            saved: adapter.saved(),
            rope: adapter.rope(),
            extra_files: &[],
        };
        Ok(write_peft(dir, &contents, replace)?)
    }
}
