//! Examples: what a trainer takes.

use wardrobe_text::TokenId;

/// A sequence of tokens, and which of them are learnt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// The tokens.
    pub token_ids: Vec<TokenId>,
    /// For each token, whether predicting it from those before it counts. As long as `token_ids`; false for the first,
    /// which nothing predicts.
    pub loss: Vec<bool>,
}

impl Example {
    /// How many tokens are learnt.
    pub fn num_supervised_tokens(&self) -> usize {
        self.loss.iter().filter(|learnt| **learnt).count()
    }

    /// What is wrong with it, if it cannot be trained on.
    pub(crate) fn problem(&self) -> Option<String> {
        if self.token_ids.len() != self.loss.len() {
            return Some(format!(
                "{} tokens and {} entries in the mask",
                self.token_ids.len(),
                self.loss.len()
            ));
        }
        if self.loss.first() == Some(&true) {
            return Some("the first token is learnt, and nothing predicts it".to_owned());
        }
        if !self.loss.contains(&true) {
            return Some("no token is learnt".to_owned());
        }
        None
    }
}

/// Why a record gave no example.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum DropReason {
    /// It is over the limit, and such examples are left out.
    TooLong,
    /// Nothing in it is learnt.
    NothingLearnt,
    /// Everything that is learnt was cut off.
    CutOff,
}

impl std::fmt::Display for DropReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::TooLong => "too long",
            Self::NothingLearnt => "nothing in it is learnt",
            Self::CutOff => "all that is learnt was cut off",
        })
    }
}

/// What became of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Encoded {
    /// An example.
    Example(Example),
    /// It is left out.
    Dropped(DropReason),
}
