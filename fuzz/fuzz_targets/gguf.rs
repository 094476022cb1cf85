//! Arbitrary bytes as a gguf file: `cargo +nightly fuzz run gguf`.
#![no_main]

use std::io::Write;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(bytes).expect("room for the input");
    wardrobe_formats::fuzzing::gguf(file.path());
});
