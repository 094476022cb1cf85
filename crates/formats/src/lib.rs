//! Bytes on disk to host memory: Hugging Face `config.json`, safetensors, GGUF and PEFT adapter folders.
//!
//! Purpose: everything that a model or an adapter is made of, read from files that nobody vouches for, and handed
//! out in one layout: Hugging Face names, row-major `[out, in]` weights, half-split rotary rows.
//!
//! - [`ModelFiles::open`]: a model folder or a GGUF file: [`ModelConfig`], a [`TensorSource`], tokenizer files.
//! - [`peft::PeftAdapter::open`]: a LoRA adapter as PEFT writes it.
//! - [`convert`]: any storage type to f32 and to the types that devices hold.
//! - [`safetensors::write()`], [`gguf::write()`], [`peft::write_peft`], [`staging`]: the way back.
//!
//! Invariants: no file content panics, allocates more than a small multiple of the bytes that are really there, or
//! leads outside its folder. Files are read by position and never mapped.
//! Not done here: devices, tokenizers, templates, downloads; pickled files are refused.
#![forbid(unsafe_code)]

pub mod config;
pub mod convert;
pub mod digest;
pub mod error;
pub mod finite;
#[doc(hidden)]
pub mod fuzzing;
pub mod gguf;
pub mod model_files;
mod paths;
pub mod peft;
pub mod safetensors;
pub mod sink;
pub mod source;
pub mod staging;
pub mod storage;

pub use config::{ExpertsConfig, HfConfigFile, HiddenAct, ModelConfig, RopeScaling};
pub use digest::{ContentDigest, Digest};
pub use error::{FormatError, Result};
pub use model_files::{ModelFiles, TokenizerFiles};
pub use peft::{AdapterConfig, AdapterTensor, PeftAdapter};
pub use sink::TensorSink;
pub use source::{TensorInfo, TensorSource};
pub use staging::Staging;
pub use storage::StorageType;
