//! An adapter is replaced while it answers: the answer under way finishes on the old one, the next takes the new one.
//!
//! `cargo run --release --example hot_swap -- MODEL ADAPTER OTHER_ADAPTER`, where MODEL is a `.gguf` file or a folder in
//! Hugging Face's layout, and the adapters LoRA folders as PEFT writes them.

use wardrobe::{
    AdapterSource, EngineOptions, Event, LoadOptions, Message, Model, ModelOptions, Request, SamplingParams,
    Summary,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model_path, first, second] = args.as_slice() else {
        return Err("usage: hot_swap MODEL ADAPTER OTHER_ADAPTER".into());
    };
    let model = Model::open(model_path, &ModelOptions::default())?;
    let engine = model.engine(&EngineOptions::default())?;
    let load = |path: &String| {
        let options = LoadOptions { replace: true, ..LoadOptions::default() };
        engine.load_adapter("assistant", AdapterSource::Path(path.into()), options)
    };
    let prompt = model.chat_prompt(&[Message::text("user", "Tell me about the sea.")])?;
    let request = Request::new(prompt)
        .with_adapter("assistant")
        .with_sampling(SamplingParams::greedy())
        .with_max_tokens(60);

    let id = |summary: &Summary| summary.generation.map_or("none".to_owned(), |g| g.to_string());

    let loaded = load(first)?;
    println!("generation {} from {first}", loaded.generation);
    let mut text = String::new();
    let mut is_replaced = false;
    for event in engine.submit(Request { ignore_eos: true, ..request.clone() })? {
        match event {
            Event::Update(update) => text.push_str(&update.text),
            Event::Summary(summary) => println!("answer under way, by generation {}: {text}\n", id(&summary)),
            _ => {}
        }
        if !is_replaced {
            is_replaced = true;
            let started = std::time::Instant::now();
            let replaced = load(second)?;
            println!("generation {} from {second}, in {:?}", replaced.generation, started.elapsed());
        }
    }
    let next = engine.generate(request)?;
    println!("next answer, by generation {}: {}", id(&next.summary), next.choices[0].text);
    Ok(())
}
