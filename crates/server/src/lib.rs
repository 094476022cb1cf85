//! The endpoint: OpenAI's HTTP API over a [`wardrobe_engine::Engine`].
//!
//! Purpose: turn HTTP requests into validated engine requests and their answers back into JSON or server-sent
//! events, for clients that were written for OpenAI's, vLLM's or llama.cpp's servers. This is the only crate that knows
//! HTTP; it knows neither models nor devices.
//!
//! State: the served model, the configuration, the metrics and whether the server drains ([`Server`]). Every request
//! owns its response stream; dropping it, because the client went away, cancels the request in the engine.
//!
//! Invariants: every response has an `x-request-id`; every error has OpenAI's shape; without a valid key only
//! `/health` answers; nothing that a client sends panics, blocks the runtime's thread for long, or takes memory beyond
//! the limits of [`ServerConfig`].
//!
//! The feature `otlp` adds an exporter of spans to an OpenTelemetry collector; it is off by default.
//!
//! It deliberately does not install signal handlers or loggers, terminate TLS, or keep conversations.
//!
//! ```no_run
//! # async fn run(model: wardrobe_server::ServedModel) -> Result<(), Box<dyn std::error::Error>> {
//! use wardrobe_server::{Server, ServerConfig};
//!
//! let server = Server::new(model, ServerConfig::default())?;
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:8000").await?;
//! server.serve(listener, std::future::pending()).await?;
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod adapter_path;
mod adapters;
mod admission;
mod auth;
mod batch_endpoint;
mod batches;
mod body;
mod chat;
mod completions;
mod config;
mod connection;
mod constraint;
mod context;
mod conversation;
mod cors;
mod download;
mod error;
mod files;
mod fine_tunes;
mod fine_tuning;
mod generate;
mod inference;
mod instances;
mod jobs;
mod loose;
mod metrics;
mod models;
mod multipart;
mod offload;
#[cfg(feature = "otlp")]
pub mod otlp;
mod probes;
mod query;
mod request_log;
mod router;
mod serve;
mod shape;
mod sse;
mod state;
mod target;
mod tokenization;
mod tools;
mod uploads;
mod wire;

pub use config::{ServedModel, ServerConfig};
pub use error::ServerError;
pub use router::{RouteInfo, routes};
pub use serve::Server;
