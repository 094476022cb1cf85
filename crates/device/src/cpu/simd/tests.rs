//! Every function of [`Simd`] on every instruction set of this machine, against scalar arithmetic.

use half::{bf16, f16};

use super::{LANES, Simd};
use crate::cpu::isa::{Isa, Kernel};

type Floats = [f32; LANES];
type Ints = [i32; LANES];

/// Deterministic bits (SplitMix64).
struct Bits(u64);

impl Bits {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// Mostly ordinary, sometimes one of the awkward values.
    fn float(&mut self) -> f32 {
        let awkward = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, 1e-40, -1e-40, f32::MAX, f32::NAN];
        let bits = self.next();
        match awkward.get((bits % 40) as usize) {
            Some(x) => *x,
            None => ((bits >> 8) % 2_000_001) as f32 / 1e4 - 100.0,
        }
    }
    fn byte(&mut self) -> u8 {
        self.next() as u8
    }
}

#[track_caller]
fn assert_same(isa: Isa, what: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len());
    for (lane, (got, want)) in got.iter().zip(want).enumerate() {
        let same = got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan();
        assert!(same, "{isa}: {what}, lane {lane}: {got:e} instead of {want:e}");
    }
}

/// What the elementwise functions and reductions make of `a`, `b` and `c`.
struct Arithmetic<'a> {
    operands: [Floats; 3],
    results: &'a mut [Floats; 8],
    reduced: &'a mut [f32; 2],
}

impl Kernel for Arithmetic<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: all arrays have 16 elements; the CPU features are the caller's.
        unsafe {
            let [a, b, c] = self.operands;
            let (a, b, c) = (S::load(a.as_ptr()), S::load(b.as_ptr()), S::load(c.as_ptr()));
            let results = [
                S::add(a, b),
                S::sub(a, b),
                S::mul(a, b),
                S::div(a, b),
                S::max(a, b),
                S::min(a, b),
                S::abs(a),
                S::fma(a, b, c),
            ];
            for (to, x) in self.results.iter_mut().zip(results) {
                S::store(to.as_mut_ptr(), x);
            }
            *self.reduced = [S::reduce_add(a), S::reduce_max(a)];
        }
    }
}

fn halves(mut x: Floats, f: impl Fn(f32, f32) -> f32) -> f32 {
    for n in [8, 4, 2, 1] {
        for i in 0..n {
            x[i] = f(x[i], x[i + n]);
        }
    }
    x[0]
}

#[test]
fn arithmetic_is_that_of_scalars() {
    for isa in Isa::available() {
        let mut bits = Bits(1);
        for _ in 0..500 {
            let operands: [Floats; 3] = std::array::from_fn(|_| std::array::from_fn(|_| bits.float()));
            let [a, b, c] = operands;
            let (mut results, mut reduced) = ([[0.0; LANES]; 8], [0.0; 2]);
            // SAFETY: the machine has the instruction set.
            unsafe { isa.run(Arithmetic { operands, results: &mut results, reduced: &mut reduced }) };
            let zip = |f: fn(f32, f32) -> f32| -> Floats { std::array::from_fn(|i| f(a[i], b[i])) };
            let fma: Floats = std::array::from_fn(|i| {
                if isa == Isa::Portable { a[i] * b[i] + c[i] } else { a[i].mul_add(b[i], c[i]) }
            });
            assert_same(isa, "add", &results[0], &zip(|a, b| a + b));
            assert_same(isa, "sub", &results[1], &zip(|a, b| a - b));
            assert_same(isa, "mul", &results[2], &zip(|a, b| a * b));
            assert_same(isa, "div", &results[3], &zip(|a, b| a / b));
            assert_same(isa, "max", &results[4], &zip(|a, b| if a > b { a } else { b }));
            assert_same(isa, "min", &results[5], &zip(|a, b| if a < b { a } else { b }));
            assert_same(isa, "abs", &results[6], &a.map(f32::abs));
            assert_same(isa, "fma", &results[7], &fma);
            assert_same(isa, "reduce_add", &reduced[..1], &[halves(a, |a, b| a + b)]);
            if !a.iter().any(|x| x.is_nan() || x.to_bits() == 1 << 31) {
                assert_same(isa, "reduce_max", &reduced[1..], &[halves(a, f32::max)]);
            }
        }
    }
}

/// Loads of 16 elements of each narrow type.
struct Loads<'a> {
    wide: &'a [u16; LANES],
    narrow: &'a [i8; LANES],
    results: &'a mut [Floats; 3],
}

impl Kernel for Loads<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: all arrays have 16 elements; the CPU features are the caller's.
        unsafe {
            let [f16, bf16, i8] = self.results;
            S::store(f16.as_mut_ptr(), S::load_f16(self.wide.as_ptr()));
            S::store(bf16.as_mut_ptr(), S::load_bf16(self.wide.as_ptr()));
            S::store(i8.as_mut_ptr(), S::load_i8(self.narrow.as_ptr()));
        }
    }
}

#[test]
fn every_narrow_value_is_read_exactly() {
    for isa in Isa::available() {
        for first in (0..=u16::MAX).step_by(LANES) {
            let wide: [u16; LANES] = std::array::from_fn(|i| first + i as u16);
            let narrow = wide.map(|x| x as i8);
            let mut results = [[0.0; LANES]; 3];
            // SAFETY: the machine has the instruction set.
            unsafe { isa.run(Loads { wide: &wide, narrow: &narrow, results: &mut results }) };
            assert_same(isa, "load_f16", &results[0], &wide.map(|x| f16::from_bits(x).to_f32()));
            assert_same(isa, "load_bf16", &results[1], &wide.map(|x| bf16::from_bits(x).to_f32()));
            assert_same(isa, "load_i8", &results[2], &narrow.map(f32::from));
        }
    }
}

/// Rounds 16 floats to binary16.
struct StoreF16<'a> {
    from: &'a Floats,
    to: &'a mut [u16; LANES],
}

impl Kernel for StoreF16<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: both arrays have 16 elements; the CPU features are the caller's.
        unsafe { S::store_f16(self.to.as_mut_ptr(), S::load(self.from.as_ptr())) };
    }
}

#[test]
fn floats_are_rounded_to_the_nearest_half() {
    for isa in Isa::available() {
        // Each finite value of binary16, and floats around the middle between it and the next.
        for bits in (0..0x7c00_u16).chain(0x8000..0xfc00) {
            let value = f16::from_bits(bits).to_f32();
            let middle = f32::midpoint(value, f16::from_bits(bits + 1).to_f32());
            let mut from = [value; LANES];
            from[1..4].copy_from_slice(&[middle, middle.next_up(), middle.next_down()]);
            let mut to = [0; LANES];
            // SAFETY: the machine has the instruction set.
            unsafe { isa.run(StoreF16 { from: &from, to: &mut to }) };
            assert_eq!(to, from.map(|x| f16::from_f32(x).to_bits()), "{isa}: {from:?}");
        }
    }
}

/// Copies `from` (1 to 16 floats) to `to` by partial loads and stores, and the whole loaded vector to `loaded`.
struct Parts<'a> {
    from: &'a [f32],
    to: &'a mut [f32],
    loaded: &'a mut Floats,
}

impl Kernel for Parts<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: as many elements as are said; the CPU features are the caller's.
        unsafe {
            let x = S::load_part(self.from.as_ptr(), self.from.len());
            S::store(self.loaded.as_mut_ptr(), x);
            S::store_part(self.to.as_mut_ptr(), S::add(x, S::splat(1.0)), self.from.len());
        }
    }
}

#[test]
fn parts_touch_nothing_else() {
    let from: Floats = std::array::from_fn(|i| i as f32 + 1.0);
    for isa in Isa::available() {
        for n in 1..=LANES {
            // An allocation of its own, so that a checker of memory would see a read past the end.
            let exact = from[..n].to_vec();
            let (mut to, mut loaded) = ([-7.0; LANES], [-7.0; LANES]);
            // SAFETY: the machine has the instruction set; both have `n` elements at least.
            unsafe { isa.run(Parts { from: &exact, to: &mut to, loaded: &mut loaded }) };
            for i in 0..LANES {
                let (x, y) = if i < n { (from[i], from[i] + 1.0) } else { (0.0, -7.0) };
                assert_same(isa, "load_part", &loaded[i..=i], &[x]);
                assert_same(isa, "store_part", &to[i..=i], &[y]);
            }
        }
    }
}

/// Conversions and sums of integers.
struct Integers<'a> {
    from: Floats,
    /// `round`, then plus `add`.
    add: i32,
    /// 16 times that.
    shifted: &'a mut Floats,
    rounded: &'a mut Floats,
    powers: &'a mut Floats,
    bytes: &'a mut [i8; LANES],
    sum: &'a mut i32,
}

impl Kernel for Integers<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: all arrays have 16 elements; the CPU features are the caller's.
        unsafe {
            let x = S::add_i32(S::round(S::load(self.from.as_ptr())), S::splat_i32(self.add));
            S::store(self.rounded.as_mut_ptr(), S::to_f32(x));
            S::store(self.shifted.as_mut_ptr(), S::to_f32(S::shl4_i32(x)));
            S::store(self.powers.as_mut_ptr(), S::exp2i(x));
            S::store_i8(self.bytes.as_mut_ptr(), x);
            *self.sum = S::reduce_add_i32(x);
        }
    }
}

#[test]
fn integers_round_to_even_and_keep_their_value() {
    for isa in Isa::available() {
        for (first, add) in
            (-508..=492).step_by(LANES).flat_map(|first| [(first, 0), (first, 3), (first, -1)])
        {
            // Quarters, so that every kind of tie is there.
            let from: Floats = std::array::from_fn(|i| (first + i as i32) as f32 / 4.0);
            let want: Ints = from.map(|x| x.round_ties_even() as i32 + add);
            if want.iter().any(|x| !(-127..=127).contains(x)) {
                continue;
            }
            let mut shifted = [0.0; LANES];
            let (mut rounded, mut powers, mut bytes, mut sum) = ([0.0; LANES], [0.0; LANES], [0; LANES], 0);
            // SAFETY: the machine has the instruction set.
            unsafe {
                isa.run(Integers {
                    from,
                    add,
                    shifted: &mut shifted,
                    rounded: &mut rounded,
                    powers: &mut powers,
                    bytes: &mut bytes,
                    sum: &mut sum,
                });
            };
            assert_same(isa, "round", &rounded, &want.map(|x| x as f32));
            assert_same(isa, "shl4_i32", &shifted, &want.map(|x| (16 * x) as f32));
            let power = |x: i32| if x == -127 { 0.0 } else { 2.0_f64.powi(x) as f32 };
            assert_same(isa, "exp2i", &powers, &want.map(power));
            assert_eq!(bytes.map(i32::from), want, "{isa}");
            assert_eq!(sum, want.iter().sum::<i32>(), "{isa}");
        }
    }
}

/// The dot products of `w` as it is, of its nibbles, and of its low nibbles joined with two bits of `high`.
struct Dots<'a> {
    acc: i32,
    w: &'a [u8; 64],
    high: &'a [u8; 64],
    a: &'a [i8; 4],
    results: &'a mut [Floats; 7],
}

impl Kernel for Dots<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: all arrays have the extent that their functions read; the CPU features are the caller's.
        unsafe {
            let (w, high, a) = (S::load_w(self.w.as_ptr()), S::load_w(self.high.as_ptr()), self.a.as_ptr());
            let acc = S::splat_i32(self.acc);
            let (lower, upper) = S::nibbles(w);
            let sum: i32 = self.a.iter().map(|x| i32::from(*x)).sum();
            let biased = S::dot_i8(S::splat_i32(self.acc - S::I8_BIAS * sum), S::bias_i8(w), a);
            let results = [
                biased,
                S::dot_u8(acc, lower, a),
                S::dot_u8(acc, upper, a),
                S::dot_u8(acc, S::join_2bit::<0>(lower, high), a),
                S::dot_u8(acc, S::join_2bit::<2>(lower, high), a),
                S::dot_u8(acc, S::join_2bit::<4>(lower, high), a),
                S::dot_u8(acc, S::join_2bit::<6>(lower, high), a),
            ];
            for (to, x) in self.results.iter_mut().zip(results) {
                S::store(to.as_mut_ptr(), S::to_f32(x));
            }
        }
    }
}

#[test]
fn dot_products_are_exact() {
    for isa in Isa::available() {
        let mut bits = Bits(2);
        for round in 0..500 {
            let w: [u8; 64] = match round {
                0 => [0x80; 64],
                1 => [0x7f; 64],
                2 => [0xff; 64],
                _ => std::array::from_fn(|_| bits.byte()),
            };
            let high: [u8; 64] = std::array::from_fn(|_| bits.byte());
            let mut a: [i8; 4] = std::array::from_fn(|_| (bits.byte() as i8).max(-127));
            if round < 8 {
                a = [if round % 2 == 0 { -127 } else { 127 }; 4];
            }
            let acc = bits.next() as i16;
            let acc = i32::from(acc);
            let mut results = [[0.0; LANES]; 7];
            // SAFETY: the machine has the instruction set.
            unsafe { isa.run(Dots { acc, w: &w, high: &high, a: &a, results: &mut results }) };
            let dot = |byte: &dyn Fn(usize) -> i32| -> Floats {
                std::array::from_fn(|lane| {
                    (0..4).fold(acc, |acc, j| acc + byte(4 * lane + j) * i32::from(a[j])) as f32
                })
            };
            assert_same(isa, "dot_i8", &results[0], &dot(&|i| i32::from(w[i] as i8)));
            assert_same(isa, "low nibbles", &results[1], &dot(&|i| i32::from(w[i] & 15)));
            assert_same(isa, "high nibbles", &results[2], &dot(&|i| i32::from(w[i] >> 4)));
            for (shift, got) in [0, 2, 4, 6].into_iter().zip(&results[3..]) {
                let want = dot(&|i| i32::from(w[i] & 15 | ((high[i] >> shift) & 3) << 4));
                assert_same(isa, "join_2bit", got, &want);
            }
        }
    }
}
