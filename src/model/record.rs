//! A job's record: what was asked, and everything that has happened to it.
//!
//! Every node that holds a copy may write to it, at the same time as others and out of touch with them; the
//! copies [`merge`](Record::merge) whenever they meet. That works because a record is a product of joins,
//! each of which is the maximum of some total order, a union, or a vector clock's. A maximum does not care
//! in which order, how often or in what company it is told its arguments, and so neither does the record:
//! merging is commutative, associative and idempotent, and equal sets of writes give equal records. (See
//! Shapiro et al., "A comprehensive study of Convergent and Commutative Replicated Data Types", 2011.)
//!
//! A record to which nothing can be added any more is **sealed** by its owner: from then on it is a constant,
//! which any merge gives way to. That is one more join, of two steps: every sealed record is above every
//! unsealed one, and of two sealed ones the higher counts whole.
//!
//! What state the job is in ([`Record::state`]) is a function of the merged record alone. No clock that
//! tells time takes part in it, so equal records give equal answers on machines whose clocks differ.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::collections::btree_map::{BTreeMap, Entry};
use std::sync::Arc;

use crdts::{CmRDT, CvRDT};
use serde::{Deserialize, Serialize};

use super::attempt::{Attempt, Claim, Exit, Fate, Overlap, Phase, Usage};
use super::blob::{BlobRef, MAX_RESULT_BYTES, MAX_TAIL_BYTES};
use super::id::{Actor, Clock, Dot, JobId, NodeId};
use super::report::{Checkpoint, Outcome, Progress, Tails};
use super::spec::{InvalidField, Spec};
use super::time::Timestamp;

/// What was fixed when the job was submitted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Submission {
    /// What was asked.
    pub spec: Spec,
    /// When, by the gateway's clock.
    pub submitted_at: Timestamp,
    /// The node that took the submit.
    pub gateway: NodeId,
    /// The home list of the job's partition at that time.
    pub home: Vec<NodeId>,
    /// The finished job that this one tries again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_of: Option<JobId>,
}

/// A request to end the job.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Stop {
    /// How strong it is.
    pub kind: StopKind,
    /// The write that asked.
    pub dot: Dot,
    /// When, by the asking node's clock.
    pub at: Timestamp,
    /// Why, for people.
    pub reason: String,
}

/// The strength of a [`Stop`]; a stronger one replaces a weaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopKind {
    /// One of the job's own time limits passed.
    TimedOut,
    /// A person asked.
    Cancelled,
}

/// The end of a record's history: every node that should hold it held the same, and no attempt's fate was open.
/// Joins by maximum, in the order of the fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Seal {
    /// The hour, counted from 1970, after which the record may go.
    pub expires_hour: u32,
    /// The write that sealed.
    pub dot: Dot,
    /// When, by the owner's clock.
    pub at: Timestamp,
}

/// The state of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// Waits for its time, for room, or for its next attempt.
    Pending,
    /// An attempt is claimed or runs.
    Running,
    /// An attempt ended with exit code 0.
    Succeeded,
    /// It ended, badly, and no attempt is left.
    Failed,
    /// A person ended it.
    Cancelled,
}

impl JobState {
    /// Whether nothing further is done about the job.
    pub fn is_terminal(self) -> bool {
        match self {
            Self::Pending | Self::Running => false,
            Self::Succeeded | Self::Failed | Self::Cancelled => true,
        }
    }

    /// As users write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// What a record comes down to: equal for equal records, whatever order their parts came in.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Version(pub u128);

impl Version {
    /// Of the record that has these canonical bytes.
    pub fn of(canonical: &[u8]) -> Self {
        let hash = blake3::hash(canonical);
        Self(u128::from_be_bytes(hash.as_bytes()[..16].try_into().expect("16 of 32 bytes")))
    }
}

impl std::fmt::Debug for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// A job, as far as one node knows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The job.
    pub id: JobId,
    /// What was asked. Shared: copies of a record are cheap.
    pub submission: Arc<Submission>,
    /// Which writes are in here.
    pub clock: Clock,
    /// The strongest request to end it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop: Option<Stop>,
    /// Every attempt, by the dot of its claim.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    ///
    /// Boxed, because a map of values has room for eleven: nearly all jobs have one attempt, and records are copied with
    /// every change.
    pub attempts: BTreeMap<Dot, Box<Attempt>>,
    /// The newest work that was saved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<Checkpoint>,
    /// Nothing can be added any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seal: Option<Seal>,
}

/// More attempts than this are not a job but a fault.
const MAX_ATTEMPTS: usize = 100_000;

/// What most records take, written down.
const USUAL_BYTES: usize = 2_048;

/// The longest reason that is kept, in bytes.
pub const MAX_REASON_BYTES: usize = 1_024;

impl Record {
    /// The record of a job that nothing has happened to yet.
    pub fn new(id: JobId, submission: Arc<Submission>, dot: Dot) -> Self {
        let clock = Clock::from(crdts::Dot::from(dot));
        Self { id, submission, clock, stop: None, attempts: BTreeMap::new(), checkpoint: None, seal: None }
    }

    /// What was asked.
    pub fn spec(&self) -> &Spec {
        &self.submission.spec
    }

    /// Joins what `other` knows into this copy. Both must be of one job.
    ///
    /// Commutative, associative, idempotent: the submission and the stop are maxima of total orders (the
    /// submissions of one id differ only where a key was used on both sides of a partition), and so is the
    /// checkpoint; the clock joins as vector clocks do, attempts are a union by dot whose members join by maxima.
    /// Where either is sealed, the result is the higher of the two by a total order in which unsealed records come
    /// first.
    pub fn merge(&mut self, other: &Self) {
        debug_assert_eq!(self.id, other.id, "only copies of one job can be merged");
        if self.seal.is_some() || other.seal.is_some() {
            let replaced = match other.seal.cmp(&self.seal) {
                Ordering::Less => false,
                Ordering::Greater => true,
                // One write seals one content, so this compares equals unless somebody broke the rules.
                Ordering::Equal => self != other && other.version() > self.version(),
            };
            if replaced {
                self.clone_from(other);
            }
            return;
        }
        if self.submission != other.submission && submission_order(other) < submission_order(self) {
            self.submission = Arc::clone(&other.submission);
        }
        self.clock.merge(other.clock.clone());
        if other.stop > self.stop {
            self.stop.clone_from(&other.stop);
        }
        if other.checkpoint > self.checkpoint {
            self.checkpoint.clone_from(&other.checkpoint);
        }
        for (dot, attempt) in &other.attempts {
            match self.attempts.get_mut(dot) {
                Some(known) => known.merge(attempt),
                None => {
                    self.attempts.insert(*dot, attempt.clone());
                }
            }
        }
    }

    /// A digest of the whole record.
    pub fn version(&self) -> Version {
        let mut canonical = Vec::with_capacity(USUAL_BYTES);
        self.encode(&mut canonical);
        Version::of(&canonical)
    }

    /// Its bytes, in place of what was in `canonical`: equal for equal records.
    pub fn encode(&self, canonical: &mut Vec<u8>) {
        canonical.clear();
        rmp_serde::encode::write_named(canonical, self).expect("a record consists of what MessagePack can write");
    }

    /// The state the job is in, by what this copy knows.
    pub fn state(&self) -> JobState {
        if self.attempts.values().any(|attempt| attempt.fate.phase == Phase::Succeeded) {
            return JobState::Succeeded;
        }
        if self.attempts.values().any(|attempt| attempt.is_live()) {
            return JobState::Running;
        }
        match self.stop.as_ref().map(|stop| stop.kind) {
            Some(StopKind::Cancelled) => return JobState::Cancelled,
            Some(StopKind::TimedOut) => return JobState::Failed,
            None => {}
        }
        let spec = self.spec();
        let not_worth_retrying = |attempt: &Attempt| match (attempt.fate.phase, attempt.fate.exit) {
            (Phase::Failed, Some(Exit::Code(code))) => spec.no_retry_on.contains(&code),
            _ => false,
        };
        let out_of_attempts = self.failures() > spec.retries || self.losses() > spec.lost_limit;
        if out_of_attempts || self.attempts.values().any(|attempt| not_worth_retrying(attempt)) {
            JobState::Failed
        } else {
            JobState::Pending
        }
    }

    /// How many attempts failed. Two that were given one number during a partition count once.
    pub fn failures(&self) -> u32 {
        self.count(Phase::Failed)
    }

    /// How many attempts were lost with their node.
    pub fn losses(&self) -> u32 {
        self.count(Phase::Lost)
    }

    fn count(&self, phase: Phase) -> u32 {
        let numbers: BTreeSet<u32> =
            self.attempts.values().filter(|a| a.fate.phase == phase).map(|a| a.claim.number).collect();
        u32::try_from(numbers.len()).unwrap_or(u32::MAX)
    }

    /// The live attempt that goes on: of several, the one with the highest fence.
    pub fn current(&self) -> Option<(Dot, &Attempt)> {
        let live = self.attempts.iter().filter(|(_, attempt)| attempt.is_live());
        live.max_by_key(|(dot, attempt)| (attempt.fence(), **dot)).map(|(dot, attempt)| (*dot, &**attempt))
    }

    /// The attempt that tells best how the job stands: the one that succeeded, else the current one, else
    /// the last.
    pub fn telling(&self) -> Option<&Attempt> {
        let attempts = || self.attempts.iter().map(|(dot, attempt)| (*dot, &**attempt));
        let succeeded = attempts().map(|(_, attempt)| attempt).filter(|a| a.fate.phase == Phase::Succeeded);
        let last = || attempts().max_by_key(|(dot, attempt)| (attempt.fence(), *dot)).map(|(_, attempt)| attempt);
        succeeded
            .min_by_key(|attempt| attempt.fence())
            .or_else(|| self.current().map(|(_, attempt)| attempt))
            .or_else(last)
    }

    /// What the job came to, and the attempt that said so. That is the one that succeeded; where it said nothing, the last
    /// before it that did. Of a job that has not succeeded, the last that said anything: what is known so far, or what
    /// was left of it.
    pub fn result(&self) -> Option<(&Attempt, Outcome)> {
        let telling = self.telling()?;
        let is_meant = |attempt: &Attempt| telling.fate.phase != Phase::Succeeded || attempt.fence() <= telling.fence();
        let said = self.attempts.iter().filter(|(_, attempt)| is_meant(attempt));
        let said = said.filter_map(|(dot, attempt)| Some((*dot, &**attempt, attempt.result?)));
        // Of those that are meant, the one that succeeded comes last.
        let last = said.max_by_key(|(dot, attempt, _)| (attempt.fence(), *dot));
        last.map(|(_, attempt, result)| (attempt, result))
    }

    /// Whether another attempt was claimed that overrules `claim`: one with a higher fence.
    pub fn is_superseded(&self, claim: Dot) -> bool {
        self.attempts
            .get(&claim)
            .is_some_and(|mine| self.attempts.iter().any(|(dot, other)| (other.fence(), *dot) > (mine.fence(), claim)))
    }

    /// The attempts of which their own executor has not said how they ended.
    pub fn open_fates(&self) -> impl Iterator<Item = &Attempt> {
        let attempts = self.attempts.values().map(|attempt| &**attempt);
        attempts.filter(|attempt| attempt.is_live() || !attempt.fate.by_executor)
    }

    /// Whether nothing can change it any more.
    pub fn is_final(&self) -> bool {
        self.seal.is_some()
    }

    /// Ends the history of a terminal record. Who knew what when is of no more use, so the clock goes.
    pub fn seal(&mut self, seal: Seal) {
        if self.seal.is_none() && self.state().is_terminal() {
            self.seal = Some(seal);
            self.clock = Clock::new();
        }
    }

    /// When the last attempt that failed or was lost ended, by its writer's clock.
    pub fn last_end(&self) -> Option<Timestamp> {
        self.attempts.values().filter(|attempt| !attempt.is_live()).map(|attempt| attempt.fate.at).max()
    }

    /// When the job ended, where it has.
    pub fn ended_at(&self) -> Option<Timestamp> {
        if !self.state().is_terminal() {
            return None;
        }
        match self.telling() {
            Some(attempt) if attempt.fate.phase == Phase::Succeeded => Some(attempt.fate.at),
            _ => self.last_end().max(self.stop.as_ref().map(|stop| stop.at)),
        }
    }

    /// Every pair of attempts that ran, or may have run, at the same time: neither claim had seen the other
    /// attempt's end from the other's own executor. Two starts of one node take turns by themselves: pods do
    /// not outlive their start.
    pub fn overlaps(&self) -> Vec<Overlap> {
        let ran: Vec<_> = self.attempts.iter().filter(|(_, attempt)| attempt.may_have_run()).collect();
        let mut overlaps = Vec::new();
        for (at, (first_dot, first)) in ran.iter().enumerate() {
            for (second_dot, second) in &ran[at + 1..] {
                let (one, other) = (first.claim.executor, second.claim.executor);
                let in_turn = (one.node == other.node && one.generation != other.generation)
                    || first.end_was_seen(&second.claim.seen)
                    || second.end_was_seen(&first.claim.seen);
                if !in_turn {
                    let certain = first.ran_on() && second.ran_on();
                    overlaps.push(Overlap { first: **first_dot, second: **second_dot, certain });
                }
            }
        }
        overlaps
    }

    /// The owner decides that an attempt shall run on `executor`. `dot` names it from then on.
    pub fn claim(&mut self, dot: Dot, executor: Actor, at: Timestamp) {
        if self.is_final() {
            return;
        }
        let number = self.attempts.values().map(|attempt| attempt.claim.number).max().unwrap_or(0) + 1;
        let resumed_from = self.checkpoint.as_ref().map(|checkpoint| checkpoint.chain);
        let claim = Claim { number, executor, at, seen: self.clock.clone(), resumed_from };
        let fate = Fate { phase: Phase::Claimed, by_executor: false, dot, at, exit: None, reason: String::new() };
        let attempt = Attempt {
            claim,
            started_at: None,
            fate,
            progress: None,
            result: None,
            tails: Tails::default(),
            usage: None,
        };
        self.attempts.insert(dot, Box::new(attempt));
        self.clock.apply(dot.into());
    }

    /// The executor says that the pod of `claim` was started.
    pub fn start(&mut self, dot: Dot, claim: Dot, at: Timestamp) {
        self.start_remarkably(dot, claim, at, String::new());
    }

    /// The same, with what people should know of how it started.
    pub fn start_remarkably(&mut self, dot: Dot, claim: Dot, at: Timestamp, remark: String) {
        if self.is_final() {
            return;
        }
        if let Some(attempt) = self.attempts.get_mut(&claim) {
            attempt.started_at = attempt.started_at.max(Some(at));
            self.clock.apply(dot.into());
        }
        let running = Fate { phase: Phase::Running, by_executor: true, dot, at, exit: None, reason: remark };
        self.advance(claim, running);
    }

    /// Whoever knew of an attempt before says again what it was and what became of it, as it was written then.
    pub fn recall(&mut self, claim: Dot, attempt: Attempt) {
        if self.is_final() {
            return;
        }
        self.clock.apply(claim.into());
        self.clock.apply(attempt.fate.dot.into());
        match self.attempts.entry(claim) {
            Entry::Occupied(mut known) => known.get_mut().merge(&attempt),
            Entry::Vacant(unknown) => {
                unknown.insert(Box::new(attempt));
            }
        }
    }

    /// Somebody says what became of `claim`. What does not overrule what is known is not written.
    pub fn advance(&mut self, claim: Dot, mut fate: Fate) {
        if self.is_final() {
            return;
        }
        if let Some(attempt) = self.attempts.get_mut(&claim) {
            shorten(&mut fate.reason);
            let dot = fate.dot;
            if fate > attempt.fate {
                attempt.fate = fate;
                self.clock.apply(dot.into());
            }
        }
    }

    /// The executor passes on how far the attempt says it has come. What is older than what is known is not written.
    pub fn report_progress(&mut self, dot: Dot, claim: Dot, progress: Progress) {
        if self.is_final() {
            return;
        }
        if let Some(attempt) = self.attempts.get_mut(&claim)
            && attempt.progress.as_ref().is_none_or(|known| progress > *known)
        {
            attempt.progress = Some(progress);
            self.clock.apply(dot.into());
        }
    }

    /// The executor has saved work of one of its attempts. Returns whether that is the newest there is; what is not
    /// is not written.
    pub fn save_checkpoint(&mut self, dot: Dot, checkpoint: Checkpoint) -> bool {
        let is_newest = !self.is_final()
            && self.attempts.contains_key(&checkpoint.claim)
            && self.checkpoint.as_ref().is_none_or(|known| checkpoint > *known);
        if is_newest {
            self.checkpoint = Some(checkpoint);
            self.clock.apply(dot.into());
        }
        is_newest
    }

    /// The executor counted what the attempt used. Goes with the write that says how it ended.
    pub fn count_usage(&mut self, dot: Dot, claim: Dot, usage: Usage) {
        if self.is_final() {
            return;
        }
        if let Some(attempt) = self.attempts.get_mut(&claim) {
            let before = attempt.usage.clone();
            Usage::merge_into(&mut attempt.usage, Some(&usage));
            if attempt.usage != before {
                self.clock.apply(dot.into());
            }
        }
    }

    /// The executor keeps what the attempt has left behind, or has so far. What is older than what is known is not
    /// written.
    pub fn leave(&mut self, dot: Dot, claim: Dot, result: Option<Outcome>, tails: Tails) {
        if self.is_final() {
            return;
        }
        if let Some(attempt) = self.attempts.get_mut(&claim) {
            let before = (attempt.result, attempt.tails);
            attempt.result = attempt.result.max(result);
            attempt.tails.merge(&tails);
            if (attempt.result, attempt.tails) != before {
                self.clock.apply(dot.into());
            }
        }
    }

    /// The blobs that whoever holds the record holds as well.
    pub fn blobs(&self) -> BTreeSet<BlobRef> {
        let checkpoint = self.checkpoint.as_ref().map(|checkpoint| checkpoint.blob);
        checkpoint.into_iter().chain(self.attempts.values().flat_map(|attempt| attempt.blobs())).collect()
    }

    /// Whether it names any blob at all.
    pub fn names_blobs(&self) -> bool {
        self.checkpoint.is_some() || self.attempts.values().any(|attempt| attempt.blobs().next().is_some())
    }

    /// Somebody asks that the job end.
    pub fn request_stop(&mut self, mut stop: Stop) {
        if self.is_final() {
            return;
        }
        shorten(&mut stop.reason);
        let dot = stop.dot;
        if self.stop.as_ref().is_none_or(|known| stop.kind > known.kind) {
            self.stop = Some(stop);
            self.clock.apply(dot.into());
        }
    }

    /// Checks a record that came from outside, before it is merged: one that fails must touch nothing.
    ///
    /// # Errors
    /// The first thing that cannot be.
    pub fn validate(&self) -> Result<(), InvalidField> {
        self.spec().validate()?;
        if self.attempts.len() > MAX_ATTEMPTS {
            return Err(InvalidField::new("attempts", format!("at most {MAX_ATTEMPTS} are possible")));
        }
        if self.is_final() && (!self.state().is_terminal() || !self.clock.is_empty()) {
            return Err(InvalidField::new("seal", "a sealed record is terminal and has no clock"));
        }
        let known = |dot: &Dot| dot.counter > 0 && (self.is_final() || self.clock.get(&dot.actor) >= dot.counter);
        for (dot, attempt) in &self.attempts {
            if !known(dot) || !known(&attempt.fate.dot) {
                return Err(InvalidField::new("attempts", format!("the clock does not know the writes of {dot}")));
            }
            if attempt.claim.number == 0 {
                return Err(InvalidField::new("attempts", format!("{dot} has number 0, and they count from 1")));
            }
            if attempt.fate.reason.len() > MAX_REASON_BYTES {
                return Err(InvalidField::new("attempts", format!("the reason of {dot} is too long")));
            }
            if let Some(progress) = &attempt.progress {
                progress.validate()?;
            }
            let too_large = attempt.result.is_some_and(|result| result.size > MAX_RESULT_BYTES)
                || attempt.tails.iter().any(|tail| tail.blob.size > MAX_TAIL_BYTES);
            if too_large {
                return Err(InvalidField::new("attempts", format!("{dot} leaves more behind than is kept")));
            }
        }
        if let Some(checkpoint) = &self.checkpoint {
            checkpoint.validate()?;
            if !self.attempts.contains_key(&checkpoint.claim) {
                return Err(InvalidField::new("checkpoint", "it is of none of the job's attempts"));
            }
        }
        if self.stop.as_ref().is_some_and(|stop| !known(&stop.dot) || stop.reason.len() > MAX_REASON_BYTES) {
            return Err(InvalidField::new("stop", "the clock does not know its write, or its reason is too long"));
        }
        Ok(())
    }
}

/// Of two submissions of one id the earlier one counts; the rest only makes the order total.
fn submission_order(record: &Record) -> (Timestamp, NodeId, Vec<u8>) {
    let submission = &record.submission;
    let rest = rmp_serde::to_vec_named(submission).expect("a submission consists of what MessagePack can write");
    (submission.submitted_at, submission.gateway, rest)
}

fn shorten(reason: &mut String) {
    if reason.len() > MAX_REASON_BYTES {
        let end = (0..=MAX_REASON_BYTES).rev().find(|at| reason.is_char_boundary(*at)).unwrap_or(0);
        reason.truncate(end);
    }
}
