//! A cursor over the head of a GGUF file, with limits.
//!
//! Everything before the tensor data is read through a small window, so memory follows what was really there and
//! never what a count promises.

use crate::error::{FormatError, Result, shorten};
use crate::gguf::value::{Array, Value};
use crate::source::FileReader;

/// Bytes before the tensor data: metadata and tensor descriptions. The largest vocabularies in use take about
/// 30 MB.
const MAX_HEAD_BYTES: u64 = 128 << 20;
/// The specification's bound for keys.
const MAX_KEY_BYTES: u64 = 65_535;
const MAX_STRING_BYTES: u64 = 16 << 20;
const MAX_ARRAY_DEPTH: usize = 4;
const WINDOW_BYTES: usize = 64 << 10;

pub(super) struct HeadReader<'a> {
    file: &'a FileReader,
    /// Place of the next byte in the file.
    pos: u64,
    window: Vec<u8>,
    /// Place of the window's first byte in the file.
    window_start: u64,
}

impl<'a> HeadReader<'a> {
    pub(super) fn new(file: &'a FileReader) -> Self {
        Self { file, pos: 0, window: Vec::new(), window_start: 0 }
    }

    pub(super) fn pos(&self) -> u64 {
        self.pos
    }

    fn fill(&mut self, out: &mut [u8], what: &str) -> Result<()> {
        let end = self.pos.saturating_add(out.len() as u64);
        if end > MAX_HEAD_BYTES {
            return Err(FormatError::limit(self.file.path(), "metadata size in bytes", MAX_HEAD_BYTES, end));
        }
        if end > self.file.len() {
            return Err(FormatError::Truncated {
                path: self.file.path().to_owned(),
                what: shorten(what),
                expected: end,
                actual: self.file.len(),
            });
        }
        if out.len() > WINDOW_BYTES {
            self.file.read_exact_at(self.pos, out, what)?;
            self.pos = end;
            return Ok(());
        }
        if self.windowed(end).is_none() {
            let len = (self.file.len() - self.pos).min(WINDOW_BYTES as u64) as usize;
            self.window.resize(len, 0);
            self.window_start = self.pos;
            self.file.read_exact_at(self.pos, &mut self.window, what)?;
        }
        if let Some(bytes) = self.windowed(end) {
            out.copy_from_slice(bytes);
        }
        self.pos = end;
        Ok(())
    }

    /// Bytes from `pos` to `end` if the window holds them.
    fn windowed(&self, end: u64) -> Option<&[u8]> {
        let from = self.pos.checked_sub(self.window_start)? as usize;
        let to = end.checked_sub(self.window_start)? as usize;
        self.window.get(from..to)
    }

    fn bytes<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut out = [0; N];
        self.fill(&mut out, what)?;
        Ok(out)
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32> {
        self.bytes(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64> {
        self.bytes(what).map(u64::from_le_bytes)
    }

    /// A length-prefixed UTF-8 string.
    fn string(&mut self, what: &str, max_bytes: u64) -> Result<String> {
        let len = self.u64(what)?;
        if len > max_bytes {
            let what = format!("length of {}", shorten(what));
            return Err(FormatError::limit(self.file.path(), what, max_bytes, len));
        }
        if self.pos.saturating_add(len) > self.file.len() {
            return Err(FormatError::Truncated {
                path: self.file.path().to_owned(),
                what: shorten(what),
                expected: self.pos.saturating_add(len),
                actual: self.file.len(),
            });
        }
        let mut bytes = vec![0; len as usize];
        self.fill(&mut bytes, what)?;
        String::from_utf8(bytes).map_err(|e| {
            FormatError::malformed(
                self.file.path(),
                format!("{} is not UTF-8: {}", shorten(what), e.utf8_error()),
            )
        })
    }

    /// A metadata key or tensor name.
    pub(super) fn name(&mut self, what: &str) -> Result<String> {
        let name = self.string(what, MAX_KEY_BYTES)?;
        if name.is_empty() {
            return Err(FormatError::malformed(self.file.path(), format!("{what} is empty")));
        }
        Ok(name)
    }

    /// The value of `key`, which starts with its type.
    pub(super) fn value(&mut self, key: &str) -> Result<Value> {
        Ok(match self.u32(key)? {
            0 => Value::U8(u8::from_le_bytes(self.bytes(key)?)),
            1 => Value::I8(i8::from_le_bytes(self.bytes(key)?)),
            2 => Value::U16(u16::from_le_bytes(self.bytes(key)?)),
            3 => Value::I16(i16::from_le_bytes(self.bytes(key)?)),
            4 => Value::U32(self.u32(key)?),
            5 => Value::I32(i32::from_le_bytes(self.bytes(key)?)),
            6 => Value::F32(f32::from_le_bytes(self.bytes(key)?)),
            7 => Value::Bool(self.bool(key)?),
            8 => Value::String(self.string(key, MAX_STRING_BYTES)?),
            9 => Value::Array(self.array(key, 1)?),
            10 => Value::U64(self.u64(key)?),
            11 => Value::I64(i64::from_le_bytes(self.bytes(key)?)),
            12 => Value::F64(f64::from_le_bytes(self.bytes(key)?)),
            other => return Err(self.bad_type(key, other)),
        })
    }

    fn bool(&mut self, key: &str) -> Result<bool> {
        match self.bytes::<1>(key)? {
            [0] => Ok(false),
            [1] => Ok(true),
            [other] => Err(FormatError::key(self.file.path(), key, "a boolean, 0 or 1", other)),
        }
    }

    fn bad_type(&self, key: &str, id: u32) -> FormatError {
        FormatError::key(self.file.path(), key, "a value type from 0 to 12", format!("type {id}"))
    }

    fn array(&mut self, key: &str, depth: usize) -> Result<Array> {
        if depth > MAX_ARRAY_DEPTH {
            let what = format!("nesting of the array {}", shorten(key));
            return Err(FormatError::limit(self.file.path(), what, MAX_ARRAY_DEPTH as u64, depth as u64));
        }
        let element = self.u32(key)?;
        let len = self.u64(key)?;
        Ok(match element {
            0 => Array::U8(self.numbers(key, len, u8::from_le_bytes)?),
            1 => Array::I8(self.numbers(key, len, i8::from_le_bytes)?),
            2 => Array::U16(self.numbers(key, len, u16::from_le_bytes)?),
            3 => Array::I16(self.numbers(key, len, i16::from_le_bytes)?),
            4 => Array::U32(self.numbers(key, len, u32::from_le_bytes)?),
            5 => Array::I32(self.numbers(key, len, i32::from_le_bytes)?),
            6 => Array::F32(self.numbers(key, len, f32::from_le_bytes)?),
            7 => Array::Bool(self.elements(key, len, 1, |r| r.bool(key))?),
            8 => Array::String(self.elements(key, len, 8, |r| r.string(key, MAX_STRING_BYTES))?),
            9 => Array::Array(self.elements(key, len, 12, |r| r.array(key, depth + 1))?),
            10 => Array::U64(self.numbers(key, len, u64::from_le_bytes)?),
            11 => Array::I64(self.numbers(key, len, i64::from_le_bytes)?),
            12 => Array::F64(self.numbers(key, len, f64::from_le_bytes)?),
            other => return Err(self.bad_type(key, other)),
        })
    }

    fn numbers<const N: usize, T>(
        &mut self,
        key: &str,
        len: u64,
        decode: fn([u8; N]) -> T,
    ) -> Result<Vec<T>> {
        self.elements(key, len, N as u64, |r| r.bytes(key).map(decode))
    }

    /// `len` elements of at least `min_bytes` each on disk.
    fn elements<T>(
        &mut self,
        key: &str,
        len: u64,
        min_bytes: u64,
        mut read: impl FnMut(&mut Self) -> Result<T>,
    ) -> Result<Vec<T>> {
        let end = self.pos.saturating_add(len.saturating_mul(min_bytes));
        if end > self.file.len() {
            return Err(FormatError::Truncated {
                path: self.file.path().to_owned(),
                what: format!("array {} of {len} elements", shorten(key)),
                expected: end,
                actual: self.file.len(),
            });
        }
        if end > MAX_HEAD_BYTES {
            return Err(FormatError::limit(self.file.path(), "metadata size in bytes", MAX_HEAD_BYTES, end));
        }
        // Both checks bound `len`, so the reservation is no larger than a small multiple of bytes that exist.
        let mut out = Vec::with_capacity(len as usize);
        for _ in 0..len {
            out.push(read(self)?);
        }
        Ok(out)
    }
}
