//! Rows of uploaded files.

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{Failure, Store, batches, cursor, number, unreadable, whole};
use crate::error::{BatchError, Result};
use crate::files::{FilePurpose, StoredFile};
use crate::fine_tuner::FileCheck;
use crate::job::Page;

const COLUMNS: &str = "id, file_name, purpose, size_bytes, sha256, created_at_ms, num_records, format";

fn file(row: &Row<'_>) -> rusqlite::Result<StoredFile> {
    let purpose: String = row.get(2)?;
    let num_records: Option<i64> = row.get(6)?;
    let format: Option<String> = row.get(7)?;
    let format = format.map(|text| serde_json::from_str(&text)).transpose();
    let format = format.map_err(|error| unreadable(7, error))?;
    Ok(StoredFile {
        id: row.get(0)?,
        file_name: row.get(1)?,
        purpose: FilePurpose::from_name(&purpose).ok_or_else(|| unreadable(2, "an unknown purpose"))?,
        size_bytes: whole(row.get(3)?),
        sha256: row.get(4)?,
        created_at_ms: row.get(5)?,
        check: num_records.map(|records| FileCheck { num_records: whole(records), format }),
    })
}

pub(super) fn find(connection: &Connection, id: &str) -> Result<StoredFile, Failure> {
    let query = format!("SELECT {COLUMNS} FROM files WHERE id = ?1");
    let found = connection.query_row(&query, [id], file).optional()?;
    found.ok_or_else(|| BatchError::UnknownFile { id: id.chars().take(80).collect() }.into())
}

impl Store {
    /// Number and bytes of all files.
    pub fn files_total(&self) -> Result<(u64, u64)> {
        self.read(|connection| {
            let query = "SELECT count(*), coalesce(sum(size_bytes), 0) FROM files";
            Ok(connection.query_row(query, [], |row| Ok((whole(row.get(0)?), whole(row.get(1)?))))?)
        })
    }

    /// Adds a file whose bytes are on the disk.
    pub fn add_file(&self, file: &StoredFile) -> Result<()> {
        self.change(|transaction| insert(transaction, file))
    }

    pub fn file(&self, id: &str) -> Result<StoredFile> {
        self.read(|connection| find(connection, id))
    }

    /// All ids, to tell which files on the disk belong to nothing.
    pub fn file_ids(&self) -> Result<Vec<String>> {
        self.read(|connection| {
            let mut query = connection.prepare("SELECT id FROM files")?;
            let ids = query.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
            Ok(ids)
        })
    }

    /// A page of files in the order of their creation, or against it.
    pub fn files(
        &self,
        purpose: Option<FilePurpose>,
        after: Option<&str>,
        newest_first: bool,
        limit: usize,
    ) -> Result<Page<StoredFile>> {
        self.read(|connection| {
            let (compare, order, mut place) =
                if newest_first { ("<", "DESC", i64::MAX) } else { (">", "ASC", 0) };
            if let Some(id) = after {
                place = cursor(connection, "SELECT seq FROM files WHERE id = ?1", &[&id], id)?;
            }
            let query = format!(
                "SELECT {COLUMNS} FROM files WHERE seq {compare} ?1 AND (?2 IS NULL OR purpose = ?2) \
                 ORDER BY seq {order} LIMIT ?3"
            );
            let mut query = connection.prepare(&query)?;
            let purpose = purpose.map(FilePurpose::name);
            let values = params![place, purpose, number(limit as u64).saturating_add(1)];
            let mut items: Vec<_> = query.query_map(values, file)?.collect::<Result<_, _>>()?;
            let has_more = items.len() > limit;
            items.truncate(limit);
            Ok(Page { items, has_more })
        })
    }

    /// Takes a file away, unless a job or batch that has not ended needs it.
    pub fn remove_file(&self, id: &str) -> Result<()> {
        self.change(|transaction| {
            find(transaction, id)?;
            let query = "SELECT id FROM jobs WHERE status IN ('queued', 'running') \
                         AND (training_file = ?1 OR validation_file = ?1) ORDER BY seq LIMIT 1";
            let job: Option<String> = transaction.query_row(query, [id], |row| row.get(0)).optional()?;
            let user = match job {
                Some(job) => Some(job),
                None => batches::user_of(transaction, id)?,
            };
            if let Some(job) = user {
                return Err(BatchError::FileInUse { id: id.to_owned(), job }.into());
            }
            transaction.execute("DELETE FROM files WHERE id = ?1", [id])?;
            Ok(())
        })
    }
}

/// Writes the row of a file.
pub(super) fn insert(connection: &Connection, file: &StoredFile) -> Result<(), Failure> {
    let check = file.check.as_ref();
    let format = check.and_then(|check| serde_json::to_string(&check.format?).ok());
    connection.execute(
        &format!("INSERT INTO files ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)"),
        params![
            file.id,
            file.file_name,
            file.purpose.name(),
            number(file.size_bytes),
            file.sha256,
            file.created_at_ms,
            check.map(|check| number(check.num_records)),
            format,
        ],
    )?;
    Ok(())
}
