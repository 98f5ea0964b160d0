//! Taking nothing new, and going.

use crate::model::id::AttemptKey;
use crate::model::member::Status;
use crate::model::time::Now;

use super::super::effect::Effect;
use super::super::lifecycle::PodState;
use super::super::sabotage::Bug;
use super::{Peer, full_disk};

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

    /// Whether of each partition somebody has the same, if anybody should. Where all drain they keep the records between
    /// them: whoever drained before has let go of what it had, and gets it again.
    fn others_have_what_is_kept(&self) -> bool {
        self.records.partitions_held().iter().all(|partition| {
            let acting = self.placement.acting(partition).iter();
            let mut others = acting.filter(|node| **node != self.me.node).peekable();
            others.peek().is_none() || others.any(|node| self.ownership.agrees(partition, *node))
        })
    }

    /// Says goodbye: the last thing a leaving node gossips.
    pub fn say_goodbye(&mut self, now: Now) {
        self.membership.set_status(now, Status::Left);
        self.gossip_urgently = true;
    }
}
