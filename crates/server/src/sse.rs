//! Server-sent events: a request's events as a response body.
//!
//! All events that are there are written into one buffer and go out as one frame, so that a busy engine costs few
//! writes. A client that goes away drops the body, and with it the request. Nothing is buffered for a slow reader
//! beyond the frame that waits: the engine's own bounded stream holds the rest.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::Stream;
use serde::Serialize;
use tokio::time::{Instant, Sleep, sleep, sleep_until};
use wardrobe_engine::Event;

use crate::error::{ApiError, Result};
use crate::generate::Generation;
use crate::wire::usage::{WireTimings, WireUsage};

/// A frame goes out once it has this many bytes, even if more events are there.
const FRAME_BYTES: usize = 16 << 10;

/// Writes one API's chunks.
pub(crate) trait ChunkWriter: Send + Unpin + 'static {
    /// An event of one of the request's prompts.
    fn event(&mut self, prompt_idx: usize, event: Event, out: &mut BytesMut) -> Result<()>;
    /// All prompts have ended: what comes before `[DONE]`.
    fn end(&mut self, out: &mut BytesMut) -> Result<()>;
    /// The data of the event that ends a stream which fails.
    fn error(&mut self, error: &ApiError, out: &mut BytesMut) {
        // Writing strings to memory cannot fail.
        let _ = error.write_json(out.writer());
    }
}

/// A chunk around its choice: what is the same in all chunks of a stream, written once.
pub(crate) struct ChunkFrame {
    head: Vec<u8>,
    tail: &'static [u8],
}

#[derive(Serialize)]
struct Head<'a> {
    id: &'a str,
    object: &'a str,
    created: u64,
    model: &'a str,
}

#[derive(Serialize)]
struct Last<'a> {
    #[serde(flatten)]
    head: Head<'a>,
    system_fingerprint: &'a str,
    choices: [(); 0],
    usage: WireUsage,
    #[serde(skip_serializing_if = "Option::is_none")]
    timings: Option<WireTimings>,
}

/// What names a stream's chunks.
#[derive(Clone)]
pub(crate) struct ChunkNames {
    pub id: String,
    pub object: &'static str,
    pub created: u64,
    pub model: String,
}

impl ChunkNames {
    fn head(&self) -> Head<'_> {
        Head { id: &self.id, object: self.object, created: self.created, model: &self.model }
    }

    /// The chunk with `usage` and no choice.
    pub fn write_usage(
        &self,
        fingerprint: &str,
        usage: WireUsage,
        timings: Option<WireTimings>,
        out: &mut BytesMut,
    ) -> Result<()> {
        let last = Last { head: self.head(), system_fingerprint: fingerprint, choices: [], usage, timings };
        write_event(&last, out)
    }
}

/// Writes an event of its own.
pub(crate) fn write_event(value: &impl Serialize, out: &mut BytesMut) -> Result<()> {
    out.put_slice(b"data: ");
    write_json(value, out)?;
    out.put_slice(b"\n\n");
    Ok(())
}

fn write_json(value: &impl Serialize, out: &mut BytesMut) -> Result<()> {
    serde_json::to_writer(out.writer(), value).map_err(|error| ApiError::internal(error.to_string()))
}

impl ChunkFrame {
    /// With `usage_is_null` every chunk says that its usage is not known yet.
    pub fn new(names: &ChunkNames, usage_is_null: bool) -> Result<Self> {
        let mut head = b"data: ".to_vec();
        serde_json::to_writer(&mut head, &names.head())
            .map_err(|error| ApiError::internal(error.to_string()))?;
        // The object goes on.
        head.pop();
        head.extend_from_slice(b",\"choices\":[");
        let tail: &[u8] = if usage_is_null { b"],\"usage\":null}\n\n" } else { b"]}\n\n" };
        Ok(Self { head, tail })
    }

    /// Writes a chunk with one choice.
    pub fn write(&self, choice: &impl Serialize, out: &mut BytesMut) -> Result<()> {
        out.put_slice(&self.head);
        write_json(choice, out)?;
        out.put_slice(self.tail);
        Ok(())
    }
}

/// The body of a streaming answer.
pub(crate) struct SseStream<W> {
    generation: Option<Generation>,
    writer: W,
    buffer: BytesMut,
    keep_alive_interval: Duration,
    keep_alive: Pin<Box<Sleep>>,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl<W: ChunkWriter> SseStream<W> {
    pub fn new(generation: Generation, writer: W, keep_alive_interval: Duration) -> Self {
        let deadline = generation.deadline.map(|deadline| Box::pin(sleep_until(deadline)));
        let keep_alive = Box::pin(sleep(keep_alive_interval));
        let buffer = BytesMut::with_capacity(FRAME_BYTES);
        Self { generation: Some(generation), writer, buffer, keep_alive_interval, keep_alive, deadline }
    }

    /// The response with its headers.
    pub fn into_response(self) -> Response {
        let headers = [
            (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8")),
            (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
            // Some proxies collect a response unless told otherwise.
            (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
        ];
        (headers, Body::from_stream(self)).into_response()
    }

    /// Ends the stream, which cancels what still runs.
    fn finish(&mut self, result: Result<()>, outcome: &'static str) {
        if let Some(mut generation) = self.generation.take() {
            generation.log.end(outcome);
        }
        if let Err(error) = result {
            self.buffer.put_slice(b"data: ");
            self.writer.error(&error, &mut self.buffer);
            self.buffer.put_slice(b"\n\n");
        }
        self.buffer.put_slice(b"data: [DONE]\n\n");
    }

    /// Writes what there is. Whether the engine has to be waited for.
    fn fill(&mut self, context: &mut Context<'_>) -> bool {
        while self.buffer.len() < FRAME_BYTES {
            let Some(generation) = &mut self.generation else { return false };
            let result = match generation.poll_event(context) {
                Poll::Pending => return true,
                Poll::Ready(Some((prompt_idx, event))) => {
                    self.writer.event(prompt_idx, event, &mut self.buffer)
                }
                Poll::Ready(None) => {
                    let result = self.writer.end(&mut self.buffer);
                    self.finish(result, "ok");
                    return false;
                }
            };
            if result.is_err() {
                self.finish(result, "error");
            }
        }
        false
    }
}

impl<W: ChunkWriter> Stream for SseStream<W> {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let waits = this.fill(context);
        if waits
            && let Some(deadline) = &mut this.deadline
            && deadline.as_mut().poll(context).is_ready()
        {
            this.finish(Err(ApiError::timeout()), "timeout");
        }
        if this.buffer.is_empty() {
            if this.generation.is_none() {
                return Poll::Ready(None);
            }
            if this.keep_alive.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            this.buffer.put_slice(b": keep-alive\n\n");
        }
        this.keep_alive.as_mut().reset(Instant::now() + this.keep_alive_interval);
        Poll::Ready(Some(Ok(this.buffer.split().freeze())))
    }
}
