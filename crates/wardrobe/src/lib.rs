//! Wardrobe: an embeddable inference-and-serving runtime for fine-tuned adapters.
//!
//! One base model, a wardrobe of LoRA adapters: a different one for every request in a batch, replaced while it
//! serves.
#![forbid(unsafe_code)]

pub mod bench;
mod candle;
mod device;
mod error;
mod memory;
mod model;

pub use candle::{adapter_from_tensors, adapter_source, adapter_tensors};
pub use device::{CpuOptions, DeviceSpec, Isa, open_device};
pub use error::{Error, Result};
pub use memory::MemoryPlan;
pub use model::{EngineOptions, Model, ModelOptions};
pub use wardrobe_device::DType;
pub use wardrobe_engine::{
    AdapterError, AdapterInfo, AdapterSource, Choice, Completion, Engine, EngineConfig, EngineStats, Event,
    Finish, GenerationId, LoadOptions, Request, ResponseStream, SamplingParams, SubmitError, Summary,
    TokenId, Update,
};
pub use wardrobe_formats::{AdapterConfig, PeftAdapter};
pub use wardrobe_models::{LoraAdapter, LoraLimits, ModelConfig, WeightPrecision};
pub use wardrobe_text::{ChatInput, ChatTemplate, Message, Tokenizer};
