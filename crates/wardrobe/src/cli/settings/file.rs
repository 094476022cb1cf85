//! Settings as a file has them.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer};

use super::Settings;
use crate::cli::sources;
use crate::cli::values::AdapterSpec;

impl Settings {
    /// Reads a settings file. Paths in it are relative to its folder.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = sources::read_text(path)?;
        let mut table = sources::parse(path, &text)?;
        let all = table.len();
        // These are other commands'.
        table.retain(|key, value| !(value.is_table() && sources::TABLES.contains(&key)));
        // From the text, errors tell the line.
        let settings = if table.len() == all { toml::from_str(&text) } else { table.try_into() };
        let mut settings: Self = settings.map_err(|error| sources::wrong(path, &error))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let under = |path: &mut PathBuf| *path = folder.join(&*path);
        settings.adapter.iter_mut().for_each(|adapter| under(&mut adapter.path));
        settings.adapter_root.iter_mut().for_each(under);
        settings.job_folder.iter_mut().for_each(under);
        settings.api_key_file.iter_mut().for_each(under);
        settings.model_config.iter_mut().for_each(under);
        if let Some(model) = settings.model.as_mut().filter(|m| m.starts_with("./") || m.starts_with("../")) {
            *model = folder.join(&*model).display().to_string();
        }
        Ok(settings)
    }
}

pub(super) fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Given {
        One(String),
        Many(Vec<String>),
    }
    match Given::deserialize(deserializer) {
        Ok(Given::One(text)) => Ok(vec![text]),
        Ok(Given::Many(texts)) => Ok(texts),
        Err(_) => Err(serde::de::Error::custom("expected a text or a list of texts")),
    }
}

pub(super) fn adapter_list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<AdapterSpec>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Given {
        One(String),
        Many(Vec<String>),
        Table(std::collections::BTreeMap<String, PathBuf>),
    }
    let texts = match Given::deserialize(deserializer) {
        Ok(Given::Table(table)) => {
            return Ok(table.into_iter().map(|(name, path)| AdapterSpec { name, path }).collect());
        }
        Ok(Given::One(text)) => vec![text],
        Ok(Given::Many(texts)) => texts,
        Err(_) => return Err(serde::de::Error::custom("expected \"NAME=PATH\", a list of them, or a table")),
    };
    texts.iter().map(|text| text.parse().map_err(serde::de::Error::custom)).collect()
}
