//! Arbitrary bytes as a chat template and the messages for it: `cargo +nightly fuzz run chat_template`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    wardrobe_text::fuzz_chat_template(bytes);
});
