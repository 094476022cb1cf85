//! What text needs of a model: tokenizer and chat template, without its weights.

use std::path::Path;
use std::sync::Arc;

use wardrobe_engine::TokenId;
use wardrobe_formats::{ModelFiles, TokenizerFiles};
use wardrobe_text::{
    ChatInput, ChatTemplate, GgufVocab, Message, TemplateLimits, Tokenizer, TokenizerConfig,
};

use crate::error::{Error, Result};

/// A model's tokenizer and chat template. Cloning shares them.
#[derive(Clone, Debug)]
pub struct ModelText {
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// The chat template, if the model has one.
    pub chat_template: Option<Arc<ChatTemplate>>,
}

impl ModelText {
    /// Reads them from a folder in Hugging Face's layout or a `.gguf` file. No weight is read.
    ///
    /// # Errors
    /// [`Error`] naming the file or key at fault.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::of(&ModelFiles::open(path.as_ref())?)
    }

    /// Those of a model whose files are open.
    ///
    /// # Errors
    /// As for [`ModelText::open`].
    pub fn of(files: &ModelFiles) -> Result<Self> {
        let template = chat_template(&files.tokenizer)?.map(Arc::new);
        Ok(Self { tokenizer: tokenizer(files)?, chat_template: template })
    }

    /// Tokens of a conversation, up to where the answer begins.
    ///
    /// # Errors
    /// [`Error::Setting`] if the model has no chat template, [`Error::Template`] if it refuses.
    pub fn chat_prompt(&self, messages: &[Message]) -> Result<Vec<TokenId>> {
        let text = self.render(messages, true)?;
        Ok(self.tokenizer.encode(&text, false)?)
    }

    /// Text of a whole conversation, its answers among it.
    ///
    /// # Errors
    /// As for [`ModelText::chat_prompt`].
    pub fn chat_text(&self, messages: &[Message]) -> Result<String> {
        self.render(messages, false)
    }

    fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let Some(template) = &self.chat_template else {
            return Err(Error::Setting("the model has no chat template".to_owned()));
        };
        let special = |id: Option<TokenId>| id.and_then(|id| self.tokenizer.token_str(id));
        let (bos, eos) = (special(self.tokenizer.bos()), special(self.tokenizer.eos()));
        Ok(template.render(&ChatInput {
            messages,
            add_generation_prompt,
            bos_token: bos.as_deref(),
            eos_token: eos.as_deref(),
            ..ChatInput::default()
        })?)
    }
}

/// The chat template of a model, with the one that it has for conversations with tools.
fn chat_template(files: &TokenizerFiles) -> Result<Option<ChatTemplate>> {
    let Some(source) = &files.chat_template else { return Ok(None) };
    let template = ChatTemplate::new(source, TemplateLimits::default())?;
    Ok(Some(match files.named_chat_templates.get(ChatTemplate::TOOL_USE) {
        Some(source) => template.with_tool_use(source)?,
        None => template,
    }))
}

/// The tokenizer that the model's files describe.
pub(crate) fn tokenizer(files: &ModelFiles) -> Result<Tokenizer> {
    if let Some(json) = files.tokenizer.read_tokenizer_json()? {
        let config = tokenizer_config(files)?;
        return Ok(Tokenizer::from_tokenizer_json(&json, config.as_ref())?);
    }
    let Some(meta) = files.gguf_metadata() else {
        let path = files.path().display();
        return Err(Error::Setting(format!("{path} has no tokenizer.json, which a safetensors model needs")));
    };
    let strings = |key: &str| -> Result<Vec<String>> { Ok(meta.strings(key)?.unwrap_or_default().to_vec()) };
    let id = |key: &str| meta.u32(&format!("tokenizer.ggml.{key}_token_id"));
    Ok(Tokenizer::from_gguf(GgufVocab {
        model: meta.str("tokenizer.ggml.model")?.unwrap_or_default().to_owned(),
        pre: meta.str("tokenizer.ggml.pre")?.map(str::to_owned),
        tokens: strings("tokenizer.ggml.tokens")?,
        scores: meta.f32s("tokenizer.ggml.scores")?.map(<[f32]>::to_vec),
        token_types: meta
            .integers("tokenizer.ggml.token_type")?
            .unwrap_or_default()
            .into_iter()
            .map(|t| i32::try_from(t).unwrap_or(0))
            .collect(),
        merges: strings("tokenizer.ggml.merges")?,
        bos_id: id("bos")?,
        eos_id: id("eos")?,
        eot_id: id("eot")?,
        unk_id: id("unknown")?,
        pad_id: id("padding")?,
        add_bos: meta.bool("tokenizer.ggml.add_bos_token")?,
        add_eos: meta.bool("tokenizer.ggml.add_eos_token")?,
        add_space_prefix: meta.bool("tokenizer.ggml.add_space_prefix")?,
    })?)
}

/// What `tokenizer_config.json` says, if there is one.
pub(crate) fn tokenizer_config(files: &ModelFiles) -> Result<Option<TokenizerConfig>> {
    let map = files.tokenizer.tokenizer_config.as_ref();
    Ok(map.map(|map| TokenizerConfig::from_json(map_bytes(map).as_bytes())).transpose()?)
}

fn map_bytes(map: &serde_json::Map<String, serde_json::Value>) -> String {
    serde_json::Value::Object(map.clone()).to_string()
}
