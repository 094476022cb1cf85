//! Values that options and settings files have, each read from and written as text.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use wardrobe::{AdapterPrecision, DType, DeviceSpec, Sharing, Speculation, WeightPrecision};

/// Reads and writes a type in settings files as the text that options have.
macro_rules! serde_as_text {
    ($($type:ty),*) => {$(
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(de::Error::custom)
            }
        }
    )*};
}

pub(super) use serde_as_text;

serde_as_text!(Device, KvDtype, Weights, Adapters, AdapterSpec, TrainingRest, Drafts);

/// How training shares the machine with requests.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct TrainingRest(pub Sharing);

impl FromStr for TrainingRest {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "serving-first" {
            return Ok(Self(Sharing::ServingFirst));
        }
        let part: Option<f32> = text.parse().ok().filter(|part| (0.0..1.0).contains(part));
        let wrong = || format!("{text:?} is neither serving-first nor a number from 0 to below 1");
        part.map(|part| Self(Sharing::Part(part))).ok_or_else(wrong)
    }
}

impl fmt::Display for TrainingRest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Sharing::ServingFirst => f.write_str("serving-first"),
            Sharing::Part(part) => part.fmt(f),
        }
    }
}

/// A number of bytes: `512MiB`, `2GB`, `1.5GiB`, `1048576`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteSize(pub u64);

const UNITS: [(&str, u64); 9] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("B", 1),
];

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no size; write it like 512MiB, 2GB or 1048576");
        let trimmed = text.trim();
        let digits = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(digits);
        let unit = unit.trim_start();
        let factor = match unit {
            "" => 1,
            _ => {
                let found = UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit));
                found.map(|(_, factor)| *factor).ok_or_else(wrong)?
            }
        };
        if let Ok(whole) = number.parse::<u64>() {
            return whole.checked_mul(factor).map(ByteSize).ok_or_else(|| format!("{text:?} is too large"));
        }
        let value: f64 = number.parse().map_err(|_| wrong())?;
        let bytes = value * factor as f64;
        // Above this, f64 no longer holds every whole number.
        if !(0.0..9.0e15).contains(&bytes) {
            return Err(format!("{text:?} is too large"));
        }
        Ok(ByteSize(bytes as u64))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = |(_, factor): &&(&str, u64)| self.0 > 0 && self.0.is_multiple_of(*factor);
        match UNITS[..4].iter().rev().find(exact) {
            Some((name, factor)) => write!(f, "{}{name}", self.0 / factor),
            None => write!(f, "{}", self.0),
        }
    }
}

impl ByteSize {
    /// As memory is counted on this machine.
    pub fn to_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Given {
            Bytes(u64),
            Text(String),
        }
        match Given::deserialize(deserializer) {
            Ok(Given::Bytes(bytes)) => Ok(ByteSize(bytes)),
            Ok(Given::Text(text)) => text.parse().map_err(de::Error::custom),
            Err(_) => Err(de::Error::custom("a size is bytes as a number, or a text like \"512MiB\"")),
        }
    }
}

/// Where to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Device(pub DeviceSpec);

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().map(Device)
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Element type of keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvDtype(pub DType);

impl FromStr for KvDtype {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "f16" => Ok(KvDtype(DType::F16)),
            "bf16" => Ok(KvDtype(DType::BF16)),
            "f32" => Ok(KvDtype(DType::F32)),
            _ => Err(format!("unknown element type {text:?}: f16, bf16 or f32")),
        }
    }
}

impl fmt::Display for KvDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            DType::F32 => "f32",
            DType::BF16 => "bf16",
            DType::F16 | DType::U32 => "f16",
        })
    }
}

/// Whether next tokens are drafted from a text itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Drafts(pub Speculation);

impl FromStr for Drafts {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self(Speculation::Auto)),
            "off" => Ok(Self(Speculation::Off)),
            "always" => Ok(Self(Speculation::Always)),
            _ => Err(format!("{text:?} is neither auto, off nor always")),
        }
    }
}

impl fmt::Display for Drafts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Speculation::Auto => "auto",
            Speculation::Off => "off",
            Speculation::Always => "always",
        })
    }
}

/// Precision of the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Weights {
    /// As they are stored.
    #[default]
    AsStored,
    /// All in f32.
    F32,
    /// Floats rounded to 8 bits.
    Fp8,
}

impl Weights {
    /// As they are read from files.
    pub fn precision(self) -> WeightPrecision {
        match self {
            Weights::AsStored | Weights::Fp8 => WeightPrecision::AsStored,
            Weights::F32 => WeightPrecision::F32,
        }
    }
}

impl FromStr for Weights {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "as-stored" => Ok(Weights::AsStored),
            "f32" => Ok(Weights::F32),
            "fp8" => Ok(Weights::Fp8),
            _ => Err(format!("unknown precision {text:?}: as-stored, f32 or fp8")),
        }
    }
}

impl fmt::Display for Weights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Weights::AsStored => "as-stored",
            Weights::F32 => "f32",
            Weights::Fp8 => "fp8",
        })
    }
}

/// Precision of the adapters' factors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Adapters(pub AdapterPrecision);

impl FromStr for Adapters {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Adapters(AdapterPrecision::Auto)),
            "as-stored" => Ok(Adapters(AdapterPrecision::AsStored)),
            "f16" => Ok(Adapters(AdapterPrecision::F16)),
            _ => Err(format!("unknown precision {text:?}: auto, as-stored or f16")),
        }
    }
}

impl fmt::Display for Adapters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            AdapterPrecision::Auto => "auto",
            AdapterPrecision::AsStored => "as-stored",
            AdapterPrecision::F16 => "f16",
        })
    }
}

/// An adapter and the name that requests use for it: `NAME=PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterSpec {
    /// The name.
    pub name: String,
    /// Its PEFT folder.
    pub path: PathBuf,
}

impl FromStr for AdapterSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, path)) if !name.trim().is_empty() && !path.trim().is_empty() => {
                Ok(Self { name: name.trim().to_owned(), path: PathBuf::from(path.trim()) })
            }
            _ => Err(format!("{text:?} is no adapter; write NAME=PATH, such as mine=./my-adapter")),
        }
    }
}

impl fmt::Display for AdapterSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.path.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let cases = [
            ("512MiB", 512 << 20),
            ("1.5GiB", 3 << 29),
            ("2 GB", 2_000_000_000),
            ("64mib", 64 << 20),
            ("10b", 10),
            ("1048576", 1 << 20),
        ];
        for (text, bytes) in cases {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
        for text in ["", "MiB", "-1", "1..5GiB", "12 parsecs", "99999999999TiB", "1e5", "NaN", "9999999.5TiB"]
        {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
        for bytes in [0, 1, 1000, 1 << 20, 512 << 20, 3 << 29] {
            assert_eq!(ByteSize(bytes).to_string().parse(), Ok(ByteSize(bytes)));
        }
    }

    #[test]
    fn adapters() {
        let spec: AdapterSpec = "mine=/a/b=c".parse().unwrap();
        assert_eq!((spec.name.as_str(), spec.path.to_str()), ("mine", Some("/a/b=c")));
        for text in ["mine", "=path", "mine=", ""] {
            assert!(text.parse::<AdapterSpec>().is_err(), "{text}");
        }
    }

    #[test]
    fn names_are_read_as_they_are_written() {
        for text in ["auto", "cpu"] {
            assert_eq!(text.parse::<Device>().unwrap().to_string(), text);
        }
        for text in ["f16", "f32"] {
            assert_eq!(text.parse::<KvDtype>().unwrap().to_string(), text);
        }
        for text in ["auto", "off", "always"] {
            assert_eq!(text.parse::<Drafts>().unwrap().to_string(), text);
        }
        assert!("on".parse::<Drafts>().is_err());
        for text in ["auto", "as-stored", "f16"] {
            assert_eq!(text.parse::<Adapters>().unwrap().to_string(), text);
        }
        for text in ["as-stored", "f32", "fp8"] {
            assert_eq!(text.parse::<Weights>().unwrap().to_string(), text);
        }
    }
}
