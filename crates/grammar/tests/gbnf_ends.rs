//! Ways to the end of texts that are held to GBNF: from everywhere, as short as can be, and never by what the grammar does not
//! allow. Grammars of the kinds that llama.cpp has samples of, random ones, and ones that mean harm.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use support::gbnf::{Reference, check_ways};
use support::generations::{Leaning, Random, generate};
use support::*;
use wardrobe_grammar::{Compiler, GrammarError, Limits, Spec, Template, Whitespace};
use wardrobe_text::TokenId;

/// Names and grammars.
const SAMPLES: [(&str, &str); 12] = [
    (
        "json",
        r##"
root   ::= object
value  ::= object | list | string | number | ("true" | "false" | "null") gap
object ::= "{" gap ( pair ("," gap pair)* )? "}" gap
pair   ::= string ":" gap value
list   ::= "[" gap ( value ("," gap value)* )? "]" gap
string ::= "\"" ([^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}))* "\"" gap
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? gap
gap    ::= | " " | "\n" [ \t]{0,20}
"##,
    ),
    (
        "json lists",
        r##"
root   ::= "[\n" gap ( value (",\n" gap value)* )? "]"
value  ::= object | list | string | number | ("true" | "false" | "null") gap
object ::= "{" gap ( string ":" gap value ("," gap string ":" gap value)* )? "}" gap
list   ::= "[" gap ( value ("," gap value)* )? "]" gap
string ::= "\"" ([^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}))* "\"" gap
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [1-9] [0-9]{0,15})? gap
gap    ::= | " " | "\n" [ \t]{0,20}
"##,
    ),
    (
        "arithmetic",
        r##"
root ::= (sum "=" blank term "\n")+
sum  ::= term ([-+*/] term)*
term ::= name | num | "(" blank sum ")" blank
name ::= [a-z] [a-z0-9_]* blank
num  ::= [0-9]+ blank
blank ::= [ \t\n]*
"##,
    ),
    (
        "chess",
        r##"
root ::= (
    # the first move of both
    "1. " move " " move "\n"

    ([1-9] [0-9]? ". " move " " move "\n")+
)
move      ::= (pawn | figure | castling) [+#]?
figure    ::= [NBKQR] [a-h]? [1-8]? "x"? [a-h] [1-8]
pawn      ::= ([a-h] "x")? [a-h] [1-8] ("=" [NBKQR])?
castling  ::= "O-O" "-O"?
"##,
    ),
    ("lists", "root ::= item+\nitem ::= \"- \" [^\\r\\n\\x0b\\x0c\\x85\\u2028\\u2029]+ \"\\n\"\n"),
    (
        "c",
        r##"
root        ::= (declaration)*
declaration ::= type blank name "(" parameter? ")" "{" statement* "}"
type        ::= "int" | "float" | "char"
name        ::= [a-zA-Z_] [a-zA-Z_0-9]*
parameter   ::= type blank name
statement   ::=
    ( type blank name ws "=" ws expression ";" ) |
    ( name ws "=" ws expression ";" ) |
    ( name ws "(" arguments? ")" ";" ) |
    ( "return" ws expression ";" ) |
    ( "while" "(" condition ")" "{" statement* "}" ) |
    ( "for" "(" init ";" ws condition ";" ws update ")" "{" statement* "}" ) |
    ( "if" "(" condition ")" "{" statement* "}" ("else" "{" statement* "}")? ) |
    ( line ) | ( block )
init        ::= type blank name ws "=" ws expression | name ws "=" ws expression
update      ::= name ws "=" ws expression
condition   ::= expression ("<" | "<=" | "==" | "!=" | ">=" | ">") expression
expression  ::= term (("+" | "-") term)*
term        ::= factor (("*" | "/") factor)*
factor      ::= name | number | unary | "(" expression ")" | call
unary       ::= "-" factor
call        ::= name "(" arguments? ")"
arguments   ::= expression ("," ws expression)*
number      ::= [0-9]+
line        ::= "//" [^\n]* "\n"
block       ::= "/*" ( [^*] | ("*" [^/]) )* "*/"
blank       ::= " "+
ws          ::= [ \t\n]*
"##,
    ),
    (
        "english",
        r##"
# words of letters, digits and signs
root   ::= glyph+ ([ \t\n] glyph+)*
glyph  ::= letter | digit | sign
letter ::= [a-zA-Z]
digit  ::= [0-9]
sign   ::= [!"#$%&'()*+,-./:;<=>?@[\\\]^_`{|}~]
"##,
    ),
    (
        "japanese",
        r##"
root     ::= glyph+ ([ \t\n] glyph+)*
glyph    ::= hiragana | katakana | sign | ideograph
hiragana ::= [ぁ-ゟ]
katakana ::= [ァ-ヿ]
sign     ::= [、-〾]
ideograph ::= [一-鿿]
"##,
    ),
    // Those that come back to themselves by most of their ways.
    ("brackets", r#"root ::= ("a<" root ">" | "ab")+"#),
    (
        "trees",
        "root ::= \"(\" root root \")\" | \"[\" root \"|\" root \"|\" root \"]\" | \"leaf\" | \"é\" root \"!\"",
    ),
    (
        "deep",
        "root ::= a a a\na ::= \"x\" b b | \"y\" a\nb ::= \"z\" c c | \"w\" b a\nc ::= \"u\" c a | \"v\" c b | \"end\"",
    ),
    (
        "lisp",
        "root ::= form+\nform ::= atom | \"(\" form* \")\" | \"'\" form | \"#(\" form form+ \")\"\natom ::= [a-z]+ \" \"",
    ),
];

fn gbnf(compiler: &Compiler, source: &str) -> Arc<Template> {
    let compiled = compiler.compile(&Spec::Gbnf(source.to_owned()), Whitespace::Spaced);
    compiled.unwrap_or_else(|error| panic!("{source}\n{error}"))
}

fn text_of(tokens: &[TokenId]) -> String {
    String::from_utf8(bytes(tokens)).unwrap()
}

#[test]
fn the_reference_tells_right_from_wrong() {
    let json = Reference::new(SAMPLES[0].1);
    for (text, missing) in [
        ("{}", Some(0)),
        ("{\"a\": [1, 2.5", Some(2)),
        ("{\"a", Some(4)),
        ("[", None),
        ("", Some(2)),
        ("{\"\\u0", Some(7)),
    ] {
        assert_eq!(json.missing(text), missing, "{text}");
    }
    let trees = Reference::new(SAMPLES[9].1);
    for (text, missing) in [
        ("", Some(4)),
        ("(leaf", Some(5)),
        ("[é", Some(4 + 1 + 1 + 4 + 1 + 4 + 1)),
        ("(leaféleaf!)", Some(0)),
        ("leafl", None),
    ] {
        assert_eq!(trees.missing(text), missing, "{text}");
    }
}

#[test]
fn what_a_budget_cuts_is_a_text_of_the_grammar() {
    let compiler = compiler();
    let leaning = Leaning::new(&tokenizer(), compiler.vocabulary().unwrap());
    let (mut cut, mut times) = (0, Vec::new());
    for (idx, (name, source)) in SAMPLES.into_iter().enumerate() {
        let template = gbnf(&compiler, source);
        let reference = Reference::new(source);
        let shortest = template.shortest();
        assert!(reference.accepts(&text_of(shortest)), "{name}: {:?}", text_of(shortest));
        let started = Instant::now();
        for seed in 0..40 {
            let mut random = Random((idx * 1000 + seed) as u64);
            let max_tokens = shortest.len() + random.below(60);
            let generated = generate(&template, &leaning, &[END], max_tokens, &mut random);
            let generated = generated.unwrap_or_else(|(error, tokens)| {
                panic!(
                    "{name}: {error} within {max_tokens} after {:?}",
                    String::from_utf8_lossy(&bytes(&tokens))
                )
            });
            let text = text_of(&generated.tokens);
            assert!(generated.tokens.len() <= max_tokens && reference.accepts(&text), "{name}: {text:?}");
            cut += usize::from(generated.is_cut);
        }
        times.push((name, started.elapsed()));
    }
    eprintln!("40 texts of each: {times:?}");
    assert!(cut > 200, "{cut} met their budget");
}

/// Where each byte is a token, what is said to be shortest is shortest: at the beginning, and from every place of a text.
#[test]
fn in_bytes_ways_are_the_shortest() {
    let compiler = Compiler::new(bytes_alone(), Limits::default());
    for (idx, (name, source)) in SAMPLES.into_iter().enumerate() {
        let template = gbnf(&compiler, source);
        let reference = Reference::new(source);
        assert_eq!(reference.missing(""), Some(template.shortest().len() as u64), "{name}");
        for seed in 0..6 {
            check_ways(&template, &reference, &mut Random((idx * 1000 + seed) as u64), 40);
        }
    }
}

/// A budget is enough from the shortest text on, and not before.
#[test]
fn the_shortest_text_is_the_smallest_budget() {
    let compiler = compiler();
    for (name, source) in SAMPLES {
        let template = gbnf(&compiler, source);
        let len = template.shortest().len();
        let mut session = template.session();
        assert_eq!(session.shortest_end(len).unwrap().as_deref(), Some(template.shortest()), "{name}");
        assert!(len == 0 || session.shortest_end(len - 1).unwrap().is_none(), "{name}");
        if len > 0 {
            let within = compiler_within(Limits { max_shortest_tokens: len - 1, ..Limits::default() });
            let refused = within.compile(&Spec::Gbnf(source.to_owned()), Whitespace::Spaced);
            assert!(matches!(refused, Err(GrammarError::Unsatisfiable { .. })), "{name}: {refused:?}");
        }
    }
    // Literals are taken in their longest tokens, and the way with the fewest is taken: `name` is one token, `xy` are two.
    let template = gbnf(&compiler, r#"root ::= "xy" | "name" | "abcab""#);
    assert_eq!(text_of(template.shortest()), "name");
    assert_eq!(template.shortest().len(), 1);
}

/// What is empty in many ways, ambiguous in many, counts far, or goes deep.
#[test]
fn grammars_that_mean_harm() {
    let compiler = Compiler::new(bytes_alone(), Limits::default());
    for (idx, source) in [
        "root ::= (\"\"*)* \"a\"",
        "root ::= ((\"a\"?)*)* \"b\"",
        "root ::= x x{0,3} x{2,} \"b\"\nx ::= (\"\" | \"a\"? | y{2})+\ny ::= \"\" | \"c\" x",
        "root ::= s\ns ::= \"a\" | \"a\" s | \"a\" s s",
        "root ::= (\"a\"* \"a\"*){0,20} \"b\"",
        "root ::= (\"a\"?){0,500} \"b\"",
        "root ::= [ab]{0,200} \"a\" [ab]{0,200} \"c\"",
        "root ::= \"a\" root? \"b\"?",
        "root ::= ([a-c] | \"é\" | [é-ü])+ (\"ab\" | \"a\" root \"b\")",
    ]
    .into_iter()
    .enumerate()
    {
        let template = gbnf(&compiler, source);
        let reference = Reference::new(source);
        assert_eq!(reference.missing(""), Some(template.shortest().len() as u64), "{source}");
        for seed in 0..4 {
            check_ways(&template, &reference, &mut Random((idx * 1000 + seed) as u64), 30);
        }
    }
    // Without any end.
    for source in
        ["root ::= \"a\" root", "root ::= x | \"b\" root\nx ::= \"a\" y\ny ::= [0-9] x | \"(\" root \")\""]
    {
        let refused = compiler.compile(&Spec::Gbnf(source.to_owned()), Whitespace::Spaced);
        assert!(matches!(refused, Err(GrammarError::Unsatisfiable { .. })), "{source}: {refused:?}");
    }
}

/// Long texts of what is deep or ambiguous: the way to the end is known, or the engine has refused a token before.
#[test]
fn long_texts() {
    let compiler = Compiler::new(bytes_alone(), Limits::default());
    let json =
        format!("{{\"a\": [{}", "{\"name\": \"some text\", \"number\": 12.5}, [true, null], ".repeat(60));
    let c = format!("int main(){{{}", "if(a<b){x = f(y, 3*(z+1));}else{return x;}".repeat(60));
    for (source, text) in [
        (SAMPLES[0].1, json),
        (SAMPLES[5].1, c),
        ("root ::= \"a\" root?", "a".repeat(200)),
        ("root ::= \"(\" root \")\" | \"a\"", "(".repeat(3000)),
        ("root ::= s\ns ::= \"a\" | \"a\" s | \"a\" s s", "a".repeat(80)),
        ("root ::= (\"a\"* \"a\"*){0,20} \"b\"", "a".repeat(100)),
        ("root ::= [ab]{0,300} \"a\" [ab]{0,300} \"c\"", "a".repeat(100)),
    ] {
        let template = gbnf(&compiler, source);
        let mut session = template.session();
        let (mut in_masks, mut in_ways): (Vec<Duration>, Vec<Duration>) = Default::default();
        let mut mask = vec![0; 9];
        for byte in text.bytes() {
            let started = Instant::now();
            let accepted = session.fill_mask(&mut mask).and_then(|()| session.accept(TokenId(byte.into())));
            in_masks.push(started.elapsed());
            if accepted.is_err() {
                break;
            }
            let started = Instant::now();
            let way = session.shortest_end(1 << 14).unwrap();
            in_ways.push(started.elapsed());
            assert!(way.is_some(), "{source}");
        }
        assert!(in_ways.len() > 60, "{source}: {}", in_ways.len());
        in_ways.sort();
        in_masks.sort();
        let start = source.trim().lines().next().unwrap();
        let at = |times: &[Duration], percent: usize| times[times.len() * percent / 100];
        eprintln!(
            "{} of {} bytes: ways p50 {:?}, p99 {:?}; masks p50 {:?}; of {start}",
            in_ways.len(),
            text.len(),
            at(&in_ways, 50),
            at(&in_ways, 99),
            at(&in_masks, 50),
        );
    }
}
