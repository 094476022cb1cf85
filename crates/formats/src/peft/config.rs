//! `adapter_config.json`.
//!
//! Every key that PEFT 0.21 writes is known here as one that is read, one that has no effect after training, or one
//! that changes what the adapter computes and is refused unless it has its neutral value. A key that is not known is
//! refused too unless its value is null, false or empty.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::config::{Keys, describe};
use crate::error::{FormatError, Result, shorten};

/// Which modules a configuration names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModuleSelector {
    /// Modules whose path is one of these or ends in `.` and one of these.
    List(Vec<String>),
    /// Modules whose whole path this regular expression matches.
    Regex(String),
    /// `"all-linear"`: every linear module but the head.
    AllLinear,
}

/// What an adapter's configuration says about its factors.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterConfig {
    /// Rank where `rank_pattern` has no other.
    pub r: usize,
    /// Alpha where `alpha_pattern` has no other.
    pub alpha: f64,
    /// Dropout during training; without effect here.
    pub lora_dropout: f64,
    /// Ranks by pattern; the first pattern that matches counts, as `(.*\.)?(pattern)$`.
    pub rank_pattern: Vec<(String, usize)>,
    /// Alphas by pattern, matched in the same way.
    pub alpha_pattern: Vec<(String, f64)>,
    /// Scale `alpha / sqrt(rank)` instead of `alpha / rank` (rsLoRA, Kalajdzievski 2023).
    pub use_rslora: bool,
    /// Weight-decomposed adaptation (DoRA, Liu et al. 2024): modules have a magnitude vector.
    pub use_dora: bool,
    /// Modules with factors.
    pub target_modules: ModuleSelector,
    /// Modules without factors although `target_modules` names them.
    pub exclude_modules: Option<ModuleSelector>,
    /// Only these layers have factors.
    pub layers_to_transform: Option<Vec<usize>>,
    /// Names of the module lists in which `layers_to_transform` counts; empty for any.
    pub layers_pattern: Vec<String>,
    /// Modules that are stored whole.
    pub modules_to_save: Vec<String>,
    /// The base model's name.
    pub base_model_name_or_path: Option<String>,
    /// The base model's revision.
    pub revision: Option<String>,
}

impl AdapterConfig {
    /// A plain LoRA configuration: one rank and alpha for `target_modules`.
    pub fn new(r: usize, alpha: f64, target_modules: Vec<String>) -> Self {
        Self {
            r,
            alpha,
            lora_dropout: 0.0,
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            use_rslora: false,
            use_dora: false,
            target_modules: ModuleSelector::List(target_modules),
            exclude_modules: None,
            layers_to_transform: None,
            layers_pattern: Vec::new(),
            modules_to_save: Vec::new(),
            base_model_name_or_path: None,
            revision: None,
        }
    }

    /// What factors of rank `rank` are multiplied by.
    pub fn scale(&self, alpha: f64, rank: usize) -> f64 {
        if self.use_rslora { alpha / (rank as f64).sqrt() } else { alpha / rank as f64 }
    }

    /// Reads the content of an `adapter_config.json`; `path` is for messages.
    ///
    /// # Errors
    /// [`FormatError::Key`] naming a key that is missing, out of bounds, unknown, or that asks for what is not
    /// supported.
    pub fn from_json(path: &Path, map: &Map<String, Value>) -> Result<Self> {
        let keys = Keys::new(path, map);
        refuse_unsupported(&keys)?;
        let config = Self {
            r: keys.require_usize("r")?,
            alpha: keys.require_f64("lora_alpha")?,
            lora_dropout: keys.f64("lora_dropout")?.unwrap_or(0.0),
            rank_pattern: pattern(&keys, "rank_pattern", "a rank", |v| v.as_u64()?.try_into().ok())?,
            alpha_pattern: pattern(&keys, "alpha_pattern", "an alpha", Value::as_f64)?,
            use_rslora: keys.bool("use_rslora")?.unwrap_or(false),
            use_dora: keys.bool("use_dora")?.unwrap_or(false),
            target_modules: selector(&keys, "target_modules")?.ok_or_else(|| {
                keys.error("target_modules", "a list, a pattern or \"all-linear\"", "nothing")
            })?,
            exclude_modules: selector(&keys, "exclude_modules")?,
            layers_to_transform: layer_indices(&keys)?,
            layers_pattern: match keys.get("layers_pattern") {
                Some(Value::String(one)) if one.is_empty() => Vec::new(),
                Some(Value::String(one)) => vec![one.clone()],
                _ => keys.strings("layers_pattern")?.unwrap_or_default(),
            },
            modules_to_save: keys.strings("modules_to_save")?.unwrap_or_default(),
            base_model_name_or_path: keys.str("base_model_name_or_path")?.map(str::to_owned),
            revision: keys.str("revision")?.map(str::to_owned),
        };
        config.check(path)?;
        Ok(config)
    }

    /// Whether ranks and alphas are numbers to work with. `path` is for messages.
    ///
    /// # Errors
    /// [`FormatError::Key`].
    pub fn check(&self, path: &Path) -> Result<()> {
        const MAX_RANK: usize = 1 << 16;
        const MAX_ALPHA: f64 = 1e6;
        let ranks = self.rank_pattern.iter().map(|(key, rank)| (format!("rank_pattern.{key}"), *rank));
        for (key, rank) in std::iter::once(("r".to_owned(), self.r)).chain(ranks) {
            if !(1..=MAX_RANK).contains(&rank) {
                return Err(FormatError::key(
                    path,
                    shorten(&key),
                    format!("a rank from 1 to {MAX_RANK}"),
                    rank,
                ));
            }
        }
        let alphas = self.alpha_pattern.iter().map(|(key, alpha)| (format!("alpha_pattern.{key}"), *alpha));
        for (key, alpha) in std::iter::once(("lora_alpha".to_owned(), self.alpha)).chain(alphas) {
            if !(alpha > 0.0 && alpha <= MAX_ALPHA) {
                let expected = format!("a number over 0 and up to {MAX_ALPHA:e}");
                return Err(FormatError::key(path, shorten(&key), expected, alpha));
            }
        }
        if !(0.0..1.0).contains(&self.lora_dropout) {
            return Err(FormatError::key(
                path,
                "lora_dropout",
                "a number from 0 to under 1",
                self.lora_dropout,
            ));
        }
        Ok(())
    }

    /// The content of an `adapter_config.json` that PEFT reads, keys sorted.
    pub fn to_json(&self) -> Value {
        let selector = |s: &ModuleSelector| match s {
            ModuleSelector::List(names) => json!(names),
            ModuleSelector::Regex(pattern) => json!(pattern),
            ModuleSelector::AllLinear => json!(ALL_LINEAR),
        };
        let list = |names: &[String]| if names.is_empty() { Value::Null } else { json!(names) };
        let ranks: Map<String, Value> =
            self.rank_pattern.iter().map(|(key, rank)| (key.clone(), json!(rank))).collect();
        let alphas: Map<String, Value> =
            self.alpha_pattern.iter().map(|(key, alpha)| (key.clone(), number(*alpha))).collect();
        json!({
            "alpha_pattern": alphas,
            "auto_mapping": null,
            "base_model_name_or_path": self.base_model_name_or_path,
            "bias": "none",
            "exclude_modules": self.exclude_modules.as_ref().map(selector),
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "layers_pattern": list(&self.layers_pattern),
            "layers_to_transform": self.layers_to_transform,
            "lora_alpha": number(self.alpha),
            "lora_dropout": self.lora_dropout,
            "modules_to_save": list(&self.modules_to_save),
            "peft_type": "LORA",
            "r": self.r,
            "rank_pattern": ranks,
            "revision": self.revision,
            "target_modules": selector(&self.target_modules),
            "task_type": "CAUSAL_LM",
            "use_dora": self.use_dora,
            "use_rslora": self.use_rslora,
        })
    }
}

const ALL_LINEAR: &str = "all-linear";

/// A whole number without a decimal point, as PEFT declares alpha.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e15 { json!(value as i64) } else { json!(value) }
}

/// Keys whose values are read in [`AdapterConfig::from_json`] or checked in [`refuse_unsupported`].
const READ: [&str; 18] = [
    "r",
    "lora_alpha",
    "lora_dropout",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
    "use_dora",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "modules_to_save",
    "base_model_name_or_path",
    "revision",
    "peft_type",
    "task_type",
    "bias",
    "init_lora_weights",
];

/// Keys that have no effect on what a trained adapter computes: bookkeeping, initialisation (the kinds that change
/// the base are refused by `init_lora_weights`), and what is used during training only.
const HARMLESS: [&str; 12] = [
    "auto_mapping",
    "peft_version",
    "inference_mode",
    "megatron_core",
    "qalora_group_size",
    "runtime_config",
    "loftq_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    "velora_config",
    "merge_weights",
];

fn refuse_unsupported(keys: &Keys<'_>) -> Result<()> {
    let quoted = |text: &str| format!("{:?}", shorten(text));
    match keys.str("peft_type")? {
        Some("LORA") => {}
        Some(other) => return Err(keys.error("peft_type", "\"LORA\"", quoted(other))),
        None => return Err(keys.error("peft_type", "\"LORA\"", "nothing")),
    }
    if let Some(other) = keys.str("task_type")?
        && other != "CAUSAL_LM"
    {
        return Err(keys.error("task_type", "\"CAUSAL_LM\"", quoted(other)));
    }
    if let Some(other) = keys.str("bias")?
        && other != "none"
    {
        return Err(keys.error("bias", "\"none\"; trained biases are not supported", quoted(other)));
    }
    let init_expected = "a kind that leaves the base weights alone (true, false, gaussian, eva, orthogonal); \
                         convert the adapter to plain LoRA when saving it";
    match keys.get("init_lora_weights") {
        None | Some(Value::Bool(_)) => {}
        Some(Value::String(kind))
            if ["gaussian", "eva", "orthogonal"].contains(&kind.to_ascii_lowercase().as_str()) => {}
        Some(other) => return Err(keys.error("init_lora_weights", init_expected, describe(other))),
    }
    for (key, value) in keys.map() {
        let known = READ.contains(&key.as_str()) || HARMLESS.contains(&key.as_str());
        if known || is_neutral(value) {
            continue;
        }
        let expected = "null, false or empty; this option is not supported";
        return Err(keys.error(&shorten(key), expected, describe(value)));
    }
    Ok(())
}

fn is_neutral(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
        Value::String(s) => s.is_empty(),
        Value::Bool(true) | Value::Number(_) => false,
    }
}

fn pattern<T>(
    keys: &Keys<'_>,
    name: &str,
    expected: &str,
    get: impl Fn(&Value) -> Option<T>,
) -> Result<Vec<(String, T)>> {
    let Some(patterns) = keys.object(name)? else { return Ok(Vec::new()) };
    patterns
        .map()
        .iter()
        .map(|(key, value)| match get(value) {
            Some(v) => Ok((key.clone(), v)),
            None => Err(patterns.error(&shorten(key), expected, describe(value))),
        })
        .collect()
}

fn selector(keys: &Keys<'_>, name: &str) -> Result<Option<ModuleSelector>> {
    Ok(match keys.get(name) {
        Some(Value::String(all)) if all.eq_ignore_ascii_case(ALL_LINEAR) && name == "target_modules" => {
            Some(ModuleSelector::AllLinear)
        }
        Some(Value::String(pattern)) if pattern.is_empty() => None,
        Some(Value::String(pattern)) => Some(ModuleSelector::Regex(pattern.clone())),
        _ => keys.strings(name)?.filter(|names| !names.is_empty()).map(ModuleSelector::List),
    })
}

fn layer_indices(keys: &Keys<'_>) -> Result<Option<Vec<usize>>> {
    const KEY: &str = "layers_to_transform";
    let index = |v: &Value| -> Option<usize> { v.as_u64()?.try_into().ok() };
    let found: Option<Vec<usize>> = match keys.get(KEY) {
        None => return Ok(None),
        Some(Value::Array(list)) => list.iter().map(index).collect(),
        Some(one) => index(one).map(|i| vec![i]),
    };
    match found {
        Some(list) if list.is_empty() => Ok(None),
        Some(list) => Ok(Some(list)),
        None => Err(keys.error(KEY, "a layer index or a list of them", "something else")),
    }
}
