//! What follows when the ring changes: who owns what, who should have which records, and what is to be compared anew.

use std::sync::Arc;

use crate::model::id::{Generation, JobId, NodeId, Partition};
use crate::model::member::{Member, MemberState, PartitionSet, Status, View, majority_in_reach};
use crate::model::ring::Placement;
use crate::model::time::{Moment, Now};

use super::super::comparison::Purpose;
use super::{Peer, Routing};

/// What placement and ownership depend on of a member: whether it lives, in which start, doing what, how much of it.
pub(super) type Standing = (NodeId, MemberState, Generation, Status, u16);

/// A doubt changes nothing about where records belong, and is the most frequent change of all.
fn standings(view: &View) -> Vec<Standing> {
    let one = |member: &Member| {
        let state = if member.is_live() { MemberState::Alive } else { member.state };
        let facts = &member.facts;
        (facts.node, state, facts.generation, facts.status, facts.weight)
    };
    view.values().map(one).collect()
}

impl Peer {
    /// Computes the ring anew if the members changed, and draws the consequences.
    pub(super) fn refresh_placement(&mut self, now: Now) -> bool {
        let epoch = self.membership.view_epoch();
        if self.placed_epoch == Some(epoch) {
            return false;
        }
        self.placed_epoch = Some(epoch);
        self.look_at_open_jobs(now.moment);
        self.must_schedule = true;
        let standings = standings(self.membership.view());
        if self.placed_standings.as_ref() != Some(&standings) {
            self.placed_standings = Some(standings);
            self.place_anew(now);
        }
        let routing = Routing { me: self.me.node, view: self.membership.view(), placement: &self.placement };
        self.gateway.handle_view_change(now.moment, routing);
        true
    }

    /// A death, a restart or a doubt can change what is to be done about any job that somebody runs, and about any at all
    /// if there is a majority now and was none before.
    fn look_at_open_jobs(&mut self, now: Moment) {
        let has_majority = majority_in_reach(self.membership.view());
        let all = has_majority != self.majority_since.is_some();
        if all {
            self.majority_since = has_majority.then_some(now);
        }
        let has_run = |job: &JobId| self.records.get(*job).is_some_and(|held| held.summary.has_attempts());
        self.dirty.extend(self.records.open().iter().copied().filter(|job| all || has_run(job)));
    }

    fn place_anew(&mut self, now: Now) {
        let placement = self.placement.after(self.membership.view(), self.config.cluster.replicas);
        let before = std::mem::replace(&mut self.placement, Arc::new(placement));
        let me = self.me.node;
        self.acting_for = self.placement.all().filter(|p| self.acts_for(*p)).collect();
        self.first_of = self.acting_for.iter().copied().filter(|p| self.placement.owner(*p) == Some(me)).collect();
        if before.fingerprint() != self.placement.fingerprint() {
            self.gossip_urgently |= self.status() == Status::Serving;
            self.begin_move(now);
        }
        let waited = self.wait_for_the_absent(now.moment);
        for partition in self.placement.all() {
            self.follow_ring(now.moment, partition, &before, &waited);
        }
        let moved = |partition: &Partition| {
            self.placement.acting(*partition) != before.acting(*partition)
                || self.placement.home(*partition) != before.home(*partition)
                || self.absence.is_awaited(*partition) != waited.contains(*partition)
        };
        let moved = self.placement.all().filter(moved).collect();
        self.doubt_executors(&moved, &before);
        self.retarget_all(&moved);
        self.ask_for_what_is_kept_now();
    }

    fn follow_ring(&mut self, now: Moment, partition: Partition, before: &Placement, waited: &PartitionSet) {
        let me = self.me.node;
        self.follow_owner(now, partition, before);
        let acting = self.placement.acting(partition).to_vec();
        self.agreements.retain(partition, &acting);
        if self.records.count_in(partition) == 0 {
            return;
        }
        let is_stray = !self.keeps_for_now(partition);
        if is_stray {
            self.track_strays(now, partition);
        }
        let kept = |node: NodeId| {
            before.acting(partition).contains(&node)
                && (!waited.contains(partition) || before.home(partition).contains(&node))
        };
        let newly = |node: NodeId| is_stray || !kept(node) || !kept(me);
        let keeps = |node: NodeId| self.should_keep(node, partition);
        let has_a_part = is_stray || keeps(me);
        let is_wanted = |node: &NodeId| *node != me && has_a_part && keeps(*node) && newly(*node);
        let others: Vec<NodeId> = acting.iter().copied().filter(is_wanted).collect();
        for node in others {
            self.comparison.want(node, partition, Purpose::Routine);
        }
    }

    /// Whoever begins to act was no target before, or one that ran the job: it may have ended that since and let go of the record.
    fn doubt_executors(&mut self, moved: &PartitionSet, before: &Placement) {
        let concerned = self.replication.spreading_from(JobId(0)).map(|(job, _)| (job, self.records.partition_of(job)));
        let concerned: Vec<_> = concerned.filter(|(_, partition)| moved.contains(*partition)).collect();
        for (job, partition) in concerned {
            let acted = before.acting(partition);
            for node in self.placement.acting(partition).iter().filter(|node| !acted.contains(node)) {
                self.replication.doubt(job, *node);
            }
        }
    }

    /// Who should have what is on its way is asked anew, for these partitions, and for what somebody runs, who may be gone.
    fn retarget_all(&mut self, moved: &PartitionSet) {
        let is_run = |job: &JobId| {
            self.records.get(*job).is_some_and(|held| !held.state().is_terminal() && held.summary.has_attempts())
        };
        let is_concerned = |job: &JobId| moved.contains(self.records.partition_of(*job)) || is_run(job);
        let spreading = self.replication.spreading_from(JobId(0)).map(|(job, _)| job);
        for job in spreading.filter(is_concerned).collect::<Vec<_>>() {
            self.retarget(job);
            self.dirty.insert(job);
        }
    }

    /// Who should have what is on its way is asked anew, for one job.
    pub(super) fn retarget(&mut self, job: JobId) {
        let targets = if self.replication.insists(job) { self.targets(job) } else { self.keepers(job) };
        self.replication.retarget(job, targets);
    }

    /// Stops waiting for those whose time to come back is over: what they should hold is copied to those who act in their
    /// place.
    pub(super) fn give_up_the_absent(&mut self, now: Moment) {
        let waited = self.wait_for_the_absent(now);
        let given_up: PartitionSet = waited.iter().filter(|partition| !self.absence.is_awaited(*partition)).collect();
        for partition in given_up.iter() {
            let acting = self.placement.acting(partition).to_vec();
            let is_concerned = acting.contains(&self.me.node) || self.records.count_in(partition) > 0;
            for node in acting.into_iter().filter(|node| is_concerned && *node != self.me.node) {
                self.comparison.want(node, partition, Purpose::Routine);
            }
        }
        if !given_up.is_empty() {
            self.retarget_all(&given_up);
            self.ask_for_what_is_kept_now();
        }
    }
}
