//! Arbitrary text as an adapter's `wardrobe.json`: `cargo +nightly fuzz run adapter_record`.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| {
    wardrobe_formats::fuzzing::adapter_record(text);
});
