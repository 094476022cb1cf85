//! `/models/info`: a model as Together's API of 2023 describes it.

use serde::Serialize;

#[derive(Serialize)]
pub(crate) struct ModelInfo<'a> {
    pub name: &'a str,
    pub display_name: &'a str,
    pub display_type: &'static str,
    /// The base model of an adapter.
    pub base: Option<&'a str>,
    pub context_length: Option<usize>,
    pub finetuning_supported: bool,
}
