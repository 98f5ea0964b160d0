//! An ordered set that is full where it grows at its end.
//!
//! A `BTreeSet` that is given ever larger values leaves each of its nodes half empty behind it: it splits a full one in the
//! middle, and nothing comes to the left half any more. There are millions of jobs, and most sets of them grow just like
//! that, by the time at which a job came or is to be looked at. Think of books on shelves instead: a shelf that is full
//! stays as it is when a book comes that belongs behind it, and only where one belongs between others are these parted.
//!
//! What always holds: the values of a shelf are in order, none is less than the shelf's name, and none is as large as the
//! name of the next.

use std::collections::BTreeMap;
use std::fmt;

/// What a shelf takes. Raising it makes each insertion between others move more of them.
const SHELF: usize = 128;
/// How much of a last shelf moves on to a new one when something comes that belongs between: values come nearly in order.
const MOVED_ON: usize = SHELF / 16;

/// The set.
#[derive(Clone)]
pub struct Sorted<T> {
    /// By a value that is no more than the first.
    shelves: BTreeMap<T, Vec<T>>,
}

impl<T: Copy + Ord> Sorted<T> {
    /// The smallest.
    pub fn first(&self) -> Option<T> {
        self.shelves.first_key_value().and_then(|(_, shelf)| shelf.first().copied())
    }

    /// Whether `value` is in it.
    pub fn contains(&self, value: T) -> bool {
        self.shelves.range(..=value).next_back().is_some_and(|(_, shelf)| shelf.binary_search(&value).is_ok())
    }

    /// Puts `value` into it.
    pub fn insert(&mut self, value: T) {
        let is_last = self.shelves.last_key_value().is_none_or(|(name, _)| *name <= value);
        let Some((_, shelf)) = self.shelves.range_mut(..=value).next_back() else {
            // It is the smallest of all, so the first shelf is renamed, or there is none.
            let mut first = self.shelves.pop_first().map(|(_, shelf)| shelf).unwrap_or_default();
            if first.len() < SHELF {
                first.insert(0, value);
                self.shelves.insert(value, first);
            } else {
                self.shelves.insert(first[0], first);
                self.shelves.insert(value, vec![value]);
            }
            return;
        };
        let Err(at) = shelf.binary_search(&value) else {
            return;
        };
        if shelf.len() < SHELF {
            shelf.insert(at, value);
            return;
        }
        let moved =
            if at == SHELF { Vec::new() } else { shelf.split_off(if is_last { SHELF - MOVED_ON } else { SHELF / 2 }) };
        if let Some(name) = moved.first() {
            self.shelves.insert(*name, moved);
            self.insert(value);
        } else {
            self.shelves.insert(value, vec![value]);
        }
    }

    /// Takes `value` out of it.
    pub fn remove(&mut self, value: T) {
        let Some((name, shelf)) = self.shelves.range_mut(..=value).next_back() else {
            return;
        };
        let Ok(at) = shelf.binary_search(&value) else {
            return;
        };
        shelf.remove(at);
        if shelf.is_empty() {
            let name = *name;
            self.shelves.remove(&name);
        } else if shelf.len() < shelf.capacity() / 4 {
            shelf.shrink_to(shelf.len() * 2);
        }
    }

    /// All of it, the smallest first.
    pub fn iter(&self) -> impl Iterator<Item = T> + '_ {
        self.shelves.values().flatten().copied()
    }

    /// Those less than `end`, the largest first.
    pub fn down_from(&self, end: T) -> impl Iterator<Item = T> + '_ {
        let shelves = self.shelves.range(..end).rev();
        shelves.flat_map(move |(_, shelf)| shelf[..shelf.partition_point(|value| *value < end)].iter().rev().copied())
    }
}

impl<T> Default for Sorted<T> {
    fn default() -> Self {
        Self { shelves: BTreeMap::new() }
    }
}

impl<T: Copy + Ord> FromIterator<T> for Sorted<T> {
    fn from_iter<I: IntoIterator<Item = T>>(values: I) -> Self {
        let mut values: Vec<T> = values.into_iter().collect();
        values.sort_unstable();
        values.dedup();
        Self { shelves: values.chunks(SHELF).map(|shelf| (shelf[0], shelf.to_vec())).collect() }
    }
}

impl<T: Copy + Ord> PartialEq for Sorted<T> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl<T: Copy + Ord + fmt::Debug> fmt::Debug for Sorted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn fill(set: &Sorted<u32>) -> f64 {
        let room: usize = set.shelves.values().map(Vec::capacity).sum();
        set.iter().count() as f64 / room as f64
    }

    #[test]
    fn what_comes_in_order_or_nearly_so_leaves_no_gaps() {
        let mut in_order = Sorted::default();
        (0..90_000).for_each(|value| in_order.insert(value));
        assert!(fill(&in_order) > 0.99, "{}", fill(&in_order));
        let mut nearly = Sorted::default();
        // Each is at most 30 places from where it belongs.
        (0..90_000_u32).for_each(|value| nearly.insert(value / 30 * 30 + 29 - value % 30));
        assert!(fill(&nearly) > 0.9, "{}", fill(&nearly));
        let mut backwards = Sorted::default();
        (0..90_000).rev().for_each(|value| backwards.insert(value));
        assert!(fill(&backwards) > 0.9, "{}", fill(&backwards));
        assert!(in_order == nearly && nearly == backwards);
    }

    #[test]
    fn what_is_thinned_out_gives_its_room_back() {
        let mut set: Sorted<u32> = (0..100_000).collect();
        (0..100_000).filter(|value| value % 16 > 0).for_each(|value| set.remove(value));
        assert_eq!(set.iter().count(), 6_250);
        assert!(fill(&set) >= 0.25, "{}", fill(&set));
        (0..100_000).for_each(|value| set.remove(value));
        assert!(set.shelves.is_empty());
    }

    proptest! {
        #[test]
        fn it_is_a_set(steps in prop::collection::vec((any::<bool>(), 0..600_u32), 0..3_000), end in 0..600_u32) {
            let (mut set, mut model) = (Sorted::default(), BTreeSet::new());
            for (comes, value) in steps {
                if comes {
                    set.insert(value);
                    model.insert(value);
                } else {
                    set.remove(value);
                    model.remove(&value);
                }
                prop_assert_eq!(set.contains(value), comes);
            }
            prop_assert!(set.iter().eq(model.iter().copied()));
            prop_assert_eq!(set.first(), model.first().copied());
            prop_assert!(set.down_from(end).eq(model.range(..end).rev().copied()));
            prop_assert_eq!(&set, &model.iter().copied().collect());
        }
    }
}
