//! Headers that are right, against the reference implementation; and headers that are wrong in every way.

use std::collections::{BTreeMap, HashMap};

use tempfile::tempdir;

use super::*;
use crate::storage::StorageType;

/// A file from a header's text and `data_len` bytes.
fn file(dir: &Path, header: &str, data_len: usize) -> PathBuf {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend((0..data_len).map(|i| i as u8));
    let path = dir.join("model.safetensors");
    std::fs::write(&path, bytes).unwrap();
    path
}

fn tensor<'a>(name: &'a str, shape: &'a [usize], bytes: &'a [u8]) -> TensorData<'a> {
    TensorData { name, storage: StorageType::F32, shape, bytes }
}

#[test]
fn reads_what_the_reference_wrote() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    let (a, b): (Vec<u8>, Vec<u8>) = ((0..48).collect(), (100..106).collect());
    let view = |dtype, shape: &[usize], data| {
        safetensors::tensor::TensorView::new(dtype, shape.to_vec(), data).unwrap()
    };
    let tensors = vec![
        ("a", view(safetensors::Dtype::F32, &[4, 3], a.as_slice())),
        ("b", view(safetensors::Dtype::BF16, &[3], b.as_slice())),
        ("empty", view(safetensors::Dtype::F16, &[0, 3], &[])),
        ("scalar", view(safetensors::Dtype::U8, &[], &a[..1])),
    ];
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize_to_file(tensors, Some(metadata), &path).unwrap();

    let file = SafetensorsFile::open(&path).unwrap();
    let names: Vec<&str> = file.tensors().iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names, ["a", "b", "empty", "scalar"]);
    assert_eq!(file.metadata().get("format").unwrap(), "pt");
    assert_eq!(file.read("a").unwrap(), a);
    assert_eq!(file.read_rows("a", 1..3).unwrap(), a[12..36]);
    assert_eq!(file.read("b").unwrap(), b);
    assert_eq!(file.read("scalar").unwrap(), [0]);
    assert!(file.read("empty").unwrap().is_empty());
    let info = file.info("b").unwrap();
    assert_eq!((info.storage, info.shape.as_slice()), (StorageType::BF16, &[3][..]));
    assert!(file.info("c").is_none());
    assert!(matches!(file.read("c"), Err(FormatError::MissingTensor { tensor, .. }) if tensor == "c"));
    for rows in [3..5, 5..5, Range { start: 2, end: 1 }] {
        assert!(matches!(file.read_rows("a", rows), Err(FormatError::Tensor { .. })));
    }
}

#[test]
fn the_reference_reads_what_was_written() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    let bytes: Vec<u8> = (0..24).collect();
    let half = TensorData { name: "z", storage: StorageType::F16, shape: &[3], bytes: &bytes[..6] };
    let metadata = BTreeMap::from([("k".to_owned(), "v".to_owned())]);
    write(&path, &[half, tensor("b", &[2, 3], &bytes)], &metadata).unwrap();
    let content = std::fs::read(&path).unwrap();
    let read = safetensors::SafeTensors::deserialize(&content).unwrap();
    assert_eq!(read.tensor("b").unwrap().data(), bytes);
    assert_eq!(read.tensor("b").unwrap().shape(), [2, 3]);
    assert_eq!(read.tensor("z").unwrap().data(), &bytes[..6]);
    assert_eq!(u64::from_le_bytes(content[..8].try_into().unwrap()) % 8, 0);
    let ours = SafetensorsFile::open(&path).unwrap();
    assert_eq!(ours.read("z").unwrap(), bytes[..6]);
    assert_eq!(ours.metadata(), &metadata);
}

#[test]
fn writing_refuses_what_does_not_fit() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    let none = BTreeMap::new();
    let quantized = TensorData { name: "q", storage: StorageType::Q4_0, shape: &[32], bytes: &[0; 18] };
    assert!(write(&path, &[quantized], &none).is_err());
    assert!(write(&path, &[tensor("a", &[2], &[0; 4])], &none).is_err());
    assert!(write(&path, &[tensor("a", &[1], &[0; 4]), tensor("a", &[1], &[0; 4])], &none).is_err());
    assert!(write(&path, &[tensor("__metadata__", &[1], &[0; 4])], &none).is_err());
    assert!(write(&path, &[tensor("a", &[usize::MAX, 2], &[0; 4])], &none).is_err());
}

#[test]
fn lying_headers_are_named() {
    let entry = |dtype: &str, shape: &str, offsets: &str| {
        format!(r#"{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}"#)
    };
    let f32_at = |shape: &str, offsets: &str| entry("F32", shape, offsets);
    let cases: Vec<(String, usize, &str)> = vec![
        (format!(r#"{{"w":{}}}"#, f32_at("[4]", "[0,12]")), 12, "needs 16 bytes"),
        (format!(r#"{{"w":{}}}"#, f32_at("[4]", "[0,16]")), 12, "truncated while reading tensor `w`"),
        (format!(r#"{{"w":{}}}"#, f32_at("[4]", "[16,0]")), 16, "run backwards"),
        (format!(r#"{{"w":{}}}"#, f32_at("[4]", "[4,20]")), 20, "hole"),
        (format!(r#"{{"w":{}}}"#, f32_at("[4]", "[0,16]")), 20, "4 bytes after the last tensor"),
        (format!(r#"{{"w":{}}}"#, f32_at("[9223372036854775807,4]", "[0,16]")), 16, "overflows"),
        (format!(r#"{{"w":{}}}"#, f32_at("[4611686018427387904]", "[0,0]")), 0, "overflows"),
        (format!(r#"{{"w":{}}}"#, f32_at("[-1]", "[0,4]")), 4, "invalid JSON"),
        (format!(r#"{{"w":{}}}"#, f32_at("[1.5]", "[0,4]")), 4, "invalid JSON"),
        (
            format!(r#"{{"w":{}}}"#, f32_at("[4]", "[18446744073709551600,18446744073709551615]")),
            16,
            "needs 16 bytes",
        ),
        (
            format!(r#"{{"w":{}}}"#, f32_at("[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]", "[0,4]")),
            4,
            "17 dimensions",
        ),
        (format!(r#"{{"w":{}}}"#, entry("F4", "[2]", "[0,1]")), 1, "\"F4\" is not supported"),
        (format!(r#"{{"w":{}}}"#, entry("Q4_0", "[32]", "[0,18]")), 18, "\"Q4_0\" is not supported"),
        (
            format!(r#"{{"v":{},"w":{}}}"#, f32_at("[2]", "[0,8]"), f32_at("[2]", "[4,12]")),
            12,
            "tensor `w`: overlaps",
        ),
        (
            format!(r#"{{"w":{},"w":{}}}"#, f32_at("[2]", "[0,8]"), f32_at("[2]", "[8,16]")),
            16,
            "tensor `w`: is there twice",
        ),
        (r#"{"w":{"dtype":"F32","shape":[1]}}"#.to_owned(), 4, "data_offsets"),
        (r#"[]"#.to_owned(), 0, "invalid JSON"),
        (r#"{"#.to_owned(), 0, "invalid JSON"),
        ("{\"w\":".to_owned() + &"[".repeat(100_000), 0, "invalid JSON"),
    ];
    let dir = tempdir().unwrap();
    for (header, data_len, expected) in cases {
        let path = file(dir.path(), &header, data_len);
        let message = SafetensorsFile::open(&path).unwrap_err().to_string();
        let shown = crate::error::shorten(&header);
        assert!(message.contains(expected), "{shown}: {message}");
        assert!(message.contains("model.safetensors"), "{message}");
    }
}

#[test]
fn header_lengths_are_bounded_by_the_file() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    for (content, expected) in [
        (vec![], "truncated while reading header length"),
        (vec![1, 2, 3], "truncated while reading header length"),
        (u64::MAX.to_le_bytes().to_vec(), "over the limit of 100000000"),
        (100_000_001u64.to_le_bytes().to_vec(), "over the limit"),
        (99_999_999u64.to_le_bytes().to_vec(), "truncated while reading header"),
        ([3u64.to_le_bytes().as_slice(), b"{}"].concat(), "truncated while reading header"),
        ([2u64.to_le_bytes().as_slice(), &[0xff, 0xfe]].concat(), "invalid JSON"),
    ] {
        std::fs::write(&path, content).unwrap();
        let message = SafetensorsFile::open(&path).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
    std::fs::write(&path, [2u64.to_le_bytes().as_slice(), b"{}"].concat()).unwrap();
    assert!(SafetensorsFile::open(&path).unwrap().tensors().is_empty());
}

#[test]
fn a_file_that_shrinks_is_an_error_at_the_read() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    write(&path, &[tensor("a", &[4], &[7; 16]), tensor("b", &[4], &[8; 16])], &BTreeMap::new()).unwrap();
    let opened = SafetensorsFile::open(&path).unwrap();
    let len = std::fs::metadata(&path).unwrap().len();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(len - 20).unwrap();
    match opened.read("b").unwrap_err() {
        FormatError::Truncated { what, expected, actual, .. } => {
            assert_eq!((what.as_str(), expected, actual), ("b", len, len - 20));
        }
        other => panic!("{other}"),
    }
    assert!(opened.read_rows("a", 0..3).is_ok());
}

/// Two shards with one tensor each, and the index text that `map` gives.
fn sharded(dir: &Path, map: &str) -> Result<SafetensorsFile> {
    for (shard, name) in [("one.safetensors", "a"), ("two.safetensors", "b")] {
        write(&dir.join(shard), &[tensor(name, &[1], &[9; 4])], &BTreeMap::new()).unwrap();
    }
    std::fs::write(dir.join(INDEX_FILE), format!(r#"{{"metadata":{{"total_size":8}},"weight_map":{map}}}"#))
        .unwrap();
    SafetensorsFile::open_folder(dir)
}

#[test]
fn shards_read_as_one() {
    let dir = tempdir().unwrap();
    let model = sharded(dir.path(), r#"{"a":"one.safetensors","b":"two.safetensors"}"#).unwrap();
    assert_eq!(model.tensors().len(), 2);
    assert_eq!(model.read("b").unwrap(), [9; 4]);
    assert_eq!(model.files().count(), 2);
}

#[test]
fn wrong_indices_are_refused() {
    let outside = tempdir().unwrap();
    write(&outside.path().join("o.safetensors"), &[tensor("b", &[1], &[9; 4])], &BTreeMap::new()).unwrap();
    let absolute = outside.path().join("o.safetensors").display().to_string();
    let cases: Vec<(String, &str)> = vec![
        (r#"{"a":"one.safetensors"}"#.into(), ""),
        (r#"{"a":"one.safetensors","b":"one.safetensors"}"#.into(), "tensor `b` is missing"),
        (r#"{"a":"one.safetensors","b":"three.safetensors"}"#.into(), "three.safetensors not found"),
        (
            r#"{"a":"one.safetensors","b":"two.safetensors","c":"two.safetensors"}"#.into(),
            "tensor `c` is missing",
        ),
        (r#"{"a":"two.safetensors","b":"one.safetensors"}"#.into(), "but the index places it in"),
        (r#"{"a":"one.safetensors","a":"two.safetensors"}"#.into(), "is in two shards"),
        (r#"{"a":"../one.safetensors"}"#.into(), "leads outside"),
        (r#"{"a":"x/../../one.safetensors"}"#.into(), "leads outside"),
        (r#"{"a":"./one.safetensors"}"#.into(), "leads outside"),
        (r#"{"a":""}"#.into(), "leads outside"),
        (r#"{"a":"..\\one.safetensors"}"#.into(), "leads outside"),
        (format!(r#"{{"a":"{absolute}"}}"#), "leads outside"),
        (r#"{"a":"one.bin"}"#.into(), "unsupported"),
        ("{}".into(), "weight_map is empty"),
        ("[]".into(), "invalid JSON"),
    ];
    for (map, expected) in cases {
        let dir = tempdir().unwrap();
        let result = sharded(dir.path(), &map);
        if expected.is_empty() {
            assert_eq!(result.unwrap().tensors().len(), 1);
        } else {
            let message = result.unwrap_err().to_string();
            assert!(message.contains(expected), "{map}: {message}");
        }
    }
}

#[test]
fn a_tensor_in_two_shards_is_refused() {
    let dir = tempdir().unwrap();
    sharded(dir.path(), r#"{"a":"one.safetensors","b":"two.safetensors"}"#).unwrap();
    let both = [tensor("a", &[1], &[1; 4]), tensor("b", &[1], &[2; 4])];
    write(&dir.path().join("two.safetensors"), &both, &BTreeMap::new()).unwrap();
    let message = SafetensorsFile::open_folder(dir.path()).unwrap_err().to_string();
    assert!(message.contains("tensor `a`") && message.contains("one.safetensors"), "{message}");
}

#[cfg(unix)]
#[test]
fn links_lead_nowhere_but_into_the_folder_and_the_cache() {
    use std::os::unix::fs::symlink;

    let root = tempdir().unwrap();
    let one = |path: &Path| write(path, &[tensor("a", &[1], &[9; 4])], &BTreeMap::new()).unwrap();
    one(&root.path().join("secret.safetensors"));
    let model = root.path().join("model");
    std::fs::create_dir(&model).unwrap();
    symlink("../secret.safetensors", model.join(SINGLE_FILE)).unwrap();
    let message = SafetensorsFile::open_folder(&model).unwrap_err().to_string();
    assert!(message.contains("leads outside"), "{message}");
    std::fs::remove_file(model.join(SINGLE_FILE)).unwrap();

    one(&model.join("real.safetensors"));
    symlink("real.safetensors", model.join(SINGLE_FILE)).unwrap();
    assert!(SafetensorsFile::open_folder(&model).is_ok());
    std::fs::remove_file(model.join(SINGLE_FILE)).unwrap();
    symlink("nowhere.safetensors", model.join(SINGLE_FILE)).unwrap();
    assert!(matches!(SafetensorsFile::open_folder(&model), Err(FormatError::NotFound { .. })));

    // The layout of the Hugging Face cache.
    let repo = root.path().join("models--x--y");
    let snapshot = repo.join("snapshots/abc");
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::create_dir(repo.join("blobs")).unwrap();
    one(&repo.join("blobs/123"));
    symlink("../../blobs/123", snapshot.join(SINGLE_FILE)).unwrap();
    assert!(SafetensorsFile::open_folder(&snapshot).is_ok());
    std::fs::remove_file(snapshot.join(SINGLE_FILE)).unwrap();
    symlink("../../../secret.safetensors", snapshot.join(SINGLE_FILE)).unwrap();
    assert!(matches!(SafetensorsFile::open_folder(&snapshot), Err(FormatError::Escapes { .. })));
}

#[test]
fn folders_and_missing_files_are_told() {
    let dir = tempdir().unwrap();
    assert!(matches!(SafetensorsFile::open_folder(dir.path()), Err(FormatError::NotFound { .. })));
    assert!(matches!(SafetensorsFile::open(dir.path()), Err(FormatError::Malformed { .. })));
    assert!(matches!(SafetensorsFile::open(&dir.path().join("no")), Err(FormatError::Io { .. })));
}
