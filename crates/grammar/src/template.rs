//! A compiled spec.

use std::sync::Arc;

use wardrobe_text::TokenId;

use crate::Session;
use crate::closed::ClosedSchema;
use crate::guidance::Grammar;

/// Whoever makes sessions of a constraint of the caller's own.
pub trait SessionSource: Send + Sync {
    /// A text that follows it from the beginning.
    fn session(&self) -> Box<dyn Session>;
}

/// What a spec was compiled to.
pub(crate) enum Compiled {
    Custom(Arc<dyn SessionSource>),
    Closed(Arc<ClosedSchema>),
    Guidance(Box<Grammar>),
}

impl Compiled {
    pub(crate) fn session(&self) -> Box<dyn Session> {
        match self {
            Compiled::Custom(source) => source.session(),
            Compiled::Closed(schema) => Box::new(schema.session()),
            Compiled::Guidance(grammar) => Box::new(grammar.session()),
        }
    }
}

/// A compiled spec, shared by all sequences that are held to it.
pub struct Template {
    compiled: Compiled,
    shortest: Box<[TokenId]>,
    warnings: Box<[String]>,
}

/// Which engine computes a template's masks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EngineKind {
    /// Sessions that the caller brought.
    Custom,
    /// An automaton of the whole text, for closed schemas: masks are looked up.
    Closed,
    /// `llguidance`: any grammar, each mask computed when it is asked for.
    Guidance,
}

impl std::fmt::Debug for Template {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Template")
            .field("engine", &self.engine())
            .field("shortest_tokens", &self.shortest.len())
            .field("warnings", &self.warnings)
            .finish()
    }
}

impl Template {
    pub(crate) fn new(compiled: Compiled, shortest: Vec<TokenId>, warnings: Vec<String>) -> Arc<Self> {
        Arc::new(Template { compiled, shortest: shortest.into(), warnings: warnings.into() })
    }

    /// Of a constraint of the caller's own. `shortest` is a text that it allows, without the token that ends it.
    pub fn custom(source: Arc<dyn SessionSource>, shortest: Vec<TokenId>) -> Arc<Self> {
        Template::new(Compiled::Custom(source), shortest, Vec::new())
    }

    /// A text that follows it from the beginning.
    pub fn session(&self) -> Box<dyn Session> {
        self.compiled.session()
    }

    /// A short text that it allows, without the token that ends it: this many tokens always do. It is the shortest for closed
    /// schemas; for GBNF it is but for tokens that a literal shares with what follows it; else it is the shortest that was found.
    pub fn shortest(&self) -> &[TokenId] {
        &self.shortest
    }

    /// What of the spec is not honoured.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Which engine it runs on.
    pub fn engine(&self) -> EngineKind {
        match self.compiled {
            Compiled::Custom(_) => EngineKind::Custom,
            Compiled::Closed(_) => EngineKind::Closed,
            Compiled::Guidance(_) => EngineKind::Guidance,
        }
    }
}
