//! Which partitions this node decides for, and how it comes to know enough to do so.
//!
//! The ring names the owner; being named is not enough. A node that begins to own a partition first compares
//! what it holds with every live node that may know more, and each that answers stops deciding in its turn.
//! Only when all have answered is it **caught up**, and acts. A node that stepped down although its own view
//! still names it waits a little, for the view to follow, before it tries to take over again.
//!
//! The comparisons themselves, which also go on without any taking over, are in `comparing`.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::id::{NodeId, Partition};
use crate::model::member::Status;
use crate::model::ring::Placement;
use crate::model::time::Moment;

use super::super::comparison::Purpose;
use super::super::sabotage::Bug;
use super::Peer;

/// The partitions that this node's ring gives it.
#[derive(Debug, Default)]
pub(super) struct Ownership {
    owned: BTreeMap<Partition, Owning>,
    /// Partitions given up to somebody who asked, until the moment at which this node may ask in turn.
    stepped_down: BTreeMap<Partition, Moment>,
    /// Who asked. It decides for the partition by its own view, which may be ahead of this node's: whatever this one
    /// knows of the members, it asks that node before it decides there again.
    taken_by: BTreeMap<Partition, NodeId>,
}

/// What a partition that the ring gives to this node waits for.
#[derive(Debug)]
struct Owning {
    since: Moment,
    /// These have not answered yet: whoever owns is caught up when there are none.
    waiting_for: BTreeSet<NodeId>,
}

impl Ownership {
    pub(super) fn is_caught_up(&self, partition: Partition) -> bool {
        self.owned.get(&partition).is_some_and(|owning| owning.waiting_for.is_empty())
    }

    /// Since when the partition is this node's, caught up or not.
    pub(super) fn owned_since(&self, partition: Partition) -> Option<Moment> {
        self.owned.get(&partition).map(|owning| owning.since)
    }

    /// Nothing that was known is trusted any more.
    pub(super) fn clear(&mut self) {
        self.owned.clear();
        self.stepped_down.clear();
    }

    pub(super) fn poll_timeout(&self) -> Option<Moment> {
        self.stepped_down.values().min().copied()
    }

    /// The partitions that may be asked for again.
    pub(super) fn handle_timeout(&mut self, now: Moment) -> Vec<Partition> {
        let again: Vec<Partition> =
            self.stepped_down.iter().filter(|(_, until)| **until <= now).map(|(partition, _)| *partition).collect();
        for partition in &again {
            self.stepped_down.remove(partition);
        }
        again
    }
}

impl Peer {
    /// The ring has changed: it names this node for the partition now, or no longer, or still.
    pub(super) fn follow_owner(&mut self, now: Moment, partition: Partition, before: &Placement) {
        // Whoever is back may have decided in this node's place while they did not see each other.
        let is_back = |node: &&NodeId| **node != self.me.node && !before.acting(partition).contains(*node);
        let company: Vec<NodeId> = self.placement.acting(partition).iter().filter(is_back).copied().collect();
        if self.ownership.is_caught_up(partition) && !company.is_empty() {
            self.ownership.owned.remove(&partition);
            self.look_at_jobs_of(partition);
        }
        if self.may_own(partition) {
            let view = self.membership.view();
            match self.ownership.owned.get_mut(&partition) {
                Some(Owning { waiting_for, .. }) if !waiting_for.is_empty() => {
                    waiting_for.retain(|node| view.get(node).is_some_and(|member| member.is_live()));
                    company.iter().for_each(|node| self.comparison.want(*node, partition, Purpose::Takeover));
                    waiting_for.extend(company);
                    if waiting_for.is_empty() {
                        self.look_at_jobs_of(partition);
                    }
                }
                Some(_) => {}
                None => self.begin_takeover(now, partition, before.owner(partition)),
            }
        } else {
            if self.ownership.owned.remove(&partition).is_some() {
                self.look_at_jobs_of(partition);
            }
            self.ownership.stepped_down.remove(&partition);
            self.ownership.taken_by.remove(&partition);
        }
    }

    /// Whether this node's ring and status allow it to own `partition`.
    fn may_own(&self, partition: Partition) -> bool {
        let serves = match self.status() {
            Status::Serving | Status::Draining => true,
            Status::Joining | Status::Returning | Status::ReadOnly | Status::Left => false,
        };
        serves && self.placement.owner(partition) == Some(self.me.node) && self.membership.conflict().is_none()
    }

    /// Asks every live node that may know more of `partition` than this one: those of its lists, those that say that they hold
    /// records of it, and whoever has decided for it, by what this node knows, and may not have said yet what it holds.
    pub(super) fn begin_takeover(&mut self, now: Moment, partition: Partition, decided: Option<NodeId>) {
        let held_off = self.ownership.stepped_down.get(&partition).is_some_and(|until| *until > now);
        if held_off || !self.may_own(partition) || self.ownership.owned.contains_key(&partition) {
            return;
        }
        let view = self.membership.view();
        let holders = view.values().filter(|member| member.facts.held.contains(partition)).map(|m| m.facts.node);
        let lists = self.placement.home(partition).iter().chain(self.placement.acting(partition)).copied();
        let mut waiting_for: BTreeSet<NodeId> = lists
            .chain(self.placement.next(partition))
            .chain(self.ownership.taken_by.get(&partition).copied())
            .chain(decided)
            .chain(holders)
            .filter(|node| *node != self.me.node && view.get(node).is_some_and(|member| member.is_live()))
            .collect();
        self.counters.takeovers += 1;
        for node in &waiting_for {
            self.comparison.want(*node, partition, Purpose::Takeover);
        }
        if self.sabotage.has(Bug::ActBeforeComparing) {
            waiting_for.clear();
        }
        let alone = waiting_for.is_empty();
        self.ownership.owned.insert(partition, Owning { since: now, waiting_for });
        if alone {
            self.look_at_jobs_of(partition);
        }
    }

    /// A node has answered that may have known more of the partition.
    pub(super) fn hear_of_takeover(&mut self, partition: Partition, from: NodeId) {
        if let Some(Owning { waiting_for, .. }) = self.ownership.owned.get_mut(&partition)
            && waiting_for.remove(&from)
            && waiting_for.is_empty()
        {
            self.look_at_jobs_of(partition);
        }
    }

    /// This node decides for the partition from now on, or no longer: what waits in its queue is another matter then.
    fn look_at_jobs_of(&mut self, partition: Partition) {
        let open = self.records.in_partition(partition).filter(|(_, held)| !held.state().is_terminal());
        self.dirty.extend(open.map(|(job, _)| job));
    }

    /// Another takes over: this node stops deciding for the partition.
    pub(super) fn step_down(&mut self, now: Moment, partition: Partition, for_whom: NodeId) {
        if self.ownership.owned.remove(&partition).is_some() {
            self.ownership.taken_by.insert(partition, for_whom);
            let hold_off = self.config.timing.gossip_interval * 4;
            self.ownership.stepped_down.insert(partition, now + hold_off);
            self.look_at_jobs_of(partition);
        }
    }
}
