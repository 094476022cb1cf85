//! Folders and files as models come in.

use std::collections::BTreeMap;

use serde_json::json;
use tempfile::{TempDir, tempdir};

use super::*;
use crate::gguf::{self, GgufTensor};
use crate::safetensors::{self, TensorData};
use crate::storage::StorageType;

const CONFIG: &str = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
    "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 10,
    "eos_token_id": 2}"#;

fn safetensors_folder(fill: u8) -> TempDir {
    let dir = tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), CONFIG).unwrap();
    let bytes = vec![fill; 2560];
    let embed = TensorData {
        name: "model.embed_tokens.weight",
        storage: StorageType::F32,
        shape: &[10, 64],
        bytes: &bytes,
    };
    safetensors::write(&dir.path().join(SINGLE_FILE), &[embed], &BTreeMap::new()).unwrap();
    dir
}

fn write_gguf(path: &Path, template: Option<&str>) {
    let template = template.map(|text| ("tokenizer.chat_template", gguf::Value::String(text.to_owned())));
    write_gguf_with(path, template.as_slice());
}

fn write_gguf_with(path: &Path, more: &[(&str, gguf::Value)]) {
    let mut metadata: Vec<(String, gguf::Value)> = [
        ("general.architecture", gguf::Value::String("llama".into())),
        ("llama.block_count", gguf::Value::U32(1)),
        ("llama.context_length", gguf::Value::U32(128)),
        ("llama.embedding_length", gguf::Value::U32(64)),
        ("llama.feed_forward_length", gguf::Value::U32(96)),
        ("llama.attention.head_count", gguf::Value::U32(4)),
        ("llama.attention.layer_norm_rms_epsilon", gguf::Value::F32(1e-5)),
    ]
    .map(|(k, v)| (k.to_owned(), v))
    .to_vec();
    metadata.extend(more.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
    let embed =
        GgufTensor { name: "token_embd.weight".into(), storage: StorageType::F32, shape: vec![10, 64] };
    gguf::write(path, &metadata, &[embed], |_| Ok(vec![1; 2560])).unwrap();
}

#[test]
fn a_model_goes_by_the_names_of_its_files() {
    let source = safetensors_folder(1);
    let names_at = |parts: &[&str]| {
        let root = tempfile::tempdir().unwrap();
        let folder = parts.iter().fold(root.path().to_owned(), |path, part| path.join(part));
        std::fs::create_dir_all(&folder).unwrap();
        for entry in std::fs::read_dir(source.path()).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
        }
        ModelFiles::open(&folder).unwrap().names()
    };
    assert_eq!(names_at(&["Llama-3.2-1B"]), ["Llama-3.2-1B"]);
    let commit = "12fd25f77366fa6b3b4b768ec3050bf629380bac";
    assert_eq!(names_at(&["models--org--Tiny", "snapshots", commit]), ["org--Tiny"]);
}

#[test]
fn a_hugging_face_folder() {
    let dir = safetensors_folder(1);
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write("generation_config.json", r#"{"eos_token_id": [3]}"#);
    write("tokenizer.json", r#"{"version": "1.0"}"#);
    write("tokenizer_config.json", r#"{"chat_template": "old", "bos_token": "<s>"}"#);
    let model = ModelFiles::open(dir.path()).unwrap();
    assert_eq!(model.config.eos_token_ids, [3, 2]);
    assert_eq!(model.tensors.read("model.embed_tokens.weight").unwrap().len(), 2560);
    assert!(model.gguf_metadata().is_none());
    assert_eq!(model.tokenizer.chat_template.as_deref(), Some("old"));
    assert_eq!(model.tokenizer.tokenizer_config.as_ref().unwrap()["bos_token"], "<s>");
    assert_eq!(model.tokenizer.read_tokenizer_json().unwrap().unwrap(), br#"{"version": "1.0"}"#);

    write("chat_template.jinja", "new");
    let list = json!({"chat_template": [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]});
    write("tokenizer_config.json", &list.to_string());
    let templates = || {
        let files = ModelFiles::open(dir.path()).unwrap().tokenizer;
        (files.chat_template, files.named_chat_templates.into_iter().collect::<Vec<_>>())
    };
    let named = |name: &str, text: &str| vec![(name.to_owned(), text.to_owned())];
    // Files come in the place of all that the configuration has.
    assert_eq!(templates(), (Some("new".to_owned()), vec![]));
    std::fs::create_dir(dir.path().join("additional_chat_templates")).unwrap();
    write("additional_chat_templates/tool_use.jinja", "file");
    write("additional_chat_templates/README.md", "no template");
    assert_eq!(templates(), (Some("new".to_owned()), named("tool_use", "file")));
    let companions = ModelFiles::open(dir.path()).unwrap().companion_files().unwrap();
    assert!(companions.contains(&("additional_chat_templates/tool_use.jinja".to_owned(), b"file".to_vec())));
    std::fs::remove_file(dir.path().join("chat_template.jinja")).unwrap();
    assert_eq!(templates(), (Some("d".to_owned()), named("tool_use", "file")));
    for idx in 0..40 {
        write(&format!("additional_chat_templates/{idx}.jinja"), "one of many");
    }
    let message = ModelFiles::open(dir.path()).unwrap_err().to_string();
    assert!(message.contains("chat templates"), "{message}");
    std::fs::remove_dir_all(dir.path().join("additional_chat_templates")).unwrap();
    assert_eq!(templates(), (Some("d".to_owned()), named("tool_use", "t")));
    for bad in [
        json!({"chat_template": 1}),
        json!({"chat_template": [{"name": "x"}]}),
        json!({"chat_template": ["x"]}),
    ] {
        write("tokenizer_config.json", &bad.to_string());
        let message = ModelFiles::open(dir.path()).unwrap_err().to_string();
        assert!(message.contains("key `chat_template`"), "{message}");
    }
}

#[test]
fn gguf_files_alone_and_in_folders() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    write_gguf(&path, Some("from gguf"));
    let model = ModelFiles::open(&path).unwrap();
    assert_eq!(model.tokenizer.chat_template.as_deref(), Some("from gguf"));
    assert_eq!(model.gguf_metadata().unwrap().u64("llama.block_count").unwrap(), Some(1));
    assert!(model.tokenizer.read_tokenizer_json().unwrap().is_none());

    // Named ones.
    let other = tempdir().unwrap();
    let named = other.path().join("named.gguf");
    write_gguf_with(
        &named,
        &[
            ("tokenizer.chat_template", gguf::Value::String("default".into())),
            ("tokenizer.chat_template.tool_use", gguf::Value::String("tools".into())),
            (
                "tokenizer.chat_templates",
                gguf::Value::Array(gguf::Array::String(vec!["tool_use".into(), "gone".into()])),
            ),
        ],
    );
    let files = ModelFiles::open(&named).unwrap().tokenizer;
    assert_eq!(files.chat_template.as_deref(), Some("default"));
    assert_eq!(
        files.named_chat_templates.into_iter().collect::<Vec<_>>(),
        [("tool_use".to_owned(), "tools".to_owned())]
    );

    let in_folder = ModelFiles::open(dir.path()).unwrap();
    assert_eq!(in_folder.digest().unwrap(), model.digest().unwrap());
    std::fs::write(dir.path().join("chat_template.jinja"), "beside").unwrap();
    let beside = ModelFiles::open(dir.path()).unwrap();
    assert_eq!(beside.tokenizer.chat_template.as_deref(), Some("beside"));

    write_gguf(&dir.path().join("n.GGUF"), None);
    let message = ModelFiles::open(dir.path()).unwrap_err().to_string();
    assert!(message.contains("several GGUF files (m.gguf, n.GGUF)"), "{message}");
}

#[test]
fn digests_follow_content_and_manifests_structure() {
    let (a, b, c) = (safetensors_folder(1), safetensors_folder(1), safetensors_folder(2));
    let open = |dir: &TempDir| ModelFiles::open(dir.path()).unwrap();
    let digest = |dir: &TempDir| open(dir).digest().unwrap();
    assert_eq!(digest(&a), digest(&b));
    assert_ne!(digest(&a), digest(&c));
    let manifest = |dir: &TempDir| open(dir).manifest_digest().unwrap();
    assert_eq!(manifest(&a), manifest(&c));
    std::fs::write(
        c.path().join("config.json"),
        CONFIG.replace("\"eos_token_id\": 2", "\"eos_token_id\": 3"),
    )
    .unwrap();
    assert_ne!(manifest(&a), manifest(&c));
    let gone = open(&a);
    std::fs::remove_file(a.path().join(SINGLE_FILE)).unwrap();
    assert!(gone.digest().is_err());
}

#[test]
fn what_is_missing_or_unreadable_is_told() {
    let message = |path: &Path| ModelFiles::open(path).unwrap_err().to_string();
    let dir = tempdir().unwrap();
    assert!(message(&dir.path().join("nowhere")).contains("model not found"));
    assert!(message(dir.path()).contains("model.safetensors"));
    std::fs::write(dir.path().join("pytorch_model.bin"), b"").unwrap();
    assert!(message(dir.path()).contains("pickled"));
    std::fs::write(dir.path().join("x.txt"), b"hello world").unwrap();
    assert!(message(&dir.path().join("x.txt")).contains("not a GGUF file"));

    let dir = safetensors_folder(1);
    std::fs::remove_file(dir.path().join("config.json")).unwrap();
    assert!(message(dir.path()).contains("config.json not found"));
    for (text, expected) in [("{", "invalid JSON"), ("[1]", "not a JSON object")] {
        std::fs::write(dir.path().join("config.json"), text).unwrap();
        assert!(message(dir.path()).contains(expected));
    }
    std::fs::write(dir.path().join("config.json"), [0xff, 0xfe]).unwrap();
    assert!(message(dir.path()).contains("not UTF-8"));
    std::fs::write(dir.path().join("config.json"), " ".repeat(5 << 20)).unwrap();
    assert!(message(dir.path()).contains("over the limit"));
}

#[cfg(unix)]
#[test]
fn a_pipe_is_refused_and_not_waited_for() {
    let dir = safetensors_folder(1);
    let path = dir.path().join("tokenizer_config.json");
    let made = std::process::Command::new("mkfifo").arg(&path).status();
    if !made.is_ok_and(|s| s.success()) {
        eprintln!("SKIPPED: no mkfifo");
        return;
    }
    assert!(ModelFiles::open(dir.path()).unwrap_err().to_string().contains("not a regular file"));
}
