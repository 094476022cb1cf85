//! The adapter kinds, one file each, and in which element type their factors are held.

pub mod held;
pub mod lora;
pub mod merge;
