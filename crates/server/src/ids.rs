//! Ids that clients see: unguessable and unique, without a random number generator of our own.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

/// Makes ids from the standard library's random hash keys and a counter.
pub(crate) struct IdSource {
    keys: [RandomState; 2],
    counter: AtomicU64,
}

impl IdSource {
    pub fn new() -> Self {
        Self { keys: [RandomState::new(), RandomState::new()], counter: AtomicU64::new(0) }
    }

    /// The prefix and 32 hexadecimal digits.
    pub fn next(&self, prefix: &str) -> String {
        let count = self.counter.fetch_add(1, Ordering::Relaxed);
        let [high, low] = &self.keys;
        format!("{prefix}{:016x}{:016x}", high.hash_one(count), low.hash_one(count))
    }
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
