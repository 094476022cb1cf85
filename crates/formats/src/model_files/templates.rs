//! Chat templates: the default one, and others by name, wherever a model has them.

use std::path::Path;

use serde_json::{Map, Value};

use super::{TokenizerFiles, optional};
use crate::config::describe;
use crate::error::{FormatError, Result};
use crate::gguf::Metadata;
use crate::paths;

const MAX_TEMPLATE_BYTES: u64 = 4 << 20;
/// Templates beside the default one. Models in use have three.
const MAX_TEMPLATES: usize = 32;

/// The default template's name, where all have one.
const DEFAULT: &str = "default";
const FILE: &str = "chat_template.jinja";
const FOLDER: &str = "additional_chat_templates";
const GGUF_KEY: &str = "tokenizer.chat_template";
const GGUF_NAMES: &str = "tokenizer.chat_templates";

fn put(files: &mut TokenizerFiles, name: &str, template: &str) {
    if name == DEFAULT {
        files.chat_template = Some(template.to_owned());
    } else {
        files.named_chat_templates.insert(name.to_owned(), template.to_owned());
    }
}

/// `chat_template` of `tokenizer_config.json`: a string, or a list of `{name, template}`.
pub(super) fn read_config(
    path: &Path,
    config: &Map<String, Value>,
    files: &mut TokenizerFiles,
) -> Result<()> {
    const KEY: &str = "chat_template";
    let expected = "a string or a list of {name, template}";
    match config.get(KEY) {
        None | Some(Value::Null) => {}
        Some(Value::String(template)) => files.chat_template = Some(template.clone()),
        Some(Value::Array(list)) => {
            for item in list {
                let part = |key: &str| item.get(key).and_then(Value::as_str);
                let (Some(name), Some(template)) = (part("name"), part("template")) else {
                    return Err(FormatError::key(path, KEY, expected, describe(item)));
                };
                put(files, name, template);
            }
        }
        Some(other) => return Err(FormatError::key(path, KEY, expected, describe(other))),
    }
    Ok(())
}

/// `chat_template.jinja` and `additional_chat_templates/`, which come in the place of what `tokenizer_config.json` has; its
/// default one stays if they have none.
pub(super) fn read_files(folder: &Path, files: &mut TokenizerFiles) -> Result<()> {
    let default = optional(folder, FILE)?;
    let additional = additional(folder)?;
    if default.is_some() || !additional.is_empty() {
        files.named_chat_templates.clear();
    }
    if let Some(path) = default {
        files.chat_template = Some(paths::read_text(&path, MAX_TEMPLATE_BYTES)?);
    }
    for (name, file) in additional {
        put(files, &name, &paths::read_text(&paths::confined(folder, &file)?, MAX_TEMPLATE_BYTES)?);
    }
    Ok(())
}

/// Names of templates that have a file in `additional_chat_templates/`, with these files, in order.
pub(super) fn additional(folder: &Path) -> Result<Vec<(String, String)>> {
    if !paths::exists(folder, FOLDER) {
        return Ok(Vec::new());
    }
    let inner = paths::confined(folder, FOLDER)?;
    let io = |e| FormatError::io(&inner, e);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&inner).map_err(io)? {
        let file = entry.map_err(io)?.file_name();
        let Some(name) = file.to_str().and_then(|file| file.strip_suffix(".jinja")) else { continue };
        if found.len() == MAX_TEMPLATES {
            let over = found.len() as u64 + 1;
            return Err(FormatError::limit(&inner, "chat templates", MAX_TEMPLATES as u64, over));
        }
        if !name.is_empty() {
            found.push((name.to_owned(), format!("{FOLDER}/{name}.jinja")));
        }
    }
    found.sort();
    Ok(found)
}

/// `tokenizer.chat_template` of a GGUF file, and `tokenizer.chat_template.NAME` for the names of `tokenizer.chat_templates`.
pub(super) fn read_gguf(metadata: &Metadata, files: &mut TokenizerFiles) -> Result<()> {
    files.chat_template = metadata.str(GGUF_KEY)?.map(str::to_owned);
    for name in metadata.strings(GGUF_NAMES)?.unwrap_or_default().iter().take(MAX_TEMPLATES) {
        if let Some(template) = metadata.str(&format!("{GGUF_KEY}.{name}"))? {
            put(files, name, template);
        }
    }
    Ok(())
}
