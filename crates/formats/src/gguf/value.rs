//! Typed values of GGUF metadata, and the map that holds them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::error::{FormatError, Result};

/// A metadata value (`gguf_metadata_value_type` of the GGUF specification).
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    U64(u64),
    I64(i64),
    F32(f32),
    F64(f64),
    Bool(bool),
    String(String),
    Array(Array),
}

/// A metadata array. All elements have one type, kept unboxed so that an array takes about the memory it takes on
/// disk.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F32(Vec<f32>),
    F64(Vec<f64>),
    Bool(Vec<bool>),
    String(Vec<String>),
    Array(Vec<Array>),
}

impl Array {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::U8(v) => v.len(),
            Self::I8(v) => v.len(),
            Self::U16(v) => v.len(),
            Self::I16(v) => v.len(),
            Self::U32(v) => v.len(),
            Self::I32(v) => v.len(),
            Self::U64(v) => v.len(),
            Self::I64(v) => v.len(),
            Self::F32(v) => v.len(),
            Self::F64(v) => v.len(),
            Self::Bool(v) => v.len(),
            Self::String(v) => v.len(),
            Self::Array(v) => v.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The specification's number of the element type.
    pub(crate) fn type_id(&self) -> u32 {
        match self {
            Self::U8(_) => 0,
            Self::I8(_) => 1,
            Self::U16(_) => 2,
            Self::I16(_) => 3,
            Self::U32(_) => 4,
            Self::I32(_) => 5,
            Self::F32(_) => 6,
            Self::Bool(_) => 7,
            Self::String(_) => 8,
            Self::Array(_) => 9,
            Self::U64(_) => 10,
            Self::I64(_) => 11,
            Self::F64(_) => 12,
        }
    }
}

impl Value {
    /// The specification's number of the type.
    pub(crate) fn type_id(&self) -> u32 {
        match self {
            Self::U8(_) => 0,
            Self::I8(_) => 1,
            Self::U16(_) => 2,
            Self::I16(_) => 3,
            Self::U32(_) => 4,
            Self::I32(_) => 5,
            Self::F32(_) => 6,
            Self::Bool(_) => 7,
            Self::String(_) => 8,
            Self::Array(_) => 9,
            Self::U64(_) => 10,
            Self::I64(_) => 11,
            Self::F64(_) => 12,
        }
    }

    /// Any unsigned integer, or a signed one that is not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Self::U8(v) => Some(v.into()),
            Self::U16(v) => Some(v.into()),
            Self::U32(v) => Some(v.into()),
            Self::U64(v) => Some(v),
            Self::I8(v) => v.try_into().ok(),
            Self::I16(v) => v.try_into().ok(),
            Self::I32(v) => v.try_into().ok(),
            Self::I64(v) => v.try_into().ok(),
            _ => None,
        }
    }

    /// Either float type.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Self::F32(v) => Some(v.into()),
            Self::F64(v) => Some(v),
            _ => None,
        }
    }

    /// A boolean.
    pub fn as_bool(&self) -> Option<bool> {
        if let Self::Bool(v) = *self { Some(v) } else { None }
    }

    /// A string.
    pub fn as_str(&self) -> Option<&str> {
        if let Self::String(v) = self { Some(v) } else { None }
    }

    /// An array.
    pub fn as_array(&self) -> Option<&Array> {
        if let Self::Array(v) = self { Some(v) } else { None }
    }

    /// Type and, where it is short, content, for messages.
    fn describe(&self) -> String {
        match self {
            Self::Array(a) => format!("an array of {} elements", a.len()),
            Self::String(s) => format!("the string {:?}", crate::error::shorten(s)),
            other => format!("{other:?}"),
        }
    }
}

/// All metadata of a GGUF file: unique keys with typed values.
///
/// Getters give `Ok(None)` for a key that is absent and an error naming the key for one of another type.
#[derive(Clone, Debug, PartialEq)]
pub struct Metadata {
    path: PathBuf,
    values: BTreeMap<String, Value>,
}

impl Metadata {
    pub(crate) fn new(path: &Path, values: BTreeMap<String, Value>) -> Self {
        Self { path: path.to_owned(), values }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Keys and values, sorted by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.values.iter().map(|(k, v)| (k.as_str(), v))
    }

    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    /// A non-negative integer of any width.
    ///
    /// # Errors
    /// [`FormatError::Key`] if the value is of another type, as with all getters.
    pub fn u64(&self, key: &str) -> Result<Option<u64>> {
        self.typed(key, "a non-negative integer", Value::as_u64)
    }

    /// A non-negative integer that fits 32 bits, such as a token id.
    ///
    /// # Errors
    /// [`FormatError::Key`].
    pub fn u32(&self, key: &str) -> Result<Option<u32>> {
        self.typed(key, "a 32-bit non-negative integer", |v| v.as_u64()?.try_into().ok())
    }

    /// A float of either width.
    ///
    /// # Errors
    /// [`FormatError::Key`].
    pub fn f64(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a float", Value::as_f64)
    }

    /// A boolean.
    ///
    /// # Errors
    /// [`FormatError::Key`].
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "a boolean", Value::as_bool)
    }

    /// A string.
    ///
    /// # Errors
    /// [`FormatError::Key`].
    pub fn str(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a string", Value::as_str)
    }

    /// An array of strings, such as `tokenizer.ggml.tokens`.
    ///
    /// # Errors
    /// [`FormatError::Key`].
    pub fn strings(&self, key: &str) -> Result<Option<&[String]>> {
        self.typed(key, "an array of strings", |v| match v {
            Value::Array(Array::String(v)) => Some(v.as_slice()),
            _ => None,
        })
    }

    /// An array of 32-bit floats, such as `tokenizer.ggml.scores`.
    ///
    /// # Errors
    /// [`FormatError::Key`].
    pub fn f32s(&self, key: &str) -> Result<Option<&[f32]>> {
        self.typed(key, "an array of 32-bit floats", |v| match v {
            Value::Array(Array::F32(v)) => Some(v.as_slice()),
            _ => None,
        })
    }

    /// An array of integers of any width that fit 64 signed bits, such as `tokenizer.ggml.token_type`.
    ///
    /// # Errors
    /// [`FormatError::Key`].
    pub fn integers(&self, key: &str) -> Result<Option<Vec<i64>>> {
        fn widen<T: Copy + Into<i64>>(v: &[T]) -> Vec<i64> {
            v.iter().map(|&x| x.into()).collect()
        }
        self.typed(key, "an array of integers", |v| match v {
            Value::Array(Array::U8(v)) => Some(widen(v)),
            Value::Array(Array::I8(v)) => Some(widen(v)),
            Value::Array(Array::U16(v)) => Some(widen(v)),
            Value::Array(Array::I16(v)) => Some(widen(v)),
            Value::Array(Array::U32(v)) => Some(widen(v)),
            Value::Array(Array::I32(v)) => Some(widen(v)),
            Value::Array(Array::I64(v)) => Some(v.clone()),
            Value::Array(Array::U64(v)) => v.iter().map(|&x| x.try_into().ok()).collect(),
            _ => None,
        })
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        get: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.values.get(key) else { return Ok(None) };
        match get(value) {
            Some(v) => Ok(Some(v)),
            None => Err(FormatError::key(&self.path, key, expected, value.describe())),
        }
    }
}
