//! Labels as Rust values: the base model, and an adapter, held to the schema of a type.
//!
//! `cargo run --release --example label -- MODEL ADAPTER`, where MODEL is a `.gguf` file or a folder in Hugging Face's
//! layout, and ADAPTER a LoRA folder such as `adapters/biography-json`.

use schemars::JsonSchema;
use serde::Deserialize;
use wardrobe::{
    AdapterSource, EngineOptions, LoadOptions, Message, Model, ModelOptions, Request, SamplingParams,
    schema_of, value_of,
};

/// What is asked of each biography.
#[derive(Deserialize, JsonSchema)]
struct Record {
    nationality: String,
    born: i64,
    died: i64,
    sportsperson: bool,
    politician: bool,
}

impl std::fmt::Display for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Record { nationality, born, died, .. } = self;
        write!(f, "{nationality}, {born} to {died}")?;
        f.write_str(if self.sportsperson { ", in sports" } else { "" })?;
        f.write_str(if self.politician { ", in politics" } else { "" })
    }
}

const BIOGRAPHIES: [(&str, &str); 3] = [
    ("mehemet salk", "mehemet salk ( 1896 - 1993 ) , United States Air Force officer ."),
    ("hume chomsky", "hume chomsky ( 1863 - 1957 ) , Belgian architect ."),
    ("odile rudolph", "odile rudolph ( 1940 - 1994 ) , United States sprinter and athlete ."),
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model_path, adapter_path] = args.as_slice() else { return Err("usage: label MODEL ADAPTER".into()) };
    let model = Model::open(model_path, &ModelOptions::default())?;
    let engine = model.engine(&EngineOptions::default())?;
    engine.load_adapter("tuned", AdapterSource::Path(adapter_path.into()), LoadOptions::default())?;

    // Compiled once, shared by all requests.
    let record = model.compile(&schema_of::<Record>())?;
    println!("{record:?}");
    for (name, text) in BIOGRAPHIES {
        let question = format!(
            "{text}\n\nWrite the JSON record of {name}. Answer only with JSON like {{\"nationality\": \"Greek\", \
             \"born\": 1801, \"died\": 1899, \"sportsperson\": true, \"politician\": false}}"
        );
        let request = Request::new(model.chat_prompt(&[Message::text("user", &question)])?)
            .with_sampling(SamplingParams::greedy())
            .with_constraint(record.clone())
            .with_max_tokens(80);
        let base: Record = value_of(&engine.generate(request.clone())?.choices[0])?;
        let tuned: Record = value_of(&engine.generate(request.with_adapter("tuned"))?.choices[0])?;
        println!("{name}\n  base  {base}\n  tuned {tuned}");
    }
    Ok(())
}
