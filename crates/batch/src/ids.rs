//! Ids that clients see, and upload tokens: unguessable, and unique over restarts.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

/// Makes ids from the standard library's random hash keys and a counter; the endpoint's request ids too.
#[derive(Debug, Default)]
pub struct IdSource {
    keys: [RandomState; 2],
    counter: AtomicU64,
}

impl IdSource {
    /// With keys of its own.
    pub fn new() -> Self {
        Self::default()
    }

    /// The prefix and 32 hexadecimal digits.
    pub fn next(&self, prefix: &str) -> String {
        let count = self.counter.fetch_add(1, Ordering::Relaxed);
        let [high, low] = &self.keys;
        format!("{prefix}{:016x}{:016x}", high.hash_one(count), low.hash_one(count))
    }
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_differ_within_and_between_sources() {
        let (a, b) = (IdSource::new(), IdSource::new());
        let ids: std::collections::BTreeSet<_> =
            (0..1000).flat_map(|_| [a.next("req-"), b.next("req-")]).collect();
        assert_eq!(ids.len(), 2000);
        assert!(ids.iter().all(|id| id.len() == 36));
    }
}
