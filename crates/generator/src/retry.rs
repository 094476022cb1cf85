//! How long what cannot be answered now is asked again.

use std::time::{Duration, Instant};

/// How long a question that cannot be answered now is asked again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Before the second try. It doubles from try to try.
    pub first_wait: Duration,
    /// The longest time between two tries, unless the other side asks for more.
    pub max_wait: Duration,
    /// How long a question is asked again, from its first failure on, before the run ends.
    pub patience: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            first_wait: Duration::from_millis(500),
            max_wait: Duration::from_secs(20),
            patience: Duration::from_secs(180),
        }
    }
}

/// The tries of one question.
#[derive(Debug)]
pub struct Tries {
    policy: RetryPolicy,
    /// When the first try failed: one that took long before it did has used up no patience.
    first_failed: Option<Instant>,
    wait: Duration,
    salt: u64,
    num: u32,
}

impl RetryPolicy {
    /// The first try is about to begin. Questions with other salts wait other times, so that what failed together does not come
    /// again together.
    pub fn start(self, salt: u64) -> Tries {
        Tries { policy: self, first_failed: None, wait: self.first_wait, salt, num: 1 }
    }
}

impl Tries {
    /// Tries so far.
    pub fn num(&self) -> u32 {
        self.num
    }

    /// How long to wait before the next try, `after` at least; `None` once patience is at its end.
    pub fn next_wait(&mut self, after: Option<Duration>) -> Option<Duration> {
        let RetryPolicy { max_wait, patience, .. } = self.policy;
        if self.first_failed.get_or_insert_with(Instant::now).elapsed() >= patience {
            return None;
        }
        let wait = spread(self.wait, self.salt).max(after.unwrap_or_default()).min(patience);
        self.wait = self.wait.saturating_mul(2).min(max_wait);
        self.num += 1;
        Some(wait)
    }
}

/// Waits in slices; false as soon as the run stops.
pub fn wait_unless(stopped: &dyn Fn() -> bool, time: Duration) -> bool {
    const SLICE: Duration = Duration::from_millis(50);
    let until = Instant::now() + time;
    loop {
        if stopped() {
            return false;
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return true;
        }
        std::thread::sleep(left.min(SLICE));
    }
}

/// Between half of a time and all of it.
fn spread(time: Duration, salt: u64) -> Duration {
    let step = (salt.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 60) as u32;
    time / 2 + time / 32 * step
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_end_with_patience() {
        let ms = Duration::from_millis;
        let policy =
            RetryPolicy { first_wait: ms(100), max_wait: ms(400), patience: Duration::from_secs(60) };
        let mut tries = policy.start(0);
        let waits: Vec<_> = (0..4).map(|_| tries.next_wait(None).unwrap()).collect();
        assert_eq!(waits, [ms(50), ms(100), ms(200), ms(200)]);
        assert_eq!(tries.num(), 5);
        assert_eq!(tries.next_wait(Some(ms(900))), Some(ms(900)));
        for salt in 0..1000 {
            let wait = policy.start(salt).next_wait(None).unwrap();
            assert!((ms(50)..=ms(100)).contains(&wait), "{wait:?}");
        }
        assert_eq!(RetryPolicy { patience: Duration::ZERO, ..policy }.start(0).next_wait(None), None);
    }

    #[test]
    fn patience_begins_with_the_first_failure() {
        let ms = Duration::from_millis;
        let mut tries = RetryPolicy { first_wait: ms(1), max_wait: ms(1), patience: ms(200) }.start(0);
        // A first try that stalls for longer than patience lasts.
        std::thread::sleep(ms(250));
        assert!(tries.next_wait(None).is_some());
        std::thread::sleep(ms(250));
        assert_eq!(tries.next_wait(None), None);
    }

    #[test]
    fn a_stop_ends_a_wait() {
        assert!(wait_unless(&|| false, Duration::ZERO));
        assert!(!wait_unless(&|| true, Duration::from_secs(3600)));
    }
}
