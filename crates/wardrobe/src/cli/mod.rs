//! The command line: one file a command, and what they share.
//!
//! Exit codes: 0 done, 1 failed, 2 the command line itself is wrong, 130 or 143 ended by a second signal.

mod adapter;
mod asked;
mod bench;
mod cache;
mod chat;
mod check;
mod data;
mod deploy;
mod distill;
mod doctor;
mod dummy;
mod eval;
mod failure;
mod gpu_check;
mod http;
mod jobs;
mod label;
mod log;
mod merge;
mod open;
mod output;
mod progress;
mod quickstart;
mod run;
mod serve;
mod settings;
mod shipped;
mod signals;
mod sources;
mod train;
mod tuning;
mod values;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

/// Serve one base model with a wardrobe of LoRA adapters.
#[derive(Debug, Parser)]
#[command(name = "wardrobe", version, max_term_width = 100, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  wardrobe quickstart                           see it work, in a minute
  wardrobe pull smollm2-135m                    get a model
  wardrobe chat smollm2-135m                    talk to it here
  wardrobe serve smollm2-135m --adapter mine=./my-adapter
                                                an OpenAI-compatible endpoint, with an adapter

Every option is also an environment variable: WARDROBE_<OPTION> for serve and for how to compute (--threads is
WARDROBE_THREADS), else WARDROBE_<COMMAND>_<OPTION> (run --max-tokens is WARDROBE_RUN_MAX_TOKENS). The file that
WARDROBE_CONFIG names has the same as keys, in tables [run], [chat], [eval], [label], [distill], [bench],
[quickstart] and [pull].
Logs go to stderr; WARDROBE_LOG sets what is logged (error, warn, info, debug, or wardrobe_engine=debug,warn).
Models are cached in $WARDROBE_CACHE, by default ~/.cache/wardrobe.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Show it all: serve a small model, load two adapters, swap one under load
    Quickstart(quickstart::QuickstartArgs),
    /// Serve a model and adapters over an OpenAI-compatible endpoint
    Serve(Box<serve::ServeArgs>),
    /// Answer one prompt
    Run(run::RunArgs),
    /// Talk to a model in the terminal
    Chat(chat::ChatArgs),
    /// Get a model onto this machine
    Pull(cache::PullArgs),
    /// List the models in the cache, and those that have a short name
    List(cache::ListArgs),
    /// Remove a model from the cache
    Rm(cache::RmArgs),
    /// Look into adapters
    #[command(subcommand)]
    Adapter(adapter::AdapterCommand),
    /// Check, measure and part data sets, and make them
    #[command(subcommand)]
    Data(data::DataCommand),
    /// Fine-tune a LoRA adapter of a model on your data
    Train(Box<train::TrainArgs>),
    /// Measure how good a model and its adapters are at a task, on the same items
    Eval(Box<eval::EvalArgs>),
    /// Label every record of a file, held to a JSON schema; killed, it goes on where it ended
    Label(Box<label::LabelArgs>),
    /// Ask a teacher the questions of a file, and make data of its answers; killed, it goes on where it ended
    Distill(Box<distill::DistillArgs>),
    /// Write a model with an adapter merged into its weights
    Merge(merge::MergeArgs),
    /// Write a folder that serves fine-tuned adapters: settings, key, systemd unit, Containerfile, test
    Deploy(Box<deploy::DeployArgs>),
    /// Look after fine-tuning jobs of a running server
    #[command(subcommand)]
    Jobs(jobs::JobsCommand),
    /// Measure speed and memory, beside what the machine can do
    Bench(Box<bench::BenchArgs>),
    /// Check what this machine offers and whether everything is in place
    Doctor(doctor::DoctorArgs),
    /// Check a GPU: does it compute what the CPU does, and how fast?
    GpuCheck(gpu_check::GpuCheckArgs),
    /// Print a completion script for a shell
    Completions(CompletionsArgs),
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  wardrobe completions bash > ~/.local/share/bash-completion/completions/wardrobe"
)]
struct CompletionsArgs {
    /// The shell
    shell: clap_complete::Shell,
}

/// Reads the command line, runs the command, and prints what went wrong.
pub fn main() -> ExitCode {
    let command = match sources::with_sources(Cli::command()) {
        Ok(command) => command,
        Err(error) => return failure::report(&error),
    };
    let cli = Cli::from_arg_matches(&command.clone().get_matches());
    let cli = cli.unwrap_or_else(|error| error.format(&mut command.clone()).exit());
    let result = match cli.command {
        Command::Quickstart(args) => quickstart::run(&args),
        Command::Serve(args) => serve::run(*args),
        Command::Run(args) => run::run(&args),
        Command::Chat(args) => chat::run(&args),
        Command::Pull(args) => cache::pull(&args),
        Command::List(args) => cache::list(&args),
        Command::Rm(args) => cache::remove(&args),
        Command::Adapter(command) => adapter::run(&command),
        Command::Data(command) => data::run(&command),
        Command::Train(args) => train::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Label(args) => label::run(&args),
        Command::Distill(args) => distill::run(&args),
        Command::Merge(args) => merge::run(&args),
        Command::Deploy(args) => deploy::run(&args),
        Command::Jobs(command) => jobs::run(&command),
        Command::Bench(args) => bench::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::GpuCheck(args) => gpu_check::run(&args),
        Command::Completions(args) => completions(args.shell),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failure::report(&error),
    }
}

fn completions(shell: clap_complete::Shell) -> anyhow::Result<()> {
    // Into memory first: the generator panics when its writer fails, as a closed pipe does.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "wardrobe", &mut script);
    output::write_stdout(&script)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        super::sources::with_environment(super::Cli::command()).debug_assert();
    }
}
