//! Training over an open model, and the way of its result into a running engine.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use wardrobe_data::{DataOptions, Dataset};
use wardrobe_engine::{AdapterInfo, AdapterSource, Engine, LoadOptions};
use wardrobe_train::{Observer, Plan, TrainConfig, TrainedAdapter};

use crate::candle::adapter_source;
use crate::error::Result;
use crate::memory::available_memory_bytes;
use crate::model::Model;

/// Trains adapters for an open model: the same weights and the same ops that serve.
///
/// ```no_run
/// use wardrobe::data::{DataOptions, Dataset};
/// use wardrobe::{LoadOptions, Model, TrainConfig, Trainer, TrainInto};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let model = Model::open("SmolLM2-135M-Instruct.Q4_1.gguf", &Default::default())?;
/// let engine = model.engine(&Default::default())?;
/// let examples = model.dataset("train.jsonl", &DataOptions::default())?;
/// let trainer = Trainer::new(model, TrainConfig::default())?;
/// engine.train(&trainer, &examples, "tuned", LoadOptions::default())?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Trainer {
    inner: wardrobe_train::Trainer,
}

/// How training and serving share a machine.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Sharing {
    /// While the engine computes, training rests for this part of its time: 0 never, 0.5 half of it, up to 1.
    Part(f32),
    /// Training waits at its next block while requests run or wait, and goes on when the engine is idle.
    #[default]
    ServingFirst,
}

/// How often a waiting trainer looks again.
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// The longest that training waits at one block, so that it comes to an end under requests without end.
const LONGEST_WAIT: Duration = Duration::from_millis(200);

impl Trainer {
    /// A trainer over `model`, which an [`Arc`] or a clone of a [`Model`] shares.
    ///
    /// # Errors
    /// [`Error::Train`] naming the setting at fault.
    pub fn new(model: impl Into<Arc<Model>>, config: TrainConfig) -> Result<Self> {
        let model = model.into();
        let mut inner =
            wardrobe_train::Trainer::new(model.device().clone(), model.decoder().clone(), config)?;
        if let Some(name) = model.names().first() {
            inner = inner.with_base_name(name);
        }
        if let Some(bytes) = available_memory_bytes() {
            inner = inner.with_available_bytes(bytes);
        }
        Ok(Trainer { inner })
    }

    /// Keeps checkpoints and metrics in a folder, and goes on from what it holds of the same run.
    #[must_use]
    pub fn with_run_folder(self, folder: impl Into<PathBuf>) -> Self {
        Trainer { inner: self.inner.with_run_folder(folder) }
    }

    /// Shares the machine with an engine that serves.
    #[must_use]
    pub fn beside(self, engine: &Engine, sharing: Sharing) -> Self {
        let engine = engine.clone();
        let last = std::sync::Mutex::new(Instant::now());
        let is_busy = move || {
            let stats = engine.stats();
            stats.running_sequences + stats.waiting_sequences > 0
        };
        let pause = move || match sharing {
            Sharing::ServingFirst => {
                let started = Instant::now();
                while is_busy() && started.elapsed() < LONGEST_WAIT {
                    std::thread::sleep(LOOK_EVERY);
                }
            }
            Sharing::Part(part) if part > 0.0 => {
                let worked = {
                    let mut last = last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    std::mem::replace(&mut *last, Instant::now()).elapsed()
                };
                if is_busy() {
                    let rest = f64::from(part.min(0.95));
                    std::thread::sleep(worked.mul_f64(rest / (1.0 - rest)).min(LONGEST_WAIT));
                }
            }
            Sharing::Part(_) => {}
        };
        Trainer { inner: self.inner.with_pause(Arc::new(pause)) }
    }

    /// Parameters that are trained.
    pub fn num_parameters(&self) -> u64 {
        // The settings were checked against the model when the trainer was made.
        self.inner.num_parameters().unwrap_or(0)
    }

    /// What a run over these examples will take.
    ///
    /// # Errors
    /// [`Error::Train`] for examples or settings that will not do, or do not fit the memory.
    pub fn plan(&self, train: &Dataset, eval: Option<&Dataset>) -> Result<Plan> {
        Ok(self.inner.plan(train, eval)?)
    }

    /// Trains.
    ///
    /// # Errors
    /// [`Error::Train`].
    pub fn train(&self, train: &Dataset) -> Result<TrainedAdapter> {
        self.train_with(train, None, &mut wardrobe_train::NoObserver)
    }

    /// Trains, with examples to evaluate on and somebody who hears of it.
    ///
    /// # Errors
    /// [`Error::Train`].
    pub fn train_with(
        &self,
        train: &Dataset,
        eval: Option<&Dataset>,
        observer: &mut dyn Observer,
    ) -> Result<TrainedAdapter> {
        Ok(self.inner.train(train, eval, observer)?)
    }
}

/// Training whose result goes into an engine.
pub trait TrainInto {
    /// Trains, and loads the adapter as `name` without touching the disk.
    ///
    /// # Errors
    /// [`Error::Train`], and [`Error::Adapter`] if the engine refuses it.
    fn train(
        &self,
        trainer: &Trainer,
        examples: &Dataset,
        name: &str,
        options: LoadOptions,
    ) -> Result<AdapterInfo>;
}

impl TrainInto for Engine {
    fn train(
        &self,
        trainer: &Trainer,
        examples: &Dataset,
        name: &str,
        options: LoadOptions,
    ) -> Result<AdapterInfo> {
        let trained = trainer.train(examples)?;
        Ok(self.load_adapter(name, in_process(trained), options)?)
    }
}

/// A trained adapter as an engine takes it.
pub fn in_process(trained: TrainedAdapter) -> AdapterSource {
    adapter_source(trained.into_adapter())
}

impl Model {
    /// Reads examples with the model's tokenizer and chat template.
    ///
    /// # Errors
    /// [`Error::Data`] with the line at fault.
    pub fn dataset(&self, path: impl AsRef<std::path::Path>, options: &DataOptions) -> Result<Dataset> {
        let template = self.chat_template().map(Arc::as_ref);
        Ok(Dataset::load(path.as_ref(), self.tokenizer(), template, options)?)
    }
}
