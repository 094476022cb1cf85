//! The server's life: accept connections until told to stop, then drain.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use wardrobe_batch::BatchError;

use crate::batch_endpoint::RouterEndpoint;
use crate::config::{ServedModel, ServerConfig};
use crate::connection::StallGuard;
use crate::error::ServerError;
use crate::router::router;
use crate::state::ServerState;

/// How long after the drain limit connections may take to send their last bytes.
const LAST_BYTES: Duration = Duration::from_secs(2);

/// The endpoint of one model.
#[derive(Clone)]
pub struct Server {
    state: Arc<ServerState>,
}

impl Server {
    /// Checks the configuration, opens the adapter root, and starts to watch the engine for metrics.
    ///
    /// # Errors
    /// A field out of its range, or an adapter root that is no readable folder.
    pub fn new(model: ServedModel, config: ServerConfig) -> Result<Self, ServerError> {
        Ok(Self { state: Arc::new(ServerState::new(model, config)?) })
    }

    /// All routes with their middleware, to be served by [`Server::serve`] or nested into an app of one's own. Its
    /// handlers need a tokio runtime with time enabled.
    pub fn router(&self) -> Router {
        router(self.state.clone())
    }

    /// Starts to work on batches, whose requests are answered on `runtime`. [`Server::serve`] does so by itself; who
    /// serves [`Server::router`] in another way does it once. Without a runner for them this does nothing.
    ///
    /// # Errors
    /// No thread can be started, or the runner is shutting down.
    pub fn start_batches(&self, runtime: Handle) -> Result<(), BatchError> {
        let Some(runner) = &self.state.model.fine_tuning else { return Ok(()) };
        runner.start_batches(Arc::new(RouterEndpoint::new(&self.state, runtime)))
    }

    /// Turns `/ready` to 503 and refuses new generation requests. [`Server::serve`] does so by itself.
    pub fn start_draining(&self) {
        self.state.start_draining();
    }

    /// Serves until `shutdown` is ready, then drains: `/ready` says 503 and new requests are refused at once; after
    /// `drain_delay` no connection is accepted any more; requests that run have `drain_limit` to finish; what is left
    /// is cancelled, and the engine is shut down.
    ///
    /// # Errors
    /// The listener fails for good, or no thread for batches can be started.
    pub async fn serve(self, listener: TcpListener, shutdown: impl Future<Output = ()>) -> io::Result<()> {
        let config = &self.state.config;
        let app = self.router();
        self.start_batches(Handle::current()).map_err(io::Error::other)?;
        let graceful = GracefulShutdown::new();
        let (abort, aborted) = watch::channel(());
        let places = Arc::new(Semaphore::new(config.max_connections));
        let stop = async {
            shutdown.await;
            self.state.start_draining();
            if let Some(jobs) = &self.state.model.fine_tuning {
                jobs.request_shutdown();
            }
            tracing::info!(drain_limit_ms = config.drain_limit.as_millis() as u64, "draining");
            tokio::time::sleep(config.drain_delay).await;
        };
        let mut stop = pin!(stop);
        loop {
            let accepted = tokio::select! {
                accepted = accept(&listener, &places) => accepted?,
                () = &mut stop => break,
            };
            let Some((stream, place)) = accepted else { continue };
            let connection = Connection {
                app: app.clone(),
                watcher: graceful.watcher(),
                aborted: aborted.clone(),
                read_timeout: config.read_timeout,
                write_timeout: config.write_timeout,
                place,
            };
            tokio::spawn(connection.run(stream));
        }
        drop(listener);
        let jobs = self.state.model.fine_tuning.clone();
        let drain_jobs = config.drain_limit;
        // Jobs that run go on after the next start.
        let jobs_end = tokio::task::spawn_blocking(move || jobs.is_none_or(|jobs| jobs.shutdown(drain_jobs)));
        let engine = self.state.model.engine.clone();
        let drain_limit = config.drain_limit;
        let engine_ends = tokio::task::spawn_blocking(move || engine.shutdown(drain_limit));
        let connections_end =
            tokio::time::timeout(drain_limit.saturating_add(LAST_BYTES), graceful.shutdown());
        if connections_end.await.is_err() {
            tracing::warn!("connections that did not end in time are closed");
            let _ = abort.send(());
        }
        if engine_ends.await.is_err() {
            tracing::error!("the engine's shutdown failed");
        }
        match jobs_end.await {
            Ok(true) => {}
            Ok(false) => {
                tracing::warn!("a job did not stop in time; it goes on from its checkpoint")
            }
            Err(_) => tracing::error!("the jobs' shutdown failed"),
        }
        tracing::info!("stopped");
        Ok(())
    }
}

/// Waits for a place and a connection. `None` where a connection failed before it was one.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> io::Result<Option<(TcpStream, OwnedSemaphorePermit)>> {
    let place = places.clone().acquire_owned().await.map_err(io::Error::other)?;
    match listener.accept().await {
        Ok((stream, _)) => {
            // Tokens go out as they come.
            let _ = stream.set_nodelay(true);
            Ok(Some((stream, place)))
        }
        Err(error) => {
            use io::ErrorKind::{
                ConnectionAborted, ConnectionRefused, ConnectionReset, InvalidInput, Unsupported,
            };
            match error.kind() {
                ConnectionAborted | ConnectionRefused | ConnectionReset => {}
                InvalidInput | Unsupported => return Err(error),
                _ => {
                    // Out of file descriptors or memory: others may give some back.
                    tracing::error!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
            Ok(None)
        }
    }
}

struct Connection {
    app: Router,
    watcher: Watcher,
    aborted: watch::Receiver<()>,
    read_timeout: Duration,
    write_timeout: Duration,
    place: OwnedSemaphorePermit,
}

impl Connection {
    async fn run(mut self, stream: TcpStream) {
        let io = TokioIo::new(StallGuard::new(stream, self.write_timeout));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.read_timeout)
            .serve_connection(io, TowerToHyperService::new(self.app));
        let connection = self.watcher.watch(connection);
        tokio::select! {
            result = connection => if let Err(error) = result {
                tracing::debug!(%error, "connection ended");
            },
            _ = self.aborted.changed() => {}
        }
        drop(self.place);
    }
}
