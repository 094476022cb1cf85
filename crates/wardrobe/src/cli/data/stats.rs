//! `data stats`: how many and how long.

use serde_json::{Value, json};
use wardrobe::data::{DataStats, Encoder, LengthStats};

use super::{BAR_WIDTH, EncodeArgs, ReadArgs, hinted, model_text};
use crate::cli::output;

#[derive(Debug, clap::Args)]
#[command(after_help = STATS_HELP)]
pub struct StatsArgs {
    #[command(flatten)]
    read: ReadArgs,
    /// Count with this model's tokenizer and template
    #[arg(long, value_name = "MODEL")]
    model: String,
    #[command(flatten)]
    encode: EncodeArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

const STATS_HELP: &str = "\
Example:
  wardrobe data stats train.jsonl --model smollm2-135m --prompt-template '### Q: {question}\\n### A:'";
pub fn stats(args: &StatsArgs) -> anyhow::Result<()> {
    let options = args.encode.options(&args.read);
    let text = model_text(&args.model)?;
    let encoder = Encoder::new(&text.tokenizer, text.chat_template.as_deref(), &options).map_err(hinted)?;
    let stats = wardrobe::data::measure(&args.read.file, &encoder, &options).map_err(hinted)?;
    if args.json {
        output::line(&serde_json::to_string_pretty(&stats_json(&stats))?)
    } else {
        output::write_stdout(stats_text(&stats).as_bytes())
    }
}

const PERCENTILES: [usize; 3] = [50, 90, 99];

fn stats_text(stats: &DataStats) -> String {
    let names = ["", "minimum", "mean", "median", "90 %", "99 %", "maximum", "total"];
    let rows = [
        names.map(str::to_owned).to_vec(),
        figures("tokens", &stats.tokens),
        figures("learnt", &stats.supervised_tokens),
    ];
    format!("{}\n\n{}\n{}", stats.counts, output::table(&rows), stats.tokens.histogram_text(BAR_WIDTH))
}

/// A row of a table.
fn figures(name: &str, lengths: &LengthStats) -> Vec<String> {
    let mut row = vec![name.to_owned(), lengths.min().to_string(), format!("{:.1}", lengths.mean())];
    row.extend(PERCENTILES.map(|percent| lengths.percentile(percent).to_string()));
    row.extend([lengths.max().to_string(), lengths.total().to_string()]);
    row
}

fn stats_json(stats: &DataStats) -> Value {
    let lengths = |lengths: &LengthStats| {
        let histogram: Vec<Value> = lengths
            .histogram()
            .iter()
            .map(|bucket| json!({"from": bucket.from, "to": bucket.to, "count": bucket.count}))
            .collect();
        let [p50, p90, p99] = PERCENTILES.map(|percent| lengths.percentile(percent));
        json!({
            "min": lengths.min(), "mean": lengths.mean(), "max": lengths.max(), "total": lengths.total(),
            "p50": p50, "p90": p90, "p99": p99, "histogram": histogram,
        })
    };
    let dropped: serde_json::Map<String, Value> =
        stats.counts.dropped.iter().map(|(reason, count)| (reason.to_string(), (*count).into())).collect();
    json!({
        "records": stats.counts.records,
        "examples": stats.counts.examples,
        "dropped": dropped,
        "tokens": lengths(&stats.tokens),
        "supervised_tokens": lengths(&stats.supervised_tokens),
    })
}
