//! Options and patterns of a configuration that are refused, and ones that are let pass.

use super::*;

#[test]
fn options_that_change_the_computation_are_refused_by_name() {
    for (key, value) in [
        ("peft_type", json!("LOHA")),
        ("peft_type", Value::Null),
        ("task_type", json!("SEQ_CLS")),
        ("bias", json!("all")),
        ("bias", json!("lora_only")),
        ("fan_in_fan_out", json!(true)),
        ("use_qalora", json!(true)),
        ("alora_invocation_tokens", json!([1, 2])),
        ("lora_bias", json!(true)),
        ("layer_replication", json!([[0, 4]])),
        ("megatron_config", json!({"a": 1})),
        ("target_parameters", json!(["experts.gate_up_proj"])),
        ("trainable_token_indices", json!([5])),
        ("use_bdlora", json!({"nblocks": 2})),
        ("arrow_config", json!({"top_k": 3})),
        ("kasa_config", json!({"beta": 1})),
        ("monteclora_config", json!({"n": 1})),
        ("ensure_weight_tying", json!(true)),
        ("some_option_of_tomorrow", json!(1)),
        ("init_lora_weights", json!("pissa")),
        ("init_lora_weights", json!("pissa_niter_16")),
        ("init_lora_weights", json!("olora")),
        ("init_lora_weights", json!("corda")),
        ("init_lora_weights", json!("loftq")),
        ("init_lora_weights", json!(3)),
        ("r", json!(0)),
        ("r", json!(-1)),
        ("r", json!(8.5)),
        ("r", json!(1u64 << 40)),
        ("r", Value::Null),
        ("lora_alpha", json!(0)),
        ("lora_alpha", json!(-16)),
        ("lora_alpha", json!(1e300)),
        ("lora_alpha", Value::Null),
        ("lora_dropout", json!(1.0)),
        ("rank_pattern", json!({"q_proj": 0})),
        ("rank_pattern", json!({"q_proj": "8"})),
        ("rank_pattern", json!([1])),
        ("alpha_pattern", json!({"q_proj": null})),
        ("alpha_pattern", json!({"q_proj": -1})),
        ("target_modules", Value::Null),
        ("target_modules", json!([])),
        ("target_modules", json!([1])),
        ("target_modules", json!({})),
        ("use_dora", json!("yes")),
        ("layers_to_transform", json!([-1])),
        ("modules_to_save", json!("lm_head")),
    ] {
        let text = message(&with(&[(key, value.clone())]), &pair(Q, 2));
        assert!(text.contains(&format!("`{key}")), "{key} = {value}: {text}");
        assert!(text.contains(CONFIG_FILE), "{text}");
    }
    for (key, value) in [
        ("init_lora_weights", json!("gaussian")),
        ("init_lora_weights", json!("eva")),
        ("init_lora_weights", json!(false)),
        ("eva_config", json!({"rho": 2.0})),
        ("some_option_of_tomorrow", Value::Null),
        ("some_option_of_tomorrow", json!(false)),
        ("megatron_core", json!("other")),
        ("inference_mode", json!(false)),
    ] {
        let text = message(&with(&[(key, value.clone())]), &pair(Q, 2));
        assert!(text.starts_with("accepted"), "{key} = {value}: {text}");
    }
}

#[test]
fn hostile_patterns_are_refused_quickly() {
    let started = std::time::Instant::now();
    for (pattern, expected) in [
        ("(?=q)q_proj", "look-around"),
        (r"(q)\1", "without look-around and back-references"),
        ("(", "target_modules"),
        ("x)|(y", "target_modules"),
        ("((((a{1000}){1000}){1000}){1000})", "too large"),
        (&"(".repeat(10_000), "target_modules"),
        (&"a".repeat(100_000), "length in bytes of a pattern"),
    ] {
        let text = message(&with(&[("target_modules", json!(pattern))]), &pair(Q, 2));
        assert!(text.contains(expected), "{}: {text}", crate::error::shorten(pattern));
    }
    let many: serde_json::Map<String, Value> = (0..100).map(|i| (format!("q.*{i}"), json!(2))).collect();
    assert!(
        message(&with(&[("rank_pattern", Value::Object(many))]), &pair(Q, 2))
            .contains("number of regular expressions")
    );
    let plain: serde_json::Map<String, Value> =
        (0..2000).map(|i| (format!("layers.{i}.x"), json!(2))).collect();
    assert!(message(&with(&[("rank_pattern", Value::Object(plain))]), &pair(Q, 2)).starts_with("accepted"));
    // Exponential for an engine that backtracks.
    let slow = with(&[("target_modules", json!("(a*)*(a|a)*b|.*q_proj"))]);
    assert!(message(&slow, &pair(Q, 2)).starts_with("accepted"));
    assert!(started.elapsed().as_secs() < 20);
}
