//! Ctrl-C and SIGTERM. Only the binary handles signals.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use super::output;

/// Exit code of a process that Ctrl-C ended.
pub const INTERRUPTED: i32 = 130;
/// Exit code of a process that SIGTERM ended.
const TERMINATED: i32 = 143;

/// Waits for Ctrl-C or SIGTERM; the process ends at once at the next of either. Needs a tokio runtime.
pub async fn stop_requested() {
    match next().await {
        Ok(_) => {
            output::note("stopping: running requests finish first; once more to stop at once");
            tokio::spawn(async {
                if let Ok(code) = next().await {
                    output::note("stopped at once");
                    std::process::exit(code);
                }
            });
        }
        Err(error) => {
            tracing::warn!(%error, "signals cannot be handled; the server stops only when it is killed");
            std::future::pending::<()>().await;
        }
    }
}

/// The next signal, as the exit code that stands for it.
#[cfg(unix)]
async fn next() -> io::Result<i32> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = interrupt.recv() => Ok(INTERRUPTED),
        _ = terminate.recv() => Ok(TERMINATED),
    }
}

#[cfg(not(unix))]
async fn next() -> io::Result<i32> {
    tokio::signal::ctrl_c().await.map(|()| INTERRUPTED)
}

/// A flag that Ctrl-C or SIGTERM sets, which is told in these words, for work that ends at its next good place; the next of
/// either ends the process.
pub fn stop_flag(words: &'static str) -> io::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let ours = flag.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("wardrobe-signals".to_owned()).spawn(move || {
        runtime.block_on(async {
            while let Ok(code) = next().await {
                if ours.swap(true, Ordering::Relaxed) {
                    std::process::exit(code);
                }
                output::note(words);
            }
        });
    })?;
    Ok(flag)
}

/// Ctrl-C in a conversation: it stops the answer that runs; twice at the prompt, it ends the process.
#[derive(Debug, Clone, Default)]
pub struct Interrupts {
    answering: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    at_prompt: Arc<AtomicU8>,
}

impl Interrupts {
    /// Handles Ctrl-C from now on, on a thread of its own.
    pub fn watch() -> io::Result<Self> {
        let watched = Self::default();
        let ours = watched.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name("wardrobe-signals".to_owned()).spawn(move || {
            runtime.block_on(async {
                while tokio::signal::ctrl_c().await.is_ok() {
                    ours.interrupted();
                }
            });
        })?;
        Ok(watched)
    }

    fn interrupted(&self) {
        if self.answering.load(Ordering::Acquire) {
            self.stop.store(true, Ordering::Release);
        } else if self.at_prompt.fetch_add(1, Ordering::AcqRel) == 0 {
            output::note("\n(once more, or Ctrl-D, to leave)");
        } else {
            std::process::exit(INTERRUPTED);
        }
    }

    /// An answer begins.
    pub fn begin(&self) {
        self.stop.store(false, Ordering::Release);
        self.answering.store(true, Ordering::Release);
    }

    /// Whether the answer is to stop.
    pub fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// The answer has ended.
    pub fn end(&self) {
        self.at_prompt.store(0, Ordering::Release);
        self.answering.store(false, Ordering::Release);
    }
}
