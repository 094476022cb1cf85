//! SHA-256 digests of files and structures.

use std::fmt;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use crate::config::ModelConfig;
use crate::error::Result;
use crate::source::{FileReader, TensorInfo, zeroed};

const CHUNK_BYTES: usize = 1 << 20;

/// A SHA-256 digest. Displays as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

impl Digest {
    /// From 64 hexadecimal digits.
    pub fn from_hex(text: &str) -> Option<Self> {
        let digits: Vec<u8> = text.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect::<Option<_>>()?;
        let bytes: Vec<u8> = digits.as_chunks::<2>().0.iter().map(|[high, low]| high << 4 | low).collect();
        if digits.len() != 64 {
            return None;
        }
        bytes.try_into().ok().map(Self)
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

/// SHA-256 over what a model computes: its configuration, and the tensors in the order in which they are given, with
/// name, storage type, shape and bytes. For a reader that has every tensor in hand once anyway; the same for any two
/// files that hold the same model in the same types.
pub struct ContentDigest(DigestBuilder);

impl ContentDigest {
    /// Begins with the configuration.
    pub fn new(config: &ModelConfig) -> Self {
        let mut builder = DigestBuilder::new("wardrobe model tensors 1");
        // The derived implementation shows every field.
        builder.part(format!("{config:?}").as_bytes());
        Self(builder)
    }

    /// Takes in a tensor.
    pub fn tensor(&mut self, info: &TensorInfo, bytes: &[u8]) {
        self.0.manifest(std::slice::from_ref(info)).part(bytes);
    }

    /// The digest.
    pub fn finish(self) -> Digest {
        self.0.finish()
    }
}

impl fmt::Debug for ContentDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ContentDigest")
    }
}

/// Builds a digest from parts, each preceded by its length, so that no two lists of parts give the same bytes.
pub(crate) struct DigestBuilder(Sha256);

impl DigestBuilder {
    /// `purpose` keeps digests of different things apart.
    pub(crate) fn new(purpose: &str) -> Self {
        let mut builder = Self(Sha256::new());
        builder.part(purpose.as_bytes());
        builder
    }

    pub(crate) fn part(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
        self
    }

    /// A whole file, read in slices.
    pub(crate) fn file(&mut self, path: &Path) -> Result<&mut Self> {
        let file = FileReader::open(path)?;
        self.0.update(file.len().to_le_bytes());
        let mut chunk = zeroed(CHUNK_BYTES, "digest")?;
        let mut offset = 0;
        while offset < file.len() {
            let len = (file.len() - offset).min(CHUNK_BYTES as u64) as usize;
            let Some(part) = chunk.get_mut(..len) else { break };
            file.read_exact_at(offset, part, "digest")?;
            self.0.update(part);
            offset += len as u64;
        }
        Ok(self)
    }

    /// Names, storage types and shapes, in the order given.
    pub(crate) fn manifest(&mut self, tensors: &[TensorInfo]) -> &mut Self {
        self.0.update((tensors.len() as u64).to_le_bytes());
        for tensor in tensors {
            self.part(tensor.name.as_bytes()).part(tensor.storage.name().as_bytes());
            self.0.update((tensor.shape.len() as u64).to_le_bytes());
            for dim in &tensor.shape {
                self.0.update((*dim as u64).to_le_bytes());
            }
        }
        self
    }

    pub(crate) fn finish(self) -> Digest {
        Digest(self.0.finalize().into())
    }
}
