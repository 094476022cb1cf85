//! What `tokenizer_config.json` says: special tokens by text, and the chat template.

use crate::{Result, TextError};
use serde::Deserialize;

/// A chat template with its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedTemplate {
    /// `default`, `tool_use`, `rag` and so on.
    pub name: String,
    /// The template's source.
    pub source: String,
}

/// The parts of `tokenizer_config.json` that matter for serving. All are optional.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TokenizerConfig {
    /// Text of the beginning-of-text token.
    pub bos_token: Option<String>,
    /// Text of the end-of-text token.
    pub eos_token: Option<String>,
    /// Text of the padding token.
    pub pad_token: Option<String>,
    /// Text of the token for text that has none.
    pub unk_token: Option<String>,
    /// Whether a whole text starts with the beginning-of-text token; `None`: as `tokenizer.json` says.
    pub add_bos_token: Option<bool>,
    /// Whether a whole text ends with the end-of-text token; `None`: as `tokenizer.json` says.
    pub add_eos_token: Option<bool>,
    /// The chat templates; a single one is named `default`.
    pub chat_templates: Vec<NamedTemplate>,
}

impl TokenizerConfig {
    /// Reads the file. Unknown keys are ignored, as every library adds its own.
    ///
    /// # Errors
    /// Not JSON, or a known key of a wrong type.
    pub fn from_json(bytes: &[u8]) -> Result<Self> {
        let file: File = serde_json::from_slice(bytes)
            .map_err(|error| TextError::TokenizerConfig { message: error.to_string() })?;
        Ok(Self {
            bos_token: file.bos_token.map(Token::into_text),
            eos_token: file.eos_token.map(Token::into_text),
            pad_token: file.pad_token.map(Token::into_text),
            unk_token: file.unk_token.map(Token::into_text),
            add_bos_token: file.add_bos_token,
            add_eos_token: file.add_eos_token,
            chat_templates: match file.chat_template {
                None => Vec::new(),
                Some(Templates::One(source)) => vec![NamedTemplate { name: "default".to_owned(), source }],
                Some(Templates::Named(list)) => list
                    .into_iter()
                    .map(|Named { name, template }| NamedTemplate { name, source: template })
                    .collect(),
            },
        })
    }

    /// The template for a conversation: `tool_use` if there are tools and the model has one of that name, else
    /// `default`.
    pub fn chat_template(&self, with_tools: bool) -> Option<&str> {
        let named = |name: &str| self.chat_templates.iter().find(|template| template.name == name);
        with_tools
            .then(|| named("tool_use"))
            .flatten()
            .or_else(|| named("default"))
            .map(|template| template.source.as_str())
    }
}

#[derive(Deserialize)]
struct File {
    bos_token: Option<Token>,
    eos_token: Option<Token>,
    pad_token: Option<Token>,
    unk_token: Option<Token>,
    add_bos_token: Option<bool>,
    add_eos_token: Option<bool>,
    chat_template: Option<Templates>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Token {
    Text(String),
    Added { content: String },
}

impl Token {
    fn into_text(self) -> String {
        match self {
            Self::Text(text) | Self::Added { content: text } => text,
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Templates {
    One(String),
    Named(Vec<Named>),
}

#[derive(Deserialize)]
struct Named {
    name: String,
    template: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_as_text_or_object_and_one_template() {
        let config = TokenizerConfig::from_json(
            br#"{"bos_token":"<s>","eos_token":{"content":"</s>","lstrip":false},"pad_token":null,
                "add_bos_token":true,"chat_template":"{{ messages }}","other":[1]}"#,
        )
        .unwrap();
        assert_eq!(config.bos_token.as_deref(), Some("<s>"));
        assert_eq!(config.eos_token.as_deref(), Some("</s>"));
        assert_eq!((config.pad_token, config.add_bos_token), (None, Some(true)));
        assert_eq!(
            config.chat_templates,
            [NamedTemplate { name: "default".into(), source: "{{ messages }}".into() }]
        );
    }

    #[test]
    fn named_templates() {
        let config = TokenizerConfig::from_json(
            br#"{"chat_template":[{"name":"default","template":"d"},{"name":"tool_use","template":"t"}]}"#,
        )
        .unwrap();
        assert_eq!(config.chat_template(false), Some("d"));
        assert_eq!(config.chat_template(true), Some("t"));
        assert_eq!(TokenizerConfig::default().chat_template(true), None);
    }

    #[test]
    fn wrong_types_are_errors() {
        for text in ["", "[]", r#"{"bos_token":1}"#, r#"{"chat_template":{}}"#, r#"{"add_bos_token":"yes"}"#]
        {
            assert!(
                matches!(TokenizerConfig::from_json(text.as_bytes()), Err(TextError::TokenizerConfig { .. })),
                "{text}"
            );
        }
    }
}
