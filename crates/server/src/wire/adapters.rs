//! Loading, unloading, pinning and listing adapters.

use serde::{Deserialize, Serialize};

#[derive(Debug, Deserialize)]
pub(crate) struct LoadAdapter {
    pub lora_name: String,
    pub lora_path: String,
    #[serde(default)]
    pub load_inplace: Option<bool>,
    #[serde(default)]
    pub pinned: Option<bool>,
    #[serde(default)]
    pub expected_generation: Option<u64>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct PinAdapter {
    pub lora_name: String,
    /// True if it is left out.
    #[serde(default)]
    pub pinned: Option<bool>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct UnloadAdapter {
    pub lora_name: String,
    #[serde(default)]
    pub expected_generation: Option<u64>,
}

#[derive(Serialize)]
pub(crate) struct AdapterList {
    pub object: &'static str,
    pub data: Vec<AdapterCard>,
}

/// A loaded adapter. `id` is its generation, by which llama.cpp's `lora` field may choose it.
#[derive(Serialize)]
pub(crate) struct AdapterCard {
    pub id: u64,
    pub name: String,
    pub generation: u64,
    pub digest: String,
    pub source: String,
    pub rank: usize,
    pub num_modules: usize,
    /// Its own context, if it brings RoPE scaling.
    pub max_model_len: Option<usize>,
    /// Whether its answers are held to a schema of its own, unless a request says otherwise.
    pub has_schema: bool,
    pub host_bytes: u64,
    pub device_bytes: u64,
    pub level: &'static str,
    pub pinned: bool,
    pub open_requests: usize,
    pub loaded_at: u64,
}
