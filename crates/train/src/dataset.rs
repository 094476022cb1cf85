//! The examples of a run.

use sha2::{Digest, Sha256};

use crate::microbatch::Example;
use crate::random::Random;

/// Tokenized examples, with a digest of them.
#[derive(Debug, Clone)]
pub struct Examples {
    examples: Vec<Example>,
    digest: [u8; 32],
}

impl Examples {
    /// Of these examples; such without a token to predict are kept and never computed.
    pub fn new(examples: Vec<Example>) -> Self {
        let mut hash = Sha256::new();
        hash.update(b"examples 1");
        for example in &examples {
            hash.update((example.token_ids.len() as u64).to_le_bytes());
            for (token, &loss) in example.token_ids.iter().zip(&example.loss) {
                hash.update(token.to_le_bytes());
                hash.update([u8::from(loss)]);
            }
        }
        Examples { examples, digest: hash.finalize().into() }
    }

    /// All of them.
    pub fn as_slice(&self) -> &[Example] {
        &self.examples
    }

    /// SHA-256 of tokens and supervision.
    pub fn digest(&self) -> &[u8; 32] {
        &self.digest
    }

    /// Tokens of the longest.
    pub fn longest_tokens(&self) -> usize {
        self.examples.iter().map(|e| e.token_ids.len()).max().unwrap_or(0)
    }

    /// The order of an epoch, from 0.
    pub(crate) fn order(&self, seed: u64, epoch: usize) -> Vec<usize> {
        let mut random = Random::new(seed);
        let of_epoch = random.next() ^ (epoch as u64).wrapping_mul(0xD134_2543_DE82_EF95);
        Random::new(of_epoch).order(self.examples.len())
    }
}
