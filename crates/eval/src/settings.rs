//! What tasks may be told beside their items.

use std::sync::Arc;

use crate::mistakes::WordList;

/// What two texts may differ in and still be the same answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ignored {
    /// Capitals and small letters.
    pub case: bool,
    /// ASCII punctuation.
    pub punctuation: bool,
    /// The words a, an and the.
    pub articles: bool,
    /// How much white space is between words.
    pub space: bool,
    /// Digits.
    pub digits: bool,
}

impl Ignored {
    /// Nothing but white space around a text.
    pub const NOTHING: Self =
        Self { case: false, punctuation: false, articles: false, space: false, digits: false };
    /// What SQuAD's evaluation ignores.
    pub const SQUAD: Self =
        Self { case: true, punctuation: true, articles: true, space: true, digits: false };
}

/// A document of a question about several.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Document {
    /// Its title; may be empty.
    pub title: String,
    /// Its text.
    pub text: String,
}

/// What tasks may be told beside their items. Each looks at what concerns it.
#[derive(Debug, Clone)]
pub struct TaskSettings {
    /// `exact-match`: what its measure `normalized` ignores.
    pub ignored: Ignored,
    /// `rouge`: compare the stems of words (Porter's), not the words.
    pub stem: bool,
    /// `perplexity`: lengths of the context, in tokens.
    pub contexts: Vec<usize>,
    /// `perplexity`: tokens that a window goes on; `None` is half of the context.
    pub stride: Option<usize>,
    /// `mqa`: how many documents are shown; empty shows those that an item has.
    pub num_documents: Vec<usize>,
    /// `mqa`: at how many places the document with the answer is put, evenly from the first to the last; `None` leaves it
    /// where it is, or takes three where the item does not say.
    pub num_positions: Option<usize>,
    /// `mqa`: documents without the answer, for items that have too few.
    pub distractors: Arc<[Document]>,
    /// Draws what is drawn: distractors.
    pub seed: u64,
    /// `choices`, `perplexity`: begin texts with the model's BOS token, where it has one.
    pub begin: bool,
    /// Words that are spelled right, beside those of question and answer.
    pub words: WordList,
}

impl Default for TaskSettings {
    fn default() -> Self {
        Self {
            ignored: Ignored::SQUAD,
            stem: false,
            contexts: vec![512, 1024, 2048],
            stride: None,
            num_documents: Vec::new(),
            num_positions: None,
            distractors: Arc::new([]),
            seed: 0,
            begin: true,
            words: WordList::default(),
        }
    }
}
