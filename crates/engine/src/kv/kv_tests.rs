//! Properties of the KV bookkeeping under arbitrary sequences of operations.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use proptest::prelude::*;

use super::prefix::PrefixRoot;
use super::*;

const NUM_BLOCKS: usize = 12;

/// A sequence as the scheduler would keep it.
struct Holder {
    root: u8,
    tokens: Vec<TokenId>,
    keys: Vec<PrefixKey>,
    table: Vec<BlockId>,
    /// Blocks at the front of the table that are computed.
    computed: usize,
}

#[derive(Clone, Debug)]
enum Op {
    /// Start a sequence: which root, which of a few prompts, how many blocks of it.
    Start { root: u8, prompt: u8, blocks: usize },
    /// Compute the next block of a sequence.
    Compute { holder: usize },
    /// Give a sequence one more block.
    Grow { holder: usize },
    /// End a sequence.
    End { holder: usize },
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        (0..3_u8, 0..3_u8, 1..6_usize).prop_map(|(root, prompt, blocks)| Op::Start { root, prompt, blocks }),
        (0..8_usize).prop_map(|holder| Op::Compute { holder }),
        (0..8_usize).prop_map(|holder| Op::Compute { holder }),
        (0..8_usize).prop_map(|holder| Op::Grow { holder }),
        (0..8_usize).prop_map(|holder| Op::End { holder }),
    ]
}

/// Roots that differ in one part each.
fn root_key(root: u8) -> PrefixKey {
    PrefixKey::root(&match root {
        0 => PrefixRoot { model_digest: [1; 32], adapter: None, rope_idx: 0, salt: None },
        1 => PrefixRoot { model_digest: [1; 32], adapter: Some(([2; 32], 1.0)), rope_idx: 0, salt: None },
        _ => PrefixRoot { model_digest: [1; 32], adapter: None, rope_idx: 0, salt: Some("tenant") },
    })
}

fn tokens_of(prompt: u8, blocks: usize) -> Vec<TokenId> {
    // Prompts share their first block, then differ.
    (0..blocks * BLOCK_SIZE_TOKENS)
        .map(|i| TokenId(if i < BLOCK_SIZE_TOKENS { 7 } else { u32::from(prompt) * 100 + i as u32 }))
        .collect()
}

fn keys_of(root: u8, tokens: &[TokenId]) -> Vec<PrefixKey> {
    let mut parent = root_key(root);
    let chunks = tokens.chunks_exact(BLOCK_SIZE_TOKENS);
    let next = |chunk: &[TokenId]| {
        parent = parent.child(chunk);
        parent
    };
    chunks.map(next).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn conservation_no_aliasing_and_no_stale_content(ops in proptest::collection::vec(op(), 1..80)) {
        let mut kv = KvCache::new(NUM_BLOCKS, true);
        let mut holders: Vec<Holder> = Vec::new();
        // What each block really contains: root, and all tokens from the start through this block.
        let mut memory: BTreeMap<BlockId, (u8, Vec<TokenId>)> = BTreeMap::new();
        for op in ops {
            match op {
                Op::Start { root, prompt, blocks } => {
                    let tokens = tokens_of(prompt, blocks);
                    let keys = keys_of(root, &tokens);
                    let mut table = kv.acquire_prefix(&keys[..blocks - 1], &tokens);
                    for (idx, block) in table.iter().enumerate() {
                        let through = &tokens[..(idx + 1) * BLOCK_SIZE_TOKENS];
                        let (found_root, found) = &memory[block];
                        prop_assert_eq!(*found_root, root, "a hit crossed roots");
                        prop_assert_eq!(found.as_slice(), through, "a hit gave other content");
                    }
                    let computed = table.len();
                    let before = kv.num_available();
                    if kv.allocate(blocks - computed, &mut table) {
                        holders.push(Holder { root, tokens, keys, table, computed });
                    } else {
                        prop_assert!(before < blocks - computed);
                        kv.release(&table);
                    }
                }
                Op::Compute { holder } => {
                    let Some(holder) = holders.get_mut(holder) else { continue };
                    let idx = holder.computed;
                    if idx >= holder.keys.len() || idx >= holder.table.len() { continue }
                    let block = holder.table[idx];
                    prop_assert_eq!(kv.pool.num_holders(block), 1, "a written block has one holder");
                    let end = (idx + 1) * BLOCK_SIZE_TOKENS;
                    memory.insert(block, (holder.root, holder.tokens[..end].to_vec()));
                    kv.publish(holder.keys[idx], &holder.tokens[idx * BLOCK_SIZE_TOKENS..end], block);
                    holder.computed += 1;
                }
                Op::Grow { holder } => {
                    if let Some(holder) = holders.get_mut(holder) {
                        let available = kv.num_available();
                        prop_assert_eq!(kv.allocate(1, &mut holder.table), available > 0);
                    }
                }
                Op::End { holder } => {
                    if holder < holders.len() {
                        kv.release(&holders.remove(holder).table);
                    }
                }
            }
            let held: BTreeSet<BlockId> = holders.iter().flat_map(|h| h.table.iter().copied()).collect();
            prop_assert_eq!(kv.num_used(), held.len());
            prop_assert_eq!(kv.num_used() + kv.num_available(), NUM_BLOCKS);
            prop_assert!(kv.num_cached() <= kv.num_available());
            for block in &held {
                let holding = holders.iter().filter(|h| h.table.contains(block)).count();
                prop_assert_eq!(kv.pool.num_holders(*block) as usize, holding);
            }
            for holder in &holders {
                // Content that a sequence counts as computed is still what it computed.
                for (idx, block) in holder.table.iter().take(holder.computed).enumerate() {
                    let through = &holder.tokens[..(idx + 1) * BLOCK_SIZE_TOKENS];
                    prop_assert_eq!(&memory[block], &(holder.root, through.to_vec()));
                }
            }
        }
        for holder in holders.drain(..) {
            kv.release(&holder.table);
        }
        prop_assert_eq!(kv.num_used(), 0);
        prop_assert_eq!(kv.num_available(), NUM_BLOCKS);
    }

    #[test]
    fn roots_differ_in_every_part(
        digest in any::<[u8; 32]>(), adapter in any::<[u8; 32]>(), scale in -4.0_f32..4.0, salt in "[a-z]{0,8}",
    ) {
        let root = PrefixRoot { model_digest: digest, adapter: Some((adapter, scale)), rope_idx: 0, salt: Some(&salt) };
        let mut other_digest = digest;
        other_digest[31] ^= 1;
        let mut other_adapter = adapter;
        other_adapter[0] ^= 128;
        let longer = format!("{salt}x");
        let variants = [
            root,
            PrefixRoot { model_digest: other_digest, ..root },
            PrefixRoot { adapter: Some((other_adapter, scale)), ..root },
            PrefixRoot { adapter: Some((adapter, scale + 0.5)), ..root },
            PrefixRoot { adapter: None, ..root },
            PrefixRoot { rope_idx: 1, ..root },
            PrefixRoot { salt: Some(&longer), ..root },
            PrefixRoot { salt: None, ..root },
        ];
        let keys: HashSet<PrefixKey> = variants.iter().map(|v| PrefixKey::root(v)).collect();
        prop_assert_eq!(keys.len(), variants.len());
        let tokens = tokens_of(0, 1);
        let children: HashSet<PrefixKey> =
            variants.iter().map(|v| PrefixKey::root(v).child(&tokens)).collect();
        prop_assert_eq!(children.len(), variants.len());
    }
}

#[test]
fn the_end_of_a_prefix_is_evicted_before_its_start() {
    let mut kv = KvCache::new(4, true);
    let tokens = tokens_of(0, 3);
    let keys = keys_of(0, &tokens);
    let mut table = Vec::new();
    assert!(kv.allocate(3, &mut table));
    for (idx, block) in table.iter().enumerate() {
        kv.publish(keys[idx], &tokens[idx * BLOCK_SIZE_TOKENS..(idx + 1) * BLOCK_SIZE_TOKENS], *block);
    }
    kv.release(&table);
    assert_eq!((kv.num_cached(), kv.num_used()), (3, 0));
    let mut other = Vec::new();
    assert!(kv.allocate(2, &mut other));
    assert_eq!(kv.acquire_prefix(&keys, &tokens), table[..2]);
    assert!(!kv.allocate(1, &mut other));
    assert_eq!(other.len(), 2, "all or none");
}
