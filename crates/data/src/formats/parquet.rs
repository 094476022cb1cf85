//! Parquet, read row by row by way of the `parquet` crate, without Arrow.
//!
//! Pages are plain or packed with Snappy, which is what writers do by default. Others are refused by name: the libraries for
//! Zstandard and LZ4 are C or large, and gzip pages are unpacked without a limit. A page says its size itself, up to 2 GiB:
//! that is what a hostile file can make this take.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use parquet::basic::Compression;
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use parquet::record::reader::RowIter;
use serde_json::{Map, Number, Value};

use super::{Row, RowError};
use crate::error::{DataError, Finding, Place, Result};

/// The most columns, with those inside of others.
const MAX_COLUMNS: usize = 1024;

pub struct Reader {
    rows: RowIter<'static>,
    path: PathBuf,
    number: u64,
}

impl Reader {
    /// Reads the metadata.
    ///
    /// # Errors
    /// The file is no Parquet file, or of a kind that is not read.
    pub fn new(path: &Path, file: File) -> Result<Self> {
        let rows = guarded(|| {
            let reader = SerializedFileReader::new(file)?;
            let metadata = reader.metadata();
            let columns = metadata.file_metadata().schema_descr().num_columns();
            if columns > MAX_COLUMNS {
                let message = format!("{columns} columns are over the limit of {MAX_COLUMNS}");
                return Err(ParquetError::General(message));
            }
            for group in metadata.row_groups() {
                for column in group.columns() {
                    check_compression(column.compression())?;
                }
            }
            Ok(RowIter::from_file_into(Box::new(reader)))
        });
        let rows = rows.map_err(|message| DataError::file(path, message))?;
        Ok(Self { rows, path: path.to_owned(), number: 0 })
    }
}

/// A hostile file must not end the process: what the library panics on is an error like others.
fn guarded<T>(action: impl FnOnce() -> parquet::errors::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(action)) {
        Ok(result) => result.map_err(|error| format!("cannot be read as Parquet: {error}")),
        Err(_) => Err("cannot be read as Parquet: its parts contradict each other".to_owned()),
    }
}

fn check_compression(compression: Compression) -> parquet::errors::Result<()> {
    match compression {
        Compression::UNCOMPRESSED | Compression::SNAPPY => Ok(()),
        other => {
            let message = format!("compression {other} is not read; write it with snappy or none");
            Err(ParquetError::General(message))
        }
    }
}

impl Iterator for Reader {
    type Item = Result<Row, RowError>;

    fn next(&mut self) -> Option<Self::Item> {
        let row = match guarded(|| self.rows.next().transpose()) {
            Ok(row) => row?,
            Err(message) => return Some(Err(RowError::Fatal(DataError::file(&self.path, message)))),
        };
        self.number += 1;
        let place = Place::Row(self.number);
        let columns: Result<Map<String, Value>, String> =
            row.into_columns().into_iter().map(|(name, field)| Ok((name, value(field)?))).collect();
        Some(match columns {
            Ok(columns) => Ok(Row { place, columns, raw: Vec::new() }),
            Err(message) => Err(RowError::Finding(Finding::at(place, message))),
        })
    }
}

/// A value as JSON; what JSON has no type for (dates, decimals) becomes text.
fn value(field: Field) -> Result<Value, String> {
    Ok(match field {
        Field::Null => Value::Null,
        Field::Bool(value) => Value::Bool(value),
        Field::Byte(value) => value.into(),
        Field::Short(value) => value.into(),
        Field::Int(value) => value.into(),
        Field::Long(value) => value.into(),
        Field::UByte(value) => value.into(),
        Field::UShort(value) => value.into(),
        Field::UInt(value) => value.into(),
        Field::ULong(value) => value.into(),
        Field::Float(value) => Number::from_f64(value.into()).map_or(Value::Null, Value::Number),
        Field::Double(value) => Number::from_f64(value).map_or(Value::Null, Value::Number),
        Field::Str(text) => Value::String(text),
        // Text of writers that do not mark it as such.
        Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
            Ok(text) => Value::String(text.to_owned()),
            Err(_) => return Err("has bytes that are not UTF-8".to_owned()),
        },
        Field::Group(row) => {
            let members = row.into_columns().into_iter().map(|(name, field)| Ok((name, value(field)?)));
            Value::Object(members.collect::<Result<_, String>>()?)
        }
        Field::ListInternal(list) => {
            Value::Array(list.elements().iter().map(|field| value(field.clone())).collect::<Result<_, _>>()?)
        }
        Field::MapInternal(map) => {
            let entries = map.entries().iter().map(|(key, field)| match value(key.clone())? {
                Value::String(key) => Ok((key, value(field.clone())?)),
                other => Ok((other.to_string(), value(field.clone())?)),
            });
            Value::Object(entries.collect::<Result<_, String>>()?)
        }
        other => Value::String(other.to_string()),
    })
}
