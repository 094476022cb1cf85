//! What the settings make of flags and files.

use std::path::PathBuf;

use super::*;

fn file(text: &str) -> anyhow::Result<Settings> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("settings.toml");
    std::fs::write(&path, text)?;
    Settings::read(&path)
}

#[test]
fn what_is_set_nearer_wins() {
    let flags = Settings { port: Some(1), ..Settings::default() };
    let file =
        file("port = 2\nqueue = 3\nkv_memory = \"64MiB\"\nmax_adapters_device_memory = \"2MiB\"").unwrap();
    let all = flags.resolve(file);
    assert_eq!((all.port, all.queue, all.host.as_deref()), (Some(1), Some(3), Some("127.0.0.1")));
    assert_eq!(all.engine_options().kv_bytes, Some(64 << 20));
    assert_eq!(all.engine_options().config.queue_capacity, 3);
    assert_eq!(all.engine_options().config.max_adapters_device_bytes, Some(2 << 20));
}

#[test]
fn the_endpoint_lets_in_what_the_engine_takes() {
    let of = |queue| {
        let flags = Settings { queue: Some(queue), max_num_seqs: Some(10), ..Settings::default() };
        flags.resolve(Settings::default()).server_config(Vec::new())
    };
    assert_eq!(of(5000).max_concurrent_requests, 5010);
    assert!(of(5000).max_connections > 5010);
    assert_eq!(of(3).max_concurrent_requests, 13);
}

#[test]
fn defaults_are_the_librarys() {
    let all = Settings::default().resolve(Settings::default());
    assert_eq!(all.engine_options().config, EngineConfig::default());
    assert_eq!(all.server_config(Vec::new()).drain_limit, ServerConfig::default().drain_limit);
}

#[test]
fn a_key_that_is_not_known_is_named() {
    let error = file("prot = 80").unwrap_err().to_string();
    assert!(error.contains("prot") && error.contains("settings.toml"), "{error}");
    for text in
        ["port = \"80\"", "kv_memory = 1.5", "device = \"tpu\"", "adapter = [\"x\"]", "port = 99999", "= 1"]
    {
        assert!(file(text).is_err(), "{text}");
    }
}

#[test]
fn adapters_are_a_list_or_a_table_relative_to_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.toml");
    for text in ["adapter = [\"a=x\", \"b=/y\"]", "[adapters]\na = \"x\"\nb = \"/y\""] {
        std::fs::write(&path, text).unwrap();
        let read = Settings::read(&path).unwrap();
        let paths: Vec<_> = read.adapter.iter().map(|a| (a.name.as_str(), a.path.clone())).collect();
        assert_eq!(paths, [("a", folder.path().join("x")), ("b", PathBuf::from("/y"))]);
    }
}
