//! `/v1/files`: uploads as OpenAI's clients make them, in one request, and as Together's do, in three.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use wardrobe_batch::{FilePurpose, JobRunner, NewFile, StoredFile, Upload};

use crate::body::{json, read_in_time};
use crate::download;
use crate::error::{ApiError, Result};
use crate::jobs::{Id, Runner, call};
use crate::multipart::Multipart;
use crate::query::Query;
use crate::state::ServerState;
use crate::uploads::{Source, UPLOAD_PATH, write_all};
use crate::wire::files::{FileDeleted, FileList, FileObject};

const MAX_FILES_A_PAGE: usize = 10_000;
const MAX_NAME_BYTES: usize = 1024;
/// A form without a file is a few words.
const MAX_FORM_BYTES: usize = 16 << 10;

/// The purpose of this name, in OpenAI's words or Together's.
fn purpose(name: &str) -> Result<FilePurpose> {
    match name {
        "eval" => Some(FilePurpose::Evals),
        "batch-api" => Some(FilePurpose::Batch),
        // These are made here and not uploaded.
        "fine-tune-results" | "batch_output" => None,
        name => FilePurpose::from_name(name),
    }
    .ok_or_else(|| {
        let shown: String = name.chars().take(40).collect();
        ApiError::invalid("purpose", format!("is {shown:?}; use fine-tune, batch, evals or user_data"))
    })
}

/// What a form said beside its file.
#[derive(Default)]
struct Form {
    purpose: Option<FilePurpose>,
    /// Together's clients announce a file by its name.
    file_name: Option<String>,
    checksum: Option<String>,
}

impl Form {
    /// Whether a form has a field of this name. Others are passed over.
    fn knows(name: &str) -> bool {
        matches!(name, "purpose" | "file_name" | "checksum")
    }

    fn set(&mut self, name: &str, text: String) -> Result<()> {
        match name {
            "purpose" => self.purpose = Some(purpose(&text)?),
            "file_name" => self.file_name = Some(text),
            "checksum" => self.checksum = Some(text),
            _ => {}
        }
        Ok(())
    }

    /// The purpose, once the whole form has been looked at.
    fn checked_purpose(&self) -> Result<FilePurpose> {
        let is_digest = |text: &String| text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !self.checksum.as_ref().is_none_or(is_digest) {
            return Err(ApiError::invalid("checksum", "is no SHA-256 in 64 hexadecimal digits"));
        }
        // It is kept until the file comes.
        if self.file_name.as_ref().is_some_and(|name| name.len() > MAX_NAME_BYTES) {
            return Err(ApiError::invalid("file_name", "is too long"));
        }
        self.purpose.ok_or_else(|| ApiError::invalid("purpose", "is missing"))
    }

    /// A form without a file, as Together's client of 2023 announces one: like a query, in the body.
    async fn of_query(state: &ServerState, body: Body) -> Result<Self> {
        let (bytes, _share) = read_in_time(body, state, MAX_FORM_BYTES).await?;
        let text = std::str::from_utf8(&bytes).map_err(|_| ApiError::bad_request("the form is not UTF-8"))?;
        let query = Query::parse(Some(text))?;
        let mut form = Self::default();
        for name in ["purpose", "file_name", "checksum"] {
            if let Some(text) = query.get(name) {
                form.set(name, text.to_owned())?;
            }
        }
        Ok(form)
    }
}

fn is_like_a_query(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    kind.split(';').next().unwrap_or("").trim().eq_ignore_ascii_case("application/x-www-form-urlencoded")
}

/// `POST /v1/files`.
pub(crate) async fn create(
    State(state): State<Arc<ServerState>>,
    Runner(runner): Runner,
    request: Request,
) -> Result<Response> {
    if state.is_draining() {
        return Err(ApiError::shutting_down());
    }
    let _place = state.uploads.admit()?;
    let (parts, body) = request.into_parts();
    refuse_long(&parts.headers, runner.config().max_file_bytes.saturating_add(64 << 10))?;
    if is_like_a_query(&parts.headers) {
        let form = Form::of_query(&state, body).await?;
        let (purpose, checksum) = (form.checked_purpose()?, form.checksum);
        let file_name = form.file_name.ok_or_else(|| ApiError::invalid("file_name", "is missing"))?;
        return announce(&state, &runner, &parts.headers, (file_name, purpose, checksum));
    }
    let mut reader = Multipart::new(&parts.headers, body, state.config.read_timeout)?;
    let (mut form, mut upload) = (Form::default(), None::<Upload>);
    while let Some(part) = reader.next_part().await? {
        match (part.name.as_str(), part.file_name) {
            ("file", Some(file_name)) => {
                if upload.is_some() {
                    return Err(ApiError::invalid("file", "is given twice"));
                }
                let purpose = form.purpose.unwrap_or(FilePurpose::UserData);
                let new = NewFile { id: None, file_name, purpose, sha256: form.checksum.clone() };
                let begun = begin(&state, &runner, new).await?;
                upload = Some(write_all(begun, Source::Part(&mut reader)).await?);
            }
            ("file", None) => return Err(ApiError::invalid("file", "is a text, not a file with a name")),
            (name, _) if Form::knows(name) => form.set(name, reader.text(name).await?)?,
            (name, _) if name.starts_with("expires_after") => {
                return Err(ApiError::unsupported("expires_after", "files stay until they are deleted"));
            }
            _ => {}
        }
    }
    let purpose = form.checked_purpose()?;
    let Some(mut upload) = upload else {
        let file_name = form.file_name.ok_or_else(|| ApiError::invalid("file", "is missing"))?;
        return announce(&state, &runner, &parts.headers, (file_name, purpose, form.checksum));
    };
    upload.set_purpose(purpose);
    let stored = finish(&state, upload).await?;
    Ok(json(&FileObject::new(&stored)))
}

/// A body that says that it is too long is not read.
fn refuse_long(headers: &HeaderMap, limit_bytes: u64) -> Result<()> {
    let declared = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    if declared.and_then(|text| text.parse::<u64>().ok()).is_some_and(|bytes| bytes > limit_bytes) {
        let limit_bytes = usize::try_from(limit_bytes).unwrap_or(usize::MAX);
        return Err(ApiError::body_too_large(limit_bytes));
    }
    Ok(())
}

async fn begin(state: &ServerState, runner: &Arc<JobRunner>, new: NewFile) -> Result<Upload> {
    let runner = runner.clone();
    call(state, move || runner.begin_upload(new)).await
}

async fn finish(state: &ServerState, upload: Upload) -> Result<StoredFile> {
    let stored = call(state, move || upload.finish()).await?;
    tracing::info!(file = stored.id, bytes = stored.size_bytes, "a file was stored");
    Ok(stored)
}

/// Tells where an announced file is to be sent: Together's clients follow by themselves.
fn announce(
    state: &ServerState,
    runner: &JobRunner,
    headers: &HeaderMap,
    (file_name, purpose, sha256): (String, FilePurpose, Option<String>),
) -> Result<Response> {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let host = text(header::HOST).ok_or_else(|| ApiError::bad_request("the request has no Host"))?;
    // A proxy in front says how the client reached it. Who lies here misleads only itself.
    let scheme = match text(HeaderName::from_static("x-forwarded-proto")) {
        Some("https") => "https",
        _ => "http",
    };
    let (id, token) = (runner.reserve_file_id(), runner.new_upload_token());
    let location = HeaderValue::from_str(&format!("{scheme}://{host}{UPLOAD_PATH}{token}"));
    let location = location.map_err(|_| ApiError::bad_request("the request's Host is not usable"))?;
    let file_id = HeaderValue::from_str(&id).map_err(|_| ApiError::internal("an id is no header value"))?;
    state.uploads.announce(token, NewFile { id: Some(id), file_name, purpose, sha256 })?;
    let headers = [(header::LOCATION, location), (HeaderName::from_static("x-together-file-id"), file_id)];
    Ok((StatusCode::FOUND, headers).into_response())
}

/// `PUT /v1/files/uploads/{token}`: the bytes of an announced file.
pub(crate) async fn receive(
    State(state): State<Arc<ServerState>>,
    Runner(runner): Runner,
    Id(token): Id,
    request: Request,
) -> Result<Response> {
    if state.is_draining() {
        return Err(ApiError::shutting_down());
    }
    let (parts, body) = request.into_parts();
    refuse_long(&parts.headers, runner.config().max_file_bytes)?;
    let _place = state.uploads.admit()?;
    let new = state.uploads.take(&token)?;
    let upload = begin(&state, &runner, new).await?;
    let upload = write_all(upload, Source::Body(body, state.config.read_timeout)).await?;
    let stored = finish(&state, upload).await?;
    Ok(json(&FileObject::new(&stored)))
}

/// `POST /v1/files/{id}/preprocess`: the last of Together's three requests. The file was checked when it arrived.
pub(crate) async fn preprocess(state: State<Arc<ServerState>>, runner: Runner, id: Id) -> Result<Response> {
    retrieve(state, runner, id).await
}

/// `GET /v1/files`.
pub(crate) async fn list(
    State(state): State<Arc<ServerState>>,
    Runner(runner): Runner,
    query: Query,
) -> Result<Response> {
    let purpose = match query.get("purpose") {
        Some("fine-tune-results") => Some(FilePurpose::FineTuneResults),
        Some("batch_output") => Some(FilePurpose::BatchOutput),
        Some(name) => Some(purpose(name)?),
        None => None,
    };
    let newest_first = match query.get("order") {
        None | Some("desc") => true,
        Some("asc") => false,
        Some(_) => return Err(ApiError::invalid("order", "is neither `asc` nor `desc`")),
    };
    let limit = query.limit(MAX_FILES_A_PAGE, MAX_FILES_A_PAGE)?;
    let after = query.get("after").map(str::to_owned);
    let page = call(&state, move || runner.files(purpose, after.as_deref(), newest_first, limit)).await?;
    Ok(json(&FileList::new(&page)))
}

/// `GET /v1/files/{id}`.
pub(crate) async fn retrieve(
    State(state): State<Arc<ServerState>>,
    Runner(runner): Runner,
    Id(id): Id,
) -> Result<Response> {
    let file = call(&state, move || runner.file(&id)).await?;
    Ok(json(&FileObject::new(&file)))
}

/// `DELETE /v1/files/{id}`.
pub(crate) async fn remove(
    State(state): State<Arc<ServerState>>,
    Runner(runner): Runner,
    Id(id): Id,
) -> Result<Response> {
    let name = id.clone();
    call(&state, move || runner.delete_file(&name)).await?;
    Ok(json(&FileDeleted { id, object: "file", deleted: true }))
}

/// `GET /v1/files/{id}/content`.
pub(crate) async fn content(
    State(state): State<Arc<ServerState>>,
    Runner(runner): Runner,
    Id(id): Id,
    headers: HeaderMap,
) -> Result<Response> {
    let (stored, file) = call(&state, move || runner.open_file(&id)).await?;
    download::answer(&headers, file, "application/octet-stream", &stored.file_name)
}
