//! The written endpoint is run as it is, and asked by its own test.

use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::*;

#[test]
fn it_serves_what_it_was_given_and_its_test_says_so() {
    let wardrobe_of = Wardrobe::new();
    let (dir, port) = (wardrobe_of.path("end point"), port());
    let (plain, held) = (wardrobe_of.text("plain"), format!("it's held={}", wardrobe_of.text("with schema")));
    let to = dir.display().to_string();
    let said = succeeds(&mut wardrobe_of.deploy(&[&plain, &held, "--to", &to, "--port", &port.to_string()]));
    assert!(said.contains("plain (rank 4") && said.contains("fits the base model"), "{said}");
    assert!(said.contains("it's held (rank 4") && said.contains("held to its schema"), "{said}");
    let keys = std::fs::read_to_string(dir.join("api-key")).unwrap();
    let key = keys.trim_end();
    assert!(key.len() == 64 && key.bytes().all(|digit| digit.is_ascii_hexdigit()), "{key}");
    assert!(!said.contains(key), "{said}");
    let mode = |name: &str| dir.join(name).metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("api-key"), mode("smoke-test.sh"), mode("wardrobe.toml")), (0o600, 0o755, 0o644));
    for (name, text) in tree(&dir) {
        assert!(name == Path::new("api-key") || !text.contains(key), "{} has the key", name.display());
    }

    let mut serving = serve(&dir);
    assert_eq!(serving.base, format!("http://127.0.0.1:{port}"));
    let said = succeeds(&mut smoke_test(&dir));
    for line in [
        "ok: a wrong key is refused",
        "ok: plain is listed",
        "ok: plain answers",
        "ok: it's held answers",
        "ok: it's held is held to its schema",
        "all is as it should be",
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }
    // The same without jq, and without python3 too: a folder with nothing but what the script needs.
    let tools = wardrobe_of.path("tools");
    std::fs::create_dir(&tools).unwrap();
    for (tool, skipped) in [("", true), ("python3", false), ("jq", false)] {
        let needed =
            ["sh", "curl", "sed", "head", "mktemp", "rm", "date", "sleep", "cat", "grep", "dirname", tool];
        for name in needed.into_iter().filter(|name| !name.is_empty()) {
            let found = std::env::split_paths(&std::env::var_os("PATH").unwrap())
                .map(|folder| folder.join(name))
                .find(|path| is_program(path));
            match found {
                Some(path) => drop(symlink(path, tools.join(name))),
                None => eprintln!("SKIPPED the endpoint's test with {name}: it is not installed"),
            }
        }
        if tool.is_empty() || tools.join(tool).exists() {
            let output = output(smoke_test(&dir).env("PATH", &tools));
            assert!(output.status.success(), "{tool}: {}", stderr(&output));
            assert_eq!(stderr(&output).contains("SKIPPED"), skipped, "{tool}: {}", stderr(&output));
        }
        let _ = std::fs::remove_file(tools.join(tool));
    }

    let refused = output(smoke_test(&dir).env("WARDROBE_API_KEY", "another"));
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("refuses the key"), "{}", stderr(&refused));
    serving.child.kill().unwrap();
    serving.child.wait().unwrap();
    let gone = output(smoke_test(&dir).env("WAIT_SECONDS", "1"));
    assert_eq!(gone.status.code(), Some(1));
    assert!(stderr(&gone).contains("is not ready after 1 s"), "{}", stderr(&gone));
    let wrong = output(smoke_test(&dir).env("WAIT_SECONDS", "soon"));
    assert!(stderr(&wrong).contains("whole numbers"), "{}", stderr(&wrong));
}

#[test]
fn its_test_notices_another_endpoint() {
    let wardrobe_of = Wardrobe::new();
    let dir = wardrobe_of.path("endpoint");
    let to = dir.display().to_string();
    let (plain, held) = (wardrobe_of.text("plain"), format!("held={}", wardrobe_of.text("with schema")));
    succeeds(&mut wardrobe_of.deploy(&[&plain, &held, "--to", &to]));
    let key = dir.join("api-key").display().to_string();
    let model = wardrobe_of.model.path().to_str().unwrap();
    let name = format!("{}", wardrobe_of.model.path().file_name().unwrap().display());
    let with_plain = format!("plain={plain}");
    // An adapter that should be held to a schema, and is not, since it is another one.
    let unheld = format!("held={plain}");
    for (args, said) in [
        (vec!["--adapter", &with_plain, "--adapter", &unheld], "a wrong key gets status 200"),
        (vec!["--adapter", &with_plain, "--api-key-file", &key], "held is not in the list"),
        (
            vec!["--adapter", &with_plain, "--adapter", &unheld, "--api-key-file", &key],
            "the answer is not held to its schema",
        ),
    ] {
        let mut command = wardrobe(&[&["serve", model, "--port", "0"], args.as_slice()].concat());
        command.args(["--served-model-name", &name]);
        let serving = Serving::start(command);
        let output = output(smoke_test(&dir).arg(format!("{}/", serving.base)));
        assert_eq!(output.status.code(), Some(1), "{said}: {}", stdout(&output));
        assert!(stderr(&output).contains(said), "{said}: {}", stderr(&output));
    }
}

#[test]
fn the_packaged_model_is_served_with_its_adapters() {
    let Some(model) = smollm2("the_packaged_model_is_served_with_its_adapters") else { return };
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("biographies");
    let bio = folder.path().join("bio");
    std::fs::create_dir(&bio).unwrap();
    for entry in std::fs::read_dir(adapter("biography-json")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), bio.join(entry.file_name())).unwrap();
    }
    let schema = Path::new(env!("CARGO_MANIFEST_DIR")).join("datasets/biographies/schema.json");
    std::fs::copy(schema, bio.join("schema.json")).unwrap();
    let words = format!("words={}", adapter("last-words").display());
    let port = port().to_string();
    let to = dir.display().to_string();
    let args = ["deploy", bio.to_str().unwrap(), &words, "--model", &model, "--to", &to, "--port", &port];
    succeeds(&mut wardrobe(&args));
    let mut serving = serve(&dir);
    let said = succeeds(&mut smoke_test(&dir));
    assert!(said.contains("ok: bio is held to its schema") && said.contains("ok: words answers"), "{said}");
    // Stopped as a supervisor does.
    let pid = serving.child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    assert_eq!(serving.ended(), Some(0));
}
