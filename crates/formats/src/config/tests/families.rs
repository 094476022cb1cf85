//! Configurations of the architectures beside Llama's, as their releases have them.

use super::*;

fn of(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// Qwen2.5-7B-Instruct's shape.
fn qwen2() -> Value {
    of(
        r#"{"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944,
        "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064,
        "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "max_position_embeddings": 32768, "max_window_layers": 28,
        "sliding_window": 131072, "use_sliding_window": false, "tie_word_embeddings": false, "hidden_act": "silu"}"#,
    )
}

/// Pythia-1.4B's.
fn pythia() -> Value {
    of(r#"{"architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox", "hidden_size": 2048,
        "intermediate_size": 8192, "num_hidden_layers": 24, "num_attention_heads": 16, "vocab_size": 50304,
        "layer_norm_eps": 1e-05, "rotary_emb_base": 10000, "rotary_pct": 0.25, "max_position_embeddings": 2048,
        "use_parallel_residual": true, "tie_word_embeddings": false, "hidden_act": "gelu", "bos_token_id": 0,
        "eos_token_id": 0}"#)
}

/// Gemma-2-2B's.
fn gemma2() -> Value {
    of(
        r#"{"architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "hidden_size": 2304, "intermediate_size": 9216,
        "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
        "vocab_size": 256000, "rms_norm_eps": 1e-06, "rope_theta": 10000.0, "max_position_embeddings": 8192,
        "sliding_window": 4096, "query_pre_attn_scalar": 256, "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0, "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"}"#,
    )
}

/// Phi-3-mini-128k's, with fewer factors than its 48.
fn phi3() -> Value {
    of(
        r#"{"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "hidden_size": 32, "intermediate_size": 8192,
        "num_hidden_layers": 32, "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 32064,
        "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096, "sliding_window": 262144, "tie_word_embeddings": false,
        "rope_scaling": {"type": "su", "short_factor": [1.0, 1.05, 1.1, 2.0], "long_factor": [1.0, 2.0, 20.0, 64.0]}}"#,
    )
}

#[test]
fn releases() {
    let c = read(&qwen2(), None).unwrap();
    assert_eq!(
        (c.head_dim, c.attention_bias, c.sliding_window, c.tie_word_embeddings),
        (128, true, None, false)
    );
    let windowed = with(with(qwen2(), "use_sliding_window", json!(true)), "max_window_layers", json!(21));
    let c = read(&windowed, None).unwrap();
    assert_eq!((c.window(20), c.window(21), c.window(27)), (None, Some(131_072), Some(131_072)));

    let qwen3 =
        with(with(qwen2(), "architectures", json!(["Qwen3ForCausalLM"])), "model_type", json!("qwen3"));
    let c = read(&qwen3, None).unwrap();
    assert_eq!((c.head_dim, c.attention_bias, c.rotary_dim()), (128, false, 128));

    let c = read(&pythia(), None).unwrap();
    assert_eq!((c.head_dim, c.rotary_dim(), c.num_kv_heads, c.hidden_act), (128, 32, 16, HiddenAct::Gelu));
    assert!(c.attention_bias && c.mlp_bias && c.parallel_residual);
    assert_eq!((c.rms_norm_eps, c.rope_theta), (1e-5, 10_000.0));

    let c = read(&gemma2(), None).unwrap();
    assert_eq!((c.query_scalar, c.attention_softcap, c.logit_softcap), (Some(256.0), Some(50.0), Some(30.0)));
    assert_eq!((c.window(0), c.window(1), c.window(24)), (Some(4096), None, Some(4096)));
    assert!(c.tie_word_embeddings && c.hidden_act == HiddenAct::GeluTanh);
    assert_eq!(c.attention_scale(), 1.0 / 16.0);
    let uncapped = with(gemma2(), "attn_logit_softcapping", Value::Null);
    assert_eq!(read(&uncapped, None).unwrap().attention_softcap, None);

    let c = read(&phi3(), None).unwrap();
    let RopeScaling::LongRope { short, long, original_max_position, attention_factor } = c.rope_scaling
    else {
        panic!("{:?}", c.rope_scaling)
    };
    assert_eq!((short.len(), long[3], original_max_position), (4, 64.0, 4096));
    // sqrt(1 + ln(32) / ln(4096)).
    assert!((attention_factor - 1.190_238_071_423_88).abs() < 1e-9, "{attention_factor}");
}

#[test]
fn what_is_wrong_is_named() {
    for (config, key, value, named) in [
        (qwen2(), "layer_types", json!(["full_attention"]), ""),
        (
            with(qwen2(), "use_sliding_window", json!(true)),
            "layer_types",
            json!(["full_attention"]),
            "layer_types",
        ),
        (gemma2(), "layer_types", json!(vec!["chunked_attention"; 26]), "layer_types"),
        (gemma2(), "query_pre_attn_scalar", json!(0), "query_pre_attn_scalar"),
        (gemma2(), "final_logit_softcapping", json!(-1.0), "final_logit_softcapping"),
        (gemma2(), "attn_logit_softcapping", json!("50"), "attn_logit_softcapping"),
        (gemma2(), "partial_rotary_factor", json!(0.5), "partial_rotary_factor"),
        (pythia(), "rotary_pct", json!(0.0), "partial_rotary_factor"),
        (pythia(), "rotary_pct", json!(1.5), "partial_rotary_factor"),
        (pythia(), "rotary_pct", json!(0.01), "partial_rotary_factor"),
        (pythia(), "layer_norm_eps", json!(2), "eps"),
        (
            phi3(),
            "rope_scaling",
            json!({"type": "longrope", "short_factor": [1.0, 1.0, 1.0, 1.0]}),
            "long_factor",
        ),
        (
            phi3(),
            "rope_scaling",
            json!({"type": "longrope", "short_factor": [1.0, 1.0, 1.0, 1.0], "long_factor": [1.0, 1.0, 1.0]}),
            "long_factor",
        ),
        (
            phi3(),
            "rope_scaling",
            json!({"type": "longrope", "short_factor": [0.0, 0.0, 0.0, 0.0], "long_factor": [1.0, 1.0, 1.0, 1.0]}),
            "short_factor",
        ),
        (
            phi3(),
            "rope_scaling",
            json!({"type": "longrope", "short_factor": "x", "long_factor": [1.0, 1.0, 1.0, 1.0]}),
            "short_factor",
        ),
        (phi3(), "original_max_position_embeddings", json!(0), "original_max_position_embeddings"),
        (phi3(), "original_max_position_embeddings", json!(1), "attention_factor"),
    ] {
        let read = read(&with(config, key, value.clone()), None);
        let message = read.map_or_else(|e| e.to_string(), |c| format!("accepted: {c:?}"));
        assert!(message.contains(named), "{key} = {value}: {message}");
        assert!(named.is_empty() || !message.starts_with("accepted"), "{key} = {value}: {message}");
    }
}

/// Written and read again they are the same.
#[test]
fn configurations_lead_back() {
    let path = std::path::Path::new("config.json");
    let windowed = with(with(qwen2(), "use_sliding_window", json!(true)), "max_window_layers", json!(21));
    let qwen3 =
        with(with(qwen2(), "architectures", json!(["Qwen3ForCausalLM"])), "model_type", json!("qwen3"));
    for config in [qwen2(), windowed, qwen3, pythia(), gemma2(), phi3()] {
        let config = read(&config, None).unwrap();
        let written = config.to_hf(path, crate::StorageType::F32).unwrap();
        let again = read(&Value::Object(written.clone()), None).unwrap();
        // What the factors are of is told once more.
        assert_eq!(again, config, "{written:?}");
    }
}
