//! Tensor names in an adapter file.
//!
//! PEFT names a tensor by `base_model.model.`, the module's path in the model and a suffix; the adapter's own name
//! is taken out when saving.

/// What a tensor is, and of which module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Key {
    A(String),
    B(String),
    EmbeddingA(String),
    EmbeddingB(String),
    Magnitude(String),
    Saved { module_path: String, parameter: String, is_base_layer: bool },
}

pub(super) const PREFIX: &str = "base_model.model.";
const BASE_LAYER: &str = ".base_layer";
/// Makes a key from a module path.
type OfModule = fn(String) -> Key;
const MAX_NAME_BYTES: usize = 512;

/// Reads a tensor name; the error says what is wrong with it.
pub(super) fn parse(name: &str) -> Result<Key, String> {
    if name.len() > MAX_NAME_BYTES {
        return Err(format!("the name is longer than {MAX_NAME_BYTES} bytes"));
    }
    let path = name.strip_prefix(PREFIX).ok_or_else(|| format!("the name does not start with `{PREFIX}`"))?;
    let valid = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if path.split('.').any(|segment| segment.is_empty() || !segment.chars().all(valid)) {
        return Err("the name is no module path".to_owned());
    }
    let suffixes: [(&str, OfModule); 6] = [
        (".lora_A.weight", Key::A),
        (".lora_B.weight", Key::B),
        (".lora_embedding_A", Key::EmbeddingA),
        (".lora_embedding_B", Key::EmbeddingB),
        (".lora_magnitude_vector", Key::Magnitude),
        (".lora_magnitude_vector.weight", Key::Magnitude),
    ];
    for (suffix, key) in suffixes {
        if let Some(module) = path.strip_suffix(suffix) {
            let module = module.strip_suffix(BASE_LAYER).unwrap_or(module);
            return check_module(module).map(|m| key(m.to_owned()));
        }
    }
    if path.ends_with(".lora_B.bias") {
        return Err("a bias of lora_B (lora_bias) is not supported".to_owned());
    }
    let (module, parameter) = path.rsplit_once('.').ok_or("the name has no parameter")?;
    if !matches!(parameter, "weight" | "bias") {
        return Err(format!("`{parameter}` is no parameter that PEFT stores"));
    }
    let (module, is_base_layer) = match module.strip_suffix(BASE_LAYER) {
        Some(module) => (module, true),
        None => (module, false),
    };
    let module_path = check_module(module)?.to_owned();
    Ok(Key::Saved { module_path, parameter: parameter.to_owned(), is_base_layer })
}

/// No segment of a module path may be one of PEFT's own.
fn check_module(module: &str) -> Result<&str, String> {
    const RESERVED: [&str; 6] = [
        "base_layer",
        "modules_to_save",
        "original_module",
        "token_adapter",
        "base_model",
        "trainable_tokens",
    ];
    match module.split('.').find(|s| RESERVED.contains(s) || s.starts_with("lora_")) {
        Some(segment) => Err(format!("`{segment}` has no place in a module path")),
        None => Ok(module),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_peft_writes() {
        let q = "model.layers.3.self_attn.q_proj";
        let key = |rest: &str| parse(&format!("{PREFIX}{rest}"));
        assert_eq!(key(&format!("{q}.lora_A.weight")), Ok(Key::A(q.into())));
        assert_eq!(key(&format!("{q}.lora_B.weight")), Ok(Key::B(q.into())));
        assert_eq!(key(&format!("{q}.base_layer.lora_B.weight")), Ok(Key::B(q.into())));
        assert_eq!(key(&format!("{q}.lora_magnitude_vector")), Ok(Key::Magnitude(q.into())));
        assert_eq!(key(&format!("{q}.lora_magnitude_vector.weight")), Ok(Key::Magnitude(q.into())));
        let embed = "model.embed_tokens";
        assert_eq!(key(&format!("{embed}.lora_embedding_A")), Ok(Key::EmbeddingA(embed.into())));
        assert_eq!(key(&format!("{embed}.lora_embedding_B")), Ok(Key::EmbeddingB(embed.into())));
        let saved = |module: &str, is_base_layer| {
            Ok(Key::Saved { module_path: module.into(), parameter: "weight".into(), is_base_layer })
        };
        assert_eq!(key("lm_head.weight"), saved("lm_head", false));
        assert_eq!(key("model.embed_tokens.base_layer.weight"), saved(embed, true));
        assert_eq!(
            parse("base_model.model.gpt_neox.layers.0.attention.query_key_value.lora_A.weight"),
            Ok(Key::A("gpt_neox.layers.0.attention.query_key_value".into()))
        );
    }

    #[test]
    fn other_names_are_refused() {
        for name in [
            "",
            "model.layers.3.self_attn.q_proj.lora_A.weight",
            "base_model.model.q_proj.lora_A.default.weight",
            "base_model.model.q_proj.lora_A",
            "base_model.model.q_proj.lora_B.bias",
            "base_model.model..lora_A.weight",
            "base_model.model.lora_A.weight",
            "base_model.model.q_proj.lora_C.weight",
            "base_model.model.base_model.model.q_proj.lora_A.weight",
            "base_model.model.lm_head.modules_to_save.weight",
            "base_model.model.embed_tokens.token_adapter.trainable_tokens_delta",
            "base_model.model.../../etc.weight",
            "base_model.model.q proj.lora_A.weight",
            "base_model.model.weight",
            "base_model.model.q_proj.lora_A.weight.lora_A.weight",
        ] {
            assert!(parse(name).is_err(), "{name}: {:?}", parse(name));
        }
        assert!(parse(&format!("{PREFIX}{}.weight", "a".repeat(600))).is_err());
    }
}
