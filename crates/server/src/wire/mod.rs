//! The shapes of JSON in and out, per API. Nothing here decides anything.

pub(crate) mod adapters;
pub(crate) mod batches;
pub(crate) mod chat;
pub(crate) mod completions;
pub(crate) mod constraint;
pub(crate) mod files;
pub(crate) mod fine_tunes;
pub(crate) mod fine_tuning;
pub(crate) mod inference;
pub(crate) mod instances;
pub(crate) mod logprobs;
pub(crate) mod models;
pub(crate) mod prompt;
pub(crate) mod request;
pub(crate) mod tokenization;
pub(crate) mod tools;
pub(crate) mod unsupported;
pub(crate) mod usage;
