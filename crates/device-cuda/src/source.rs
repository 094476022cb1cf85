//! The kernels' sources, as they were when the program was built.

/// A file of `kernels/`.
#[derive(Debug, Clone, Copy)]
pub struct Source {
    /// Its path there, without ending.
    pub name: &'static str,
    /// Its text.
    pub text: &'static str,
}

include!(concat!(env!("OUT_DIR"), "/sources.rs"));

/// The compute capabilities that every kernel file is compiled for by the tests, as NVRTC names them.
pub const ARCHITECTURES: [&str; 6] = ["80", "86", "89", "90a", "100", "120"];

/// All kernel files.
pub fn files() -> &'static [Source] {
    FILES
}

/// What they include.
pub fn headers() -> &'static [Source] {
    HEADERS
}
