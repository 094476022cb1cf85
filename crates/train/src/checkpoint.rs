//! The folder of a run: what it is, its checkpoints, its metrics.
//!
//! ```text
//! run.json             settings, base model and examples: what a resumption must agree with
//! checkpoints/step-00000040/
//!     adapter_config.json, adapter_model.safetensors    an adapter like any other
//!     trainer_state.bin    parameters and both moments, f32, little-endian
//!     trainer_state.json   how far the run was, and the digest of the former
//! metrics.jsonl        a line for each step and evaluation
//! training.html        the same as curves
//! ```
//!
//! A checkpoint appears by a rename after all its files are on disk, and disappears by a rename before any is removed: at
//! whatever instant the process dies, what is under a checkpoint's name is whole. Damage by other means is noticed by the
//! digest, and the checkpoint before is taken.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use wardrobe_data::Dataset;
use wardrobe_device::Ctx;
use wardrobe_formats::Digest;
use wardrobe_formats::peft::{PeftContents, write_peft};

use crate::config::TrainConfig;
use crate::error::{Result, TrainError};
use crate::event::StepMetrics;
use crate::metrics::Metrics;
use crate::output::Origin;
use crate::parameters::Parameters;
use crate::trainer::Plan;

const RUN_FILE: &str = "run.json";
const CHECKPOINTS: &str = "checkpoints";
const STATE_FILE: &str = "trainer_state.bin";
const PROGRESS_FILE: &str = "trainer_state.json";

/// How far a run is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Progress {
    /// Optimizer steps that are done.
    pub(crate) step: usize,
    pub(crate) tokens: u64,
    pub(crate) supervised_tokens: u64,
    pub(crate) seconds: f64,
    /// Step and loss of the best evaluation.
    pub(crate) best: Option<(usize, f64)>,
    pub(crate) evals_since_best: usize,
    /// Whether it ended early.
    pub(crate) is_stopped: bool,
    /// The best evaluation's parameters, of a run without a folder.
    #[serde(skip)]
    pub(crate) best_values: Option<Vec<f32>>,
}

/// `trainer_state.json`.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    version: u32,
    progress: Progress,
    sha256: String,
}

/// What must be the same for a run to go on as if it had never stopped.
pub(crate) fn identity(
    config: &TrainConfig,
    base: Digest,
    examples: [Option<&Dataset>; 2],
    plan: &Plan,
) -> Value {
    let digest = |e: Option<&Dataset>| e.map(|e| hex(e.digest()));
    // What does not change a bit of the result may differ.
    let config = TrainConfig {
        threads: None,
        memory_limit_bytes: None,
        kept_bytes: 0,
        n_checkpoints: 1,
        save_steps: None,
        save_total_limit: 1,
        ..config.clone()
    };
    json!({
        "version": 1,
        "base_digest": base.to_string(),
        "examples_digest": digest(examples[0]),
        "eval_digest": digest(examples[1]),
        "batch_examples": plan.batch_examples,
        "max_rows": plan.max_rows,
        "config": config,
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// A run's folder.
#[derive(Debug)]
pub(crate) struct Run {
    folder: PathBuf,
    metrics: Metrics,
}

impl Run {
    /// Opens the folder, or makes it.
    pub(crate) fn open(folder: &Path, identity: &Value) -> Result<Self> {
        let checkpoints = folder.join(CHECKPOINTS);
        fs::create_dir_all(&checkpoints).map_err(TrainError::io(&checkpoints))?;
        let path = folder.join(RUN_FILE);
        match fs::read(&path) {
            Ok(bytes) => {
                let there: Value = serde_json::from_slice(&bytes).map_err(|e| TrainError::Checkpoint {
                    path: path.clone(),
                    reason: format!("is no JSON: {e}"),
                })?;
                if let Some(key) = first_difference(&there, identity) {
                    let reason = format!(
                        "is of another run: {key} differs. Give another folder, or remove this one to begin anew"
                    );
                    return Err(TrainError::Checkpoint { path, reason });
                }
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let text = serde_json::to_vec_pretty(identity).unwrap_or_default();
                write_whole(&path, &text)?;
            }
            Err(e) => return Err(TrainError::io(&path)(e)),
        }
        // What a process left half made or half removed.
        for entry in entries(&checkpoints)? {
            if entry.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.')) {
                fs::remove_dir_all(&entry).map_err(TrainError::io(&entry))?;
            }
        }
        Ok(Run { folder: folder.to_owned(), metrics: Metrics::open(folder)? })
    }

    /// Reads the newest checkpoint that is whole into the parameters.
    pub(crate) fn resume(&mut self, ctx: &mut Ctx, parameters: &Parameters) -> Result<Option<Progress>> {
        for (_, path) in self.checkpoints()?.into_iter().rev() {
            match read(&path, parameters.layout.len) {
                Ok((state, progress)) => {
                    let [values, first, second] = state;
                    ctx.write_f32(&parameters.values, &values)?;
                    for (to, from) in parameters.moments.iter().zip([first, second]) {
                        ctx.write_f32(to, &from)?;
                    }
                    self.metrics.rewind(progress.step)?;
                    return Ok(Some(progress));
                }
                Err(error) => tracing::warn!(%error, "a checkpoint is left aside"),
            }
        }
        self.metrics.rewind(0)?;
        Ok(None)
    }

    /// The parameters of a step's checkpoint.
    pub(crate) fn values_of(&self, step: usize, parameters: &Parameters) -> Result<Vec<f32>> {
        let ([values, ..], _) = read(&self.path_of(step), parameters.layout.len)?;
        Ok(values)
    }

    /// Writes a checkpoint.
    pub(crate) fn save(
        &self,
        ctx: &mut Ctx,
        parameters: &Parameters,
        progress: &Progress,
        origin: &Origin,
    ) -> Result<PathBuf> {
        let values = ctx.read_f32(&parameters.values)?;
        let mut state: Vec<u8> = Vec::with_capacity(12 * values.len());
        state.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        for moment in &parameters.moments {
            state.extend(ctx.read_f32(moment)?.iter().flat_map(|v| v.to_le_bytes()));
        }
        let described =
            State { version: 1, progress: progress.clone(), sha256: hex(&Sha256::digest(&state)) };
        let described = serde_json::to_vec_pretty(&described).unwrap_or_default();
        let path = self.path_of(progress.step);
        origin.with_contents(parameters, &values, |contents| {
            let extra_files = [(STATE_FILE, state.as_slice()), (PROGRESS_FILE, described.as_slice())];
            let contents = PeftContents { extra_files: &extra_files, ..*contents };
            Ok(write_peft(&path, &contents, true)?)
        })?;
        Ok(path)
    }

    /// Removes all but the newest `limit` checkpoints and the best.
    pub(crate) fn prune(&self, progress: &Progress, limit: usize) -> Result<()> {
        let best = progress.best.map(|(step, _)| step);
        let all = self.checkpoints()?;
        let old = all.len().saturating_sub(limit.max(1));
        for (step, path) in all.into_iter().take(old).filter(|(step, _)| Some(*step) != best) {
            let aside = path.with_file_name(format!(".step-{step:08}.removed"));
            fs::rename(&path, &aside).map_err(TrainError::io(&path))?;
            fs::remove_dir_all(&aside).map_err(TrainError::io(&aside))?;
        }
        Ok(())
    }

    pub(crate) fn log_step(&mut self, metrics: &StepMetrics) -> Result<()> {
        self.metrics.step(metrics)
    }

    pub(crate) fn log_eval(&mut self, step: usize, loss: f64) -> Result<()> {
        self.metrics.eval(step, loss)
    }

    pub(crate) fn close(&mut self) -> Result<()> {
        self.metrics.close()
    }

    fn path_of(&self, step: usize) -> PathBuf {
        self.folder.join(CHECKPOINTS).join(format!("step-{step:08}"))
    }

    /// Steps and folders, ascending.
    fn checkpoints(&self) -> Result<Vec<(usize, PathBuf)>> {
        let mut found: Vec<(usize, PathBuf)> = entries(&self.folder.join(CHECKPOINTS))?
            .into_iter()
            .filter_map(|path| {
                let step = path.file_name()?.to_str()?.strip_prefix("step-")?.parse().ok()?;
                Some((step, path))
            })
            .collect();
        found.sort();
        Ok(found)
    }
}

/// The first key in which two objects differ, as a path.
fn first_difference(a: &Value, b: &Value) -> Option<String> {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => a.keys().chain(b.keys()).find_map(|key| {
            let null = Value::Null;
            let inner = first_difference(a.get(key).unwrap_or(&null), b.get(key).unwrap_or(&null))?;
            Some(if inner.is_empty() { key.clone() } else { format!("{key}.{inner}") })
        }),
        _ if a == b => None,
        _ => Some(String::new()),
    }
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let read = fs::read_dir(folder).map_err(TrainError::io(folder))?;
    read.map(|entry| entry.map(|e| e.path()).map_err(TrainError::io(folder))).collect()
}

/// Values and both moments.
type Flat = [Vec<f32>; 3];

fn read(path: &Path, len: usize) -> Result<(Flat, Progress)> {
    let fail = |reason: String| TrainError::Checkpoint { path: path.to_owned(), reason };
    let described = path.join(PROGRESS_FILE);
    let text = fs::read(&described).map_err(TrainError::io(&described))?;
    let state: State = serde_json::from_slice(&text).map_err(|e| fail(format!("{PROGRESS_FILE}: {e}")))?;
    if state.version != 1 {
        return Err(fail(format!("is of version {}, known is 1", state.version)));
    }
    let file = path.join(STATE_FILE);
    let bytes = fs::read(&file).map_err(TrainError::io(&file))?;
    if bytes.len() != 12 * len {
        return Err(fail(format!("{STATE_FILE} has {} bytes, {} expected", bytes.len(), 12 * len)));
    }
    if hex(&Sha256::digest(&bytes)) != state.sha256 {
        return Err(fail(format!("{STATE_FILE} is damaged: its digest differs")));
    }
    let mut values = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b));
    let mut take = || values.by_ref().take(len).collect::<Vec<f32>>();
    Ok(([take(), take(), take()], state.progress))
}

/// Writes a file whole or not at all.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    use std::io::Write;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".new-{}", std::process::id()));
    let staging = path.with_file_name(name);
    let write = || -> std::io::Result<()> {
        let mut file = fs::File::create(&staging)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&staging, path)
    };
    write().map_err(|e| {
        // What is left would only be in the way.
        let _ = fs::remove_file(&staging);
        TrainError::io(path)(e)
    })
}
