use std::sync::Arc;

use super::*;
use crate::adapter::limits::RegistryLimits;
use crate::adapter::registry::AdapterRegistry;
use crate::kv::prefix::{PrefixKey, PrefixRoot};

fn scheduler(num_blocks: usize, config: &EngineConfig) -> Scheduler {
    let limits = RegistryLimits {
        max_host_bytes: 1,
        max_device_bytes: 1,
        max_adapters: 1,
        max_name_bytes: 1,
        num_slots: 0,
    };
    let slots = SlotTable::new(0, Arc::new(AdapterRegistry::new(limits)));
    Scheduler::new(config, KvCache::new(num_blocks, true), slots)
}

fn config() -> EngineConfig {
    EngineConfig {
        max_num_sequences: 8,
        max_batch_tokens: 32,
        max_chunk_tokens: 16,
        ..EngineConfig::default()
    }
}

/// Adds a sequence whose prompt is its own.
fn add(scheduler: &mut Scheduler, id: u64, priority: i32, num_tokens: usize) {
    scheduler.add(NewSequence {
        id: SequenceId(id),
        priority,
        prompt: vec![TokenId(id as u32); num_tokens].into(),
        root: PrefixKey::root(&PrefixRoot { model_digest: [0; 32], adapter: None, rope_idx: 0, salt: None }),
        lease: None,
        readable_prefix_tokens: usize::MAX,
    });
}

/// One step: every row is computed, and who reached its end gets a token. Gives (id, start, length).
fn step(scheduler: &mut Scheduler) -> Vec<(u64, usize, usize)> {
    let rows = scheduler.schedule().rows;
    for row in &rows {
        scheduler.advance(row.sequence, row.len);
        if scheduler.get(row.sequence).is_some_and(|sequence| sequence.remaining() == 0) {
            scheduler.append(row.sequence, TokenId(99));
        }
    }
    rows.iter().map(|row| (row.sequence.0, row.start, row.len)).collect()
}

#[test]
fn decoding_rows_come_first_and_prompts_share_the_rest() {
    let mut scheduler = scheduler(64, &config());
    add(&mut scheduler, 1, 0, 4);
    assert_eq!(step(&mut scheduler), [(1, 0, 4)]);
    add(&mut scheduler, 2, 0, 40);
    add(&mut scheduler, 3, 0, 40);
    // 32 tokens: one decodes, a chunk for the older prompt, what is left for the younger.
    assert_eq!(step(&mut scheduler), [(1, 4, 1), (2, 0, 16), (3, 0, 15)]);
    assert_eq!(step(&mut scheduler), [(1, 5, 1), (2, 16, 16), (3, 15, 15)]);
    assert_eq!(step(&mut scheduler), [(1, 6, 1), (2, 32, 8), (3, 30, 10)]);
    assert_eq!(step(&mut scheduler), [(1, 7, 1), (2, 40, 1), (3, 40, 1)]);
}

#[test]
fn less_important_and_younger_sequences_wait() {
    let config = EngineConfig { max_num_sequences: 2, ..config() };
    let mut scheduler = scheduler(64, &config);
    for (id, priority) in [(1, 1), (2, 0), (3, 0)] {
        add(&mut scheduler, id, priority, 4);
    }
    assert_eq!(step(&mut scheduler), [(2, 0, 4), (3, 0, 4)]);
    scheduler.finish(SequenceId(2));
    assert_eq!(step(&mut scheduler), [(1, 0, 4), (3, 4, 1)]);
}

#[test]
fn the_last_in_rank_loses_its_blocks_and_the_first_never() {
    let mut scheduler = scheduler(4, &config());
    add(&mut scheduler, 1, 0, 15);
    add(&mut scheduler, 2, 0, 15);
    let mut last_start = 0;
    for _ in 0..60 {
        let rows = step(&mut scheduler);
        let first = rows.iter().find(|row| row.0 == 1).expect("the first always advances");
        assert!(first.1 >= last_start, "the first never starts again");
        last_start = first.1;
        if scheduler.get(SequenceId(1)).is_some_and(|sequence| sequence.tokens.len() == 60) {
            break;
        }
    }
    assert!(scheduler.counters().preemptions > 0);
    assert_eq!(scheduler.get(SequenceId(1)).map(|sequence| sequence.preemptions), Some(0));
    scheduler.finish(SequenceId(1));
    assert!(step(&mut scheduler).iter().any(|row| row.0 == 2), "the second comes back");
    scheduler.finish(SequenceId(2));
    assert_eq!((scheduler.kv().num_used(), scheduler.num_running(), scheduler.num_waiting()), (0, 0, 0));
}

#[test]
fn a_sequence_too_large_for_now_blocks_those_behind_it() {
    let mut scheduler = scheduler(4, &config());
    add(&mut scheduler, 1, 0, 30);
    step(&mut scheduler);
    add(&mut scheduler, 2, 0, 60);
    add(&mut scheduler, 3, 0, 1);
    // Otherwise a stream of small ones could keep the large one out for ever.
    assert!(step(&mut scheduler).iter().all(|row| row.0 == 1));
    scheduler.finish(SequenceId(1));
    assert_eq!(step(&mut scheduler)[0].0, 2);
}

#[test]
fn work_in_the_background_leaves_the_steps_of_others_small() {
    let mut scheduler = scheduler(64, &config());
    for id in 1..=6 {
        add(&mut scheduler, id, BACKGROUND_PRIORITY, 4);
    }
    let turn = |scheduler: &mut Scheduler, held: &[u64]| {
        for id in 1..=9 {
            if let Some(sequence) = scheduler.get_mut(SequenceId(id)) {
                sequence.held = held.contains(&id);
            }
        }
        scheduler.hold_background();
        step(scheduler).iter().map(|row| row.0).collect::<Vec<_>>()
    };
    assert_eq!(turn(&mut scheduler, &[]), [1, 2, 3, 4, 5, 6]);
    add(&mut scheduler, 7, 0, 4);
    assert_eq!(turn(&mut scheduler, &[]), [1, 7]);
    add(&mut scheduler, 8, BACKGROUND_PRIORITY - 1, 4);
    assert_eq!(turn(&mut scheduler, &[]), [1, 2, 7, 8]);
    // The first is held for another reason; who is held needs nothing of a step.
    assert_eq!(turn(&mut scheduler, &[1, 7]), [2, 8]);
    assert_eq!(turn(&mut scheduler, &[7, 8]), [1, 2, 3, 4, 5, 6]);
    scheduler.finish(SequenceId(7));
    scheduler.finish(SequenceId(8));
    assert_eq!(turn(&mut scheduler, &[]), [1, 2, 3, 4, 5, 6]);
}
