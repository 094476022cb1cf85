//! The image of a container.

use super::{BaseModel, Endpoint, PROGRAM, SETTINGS_FILE, file_name};

/// What is not sent to the builder of the image.
pub(super) const IGNORE_FILE: &str = ".dockerignore";
/// The key above all: it is mounted when the container starts, and is in no layer.
pub(super) const IGNORED: &str = "*\n!bin\n!adapters\n!wardrobe.toml\n";
/// The user in the image.
const USER: u32 = 10_001;
/// Where the key is mounted.
pub(super) const KEY_MOUNT: &str = "/run/secrets/wardrobe-api-key";
/// Where models are kept.
pub(super) const CACHE: &str = "/var/cache/wardrobe";
/// Where jobs are kept.
pub(super) const STATE: &str = "/var/lib/wardrobe";
/// Where a model of the host is mounted.
const MODELS: &str = "/models";

/// Where a local base model is mounted.
pub(super) fn model_mount(endpoint: &Endpoint<'_>) -> Option<String> {
    match &endpoint.deployment.base {
        BaseModel::Local(path) => Some(format!("{MODELS}/{}", file_name(path))),
        BaseModel::Pulled { .. } => None,
    }
}

pub(super) fn text(endpoint: &Endpoint<'_>) -> String {
    let deployment = endpoint.deployment;
    let port = deployment.port;
    let packages = match &deployment.base {
        BaseModel::Pulled { needs_pip: true, .. } => "curl python3 python3-pip",
        _ => "curl",
    };
    let has_jobs = deployment.job_folder.is_some();
    let state = if has_jobs { format!(" {STATE}") } else { String::new() };
    let mut variables = vec![
        ("HOME", CACHE.to_owned()),
        ("WARDROBE_CACHE", CACHE.to_owned()),
        ("WARDROBE_HOST", "0.0.0.0".to_owned()),
        ("WARDROBE_API_KEY_FILE", KEY_MOUNT.to_owned()),
    ];
    if let Some(mount) = model_mount(endpoint) {
        variables.push(("WARDROBE_MODEL", mount));
    }
    if has_jobs {
        variables.push(("WARDROBE_JOB_FOLDER", format!("{STATE}/jobs")));
    }
    let variables: Vec<String> =
        variables.into_iter().map(|(name, value)| format!("{name}={}", image_string(&value))).collect();
    format!(
        "# Written by `wardrobe deploy`. The program was built on the machine that wrote this; the image's C library must not\n\
         # be older than that machine's.\n\
         FROM debian:stable-slim\n\
         RUN apt-get update \\\n    \
             && apt-get install -y --no-install-recommends {packages} \\\n    \
             && rm -rf /var/lib/apt/lists/* \\\n    \
             && useradd --system --uid {USER} --home-dir {CACHE} --no-create-home --shell /usr/sbin/nologin wardrobe \\\n    \
             && install -d -m 1777 {CACHE}{state}\n\
         COPY {PROGRAM} /usr/local/bin/wardrobe\n\
         COPY {SETTINGS_FILE} /etc/wardrobe/{SETTINGS_FILE}\n\
         COPY adapters /etc/wardrobe/adapters\n\
         # These win over the settings file.\n\
         ENV {variables}\n\
         USER {USER}\n\
         VOLUME {CACHE}{state}\n\
         EXPOSE {port}\n\
         STOPSIGNAL SIGTERM\n\
         HEALTHCHECK --interval=10s --timeout=5s --start-period=10m --retries=3 \\\n    \
             CMD [\"curl\", \"--fail\", \"--silent\", \"--output\", \"/dev/null\", \"http://127.0.0.1:{port}/health\"]\n\
         ENTRYPOINT [\"/usr/local/bin/wardrobe\"]\n\
         CMD [\"serve\", \"--config\", \"/etc/wardrobe/{SETTINGS_FILE}\"]\n",
        variables = variables.join(" \\\n    "),
    )
}

/// A value as `ENV` reads it back.
fn image_string(text: &str) -> String {
    let escaped: String = text
        .chars()
        .flat_map(|c| ['\\'].into_iter().filter(move |_| "\\\"$".contains(c)).chain([c]))
        .collect();
    format!("\"{escaped}\"")
}
