//! Logging to standard error. Only the binary installs a logger.

use tracing::Subscriber;
use tracing_subscriber::Layer;
#[cfg(feature = "otlp")]
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

use super::failure::UsageError;

/// Environment variable of the filter.
const LOG_ENV: &str = "WARDROBE_LOG";

/// Keeps the export of spans running for as long as it lives, in builds that have one.
pub struct SpanExport {
    #[cfg(feature = "otlp")]
    _export: Option<wardrobe_server::otlp::OtlpExport>,
}

/// Starts logging what `filter` lets through (a level, or `target=level` pairs parted by commas), and exporting the
/// same spans to an OpenTelemetry collector, if one is given.
pub fn init(filter: &str, otlp_endpoint: Option<&str>) -> anyhow::Result<SpanExport> {
    let targets: Targets = filter
        .parse()
        .map_err(|error| UsageError(format!("the log filter {filter:?} cannot be used: {error}")))?;
    let subscriber = tracing_subscriber::registry().with(lines(targets, std::io::stderr));
    #[cfg(feature = "otlp")]
    {
        let export = otlp_endpoint.map(|endpoint| wardrobe_server::otlp::layer(endpoint, "wardrobe"));
        let (layer, export) = export.transpose()?.unzip();
        // Spans are of this level. What the lines leave out is exported all the same.
        subscriber.with(layer.with_filter(LevelFilter::INFO)).try_init()?;
        Ok(SpanExport { _export: export })
    }
    #[cfg(not(feature = "otlp"))]
    {
        if otlp_endpoint.is_some() {
            let error = UsageError("this build cannot export spans over OTLP".to_owned());
            return Err(super::failure::with_hint(error, "build it with --features otlp"));
        }
        subscriber.try_init()?;
        Ok(SpanExport {})
    }
}

/// The lines, which `targets` filters for themselves alone.
fn lines<S, W>(targets: Targets, writer: W) -> impl Layer<S>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    W: for<'writer> MakeWriter<'writer> + 'static,
{
    let lines = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(false).with_target(false);
    lines.with_filter(targets)
}

/// Starts logging for a command that talks to a person: what the environment asks for, else warnings.
pub fn init_quiet() -> anyhow::Result<()> {
    let filter = std::env::var(LOG_ENV).ok().filter(|filter| !filter.is_empty());
    init(filter.as_deref().unwrap_or("warn"), None)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Counts spans, as an export does.
    struct Spans(&'static AtomicUsize);

    impl<S: Subscriber> Layer<S> for Spans {
        fn on_new_span(
            &self,
            _: &tracing::span::Attributes<'_>,
            _: &tracing::Id,
            _: tracing_subscriber::layer::Context<'_, S>,
        ) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    struct Lines(&'static Mutex<Vec<u8>>);

    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_filter_of_the_lines_leaves_spans_to_others() {
        static SPANS: AtomicUsize = AtomicUsize::new(0);
        static LINES: Mutex<Vec<u8>> = Mutex::new(Vec::new());
        let subscriber = tracing_subscriber::registry()
            .with(lines("warn".parse().unwrap(), || Lines(&LINES)))
            .with(Spans(&SPANS));
        tracing::subscriber::with_default(subscriber, || {
            let _span = tracing::info_span!("request").entered();
            tracing::info!("not shown");
            tracing::warn!("shown");
        });
        let lines = String::from_utf8(LINES.lock().unwrap().clone()).unwrap();
        assert!(lines.contains("shown") && !lines.contains("not shown"), "{lines}");
        assert_eq!(SPANS.load(Ordering::Relaxed), 1);
    }
}
