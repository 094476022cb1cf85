//! Schemas with valid and invalid instances (MaskBench's files, https://github.com/guidance-ai/jsonschemabench): how many
//! compile, whether every instance is told right, and how long compiling and masks take.
//!
//! `cargo run --release --example mask_bench -- MODEL FOLDER [lenient] [verbose]`

mod label;
mod measure;

use wardrobe::{Model, ModelOptions};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, folder, options @ ..] = args.as_slice() else {
        return Err("usage: mask_bench MODEL FOLDER [lenient] [verbose]".into());
    };
    let model = Model::open(model, &ModelOptions::default())?;
    let ends: Vec<_> = model.config().eos_token_ids.iter().map(|&id| wardrobe::TokenId(id)).collect();
    measure::run(model.tokenizer(), &ends, folder.as_ref(), options)
}
