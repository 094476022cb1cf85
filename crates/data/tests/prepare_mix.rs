//! Sources in shares: how many of each, none twice, and shuffled.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "made/mod.rs"]
mod made;

use std::collections::BTreeMap;
use std::path::Path;

use made::*;
use wardrobe_data::prepare::{MixOptions, MixSource, Share, mix};

fn mix_options(folder: &Path, sources: &[(&str, &str)], total: Option<u64>, out: &str) -> MixOptions {
    let sources = sources.iter().map(|(name, share)| MixSource {
        name: (*name).to_owned(),
        source: source(&[&folder.join(name)]),
        share: share.parse::<Share>().unwrap(),
    });
    MixOptions { sources: sources.collect(), total, repeat: false, seed: 1, output: output(folder.join(out)) }
}

fn numbered(folder: &Path, name: &str, count: usize) {
    let lines: String = (0..count).map(|n| format!("{{\"text\": \"{name} {n}\"}}\n")).collect();
    write(folder, name, lines);
}

fn counts(path: &Path) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for record in records(path) {
        *counts.entry(record["text"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    counts
}

#[test]
fn sources_are_mixed_in_shares_and_shuffled() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    numbered(folder, "a.jsonl", 100);
    numbered(folder, "b.jsonl", 50);
    write(folder, "c.csv", "text\nc 0\nc 1\nc 2\n");
    for (sources, total, expected) in [
        (&[("a.jsonl", "70%"), ("b.jsonl", "30%")][..], Some(60), &[42, 18][..]),
        (&[("a.jsonl", "33.3%"), ("b.jsonl", "33.3%"), ("c.csv", "33.3%")], Some(8), &[3, 3, 2]),
        (&[("a.jsonl", "70"), ("b.jsonl", "30%")], None, &[70, 30]),
        (&[("a.jsonl", "10"), ("b.jsonl", "all"), ("c.csv", "1")], None, &[10, 50, 1]),
        (&[("a.jsonl", "all")], Some(100), &[100]),
    ] {
        let options = mix_options(folder, sources, total, "out.jsonl");
        let report = mix(&options).unwrap();
        let written: Vec<u64> = report.sources.iter().map(|(_, written)| *written).collect();
        assert_eq!(written, expected, "{sources:?}");
        let counts = counts(&folder.join("out.jsonl"));
        assert_eq!(counts.len() as u64, expected.iter().sum::<u64>(), "something came twice");
        for ((name, _), expected) in sources.iter().zip(expected) {
            let stem = name.split('.').next().unwrap();
            assert_eq!(counts.keys().filter(|text| text.starts_with(stem)).count() as u64, *expected);
        }
        // Not in the order of the sources.
        let order: Vec<String> =
            records(&folder.join("out.jsonl")).iter().map(|r| r["text"].to_string()).collect();
        assert!(!order.is_sorted());
        std::fs::remove_file(folder.join("out.jsonl")).unwrap();
        std::fs::remove_file(folder.join("out.manifest.json")).unwrap();
    }
    let options = mix_options(folder, &[("a.jsonl", "20"), ("c.csv", "all")], None, "one.jsonl");
    mix(&options).unwrap();
    check_manifest(&folder.join("one.jsonl"), &[(&folder.join("a.jsonl"), 100), (&folder.join("c.csv"), 3)]);
    let again = MixOptions { output: output(folder.join("two/one.jsonl")), ..options.clone() };
    std::fs::create_dir(folder.join("two")).unwrap();
    mix(&again).unwrap();
    for name in ["one.jsonl", "one.manifest.json"] {
        assert_eq!(
            std::fs::read(folder.join(name)).unwrap(),
            std::fs::read(folder.join("two").join(name)).unwrap()
        );
    }
    let other = MixOptions { seed: 2, output: output(folder.join("other.jsonl")), ..options };
    mix(&other).unwrap();
    assert_ne!(counts(&folder.join("one.jsonl")), counts(&folder.join("other.jsonl")));
}

#[test]
fn shares_that_do_not_add_up_and_sources_that_run_short_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    numbered(folder, "a.jsonl", 10);
    numbered(folder, "b.jsonl", 10);
    numbered(folder, "e.jsonl", 0);
    for (sources, total, said) in [
        (&[("a.jsonl", "13")][..], None, "a.jsonl has 10 records, 3 fewer than the 13 asked for"),
        (&[("a.jsonl", "50%"), ("b.jsonl", "50%")], Some(30), "a.jsonl has 10 records, 5 fewer"),
        (&[("a.jsonl", "5"), ("e.jsonl", "1")], None, "e.jsonl has no record"),
        (&[("a.jsonl", "60%"), ("b.jsonl", "30%")], Some(10), "90 %"),
        (&[("a.jsonl", "60%"), ("b.jsonl", "40%")], None, "need the total"),
        (&[("a.jsonl", "5"), ("b.jsonl", "50%")], Some(13), "not of 13"),
        (&[("a.jsonl", "5"), ("b.jsonl", "100%")], None, "counts beside them"),
        (&[("a.jsonl", "5"), ("b.jsonl", "5")], Some(11), "10 records together, not 11"),
        (&[("a.jsonl", "5"), ("a.jsonl", "5")], None, "is in two sources"),
        (&[("e.jsonl", "all")], None, "need the total"),
    ] {
        fails(folder, mix(&mix_options(folder, sources, total, "out.jsonl")), said);
    }
    for share in ["0", "-1", "0%", "101%", "some", "", "1.5"] {
        assert!(share.parse::<Share>().is_err(), "{share}");
    }

    let mut options = mix_options(folder, &[("a.jsonl", "27"), ("b.jsonl", "4")], None, "out.jsonl");
    options.repeat = true;
    mix(&options).unwrap();
    let counts = counts(&folder.join("out.jsonl"));
    let of_a: Vec<usize> =
        counts.iter().filter(|(text, _)| text.starts_with('a')).map(|(_, count)| *count).collect();
    assert_eq!((of_a.len(), of_a.iter().sum::<usize>()), (10, 27));
    assert!(of_a.iter().all(|count| (2..=3).contains(count)) && counts.values().sum::<usize>() == 31);
}
