//! How far records have moved since the ring changed: a node joined, left, drained, died or weighs something else.
//!
//! What is left to do shows at any moment, as strays on the nodes that hand over and as partitions that are behind on
//! those that receive. What there was to do at first, and since when, is remembered here for people, from the change of
//! the ring until nothing is left; a further change meanwhile belongs to the same move.

use std::collections::BTreeSet;

use crate::model::id::Partition;
use crate::model::time::Now;

use super::super::snapshot::Moving;
use super::Peer;

/// A move under way, as this node has its part in it.
#[derive(Debug)]
pub(super) struct Move {
    since: Now,
    /// What had been handed over before it began.
    handed_over_before: u64,
    /// The most records that were to be handed over, those that have been since included.
    records: u64,
    /// The most partitions that were behind at once.
    partitions: u32,
}

impl Peer {
    /// The ring is another.
    pub(super) fn begin_move(&mut self, now: Now) {
        let handed_over_before = self.counters.strays_handed_over;
        self.moving.get_or_insert(Move { since: now, handed_over_before, records: 0, partitions: 0 });
    }

    /// Looks how much is left.
    pub(super) fn watch_move(&mut self, behind: &BTreeSet<Partition>) {
        if self.moving.is_none() {
            return;
        }
        let (left, behind) = (self.stray_count(), behind.len() as u32);
        let handed_over = self.counters.strays_handed_over;
        if let Some(moving) = &mut self.moving {
            moving.records = moving.records.max(left + handed_over - moving.handed_over_before);
            moving.partitions = moving.partitions.max(behind);
        }
        if left == 0 && behind == 0 {
            self.moving = None;
        }
    }

    /// The move under way, if there is one.
    pub(super) fn moving(&self) -> Option<Moving> {
        self.moving.as_ref().map(|moving| Moving {
            since: moving.since.wall,
            since_moment: moving.since.moment,
            records: moving.records,
            handed_over: self.counters.strays_handed_over - moving.handed_over_before,
            partitions: moving.partitions,
            waiting_to_be_sent: self.replication.handovers_waiting(),
        })
    }
}
