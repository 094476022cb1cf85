//! The tables, and how a database of an earlier version becomes one of this.

use std::path::Path;

use rusqlite::{Connection, TransactionBehavior};

use super::database::of_sqlite;
use crate::error::{BatchError, Result};

/// What a database holds.
pub(crate) struct Schema {
    /// Marks the file as ours.
    pub application_id: i64,
    /// What brings a database from each version to the next; the first makes it. Only ever added to.
    pub migrations: &'static [&'static str],
}

/// Files, jobs and batches.
pub(super) const JOBS: Schema = Schema {
    // `WRDB`
    application_id: 0x5752_4442,
    migrations: &MIGRATIONS,
};

const MIGRATIONS: [&str; 2] = [
    "
CREATE TABLE files (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    file_name TEXT NOT NULL,
    purpose TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    sha256 TEXT NOT NULL,
    created_at_ms INTEGER NOT NULL,
    num_records INTEGER,
    format TEXT
) STRICT;
CREATE TABLE jobs (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL UNIQUE,
    status TEXT NOT NULL CHECK (status IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')),
    cancel_requested INTEGER NOT NULL DEFAULT 0,
    training_file TEXT NOT NULL,
    validation_file TEXT,
    training_records INTEGER NOT NULL,
    training_bytes INTEGER NOT NULL,
    spec TEXT NOT NULL,
    resolved TEXT NOT NULL,
    created_at_ms INTEGER NOT NULL,
    updated_at_ms INTEGER NOT NULL,
    started_at_ms INTEGER,
    finished_at_ms INTEGER,
    num_runs INTEGER NOT NULL DEFAULT 0,
    steps_completed INTEGER NOT NULL DEFAULT 0,
    total_steps INTEGER,
    epochs_completed INTEGER NOT NULL DEFAULT 0,
    evals_completed INTEGER NOT NULL DEFAULT 0,
    trained_tokens INTEGER NOT NULL DEFAULT 0,
    estimated_finish_ms INTEGER,
    early_stop TEXT,
    error TEXT,
    result_file TEXT,
    adapter_dir TEXT
) STRICT;
CREATE INDEX jobs_by_status ON jobs (status, seq);
CREATE TABLE events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    job INTEGER NOT NULL REFERENCES jobs (seq) ON DELETE CASCADE,
    created_at_ms INTEGER NOT NULL,
    level TEXT NOT NULL,
    kind TEXT NOT NULL,
    message TEXT NOT NULL,
    data TEXT NOT NULL
) STRICT;
CREATE INDEX events_by_job ON events (job, seq);
CREATE TABLE checkpoints (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    job INTEGER NOT NULL REFERENCES jobs (seq) ON DELETE CASCADE,
    step INTEGER NOT NULL,
    created_at_ms INTEGER NOT NULL,
    adapter_dir TEXT NOT NULL,
    metrics TEXT NOT NULL,
    UNIQUE (job, step)
) STRICT;
",
    "
CREATE TABLE batches (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    input_file TEXT NOT NULL,
    route TEXT NOT NULL,
    completion_window TEXT NOT NULL,
    metadata TEXT,
    status TEXT NOT NULL CHECK (status IN ('validating', 'failed', 'in_progress', 'finalizing', 'completed',
        'expired', 'cancelling', 'cancelled')),
    created_at_ms INTEGER NOT NULL,
    expires_at_ms INTEGER NOT NULL,
    in_progress_at_ms INTEGER,
    finalizing_at_ms INTEGER,
    cancelling_at_ms INTEGER,
    ended_at_ms INTEGER,
    total INTEGER NOT NULL DEFAULT 0,
    completed INTEGER NOT NULL DEFAULT 0,
    failed INTEGER NOT NULL DEFAULT 0,
    problems TEXT,
    model TEXT,
    usage TEXT,
    output_file TEXT,
    error_file TEXT
) STRICT;
CREATE INDEX batches_by_status ON batches (status, seq);
",
];

fn ask(connection: &Connection, path: &Path, query: &str) -> Result<i64> {
    connection.query_row(query, [], |row| row.get(0)).map_err(|error| of_sqlite(path, &error))
}

/// Checks that a database that is only read is ours and not too new. Later versions have added tables only.
pub(super) fn check(connection: &Connection, path: &Path, schema: &Schema) -> Result<()> {
    let corrupt = |reason: &str| BatchError::Corrupt { path: path.to_owned(), reason: reason.to_owned() };
    if ask(connection, path, "PRAGMA application_id")? != schema.application_id {
        return Err(corrupt("it belongs to another program"));
    }
    let known = schema.migrations.len() as i64;
    match ask(connection, path, "PRAGMA user_version")? {
        found if found > known => Err(BatchError::TooNew { path: path.to_owned(), found, known }),
        1.. => Ok(()),
        _ => Err(corrupt("it has nothing in it")),
    }
}

/// Checks that the database is whole, ours and not too new, and brings it to this version's schema.
pub(super) fn prepare(connection: &mut Connection, path: &Path, schema: &Schema) -> Result<()> {
    let known = schema.migrations.len() as i64;
    let map = |error: rusqlite::Error| of_sqlite(path, &error);
    let corrupt = |reason: &str| BatchError::Corrupt { path: path.to_owned(), reason: reason.to_owned() };
    let tables = ask(connection, path, "SELECT count(*) FROM sqlite_schema")?;
    let id = ask(connection, path, "PRAGMA application_id")?;
    let found = ask(connection, path, "PRAGMA user_version")?;
    if tables > 0 && id != schema.application_id {
        return Err(corrupt("it belongs to another program"));
    }
    if found > known {
        return Err(BatchError::TooNew { path: path.to_owned(), found, known });
    }
    let checked: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(map)?;
    if checked != "ok" {
        return Err(corrupt(&checked));
    }
    // A commit is on the disk when it returns, also when the power fails next.
    connection
        .execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; \
             PRAGMA trusted_schema = OFF;",
        )
        .map_err(map)?;
    for version in found..known {
        let step = usize::try_from(version).ok().and_then(|idx| schema.migrations.get(idx));
        let Some(step) = step else { return Err(corrupt("its version is negative")) };
        let transaction =
            connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(map)?;
        // Another process may have taken this step meanwhile.
        if ask(&transaction, path, "PRAGMA user_version")? > version {
            continue;
        }
        transaction.execute_batch(step).map_err(map)?;
        transaction.pragma_update(None, "application_id", schema.application_id).map_err(map)?;
        transaction.pragma_update(None, "user_version", version + 1).map_err(map)?;
        transaction.commit().map_err(map)?;
    }
    Ok(())
}
