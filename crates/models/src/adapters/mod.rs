//! The adapter kinds, one file each.

pub mod lora;
