//! Waiting for whoever was just here.
//!
//! A node that is away has its places on the ring, and others act for its partitions meanwhile. Most are back within
//! seconds: a restart, a reboot, a cable. If all that an absent node holds were copied to those who stand in for it, and let
//! go of when it returns, each restart would move a part of everything twice, and a cluster with much to remember would
//! do nothing else. So a **stand-in** gets what is written while it stands in, which makes up the copies that an
//! acknowledgement promises, and nothing else, for `repair_after`; then all of it. (Hinted handoff; DeCandia et al., "Dynamo",
//! SOSP 2007, section 4.6.)
//!
//! That waits only while a majority of a partition's home list acts, as many as an acknowledgement needs. With fewer,
//! the next death could be one too many, and the copies are made at once.
//!
//! Known here: who is away, and since when this node has noticed. Each node waits by its own clock; where one waits and
//! another does not, what the one sends is taken by the other.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::id::{NodeId, Partition};
use crate::model::member::PartitionSet;
use crate::model::ring::Placement;
use crate::model::time::Moment;

use super::Peer;
use super::keeping::majority;

/// Who is away from its home lists, and which partitions wait for it.
#[derive(Debug, Default)]
pub(super) struct Absence {
    since: BTreeMap<NodeId, Moment>,
    waiting: PartitionSet,
    /// When the first of those who are waited for has been away for too long.
    until: Option<Moment>,
}

impl Absence {
    /// Whether somebody of the partition's home list is away, and expected back.
    pub(super) fn is_awaited(&self, partition: Partition) -> bool {
        self.waiting.contains(partition)
    }

    /// The partitions of which that is true.
    pub(super) fn waiting(&self) -> impl Iterator<Item = Partition> + '_ {
        self.waiting.iter()
    }

    /// Whether `node` acts for the partition only until somebody is back.
    pub(super) fn stands_in(&self, placement: &Placement, node: NodeId, partition: Partition) -> bool {
        self.is_awaited(partition) && !placement.home(partition).contains(&node)
    }

    pub(super) fn poll_timeout(&self) -> Option<Moment> {
        self.until
    }
}

impl Peer {
    /// Looks who is away now, by the ring. Returns which partitions waited until now.
    pub(super) fn wait_for_the_absent(&mut self, now: Moment) -> PartitionSet {
        let placement = &self.placement;
        let missing = |partition: Partition| {
            let acting = placement.acting(partition);
            placement.home(partition).iter().copied().filter(|node| !acting.contains(node))
        };
        let absent: BTreeSet<NodeId> = placement.all().flat_map(missing).collect();
        self.absence.since.retain(|node, _| absent.contains(node));
        for node in absent {
            self.absence.since.entry(node).or_insert(now);
        }
        let repair_after = self.config.timing.repair_after;
        let since = &self.absence.since;
        let is_expected = |node: NodeId| since.get(&node).is_some_and(|since| now < *since + repair_after);
        let awaits = |partition: &Partition| {
            let (home, gone) = (placement.home(*partition).len(), missing(*partition).count());
            gone > 0 && home - gone >= majority(home) as usize && missing(*partition).all(is_expected)
        };
        let waiting = placement.all().filter(awaits).collect();
        self.absence.until = since.values().map(|since| *since + repair_after).filter(|until| *until > now).min();
        std::mem::replace(&mut self.absence.waiting, waiting)
    }

    /// See [`Absence::stands_in`].
    pub(super) fn stands_in(&self, node: NodeId, partition: Partition) -> bool {
        self.absence.stands_in(&self.placement, node, partition)
    }

    /// Whether `node` should hold all records of the partition, and not only those that were written of late.
    pub(super) fn should_keep(&self, node: NodeId, partition: Partition) -> bool {
        self.placement.acting(partition).contains(&node) && !self.stands_in(node, partition)
    }
}
