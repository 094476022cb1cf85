//! Where a loader's tensors come from: the files of a model, or, in [`crate::dummy`], nowhere.

use std::collections::BTreeSet;

use wardrobe_formats::{Digest, ModelConfig, ModelFiles, TensorInfo, TensorSource, finite};

use crate::content::ContentHash;
use crate::error::{ModelError, Result};

/// Gives tensors by name and shape, and in the end the digest of what was given.
pub(crate) trait WeightSource {
    /// Whether there is a tensor of this name; asked for those that a model of the architecture may lack.
    fn has(&self, name: &str) -> bool;

    /// A tensor's description and its bytes. Its shape has to be this.
    fn read(&mut self, name: &str, shape: &[usize]) -> Result<(TensorInfo, Vec<u8>)>;

    /// Takes back what [`WeightSource::read`] gave, once it has been used.
    fn used(&mut self, info: TensorInfo, bytes: Vec<u8>);

    /// Bytes of all tensors, for whoever watches.
    fn total_bytes(&self) -> u64;

    /// The digest of what was used. A tensor that nobody asked for is an error unless it is `ignored`.
    fn finish(self: Box<Self>, config: &ModelConfig, ignored: &dyn Fn(&str) -> bool) -> Result<Digest>;
}

/// The tensors of a model's files. Refuses numbers that are none, since one NaN makes every answer nonsense.
pub(crate) struct FileWeights<'a> {
    tensors: &'a dyn TensorSource,
    content: ContentHash,
    used: BTreeSet<String>,
}

impl<'a> FileWeights<'a> {
    pub(crate) fn open(files: &'a ModelFiles) -> Result<Self> {
        let content = ContentHash::start(&files.config)?;
        Ok(Self { tensors: files.tensors.as_ref(), content, used: BTreeSet::new() })
    }
}

impl WeightSource for FileWeights<'_> {
    fn has(&self, name: &str) -> bool {
        self.tensors.info(name).is_some()
    }

    fn read(&mut self, name: &str, shape: &[usize]) -> Result<(TensorInfo, Vec<u8>)> {
        let info = self.tensors.require(name)?.clone();
        if info.shape != shape {
            return Err(ModelError::TensorShape {
                name: name.to_owned(),
                expected: shape.to_vec(),
                actual: info.shape,
            });
        }
        if !info.storage.is_float() {
            return Err(ModelError::TensorType { name: name.to_owned(), storage: info.storage });
        }
        let bytes = self.tensors.read(name)?;
        finite::check(self.tensors.path(), name, info.storage, &bytes)?;
        self.used.insert(name.to_owned());
        Ok((info, bytes))
    }

    fn used(&mut self, info: TensorInfo, bytes: Vec<u8>) {
        self.content.add(info, bytes);
    }

    fn total_bytes(&self) -> u64 {
        self.tensors.tensors().iter().filter_map(|t| t.size_bytes()).map(|b| b as u64).sum()
    }

    fn finish(self: Box<Self>, config: &ModelConfig, ignored: &dyn Fn(&str) -> bool) -> Result<Digest> {
        let mut tensors = self.tensors.tensors().iter();
        if let Some(left) = tensors.find(|t| !self.used.contains(&t.name) && !ignored(&t.name)) {
            return Err(ModelError::UnusedTensor {
                name: left.name.clone(),
                architecture: config.architecture.clone(),
            });
        }
        self.content.finish()
    }
}
