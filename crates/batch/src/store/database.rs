//! An SQLite file behind a lock: opened with its schema, changed by transactions.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior, ffi};

use super::schema::{Schema, check, prepare};
use crate::error::{BatchError, Result};

/// Between two tries to open a database that another process is just making.
const OPEN_AGAIN: Duration = Duration::from_millis(20);

/// One connection.
pub(crate) struct Database {
    connection: Mutex<Connection>,
    path: PathBuf,
}

impl Database {
    /// Opens or makes the database at `path`. Calls wait up to `busy_timeout` for other processes that write.
    pub fn open(path: &Path, schema: &Schema, busy_timeout: Duration) -> Result<Self> {
        let deadline = Instant::now() + busy_timeout;
        loop {
            match Self::open_now(path, schema, busy_timeout) {
                // Its change to a write-ahead log waits for nobody.
                Err(BatchError::Locked { .. }) if Instant::now() < deadline => std::thread::sleep(OPEN_AGAIN),
                other => return other,
            }
        }
    }

    fn open_now(path: &Path, schema: &Schema, busy_timeout: Duration) -> Result<Self> {
        let map = |error: rusqlite::Error| of_sqlite(path, &error);
        let mut connection = Connection::open(path).map_err(map)?;
        connection.busy_timeout(busy_timeout).map_err(map)?;
        prepare(&mut connection, path, schema)?;
        Ok(Self { connection: Mutex::new(connection), path: path.to_owned() })
    }

    /// Opens the database at `path` as it is, to read it only.
    pub fn open_to_read(path: &Path, schema: &Schema, busy_timeout: Duration) -> Result<Self> {
        let map = |error: rusqlite::Error| of_sqlite(path, &error);
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags).map_err(map)?;
        connection.busy_timeout(busy_timeout).map_err(map)?;
        check(&connection, path, schema)?;
        Ok(Self { connection: Mutex::new(connection), path: path.to_owned() })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The connection. A call that panicked has left no open transaction, so its lock is as good as any.
    fn lock(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `work` as one transaction that is made to last or undone.
    pub fn change<T>(&self, work: impl FnOnce(&Transaction<'_>) -> Result<T, Failure>) -> Result<T> {
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
    pub fn read<T>(&self, work: impl FnOnce(&Connection) -> Result<T, Failure>) -> Result<T> {
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
pub(crate) enum Failure {
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
pub(super) fn of_sqlite(path: &Path, error: &rusqlite::Error) -> BatchError {
    let path = path.to_owned();
    // What SQLite says when the index of its log, a file that it maps, finds no room.
    let is_full = |error: &ffi::Error| error.extended_code == ffi::SQLITE_IOERR_SHMSIZE;
    match error.sqlite_error_code() {
        _ if error.sqlite_error().is_some_and(is_full) => BatchError::DiskFull { path },
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => BatchError::Locked { path },
        Some(ErrorCode::DiskFull) => BatchError::DiskFull { path },
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            BatchError::Corrupt { path, reason: error.to_string() }
        }
        Some(
            ErrorCode::CannotOpen
            | ErrorCode::ReadOnly
            | ErrorCode::PermissionDenied
            | ErrorCode::SystemIoFailure,
        ) => BatchError::Io { path, reason: error.to_string() },
        _ => BatchError::Database { reason: error.to_string() },
    }
}
