//! Recorded steps: a CUDA graph for each shape of a step of generation.
//!
//! The first step of a shape runs plainly, since libraries choose their algorithms and workspaces grow then; the second is recorded.
//! What is recorded refers to addresses: of weights, of the arena, of a step's fixed inputs, of workspaces and of the tables of
//! adapters and RoPE, none of which changes.

use std::collections::HashSet;
use std::sync::Arc;

use wardrobe_device::{DeviceError, GraphKey, Result, StepMode};

use crate::driver::{Driver, Graph, Stream};

/// Graphs that are kept; the least recently used makes room.
const MAX_GRAPHS: usize = 128;
/// Rows of a step of generation up to which it is recorded. More of them keep the card busy without.
const MAX_ROWS: usize = 512;

/// The shape in which a step of generation is run.
pub(crate) fn padded(key: &GraphKey) -> GraphKey {
    if !key.is_one_row_a_sequence() || key.num_rows > MAX_ROWS {
        return *key;
    }
    let rows = match key.num_rows {
        rows @ ..=4 => rows.next_power_of_two(),
        rows @ ..=64 => rows.next_multiple_of(8),
        rows @ ..=128 => rows.next_multiple_of(16),
        rows @ ..=256 => rows.next_multiple_of(32),
        rows => rows.next_multiple_of(64),
    };
    let max_blocks = key.max_blocks.next_power_of_two().max(16);
    GraphKey { num_rows: rows, num_seqs: rows, num_logit_rows: rows, max_blocks, ..*key }
}

/// The graphs of one stream.
#[derive(Debug)]
pub(crate) struct Steps {
    driver: Arc<dyn Driver>,
    stream: Stream,
    /// The least recently used first.
    graphs: Vec<(GraphKey, Graph)>,
    seen: HashSet<GraphKey>,
    is_recording: bool,
    may_be_recorded: bool,
}

impl Steps {
    pub(crate) fn new(driver: Arc<dyn Driver>, stream: Stream) -> Self {
        Steps {
            driver,
            stream,
            graphs: Vec::new(),
            seen: HashSet::new(),
            is_recording: false,
            may_be_recorded: false,
        }
    }

    pub(crate) fn is_recording(&self) -> bool {
        self.is_recording
    }

    /// Whether the step that runs is of a shape that is recorded when it comes again: it may not wait for the card.
    pub(crate) fn may_be_recorded(&self) -> bool {
        self.may_be_recorded
    }

    pub(crate) fn begin(&mut self, key: &GraphKey) -> Result<StepMode> {
        self.may_be_recorded = key.is_one_row_a_sequence() && key.num_rows <= MAX_ROWS;
        if !self.may_be_recorded {
            return Ok(StepMode::Run);
        }
        if let Some(idx) = self.graphs.iter().position(|(k, _)| k == key) {
            let graph = self.graphs.remove(idx);
            self.graphs.push(graph);
            return Ok(StepMode::Replay);
        }
        if self.seen.insert(*key) {
            return Ok(StepMode::Run);
        }
        self.driver.begin_capture(self.stream)?;
        self.is_recording = true;
        Ok(StepMode::Capture)
    }

    /// Runs what was recorded, which was not done meanwhile.
    pub(crate) fn end(&mut self, key: &GraphKey, ok: bool) -> Result<()> {
        self.may_be_recorded = false;
        if !std::mem::take(&mut self.is_recording) {
            return Ok(());
        }
        let graph = self.driver.end_capture(self.stream, ok)?;
        let Some(graph) = graph.filter(|_| ok) else {
            let reason = "the step could not be recorded".to_owned();
            return if ok { Err(DeviceError::Driver { call: "cuStreamEndCapture", reason }) } else { Ok(()) };
        };
        if self.graphs.len() >= MAX_GRAPHS {
            let (_, oldest) = self.graphs.remove(0);
            self.driver.destroy_graph(oldest);
        }
        self.graphs.push((*key, graph));
        self.replay(key)
    }

    pub(crate) fn replay(&self, key: &GraphKey) -> Result<()> {
        match self.graphs.iter().find(|(k, _)| k == key) {
            // SAFETY: what it refers to is kept by the context and by the ops; contents were checked when the step was staged.
            Some((_, graph)) => unsafe { self.driver.launch_graph(self.stream, *graph) },
            None => {
                let reason = format!("nothing is recorded under {key:?}");
                Err(DeviceError::Invalid { op: "replay", reason })
            }
        }
    }

    /// Forgets what was recorded, but not what was seen: rooms, which have moved, have grown for that.
    pub(crate) fn drop_graphs(&mut self) {
        for (_, graph) in self.graphs.drain(..) {
            self.driver.destroy_graph(graph);
        }
    }

    pub(crate) fn forget(&mut self) {
        if std::mem::take(&mut self.is_recording)
            && let Err(error) = self.driver.end_capture(self.stream, false)
        {
            tracing::warn!(%error, "ending a recording");
        }
        self.seen.clear();
        self.drop_graphs();
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        self.forget();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(num_rows: usize, max_blocks: usize) -> GraphKey {
        GraphKey { num_rows, num_seqs: num_rows, max_blocks, num_logit_rows: num_rows, with_lora: false }
    }

    #[test]
    fn few_shapes_and_none_smaller() {
        let mut shapes = HashSet::new();
        for rows in 1..=512 {
            for blocks in [1, 16, 17, 100, 512] {
                let (own, padded) = (key(rows, blocks), padded(&key(rows, blocks)));
                assert!(padded.num_rows >= own.num_rows && padded.max_blocks >= own.max_blocks, "{own:?}");
                assert!(padded.is_one_row_a_sequence());
                assert!(
                    padded.num_rows <= own.num_rows + own.num_rows.div_ceil(3).max(7),
                    "{own:?}: {padded:?}"
                );
                assert_eq!(super::padded(&padded), padded);
                shapes.insert(padded);
            }
        }
        assert!(shapes.len() <= MAX_GRAPHS, "{}", shapes.len());
        // A prompt beside others, and rows without logits, stay as they are.
        let prompt = GraphKey { num_rows: 7, ..key(3, 5) };
        assert_eq!(padded(&prompt), prompt);
    }
}
