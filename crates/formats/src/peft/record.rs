//! What an adapter says beyond PEFT's files, in `wardrobe.json` beside them: rotary positions of its own, and what its trainer
//! vouches for ([`ParityRecord`]).
//!
//! PEFT has no place for the former: a base model is trained at a longer context by changing *its* configuration. So whoever
//! serves such an adapter must be told, and other runtimes need the same setting by hand.

use std::fmt;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::RECORD_FILE;
use super::parity::ParityRecord;
use crate::config::{Keys, RopeScaling, bounds, rope};
use crate::error::{FormatError, Result};
use crate::paths;

const MAX_RECORD_BYTES: u64 = 16 << 20;
const MAX_SCHEMA_BYTES: u64 = 4 << 20;

/// File name of the JSON schema that an adapter's answers are held to, if it has one.
pub const SCHEMA_FILE: &str = "schema.json";
const VERSION: u64 = 1;

/// Rotary positions that an adapter was trained with, in the place of the base model's.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterRope {
    /// Base of the frequencies; `None` keeps the model's.
    pub theta: Option<f64>,
    /// Scaling of the frequencies.
    pub scaling: RopeScaling,
    /// Longest sequence that the adapter is meant for, in tokens.
    pub max_position_embeddings: usize,
}

impl AdapterRope {
    /// Whether every number is within bounds; `path` is for messages.
    ///
    /// # Errors
    /// [`FormatError::Key`] naming the field.
    pub fn check(&self, path: &Path) -> Result<()> {
        if let Some(theta) = self.theta
            && !(theta > 0.0 && theta <= bounds::ROPE_THETA)
        {
            let expected = format!("a number over 0 and up to {:e}", bounds::ROPE_THETA);
            return Err(FormatError::key(path, "rope.rope_theta", expected, theta));
        }
        if !(1..=bounds::POSITIONS).contains(&self.max_position_embeddings) {
            let expected = format!("an integer from 1 to {}", bounds::POSITIONS);
            let key = "rope.max_position_embeddings";
            return Err(FormatError::key(path, key, expected, self.max_position_embeddings));
        }
        if matches!(self.scaling, RopeScaling::FrequencyFactors(_) | RopeScaling::LongRope { .. }) {
            let what = "frequency factors of one's own in an adapter";
            return Err(FormatError::unsupported(path, what));
        }
        self.scaling.check(path, 0)
    }

    fn from_json(keys: &Keys<'_>) -> Result<Self> {
        let known = ["rope_theta", "rope_scaling", "max_position_embeddings"];
        if let Some(key) = keys.map().keys().find(|key| !known.contains(&key.as_str())) {
            return Err(keys.error(key, "no such key", "one"));
        }
        Ok(AdapterRope {
            theta: keys.f64("rope_theta")?,
            scaling: match keys.object("rope_scaling")? {
                Some(scaling) => rope::from_hf(&scaling, &rope::RopeContext::default())?,
                None => RopeScaling::None,
            },
            max_position_embeddings: keys.require_usize("max_position_embeddings")?,
        })
    }

    /// As `rope` of the record.
    pub fn to_json(&self) -> Value {
        let mut map = Map::new();
        if let Some(theta) = self.theta {
            map.insert("rope_theta".to_owned(), json!(theta));
        }
        if let Some(scaling) = self.scaling.to_hf() {
            map.insert("rope_scaling".to_owned(), scaling);
        }
        map.insert("max_position_embeddings".to_owned(), json!(self.max_position_embeddings));
        Value::Object(map)
    }
}

impl fmt::Display for AdapterRope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.scaling {
            RopeScaling::None | RopeScaling::FrequencyFactors(_) => f.write_str("unscaled")?,
            RopeScaling::Linear { factor } => write!(f, "linear, factor {factor}")?,
            RopeScaling::Llama3 { factor, .. } => write!(f, "llama3, factor {factor}")?,
            RopeScaling::Yarn { factor, .. } => write!(f, "YaRN, factor {factor}")?,
            RopeScaling::LongRope { .. } => f.write_str("longrope")?,
        }
        if let Some(theta) = self.theta {
            write!(f, ", theta {theta}")?;
        }
        write!(f, ", up to {} tokens", self.max_position_embeddings)
    }
}

/// What a record holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AdapterRecord {
    /// Rotary positions of the adapter's own.
    pub rope: Option<AdapterRope>,
    /// What its trainer vouches for.
    pub parity: Option<ParityRecord>,
    /// The JSON schema of its answers, an object, from [`SCHEMA_FILE`]. Whether a grammar can hold answers to it is not known
    /// here.
    pub schema: Option<Value>,
}

/// Reads a schema; `path` is for messages.
pub(super) fn parse_schema(path: &Path, bytes: &[u8]) -> Result<Value> {
    let text =
        std::str::from_utf8(bytes).map_err(|e| FormatError::malformed(path, format!("not UTF-8: {e}")))?;
    paths::parse_json_object(path, text).map(Value::Object)
}

fn read_schema(dir: &Path) -> Result<Option<Value>> {
    if !paths::exists(dir, SCHEMA_FILE) {
        return Ok(None);
    }
    let path = paths::confined(dir, SCHEMA_FILE)?;
    parse_schema(&path, &paths::read_bytes(&path, MAX_SCHEMA_BYTES)?).map(Some)
}

/// The record's text, if there is anything to record.
pub(super) fn to_json(rope: Option<&AdapterRope>, parity: Option<&ParityRecord>) -> Option<Value> {
    if rope.is_none() && parity.is_none() {
        return None;
    }
    let mut record = Map::new();
    record.insert("version".to_owned(), json!(VERSION));
    if let Some(rope) = rope {
        record.insert("rope".to_owned(), rope.to_json());
    }
    if let Some(parity) = parity {
        record.insert("parity".to_owned(), parity.to_json());
    }
    Some(Value::Object(record))
}

/// Reads the record and the schema of the adapter folder `dir`, as far as it has them.
pub(super) fn read(dir: &Path) -> Result<AdapterRecord> {
    let schema = read_schema(dir)?;
    if !paths::exists(dir, RECORD_FILE) {
        return Ok(AdapterRecord { schema, ..AdapterRecord::default() });
    }
    let path = paths::confined(dir, RECORD_FILE)?;
    let record = parse(&path, &paths::read_json_object(&path, MAX_RECORD_BYTES)?)?;
    Ok(AdapterRecord { schema, ..record })
}

/// Reads a record; `path` is for messages.
pub(super) fn parse(path: &Path, map: &Map<String, Value>) -> Result<AdapterRecord> {
    let keys = Keys::new(path, map);
    match keys.get("version").and_then(Value::as_u64) {
        Some(VERSION) => {}
        found => {
            let found = found.map_or("none".to_owned(), |version| version.to_string());
            return Err(keys.error("version", "1, the only one that is known", found));
        }
    }
    let rope = keys.object("rope")?.map(|rope| AdapterRope::from_json(&rope)).transpose()?;
    if let Some(rope) = &rope {
        rope.check(path)?;
    }
    let parity = keys.object("parity")?.map(|parity| ParityRecord::from_json(path, &parity)).transpose()?;
    Ok(AdapterRecord { rope, parity, schema: None })
}
