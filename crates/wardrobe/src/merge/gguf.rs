//! A merged model as a GGUF file.

use std::collections::BTreeMap;
use std::path::Path;

use wardrobe_formats::gguf::{
    self, Array, GgufTensor, RowOrder, Scheme, Value, file_type, gguf_experts_name,
};
use wardrobe_formats::{FormatError, ModelConfig, RopeScaling, Staging, StorageType, convert};
use wardrobe_models::{MergedTensors, RopeSpec};
use wardrobe_text::{GgufVocab, TokenizerConfig};

use super::tensors::{Item, Progress, Writing};
use super::{MergeFormat, MergeOptions, MergeReport, Source};
use crate::disk::check_space;
use crate::error::{Error, Result};

/// What GGUF writers put for block formats as they are today.
const QUANTIZATION_VERSION: u32 = 2;

pub(super) fn write(
    source: &Source<'_>,
    merged: &MergedTensors<'_>,
    output: &Path,
    options: &MergeOptions,
    progress: Progress<'_>,
) -> Result<MergeReport> {
    let path = source.files.path();
    let architecture = &source.config.architecture;
    let scheme = Scheme::of(architecture).ok_or_else(|| FormatError::Unsupported {
        path: path.to_owned(),
        what: format!("{architecture} in a GGUF file"),
    })?;
    let mut notes = Vec::new();
    let mut items: Vec<Vec<Item<'_>>> = Vec::new();
    let mut described: Vec<GgufTensor> = Vec::new();
    let mut experts = Experts::default();
    for tensor in merged.tensors() {
        let name = &tensor.info.name;
        // Tables that are computed.
        if name.ends_with("rotary_emb.inv_freq") {
            continue;
        }
        if let Some((gguf_name, expert)) = gguf_experts_name(name) {
            let storage = storage(source, tensor, options, &mut notes)?;
            experts
                .entry(gguf_name)
                .or_default()
                .insert(expert, Item { tensor, storage, order: RowOrder::Same, offset: 0.0 });
            continue;
        }
        let gguf_name = scheme.gguf_name(name).ok_or_else(|| {
            let (tensor, problem) = (name.clone(), "has no name in a GGUF file".to_owned());
            FormatError::Tensor { path: path.to_owned(), tensor, problem }
        })?;
        let storage = storage(source, tensor, options, &mut notes)?;
        let shape = tensor.info.shape.clone();
        described.push(GgufTensor { name: gguf_name, storage, shape });
        let order = scheme.order(name, &source.config);
        items.push(vec![Item { tensor, storage, order, offset: scheme.offset(name) }]);
    }
    for (name, of_experts) in experts {
        described.push(stacked(path, &name, &of_experts)?);
        items.push(of_experts.into_values().collect());
    }
    let config = gguf_config(&source.config);
    let tables: Vec<(&str, &Vec<f32>)> = match &config.rope_scaling {
        RopeScaling::FrequencyFactors(factors) => vec![("rope_freqs.weight", factors)],
        RopeScaling::LongRope { short, long, .. } => {
            vec![("rope_factors_long.weight", long), ("rope_factors_short.weight", short)]
        }
        _ => Vec::new(),
    };
    let mut factors = Vec::with_capacity(tables.len());
    for (name, values) in tables {
        let (name, shape) = (name.to_owned(), vec![values.len()]);
        described.push(GgufTensor { name, storage: StorageType::F32, shape });
        factors.push(convert::from_f32(StorageType::F32, values, 1)?);
    }
    let factor_bytes = factors.iter().map(Vec::len).sum::<usize>() as u64;
    let metadata = metadata(source, &config, options, &mut notes)?;
    let size_bytes = items.iter().flatten().map(Item::size_bytes).fold(factor_bytes, u64::saturating_add);
    // Vocabularies take some tens of bytes a token.
    check_space(output, size_bytes.saturating_add(128 * source.config.vocab_size as u64))?;

    let staging = Staging::file(output, options.replace)?;
    let mut writing = Writing::new(merged, progress);
    writing.start(size_bytes);
    gguf::write_streamed(staging.path(), &metadata, &described, |idx, sink| match items.get(idx) {
        Some(items) => items.iter().try_for_each(|item| writing.put(item, sink)),
        None => sink.put(factors.get(idx - items.len()).map_or(&[][..], Vec::as_slice)),
    })?;
    staging.publish()?;
    Ok(writing.report(MergeFormat::Gguf, described.len(), size_bytes, notes))
}

/// The experts' parts of tensors that have the same of all experts, by the tensor's name.
type Experts<'a> = BTreeMap<String, BTreeMap<usize, Item<'a>>>;

/// The tensor `[experts, out, in]` of these.
fn stacked(path: &Path, name: &str, of_experts: &BTreeMap<usize, Item<'_>>) -> Result<GgufTensor> {
    let fail = |problem: &str| {
        let (tensor, problem) = (name.to_owned(), problem.to_owned());
        Err(FormatError::Tensor { path: path.to_owned(), tensor, problem }.into())
    };
    let Some(first) = of_experts.values().next() else { return fail("has no experts") };
    if !of_experts.keys().copied().eq(0..of_experts.len()) {
        return fail("some of its experts are missing");
    }
    let (storage, shape) = (first.storage, &first.tensor.info.shape);
    if of_experts.values().any(|item| item.storage != storage || item.tensor.info.shape != *shape) {
        return fail("its experts are of different types or shapes; --dtype gives them one type");
    }
    let shape = std::iter::once(of_experts.len()).chain(shape.iter().copied()).collect();
    Ok(GgufTensor { name: name.to_owned(), storage, shape })
}

/// How a tensor is stored: vectors and routers in f32, as llama.cpp computes with them.
fn storage(
    source: &Source<'_>,
    tensor: &wardrobe_models::MergedTensor,
    options: &MergeOptions,
    notes: &mut Vec<String>,
) -> Result<StorageType> {
    let info = &tensor.info;
    if !info.storage.is_float() {
        return Err(wardrobe_models::ModelError::TensorType {
            name: info.name.clone(),
            storage: info.storage,
        }
        .into());
    }
    let is_matrix = info.shape.len() > 1 && !info.name.ends_with(".block_sparse_moe.gate.weight");
    let is_gguf = source.files.gguf_metadata().is_some();
    let wanted = match options.dtype.storage() {
        None if is_gguf => return Ok(info.storage),
        _ if !is_matrix => return Ok(StorageType::F32),
        Some(storage) => storage,
        None => match info.storage {
            StorageType::F64 => StorageType::F32,
            StorageType::F8_E4M3 | StorageType::F8_E5M2 => StorageType::BF16,
            own => own,
        },
    };
    if info.row_numel().is_multiple_of(wanted.block_size()) {
        return Ok(wanted);
    }
    notes.push(format!(
        "{} is F16: its rows of {} are no whole blocks of {wanted}",
        info.name,
        info.row_numel()
    ));
    Ok(StorageType::F16)
}

/// The configuration as GGUF has it: Llama 3's scaling is frequency factors there.
fn gguf_config(config: &ModelConfig) -> ModelConfig {
    let mut config = config.clone();
    if matches!(config.rope_scaling, RopeScaling::Llama3 { .. }) {
        config.rope_scaling = RopeScaling::FrequencyFactors(RopeSpec::of(&config).divisors());
    }
    config
}

fn metadata(
    source: &Source<'_>,
    config: &ModelConfig,
    options: &MergeOptions,
    notes: &mut Vec<String>,
) -> Result<Vec<(String, Value)>> {
    let text = |key: &str, value: &str| (key.to_owned(), Value::String(value.to_owned()));
    let number = |key: &str, value: u32| (key.to_owned(), Value::U32(value));
    let path = source.files.path();
    let architecture = Scheme::of(&config.architecture).map_or("llama", Scheme::gguf_architecture);
    let mut metadata = vec![text("general.architecture", architecture), text("general.name", &source.name())];
    let file_type = options.dtype.storage().and_then(file_type);
    match source.files.gguf_metadata() {
        Some(base) => {
            let has_own_rope = source.adapter.rope().is_some();
            for (key, value) in base.iter() {
                let is_set_here = ["general.architecture", "general.name", "general.alignment"]
                    .contains(&key)
                    || (key == "general.file_type" && file_type.is_some())
                    || (has_own_rope && wardrobe_formats::config::is_gguf_rope_key(key));
                if !is_set_here {
                    metadata.push((key.to_owned(), value.clone()));
                }
            }
            if has_own_rope {
                metadata.extend(config.rope_to_gguf(path)?);
            }
            metadata.extend(file_type.map(|file_type| number("general.file_type", file_type)));
        }
        None => {
            let of_base = source.files.tensors.tensors().iter().find(|t| t.shape.len() > 1);
            let of_base = of_base.and_then(|info| wardrobe_formats::gguf::file_type(info.storage));
            metadata.push(text("general.type", "model"));
            metadata.extend(file_type.or(of_base).map(|file_type| number("general.file_type", file_type)));
            metadata.push(number("general.quantization_version", QUANTIZATION_VERSION));
            metadata.extend(config.to_gguf(path)?);
            metadata.extend(tokenizer(source, notes)?);
        }
    }
    Ok(metadata)
}

/// The tokenizer of a Hugging Face folder.
fn tokenizer(source: &Source<'_>, notes: &mut Vec<String>) -> Result<Vec<(String, Value)>> {
    let files = &source.files.tokenizer;
    let Some(json) = files.read_tokenizer_json()? else {
        let path = source.files.path().display();
        return Err(Error::Setting(format!("{path} has no tokenizer.json, which a GGUF file is to hold")));
    };
    let config = crate::model_text::tokenizer_config(source.files)?;
    let vocab_size = source.config.vocab_size;
    let vocab = GgufVocab::from_tokenizer_json(&json, config.as_ref(), vocab_size)?;
    Ok(vocab_metadata(source, vocab, config.as_ref(), notes))
}

fn vocab_metadata(
    source: &Source<'_>,
    vocab: GgufVocab,
    config: Option<&TokenizerConfig>,
    notes: &mut Vec<String>,
) -> Vec<(String, Value)> {
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let mut metadata = vec![
        (key("model"), Value::String(vocab.model)),
        (key("tokens"), Value::Array(Array::String(vocab.tokens))),
        (key("token_type"), Value::Array(Array::I32(vocab.token_types))),
        (key("merges"), Value::Array(Array::String(vocab.merges))),
    ];
    metadata.extend(vocab.pre.map(|pre| (key("pre"), Value::String(pre))));
    // A model may end its answers with several tokens; GGUF has three places for them.
    let mut ends = source.config.eos_token_ids.clone();
    let eos = vocab.eos_id.filter(|id| ends.is_empty() || ends.contains(id)).or(ends.first().copied());
    ends.retain(|id| Some(*id) != eos);
    let mut ends = ends.into_iter();
    let bos = vocab.bos_id.or(source.config.bos_token_id);
    let ids = [
        ("bos_token_id", bos),
        ("eos_token_id", eos),
        ("eot_token_id", ends.next()),
        ("eom_token_id", ends.next()),
        ("unknown_token_id", vocab.unk_id),
        ("padding_token_id", vocab.pad_id),
    ];
    metadata.extend(ids.into_iter().filter_map(|(name, id)| Some((key(name), Value::U32(id?)))));
    let left: Vec<String> = ends.map(|id| id.to_string()).collect();
    if !left.is_empty() {
        notes.push(format!(
            "tokens {} also end an answer, for which a GGUF file has no place",
            left.join(", ")
        ));
    }
    let flags = [("add_bos_token", vocab.add_bos), ("add_eos_token", vocab.add_eos)];
    metadata.extend(flags.into_iter().filter_map(|(name, flag)| Some((key(name), Value::Bool(flag?)))));
    let files = &source.files.tokenizer;
    let template = files.chat_template.as_deref().or_else(|| config?.chat_template(false));
    metadata.extend(template.map(|t| ("tokenizer.chat_template".to_owned(), Value::String(t.to_owned()))));
    let named = &files.named_chat_templates;
    if !named.is_empty() {
        let names = Array::String(named.keys().cloned().collect());
        metadata.push(("tokenizer.chat_templates".to_owned(), Value::Array(names)));
        let of = |(name, text): (&String, &String)| {
            (format!("tokenizer.chat_template.{name}"), Value::String(text.clone()))
        };
        metadata.extend(named.iter().map(of));
    }
    metadata
}
