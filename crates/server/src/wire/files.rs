//! Files.

use serde::Serialize;
use wardrobe_batch::{Page, StoredFile};

/// A file, with OpenAI's fields and Together's.
#[derive(Serialize)]
pub(crate) struct FileObject<'a> {
    id: &'a str,
    object: &'static str,
    bytes: u64,
    created_at: i64,
    filename: &'a str,
    purpose: &'static str,
    /// Whatever is stored was checked before.
    status: &'static str,
    status_details: Option<&'static str>,
    expires_at: Option<i64>,
    #[serde(rename = "FileType")]
    file_type: Option<&'static str>,
    #[serde(rename = "Processed")]
    processed: bool,
    #[serde(rename = "LineCount")]
    line_count: Option<u64>,
    processing_status: &'static str,
}

impl<'a> FileObject<'a> {
    pub fn new(file: &'a StoredFile) -> Self {
        let types = ["jsonl", "csv", "parquet"];
        let ending = file.file_name.rsplit_once('.').map_or("", |(_, ending)| ending);
        Self {
            id: &file.id,
            object: "file",
            bytes: file.size_bytes,
            created_at: file.created_at_ms / 1000,
            filename: &file.file_name,
            purpose: file.purpose.name(),
            status: "processed",
            status_details: None,
            expires_at: None,
            file_type: types.into_iter().find(|known| ending.eq_ignore_ascii_case(known)),
            processed: true,
            line_count: file.check.as_ref().map(|check| check.num_records),
            processing_status: "COMPLETED",
        }
    }
}

/// A page of files.
#[derive(Serialize)]
pub(crate) struct FileList<'a> {
    object: &'static str,
    data: Vec<FileObject<'a>>,
    has_more: bool,
    first_id: Option<&'a str>,
    last_id: Option<&'a str>,
}

impl<'a> FileList<'a> {
    pub fn new(page: &'a Page<StoredFile>) -> Self {
        Self {
            object: "list",
            data: page.items.iter().map(FileObject::new).collect(),
            has_more: page.has_more,
            first_id: page.items.first().map(|file| file.id.as_str()),
            last_id: page.items.last().map(|file| file.id.as_str()),
        }
    }
}

#[derive(Serialize)]
pub(crate) struct FileDeleted {
    pub id: String,
    pub object: &'static str,
    pub deleted: bool,
}
