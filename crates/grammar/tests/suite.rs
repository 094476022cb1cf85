//! The official test suite of JSON Schema 2020-12 (its files lie in the sdist of the package `jsonschema`, under
//! `json/tests`): nothing invalid is allowed, and most groups that compile allow all that is valid.
//!
//! `WARDROBE_JSON_SCHEMA_SUITE` names the folder `draft2020-12`.

mod support;

use std::path::PathBuf;

use serde_json::Value;
use support::instances::{Numbers, in_schemas_order, spelling_of};
use support::*;
use wardrobe_text::TokenId;

#[test]
fn nothing_invalid_is_allowed() {
    let Some(folder) = std::env::var_os("WARDROBE_JSON_SCHEMA_SUITE").map(PathBuf::from) else {
        eprintln!("SKIPPED: the official JSON Schema test suite (WARDROBE_JSON_SCHEMA_SUITE is not set)");
        return;
    };
    let compiler = compiler();
    let (mut groups, mut compiled, mut right, mut invalid) = (0, 0, 0, 0);
    let mut allowed = Vec::new();
    let mut rejecting = Vec::new();
    let mut files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    for file in files.iter().filter(|file| file.extension().is_some_and(|e| e == "json")) {
        let given: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        for group in given.as_array().unwrap() {
            groups += 1;
            let name = format!("{}: {}", file.file_stem().unwrap().to_string_lossy(), group["description"]);
            let template = match compiler.compile(&schema(group["schema"].clone()), Default::default()) {
                Ok(template) => template,
                Err(error) => {
                    println!("{name} is refused: {error}");
                    continue;
                }
            };
            compiled += 1;
            let mut all = true;
            for test in group["tests"].as_array().unwrap() {
                let is_valid = test["valid"] == true;
                let numbers = if is_valid { Numbers::Plain } else { Numbers::AsTheyAre };
                let text = in_schemas_order(&test["data"], &group["schema"], &group["schema"]);
                let spelling = spelling_of(&text, numbers, &template, &|byte| TokenId(byte.into()));
                let accepted = spelling.is_some();
                invalid += usize::from(!is_valid);
                if accepted && !is_valid {
                    allowed.push(format!("{name}: {text}"));
                }
                all &= accepted || !is_valid;
            }
            right += usize::from(all);
            if !all {
                rejecting.push(name);
            }
        }
    }
    println!(
        "{groups} groups, {compiled} compiled, {right} of them with all that is valid; {invalid} invalid instances"
    );
    rejecting.iter().for_each(|name| println!("rejects something valid: {name}"));
    assert!(allowed.is_empty(), "{allowed:#?}");
    assert!(groups > 300, "{groups} groups in {}", folder.display());
    assert!(100 * right >= 60 * groups, "{right} of {groups}");
}
