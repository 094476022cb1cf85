//! Rows of jobs, and every step in a job's life.

use rusqlite::{Connection, OptionalExtension, Row, params};
use serde_json::{Value, json};

use super::events::{insert_event, job_seq};
use super::{Failure, Store, cursor, files, number, optional_json, to_json, unreadable, whole};
use crate::error::{BatchError, Result};
use crate::files::{FilePurpose, StoredFile};
use crate::ids::now_ms;
use crate::job::{EventKind, EventLevel, Job, JobError, JobProgress, JobStatus, Page, StatusCounts};
use crate::spec::{JobSpec, ResolvedSpec};

const COLUMNS: &str = "id, name, status, cancel_requested, training_records, training_bytes, spec, resolved, \
     created_at_ms, updated_at_ms, started_at_ms, finished_at_ms, num_runs, steps_completed, total_steps, \
     epochs_completed, evals_completed, trained_tokens, estimated_finish_ms, early_stop, error, result_file, \
     adapter_dir, CASE status WHEN 'queued' THEN (SELECT count(*) FROM jobs AS other \
     WHERE other.status = 'queued' AND other.seq < jobs.seq) ELSE 0 END";

/// A job that is about to be made.
pub(crate) struct NewJob<'a> {
    pub id: &'a str,
    pub name: &'a str,
    pub spec: &'a JobSpec,
    pub resolved: &'a ResolvedSpec,
    /// How many jobs may be open, and how many there may be in all.
    pub limits: (u64, u64),
}

/// How a run of a job ended.
pub(crate) enum End<'a> {
    /// With an adapter in a folder below the job's own, and a file of its metrics.
    Succeeded {
        adapter_dir: &'a str,
        trained_tokens: u64,
        results: Option<&'a StoredFile>,
    },
    Failed(&'a JobError),
    Cancelled,
    /// The process goes down; the job waits for the next.
    Requeued,
}

fn required<T: serde::de::DeserializeOwned>(row: &Row<'_>, column: usize) -> rusqlite::Result<T> {
    optional_json(row, column)?.ok_or_else(|| unreadable(column, "is missing"))
}

fn job(row: &Row<'_>) -> rusqlite::Result<Job> {
    let status: String = row.get(2)?;
    Ok(Job {
        id: row.get(0)?,
        name: row.get(1)?,
        status: JobStatus::from_name(&status).ok_or_else(|| unreadable(2, "an unknown status"))?,
        cancel_requested: row.get(3)?,
        training_records: whole(row.get(4)?),
        training_bytes: whole(row.get(5)?),
        spec: required(row, 6)?,
        resolved: required(row, 7)?,
        created_at_ms: row.get(8)?,
        updated_at_ms: row.get(9)?,
        started_at_ms: row.get(10)?,
        finished_at_ms: row.get(11)?,
        num_runs: whole(row.get(12)?),
        progress: JobProgress {
            steps_completed: whole(row.get(13)?),
            total_steps: row.get::<_, Option<i64>>(14)?.map(whole),
            epochs_completed: whole(row.get(15)?),
            evals_completed: whole(row.get(16)?),
            trained_tokens: whole(row.get(17)?),
            estimated_finish_ms: row.get(18)?,
        },
        early_stop: optional_json(row, 19)?,
        error: optional_json(row, 20)?,
        result_file: row.get(21)?,
        adapter_dir: row.get(22)?,
        queue_position: whole(row.get(23)?),
    })
}

fn find(connection: &Connection, id: &str) -> Result<Job, Failure> {
    let query = format!("SELECT {COLUMNS} FROM jobs WHERE id = ?1");
    let found = connection.query_row(&query, [id], job).optional()?;
    found.ok_or_else(|| BatchError::UnknownJob { id: id.chars().take(80).collect() }.into())
}

fn tell(
    connection: &Connection,
    seq: i64,
    level: EventLevel,
    kind: EventKind,
    text: &str,
) -> Result<(), Failure> {
    insert_event(connection, seq, (level, kind), text, &Value::Null)
}

/// A file that a job reads: it is there, and was checked as training data.
fn training_file(connection: &Connection, field: &str, id: &str) -> Result<StoredFile, Failure> {
    let refused = |reason: String| BatchError::Refused(crate::fine_tuner::Refusal::new(field, reason));
    let file = match files::find(connection, id) {
        Err(Failure::Batch(BatchError::UnknownFile { id })) => {
            return Err(refused(format!("names the file {id:?}, which does not exist")).into());
        }
        other => other?,
    };
    if file.purpose != FilePurpose::FineTune || file.check.is_none() {
        let reason = format!("names a file whose purpose is `{}`, not `fine-tune`", file.purpose.name());
        return Err(refused(reason).into());
    }
    Ok(file)
}

impl Store {
    /// The files that a spec names.
    pub fn files_of(&self, spec: &JobSpec) -> Result<(StoredFile, Option<StoredFile>)> {
        self.read(|connection| {
            let training = training_file(connection, "training_file", &spec.training_file)?;
            let validation = spec.validation_file.as_deref();
            let validation = validation.map(|id| training_file(connection, "validation_file", id));
            Ok((training, validation.transpose()?))
        })
    }

    /// Queues a job. Its files are looked at again, so that none is deleted between the look and the job.
    pub fn add_job(&self, new: &NewJob<'_>) -> Result<Job> {
        let spec = to_json(new.spec)?;
        let resolved = to_json(new.resolved)?;
        self.change(|transaction| {
            let (max_open, max_jobs) = new.limits;
            let open = "SELECT count(*) FROM jobs WHERE status IN ('queued', 'running')";
            for (what, query, limit) in [
                ("the queue of jobs", open, max_open),
                ("the number of jobs", "SELECT count(*) FROM jobs", max_jobs),
            ] {
                if whole(transaction.query_row(query, [], |row| row.get(0))?) >= limit {
                    return Err(BatchError::StoreFull { what, limit }.into());
                }
            }
            let training = training_file(transaction, "training_file", &new.spec.training_file)?;
            if let Some(id) = &new.spec.validation_file {
                training_file(transaction, "validation_file", id)?;
            }
            transaction.execute(
                "INSERT INTO jobs (id, name, status, training_file, validation_file, training_records, \
                 training_bytes, spec, resolved, created_at_ms, updated_at_ms) \
                 VALUES (?1, ?2, 'queued', ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?9)",
                params![
                    new.id,
                    new.name,
                    new.spec.training_file,
                    new.spec.validation_file,
                    training.check.map(|check| number(check.num_records)),
                    number(training.size_bytes),
                    spec,
                    resolved,
                    now_ms(),
                ],
            )?;
            let seq = transaction.last_insert_rowid();
            tell(transaction, seq, EventLevel::Info, EventKind::JobPending, "Files checked; the job waits")?;
            find(transaction, new.id)
        })
    }

    pub fn job(&self, id: &str) -> Result<Job> {
        self.read(|connection| find(connection, id))
    }

    /// A page of jobs, newest first. With `metadata`, only those that have all of these pairs.
    pub fn jobs(
        &self,
        after: Option<&str>,
        limit: usize,
        metadata: &[(String, String)],
    ) -> Result<Page<Job>> {
        self.read(|connection| {
            let mut before = i64::MAX;
            if let Some(id) = after {
                before = cursor(connection, "SELECT seq FROM jobs WHERE id = ?1", &[&id], id)?;
            }
            let query = format!("SELECT {COLUMNS} FROM jobs WHERE seq < ?1 ORDER BY seq DESC");
            let mut query = connection.prepare(&query)?;
            let mut rows = query.query([before])?;
            let (mut items, mut has_more) = (Vec::new(), false);
            while let Some(row) = rows.next()? {
                let job = job(row)?;
                let notes = job.spec.metadata.as_ref();
                if !metadata.iter().all(|(key, value)| notes.is_some_and(|n| n.get(key) == Some(value))) {
                    continue;
                }
                if items.len() == limit {
                    has_more = true;
                    break;
                }
                items.push(job);
            }
            Ok(Page { items, has_more })
        })
    }

    /// Jobs that ended with an adapter, oldest first.
    pub fn succeeded_jobs(&self) -> Result<Vec<Job>> {
        self.read(|connection| {
            let query = format!("SELECT {COLUMNS} FROM jobs WHERE status = 'succeeded' ORDER BY seq");
            let mut query = connection.prepare(&query)?;
            let jobs = query.query_map([], job)?.collect::<Result<_, _>>()?;
            Ok(jobs)
        })
    }

    /// All ids, to tell which folders on the disk belong to nothing.
    pub fn job_ids(&self) -> Result<Vec<String>> {
        self.read(|connection| {
            let mut query = connection.prepare("SELECT id FROM jobs")?;
            let ids = query.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
            Ok(ids)
        })
    }

    pub fn status_counts(&self) -> Result<StatusCounts> {
        self.read(|connection| {
            let mut counts = StatusCounts::default();
            let mut query = connection.prepare("SELECT status, count(*) FROM jobs GROUP BY status")?;
            let mut rows = query.query([])?;
            while let Some(row) = rows.next()? {
                let (name, count): (String, i64) = (row.get(0)?, row.get(1)?);
                for (status, slot) in JobStatus::ALL.iter().zip(&mut counts.jobs) {
                    if status.name() == name {
                        *slot = whole(count);
                    }
                }
            }
            Ok(counts)
        })
    }

    /// What a process that died has left running is queued again, or ended if it was to be cancelled. Gives the ids.
    pub fn recover(&self) -> Result<Vec<String>> {
        self.change(|transaction| {
            let mut query = transaction.prepare(
                "SELECT seq, id, cancel_requested FROM jobs WHERE status = 'running' ORDER BY seq",
            )?;
            let read = |row: &Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?, row.get(2)?));
            let left: Vec<(i64, String, bool)> = query.query_map([], read)?.collect::<Result<_, _>>()?;
            let mut queued = Vec::new();
            for (seq, id, cancelled) in left {
                if cancelled {
                    end(transaction, seq, &End::Cancelled)?;
                } else {
                    end(transaction, seq, &End::Requeued)?;
                    queued.push(id);
                }
            }
            Ok(queued)
        })
    }

    /// Takes the oldest job from the queue.
    pub fn claim(&self) -> Result<Option<Job>> {
        self.change(|transaction| {
            let query = "SELECT seq, id, num_runs FROM jobs WHERE status = 'queued' ORDER BY seq LIMIT 1";
            let read = |row: &Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?, row.get(2)?));
            let next: Option<(i64, String, i64)> = transaction.query_row(query, [], read).optional()?;
            let Some((seq, id, num_runs)) = next else { return Ok(None) };
            let now = now_ms();
            transaction.execute(
                "UPDATE jobs SET status = 'running', started_at_ms = coalesce(started_at_ms, ?2), \
                 num_runs = num_runs + 1 WHERE seq = ?1",
                params![seq, now],
            )?;
            let (kind, text) = match num_runs {
                0 => (EventKind::JobStart, "The job started"),
                _ => (EventKind::JobRestarted, "The job goes on after a restart"),
            };
            tell(transaction, seq, EventLevel::Info, kind, text)?;
            find(transaction, &id).map(Some)
        })
    }

    /// Ends a queued job, or notes that a running one shall stop.
    pub fn cancel(&self, id: &str) -> Result<Job> {
        self.change(|transaction| {
            let (seq, job) = (job_seq(transaction, id)?, find(transaction, id)?);
            match job.status {
                JobStatus::Queued => end(transaction, seq, &End::Cancelled)?,
                // Asked for already: nothing to add.
                JobStatus::Running if job.cancel_requested => {}
                JobStatus::Running => {
                    transaction.execute("UPDATE jobs SET cancel_requested = 1 WHERE seq = ?1", [seq])?;
                    let text = "Cancellation was asked for";
                    tell(transaction, seq, EventLevel::Info, EventKind::CancelRequested, text)?;
                }
                status => return Err(BatchError::JobEnded { id: job.id, status: status.name() }.into()),
            }
            find(transaction, id)
        })
    }

    /// Writes how a run ended.
    pub fn finish(&self, id: &str, how: &End<'_>) -> Result<()> {
        self.change(|transaction| end(transaction, job_seq(transaction, id)?, how))
    }

    /// Forgets a job that has ended, with its events and checkpoints.
    pub fn remove_job(&self, id: &str) -> Result<()> {
        self.change(|transaction| {
            let job = find(transaction, id)?;
            if !job.status.has_ended() {
                let (status, action) = (job.status.name(), "deleting");
                return Err(BatchError::JobOpen { id: job.id, status, action }.into());
            }
            transaction.execute("DELETE FROM jobs WHERE id = ?1", [id])?;
            Ok(())
        })
    }
}

/// Brings a job to an end, or back to the queue, and tells of it.
fn end(connection: &Connection, seq: i64, how: &End<'_>) -> Result<(), Failure> {
    let now = now_ms();
    let closed = "estimated_finish_ms = NULL, cancel_requested = 0, finished_at_ms";
    match how {
        End::Succeeded { adapter_dir, trained_tokens, results } => {
            if let Some(file) = results {
                files::insert(connection, file)?;
            }
            connection.execute(
                &format!(
                    "UPDATE jobs SET status = 'succeeded', adapter_dir = ?3, result_file = ?4, \
                     trained_tokens = ?5, {closed} = ?2 WHERE seq = ?1"
                ),
                params![seq, now, adapter_dir, results.map(|file| &file.id), number(*trained_tokens)],
            )?;
            tell(
                connection,
                seq,
                EventLevel::Info,
                EventKind::JobComplete,
                "The job is done; its adapter answers",
            )
        }
        End::Failed(error) => {
            let text = serde_json::to_string(error).unwrap_or_default();
            connection.execute(
                &format!("UPDATE jobs SET status = 'failed', error = ?3, {closed} = ?2 WHERE seq = ?1"),
                params![seq, now, text],
            )?;
            let data = json!({"code": error.code, "param": error.param});
            let level = (EventLevel::Error, EventKind::JobError);
            insert_event(connection, seq, level, &format!("The job failed: {}", error.message), &data)
        }
        End::Cancelled => {
            connection.execute(
                &format!("UPDATE jobs SET status = 'cancelled', {closed} = ?2 WHERE seq = ?1"),
                params![seq, now],
            )?;
            tell(connection, seq, EventLevel::Info, EventKind::JobStopped, "The job was cancelled")
        }
        End::Requeued => {
            connection.execute(
                "UPDATE jobs SET status = 'queued', estimated_finish_ms = NULL, updated_at_ms = ?2 WHERE seq = ?1",
                params![seq, now],
            )?;
            Ok(())
        }
    }
}
