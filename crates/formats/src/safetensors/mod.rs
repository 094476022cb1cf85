//! safetensors: one file, or an index (`model.safetensors.index.json`) of shards.
//!
//! Format: an 8-byte little-endian header length, a JSON header `name -> {dtype, shape, data_offsets}`, then the
//! data, which the tensors cover without holes or overlaps.
//!
//! Purpose: headers of hostile files checked once, tensors read by position later.
//! State owned: one open file per shard and the checked spans.
//! Invariants: names are unique over all shards; every span has the size that its shape and type give and lies in
//! its file; nothing outside the folder is opened.
//! Not done here: adapters ([`crate::peft`]) and conversion.

mod header;
mod write;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::error::{FormatError, Result, shorten};
use crate::paths;
use crate::source::{ByteSpan, FileReader, TensorInfo, TensorSource, read_span_rows};

pub use write::{TensorData, write, write_folder, write_streamed};

pub(crate) use header::read_header;

/// File name of a model in one file.
pub const SINGLE_FILE: &str = "model.safetensors";
/// File name of the index of a model in shards.
pub const INDEX_FILE: &str = "model.safetensors.index.json";

const MAX_INDEX_BYTES: u64 = 64 << 20;
const MAX_SHARDS: usize = 4096;

/// The tensors of a safetensors file, or of all shards of an index.
#[derive(Debug)]
pub struct SafetensorsFile {
    path: PathBuf,
    shards: Vec<FileReader>,
    tensors: Vec<TensorInfo>,
    /// Parallel to `tensors`: shard and place in it.
    places: Vec<(usize, ByteSpan)>,
    metadata: BTreeMap<String, String>,
}

impl SafetensorsFile {
    /// Opens a single file and checks its header.
    ///
    /// # Errors
    /// [`FormatError`] naming the file and the tensor whose description is wrong.
    pub fn open(path: &Path) -> Result<Self> {
        let file = FileReader::open(path)?;
        let header = read_header(&file)?;
        let entries = header.tensors.into_iter().map(|(info, span)| (info, (0, span))).collect();
        Self::build(path.to_owned(), vec![file], entries, header.metadata)
    }

    /// Opens the shards that the index at `path` names. They must lie in the index's folder.
    ///
    /// # Errors
    /// As [`SafetensorsFile::open`]; also for a shard that is missing or leads outside the folder, a tensor that is
    /// in two shards, that the index does not name, or that is not in the shard that the index names.
    pub fn open_index(path: &Path) -> Result<Self> {
        let folder = path.parent().unwrap_or(Path::new("."));
        let index = Index::read(path)?;
        let mut shard_names: Vec<&str> = index.weight_map.values().map(String::as_str).collect();
        shard_names.sort_unstable();
        shard_names.dedup();
        if shard_names.len() > MAX_SHARDS {
            return Err(FormatError::limit(
                path,
                "number of shards",
                MAX_SHARDS as u64,
                shard_names.len() as u64,
            ));
        }
        let mut shards = Vec::with_capacity(shard_names.len());
        let mut entries: Vec<(TensorInfo, (usize, ByteSpan))> = Vec::new();
        for (shard_idx, shard_name) in shard_names.iter().enumerate() {
            let shard_path = paths::confined(folder, shard_name)?;
            let file = FileReader::open(&shard_path)?;
            for (info, span) in read_header(&file)?.tensors {
                match index.weight_map.get(&info.name) {
                    Some(named) if named == shard_name => entries.push((info, (shard_idx, span))),
                    Some(named) => {
                        let problem = format!("in this shard, but the index places it in {}", shorten(named));
                        return Err(FormatError::tensor(&shard_path, &info.name, problem));
                    }
                    None => return Err(FormatError::tensor(&shard_path, &info.name, "not in the index")),
                }
            }
            shards.push(file);
        }
        let built = Self::build(path.to_owned(), shards, entries, BTreeMap::new())?;
        for name in index.weight_map.keys() {
            built.require(name)?;
        }
        Ok(built)
    }

    /// Opens `model.safetensors.index.json` or else `model.safetensors` in `folder`.
    ///
    /// # Errors
    /// As the other two; [`FormatError::NotFound`] if there is neither.
    pub fn open_folder(folder: &Path) -> Result<Self> {
        if paths::exists(folder, INDEX_FILE) {
            return Self::open_index(&paths::confined(folder, INDEX_FILE).map(|_| folder.join(INDEX_FILE))?);
        }
        if paths::exists(folder, SINGLE_FILE) {
            return Self::open(&paths::confined(folder, SINGLE_FILE)?);
        }
        Err(FormatError::NotFound { path: folder.to_owned(), what: format!("{INDEX_FILE} or {SINGLE_FILE}") })
    }

    /// The free-form string map of the header (`__metadata__`); empty for an index.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The files that hold the tensors, by name.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.shards.iter().map(FileReader::path)
    }

    fn build(
        path: PathBuf,
        shards: Vec<FileReader>,
        mut entries: Vec<(TensorInfo, (usize, ByteSpan))>,
        metadata: BTreeMap<String, String>,
    ) -> Result<Self> {
        entries.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
        for pair in entries.windows(2) {
            if let [(a, _), (b, _)] = pair
                && a.name == b.name
            {
                return Err(FormatError::tensor(&path, &a.name, "is there twice"));
            }
        }
        let (tensors, places) = entries.into_iter().unzip();
        Ok(Self { path, shards, tensors, places, metadata })
    }
}

impl TensorSource for SafetensorsFile {
    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn path(&self) -> &Path {
        &self.path
    }

    fn read_rows(&self, name: &str, rows: Range<usize>) -> Result<Vec<u8>> {
        let missing = || FormatError::MissingTensor { path: self.path.clone(), tensor: shorten(name) };
        let idx = self.tensors.binary_search_by(|t| t.name.as_str().cmp(name)).map_err(|_| missing())?;
        let info = self.tensors.get(idx).ok_or_else(missing)?;
        let (shard_idx, span) = *self.places.get(idx).ok_or_else(missing)?;
        let shard = self.shards.get(shard_idx).ok_or_else(missing)?;
        read_span_rows(shard, info, span, &rows)
    }
}

/// The part of an index that matters: tensor name to file name.
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Index {
    fn read(path: &Path) -> Result<Self> {
        #[derive(serde::Deserialize)]
        struct Raw {
            weight_map: header::UniqueMap<String>,
        }
        let text = paths::read_text(path, MAX_INDEX_BYTES)?;
        let raw: Raw = serde_json::from_str(&text)
            .map_err(|source| FormatError::Json { path: path.to_owned(), source })?;
        let mut weight_map = BTreeMap::new();
        for (name, shard) in raw.weight_map.0 {
            paths::check_relative(path, &shard)?;
            if !shard.ends_with(".safetensors") {
                return Err(FormatError::unsupported(path, format!("shard {:?}", shorten(&shard))));
            }
            if let Some(first) = weight_map.insert(name.clone(), shard) {
                let problem = format!("is in two shards, {} and another", shorten(&first));
                return Err(FormatError::tensor(path, &name, problem));
            }
        }
        if weight_map.is_empty() {
            return Err(FormatError::malformed(path, "weight_map is empty"));
        }
        Ok(Self { weight_map })
    }
}

#[cfg(test)]
mod tests;
