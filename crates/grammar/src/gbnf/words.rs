//! The tokens of a vocabulary by their bytes, for finding which of them a text begins with.
//!
//! The vocabulary's own trie is laid out for going through all of it; one step down from its root looks at some hundred places
//! far apart. Here the children of a node lie side by side.

use std::collections::VecDeque;

use wardrobe_text::TokenId;

use crate::vocabulary::Vocabulary;

/// A trie over the bytes of tokens that may be part of a text.
pub(crate) struct Words {
    nodes: Vec<Node>,
}

#[derive(Clone, Copy)]
struct Node {
    byte: u8,
    token: Option<TokenId>,
    /// The first child; they are in the order of their bytes.
    children: u32,
    num_children: u16,
}

impl Words {
    /// Takes some tens of milliseconds for a large vocabulary.
    pub(crate) fn new(vocabulary: &Vocabulary) -> Self {
        let ids = (0..vocabulary.len() as u32).map(TokenId);
        let mut sorted: Vec<(&[u8], TokenId)> =
            ids.filter_map(|id| vocabulary.bytes(id).map(|bytes| (bytes, id))).collect();
        sorted.sort_unstable();
        let new = |byte| Node { byte, token: None, children: 0, num_children: 0 };
        let mut nodes = vec![new(0)];
        // Nodes whose children are still to be made, with the words below them and how many bytes of these lead there.
        let mut left = VecDeque::from([(0_usize, sorted.as_slice(), 0_usize)]);
        while let Some((idx, words, depth)) = left.pop_front() {
            let num_whole = words.iter().take_while(|(bytes, _)| bytes.len() == depth).count();
            let token = words.first().filter(|_| num_whole > 0).map(|(_, id)| *id);
            let children = nodes.len() as u32;
            let byte_of = |word: &(&[u8], TokenId)| word.0.get(depth).copied();
            for group in words.get(num_whole..).unwrap_or_default().chunk_by(|a, b| byte_of(a) == byte_of(b))
            {
                left.push_back((nodes.len(), group, depth + 1));
                nodes.push(new(group.first().and_then(byte_of).unwrap_or_default()));
            }
            let num_children = (nodes.len() - children as usize) as u16;
            if let Some(node) = nodes.get_mut(idx) {
                *node = Node { token, children, num_children, ..*node };
            }
        }
        Words { nodes }
    }

    fn child(&self, node: &Node, byte: u8) -> Option<&Node> {
        let start = node.children as usize;
        let children = self.nodes.get(start..start + usize::from(node.num_children))?;
        children.binary_search_by_key(&byte, |child| child.byte).ok().and_then(|idx| children.get(idx))
    }

    /// How many bytes of a text's beginning tokens have, and which these are; short ones first.
    pub(super) fn prefixes(&self, text: &[u8]) -> impl Iterator<Item = (usize, TokenId)> {
        let mut node = self.nodes.first();
        let steps = text.iter().map_while(move |byte| {
            node = self.child(node?, *byte);
            node
        });
        steps.enumerate().filter_map(|(idx, node)| Some((idx + 1, node.token?)))
    }
}
