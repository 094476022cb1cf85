//! Wardrobe: an embeddable inference-and-serving runtime for fine-tuned adapters.
//!
//! One base model, a wardrobe of LoRA adapters: a different one for every request in a batch, replaced while it
//! serves.
//!
//! A model, an engine, an adapter, an answer (`examples/embed.rs` is the whole program):
//!
//! ```no_run
//! use wardrobe::{AdapterSource, EngineOptions, LoadOptions, Message, Model, ModelOptions, Request};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let model = Model::open("SmolLM2-135M-Instruct.Q4_1.gguf", &ModelOptions::default())?;
//! let engine = model.engine(&EngineOptions::default())?;
//! engine.load_adapter("tuned", AdapterSource::Path("adapters/last-words".into()), LoadOptions::default())?;
//! let prompt = model.chat_prompt(&[Message::text("user", "Write one sentence about the sea.")])?;
//! let request = Request::new(prompt.clone()).with_max_tokens(40);
//! println!("base:  {}", engine.generate(request.clone())?.choices[0].text);
//! println!("tuned: {}", engine.generate(request.with_adapter("tuned"))?.choices[0].text);
//!
//! // Logits as a candle tensor, [tokens, vocab_size].
//! let logits: candle_core::Tensor = model.logits(&prompt, None)?;
//! # Ok(())
//! # }
//! ```
//!
//! An answer is held to the schema of a type, and becomes a value of it (`examples/label.rs`):
//!
//! ```no_run
//! # use wardrobe::{Engine, Model, Request, schema_of, value_of};
//! #[derive(serde::Deserialize, schemars::JsonSchema)]
//! struct Label {
//!     topic: String,
//!     is_complaint: bool,
//! }
//! # fn label(model: &Model, engine: &Engine, request: Request) -> Result<Label, Box<dyn std::error::Error>> {
//! let template = model.compile(&schema_of::<Label>())?;
//! let label: Label = value_of(&engine.generate(request.with_constraint(template))?.choices[0])?;
//! # Ok(label)
//! # }
//! ```
//!
//! An adapter is replaced while it answers: the answer under way finishes on the old one, the next takes the new one
//! (`examples/hot_swap.rs`):
//!
//! ```no_run
//! # use wardrobe::{AdapterSource, Engine, Event, LoadOptions, Request};
//! # fn swap(engine: &Engine, request: Request) -> Result<(), Box<dyn std::error::Error>> {
//! let stream = engine.submit(request.clone().with_adapter("tuned"))?;
//! let options = LoadOptions { replace: true, ..LoadOptions::default() };
//! engine.load_adapter("tuned", AdapterSource::Path("adapters/biography-json".into()), options)?;
//! for event in stream {
//!     if let Event::Update(update) = event {
//!         print!("{}", update.text);
//!     }
//! }
//! println!("{}", engine.generate(request.with_adapter("tuned"))?.choices[0].text);
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

pub mod bench;
mod candle;
pub mod deploy;
mod device;
mod disk;
pub mod distill;
mod dummy;
mod error;
mod fine_tuning;
mod generator;
pub mod gpu_check;
mod input;
pub mod label;
mod memory;
mod merge;
mod model;
mod model_text;
mod training;
mod typed;

pub use candle::{adapter_from_tensors, adapter_source, adapter_tensors};
pub use device::{CpuOptions, DeviceOptions, DeviceSpec, Isa, open_device};
pub use dummy::DummyOptions;
pub use error::{Error, Result};
pub use fine_tuning::ModelFineTuner;
pub use generator::EngineGenerator;
pub use memory::{MemoryPlan, available_memory_bytes};
pub use merge::{MergeDtype, MergeFormat, MergeOptions, MergeProgress, MergeReport, MergedWeight, merge};
pub use model::{EngineOptions, Model, ModelOptions, OpenProgress};
pub use model_text::ModelText;
pub use training::{Sharing, TrainInto, Trainer, in_process};
pub use typed::{schema_of, value_of};
pub use wardrobe_batch::answers;
pub use wardrobe_data as data;
pub use wardrobe_device::DType;
pub use wardrobe_device_cuda::{LIBRARIES_ENV as CUDA_LIBRARIES_ENV, Survey};
pub use wardrobe_engine::{
    AdapterError, AdapterInfo, AdapterSource, Choice, Completion, Constraint, Engine, EngineConfig,
    EngineStats, Event, Finish, GenerationId, LoadOptions, Request, ResponseStream, SamplingParams,
    Speculation, SubmitError, Summary, TokenId, Update,
};
pub use wardrobe_eval as eval;
pub use wardrobe_formats::{AdapterConfig, PeftAdapter, StorageType};
pub use wardrobe_generator as generate;
pub use wardrobe_grammar as grammar;
pub use wardrobe_models::{AdapterPrecision, LoraAdapter, LoraOptions, ModelConfig, WeightPrecision};
pub use wardrobe_text::{ChatInput, ChatTemplate, Message, Tokenizer};
pub use wardrobe_train as train;
pub use wardrobe_train::{TrainConfig, TrainedAdapter};
