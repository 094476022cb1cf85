//! Random texts from masks: every token is drawn from those that a session allows. Tests use this, and programs that measure.

use wardrobe_grammar::{Session, Template, Vocabulary};
use wardrobe_text::{TokenId, Tokenizer};

/// SplitMix64.
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`, which is not 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

/// Tokens between which a draw leans: a text of tokens that are equally likely hardly ever ends.
pub struct Leaning {
    /// Those that begin by closing something.
    closing: Vec<u32>,
    /// Those of a byte or two.
    short: Vec<u32>,
}

impl Leaning {
    pub fn new(tokenizer: &Tokenizer, vocabulary: &Vocabulary) -> Self {
        let mut leaning =
            Leaning { closing: vec![0; vocabulary.mask_len()], short: vec![0; vocabulary.mask_len()] };
        for (id, bytes) in tokenizer.tokens() {
            let bit = 1 << (id.0 % 32);
            let is_end = vocabulary.ends().contains(&id);
            if is_end || bytes.first().is_some_and(|first| b"\"}]".contains(first)) {
                leaning.closing[id.index() / 32] |= bit;
            }
            if bytes.len() <= 2 {
                leaning.short[id.index() / 32] |= bit;
            }
        }
        leaning
    }
}

fn draw(mask: impl Iterator<Item = u32> + Clone, random: &mut Random) -> Option<TokenId> {
    let all: usize = mask.clone().map(|word| word.count_ones() as usize).sum();
    if all == 0 {
        return None;
    }
    let mut left = random.below(all);
    for (idx, mut word) in mask.enumerate() {
        let ones = word.count_ones() as usize;
        if left >= ones {
            left -= ones;
            continue;
        }
        (0..left).for_each(|_| word &= word - 1);
        return Some(TokenId(idx as u32 * 32 + word.trailing_zeros()));
    }
    None
}

/// A text, and how it came to its end.
#[derive(Debug)]
pub struct Generated {
    pub tokens: Vec<TokenId>,
    /// The budget had a say in it.
    pub is_cut: bool,
}

/// Draws a text of `max_tokens` at most, by the rule that the engine has for budgets: after every token a way to the end is
/// known that fits what is left.
///
/// # Errors
/// What was wrong, with the text so far: an empty mask, a token of a mask that is not accepted, no way to the end.
pub fn generate(
    template: &Template,
    leaning: &Leaning,
    ends: &[TokenId],
    max_tokens: usize,
    random: &mut Random,
) -> Result<Generated, (String, Vec<TokenId>)> {
    let mut text = Text { session: template.session(), tokens: Vec::new(), way: None, is_cut: false };
    let outcome = text.run(leaning, ends, max_tokens, random);
    let Text { tokens, is_cut, .. } = text;
    match outcome {
        Ok(()) => Ok(Generated { tokens, is_cut }),
        Err(message) => Err((message, tokens)),
    }
}

struct Text {
    session: Box<dyn Session>,
    tokens: Vec<TokenId>,
    way: Option<Vec<TokenId>>,
    is_cut: bool,
}

impl Text {
    fn run(
        &mut self,
        leaning: &Leaning,
        ends: &[TokenId],
        max_tokens: usize,
        random: &mut Random,
    ) -> Result<(), String> {
        let mut mask = vec![0; leaning.closing.len()];
        while self.tokens.len() < max_tokens {
            self.session.fill_mask(&mut mask).map_err(text)?;
            let leaned = match random.below(8) {
                0..3 => draw(mask.iter().zip(&leaning.closing).map(|(a, b)| a & b), random),
                3..6 => draw(mask.iter().zip(&leaning.short).map(|(a, b)| a & b), random),
                _ => None,
            };
            let Some(token) = leaned.or_else(|| draw(mask.iter().copied(), random)) else {
                return Err("the mask is empty".to_owned());
            };
            let known = self.session.validate(&[token]).map_err(text)? == 1 || ends.contains(&token);
            self.session.accept(token).map_err(|error| format!("a token of the mask: {error}"))?;
            if !known {
                return Err(format!("token {token} of the mask is not valid"));
            }
            if ends.contains(&token) {
                return Ok(());
            }
            let before = self.way.take();
            let left = max_tokens - self.tokens.len() - 1;
            if self.has_way(token, before.as_deref(), left)? {
                self.tokens.push(token);
            } else {
                self.session.rollback(1).map_err(text)?;
                self.is_cut = true;
                let way = match before {
                    Some(way) => way,
                    None => self
                        .session
                        .shortest_end(left + 1)
                        .map_err(text)?
                        .ok_or("there is no way to the end")?,
                };
                let Some((&first, rest)) = way.split_first() else { return Ok(()) };
                self.session.accept(first).map_err(|error| format!("a token of the way: {error}"))?;
                self.tokens.push(first);
                self.way = Some(rest.to_vec());
            }
            if random.below(2) == 0 {
                self.force(max_tokens)?;
            }
            if self.session.is_done().map_err(text)? {
                return Ok(());
            }
        }
        self.is_cut = true;
        if self.session.may_end().map_err(text)? {
            Ok(())
        } else {
            Err("the budget ends in the middle".to_owned())
        }
    }

    /// Takes what has no alternative.
    fn force(&mut self, max_tokens: usize) -> Result<(), String> {
        loop {
            let run = self.session.forced_tokens();
            if run.is_empty() {
                return Ok(());
            }
            for token in run {
                if self.tokens.len() >= max_tokens {
                    return Ok(());
                }
                self.session.accept(token).map_err(|error| format!("a forced token: {error}"))?;
                let before = self.way.take();
                if !self.has_way(token, before.as_deref(), max_tokens - self.tokens.len() - 1)? {
                    self.session.rollback(1).map_err(text)?;
                    self.way = before;
                    return Ok(());
                }
                self.tokens.push(token);
            }
        }
    }

    fn has_way(&mut self, token: TokenId, before: Option<&[TokenId]>, left: usize) -> Result<bool, String> {
        self.way = match before.and_then(<[_]>::split_first) {
            Some((first, rest)) if *first == token => Some(rest.to_vec()),
            _ => self.session.shortest_end(left).map_err(text)?,
        };
        Ok(self.way.as_ref().is_some_and(|way| way.len() <= left))
    }
}

fn text(error: wardrobe_grammar::GrammarError) -> String {
    error.to_string()
}
