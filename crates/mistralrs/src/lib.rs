//! Models that Wardrobe's own engine does not run, asked through the `mistralrs` crate in this process: a teacher, a
//! labeller, a larger model to compare with. On the CPU alone.
//!
//! Text and JSON cross the border between the two, never a tensor; so it does not matter which candle mistralrs is built
//! with. Adapters do not cross it either: those that Wardrobe trains hold for the numbers of Wardrobe's engine.
//!
//! State: one running model. Deliberately not here: everything else that mistralrs can do, such as images and tools.
//!
//! The feature `runtime` builds mistralrs; without it only references to models can be read.
#![forbid(unsafe_code)]

mod reference;
#[cfg(feature = "runtime")]
mod runtime;

pub use reference::Reference;
#[cfg(feature = "runtime")]
pub use runtime::{MistralRs, MistralRsError, VERSION};
