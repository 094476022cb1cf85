//! Files that are right, also against candle's reader; wrong ones; and the row order of q and k.

use std::path::PathBuf;
use std::sync::Arc;

use tempfile::{TempDir, tempdir};

use super::*;
use crate::config::ModelConfig;
use crate::convert;

pub(super) fn key(name: &str, value: Value) -> (String, Value) {
    (name.to_owned(), value)
}

/// Metadata of a small Llama: 2 layers, hidden 64, 4 heads of 16, 2 kv heads.
fn llama_metadata() -> Vec<(String, Value)> {
    vec![
        key("general.architecture", Value::String("llama".into())),
        key("llama.block_count", Value::U32(1)),
        key("llama.context_length", Value::U32(128)),
        key("llama.embedding_length", Value::U32(64)),
        key("llama.feed_forward_length", Value::U32(96)),
        key("llama.attention.head_count", Value::U32(4)),
        key("llama.attention.head_count_kv", Value::U32(2)),
        key("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
    ]
}

fn f32_tensor(name: &str, shape: &[usize]) -> GgufTensor {
    GgufTensor { name: name.into(), storage: StorageType::F32, shape: shape.to_vec() }
}

fn ramp(tensor: &GgufTensor) -> Vec<u8> {
    let numel: usize = tensor.shape.iter().product();
    let values: Vec<f32> = (0..numel).map(|i| (i % 4099) as f32 * 0.5 - 700.0).collect();
    convert::from_f32(tensor.storage, &values, *tensor.shape.last().unwrap()).unwrap()
}

fn build(metadata: &[(String, Value)], tensors: &[GgufTensor]) -> (TempDir, PathBuf) {
    let dir = tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    write(&path, metadata, tensors, |i| Ok(ramp(&tensors[i]))).unwrap();
    (dir, path)
}

#[test]
fn all_value_types_survive() {
    let metadata = vec![
        key("u8", Value::U8(200)),
        key("i8", Value::I8(-5)),
        key("u16", Value::U16(60_000)),
        key("i16", Value::I16(-6)),
        key("u32", Value::U32(u32::MAX)),
        key("i32", Value::I32(-7)),
        key("u64", Value::U64(u64::MAX)),
        key("i64", Value::I64(i64::MIN)),
        key("f32", Value::F32(1.25)),
        key("f64", Value::F64(-2.5)),
        key("bool", Value::Bool(true)),
        key("string", Value::String("größe".into())),
        key("a.u8", Value::Array(Array::U8(vec![1, 2]))),
        key("a.i8", Value::Array(Array::I8(vec![-1]))),
        key("a.u16", Value::Array(Array::U16(vec![3]))),
        key("a.i16", Value::Array(Array::I16(vec![-3]))),
        key("a.u32", Value::Array(Array::U32(vec![4]))),
        key("a.i32", Value::Array(Array::I32(vec![-4, 9]))),
        key("a.u64", Value::Array(Array::U64(vec![5]))),
        key("a.i64", Value::Array(Array::I64(vec![-5]))),
        key("a.f32", Value::Array(Array::F32(vec![0.5]))),
        key("a.f64", Value::Array(Array::F64(vec![0.25]))),
        key("a.bool", Value::Array(Array::Bool(vec![true, false]))),
        key("a.string", Value::Array(Array::String(vec!["a".into(), "".into(), "ü".into()]))),
        key("a.long", Value::Array(Array::String((0..40_000).map(|i| format!("token {i}")).collect()))),
        key("a.array", Value::Array(Array::Array(vec![Array::U8(vec![7]), Array::String(vec![])]))),
    ];
    let (_dir, path) = build(&metadata, &[f32_tensor("w", &[3, 5])]);
    let file = GgufFile::open(&path).unwrap();
    let read: BTreeMap<&str, &Value> = file.metadata().iter().collect();
    assert_eq!(read, metadata.iter().map(|(k, v)| (k.as_str(), v)).collect());

    let m = file.metadata();
    assert_eq!(m.u64("u8").unwrap(), Some(200));
    assert_eq!(m.u32("none").unwrap(), None);
    assert!(m.u32("u64").is_err() && m.u64("i8").is_err() && m.u64("f32").is_err());
    assert_eq!(m.f64("f32").unwrap(), Some(1.25));
    assert_eq!(m.bool("bool").unwrap(), Some(true));
    assert_eq!(m.integers("a.i32").unwrap(), Some(vec![-4, 9]));
    assert_eq!(m.f32s("a.f32").unwrap(), Some(&[0.5][..]));
    assert_eq!(m.strings("a.string").unwrap().unwrap()[2], "ü");
    let message = m.str("bool").unwrap_err().to_string();
    assert!(message.contains("key `bool`: expected a string, found Bool(true)"), "{message}");
}

#[test]
fn candle_reads_what_was_written() {
    let mut metadata = llama_metadata();
    metadata.push(key("tokenizer.ggml.tokens", Value::Array(Array::String(vec!["x".into(), "y".into()]))));
    let tensors = [
        f32_tensor("blk.0.attn_norm.weight", &[64]),
        GgufTensor { name: "q8".into(), storage: StorageType::Q8_0, shape: vec![3, 64] },
        GgufTensor { name: "q4k".into(), storage: StorageType::Q4_K, shape: vec![2, 256] },
    ];
    let (_dir, path) = build(&metadata, &tensors);
    let mut reader = std::fs::File::open(&path).unwrap();
    let theirs = candle_core::quantized::gguf_file::Content::read(&mut reader).unwrap();
    assert_eq!(theirs.metadata["llama.block_count"].to_u32().unwrap(), 1);
    assert_eq!(theirs.metadata["tokenizer.ggml.tokens"].to_vec().unwrap().len(), 2);
    let ours = GgufFile::open(&path).unwrap();
    let device = candle_core::Device::Cpu;
    for tensor in &tensors {
        let their = theirs.tensor(&mut reader, &tensor.name, &device).unwrap().dequantize(&device).unwrap();
        let info = ours.info(&tensor.name).unwrap();
        assert_eq!(their.dims(), info.shape);
        let values = convert::to_f32(info.storage, &ours.read(&tensor.name).unwrap(), info.numel()).unwrap();
        assert_eq!(their.flatten_all().unwrap().to_vec1::<f32>().unwrap(), values);
    }
}

/// The converter's own definition, in its own terms: a copy of four nested loops over `reshape(heads, 2, half, in)`
/// and `swapaxes(1, 2)`, from Hugging Face order to file order.
fn permute_as_converter(hf: &[Vec<u8>], num_heads: usize) -> Vec<Vec<u8>> {
    let half = hf.len() / num_heads / 2;
    let mut out = Vec::new();
    for head in 0..num_heads {
        // After the swap, the axes are head, half, 2.
        for j in 0..half {
            for s in 0..2 {
                // Before it: head, 2, half.
                out.push(hf[(head * 2 + s) * half + j].clone());
            }
        }
    }
    out
}

/// The weights of a one-layer Llama in file order, from random Hugging Face rows.
fn permuted_model(storage: StorageType) -> (TempDir, PathBuf, Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let row_bytes = storage.bytes_for(64).unwrap();
    let rows = |n: usize, seed: usize| -> Vec<Vec<u8>> {
        (0..n).map(|r| (0..row_bytes).map(|c| (r * 31 + c * 7 + seed) as u8).collect()).collect()
    };
    let (q, k) = (rows(64, 1), rows(32, 2));
    let weight = |name: &str, rows: usize| GgufTensor { name: name.into(), storage, shape: vec![rows, 64] };
    let tensors = [
        weight("token_embd.weight", 10),
        weight("blk.0.attn_q.weight", 64),
        weight("blk.0.attn_k.weight", 32),
        weight("blk.0.attn_v.weight", 32),
        GgufTensor { name: "blk.0.attn_q.bias".into(), storage: StorageType::F32, shape: vec![64] },
    ];
    let dir = tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let bias: Vec<Vec<u8>> = (0..64).map(|i| (i as f32).to_le_bytes().to_vec()).collect();
    write(&path, &llama_metadata(), &tensors, |i| {
        Ok(match i {
            0 => rows(10, 3).concat(),
            1 => permute_as_converter(&q, 4).concat(),
            2 => permute_as_converter(&k, 2).concat(),
            3 => rows(32, 4).concat(),
            _ => permute_as_converter(&bias, 4).concat(),
        })
    })
    .unwrap();
    (dir, path, q, k)
}

#[test]
fn rows_of_q_and_k_come_back_in_hugging_face_order() {
    for storage in [StorageType::F32, StorageType::BF16, StorageType::Q4_1, StorageType::Q8_0] {
        let (_dir, path, q, k) = permuted_model(storage);
        let file = Arc::new(GgufFile::open(&path).unwrap());
        let config = ModelConfig::from_gguf(&file).unwrap();
        assert!(config.attention_bias && !config.mlp_bias);
        let tensors = GgufTensors::new(Arc::clone(&file), &config).unwrap();
        let q_name = "model.layers.0.self_attn.q_proj.weight";
        assert_eq!(tensors.read(q_name).unwrap(), q.concat(), "{storage}");
        assert_eq!(tensors.read("model.layers.0.self_attn.k_proj.weight").unwrap(), k.concat(), "{storage}");
        assert_ne!(file.read("blk.0.attn_q.weight").unwrap(), q.concat());
        let v = tensors.read("model.layers.0.self_attn.v_proj.weight").unwrap();
        assert_eq!(v, file.read("blk.0.attn_v.weight").unwrap());
        let bias = tensors.read("model.layers.0.self_attn.q_proj.bias").unwrap();
        let expected: Vec<u8> = (0..64).flat_map(|i| (i as f32).to_le_bytes()).collect();
        assert_eq!(bias, expected);
        for (start, end) in [(0, 1), (5, 6), (3, 40), (15, 17), (48, 64), (64, 64), (7, 7)] {
            assert_eq!(
                tensors.read_rows(q_name, start..end).unwrap(),
                q[start..end].concat(),
                "{start}..{end}"
            );
        }
        assert!(tensors.read_rows(q_name, 60..65).is_err());
        assert!(tensors.read_rows(q_name, Range { start: 2, end: 1 }).is_err());
    }
}

#[test]
fn the_rotary_pairs_are_the_same_numbers_in_both_layouts() {
    // What the permutation is for: rotating (2j, 2j + 1) of the file's rows is rotating (j, j + half) of ours.
    let (_dir, path, _, _) = permuted_model(StorageType::F32);
    let file = Arc::new(GgufFile::open(&path).unwrap());
    let config = ModelConfig::from_gguf(&file).unwrap();
    let tensors = GgufTensors::new(Arc::clone(&file), &config).unwrap();
    let (stored, hf) = (
        file.read("blk.0.attn_q.weight").unwrap(),
        tensors.read("model.layers.0.self_attn.q_proj.weight").unwrap(),
    );
    let row = |bytes: &[u8], i: usize| bytes[i * 256..(i + 1) * 256].to_vec();
    for head in 0..4 {
        for j in 0..8 {
            assert_eq!(row(&stored, head * 16 + 2 * j), row(&hf, head * 16 + j));
            assert_eq!(row(&stored, head * 16 + 2 * j + 1), row(&hf, head * 16 + j + 8));
        }
    }
}

#[test]
fn foreign_tensors_and_architectures_are_refused() {
    let embed = || f32_tensor("token_embd.weight", &[10, 64]);
    let open = |metadata: &[(String, Value)], tensors: &[GgufTensor]| -> String {
        let (_dir, path) = build(metadata, tensors);
        let file = Arc::new(GgufFile::open(&path).unwrap());
        let config = match ModelConfig::from_gguf(&file) {
            Ok(config) => config,
            Err(e) => return e.to_string(),
        };
        GgufTensors::new(file, &config)
            .map_or_else(|e| e.to_string(), |t| format!("{} tensors", t.tensors().len()))
    };
    let llama = llama_metadata();
    assert_eq!(open(&llama, &[embed(), f32_tensor("blk.0.attn_rot_embd.weight", &[8])]), "1 tensors");
    let message = open(&llama, &[embed(), f32_tensor("blk.0.ffn_gate_inp.weight", &[2, 64])]);
    assert!(
        message.contains("`blk.0.ffn_gate_inp.weight`: no tensor of the architecture llama"),
        "{message}"
    );
    let message = open(&llama, &[embed(), f32_tensor("blk.0.attn_q.weight", &[48, 64])]);
    assert!(message.contains("expected shape [64, 64], found [48, 64]"), "{message}");
    let renamed: Vec<_> = llama
        .iter()
        .map(|(k, v)| match k.as_str() {
            "general.architecture" => key(k, Value::String("gemma3".into())),
            _ => (k.replace("llama.", "gemma3."), v.clone()),
        })
        .collect();
    let message = open(&renamed, &[embed()]);
    assert!(message.contains("GGUF architecture \"gemma3\""), "{message}");
}

/// The bytes of a valid small file, to be bent.
fn valid_bytes() -> Vec<u8> {
    let (_dir, path) = build(&llama_metadata(), &[f32_tensor("a", &[8]), f32_tensor("b", &[8])]);
    std::fs::read(path).unwrap()
}

fn open_bytes(bytes: &[u8]) -> Result<GgufFile> {
    let dir = tempdir().unwrap();
    let path = dir.path().join("bent.gguf");
    std::fs::write(&path, bytes).unwrap();
    GgufFile::open(&path)
}

/// A head with the given counts and body.
fn head(version: u32, num_tensors: u64, num_keys: u64, body: &[u8]) -> Vec<u8> {
    [b"GGUF".as_slice(), &version.to_le_bytes(), &num_tensors.to_le_bytes(), &num_keys.to_le_bytes(), body]
        .concat()
}

fn text(s: &str) -> Vec<u8> {
    [(s.len() as u64).to_le_bytes().as_slice(), s.as_bytes()].concat()
}

/// A description and 256 bytes of data after the padding.
fn with_tensors(descriptions: &[(&str, &[u64], u32, u64)]) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, dims, storage, offset) in descriptions {
        body.extend(text(name));
        body.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|d| body.extend(d.to_le_bytes()));
        body.extend(storage.to_le_bytes());
        body.extend(offset.to_le_bytes());
    }
    let mut bytes = head(3, descriptions.len() as u64, 0, &body);
    bytes.resize(bytes.len().next_multiple_of(32) + 256, 1);
    bytes
}

#[test]
fn versions_and_byte_orders() {
    assert!(open_bytes(&head(2, 0, 0, &[])).is_ok());
    assert!(open_bytes(&head(3, 0, 0, &[])).is_ok());
    let message = |bytes: &[u8]| open_bytes(bytes).unwrap_err().to_string();
    assert!(message(&head(1, 0, 0, &[])).contains("GGUF version 1"));
    assert!(message(&head(4, 0, 0, &[])).contains("GGUF version 4"));
    assert!(message(&head(3u32.swap_bytes(), 0, 0, &[])).contains("big-endian"));
    assert!(message(b"PK\x03\x04 something else").contains("not a GGUF file"));
    assert!(message(b"GG").contains("truncated while reading magic"));
    let split = [text("split.count"), 2u32.to_le_bytes().to_vec(), 2u16.to_le_bytes().to_vec()].concat();
    assert!(message(&head(3, 0, 1, &split)).contains("split.count"));
}

#[test]
fn lying_counts_and_lengths_are_errors_without_allocation() {
    let value = |id: u32, payload: &[u8]| [text("k"), id.to_le_bytes().to_vec(), payload.to_vec()].concat();
    let array = |id: u32, len: u64, payload: &[u8]| {
        value(9, &[id.to_le_bytes().as_slice(), &len.to_le_bytes(), payload].concat())
    };
    let mut nested = value(9, &[]);
    for _ in 0..10 {
        nested.extend(9u32.to_le_bytes());
        nested.extend(1u64.to_le_bytes());
    }
    nested.resize(nested.len() + 64, 0);
    let twice = [value(0, &[1]), value(0, &[2])].concat();
    let alignment =
        |v: u32| [text("general.alignment"), 4u32.to_le_bytes().to_vec(), v.to_le_bytes().to_vec()].concat();
    for (bytes, expected) in [
        (head(3, u64::MAX, 0, &[]), "number of tensors is 18446744073709551615"),
        (head(3, 0, u64::MAX, &[]), "number of metadata keys"),
        (head(3, 0, 65_536, &[]), "truncated while reading metadata key"),
        (head(3, 131_072, 0, &[]), "truncated while reading tensor name"),
        (head(3, 0, 1, &u64::MAX.to_le_bytes()), "length of metadata key"),
        (head(3, 0, 1, &60_000u64.to_le_bytes()), "truncated while reading metadata key"),
        (head(3, 0, 1, &[text(""), vec![0; 16]].concat()), "metadata key is empty"),
        (head(3, 0, 1, &value(8, &u64::MAX.to_le_bytes())), "length of k"),
        (head(3, 0, 1, &value(8, &(1u64 << 23).to_le_bytes())), "truncated while reading k"),
        (head(3, 0, 1, &value(8, &[text("x")[..8].to_vec(), vec![0xff]].concat())), "k is not UTF-8"),
        (head(3, 0, 1, &value(13, &[0; 8])), "a value type from 0 to 12"),
        (head(3, 0, 1, &value(7, &[2])), "a boolean, 0 or 1"),
        (head(3, 0, 1, &array(13, 1, &[0; 8])), "a value type from 0 to 12"),
        (head(3, 0, 1, &array(4, u64::MAX, &[0; 8])), "truncated while reading array k"),
        (head(3, 0, 1, &array(8, 1 << 40, &[0; 64])), "truncated while reading array k"),
        (head(3, 0, 1, &nested), "nesting of the array k is 5"),
        (head(3, 0, 2, &twice), "key `k`: expected one value"),
        (head(3, 0, 1, &alignment(0)), "general.alignment"),
        (head(3, 0, 1, &alignment(24)), "a power of two"),
        (head(3, 0, 1, &alignment(1 << 20)), "a power of two"),
    ] {
        let message = open_bytes(&bytes).unwrap_err().to_string();
        assert!(message.contains(expected), "{expected}: {message}");
    }
}

#[test]
fn lying_tensors_are_named() {
    for (bytes, expected) in [
        (with_tensors(&[("w", &[8], 0, 256)]), "truncated while reading tensor `w`"),
        (with_tensors(&[("w", &[1 << 40], 0, 0)]), "truncated while reading tensor `w`"),
        (with_tensors(&[("w", &[u64::MAX], 0, 0)]), "tensor `w`: shape"),
        (with_tensors(&[("w", &[1 << 32, 1 << 32], 0, 0)]), "overflows"),
        (with_tensors(&[("w", &[8], 0, u64::MAX - 31)]), "truncated"),
        (with_tensors(&[("w", &[0, 8], 0, 0)]), "dimension 0"),
        (with_tensors(&[("w", &[1, 1, 1, 1, 1], 0, 0)]), "5 dimensions"),
        (with_tensors(&[("w", &[8], 0, 8)]), "no multiple of the alignment"),
        (with_tensors(&[("w", &[33], 2, 0)]), "no whole blocks of 32"),
        (with_tensors(&[("w", &[16, 2], 2, 0)]), "no whole blocks of 32"),
        (with_tensors(&[("w", &[256], 16, 0)]), "IQ2_XXS is not supported"),
        (with_tensors(&[("w", &[256], 4_000_000_000, 0)]), "unknown ggml type"),
        (with_tensors(&[("v", &[16], 0, 0), ("w", &[8], 0, 32)]), "tensor `v`: overlaps tensor `w`"),
        (with_tensors(&[("w", &[8], 0, 0), ("w", &[8], 0, 32)]), "is there twice"),
        (with_tensors(&[("", &[8], 0, 0)]), "tensor name is empty"),
    ] {
        let message = open_bytes(&bytes).unwrap_err().to_string();
        assert!(message.contains(expected), "{expected}: {message}");
    }
    assert_eq!(open_bytes(&with_tensors(&[("w", &[8, 8], 0, 0)])).unwrap().tensors().len(), 1);
}

#[test]
fn every_truncation_is_an_error() {
    let bytes = valid_bytes();
    for len in 0..bytes.len() {
        assert!(open_bytes(&bytes[..len]).is_err(), "{len} of {} bytes", bytes.len());
    }
    assert!(open_bytes(&bytes).is_ok());
}

#[test]
fn a_file_that_shrinks_is_an_error_at_the_read() {
    let (_dir, path) = build(&llama_metadata(), &[f32_tensor("a", &[8]), f32_tensor("b", &[8])]);
    let file = GgufFile::open(&path).unwrap();
    let len = std::fs::metadata(&path).unwrap().len();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(len - 1).unwrap();
    assert!(file.read("a").is_ok());
    assert!(matches!(file.read("b"), Err(FormatError::Truncated { what, .. }) if what == "b"));
}

#[test]
fn requantizing_keeps_everything_but_the_matrices() {
    let mut metadata = llama_metadata();
    metadata.push(key("general.file_type", Value::U32(1)));
    let tensors = [
        f32_tensor("token_embd.weight", &[10, 64]),
        GgufTensor { name: "blk.0.ffn_up.weight".into(), storage: StorageType::Q4_1, shape: vec![96, 64] },
        f32_tensor("blk.0.attn_norm.weight", &[64]),
    ];
    let (dir, path) = build(&metadata, &tensors);
    let source = GgufFile::open(&path).unwrap();
    let out = dir.path().join("out.gguf");
    requantize_file(&source, &out, StorageType::Q4_0).unwrap();
    let written = GgufFile::open(&out).unwrap();
    assert_eq!(written.metadata().u32("general.file_type").unwrap(), Some(2));
    assert_eq!(written.metadata().u32("llama.block_count").unwrap(), Some(1));
    let storage = |name: &str| written.info(name).unwrap().storage;
    assert_eq!(storage("token_embd.weight"), StorageType::Q4_0);
    assert_eq!(storage("blk.0.ffn_up.weight"), StorageType::Q4_0);
    assert_eq!(storage("blk.0.attn_norm.weight"), StorageType::F32);
    assert_eq!(
        written.read("blk.0.attn_norm.weight").unwrap(),
        source.read("blk.0.attn_norm.weight").unwrap()
    );
    assert!(requantize_file(&source, &out, StorageType::I8).is_err());
    // 64 columns are no whole block of 256.
    assert!(requantize_file(&source, &out, StorageType::Q4_K).is_err());
}

#[test]
fn writing_refuses_what_does_not_fit() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let none: &[(String, Value)] = &[];
    assert!(write(&path, none, &[f32_tensor("w", &[2])], |_| Ok(vec![0; 4])).is_err());
    let boolean = GgufTensor { name: "w".into(), storage: StorageType::Bool, shape: vec![1] };
    assert!(write(&path, none, &[boolean], |_| Ok(vec![0])).is_err());
    assert!(write(&path, none, &[f32_tensor("w", &[usize::MAX, 2])], |_| Ok(vec![])).is_err());
    assert!(write(&path, &[key("general.alignment", Value::U32(64))], &[], |_| Ok(vec![])).is_err());
}
