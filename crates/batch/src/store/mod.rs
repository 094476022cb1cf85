//! The database: files, jobs, events, checkpoints and batches.
//!
//! State: one connection behind a lock. Calls block for as long as a commit takes, so they belong on threads that may.
//!
//! Invariants: every change is one transaction, on the disk when the call returns; what belongs to a job goes with it.

mod batches;
mod database;
mod events;
mod files;
mod jobs;
pub(crate) mod schema;

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Row, Transaction};

use crate::error::{BatchError, Result};

pub(crate) use batches::{BatchEnd, NewBatch};
pub(crate) use database::{Database, Failure};
pub(crate) use jobs::{End, NewJob};

/// How long a call waits for another process that reads or writes.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The database of files, jobs and batches.
pub(crate) struct Store(Database);

impl Store {
    /// Opens or makes the database at `path`.
    pub fn open(path: &Path) -> Result<Self> {
        Database::open(path, &schema::JOBS, BUSY_TIMEOUT).map(Self)
    }

    /// Opens the database at `path` as it is, to read it only.
    pub fn open_to_read(path: &Path) -> Result<Self> {
        Database::open_to_read(path, &schema::JOBS, BUSY_TIMEOUT).map(Self)
    }

    fn change<T>(&self, work: impl FnOnce(&Transaction<'_>) -> Result<T, Failure>) -> Result<T> {
        self.0.change(work)
    }

    fn read<T>(&self, work: impl FnOnce(&Connection) -> Result<T, Failure>) -> Result<T> {
        self.0.read(work)
    }
}

/// A column whose text this version cannot read.
fn unreadable(column: usize, reason: impl std::fmt::Display) -> rusqlite::Error {
    let reason = reason.to_string().into();
    rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, reason)
}

/// The value that a column holds as JSON.
fn optional_json<T: serde::de::DeserializeOwned>(
    row: &Row<'_>,
    column: usize,
) -> rusqlite::Result<Option<T>> {
    let text: Option<String> = row.get(column)?;
    text.map(|text| serde_json::from_str(&text)).transpose().map_err(|error| unreadable(column, error))
}

/// A value as JSON for a column.
fn to_json(value: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|error| BatchError::Database {
        reason: format!("a row could not be written as JSON: {error}"),
    })
}

/// A number that SQLite can hold.
pub(crate) fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// A number that was stored by [`number`].
pub(crate) fn whole(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

/// The place of `id` in the order of a table.
fn cursor(
    connection: &Connection,
    query: &str,
    values: &[&dyn rusqlite::ToSql],
    id: &str,
) -> Result<i64, Failure> {
    let seq = connection.query_row(query, values, |row| row.get(0)).optional()?;
    seq.ok_or_else(|| BatchError::UnknownCursor { id: id.chars().take(80).collect() }.into())
}
