//! The official test suite of JSON Schema 2020-12 (its files lie in the sdist of the package `jsonschema`, under
//! `json/tests`): nothing invalid is allowed, and most groups that compile allow all that is valid.
//!
//! `WARDROBE_JSON_SCHEMA_SUITE` names the folder `draft2020-12`.

mod support;

use std::path::PathBuf;

use serde_json::Value;
use support::*;

/// As the constraint would have it written, with the members in the order of the schema's properties.
fn spaced(value: &Value, schema: &Value, out: &mut String) {
    match value {
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                let prefix = schema["prefixItems"].get(i).or(schema["items"].get(i));
                spaced(item, prefix.unwrap_or(&schema["items"]), out);
            }
            out.push(']');
        }
        Value::Object(members) => {
            let place = |name: &str| {
                let places = schema["properties"].as_object().map(|p| p.keys().position(|key| key == name));
                places.flatten().unwrap_or(usize::MAX)
            };
            let mut members: Vec<_> = members.iter().collect();
            members.sort_by_key(|(name, _)| place(name));
            out.push('{');
            for (i, (name, member)) in members.into_iter().enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                out.push_str(&Value::String(name.clone()).to_string());
                out.push_str(": ");
                spaced(member, &schema["properties"][name], out);
            }
            out.push('}');
        }
        _ => out.push_str(&value.to_string()),
    }
}

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
                let mut text = String::new();
                spaced(&test["data"], &group["schema"], &mut text);
                let (is_valid, accepted) = (test["valid"] == true, accepts(&template, &text));
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
    assert!(100 * right >= 45 * groups, "{right} of {groups}");
}
