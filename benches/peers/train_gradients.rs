//! Writes the gradients of an adapter's factors under their names in PEFT's file, for `tests/peft_train_parity.py`, whose
//! `gradients` writes peft's own.
//!
//! `cargo run --release --example train_gradients -- MODEL ADAPTER IDS.json OUT.safetensors`
//!
//! IDS.json is `[[id, ...], ...]`; all tokens but the first of each are learnt. Weights are taken in f32.

use std::collections::BTreeMap;

use wardrobe::data::{Dataset, Example};
use wardrobe::train::{BatchSize, LoraConfig, Trainer};
use wardrobe::{Model, ModelOptions, PeftAdapter, TokenId, TrainConfig, WeightPrecision};
use wardrobe_formats::peft::ModuleSelector;
use wardrobe_formats::{StorageType, safetensors};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, adapter, ids, out] = args.as_slice() else {
        return Err("usage: train_gradients MODEL ADAPTER IDS.json OUT.safetensors".into());
    };
    let sequences: Vec<Vec<u32>> = serde_json::from_slice(&std::fs::read(ids)?)?;
    let examples: Vec<Example> = sequences
        .into_iter()
        .map(|ids| Example {
            loss: (0..ids.len()).map(|i| i > 0).collect(),
            token_ids: ids.into_iter().map(TokenId).collect(),
        })
        .collect();
    let model =
        Model::open(model, &ModelOptions { precision: WeightPrecision::F32, ..ModelOptions::default() })?;
    let adapter = PeftAdapter::open(adapter.as_ref())?;
    let config = adapter.config();
    let ModuleSelector::List(target_modules) = config.target_modules.clone() else {
        return Err("the adapter's target_modules are no list".into());
    };
    let lora = LoraConfig {
        rank: config.r,
        alpha: config.alpha,
        target_modules,
        use_rslora: config.use_rslora,
        use_dora: config.use_dora,
        ..LoraConfig::default()
    };
    let config =
        TrainConfig { lora, batch_size: BatchSize::Examples(examples.len()), ..TrainConfig::default() };
    let trainer = Trainer::new(model.device().clone(), model.decoder().clone(), config)?;
    let found = trainer.with_start(adapter).gradients(&Dataset::from_examples(examples)?)?;

    let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    for module in &found.modules {
        let info =
            model.decoder().modules().iter().find(|m| m.path == module.path).ok_or("an unknown module")?;
        let mut add = |part: &str, shape: Vec<usize>, values: &[f32]| {
            let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            tensors.push((format!("base_model.model.{}.{part}", module.path), shape, bytes));
        };
        let (inputs, outputs) = (info.weight.cols(), info.weight.rows());
        add("lora_A.weight", vec![module.a.len() / inputs, inputs], &module.a);
        add("lora_B.weight", vec![outputs, module.b.len() / outputs], &module.b);
        if let Some(magnitude) = &module.magnitude {
            add("lora_magnitude_vector", vec![outputs], magnitude);
        }
    }
    let data: Vec<_> = tensors
        .iter()
        .map(|(name, shape, bytes)| safetensors::TensorData { name, storage: StorageType::F32, shape, bytes })
        .collect();
    safetensors::write(out.as_ref(), &data, &BTreeMap::new())?;
    println!("{}", serde_json::json!({ "loss": found.loss, "tensors": data.len() }));
    Ok(())
}
