//! Which instruction set the kernels use, and how they are called.

use std::fmt;
use std::str::FromStr;

use super::simd;

/// Environment variable that forces an instruction set, for tests and comparisons.
pub const ISA_ENV: &str = "WARDROBE_ISA";

/// An instruction set that kernels exist for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Isa {
    /// Plain Rust.
    Portable,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// AVX-512 with VNNI.
    Avx512,
    /// AVX-512 with VNNI, and AMX with int8 for quantised products of many rows.
    Amx,
    /// NEON of any 64-bit Arm.
    Neon,
    /// NEON with the 8-bit dot products of Armv8.2.
    NeonDotprod,
}

impl Isa {
    const ALL: [Isa; 6] = [Isa::Portable, Isa::Avx2, Isa::Avx512, Isa::Amx, Isa::Neon, Isa::NeonDotprod];

    /// What this machine can run, best last.
    pub fn available() -> Vec<Isa> {
        Self::ALL.into_iter().filter(|isa| isa.is_available()).collect()
    }

    #[cfg(target_arch = "x86_64")]
    fn is_available(self) -> bool {
        use std::arch::is_x86_feature_detected as has;
        let avx2 = || has!("avx2") && has!("fma") && has!("f16c");
        let avx512 = || {
            has!("avx512f") && has!("avx512bw") && has!("avx512vl") && has!("avx512dq") && has!("avx512vnni")
        };
        match self {
            Isa::Portable => true,
            Isa::Avx2 => avx2(),
            Isa::Avx512 => avx2() && avx512(),
            Isa::Amx => avx2() && avx512() && super::amx::is_available(),
            Isa::Neon | Isa::NeonDotprod => false,
        }
    }

    #[cfg(target_arch = "aarch64")]
    fn is_available(self) -> bool {
        use std::arch::is_aarch64_feature_detected as has;
        match self {
            Isa::Portable => true,
            Isa::Neon => has!("neon"),
            Isa::NeonDotprod => has!("neon") && has!("dotprod"),
            Isa::Avx2 | Isa::Avx512 | Isa::Amx => false,
        }
    }

    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    fn is_available(self) -> bool {
        self == Isa::Portable
    }

    /// The best that this machine can run.
    pub fn best() -> Isa {
        Self::available().last().copied().unwrap_or(Isa::Portable)
    }

    /// Runs a kernel compiled for this instruction set.
    ///
    /// # Safety
    /// The machine must have the instruction set, and the kernel's own contract must hold.
    pub(crate) unsafe fn run<K: Kernel>(self, kernel: K) {
        // SAFETY: passed on to the caller.
        unsafe {
            match self {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 | Isa::Amx => run_avx512(kernel),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => run_avx2(kernel),
                #[cfg(target_arch = "aarch64")]
                Isa::NeonDotprod => run_neon_dotprod(kernel),
                #[cfg(target_arch = "aarch64")]
                Isa::Neon => run_neon(kernel),
                _ => kernel.run::<simd::portable::Portable>(),
            }
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Amx => "amx",
            Isa::Neon => "neon",
            Isa::NeonDotprod => "neon-dotprod",
        })
    }
}

impl FromStr for Isa {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|isa| isa.to_string() == s).ok_or_else(|| {
            format!(
                "unknown instruction set {s:?}: it is one of {}",
                Self::ALL.map(|isa| isa.to_string()).join(", ")
            )
        })
    }
}

/// A kernel with its operands, written over [`simd::Simd`].
pub(crate) trait Kernel {
    /// Runs it. Must be `#[inline(always)]`, so that it is compiled with the caller's CPU features.
    ///
    /// # Safety
    /// As the kernel states, and the CPU features of `S`.
    unsafe fn run<S: simd::Simd>(self);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn run_avx512<K: Kernel>(kernel: K) {
    // SAFETY: the features are enabled; the rest is the caller's.
    unsafe { kernel.run::<simd::avx512::Avx512>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn run_avx2<K: Kernel>(kernel: K) {
    // SAFETY: the features are enabled; the rest is the caller's.
    unsafe { kernel.run::<simd::avx2::Avx2>() }
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon,dotprod")]
unsafe fn run_neon_dotprod<K: Kernel>(kernel: K) {
    // SAFETY: the features are enabled; the rest is the caller's.
    unsafe { kernel.run::<simd::neon::Neon<true>>() }
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
unsafe fn run_neon<K: Kernel>(kernel: K) {
    // SAFETY: the feature is enabled; the rest is the caller's.
    unsafe { kernel.run::<simd::neon::Neon<false>>() }
}
