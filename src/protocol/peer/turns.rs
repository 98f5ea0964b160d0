//! Who gives a node what it lacks.
//!
//! Where a node comes anew, or again, all who hold its records see that it lacks them, at nearly one moment. If each
//! gave it all, it would get everything three times. So one gives at once, the first of the list who holds records of the
//! partition, and the others look again after a while. As long as the node lacks less from time to time, somebody is giving; when
//! that ceases, and it still lacks some, they give what is left. An owner fetches for itself what it lacks before it decides, so
//! all give it time for that.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::model::id::{NodeId, Partition};
use crate::model::time::Moment;

use super::Peer;

/// The nodes to which others give, as far as this one has seen.
#[derive(Debug, Default)]
pub(super) struct Turns {
    left_to_others: BTreeMap<(NodeId, Partition), LeftToOthers>,
    /// When to look again.
    looks: BTreeSet<(Moment, NodeId, Partition)>,
    /// When each was last seen to lack less than before.
    progress: BTreeMap<NodeId, Moment>,
}

#[derive(Debug)]
struct LeftToOthers {
    /// How many records were lacking when this node looked last.
    lacking: usize,
    /// When it looks again.
    until: Moment,
}

impl Turns {
    /// How many records of each partition `peer` lacks now. Returns those partitions of which it is this node's turn to give.
    fn handle_lacking(
        &mut self,
        now: Moment,
        wait: Duration,
        peer: NodeId,
        lacking: &BTreeMap<Partition, usize>,
    ) -> BTreeSet<Partition> {
        let is_less = |(partition, count): (&Partition, &usize)| {
            self.left_to_others.get(&(peer, *partition)).is_some_and(|given| *count < given.lacking)
        };
        if lacking.iter().any(is_less) {
            self.progress.insert(peer, now);
        }
        let somebody_gives = self.progress.get(&peer).is_some_and(|at| now.since(*at) < wait);
        let mut mine = BTreeSet::new();
        for (partition, count) in lacking {
            let given = self.left_to_others.entry((peer, *partition)).or_insert_with(|| {
                self.looks.insert((now + wait, peer, *partition));
                LeftToOthers { lacking: *count, until: now + wait }
            });
            given.lacking = *count;
            if given.until > now {
                continue;
            }
            if somebody_gives {
                given.until = now + wait;
                self.looks.insert((given.until, peer, *partition));
            } else {
                self.left_to_others.remove(&(peer, *partition));
                mine.insert(*partition);
            }
        }
        mine
    }

    /// `peer` lacks nothing of the partition.
    pub(super) fn handle_agreement(&mut self, now: Moment, peer: NodeId, partition: Partition) {
        if let Some(given) = self.left_to_others.remove(&(peer, partition)) {
            self.looks.remove(&(given.until, peer, partition));
            self.progress.insert(peer, now);
        }
    }

    /// `peer` is gone.
    pub(super) fn handle_gone(&mut self, peer: NodeId) {
        self.progress.remove(&peer);
        self.left_to_others.retain(|(node, _), _| *node != peer);
        self.looks.retain(|(_, node, _)| *node != peer);
    }

    /// When to look again.
    pub(super) fn poll_timeout(&self) -> Option<Moment> {
        self.looks.first().map(|(at, ..)| *at)
    }

    /// What is to be compared again now.
    pub(super) fn handle_timeout(&mut self, now: Moment) -> Vec<(NodeId, Partition)> {
        let mut due = Vec::new();
        while let Some((_, peer, partition)) = self.looks.first().copied().filter(|(at, ..)| *at <= now) {
            self.looks.pop_first();
            due.push((peer, partition));
        }
        due
    }
}

impl Peer {
    /// Those of the partitions of which this node gives `peer` now what it lacks: so many records of each.
    pub(super) fn partitions_to_give(
        &mut self,
        now: Moment,
        peer: NodeId,
        lacking: &BTreeMap<Partition, usize>,
    ) -> BTreeSet<Partition> {
        let (mut first, mut others) = (BTreeSet::new(), BTreeMap::new());
        for (partition, count) in lacking {
            if self.gives_first(*partition, peer) {
                first.insert(*partition);
            } else {
                others.insert(*partition, *count);
            }
        }
        first.extend(self.turns.handle_lacking(now, self.config.timing.resend_after * 2, peer, &others));
        first
    }

    fn gives_first(&self, partition: Partition, peer: NodeId) -> bool {
        let view = self.membership.view();
        let holds = |node: &NodeId| {
            *node == self.me.node
                || view.get(node).is_some_and(|member| member.is_live() && member.facts.held.contains(partition))
        };
        self.placement.owner(partition) != Some(peer)
            && self.placement.acting(partition).iter().filter(|node| **node != peer).find(|node| holds(node))
                == Some(&self.me.node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEW: NodeId = NodeId(7);
    const WAIT: Duration = Duration::from_millis(600);

    fn at(ms: u64) -> Moment {
        Moment::START + Duration::from_millis(ms)
    }

    fn my_turns(turns: &mut Turns, ms: u64, lacking: &[(u16, usize)]) -> Vec<u16> {
        let lacking = lacking.iter().map(|(partition, count)| (Partition(*partition), *count)).collect();
        turns.handle_lacking(at(ms), WAIT, NEW, &lacking).into_iter().map(|partition| partition.0).collect()
    }

    #[test]
    fn whoever_is_not_first_gives_what_nobody_has_given_in_a_while() {
        let mut turns = Turns::default();
        assert!(my_turns(&mut turns, 0, &[(1, 5)]).is_empty());
        assert!(my_turns(&mut turns, 300, &[(1, 5)]).is_empty(), "the first may need a moment");
        assert_eq!(turns.poll_timeout(), Some(at(600)));
        assert_eq!(turns.handle_timeout(at(600)), [(NEW, Partition(1))]);
        assert_eq!(my_turns(&mut turns, 601, &[(1, 5)]), [1]);
        assert_eq!(turns.poll_timeout(), None);
    }

    #[test]
    fn a_move_that_takes_long_is_left_to_whoever_makes_it() {
        let mut turns = Turns::default();
        assert!(my_turns(&mut turns, 0, &[(1, 500), (2, 500)]).is_empty());
        turns.handle_timeout(at(600));
        assert!(my_turns(&mut turns, 600, &[(1, 100), (2, 500)]).is_empty(), "what comes of one is a sign for all");
        turns.handle_agreement(at(900), NEW, Partition(1));
        assert_eq!(turns.handle_timeout(at(1_200)), [(NEW, Partition(2))]);
        assert!(my_turns(&mut turns, 1_200, &[(2, 500)]).is_empty());
        turns.handle_timeout(at(1_800));
        assert_eq!(my_turns(&mut turns, 1_800, &[(2, 500)]), [2], "the giver has died");
    }

    #[test]
    fn nothing_is_looked_at_for_whoever_is_gone() {
        let mut turns = Turns::default();
        my_turns(&mut turns, 0, &[(1, 5)]);
        turns.handle_gone(NEW);
        assert_eq!(turns.poll_timeout(), None);
        assert!(my_turns(&mut turns, 5_000, &[(1, 5)]).is_empty(), "it is new again");
    }
}
