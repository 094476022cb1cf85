//! What the binary carries: two trained adapters and held-out questions for them (`adapters/` in the repository), and a data
//! set to train on.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::Deserialize;
use serde_json::Value;

/// A file of `adapters/`, by its path there.
macro_rules! bytes_of {
    ($path:literal) => {
        include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/adapters/", $path))
    };
}

/// An adapter that the binary carries.
pub struct ShippedAdapter {
    /// Its name, and its folder's.
    pub name: &'static str,
    files: [(&'static str, &'static [u8]); 2],
}

/// Turns a biography into its JSON record.
pub const BIOGRAPHY_JSON: ShippedAdapter = ShippedAdapter {
    name: "biography-json",
    files: [
        ("adapter_config.json", bytes_of!("biography-json/adapter_config.json")),
        ("adapter_model.safetensors", bytes_of!("biography-json/adapter_model.safetensors")),
    ],
};

/// Returns the last words of a text.
pub const LAST_WORDS: ShippedAdapter = ShippedAdapter {
    name: "last-words",
    files: [
        ("adapter_config.json", bytes_of!("last-words/adapter_config.json")),
        ("adapter_model.safetensors", bytes_of!("last-words/adapter_model.safetensors")),
    ],
};

/// Words that [`last_words_items`] ask for.
const NUM_WORDS: usize = 8;

static BIOGRAPHIES: &[u8] = bytes_of!("bio_test.jsonl");

/// Biographies to train on, and others to ask for (`datasets/biographies` in the repository).
static TRAINING_BIOGRAPHIES: &[u8] =
    include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/datasets/biographies/train.jsonl"));
pub static HELD_OUT_BIOGRAPHIES: &[u8] =
    include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/datasets/biographies/test.jsonl"));

/// The schema of their records.
pub fn biography_schema() -> anyhow::Result<Value> {
    let schema = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/datasets/biographies/schema.json"));
    Ok(serde_json::from_str(schema)?)
}

impl ShippedAdapter {
    /// Bytes of its files.
    pub fn size_bytes(&self) -> u64 {
        self.files.iter().map(|(_, content)| content.len() as u64).sum()
    }

    /// Writes the adapter's folder below `root`, unless it is there already, and returns it.
    pub fn write(&self, root: &Path) -> anyhow::Result<PathBuf> {
        let folder = root.join(self.name);
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        for (name, content) in self.files {
            let path = folder.join(name);
            if fs::read(&path).is_ok_and(|there| there == content) {
                continue;
            }
            write_whole(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(folder)
    }
}

/// Others see the whole file or none of it.
fn write_whole(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(format!(".{}.part", std::process::id()));
    let written = fs::write(&partial, content).and_then(|()| fs::rename(&partial, path));
    if written.is_err() {
        // What went wrong is told; that the rest of it stays is not worse.
        let _ = fs::remove_file(&partial);
    }
    written
}

/// A question and the answer that the adapter was taught to give.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// The user's message.
    pub prompt: String,
    /// The expected answer.
    pub expected: String,
}

#[derive(Deserialize)]
struct Biography {
    prompt: String,
    completion: String,
}

fn biographies(file: &[u8]) -> anyhow::Result<Vec<Biography>> {
    let lines = std::str::from_utf8(file)?.lines();
    lines.map(|line| Ok(serde_json::from_str(line)?)).collect()
}

/// Held-out questions for [`BIOGRAPHY_JSON`].
pub fn biography_items() -> anyhow::Result<Vec<Item>> {
    let items = biographies(BIOGRAPHIES)?.into_iter();
    Ok(items.map(|b| Item { prompt: b.prompt, expected: b.completion }).collect())
}

/// Prompts and completions to train on.
pub fn training_records() -> anyhow::Result<Vec<(String, String)>> {
    let records = biographies(TRAINING_BIOGRAPHIES)?.into_iter();
    Ok(records.map(|b| (b.prompt, b.completion)).collect())
}

/// Held-out questions for [`LAST_WORDS`]: for the last eight words of the same texts.
pub fn last_words_items() -> anyhow::Result<Vec<Item>> {
    let items = biographies(BIOGRAPHIES)?.into_iter().map(|biography| {
        let text = biography.prompt.split("\n\n").next().unwrap_or_default().to_owned();
        let words: Vec<&str> = text.split_whitespace().collect();
        let expected = words.get(words.len().saturating_sub(NUM_WORDS)..).unwrap_or_default().join(" ");
        Item { prompt: format!("Return last {NUM_WORDS} words from this text: \n\n{text}"), expected }
    });
    Ok(items.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_have_answers() {
        let items = biography_items().unwrap();
        assert_eq!(items.len(), 40);
        assert!(items.iter().all(|item| serde_json::from_str::<serde_json::Value>(&item.expected).is_ok()));
        let first = &last_words_items().unwrap()[0];
        assert!(first.prompt.starts_with("Return last 8 words"), "{}", first.prompt);
        assert!(first.prompt.ends_with(&first.expected), "{first:?}");
    }

    #[test]
    fn adapters_are_written_once_and_mended() {
        let root = tempfile::tempdir().unwrap();
        let folder = LAST_WORDS.write(root.path()).unwrap();
        let config = folder.join("adapter_config.json");
        let whole = fs::read(&config).unwrap();
        fs::write(&config, "damaged").unwrap();
        assert_eq!(LAST_WORDS.write(root.path()).unwrap(), folder);
        assert_eq!(fs::read(&config).unwrap(), whole);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 2);
    }
}
