//! Conversations as tokens, turn by turn.
//!
//! For each answer that is learnt the template is rendered twice: up to where the answer begins, as serving does, and
//! with the answer. What the second has more is the answer with its end. Each rendering must begin with what is there
//! already; templates that write a turn differently once others follow (as those do that leave out earlier reasoning)
//! cannot be cut so, and are refused where only answers are to be learnt.

use std::borrow::Cow;

use wardrobe_text::{ChatInput, Message, MessageContent, TokenId};

use crate::encode::{Encoder, Tokens};
use crate::example::Example;
use crate::options::LossOn;
use crate::record::{Conversation, Turn};

/// The example of a conversation; `None` if nothing in it is learnt.
pub fn encode(encoder: &Encoder<'_>, chat: &Conversation) -> Result<Option<Example>, String> {
    let messages: Vec<Message> = chat.messages.iter().map(|turn| prepared(encoder, turn)).collect();
    let rendering = Rendering { encoder, messages: &messages, chat };
    match encoder.loss {
        LossOn::Completions => rendering.pieces(|turn| turn.is_answer() && turn.is_learnt, false),
        LossOn::Everything => {
            let has_weights = chat.messages.iter().any(|turn| turn.is_answer() && !turn.is_learnt);
            match rendering.pieces(Turn::is_answer, true) {
                // All of it is learnt, so that it need not be cut.
                Err(_) if !has_weights => rendering.whole().map(Some),
                result => result,
            }
        }
    }
}

/// A message as serving gives it to the template.
fn prepared(encoder: &Encoder<'_>, turn: &Turn) -> Message {
    let mut message = turn.message.clone();
    if message.role == "developer" && !encoder.knows_developer {
        "system".clone_into(&mut message.role);
    }
    if let (true, MessageContent::Text(text)) = (turn.is_answer(), &mut message.content) {
        let len = encoder.without_end(text).len();
        text.truncate(len);
    }
    message
}

struct Rendering<'a> {
    encoder: &'a Encoder<'a>,
    messages: &'a [Message],
    chat: &'a Conversation,
}

impl Rendering<'_> {
    /// The first `len` messages as text.
    fn render(&self, len: usize, add_generation_prompt: bool) -> Result<String, String> {
        let input = ChatInput {
            messages: self.messages.get(..len).unwrap_or(self.messages),
            tools: self.chat.tools.as_ref(),
            add_generation_prompt,
            bos_token: self.encoder.bos.as_deref(),
            eos_token: self.encoder.eos.as_deref(),
            now_unix_s: Some(self.encoder.now_unix_s),
            ..ChatInput::default()
        };
        self.encoder
            .chat_template()?
            .render(&input)
            .map_err(|error| format!("the chat template refuses it: {error}"))
    }

    /// All of it as one text.
    fn whole(&self) -> Result<Example, String> {
        let text = self.render(self.messages.len(), false)?;
        let encode =
            |text: &str| self.encoder.tokenizer.encode(text, false).map_err(|error| error.to_string());
        let is_ended = encode(text.trim_end())?.last().is_some_and(|id| self.encoder.is_end(*id));
        let mut tokens = Tokens::default();
        tokens.push(&encode(&text)?, true);
        if !is_ended {
            tokens.push(self.encoder.tokenizer.eos().as_slice(), true);
        }
        Ok(tokens.finish())
    }

    /// Cut before and after each answer that `is_border` names. `everything`: what is between them is learnt as well.
    fn pieces(&self, is_border: impl Fn(&Turn) -> bool, everything: bool) -> Result<Option<Example>, String> {
        let borders = || self.chat.messages.iter().enumerate().filter(|(_, turn)| is_border(turn));
        let Some(last) = borders().map(|(idx, _)| idx).last() else { return Ok(None) };
        let mut tokens = Tokens::default();
        let mut done = Done { text: String::new(), end: None };
        for (idx, turn) in borders() {
            let prompt = self.render(idx, true)?;
            let added = done.added(&prompt, idx)?;
            tokens.push(&self.encode_prompt(&done, added)?, everything);
            let answered = self.render(idx + 1, false)?;
            let answer = answered.strip_prefix(prompt.as_str()).ok_or_else(|| inconsistent(idx))?;
            let (token_ids, len, end) = self.encode_answer(answer, idx == last, idx)?;
            tokens.push(&token_ids, turn.is_learnt);
            done.text = prompt;
            done.text.push_str(answer.get(..len).unwrap_or(answer));
            done.end = Some(end);
        }
        if everything {
            let whole = self.render(self.messages.len(), false)?;
            let rest = done.added(&whole, self.messages.len())?;
            tokens.push(&self.encode_prompt(&done, rest)?, true);
        }
        Ok(Some(tokens.finish()))
    }

    fn encode_prompt(&self, done: &Done, added: &str) -> Result<Vec<TokenId>, String> {
        match done.end {
            None => self.encoder.tokenizer.encode(added, false).map_err(|error| error.to_string()),
            Some(end) => self.encoder.encode_after(end, added),
        }
    }

    /// The tokens of an answer up to its end, how much of the text they are, in bytes, and the end. White space after the
    /// end is left to what follows.
    fn encode_answer(
        &self,
        answer: &str,
        is_last: bool,
        idx: usize,
    ) -> Result<(Vec<TokenId>, usize, TokenId), String> {
        let trimmed = answer.trim_end();
        let mut token_ids = self.encoder.encode_inside(trimmed)?;
        if let Some(&end) = token_ids.last().filter(|id| self.encoder.is_end(**id)) {
            return Ok((token_ids, trimmed.len(), end));
        }
        if !is_last {
            return Err(format!(
                "the chat template ends messages[{idx}] with no special token, from which the model would learn to stop: \
                 only the last answer can be learnt, so give the others weight 0"
            ));
        }
        let end = self.encoder.tokenizer.eos().ok_or("the tokenizer has no end-of-text token")?;
        if trimmed.len() < answer.len() {
            token_ids = self.encoder.encode_inside(answer)?;
        }
        token_ids.push(end);
        Ok((token_ids, answer.len(), end))
    }
}

/// What is rendered and encoded.
struct Done {
    text: String,
    /// The token that it ends with.
    end: Option<TokenId>,
}

impl Done {
    /// What a rendering up to message `idx` adds.
    fn added<'t>(&self, rendered: &'t str, idx: usize) -> Result<&'t str, String> {
        rendered.strip_prefix(self.text.as_str()).ok_or_else(|| inconsistent(idx))
    }
}

fn inconsistent(idx: usize) -> String {
    let before: Cow<'_, str> = match idx {
        0 => "before it".into(),
        idx => format!("up to messages[{}]", idx - 1).into(),
    };
    format!(
        "the chat template writes what comes {before} differently once messages[{idx}] follows, so that what is learnt \
         cannot be told apart: learn one answer a record (weight 0 for the others), or choose another template"
    )
}
