//! What several tests share: a reader for a GGUF file's metadata, a tiny vocabulary, loud skipping.
#![allow(dead_code, clippy::unwrap_used, clippy::panic)]

use std::io::{BufReader, Read, Write};
use wardrobe_text::GgufVocab;

/// Says on standard error, past the test harness's capture, that a test did not run.
pub fn skip(test: &str, why: &str) {
    std::io::stderr().write_all(format!("SKIPPED {test}: {why}\n").as_bytes()).unwrap();
}

/// The value of an environment variable, or a loud skip.
pub fn variable(test: &str, name: &str) -> Option<String> {
    let value = std::env::var(name).ok();
    if value.is_none() {
        skip(test, &format!("set {name} to run it"));
    }
    value
}

/// A metadata value of the types that tokenizers use.
#[derive(Debug)]
pub enum Value {
    Integer(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    List(Vec<Value>),
}

impl Value {
    pub fn text(&self) -> String {
        match self {
            Value::Text(text) => text.clone(),
            other => panic!("{other:?} is no text"),
        }
    }

    fn integer(&self) -> i64 {
        match self {
            Value::Integer(number) => *number,
            other => panic!("{other:?} is no integer"),
        }
    }

    fn list(self) -> Vec<Value> {
        match self {
            Value::List(list) => list,
            other => panic!("{other:?} is no list"),
        }
    }
}

struct Reader(BufReader<std::fs::File>);

impl Reader {
    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.0.read_exact(&mut bytes).unwrap();
        bytes
    }

    fn text(&mut self) -> String {
        let length = u64::from_le_bytes(self.bytes());
        let mut bytes = vec![0; length as usize];
        self.0.read_exact(&mut bytes).unwrap();
        String::from_utf8(bytes).unwrap()
    }

    fn value(&mut self, kind: u32) -> Value {
        match kind {
            0 => Value::Integer(u8::from_le_bytes(self.bytes()).into()),
            1 => Value::Integer(i8::from_le_bytes(self.bytes()).into()),
            2 => Value::Integer(u16::from_le_bytes(self.bytes()).into()),
            3 => Value::Integer(i16::from_le_bytes(self.bytes()).into()),
            4 => Value::Integer(u32::from_le_bytes(self.bytes()).into()),
            5 => Value::Integer(i32::from_le_bytes(self.bytes()).into()),
            6 => Value::Float(f32::from_le_bytes(self.bytes()).into()),
            7 => Value::Bool(self.bytes::<1>()[0] != 0),
            8 => Value::Text(self.text()),
            9 => {
                let kind = u32::from_le_bytes(self.bytes());
                let length = u64::from_le_bytes(self.bytes());
                Value::List((0..length).map(|_| self.value(kind)).collect())
            }
            10 => Value::Integer(u64::from_le_bytes(self.bytes()) as i64),
            11 => Value::Integer(i64::from_le_bytes(self.bytes())),
            12 => Value::Float(f64::from_le_bytes(self.bytes())),
            other => panic!("metadata type {other}"),
        }
    }
}

/// The metadata of a trusted GGUF file.
pub fn gguf_metadata(path: &str) -> std::collections::BTreeMap<String, Value> {
    let mut reader = Reader(BufReader::new(std::fs::File::open(path).unwrap()));
    assert_eq!(&reader.bytes::<4>(), b"GGUF");
    let _version: [u8; 4] = reader.bytes();
    let _tensors: [u8; 8] = reader.bytes();
    let count = u64::from_le_bytes(reader.bytes());
    (0..count)
        .map(|_| {
            let key = reader.text();
            let kind = u32::from_le_bytes(reader.bytes());
            (key, reader.value(kind))
        })
        .collect()
}

/// The vocabulary of a trusted GGUF file, and its chat template.
pub fn gguf_vocab(path: &str) -> (GgufVocab, Option<String>) {
    let mut metadata = gguf_metadata(path);
    let mut take = |key: &str| metadata.remove(&format!("tokenizer.{key}"));
    let integers = |list: Vec<Value>| list.iter().map(|value| value.integer() as i32).collect();
    let texts = |list: Vec<Value>| list.iter().map(Value::text).collect();
    let id = |value: Option<Value>| value.map(|value| value.integer() as u32);
    let flag = |value: Option<Value>| value.map(|value| matches!(value, Value::Bool(true)));
    let vocab = GgufVocab {
        model: take("ggml.model").unwrap().text(),
        pre: take("ggml.pre").map(|value| value.text()),
        tokens: texts(take("ggml.tokens").unwrap().list()),
        scores: take("ggml.scores").map(|value| {
            value.list().iter().map(|v| if let Value::Float(f) = v { *f as f32 } else { 0.0 }).collect()
        }),
        token_types: integers(take("ggml.token_type").unwrap().list()),
        merges: take("ggml.merges").map(|value| texts(value.list())).unwrap_or_default(),
        bos_id: id(take("ggml.bos_token_id")),
        eos_id: id(take("ggml.eos_token_id")),
        eot_id: id(take("ggml.eot_token_id")),
        unk_id: id(take("ggml.unknown_token_id")),
        pad_id: id(take("ggml.padding_token_id")),
        add_bos: flag(take("ggml.add_bos_token")),
        add_eos: flag(take("ggml.add_eos_token")),
        add_space_prefix: flag(take("ggml.add_space_prefix")),
    };
    (vocab, take("chat_template").map(|value| value.text()))
}

/// The character that stands for a byte in GPT-2's spelling.
pub fn byte_character(byte: u8) -> char {
    match byte {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
        0..=0x20 => char::from_u32(0x100 + u32::from(byte)).unwrap(),
        0x7f..=0xa0 => char::from_u32(0x121 + u32::from(byte) - 0x7f).unwrap(),
        0xad => '\u{143}',
    }
}

/// A byte-level vocabulary: two control tokens, a user-defined one, all bytes and a few merges.
pub fn byte_level_vocab() -> GgufVocab {
    let mut tokens: Vec<String> = ["<|start|>", "<|end|>", "<tool>"].map(String::from).into();
    let mut token_types = vec![3, 3, 4];
    tokens.extend((0..=255).map(|byte| byte_character(byte).to_string()));
    let merges: Vec<String> = [
        "t h",
        "h e",
        "th e",
        "\u{120} the",
        "i n",
        "a n",
        "an d",
        "\u{120} and",
        "l l",
        "he ll",
        "hell o",
        "\u{120} \u{120}",
        "Ã ©",
        "1 2",
    ]
    .map(String::from)
    .into();
    tokens.extend(merges.iter().map(|rule| rule.replace(' ', "")));
    token_types.resize(tokens.len(), 1);
    GgufVocab {
        model: "gpt2".into(),
        pre: Some("smollm".into()),
        tokens,
        token_types,
        merges,
        bos_id: Some(0),
        eos_id: Some(1),
        ..GgufVocab::default()
    }
}

/// A SentencePiece vocabulary: unknown, two control tokens, all bytes, letters and a few pieces.
pub fn sentencepiece_vocab() -> GgufVocab {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).into();
    let mut token_types = vec![2, 3, 3];
    tokens.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    token_types.resize(tokens.len(), 6);
    let pieces = [
        "\u{2581}t",
        "he",
        "\u{2581}the",
        "in",
        "\u{2581}\u{2581}",
        "an",
        "\u{2581}and",
        "and",
        "ll",
        "hello",
        "llo",
        "hellollo",
        "\u{2581}he",
        "h\u{e9}",
    ];
    tokens.extend(pieces.map(String::from));
    tokens.extend("\u{2581}abcdefghijklmnopqrstuvwxyz\u{e9}".chars().map(String::from));
    token_types.resize(tokens.len(), 1);
    let scores = (0..tokens.len()).map(|id| if id < 259 { 0.0 } else { 259.0 - id as f32 }).collect();
    GgufVocab {
        model: "llama".into(),
        tokens,
        token_types,
        scores: Some(scores),
        bos_id: Some(1),
        eos_id: Some(2),
        unk_id: Some(0),
        ..GgufVocab::default()
    }
}
