//! Random numbers and JSON as Python's standard library has them, to make the very bytes that a program in Python made.
//!
//! The generator is MT19937 (Matsumoto and Nishimura, "Mersenne Twister", 1998), seeded by an integer as
//! `random.Random(seed)` is; `shuffle`, `sample`, `choice` and `choices` draw from it as those of Python 3.11 and later do.

use std::collections::HashSet;
use std::io;

use serde_json::Value;
use serde_json::ser::Formatter;

const N: usize = 624;
const M: usize = 397;

/// `random.Random`.
#[derive(Debug, Clone)]
pub(super) struct Random {
    state: Vec<u32>,
    next: usize,
}

impl Random {
    /// `random.Random(seed)`.
    pub fn new(seed: u64) -> Self {
        let key: &[u32] = &[seed as u32, (seed >> 32) as u32];
        let key = if key.get(1) == Some(&0) { key.get(..1).unwrap_or(key) } else { key };
        let mut state = vec![0_u32; N];
        let mut previous = 19_650_218_u32;
        for (place, word) in (0_u32..).zip(&mut state) {
            if place > 0 {
                previous = 1_812_433_253_u32.wrapping_mul(previous ^ (previous >> 30)).wrapping_add(place);
            }
            *word = previous;
        }
        let mut random = Self { state, next: N };
        let at = |random: &Self, idx: usize| random.state.get(idx).copied().unwrap_or(0);
        let (mut i, mut j) = (1, 0);
        for _ in 0..N.max(key.len()) {
            let before = at(&random, i - 1);
            let mixed = (at(&random, i) ^ (before ^ (before >> 30)).wrapping_mul(1_664_525))
                .wrapping_add(key.get(j).copied().unwrap_or(0))
                .wrapping_add(j as u32);
            random.set(i, mixed);
            (i, j) = (i + 1, (j + 1) % key.len());
            if i >= N {
                random.set(0, at(&random, N - 1));
                i = 1;
            }
        }
        for _ in 0..N - 1 {
            let before = at(&random, i - 1);
            let mixed = (at(&random, i) ^ (before ^ (before >> 30)).wrapping_mul(1_566_083_941))
                .wrapping_sub(i as u32);
            random.set(i, mixed);
            i += 1;
            if i >= N {
                random.set(0, at(&random, N - 1));
                i = 1;
            }
        }
        random.set(0, 0x8000_0000);
        random
    }

    fn set(&mut self, idx: usize, word: u32) {
        if let Some(place) = self.state.get_mut(idx) {
            *place = word;
        }
    }

    fn next_u32(&mut self) -> u32 {
        let at = |state: &[u32], idx: usize| state.get(idx % N).copied().unwrap_or(0);
        if self.next >= N {
            for idx in 0..N {
                let y = (at(&self.state, idx) & 0x8000_0000) | (at(&self.state, idx + 1) & 0x7fff_ffff);
                let odd = if y & 1 == 1 { 0x9908_b0df } else { 0 };
                let word = at(&self.state, idx + M) ^ (y >> 1) ^ odd;
                self.set(idx, word);
            }
            self.next = 0;
        }
        let mut y = at(&self.state, self.next);
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// `random()`: 53 bits from 0 to below 1.
    pub fn random(&mut self) -> f64 {
        let (a, b) = (self.next_u32() >> 5, self.next_u32() >> 6);
        (f64::from(a) * 67_108_864.0 + f64::from(b)) / 9_007_199_254_740_992.0
    }

    /// `randrange(bound)`, for lists of less than 2^32 items; 0 for a bound of 0.
    fn below(&mut self, bound: usize) -> usize {
        let Ok(bound) = u32::try_from(bound) else { return 0 };
        if bound == 0 {
            return 0;
        }
        let bits = u32::BITS - bound.leading_zeros();
        loop {
            let drawn = self.next_u32() >> (u32::BITS - bits);
            if drawn < bound {
                return drawn as usize;
            }
        }
    }

    /// `shuffle(items)`.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for idx in (1..items.len()).rev() {
            let other = self.below(idx + 1);
            items.swap(idx, other);
        }
    }

    /// `choice(items)`.
    pub fn choice<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        let at = self.below(items.len());
        items.get(at)
    }

    /// `choices(items, weights)[0]`.
    pub fn weighted<'a, T>(&mut self, items: &'a [(T, f64)]) -> Option<&'a T> {
        let mut sum = 0.0;
        let sums: Vec<f64> = items
            .iter()
            .map(|(_, weight)| {
                sum += weight;
                sum
            })
            .collect();
        let drawn = self.random() * sum;
        let at = sums.iter().take(items.len().saturating_sub(1)).filter(|sum| **sum <= drawn).count();
        items.get(at).map(|(item, _)| item)
    }

    /// `sample(items, count)`; fewer if there are fewer.
    pub fn sample<'a, T>(&mut self, items: &'a [T], count: usize) -> Vec<&'a T> {
        let count = count.min(items.len());
        let mut set_size = 21_usize;
        if count > 5 {
            // 4 ** ceil(log(3 * count, 4))
            let mut power = 1_usize;
            while power < 3 * count {
                power *= 4;
            }
            set_size += power;
        }
        if items.len() <= set_size {
            let mut pool: Vec<&T> = items.iter().collect();
            return (0..count)
                .filter_map(|drawn| {
                    let at = self.below(pool.len() - drawn);
                    let last = pool.len() - drawn - 1;
                    let item = pool.get(at).copied();
                    pool.swap(at, last);
                    item
                })
                .collect();
        }
        let mut selected = HashSet::new();
        (0..count)
            .filter_map(|_| {
                let mut at = self.below(items.len());
                while !selected.insert(at) {
                    at = self.below(items.len());
                }
                items.get(at)
            })
            .collect()
    }
}

/// `json.dumps(value)`: a space after commas and colons, and escapes for what is not ASCII.
pub(super) fn dumps(value: &Value) -> String {
    struct Spaced;

    impl Formatter for Spaced {
        fn begin_array_value<W: ?Sized + io::Write>(
            &mut self,
            writer: &mut W,
            first: bool,
        ) -> io::Result<()> {
            writer.write_all(if first { b"" } else { b", " })
        }

        fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
            writer.write_all(if first { b"" } else { b", " })
        }

        fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
            writer.write_all(b": ")
        }

        fn write_string_fragment<W: ?Sized + io::Write>(
            &mut self,
            writer: &mut W,
            text: &str,
        ) -> io::Result<()> {
            for unit in text.chars() {
                let mut units = [0; 2];
                match unit {
                    '\u{7f}' => writer.write_all(b"\x7f")?,
                    c if c.is_ascii() => writer.write_all(&[c as u8])?,
                    c => c
                        .encode_utf16(&mut units)
                        .iter()
                        .try_for_each(|unit| write!(writer, "\\u{unit:04x}"))?,
                }
            }
            Ok(())
        }
    }

    let mut bytes = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, Spaced);
    // Writing to memory cannot fail, and a value's keys are texts.
    let _ = serde::Serialize::serialize(value, &mut serializer);
    String::from_utf8(bytes).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    // What CPython 3.11 prints for the calls in the comments.
    #[test]
    fn numbers_are_those_of_python() {
        let words = |seed: u64, count: usize| {
            let mut random = Random::new(seed);
            (0..count).map(|_| random.next_u32()).collect::<Vec<_>>()
        };
        // getrandbits(32)
        assert_eq!(words(1, 3), [577_090_037, 2_444_712_010, 3_639_700_191]);
        assert_eq!(words((1 << 40) + 7, 3), [2_635_837_658, 3_209_733_218, 3_500_038_837]);
        assert_eq!(words(4, 2000).last(), Some(&3_070_608_303));
        let mut random = Random::new(1);
        assert_eq!([random.random(), random.random()], [0.134_364_244_112_401_22, 0.847_433_736_937_232_7]);
        // Random(1).shuffle(list(range(10)))
        let mut numbers: Vec<u32> = (0..10).collect();
        Random::new(1).shuffle(&mut numbers);
        assert_eq!(numbers, [6, 8, 9, 7, 5, 3, 0, 4, 1, 2]);
        // sample(range(10), 3), sample(range(1000), 3), sample(range(90), 8), sample(range(80), 8)
        let mut random = Random::new(2);
        let mut sample = |all: usize, count: usize| -> Vec<usize> {
            let all: Vec<usize> = (0..all).collect();
            random.sample(&all, count).into_iter().copied().collect()
        };
        assert_eq!(sample(10, 3), [0, 1, 8]);
        assert_eq!(sample(1000, 3), [369, 855, 173]);
        assert_eq!(sample(90, 8), [85, 39, 32, 77, 27, 4, 74, 87]);
        assert_eq!(sample(80, 8), [20, 55, 50, 65, 47, 69, 56, 64]);
        // choice(range(7)), choices("abc", [0.25, 0.33, 0.42])[0]
        let mut random = Random::new(3);
        let chosen: Vec<i32> = (0..8).map(|_| *random.choice(&[0, 1, 2, 3, 4, 5, 6]).unwrap()).collect();
        assert_eq!(chosen, [1, 4, 4, 1, 2, 4, 3, 5]);
        let weights = [('a', 0.25), ('b', 0.33), ('c', 0.42)];
        let chosen: String = (0..8).map(|_| *random.weighted(&weights).unwrap()).collect();
        assert_eq!(chosen, "cccbbacb");
    }

    #[test]
    fn json_is_that_of_python() {
        let value = json!({"a": [1, 2.5, true, null], "b": {"c": "\"é\n\u{1f600}"}, "d": []});
        assert_eq!(
            dumps(&value),
            r#"{"a": [1, 2.5, true, null], "b": {"c": "\"\u00e9\n\ud83d\ude00"}, "d": []}"#
        );
    }
}
