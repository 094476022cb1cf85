//! The executor over a real model: a decoder of `wardrobe-models` in a context of `wardrobe-device`.

mod executor;
mod peft;
mod rope;

pub use executor::{HEAD_ROWS, ModelExecutor, ModelExecutorConfig, arena_bytes};
pub use peft::PeftLoader;
