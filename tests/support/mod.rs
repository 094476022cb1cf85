//! What the proofs of this package share: small random models and adapters, and an independent reference.
//!
//! - [`tiny`] writes random Llama models in Hugging Face's layout, so that every proof runs without a download;
//! - [`families`] writes the other architectures' and computes what they are to give;
//! - [`lora`] makes random adapters of every kind that is served;
//! - [`reference`] computes the same logits with candle-transformers, from the same files dequantised to f32;
//! - [`smollm2`] finds the real model, named by an environment variable.
#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test stops at the first surprise"
)]

pub mod families;
pub mod lora;
pub mod random;
pub mod reference;
pub mod smollm2;
pub mod tiny;

use wardrobe::{Completion, Engine, Finish, Request, TokenId};

/// Token ids from numbers.
pub fn ids(tokens: impl IntoIterator<Item = u32>) -> Vec<TokenId> {
    tokens.into_iter().map(TokenId).collect()
}

/// The whole answer to a request that must not fail.
pub fn answer(engine: &Engine, request: Request) -> Completion {
    let completion = engine.generate(request).unwrap();
    for choice in &completion.choices {
        let finish = choice.finish.as_ref().expect("every choice ends");
        assert!(matches!(finish, Finish::Length | Finish::Stop(_)), "{finish:?}");
    }
    completion
}

/// Fails unless everything that requests held is free again. Waits a little: the engine thread publishes its numbers
/// at the end of a step, which may be after the last summary was read.
pub fn assert_nothing_is_held(engine: &Engine) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    loop {
        let s = engine.stats();
        let held = [s.used_blocks, s.running_sequences, s.waiting_sequences, s.open_requests, s.leased_slots];
        let leases: usize = engine.adapters().iter().map(|a| a.open_requests).sum();
        if held == [0; 5] && leases == 0 {
            assert_eq!(s.unhealthy, None);
            return;
        }
        assert!(std::time::Instant::now() < deadline, "still held: {s:?}, {leases} leases");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}
