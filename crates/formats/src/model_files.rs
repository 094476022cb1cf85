//! A model as it lies on disk: a Hugging Face folder or a GGUF file.
//!
//! Purpose: find and check the parts, and hand them out in one shape whatever the source.
//! State owned: configuration, tensor source, texts of the small files.
//! Invariants: nothing outside the folder is read (the Hugging Face cache's links to its own blobs excepted).
//! Not done here: building the tokenizer and rendering templates, downloading, pickled checkpoints.

mod templates;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use serde_json::{Map, Value};

use crate::config::ModelConfig;
use crate::digest::{Digest, DigestBuilder};
use crate::error::{FormatError, Result, shorten};
use crate::gguf::{GgufFile, GgufTensors, Metadata};
use crate::paths;
use crate::safetensors::{INDEX_FILE, SINGLE_FILE, SafetensorsFile};
use crate::source::TensorSource;

pub(crate) const MAX_CONFIG_BYTES: u64 = 4 << 20;
const MAX_TOKENIZER_CONFIG_BYTES: u64 = 32 << 20;
const MAX_TOKENIZER_BYTES: u64 = 256 << 20;

/// What [`ModelFiles::companion_files`] looks for.
const COMPANION_FILES: [&str; 16] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
    "LICENCE",
    "NOTICE",
    "USE_POLICY.md",
];

/// What a tokenizer and a chat template can be made of.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct TokenizerFiles {
    /// Path of `tokenizer.json`, if there is one.
    pub tokenizer_json: Option<PathBuf>,
    /// Content of `tokenizer_config.json`, if there is one.
    pub tokenizer_config: Option<Map<String, Value>>,
    /// The default chat template: `chat_template.jinja`, else `chat_template` of `tokenizer_config.json` (where it
    /// is a list, the one named `default`), else `tokenizer.chat_template` of a GGUF file.
    pub chat_template: Option<String>,
    /// Other templates by name, such as `tool_use`: from where the default one is, or from `additional_chat_templates/`. Files
    /// come in the place of all that `tokenizer_config.json` has, as in transformers.
    pub named_chat_templates: BTreeMap<String, String>,
}

impl TokenizerFiles {
    /// The bytes of `tokenizer.json`, `None` if there is none.
    ///
    /// # Errors
    /// [`FormatError::Io`], [`FormatError::Limit`] over 256 MiB.
    pub fn read_tokenizer_json(&self) -> Result<Option<Vec<u8>>> {
        self.tokenizer_json.as_deref().map(|path| paths::read_bytes(path, MAX_TOKENIZER_BYTES)).transpose()
    }
}

/// An opened model.
#[derive(Debug)]
pub struct ModelFiles {
    /// Checked configuration.
    pub config: ModelConfig,
    /// Weights under Hugging Face names, in Hugging Face layout.
    pub tensors: Box<dyn TensorSource>,
    /// Tokenizer and chat template.
    pub tokenizer: TokenizerFiles,
    path: PathBuf,
    gguf: Option<Arc<GgufFile>>,
    /// Content of `config.json`, for a safetensors model.
    hf_config: Option<Map<String, Value>>,
    /// Files that make the model's identity, in a fixed order.
    identity_files: Vec<PathBuf>,
    digest: OnceLock<Digest>,
}

impl ModelFiles {
    /// Opens a folder with `config.json` and safetensors, a `.gguf` file, or a folder with exactly one `.gguf` file
    /// (and, if they are there, the tokenizer files, which then come before the GGUF's own).
    ///
    /// # Errors
    /// [`FormatError`] naming file and key or tensor.
    pub fn open(path: &Path) -> Result<Self> {
        let meta = std::fs::metadata(path).map_err(|e| {
            if e.kind() == std::io::ErrorKind::NotFound {
                FormatError::NotFound { path: path.to_owned(), what: "model".to_owned() }
            } else {
                FormatError::io(path, e)
            }
        })?;
        if !meta.is_dir() {
            return Self::open_gguf(path, path, TokenizerFiles::default());
        }
        if paths::exists(path, INDEX_FILE) || paths::exists(path, SINGLE_FILE) {
            return Self::open_safetensors(path);
        }
        let mut found = gguf_files(path)?;
        match (found.pop(), found.is_empty()) {
            (Some(name), true) => {
                Self::open_gguf(path, &paths::confined(path, &name)?, tokenizer_files(path)?)
            }
            (Some(name), false) => {
                found.push(name);
                let names = shorten(&found.join(", "));
                Err(FormatError::malformed(path, format!("several GGUF files ({names}); name one of them")))
            }
            (None, _) => {
                let pickled = ["pytorch_model.bin", "pytorch_model.bin.index.json"];
                if pickled.iter().any(|name| paths::exists(path, name)) {
                    let what = "pickled weights (pytorch_model.bin); convert them to safetensors";
                    return Err(FormatError::unsupported(path, what));
                }
                let what = format!("{SINGLE_FILE}, {INDEX_FILE} or a .gguf file");
                Err(FormatError::NotFound { path: path.to_owned(), what })
            }
        }
    }

    fn open_safetensors(folder: &Path) -> Result<Self> {
        let config_path = paths::confined(folder, "config.json")?;
        let hf_config = paths::read_json_object(&config_path, MAX_CONFIG_BYTES)?;
        let generation = match optional(folder, "generation_config.json")? {
            Some(path) => {
                let content = paths::read_json_object(&path, MAX_CONFIG_BYTES)?;
                Some((path, content))
            }
            None => None,
        };
        let generation = generation.as_ref().map(|(path, content)| (path.as_path(), content));
        let config = ModelConfig::from_hf(&config_path, &hf_config, generation)?;
        let tensors = SafetensorsFile::open_folder(folder)?;
        let mut identity_files: Vec<PathBuf> = tensors.files().map(Path::to_owned).collect();
        identity_files.sort();
        identity_files.insert(0, config_path);
        Ok(Self {
            config,
            tensors: Box::new(tensors),
            tokenizer: tokenizer_files(folder)?,
            path: folder.to_owned(),
            gguf: None,
            hf_config: Some(hf_config),
            identity_files,
            digest: OnceLock::new(),
        })
    }

    fn open_gguf(path: &Path, file_path: &Path, mut tokenizer: TokenizerFiles) -> Result<Self> {
        let file = Arc::new(GgufFile::open(file_path)?);
        let config = ModelConfig::from_gguf(&file)?;
        let tensors = GgufTensors::new(Arc::clone(&file), &config)?;
        if tokenizer.chat_template.is_none() {
            templates::read_gguf(file.metadata(), &mut tokenizer)?;
        }
        Ok(Self {
            config,
            tensors: Box::new(tensors),
            tokenizer,
            path: path.to_owned(),
            gguf: Some(file),
            hf_config: None,
            identity_files: vec![file_path.to_owned()],
            digest: OnceLock::new(),
        })
    }

    /// The path that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the model is called, as far as its files tell: the name of the file or folder that was opened (unless it
    /// is a digest), that of the model's folder in a Hugging Face cache (`org--name`), and `general.name` of a GGUF
    /// file.
    pub fn names(&self) -> Vec<String> {
        let path = std::path::absolute(&self.path).unwrap_or_else(|_| self.path.clone());
        let is_digest = |name: &str| name.len() >= 40 && name.bytes().all(|b| b.is_ascii_hexdigit());
        let parts = || path.ancestors().filter_map(|part| part.file_name()?.to_str());
        let own = parts().next().filter(|name| !is_digest(name));
        let cached = parts().find_map(|name| name.strip_prefix("models--"));
        let in_metadata = self.gguf_metadata().and_then(|meta| meta.str("general.name").ok().flatten());
        [own, cached, in_metadata].into_iter().flatten().map(str::to_owned).collect()
    }

    /// Metadata of the GGUF file, with `tokenizer.ggml.*`; `None` for a safetensors model.
    pub fn gguf_metadata(&self) -> Option<&Metadata> {
        self.gguf.as_deref().map(GgufFile::metadata)
    }

    /// Content of `config.json` as it stands; `None` for a GGUF model.
    pub fn hf_config(&self) -> Option<&Map<String, Value>> {
        self.hf_config.as_ref()
    }

    /// Small files of the model's folder that belong to any copy of it: tokenizer, template, settings of generation,
    /// licence. Names and contents, in a fixed order; empty for a file that was opened by itself.
    ///
    /// # Errors
    /// [`FormatError::Escapes`] for a link that leads out of the folder; [`FormatError::Limit`] for a file over 256 MiB.
    pub fn companion_files(&self) -> Result<Vec<(String, Vec<u8>)>> {
        if !self.path.is_dir() {
            return Ok(Vec::new());
        }
        let fixed = COMPANION_FILES.iter().filter(|name| paths::exists(&self.path, name));
        let named = templates::additional(&self.path)?.into_iter().map(|(_, file)| file);
        let all = fixed.map(|name| (*name).to_owned()).chain(named);
        all.map(|name| {
            let path = paths::confined(&self.path, &name)?;
            let bytes = paths::read_bytes(&path, MAX_TOKENIZER_BYTES)?;
            Ok((name, bytes))
        })
        .collect()
    }

    /// SHA-256 over the whole content of the files that make the model: the GGUF file, or `config.json` and all
    /// safetensors files. Reads everything the first time, and is remembered.
    ///
    /// # Errors
    /// [`FormatError::Io`], [`FormatError::Truncated`].
    pub fn digest(&self) -> Result<Digest> {
        if let Some(known) = self.digest.get() {
            return Ok(*known);
        }
        let mut builder = DigestBuilder::new("wardrobe model content 1");
        for path in &self.identity_files {
            builder.file(path)?;
        }
        let digest = builder.finish();
        Ok(*self.digest.get_or_init(|| digest))
    }

    /// SHA-256 over the configuration and the names, storage types and shapes of the tensors: cheap, and the same
    /// for two models that differ in their numbers only. It tells models apart by structure; it is no content digest.
    ///
    /// # Errors
    /// [`FormatError::Json`] if the configuration cannot be serialised.
    pub fn manifest_digest(&self) -> Result<Digest> {
        let config = serde_json::to_vec(&self.config)
            .map_err(|source| FormatError::Json { path: self.path.clone(), source })?;
        let mut builder = DigestBuilder::new("wardrobe model manifest 1");
        builder.part(&config).manifest(self.tensors.tensors());
        Ok(builder.finish())
    }
}

/// The confined path of `name`, or `None` if there is no such entry.
fn optional(folder: &Path, name: &str) -> Result<Option<PathBuf>> {
    if paths::exists(folder, name) { paths::confined(folder, name).map(Some) } else { Ok(None) }
}

/// Names of the `.gguf` files in a folder, sorted.
fn gguf_files(folder: &Path) -> Result<Vec<String>> {
    const MAX_ENTRIES: usize = 65_536;
    let io = |e| FormatError::io(folder, e);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io)?.take(MAX_ENTRIES) {
        let name = entry.map_err(io)?.file_name();
        if let Some(name) = name.to_str()
            && name.len() > 5
            && name.to_ascii_lowercase().ends_with(".gguf")
        {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

fn tokenizer_files(folder: &Path) -> Result<TokenizerFiles> {
    let mut files =
        TokenizerFiles { tokenizer_json: optional(folder, "tokenizer.json")?, ..TokenizerFiles::default() };
    if let Some(path) = optional(folder, "tokenizer_config.json")? {
        let config = paths::read_json_object(&path, MAX_TOKENIZER_CONFIG_BYTES)?;
        templates::read_config(&path, &config, &mut files)?;
        files.tokenizer_config = Some(config);
    }
    templates::read_files(folder, &mut files)?;
    Ok(files)
}

#[cfg(test)]
mod tests;
