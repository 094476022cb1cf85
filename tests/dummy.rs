//! Models that are made up from a configuration: they load, answer and are measured like others, come out the same each
//! time, and what cannot be is refused by its name.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test fails by panicking.

#[path = "support/command.rs"]
mod command;

use std::path::{Path, PathBuf};

use command::*;
use serde_json::{Value, json};
use tempfile::TempDir;
use wardrobe::{
    DummyOptions, EngineOptions, Error, Message, Model, ModelOptions, Request, SamplingParams, StorageType,
};

/// Two small layers.
fn tiny() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 512, "hidden_size": 64,
        "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 512,
        "tie_word_embeddings": true, "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "bfloat16",
    })
}

fn with(mut config: Value, changes: &[(&str, Value)]) -> Value {
    changes.iter().for_each(|(key, value)| config[*key] = value.clone());
    config
}

fn write(config: &Value) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.json");
    std::fs::write(&path, config.to_string()).unwrap();
    (folder, path)
}

fn shipped() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/configs");
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    paths
}

fn smollm2() -> PathBuf {
    shipped().into_iter().find(|path| path.ends_with("smollm2-135m.json")).unwrap()
}

/// The first bits of the logits of a text.
fn logits(model: &Model) -> Vec<f32> {
    let prompt = model.tokenizer().encode("Once upon a time", false).unwrap();
    model.logits(&prompt, None).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn a_configuration_and_a_seed_make_one_model() {
    let (_folder, path) =
        write(&with(tiny(), &[("attention_bias", json!(true)), ("tie_word_embeddings", json!(false))]));
    let open = |seed, storage, threads| {
        let cpu = wardrobe::CpuOptions { threads: Some(threads), ..Default::default() };
        let options = ModelOptions { cpu, ..ModelOptions::default() };
        Model::dummy(&path, &DummyOptions { seed, storage }, &options).unwrap()
    };
    let (one, again) = (open(1, None, 1), open(1, None, 2));
    let of_one = logits(&one);
    assert_eq!(of_one, logits(&again));
    assert!(of_one.iter().all(|v| v.is_finite()));
    assert_eq!(one.decoder().content_digest(), again.decoder().content_digest());
    for other in [open(2, None, 1), open(1, Some(StorageType::Q8_0), 1)] {
        assert_ne!(of_one, logits(&other));
        assert_ne!(one.decoder().content_digest(), other.decoder().content_digest());
    }
    assert_eq!(one.names(), ["tiny"]);
    // A conversation can be asked for, and tokens of a text are its bytes.
    let prompt = one.chat_prompt(&[Message::text("user", "Hello")]).unwrap();
    assert_eq!(prompt.len(), "user: Hello\nassistant:".len());
    let engine = one.engine(&EngineOptions { kv_bytes: Some(1 << 20), ..EngineOptions::default() }).unwrap();
    let request = || Request {
        ignore_eos: true,
        sampling: SamplingParams::greedy(),
        ..Request::new(prompt.clone()).with_max_tokens(8)
    };
    let answer = engine.generate(request()).unwrap();
    assert_eq!(answer.choices[0].token_ids.len(), 8);
    assert_eq!(answer.choices[0].token_ids, engine.generate(request()).unwrap().choices[0].token_ids);
}

#[test]
fn the_shipped_configurations_are_of_the_models_that_they_name() {
    // Parameters as the models' own cards count them.
    let sizes = [
        ("llama-2-13b.json", 13_015_864_320_u64, StorageType::F16),
        ("llama-3.1-8b.json", 8_030_261_248, StorageType::BF16),
        ("smollm2-135m.json", 134_515_008, StorageType::BF16),
    ];
    let paths = shipped();
    assert_eq!(paths.len(), sizes.len());
    for (path, (name, num_parameters, storage)) in paths.iter().zip(sizes) {
        assert!(path.ends_with(name), "{}", path.display());
        let file = wardrobe_formats::HfConfigFile::read(path).unwrap();
        assert_eq!(file.storage, Some(storage), "{name}");
        // Vectors are in f32, 4 bytes each, so this holds for them and matrices alike.
        let spec = wardrobe_models::DummySpec { storage: StorageType::F32, seed: 0 };
        let size = spec.size(&file.config, wardrobe::WeightPrecision::AsStored);
        assert_eq!(size.weight_bytes, 4 * num_parameters, "{name}");
    }
}

#[test]
fn smollm2_is_measured_without_its_weights() {
    let config = smollm2();
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("bench.json");
    let mut bench =
        wardrobe(&["bench", "--load-format", "dummy", "--dummy-dtype", "q4_0", "--parts", "serving,swaps"]);
    bench.args([
        "--repeat",
        "1",
        "--prompt-tokens",
        "32",
        "--max-tokens",
        "8",
        "--concurrency",
        "1,4",
        "--adapters",
        "0,2",
    ]);
    let printed = succeeds(bench.arg("--config").arg(&config).arg("--json").arg(&json));
    assert!(printed.contains("made-up weights, Q4_0 of seed 0"), "{printed}");
    assert!(printed.contains("Under load") && printed.contains("load one from disk"), "{printed}");
    let report: Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    assert_eq!(report.pointer("/target/dummy").unwrap(), "Q4_0 of seed 0");
    // 18 bytes for 32 of 134.5 million numbers.
    let weight_bytes = report.pointer("/target/weight_bytes").and_then(Value::as_u64).unwrap();
    assert!((75_000_000..77_000_000).contains(&weight_bytes), "{weight_bytes}");
    let serving = report.pointer("/serving").and_then(Value::as_array).unwrap();
    assert_eq!(serving.len(), 4);
    for result in serving {
        assert!(result["output_tokens_per_second"].as_f64().unwrap() > 0.0, "{result}");
        let num_requests = result["num_requests"].as_u64().unwrap();
        assert_eq!(result["output_tokens"], 8 * num_requests);
    }
}

fn complete(serving: &Serving, body: Value) -> (u16, Value) {
    let request = Serving::agent().post(format!("{}/v1/completions", serving.base));
    let mut response = request.send_json(body).unwrap();
    (response.status().as_u16(), response.body_mut().read_json().unwrap())
}

#[test]
fn a_made_up_model_is_served() {
    // A tied head mostly repeats the token that it reads.
    let (folder, path) = write(&with(tiny(), &[("tie_word_embeddings", json!(false))]));
    let path = path.to_str().unwrap();
    // The settings file may say it as well, relative to its own folder.
    let settings = folder.path().join("wardrobe.toml");
    std::fs::write(&settings, "load_format = \"dummy\"\nmodel_config = \"tiny.json\"\ndummy_seed = 5\n")
        .unwrap();
    let of_file = ["serve", "--port", "0", "--kv-memory", "4MiB", "--config", settings.to_str().unwrap()];
    let of_flags =
        ["serve", "--port", "0", "--kv-memory", "4MiB", "--load-format", "dummy", "--config", path];
    let answers: Vec<Value> = [&of_file[..], &[&of_flags[..], &["--dummy-seed", "5"]].concat(), &of_flags[..]]
        .into_iter()
        .map(|args| {
            let serving = Serving::start(wardrobe(args));
            serving.logs("answers make no sense");
            let body = json!({"model": "tiny", "prompt": "Once upon", "max_tokens": 16, "temperature": 0, "ignore_eos": true});
            let (status, answer) = complete(&serving, body);
            assert_eq!(status, 200, "{answer}");
            let usage = |key: &str| answer["usage"][key].as_u64().unwrap();
            assert_eq!((usage("prompt_tokens"), usage("completion_tokens")), (9, 16), "{answer}");
            let (status, chat) = serving.chat("tiny", "Hello", "");
            assert_eq!(status, 200, "{chat}");
            // Answers are held to schemas as of any model.
            let body = json!({"model": "tiny", "prompt": "x", "max_tokens": 16, "structured_outputs": {"choice": ["yes", "no"]}});
            let (status, held) = complete(&serving, body);
            assert_eq!(status, 200, "{held}");
            let text = held["choices"][0]["text"].as_str().unwrap().to_owned();
            assert!(["yes", "no"].contains(&text.as_str()), "{held}");
            answer["choices"][0]["text"].clone()
        })
        .collect();
    assert_eq!(answers[0], answers[1]);
    assert_ne!(answers[1], answers[2], "another seed is another model");
}

#[test]
fn options_that_do_not_go_together_are_refused() {
    let (_folder, path) = write(&tiny());
    let path = path.to_str().unwrap();
    let dummy = ["--load-format", "dummy"];
    for (args, named) in [
        (vec!["bench"], "--load-format dummy"),
        (vec!["serve"], "no model is given"),
        (vec!["bench", "--config", path], "--model-config needs --load-format dummy"),
        (vec!["serve", "--config", path], "--model-config needs --load-format dummy"),
        (vec!["serve", "m", "--dummy-dtype", "bf16"], "--dummy-dtype needs --load-format dummy"),
        (vec!["serve", "m", "--dummy-seed", "1"], "--dummy-seed needs --load-format dummy"),
        ([&["bench"], &dummy[..]].concat(), "needs --model-config"),
        ([&["serve"], &dummy[..]].concat(), "needs --model-config"),
        ([&["bench", "smollm2-135m", "--config", path], &dummy[..]].concat(), "smollm2-135m is given"),
        ([&["serve", "smollm2-135m", "--config", path], &dummy[..]].concat(), "smollm2-135m is given"),
        ([&["serve", "--model-config", "other.json", "--config", path], &dummy[..]].concat(), "other.json"),
        (
            [&["bench", "--url", "http://127.0.0.1:1", "--model", "m", "--config", path], &dummy[..]]
                .concat(),
            "--url",
        ),
    ] {
        let said = fails(&mut wardrobe(&args), 2);
        assert!(said.contains(named), "{args:?}: {said}");
    }
    for args in [["--load-format", "fake"], ["--dummy-dtype", "q5_0"], ["--dummy-seed", "x"]] {
        let output = output(&mut wardrobe(&["bench", args[0], args[1]]));
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(stderr(&output).contains(args[0]), "{args:?}: {}", stderr(&output));
    }
}

#[test]
fn configurations_that_cannot_be_are_refused_by_what_is_wrong() {
    let bench = |path: &Path, more: &[&str]| {
        let mut command = wardrobe(&["bench", "--load-format", "dummy"]);
        let output = output(command.args(more).arg("--config").arg(path));
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        said
    };
    for (changes, named) in [
        (&[("architectures", json!(["GPT2LMHeadModel"]))][..], "GPT2LMHeadModel"),
        (&[("hidden_act", json!("gelu"))], "Gelu"),
        (&[("vocab_size", json!(200)), ("eos_token_id", json!(2))], "200 tokens have no room"),
        (&[("vocab_size", json!(1 << 23))], "tokens, over the limit"),
        (&[("hidden_size", json!(-1))], "hidden_size"),
        (&[("num_hidden_layers", json!(1_u64 << 40))], "num_hidden_layers"),
        (&[("torch_dtype", json!("int4"))], "torch_dtype"),
        (&[("quantization_config", json!({"quant_method": "gptq"}))], "gptq"),
        // Within all bounds, and some petabytes.
        (
            &[
                ("hidden_size", json!(1 << 18)),
                ("intermediate_size", json!(1 << 20)),
                ("num_hidden_layers", json!(2048)),
                ("num_attention_heads", json!(1024)),
                ("num_key_value_heads", json!(1024)),
                ("vocab_size", json!(1 << 21)),
            ],
            "bytes are free",
        ),
    ] {
        let (_folder, path) = write(&with(tiny(), changes));
        let said = bench(&path, &[]);
        assert!(said.contains(named), "{changes:?}: {said}");
    }
    let (folder, path) = write(&tiny());
    let said = bench(&path, &["--dummy-dtype", "q4_k"]);
    assert!(said.contains("model.embed_tokens.weight") && said.contains("256"), "{said}");
    let said = bench(&folder.path().join("none.json"), &[]);
    assert!(said.contains("none.json"), "{said}");
    std::fs::write(&path, "{").unwrap();
    assert!(bench(&path, &[]).contains("invalid JSON"));
}

#[test]
fn what_memory_does_not_hold_is_refused_before_it_is_taken() {
    let (_folder, path) = write(&with(
        tiny(),
        &[
            ("hidden_size", json!(1 << 16)),
            ("head_dim", json!(128)),
            ("intermediate_size", json!(1 << 18)),
            ("num_hidden_layers", json!(500)),
        ],
    ));
    let started = std::time::Instant::now();
    let refused = Model::dummy(&path, &DummyOptions::default(), &ModelOptions::default());
    assert!(matches!(refused, Err(Error::WeightMemory { .. })));
    assert!(started.elapsed() < std::time::Duration::from_secs(5), "it took {:?}", started.elapsed());
    let said = fails(
        wardrobe(&["serve", "--load-format", "dummy", "--port", "0"]).arg("--model-config").arg(&path),
        1,
    );
    assert!(said.contains("the weights would take") && said.contains("--dummy-dtype"), "{said}");
}
