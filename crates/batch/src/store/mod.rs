//! The database: files, jobs, events, checkpoints and batches.
//!
//! State: one connection behind a lock. Calls block for as long as a commit takes, so they belong on threads that may.
//!
//! Invariants: every change is one transaction, on the disk when the call returns; what belongs to a job goes with it.

mod batches;
mod events;
mod files;
mod jobs;
mod schema;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Row, Transaction, TransactionBehavior};

use crate::error::{BatchError, Result};

pub(crate) use batches::{BatchEnd, NewBatch};
pub(crate) use jobs::{End, NewJob};

/// How long a call waits for another process that reads or writes.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The database.
pub(crate) struct Store {
    connection: Mutex<Connection>,
    path: PathBuf,
}

impl Store {
    /// Opens or makes the database at `path`.
    pub fn open(path: &Path) -> Result<Self> {
        let map = |error: rusqlite::Error| of_sqlite(path, &error);
        let mut connection = Connection::open(path).map_err(map)?;
        connection.busy_timeout(BUSY_TIMEOUT).map_err(map)?;
        schema::prepare(&mut connection, path)?;
        Ok(Self { connection: Mutex::new(connection), path: path.to_owned() })
    }

    /// Opens the database at `path` as it is, to read it only.
    pub fn open_to_read(path: &Path) -> Result<Self> {
        let map = |error: rusqlite::Error| of_sqlite(path, &error);
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags).map_err(map)?;
        connection.busy_timeout(BUSY_TIMEOUT).map_err(map)?;
        schema::check(&connection, path)?;
        Ok(Self { connection: Mutex::new(connection), path: path.to_owned() })
    }

    /// The connection. A call that panicked has left no open transaction, so its lock is as good as any.
    fn lock(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `work` as one transaction that is made to last or undone.
    fn change<T>(&self, work: impl FnOnce(&Transaction<'_>) -> Result<T, Failure>) -> Result<T> {
        let mut connection = self.lock();
        let result = (|| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let value = work(&transaction)?;
            transaction.commit()?;
            Ok(value)
        })();
        result.map_err(|failure| self.of(failure))
    }

    /// Runs `work`, which only reads.
    fn read<T>(&self, work: impl FnOnce(&Connection) -> Result<T, Failure>) -> Result<T> {
        work(&self.lock()).map_err(|failure| self.of(failure))
    }

    fn of(&self, failure: Failure) -> BatchError {
        match failure {
            Failure::Batch(error) => error,
            Failure::Sqlite(error) => of_sqlite(&self.path, &error),
        }
    }
}

/// What ends a transaction.
enum Failure {
    Batch(BatchError),
    Sqlite(rusqlite::Error),
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl From<BatchError> for Failure {
    fn from(error: BatchError) -> Self {
        Self::Batch(error)
    }
}

/// SQLite's error, as ours.
fn of_sqlite(path: &Path, error: &rusqlite::Error) -> BatchError {
    let path = path.to_owned();
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => BatchError::Locked { path },
        Some(ErrorCode::DiskFull) => BatchError::DiskFull { path },
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            BatchError::Corrupt { path, reason: error.to_string() }
        }
        Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => {
            BatchError::Io { path, reason: error.to_string() }
        }
        _ => BatchError::Database { reason: error.to_string() },
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
fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// A number that was stored by [`number`].
fn whole(value: i64) -> u64 {
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
