//! The jobs that this node owns, that are due, and that have found no room yet; and whom they are offered to.
//!
//! The owner runs a job itself where it can. Where it cannot, it walks the ring from the job's own place and
//! offers it to the first node that fits, has room by what it gossips, and is not above its fair share:
//! (1+ε) of the mean load (Mirrokni, Thorup and Zadimoghaddam, "Consistent Hashing with Bounded Loads", SODA
//! 2018). What is gossiped is a moment old, so what was offered since is counted on top, and the other node
//! has the last word.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::model::id::{JobId, NodeId};
use crate::model::member::{Load, Member, View};
use crate::model::record::Record;
use crate::model::resources::Resources;
use crate::model::time::{Moment, Timestamp};

use super::lifecycle::unfit;

/// ε: how far above the mean a node's load may be when it is offered more, in hundredths.
const EPSILON_PERCENT: u64 = 25;
/// How long an offer may go unanswered.
const OFFER_LASTS: Duration = Duration::from_millis(1_500);
/// How long a node that declined is not asked again.
const DECLINED_FOR: Duration = Duration::from_millis(300);
/// How many waiting jobs are looked at for one that fits, so that a long queue costs no more than a short one.
const LOOK_AHEAD: usize = 64;

/// What decides how long a job waits: its priority, then its age.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    priority: Reverse<i32>,
    submitted_at: Timestamp,
}

/// A place in the queue, in as little room as it can take: a long queue has one for each job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    priority: Reverse<i32>,
    submitted_at: Timestamp,
    job: JobId,
}

impl Rank {
    fn place(self, job: JobId) -> Place {
        Place { priority: self.priority, submitted_at: self.submitted_at, job }
    }
}

/// The queue and the open offers.
#[derive(Debug, Default)]
pub struct Scheduler {
    queue: BTreeSet<Place>,
    ranks: BTreeMap<JobId, Rank>,
    offers: BTreeMap<JobId, Offer>,
    declined: BTreeMap<NodeId, Moment>,
}

#[derive(Debug)]
struct Offer {
    to: NodeId,
    need: Resources,
    until: Moment,
}

impl Scheduler {
    /// The job waits for room, unless it is offered to somebody already. Its place may have changed: of two
    /// submissions under one key the earlier counts, once they meet.
    pub fn enqueue(&mut self, record: &Record) {
        if !self.offers.contains_key(&record.id) {
            let rank = Rank { priority: Reverse(record.spec().priority), submitted_at: record.submission.submitted_at };
            if let Some(before) = self.ranks.insert(record.id, rank) {
                self.queue.remove(&before.place(record.id));
            }
            self.queue.insert(rank.place(record.id));
        }
    }

    /// The job no longer waits. Returns the node to which it was offered.
    pub fn remove(&mut self, job: JobId) -> Option<NodeId> {
        self.unqueue(job);
        self.offers.remove(&job).map(|offer| offer.to)
    }

    /// The jobs to look at now, in order.
    pub fn candidates(&self) -> Vec<JobId> {
        self.queue.iter().take(LOOK_AHEAD).map(|place| place.job).collect()
    }

    /// How many jobs wait.
    pub fn backlog(&self) -> usize {
        self.queue.len()
    }

    /// How many jobs are before this one, if it waits.
    pub fn ahead_of(&self, job: JobId) -> Option<u32> {
        let rank = self.ranks.get(&job)?;
        Some(u32::try_from(self.queue.range(..rank.place(job)).count()).unwrap_or(u32::MAX))
    }

    /// The node to which the job is offered.
    pub fn offered_to(&self, job: JobId) -> Option<NodeId> {
        self.offers.get(&job).map(|offer| offer.to)
    }

    /// The job is offered to `to`.
    pub fn offer(&mut self, now: Moment, job: JobId, to: NodeId, need: Resources) {
        self.unqueue(job);
        self.offers.insert(job, Offer { to, need, until: now + OFFER_LASTS });
    }

    fn unqueue(&mut self, job: JobId) {
        if let Some(rank) = self.ranks.remove(&job) {
            self.queue.remove(&rank.place(job));
        }
    }

    /// `from` answered. Returns whether the answer was awaited; then the offer is over, either way.
    pub fn handle_answer(&mut self, now: Moment, job: JobId, from: NodeId, accepted: bool) -> bool {
        if self.offers.get(&job).is_none_or(|offer| offer.to != from) {
            return false;
        }
        self.offers.remove(&job);
        if !accepted {
            self.declined.insert(from, now + DECLINED_FOR);
        }
        true
    }

    /// `node` is gone: what was offered to it waits again.
    pub fn handle_gone(&mut self, node: NodeId) -> Vec<JobId> {
        let jobs: Vec<JobId> = self.offers.iter().filter(|(_, offer)| offer.to == node).map(|(job, _)| *job).collect();
        for job in &jobs {
            self.offers.remove(job);
        }
        jobs
    }

    /// When the next offer is overdue, or a node that declined may be asked again.
    pub fn poll_timeout(&self) -> Option<Moment> {
        let overdue = self.offers.values().map(|offer| offer.until).min();
        let again = self.declined.values().min().copied().filter(|_| !self.queue.is_empty());
        [overdue, again].into_iter().flatten().min()
    }

    /// Offers that were not answered in time: their jobs wait again, and their nodes count as having declined.
    pub fn handle_timeout(&mut self, now: Moment) -> Vec<(JobId, NodeId)> {
        self.declined.retain(|_, until| *until > now);
        let overdue: Vec<(JobId, NodeId)> =
            self.offers.iter().filter(|(_, offer)| offer.until <= now).map(|(job, offer)| (*job, offer.to)).collect();
        for (job, node) in &overdue {
            self.offers.remove(job);
            self.declined.insert(*node, now + DECLINED_FOR);
        }
        overdue
    }

    /// The node to offer `record`'s job to: the first of `walk` that fits, has room, is below its fair share
    /// and is not this node.
    pub fn choose(&self, record: &Record, walk: &[NodeId], me: NodeId, view: &View) -> Option<NodeId> {
        let need = record.spec().need();
        let bound = FairShare::of(view, need.slots);
        walk.iter().copied().filter(|node| *node != me && !self.declined.contains_key(node)).find(|node| {
            let Some(member) = view.get(node) else {
                return false;
            };
            let used = self.used_by(*node, &member.facts.load);
            unfit(record, *node, view).is_none()
                && member.facts.capacity.minus(&used).fits(&need)
                && bound.allows(member, used.slots + need.slots)
        })
    }

    /// Whether any other live node seems to have a free slot: if not, looking at the queue is no use.
    pub fn anybody_has_room(&self, me: NodeId, view: &View) -> bool {
        view.values().any(|member| {
            let node = member.facts.node;
            node != me
                && member.takes_work()
                && !self.declined.contains_key(&node)
                && self.used_by(node, &member.facts.load).slots < member.facts.capacity.slots
        })
    }

    /// What a node says it uses, and what was offered to it that it may not have counted yet.
    fn used_by(&self, node: NodeId, load: &Load) -> Resources {
        let offered = self.offers.values().filter(|offer| offer.to == node);
        offered.fold(load.used, |used, offer| used.plus(&offer.need))
    }
}

/// The bound of consistent hashing with bounded loads, in slots.
struct FairShare {
    used: u64,
    capacity: u64,
}

impl FairShare {
    /// With `more` slots placed besides what all nodes use now.
    fn of(view: &View, more: u32) -> Self {
        let workers = || view.values().filter(|member| member.takes_work());
        let used: u64 = workers().map(|member| u64::from(member.facts.load.used.slots)).sum();
        let capacity = workers().map(|member| u64::from(member.facts.capacity.slots)).sum();
        Self { used: used + u64::from(more), capacity }
    }

    /// Whether `member` may use `slots`: at most its part of (1+ε) of all load, rounded up.
    fn allows(&self, member: &Member, slots: u32) -> bool {
        let part = self.used * (100 + EPSILON_PERCENT) * u64::from(member.facts.capacity.slots);
        u64::from(slots) <= part.div_ceil(self.capacity.max(1) * 100)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::id::{Actor, Dot, Generation};
    use crate::model::record::Submission;
    use crate::model::spec::Spec;
    use crate::model::time::Timestamp;

    fn submitted_at(ms: u64) -> Record {
        let (spec, gateway) = (Spec::default(), NodeId(1));
        let submission = Submission { spec, submitted_at: Timestamp(ms), gateway, home: Vec::new(), retry_of: None };
        let dot = Dot { actor: Actor { node: gateway, generation: Generation(1) }, counter: 1 };
        Record::new(JobId(1), Arc::new(submission), dot)
    }

    #[test]
    fn a_job_has_one_place_in_the_queue_although_its_submission_changes() {
        let mut scheduler = Scheduler::default();
        scheduler.enqueue(&submitted_at(5));
        scheduler.enqueue(&submitted_at(3));
        assert_eq!(scheduler.candidates(), [JobId(1)]);
        scheduler.remove(JobId(1));
        assert_eq!(scheduler.backlog(), 0, "else it would be claimed again and again");
    }
}
