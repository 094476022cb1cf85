//! Lengths in figures: count, extremes, mean, percentiles, and a histogram.

use std::fmt::Write as _;

/// What a list of lengths says.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LengthStats {
    /// In order.
    sorted: Vec<usize>,
    total: u64,
}

/// A range of lengths and how many lie in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bucket {
    /// The shortest.
    pub from: usize,
    /// One more than the longest.
    pub to: usize,
    /// How many.
    pub count: usize,
}

/// The most buckets of a histogram.
const MAX_BUCKETS: usize = 12;

impl LengthStats {
    /// Takes lengths.
    pub fn new(lengths: impl IntoIterator<Item = usize>) -> Self {
        let mut sorted: Vec<usize> = lengths.into_iter().collect();
        sorted.sort_unstable();
        let total = sorted.iter().map(|length| *length as u64).sum();
        Self { sorted, total }
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.sorted.len()
    }

    /// The shortest; 0 for none.
    pub fn min(&self) -> usize {
        self.sorted.first().copied().unwrap_or(0)
    }

    /// The longest; 0 for none.
    pub fn max(&self) -> usize {
        self.sorted.last().copied().unwrap_or(0)
    }

    /// All together.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The mean; 0 for none.
    pub fn mean(&self) -> f64 {
        if self.sorted.is_empty() { 0.0 } else { self.total as f64 / self.sorted.len() as f64 }
    }

    /// The smallest length that at least `percent` of all do not exceed (nearest rank); 0 for none.
    pub fn percentile(&self, percent: usize) -> usize {
        let rank = (self.sorted.len() * percent.min(100)).div_ceil(100);
        self.sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0)
    }

    /// Ranges of one width (1, 2 or 5 times a power of ten), at most twelve, from the shortest to the longest.
    pub fn histogram(&self) -> Vec<Bucket> {
        let (Some(min), Some(max)) = (self.sorted.first().copied(), self.sorted.last().copied()) else {
            return Vec::new();
        };
        let buckets = |width: usize| max / width - min / width + 1;
        let mut width = 1_usize;
        let mut factors = [2, 5, 10].into_iter().cycle();
        let mut power = 1_usize;
        while buckets(width) > MAX_BUCKETS {
            let Some(factor) = factors.next() else { break };
            width = power.saturating_mul(factor);
            if factor == 10 {
                power = width;
            }
        }
        let mut rest = self.sorted.as_slice();
        let mut found = Vec::new();
        for idx in min / width..=max / width {
            let (from, to) = (idx * width, (idx + 1).saturating_mul(width));
            let count = rest.partition_point(|length| *length < to);
            rest = rest.get(count..).unwrap_or_default();
            found.push(Bucket { from, to, count });
        }
        found
    }

    /// The histogram as lines of text, with bars of at most `width` characters.
    pub fn histogram_text(&self, width: usize) -> String {
        let buckets = self.histogram();
        let most = buckets.iter().map(|bucket| bucket.count).max().unwrap_or(1).max(1);
        let digits = self.max().to_string().len();
        let counts = most.to_string().len();
        let mut text = String::new();
        for Bucket { from, to, count } in buckets {
            // One at least, for what is there.
            let bar = "#".repeat((count * width).div_ceil(most));
            let last = to - 1;
            // Writing to a string cannot fail.
            let _ =
                writeln!(text, "{from:>digits$}-{last:<width$} {count:>counts$} {bar}", width = digits + 1);
        }
        text.lines().map(|line| format!("{}\n", line.trim_end())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures() {
        let stats = LengthStats::new([5, 1, 3, 100]);
        assert_eq!((stats.count(), stats.min(), stats.max(), stats.total()), (4, 1, 100, 109));
        assert!((stats.mean() - 27.25).abs() < 1e-12);
        // Nearest rank, as the definition has it: rank ceil(p/100 * 4).
        assert_eq!([0, 25, 26, 50, 75, 76, 100].map(|p| stats.percentile(p)), [1, 1, 3, 3, 5, 100, 100]);
        let none = LengthStats::default();
        assert_eq!((none.min(), none.max(), none.percentile(50), none.histogram()), (0, 0, 0, Vec::new()));
    }

    #[test]
    fn buckets_hold_all() {
        for (lengths, width) in [
            (vec![7], 1),
            ((0..12).collect(), 1),
            ((0..13).collect(), 2),
            (vec![3, 118], 10),
            (vec![0, 119, 120], 20),
            (vec![1, 999_999], 100_000),
        ] {
            let histogram = LengthStats::new(lengths.iter().copied()).histogram();
            assert!(histogram.len() <= MAX_BUCKETS);
            for bucket in &histogram {
                assert_eq!(bucket.to - bucket.from, width, "{lengths:?}");
                let inside =
                    lengths.iter().filter(|length| (bucket.from..bucket.to).contains(length)).count();
                assert_eq!(bucket.count, inside);
            }
            assert_eq!(histogram.iter().map(|bucket| bucket.count).sum::<usize>(), lengths.len());
        }
    }

    #[test]
    fn bars() {
        let lengths = [vec![10; 8], vec![20, 29], vec![115]].concat();
        let text = LengthStats::new(lengths).histogram_text(4);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.first(), Some(&" 10-19   8 ####"));
        assert_eq!(lines.get(1), Some(&" 20-29   2 #"));
        assert_eq!(lines.last(), Some(&"110-119  1 #"));
    }
}
