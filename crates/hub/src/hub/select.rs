//! Which files of a repository make the model.
//!
//! Only an allow-list is fetched: weights as safetensors or one GGUF file, and the texts beside them. Pickled weights run
//! code when they are read; they are never fetched, not even as a fallback.

use std::collections::BTreeSet;
use std::path::Path;

use serde::Deserialize;

use super::client::Listing;
use crate::disk;
use crate::error::HubError;
use crate::manifest::ModelKind;
use crate::names::is_safe_relative_path;
use crate::reference::RepoRef;

/// The texts of a model, as far as the repository has them.
const MODEL_TEXTS: [&str; 7] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
];
/// Chat templates beside the default one; models in use have three.
const MAX_TEMPLATES: usize = 32;
/// The texts of a PEFT adapter.
const ADAPTER_CONFIG: &str = "adapter_config.json";
const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Models in use have hundreds of shards.
const MAX_SHARDS: usize = 10_000;

/// The files to fetch.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Selection {
    pub(super) kind: ModelKind,
    /// Names, small files first. Without the index and the shards that it names.
    pub(super) files: Vec<String>,
    /// The index of the shards, if the weights come in shards.
    pub(super) index: Option<String>,
    /// The file that is the model, if it is one file.
    pub(super) main_file: Option<String>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: std::collections::BTreeMap<String, String>,
}

/// Whether this is a chat template with a name, such as that for conversations with tools.
fn is_named_template(path: &str) -> bool {
    let file = path.strip_prefix("additional_chat_templates/").and_then(|name| name.strip_suffix(".jinja"));
    file.is_some_and(|name| !name.is_empty() && !name.contains('/')) && is_safe_relative_path(path)
}

impl Selection {
    pub(super) fn choose(repo: &RepoRef, listing: &Listing) -> Result<Self, HubError> {
        let has = |name: &str| listing.files.iter().any(|file| file.path == name);
        let no_weights = |reason: String| Err(HubError::NoWeights { repo: repo.to_string(), reason });
        let named = |suffix: &str| -> Vec<&str> {
            let names = listing.files.iter().map(|file| file.path.as_str());
            names.filter(|name| name.to_ascii_lowercase().ends_with(suffix)).take(20).collect()
        };
        if let Some(file) = repo.file() {
            if !has(file) {
                let there = named(".gguf");
                let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
                return Err(HubError::NotFound {
                    what: format!("{file} in {repo}"),
                    detail: format!("its .gguf files: {there}"),
                });
            }
            return Ok(Self {
                kind: ModelKind::Gguf,
                files: vec![file.to_owned()],
                index: None,
                main_file: Some(file.to_owned()),
            });
        }
        let texts =
            |names: &[&str]| names.iter().filter(|name| has(name)).map(|&name| name.to_owned()).collect();
        if has(ADAPTER_CONFIG) && has(ADAPTER_WEIGHTS) {
            let mut files: Vec<String> = texts(&[ADAPTER_CONFIG]);
            files.push(ADAPTER_WEIGHTS.to_owned());
            return Ok(Self { kind: ModelKind::Adapter, files, index: None, main_file: None });
        }
        let mut files: Vec<String> = texts(&MODEL_TEXTS);
        let names = listing.files.iter().map(|file| &file.path).filter(|name| is_named_template(name));
        files.extend(names.take(MAX_TEMPLATES).cloned());
        let index = if has(INDEX) {
            Some(INDEX.to_owned())
        } else {
            if has(WEIGHTS) {
                files.push(WEIGHTS.to_owned());
            } else {
                let weights = listing.files.iter().map(|file| &file.path);
                let weights = weights.filter(|name| !name.contains('/') && name.ends_with(".safetensors"));
                let weights: Vec<String> =
                    weights.filter(|name| is_safe_relative_path(name)).cloned().collect();
                if weights.is_empty() {
                    let gguf = named(".gguf");
                    if let Some(first) = gguf.first() {
                        return no_weights(format!(
                            "it holds GGUF files; name one, for example {}:{first} (there is: {})",
                            repo.repo(),
                            gguf.join(", ")
                        ));
                    }
                    let pickled = [named(".bin"), named(".pt"), named(".pth")].concat();
                    if !pickled.is_empty() {
                        return no_weights(format!(
                            "only pickled ones ({}), which can run code when they are read; look for a revision or a \
                             repository with safetensors",
                            pickled.join(", ")
                        ));
                    }
                    return no_weights("neither *.safetensors nor *.gguf is there".to_owned());
                }
                files.extend(weights);
            }
            None
        };
        if !has("config.json") {
            return no_weights("there are safetensors but no config.json".to_owned());
        }
        Ok(Self { kind: ModelKind::Safetensors, files, index, main_file: None })
    }

    /// The shards that the downloaded index names. Each has to be listed, and to lie beside the index.
    pub(super) fn shards(&self, listing: &Listing, index: &Path) -> Result<Vec<String>, HubError> {
        let text = std::fs::read(index).map_err(|e| disk::io_error("read", index, None, e))?;
        let bad = |reason: String| HubError::BadAnswer { url: INDEX.to_owned(), reason };
        let parsed: Index = serde_json::from_slice(&text).map_err(|e| bad(e.to_string()))?;
        let shards: BTreeSet<String> = parsed.weight_map.into_values().collect();
        if shards.is_empty() || shards.len() > MAX_SHARDS {
            return Err(bad(format!("it names {} weight files", shards.len())));
        }
        for shard in &shards {
            let plain =
                is_safe_relative_path(shard) && !shard.contains('/') && shard.ends_with(".safetensors");
            if !plain || !listing.files.iter().any(|file| &file.path == shard) {
                let shard: String = shard.chars().take(200).collect();
                return Err(bad(format!(
                    "it names the weight file {shard:?}, which the repository does not have"
                )));
            }
        }
        Ok(shards.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::super::client::ListedFile;
    use super::*;

    fn listing(names: &[&str]) -> Listing {
        let files = names.iter().map(|&path| ListedFile { path: path.to_owned(), bytes: None, sha256: None });
        Listing { commit: "0".repeat(40), files: files.collect() }
    }

    fn choose(text: &str, names: &[&str]) -> Result<Selection, HubError> {
        let (repo, file) = text.split_once(':').map_or((text, None), |(repo, file)| (repo, Some(file)));
        Selection::choose(&RepoRef::new(repo, None, file).unwrap(), &listing(names))
    }

    #[test]
    fn a_model_is_its_texts_and_its_safetensors_and_never_a_pickle() {
        let names = [
            ".gitattributes",
            "README.md",
            "config.json",
            "model.safetensors",
            "onnx/model.onnx",
            "original/params.json",
            "pytorch_model.bin",
            "tokenizer.json",
            "tokenizer_config.json",
            "consolidated.safetensors",
            "training_args.bin",
            "additional_chat_templates/tool_use.jinja",
            "additional_chat_templates/sub/x.jinja",
            "additional_chat_templates/.jinja",
            "additional_chat_templates/notes.md",
        ];
        let selection = choose("o/n", &names).unwrap();
        assert_eq!(selection.kind, ModelKind::Safetensors);
        assert_eq!(
            selection.files,
            [
                "config.json",
                "tokenizer.json",
                "tokenizer_config.json",
                "additional_chat_templates/tool_use.jinja",
                "model.safetensors"
            ]
        );
        let other = choose("o/n", &["config.json", "weights.safetensors", "sub/x.safetensors"]).unwrap();
        assert_eq!(other.files, ["config.json", "weights.safetensors"]);
        let adapter =
            choose("o/n", &["adapter_config.json", "adapter_model.safetensors", "tokenizer.json"]).unwrap();
        assert_eq!(adapter.kind, ModelKind::Adapter);
        assert_eq!(adapter.files, ["adapter_config.json", "adapter_model.safetensors"]);
    }

    #[test]
    fn shards_are_those_of_the_index() {
        let names = [
            "config.json",
            INDEX,
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "consolidated.safetensors",
            "../x.safetensors",
            "sub/y.safetensors",
        ];
        let selection = choose("o/n", &names).unwrap();
        assert_eq!(
            (selection.files.as_slice(), selection.index.as_deref()),
            (&["config.json".to_owned()][..], Some(INDEX))
        );
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(INDEX);
        let shards = |text: &str| {
            std::fs::write(&path, text).unwrap();
            selection.shards(&listing(&names), &path)
        };
        let good = r#"{"metadata":{},"weight_map":{"a":"model-00002-of-00002.safetensors","b":"model-00001-of-00002.safetensors",
            "c":"model-00002-of-00002.safetensors"}}"#;
        assert_eq!(
            shards(good).unwrap(),
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
        );
        for text in [
            "",
            "[]",
            "{}",
            r#"{"weight_map":{}}"#,
            r#"{"weight_map":{"a":1}}"#,
            r#"{"weight_map":{"a":"../x.safetensors"}}"#,
            r#"{"weight_map":{"a":"sub/y.safetensors"}}"#,
            r#"{"weight_map":{"a":"config.json"}}"#,
            r#"{"weight_map":{"a":"model-00003-of-00002.safetensors"}}"#,
        ] {
            assert!(matches!(shards(text), Err(HubError::BadAnswer { .. })), "{text}");
        }
    }

    #[test]
    fn one_gguf_file() {
        let names = ["README.md", "q/m.Q4_1.gguf", "m.Q8_0.gguf"];
        let selection = choose("o/n:q/m.Q4_1.gguf", &names).unwrap();
        assert_eq!(selection.files, ["q/m.Q4_1.gguf"]);
        assert_eq!(selection.main_file.as_deref(), Some("q/m.Q4_1.gguf"));
        let error = choose("o/n:none.gguf", &names).unwrap_err().to_string();
        assert!(error.contains("none.gguf") && error.contains("m.Q8_0.gguf"), "{error}");
        let error = choose("o/n", &names).unwrap_err().to_string();
        assert!(error.contains("o/n:q/m.Q4_1.gguf"), "{error}");
    }

    #[test]
    fn nothing_to_load_is_said_with_what_is_there() {
        let error = choose("o/n", &["config.json", "pytorch_model.bin"]).unwrap_err().to_string();
        assert!(error.contains("pickled") && error.contains("pytorch_model.bin"), "{error}");
        assert!(choose("o/n", &[]).unwrap_err().to_string().contains("neither"));
        assert!(choose("o/n", &["model.safetensors"]).unwrap_err().to_string().contains("no config.json"));
    }
}
