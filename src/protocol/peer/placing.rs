//! Finding an executor for the jobs that wait here: this node if it has room, else one that says yes to an offer.
//!
//! Which nodes are asked in which order is the [`Scheduler`](crate::protocol::scheduler::Scheduler)'s business.

use crate::model::id::{Actor, JobId, NodeId};
use crate::model::member::{Load, Status};
use crate::model::resources::Resources;
use crate::model::time::Now;
use crate::model::wire::Message;

use super::super::lifecycle::{OwnerDoes, owner_decides, unfit};
use super::Peer;

impl Peer {
    /// Finds room for the jobs that wait, best first.
    pub(super) fn schedule(&mut self, now: Now) -> bool {
        let mut progress = false;
        loop {
            let mut placed = false;
            for job in self.scheduler.candidates() {
                let serves = self.status() == Status::Serving;
                let room_here = serves && self.room.free().slots > 0;
                if !room_here && !self.scheduler.anybody_has_room(self.me.node, self.membership.view()) {
                    return progress;
                }
                placed |= self.place(now, job);
            }
            if !placed {
                return progress;
            }
            progress = true;
        }
    }

    /// Claims the job for this node, or offers it to another. Returns whether it is out of the queue.
    fn place(&mut self, now: Now, job: JobId) -> bool {
        let Some(held) = self.records.lay_open(job) else {
            self.scheduler.remove(job);
            return true;
        };
        let record = held.record();
        let need = record.spec().need();
        let view = self.membership.view();
        if unfit(&record, self.me.node, view).is_none() && self.room.free().fits(&need) {
            self.claim(now, job, self.me);
            return true;
        }
        let walk = self.placement.walk(job);
        match self.scheduler.choose(&record, &walk, self.me.node, view) {
            Some(node) => {
                self.scheduler.offer(now.moment, job, node, need);
                self.send(node, Message::Offer { job, need });
                true
            }
            None => false,
        }
    }

    fn claim(&mut self, now: Now, job: JobId, executor: Actor) {
        self.scheduler.remove(job);
        self.counters.claimed += 1;
        let dot = self.next_dot();
        self.change(now, job, |record| record.claim(dot, executor, now.wall));
        if executor == self.me {
            let need = self.records.get(job).map(|held| held.record().spec().need());
            let fits = self.room.take(job, dot, need.unwrap_or_default());
            debug_assert!(fits, "a node claims for itself only what it has room for");
        }
    }

    /// Takes a job out of the queue, and back from the node to which it was offered.
    pub(super) fn unqueue(&mut self, job: JobId) {
        if let Some(node) = self.scheduler.remove(job) {
            self.send(node, Message::Withdraw { job });
        }
    }

    pub(super) fn handle_offer_answer(&mut self, now: Now, from: NodeId, job: JobId, accepted: bool, load: Load) {
        self.membership.update_load(from, load);
        if !self.scheduler.handle_answer(now.moment, job, from, accepted) {
            if accepted {
                self.send(from, Message::Withdraw { job });
            }
            return;
        }
        let executor = self
            .membership
            .view()
            .get(&from)
            .filter(|member| member.takes_work())
            .map(|member| Actor { node: from, generation: member.facts.generation });
        let still_due = self.ownership.is_caught_up(self.records.partition_of(job))
            && self.records.get(job).is_some_and(|held| {
                owner_decides(now.moment, &held.record(), &self.owner_sees(now.moment, &held)) == OwnerDoes::Place
            });
        match executor {
            Some(executor) if accepted && still_due => self.claim(now, job, executor),
            Some(_) | None => {
                if accepted {
                    self.send(from, Message::Withdraw { job });
                }
                self.dirty.insert(job);
            }
        }
    }

    /// A peer has room: it is offered what waits here and fits.
    pub(super) fn handle_idle(&mut self, now: Now, from: NodeId, free: Resources) {
        let view = self.membership.view();
        if !view.get(&from).is_some_and(|member| member.takes_work()) {
            return;
        }
        let mut left = free;
        let mut offers = Vec::new();
        for job in self.scheduler.candidates() {
            let Some(held) = self.records.get(job) else {
                continue;
            };
            let record = held.record();
            let need = record.spec().need();
            if left.fits(&need) && unfit(&record, from, view).is_none() {
                left = left.minus(&need);
                offers.push((job, need));
            }
        }
        for (job, need) in offers {
            self.scheduler.offer(now.moment, job, from, need);
            self.send(from, Message::Offer { job, need });
        }
    }

    /// With room and nothing to do, asks one of those who have more than they can do.
    pub(super) fn ask_for_work(&mut self) {
        let free = self.room.free();
        if self.status() != Status::Serving || free.slots == 0 || self.scheduler.backlog() > 0 {
            return;
        }
        let me = self.me.node;
        let busy = self
            .membership
            .view()
            .values()
            .filter(|member| member.is_live() && member.facts.node != me && member.facts.load.backlog > 0);
        let busy: Vec<NodeId> = busy.map(|member| member.facts.node).collect();
        if !busy.is_empty() {
            let chosen = busy[rand::Rng::next_u32(&mut self.rng) as usize % busy.len()];
            self.send(chosen, Message::Idle { free });
        }
    }
}
