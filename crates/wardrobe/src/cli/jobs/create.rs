//! `jobs create`: a training file and what to do with it.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::super::output::{self, Style};
use super::api::Api;
use super::{ServerArgs, print_job, show, wait};

#[derive(Debug, clap::Args)]
pub struct CreateArgs {
    /// The base model that the server serves
    #[arg(long, value_name = "NAME")]
    model: String,
    /// Training data: a file on this machine, which is uploaded, or the id of an uploaded one
    #[arg(long, value_name = "FILE")]
    file: String,
    /// Data for evaluation: a file or an id
    #[arg(long, value_name = "FILE")]
    validation_file: Option<String>,
    /// Stands in the adapter's name
    #[arg(long, value_name = "TEXT")]
    suffix: Option<String>,
    /// Passes over the training data [default: the server's]
    #[arg(long, value_name = "N")]
    epochs: Option<u32>,
    /// Examples in a batch [default: the server's]
    #[arg(long, value_name = "N")]
    batch_size: Option<u32>,
    /// Highest learning rate [default: the server's]
    #[arg(long, value_name = "RATE")]
    learning_rate: Option<f64>,
    /// LoRA's rank [default: the server's]
    #[arg(long, value_name = "N")]
    rank: Option<u32>,
    /// LoRA's alpha [default: the server's]
    #[arg(long, value_name = "ALPHA")]
    alpha: Option<f64>,
    /// Checkpoints over the whole training [default: the server's]
    #[arg(long, value_name = "N")]
    checkpoints: Option<u32>,
    /// The same seed and data give the same adapter [default: the server's]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Wait for the end; exit code 1 if the job does not succeed
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    server: ServerArgs,
}

/// Uploads what is a file here; everything else is an id.
fn file_id(api: &Api, given: &str) -> anyhow::Result<String> {
    let path = Path::new(given);
    if given.starts_with("file-") && !path.exists() {
        return Ok(given.to_owned());
    }
    let id = api.upload(path)?;
    output::note(&Style::stderr().dim(&format!("uploaded {given} as {id}")));
    Ok(id)
}

pub fn run(args: &CreateArgs) -> anyhow::Result<()> {
    let api = args.server.api()?;
    let training_file = file_id(&api, &args.file)?;
    let validation_file = args.validation_file.as_deref().map(|given| file_id(&api, given)).transpose()?;
    let mut hyperparameters = Map::new();
    for (name, value) in [
        ("n_epochs", args.epochs.map(Value::from)),
        ("batch_size", args.batch_size.map(Value::from)),
        ("learning_rate", args.learning_rate.map(Value::from)),
        ("lora_rank", args.rank.map(Value::from)),
        ("lora_alpha", args.alpha.map(Value::from)),
        ("n_checkpoints", args.checkpoints.map(Value::from)),
    ] {
        if let Some(value) = value {
            hyperparameters.insert(name.to_owned(), value);
        }
    }
    let body = json!({
        "model": args.model,
        "training_file": training_file,
        "validation_file": validation_file,
        "suffix": args.suffix,
        "seed": args.seed,
        "hyperparameters": hyperparameters,
    });
    let job = api.post("/v1/fine_tuning/jobs", Some(&body))?;
    if !args.wait {
        return print_job(&args.server, &job);
    }
    let id = show::text(&job, "id");
    output::note(&format!("{id} is to become {}", show::text(&job, "output_name")));
    wait(&args.server, &api, id)
}
