//! What questions are called, so that their answers find them, and events, so that none is told twice or left out.

use crate::model::id::Generation;

/// Numbers that one start of a node may give out before it comes to those of the next.
pub const PER_START: u64 = 1 << 32;

/// Numbers for what a node asks and tells others, each given once over all its starts, and none lower than one before it. A node
/// that stood still while another was started anew answers what the earlier start asked, and no question of the present
/// one may take that for its own answer.
#[derive(Debug)]
pub struct Numbers {
    next: u64,
}

impl Numbers {
    /// Those of this start.
    pub fn of(start: Generation) -> Self {
        Self { next: start.0.wrapping_mul(PER_START).wrapping_add(1) }
    }

    /// One that was not given before.
    pub fn take(&mut self) -> u64 {
        let number = self.next;
        self.next = self.next.wrapping_add(1);
        number
    }

    /// The one taken last, or what comes before the first.
    pub fn last(&self) -> u64 {
        self.next.wrapping_sub(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_start_gives_what_another_gave() {
        let taken = |start| {
            let mut numbers = Numbers::of(Generation(start));
            (0..1_000).map(move |_| numbers.take()).collect::<std::collections::BTreeSet<u64>>()
        };
        assert_eq!(taken(7).len(), 1_000);
        assert!(taken(7).is_disjoint(&taken(8)));
    }
}
