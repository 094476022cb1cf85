//! Measures of texts: each is a function of a right answer and a given one.

mod porter;
mod rouge;
mod similarity;
mod squad;

pub(crate) use porter::stem;
pub use rouge::{MAX_ROUGE_WORDS, Rouge, rouge};
pub use similarity::indel_ratio;
pub use squad::{normalized, token_f1};
