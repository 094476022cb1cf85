//! The adapter kinds, one file each, and how their factors are held.

pub mod held;
pub mod lora;
