//! Rows of batches, and every step in a batch's life.

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{Failure, Store, cursor, files, number, optional_json, to_json, unreadable, whole};
use crate::batches::{
    Batch, BatchCounts, BatchProblem, BatchRoute, BatchSpec, BatchStatus, BatchUsage, Checked,
    CompletionWindow, RequestCounts,
};
use crate::error::{BatchError, Result};
use crate::files::{FilePurpose, StoredFile};
use crate::fine_tuner::Refusal;
use crate::job::Page;

const COLUMNS: &str = "id, input_file, route, completion_window, metadata, status, created_at_ms, expires_at_ms, \
     in_progress_at_ms, finalizing_at_ms, cancelling_at_ms, ended_at_ms, total, completed, failed, problems, model, \
     usage, output_file, error_file";
const OPEN: &str = "status IN ('validating', 'in_progress', 'finalizing', 'cancelling')";

/// A batch that is about to be made.
pub(crate) struct NewBatch<'a> {
    pub id: &'a str,
    pub spec: &'a BatchSpec,
    pub now_ms: i64,
    /// How many may be open, and how many are remembered.
    pub limits: (u64, u64),
}

/// How a batch ended.
pub(crate) struct BatchEnd<'a> {
    pub status: BatchStatus,
    pub now_ms: i64,
    /// Why its input was refused.
    pub problems: &'a [BatchProblem],
    /// What became of its requests, with their tokens.
    pub results: Option<(RequestCounts, BatchUsage)>,
    /// Files whose bytes are on the disk.
    pub output: Option<&'a StoredFile>,
    pub errors: Option<&'a StoredFile>,
}

fn batch(row: &Row<'_>) -> rusqlite::Result<Batch> {
    let (route, window, status): (String, String, String) = (row.get(2)?, row.get(3)?, row.get(5)?);
    Ok(Batch {
        id: row.get(0)?,
        spec: BatchSpec {
            input_file: row.get(1)?,
            route: BatchRoute::from_path(&route).ok_or_else(|| unreadable(2, "an unknown route"))?,
            window: CompletionWindow::from_name(&window)
                .ok_or_else(|| unreadable(3, "an unknown completion window"))?,
            metadata: optional_json(row, 4)?,
        },
        status: BatchStatus::from_name(&status).ok_or_else(|| unreadable(5, "an unknown status"))?,
        created_at_ms: row.get(6)?,
        expires_at_ms: row.get(7)?,
        in_progress_at_ms: row.get(8)?,
        finalizing_at_ms: row.get(9)?,
        cancelling_at_ms: row.get(10)?,
        ended_at_ms: row.get(11)?,
        counts: RequestCounts {
            total: whole(row.get(12)?),
            completed: whole(row.get(13)?),
            failed: whole(row.get(14)?),
        },
        problems: optional_json(row, 15)?.unwrap_or_default(),
        model: row.get(16)?,
        usage: optional_json(row, 17)?,
        output_file: row.get(18)?,
        error_file: row.get(19)?,
    })
}

fn find(connection: &Connection, id: &str) -> Result<Batch, Failure> {
    let query = format!("SELECT {COLUMNS} FROM batches WHERE id = ?1");
    let found = connection.query_row(&query, [id], batch).optional()?;
    found.ok_or_else(|| BatchError::UnknownBatch { id: id.chars().take(80).collect() }.into())
}

/// Refuses an input that is not there or is for something else.
fn check_input(connection: &Connection, id: &str) -> Result<(), Failure> {
    let refused = |reason: String| BatchError::Refused(Refusal::new("input_file_id", reason));
    match files::find(connection, id) {
        Err(Failure::Batch(BatchError::UnknownFile { id })) => {
            Err(refused(format!("names the file {id:?}, which does not exist")).into())
        }
        Ok(file) if file.purpose != FilePurpose::Batch => {
            let purpose = file.purpose.name();
            Err(refused(format!("names a file whose purpose is `{purpose}`, not `batch`")).into())
        }
        other => other.map(drop),
    }
}

/// The first open batch whose input is this file.
pub(super) fn user_of(connection: &Connection, file: &str) -> Result<Option<String>, Failure> {
    let query = format!("SELECT id FROM batches WHERE {OPEN} AND input_file = ?1 ORDER BY seq LIMIT 1");
    Ok(connection.query_row(&query, [file], |row| row.get(0)).optional()?)
}

impl Store {
    /// Adds a batch. The oldest that have ended are forgotten where there are too many.
    pub fn add_batch(&self, new: &NewBatch<'_>) -> Result<Batch> {
        let metadata = new.spec.metadata.as_ref().map(to_json).transpose()?;
        self.change(|transaction| {
            let (max_open, max_kept) = new.limits;
            let count = |query: &str| -> Result<u64, Failure> {
                Ok(whole(transaction.query_row(query, [], |row| row.get(0))?))
            };
            if count(&format!("SELECT count(*) FROM batches WHERE {OPEN}"))? >= max_open {
                let what = "the queue of batches";
                return Err(BatchError::StoreFull { what, limit: max_open }.into());
            }
            check_input(transaction, &new.spec.input_file)?;
            let surplus = count("SELECT count(*) FROM batches")?.saturating_sub(max_kept.saturating_sub(1));
            transaction.execute(
                &format!(
                    "DELETE FROM batches WHERE seq IN (SELECT seq FROM batches WHERE NOT {OPEN} \
                     ORDER BY seq LIMIT ?1)"
                ),
                [number(surplus)],
            )?;
            transaction.execute(
                "INSERT INTO batches (id, input_file, route, completion_window, metadata, status, created_at_ms, \
                 expires_at_ms) VALUES (?1, ?2, ?3, ?4, ?5, 'validating', ?6, ?7)",
                params![
                    new.id,
                    new.spec.input_file,
                    new.spec.route.path(),
                    new.spec.window.name(),
                    metadata,
                    new.now_ms,
                    new.now_ms.saturating_add(new.spec.window.ms()),
                ],
            )?;
            find(transaction, new.id)
        })
    }

    pub fn batch(&self, id: &str) -> Result<Batch> {
        self.read(|connection| find(connection, id))
    }

    /// A page of batches, newest first.
    pub fn batches(&self, after: Option<&str>, limit: usize) -> Result<Page<Batch>> {
        self.read(|connection| {
            let mut before = i64::MAX;
            if let Some(id) = after {
                before = cursor(connection, "SELECT seq FROM batches WHERE id = ?1", &[&id], id)?;
            }
            let query = format!("SELECT {COLUMNS} FROM batches WHERE seq < ?1 ORDER BY seq DESC LIMIT ?2");
            let mut query = connection.prepare(&query)?;
            let values = params![before, number(limit as u64).saturating_add(1)];
            let mut items: Vec<_> = query.query_map(values, batch)?.collect::<Result<_, _>>()?;
            let has_more = items.len() > limit;
            items.truncate(limit);
            Ok(Page { items, has_more })
        })
    }

    /// Ids of batches that have not ended, oldest first.
    pub fn open_batches(&self) -> Result<Vec<String>> {
        self.read(|connection| {
            let mut query =
                connection.prepare(&format!("SELECT id FROM batches WHERE {OPEN} ORDER BY seq"))?;
            let ids = query.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
            Ok(ids)
        })
    }

    /// The oldest batch that has not ended.
    pub fn next_batch(&self) -> Result<Option<String>> {
        self.read(|connection| {
            let query = format!("SELECT id FROM batches WHERE {OPEN} ORDER BY seq LIMIT 1");
            Ok(connection.query_row(&query, [], |row| row.get(0)).optional()?)
        })
    }

    /// Notes that a batch's input is good. One that was cancelled meanwhile stays so.
    pub fn begin_batch(&self, id: &str, checked: &Checked, now_ms: i64) -> Result<Batch> {
        self.change(|transaction| {
            transaction.execute(
                "UPDATE batches SET status = 'in_progress', in_progress_at_ms = ?2, total = ?3, model = ?4 \
                 WHERE id = ?1 AND status = 'validating'",
                params![id, now_ms, number(checked.total), checked.model],
            )?;
            find(transaction, id)
        })
    }

    pub fn set_batch_counts(&self, id: &str, counts: RequestCounts) -> Result<()> {
        self.change(|transaction| {
            transaction.execute(
                "UPDATE batches SET completed = ?2, failed = ?3 WHERE id = ?1",
                params![id, number(counts.completed), number(counts.failed)],
            )?;
            Ok(())
        })
    }

    /// Notes that every request has its outcome. One that was cancelled meanwhile stays so.
    pub fn finalize_batch(&self, id: &str, now_ms: i64) -> Result<Batch> {
        self.change(|transaction| {
            transaction.execute(
                "UPDATE batches SET status = 'finalizing', finalizing_at_ms = ?2 \
                 WHERE id = ?1 AND status = 'in_progress'",
                params![id, now_ms],
            )?;
            find(transaction, id)
        })
    }

    /// Notes that a batch shall stop; one that nobody works on yet and that has no outcomes ends at once.
    pub fn cancel_batch(&self, id: &str, is_worked_on: bool, now_ms: i64) -> Result<Batch> {
        self.change(|transaction| {
            let batch = find(transaction, id)?;
            let status = match batch.status {
                BatchStatus::Cancelling => return Ok(batch),
                BatchStatus::Validating if !is_worked_on => BatchStatus::Cancelled,
                BatchStatus::Validating | BatchStatus::InProgress => BatchStatus::Cancelling,
                status => return Err(BatchError::JobEnded { id: batch.id, status: status.name() }.into()),
            };
            let ended_at_ms = status.has_ended().then_some(now_ms);
            transaction.execute(
                "UPDATE batches SET status = ?2, cancelling_at_ms = ?3, ended_at_ms = ?4 WHERE id = ?1",
                params![id, status.name(), now_ms, ended_at_ms],
            )?;
            find(transaction, id)
        })
    }

    /// Writes a batch's end and the rows of its files.
    pub fn end_batch(&self, id: &str, end: &BatchEnd<'_>) -> Result<()> {
        let problems = (!end.problems.is_empty()).then(|| to_json(&end.problems)).transpose()?;
        let usage = end.results.map(|(_, usage)| to_json(&usage)).transpose()?;
        self.change(|transaction| {
            for file in [end.output, end.errors].into_iter().flatten() {
                files::insert(transaction, file)?;
            }
            let counts = end.results.map(|(counts, _)| counts);
            transaction.execute(
                "UPDATE batches SET status = ?2, ended_at_ms = ?3, problems = ?4, usage = ?5, \
                 completed = coalesce(?6, completed), failed = coalesce(?7, failed), output_file = ?8, \
                 error_file = ?9 WHERE id = ?1",
                params![
                    id,
                    end.status.name(),
                    end.now_ms,
                    problems,
                    usage,
                    counts.map(|counts| number(counts.completed)),
                    counts.map(|counts| number(counts.failed)),
                    end.output.map(|file| &file.id),
                    end.errors.map(|file| &file.id),
                ],
            )?;
            Ok(())
        })
    }

    /// Batches by status, and their requests.
    pub fn batch_counts(&self) -> Result<BatchCounts> {
        self.read(|connection| {
            let mut query = connection.prepare(
                "SELECT status, count(*), sum(total), sum(completed), sum(failed) FROM batches GROUP BY status",
            )?;
            let mut rows = query.query([])?;
            let mut counts = BatchCounts::default();
            while let Some(row) = rows.next()? {
                let status: String = row.get(0)?;
                for (known, count) in BatchStatus::ALL.iter().zip(&mut counts.batches) {
                    if known.name() == status {
                        *count = whole(row.get(1)?);
                    }
                }
                counts.requests.total += whole(row.get(2)?);
                counts.requests.completed += whole(row.get(3)?);
                counts.requests.failed += whole(row.get(4)?);
            }
            Ok(counts)
        })
    }
}
