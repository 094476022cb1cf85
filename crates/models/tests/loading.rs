//! What is wrong with a model's tensors is told by their names, before anything is served.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops at the first surprise")]

mod support;

use std::cell::RefCell;

use support::{HIDDEN, LAYERS, Tensor, TinyModel};
use wardrobe_formats::{FormatError, StorageType};
use wardrobe_models::{LoadOptions, ModelError, WeightPrecision};

fn refusal(model: &TinyModel) -> ModelError {
    match model.load(&LoadOptions::default()) {
        Err(error) => error,
        Ok(_) => panic!("the model was taken"),
    }
}

#[test]
fn a_whole_model_loads_in_every_storage_type() {
    use StorageType::*;
    for storage in [F64, F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K] {
        let mut model = TinyModel::default();
        for tensor in model.tensors.iter_mut().filter(|t| t.shape.len() == 2) {
            *tensor = Tensor::new(&tensor.name, storage, &tensor.shape);
        }
        for precision in [WeightPrecision::AsStored, WeightPrecision::F32] {
            let progress = RefCell::new(Vec::new());
            let note = |name: &str, read, total| progress.borrow_mut().push((name.to_owned(), read, total));
            let options = LoadOptions { precision, progress: &note };
            let loaded = model.load(&options).unwrap_or_else(|error| panic!("{storage}: {error}"));
            // The head shares the embedding's weight.
            assert_eq!(loaded.modules().len(), LAYERS * 7 + 1, "{storage}");
            let progress = progress.into_inner();
            assert_eq!(progress.len(), model.tensors.len());
            let total: usize = model.tensors.iter().map(|t| t.bytes.len()).sum();
            let (_, read, of) = progress.last().unwrap();
            assert_eq!((*read, *of), (total as u64, total as u64), "{storage}");
        }
    }
}

#[test]
fn a_missing_tensor_is_named() {
    for (in_file, named) in [
        ("blk.1.attn_q.weight", "model.layers.1.self_attn.q_proj.weight"),
        ("blk.0.ffn_norm.weight", "model.layers.0.post_attention_layernorm.weight"),
        ("output_norm.weight", "model.norm.weight"),
    ] {
        let mut model = TinyModel::default();
        model.tensors.retain(|t| t.name != in_file);
        match refusal(&model) {
            ModelError::Format(FormatError::MissingTensor { tensor, path }) => {
                assert_eq!(tensor, named);
                assert!(path.ends_with("tiny.gguf"));
            }
            other => panic!("{in_file}: {other}"),
        }
    }
}

#[test]
fn a_tensor_of_another_shape_is_named_with_both_shapes() {
    for (in_file, shape, named, expected) in [
        (
            "blk.1.ffn_down.weight",
            vec![HIDDEN / 2, HIDDEN],
            "model.layers.1.mlp.down_proj.weight",
            vec![HIDDEN; 2],
        ),
        ("blk.0.attn_norm.weight", vec![HIDDEN / 2], "model.layers.0.input_layernorm.weight", vec![HIDDEN]),
        ("output_norm.weight", vec![1, HIDDEN], "model.norm.weight", vec![HIDDEN]),
    ] {
        let mut model = TinyModel::default();
        model.put(Tensor::new(in_file, StorageType::F32, &shape));
        match refusal(&model) {
            ModelError::TensorShape { name, expected: wanted, actual } => {
                assert_eq!((name.as_str(), wanted, actual), (named, expected, shape));
            }
            other => panic!("{in_file}: {other}"),
        }
    }
}

#[test]
fn a_tensor_that_belongs_to_nothing_is_named() {
    let mut model = TinyModel::default();
    model.put(Tensor::new("blk.7.attn_q.weight", StorageType::F32, &[HIDDEN, HIDDEN]));
    match refusal(&model) {
        ModelError::UnusedTensor { name, architecture } => {
            assert_eq!(name, "model.layers.7.self_attn.q_proj.weight");
            assert_eq!(architecture, "LlamaForCausalLM");
        }
        other => panic!("{other}"),
    }
}

#[test]
fn integers_are_no_weights() {
    let mut model = TinyModel::default();
    let bytes = vec![1; 4 * HIDDEN * HIDDEN];
    let shape = vec![HIDDEN, HIDDEN];
    let name = "blk.0.attn_q.weight".to_owned();
    model.put(Tensor { name, storage: StorageType::I32, shape, bytes });
    let error = refusal(&model).to_string();
    assert!(error.contains("I32") && error.contains("model.layers.0.self_attn.q_proj.weight"), "{error}");
}

/// NaN and infinity, in vectors, plain matrices and the scales of blocks, in types that are held and ones that are not.
#[test]
fn numbers_that_are_none_are_refused_by_tensor() {
    use StorageType::*;
    let cases = [
        ("output_norm.weight", F32, 4 * 9, &[0, 0, 0x80, 0x7f][..], "model.norm.weight", "element 9"),
        (
            "blk.0.attn_norm.weight",
            F32,
            0,
            &[0, 0, 0xc0, 0x7f],
            "model.layers.0.input_layernorm.weight",
            "element 0",
        ),
        (
            "blk.1.ffn_norm.weight",
            F16,
            2,
            &[0, 0x7c],
            "model.layers.1.post_attention_layernorm.weight",
            "element 1",
        ),
        (
            "blk.0.attn_q.weight",
            BF16,
            2 * 300,
            &[0x80, 0xff],
            "model.layers.0.self_attn.q_proj.weight",
            "is NaN",
        ),
        ("blk.1.ffn_up.weight", F16, 2 * 7, &[1, 0x7e], "model.layers.1.mlp.up_proj.weight", "element 7"),
        (
            "token_embd.weight",
            F32,
            4 * 8000,
            &[0, 0, 0x80, 0xff],
            "model.embed_tokens.weight",
            "element 8000",
        ),
        ("blk.1.ffn_up.weight", Q8_0, 34 * 5, &[1, 0x7e], "model.layers.1.mlp.up_proj.weight", "block 5"),
        ("blk.1.ffn_up.weight", Q4_0, 18 * 6, &[0, 0x7c], "model.layers.1.mlp.up_proj.weight", "block 6"),
        ("blk.1.ffn_up.weight", Q4_1, 20 * 7 + 2, &[0, 0xfe], "model.layers.1.mlp.up_proj.weight", "block 7"),
        (
            "blk.1.ffn_up.weight",
            Q4_K,
            144 * 8 + 2,
            &[0, 0x7e],
            "model.layers.1.mlp.up_proj.weight",
            "block 8",
        ),
        ("blk.1.ffn_up.weight", Q6_K, 210 + 208, &[0, 0x7c], "model.layers.1.mlp.up_proj.weight", "block 1"),
        ("blk.1.ffn_up.weight", Q5_K, 176 * 2, &[0, 0x7c], "model.layers.1.mlp.up_proj.weight", "block 2"),
    ];
    for (in_file, storage, at, bytes, named, place) in cases {
        let mut model = TinyModel::default();
        let shape = model.tensor(in_file).shape.clone();
        let mut tensor = Tensor::new(in_file, storage, &shape);
        tensor.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        model.put(tensor);
        for precision in [WeightPrecision::AsStored, WeightPrecision::F32] {
            let options = LoadOptions { precision, ..LoadOptions::default() };
            let error = match model.load(&options) {
                Err(error) => error.to_string(),
                Ok(_) => panic!("{in_file} as {storage} was taken"),
            };
            for part in [named, place, "tiny.gguf", "NaN or infinite"] {
                assert!(error.contains(part), "{in_file} as {storage}: no {part} in {error}");
            }
        }
    }
}

/// The digest tells any change of a number, and nothing else.
#[test]
fn the_digest_is_of_the_content() {
    let digest = |model: &TinyModel, precision| {
        let options = LoadOptions { precision, ..LoadOptions::default() };
        model.load(&options).unwrap().content_digest()
    };
    let model = TinyModel::default();
    let stored = WeightPrecision::AsStored;
    let first = digest(&model, stored);
    assert_eq!(first, digest(&model, stored));
    assert_eq!(first, digest(&model, WeightPrecision::F32));
    // The order in the file is no content.
    let mut reordered = model.clone();
    reordered.tensors.reverse();
    assert_eq!(first, digest(&reordered, stored));
    for name in ["blk.1.ffn_up.weight", "token_embd.weight", "output_norm.weight", "blk.0.attn_k.weight"] {
        let mut changed = model.clone();
        changed.tensor(name).bytes[40] ^= 1;
        assert_ne!(first, digest(&changed, stored), "{name}");
    }
    let mut other_type = model.clone();
    other_type.put(Tensor::new("blk.0.attn_k.weight", StorageType::F16, &[HIDDEN / 2, HIDDEN]));
    assert_ne!(first, digest(&other_type, stored));
}

#[test]
#[ignore = "measures the time that the digest takes; for a machine at rest"]
fn time_of_the_digest() {
    let bytes = vec![0x5a_u8; 98 << 20];
    let shape = vec![bytes.len()];
    let info = wardrobe_formats::TensorInfo { name: "w".to_owned(), storage: StorageType::U8, shape };
    let (_dir, files) = TinyModel::default().files();
    let started = std::time::Instant::now();
    let mut digest = wardrobe_formats::ContentDigest::new(&files.config);
    digest.tensor(&info, &bytes);
    let digest = digest.finish();
    println!("98 MiB in {:?}: {digest}", started.elapsed());
    let started = std::time::Instant::now();
    wardrobe_formats::finite::check("m".as_ref(), "w", StorageType::Q4_1, &bytes).unwrap();
    println!("scales of 98 MiB of Q4_1 in {:?}", started.elapsed());
}
