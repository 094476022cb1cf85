//! `POST /inference`: the shape of Together's API of 2023.

use serde::Serialize;
use serde_json::{Map, Value};

#[derive(Serialize)]
pub(crate) struct InferenceAnswer<'a> {
    pub id: &'a str,
    pub status: &'static str,
    pub model: &'a str,
    pub args: Map<String, Value>,
    pub prompt: [&'a Value; 1],
    pub num_returns: usize,
    pub subjobs: [(); 0],
    pub tags: Map<String, Value>,
    pub output: InferenceOutput<'a>,
}

#[derive(Serialize)]
pub(crate) struct InferenceOutput<'a> {
    pub result_type: &'static str,
    pub choices: Vec<InferenceChoice<'a>>,
    pub usage: super::usage::WireUsage,
}

#[derive(Serialize)]
pub(crate) struct InferenceChoice<'a> {
    pub index: usize,
    pub text: &'a str,
    pub finish_reason: &'static str,
}
