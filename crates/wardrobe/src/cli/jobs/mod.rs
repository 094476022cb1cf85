//! `jobs`: fine-tuning jobs of a running server, asked for over HTTP.

mod api;
mod create;
mod show;

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use self::api::Api;
use super::output::{self, Style};
use super::{log, open};

/// How often a job that is waited for is looked at.
const PAUSE: Duration = Duration::from_millis(500);

#[derive(Debug, clap::Subcommand)]
#[command(after_help = EXAMPLES)]
pub enum JobsCommand {
    /// List the jobs, newest first
    List(ListArgs),
    /// Show one job
    Show(JobArgs),
    /// Upload a training file if need be, and queue a job over it
    Create(Box<create::CreateArgs>),
    /// Show what happened to a job, oldest first
    Events(EventsArgs),
    /// Wait for a job's end; exit code 1 if it does not succeed
    Wait(JobArgs),
    /// Cancel a job
    Cancel(JobArgs),
}

const EXAMPLES: &str = "\
Examples:
  wardrobe jobs create --model smollm2-135m --file train.jsonl --suffix mine --wait
  wardrobe jobs list --url http://127.0.0.1:8000
  wardrobe jobs events ft-… --follow";

/// Which server, and how to print.
#[derive(Debug, clap::Args)]
pub struct ServerArgs {
    /// The server, with or without /v1
    #[arg(
        long,
        value_name = "URL",
        env = "WARDROBE_JOBS_URL",
        hide_env = true,
        default_value = "http://127.0.0.1:8000"
    )]
    url: String,
    /// File with the server's API key in its first line
    #[arg(long, value_name = "FILE", env = "WARDROBE_JOBS_API_KEY_FILE", hide_env = true)]
    api_key_file: Option<PathBuf>,
    /// Print the server's JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub struct ListArgs {
    /// Jobs at most
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=1000))]
    limit: u64,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Debug, clap::Args)]
pub struct JobArgs {
    /// The job's id
    #[arg(value_name = "JOB")]
    id: String,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Debug, clap::Args)]
pub struct EventsArgs {
    /// The job's id
    #[arg(value_name = "JOB")]
    id: String,
    /// Go on until the job ends
    #[arg(long, short)]
    follow: bool,
    #[command(flatten)]
    server: ServerArgs,
}

/// Runs a command on jobs.
pub fn run(command: &JobsCommand) -> anyhow::Result<()> {
    log::init_quiet()?;
    match command {
        JobsCommand::List(args) => list(args),
        JobsCommand::Show(args) => {
            let api = args.server.api()?;
            print_job(&args.server, &api.get(&job_path(&args.id, ""))?)
        }
        JobsCommand::Create(args) => create::run(args),
        JobsCommand::Events(args) => events(args),
        JobsCommand::Wait(args) => wait(&args.server, &args.server.api()?, &args.id),
        JobsCommand::Cancel(args) => {
            let api = args.server.api()?;
            print_job(&args.server, &api.post(&job_path(&args.id, "/cancel"), None)?)
        }
    }
}

impl ServerArgs {
    fn api(&self) -> anyhow::Result<Api> {
        let key = self.api_key_file.as_ref().map(|path| open::read_text(path, 64 << 10)).transpose()?;
        let key = key.map(|text| text.lines().next().unwrap_or_default().trim().to_owned());
        Ok(Api::new(&self.url, key.as_deref()))
    }
}

/// The path of a job, whose id may be anything that was typed.
fn job_path(id: &str, rest: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let encode = |byte: u8| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    format!("/v1/fine_tuning/jobs/{}{rest}", id.bytes().map(encode).collect::<String>())
}

fn print_json(value: &Value) -> anyhow::Result<()> {
    output::line(&serde_json::to_string_pretty(value)?)
}

fn print_job(args: &ServerArgs, job: &Value) -> anyhow::Result<()> {
    if args.json {
        return print_json(job);
    }
    output::write_stdout(show::job(job, Style::stdout()).as_bytes())
}

fn list(args: &ListArgs) -> anyhow::Result<()> {
    let page = args.server.api()?.get(&format!("/v1/fine_tuning/jobs?limit={}", args.limit))?;
    if args.server.json {
        return print_json(&page);
    }
    output::write_stdout(show::list(&page, Style::stdout()).as_bytes())
}

/// Whether a job will not change any more.
fn has_ended(job: &Value) -> bool {
    matches!(show::text(job, "status"), "succeeded" | "failed" | "cancelled")
}

fn events(args: &EventsArgs) -> anyhow::Result<()> {
    let api = args.server.api()?;
    let mut last = None::<String>;
    loop {
        // The job first: what happens after this look is shown by the next one.
        let ended = has_ended(&api.get(&job_path(&args.id, ""))?);
        for event in api.events_since(&job_path(&args.id, "/events"), last.as_deref())? {
            match args.server.json {
                true => output::line(&event.to_string())?,
                false => output::line(&show::event(&event, Style::stdout()))?,
            }
            last = Some(show::text(&event, "id").to_owned());
        }
        if ended || !args.follow {
            return Ok(());
        }
        std::thread::sleep(PAUSE);
    }
}

fn wait(args: &ServerArgs, api: &Api, id: &str) -> anyhow::Result<()> {
    let mut said = String::new();
    let job = loop {
        let job = api.get(&job_path(id, ""))?;
        if has_ended(&job) {
            break job;
        }
        let now = show::progress(&job);
        if now != said {
            output::note(&Style::stderr().dim(&now));
            said = now;
        }
        std::thread::sleep(PAUSE);
    };
    print_job(args, &job)?;
    match show::text(&job, "status") {
        "succeeded" => Ok(()),
        status => {
            let reason = job.pointer("/error/message").and_then(Value::as_str);
            anyhow::bail!("{id} {status}{}", reason.map(|reason| format!(": {reason}")).unwrap_or_default())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_do_not_leave_their_place_in_the_path() {
        assert_eq!(job_path("ft-1a", "/events"), "/v1/fine_tuning/jobs/ft-1a/events");
        assert_eq!(job_path("../x?y", ""), "/v1/fine_tuning/jobs/..%2Fx%3Fy");
    }
}
