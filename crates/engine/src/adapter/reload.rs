//! The thread that reads evicted adapters again, so that neither callers nor the engine wait for a disk.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::registry::AdapterRegistry;
use super::{AdapterLoader, AdapterSource, PreparedAdapter};
use crate::error::AdapterError;

/// Reads `source`; a loader that panics refuses the adapter and harms nothing else.
pub(crate) fn load_caught(
    loader: &dyn AdapterLoader,
    source: &AdapterSource,
) -> Result<Arc<dyn PreparedAdapter>, AdapterError> {
    catch_unwind(AssertUnwindSafe(|| loader.load(source))).unwrap_or_else(|payload| {
        let reason = format!("the loader panicked: {}", crate::panic_text(payload.as_ref()));
        Err(AdapterError::Refused { reason })
    })
}

/// Serves reloads until the registry is closed. `wake_engine` is called after each.
pub(crate) fn run(registry: &AdapterRegistry, loader: &dyn AdapterLoader, wake_engine: &dyn Fn()) {
    while let Some(generation) = registry.next_reload() {
        let result = load_caught(loader, &generation.source);
        if let Err(error) = &result {
            tracing::warn!(adapter = %generation.name, generation = %generation.id, %error, "adapter reload failed");
        }
        registry.finish_reload(&generation, result);
        wake_engine();
    }
}
