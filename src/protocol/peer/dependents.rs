//! What depends on a node: what would become of the jobs if it were gone now.
//!
//! Every node answers for the partitions that it decides for, from what it knows of the copies elsewhere: what was
//! acknowledged, and what comparisons showed. So the answer is about what is known to be safe; a copy that nobody has
//! confirmed yet does not count.

use std::collections::BTreeMap;

use crate::model::id::{JobId, NodeId, Partition};
use crate::model::request::Dependents;

use super::super::lifecycle::unfit;
use super::Peer;
use super::keeping::majority;

impl Peer {
    /// What depends on `node`, in the partitions that this one decides for.
    pub(super) fn dependents(&self, node: NodeId) -> Dependents {
        let decided = || self.first_of.iter().copied().filter(|partition| self.ownership.is_caught_up(*partition));
        let mut found = Dependents { partitions: decided().collect(), ..Dependents::default() };
        for job in self.records.open() {
            self.add_if_it_runs(&mut found, node, *job);
        }
        let mut spreading: BTreeMap<Partition, Vec<JobId>> = BTreeMap::new();
        for (job, _) in self.replication.spreading_from(JobId(0)) {
            spreading.entry(self.records.partition_of(job)).or_default().push(job);
        }
        for partition in decided().filter(|partition| self.has_copies_at(node, *partition)) {
            let spreading = spreading.get(&partition).map(Vec::as_slice).unwrap_or_default();
            self.add_copies(&mut found, node, partition, spreading);
        }
        found
    }

    fn has_copies_at(&self, node: NodeId, partition: Partition) -> bool {
        let says_so = || self.membership.view().get(&node).is_some_and(|member| member.facts.held.contains(partition));
        self.placement.acting(partition).contains(&node) || says_so()
    }

    fn add_if_it_runs(&self, found: &mut Dependents, node: NodeId, job: JobId) {
        let runs_it = found.partitions.contains(self.records.partition_of(job))
            && self
                .records
                .get(job)
                .is_some_and(|held| held.live_executors().iter().any(|executor| executor.node == node));
        let Some(held) = self.records.get(job).filter(|_| runs_it) else {
            return;
        };
        found.running += 1;
        let (record, view) = (held.record(), self.membership.view());
        if !view.keys().any(|other| *other != node && unfit(&record, *other, view).is_none()) {
            found.stuck += 1;
            if found.stuck_jobs.len() < Dependents::NAMED {
                found.stuck_jobs.push(job);
            }
        }
    }

    /// Counts the copies that are known to be elsewhere: for most records, those of the whole partition.
    fn add_copies(&self, found: &mut Dependents, node: NodeId, partition: Partition, spreading: &[JobId]) {
        let me = self.me.node;
        let view = self.membership.view();
        let is_live = |other: &NodeId| view.get(other).is_some_and(|member| member.is_live());
        let acting = self.placement.acting(partition);
        let others: Vec<NodeId> = acting.iter().copied().filter(|n| *n != node && *n != me && is_live(n)).collect();
        let here = usize::from(me != node);
        let wanted = majority(self.placement.home(partition).len()) as usize;
        let held = u64::from(self.records.count_in(partition));
        let at_rest = held.saturating_sub(spreading.len() as u64);
        let mut add = |records: u64, copies: usize| {
            found.thin += if copies < wanted { records } else { 0 };
            found.only_here += if copies == 0 { records } else { 0 };
        };
        // What nobody spreads any more was acknowledged by all that were to have it, or is as it was compared; but a
        // stand-in was given only what was written of late.
        add(at_rest, here + others.iter().filter(|other| !self.stands_in(**other, partition)).count());
        for job in spreading {
            let version = self.records.get(*job).map(|held| held.version);
            let known = version.and_then(|version| self.replication.known_copies(*job, version)).unwrap_or_default();
            add(1, here + others.iter().filter(|other| known.contains(other)).count());
        }
        found.held += held;
    }
}
