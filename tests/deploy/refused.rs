//! What cannot be served is told, and nothing is written.

use std::os::unix::fs::PermissionsExt as _;

use super::*;

#[test]
fn what_cannot_be_served_is_told_and_nothing_is_written() {
    let wardrobe_of = Wardrobe::new();
    let before = tree(wardrobe_of.folder.path());
    let (to, plain) = (wardrobe_of.text("out/endpoint"), wardrobe_of.text("plain"));
    let inside = wardrobe_of.text("plain/endpoint");
    let held = format!("plain={}", wardrobe_of.text("with schema"));
    let base = wardrobe_of.model.path().file_name().unwrap().to_str().unwrap().to_owned();
    let as_base = format!("{base}={plain}");
    let quoted = wardrobe_of.text("it's");
    let missing = wardrobe_of.text("missing");
    let texts = [&to, &plain, &inside, &held, &as_base, &quoted, &missing];
    let [to, plain, inside, held, as_base, quoted, missing] = texts.map(String::as_str);
    for (args, code, said) in [
        (vec!["--to", to], 2, "no adapter is given"),
        (vec![missing, "--to", to], 1, "there is no adapter at"),
        (vec!["ft-1", "--to", to, "--job-folder", plain], 1, "jobs.sqlite"),
        (vec![wardrobe_of.folder.path().to_str().unwrap(), "--to", to], 1, "no adapter_config.json"),
        (vec![plain, held, "--to", to], 2, "would both be called plain"),
        (vec![as_base, "--to", to], 2, "has a name of the base model"),
        (vec![plain, "--to", inside], 1, "lies in the adapter"),
        (vec![plain, "--to", plain, "--force"], 1, "is or lies in the adapter"),
        (vec![plain, "--to", "/"], 1, "names no folder"),
        (vec![plain, "--to", "/proc/endpoint"], 1, "/proc"),
        (vec![plain, "--to", quoted], 1, "quotation mark"),
        (vec![plain, "--to", "/etc/passwd"], 1, "is no folder"),
        (vec![plain, "--to", to, "--port", "0"], 2, "port 0"),
        (vec![plain, "--to", to, "--config", "/nonexistent.toml"], 1, "/nonexistent.toml"),
    ] {
        let output = output(&mut wardrobe_of.deploy(&args));
        let (found, text) = (output.status.code(), stderr(&output));
        assert_eq!(found, Some(code), "{args:?}: {text}");
        assert!(text.starts_with("error:") && text.contains(said), "{args:?}: {text}");
        assert_eq!(tree(wardrobe_of.folder.path()), before, "{args:?}");
    }
    assert!(!wardrobe_of.path("out/endpoint").exists());
}

#[test]
fn the_base_is_the_one_that_the_adapters_name() {
    let wardrobe_of = Wardrobe::new();
    let to = wardrobe_of.text("endpoint");
    let rename = |adapter: &str, base: serde_json::Value| {
        let path = wardrobe_of.path(adapter).join("adapter_config.json");
        let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        config["base_model_name_or_path"] = base;
        std::fs::write(&path, config.to_string()).unwrap();
    };
    let (plain, held) = (wardrobe_of.text("plain"), wardrobe_of.text("with schema"));
    let deploy = |args: &[&str]| wardrobe(&[&["deploy", "--to", &to, "--skip-model-check"], args].concat());
    rename("plain", serde_json::Value::Null);
    let said = fails(&mut deploy(&[&plain]), 2);
    assert!(said.contains("the adapter plain names no base model") && said.contains("--model"), "{said}");
    rename("plain", "made up".into());
    let said = fails(&mut deploy(&[&plain]), 2);
    assert!(said.contains("\"made up\", which is nothing that can be pulled"), "{said}");
    rename("plain", "someone/base".into());
    rename("with schema", "someone/other".into());
    let said = fails(&mut deploy(&[&plain, &held]), 2);
    assert!(said.contains("plain is for someone/base, and with schema for someone/other"), "{said}");

    // As our trainer writes the catalogue's model down, and as its repository is called.
    rename("plain", "SmolLM2-135M-Instruct.Q4_1".into());
    rename("with schema", "HuggingFaceTB/SmolLM2-135M-Instruct".into());
    let said = succeeds(&mut deploy(&[&plain, &held]));
    assert!(said.contains("not held against the base model"), "{said}");
    let settings = std::fs::read_to_string(wardrobe_of.path("endpoint/wardrobe.toml")).unwrap();
    assert!(
        settings.contains("model = \"smollm2-135m\"\nserved_model_name = [\"smollm2-135m\"]"),
        "{settings}"
    );
    let image = std::fs::read_to_string(wardrobe_of.path("endpoint/Containerfile")).unwrap();
    assert!(image.contains("python3-pip") && !image.contains("WARDROBE_MODEL"), "{image}");
}

#[test]
fn an_adapter_for_another_base_is_refused() {
    let wardrobe_of = Wardrobe::new();
    let other = TinyModel { hidden_size: 96, ..TinyModel::default() }.write();
    let (to, plain) = (wardrobe_of.text("endpoint"), wardrobe_of.text("plain"));
    let model = other.path().to_str().unwrap();
    let said = fails(&mut wardrobe(&["deploy", &plain, "--model", model, "--to", &to]), 1);
    assert!(said.contains("the adapter plain is refused") && said.contains("base model?"), "{said}");
    // A record that vouches for other tensors is found without a model, too.
    let digest = "0".repeat(64);
    let record = format!(
        r#"{{"version":1,"parity":{{"base_digest":"{digest}","tensors_digest":"{digest}","device":"x","canaries":[]}}}}"#
    );
    std::fs::write(wardrobe_of.path("plain/wardrobe.json"), record).unwrap();
    let said = fails(&mut wardrobe_of.deploy(&[&plain, "--to", &to, "--skip-model-check"]), 1);
    assert!(said.contains("other tensors than its parity record"), "{said}");
    std::fs::remove_file(wardrobe_of.path("plain/wardrobe.json")).unwrap();
    std::fs::write(wardrobe_of.path("plain/schema.json"), "[1]").unwrap();
    let said = fails(&mut wardrobe_of.deploy(&[&plain, "--to", &to, "--skip-model-check"]), 1);
    assert!(said.contains("schema.json"), "{said}");
    assert!(!wardrobe_of.path("endpoint").exists());
}

#[test]
fn a_full_disk_leaves_nothing() {
    let wardrobe_of = Wardrobe::new();
    let small = wardrobe_of.path("small");
    std::fs::create_dir(&small).unwrap();
    // Room for what is asked for beforehand, but not for it all: the program's size is in the way, so the disk is full either way.
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=6m", "tmpfs"]).arg(&small).output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED a_full_disk_leaves_nothing: mounting a tmpfs needs root");
        return;
    }
    let to = small.join("endpoint").display().to_string();
    let said = stderr(&output(&mut wardrobe_of.deploy(&[&wardrobe_of.text("plain"), "--to", &to])));
    let left = std::fs::read_dir(&small).unwrap().count();
    let _ = Command::new("umount").arg(&small).output();
    assert!(said.starts_with("error:") && said.contains("bytes would be written"), "{said}");
    assert_eq!(left, 0);
}

#[test]
fn a_key_file_that_others_can_read_is_noted() {
    let wardrobe_of = Wardrobe::new();
    let keys = wardrobe_of.path("keys");
    std::fs::write(&keys, "secret\n").unwrap();
    for (mode, noted) in [(0o644, true), (0o640, true), (0o600, false), (0o400, false)] {
        std::fs::set_permissions(&keys, std::fs::Permissions::from_mode(mode)).unwrap();
        let args = ["serve", "./missing.gguf", "--port", "0", "--api-key-file", keys.to_str().unwrap()];
        let said = stderr(&output(&mut wardrobe(&args)));
        assert_eq!(said.contains("can be read by others"), noted, "{mode:o}: {said}");
        assert!(!said.contains("secret"), "{said}");
    }
    // systemd lends credentials with a mode that an access list explains.
    std::fs::set_permissions(&keys, std::fs::Permissions::from_mode(0o440)).unwrap();
    let args = ["serve", "./missing.gguf", "--port", "0", "--api-key-file", keys.to_str().unwrap()];
    let said = stderr(&output(wardrobe(&args).env("CREDENTIALS_DIRECTORY", wardrobe_of.folder.path())));
    assert!(!said.contains("can be read by others"), "{said}");
}
