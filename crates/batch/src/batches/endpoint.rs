//! What answers the requests of batches: the one trait between batches and HTTP.

use std::time::Duration;

use serde_json::{Map, Value};

use super::BatchRoute;

/// A request of a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchRequest {
    /// Its name, unique in its batch.
    pub custom_id: String,
    /// The route that is to answer it.
    pub route: BatchRoute,
    /// What the route is asked.
    pub body: Map<String, Value>,
}

/// An answer, or a refusal in the shape of one.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchAnswer {
    /// The status that HTTP would have.
    pub status: u16,
    /// The id under which the request stands in the log.
    pub request_id: String,
    /// The answer.
    pub body: Value,
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq)]
pub enum BatchReply {
    /// It was answered or refused.
    Answered(BatchAnswer),
    /// There is no room for it now; the endpoint may say when to ask again.
    Busy(Option<Duration>),
    /// The interrupt came first, or the endpoint is gone.
    Interrupted,
}

/// Says whether a request is still wanted.
pub type Interrupt<'a> = dyn Fn() -> bool + Sync + 'a;

/// Answers the requests of batches. Calls come from several threads at once.
pub trait BatchEndpoint: Send + Sync {
    /// Whether a model of this name answers now.
    fn has_model(&self, name: &str) -> bool;

    /// Answers a request of the batch `batch`, and stops soon after `interrupt` says so.
    fn answer(&self, batch: &str, request: &BatchRequest, interrupt: &Interrupt<'_>) -> BatchReply;
}
