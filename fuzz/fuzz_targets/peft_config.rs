//! Arbitrary text as an `adapter_config.json`: `cargo +nightly fuzz run peft_config`.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| {
    wardrobe_formats::fuzzing::peft_config(text);
});
