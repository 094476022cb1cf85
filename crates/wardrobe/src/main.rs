//! The `wardrobe` command.
use wardrobe::{EngineOptions, Event, Message, Model, ModelOptions, Request, SamplingParams};

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let t = std::time::Instant::now();
    let model = Model::open(&args[1], &ModelOptions::default())?;
    eprintln!("open {:?} on {}", t.elapsed(), model.device().name());
    let engine = model.engine(&EngineOptions::default())?;
    let adapter = args.get(3).map(|path| {
        engine.load_adapter("a", wardrobe::AdapterSource::Path(path.into()), Default::default()).map(|_| "a".to_owned())
    }).transpose()?;
    let prompt = model.chat_prompt(&[Message::text("user", &args[2])])?;
    eprintln!("prompt {} tokens, {:?}", prompt.len(), t.elapsed());
    let stream = engine.submit(Request { prompt_token_ids: prompt, adapter, sampling: SamplingParams::greedy(), max_tokens: Some(200), ..Default::default() })?;
    for event in stream {
        match event {
            Event::Update(u) => { use std::io::Write; print!("{}", u.text); std::io::stdout().flush()?; }
            Event::Summary(s) => println!("\n{s:?}"),
            _ => {}
        }
    }
    Ok(())
}
