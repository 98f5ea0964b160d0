//! Getting what this node wrote to the nodes that should have it, and knowing when they do.
//!
//! A record that this node changed is **spread**: pushed to its targets until each has acknowledged, from its
//! disk, a push made at that revision or later. Pushes carry whole records, so a later one includes every
//! earlier one, and what is lost is simply pushed again. Records on their way to one node are gathered into
//! large pushes, of which a few at a time are under way; the rest waits as mere ids.
//!
//! A record that others wrote, and that this node happens to hold, is only **tracked**: who has it is written
//! down as comparisons find out, and nothing is pushed but what they show to be missing. What moves because the
//! ring changed travels in a lane of its own, behind what was just written and at a bounded pace, so that work
//! goes on while a cluster is being rearranged.
//!
//! A push that is not answered for longer than usual is sent again, and the answer to either counts. What is usual
//! follows the answers of each node: one that has much to do answers late, and would never be done if it got everything
//! twice for that. For the same reason one push of a handover at a time is under way to a node.
//!
//! Whoever wants to know that enough copies exist leaves a `Waiter`; it is handed back when they do, or
//! when its time is over, with the count.
//!
//! Not known here: who the targets are, and what a record means.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::model::id::{Generation, JobId, NodeId};
use crate::model::record::{Record, Version};
use crate::model::time::Moment;
use crate::model::wire::Message;

use super::blobs::Blobs;
use super::numbers::Numbers;
use super::records::Records;

/// Records in one push, at the most.
const PUSH_RECORDS: usize = 256;
/// Bytes of specs in one push, roughly, at the most.
const PUSH_BYTES: usize = 1 << 20;
/// Pushes to one node under way, at the most.
const PUSHES_UNDER_WAY: usize = 4;
/// An unanswered push waits for twice as long after each that was not answered before it, but no longer than this many times.
const MOST_PATIENCE: u32 = 8;
/// Pushes that were sent again, whose first answer may still come, at the most.
const MOST_LATE: usize = 256;
/// How fast records are handed to one node because of a comparison, in bytes a second: a fifth of a gigabit link.
const HANDOVER_PACE: u64 = 24 << 20;

/// The push sequence and everything that is being spread.
#[derive(Debug)]
pub struct Replication<W> {
    resend_after: Duration,
    seqs: Numbers,
    spreads: BTreeMap<JobId, Spread<W>>,
    lanes: BTreeMap<NodeId, Lanes>,
    under_way: BTreeMap<u64, Push>,
    /// Pushes whose records are in line again.
    late: BTreeMap<u64, Push>,
    patience: BTreeMap<NodeId, Patience>,
    resends: BTreeSet<(Moment, u64)>,
    deadlines: BTreeSet<(Moment, JobId)>,
}

/// What waits to be pushed to one node.
#[derive(Debug, Default)]
struct Lanes {
    /// Records that this node wrote: others wait for them.
    urgent: BTreeSet<JobId>,
    /// Records that a comparison showed to be missing there.
    handover: BTreeSet<JobId>,
    /// Pushes that the node has not answered yet.
    under_way: usize,
    /// One of them is a handover.
    is_handing_over: bool,
    /// No further handover before.
    handover_at: Moment,
}

impl Lanes {
    fn is_idle(&self, now: Moment) -> bool {
        !self.is_busy() && self.handover_at <= now
    }

    fn is_busy(&self) -> bool {
        !self.urgent.is_empty() || !self.handover.is_empty() || self.under_way > 0
    }

    /// Whether anything may be pushed now.
    fn is_ready(&self, now: Moment) -> bool {
        self.under_way < PUSHES_UNDER_WAY
            && (!self.urgent.is_empty() || (self.may_hand_over() && self.handover_at <= now))
    }

    fn may_hand_over(&self) -> bool {
        !self.handover.is_empty() && !self.is_handing_over
    }
}

/// A record that is being spread.
#[derive(Debug)]
struct Spread<W> {
    /// This node wrote it, and pushes it until all have it; else it only keeps account.
    insists: bool,
    /// The first revision that all targets must reach.
    revision: u64,
    /// The revision on this node's own disk.
    stored_here: u64,
    started: Moment,
    targets: BTreeSet<NodeId>,
    /// What each target is known to have on disk. Copies elsewhere will not stay, and count for nothing.
    copies: BTreeMap<NodeId, StoredCopy>,
    waiters: Vec<Waiter<W>>,
}

#[derive(Debug, Clone, Copy)]
struct StoredCopy {
    revision: u64,
    version: Version,
}

#[derive(Debug)]
struct Push {
    to: NodeId,
    urgent: bool,
    jobs: Vec<(JobId, u64)>,
    sent_at: Moment,
    resend_at: Moment,
}

/// How long a node takes to answer a push.
#[derive(Debug, Clone, Copy, Default)]
struct Patience {
    /// A running mean.
    usual: Duration,
    /// How many in a row were not answered in time.
    unanswered: u32,
}

impl Patience {
    fn handle_answer(&mut self, took: Duration) {
        self.usual = if self.usual.is_zero() { took } else { (self.usual * 7 + took) / 8 };
        self.unanswered = 0;
    }

    fn resend_after(&self, at_least: Duration) -> Duration {
        let doubled =
            at_least.saturating_mul(1_u32.checked_shl(self.unanswered).unwrap_or(u32::MAX).min(MOST_PATIENCE));
        doubled.max(self.usual * 2)
    }
}

/// Somebody who waits for copies.
#[derive(Debug)]
struct Waiter<W> {
    revision: u64,
    wanted: u32,
    deadline: Moment,
    token: W,
}

/// A waiter's answer.
#[derive(Debug)]
pub struct Waited<W> {
    /// The job.
    pub job: JobId,
    /// Which nodes have it on disk, this one included if so.
    pub replicas: Vec<NodeId>,
    /// How many were wanted.
    pub wanted: u32,
    /// What the waiter left.
    pub token: W,
}

impl<W> Replication<W> {
    /// Nothing under way in this start; unanswered pushes are repeated after `resend_after`.
    pub fn new(start: Generation, resend_after: Duration) -> Self {
        Self {
            resend_after,
            seqs: Numbers::of(start),
            spreads: BTreeMap::new(),
            lanes: BTreeMap::new(),
            under_way: BTreeMap::new(),
            late: BTreeMap::new(),
            patience: BTreeMap::new(),
            resends: BTreeSet::new(),
            deadlines: BTreeSet::new(),
        }
    }

    /// This node changed the record: every one of `targets` must get revision `revision`.
    pub fn spread(&mut self, now: Moment, job: JobId, revision: u64, targets: BTreeSet<NodeId>) {
        let spread = self.spreads.entry(job).or_insert_with(|| Spread::new(now, revision));
        spread.insists = true;
        spread.revision = revision;
        spread.aim_at(targets);
        for node in spread.missing() {
            self.lanes.entry(node).or_default().urgent.insert(job);
        }
    }

    /// This node holds a record that others should hold: keeps account of who does, pushing nothing yet.
    pub fn track(&mut self, now: Moment, job: JobId, revision: u64, targets: BTreeSet<NodeId>) {
        let spread = self.spreads.entry(job).or_insert_with(|| Spread::new(now, revision));
        spread.aim_at(targets);
    }

    /// The targets of a record that is being spread changed. Those that were targets before are being served.
    pub fn retarget(&mut self, job: JobId, targets: BTreeSet<NodeId>) {
        if let Some(spread) = self.spreads.get_mut(&job) {
            let before = spread.aim_at(targets);
            if spread.insists {
                for node in spread.missing().filter(|node| !before.contains(node)) {
                    self.lanes.entry(node).or_default().urgent.insert(job);
                }
            }
        }
    }

    /// Whether the node still has the record is not known any more. It is a target all the same, and so given it again.
    pub fn doubt(&mut self, job: JobId, node: NodeId) {
        let had_it = |spread: &mut Spread<W>| spread.copies.remove(&node).is_some() && spread.insists;
        if self.spreads.get_mut(&job).is_some_and(had_it) {
            self.lanes.entry(node).or_default().urgent.insert(job);
        }
    }

    /// Pushes records that are being spread again to every target that is not known to have them, but for targets to
    /// which anything is still on its way.
    pub fn push_again(&mut self, jobs: &[JobId]) {
        let busy: BTreeSet<NodeId> =
            self.lanes.iter().filter(|(_, lanes)| lanes.is_busy()).map(|(node, _)| *node).collect();
        for job in jobs {
            let missing = self.spreads.get(job).into_iter().flat_map(Spread::missing);
            for node in missing.filter(|node| !busy.contains(node)) {
                self.lanes.entry(node).or_default().handover.insert(*job);
            }
        }
    }

    /// Pushes the record once to a node that was seen to lack something, without insisting.
    pub fn push_once(&mut self, job: JobId, to: NodeId) {
        let lanes = self.lanes.entry(to).or_default();
        if !lanes.urgent.contains(&job) {
            lanes.handover.insert(job);
        }
    }

    /// How many records wait to be handed over to other nodes, counted once for each.
    pub fn handovers_waiting(&self) -> u64 {
        self.lanes.values().map(|lanes| lanes.handover.len() as u64).sum()
    }

    /// Wants to know when `wanted` nodes have revision `revision` of a record that is being spread, or what
    /// there is by `deadline`.
    pub fn wait(&mut self, job: JobId, revision: u64, wanted: u32, deadline: Moment, token: W) {
        if let Some(spread) = self.spreads.get_mut(&job) {
            spread.waiters.push(Waiter { revision, wanted, deadline, token });
            self.deadlines.insert((deadline, job));
        }
    }

    /// This node has `revision` on its own disk.
    pub fn handle_stored_here(&mut self, job: JobId, revision: u64) {
        if let Some(spread) = self.spreads.get_mut(&job) {
            spread.stored_here = spread.stored_here.max(revision);
        }
    }

    /// `from` has push `seq` on its disk. Returns the records it answered for.
    pub fn handle_stored(&mut self, now: Moment, from: NodeId, seq: u64, versions: &[Option<Version>]) -> Vec<JobId> {
        let is_from = |push: &Push| push.to == from;
        let Some(push) = self.take_under_way(seq, is_from).or_else(|| remove_if(&mut self.late, seq, is_from)) else {
            return Vec::new();
        };
        self.patience.entry(from).or_default().handle_answer(now.since(push.sent_at));
        for ((job, revision), version) in push.jobs.iter().zip(versions) {
            let spread = self.spreads.get_mut(job).filter(|spread| spread.targets.contains(&from));
            if let (Some(spread), Some(version)) = (spread, version) {
                let copy = spread.copies.entry(from).or_insert(StoredCopy { revision: 0, version: *version });
                if *revision >= copy.revision {
                    *copy = StoredCopy { revision: *revision, version: *version };
                }
            }
        }
        push.jobs.into_iter().map(|(job, _)| job).collect()
    }

    /// A comparison showed that `node` has exactly this node's present revision.
    pub fn learn(&mut self, job: JobId, node: NodeId, revision: u64, version: Version) {
        if let Some(spread) = self.spreads.get_mut(&job).filter(|spread| spread.targets.contains(&node)) {
            spread.copies.insert(node, StoredCopy { revision, version });
        }
    }

    /// Waiters of `job` that have what they want, or whose time is over, or who never will.
    pub fn satisfied(&mut self, now: Moment, job: JobId, me: NodeId) -> Vec<Waited<W>> {
        let Some(spread) = self.spreads.get_mut(&job) else {
            return Vec::new();
        };
        let mut satisfied = Vec::new();
        let mut at = 0;
        while at < spread.waiters.len() {
            let waiter = &spread.waiters[at];
            let here = (spread.stored_here >= waiter.revision).then_some(me);
            let there =
                spread.copies.iter().filter(|(_, copy)| copy.revision >= waiter.revision).map(|(node, _)| *node);
            let replicas: Vec<NodeId> = here.into_iter().chain(there).collect();
            if replicas.len() >= waiter.wanted as usize || waiter.deadline <= now {
                let waiter = spread.waiters.swap_remove(at);
                self.deadlines.remove(&(waiter.deadline, job));
                satisfied.push(Waited { job, replicas, wanted: waiter.wanted, token: waiter.token });
            } else {
                at += 1;
            }
        }
        satisfied
    }

    /// Whether every target has the record, and nobody waits: there is nothing left to do about it.
    pub fn is_complete(&self, job: JobId) -> bool {
        self.spreads.get(&job).is_none_or(|spread| spread.waiters.is_empty() && spread.missing().next().is_none())
    }

    /// Stops spreading a record.
    pub fn forget(&mut self, job: JobId) {
        if let Some(spread) = self.spreads.remove(&job) {
            for waiter in spread.waiters {
                self.deadlines.remove(&(waiter.deadline, job));
            }
        }
    }

    /// Whether the record is being spread.
    pub fn is_spreading(&self, job: JobId) -> bool {
        self.spreads.contains_key(&job)
    }

    /// Whether this node wrote the record, and pushes it until all have it.
    pub fn insists(&self, job: JobId) -> bool {
        self.spreads.get(&job).is_some_and(|spread| spread.insists)
    }

    /// Every record that is being spread, from this id on, and since when.
    pub fn spreading_from(&self, first: JobId) -> impl Iterator<Item = (JobId, Moment)> + '_ {
        self.spreads.range(first..).map(|(job, spread)| (*job, spread.started))
    }

    /// The nodes known to have exactly `version`, of those that were told while the record was spread.
    pub fn known_copies(&self, job: JobId, version: Version) -> Option<BTreeSet<NodeId>> {
        let spread = self.spreads.get(&job)?;
        Some(spread.copies.iter().filter(|(_, copy)| copy.version == version).map(|(node, _)| *node).collect())
    }

    /// `node` is gone: what was under way to it is not awaited, and nothing more is sent there.
    pub fn handle_gone(&mut self, node: NodeId) {
        self.lanes.remove(&node);
        self.patience.remove(&node);
        self.late.retain(|_, push| push.to != node);
        let lost: Vec<u64> = self.under_way.iter().filter(|(_, push)| push.to == node).map(|(seq, _)| *seq).collect();
        for seq in lost {
            self.take_under_way(seq, |_| true);
        }
    }

    /// The next moment at which an answer is overdue or a waiter's time is over.
    pub fn poll_timeout(&self) -> Option<Moment> {
        let resend = self.resends.first().map(|(at, _)| *at);
        let deadline = self.deadlines.first().map(|(at, _)| *at);
        let waits = |lanes: &&Lanes| lanes.may_hand_over() && lanes.under_way < PUSHES_UNDER_WAY;
        let handover = self.lanes.values().filter(waits).map(|lanes| lanes.handover_at).min();
        [resend, deadline, handover].into_iter().flatten().min()
    }

    /// Puts overdue pushes back in line; returns the jobs whose waiters' time is over.
    pub fn handle_timeout(&mut self, now: Moment) -> Vec<JobId> {
        while let Some((at, seq)) = self.resends.first().copied().filter(|(at, _)| *at <= now) {
            self.resends.remove(&(at, seq));
            let Some(push) = self.take_under_way(seq, |_| true) else { continue };
            self.patience.entry(push.to).or_default().unanswered += 1;
            for (job, revision) in &push.jobs {
                let still_missing = self.spreads.get(job).is_some_and(|spread| {
                    spread.targets.contains(&push.to)
                        && spread.copies.get(&push.to).is_none_or(|copy| copy.revision < *revision)
                });
                if still_missing {
                    let lanes = self.lanes.entry(push.to).or_default();
                    if push.urgent {
                        lanes.urgent.insert(*job)
                    } else {
                        lanes.handover.insert(*job)
                    };
                }
            }
            self.late.insert(seq, push);
            if self.late.len() > MOST_LATE {
                self.late.pop_first();
            }
        }
        let mut overdue = Vec::new();
        while let Some((at, job)) = self.deadlines.first().copied().filter(|(at, _)| *at <= now) {
            self.deadlines.remove(&(at, job));
            overdue.push(job);
        }
        overdue
    }

    /// The next push to send, if any node may be sent one.
    pub fn poll_push(&mut self, now: Moment, records: &Records, blobs: &mut Blobs) -> Option<(NodeId, Message)> {
        loop {
            let (to, lanes) = self.lanes.iter_mut().find(|(_, lanes)| lanes.is_ready(now))?;
            let to = *to;
            let urgent = !lanes.urgent.is_empty();
            let waiting = if urgent { &mut lanes.urgent } else { &mut lanes.handover };
            let mut batch: Vec<Arc<Record>> = Vec::new();
            let mut jobs = Vec::new();
            let mut riding = Vec::new();
            let mut lacking = Vec::new();
            let mut bytes = 0;
            while let Some(job) = waiting.pop_first() {
                // A late answer may have come since it was put in line.
                let has_it = |revision: u64| {
                    let copy = self.spreads.get(&job).and_then(|spread| spread.copies.get(&to));
                    urgent && copy.is_some_and(|copy| copy.revision >= revision)
                };
                if let Some(held) = records.get(job).filter(|held| !has_it(held.revision)) {
                    let record = held.record();
                    bytes += 512 + record.spec().stdin.as_ref().map_or(0, |stdin| stdin.0.len());
                    let with_it = blobs.riding_along(to, &record.blobs());
                    bytes += with_it.iter().map(|blob| blob.bytes().len()).sum::<usize>();
                    riding.extend(with_it);
                    batch.push(record);
                    lacking.extend(held.lacking.then_some(job));
                    jobs.push((job, held.revision));
                }
                if batch.len() >= PUSH_RECORDS || bytes >= PUSH_BYTES {
                    break;
                }
            }
            if batch.is_empty() {
                self.forget_idle_lane(now, to);
                continue;
            }
            lanes.under_way += 1;
            if !urgent {
                lanes.is_handing_over = true;
                lanes.handover_at = now + Duration::from_micros(bytes as u64 * 1_000_000 / HANDOVER_PACE);
            }
            let seq = self.seqs.take();
            let resend_at = now + self.patience.entry(to).or_default().resend_after(self.resend_after);
            self.resends.insert((resend_at, seq));
            self.under_way.insert(seq, Push { to, urgent, jobs, sent_at: now, resend_at });
            let known_for = records.known_for(now, &batch);
            return Some((to, Message::Push { seq, records: batch, blobs: riding, lacking, known_for }));
        }
    }

    fn take_under_way(&mut self, seq: u64, is_it: impl Fn(&Push) -> bool) -> Option<Push> {
        let push = remove_if(&mut self.under_way, seq, is_it)?;
        self.resends.remove(&(push.resend_at, seq));
        if let Some(lanes) = self.lanes.get_mut(&push.to) {
            lanes.under_way = lanes.under_way.saturating_sub(1);
            lanes.is_handing_over &= push.urgent;
        }
        Some(push)
    }

    fn forget_idle_lane(&mut self, now: Moment, to: NodeId) {
        if self.lanes.get(&to).is_some_and(|lanes| lanes.is_idle(now)) {
            self.lanes.remove(&to);
        }
    }
}

fn remove_if(pushes: &mut BTreeMap<u64, Push>, seq: u64, is_it: impl Fn(&Push) -> bool) -> Option<Push> {
    pushes.get(&seq).filter(|push| is_it(push))?;
    pushes.remove(&seq)
}

impl<W> Spread<W> {
    fn new(now: Moment, revision: u64) -> Self {
        Self {
            insists: false,
            revision,
            stored_here: 0,
            started: now,
            targets: BTreeSet::new(),
            copies: BTreeMap::new(),
            waiters: Vec::new(),
        }
    }

    /// Changes the targets. What is known of those that are none any more is forgotten: they let go of the record once
    /// the others have it, and may be targets again before they have got it back.
    fn aim_at(&mut self, targets: BTreeSet<NodeId>) -> BTreeSet<NodeId> {
        self.copies.retain(|node, _| targets.contains(node));
        std::mem::replace(&mut self.targets, targets)
    }

    fn missing(&self) -> impl Iterator<Item = NodeId> + '_ {
        let has = |node: &NodeId| self.copies.get(node).is_some_and(|copy| copy.revision >= self.revision);
        self.targets.iter().filter(move |node| !has(node)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::{Actor, Dot, Generation};
    use crate::model::record::Submission;
    use crate::model::spec::Spec;
    use crate::model::time::Timestamp;

    const JOB: JobId = JobId(1);
    const ME: NodeId = NodeId(0xa);
    const B: NodeId = NodeId(0xb);
    const C: NodeId = NodeId(0xc);
    const VERSION: Version = Version(7);

    fn after(ms: u64) -> Moment {
        Moment::default() + Duration::from_millis(ms)
    }

    /// A record in revision 1 that this node wrote and stored, and that `targets` should get; two copies are wanted.
    fn awaited(targets: &[NodeId]) -> Replication<()> {
        let mut replication = Replication::new(Generation(1), Duration::from_millis(300));
        replication.spread(after(0), JOB, 1, targets.iter().copied().collect());
        replication.wait(JOB, 1, 2, after(2_000), ());
        replication.handle_stored_here(JOB, 1);
        replication
    }

    #[test]
    fn a_copy_with_somebody_who_will_hand_it_over_is_not_counted() {
        let mut replication = awaited(&[B]);
        // A comparison finds it with C, which held it before the ring changed.
        replication.learn(JOB, C, 1, VERSION);
        assert!(replication.satisfied(after(1), JOB, ME).is_empty());
        replication.learn(JOB, B, 1, VERSION);
        let waited = replication.satisfied(after(2), JOB, ME);
        assert_eq!(waited.iter().map(|waited| waited.replicas.clone()).collect::<Vec<_>>(), [vec![ME, B]]);
    }

    #[test]
    fn what_a_node_had_before_it_handed_over_does_not_count_when_it_is_a_target_again() {
        let mut replication = awaited(&[B, C]);
        replication.learn(JOB, B, 1, VERSION);
        // B is drained, and hands over; a moment later it serves again, and asks for what it lacks.
        replication.retarget(JOB, BTreeSet::from([C]));
        replication.retarget(JOB, BTreeSet::from([B, C]));
        assert!(replication.satisfied(after(1), JOB, ME).is_empty());
        replication.learn(JOB, C, 1, VERSION);
        assert!(!replication.is_complete(JOB), "B is still to get it");
        let waited = replication.satisfied(after(2), JOB, ME);
        assert_eq!(waited.iter().map(|waited| waited.replicas.clone()).collect::<Vec<_>>(), [vec![ME, C]]);
    }

    /// Records that this node wrote and that B should get.
    fn written(jobs: u128) -> (Replication<()>, Records) {
        let (mut replication, mut records) =
            (Replication::new(Generation(1), Duration::from_millis(300)), Records::new(32));
        for job in (1..=jobs).map(JobId) {
            let (spec, submitted_at) = (Spec::default(), Timestamp(0));
            let submission = Submission { spec, submitted_at, gateway: ME, home: vec![ME, B], retry_of: None };
            let dot = Dot { actor: Actor { node: ME, generation: Generation(1) }, counter: 1 };
            let (revision, _) = records.put(after(0), Arc::new(Record::new(job, Arc::new(submission), dot)));
            replication.spread(after(0), job, revision, BTreeSet::from([B]));
        }
        (replication, records)
    }

    /// The number of the next push, and how many records it carries.
    fn push(replication: &mut Replication<()>, at: Moment, records: &Records) -> Option<(u64, usize)> {
        match replication.poll_push(at, records, &mut Blobs::new())? {
            (_, Message::Push { seq, records, .. }) => Some((seq, records.len())),
            (_, other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_answer_that_comes_late_counts_and_teaches_patience() {
        let (mut replication, mut records) = written(1);
        let (first, _) = push(&mut replication, after(0), &records).unwrap();
        assert_eq!(replication.poll_timeout(), Some(after(300)));
        replication.handle_timeout(after(300));
        let (second, _) = push(&mut replication, after(300), &records).unwrap();
        assert_eq!(replication.poll_timeout(), Some(after(900)), "it waits for twice as long now");
        assert_eq!(replication.handle_stored(after(800), B, first, &[Some(VERSION)]), [JOB]);
        assert!(replication.is_complete(JOB));
        // What is in line again although it was answered is not sent again.
        replication.handle_timeout(after(900));
        assert_eq!(push(&mut replication, after(900), &records), None);
        replication.handle_stored(after(1_100), B, second, &[Some(VERSION)]);
        let record = records.get(JOB).unwrap().record();
        let (revision, _) = records.put(after(2_000), record);
        replication.spread(after(2_000), JOB, revision, BTreeSet::from([B]));
        push(&mut replication, after(2_000), &records).unwrap();
        assert_eq!(replication.poll_timeout(), Some(after(3_600)), "twice what is usual");
    }

    #[test]
    fn one_handover_at_a_time_is_under_way_to_a_node() {
        let jobs = 3 * PUSH_RECORDS;
        let (mut replication, records) = written(jobs as u128);
        replication.handle_gone(B);
        (1..=jobs as u128).for_each(|job| replication.push_once(JobId(job), B));
        let (first, count) = push(&mut replication, after(0), &records).unwrap();
        assert_eq!(count, PUSH_RECORDS);
        assert_eq!(push(&mut replication, after(1_000), &records), None);
        replication.handle_stored(after(1_000), B, first, &vec![Some(VERSION); count]);
        assert!(push(&mut replication, after(1_000), &records).is_some());
    }
}
