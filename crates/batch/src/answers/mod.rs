//! Answers of models, kept by what was asked: whoever asks the same again has them for nothing.
//!
//! Purpose: [`Answers`] is a file that holds answers, and how likely texts were found, under the digest of the whole
//! question and of who was asked ([`AnswerKey`]). [`Remembering`] is a [`Generator`] that looks there before it asks
//! another, and writes there what it was told before anybody else sees it.
//!
//! State: an SQLite file with a write-ahead log, which any number of processes may share.
//!
//! Invariants: an answer that was given is on the disk, whatever ends the process next; the first answer to a question
//! stays, for all who ask it, unless it is asked anew on purpose; of questions that are alike and asked at once by one
//! process, one is asked.
//!
//! Not done here: what makes an answer worth keeping, and when to ask again.

mod remembering;
mod store;

pub use remembering::{Remembering, Tally, Told};
pub use store::{AnswerKey, Answers};
