use proptest::prelude::*;
use serde_json::json;

use super::*;

fn holds(condition: &str, record: Value) -> Truth {
    let Value::Object(columns) = record else { panic!("no record") };
    condition.parse::<Condition>().unwrap().holds(&columns, false)
}

#[test]
fn comparisons_of_every_type() {
    let record = json!({
        "score": 0.5, "n": 7, "big": 9_007_199_254_740_993_u64, "lang": "en", "ok": true, "gone": null,
        "full name": "A", "a.b": 3, "meta": {"q": {"v": -1.5}, "tags": ["x", 2, {"y": false}]},
    });
    for condition in [
        "score >= 0.5",
        "score = .5",
        "score < 0.6 and score > 4e-1",
        "n == 7.0",
        "n != 8",
        "ok",
        "ok = true",
        "not (ok = false)",
        "lang = \"en\"",
        "lang = 'en'",
        "lang < 'eo'",
        "lang contains 'n'",
        "gone = null",
        "gone missing",
        "nothing missing",
        "n exists",
        "\"full name\" = 'A'",
        "\"a.b\" = 3",
        "meta.q.v <= -1.5",
        "meta.tags[1] = 2",
        "meta.tags contains 'x'",
        "meta.tags[2].y = false",
        "lang = 'de' or n = 7",
        "lang = 'de' and nothing = 1 or n = 7",
        "big = 9007199254740993",
        "big != 9007199254740992",
        "nothing = 1 or ok",
        "meta.q exists && !(n = 1) || ok".replace("!(", "not (").as_str(),
        "n >= +7",
    ] {
        assert_eq!(holds(condition, record.clone()), Truth::True, "{condition}");
    }
    for condition in
        ["score > 0.5", "ok = false", "not ok", "lang = 'EN'", "gone exists", "nothing = 1 and n = 8"]
    {
        assert_eq!(holds(condition, record.clone()), Truth::False, "{condition}");
    }
    for condition in [
        "nothing = 1",
        "not nothing = 1",
        "gone != 1",
        "lang = 1",
        "n = 'a'",
        "nothing = 1 and ok",
        "nothing = 1 or n = 8",
        "meta.tags[9] = 1",
        "meta > 1",
        "lang[0] = 'e'",
        "n contains 7",
    ] {
        assert_eq!(holds(condition, record.clone()), Truth::Unknown, "{condition}");
    }
}

#[test]
fn texts_count_as_numbers_where_a_format_has_no_others() {
    let Value::Object(columns) = json!({"score": " 0.75", "ok": "True", "name": "7"}) else { panic!() };
    let holds = |condition: &str, untyped| condition.parse::<Condition>().unwrap().holds(&columns, untyped);
    assert_eq!(holds("score >= 0.5", true), Truth::True);
    assert_eq!(holds("ok", true), Truth::True);
    assert_eq!(holds("name = '7'", true), Truth::True);
    assert_eq!(holds("score >= 0.5", false), Truth::Unknown);
    assert_eq!(holds("ok = 1", true), Truth::Unknown);
}

#[test]
fn what_is_no_condition_is_told() {
    for (condition, said) in [
        ("", "a field is missing"),
        ("a >=", "value is missing"),
        ("a = b", "stands in quotes"),
        ("a = 'b", "not closed"),
        ("(a = 1", "not closed"),
        ("a = 1 b", "does not belong"),
        ("a ~ 1", "none of the signs"),
        ("1 = a", "no field"),
        ("a[x] = 1", "place in a list"),
        ("a[1 = 1", "not closed"),
        ("a = 1.2.3", "no number"),
        ("a. = 1", "no field"),
        ("a and", "a field is missing"),
        ("a[-1] = 2", "place in a list"),
    ] {
        let error = condition.parse::<Condition>().unwrap_err();
        assert!(error.contains(said), "{condition}: {error}");
    }
    assert!("not ".repeat(5000).parse::<Condition>().is_err());
    assert!(["(".repeat(3000), "a".into(), ")".repeat(3000)].concat().parse::<Condition>().is_err());
    assert!("a".repeat(20_000).parse::<Condition>().is_err());
}

proptest! {
    #[test]
    fn numbers_compare_as_they_do_in_rust(a in any::<i64>(), b in any::<i64>(), x in -1e9..1e9_f64, y in -1e9..1e9_f64) {
        for (operator, exact, float) in [
            ("<", a < b, x < y), ("<=", a <= b, x <= y), (">", a > b, x > y), (">=", a >= b, x >= y),
            ("=", a == b, x == y), ("!=", a != b, x != y),
        ] {
            prop_assert_eq!(holds(&format!("v {operator} {b}"), json!({"v": a})), exact.into());
            prop_assert_eq!(holds(&format!("v {operator} {y:?}"), json!({"v": x})), float.into());
        }
    }

    #[test]
    fn no_text_panics(text in "[a-c\"'\\\\.\\[\\]()<>=!&|0-9 enotrd+-]{0,40}|\\PC{0,40}") {
        if let Ok(condition) = text.parse::<Condition>() {
            condition.holds(&Map::new(), true);
        }
    }

    #[test]
    fn any_text_can_be_compared_with(text in "\\PC{0,30}") {
        let quoted = text.replace('\\', "\\\\").replace('"', "\\\"");
        prop_assert_eq!(holds(&format!("v = \"{quoted}\""), json!({"v": text})), Truth::True);
    }
}
