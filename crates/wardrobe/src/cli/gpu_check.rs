//! `gpu-check`: whether a GPU computes what it should, and how fast.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use wardrobe::gpu_check::{GpuCheckOptions, GpuReport, gpu_check};

use super::log;
use super::output;

#[derive(Debug, clap::Args)]
pub struct GpuCheckArgs {
    /// Where the report goes, as JSON
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Which GPU, from 0
    #[arg(long, value_name = "N", default_value_t = 0)]
    gpu: usize,
    /// What random operands follow from [default: another one each time]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Time nothing: whether it computes correctly is enough
    #[arg(long)]
    no_speed: bool,
    /// config.json of the model whose steps are timed, with weights that are made up [default: Llama-3.1-8B, which takes 40 GB]
    #[arg(long, value_name = "FILE", conflicts_with = "no_speed")]
    config: Option<PathBuf>,
}

/// Checks, prints and writes; an error if anything did not hold.
pub fn run(args: &GpuCheckArgs) -> anyhow::Result<()> {
    log::init_quiet()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |now| now.as_nanos() as u64);
    let options = GpuCheckOptions {
        ordinal: args.gpu,
        seed: args.seed.unwrap_or(now),
        speed: !args.no_speed,
        config: args.config.clone(),
    };
    // A case that fails panics, which is told in the end.
    std::panic::set_hook(Box::new(|_| ()));
    let checked = gpu_check(&options, &mut |what| eprintln!("{what}"));
    drop(std::panic::take_hook());
    let report = checked?;
    if let Some(path) = &args.out {
        let text = serde_json::to_string_pretty(&report)?;
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    output::write_stdout(text(&report).as_bytes())?;
    let failures = report.failures();
    anyhow::ensure!(failures.is_empty(), "{} checks failed:\n{}", failures.len(), failures.join("\n"));
    Ok(())
}

fn text(report: &GpuReport) -> String {
    let GpuReport { card, memory_bytes, seed, open_s, cases, goldens, swaps, .. } = report;
    let passed = cases.iter().filter(|case| case.error.is_none()).count();
    let mut text = format!(
        "{card}, {}; ready in {open_s:.1} s; seed {seed}\n\
         {passed} of {} cases hold\n\
         a small model: {:.0} % of choices as on the CPU, log-probabilities within {:.4} (bound {})\n\
         {} replacements under load: {} answers, {} wrong, {} failed\n\
         a large copy moves {:.0} GB/s",
        output::size(*memory_bytes as u64),
        cases.len(),
        100.0 * goldens.same_choice,
        goldens.largest_difference,
        goldens.bound,
        swaps.num_replacements,
        swaps.num_answers,
        swaps.num_wrong,
        swaps.num_failed,
        report.copy_bytes_per_second / 1e9,
    );
    if let Some(ops) = report.gemm_ops_per_second {
        text.push_str(&format!(", a large bf16 product does {:.0} TFLOP/s", ops / 1e12));
    }
    text.push('\n');
    let share =
        |share: Option<f64>| share.map_or_else(String::new, |share| format!("{:.0} %", 100.0 * share));
    let rows: Vec<Vec<String>> = report
        .speed
        .iter()
        .map(|result| {
            let rate = if result.num_tokens > 0 {
                format!("{:.0} tok/s", result.tokens_per_second)
            } else {
                String::new()
            };
            vec![
                result.name.clone(),
                format!("{:.3} ms", result.median_ms),
                rate,
                share(result.share_of_copy),
                share(result.share_of_gemm),
            ]
        })
        .collect();
    if !rows.is_empty() {
        let head = ["step", "median", "", "of the copy", "of the product"].map(str::to_owned).to_vec();
        let all: Vec<Vec<String>> = std::iter::once(head).chain(rows).collect();
        text.push_str(&output::table(&all));
    }
    text
}
