//! `wardrobe.toml`: what `wardrobe serve --config` reads.

use serde_json::Value;

use super::Endpoint;
use super::error::{DeployError, Result};
use super::files::KEY_FILE;
use super::quote::toml_string;

const HEAD: &str = "\
# Settings of `wardrobe serve --config`, written by `wardrobe deploy`. `wardrobe serve --help` explains every key.
# Paths are relative to this file's folder. A variable of the environment (WARDROBE_PORT) wins over its key here.
";

pub(super) fn text(endpoint: &Endpoint<'_>) -> Result<String> {
    let deployment = endpoint.deployment;
    let mut text = HEAD.to_owned();
    let mut set = |key: &str, value: String| text.push_str(&format!("{key} = {value}\n"));
    set("model", toml_string(&deployment.model()));
    set("served_model_name", list(&deployment.base_names));
    set("host", toml_string(&deployment.host));
    set("port", deployment.port.to_string());
    set("api_key_file", toml_string(KEY_FILE));
    if let Some(device) = &deployment.device {
        set("device", toml_string(device));
    }
    set("drain_delay_seconds", deployment.drain_delay_seconds.to_string());
    set("drain_seconds", deployment.drain_seconds.to_string());
    if let Some(folder) = &deployment.job_folder {
        set("job_folder", toml_string(&folder.display().to_string()));
    }
    for (key, value) in &deployment.settings {
        set(key, of(key, value)?);
    }
    text.push_str("\n[adapters]\n");
    for adapter in endpoint.adapters {
        let (name, folder) = (toml_string(&adapter.deployed.name), toml_string(&adapter.folder));
        text.push_str(&format!("{name} = {folder}\n"));
    }
    Ok(text)
}

fn list(texts: &[String]) -> String {
    let texts: Vec<String> = texts.iter().map(|text| toml_string(text)).collect();
    format!("[{}]", texts.join(", "))
}

fn of(key: &str, value: &Value) -> Result<String> {
    match value {
        Value::Bool(choice) => Ok(choice.to_string()),
        Value::Number(number) => Ok(number.to_string()),
        Value::String(text) => Ok(toml_string(text)),
        Value::Array(values) => {
            let texts: Option<Vec<String>> =
                values.iter().map(|value| value.as_str().map(str::to_owned)).collect();
            texts.map(|texts| list(&texts)).ok_or_else(|| not_a_setting(key))
        }
        _ => Err(not_a_setting(key)),
    }
}

fn not_a_setting(key: &str) -> DeployError {
    DeployError::Setting(format!("{key} has a value that a settings file cannot hold"))
}
