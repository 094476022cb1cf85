//! Order statistics of measured times.

use serde::Serialize;

/// Median and tail of some values.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Percentiles {
    /// Half of the values are at most this.
    pub p50: f64,
    /// 99 of 100 are at most this.
    pub p99: f64,
    /// How many values there were.
    pub count: usize,
}

impl Percentiles {
    /// Of values in any order; all 0 if there are none.
    pub fn of(values: &[f64]) -> Self {
        Percentiles { p50: percentile(values, 50.0), p99: percentile(values, 99.0), count: values.len() }
    }
}

/// The value at or below which `percent` of the values lie, interpolated linearly between the two nearest (Hyndman and
/// Fan 1996, definition 7, as NumPy has it). 0 if there are none; `percent` is taken into 0..=100.
pub fn percentile(values: &[f64], percent: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let at = percent.clamp(0.0, 100.0) / 100.0 * last as f64;
    let low = (at.floor() as usize).min(last);
    let high = (low + 1).min(last);
    match (sorted.get(low), sorted.get(high)) {
        (Some(a), Some(b)) => a + (b - a) * (at - low as f64),
        _ => 0.0,
    }
}

/// The middle value.
pub(crate) fn median(values: &[f64]) -> f64 {
    percentile(values, 50.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_interpolate_as_numpy_does() {
        // numpy.percentile([15, 20, 35, 40, 50], [0, 5, 30, 40, 50, 95, 100])
        let values = [40.0, 15.0, 50.0, 20.0, 35.0];
        for (percent, expected) in
            [(0.0, 15.0), (5.0, 16.0), (30.0, 23.0), (40.0, 29.0), (50.0, 35.0), (95.0, 48.0), (100.0, 50.0)]
        {
            assert!((percentile(&values, percent) - expected).abs() < 1e-9, "{percent}");
        }
    }

    #[test]
    fn few_values() {
        assert_eq!(percentile(&[], 50.0), 0.0);
        assert_eq!(percentile(&[3.0], 99.0), 3.0);
        assert_eq!(percentile(&[1.0, 2.0], 200.0), 2.0);
        assert_eq!(Percentiles::of(&[2.0, 1.0, 3.0]).p50, 2.0);
        assert_eq!(Percentiles::of(&[]), Percentiles::default());
    }
}
