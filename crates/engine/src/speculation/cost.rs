//! What steps take, as measured while they run: no machine's numbers stand here.
//!
//! A step of generation is known by its sequences and its rows. For each shape the last few times are kept, of which the lower
//! median counts: what disturbs a measurement, and the recording of a shape that is new, only makes it longer.

use std::collections::BTreeMap;

/// Times of a shape that are kept.
const KEPT: usize = 7;
/// Steps after which a shape's times with a draft are forgotten: the machine may have had other work.
const FRESH_STEPS: u64 = 1024;
/// Until anything else is known, what a further row takes, of the step without: to be corrected by the first that is tried.
const FIRST_GUESS: f64 = 0.15;

#[derive(Clone, Debug, Default)]
struct Times {
    seconds: [f32; KEPT],
    count: usize,
    last_step: u64,
    /// The lower median of those kept.
    typical: f64,
}

impl Times {
    fn note(&mut self, seconds: f32, step: u64) {
        if let Some(slot) = self.seconds.get_mut(self.count % KEPT) {
            *slot = seconds;
        }
        // Beyond `KEPT` it only says which is the oldest.
        self.count = if self.count >= 2 * KEPT { KEPT + 1 } else { self.count + 1 };
        self.last_step = step;
        let mut kept = self.seconds;
        let kept = kept.get_mut(..self.count.min(KEPT)).unwrap_or_default();
        kept.sort_unstable_by(f32::total_cmp);
        self.typical = kept.get(kept.len().saturating_sub(1) / 2).map_or(0.0, |seconds| f64::from(*seconds));
    }
}

/// Times by shape: with a draft by sequences, in powers of two, and rows; without by rows alone.
#[derive(Debug, Default)]
pub(super) struct StepTimes {
    plain: BTreeMap<usize, Times>,
    drafted: BTreeMap<(u32, usize), Times>,
    step: u64,
}

/// Rows that are told apart: all up to 32, then in steps of an eighth.
pub(super) fn bucket(rows: usize) -> usize {
    match (rows / 32).checked_ilog2() {
        None => rows,
        Some(doublings) => rows.next_multiple_of(4 << doublings),
    }
}

fn group(sequences: usize) -> u32 {
    sequences.max(1).next_power_of_two().trailing_zeros()
}

impl StepTimes {
    /// Notes a step of generation.
    pub fn note(&mut self, sequences: usize, rows: usize, drafted: bool, seconds: f64) {
        self.step += 1;
        let times = match drafted {
            true => self.drafted.entry((group(sequences), bucket(rows))).or_default(),
            false => self.plain.entry(bucket(rows)).or_default(),
        };
        if drafted && self.step - times.last_step > FRESH_STEPS {
            *times = Times::default();
        }
        times.note(seconds as f32, self.step);
    }

    /// Seconds of a step without drafts: measured, or between two that were.
    pub fn plain(&self, rows: usize) -> Option<f64> {
        let below = self.plain.range(..=bucket(rows)).next_back().map(point);
        let above = self.plain.range(bucket(rows)..).next().map(point);
        match (below, above) {
            (Some(below), Some(above)) => Some(between(below, above, rows)),
            // A step with fewer rows takes no longer.
            (None, Some((_, seconds))) => Some(seconds),
            // And one that is barely larger not much longer.
            (Some((of, seconds)), None) if rows * 4 <= of * 5 => Some(seconds),
            _ => None,
        }
    }

    /// Seconds of a step of `rows` with drafts, where one without has `base_rows` and takes `base`.
    pub fn drafted(&self, sequences: usize, base: (usize, f64), rows: usize) -> f64 {
        let (group, rows) = (group(sequences), bucket(rows));
        let is_fresh = |times: &Times| self.step - times.last_step <= FRESH_STEPS;
        let mut known = self
            .drafted
            .range((group, 0)..(group + 1, 0))
            .filter(|((_, of), times)| *of > base.0 && is_fresh(times))
            .map(|((_, of), times)| point((of, times)));
        let (mut below, mut above) = (base, None);
        for at in known.by_ref() {
            if at.0 >= rows {
                above = Some(at);
                break;
            }
            below = at;
        }
        let seconds = match above {
            Some(above) => between(below, above, rows),
            None if below.0 > base.0 => {
                // On with the slope so far.
                let slope = (below.1 - base.1) / (below.0 - base.0) as f64;
                below.1 + slope.max(0.0) * (rows - below.0.min(rows)) as f64
            }
            None => base.1 * (1.0 + FIRST_GUESS * (rows - base.0.min(rows)) as f64 / sequences.max(1) as f64),
        };
        seconds.max(base.1)
    }
}

fn point((rows, times): (&usize, &Times)) -> (usize, f64) {
    (*rows, times.typical)
}

fn between(below: (usize, f64), above: (usize, f64), rows: usize) -> f64 {
    if above.0 <= below.0 {
        return above.1;
    }
    let part = rows.saturating_sub(below.0) as f64 / (above.0 - below.0) as f64;
    below.1 + (above.1 - below.1) * part.clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_measured_is_believed_and_what_was_not_lies_between() {
        let mut times = StepTimes::default();
        assert_eq!(times.plain(1), None);
        times.note(1, 1, false, 3.0);
        assert_eq!((times.plain(1), times.plain(8)), (Some(3.0), None));
        times.note(9, 9, false, 11.0);
        assert_eq!(times.plain(5), Some(7.0));
        let base = (1, 3.0);
        let guess = times.drafted(1, base, 9);
        assert!(guess > 3.0 && guess < 9.0, "{guess}");
        times.note(1, 9, true, 15.0);
        assert_eq!(times.drafted(1, base, 9), 15.0);
        assert_eq!(times.drafted(1, base, 5), 9.0);
        assert_eq!(times.drafted(1, base, 17), 27.0);
        // Of other numbers of sequences nothing was measured.
        assert!(times.drafted(4, base, 9) < 15.0);
    }

    #[test]
    fn a_disturbed_step_does_not_count_and_an_old_one_is_tried_again() {
        let mut times = StepTimes::default();
        for seconds in [90.0, 5.0, 5.0, 70.0, 5.0] {
            times.note(1, 4, true, seconds);
        }
        assert_eq!(times.drafted(1, (1, 3.0), 4), 5.0);
        for _ in 0..20 {
            times.note(1, 4, true, 9.0);
        }
        assert_eq!(times.drafted(1, (1, 3.0), 4), 9.0);
        for _ in 0..=FRESH_STEPS {
            times.note(1, 1, false, 3.0);
        }
        assert!(times.drafted(1, (1, 3.0), 4) < 9.0);
    }

    #[test]
    fn few_shapes() {
        let shapes: std::collections::BTreeSet<usize> = (1..=4096).map(bucket).collect();
        assert!(shapes.len() < 100, "{}", shapes.len());
        for rows in 1..4096 {
            assert!(bucket(rows) >= rows && bucket(rows) <= rows + rows / 7 + 1, "{rows}: {}", bucket(rows));
            assert!(bucket(rows) <= bucket(rows + 1));
        }
    }
}
