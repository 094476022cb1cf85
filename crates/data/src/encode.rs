//! From records to tokens, with the mask of what is learnt.
//!
//! Invariants: the tokens of a prompt are those that serving gives for it (the template rendered up to where the answer
//! begins, then `Tokenizer::encode` without special tokens around; for prompts without a template with them). The answer
//! is tokenized by itself, so that no token lies across the border. Every learnt answer ends with one token that ends the
//! turn or the text, and that token is learnt. Nothing stands after the last learnt token, since nothing would come of it.

use std::time::{SystemTime, UNIX_EPOCH};

use wardrobe_text::{ChatTemplate, TemplateLimits, TokenId, Tokenizer};

use crate::conversation;
use crate::error::{DataError, Result};
use crate::example::{DropReason, Encoded, Example};
use crate::options::{DataOptions, LossOn, Truncation};
use crate::record::{Conversation, Pair, Record, Turn};
use crate::template::PromptTemplate;

/// Turns records into examples.
#[derive(Debug)]
pub struct Encoder<'a> {
    pub(crate) tokenizer: &'a Tokenizer,
    template: Template<'a>,
    /// Whether an instruction's input is a field of its own, which the template places.
    separates_input: bool,
    pub(crate) knows_developer: bool,
    pub(crate) loss: LossOn,
    max_tokens: Option<usize>,
    truncation: Truncation,
    pub(crate) bos: Option<String>,
    pub(crate) eos: Option<String>,
    pub(crate) now_unix_s: i64,
    /// Whether the tokenizer puts a space before the first word of a text.
    adds_space: bool,
}

#[derive(Debug)]
enum Template<'a> {
    Models(&'a ChatTemplate),
    Named(Box<ChatTemplate>),
    None,
}

impl<'a> Encoder<'a> {
    /// An encoder for a model's tokenizer and, if it has one, its chat template.
    ///
    /// # Errors
    /// The model has no chat template and the options want it; the tokenizer has no end-of-text token; a limit of less
    /// than two tokens.
    pub fn new(
        tokenizer: &'a Tokenizer,
        chat_template: Option<&'a ChatTemplate>,
        options: &DataOptions,
    ) -> Result<Self> {
        let template = match (&options.template, chat_template) {
            (PromptTemplate::Chat, None) => {
                return Err(DataError::Options("the model has no chat template".to_owned()));
            }
            (PromptTemplate::Chat | PromptTemplate::Auto, Some(template)) => Template::Models(template),
            // Records that are formatted already do not ask for one, those of messages get none.
            (PromptTemplate::Auto | PromptTemplate::Plain | PromptTemplate::Custom(_), _) => Template::None,
            (named, _) => {
                let source = named.chat_template_source().unwrap_or_default();
                let template = ChatTemplate::new(source, TemplateLimits::default());
                Template::Named(Box::new(template.map_err(|error| DataError::Options(error.to_string()))?))
            }
        };
        if options.max_tokens.is_some_and(|max| max < 2) {
            return Err(DataError::Options("an example has at least two tokens".to_owned()));
        }
        if tokenizer.eos().is_none() {
            return Err(DataError::Options("the tokenizer has no end-of-text token".to_owned()));
        }
        let text =
            |id: Option<TokenId>| id.and_then(|id| tokenizer.token_str(id)).map(|text| text.into_owned());
        let clock = || {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            i64::try_from(now.as_secs()).unwrap_or(i64::MAX)
        };
        let shown = match &template {
            Template::Models(template) => template.source(),
            Template::Named(template) => template.source(),
            Template::None => "",
        };
        let first = tokenizer.encode("a", false).unwrap_or_default().first().copied();
        let adds_space =
            first.and_then(|id| tokenizer.token_bytes(id)).is_some_and(|bytes| bytes.starts_with(b" "));
        Ok(Self {
            separates_input: options.template == PromptTemplate::Alpaca,
            knows_developer: shown.contains("developer"),
            tokenizer,
            template,
            loss: options.loss,
            max_tokens: options.max_tokens,
            truncation: options.truncation,
            bos: text(tokenizer.bos()),
            eos: text(tokenizer.eos()),
            now_unix_s: options.now_unix_s.unwrap_or_else(clock),
            adds_space,
        })
    }

    /// The template of conversations.
    pub(crate) fn chat_template(&self) -> Result<&ChatTemplate, String> {
        match &self.template {
            Template::Models(template) => Ok(template),
            Template::Named(template) => Ok(template),
            Template::None => {
                Err("conversations need a chat template; choose one (chatml, zephyr, …)".to_owned())
            }
        }
    }

    /// The tokens of a record and what of them is learnt.
    ///
    /// # Errors
    /// What is wrong, without the place: the template refuses the record or does not build up piece by piece, a text is
    /// over the tokenizer's limit, or the example is too long and that was to be an error.
    pub fn encode(&self, record: &Record) -> Result<Encoded, String> {
        let example = match record {
            Record::Chat(chat) => conversation::encode(self, chat)?,
            Record::Pair(pair) => match &self.template {
                Template::None => Some(self.completion(&plain_prompt(pair), &pair.completion)?),
                _ => conversation::encode(self, &self.conversation(pair))?,
            },
            Record::Formatted { prompt, completion } => Some(self.completion(prompt, completion)?),
            Record::Text(text) => Some(self.text(text)?),
        };
        match example {
            Some(example) => self.fit(example),
            None => Ok(Encoded::Dropped(DropReason::NothingLearnt)),
        }
    }

    /// A pair as messages.
    fn conversation(&self, pair: &Pair) -> Conversation {
        let mut messages = Vec::new();
        messages.extend(pair.system.as_ref().map(|system| Turn::text("system", system.clone())));
        let mut user = match &pair.input {
            Some(input) if !self.separates_input => Turn::text("user", format!("{}\n\n{input}", pair.prompt)),
            _ => Turn::text("user", pair.prompt.clone()),
        };
        if let (Some(input), true) = (&pair.input, self.separates_input) {
            user.message.extra.insert("input".to_owned(), input.clone().into());
        }
        messages.extend([user, Turn::text("assistant", pair.completion.clone())]);
        Conversation { messages, tools: None }
    }

    /// A prompt as it is and what follows it.
    fn completion(&self, prompt: &str, completion: &str) -> Result<Example, String> {
        let mut tokens = Tokens::default();
        tokens.push(
            &self.tokenizer.encode(prompt, true).map_err(|e| e.to_string())?,
            self.loss == LossOn::Everything,
        );
        tokens.push(&self.encode_inside(self.without_end(completion))?, true);
        tokens.push(self.tokenizer.eos().as_slice(), true);
        Ok(tokens.finish())
    }

    /// Text without a prompt.
    fn text(&self, text: &str) -> Result<Example, String> {
        let text = self.without_end(text);
        // Text that was templated already begins with the token that would be put before it.
        let is_begun = self.bos.as_deref().is_some_and(|bos| !bos.is_empty() && text.starts_with(bos));
        let (before, _) = self.tokenizer.surrounding();
        let mut tokens = Tokens::default();
        if !is_begun {
            tokens.push(before, false);
        }
        tokens.push(&self.tokenizer.encode(text, false).map_err(|e| e.to_string())?, true);
        tokens.push(self.tokenizer.eos().as_slice(), true);
        Ok(tokens.finish())
    }

    /// The tokens of a text that goes on from another.
    pub(crate) fn encode_inside(&self, text: &str) -> Result<Vec<TokenId>, String> {
        let encode = |text: &str| self.tokenizer.encode(text, false).map_err(|error| error.to_string());
        if self.adds_space && !text.is_empty() {
            // Behind a line's end, a token of its own in such vocabularies, no space is added.
            let (end, both) = (encode("\n")?, encode(&format!("\n{text}"))?);
            if let Some(rest) = both.strip_prefix(end.as_slice()) {
                return Ok(rest.to_vec());
            }
        }
        encode(text)
    }

    /// The tokens of a text that follows the token `end`, as in a text that has both.
    pub(crate) fn encode_after(&self, end: TokenId, text: &str) -> Result<Vec<TokenId>, String> {
        let encode = |text: &str| self.tokenizer.encode(text, false).map_err(|error| error.to_string());
        if let Some(before) = self.tokenizer.token_str(end) {
            let both = encode(&format!("{before}{text}"))?;
            if let Some(rest) = both.strip_prefix(&[end]) {
                return Ok(rest.to_vec());
            }
        }
        encode(text)
    }

    /// Whether a token can end an answer.
    pub(crate) fn is_end(&self, id: TokenId) -> bool {
        self.tokenizer.is_special(id) || Some(id) == self.tokenizer.eos() || Some(id) == self.tokenizer.eot()
    }

    /// A completion without the end that the record wrote out itself, since the end is added.
    pub(crate) fn without_end<'t>(&self, text: &'t str) -> &'t str {
        let ends = [self.tokenizer.eos(), self.tokenizer.eot()];
        let ends = ends.into_iter().flatten().filter_map(|id| self.tokenizer.token_str(id));
        let ends: Vec<_> = ends.filter(|end| !end.trim().is_empty()).collect();
        let mut text = text;
        loop {
            let trimmed = text.trim_end();
            match ends.iter().find_map(|end| trimmed.strip_suffix(end.as_ref())) {
                Some(shorter) => text = shorter,
                None => return text,
            }
        }
    }

    /// Holds an example to the limit.
    fn fit(&self, mut example: Example) -> Result<Encoded, String> {
        let len = example.token_ids.len();
        let is_learnt = example.loss.contains(&true);
        if let Some(max) = self.max_tokens
            && len > max
        {
            match self.truncation {
                Truncation::Drop => return Ok(Encoded::Dropped(DropReason::TooLong)),
                Truncation::Error => return Err(format!("gives {len} tokens, over the limit of {max}")),
                Truncation::Left => {
                    example.token_ids.drain(..len - max);
                    example.loss.drain(..len - max);
                }
                Truncation::Right => {
                    example.token_ids.truncate(max);
                    example.loss.truncate(max);
                }
            }
        }
        if let Some(first) = example.loss.first_mut() {
            *first = false;
        }
        let learnt_len = example.loss.iter().rposition(|learnt| *learnt).map_or(0, |last| last + 1);
        example.token_ids.truncate(learnt_len);
        example.loss.truncate(learnt_len);
        Ok(match learnt_len {
            0 if is_learnt => Encoded::Dropped(DropReason::CutOff),
            0 => Encoded::Dropped(DropReason::NothingLearnt),
            _ => Encoded::Example(example),
        })
    }
}

/// A pair without a template: its parts as paragraphs.
fn plain_prompt(pair: &Pair) -> String {
    let parts = [pair.system.as_deref(), Some(pair.prompt.as_str()), pair.input.as_deref()];
    parts.into_iter().flatten().collect::<Vec<_>>().join("\n\n")
}

/// Tokens that are being put together.
#[derive(Debug, Default)]
pub(crate) struct Tokens {
    token_ids: Vec<TokenId>,
    loss: Vec<bool>,
}

impl Tokens {
    pub fn push(&mut self, token_ids: &[TokenId], is_learnt: bool) {
        self.token_ids.extend_from_slice(token_ids);
        self.loss.resize(self.token_ids.len(), is_learnt);
    }

    pub fn finish(self) -> Example {
        Example { token_ids: self.token_ids, loss: self.loss }
    }
}
