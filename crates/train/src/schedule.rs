//! The learning rate of each step.

use serde::{Deserialize, Serialize};

/// How the learning rate goes after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// Down to zero along a straight line.
    Linear,
    /// Down to zero along half a cosine (Loshchilov & Hutter, arXiv 1608.03983, without restarts).
    #[default]
    Cosine,
    /// Stays.
    Constant,
}

impl Schedule {
    /// Factor on the largest learning rate at step `step` (from 0) of `total`, of which `warmup` go up from zero.
    pub fn factor(self, step: usize, warmup: usize, total: usize) -> f64 {
        if step < warmup {
            return (step + 1) as f64 / (warmup + 1) as f64;
        }
        let left = total.saturating_sub(warmup).max(1) as f64;
        let done = ((step - warmup) as f64 / left).min(1.0);
        match self {
            Schedule::Linear => 1.0 - done,
            Schedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
            Schedule::Constant => 1.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn up_then_down() {
        for schedule in [Schedule::Linear, Schedule::Cosine, Schedule::Constant] {
            let at = |step| schedule.factor(step, 4, 20);
            assert!((0..4).all(|s| at(s) > 0.0 && at(s) < at(s + 1)), "{schedule:?}");
            assert_eq!(at(4), 1.0);
            assert!((4..19).all(|s| at(s + 1) <= at(s)), "{schedule:?}");
        }
        assert!(Schedule::Linear.factor(19, 0, 20) > 0.0);
        assert!((Schedule::Cosine.factor(10, 0, 20) - 0.5).abs() < 1e-12);
        assert_eq!(Schedule::Linear.factor(0, 0, 1), 1.0);
    }
}
