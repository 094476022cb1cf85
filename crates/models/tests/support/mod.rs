//! A small model of the Llama family as a GGUF file, which a test can spoil before it is loaded.
#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::sync::Arc;

use tempfile::TempDir;
use wardrobe_device::cpu::{CpuDevice, CpuOptions};
use wardrobe_device::{Ctx, CtxConfig, Device, StepLimits};
use wardrobe_formats::gguf::{self, GgufTensor, Value};
use wardrobe_formats::{ModelFiles, StorageType, convert};
use wardrobe_models::{Decoder, LoadOptions, Result};

pub const LAYERS: usize = 2;
/// One block of the K formats.
pub const HIDDEN: usize = 256;
const VOCAB: usize = 32;

/// A tensor under its name in the file.
#[derive(Debug, Clone)]
pub struct Tensor {
    pub name: String,
    pub storage: StorageType,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

impl Tensor {
    /// Small numbers that differ.
    pub fn new(name: &str, storage: StorageType, shape: &[usize]) -> Self {
        let numel: usize = shape.iter().product();
        let values: Vec<f32> = (0..numel).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.002).collect();
        let row = shape.last().copied().unwrap();
        let bytes = convert::from_f32(storage, &values, row).unwrap();
        Self { name: name.to_owned(), storage, shape: shape.to_vec(), bytes }
    }
}

/// The model: 2 layers, 4 heads over 2 of keys and values, a tied head, all matrices Q8_0 and all vectors F32.
#[derive(Debug, Clone)]
pub struct TinyModel {
    pub tensors: Vec<Tensor>,
}

impl Default for TinyModel {
    fn default() -> Self {
        let matrix = |name: &str, rows: usize| Tensor::new(name, StorageType::Q8_0, &[rows, HIDDEN]);
        let vector = |name: &str| Tensor::new(name, StorageType::F32, &[HIDDEN]);
        let mut tensors = vec![matrix("token_embd.weight", VOCAB), vector("output_norm.weight")];
        for layer in 0..LAYERS {
            for (part, rows) in [
                ("attn_q", HIDDEN),
                ("attn_k", HIDDEN / 2),
                ("attn_v", HIDDEN / 2),
                ("attn_output", HIDDEN),
                ("ffn_gate", HIDDEN),
                ("ffn_up", HIDDEN),
                ("ffn_down", HIDDEN),
            ] {
                tensors.push(matrix(&format!("blk.{layer}.{part}.weight"), rows));
            }
            for part in ["attn_norm", "ffn_norm"] {
                tensors.push(vector(&format!("blk.{layer}.{part}.weight")));
            }
        }
        Self { tensors }
    }
}

impl TinyModel {
    /// The tensor of this name.
    pub fn tensor(&mut self, name: &str) -> &mut Tensor {
        self.tensors.iter_mut().find(|t| t.name == name).unwrap()
    }

    /// Takes a tensor's place, or adds it.
    pub fn put(&mut self, tensor: Tensor) {
        self.tensors.retain(|t| t.name != tensor.name);
        self.tensors.push(tensor);
    }

    /// Writes the file and opens it.
    pub fn files(&self) -> (TempDir, ModelFiles) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tiny.gguf");
        let number = |key: &str, value: usize| (format!("llama.{key}"), Value::U32(value as u32));
        let metadata = [
            ("general.architecture".to_owned(), Value::String("llama".to_owned())),
            number("block_count", LAYERS),
            number("context_length", 64),
            number("embedding_length", HIDDEN),
            number("feed_forward_length", HIDDEN),
            number("attention.head_count", 4),
            number("attention.head_count_kv", 2),
            ("llama.attention.layer_norm_rms_epsilon".to_owned(), Value::F32(1e-5)),
        ];
        let described: Vec<GgufTensor> = (self.tensors.iter())
            .map(|t| GgufTensor { name: t.name.clone(), storage: t.storage, shape: t.shape.clone() })
            .collect();
        gguf::write(&path, &metadata, &described, |idx| Ok(self.tensors[idx].bytes.clone())).unwrap();
        let files = ModelFiles::open(&path).unwrap();
        (dir, files)
    }

    /// Loads it.
    pub fn load(&self, options: &LoadOptions<'_>) -> Result<Arc<dyn Decoder>> {
        let (_dir, files) = self.files();
        wardrobe_models::load(&mut ctx(), &files, options)
    }
}

/// A context without scratch memory on a CPU device.
pub fn ctx() -> Ctx {
    let device: Arc<dyn Device> = Arc::new(CpuDevice::new(CpuOptions::default()).unwrap());
    let step = StepLimits { max_rows: 1, max_seqs: 1, max_blocks: 1 };
    Ctx::new(device, CtxConfig { arena_bytes: 0, step }).unwrap()
}
