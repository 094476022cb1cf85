//! What the folder is, and how to run it.

use super::container::{CACHE, KEY_MOUNT, STATE, model_mount};
use super::files::KEY_FILE;
use super::quote::shell_word;
use super::{
    BaseModel, CONTAINER_FILE, Endpoint, JOB_FOLDER, PROGRAM, README, SETTINGS_FILE, SMOKE_TEST, container,
};

pub(super) fn text(endpoint: &Endpoint<'_>) -> String {
    let deployment = endpoint.deployment;
    let names: Vec<&str> = endpoint.adapters.iter().map(|adapter| adapter.deployed.name.as_str()).collect();
    let url = endpoint.url();
    let mut text = format!(
        "# {name}\n\n\
         An endpoint that speaks OpenAI's API, for fine-tuned adapters over one base model, written by `wardrobe deploy`.\n\n\
         | | |\n|---|---|\n\
         | base model | {model} |\n\
         | adapters | {adapters} |\n\
         | address | {url}/v1 |\n\
         | key | in `{KEY_FILE}`, which only its owner can read |\n\n\
         Clients name the base or an adapter as `model`:\n\n\
         ```\n{curl}\n```\n\n",
        name = endpoint.name,
        model = cell(&format!("{} (as {})", deployment.model(), deployment.base_names.join(", "))),
        adapters = cell(&names.join(", ")),
        curl = curl(endpoint, &url),
    );
    text.push_str(&directly(endpoint));
    text.push_str(&systemd(endpoint));
    text.push_str(&in_a_container(endpoint));
    text.push_str(&format!(
        "## Whether it works\n\n```\n./{SMOKE_TEST}\n```\n\n\
         waits until the endpoint is ready and asks each model. `./{SMOKE_TEST} URL` asks one at another address, and \
         `WARDROBE_API_KEY` gives another key.\n\n\
         ## What is here\n\n\
         | | |\n|---|---|\n\
         | `{SETTINGS_FILE}` | settings; `wardrobe serve --help` explains them |\n\
         | `adapters/` | the adapters, as they were checked |\n\
         | `{KEY_FILE}` | keys, one a line; it stays when this folder is written again |\n\
         | `{PROGRAM}` | the program |\n\
         | `{unit}` | for systemd |\n\
         | `{CONTAINER_FILE}`, `{ignore}` | for an image |\n\
         | `{SMOKE_TEST}` | the test |\n\
         | `{README}` | this page |\n\
         | `deployment.json` | what `wardrobe deploy` wrote, with digests |\n\n\
         `wardrobe deploy … --to FOLDER --force` writes this folder again. It keeps what it has not written itself, and \
         what was changed since, under another name where that is needed.\n",
        unit = endpoint.unit(),
        ignore = container::IGNORE_FILE,
    ));
    text
}

fn curl(endpoint: &Endpoint<'_>, url: &str) -> String {
    let model = endpoint.adapters.first().map_or("", |adapter| adapter.deployed.name.as_str());
    let (route, body) = match endpoint.chats {
        true => (
            "chat/completions",
            serde_json::json!({"model": model, "messages": [{"role": "user", "content": "Hello!"}]}),
        ),
        false => ("completions", serde_json::json!({"model": model, "prompt": "Once upon"})),
    };
    format!(
        "curl {url}/v1/{route} -H \"Authorization: Bearer $(head -n 1 {KEY_FILE})\" -H 'Content-Type: application/json' \\\n  \
         -d {}",
        shell_word(&body.to_string())
    )
}

/// A text in a cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

fn directly(endpoint: &Endpoint<'_>) -> String {
    let mut text = format!(
        "## Directly\n\n```\n{PROGRAM} serve --config {SETTINGS_FILE}\n```\n\n\
         in this folder. Ctrl-C or SIGTERM lets running requests end first.\n"
    );
    if endpoint.deployment.job_folder.as_deref() == Some(JOB_FOLDER.as_ref()) {
        text.push_str(&format!("Files, jobs and batches are kept in `{JOB_FOLDER}/`.\n"));
    }
    text.push('\n');
    text
}

fn systemd(endpoint: &Endpoint<'_>) -> String {
    let (unit, name) = (endpoint.unit(), &endpoint.name);
    let mut text = format!(
        "## With systemd\n\n```\nsudo systemctl link {path}\nsudo systemctl enable --now {unit}\njournalctl -u {unit} -f\n```\n\n\
         The unit names this folder's path, so that a folder that was moved has to be written again. It runs as a user of \
         its own that lives as long as the service, gets the key from systemd, and can write nothing but \
         `/var/cache/{name}`",
        path = shell_word(&endpoint.dir.join(&unit).display().to_string()),
    );
    if endpoint.deployment.job_folder.is_some() {
        text.push_str(&format!(" and `/var/lib/{name}`, where jobs are"));
    }
    text.push_str(". That user has to be able to reach this folder");
    if let BaseModel::Local(path) = &endpoint.deployment.base {
        text.push_str(&format!(" and to read `{}`", path.display()));
    }
    text.push_str(
        ": a place below `/opt` or `/srv` will do, one below `/root` or a closed home folder will not.\n\n",
    );
    text
}

fn in_a_container(endpoint: &Endpoint<'_>) -> String {
    let deployment = endpoint.deployment;
    let (name, port, stop) = (&endpoint.name, deployment.port, endpoint.stop_seconds());
    let mut run = vec![
        format!("docker run --rm --init --name {name}"),
        format!("--publish 127.0.0.1:{port}:{port} --stop-timeout {stop}"),
        "--user \"$(id -u):$(id -g)\" --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges".to_owned(),
        format!("--volume \"$PWD/{KEY_FILE}:{KEY_MOUNT}:ro\""),
        format!("--volume {name}-cache:{CACHE}"),
    ];
    if let (BaseModel::Local(path), Some(mount)) = (&deployment.base, model_mount(endpoint)) {
        run.push(format!("--volume {}", shell_word(&format!("{}:{mount}:ro", path.display()))));
    }
    if deployment.job_folder.is_some() {
        run.push(format!("--volume {name}-jobs:{STATE}"));
    }
    run.push(name.clone());
    let mut text = format!(
        "## In a container\n\n```\ndocker build --tag {name} --file {CONTAINER_FILE} .\n{}\n```\n\n\
         The key is mounted and is in no layer of the image. `--user` is the owner of the key's file, since no one else can \
         read it; with rootless podman say `--userns keep-id` too. `--publish {port}:{port}` opens the endpoint to other \
         machines.",
        run.join(" \\\n  ")
    );
    if deployment.device.as_deref().is_some_and(|device| device.starts_with("cuda")) {
        text.push_str(
            " A GPU needs `--gpus all`, and NVRTC, which the image does not have: mount a folder with it, and name it \
             with `--env WARDROBE_CUDA_LIBRARIES=FOLDER`.",
        );
    }
    text.push_str("\n\n");
    text
}
