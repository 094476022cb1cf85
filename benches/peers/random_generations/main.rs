//! Random texts from the masks of schemas (files as `mask_bench` takes them), for another program to check:
//! `check_generations.py` beside this.
//!
//! `cargo run --release --example random_generations -- MODEL FOLDER NUMBER OUT.jsonl [cut] [SEED]`

mod write;

use wardrobe::{Model, ModelOptions};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let Some((model, options)) = args.split_first() else {
        return Err(write::USAGE.into());
    };
    let model = Model::open(model, &ModelOptions::default())?;
    let ends: Vec<_> = model.config().eos_token_ids.iter().map(|&id| wardrobe::TokenId(id)).collect();
    write::run(model.tokenizer(), &ends, options)
}
