//! Logging to standard error. Only the binary installs a logger.

use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
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
    let lines =
        tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false).with_target(false);
    let subscriber = tracing_subscriber::registry().with(targets).with(lines);
    #[cfg(feature = "otlp")]
    {
        let export = otlp_endpoint.map(|endpoint| wardrobe_server::otlp::layer(endpoint, "wardrobe"));
        let (layer, export) = export.transpose()?.unzip();
        subscriber.with(layer).try_init()?;
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

/// Starts logging for a command that talks to a person: what the environment asks for, else warnings.
pub fn init_quiet() -> anyhow::Result<()> {
    let filter = std::env::var(LOG_ENV).ok().filter(|filter| !filter.is_empty());
    init(filter.as_deref().unwrap_or("warn"), None)?;
    Ok(())
}
