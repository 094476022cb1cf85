//! Reading and checking an adapter.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::config::AdapterConfig;
use super::contents::{AdapterTensor, LoraEmbedding, LoraModule, SavedModule};
use super::key::{self, Key};
use super::matching::{Matcher, Targets};
use super::parity::{self, ParityRecord};
use super::record::{self, AdapterRecord, AdapterRope, SCHEMA_FILE};
use super::write::{PeftContents, named_tensors};
use super::{CONFIG_FILE, WEIGHTS_FILE};
use crate::digest::{Digest, DigestBuilder};
use crate::error::{FormatError, Result, shorten};
use crate::paths;
use crate::safetensors::SafetensorsFile;
use crate::source::{TensorInfo, TensorSource};
use serde_json::{Map, Value};

const MAX_CONFIG_BYTES: u64 = 4 << 20;

/// How large an adapter may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeftLimits {
    /// Largest rank of a module.
    pub max_rank: usize,
    /// Most bytes of all tensors together.
    pub max_total_bytes: u64,
    /// Most tensors.
    pub max_tensors: usize,
}

impl Default for PeftLimits {
    /// Rank 1024, 4 GiB, 65,536 tensors.
    fn default() -> Self {
        Self { max_rank: 1024, max_total_bytes: 4 << 30, max_tensors: 65_536 }
    }
}

/// A checked adapter in host memory.
#[derive(Clone, Debug)]
pub struct PeftAdapter {
    path: PathBuf,
    config: AdapterConfig,
    modules: Vec<LoraModule>,
    embeddings: Vec<LoraEmbedding>,
    saved: Vec<SavedModule>,
    rope: Option<AdapterRope>,
    parity: Option<ParityRecord>,
    schema: Option<Value>,
    digest: Digest,
}

impl PeftAdapter {
    /// Reads the adapter folder `dir` within the default limits.
    ///
    /// # Errors
    /// As [`PeftAdapter::open_within`].
    pub fn open(dir: &Path) -> Result<Self> {
        Self::open_within(dir, &PeftLimits::default())
    }

    /// Reads the adapter folder `dir`.
    ///
    /// # Errors
    /// [`FormatError`] naming the key or tensor at fault: see the invariants of [this module](super). Limits are
    /// checked before any tensor is read.
    pub fn open_within(dir: &Path, limits: &PeftLimits) -> Result<Self> {
        let config_path = paths::confined(dir, CONFIG_FILE)?;
        let config = AdapterConfig::from_json(
            &config_path,
            &paths::read_json_object(&config_path, MAX_CONFIG_BYTES)?,
        )?;
        if !paths::exists(dir, WEIGHTS_FILE) {
            let pickled = ["adapter_model.bin", "adapter_model.pt", "adapter_model.pth"];
            if let Some(name) = pickled.iter().find(|name| paths::exists(dir, name)) {
                let what = format!(
                    "{name}, a pickle, which can run code when read; save the adapter as safetensors"
                );
                return Err(FormatError::unsupported(dir, what));
            }
            return Err(FormatError::NotFound { path: dir.to_owned(), what: WEIGHTS_FILE.to_owned() });
        }
        let weights_path = paths::confined(dir, WEIGHTS_FILE)?;
        let file = SafetensorsFile::open(&weights_path)?;
        check_limits(&weights_path, file.tensors(), limits)?;
        let matcher = Matcher::new(&config_path, &config)?;
        let parts = Parts::sort(&file)?;
        let assembled = parts.assemble(&file, &matcher, &config)?;
        drop(matcher);
        let record = record::read(dir)?;
        Self::finish(&weights_path, dir, (config, record), assembled, limits)
    }

    /// An adapter from tensors in memory, under the same checks; `name` stands for the path in messages.
    /// `rank` and `scale` of the modules are set from the configuration.
    ///
    /// # Errors
    /// As [`PeftAdapter::open_within`].
    pub fn from_contents(name: &str, contents: &PeftContents<'_>, limits: &PeftLimits) -> Result<Self> {
        let path = Path::new(name);
        let config = contents.config.clone();
        config.check(path)?;
        let matcher = Matcher::new(path, &config)?;
        let mut assembled = Assembled {
            modules: contents.modules.to_vec(),
            embeddings: contents.embeddings.to_vec(),
            saved: contents.saved.to_vec(),
        };
        let infos: Vec<TensorInfo> = named_tensors(contents)
            .map(|(name, t)| TensorInfo { name, storage: t.storage(), shape: t.shape().to_vec() })
            .collect();
        check_limits(path, &infos, limits)?;
        for info in &infos {
            key::parse(&info.name).map_err(|problem| FormatError::tensor(path, &info.name, problem))?;
        }
        for module in &mut assembled.modules {
            (module.rank, module.scale) = rank_and_scale(&matcher, &config, &module.module_path);
            check_target(path, &matcher, &module.module_path)?;
        }
        for embedding in &mut assembled.embeddings {
            (embedding.rank, embedding.scale) = rank_and_scale(&matcher, &config, &embedding.module_path);
            check_target(path, &matcher, &embedding.module_path)?;
        }
        for saved in &assembled.saved {
            check_saved(path, &matcher, &saved.module_path)?;
        }
        drop(matcher);
        if let Some(rope) = contents.rope {
            rope.check(path)?;
        }
        let schema = contents.extra_files.iter().find(|(name, _)| *name == SCHEMA_FILE);
        let schema = schema.map(|(_, bytes)| record::parse_schema(path, bytes)).transpose()?;
        let record = AdapterRecord { rope: contents.rope.cloned(), parity: contents.parity.cloned(), schema };
        Self::finish(path, path, (config, record), assembled, limits)
    }

    fn finish(
        file: &Path,
        dir: &Path,
        (config, record): (AdapterConfig, AdapterRecord),
        mut parts: Assembled,
        limits: &PeftLimits,
    ) -> Result<Self> {
        parts.modules.sort_by(|a, b| a.module_path.cmp(&b.module_path));
        parts.embeddings.sort_by(|a, b| a.module_path.cmp(&b.module_path));
        parts.saved.sort_by(|a, b| (&a.module_path, &a.parameter).cmp(&(&b.module_path, &b.parameter)));
        let Assembled { modules, embeddings, saved } = parts;
        if modules.is_empty() && embeddings.is_empty() && saved.is_empty() {
            return Err(FormatError::malformed(file, "the adapter has no tensors"));
        }
        for module in &modules {
            check_module(file, module, config.use_dora, limits)?;
        }
        for embedding in &embeddings {
            check_factors(
                file,
                &embedding.module_path,
                (&embedding.a, &embedding.b),
                embedding.rank,
                limits,
            )?;
            if config.use_dora {
                return Err(FormatError::tensor(
                    file,
                    &embedding.module_path,
                    "DoRA on an embedding is not supported",
                ));
            }
        }
        let AdapterRecord { rope, parity, schema } = record;
        let mut adapter = Self {
            path: dir.to_owned(),
            config,
            modules,
            embeddings,
            saved,
            rope,
            parity,
            schema,
            digest: DigestBuilder::new("").finish(),
        };
        adapter.digest = adapter.content_digest();
        Ok(adapter)
    }

    fn content_digest(&self) -> Digest {
        let contents = PeftContents {
            config: &self.config,
            modules: &self.modules,
            embeddings: &self.embeddings,
            saved: &self.saved,
            rope: self.rope.as_ref(),
            parity: None,
            extra_files: &[],
        };
        content_digest(&contents, self.schema.as_ref())
    }

    /// The same with another schema for its answers, or none.
    pub fn with_schema(mut self, schema: Option<Map<String, Value>>) -> Self {
        self.schema = schema.map(Value::Object);
        self.digest = self.content_digest();
        self
    }

    /// The folder, or the name given to [`PeftAdapter::from_contents`].
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The configuration.
    pub fn config(&self) -> &AdapterConfig {
        &self.config
    }

    /// Which modules of a model the configuration gives factors. The file may have fewer: that is for whoever knows
    /// the model to see.
    ///
    /// # Errors
    /// [`FormatError::Key`] for a pattern that cannot be compiled; not for an adapter that was opened.
    pub fn targets(&self) -> Result<Targets<'_>> {
        Targets::new(&self.path, &self.config)
    }

    /// Factors of linear modules, sorted by path.
    pub fn modules(&self) -> &[LoraModule] {
        &self.modules
    }

    /// Factors of embeddings, sorted by path.
    pub fn embeddings(&self) -> &[LoraEmbedding] {
        &self.embeddings
    }

    /// Parameters stored whole, sorted by path and parameter.
    pub fn saved(&self) -> &[SavedModule] {
        &self.saved
    }

    /// Rotary positions that it brings, in the place of the model's.
    pub fn rope(&self) -> Option<&AdapterRope> {
        self.rope.as_ref()
    }

    /// What its trainer vouches for.
    pub fn parity(&self) -> Option<&ParityRecord> {
        self.parity.as_ref()
    }

    /// The JSON schema that it carries for its answers ([`SCHEMA_FILE`]).
    pub fn schema(&self) -> Option<&Value> {
        self.schema.as_ref()
    }

    /// Digest of the tensors alone, as a [`ParityRecord`] has it.
    pub fn tensors_digest(&self) -> Digest {
        parity::tensors_digest(&PeftContents {
            config: &self.config,
            modules: &self.modules,
            embeddings: &self.embeddings,
            saved: &self.saved,
            rope: None,
            parity: None,
            extra_files: &[],
        })
    }

    /// SHA-256 over the configuration (as far as it is read), RoPE scaling, schema, and all tensors with their names, types and
    /// shapes: the same for an adapter in memory and after writing and reading it.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Bytes of all tensors.
    pub fn total_bytes(&self) -> u64 {
        let sum = |tensors: &mut dyn Iterator<Item = &AdapterTensor>| {
            tensors.map(|t| t.bytes().len() as u64).fold(0u64, u64::saturating_add)
        };
        sum(&mut self.modules.iter().flat_map(|m| [&m.a, &m.b].into_iter().chain(&m.magnitude)))
            .saturating_add(sum(&mut self.embeddings.iter().flat_map(|e| [&e.a, &e.b])))
            .saturating_add(sum(&mut self.saved.iter().map(|s| &s.tensor)))
    }

    /// The largest rank of a module, 0 without factors.
    pub fn max_rank(&self) -> usize {
        let ranks = self.modules.iter().map(|m| m.rank);
        ranks.chain(self.embeddings.iter().map(|e| e.rank)).max().unwrap_or(0)
    }

    /// Whether the adapter provably changes nothing: each pair has a factor of zeros, and there are neither
    /// magnitudes nor saved parameters.
    pub fn is_noop(&self) -> bool {
        self.saved.is_empty()
            && self.modules.iter().all(|m| m.magnitude.is_none() && (m.a.is_zero() || m.b.is_zero()))
            && self.embeddings.iter().all(|e| e.a.is_zero() || e.b.is_zero())
    }
}

fn check_limits(path: &Path, tensors: &[TensorInfo], limits: &PeftLimits) -> Result<()> {
    if tensors.len() > limits.max_tensors {
        let (limit, actual) = (limits.max_tensors as u64, tensors.len() as u64);
        return Err(FormatError::limit(path, "number of tensors", limit, actual));
    }
    let sizes = tensors.iter().map(|t| t.size_bytes().map_or(u64::MAX, |b| b as u64));
    let total = sizes.fold(0u64, u64::saturating_add);
    if total > limits.max_total_bytes {
        return Err(FormatError::limit(path, "size of all tensors in bytes", limits.max_total_bytes, total));
    }
    Ok(())
}

fn rank_and_scale(matcher: &Matcher<'_>, config: &AdapterConfig, module: &str) -> (usize, f64) {
    let rank = matcher.rank(module);
    (rank, config.scale(matcher.alpha(module), rank))
}

fn check_target(path: &Path, matcher: &Matcher<'_>, module: &str) -> Result<()> {
    if matcher.targets(module) {
        return Ok(());
    }
    Err(FormatError::tensor(path, module, "has factors, but the configuration does not target this module"))
}

fn check_saved(path: &Path, matcher: &Matcher<'_>, module: &str) -> Result<()> {
    if matcher.saves(module) {
        return Ok(());
    }
    Err(FormatError::tensor(path, module, "is stored whole, but modules_to_save does not name this module"))
}

fn check_module(path: &Path, module: &LoraModule, use_dora: bool, limits: &PeftLimits) -> Result<()> {
    let out = check_factors(path, &module.module_path, (&module.a, &module.b), module.rank, limits)?;
    let name = format!("{}.lora_magnitude_vector", module.module_path);
    match (&module.magnitude, use_dora) {
        (None, false) => Ok(()),
        (None, true) => Err(FormatError::MissingTensor { path: path.to_owned(), tensor: name }),
        (Some(_), false) => Err(FormatError::tensor(path, &name, "is there, but use_dora is false")),
        (Some(m), true) if m.shape() == [out] => Ok(()),
        (Some(m), true) => {
            let actual = m.shape().to_vec();
            Err(FormatError::Shape { path: path.to_owned(), tensor: name, expected: vec![out], actual })
        }
    }
}

/// Checks A `[rank, in]` against B `[out, rank]`, and gives `out`.
fn check_factors(
    path: &Path,
    module: &str,
    (a, b): (&AdapterTensor, &AdapterTensor),
    rank: usize,
    limits: &PeftLimits,
) -> Result<usize> {
    let shape = |which: &str, expected: Vec<usize>, actual: &[usize]| {
        let tensor = format!("{module}.{which}");
        FormatError::Shape { path: path.to_owned(), tensor, expected, actual: actual.to_vec() }
    };
    if rank > limits.max_rank {
        let what = format!("rank of {}", shorten(module));
        return Err(FormatError::limit(path, what, limits.max_rank as u64, rank as u64));
    }
    let input = match a.shape() {
        [found, input] if *found == rank && *input > 0 => *input,
        other => return Err(shape("lora_A", vec![rank, other.last().copied().unwrap_or(1).max(1)], other)),
    };
    match b.shape() {
        [out, found] if *found == rank && *out > 0 => Ok(*out),
        other => {
            let expected = vec![other.first().copied().unwrap_or(input).max(1), rank];
            Err(shape("lora_B", expected, other))
        }
    }
}

fn content_digest(contents: &PeftContents<'_>, schema: Option<&Value>) -> Digest {
    let mut builder = DigestBuilder::new("wardrobe adapter content 1");
    builder.part(contents.config.to_json().to_string().as_bytes());
    if let Some(record) = record::to_json(contents.rope, None) {
        builder.part(record.to_string().as_bytes());
    }
    if let Some(schema) = schema {
        builder.part(schema.to_string().as_bytes());
    }
    let mut tensors: Vec<_> = named_tensors(contents).collect();
    tensors.sort_by(|(a, _), (b, _)| a.cmp(b));
    for (name, tensor) in tensors {
        let shape = tensor.shape().to_vec();
        builder.manifest(&[TensorInfo { name, storage: tensor.storage(), shape }]).part(tensor.bytes());
    }
    builder.finish()
}

/// Names of the tensors of one module.
#[derive(Default)]
struct Pair {
    a: Option<String>,
    b: Option<String>,
    magnitude: Option<String>,
}

/// Tensor names of an adapter file by module and role.
#[derive(Default)]
struct Parts {
    linear: BTreeMap<String, Pair>,
    embedding: BTreeMap<String, Pair>,
    /// By module, parameter.
    saved: BTreeMap<(String, String), (String, bool)>,
}

struct Assembled {
    modules: Vec<LoraModule>,
    embeddings: Vec<LoraEmbedding>,
    saved: Vec<SavedModule>,
}

impl Parts {
    fn sort(file: &SafetensorsFile) -> Result<Self> {
        let mut parts = Self::default();
        for info in file.tensors() {
            let fail = |problem: &str| FormatError::tensor(file.path(), &info.name, problem);
            let key = key::parse(&info.name).map_err(|problem| fail(&problem))?;
            let name = info.name.clone();
            let taken = match key {
                Key::A(m) => parts.linear.entry(m).or_default().a.replace(name),
                Key::B(m) => parts.linear.entry(m).or_default().b.replace(name),
                Key::Magnitude(m) => parts.linear.entry(m).or_default().magnitude.replace(name),
                Key::EmbeddingA(m) => parts.embedding.entry(m).or_default().a.replace(name),
                Key::EmbeddingB(m) => parts.embedding.entry(m).or_default().b.replace(name),
                Key::Saved { module_path, parameter, is_base_layer } => parts
                    .saved
                    .insert((module_path, parameter), (name, is_base_layer))
                    .map(|(first, _)| first),
            };
            if let Some(first) = taken {
                return Err(fail(&format!("is the same part of the same module as `{}`", shorten(&first))));
            }
        }
        Ok(parts)
    }

    fn assemble(
        self,
        file: &SafetensorsFile,
        matcher: &Matcher<'_>,
        config: &AdapterConfig,
    ) -> Result<Assembled> {
        let path = file.path();
        let pair = |module: &str, pair: &Pair, suffixes: [&str; 2]| {
            let partner = |which: &str| FormatError::MissingTensor {
                path: path.to_owned(),
                tensor: format!("{}{module}{which}", key::PREFIX),
            };
            check_target(path, matcher, module)?;
            let a = pair.a.as_deref().ok_or_else(|| partner(suffixes[0]))?;
            let b = pair.b.as_deref().ok_or_else(|| partner(suffixes[1]))?;
            Ok::<_, FormatError>((read(file, a)?, read(file, b)?))
        };
        let mut modules = Vec::with_capacity(self.linear.len());
        for (module_path, names) in &self.linear {
            let (a, b) = pair(module_path, names, [".lora_A.weight", ".lora_B.weight"])?;
            let magnitude = names.magnitude.as_deref().map(|name| read(file, name)).transpose()?;
            let (rank, scale) = rank_and_scale(matcher, config, module_path);
            modules.push(LoraModule { module_path: module_path.clone(), a, b, magnitude, rank, scale });
        }
        let mut embeddings = Vec::with_capacity(self.embedding.len());
        for (module_path, names) in &self.embedding {
            if self.linear.contains_key(module_path) {
                let problem = "has factors of a linear module and of an embedding";
                return Err(FormatError::tensor(path, module_path, problem));
            }
            let (a, b) = pair(module_path, names, [".lora_embedding_A", ".lora_embedding_B"])?;
            let (rank, scale) = rank_and_scale(matcher, config, module_path);
            embeddings.push(LoraEmbedding { module_path: module_path.clone(), a, b, rank, scale });
        }
        let mut saved = Vec::with_capacity(self.saved.len());
        for ((module_path, parameter), (name, is_base_layer)) in self.saved {
            if !is_base_layer {
                check_saved(path, matcher, &module_path)?;
            }
            let tensor = read(file, &name)?;
            saved.push(SavedModule { module_path, parameter, is_base_layer, tensor });
        }
        Ok(Assembled { modules, embeddings, saved })
    }
}

fn read(file: &SafetensorsFile, name: &str) -> Result<AdapterTensor> {
    let info = file.require(name)?;
    AdapterTensor::new(file.path(), name, info.storage, info.shape.clone(), file.read(name)?)
}
