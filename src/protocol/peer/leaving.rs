//! Taking nothing new, and going.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::id::{AttemptKey, NodeId, Partition};
use crate::model::member::{Fingerprint, MemberState, Status};
use crate::model::time::{Moment, Now};

use super::super::comparison::Purpose;
use super::super::effect::Effect;
use super::super::lifecycle::PodState;
use super::super::sabotage::Bug;
use super::{Peer, full_disk};

/// Who keeps what a node that leaves acts for: where all drain, they keep the records between them, and whoever drained before
/// has let go of what it had, and gets it again.
///
/// What somebody holds says nothing as long as it does not know that this node leaves: it may be about to let go of it. So it
/// is asked when it is known to see the same ring.
#[derive(Debug, Default)]
pub(super) struct Successors {
    ring: Option<Fingerprint>,
    /// Since when each has been known to see it as this node does.
    agreed_since: BTreeMap<NodeId, Moment>,
    /// What each was found to hold since.
    hold: BTreeSet<(Partition, NodeId)>,
}

impl Successors {
    /// A comparison that began at `asked_at` showed whether `peer` holds the same.
    pub(super) fn note_compared(&mut self, partition: Partition, peer: NodeId, same: bool, asked_at: Moment) {
        if same && self.agreed_since.get(&peer).is_some_and(|since| *since <= asked_at) {
            self.hold.insert((partition, peer));
        } else {
            self.hold.remove(&(partition, peer));
        }
    }
}

impl Peer {
    /// Takes nothing new (`true`), or serves again.
    pub fn drain(&mut self, now: Now, on: bool) {
        if self.leaving {
            return;
        }
        match (on, self.status()) {
            (true, Status::Serving) => self.membership.set_status(now, Status::Draining),
            (false, Status::Draining) => self.membership.set_status(now, Status::Serving),
            (_, Status::ReadOnly) => self.before_full_disk = full_disk::drained(self.before_full_disk, on),
            (_, Status::Joining | Status::Returning | Status::Serving | Status::Draining | Status::Left) => {}
        }
    }

    /// Begins to leave: ends the pods, which go on elsewhere, and hands over what others should have.
    /// [`has_handed_over`](Self::has_handed_over) says when that is done.
    pub fn leave(&mut self, now: Now) {
        self.leaving = true;
        self.membership.set_status(now, Status::Draining);
        for (claim, pod) in &mut self.pods {
            pod.state = PodState::Ending;
            pod.ended_because = "its node was shut down";
            self.outbox.send(Effect::StopPod(AttemptKey { job: pod.job, claim: *claim }));
        }
    }

    /// Whether nothing is left here that others should have: no pod, no stray, nothing unsent or unsaved.
    pub fn has_handed_over(&self) -> bool {
        if self.sabotage.has(Bug::LeaveWithoutHandover) {
            return self.pods.is_empty();
        }
        // Whoever has not heard yet that this node leaves does not keep what it is given for it, and so does not
        // acknowledge it: what is handed over was heard of.
        self.pods.is_empty()
            && self.strays().next().is_none()
            && self.has_passed_all_on()
            && self.others_have_what_is_kept()
    }

    /// Whether of each partition somebody has the same, if anybody should or may yet.
    fn others_have_what_is_kept(&self) -> bool {
        let is_of_this_ring = self.successors.ring == Some(self.placement.fingerprint());
        self.records.partitions_held().iter().all(|partition| {
            let mut others = self.others_who_act(partition).peekable();
            let holds = |node: NodeId| is_of_this_ring && self.successors.hold.contains(&(partition, node));
            match others.peek() {
                Some(_) => others.any(holds),
                None => !self.somebody_may_yet_take(),
            }
        })
    }

    /// Whether there is anybody whom this node might give what it has in a moment: who is out of reach now, has yet to join, or
    /// cannot write.
    fn somebody_may_yet_take(&self) -> bool {
        let mut others = self.membership.view().values().filter(|member| member.facts.node != self.me.node);
        others.any(|member| member.state != MemberState::Left)
    }

    fn others_who_act(&self, partition: Partition) -> impl Iterator<Item = NodeId> + '_ {
        self.placement.acting(partition).iter().copied().filter(|node| *node != self.me.node)
    }

    /// While this node leaves: asks those who should have what it keeps, as soon as they know that they should.
    pub(super) fn look_for_successors(&mut self, now: Moment) {
        if !self.leaving {
            return;
        }
        let ring = self.placement.fingerprint();
        if self.successors.ring != Some(ring) {
            self.successors = Successors { ring: Some(ring), ..Successors::default() };
        }
        let view = self.membership.view().values();
        let agreeing: BTreeSet<NodeId> = view
            .filter(|member| member.state == MemberState::Alive && member.facts.ring == ring)
            .map(|member| member.facts.node)
            .collect();
        self.successors.agreed_since.retain(|node, _| agreeing.contains(node));
        self.successors.hold.retain(|(_, node)| agreeing.contains(node));
        for node in agreeing {
            self.successors.agreed_since.entry(node).or_insert(now);
        }
        for partition in self.records.partitions_held().iter() {
            let others: Vec<NodeId> = self.others_who_act(partition).collect();
            let asks = |node: &NodeId| {
                self.successors.agreed_since.contains_key(node)
                    && !self.successors.hold.contains(&(partition, *node))
                    && !self.comparison.is_pending(*node, partition)
            };
            for node in others.into_iter().filter(asks).collect::<Vec<_>>() {
                self.comparison.want(node, partition, Purpose::Routine);
            }
        }
    }

    /// Says goodbye: the last thing a leaving node gossips.
    pub fn say_goodbye(&mut self, now: Now) {
        self.membership.set_status(now, Status::Left);
        self.gossip_urgently = true;
    }
}
