//! Comparing what this node holds with what others hold, and what follows from it: the difference is exchanged, what is the
//! same need not be spread any more, and a takeover comes to its end.
//!
//! The questions and answers themselves are the [`Comparison`](crate::protocol::comparison::Comparison)'s; here they
//! meet the records.

use std::collections::{BTreeMap, BTreeSet};

use rand::Rng;

use crate::model::id::{JobId, NodeId, Partition};
use crate::model::member::MemberState;
use crate::model::record::Version;
use crate::model::time::{Moment, Now};
use crate::model::wire::Message;

use super::super::comparison::{Compared, Difference, Purpose};
use super::super::sabotage::Bug;
use super::Peer;

/// Records on their way for long that are looked at together, at the most.
const LINGERING_AT_ONCE: usize = 2_048;
/// Records in one answer to a fetch, at the most.
const FETCHED_RECORDS: usize = 256;

/// What the latest comparisons showed: whether this node and another hold the same of a partition.
#[derive(Debug, Default)]
pub(super) struct Agreements(BTreeMap<(Partition, NodeId), bool>);

impl Agreements {
    /// Whether this node and `peer` agreed on `partition` when they last compared; unknown counts as not.
    pub(super) fn agrees(&self, partition: Partition, peer: NodeId) -> bool {
        self.0.get(&(partition, peer)) == Some(&true)
    }

    /// The partitions of which a comparison with somebody showed a difference, and with whom.
    pub(super) fn differing(&self) -> impl Iterator<Item = (Partition, NodeId)> + '_ {
        self.0.iter().filter(|(_, agrees)| !**agrees).map(|(key, _)| *key)
    }

    /// Notes what a comparison showed. Returns whether it is news that they differ.
    fn note(&mut self, partition: Partition, peer: NodeId, agrees: bool) -> bool {
        self.0.insert((partition, peer), agrees) != Some(false) && !agrees
    }

    /// Forgets what comparisons of `partition` with others than `peers` showed.
    pub(super) fn retain(&mut self, partition: Partition, peers: &[NodeId]) {
        let of_partition = self.0.range((partition, NodeId(0))..=(partition, NodeId(u32::MAX)));
        let others: Vec<_> = of_partition.map(|(key, _)| *key).filter(|(_, node)| !peers.contains(node)).collect();
        for other in others {
            self.0.remove(&other);
        }
    }
}

impl Peer {
    /// Compares with one live node everything that both should hold, and what this node holds for it.
    pub(super) fn compare_with_somebody(&mut self) {
        let me = self.me.node;
        let live = self.membership.view().values().filter(|m| m.is_live() && m.facts.node != me);
        let others: Vec<NodeId> = live.map(|member| member.facts.node).collect();
        if others.is_empty() || self.sabotage.has(Bug::SkipAntiEntropy) {
            return;
        }
        let peer = others[self.rng.next_u32() as usize % others.len()];
        for partition in self.placement.all() {
            let is_stray = !self.keeps_for_now(partition) && self.records.count_in(partition) > 0;
            if (is_stray || self.should_keep(me, partition)) && self.should_keep(peer, partition) {
                self.comparison.want(peer, partition, Purpose::Routine);
            }
        }
    }

    /// Somebody compares with this node.
    pub(super) fn handle_compare(
        &mut self,
        now: Now,
        from: NodeId,
        round: u64,
        takeover: bool,
        horizon: u32,
        digests: &[(Partition, Version)],
    ) {
        let asker_is_up = self
            .membership
            .view()
            .get(&from)
            .is_some_and(|member| matches!(member.state, MemberState::Alive | MemberState::Suspect));
        let in_range = |partition: &Partition| u32::from(partition.0) < self.placement.partitions();
        if !asker_is_up || !digests.iter().all(|(partition, _)| in_range(partition)) {
            // Somebody whom this node believes dead must not take over from those who took over from it: it
            // asks again when it has refuted that.
            return;
        }
        let own_horizon = now.wall.hour();
        if own_horizon > horizon {
            return self.send(
                from,
                Message::Differ { round, horizon: own_horizon, partitions: Vec::new(), unsaved: Vec::new() },
            );
        }
        let mut differing = Vec::new();
        for (partition, theirs) in digests {
            if takeover {
                self.step_down(now.moment, *partition, from);
            }
            if self.records.digest(*partition, horizon) != *theirs {
                differing.push((*partition, self.records.versions_in(*partition, horizon).collect()));
            }
        }
        let asked: BTreeSet<Partition> = digests.iter().map(|(partition, _)| *partition).collect();
        let is_asked = |job: &JobId| asked.contains(&self.records.partition_of(*job));
        let unsaved = self.outbox.unsaved().filter(is_asked).collect();
        self.send(from, Message::Differ { round, horizon, partitions: differing, unsaved });
    }

    /// Sends the records that a comparison showed to be wanting. A part at a time: a frame has its limits.
    pub(super) fn handle_fetch(&mut self, now: Moment, from: NodeId, round: u64, jobs: &[JobId]) {
        let records: Vec<_> = jobs.iter().filter_map(|job| self.records.get(*job)).map(|held| held.record()).collect();
        let mut parts: Vec<Vec<_>> = records.chunks(FETCHED_RECORDS).map(<[_]>::to_vec).collect();
        let last = parts.pop().unwrap_or_default();
        for records in parts {
            let known_for = self.records.known_for(now, &records);
            self.send(from, Message::Fetched { round, records, known_for, last: false });
        }
        let known_for = self.records.known_for(now, &last);
        self.send(from, Message::Fetched { round, records: last, known_for, last: true });
    }

    /// What a peer's list showed: who has what this node has, and who lacks it.
    pub(super) fn learn_difference(&mut self, now: Now, peer: NodeId, difference: &Difference) {
        for (job, version) in &difference.same {
            let is_stray = !self.placement.acting(self.records.partition_of(*job)).contains(&self.me.node);
            if let Some(held) = self.records.get(*job).filter(|held| !is_stray && held.compared() == *version) {
                self.replication.learn(*job, peer, held.revision, *version);
                self.check_copies(now, *job);
            }
        }
        for job in &difference.has_blobs_of {
            if let Some(held) = self.records.get(*job) {
                held.record().blobs().iter().for_each(|name| self.blobs.assure(name.id, peer));
            }
        }
        // A node that should not hold a record is not given it.
        let lacks = |job: &JobId| self.keepers(*job).contains(&peer);
        let theirs_lack: Vec<JobId> = difference.theirs_lack.iter().copied().filter(lacks).collect();
        let mut to_give: Vec<JobId> = difference.theirs_differ.iter().copied().filter(lacks).collect();
        let mut lacking: BTreeMap<Partition, usize> = BTreeMap::new();
        for job in &theirs_lack {
            *lacking.entry(self.records.partition_of(*job)).or_default() += 1;
        }
        let partitions = self.partitions_to_give(now.moment, peer, &lacking);
        to_give.extend(theirs_lack.iter().filter(|job| partitions.contains(&self.records.partition_of(**job))));
        for job in to_give {
            self.replication.push_once(job, peer);
        }
    }

    pub(super) fn finish_comparison(&mut self, now: Now, compared: Compared) {
        let Compared { peer, purpose, asked_at, horizon, same, differed, unsaved } = compared;
        self.counters.comparisons += 1;
        self.counters.differing_partitions += differed.len() as u64;
        for (partition, digest) in &same {
            // What was written here since the question was asked is not part of the answer.
            if self.records.digest(*partition, horizon) == *digest {
                self.learn_equal(now, *partition, horizon, peer, &unsaved);
            }
        }
        let shown = same.iter().map(|(p, _)| (*p, true)).chain(differed.iter().map(|p| (*p, false)));
        for (partition, agrees) in shown {
            // What whoever does not act has now says nothing of what it will keep.
            let acts = self.placement.acting(partition).contains(&peer);
            let is_news = acts && self.agreements.note(partition, peer, agrees);
            if agrees {
                self.turns.handle_agreement(now.moment, peer, partition);
            }
            self.successors.note_compared(partition, peer, agrees, asked_at);
            if is_news && self.should_keep(peer, partition) {
                // What differed has been exchanged: look once more, to know that it is the same now.
                self.comparison.want(peer, partition, Purpose::Routine);
            }
            if purpose == Purpose::Takeover {
                self.hear_of_takeover(partition, peer);
            }
        }
    }

    /// The whole partition is the same at `peer`, and on its disk but for `unsaved`: so is every record of it
    /// that this node still spreads.
    fn learn_equal(&mut self, now: Now, partition: Partition, horizon: u32, peer: NodeId, unsaved: &BTreeSet<JobId>) {
        if !self.placement.acting(partition).contains(&self.me.node) {
            // That the other has it does not say that it keeps it; its acknowledgement does.
            return;
        }
        let tracked: Vec<(JobId, u64, Version)> = self
            .records
            .in_partition(partition)
            .filter(|(job, held)| {
                self.replication.is_spreading(*job) && !unsaved.contains(job) && held.counts_at(horizon)
            })
            .map(|(job, held)| (job, held.revision, held.version))
            .collect();
        for (job, revision, version) in tracked {
            self.replication.learn(job, peer, revision, version);
            self.check_copies(now, job);
        }
    }

    /// Pushes again what has been on its way for long: a record that changed while it was compared is otherwise
    /// known to have arrived only by luck. Of very many, some at a time.
    pub(super) fn push_what_lingers(&mut self, now: Moment) {
        let lingers = self.config.timing.compare_interval;
        let from = std::mem::replace(&mut self.lingering_from, JobId(0));
        let lingering = self.replication.spreading_from(from).filter(|(_, since)| now.since(*since) > lingers);
        let lingering: Vec<JobId> = lingering.map(|(job, _)| job).take(LINGERING_AT_ONCE).collect();
        if lingering.len() == LINGERING_AT_ONCE {
            self.lingering_from = lingering.last().map_or(JobId(0), |last| JobId(last.0.wrapping_add(1)));
        }
        for job in &lingering {
            self.retarget(*job);
            self.dirty.insert(*job);
        }
        self.replication.push_again(&lingering);
    }
}
