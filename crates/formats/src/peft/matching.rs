//! Which modules a configuration means, by the rules of PEFT (`check_target_module_exists`, `get_pattern_key`).
//!
//! Patterns come from files that nobody vouches for. They run in linear time (the `regex` crate) and within limits on
//! their number and compiled size; a pattern made of plain names, as nearly all are, is compared without an engine.
//! What Python's `re` has beyond that (look-around, back-references) is refused by name.

use std::collections::HashSet;
use std::path::Path;

use regex::{Regex, RegexBuilder};

use super::config::{AdapterConfig, ModuleSelector};
use crate::error::{FormatError, Result, shorten};

const MAX_PATTERN_BYTES: usize = 16 << 10;
const MAX_COMPILED_BYTES: usize = 256 << 10;
const MAX_NESTING: u32 = 50;
/// Patterns in one configuration that need an engine.
const MAX_REGEXES: usize = 64;
/// Patterns in one map.
const MAX_PATTERNS: usize = 65_536;
/// Modules that PEFT takes for the embedding and the head when it stores them of its own accord.
pub(super) const EMBEDDING_NAMES: [&str; 2] = ["embed_tokens", "lm_head"];
/// What `all-linear` leaves out: heads, as architectures call them.
const HEAD_NAMES: [&str; 2] = ["lm_head", "embed_out"];

/// Whether a model's module of this path is its head, which `all-linear` leaves out.
pub fn is_head(module_path: &str) -> bool {
    HEAD_NAMES.contains(&module_path.rsplit('.').next().unwrap_or(module_path))
}

pub(super) struct Matcher<'a> {
    config: &'a AdapterConfig,
    targets: Selector,
    excluded: Option<Selector>,
    /// `modules_to_save`, each as a module that lies in or is one of that name.
    saved: Vec<Regex>,
    /// Give the layer's index as their first group.
    layers: Vec<Regex>,
    ranks: Vec<(Pattern, usize)>,
    alphas: Vec<(Pattern, f64)>,
}

enum Selector {
    Names(HashSet<String>),
    Whole(Regex),
    AllLinear,
}

enum Pattern {
    /// Letters, digits, `_` and `.`, which as in a regular expression stands for any character.
    Plain(String),
    Regex(Regex),
}

impl<'a> Matcher<'a> {
    pub(super) fn new(path: &Path, config: &'a AdapterConfig) -> Result<Self> {
        let mut compiler = Compiler { path, num_regexes: 0 };
        let ranks = compiler.patterns("rank_pattern", &config.rank_pattern)?;
        let alphas = compiler.patterns("alpha_pattern", &config.alpha_pattern)?;
        let mut saved = Vec::new();
        for name in bounded(path, "modules_to_save", &config.modules_to_save)? {
            saved.push(compiler.regex("modules_to_save", name, r"\A(?:.*\.)?", r"(?:\z|\.)")?);
        }
        let mut layers = Vec::new();
        for name in bounded(path, "layers_pattern", &config.layers_pattern)? {
            layers.push(compiler.regex("layers_pattern", name, r"\A(?:.*?\.)?", r"\.(?P<idx>[0-9]+)\.")?);
        }
        if layers.is_empty() && config.layers_to_transform.is_some() {
            layers.push(compiler.regex("layers_pattern", r".*?\.[^.]*", r"\A", r"\.(?P<idx>[0-9]+)\.")?);
        }
        Ok(Self {
            config,
            targets: compiler.selector("target_modules", &config.target_modules)?,
            excluded: match &config.exclude_modules {
                Some(selector) => Some(compiler.selector("exclude_modules", selector)?),
                None => None,
            },
            saved,
            layers,
            ranks,
            alphas,
        })
    }

    /// Whether the module has factors.
    pub(super) fn targets(&self, module: &str) -> bool {
        if self.excluded.as_ref().is_some_and(|s| s.matches(module)) || self.is_in_saved(module) {
            return false;
        }
        self.targets.matches(module)
            && match (&self.targets, &self.config.layers_to_transform) {
                // PEFT reads layers_to_transform beside a list only, and not for a name given in full.
                (Selector::Names(names), Some(layers)) if !names.contains(module) => {
                    self.layer_idx(module).is_some_and(|idx| layers.contains(&idx))
                }
                _ => true,
            }
    }

    /// Whether the module is stored whole: its path or the start of it up to a dot ends in one of `modules_to_save`
    /// (PEFT compares ends of strings there, not of segments), or it is an embedding or head, which PEFT stores of
    /// its own accord when the vocabulary was resized.
    pub(super) fn saves(&self, module: &str) -> bool {
        let last = module.rsplit('.').next().unwrap_or(module);
        let starts = module.match_indices('.').filter_map(|(dot, _)| module.get(..dot)).chain([module]);
        EMBEDDING_NAMES.contains(&last)
            || starts
                .into_iter()
                .any(|start| self.config.modules_to_save.iter().any(|name| start.ends_with(name)))
    }

    pub(super) fn rank(&self, module: &str) -> usize {
        first_match(&self.ranks, module).unwrap_or(self.config.r)
    }

    pub(super) fn alpha(&self, module: &str) -> f64 {
        first_match(&self.alphas, module).unwrap_or(self.config.alpha)
    }

    fn is_in_saved(&self, module: &str) -> bool {
        self.saved.iter().any(|regex| regex.is_match(module))
    }

    /// The first number that follows a module list: any, or one that `layers_pattern` names.
    fn layer_idx(&self, module: &str) -> Option<usize> {
        let found = self.layers.iter().find_map(|regex| regex.captures(module))?;
        found.name("idx")?.as_str().parse().ok()
    }
}

/// Which modules a configuration gives factors, asked with the paths of a model's modules.
///
/// A target is what PEFT would have put factors on: `exclude_modules`, `modules_to_save` and `layers_to_transform` are
/// taken into account.
pub struct Targets<'a>(Matcher<'a>);

impl<'a> Targets<'a> {
    pub(super) fn new(path: &Path, config: &'a AdapterConfig) -> Result<Self> {
        Matcher::new(path, config).map(Self)
    }

    /// Whether the module of this path has factors in a whole adapter.
    pub fn contains(&self, module_path: &str) -> bool {
        self.0.targets(module_path)
    }

    /// The first entry of a `target_modules` list by whose name none of `module_paths` goes. Entries whose modules are
    /// excluded otherwise do name them. `None` also for a pattern.
    pub fn entry_without_module<'p>(
        &self,
        module_paths: impl IntoIterator<Item = &'p str>,
    ) -> Option<&'a str> {
        let ModuleSelector::List(entries) = &self.0.config.target_modules else { return None };
        let named: HashSet<&str> = module_paths.into_iter().flat_map(tails).collect();
        entries.iter().map(String::as_str).find(|entry| !named.contains(entry))
    }
}

impl std::fmt::Debug for Targets<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Targets").field(&self.0.config.target_modules).finish()
    }
}

/// The path, and what follows each of its dots.
fn tails(module: &str) -> impl Iterator<Item = &str> {
    let after_dots = module.match_indices('.').filter_map(|(dot, _)| module.get(dot + 1..));
    std::iter::once(module).chain(after_dots)
}

fn first_match<T: Copy>(patterns: &[(Pattern, T)], module: &str) -> Option<T> {
    patterns.iter().find(|(pattern, _)| pattern.matches_tail(module)).map(|(_, value)| *value)
}

fn bounded<'a, T>(path: &Path, key: &str, list: &'a [T]) -> Result<&'a [T]> {
    if list.len() > MAX_PATTERNS {
        let what = format!("number of entries of {key}");
        return Err(FormatError::limit(path, what, MAX_PATTERNS as u64, list.len() as u64));
    }
    Ok(list)
}

impl Selector {
    fn matches(&self, module: &str) -> bool {
        match self {
            Self::Names(names) => tails(module).any(|tail| names.contains(tail)),
            Self::Whole(regex) => regex.is_match(module),
            Self::AllLinear => {
                let last = module.rsplit('.').next().unwrap_or(module);
                !EMBEDDING_NAMES.contains(&last) && !is_head(module)
            }
        }
    }
}

impl Pattern {
    /// `(.*\.)?(pattern)$`: the whole path, or its end after a dot. Regexes were compiled with that around them.
    fn matches_tail(&self, module: &str) -> bool {
        match self {
            Self::Regex(regex) => regex.is_match(module),
            Self::Plain(name) => {
                let Some(start) = module.len().checked_sub(name.len()) else { return false };
                let at_boundary = start == 0 || module.as_bytes().get(start - 1) == Some(&b'.');
                at_boundary && module.get(start..).is_some_and(|tail| plain_eq(name, tail))
            }
        }
    }
}

/// Equality in which a dot of the pattern stands for any character; both are ASCII.
fn plain_eq(pattern: &str, text: &str) -> bool {
    pattern.len() == text.len() && pattern.bytes().zip(text.bytes()).all(|(p, t)| p == b'.' || p == t)
}

struct Compiler<'a> {
    path: &'a Path,
    num_regexes: usize,
}

impl Compiler<'_> {
    fn selector(&mut self, key: &str, selector: &ModuleSelector) -> Result<Selector> {
        Ok(match selector {
            ModuleSelector::List(names) => Selector::Names(names.iter().cloned().collect()),
            ModuleSelector::Regex(pattern) => Selector::Whole(self.regex(key, pattern, r"\A", r"\z")?),
            ModuleSelector::AllLinear => Selector::AllLinear,
        })
    }

    fn patterns<T: Copy>(&mut self, key: &str, patterns: &[(String, T)]) -> Result<Vec<(Pattern, T)>> {
        bounded(self.path, key, patterns)?
            .iter()
            .map(|(pattern, value)| Ok((self.pattern(key, pattern, r"\A(?:.*\.)?", r"\z")?, *value)))
            .collect()
    }

    fn pattern(&mut self, key: &str, pattern: &str, before: &str, after: &str) -> Result<Pattern> {
        if pattern.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'.') {
            return Ok(Pattern::Plain(pattern.to_owned()));
        }
        self.regex(key, pattern, before, after).map(Pattern::Regex)
    }

    fn regex(&mut self, key: &str, pattern: &str, before: &str, after: &str) -> Result<Regex> {
        let limit = |what: &str, limit: usize, actual: usize| {
            FormatError::limit(self.path, format!("{what} of {key}"), limit as u64, actual as u64)
        };
        if pattern.len() > MAX_PATTERN_BYTES {
            return Err(limit("length in bytes of a pattern", MAX_PATTERN_BYTES, pattern.len()));
        }
        if self.num_regexes >= MAX_REGEXES {
            return Err(limit("number of regular expressions", MAX_REGEXES, self.num_regexes + 1));
        }
        self.num_regexes += 1;
        // First alone: a pattern with a stray parenthesis must not pair with the ones put around it.
        self.compile(key, pattern, pattern)?;
        self.compile(key, pattern, &format!("{before}(?:{pattern}){after}"))
    }

    fn compile(&self, key: &str, pattern: &str, whole: &str) -> Result<Regex> {
        RegexBuilder::new(whole)
            .size_limit(MAX_COMPILED_BYTES)
            .dfa_size_limit(4 * MAX_COMPILED_BYTES)
            .nest_limit(MAX_NESTING)
            .build()
            .map_err(|e| {
                let reason = match e {
                    regex::Error::CompiledTooBig(_) => "too large".to_owned(),
                    // The last line of the report is the reason; the lines before draw the pattern.
                    other => other.to_string().lines().last().unwrap_or_default().trim().to_owned(),
                };
                let expected = "a regular expression without look-around and back-references";
                FormatError::key(self.path, key, expected, format!("{:?} ({reason})", shorten(pattern)))
            })
    }
}
