//! Spans to an OpenTelemetry collector, over OTLP as protobuf in HTTP.
//!
//! [`layer`] makes a layer for the app's own `tracing` subscriber; nothing is installed here. Spans of requests are
//! children of the caller's where a request brings a `traceparent`. Batches are sent from a thread of the exporter's
//! own; a collector that is slow or gone costs dropped spans and never a request.

use std::fmt;
use std::future::{Future, ready};
use std::pin::Pin;
use std::time::Duration;

use axum::http::{Request, Response};
use bytes::Bytes;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::TracerProvider;
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use tracing::{Span, Subscriber};
use tracing_opentelemetry::{OpenTelemetryLayer, OpenTelemetrySpanExt};
use tracing_subscriber::registry::LookupSpan;

const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// The exporter could not be made.
#[derive(Debug, thiserror::Error)]
#[error("OTLP exporter for {endpoint}: {reason}")]
pub struct OtlpError {
    /// Where spans were to go.
    pub endpoint: String,
    /// What is wrong.
    pub reason: String,
}

/// Keeps the exporter running. Sends what is left when it is dropped.
pub struct OtlpExport {
    provider: SdkTracerProvider,
}

impl Drop for OtlpExport {
    fn drop(&mut self) {
        if let Err(error) = self.provider.shutdown() {
            tracing::warn!(%error, "the last spans could not be exported");
        }
    }
}

/// A layer that exports spans to `endpoint` (such as `http://localhost:4318/v1/traces`) as those of `service_name`. The
/// layer works for as long as the [`OtlpExport`] lives.
///
/// # Errors
/// The endpoint is not an address.
pub fn layer<S>(
    endpoint: &str,
    service_name: &str,
) -> Result<(OpenTelemetryLayer<S, SdkTracer>, OtlpExport), OtlpError>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    let agent = ureq::Agent::config_builder()
        .timeout_global(Some(SEND_TIMEOUT))
        .http_status_as_error(false)
        .build()
        .into();
    let exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(BlockingClient { agent })
        .with_endpoint(endpoint)
        .with_timeout(SEND_TIMEOUT)
        .build()
        .map_err(|error| OtlpError { endpoint: endpoint.to_owned(), reason: error.to_string() })?;
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(Resource::builder().with_service_name(service_name.to_owned()).build())
        .build();
    let tracer = provider.tracer("wardrobe");
    Ok((tracing_opentelemetry::layer().with_tracer(tracer), OtlpExport { provider }))
}

/// The HTTP client of the exporter's thread: it may block there.
struct BlockingClient {
    agent: ureq::Agent,
}

impl fmt::Debug for BlockingClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BlockingClient")
    }
}

impl BlockingClient {
    fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let response = self.agent.run(request.map(|body| body.to_vec()))?;
        let (parts, mut body) = response.into_parts();
        Ok(Response::from_parts(parts, body.read_to_vec()?.into()))
    }
}

impl HttpClient for BlockingClient {
    fn send_bytes<'client, 'sending>(
        &'client self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'sending>>
    where
        'client: 'sending,
        Self: 'sending,
    {
        Box::pin(ready(self.send(request)))
    }
}

/// The one header that a parent is read from.
struct TraceParentHeader<'a>(&'a str);

impl Extractor for TraceParentHeader<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        (key == "traceparent").then_some(self.0)
    }

    fn keys(&self) -> Vec<&str> {
        vec!["traceparent"]
    }
}

/// Makes a request's span a child of the caller's. Without the layer it does nothing.
pub(crate) fn set_parent(span: &Span, traceparent: &str) {
    let context = TraceContextPropagator::new().extract(&TraceParentHeader(traceparent));
    if let Err(error) = span.set_parent(context) {
        tracing::trace!(%error, "the request's parent span is not set");
    }
}
