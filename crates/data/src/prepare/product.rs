//! What a command writes: records in a file, its manifest and what else belongs beside it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use super::inputs::{InputFile, InputRecord};
use crate::error::{DataError, Result};
use crate::output;

/// The layout of manifests.
const MANIFEST_VERSION: u32 = 1;
/// The ending of a manifest's name, in the place of the output's own.
const MANIFEST: &str = "manifest.json";

/// Where a command writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// The file of records. What belongs to it is named after it: `NAME.manifest.json` and so on.
    pub path: PathBuf,
    /// Replace what is there.
    pub replace: bool,
}

/// Records that were left out, by reason.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dropped(pub BTreeMap<String, u64>);

impl Dropped {
    pub(super) fn count(&mut self, reason: &str) {
        match self.0.get_mut(reason) {
            Some(count) => *count += 1,
            None => {
                self.0.insert(reason.to_owned(), 1);
            }
        }
    }

    /// How many there are.
    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }

    pub(super) fn to_json(&self) -> Value {
        self.0.iter().map(|(reason, count)| (reason.clone(), Value::from(*count))).collect()
    }
}

/// `3 (one reason), 2 (another)`.
impl std::fmt::Display for Dropped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (idx, (reason, count)) in self.0.iter().enumerate() {
            write!(f, "{}{count} ({reason})", if idx == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

/// What a manifest says beside the output's own figures.
pub(super) struct Made<'a> {
    pub command: &'a str,
    pub seed: Option<u64>,
    pub settings: Map<String, Value>,
    pub inputs: &'a [InputRecord],
    pub dropped: &'a Dropped,
    /// Figures of the command's own.
    pub figures: Map<String, Value>,
}

/// An output on its way: nothing of it has its name before [`finish`](Self::finish).
pub(super) struct Product {
    records: output::Output,
    output: Output,
    hasher: Sha256,
    bytes: u64,
    num_records: u64,
    /// Endings in the place of the output's, and what these files hold.
    beside: Vec<(&'static str, Vec<u8>)>,
}

impl Product {
    /// Begins an output. `endings` are those of the files that will lie beside it.
    ///
    /// # Errors
    /// Any of the files is there and must not be replaced; the output is one of the inputs; the folder cannot be written.
    pub fn create<'f>(
        output: &Output,
        endings: &[&'static str],
        inputs: impl IntoIterator<Item = &'f InputFile>,
    ) -> Result<Self> {
        if let Some(input) = inputs.into_iter().find(|input| input.is_at(&output.path)) {
            let message = format!("the output {} is also an input, {}", output.path.display(), input.name());
            return Err(DataError::Options(message));
        }
        for path in endings.iter().chain(&[MANIFEST]).map(|ending| output.path.with_extension(ending)) {
            if path == output.path {
                let message = format!("{} is the name of a file beside the output", path.display());
                return Err(DataError::Options(message));
            }
            if !output.replace && path.symlink_metadata().is_ok() {
                return Err(DataError::OutputExists(path));
            }
        }
        Ok(Self {
            records: output::Output::create(&output.path, output.replace)?,
            output: output.clone(),
            hasher: Sha256::new(),
            bytes: 0,
            num_records: 0,
            beside: Vec::new(),
        })
    }

    /// Appends a record, a line without its end.
    pub fn push(&mut self, line: &[u8]) -> Result<()> {
        self.records.write(line)?;
        self.records.write(b"\n")?;
        self.hasher.update(line);
        self.hasher.update(b"\n");
        self.bytes += line.len() as u64 + 1;
        self.num_records += 1;
        Ok(())
    }

    /// Adds a file beside the output, of an ending that [`create`](Self::create) was told.
    pub fn beside(&mut self, ending: &'static str, content: Vec<u8>) {
        self.beside.push((ending, content));
    }

    pub fn num_records(&self) -> u64 {
        self.num_records
    }

    /// Gives everything its name, the output last: where it is, all that belongs to it is.
    pub fn finish(self, made: Made<'_>) -> Result<()> {
        let Self { records, output, hasher, bytes, num_records, mut beside } = self;
        let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let files: Vec<Value> = beside
            .iter()
            .map(|(ending, content)| {
                let sha256 = hex(&Sha256::digest(content));
                json!({"name": name(&output.path.with_extension(ending)), "bytes": content.len(), "sha256": sha256})
            })
            .collect();
        let manifest = json!({
            "manifest": MANIFEST_VERSION,
            "command": made.command,
            "version": env!("CARGO_PKG_VERSION"),
            "seed": made.seed,
            "settings": made.settings,
            "inputs": made.inputs.iter().map(InputRecord::to_json).collect::<Vec<_>>(),
            "output": {
                "name": name(&output.path), "bytes": bytes, "sha256": hex(&hasher.finalize()), "records": num_records,
            },
            "beside": files,
            "dropped": made.dropped.to_json(),
            "figures": made.figures,
        });
        beside.push((MANIFEST, format!("{manifest:#}\n").into_bytes()));
        let mut written = Vec::new();
        let result = beside
            .iter()
            .try_for_each(|(ending, content)| {
                let path = output.path.with_extension(ending);
                let mut file = output::Output::create(&path, output.replace)?;
                file.write(content)?;
                file.finish()?;
                written.push(path);
                Ok(())
            })
            .and_then(|()| records.finish());
        if result.is_err() && !output.replace {
            // They were not there before. The error that counts is the first one.
            written.iter().for_each(|path| drop(fs::remove_file(path)));
        }
        result
    }
}

/// Lower-case hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
