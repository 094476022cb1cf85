//! `data check`: a file's errors by line.

use std::path::Path;

use serde_json::{Value, json};
use wardrobe::data::{CheckOptions, Encoder, Finding, Report};

use super::{EncodeArgs, ReadArgs, hinted, model_text};
use crate::cli::output::{self, Style};

#[derive(Debug, clap::Args)]
#[command(after_help = CHECK_HELP)]
pub struct CheckArgs {
    #[command(flatten)]
    read: ReadArgs,
    /// Tokenize for this model, too: tells what its template refuses, and what is too long
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    #[command(flatten)]
    encode: EncodeArgs,
    /// Errors, and warnings, that are printed; the rest are counted
    #[arg(long, value_name = "N", default_value_t = 50)]
    max_errors: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

const CHECK_HELP: &str = "\
Records are messages, conversations (ShareGPT), prompt/completion, instruction/[input]/output, instruction/response,
question/answer, input/output, or text. Exit code 1 if there is an error; warnings alone are none.

Examples:
  wardrobe data check train.jsonl
  wardrobe data check train.csv --prompt-column title --completion-column label --model smollm2-135m";
pub fn check(args: &CheckArgs) -> anyhow::Result<()> {
    let options = args.encode.options(&args.read);
    let text = args.model.as_deref().map(model_text).transpose()?;
    let encoder =
        text.as_ref().map(|text| Encoder::new(&text.tokenizer, text.chat_template.as_deref(), &options));
    let encoder = encoder.transpose().map_err(hinted)?;
    let check = CheckOptions { read: options.read_options(), max_findings: args.max_errors };
    let path = &args.read.file;
    let report = wardrobe::data::check_encoded(path, &check, encoder.as_ref()).map_err(hinted)?;
    if args.json {
        output::line(&serde_json::to_string_pretty(&report_json(path, &report))?)?;
    } else {
        output::write_stdout(report_text(path, &report, Style::stdout()).as_bytes())?;
    }
    match report.num_errors {
        0 => Ok(()),
        1 => anyhow::bail!("{} has an error", path.display()),
        count => anyhow::bail!("{} has {count} errors", path.display()),
    }
}

fn report_text(path: &Path, report: &Report, style: Style) -> String {
    let mut text = String::new();
    let mut list = |findings: &[Finding], all: u64, kind: &str| {
        for finding in findings {
            text.push_str(&format!("{kind} {}\n", finding.in_file(path)));
        }
        let more = all - findings.len() as u64;
        if more > 0 {
            text.push_str(&format!("{kind} … {more} more\n"));
        }
    };
    list(&report.errors, report.num_errors, &style.bad("error:"));
    list(&report.warnings, report.num_warnings, &style.note("warning:"));
    let layout = report.layout.as_deref().map_or_else(String::new, |layout| format!(" ({layout})"));
    text.push_str(&format!(
        "{}: {}, {} records{layout}, {} errors, {} warnings\n",
        path.display(),
        report.format.name(),
        report.num_records,
        report.num_errors,
        report.num_warnings
    ));
    text
}

fn report_json(path: &Path, report: &Report) -> Value {
    let findings = |findings: &[Finding]| -> Vec<Value> {
        let one = |finding: &Finding| {
            let (kind, number) = place(finding);
            json!({ kind: number, "key": finding.key, "message": finding.message })
        };
        findings.iter().map(one).collect()
    };
    json!({
        "file": path.to_string_lossy(),
        "format": report.format.name(),
        "layout": report.layout,
        "records": report.num_records,
        "num_errors": report.num_errors,
        "num_warnings": report.num_warnings,
        "errors": findings(&report.errors),
        "warnings": findings(&report.warnings),
    })
}

/// The name and number of a finding's place.
fn place(finding: &Finding) -> (&'static str, Option<u64>) {
    use wardrobe::data::Place;
    match finding.place {
        Some(Place::Row(number)) => ("row", Some(number)),
        Some(Place::Line(number)) => ("line", Some(number)),
        _ => ("line", None),
    }
}
