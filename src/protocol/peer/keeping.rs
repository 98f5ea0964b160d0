//! Who is to have a record, who may let go of it, and which records are strays here.

use std::collections::BTreeSet;

use crate::model::id::{JobId, NodeId, Partition};
use crate::model::member::Status;
use crate::model::time::Moment;

use super::super::sabotage::Bug;
use super::Peer;

impl Peer {
    /// The nodes that are to have what is written to the record now, this one apart: the acting list, and whoever runs it.
    pub(super) fn targets(&self, job: JobId) -> BTreeSet<NodeId> {
        let acting = self.placement.acting(self.records.partition_of(job)).iter().copied();
        let view = self.membership.view();
        let live = |node: &NodeId| view.get(node).is_some_and(|member| member.is_live());
        let executors = self.records.get(job).map(|held| held.live_executors()).unwrap_or_default();
        let executors = executors.into_iter().map(|executor| executor.node);
        acting.chain(executors).filter(|node| *node != self.me.node && live(node)).collect()
    }

    /// Those of them that should hold the record although nothing was written to it of late.
    pub(super) fn keepers(&self, job: JobId) -> BTreeSet<NodeId> {
        let partition = self.records.partition_of(job);
        let mut keepers = self.targets(job);
        keepers.retain(|node| !self.stands_in(*node, partition));
        keepers
    }

    /// How many copies of the record make it safe: a majority of its home list, or all there can be now.
    pub(super) fn copies_for_safety(&self, job: JobId) -> u32 {
        let partition = self.records.partition_of(job);
        let acting = self.placement.acting(partition).len() as u32;
        majority(self.placement.home(partition).len()).min(acting).max(1)
    }

    /// Whether a record is to stay here: because the ring says so, or because of a pod; or is held no more, since its time
    /// is over.
    pub(super) fn keeps(&self, job: JobId) -> bool {
        let Some(held) = self.records.get(job) else {
            return true;
        };
        self.placement.acting(self.records.partition_of(job)).contains(&self.me.node)
            || held.live_executors().iter().any(|executor| executor.node == self.me.node)
    }

    /// Whether this node acts for the partition, or will in a moment: what a restart finds on the disk stays there.
    pub(super) fn keeps_for_now(&self, partition: Partition) -> bool {
        let is_back = self.status() == Status::Returning && self.placement.home(partition).contains(&self.me.node);
        is_back || self.acts_for(partition)
    }

    /// Whether a copy here would be missed although this node need not have it: fewer others are to keep the record than
    /// should have it. Those are given it, and it stays here as well until more of them come. A node that drains or leaves
    /// gives its copies up all the same.
    pub(super) fn would_be_missed(&self, partition: Partition) -> bool {
        let goes = match self.status() {
            Status::Draining | Status::Left => true,
            Status::Joining | Status::Returning | Status::Serving | Status::ReadOnly => self.leaving,
        };
        let acting = self.placement.acting(partition).iter();
        let keepers = acting.filter(|node| self.should_keep(**node, partition)).count();
        !goes && keepers < self.placement.home(partition).len() && !self.sabotage.has(Bug::LetGoTooSoon)
    }

    pub(super) fn acts_for(&self, partition: Partition) -> bool {
        self.placement.acting(partition).contains(&self.me.node)
    }

    /// The records that this node holds outside their acting lists, and not for a pod of its own.
    pub(super) fn strays(&self) -> impl Iterator<Item = JobId> + '_ {
        self.records
            .partitions_held()
            .iter()
            .filter(|partition| !self.keeps_for_now(*partition))
            .flat_map(|partition| self.records.in_partition(partition))
            .filter(move |(_, held)| !held.live_executors().contains(&self.me))
            .map(|(job, _)| job)
    }

    /// How many strays there are, and a few that await a pod.
    pub(super) fn stray_count(&self) -> u64 {
        let left = |partition: &Partition| !self.keeps_for_now(*partition);
        let held: u64 =
            self.records.partitions_held().iter().filter(left).map(|p| u64::from(self.records.count_in(p))).sum();
        let at_work: BTreeSet<JobId> = self.pods.values().map(|pod| pod.job).collect();
        let stays = |job: &JobId| {
            left(&self.records.partition_of(*job))
                && self.records.get(*job).is_some_and(|held| held.live_executors().contains(&self.me))
        };
        held - at_work.iter().filter(|job| stays(job)).count() as u64
    }

    /// Keeps account of who holds this node's strays of `partition`, and lets go of those that were only kept until now.
    pub(super) fn track_strays(&mut self, now: Moment, partition: Partition) {
        let strays: Vec<(JobId, u64)> =
            self.records.in_partition(partition).map(|(job, held)| (job, held.revision)).collect();
        for (job, revision) in strays {
            let targets = self.keepers(job);
            self.replication.track(now, job, revision, targets);
            self.dirty.insert(job);
        }
    }
}

/// More than half.
pub(super) fn majority(of: usize) -> u32 {
    (of / 2 + 1) as u32
}
