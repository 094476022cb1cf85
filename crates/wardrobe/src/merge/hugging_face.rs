//! A merged model as a folder that transformers and every runtime of its layout opens.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;
use wardrobe_formats::config::set_hf_dtype;
use wardrobe_formats::gguf::RowOrder;
use wardrobe_formats::staging::{Staging, write_file, write_json};
use wardrobe_formats::{FormatError, ModelConfig, StorageType, safetensors};
use wardrobe_models::{MergedTensors, RopeSpec};
use wardrobe_text::NamedTemplate;

use super::tensors::{Item, Progress, Writing};
use super::{MergeFormat, MergeOptions, MergeReport, Source};
use crate::disk::check_space;
use crate::error::{Error, Result};

pub(super) fn write(
    source: &Source<'_>,
    merged: &MergedTensors<'_>,
    output: &Path,
    options: &MergeOptions,
    progress: Progress<'_>,
) -> Result<MergeReport> {
    let files = source.files;
    let mut notes = Vec::new();
    let whole = match (options.dtype.storage(), files.gguf_metadata()) {
        (Some(storage), _) => Some(storage),
        (None, Some(_)) => Some(storage_of_gguf(merged, &mut notes)),
        (None, None) => None,
    };
    let items: Vec<Item<'_>> = merged
        .tensors()
        .iter()
        .map(|tensor| {
            let own = match tensor.info.storage {
                // What sums are rounded to where the base has 8 bits.
                StorageType::F8_E4M3 | StorageType::F8_E5M2 if tensor.is_merged() => StorageType::BF16,
                own => own,
            };
            let storage = whole.filter(|_| own.is_float()).unwrap_or(own);
            Item { tensor, storage, order: RowOrder::Same, offset: 0.0 }
        })
        .collect();
    let small_files = small_files(source, merged, whole)?;
    let size_bytes = items.iter().map(Item::size_bytes).fold(0, u64::saturating_add);
    let beside = small_files.iter().map(|(_, bytes)| bytes.len() as u64).sum::<u64>();
    check_space(output, size_bytes.saturating_add(beside))?;

    let staging = Staging::folder(output, options.replace)?;
    for (name, bytes) in &small_files {
        let path = staging.path().join(name);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)
                .map_err(|source| FormatError::Io { path: folder.to_owned(), source })?;
        }
        write_file(&path, bytes)?;
    }
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let infos: Vec<_> = items.iter().map(Item::info).collect();
    let mut writing = Writing::new(merged, progress);
    writing.start(size_bytes);
    let max_shard_bytes = options.max_shard_bytes;
    safetensors::write_folder(staging.path(), &infos, &metadata, max_shard_bytes, |idx, sink| {
        items.get(idx).map_or(Ok(()), |item| writing.put(item, sink))
    })?;
    write_json(&staging.path().join("config.json"), &config_json(source, merged, whole)?)?;
    staging.publish()?;
    Ok(writing.report(MergeFormat::Safetensors, items.len(), size_bytes, notes))
}

/// The type of a folder that is made of a GGUF file: that of its matrices, if safetensors can hold it.
fn storage_of_gguf(merged: &MergedTensors<'_>, notes: &mut Vec<String>) -> StorageType {
    let matrices = merged.tensors().iter().map(|t| &t.info).filter(|info| info.shape.len() > 1);
    let mut types: Vec<StorageType> = matrices.map(|info| info.storage).collect();
    types.sort();
    types.dedup();
    if let [one @ (StorageType::F32 | StorageType::F16 | StorageType::BF16)] = types.as_slice() {
        return *one;
    }
    let names: Vec<&str> = types.iter().map(|storage| storage.name()).collect();
    notes.push(format!("BF16, since safetensors cannot hold the base's {}", names.join(", ")));
    StorageType::BF16
}

fn config_json(source: &Source<'_>, merged: &MergedTensors<'_>, whole: Option<StorageType>) -> Result<Value> {
    let path = source.files.path();
    let map = match source.files.hf_config() {
        Some(own) => {
            let mut map = own.clone();
            if merged.unties_head() {
                map.insert("tie_word_embeddings".to_owned(), Value::Bool(false));
            }
            if source.adapter.rope().is_some() {
                source.config.rope_to_hf(path, &mut map)?;
            }
            if let Some(storage) = whole {
                set_hf_dtype(&mut map, storage);
            }
            map
        }
        None => {
            check_biases(source, merged)?;
            let spec = RopeSpec::of(&source.config);
            let scaling = spec.named_scaling().unwrap_or(spec.scaling);
            let config = ModelConfig { rope_scaling: scaling, ..source.config.clone() };
            config.to_hf(path, whole.unwrap_or(StorageType::F32))?
        }
    };
    Ok(Value::Object(map))
}

/// transformers has biases on all projections of a kind or on none; a GGUF file may have some.
fn check_biases(source: &Source<'_>, merged: &MergedTensors<'_>) -> Result<()> {
    // The others are of one kind in both.
    if !["LlamaForCausalLM", "MistralForCausalLM"].contains(&source.config.architecture.as_str()) {
        return Ok(());
    }
    let has = |name: &str| merged.tensors().iter().any(|t| t.info.name == name);
    let kinds = [
        (source.config.attention_bias, "self_attn", &["q_proj", "k_proj", "v_proj", "o_proj"][..]),
        (source.config.mlp_bias, "mlp", &["gate_proj", "up_proj", "down_proj"][..]),
    ];
    for (_, parent, parts) in kinds.into_iter().filter(|(is_there, ..)| *is_there) {
        for part in parts {
            let name = format!("model.layers.0.{parent}.{part}.bias");
            if !has(&name) {
                let what = format!("a config.json for biases on some layers only: {name} is missing");
                let path = source.files.path().to_owned();
                return Err(Error::Format(FormatError::Unsupported { path, what }));
            }
        }
    }
    Ok(())
}

/// Everything but weights and configuration: the base folder's own files, or what a GGUF file's metadata gives.
fn small_files(
    source: &Source<'_>,
    merged: &MergedTensors<'_>,
    whole: Option<StorageType>,
) -> Result<Vec<(String, Vec<u8>)>> {
    // Whatever is wrong with it is told before a byte of the weights is written.
    config_json(source, merged, whole)?;
    let files = source.files;
    let mut small = files.companion_files()?;
    if files.hf_config().is_some() {
        return Ok(small);
    }
    let mut add = |name: &str, make: &dyn Fn() -> Result<Vec<u8>>| -> Result<()> {
        if small.iter().all(|(known, _)| known != name) {
            small.push((name.to_owned(), make()?));
        }
        Ok(())
    };
    let tokenizer = crate::model_text::tokenizer(files)?;
    add("tokenizer.json", &|| Ok(tokenizer.to_tokenizer_json()?))?;
    add("tokenizer_config.json", &|| {
        let default = files.tokenizer.chat_template.iter().map(|source| ("default", source));
        let named = files.tokenizer.named_chat_templates.iter().map(|(name, source)| (name.as_str(), source));
        let template =
            |(name, source): (&str, &String)| NamedTemplate { name: name.to_owned(), source: source.clone() };
        let templates: Vec<NamedTemplate> = default.chain(named).map(template).collect();
        let max_tokens = source.config.max_position_embeddings;
        pretty(files.path(), &tokenizer.to_tokenizer_config(max_tokens, &templates))
    })?;
    add("generation_config.json", &|| pretty(files.path(), &source.config.to_hf_generation()))?;
    Ok(small)
}

fn pretty(path: &Path, value: &Value) -> Result<Vec<u8>> {
    let json = |source| Error::Format(FormatError::Json { path: path.to_owned(), source });
    serde_json::to_vec_pretty(value).map_err(json)
}
