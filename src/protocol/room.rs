//! The room that this node's pods take, and the room it has promised.
//!
//! An offer that is accepted sets room aside for a moment. When the claim comes, the promise becomes a
//! place; when the attempt ends, the place is free. Nothing is ever given twice, so a machine is never
//! oversubscribed by what it agreed to.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::model::id::{Dot, JobId};
use crate::model::resources::Resources;
use crate::model::time::Moment;

/// How long an accepted offer is kept without a claim.
const PROMISE_LASTS: Duration = Duration::from_secs(3);

/// What is taken of this node's capacity.
#[derive(Debug)]
pub struct Room {
    capacity: Resources,
    taken: BTreeMap<Dot, (JobId, Resources)>,
    promised: BTreeMap<JobId, (Resources, Moment)>,
    used: Resources,
}

impl Room {
    /// All of `capacity` is free.
    pub fn new(capacity: Resources) -> Self {
        Self { capacity, taken: BTreeMap::new(), promised: BTreeMap::new(), used: Resources::default() }
    }

    /// What is taken or promised.
    pub fn used(&self) -> Resources {
        self.used
    }

    /// What is neither taken nor promised.
    pub fn free(&self) -> Resources {
        self.capacity.minus(&self.used)
    }

    /// Sets room aside for an offer, if there is any. Asking again for the same job renews the promise.
    pub fn promise(&mut self, now: Moment, job: JobId, need: Resources) -> bool {
        self.withdraw(job);
        if !self.free().fits(&need) {
            return false;
        }
        self.used = self.used.plus(&need);
        self.promised.insert(job, (need, now + PROMISE_LASTS));
        true
    }

    /// Takes a promise back.
    pub fn withdraw(&mut self, job: JobId) {
        if let Some((need, _)) = self.promised.remove(&job) {
            self.used = self.used.minus(&need);
        }
    }

    /// An attempt takes its place, in exchange for the promise if there was one. Returns whether there is a
    /// place: a promise may have lapsed, and its room may have gone to others.
    #[must_use]
    pub fn take(&mut self, job: JobId, claim: Dot, need: Resources) -> bool {
        if self.holds(claim) {
            return true;
        }
        self.withdraw(job);
        let fits = self.free().fits(&need);
        if fits {
            self.used = self.used.plus(&need);
            self.taken.insert(claim, (job, need));
        }
        fits
    }

    /// An attempt has ended. Returns whether it had a place.
    pub fn release(&mut self, claim: Dot) -> bool {
        match self.taken.remove(&claim) {
            Some((_, need)) => {
                self.used = self.used.minus(&need);
                true
            }
            None => false,
        }
    }

    /// Whether the attempt has its place.
    pub fn holds(&self, claim: Dot) -> bool {
        self.taken.contains_key(&claim)
    }

    /// Whether any attempt of the job has its place. There are no more of them than the machine has room for.
    pub fn holds_any_of(&self, job: JobId) -> bool {
        self.taken.values().any(|(of, _)| *of == job)
    }

    /// When the next promise lapses.
    pub fn poll_timeout(&self) -> Option<Moment> {
        self.promised.values().map(|(_, until)| *until).min()
    }

    /// Drops promises that lapsed. Returns whether any did.
    pub fn handle_timeout(&mut self, now: Moment) -> bool {
        let lapsed: Vec<JobId> =
            self.promised.iter().filter(|(_, (_, until))| *until <= now).map(|(job, _)| *job).collect();
        for job in &lapsed {
            self.withdraw(*job);
        }
        !lapsed.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::{Actor, Generation, NodeId};

    fn slots(slots: u32) -> Resources {
        Resources { slots, ..Resources::default() }
    }

    fn claim(counter: u64) -> Dot {
        Dot { actor: Actor { node: NodeId(1), generation: Generation(1) }, counter }
    }

    #[test]
    fn a_promise_becomes_a_place_and_nothing_is_given_twice() {
        let mut room = Room::new(slots(2));
        assert!(room.promise(Moment::START, JobId(1), slots(1)));
        assert!(room.promise(Moment::START, JobId(1), slots(1)), "renewed, not doubled");
        assert!(room.promise(Moment::START, JobId(2), slots(1)));
        assert!(!room.promise(Moment::START, JobId(3), slots(1)));
        assert!(room.take(JobId(1), claim(1), slots(1)));
        assert!(room.take(JobId(1), claim(1), slots(1)), "taken, not twice");
        assert_eq!(room.free(), slots(0));
        assert!(!room.take(JobId(3), claim(3), slots(1)), "nobody promised it anything");
        assert!(room.handle_timeout(Moment::START + PROMISE_LASTS), "the second promise lapsed");
        assert_eq!(room.free(), slots(1));
        assert!(room.release(claim(1)) && !room.release(claim(1)));
        assert_eq!(room.used(), slots(0));
    }
}
