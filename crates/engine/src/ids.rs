//! Identifiers. Everything underneath is a number, and two swapped numbers compile; newtypes do not.

use std::fmt;

pub use wardrobe_text::TokenId;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id! {
    /// One request, in the order of submission. Never reused.
    RequestId(u64)
}
id! {
    /// One sequence: one choice of one request. Older sequences have smaller ids. Never reused.
    SequenceId(u64)
}
id! {
    /// One block of the KV cache: [`crate::BLOCK_SIZE_TOKENS`] positions of one sequence, in all layers.
    BlockId(u32)
}
id! {
    /// A place for one adapter on the device, `0..num_slots`.
    SlotIdx(u32)
}
id! {
    /// One immutable generation of an adapter: what one load brought. Starts at 1 and is never reused,
    /// whatever the name it was loaded under.
    GenerationId(u64)
}

/// A 256-bit content digest.
pub type Digest = [u8; 32];
