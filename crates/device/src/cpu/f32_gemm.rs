//! The matrix product that attention and backward ops are made of, in f32.
//!
//! Each element of A B is one chain of fused multiply-adds over `k` in ascending order. How C is cut into tiles changes no
//! bit.

use crate::cpu::isa::Kernel;
use crate::cpu::simd::{LANES, Simd, load, store};

/// Operands of a product. A is read element by element at two strides, so that it may be a transpose.
#[derive(Clone, Copy)]
pub(crate) struct Gemm {
    /// `A[i, k]` is at `i * a_row + k * a_step`.
    pub(crate) a: *const f32,
    pub(crate) a_row: usize,
    pub(crate) a_step: usize,
    /// `[k, n]`, rows `b_row` apart.
    pub(crate) b: *const f32,
    pub(crate) b_row: usize,
    /// `[m, n]`, rows `c_row` apart.
    pub(crate) c: *mut f32,
    pub(crate) c_row: usize,
    pub(crate) m: usize,
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) onto: Onto,
}

/// What becomes of C.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Onto {
    /// `C = A B`.
    Nothing,
    /// `C += A B`: a long sum in parts, each rounded for itself, which is more exact than one chain.
    Sum,
    /// The chains go on from what is in C: a long sum is one chain, wherever it is interrupted.
    Chain,
}

impl Gemm {
    /// `M` rows by `V` vectors, of the last of which `last` lanes exist.
    #[inline(always)]
    unsafe fn tile<S: Simd, const M: usize, const V: usize>(&self, row: usize, col: usize, last: usize) {
        let Gemm { a, a_row, a_step, b, b_row, c, c_row, k, onto, .. } = *self;
        let lanes = |v: usize| if v + 1 == V { last } else { LANES };
        // SAFETY: rows, columns and extents are the caller's; all loads and stores stay within them.
        unsafe {
            let c = c.add(row * c_row + col);
            let mut sums = [[S::splat(0.0); V]; M];
            if onto == Onto::Chain {
                for (m, sums) in sums.iter_mut().enumerate() {
                    for (v, sum) in sums.iter_mut().enumerate() {
                        *sum = load::<S>(c.add(m * c_row + v * LANES), lanes(v));
                    }
                }
            }
            let mut a = a.add(row * a_row);
            let mut b = b.add(col);
            // The next tile's rows lie too far apart for the processor to foresee them.
            for m in 0..M {
                for v in 0..V {
                    S::prefetch(c.wrapping_add((M + m) * c_row + v * LANES).cast());
                }
            }
            let mut left = k;
            while left > 0 {
                if a_step == 1 {
                    for m in 0..M {
                        S::prefetch(a.wrapping_add((M + m) * a_row).cast());
                    }
                }
                let steps = left.min(LANES);
                left -= steps;
                for _ in 0..steps {
                    let mut bv = [S::splat(0.0); V];
                    for (v, bv) in bv.iter_mut().enumerate() {
                        *bv = load::<S>(b.add(v * LANES), lanes(v));
                    }
                    for (m, sums) in sums.iter_mut().enumerate() {
                        let av = S::splat(*a.add(m * a_row));
                        for (sum, bv) in sums.iter_mut().zip(bv) {
                            *sum = S::fma(av, bv, *sum);
                        }
                    }
                    a = a.wrapping_add(a_step);
                    b = b.wrapping_add(b_row);
                }
            }
            for (m, sums) in sums.into_iter().enumerate() {
                for (v, mut sum) in sums.into_iter().enumerate() {
                    let c = c.add(m * c_row + v * LANES);
                    if onto == Onto::Sum {
                        sum = S::add(load::<S>(c, lanes(v)), sum);
                    }
                    store::<S>(c, sum, lanes(v));
                }
            }
        }
    }

    /// All rows of `V` vectors.
    #[inline(always)]
    unsafe fn columns<S: Simd, const V: usize>(&self, col: usize, last: usize) {
        let mut row = 0;
        while row < self.m {
            // SAFETY: the caller's; a tile never exceeds the rows that are left.
            unsafe {
                row += match self.m - row {
                    8.. if V < 4 && S::REGISTERS >= 32 => {
                        self.tile::<S, 8, V>(row, col, last);
                        8
                    }
                    6.. => {
                        self.tile::<S, 6, V>(row, col, last);
                        6
                    }
                    4.. => {
                        self.tile::<S, 4, V>(row, col, last);
                        4
                    }
                    2.. => {
                        self.tile::<S, 2, V>(row, col, last);
                        2
                    }
                    _ => {
                        self.tile::<S, 1, V>(row, col, last);
                        1
                    }
                };
            }
        }
    }
}

impl Kernel for Gemm {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let mut col = 0;
        // SAFETY: the caller's; no more columns are taken than are left.
        unsafe {
            if S::REGISTERS >= 32 {
                while self.n - col >= 4 * LANES {
                    self.columns::<S, 4>(col, LANES);
                    col += 4 * LANES;
                }
                while self.n - col >= 2 * LANES {
                    self.columns::<S, 2>(col, LANES);
                    col += 2 * LANES;
                }
            }
            while col < self.n {
                let lanes = (self.n - col).min(LANES);
                self.columns::<S, 1>(col, lanes);
                col += lanes;
            }
        }
    }
}
