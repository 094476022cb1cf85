//! What a caller chooses.

use std::str::FromStr;

use crate::records::ReadOptions;
use crate::template::PromptTemplate;

/// How data becomes examples.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DataOptions {
    /// How files are read. The template for prompts in words of one's own comes from `template`.
    pub read: ReadOptions,
    /// How records become prompts.
    pub template: PromptTemplate,
    /// What is learnt.
    pub loss: LossOn,
    /// The longest example, in tokens; `None`: any.
    pub max_tokens: Option<usize>,
    /// What becomes of longer ones.
    pub truncation: Truncation,
    /// The time that chat templates see, in seconds since 1970; `None`: the clock's at the start. A template that writes the
    /// date gives other tokens on another day, and with them another digest; who resumes gives the time of the start.
    pub now_unix_s: Option<i64>,
}

impl DataOptions {
    /// How files are read, with the template.
    pub fn read_options(&self) -> ReadOptions {
        let mut read = self.read.clone();
        if let PromptTemplate::Custom(template) = &self.template {
            read.template = Some(template.clone());
        }
        read
    }
}

/// Which tokens are learnt.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum LossOn {
    /// The model's part: completions and answers, each with the token that ends it.
    #[default]
    Completions,
    /// Prompts too. Answers of weight 0 are left out here as well.
    Everything,
}

impl FromStr for LossOn {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "completions" => Ok(Self::Completions),
            "everything" => Ok(Self::Everything),
            _ => Err(format!("{text:?} is neither completions nor everything")),
        }
    }
}

/// What becomes of an example that is too long.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Truncation {
    /// It is left out, and counted.
    #[default]
    Drop,
    /// Its first tokens go. What is left of the mask stays, but for the new first token, which nothing predicts.
    Left,
    /// Its last tokens go, and with them the end of the answer: the model does not learn to stop there.
    Right,
    /// It is an error.
    Error,
}

impl FromStr for Truncation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "drop" => Ok(Self::Drop),
            "left" => Ok(Self::Left),
            "right" => Ok(Self::Right),
            "error" => Ok(Self::Error),
            _ => Err(format!("{text:?} is none of drop, left, right, error")),
        }
    }
}
