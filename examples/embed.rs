//! A model with an adapter inside an application, and its logits and adapter weights as candle tensors.
//!
//! `cargo run --release --example embed -- MODEL ADAPTER`, where MODEL is a `.gguf` file or a folder in Hugging Face's
//! layout, and ADAPTER a LoRA folder as PEFT writes it.

use wardrobe::{
    AdapterSource, EngineOptions, LoadOptions, LoraOptions, Message, Model, ModelOptions, PeftAdapter,
    Request, SamplingParams, adapter_from_tensors, adapter_source, adapter_tensors,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model_path, adapter_path] = args.as_slice() else { return Err("usage: embed MODEL ADAPTER".into()) };

    // Open, start, load, ask: the base and the adapter are served side by side.
    let model = Model::open(model_path, &ModelOptions::default())?;
    let engine = model.engine(&EngineOptions::default())?;
    engine.load_adapter("tuned", AdapterSource::Path(adapter_path.into()), LoadOptions::default())?;
    let prompt = model.chat_prompt(&[Message::text("user", "Write one sentence about the sea.")])?;
    let request = Request::new(prompt.clone()).with_sampling(SamplingParams::greedy()).with_max_tokens(40);
    let base = engine.generate(request.clone())?;
    let tuned = engine.generate(request.clone().with_adapter("tuned"))?;
    println!("base:  {}", base.choices[0].text);
    println!("tuned: {}", tuned.choices[0].text);

    // Logits out: [tokens, vocab_size], of the base and of the adapter.
    let peft = PeftAdapter::open(adapter_path.as_ref())?;
    let adapter = model.fit_adapter(&peft, &LoraOptions::default())?;
    for (name, adapter) in [("base", None), ("tuned", Some(&adapter))] {
        let logits = model.logits(&prompt, adapter)?;
        let next = logits.get(prompt.len() - 1)?.argmax(0)?.to_scalar::<u32>()?;
        let token = model.tokenizer().token_str(wardrobe::TokenId(next));
        println!("{name}: logits {:?}, the likeliest next token is {token:?}", logits.dims());
    }

    // Adapter weights out, half of them taken as candle tensors, and in again under another name.
    let mut tensors = adapter_tensors(&peft)?;
    for (name, tensor) in &mut tensors {
        if name.ends_with("lora_B.weight") {
            *tensor = (&*tensor * 0.5)?;
        }
    }
    let half = adapter_from_tensors("half as strong", peft.config(), tensors)?;
    engine.load_adapter("half", adapter_source(half), LoadOptions::default())?;
    println!("half:  {}", engine.generate(request.with_adapter("half"))?.choices[0].text);
    Ok(())
}
