//! The end of a record: sealed when nothing can be added to it any more, dropped when its time is over.
//!
//! A terminal record could still be surprised: by a replica that knows of another attempt, by an executor that
//! was believed lost and reports after all, by a node that was alone for a while and began an attempt of its own. What
//! a seal lacks is lost for good, so it is written only when nobody can know more: the owner asks every node of the
//! record's home list, of its partition's lists now, every one that ran an attempt, every one that says it holds records
//! of the partition, and the gateway. Each must hold the very same version, or none and no need of one; and of every
//! attempt, its own executor must have said how it ended. A node that has left or was forgotten is not waited for; one that
//! is merely down is: cut off, it may go on alone.
//!
//! The gateway asks elsewhere while its submit is not answered: cut off from whoever wrote the job down, it has it written
//! down once more on its own side, and only it knows that. So it does not agree before the submit is over.
//!
//! Whoever was given its first record of the partition a moment ago has not said so yet. Those who gave it, or had one from
//! there, know, and do not agree until it is heard of (`unannounced`).
//!
//! The answers come at different times, and what one node hands over may reach another that has answered already. So
//! all are asked a second time when all have answered: what is handed over meanwhile shows by then at whoever has it.
//! Sealing is lazy: many records in one question, now and then, with no time limit.
//!
//! A seal names the hour after which the record may go. Each node drops it by its own clock; comparisons leave
//! out what either side calls past, so that clocks which differ do not bring it back.
//!
//! Whoever was not waited for may hold an older copy, and come back with it: a job that has yet to run, for all that copy
//! says. No time tells that job from one which was acknowledged by this very node while it was cut off, and which nobody
//! else has ever heard of; the first must not run again, the second must not be lost. So nothing that a node brings along
//! is set aside for its age, however long it was away. It is the others who remember: what is sealed without somebody who
//! may hold it is kept for thirty times `forget_after` beyond its retention, and an older copy meets its seal. That is a
//! month as a rule, and concerns what was submitted before a death and had not ended when the dead were forgotten: a
//! day's jobs. Where all were off there is nobody who sealed anything meanwhile, and nothing changes. Longer than that, and
//! only then, an absent node's copies of jobs that others have long dropped begin again: it is to be started without them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::model::id::{Generation, JobId, NodeId, Partition};
use crate::model::member::{Member, MemberState};
use crate::model::record::{Record, Seal, Version};
use crate::model::time::{Moment, Now};
use crate::model::wire::Message;

use super::super::numbers::Numbers;
use super::super::sabotage::Bug;
use super::Peer;

/// Records asked about in one question, at the most.
const CHECKED_AT_ONCE: usize = 2_048;
/// Records looked at in one go, at the most, so that a million which wait for a dead replica cost no more than these.
const CONSIDERED_AT_ONCE: usize = 16_384;
/// For how many times `forget_after` the others are ready for a node that comes back with what it had.
const ABSENCE_ALLOWED: u32 = 30;
/// Expired records dropped at once, at the most.
const EXPIRED_AT_ONCE: usize = 4_096;

/// What is known on the way to sealing.
#[derive(Debug)]
pub(super) struct Sealing {
    rounds: Numbers,
    /// Where the next look begins.
    next_job: Option<JobId>,
    /// One question to a node is under way at a time.
    asked: BTreeMap<NodeId, Question>,
    confirmed: BTreeMap<JobId, Confirmation>,
}

impl Sealing {
    /// Nothing asked yet in this start.
    pub(super) fn new(start: Generation) -> Self {
        Self { rounds: Numbers::of(start), next_job: None, asked: BTreeMap::new(), confirmed: BTreeMap::new() }
    }
}

/// Who holds which version of a record, and nothing else.
#[derive(Debug)]
struct Confirmation {
    version: Version,
    by: BTreeSet<NodeId>,
    /// All have confirmed it once before.
    again: bool,
}

/// The nodes that say they hold records of a partition, looked up once for many records.
type Holders = BTreeMap<Partition, Vec<NodeId>>;

#[derive(Debug)]
struct Question {
    round: u64,
    versions: Vec<(JobId, Version)>,
    until: Moment,
}

impl Peer {
    /// Asks the replicas of what could be sealed, as far as they have not answered yet.
    pub(super) fn seal_what_can_be(&mut self, now: Now) {
        let patience = self.config.timing.resend_after * 4;
        self.sealing.asked.retain(|_, question| question.until > now.moment);
        let mut questions: BTreeMap<NodeId, Vec<(JobId, Version)>> = BTreeMap::new();
        let mut ready = Vec::new();
        let mut holders = Holders::new();
        let (to_seal, submitting) = (self.records.to_seal(), self.gateway.submitting());
        self.sealing.confirmed.retain(|job, _| to_seal.contains(job));
        let begin = self.sealing.next_job.unwrap_or(JobId(0));
        let in_turn = to_seal.range(begin..).chain(to_seal.range(..begin));
        let mut next_job = None;
        for (considered, job) in in_turn.enumerate() {
            if considered == CONSIDERED_AT_ONCE {
                next_job = Some(*job);
                break;
            }
            let is_due = !submitting.contains(job) && self.decides_for(self.records.partition_of(*job));
            let Some(held) = self.records.get(*job).filter(|_| is_due) else {
                continue;
            };
            let asks_nobody = self.sabotage.has(Bug::SealWithoutAsking).then(BTreeSet::new);
            let Some(others) = asks_nobody.or_else(|| self.others_to_agree(&held.record(), &mut holders)) else {
                continue;
            };
            let confirmed = self.sealing.confirmed.get(job).filter(|confirmed| confirmed.version == held.version);
            let mut open: Vec<NodeId> = match confirmed {
                Some(confirmed) => others.difference(&confirmed.by).copied().collect(),
                None => others.iter().copied().collect(),
            };
            let was_asked_twice = others.is_empty() || confirmed.is_some_and(|confirmed| confirmed.again);
            if open.is_empty() && was_asked_twice {
                ready.push(*job);
            } else if open.is_empty() {
                // Whoever had not answered yet need not any more.
                let again = Confirmation { version: held.version, by: BTreeSet::new(), again: true };
                self.sealing.confirmed.insert(*job, again);
                open = others.into_iter().collect();
            }
            for node in open.into_iter().filter(|node| !self.sealing.asked.contains_key(node)) {
                let versions = questions.entry(node).or_default();
                if versions.len() < CHECKED_AT_ONCE {
                    versions.push((*job, held.version));
                }
            }
        }
        self.sealing.next_job = next_job;
        for (node, versions) in questions {
            let round = self.sealing.rounds.take();
            self.send(node, Message::Check { round, versions: versions.clone() });
            self.sealing.asked.insert(node, Question { round, versions, until: now.moment + patience });
        }
        for job in ready {
            self.seal(now, job);
        }
    }

    /// The other nodes that may know more of the record, and must not if it is to be sealed; nothing while that cannot
    /// be known: one of them is down, or an attempt's fate is open.
    fn others_to_agree(&self, record: &Record, holders: &mut Holders) -> Option<BTreeSet<NodeId>> {
        let view = self.membership.view();
        let waived = |node: NodeId| view.get(&node).is_none_or(|member| member.state == MemberState::Left);
        if record.open_fates().any(|attempt| !waived(attempt.claim.executor.node)) {
            return None;
        }
        let partition = self.records.partition_of(record.id);
        let say_so = || view.values().filter(|member| member.facts.held.contains(partition)).map(|m| m.facts.node);
        let holders = holders.entry(partition).or_insert_with(|| say_so().collect());
        let executors = record.attempts.values().map(|attempt| attempt.claim.executor.node);
        let lists = self.placement.home(partition).iter().chain(self.placement.acting(partition));
        let others: BTreeSet<NodeId> = lists
            .chain(&record.submission.home)
            .chain(holders.iter())
            .chain([&record.submission.gateway])
            .copied()
            .chain(self.unannounced.holders(partition))
            .chain(executors)
            .filter(|node| *node != self.me.node && !waived(*node))
            .collect();
        others.iter().all(|node| view.get(node).is_some_and(|member| member.is_live())).then_some(others)
    }

    /// The owner wants to know whether this node holds the same, or nothing and need not; and whether it knows of nobody else
    /// who may hold a copy, and has yet to say so, or may still be asked to write the job down.
    pub(super) fn handle_check(&mut self, from: NodeId, round: u64, versions: &[(JobId, Version)]) {
        let submitting = self.gateway.submitting();
        let mut unheard_of: BTreeMap<Partition, bool> = BTreeMap::new();
        let same = versions
            .iter()
            .map(|(job, version)| {
                let partition = self.records.partition_of(*job);
                let agrees = match self.records.get(*job) {
                    Some(held) => held.version == *version && !self.expects_blobs(*job),
                    None => !self.should_keep(self.me.node, partition),
                };
                let unheard_of =
                    unheard_of.entry(partition).or_insert_with(|| self.knows_of_unheard_holders(partition, from));
                // Nor may an older copy come back from the disk.
                agrees && self.outbox.is_stored(*job) && !submitting.contains(job) && !*unheard_of
            })
            .collect();
        self.send(from, Message::Checked { round, same });
    }

    /// Whether somebody may hold records of the partition of whom whoever asks may not know: who was given one and has not said
    /// so since, or said so, or was given one, when this node last heard of it. What was noted of such gifts before a restart
    /// is remembered as that.
    fn knows_of_unheard_holders(&self, partition: Partition, asker: NodeId) -> bool {
        let is_silent = |member: &Member| match member.state {
            MemberState::Suspect | MemberState::Down => true,
            MemberState::Alive | MemberState::Left => false,
        };
        let view = self.membership.view();
        self.unannounced.holders(partition).any(|node| node != asker)
            || view.values().any(|member| is_silent(member) && member.facts.held.contains(partition))
    }

    pub(super) fn handle_checked(&mut self, now: Now, from: NodeId, round: u64, same: &[bool]) {
        let Some(question) = self.sealing.asked.get(&from).filter(|question| question.round == round) else {
            return;
        };
        let answered = question.versions.clone();
        self.sealing.asked.remove(&from);
        let (mut holders, submitting) = (Holders::new(), self.gateway.submitting());
        for ((job, version), same) in answered.into_iter().zip(same) {
            let Some(held) = self.records.get(job).filter(|held| held.version == version && !held.is_final()) else {
                self.sealing.confirmed.remove(&job);
                continue;
            };
            if !same {
                // It lacks something, or knows something: either comes out when it is pushed there. Where the two hold the same, it
                // waits for its own disk or for somebody else.
                if self.targets(job).contains(&from) && !self.agreements.agrees(self.records.partition_of(job), from) {
                    self.replication.push_once(job, from);
                }
                continue;
            }
            let record = held.record();
            let fresh = || Confirmation { version, by: BTreeSet::new(), again: false };
            let confirmed = self.sealing.confirmed.entry(job).or_insert_with(fresh);
            if confirmed.version != version {
                *confirmed = fresh();
            }
            confirmed.by.insert(from);
            let (by, again) = (confirmed.by.clone(), confirmed.again);
            let others = self.others_to_agree(&record, &mut holders);
            let is_due = !submitting.contains(&job) && self.decides_for(self.records.partition_of(job));
            if !is_due || others.is_none_or(|others| !others.is_subset(&by)) {
                continue;
            }
            if again {
                self.seal(now, job);
            } else {
                self.sealing.confirmed.insert(job, Confirmation { again: true, ..fresh() });
            }
        }
    }

    fn seal(&mut self, now: Now, job: JobId) {
        self.sealing.confirmed.remove(&job);
        let keep = self.records.get(job).and_then(|held| held.record().spec().ttl).unwrap_or(self.config.retention);
        let keep_also = if self.may_be_held_by_the_absent(job) {
            self.config.cluster.forget_after.saturating_mul(ABSENCE_ALLOWED)
        } else {
            Duration::ZERO
        };
        let expires_hour = (now.wall + keep.saturating_add(keep_also)).hour();
        let seal = Seal { expires_hour, dot: self.next_dot(), at: now.wall };
        self.counters.sealed += 1;
        self.change(now, job, |record| record.seal(seal));
    }

    /// Whether somebody may hold a copy of the record who is no member now: whoever should have kept it from the start, or
    /// took the submit, or ran it, or held records of its partition when it was forgotten.
    fn may_be_held_by_the_absent(&self, job: JobId) -> bool {
        let Some(held) = self.records.get(job) else {
            return false;
        };
        let (record, view) = (held.record(), self.membership.view());
        let is_absent = |node: NodeId| view.get(&node).is_none_or(|member| member.state == MemberState::Left);
        let executors = record.attempts.values().map(|attempt| attempt.claim.executor.node);
        let submission = &record.submission;
        submission.home.iter().copied().chain([submission.gateway]).chain(executors).any(is_absent)
            || self.membership.has_forgotten_a_holder(self.records.partition_of(job), held.known_since)
    }

    /// Drops the sealed records whose hour is past, by this node's clock.
    pub(super) fn let_expired_go(&mut self, now: Now) {
        if self.sabotage.has(Bug::DropBeforeSealed) {
            for job in self.records.to_seal().clone() {
                self.drop_record(job);
            }
        }
        let hour = if self.sabotage.has(Bug::ExpireTooEarly) { u32::MAX } else { now.wall.hour() };
        for job in self.records.expired(hour, EXPIRED_AT_ONCE) {
            self.counters.expired += 1;
            self.drop_record(job);
        }
    }
}
