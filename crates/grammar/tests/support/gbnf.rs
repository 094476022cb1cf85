//! GBNF read and interpreted once more, as simply as can be: sets of places where something may end, remembered for each rule.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};

use wardrobe_grammar::Template;
use wardrobe_text::TokenId;

use super::generations::Random;

enum Node {
    Char(char),
    Class(Vec<(char, char)>, bool),
    Rule(usize),
    Sequence(Vec<Node>),
    Ways(Vec<Node>),
    Repeated(Box<Node>, u32, Option<u32>),
}

/// Where something may end, and how many bytes of it are beyond the text; these are 0 before the text's end.
type Places = BTreeMap<usize, u64>;

/// A grammar, to be asked.
pub struct Reference {
    rules: Vec<Node>,
    root: usize,
    /// Bytes of each rule's shortest text.
    least: Vec<Option<u64>>,
}

impl Reference {
    /// Of a grammar that is right.
    pub fn new(source: &str) -> Self {
        let mut reader = Reader { left: source.chars().collect(), names: HashMap::new() };
        reader.left.reverse();
        let mut rules = BTreeMap::new();
        reader.space(true);
        while !reader.left.is_empty() {
            let rule = reader.rule();
            reader.space(false);
            "::=".chars().for_each(|c| assert!(reader.take(c), "`::=` before {:?}", reader.left.last()));
            reader.space(true);
            rules.insert(rule, reader.ways(false));
            reader.space(true);
        }
        let root = reader.names["root"];
        assert!(rules.keys().copied().eq(0..reader.names.len()), "rules without ways");
        let mut reference =
            Reference { least: vec![None; rules.len()], rules: rules.into_values().collect(), root };
        loop {
            let least: Vec<_> = reference.rules.iter().map(|rule| reference.least(rule)).collect();
            if least == reference.least {
                return reference;
            }
            reference.least = least;
        }
    }

    fn least(&self, node: &Node) -> Option<u64> {
        match node {
            Node::Char(c) => Some(c.len_utf8() as u64),
            Node::Class(ranges, false) => ranges.iter().map(|(first, _)| first.len_utf8() as u64).min(),
            Node::Class(..) => {
                let mut all =
                    ['\0', '\u{80}', '\u{800}', '\u{10000}'].into_iter().flat_map(|band| band..=char::MAX);
                all.find(|c| is_in(node, *c)).map(|c| c.len_utf8() as u64)
            }
            Node::Rule(rule) => self.least[*rule],
            Node::Sequence(parts) => parts.iter().map(|part| self.least(part)).sum(),
            Node::Ways(ways) => ways.iter().filter_map(|way| self.least(way)).min(),
            Node::Repeated(_, 0, _) => Some(0),
            Node::Repeated(node, min, _) => Some(self.least(node)? * u64::from(*min)),
        }
    }

    /// The fewest bytes that make this text, with them after it, one of the grammar; `None` if nothing does. Characters that
    /// are not complete at the end are to be left off.
    pub fn missing(&self, text: &str) -> Option<u64> {
        let text: Vec<char> = text.chars().collect();
        let known = RefCell::default();
        let asked = Asked { grammar: self, text: &text, known };
        asked.ends(&Node::Rule(self.root), 0).get(&text.len()).copied()
    }

    /// Whether this is a text of the grammar.
    pub fn accepts(&self, text: &str) -> bool {
        self.missing(text) == Some(0)
    }
}

fn is_in(node: &Node, c: char) -> bool {
    match node {
        Node::Char(own) => *own == c,
        Node::Class(ranges, negated) => {
            ranges.iter().any(|(first, last)| (*first..=*last).contains(&c)) != *negated
        }
        _ => false,
    }
}

/// Draws tokens of masks over [`super::bytes_alone`], and holds the way to the end against the fewest bytes that are missing.
pub fn check_ways(template: &Template, reference: &Reference, random: &mut Random, num: usize) {
    let mut session = template.session();
    let mut taken: Vec<u8> = Vec::new();
    let mut mask = vec![0; 9];
    for _ in 0..num {
        session.fill_mask(&mut mask).unwrap();
        let allowed: Vec<u32> = (0..256).filter(|id| mask[*id as usize / 32] >> (id % 32) & 1 == 1).collect();
        if allowed.is_empty() {
            return;
        }
        let token = TokenId(allowed[random.below(allowed.len())]);
        session.accept(token).unwrap();
        taken.push(token.0 as u8);
        let way = session.shortest_end(1000).unwrap();
        let Ok(text) = std::str::from_utf8(&taken) else {
            assert!(way.is_some());
            continue;
        };
        let way_len = way.as_ref().map(|way| way.len() as u64);
        assert_eq!(way_len, reference.missing(text), "{text:?}");
        match way {
            None => {
                session.rollback(1).unwrap();
                taken.pop();
            }
            Some(way) if random.below(4) == 0 => {
                // It leads there, and taking it back leaves no trace.
                way.iter().for_each(|token| session.accept(*token).unwrap());
                assert!(session.may_end().unwrap());
                session.rollback(way.len()).unwrap();
                assert_eq!(session.shortest_end(1000).unwrap().map(|way| way.len() as u64), way_len);
                let back = random.below(taken.len().min(3));
                session.rollback(back).unwrap();
                taken.truncate(taken.len() - back);
            }
            Some(_) => {}
        }
    }
}

struct Asked<'a> {
    grammar: &'a Reference,
    text: &'a [char],
    known: RefCell<HashMap<(usize, usize), Places>>,
}

impl Asked<'_> {
    fn ends(&self, node: &Node, at: usize) -> Places {
        let Some(&next) = self.text.get(at) else {
            return self.grammar.least(node).map(|least| (at, least)).into_iter().collect();
        };
        match node {
            Node::Char(_) | Node::Class(..) => is_in(node, next).then_some((at + 1, 0)).into_iter().collect(),
            Node::Rule(rule) => {
                if let Some(known) = self.known.borrow().get(&(*rule, at)) {
                    return known.clone();
                }
                let ends = self.ends(&self.grammar.rules[*rule], at);
                self.known.borrow_mut().insert((*rule, at), ends.clone());
                ends
            }
            Node::Sequence(parts) => {
                parts.iter().fold(Places::from([(at, 0)]), |places, part| self.step(&places, part))
            }
            Node::Ways(ways) => {
                let mut found = Places::new();
                for way in ways {
                    merge(&mut found, &self.ends(way, at));
                }
                found
            }
            Node::Repeated(node, min, max) => {
                let mut places = Places::from([(at, 0)]);
                for _ in 0..*min {
                    places = self.step(&places, node);
                }
                let mut found = places.clone();
                for _ in 0..max.map_or(u32::MAX, |max| max - min) {
                    places = self.step(&places, node);
                    if !merge(&mut found, &places) {
                        break;
                    }
                }
                found
            }
        }
    }

    fn step(&self, places: &Places, node: &Node) -> Places {
        let mut found = Places::new();
        for (place, beyond) in places {
            let ends = self.ends(node, *place).into_iter().map(|(end, more)| (end, beyond + more)).collect();
            merge(&mut found, &ends);
        }
        found
    }
}

/// Adds what is new or nearer; gives whether anything was.
fn merge(into: &mut Places, from: &Places) -> bool {
    let mut is_new = false;
    for (end, beyond) in from {
        if into.get(end).is_none_or(|known| beyond < known) {
            into.insert(*end, *beyond);
            is_new = true;
        }
    }
    is_new
}

struct Reader {
    /// The last is next.
    left: Vec<char>,
    names: HashMap<String, usize>,
}

impl Reader {
    fn take(&mut self, c: char) -> bool {
        self.left.pop_if(|next| *next == c).is_some()
    }

    fn space(&mut self, lines: bool) {
        loop {
            if self.take('#') {
                while self.left.pop_if(|c| *c != '\n').is_some() {}
            } else if self
                .left
                .pop_if(|c| *c == ' ' || *c == '\t' || lines && matches!(c, '\n' | '\r'))
                .is_none()
            {
                return;
            }
        }
    }

    fn rule(&mut self) -> usize {
        let mut name = String::new();
        while let Some(c) = self.left.pop_if(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_')) {
            name.push(c);
        }
        assert!(!name.is_empty(), "a name before {:?}", self.left.last());
        let next = self.names.len();
        *self.names.entry(name).or_insert(next)
    }

    fn ways(&mut self, in_group: bool) -> Node {
        let mut ways = vec![self.sequence(in_group)];
        while self.take('|') {
            self.space(true);
            ways.push(self.sequence(in_group));
        }
        Node::Ways(ways)
    }

    fn sequence(&mut self, in_group: bool) -> Node {
        let mut parts = Vec::new();
        loop {
            let mut part = match self.left.last() {
                Some('"') => {
                    self.left.pop();
                    let mut chars = Vec::new();
                    while !self.take('"') {
                        chars.push(Node::Char(self.character()));
                    }
                    Node::Sequence(chars)
                }
                Some('[') => {
                    self.left.pop();
                    let is_negated = self.take('^');
                    let mut ranges = Vec::new();
                    while !self.take(']') {
                        let first = self.character();
                        let is_range = self.left.ends_with(&['-']) && !self.left.ends_with(&[']', '-']);
                        let last = if is_range { self.left.pop().map(|_| self.character()) } else { None };
                        ranges.push((first, last.unwrap_or(first)));
                    }
                    Node::Class(ranges, is_negated)
                }
                Some('.') => {
                    self.left.pop();
                    Node::Class(Vec::new(), true)
                }
                Some('(') => {
                    self.left.pop();
                    self.space(true);
                    let ways = self.ways(true);
                    assert!(self.take(')'));
                    ways
                }
                Some(c) if c.is_ascii_alphanumeric() => Node::Rule(self.rule()),
                _ => return Node::Sequence(parts),
            };
            loop {
                self.space(in_group);
                let (min, max) = match self.left.last() {
                    Some('*') => (0, None),
                    Some('+') => (1, None),
                    Some('?') => (0, Some(1)),
                    Some('{') => {
                        let mut bounds = String::new();
                        while let Some(c) = self.left.pop_if(|c| *c != '}') {
                            bounds.push(c);
                        }
                        let bounds = bounds.trim_start_matches('{');
                        match bounds.split_once(',') {
                            None => (bounds.trim().parse().unwrap(), bounds.trim().parse().ok()),
                            Some((min, max)) => (min.trim().parse().unwrap(), max.trim().parse().ok()),
                        }
                    }
                    _ => break,
                };
                self.left.pop();
                part = Node::Repeated(Box::new(part), min, max);
            }
            parts.push(part);
        }
    }

    fn character(&mut self) -> char {
        let c = self.left.pop().unwrap();
        if c != '\\' {
            return c;
        }
        let escape = self.left.pop().unwrap();
        let digits = match escape {
            'x' => 2,
            'u' => 4,
            'U' => 8,
            'n' => return '\n',
            'r' => return '\r',
            't' => return '\t',
            other => return other,
        };
        let hex: String = (0..digits).map(|_| self.left.pop().unwrap()).collect();
        char::from_u32(u32::from_str_radix(&hex, 16).unwrap()).unwrap()
    }
}
