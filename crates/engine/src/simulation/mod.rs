//! A model made of hashes: an executor, adapters and text without weights, for tests of what stands on the engine.
//!
//! The next token is a hash of everything that may change it: the tokens before it, the adapter's digest and scale,
//! the sampling parameters, the seed. So two runs agree exactly if the engine gave them the same input.
//!
//! [`SimExecutor`] keeps, for every position of every block, what a KV cache would: which token was computed there, after
//! which history, with which adapter. It checks every plan against that and reports the first violation as a lost
//! device: a stale or foreign block, a position skipped, a block that two sequences write, an empty slot.
//!
//! It deliberately has no notion of language; its text is letters.

mod adapters;
mod executor;

pub use adapters::{SimAdapter, SimLoader};
pub use executor::{SimControl, SimExecutor, SimFailure};

use crate::codec::{Detokenizer, TextCodec};
use crate::ids::TokenId;

/// The end id of simulated models: text `</s>`, a special token.
pub const SIM_EOS: TokenId = TokenId(0);

/// Text for simulated tokens: id 0 is the special token `</s>`, every other one a letter or a space.
#[derive(Clone, Copy, Debug, Default)]
pub struct SimCodec;

impl SimCodec {
    fn text(token: TokenId) -> char {
        char::from_u32(u32::from(b'a') + token.0 % 27).filter(char::is_ascii_lowercase).unwrap_or(' ')
    }
}

impl TextCodec for SimCodec {
    fn detokenizer(&self, _prompt: &[TokenId], skip_special_tokens: bool) -> Box<dyn Detokenizer> {
        Box::new(SimDetokenizer { skip_special_tokens })
    }

    fn token_bytes(&self, token: TokenId) -> Vec<u8> {
        if token == SIM_EOS { b"</s>".to_vec() } else { Self::text(token).to_string().into_bytes() }
    }
}

struct SimDetokenizer {
    skip_special_tokens: bool,
}

impl Detokenizer for SimDetokenizer {
    fn push(&mut self, token: TokenId) -> String {
        match (token == SIM_EOS, self.skip_special_tokens) {
            (true, true) => String::new(),
            (true, false) => "</s>".to_owned(),
            (false, _) => SimCodec::text(token).to_string(),
        }
    }

    fn finish(&mut self) -> String {
        String::new()
    }
}

/// Mixes a value into a hash (the finaliser of SplitMix64: Steele, Lea and Flood, 2014).
fn mix(hash: u64, value: u64) -> u64 {
    let mut z = (hash ^ value).wrapping_add(0x9e37_79b9_7f4a_7c15).wrapping_mul(0xd6e8_feb8_6659_fd93);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
