//! The endpoint, route by route, over a model that computes nothing. One binary for all of them: each would link the same
//! code again. `cargo test --workspace --test api -- chat::` runs those of a module.
//!
//! Not here: `log.rs` and `otlp.rs`, which look at what their process as a whole writes and sends.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "../support/mod.rs"]
mod support;
#[path = "../support/http.rs"]
mod support_http;
#[path = "../support/jobs.rs"]
mod support_jobs;

mod adapters;
mod admission;
mod batches;
mod bodies;
mod chat;
mod completions;
mod connections;
mod constraints;
mod errors;
mod files;
mod fine_tuning;
mod streaming;
mod together;
mod tools;
