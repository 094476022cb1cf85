//! Making data sets: from documents, dumps and dictionaries to records that are trained on, asked or evaluated.
//!
//! Purpose: [`select`] documents, [`mix`] sources, take the [`turns`] of conversations, and make the tasks of which the
//! right answer is known without a model: the last words of a text ([`repetition`]) and facts in a [`haystack`] of
//! biographies, which [`bios`] takes from WordNet.
//!
//! State: none but files. A command reads its [`Source`]s front to back, a record at a time; what it remembers of a record
//! is a few bytes. Where records are drawn or shuffled the files are read twice.
//!
//! Invariants: the same inputs, settings and seed give the same bytes; an output has its name only when all of it is on
//! the disk; beside it lies `NAME.manifest.json`, which says what it was made of and what was left out; a command that
//! fails leaves nothing.
//!
//! It fetches nothing itself: a source from elsewhere brings a function that does ([`InputFile::remote`]).

mod bios;
mod condition;
mod draw;
mod dump;
mod haystack;
mod inputs;
mod list;
mod mix;
mod product;
mod repetition;
mod select;
mod span;
mod spool;
mod turns;
mod words;

pub use bios::{BiosOptions, BiosReport, ItemsOptions, ItemsReport, bios, items};
pub use condition::Condition;
pub use haystack::{HaystackCell, HaystackOptions, HaystackReport, haystack};
pub use inputs::{FetchError, InputFile, InputRecord, Source, TEXT_ENDINGS};
pub use mix::{MixOptions, MixReport, MixSource, Share, mix};
pub use product::{Dropped, Output};
pub use repetition::{RepetitionOptions, RepetitionReport, repetition};
pub use select::{SelectOptions, SelectReport, Take, select};
pub use span::Span;
pub use turns::{TurnsOptions, TurnsReport, turns};
pub use words::Counting;
