//! Grouping sequences into steps of a fixed size.
//!
//! A group's sequences lie side by side, and the model takes each as a sequence of its own: nothing here joins them, so
//! nothing can attend across.

use std::collections::BTreeMap;

use crate::error::{DataError, Result};
use crate::shuffle::SplitMix64;

/// Groups of indices into `lengths_tokens`, whose lengths sum up to at most `capacity_tokens`.
///
/// Best fit, longest first: each sequence goes where the least room is left that holds it, so that there are few groups
/// (at most 11/9 of the fewest possible, and one). The same input and seed give the same groups. With a seed, sequences
/// of equal length change places and the groups come in a random order; without, ties go by index and the groups come in
/// the order of their longest.
///
/// # Errors
/// [`DataError::Pack`] for a sequence that is empty or longer than a group.
pub fn pack(lengths_tokens: &[usize], capacity_tokens: usize, seed: Option<u64>) -> Result<Vec<Vec<usize>>> {
    let mut order: Vec<(usize, usize)> = lengths_tokens.iter().copied().enumerate().collect();
    let is_wrong = |length: usize| length == 0 || length > capacity_tokens;
    if let Some(&(idx, length_tokens)) = order.iter().find(|(_, length)| is_wrong(*length)) {
        return Err(DataError::Pack { idx, length_tokens, capacity_tokens });
    }
    let mut generator = seed.map(SplitMix64::new);
    if let Some(generator) = &mut generator {
        generator.shuffle(&mut order);
    }
    order.sort_by_key(|(_, length)| std::cmp::Reverse(*length));
    let mut groups: Vec<Vec<usize>> = Vec::new();
    // Groups by the room that is left in them.
    let mut by_room: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (idx, length) in order {
        let mut found = None;
        if let Some((&room, open)) = by_room.range_mut(length..).next() {
            found = open.pop().map(|group| (room, group));
            if open.is_empty() {
                by_room.remove(&room);
            }
        }
        let (room, group) = found.unwrap_or_else(|| {
            groups.push(Vec::new());
            (capacity_tokens, groups.len() - 1)
        });
        if let Some(members) = groups.get_mut(group) {
            members.push(idx);
        }
        if room > length {
            by_room.entry(room - length).or_default().push(group);
        }
    }
    if let Some(generator) = &mut generator {
        generator.shuffle(&mut groups);
    }
    Ok(groups)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_sequence_is_in_one_group_that_holds_it(
            lengths in prop::collection::vec(1_usize..=64, 0..200),
            more_room in 0_usize..100,
            seed in prop::option::of(any::<u64>()),
        ) {
            let capacity = lengths.iter().copied().max().unwrap_or(1) + more_room;
            let groups = pack(&lengths, capacity, seed).unwrap();
            let mut seen: Vec<usize> = groups.concat();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>());
            let sums: Vec<usize> = groups.iter().map(|group| group.iter().map(|idx| lengths[*idx]).sum()).collect();
            prop_assert!(sums.iter().all(|sum| (1..=capacity).contains(sum)));
            // No two groups could be one: best fit leaves at most one that is half empty.
            prop_assert!(sums.iter().filter(|sum| **sum * 2 <= capacity).count() <= 1);
            prop_assert_eq!(groups, pack(&lengths, capacity, seed).unwrap());
        }

        #[test]
        fn too_long_is_an_error(lengths in prop::collection::vec(1_usize..=64, 1..50), at in any::<prop::sample::Index>()) {
            let mut lengths = lengths;
            let at = at.index(lengths.len());
            for wrong in [65, 0] {
                lengths[at] = wrong;
                let error = pack(&lengths, 64, None).unwrap_err();
                let is_named = matches!(error, DataError::Pack { idx, length_tokens, capacity_tokens: 64 }
                    if idx == at && length_tokens == wrong);
                prop_assert!(is_named, "{error}");
            }
        }
    }

    #[test]
    fn fills_groups() {
        assert_eq!(pack(&[3, 7, 5, 5, 2, 8], 10, None).unwrap(), [vec![5, 4], vec![1, 0], vec![2, 3]]);
        assert_eq!(pack(&[], 0, None).unwrap(), Vec::<Vec<usize>>::new());
        let lengths = [4; 50];
        assert_ne!(pack(&lengths, 8, Some(1)).unwrap(), pack(&lengths, 8, Some(2)).unwrap());
    }
}
