//! `wardrobe deploy`: what it writes is run as it is, and asked.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test fails by panicking.
#![cfg(unix)]

#[path = "../support/command.rs"]
mod command;
#[allow(dead_code, reason = "a part of it is used")]
#[path = "../support/lora.rs"]
mod lora;
#[allow(dead_code, reason = "a part of it is used")]
#[path = "../support/random.rs"]
mod random;
#[path = "../support/tiny.rs"]
mod tiny;

mod refused;
mod served;
mod written;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use command::*;
use lora::RandomLora;
use tempfile::TempDir;
use tiny::TinyModel;
use wardrobe::{CpuOptions, Model, ModelOptions};

const SCHEMA: &str = r#"{"type":"object","properties":{"kind":{"enum":["a","b"]},"sure":{"type":"boolean"}},"required":["kind","sure"],"additionalProperties":false}"#;

/// A tiny model and, in a folder beside it, adapters of it.
struct Wardrobe {
    model: TempDir,
    folder: TempDir,
}

impl Wardrobe {
    fn new() -> Self {
        let model = TinyModel { max_position_embeddings: 2048, ..TinyModel::default() }.write();
        let wardrobe = Self { model, folder: tempfile::tempdir().unwrap() };
        let options =
            ModelOptions { cpu: CpuOptions { threads: Some(1), ..Default::default() }, ..Default::default() };
        let opened = Model::open(wardrobe.model.path(), &options).unwrap();
        for (seed, name) in [(1, "plain"), (2, "with schema")] {
            let adapter = RandomLora { seed, ..RandomLora::default() };
            adapter.write(opened.decoder().config(), &wardrobe.path(name));
        }
        std::fs::write(wardrobe.path("with schema/schema.json"), SCHEMA).unwrap();
        wardrobe
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// `deploy` of these adapters, over the model.
    fn deploy(&self, args: &[&str]) -> Command {
        let model = self.model.path().to_str().unwrap();
        wardrobe(&[&["deploy", "--model", model, "--device", "cpu"], args].concat())
    }
}

/// A port that is free now.
fn port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The endpoint of a folder, run as its README says, without settings from outside.
fn serve(dir: &Path) -> Serving {
    let mut command = Command::new(dir.join("bin/wardrobe"));
    command.args(["serve", "--config"]).arg(dir.join("wardrobe.toml"));
    for (name, value) in wardrobe(&[]).get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    Serving::start(command)
}

/// Whether it is one by itself, and no script that calls others, as some tools for versions put first in the path.
fn is_program(path: &Path) -> bool {
    std::fs::read(path).is_ok_and(|bytes| !bytes.starts_with(b"#!"))
}

fn smoke_test(dir: &Path) -> Command {
    let mut command = Command::new(dir.join("smoke-test.sh"));
    command.env_remove("WARDROBE_API_KEY").env("WAIT_SECONDS", "60");
    command
}

/// Every path below a folder with its content, or where it links to.
fn tree(folder: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut open = vec![folder.to_owned()];
    while let Some(next) = open.pop() {
        for entry in std::fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            let kind = path.symlink_metadata().unwrap().file_type();
            let name = path.strip_prefix(folder).unwrap().to_owned();
            if kind.is_dir() {
                open.push(path);
            } else if kind.is_symlink() {
                found.insert(name, format!("-> {}", std::fs::read_link(&path).unwrap().display()));
            } else if !name.starts_with("bin") {
                found.insert(name, String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned());
            }
        }
    }
    found
}
