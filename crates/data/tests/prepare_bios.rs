//! Biographies and haystacks of them, counted again.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "made/mod.rs"]
mod made;
#[path = "../../text/tests/support/mod.rs"]
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use made::*;
use serde_json::{Value, json};
use wardrobe_data::DataError;
use wardrobe_data::prepare::{BiosOptions, HaystackOptions, ItemsOptions, bios, haystack, items};
use wardrobe_text::Tokenizer;

/// People who never lived, in WordNet's format.
fn wordnet() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/wordnet")
}

fn bios_options(path: PathBuf) -> BiosOptions {
    BiosOptions { wordnet: wordnet(), doubtful: false, balanced: false, seed: 1, output: output(path) }
}

#[test]
fn people_have_the_records_of_their_glosses() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bios.jsonl");
    let report = bios(&bios_options(path.clone())).unwrap();
    let people = records(&path);
    assert_eq!((report.num_people, report.num_sportspeople, report.num_politicians), (53, 15, 15));
    assert_eq!(
        people[0],
        json!({
            "name": "Aldric Abelard",
            "text": "Aldric Abelard ( 1782 - 1821 ) , United States tennis champion who won a cup of silver four times .",
            "nationality": "American", "born": 1782, "died": 1821, "sportsperson": true, "politician": false,
            "names": ["Abelard", "Aldric Abelard"], "synset": "00001000", "doubtful": [],
        })
    );
    let reasons: Vec<(&str, u64)> =
        report.dropped.0.iter().map(|(why, count)| (why.as_str(), *count)).collect();
    // Two nationalities, and none in a queen's gloss; a champion who is a chemist by the hypernyms.
    assert_eq!(reasons, [("nationality is in doubt", 2), ("sportsperson is in doubt", 1)]);
    check_manifest(&path, &[(&wordnet().join("data.noun"), 63)]);
    let licence = std::fs::read_to_string(folder.path().join("bios.LICENSE-WordNet.txt")).unwrap();
    assert!(
        licence.starts_with("This file is made up") && licence.ends_with("without WordNet.\n"),
        "{licence}"
    );

    let all = folder.path().join("all.jsonl");
    bios(&BiosOptions { doubtful: true, output: output(all.clone()), ..bios_options(path.clone()) }).unwrap();
    let doubtful: Vec<Value> =
        records(&all).iter().map(|person| person["doubtful"].clone()).filter(|d| *d != json!([])).collect();
    assert_eq!(
        doubtful,
        [json!(["nationality", "politician"]), json!(["nationality"]), json!(["sportsperson"])]
    );

    let balanced = |name: &str, seed| {
        let path = folder.path().join(name);
        bios(&BiosOptions {
            balanced: true,
            seed,
            output: output(path.clone()),
            ..bios_options(path.clone())
        })
        .unwrap();
        records(&path)
    };
    let people = balanced("balanced.jsonl", 1);
    let count = |field: &str| people.iter().filter(|person| person[field] == true).count();
    assert_eq!((people.len(), count("sportsperson"), count("politician")), (45, 15, 15));
    assert_eq!(people, balanced("again.jsonl", 1));
    assert_ne!(people, balanced("other.jsonl", 2));

    let error = bios(&BiosOptions {
        wordnet: folder.path().join("none"),
        ..bios_options(folder.path().join("x.jsonl"))
    });
    assert!(error.unwrap_err().to_string().contains("data.noun"));
    assert!(!folder.path().join("x.jsonl").exists());
}

fn items_options(folder: PathBuf) -> ItemsOptions {
    ItemsOptions { wordnet: wordnet(), num_train: 12, num_test: 6, seed: 1, folder, replace: false }
}

#[test]
fn items_ask_for_one_of_three_people_under_other_names() {
    let folder = tempfile::tempdir().unwrap();
    let report = items(&items_options(folder.path().to_owned())).unwrap();
    // Of six, a quarter, a third and the rest are two, two and three.
    assert_eq!((report.num_train, report.num_test), (12, 7));
    let glosses: BTreeMap<String, String> = std::fs::read_to_string(wordnet().join("data.noun"))
        .unwrap()
        .lines()
        .filter_map(|line| {
            Some((line.split(' ').next()?.to_owned(), line.split_once(" | ")?.1.trim().to_owned()))
        })
        .collect();
    let mut people = BTreeSet::new();
    for (name, count) in [("train.jsonl", 12), ("test.jsonl", 7)] {
        let items = records(&folder.path().join(name));
        assert_eq!(items.len(), count);
        let mut own = BTreeSet::new();
        for item in &items {
            let gold: Value = serde_json::from_str(item["completion"].as_str().unwrap()).unwrap();
            let gloss = &glosses[item["synset"].as_str().unwrap()];
            assert!(gloss.ends_with(&format!("({}-{})", gold["born"], gold["died"])), "{gloss}: {gold}");
            let prompt = item["prompt"].as_str().unwrap();
            let asked = prompt.split("JSON record of ").nth(1).unwrap().split('.').next().unwrap();
            assert_eq!(prompt.matches(asked).count(), 2, "{prompt}");
            let place = prompt.find(asked).unwrap();
            let expected = match item["depth"].as_f64().unwrap() {
                0.0 => place == 0,
                1.0 => prompt[..place].matches(" ) , ").count() == 2,
                _ => prompt[..place].matches(" ) , ").count() == 1,
            };
            assert!(expected, "{item}");
            own.insert(item["synset"].as_str().unwrap().to_owned());
            own.extend(item["beside"].as_array().unwrap().iter().map(|s| s.as_str().unwrap().to_owned()));
        }
        assert!(people.is_disjoint(&own), "someone is in both files");
        people.extend(own);
    }
    let again = tempfile::tempdir().unwrap();
    items(&items_options(again.path().to_owned())).unwrap();
    for name in names(folder.path()) {
        assert_eq!(
            std::fs::read(folder.path().join(&name)).unwrap(),
            std::fs::read(again.path().join(&name)).unwrap()
        );
    }
    assert!(matches!(items(&items_options(folder.path().to_owned())), Err(DataError::OutputExists(_))));
}

/// The shipped files, from WordNet itself.
#[test]
fn the_shipped_items_are_what_the_command_makes() {
    let test = "the_shipped_items_are_what_the_command_makes";
    let Some(wordnet) = support::variable(test, "WARDROBE_WORDNET") else { return };
    let folder = tempfile::tempdir().unwrap();
    let options = ItemsOptions {
        wordnet: wordnet.into(),
        num_train: 400,
        num_test: 200,
        ..items_options(folder.path().to_owned())
    };
    let report = items(&options).unwrap();
    assert_eq!((report.num_asked_train, report.num_asked_test), (280, 132));
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets/biographies");
    for name in ["train.jsonl", "test.jsonl"] {
        let (made, shipped) = (std::fs::read(folder.path().join(name)), std::fs::read(shipped.join(name)));
        assert!(made.unwrap() == shipped.unwrap(), "{name} is not what is shipped");
    }
}

fn tokenizer() -> Tokenizer {
    Tokenizer::from_gguf(support::byte_level_vocab()).unwrap()
}

/// Biographies of the made-up people.
fn corpus(folder: &Path) -> PathBuf {
    let path = folder.join("corpus/bios.jsonl");
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    bios(&bios_options(path.clone())).unwrap();
    path
}

fn haystack_options<'a>(input: &Path, tokenizer: &'a Tokenizer, path: PathBuf) -> HaystackOptions<'a> {
    HaystackOptions {
        source: source(&[input]),
        counting: counting(tokenizer),
        lengths: vec![700, 1500, 3000],
        depths: vec![0.0, 0.25, 0.5, 1.0],
        per_cell: 6,
        needle_tokens: "10-400".parse().unwrap(),
        unknown_share: 0.25,
        seed: 5,
        output: output(path),
    }
}

#[test]
fn haystacks_are_as_long_and_needles_as_deep_as_wished() {
    let (folder, tokenizer) = (tempfile::tempdir().unwrap(), tokenizer());
    let input = corpus(folder.path());
    let people: BTreeMap<String, Value> = records(&input)
        .into_iter()
        .map(|person| (person["synset"].as_str().unwrap().to_owned(), person))
        .collect();
    let count = |text: &str| tokenizer.encode_ordinary(text).unwrap().len();
    let longest = people.values().map(|person| count(person["text"].as_str().unwrap())).max().unwrap() + 20;
    let path = folder.path().join("hay.jsonl");
    let report = haystack(&haystack_options(&input, &tokenizer, path.clone())).unwrap();
    let made = records(&path);
    assert_eq!((made.len(), report.num_items, report.num_unknown), (72, 72, 18));
    check_manifest(&path, &[(&input, 53)]);

    let mut given = BTreeSet::new();
    let mut unknown: BTreeMap<String, usize> = BTreeMap::new();
    for (number, item) in made.iter().enumerate() {
        let wish = |field: &str| item[field].as_f64().unwrap();
        assert_eq!(wish("length"), [700.0, 1500.0, 3000.0][number / 24]);
        assert_eq!(wish("depth"), [0.0, 0.25, 0.5, 1.0][number / 6 % 4]);
        let prompt = item["prompt"].as_str().unwrap();
        assert_eq!(item["tokens"], count(prompt));
        assert!(count(prompt) as f64 <= wish("length") && count(prompt) + longest > wish("length") as usize);

        // Who is asked for stands once in the hay, under a name that no other item asks for.
        let (hay, question) = prompt.split_once("\n\nWrite the JSON record of ").unwrap();
        let asked = question.split('.').next().unwrap();
        assert!(given.insert(asked.to_owned()), "{asked} twice");
        assert_eq!(hay.matches(asked).count(), 1, "{prompt}");
        let last = asked.split(' ').next_back().unwrap();
        let texts: Vec<&str> = hay.split_inclusive(" . ").map(str::trim).collect();
        assert_eq!(item["biographies"], texts.len());
        let (place, needle) = texts.iter().enumerate().find(|(_, text)| text.starts_with(asked)).unwrap();
        assert_eq!(hay.matches(last).count(), needle.matches(last).count(), "{last} in {prompt}");
        let before: usize = texts[..place].iter().map(|text| count(text) + 1).sum();
        let others: usize = texts.iter().map(|text| count(text) + 1).sum::<usize>() - count(needle);
        let depth = before as f64 / others as f64;
        let one = longest as f64 / others as f64;
        assert!((depth - wish("depth")).abs() <= one, "{depth} instead of {}", wish("depth"));
        assert!((depth - wish("depth_tokens")).abs() < 0.03, "{depth} is not {}", wish("depth_tokens"));

        // Gold is the person's own, but for what was taken out; nobody's name is left.
        let person = &people[item["asked"].as_str().unwrap()];
        let gold: Value = serde_json::from_str(item["completion"].as_str().unwrap()).unwrap();
        for field in ["nationality", "born", "died", "sportsperson", "politician"] {
            if item["unknown"] == field {
                assert_eq!(gold[field], "unknown");
                let fact = if field == "nationality" && person[field] == "American" {
                    "United States".to_owned()
                } else {
                    person[field].to_string().replace('"', "")
                };
                assert!(!needle.contains(&fact), "{fact} in {needle}");
                *unknown.entry(field.to_owned()).or_default() += 1;
            } else {
                assert_eq!(gold[field], person[field]);
            }
        }
        for own in people.values().map(|person| person["name"].as_str().unwrap()) {
            assert!(!hay.contains(own), "{own} in {hay}");
        }
        let names: Vec<&str> = texts.iter().map(|text| text.split(" ( ").next().unwrap()).collect();
        let lasts: BTreeSet<&str> = names.iter().map(|name| name.split(' ').next_back().unwrap()).collect();
        assert_eq!(lasts.len(), texts.len(), "{names:?}");
    }
    assert_eq!(unknown.len(), 3, "{unknown:?}");
    // Nobody is asked for again and again, with one fact taken out after the other.
    let of_unknown = made.iter().filter(|item| !item["unknown"].is_null());
    let people_of_unknown: BTreeSet<&str> = of_unknown.map(|item| item["asked"].as_str().unwrap()).collect();
    assert!(people_of_unknown.len() >= 12, "{people_of_unknown:?}");

    // The schema holds for the gold records, and says what can be unknown.
    let schema: Value =
        serde_json::from_slice(&std::fs::read(folder.path().join("hay.schema.json")).unwrap()).unwrap();
    assert_eq!(schema["properties"]["born"], json!({"anyOf": [{"type": "integer"}, {"const": "unknown"}]}));
    assert_eq!(schema["properties"]["politician"], json!({"type": "boolean"}));

    let again = folder.path().join("again/hay.jsonl");
    std::fs::create_dir(again.parent().unwrap()).unwrap();
    haystack(&haystack_options(&input, &tokenizer, again.clone())).unwrap();
    for ending in ["jsonl", "manifest.json", "schema.json"] {
        let read = |path: &Path| std::fs::read(path.with_extension(ending)).unwrap();
        assert_eq!(read(&path), read(&again));
    }
    let other = folder.path().join("other.jsonl");
    haystack(&HaystackOptions {
        seed: 6,
        unknown_share: 0.0,
        ..haystack_options(&input, &tokenizer, other.clone())
    })
    .unwrap();
    assert_ne!(std::fs::read(&path).unwrap(), std::fs::read(&other).unwrap());
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets/biographies/schema.json");
    assert_eq!(std::fs::read(other.with_extension("schema.json")).unwrap(), std::fs::read(shipped).unwrap());
}

#[test]
fn people_are_renamed_wherever_they_are_mentioned_and_in_doubt_never_asked_for() {
    let (folder, tokenizer) = (tempfile::tempdir().unwrap(), tokenizer());
    let person = |name: &str, text: &str, change: Value| {
        let mut person = json!({
            "name": name, "text": text, "nationality": "Welsh", "born": 1801, "died": 1870, "sportsperson": false,
            "politician": false,
        });
        person.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        person
    };
    let text = |name: &str, more: &str| format!("{name} ( 1801 - 1870 ) , Welsh chemist . {more}");
    let people = [
        person(
            "Ada Brack",
            &text("Ada Brack", "Brack's odes made Ada famous; BRACK never knew ."),
            json!({"id": "asked"}),
        ),
        // In doubt, each for a reason of its own.
        person("Ben Calder", &text("Ben Calder", ""), json!({"born": null})),
        person("Cora Dunn", &text("Cora Dunn", ""), json!({"nationality": "unknown"})),
        person("Dora Elm", &text("Dora Elm", ""), json!({"doubtful": ["politician"]})),
        person("Emil Fass", &text("Emil Fass", ""), json!({"born": 1802})),
        person("Gero Hahn", &text("Gero Hahn", "Her husband was Otto Hahn ."), json!({})),
        person("Iris", &text("Iris", ""), json!({})),
        person("Jan Kolb", &text("Jan Kolb", ""), json!({"nationality": "Irish"})),
        person("Lena Moor", &text("Lena Moor", ""), json!({"politician": "yes"})),
        person("Nils Ohm", &text("Nils Ohm", &"la ".repeat(400)), json!({})),
        // Not used at all.
        person("Pia Quist", &text("Someone else", "Quist\u{e0d1}"), json!({})),
        person("Rosa Stern", " ", json!({})),
        json!({"text": "a"}),
    ];
    let lines: String = people.iter().map(|person| format!("{person}\n")).collect();
    let input = write(folder.path(), "people.jsonl", lines);
    let path = folder.path().join("hay.jsonl");
    let options = HaystackOptions {
        lengths: vec![550],
        depths: vec![0.5],
        per_cell: 3,
        unknown_share: 0.0,
        ..haystack_options(&input, &tokenizer, path.clone())
    };
    let report = haystack(&options).unwrap();
    assert_eq!((report.num_biographies, report.num_needles), (10, 1));
    let reasons: Vec<&str> = report.not_asked.0.keys().map(String::as_str).collect();
    assert_eq!(
        reasons,
        [
            "born is not certain",
            "its name is not a first and a last name",
            "its name may be somebody else's",
            "its nationality is not in the text",
            "its text is too long",
            "its years are not in the text",
            "nationality is not certain",
            "politician is in doubt",
            "politician is not certain",
        ]
    );
    assert_eq!(report.dropped.total(), 3);
    for item in records(&path) {
        let prompt = item["prompt"].as_str().unwrap();
        assert_eq!(item["asked"], "asked");
        let asked = prompt.split("JSON record of ").nth(1).unwrap().split('.').next().unwrap();
        let (first, last) = asked.split_once(' ').unwrap();
        let told = format!(
            "Welsh chemist . {last}'s odes made {first} famous; {} never knew .",
            last.to_uppercase()
        );
        assert!(prompt.contains(&told), "{told} in {prompt}");
        assert!(!prompt.contains("Ada Brack") && !prompt.contains("BRACK"));
    }
}

#[test]
fn what_cannot_be_is_told_before_anything_is_written() {
    let (folder, tokenizer) = (tempfile::tempdir().unwrap(), tokenizer());
    let input = corpus(folder.path());
    let out = folder.path().join("none/out.jsonl");
    std::fs::create_dir(out.parent().unwrap()).unwrap();
    let fails = |input: &Path, said: &str, change: &dyn Fn(&mut HaystackOptions<'_>)| {
        let mut options = haystack_options(input, &tokenizer, out.clone());
        change(&mut options);
        let error = haystack(&options).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
        assert_eq!(names(out.parent().unwrap()), Vec::<String>::new(), "{error}");
    };
    fails(&input, "a haystack of 100 tokens holds no needle", &|o| o.lengths = vec![100]);
    fails(&input, "no room for a biography beside", &|o| (o.lengths, o.unknown_share) = (vec![310], 0.0));
    fails(&input, "too few for a haystack of 90000", &|o| o.lengths = vec![700, 90_000]);
    fails(&input, "none can be asked for", &|o| o.needle_tokens = "1-2".parse().unwrap());
    fails(&input, "not from 0 to 1", &|o| o.depths = vec![1.5]);
    fails(&input, "not from 0 to 1", &|o| o.depths = vec![f64::NAN]);
    fails(&input, "not from 0 to 1", &|o| o.unknown_share = -0.1);
    fails(&input, "nothing to make", &|o| o.per_cell = 0);
    fails(&input, "over the limit", &|o| o.per_cell = usize::MAX);
    let empty = write(folder.path(), "empty.jsonl", "");
    fails(&empty, "of 0 biographies 0 can be used", &|_| {});
    let lines = std::fs::read_to_string(&input).unwrap();
    let one = write(folder.path(), "one.jsonl", lines.lines().next().unwrap());
    fails(&one, "needs two at least", &|_| {});
    // Two people have two last names, of which both are taken by the first two; a third of the same name has none left.
    let same = |id: usize| {
        let text = format!("Ada Brack ( 1801 - 1870 ) , Welsh chemist of the order {id} .");
        json!({
            "name": "Ada Brack", "text": text, "nationality": "Welsh", "born": 1801, "died": 1870, "sportsperson": false,
            "politician": false,
        })
    };
    let namesakes: String = (0..20).map(|id| format!("{}\n", same(id))).collect();
    let namesakes = write(folder.path(), "namesakes.jsonl", namesakes);
    fails(&namesakes, "too few names", &|o| (o.lengths, o.unknown_share) = (vec![700], 0.0));
}
