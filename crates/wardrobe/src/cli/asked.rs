//! Who is asked: a model in this process with its adapters, or the models of an endpoint.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use wardrobe::generate::{AskError, Endpoint, EndpointOptions, Generator};
use wardrobe::{AdapterSource, EngineConfig, EngineGenerator, LoadOptions};

use super::failure::UsageError;
use super::open::{self, ModelArgs};
use super::values::AdapterSpec;

/// What a model of another runtime begins with.
const OTHER_RUNTIME: &str = "mistralrs:";

/// Who answers the questions of a command.
#[derive(Debug, clap::Args)]
pub struct AskedArgs {
    /// Who answers: a short name, a hub repository, a folder or a .gguf file, in this process; or the URL of an
    /// OpenAI-compatible endpoint, such as http://127.0.0.1:8000; or mistralrs:REF, a model that mistralrs runs
    #[arg(value_name = "MODEL", required_unless_present = "model", conflicts_with = "model")]
    target: Option<String>,
    /// The same as MODEL
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    #[command(flatten)]
    how: HowArgs,
}

/// Who answers, where it is a teacher.
#[derive(Debug, clap::Args)]
pub struct TeacherArgs {
    /// Who teaches: the URL of an OpenAI-compatible endpoint, such as http://127.0.0.1:8000; or a short name, a hub
    /// repository, a folder or a .gguf file, in this process; or mistralrs:REF, a model that mistralrs runs
    #[arg(long, value_name = "MODEL|URL")]
    teacher: String,
    #[command(flatten)]
    how: HowArgs,
}

/// How it is asked.
#[derive(Debug, clap::Args)]
struct HowArgs {
    /// Ask this adapter of MODEL (a PEFT folder); may be repeated where several are compared
    #[arg(long, value_name = "NAME=PATH")]
    adapter: Vec<AdapterSpec>,
    /// Model or adapter of the endpoint [default: the first that it has]; may be repeated where several are compared
    #[arg(long, value_name = "NAME")]
    served_model: Vec<String>,
    /// File with the endpoint's API key in its first line
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// The longest that one request to the endpoint may take; then it is asked again
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    request_timeout: u64,
    /// The longest context in tokens, for adapters that were trained for a longer one than MODEL's [default: MODEL's]
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    max_context: Option<u32>,
    #[command(flatten)]
    compute: ModelArgs,
}

impl AskedArgs {
    fn asked(&self) -> Asked<'_> {
        let target = self.target.as_ref().or(self.model.as_ref()).map(String::as_str).unwrap_or_default();
        Asked { target, how: &self.how }
    }

    /// Finds what can be wrong before a model is pulled and read.
    pub fn check(&self) -> anyhow::Result<()> {
        self.asked().check()
    }

    /// The one that is asked: the adapter, where one is named.
    pub fn open_one(&self) -> anyhow::Result<Box<dyn Generator>> {
        self.asked().open_one()
    }

    /// All of them: the base first, then the adapters.
    pub fn open(&self) -> anyhow::Result<Vec<Box<dyn Generator>>> {
        self.asked().open()
    }
}

impl TeacherArgs {
    fn asked(&self) -> Asked<'_> {
        Asked { target: &self.teacher, how: &self.how }
    }

    /// Finds what can be wrong before a model is pulled and read.
    pub fn check(&self) -> anyhow::Result<()> {
        self.asked().check()
    }

    /// The teacher: the adapter, where one is named.
    pub fn open_one(&self) -> anyhow::Result<Box<dyn Generator>> {
        self.asked().open_one()
    }
}

/// Where MODEL is.
enum Place<'a> {
    Here(&'a str),
    Endpoint(&'a str),
    OtherRuntime(&'a str),
}

/// MODEL, and how it is asked.
struct Asked<'a> {
    target: &'a str,
    how: &'a HowArgs,
}

impl<'a> Asked<'a> {
    fn place(&self) -> Place<'a> {
        let target = self.target;
        if let Some(reference) = target.strip_prefix(OTHER_RUNTIME) {
            return Place::OtherRuntime(reference);
        }
        match target.starts_with("http://") || target.starts_with("https://") {
            true => Place::Endpoint(target),
            false => Place::Here(target),
        }
    }

    /// Finds what can be wrong before a model is pulled and read.
    fn check(&self) -> anyhow::Result<()> {
        self.how.compute.check()?;
        for spec in &self.how.adapter {
            open::check_adapter(&spec.path)?;
        }
        let is_endpoint = matches!(self.place(), Place::Endpoint(_));
        let wrong = |text: &str| Err(UsageError(text.to_owned()).into());
        if !is_endpoint && !self.how.served_model.is_empty() {
            return wrong("--served-model is for endpoints; MODEL is none");
        }
        if !is_endpoint && self.how.api_key_file.is_some() {
            return wrong("--api-key-file is for endpoints; MODEL is none");
        }
        if !matches!(self.place(), Place::Here(_)) && self.how.max_context.is_some() {
            return wrong("--max-context is for models that Wardrobe's own engine runs in this process");
        }
        if is_endpoint && !self.how.adapter.is_empty() {
            return wrong("an endpoint has its adapters already: name them by --served-model");
        }
        if let (Place::OtherRuntime(_), Some(spec)) = (self.place(), self.how.adapter.first()) {
            let text = format!(
                "the adapter {spec} cannot be asked: {OTHER_RUNTIME} runs models that Wardrobe's engine does not, and \
                 Wardrobe's adapters run in its engine alone"
            );
            return wrong(&text);
        }
        Ok(())
    }

    /// The one that is asked: the adapter, where one is named.
    fn open_one(&self) -> anyhow::Result<Box<dyn Generator>> {
        for (num, flag) in
            [(self.how.adapter.len(), "--adapter"), (self.how.served_model.len(), "--served-model")]
        {
            if num > 1 {
                return Err(UsageError(format!("one model answers: give {flag} once")).into());
            }
        }
        self.open()?.pop().context("nobody is asked")
    }

    /// All of them: the base first, then the adapters.
    fn open(&self) -> anyhow::Result<Vec<Box<dyn Generator>>> {
        match self.place() {
            Place::Here(target) => self.open_here(target),
            Place::Endpoint(url) => self.open_endpoint(url),
            Place::OtherRuntime(reference) => open_other_runtime(reference),
        }
    }

    fn open_here(&self, target: &str) -> anyhow::Result<Vec<Box<dyn Generator>>> {
        let found = open::find(target)?;
        let model = open::open(&found, &self.how.compute.model_options())?;
        let mut options = self.how.compute.engine_options();
        options.config.max_num_sequences = EngineConfig::default().max_num_sequences;
        options.max_context_tokens = self.how.max_context.map(|tokens| tokens as usize);
        let engine = open::engine(&model, &options)?;
        let mut all: Vec<Box<dyn Generator>> =
            vec![Box::new(EngineGenerator::base(&model, &engine, &found.name))];
        for spec in &self.how.adapter {
            let source = AdapterSource::Path(spec.path.clone());
            engine
                .load_adapter(&spec.name, source, LoadOptions::default())
                .with_context(|| format!("cannot load the adapter {spec}"))?;
            all.push(Box::new(EngineGenerator::adapter(&model, &engine, &spec.name)?));
        }
        Ok(all)
    }

    fn open_endpoint(&self, url: &str) -> anyhow::Result<Vec<Box<dyn Generator>>> {
        let file = self.how.api_key_file.as_ref().map(|path| open::read_text(path, 64 << 10)).transpose()?;
        let key = match file {
            Some(text) => Some(text.lines().next().unwrap_or_default().trim().to_owned()),
            None => std::env::var("WARDROBE_ENDPOINT_API_KEY").ok().filter(|key| !key.is_empty()),
        };
        let timeout = Duration::from_secs(self.how.request_timeout);
        let model = self.how.served_model.first().cloned();
        let first = Endpoint::open(EndpointOptions { model, key, timeout, ..EndpointOptions::new(url) })?;
        let others: Vec<_> =
            self.how.served_model.iter().skip(1).map(|name| first.with_model(name)).collect();
        let boxed = |endpoint| -> Box<dyn Generator> { Box::new(endpoint) };
        Ok([first].into_iter().chain(others).map(boxed).collect())
    }
}

#[cfg(feature = "mistralrs")]
fn open_other_runtime(reference: &str) -> anyhow::Result<Vec<Box<dyn Generator>>> {
    Ok(vec![Box::new(wardrobe_mistralrs::MistralRs::open(reference)?)])
}

#[cfg(not(feature = "mistralrs"))]
fn open_other_runtime(reference: &str) -> anyhow::Result<Vec<Box<dyn Generator>>> {
    let error =
        anyhow::anyhow!("{OTHER_RUNTIME}{reference} cannot be asked: this wardrobe was built without it");
    Err(super::failure::with_hint(error, "build it with --features mistralrs"))
}

/// What somebody who is asked refuses, with what helps.
pub fn explained(error: &AskError) -> Option<&'static str> {
    match error {
        AskError::Unsupported { what, .. } if what.contains("chat template") => {
            Some("--raw gives the prompts to the model as they are")
        }
        _ => None,
    }
}
