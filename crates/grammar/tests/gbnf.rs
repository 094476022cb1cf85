//! GBNF: grammars as people write them, errors with their place, and random grammars against an interpreter of their own.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::collections::BTreeSet;
use std::fmt::Write;

use proptest::prelude::*;
use support::gbnf::{Reference, check_ways};
use support::generations::{Leaning, Random, generate};
use support::*;
use wardrobe_grammar::{Compiler, GrammarError, Limits, Spec, Template, Whitespace};

fn gbnf(source: &str) -> std::sync::Arc<Template> {
    compile(&Spec::Gbnf(source.to_owned())).unwrap_or_else(|error| panic!("{source}\n{error}"))
}

fn check(source: &str, texts: &[(&str, bool)]) {
    let template = gbnf(source);
    for (text, want) in texts {
        assert_eq!(accepts(&template, text), *want, "{text:?} by\n{source}");
    }
    let shortest = String::from_utf8(bytes(template.shortest())).unwrap();
    assert!(accepts(&template, &shortest), "{shortest:?} by\n{source}");
}

#[test]
fn json() {
    let source = r##"
# Any JSON object.
root   ::= object
value  ::= (object | list | string | number | ("true" | "false" | "null") ws)
object ::= "{" ws (
    pair ("," ws pair)*   # some, with commas between them
)? "}" ws
pair   ::= string ":" ws value
list   ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ([^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}))* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
ws     ::= | " " | "\n" [ \t]{0,20}
"##;
    check(
        source,
        &[
            (r#"{"a": [1, -2.5e+3, "é\n\u00e9", {}], "b":null}"#, true),
            ("{}", true),
            ("{\n\t\"a\": true}", true),
            ("[]", false),
            (r#"{"a": 01}"#, false),
            (r#"{"a": "\x"}"#, false),
            (r#"{"a": 1,}"#, false),
            (r#"{"a"  : 1}"#, false),
        ],
    );
}

#[test]
fn sums_chess_lists_and_programs() {
    let sums = "root ::= (sum \"=\" blank num \"\\n\")+\nsum ::= term ([-+*/] blank term)*\nterm ::= name | num | \"(\" blank sum \")\" blank\nname ::= [a-z] [a-z0-9_]* blank\nnum ::= [0-9]+ blank\nblank ::= [ \\t\\n]*\n";
    check(
        sums,
        &[
            ("x+(1 - y2)*3 = 4\n", true),
            ("1=1\n2=2\n", true),
            ("1=1", false),
            ("(1=1\n", false),
            ("1+=1\n", false),
        ],
    );
    let chess = r##"
root ::= (
    # the first move of both
    "1. " move " " move "\n"

    ([1-9] [0-9]? ". " move " " move "\n")+
)
move      ::= (pawn | figure | castling) [+#]?
figure    ::= [NBKQR] [a-h]? [1-8]? "x"? [a-h] [1-8]
pawn      ::= ([a-h] "x")? [a-h] [1-8] ("=" [NBKQR])?
castling  ::= "O-O" "-O"?
"##;
    check(
        chess,
        &[
            ("1. e4 e5\n2. Nf3 Nc6\n3. Bb5 a6\n4. O-O exd4\n", true),
            ("1. e4 e5\n2. Nbd7 R1a3+\n12. bxa8=Q O-O-O#\n", true),
            ("1. e4 e5\n", false),
            ("1. e9 e5\n2. a1 a2\n", false),
            ("1. e4 e5\n2. O-O-O-O a3\n", false),
        ],
    );
    check(
        "root ::= item+\nitem ::= \"- \" [^\\r\\n\\x0b\\x0c\\x85\\u2028\\u2029]+ \"\\n\"\n",
        &[("- one\n- zwei, drei ぁ\n", true), ("- \n", false), ("one\n", false), ("- one", false)],
    );
    let program = r##"
root        ::= (declaration)*
declaration ::= type blank name "(" parameter? ")" "{" statement* "}"
type        ::= "int" | "float" | "char"
name        ::= [a-zA-Z_] [a-zA-Z_0-9]*
parameter   ::= type blank name
statement   ::=
    ( type blank name ws "=" ws expression ";" ) |
    ( name ws "=" ws expression ";" ) |
    ( name ws "(" (expression ("," ws expression)*)? ")" ";" ) |
    ( "return" ws expression ";" ) |
    ( "while" "(" condition ")" "{" statement* "}" ) |
    ( "if" "(" condition ")" "{" statement* "}" ("else" "{" statement* "}")? ) |
    ( "//" [^\n]* "\n" )
condition   ::= expression ("<" | "<=" | "==" | "!=" | ">=" | ">") expression
expression  ::= term (("+" | "-") term)*
term        ::= factor (("*" | "/") factor)*
factor      ::= name | number | "-" factor | "(" expression ")" | name "(" (expression ("," ws expression)*)? ")"
number      ::= [0-9]+
blank       ::= " "+
ws          ::= [ \t\n]*
"##;
    check(
        program,
        &[
            ("", true),
            ("int main(char a){int x = 3*(a+1);if(x<=4){f(x, -1);}else{//no\n}return x;}", true),
            ("int main(){while(a<b){a=a+1;}}float f(){}", true),
            ("int main(){return 1}", false),
            ("int main(){if(a){}}", false),
        ],
    );
}

#[test]
fn characters_stand_for_themselves() {
    // What is taken greedily elsewhere is not here.
    check(r#"root ::= [a-z]* "abc""#, &[("abc", true), ("xabc", true), ("abcabc", true), ("ab", false)]);
    check(
        r#"root ::= ("a" | "ab") ("c" | "bcd")"#,
        &[("ac", true), ("abc", true), ("abcd", true), ("abbcd", true), ("ab", false)],
    );
    check(
        r#"root ::= [^a] . [\]^-] [a-] [x-]"#,
        &[("b\n^a-", true), ("é😀]-x", true), ("ab]-x", false), ("b\n^b-", false)],
    );
    check(
        r#"root ::= "\x41\u00e9\U0001F600\t\"\\\[/" [\x00-\x1f\U0001F601]"#,
        &[("Aé😀\t\"\\[/\u{1}", true), ("Aé😀\t\"\\[/😁", true), ("Aé😀\t\"\\[/ ", false)],
    );
    check(
        r#"root ::= "ab"{2} "c"{1,} ("d" | "e"){0,2} "f"{0} x-Y_1 {1 , 2}
x-Y_1 ::= ("z"?){2,3}+"#,
        &[("ababc", true), ("ababcccdezzz", true), ("abc", false), ("ababcdddz", false), ("ababcf", false)],
    );
    check(
        "root ::= | \"a\" |\n  \"b\" # the last\n\n\n# unused\nother ::= \"c\" root\r\n",
        &[("", true), ("a", true), ("b", true), ("c", false)],
    );
    check("root::=\"\" x\nx ::= (\"(\" x \")\" x)?", &[("", true), ("(())()", true), ("(()", false)]);
}

#[test]
fn errors_name_their_place() {
    for (source, place, message) in [
        ("", "line 1, column 1", "no rule \"root\""),
        ("a ::= \"a\"", "line 1, column 10", "no rule \"root\""),
        ("root ::= a", "line 1, column 10", "no rule \"a\""),
        ("root ::= \"a\"\nb := \"b\"", "line 2, column 4", "`::=` is expected after \"b\""),
        ("root ::= \"a", "line 1, column 10", "no end"),
        ("root ::= \"a\n  ", "line 1, column 10", "no end"),
        ("root ::= [a", "line 1, column 10", "no end"),
        ("root ::= []", "line 1, column 10", "no character"),
        ("root ::= [z-a]", "line 1, column 11", "range"),
        ("root ::= \"\\q\"", "line 1, column 11", "escape"),
        ("root ::= \"\\x4\"", "line 1, column 11", "2 digits"),
        ("root ::= \"\\ud800\"", "line 1, column 11", "4 digits"),
        ("root ::= (\"a\"\n", "line 2, column 1", "`)` is expected"),
        ("root ::= \"a\")", "line 1, column 13", "')' is not expected"),
        ("root ::= * \"a\"", "line 1, column 10", "nothing to repeat"),
        ("root ::= \"a\"{2,1}", "line 1, column 13", "fewer"),
        ("root ::= \"a\"{,1}", "line 1, column 14", "a number"),
        ("root ::= \"a\"{1", "line 1, column 15", "`}`"),
        ("root ::= \"a\"{99999999999}", "line 1, column 14", "repetitions"),
        ("root ::= \"a\"\n\nroot ::= \"b\"", "line 3, column 1", "twice"),
        ("root ::= <think> \"a\"", "line 1, column 10", "tokens"),
        ("root ::= \"a\" \"é\" é", "line 1, column 18", "not expected"),
        ("root ::= \"x\" | root \"a\"", "line 1, column 16", "left recursion"),
        ("root ::= a\na ::= \"x\"? (b)*\nb ::= [y]{0,3} a \"z\"", "line ", "left recursion"),
        ("root ::= \"x\"\nunused ::= unused", "line 2, column 12", "left recursion"),
    ] {
        match compile(&Spec::Gbnf(source.into())) {
            Err(GrammarError::Invalid { kind: "grammar", message: said }) => {
                assert!(said.starts_with(place) && said.contains(message), "{source:?}: {said}");
            }
            other => panic!("{source:?}: {other:?}"),
        }
    }
}

#[test]
fn bombs() {
    let deep = format!("root ::= {}\"a\"{}", "(".repeat(10_000), ")".repeat(10_000));
    let long = format!("root ::= \"{}\"", "a".repeat(200_000));
    let many: String = (0..60_000).fold("root ::= \"a\"\n".to_owned(), |mut all, i| {
        let _ = writeln!(all, "r{i} ::= r{}", i + 1);
        all
    }) + "r60000 ::= \"b\"";
    let doubling: String = (0..40).fold("root ::= r0\n".to_owned(), |mut all, i| {
        let _ = writeln!(all, "r{i} ::= r{} r{}", i + 1, i + 1);
        all
    }) + "r40 ::= \"b\"";
    let nested = format!("root ::= (((\"a\"{{1000}}){{1000}}){{1000}}){}", "{1000}".repeat(20));
    for (idx, source) in
        [deep, long, many, doubling, nested, "root ::= \"a\" root".to_owned()].into_iter().enumerate()
    {
        match compile(&Spec::Gbnf(source)) {
            Err(GrammarError::Engine { message }) => panic!("{idx}: {message}"),
            Ok(_) => assert_eq!(idx, 2, "taken"),
            Err(_) => {}
        }
    }
}

/// A grammar to be written down and to be interpreted.
#[derive(Debug, Clone)]
enum Node {
    Text(String),
    Class(Vec<(char, char)>, bool),
    Any,
    Sequence(Vec<Node>),
    Ways(Vec<Node>),
    Repeated(Box<Node>, u32, Option<u32>),
    /// The rule that everything is in, after an opening bracket and before a closing one.
    Root,
}

fn write_node(node: &Node, out: &mut String) {
    match node {
        Node::Text(text) => {
            let _ = write!(out, "{text:?}");
        }
        Node::Any => out.push('.'),
        Node::Class(ranges, negated) => {
            out.push_str(if *negated { "[^" } else { "[" });
            for (first, last) in ranges {
                let _ = if first == last { write!(out, "{first}") } else { write!(out, "{first}-{last}") };
            }
            out.push(']');
        }
        Node::Sequence(parts) => {
            out.push('(');
            parts.iter().for_each(|part| {
                write_node(part, out);
                out.push(' ');
            });
            out.push(')');
        }
        Node::Ways(ways) => {
            out.push('(');
            for (idx, way) in ways.iter().enumerate() {
                out.push_str(if idx > 0 { " | " } else { "" });
                write_node(way, out);
            }
            out.push(')');
        }
        Node::Repeated(node, min, max) => {
            write_node(node, out);
            match (min, max) {
                (0, None) => out.push('*'),
                (1, None) => out.push('+'),
                (0, Some(1)) => out.push('?'),
                (min, None) => write!(out, "{{{min},}}").unwrap(),
                (min, Some(max)) if min == max => write!(out, "{{{min}}}").unwrap(),
                (min, Some(max)) => write!(out, "{{{min},{max}}}").unwrap(),
            }
        }
        Node::Root => out.push_str("\"<\" root \">\""),
    }
}

/// Where the node may end in a text, from a place on.
fn ends(node: &Node, root: &Node, text: &[char], at: usize) -> BTreeSet<usize> {
    let one = |allowed: bool| if allowed { BTreeSet::from([at + 1]) } else { BTreeSet::new() };
    match node {
        Node::Text(word) => {
            let word: Vec<char> = word.chars().collect();
            if text[at..].starts_with(&word) { BTreeSet::from([at + word.len()]) } else { BTreeSet::new() }
        }
        Node::Any => one(at < text.len()),
        Node::Class(ranges, negated) => {
            let is_in = |c: &char| ranges.iter().any(|(first, last)| (first..=last).contains(&c));
            one(text.get(at).is_some_and(|c| is_in(c) != *negated))
        }
        Node::Sequence(parts) => parts.iter().fold(BTreeSet::from([at]), |places, part| {
            places.into_iter().flat_map(|place| ends(part, root, text, place)).collect()
        }),
        Node::Ways(ways) => ways.iter().flat_map(|way| ends(way, root, text, at)).collect(),
        Node::Repeated(node, min, max) => {
            let (mut places, mut found) = (BTreeSet::from([at]), BTreeSet::new());
            // What is empty may be repeated for ever, to no effect.
            for times in 0..=max.unwrap_or(min + text.len() as u32 + 1) {
                if places.is_empty() || (times > *min && places.is_subset(&found)) {
                    break;
                }
                if times >= *min {
                    found.extend(&places);
                }
                places = places.into_iter().flat_map(|place| ends(node, root, text, place)).collect();
            }
            found
        }
        Node::Root => {
            if text.get(at) != Some(&'<') {
                return BTreeSet::new();
            }
            let inner = ends(root, root, text, at + 1);
            inner.into_iter().filter(|end| text.get(*end) == Some(&'>')).map(|end| end + 1).collect()
        }
    }
}

/// Whether a text can be had without coming to the root again.
fn has_end(node: &Node) -> bool {
    match node {
        Node::Text(_) | Node::Class(..) | Node::Any => true,
        Node::Sequence(parts) => parts.iter().all(has_end),
        Node::Ways(ways) => ways.iter().any(has_end),
        Node::Repeated(node, min, _) => *min == 0 || has_end(node),
        Node::Root => false,
    }
}

/// A text of the node's, by some draws.
fn derive(node: &Node, root: &Node, draws: &mut dyn FnMut() -> usize, depth: usize, out: &mut String) {
    match node {
        Node::Text(text) => out.push_str(text),
        Node::Any => out.push(['a', '<', '\n', 'é'][draws() % 4]),
        Node::Class(ranges, false) => out.push(ranges[draws() % ranges.len()].0),
        Node::Class(ranges, true) => {
            let others = ['x', 'a', 'b', '>', '😀'];
            let is_out = |c: &&char| !ranges.iter().any(|(first, last)| (first..=last).contains(c));
            out.extend(others.iter().find(is_out));
        }
        Node::Sequence(parts) => parts.iter().for_each(|part| derive(part, root, draws, depth, out)),
        Node::Ways(ways) => derive(&ways[draws() % ways.len()], root, draws, depth, out),
        Node::Repeated(node, min, max) => {
            let times = min + (draws() % 3) as u32;
            (0..times.min(max.unwrap_or(u32::MAX))).for_each(|_| derive(node, root, draws, depth, out));
        }
        Node::Root if depth > 3 => out.push_str("<>"),
        Node::Root => {
            out.push('<');
            derive(root, root, draws, depth + 1, out);
            out.push('>');
        }
    }
}

fn nodes() -> impl Strategy<Value = Node> {
    let range =
        prop::sample::select(vec![('a', 'a'), ('a', 'c'), ('b', 'b'), ('x', 'z'), ('<', '>'), ('é', 'é')]);
    let leaf = prop_oneof![
        3 => prop::sample::select(vec!["a", "ab", "abc", "b", "<", "é\n", "\""]).prop_map(|text| Node::Text(text.into())),
        2 => (prop::collection::vec(range, 1..3), any::<bool>()).prop_map(|(ranges, negated)| Node::Class(ranges, negated)),
        1 => Just(Node::Any),
        1 => Just(Node::Root),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Node::Sequence),
            prop::collection::vec(inner.clone(), 1..4).prop_map(Node::Ways),
            (inner, 0..3_u32, prop::option::of(0..3_u32)).prop_map(|(node, min, more)| Node::Repeated(
                Box::new(Node::Sequence(vec![node])),
                min,
                more.map(|more| min + more)
            )),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(60) })]

    #[test]
    fn random_grammars_mean_what_they_say(root in nodes(), seed: u64) {
        let mut source = "root ::= ".to_owned();
        write_node(&root, &mut source);
        let compiler = compiler_within(Limits { max_shortest_tokens: 300, ..Limits::default() });
        let template = match compiler.compile(&Spec::Gbnf(source.clone()), Whitespace::Spaced) {
            Ok(template) => template,
            Err(GrammarError::Unsatisfiable { .. }) => {
                prop_assert!(!has_end(&root), "{} has a text", source);
                return Ok(());
            }
            Err(error) => panic!("{source}: {error}"),
        };
        let mut state = seed | 1;
        let mut draws = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) as usize
        };
        for _ in 0..4 {
            let mut text = String::new();
            derive(&root, &root, &mut draws, 0, &mut text);
            for mutated in 0..3 {
                let mut chars: Vec<char> = text.chars().take(14).collect();
                match (mutated, chars.len()) {
                    (0, _) | (_, 0) => {}
                    (1, len) => { chars.remove(draws() % len); }
                    (_, len) => chars[draws() % len] = ['a', 'b', '<', 'é'][draws() % 4],
                }
                let text: String = chars.iter().collect();
                let want = ends(&root, &root, &chars, 0).contains(&chars.len());
                prop_assert_eq!(accepts(&template, &text), want, "{:?} by {}", text, source);
            }
        }
    }

    #[test]
    fn random_grammars_end_the_shortest_way(root in nodes(), seed: u64) {
        let mut source = "root ::= ".to_owned();
        write_node(&root, &mut source);
        let reference = Reference::new(&source);
        let spec = Spec::Gbnf(source.clone());
        let in_bytes = Compiler::new(bytes_alone(), Limits::default()).compile(&spec, Whitespace::Spaced);
        let Ok(in_bytes) = in_bytes else {
            prop_assert!(reference.missing("").is_none(), "{} has a text", source);
            return Ok(());
        };
        prop_assert_eq!(reference.missing(""), Some(in_bytes.shortest().len() as u64), "{}", source);
        check_ways(&in_bytes, &reference, &mut Random(seed), 20);
        // In longer tokens, within a budget.
        let compiler = compiler();
        let template = compiler.compile(&spec, Whitespace::Spaced).unwrap();
        prop_assert!(template.shortest().len() <= in_bytes.shortest().len(), "{}", source);
        let leaning = Leaning::new(&tokenizer(), compiler.vocabulary().unwrap());
        for idx in 0..4 {
            let mut random = Random(seed ^ idx);
            let max_tokens = template.shortest().len() + random.below(12);
            let generated = generate(&template, &leaning, &[END], max_tokens, &mut random);
            let text = generated.map(|generated| String::from_utf8(bytes(&generated.tokens)).unwrap());
            let is_text = text.as_ref().is_ok_and(|text| reference.accepts(text));
            prop_assert!(is_text, "{:?} by {}", text, source);
        }
    }
}
