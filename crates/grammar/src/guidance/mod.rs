//! Everything that is a context-free grammar, by way of `llguidance`: an Earley parser over derivatives of regular
//! expressions, which computes each mask when it is asked for.

mod end;
mod numbers;
mod tools;

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::{Matcher, ParserFactory};
use serde_json::json;
use wardrobe_text::TokenId;

use self::end::{Candidates, KnownWay};
use self::numbers::NumberGuard;
use crate::Session;
use crate::error::{GrammarError, Result};
use crate::gbnf::{self, Network, Reading, Words};
use crate::schema::Prepared;
use crate::spec::{Spec, Whitespace};
use crate::vocabulary::Vocabulary;

/// What a mask's lexer may take, some 70 ns each. The largest schemas with names of their own need more than the parser's
/// default; a mask that is late delays its own text alone, a refused one ends it.
const STEP_FUEL: u64 = 2_000_000;

/// What all grammars of a vocabulary share.
pub(crate) struct Guidance {
    vocabulary: Vocabulary,
    factory: ParserFactory,
    numbers: Arc<numbers::NumberTokens>,
    candidates: Arc<Candidates>,
    /// For grammars in GBNF, once there is one.
    words: OnceLock<Arc<Words>>,
}

/// A compiled spec.
pub(crate) struct Grammar {
    vocabulary: Vocabulary,
    /// As it is before the first token; sessions are copies, with caches of their own.
    start: Mutex<Matcher>,
    /// As it is before the first token.
    numbers: Option<NumberGuard>,
    /// Strings as JSON writes them; see [`end`].
    samples: Arc<[Vec<u8>]>,
    candidates: Arc<Candidates>,
    /// The rules of a grammar in GBNF, and the tokens that their costs are in.
    rules: Option<(Arc<Network>, Arc<Words>)>,
}

impl Guidance {
    /// Takes some tenths of a second and some 20 MB.
    pub(crate) fn new(vocabulary: Vocabulary) -> Result<Self> {
        let mut factory = ParserFactory::new_simple(&vocabulary.env()).map_err(engine)?;
        factory.quiet();
        *factory.limits_mut() =
            ParserLimits { verbose_errors: false, step_lexer_fuel: STEP_FUEL, ..ParserLimits::default() };
        let numbers = Arc::new(numbers::NumberTokens::new(vocabulary.trie()));
        let candidates = Arc::new(Candidates::new(vocabulary.trie()));
        Ok(Guidance { vocabulary, factory, numbers, candidates, words: OnceLock::new() })
    }

    /// Compiles a spec; gives warnings beside it. Bounded by the parser's limits, not by time.
    pub(crate) fn compile(
        &self,
        spec: &Spec,
        prepared: &[Prepared],
        whitespace: Whitespace,
    ) -> Result<(Grammar, Vec<String>)> {
        let kind = spec.kind();
        let json =
            |schema, lenient| TopLevelGrammar::from_json_schema(with_options(schema, whitespace, lenient));
        let mut rules = None;
        let (grammar, numbers) = match (spec, prepared) {
            (Spec::JsonSchema { strict, .. }, [prepared]) => {
                (json(prepared.schema.clone(), !strict), Some(NumberGuard::new(self.numbers.clone())))
            }
            (Spec::JsonSchema { .. } | Spec::JsonObject, _) => {
                (json(json!({"type": "object"}), false), Some(NumberGuard::new(self.numbers.clone())))
            }
            (Spec::Regex(regex), _) => (TopLevelGrammar::from_regex(regex), None),
            (Spec::Choice(choices), _) => (TopLevelGrammar::from_lark(choice(choices)?), None),
            (Spec::Lark(lark), _) => (TopLevelGrammar::from_lark(lark.clone()), None),
            (Spec::Gbnf(source), _) => {
                let lark = rules.insert(gbnf::parse(source)?).lark();
                (TopLevelGrammar::from_lark(lark), None)
            }
            (Spec::ToolCalls(calls), prepared) => {
                let lark = tools::lark(&self.vocabulary, calls, prepared, whitespace);
                (TopLevelGrammar::from_lark(lark), Some(tools::guard(self.numbers.clone(), calls)))
            }
        };
        let parser = self.factory.create_parser(grammar).map_err(|e| refused(kind, &e))?;
        let mut matcher = Matcher::new(Ok(parser));
        if let Some(message) = matcher.get_error() {
            return Err(refused(kind, &message));
        }
        let warnings = matcher.grammar_warnings();
        let samples = prepared.iter().flat_map(|prepared| &prepared.samples);
        let grammar = Grammar {
            vocabulary: self.vocabulary.clone(),
            start: Mutex::new(matcher),
            numbers,
            samples: samples.map(|text| json!(text).to_string().into_bytes()).collect(),
            candidates: self.candidates.clone(),
            // After the engine has taken the grammar, and so found that it is not too large.
            rules: rules.map(|rules| {
                let words = self.words.get_or_init(|| Arc::new(Words::new(&self.vocabulary)));
                (Arc::new(Network::new(&rules, words)), words.clone())
            }),
        };
        Ok((grammar, warnings))
    }
}

/// The schema with the options that say how it is written down.
fn with_options(mut schema: serde_json::Value, whitespace: Whitespace, lenient: bool) -> serde_json::Value {
    if schema == json!(true) {
        schema = json!({});
    }
    let (item, key, between) = match whitespace {
        Whitespace::Spaced => (", ", ": ", None),
        Whitespace::Compact => (",", ":", None),
        Whitespace::Flexible => (",", ":", Some(FLEXIBLE)),
    };
    if let Some(object) = schema.as_object_mut() {
        let mut options = json!({
            "item_separator": item, "key_separator": key, "whitespace_flexible": false, "lenient": lenient,
        });
        if let (Some(pattern), Some(options)) = (between, options.as_object_mut()) {
            options.insert("whitespace_pattern".to_owned(), json!(pattern));
        }
        object.insert("x-guidance".to_owned(), options);
    }
    schema
}

/// A line break and indentation, or some blanks.
const FLEXIBLE: &str = r"(\r?\n)?[ \t]{0,32}";

fn choice(choices: &[String]) -> Result<String> {
    let invalid = |message: &str| GrammarError::Invalid { kind: "choice", message: message.to_owned() };
    if choices.is_empty() {
        return Err(invalid("there is nothing to choose from"));
    }
    // JSON's strings are Lark's.
    let texts: Vec<String> = choices.iter().map(|text| json!(text).to_string()).collect();
    Ok(format!("start: {}", texts.join(" | ")))
}

impl Grammar {
    pub(crate) fn session(&self) -> GuidanceSession {
        let start = self.start.lock().unwrap_or_else(PoisonError::into_inner);
        let rules = self.rules.clone();
        GuidanceSession {
            vocabulary: self.vocabulary.clone(),
            matcher: start.deep_clone(),
            numbers: self.numbers.clone(),
            samples: self.samples.clone(),
            candidates: self.candidates.clone(),
            reading: rules.map(|(network, words)| Reading::new(network, self.vocabulary.clone(), words)),
            accepted: Vec::new(),
            known_way: None,
        }
    }
}

/// A text that follows a [`Grammar`].
pub(crate) struct GuidanceSession {
    vocabulary: Vocabulary,
    matcher: Matcher,
    numbers: Option<NumberGuard>,
    samples: Arc<[Vec<u8>]>,
    candidates: Arc<Candidates>,
    /// Of a text that is held to a grammar in GBNF; behind what was accepted, until it is asked.
    reading: Option<Reading>,
    accepted: Vec<TokenId>,
    known_way: Option<KnownWay>,
}

impl GuidanceSession {
    /// Follows a token that is known to be valid.
    fn follow(&mut self, token: TokenId) -> Result<()> {
        self.matcher.consume_token(token.0).map_err(engine)?;
        if let Some(numbers) = &mut self.numbers {
            numbers.push(self.vocabulary.trie().token(token.0));
        }
        self.accepted.push(token);
        Ok(())
    }

    /// Whether the text may end after these tokens.
    fn ends_after(&mut self, tokens: &[TokenId]) -> Result<bool> {
        let Some(end) = self.vocabulary.ends().first() else { return Ok(false) };
        let ids: Vec<u32> = tokens.iter().chain([end]).map(|id| id.0).collect();
        if self.matcher.is_stopped() || self.matcher.validate_tokens(&ids).map_err(engine)? < ids.len() {
            return Ok(false);
        }
        let Some(numbers) = &self.numbers else { return Ok(true) };
        let trie = self.vocabulary.trie();
        let (valid, minus_zero) = numbers.how_many(tokens.iter().map(|id| trie.token(id.0)));
        Ok(valid == tokens.len() && !minus_zero)
    }
}

impl Session for GuidanceSession {
    fn fill_mask(&mut self, mask: &mut [u32]) -> Result<()> {
        let found = self.matcher.compute_mask_or_eos().map_err(engine)?;
        for (to, from) in mask.iter_mut().zip(found.as_slice()) {
            *to = *from;
        }
        mask.iter_mut().skip(found.as_slice().len()).for_each(|word| *word = 0);
        // The engine's own set may have a bit beyond the last token.
        clear_beyond(mask, self.vocabulary.len());
        if let Some(numbers) = &mut self.numbers {
            numbers.confine(mask, &mut self.matcher)?;
        }
        Ok(())
    }

    fn accept(&mut self, token: TokenId) -> Result<()> {
        if self.vocabulary.ends().contains(&token) {
            return if self.may_end()? { Ok(()) } else { Err(GrammarError::NotAllowed { token }) };
        }
        if self.validate(&[token])? == 0 {
            return Err(GrammarError::NotAllowed { token });
        }
        self.follow(token)
    }

    fn validate(&mut self, draft: &[TokenId]) -> Result<usize> {
        let ids: Vec<u32> = draft.iter().map(|id| id.0).collect();
        if ids.iter().any(|&id| id as usize >= self.vocabulary.len()) || self.matcher.is_stopped() {
            return Ok(0);
        }
        let valid = self.matcher.validate_tokens(&ids).map_err(engine)?;
        let Some(numbers) = &self.numbers else { return Ok(valid) };
        let trie = self.vocabulary.trie();
        let (valid, minus_zero) = numbers.how_many(ids.iter().take(valid).map(|&id| trie.token(id)));
        if minus_zero && valid > 0 {
            let mut fraction: Vec<u32> = ids.iter().take(valid).copied().collect();
            fraction.extend(numbers.dot());
            let may_follow = self.matcher.validate_tokens(&fraction).map_err(engine)? > valid;
            return Ok(if may_follow { valid } else { valid - 1 });
        }
        Ok(valid)
    }

    fn rollback(&mut self, num_tokens: usize) -> Result<()> {
        let Some(left) = self.accepted.len().checked_sub(num_tokens) else {
            return Err(GrammarError::Engine {
                message: "more tokens to take back than there are".to_owned(),
            });
        };
        self.matcher.rollback(num_tokens).map_err(engine)?;
        self.accepted.truncate(left);
        if let Some(reading) = &mut self.reading {
            reading.cut(left);
        }
        if self.known_way.as_ref().is_some_and(|way| way.at > left) {
            self.known_way = None;
        }
        if let Some(numbers) = &mut self.numbers {
            numbers.rollback(num_tokens);
        }
        Ok(())
    }

    fn forced_tokens(&mut self) -> Vec<TokenId> {
        if self.matcher.is_stopped() {
            return Vec::new();
        }
        self.matcher.compute_ff_tokens().into_iter().map(TokenId).collect()
    }

    fn may_end(&mut self) -> Result<bool> {
        let ends = self.matcher.is_stopped() || self.matcher.is_accepting().map_err(engine)?;
        Ok(ends && self.numbers.as_ref().is_none_or(NumberGuard::may_end))
    }

    fn is_done(&mut self) -> Result<bool> {
        Ok(self.matcher.is_stopped())
    }

    fn is_free(&self) -> bool {
        self.numbers.as_ref().is_some_and(NumberGuard::is_outside)
    }

    fn shortest_end(&mut self, max_tokens: usize) -> Result<Option<Vec<TokenId>>> {
        end::find(self, max_tokens)
    }
}

/// Clears the bits from `len` on.
fn clear_beyond(mask: &mut [u32], len: usize) {
    if let Some(word) = mask.get_mut(len / 32) {
        *word &= (1_u32 << (len % 32)) - 1;
    }
    mask.iter_mut().skip(len / 32 + 1).for_each(|word| *word = 0);
}

fn engine(error: impl std::fmt::Display) -> GrammarError {
    GrammarError::Engine { message: first_line(&error) }
}

/// The engine's refusal of a spec.
fn refused(kind: &'static str, error: &impl std::fmt::Display) -> GrammarError {
    let message = first_line(error);
    let has = |text: &str| message.to_lowercase().contains(text);
    if has("unsatisfiable") || has("regex is empty") {
        GrammarError::Unsatisfiable { kind, message }
    } else if has("too large") || has("too big") || has("limit") || has("fuel") || has("too many") {
        GrammarError::TooLarge { kind, message }
    } else {
        GrammarError::Invalid { kind, message }
    }
}

fn first_line(error: &impl std::fmt::Display) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}
