//! The executor over a real model: a decoder of `wardrobe-models` in a context of `wardrobe-device`.

mod executor;
mod parity;
mod peft;
mod rope;

pub use executor::{ModelExecutor, ModelExecutorConfig};
pub use peft::PeftLoader;
