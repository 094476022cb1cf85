//! Passes over a row of logits: plain loops over fixed-size chunks, always inlined, so that they are compiled for the
//! instruction set of whoever calls them. No fused multiply-add and a fixed order of additions: the results are the
//! same bits on every instruction set.

/// Logits per block: maxima and masses are kept by block, and whole blocks are skipped by their maximum.
pub(super) const BLOCK: usize = 64;
const LANES: usize = 16;
/// Below this the exponential is taken as 0; nothing above it is subnormal.
pub(super) const EXP_ZERO: f32 = -87.0;

/// The larger one; `a` if `b` is NaN.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

/// Infinity counts as the largest finite number, so that differences stay numbers; NaN stays NaN.
#[inline(always)]
pub(super) fn capped(v: f32) -> f32 {
    if v > f32::MAX { f32::MAX } else { v }
}

/// `exp(x)` for `x <= 0`, relative error below 2e-7; 0 below [`EXP_ZERO`] and for NaN; exactly 1 at 0.
///
/// `x = n ln 2 + r` with `|r| <= ln 2 / 2`; the Taylor series of `exp(r)` to the seventh power is off by less than
/// `r^8 / 8! = 5e-9`; `n` goes into the exponent.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    /// 1.5 * 2^23: adding it rounds to the nearest integer, which is left in the low bits.
    const ROUND: f32 = 12_582_912.0;
    /// The upper bits of ln 2 (times a small integer this is exact), and the rest of it.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let in_range = x > EXP_ZERO;
    let x = if in_range { x } else { 0.0 };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN_2_HIGH) - n * LN_2_LOW;
    let mut tail = 1.0 / 5040.0;
    tail = tail * r + 1.0 / 720.0;
    tail = tail * r + 1.0 / 120.0;
    tail = tail * r + 1.0 / 24.0;
    tail = tail * r + 1.0 / 6.0;
    tail = tail * r + 0.5;
    let series = (tail * r) * r + r + 1.0;
    let scaled = f32::from_bits(series.to_bits().wrapping_add(shifted.to_bits() << 23));
    if in_range { scaled } else { 0.0 }
}

/// What turns a logit into its probability relative to the best.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scale {
    /// The largest logit of the row, finite.
    pub(super) max: f32,
    /// Finite, at least 0.
    pub(super) inv_temperature: f32,
}

impl Scale {
    /// `exp((logit - max) / temperature)`: 1 for the best, 0 for minus infinity and NaN.
    #[inline(always)]
    pub(super) fn mass(self, logit: f32) -> f32 {
        exp((capped(logit) - self.max) * self.inv_temperature)
    }
}

/// The largest value, minus infinity if there is none; NaN is passed over.
#[inline(always)]
fn max_of(values: &[f32]) -> f32 {
    const WIDE: usize = 2 * LANES;
    let (chunks, tail) = values.as_chunks::<WIDE>();
    let mut acc = [f32::NEG_INFINITY; WIDE];
    for chunk in chunks {
        for lane in 0..WIDE {
            acc[lane] = larger(acc[lane], chunk[lane]);
        }
    }
    let mut best = f32::NEG_INFINITY;
    for &v in acc.iter().chain(tail) {
        best = larger(best, v);
    }
    best
}

/// Place and value of the first largest element, `None` if all are minus infinity or NaN.
#[inline(always)]
pub(super) fn argmax(values: &[f32]) -> Option<(usize, f32)> {
    // Few enough blocks that the maximum over a block costs nothing extra, short enough to search one at the end.
    const SPAN: usize = 1024;
    let (mut best, mut at) = (f32::NEG_INFINITY, 0);
    for (span_idx, span) in values.chunks(SPAN).enumerate() {
        let v = max_of(span);
        if v > best {
            (best, at) = (v, span_idx * SPAN);
        }
    }
    if best == f32::NEG_INFINITY {
        return None;
    }
    let within = values.get(at..)?.iter().position(|&v| v == best)?;
    Some((at + within, best))
}

/// The maximum of each block of [`BLOCK`] values, the last block possibly short; returns the overall maximum, capped.
#[inline(always)]
pub(super) fn block_maxima(values: &[f32], maxima: &mut Vec<f32>) -> f32 {
    maxima.clear();
    maxima.resize(values.len().div_ceil(BLOCK), f32::NEG_INFINITY);
    let (blocks, tail) = values.as_chunks::<BLOCK>();
    for (block, maximum) in blocks.iter().zip(maxima.iter_mut()) {
        let mut acc = [f32::NEG_INFINITY; LANES];
        for chunk in block.as_chunks::<LANES>().0 {
            for lane in 0..LANES {
                acc[lane] = larger(acc[lane], chunk[lane]);
            }
        }
        let mut width = LANES / 2;
        while width > 0 {
            for lane in 0..width {
                acc[lane] = larger(acc[lane], acc[lane + width]);
            }
            width /= 2;
        }
        *maximum = acc[0];
    }
    if let (false, Some(last)) = (tail.is_empty(), maxima.last_mut()) {
        *last = max_of(tail);
    }
    capped(max_of(maxima))
}

/// The mass of each block; blocks whose maximum has no mass are skipped. Returns the whole mass, added up block by
/// block in f64.
#[inline(always)]
pub(super) fn block_masses(values: &[f32], maxima: &[f32], scale: Scale, masses: &mut Vec<f32>) -> f64 {
    masses.clear();
    masses.resize(maxima.len(), 0.0);
    let mut total = 0.0;
    for ((block, &maximum), mass) in values.chunks(BLOCK).zip(maxima).zip(masses.iter_mut()) {
        if scale.mass(maximum) == 0.0 {
            continue;
        }
        let mut acc = [0.0f32; LANES];
        let (chunks, tail) = block.as_chunks::<LANES>();
        for chunk in chunks {
            for lane in 0..LANES {
                acc[lane] += scale.mass(chunk[lane]);
            }
        }
        let mut width = LANES / 2;
        while width > 0 {
            for lane in 0..width {
                acc[lane] += acc[lane + width];
            }
            width /= 2;
        }
        let mut sum = acc[0];
        for &v in tail {
            sum += scale.mass(v);
        }
        *mass = sum;
        total += f64::from(sum);
    }
    total
}

/// How many values exceed `bound`.
#[inline(always)]
pub(super) fn count_above(values: &[f32], bound: f32) -> usize {
    let mut count = 0;
    // Runs short enough that the lanes' counts stay narrow.
    for run in values.chunks(1 << 16) {
        let mut above = 0u32;
        for &v in run {
            above += u32::from(v > bound);
        }
        count += above as usize;
    }
    count
}

/// Copies `values`, with minus infinity where the bit mask `allowed` has a 0.
#[inline(always)]
pub(super) fn copy_masked(values: &[f32], allowed: &[u32], out: &mut Vec<f32>) {
    out.clear();
    out.resize(values.len(), f32::NEG_INFINITY);
    for ((from, to), &word) in values.chunks(32).zip(out.chunks_mut(32)).zip(allowed) {
        if word == u32::MAX {
            to.copy_from_slice(from);
        } else if word != 0 {
            for (bit, (to, &from)) in to.iter_mut().zip(from).enumerate() {
                *to = if word >> bit & 1 != 0 { from } else { f32::NEG_INFINITY };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_accurate_down_to_where_it_is_zero() {
        let mut worst = 0f64;
        for i in 0..=870_000 {
            let x = -(i as f32) * 1e-4;
            if x > EXP_ZERO {
                let want = f64::from(x).exp();
                worst = worst.max(((f64::from(exp(x)) - want) / want).abs());
            }
        }
        assert!(worst < 2e-7, "{worst:e}");
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
        for x in [-87.0, -88.0, -1e30, f32::NEG_INFINITY, f32::NAN] {
            assert_eq!(exp(x), 0.0, "{x}");
        }
    }

    #[test]
    fn argmax_takes_the_first_of_equals_at_every_place() {
        for len in [1, 2, 15, 16, 31, 33, 1023, 1024, 1025, 5000] {
            let mut values = vec![-1.0; len];
            for at in [0, 1, len / 3, len / 2, len - 1] {
                if at >= len {
                    continue;
                }
                values[at] = 2.0;
                values[len - 1] = 2.0;
                assert_eq!(argmax(&values), Some((at, 2.0)));
                values[at] = -1.0;
                values[len - 1] = -1.0;
            }
        }
        assert_eq!(argmax(&[f32::NAN, f32::NEG_INFINITY]), None);
        assert_eq!(argmax(&[f32::NAN, -3.0, f32::NAN]), Some((1, -3.0)));
        assert_eq!(argmax(&[]), None);
    }

    #[test]
    fn blocks_agree_with_the_whole() {
        let values: Vec<f32> = (0..333).map(|i| ((i * 7919) % 1000) as f32 * 0.01 - 4.0).collect();
        let (mut maxima, mut masses) = (Vec::new(), Vec::new());
        let max = block_maxima(&values, &mut maxima);
        assert_eq!(max, values.iter().copied().fold(f32::MIN, f32::max));
        let total = block_masses(&values, &maxima, Scale { max, inv_temperature: 0.5 }, &mut masses);
        for (i, block) in values.chunks(BLOCK).enumerate() {
            assert_eq!(maxima[i], block.iter().copied().fold(f32::MIN, f32::max));
            let want: f64 = block.iter().map(|&v| (f64::from(v - max) * 0.5).exp()).sum();
            assert!((f64::from(masses[i]) - want).abs() < 1e-5 * want);
        }
        let want: f64 = values.iter().map(|&v| (f64::from(v - max) * 0.5).exp()).sum();
        assert!((total - want).abs() < 1e-6 * want);
        assert_eq!(count_above(&values, 1.0), values.iter().filter(|&&v| v > 1.0).count());
    }

    #[test]
    fn masks_are_read_bit_by_bit() {
        let values: Vec<f32> = (0..70).map(|i| i as f32).collect();
        let mut out = Vec::new();
        copy_masked(&values, &[u32::MAX, 0b101, 0b10_0000], &mut out);
        for (i, &v) in out.iter().enumerate() {
            let kept = i <= 32 || i == 34 || i == 69;
            assert_eq!(v, if kept { i as f32 } else { f32::NEG_INFINITY });
        }
    }
}
