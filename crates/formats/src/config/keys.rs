//! Typed reads of a JSON object from a file, with errors that name file and key.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{FormatError, Result};

/// A JSON object, where it came from, and the name that leads to it.
pub(crate) struct Keys<'a> {
    path: &'a Path,
    prefix: String,
    map: &'a Map<String, Value>,
}

impl<'a> Keys<'a> {
    pub(crate) fn new(path: &'a Path, map: &'a Map<String, Value>) -> Self {
        Self { path, prefix: String::new(), map }
    }

    pub(crate) fn map(&self) -> &'a Map<String, Value> {
        self.map
    }

    /// The value of `key`; an explicit null is the same as none.
    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    pub(crate) fn error(&self, key: &str, expected: &str, actual: impl std::fmt::Display) -> FormatError {
        FormatError::key(self.path, format!("{}{key}", self.prefix), expected, actual)
    }

    fn typed<T>(&self, key: &str, expected: &str, get: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => match get(value) {
                Some(v) => Ok(Some(v)),
                None => Err(self.error(key, expected, describe(value))),
            },
        }
    }

    fn required<T>(&self, key: &str, expected: &str, found: Option<T>) -> Result<T> {
        found.ok_or_else(|| self.error(key, expected, "nothing"))
    }

    pub(crate) fn usize(&self, key: &str) -> Result<Option<usize>> {
        self.typed(key, "a non-negative integer", |v| v.as_u64()?.try_into().ok())
    }

    pub(crate) fn require_usize(&self, key: &str) -> Result<usize> {
        self.required(key, "a positive integer", self.usize(key)?)
    }

    pub(crate) fn f64(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", |v| v.as_f64().filter(|x| x.is_finite()))
    }

    pub(crate) fn require_f64(&self, key: &str) -> Result<f64> {
        self.required(key, "a number", self.f64(key)?)
    }

    pub(crate) fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", Value::as_bool)
    }

    pub(crate) fn str(&self, key: &str) -> Result<Option<&'a str>> {
        self.typed(key, "a string", Value::as_str)
    }

    pub(crate) fn object(&self, key: &str) -> Result<Option<Keys<'a>>> {
        let found = self.typed(key, "an object", Value::as_object)?;
        Ok(found.map(|map| Keys { path: self.path, prefix: format!("{}{key}.", self.prefix), map }))
    }

    /// An array of strings.
    pub(crate) fn strings(&self, key: &str) -> Result<Option<Vec<String>>> {
        self.typed(key, "an array of strings", |v| {
            v.as_array()?.iter().map(|s| s.as_str().map(str::to_owned)).collect()
        })
    }

    /// An array of numbers, no longer than the widest head has pairs.
    pub(crate) fn require_f32s(&self, key: &str) -> Result<Vec<f32>> {
        const MAX: usize = super::bounds::HEAD_DIM;
        let expected = format!("an array of up to {MAX} numbers");
        let found = self.typed(key, &expected, |v| {
            let numbers = v.as_array().filter(|a| a.len() <= MAX)?;
            numbers.iter().map(|n| n.as_f64().map(|n| n as f32)).collect()
        })?;
        self.required(key, &expected, found)
    }

    /// A token id, or several.
    pub(crate) fn token_ids(&self, key: &str) -> Result<Vec<u32>> {
        let id = |v: &Value| -> Option<u32> { v.as_u64()?.try_into().ok() };
        let found = self.typed(key, "a token id or an array of them", |v| match v {
            Value::Array(ids) => ids.iter().map(id).collect(),
            one => id(one).map(|id| vec![id]),
        })?;
        Ok(found.unwrap_or_default())
    }
}

/// A value as a short text.
pub(crate) fn describe(value: &Value) -> String {
    match value {
        Value::Array(a) => format!("an array of {}", a.len()),
        Value::Object(o) => format!("an object of {} keys", o.len()),
        Value::String(s) => format!("{:?}", crate::error::shorten(s)),
        other => other.to_string(),
    }
}
