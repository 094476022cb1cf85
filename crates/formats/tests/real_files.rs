//! The real model file, where an environment variable names it: metadata, layout and conversion of a file that
//! another project wrote, against candle's reader.

use std::path::PathBuf;

use wardrobe_formats::gguf::GgufFile;
use wardrobe_formats::{ModelFiles, RopeScaling, StorageType, convert};

/// The SmolLM2-135M-Instruct Q4_1 GGUF, or a loud skip.
fn smollm2() -> Option<PathBuf> {
    let path = std::env::var_os("WARDROBE_SMOLLM2").map(PathBuf::from);
    if path.is_none() {
        eprintln!("SKIPPED: WARDROBE_SMOLLM2 does not name the SmolLM2-135M-Instruct Q4_1 GGUF file");
    }
    path
}

#[test]
fn smollm2_opens_with_its_known_configuration() {
    let Some(path) = smollm2() else { return };
    let model = ModelFiles::open(&path).unwrap();
    let config = &model.config;
    assert_eq!(config.architecture, "LlamaForCausalLM");
    assert_eq!((config.hidden_size, config.intermediate_size, config.num_layers), (576, 1536, 30));
    assert_eq!((config.num_heads, config.num_kv_heads, config.head_dim), (9, 3, 64));
    assert_eq!((config.vocab_size, config.max_position_embeddings), (49152, 8192));
    assert_eq!((config.rope_theta, &config.rope_scaling), (100_000.0, &RopeScaling::None));
    assert!((config.rms_norm_eps - 1e-5).abs() < 1e-10);
    assert!(config.tie_word_embeddings && !config.attention_bias && !config.mlp_bias);
    assert_eq!((config.bos_token_id, config.eos_token_ids.as_slice()), (Some(1), &[2][..]));
    assert_eq!(model.tensors.tensors().len(), 272);
    assert!(model.tokenizer.chat_template.as_deref().unwrap().contains("<|im_start|>"));
    let metadata = model.gguf_metadata().unwrap();
    assert_eq!(metadata.strings("tokenizer.ggml.tokens").unwrap().unwrap().len(), 49152);
    assert_eq!(model.digest().unwrap(), model.digest().unwrap());
}

/// candle reads the same file with its own parser; ours must give the same numbers, with q and k rows moved as the
/// converter's definition says.
#[test]
fn smollm2_weights_equal_candles() {
    let Some(path) = smollm2() else { return };
    let model = ModelFiles::open(&path).unwrap();
    let mut reader = std::fs::File::open(&path).unwrap();
    let content = candle_core::quantized::gguf_file::Content::read(&mut reader).unwrap();
    let device = candle_core::Device::Cpu;
    for (ours, theirs, heads) in [
        ("model.embed_tokens.weight", "token_embd.weight", None),
        ("model.norm.weight", "output_norm.weight", None),
        ("model.layers.7.self_attn.v_proj.weight", "blk.7.attn_v.weight", None),
        ("model.layers.7.mlp.down_proj.weight", "blk.7.ffn_down.weight", None),
        ("model.layers.7.self_attn.q_proj.weight", "blk.7.attn_q.weight", Some(9)),
        ("model.layers.29.self_attn.k_proj.weight", "blk.29.attn_k.weight", Some(3)),
    ] {
        let info = model.tensors.require(ours).unwrap();
        let bytes = model.tensors.read(ours).unwrap();
        let values = convert::to_f32(info.storage, &bytes, info.numel()).unwrap();
        let tensor = content.tensor(&mut reader, theirs, &device).unwrap().dequantize(&device).unwrap();
        assert_eq!(tensor.dims(), info.shape, "{ours}");
        let expected: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
        // permute: reshape(heads, 2, half, in).swapaxes(1, 2); its inverse swaps the axes back.
        let expected = match heads {
            None => expected,
            Some(heads) => {
                let (rows, cols) = (info.shape[0], info.shape[1]);
                let interleaved =
                    candle_core::Tensor::from_vec(expected, (heads, rows / heads / 2, 2, cols), &device);
                let split = interleaved.unwrap().transpose(1, 2).unwrap().contiguous().unwrap();
                split.flatten_all().unwrap().to_vec1().unwrap()
            }
        };
        assert!(values == expected, "{ours} differs");
    }
}

#[test]
fn smollm2_requantized_reads_back() {
    let Some(path) = smollm2() else { return };
    let source = GgufFile::open(&path).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("q8.gguf");
    wardrobe_formats::gguf::requantize_file(&source, &out, StorageType::Q8_0).unwrap();
    let written = ModelFiles::open(&out).unwrap();
    let original = ModelFiles::open(&path).unwrap();
    assert_eq!(written.config, original.config);
    let name = "model.layers.0.self_attn.q_proj.weight";
    let values = |model: &ModelFiles| {
        let info = model.tensors.require(name).unwrap();
        convert::to_f32(info.storage, &model.tensors.read(name).unwrap(), info.numel()).unwrap()
    };
    assert_eq!(written.tensors.require(name).unwrap().storage, StorageType::Q8_0);
    let (a, b) = (values(&original), values(&written));
    let largest = a.iter().fold(0f32, |m, x| m.max(x.abs()));
    assert!(a.iter().zip(&b).all(|(x, y)| (x - y).abs() <= largest / 127.0));
}

/// Adapters that PEFT itself wrote: every folder under the one that `WARDROBE_ADAPTERS` names.
#[test]
fn adapters_from_peft_open_and_survive_rewriting() {
    use wardrobe_formats::peft::{PeftAdapter, PeftContents, write_peft};

    let Some(root) = std::env::var_os("WARDROBE_ADAPTERS") else {
        eprintln!("SKIPPED: WARDROBE_ADAPTERS does not name a folder of adapters");
        return;
    };
    let out = tempfile::tempdir().unwrap();
    let mut digests = Vec::new();
    for entry in std::fs::read_dir(root).unwrap() {
        let dir = entry.unwrap().path();
        let adapter = PeftAdapter::open(&dir).unwrap();
        assert!(!adapter.modules().is_empty() && !adapter.is_noop(), "{}", dir.display());
        for module in adapter.modules() {
            assert_eq!(module.a.shape()[0], module.rank);
            assert!(module.scale > 0.0);
        }
        let contents = PeftContents {
            config: adapter.config(),
            modules: adapter.modules(),
            embeddings: adapter.embeddings(),
            saved: adapter.saved(),
            rope: None,
            parity: None,
            extra_files: &[],
        };
        let copy = out.path().join(dir.file_name().unwrap());
        write_peft(&copy, &contents, false).unwrap();
        let again = PeftAdapter::open(&copy).unwrap();
        assert_eq!(again.digest(), adapter.digest());
        assert_eq!(again.modules(), adapter.modules());
        eprintln!(
            "{}: {} modules, rank {}, {} bytes, digest {}",
            dir.display(),
            adapter.modules().len(),
            adapter.max_rank(),
            adapter.total_bytes(),
            adapter.digest()
        );
        digests.push(adapter.digest());
    }
    assert!(!digests.is_empty());
    digests.sort();
    digests.dedup();
    assert_eq!(
        digests.len(),
        std::fs::read_dir(std::env::var_os("WARDROBE_ADAPTERS").unwrap()).unwrap().count()
    );
}
