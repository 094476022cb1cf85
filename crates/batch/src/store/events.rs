//! Rows of events and checkpoints, and what a running job reports beside them.

use rusqlite::{Connection, OptionalExtension, Row, params};
use serde_json::Value;

use super::{Failure, Store, cursor, number, unreadable, whole};
use crate::error::{BatchError, Result};
use crate::ids::now_ms;
use crate::job::{Checkpoint, CheckpointMetrics, EarlyStop, Event, EventKind, EventLevel, JobProgress, Page};

const EVENT_COLUMNS: &str = "seq, created_at_ms, level, kind, message, data";
const CHECKPOINT_COLUMNS: &str = "seq, step, created_at_ms, adapter_dir, metrics";
const EVENT_PREFIX: &str = "ftevent-";
const CHECKPOINT_PREFIX: &str = "ftckpt-";

/// Texts in the store have a length, whatever is reported.
const MAX_MESSAGE_CHARS: usize = 4000;

fn event(row: &Row<'_>) -> rusqlite::Result<Event> {
    let (level, kind, data): (String, String, String) = (row.get(2)?, row.get(3)?, row.get(5)?);
    Ok(Event {
        id: format!("{EVENT_PREFIX}{}", row.get::<_, i64>(0)?),
        created_at_ms: row.get(1)?,
        level: EventLevel::from_name(&level).ok_or_else(|| unreadable(2, "an unknown level"))?,
        kind: EventKind::from_name(&kind).ok_or_else(|| unreadable(3, "an unknown kind"))?,
        message: row.get(4)?,
        data: serde_json::from_str(&data).map_err(|error| unreadable(5, error))?,
    })
}

fn checkpoint(row: &Row<'_>) -> rusqlite::Result<Checkpoint> {
    let metrics: String = row.get(4)?;
    Ok(Checkpoint {
        id: format!("{CHECKPOINT_PREFIX}{}", row.get::<_, i64>(0)?),
        step: whole(row.get(1)?),
        created_at_ms: row.get(2)?,
        adapter_dir: row.get(3)?,
        metrics: serde_json::from_str(&metrics).map_err(|error| unreadable(4, error))?,
    })
}

/// The row of a job.
pub(super) fn job_seq(connection: &Connection, id: &str) -> Result<i64, Failure> {
    let seq =
        connection.query_row("SELECT seq FROM jobs WHERE id = ?1", [id], |row| row.get(0)).optional()?;
    seq.ok_or_else(|| BatchError::UnknownJob { id: id.chars().take(80).collect() }.into())
}

/// Adds an event to the job of this row.
pub(super) fn insert_event(
    connection: &Connection,
    job: i64,
    (level, kind): (EventLevel, EventKind),
    message: &str,
    data: &Value,
) -> Result<(), Failure> {
    let now = now_ms();
    let message: String = message.chars().take(MAX_MESSAGE_CHARS).collect();
    connection.execute(
        "INSERT INTO events (job, created_at_ms, level, kind, message, data) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        params![job, now, level.name(), kind.name(), message, data.to_string()],
    )?;
    connection.execute("UPDATE jobs SET updated_at_ms = ?2 WHERE seq = ?1", params![job, now])?;
    Ok(())
}

fn write_progress(connection: &Connection, job: i64, progress: &JobProgress) -> Result<(), Failure> {
    connection.execute(
        "UPDATE jobs SET updated_at_ms = ?2, steps_completed = ?3, total_steps = ?4, epochs_completed = ?5, \
         evals_completed = ?6, trained_tokens = ?7, estimated_finish_ms = ?8 WHERE seq = ?1",
        params![
            job,
            now_ms(),
            number(progress.steps_completed),
            progress.total_steps.map(number),
            number(progress.epochs_completed),
            number(progress.evals_completed),
            number(progress.trained_tokens),
            progress.estimated_finish_ms,
        ],
    )?;
    Ok(())
}

/// Takes `prefix` off an id and reads its number.
fn id_number(id: &str, prefix: &str) -> Option<i64> {
    id.strip_prefix(prefix)?.parse().ok()
}

impl Store {
    pub fn add_event(
        &self,
        job_id: &str,
        level: EventLevel,
        kind: EventKind,
        message: &str,
        data: &Value,
    ) -> Result<()> {
        self.change(|transaction| {
            let job = job_seq(transaction, job_id)?;
            insert_event(transaction, job, (level, kind), message, data)
        })
    }

    /// Adds the event of a step and says how far the job is, at once.
    pub fn add_step(&self, job_id: &str, message: &str, data: &Value, progress: &JobProgress) -> Result<()> {
        self.change(|transaction| {
            let job = job_seq(transaction, job_id)?;
            insert_event(transaction, job, (EventLevel::Info, EventKind::Metrics), message, data)?;
            write_progress(transaction, job, progress)
        })
    }

    pub fn set_progress(&self, job_id: &str, progress: &JobProgress) -> Result<()> {
        self.change(|transaction| write_progress(transaction, job_seq(transaction, job_id)?, progress))
    }

    pub fn set_early_stop(&self, job_id: &str, stop: &EarlyStop) -> Result<()> {
        let stop = serde_json::to_string(stop).unwrap_or_default();
        self.change(|transaction| {
            let job = job_seq(transaction, job_id)?;
            transaction.execute("UPDATE jobs SET early_stop = ?2 WHERE seq = ?1", params![job, stop])?;
            Ok(())
        })
    }

    /// Adds a checkpoint, or replaces that of the same step, and tells of it.
    pub fn add_checkpoint(
        &self,
        job_id: &str,
        step: u64,
        adapter_dir: &str,
        metrics: &CheckpointMetrics,
    ) -> Result<()> {
        let metrics = serde_json::to_string(metrics).unwrap_or_else(|_| "{}".to_owned());
        self.change(|transaction| {
            let job = job_seq(transaction, job_id)?;
            transaction.execute(
                "INSERT INTO checkpoints (job, step, created_at_ms, adapter_dir, metrics) \
                 VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (job, step) DO UPDATE SET \
                 created_at_ms = excluded.created_at_ms, adapter_dir = excluded.adapter_dir, \
                 metrics = excluded.metrics",
                params![job, number(step), now_ms(), adapter_dir, metrics],
            )?;
            let data = serde_json::json!({"step": step});
            let message = format!("Checkpoint written at step {step}");
            insert_event(transaction, job, (EventLevel::Info, EventKind::CheckpointSave), &message, &data)
        })
    }

    /// A page of a job's events, newest first.
    pub fn events(&self, job_id: &str, after: Option<&str>, limit: usize) -> Result<Page<Event>> {
        self.read(|connection| {
            let job = job_seq(connection, job_id)?;
            let mut before = i64::MAX;
            if let Some(id) = after {
                let query = "SELECT seq FROM events WHERE job = ?1 AND seq = ?2";
                before = cursor(connection, query, &[&job, &id_number(id, EVENT_PREFIX)], id)?;
            }
            let query = format!(
                "SELECT {EVENT_COLUMNS} FROM events WHERE job = ?1 AND seq < ?2 ORDER BY seq DESC LIMIT ?3"
            );
            let mut query = connection.prepare(&query)?;
            let values = params![job, before, number(limit as u64).saturating_add(1)];
            let mut items: Vec<_> = query.query_map(values, event)?.collect::<Result<_, _>>()?;
            let has_more = items.len() > limit;
            items.truncate(limit);
            Ok(Page { items, has_more })
        })
    }

    /// A job's newest `limit` events of other kinds than metrics, oldest first.
    pub fn milestones(&self, job_id: &str, limit: usize) -> Result<Vec<Event>> {
        self.read(|connection| {
            let job = job_seq(connection, job_id)?;
            let query = format!(
                "SELECT {EVENT_COLUMNS} FROM events WHERE job = ?1 AND kind <> 'metrics' \
                 ORDER BY seq DESC LIMIT ?2"
            );
            let mut query = connection.prepare(&query)?;
            let values = params![job, number(limit as u64)];
            let mut items: Vec<_> = query.query_map(values, event)?.collect::<Result<_, _>>()?;
            items.reverse();
            Ok(items)
        })
    }

    /// The numbers of a job's steps in their order, from the newest run of each step, at most the last `limit`. `visit`
    /// gets when they were reported, and the numbers.
    pub fn metrics(&self, job_id: &str, limit: usize) -> Result<Vec<(i64, Value)>> {
        self.read(|connection| {
            let job = job_seq(connection, job_id)?;
            // A step that was run again after a restart counts as its last run has it.
            let mut query = connection.prepare(
                "SELECT created_at_ms, data FROM events WHERE seq IN \
                 (SELECT max(seq) FROM events WHERE job = ?1 AND kind = 'metrics' \
                  GROUP BY json_extract(data, '$.step')) \
                 ORDER BY json_extract(data, '$.step') DESC LIMIT ?2",
            )?;
            let read = |row: &Row<'_>| {
                let data: String = row.get(1)?;
                let data = serde_json::from_str(&data).map_err(|error| unreadable(1, error))?;
                Ok((row.get(0)?, data))
            };
            let values = params![job, number(limit as u64)];
            let mut items: Vec<_> = query.query_map(values, read)?.collect::<Result<_, _>>()?;
            items.reverse();
            Ok(items)
        })
    }

    /// A page of a job's checkpoints, newest first.
    pub fn checkpoints(&self, job_id: &str, after: Option<&str>, limit: usize) -> Result<Page<Checkpoint>> {
        self.read(|connection| {
            let job = job_seq(connection, job_id)?;
            let mut before = i64::MAX;
            if let Some(id) = after {
                let query = "SELECT step FROM checkpoints WHERE job = ?1 AND seq = ?2";
                before = cursor(connection, query, &[&job, &id_number(id, CHECKPOINT_PREFIX)], id)?;
            }
            let query = format!(
                "SELECT {CHECKPOINT_COLUMNS} FROM checkpoints WHERE job = ?1 AND step < ?2 \
                 ORDER BY step DESC LIMIT ?3"
            );
            let mut query = connection.prepare(&query)?;
            let values = params![job, before, number(limit as u64).saturating_add(1)];
            let mut items: Vec<_> = query.query_map(values, checkpoint)?.collect::<Result<_, _>>()?;
            let has_more = items.len() > limit;
            items.truncate(limit);
            Ok(Page { items, has_more })
        })
    }

    /// The checkpoint of a step.
    pub fn checkpoint_at(&self, job_id: &str, step: u64) -> Result<Option<Checkpoint>> {
        self.read(|connection| {
            let job = job_seq(connection, job_id)?;
            let query = format!("SELECT {CHECKPOINT_COLUMNS} FROM checkpoints WHERE job = ?1 AND step = ?2");
            Ok(connection.query_row(&query, params![job, number(step)], checkpoint).optional()?)
        })
    }
}
