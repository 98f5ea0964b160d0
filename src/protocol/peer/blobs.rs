//! What pods say and leave behind, and the blobs that go with it: taking them in, getting them to whoever holds the
//! record, and seeing to it that an attempt starts with the work that was saved for it.
//!
//! The bookkeeping is that of [`Blobs`](crate::protocol::blobs::Blobs); here it meets the records.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::model::blob::{Blob, BlobId, BlobRef};
use crate::model::id::{AttemptKey, Dot, JobId, NodeId};
use crate::model::member::Status;
use crate::model::record::{Attempt, Record};
use crate::model::report::{Checkpoint, Outcome, Tail, Tails};
use crate::model::request::Receipt;
use crate::model::time::{Now, Timestamp};
use crate::model::wire::Message;

use super::super::effect::{Effect, Fetched, Leavings, PodReport, Rejected};
use super::super::lifecycle::PodState;
use super::super::outbox::{Outgoing, StoredHere};
use super::super::sabotage::Bug;
use super::{Ending, Peer, Starting, Waiting, fate_of};

/// How long an attempt waits for its checkpoint to come, before it starts without.
const CHECKPOINT_PATIENCE: Duration = Duration::from_secs(20);

/// How many times the usual patience a checkpoint's copies are waited for, since it may be large.
const COPIES_PATIENCE: u32 = 4;

/// A push as it came.
#[derive(Debug)]
pub(super) struct Pushed {
    pub(super) seq: u64,
    pub(super) records: Vec<Arc<Record>>,
    pub(super) blobs: Vec<Blob>,
    /// The jobs of which the sender lacks some blob.
    pub(super) lacking: BTreeSet<JobId>,
}

impl Peer {
    /// Records were pushed to this node: merge them, and say so once they are stored. Those whose blobs have not all
    /// come, and those that this node would not keep as it sees the ring, are acknowledged later: see
    /// [`push_again`](Self::push_again). Whoever pushes may let go of a record that is acknowledged, so two nodes that each
    /// take the other for its place must not acknowledge it to each other.
    ///
    /// Much can happen until the disk is done, where it was full: what was let go of meanwhile is not acknowledged either.
    pub(super) fn handle_push(&mut self, now: Now, from: NodeId, pushed: Pushed) {
        let Pushed { seq, records, blobs, lacking } = pushed;
        let came = self.blobs.offer(blobs);
        self.take_in(now, &came);
        let mut copies = Vec::with_capacity(records.len());
        for record in records {
            let job = record.id;
            if self.has_no_use_for(&record) {
                copies.push(None);
                continue;
            }
            let version = self.absorb(now, from, Arc::clone(&record));
            // Whoever pushes lets go of a record once it is acknowledged, so its word that it has the blobs counts for
            // more than an earlier one that it has not.
            if self.blobs.lacking() > 0 && !lacking.contains(&job) {
                record.blobs().iter().for_each(|name| self.blobs.assure(name.id, from));
            }
            if version.is_some() && (self.expects_blobs(job) || !self.keeps(job)) {
                self.pushed_by.entry(job).or_default().insert(from);
                copies.push(None);
            } else {
                let held = self.records.get(job).map(|_| job);
                copies.push(version.map(|version| StoredHere { version, job: held }));
            }
        }
        self.blobs.withdraw_offers();
        let stored = Outgoing::Stored { to: from, seq, copies };
        if self.sabotage.has(Bug::AcknowledgeBeforeSync) {
            return self.outbox.send(stored);
        }
        self.outbox.send_when_stored(stored);
    }

    /// What a push brought is on the disk: says so of what is still here, and to stay.
    pub(super) fn acknowledge(&mut self, to: NodeId, seq: u64, copies: Vec<Option<StoredHere>>) -> Effect {
        let mut versions = Vec::with_capacity(copies.len());
        for copy in copies {
            let job = copy.and_then(|copy| copy.job);
            let is_gone = job.is_some_and(|job| self.records.get(job).is_none());
            let moves_on = job.filter(|job| !self.keeps(*job));
            if let Some(job) = moves_on {
                self.pushed_by.entry(job).or_default().insert(to);
            }
            versions.push(copy.filter(|_| !is_gone && moves_on.is_none()).map(|copy| copy.version));
        }
        Effect::Send { to, message: Message::Stored { seq, versions } }
    }

    /// `from` has the blobs now that it lacked when these records were pushed to it.
    pub(super) fn push_again(&mut self, from: NodeId, jobs: &[JobId]) {
        for job in jobs {
            if self.targets(*job).contains(&from) {
                self.replication.push_once(*job, from);
            }
        }
    }

    /// A record is about to be put in place of what is held: its blobs are named.
    pub(super) fn name_blobs(&mut self, job: JobId, record: &Record) {
        let before = self.names_of(job);
        let after = record.blobs().into_iter().chain(self.kept_for_starts(job)).collect();
        for id in self.blobs.rename(job, &before, &after) {
            self.outbox.save_blob(id);
        }
    }

    /// A record is about to be removed: its blobs are named by it no more.
    pub(super) fn unname_blobs(&mut self, job: JobId) {
        let before = self.names_of(job);
        let after = self.kept_for_starts(job).collect();
        for id in self.blobs.rename(job, &before, &after) {
            self.outbox.save_blob(id);
        }
        self.pushed_by.remove(&job);
    }

    /// Keeps the checkpoint with which a pod is to begin until that has happened: a newer one may come meanwhile, and the
    /// record would name this one no more.
    pub(super) fn keep_for_start(&mut self, key: AttemptKey, checkpoint: BlobRef) {
        self.kept_for_start.insert(key.claim, (key.job, checkpoint));
    }

    /// The pod has its checkpoint, or needs none any more.
    pub(super) fn keep_no_longer(&mut self, key: AttemptKey) {
        if !self.kept_for_start.contains_key(&key.claim) {
            return;
        }
        let before = self.names_of(key.job);
        self.kept_for_start.remove(&key.claim);
        let after = self.names_of(key.job);
        for id in self.blobs.rename(key.job, &before, &after) {
            self.outbox.save_blob(id);
        }
    }

    fn kept_for_starts(&self, job: JobId) -> impl Iterator<Item = BlobRef> + '_ {
        self.kept_for_start.values().filter(move |(of, _)| *of == job).map(|(_, blob)| *blob)
    }

    fn names_of(&self, job: JobId) -> BTreeSet<BlobRef> {
        let held = self.records.get(job).filter(|held| held.summary.names_blobs());
        let named = held.map(|held| held.record().blobs()).unwrap_or_default();
        named.into_iter().chain(self.kept_for_starts(job)).collect()
    }

    /// Notes whether the record that is held now has all its blobs.
    pub(super) fn note_lacking(&mut self, job: JobId) {
        let lacking = self.names_of(job).iter().any(|name| self.blobs.lacks(name.id));
        self.records.set_lacking(job, lacking);
        if !lacking && self.pushed_by.contains_key(&job) && self.keeps(job) {
            // The record that lacked something was replaced by one that does not.
            self.ask_to_push_again(job);
        }
    }

    pub(super) fn expects_blobs(&self, job: JobId) -> bool {
        self.blobs.lacking() > 0 && self.names_of(job).iter().any(|name| self.blobs.expects(name.id))
    }

    /// Whether a record is to stay here: because the ring says so, or because of a pod; or is held no more, since its time
    /// is over.
    fn keeps(&self, job: JobId) -> bool {
        let Some(held) = self.records.get(job) else {
            return true;
        };
        self.placement.acting(self.records.partition_of(job)).contains(&self.me.node)
            || held.live_executors().iter().any(|executor| executor.node == self.me.node)
    }

    /// Whoever drains does not take in anew what it would only hand over once more. Whoever sent it still has it, and will see
    /// in a moment where it belongs.
    fn has_no_use_for(&self, record: &Record) -> bool {
        let acting = self.placement.acting(self.records.partition_of(record.id));
        let runs_it = |attempt: &Attempt| attempt.is_live() && attempt.claim.executor.node == self.me.node;
        self.status() == Status::Draining
            && self.records.get(record.id).is_none()
            && !acting.is_empty()
            && !acting.contains(&self.me.node)
            && !record.attempts.values().any(|attempt| runs_it(attempt))
    }

    /// The ring has changed: asks for what was not acknowledged, and would be kept now.
    pub(super) fn ask_for_what_is_kept_now(&mut self) {
        let kept: Vec<JobId> =
            self.pushed_by.keys().copied().filter(|job| self.keeps(*job) && !self.expects_blobs(*job)).collect();
        for job in kept {
            self.ask_to_push_again(job);
        }
    }

    fn ask_to_push_again(&mut self, job: JobId) {
        for node in self.pushed_by.remove(&job).unwrap_or_default() {
            self.send(node, Message::PushAgain { jobs: vec![job] });
        }
    }

    /// Asks for blobs that are lacking. Returns whether anything came of it.
    pub(super) fn fetch_blobs(&mut self, now: Now) -> bool {
        let mut progress = false;
        let mut nowhere = Vec::new();
        loop {
            let (records, placement, me) = (&self.records, &self.placement, self.me.node);
            let view = self.membership.view();
            let candidates = |job: JobId| -> BTreeSet<NodeId> {
                let partition = records.partition_of(job);
                let lists = placement.acting(partition).iter().chain(placement.home(partition)).copied();
                let record = records.get(job).map(|held| held.record());
                let attempts = record.iter().flat_map(|record| record.attempts.values());
                let executors = attempts.map(|attempt| attempt.claim.executor.node);
                let live = |node: &NodeId| view.get(node).is_some_and(|member| member.is_live());
                lists.chain(executors).filter(|node| *node != me && live(node)).collect()
            };
            let Some((from, blob)) = self.blobs.poll_fetch(now.moment, candidates, &mut nowhere) else { break };
            progress = true;
            self.outbox.send(Effect::FetchBlob { from, blob });
        }
        for id in nowhere {
            progress = true;
            self.look_again(now, id);
        }
        progress
    }

    /// What came of an [`Effect::FetchBlob`].
    pub fn handle_blob(&mut self, now: Now, from: NodeId, id: BlobId, fetched: Fetched) {
        if self.blobs.handle_fetched(from, id, fetched) {
            self.take_in(now, &[id]);
        }
    }

    /// A blob that this node has and that is not on its disk yet: for those who ask for it.
    pub fn unstored_blob(&self, id: BlobId) -> Option<&Blob> {
        self.blobs.unstored(id)
    }

    /// A blob on this node's disk is damaged, and was taken away: it is fetched again.
    pub fn handle_blob_damaged(&mut self, id: BlobId) {
        self.blobs.handle_damaged(id);
        for job in self.blobs.jobs_of(id) {
            self.note_lacking(job);
        }
    }

    /// Blobs that were lacking have come: stores them, and tells those who waited.
    fn take_in(&mut self, now: Now, came: &[BlobId]) {
        for id in came {
            self.outbox.save_blob(*id);
            // A record counts as stored only with its blobs: it goes through the same commit once more.
            for job in self.blobs.jobs_of(*id) {
                self.outbox.save(job);
            }
            self.look_again(now, *id);
        }
    }

    /// A blob came, or is nowhere to be had: either way nobody waits for it any more.
    pub(super) fn look_again(&mut self, now: Now, id: BlobId) {
        for job in self.blobs.jobs_of(id) {
            self.note_lacking(job);
            if !self.expects_blobs(job) {
                self.ask_to_push_again(job);
            }
            let starting: Vec<Dot> =
                self.starting.iter().filter(|(_, starting)| starting.job == job).map(|(claim, _)| *claim).collect();
            for claim in starting {
                self.start_pod(now, job, claim);
            }
        }
    }

    /// Whether the attempt must not start yet, because the work that was saved for it is on its way here.
    pub(super) fn waits_for_checkpoint(&mut self, now: Now, record: &Record, claim: Dot) -> bool {
        let blob = record.checkpoint.as_ref().map(|checkpoint| checkpoint.blob.id);
        let is_awaited = blob.is_some_and(|id| self.blobs.expects(id));
        let until = match self.starting.get(&claim) {
            Some(starting) => starting.until,
            None => now.moment + CHECKPOINT_PATIENCE,
        };
        if is_awaited && until > now.moment {
            self.starting.insert(claim, Starting { job: record.id, until });
            return true;
        }
        self.starting.remove(&claim);
        false
    }

    /// Starts what has waited for its checkpoint for long enough, and forgets what is not to start any more.
    pub(super) fn start_without_checkpoints(&mut self, now: Now) {
        let due: Vec<(Dot, JobId)> = self
            .starting
            .iter()
            .filter(|(_, starting)| starting.until <= now.moment)
            .map(|(claim, starting)| (*claim, starting.job))
            .collect();
        for (claim, job) in due {
            self.start_pod(now, job, claim);
            self.starting.remove(&claim);
        }
    }

    /// What people should know of a pod that has just started.
    pub(super) fn remark_on_start(&self, key: AttemptKey) -> String {
        match self.pods.get(&key.claim).and_then(|pod| pod.began_without) {
            Some(number) => format!("began anew: no live node has the checkpoint of attempt {number}"),
            None => String::new(),
        }
    }

    /// A pod of this node says something of itself.
    pub(super) fn handle_report(&mut self, now: Now, key: AttemptKey, report: PodReport) {
        match report {
            PodReport::Progress(progress) => {
                if progress.validate().is_ok() && !self.is_stale(key) {
                    let dot = self.next_dot();
                    self.change(now, key.job, |record| record.report_progress(dot, key.claim, progress));
                }
            }
            PodReport::Checkpoint { answer, serial, at, blob } => {
                if self.is_stale(key) {
                    self.outbox.send(Effect::AnswerPod { answer, result: Err(Rejected::Stale) });
                } else {
                    self.save_checkpoint(now, key, answer, serial, at, blob);
                }
            }
            PodReport::Result { answer, serial, blob } => {
                if self.is_over(key) {
                    self.outbox.send(Effect::AnswerPod { answer, result: Err(Rejected::Stale) });
                } else {
                    self.save_result(now, key, answer, serial, blob);
                }
            }
            PodReport::Output { at, stdout, stderr } => {
                if !self.is_over(key) {
                    let tails = Tails { stdout: tail_of(&stdout, Some(at)), stderr: tail_of(&stderr, Some(at)) };
                    let dot = self.next_dot();
                    self.offer_own(now, [stdout, stderr].into_iter().flatten().map(|(_, blob)| blob));
                    self.change(now, key.job, |record| record.leave(dot, key.claim, None, tails));
                    self.blobs.withdraw_offers();
                }
            }
        }
    }

    /// Whether nothing that the attempt leaves is of any use. Unlike work to go on from, what it came to and what it wrote are
    /// taken of one that is being ended as well: it may have posted before it could know.
    fn is_over(&self, key: AttemptKey) -> bool {
        let is_ours = self.pods.get(&key.claim).is_some_and(|pod| match pod.state {
            PodState::Running | PodState::Ending => true,
            PodState::None => false,
        });
        let record = self.records.get(key.job).map(|held| held.record());
        !is_ours || record.is_none_or(|record| record.is_final() || record.is_superseded(key.claim))
    }

    /// Contents that a pod of this node has made, and that its record is about to name.
    fn offer_own(&mut self, now: Now, blobs: impl IntoIterator<Item = Blob>) {
        for blob in blobs {
            let came = self.blobs.offer_own(blob);
            self.take_in(now, &came);
        }
    }

    fn save_result(&mut self, now: Now, key: AttemptKey, answer: u64, serial: u64, blob: Blob) {
        let result = Outcome::posted(serial, blob.reference());
        let dot = self.next_dot();
        self.offer_own(now, [blob]);
        self.change(now, key.job, |record| record.leave(dot, key.claim, Some(result), Tails::default()));
        self.blobs.withdraw_offers();
        self.answer_when_copied(now, key.job, answer);
    }

    /// Answers a pod when what it handed in is on as many nodes as make it safe.
    fn answer_when_copied(&mut self, now: Now, job: JobId, answer: u64) {
        let Some(revision) = self.records.get(job).map(|held| held.revision) else {
            return;
        };
        let wanted = self.copies_for_safety(job);
        let deadline = now.moment + self.config.timing.acknowledge_within * COPIES_PATIENCE;
        self.replication.wait(job, revision, wanted, deadline, Waiting::Pod(answer));
        self.check_copies(now, job);
    }

    /// Whether the attempt has no say any more.
    fn is_stale(&self, key: AttemptKey) -> bool {
        let is_ours = self.pods.get(&key.claim).is_some_and(|pod| match pod.state {
            // While this node leaves, pods that end may save what they have.
            PodState::Running => true,
            PodState::Ending => self.leaving,
            PodState::None => false,
        });
        let Some(held) = self.records.get(key.job) else {
            return true;
        };
        let record = held.record();
        !is_ours || record.stop.is_some() || record.is_superseded(key.claim) || held.state().is_terminal()
    }

    fn save_checkpoint(&mut self, now: Now, key: AttemptKey, answer: u64, serial: u64, at: Timestamp, blob: Blob) {
        let resumed = self.pods.get(&key.claim).and_then(|pod| pod.resumed);
        let record = self.records.lay_open(key.job).map(|held| held.record());
        let Some(claim) = record.as_ref().and_then(|record| record.attempts.get(&key.claim)) else {
            return self.outbox.send(Effect::AnswerPod { answer, result: Err(Rejected::Stale) });
        };
        let claim = &claim.claim;
        let checkpoint = Checkpoint {
            // What it really began with may be newer than what the claim knew.
            chain: claim.chain().max(resumed.map_or(0, |chain| chain.saturating_add(1))),
            number: claim.number,
            node: self.me.node,
            serial,
            claim: key.claim,
            blob: blob.reference(),
            saved_at: at,
        };
        let dot = self.next_dot();
        self.offer_own(now, [blob]);
        let mut is_newest = false;
        self.change(now, key.job, |record| is_newest = record.save_checkpoint(dot, checkpoint));
        self.blobs.withdraw_offers();
        if !is_newest {
            return self.outbox.send(Effect::AnswerPod { answer, result: Err(Rejected::Overtaken) });
        }
        self.answer_when_copied(now, key.job, answer);
    }

    /// A pod's report is stored on these nodes, or the time for more is over.
    pub(super) fn answer_pod(&mut self, answer: u64, replicas: Vec<NodeId>, wanted: u32) {
        let stored = replicas.len() as u32;
        let result = if stored == 0 { Err(Rejected::NotStored) } else { Ok(Receipt { stored, wanted, replicas }) };
        self.outbox.send(Effect::AnswerPod { answer, result });
    }

    /// A pod of this node has ended: writes how, and keeps what it leaves behind.
    pub(super) fn handle_end(&mut self, now: Now, key: AttemptKey, ending: Ending, left: Leavings) {
        let Leavings { progress, result, stdout, stderr, usage, remark } = left;
        let tails = Tails { stdout: tail_of(&stdout, None), stderr: tail_of(&stderr, None) };
        let named = result.as_ref().map(|blob| Outcome::left(blob.reference()));
        let outputs = [stdout, stderr].into_iter().flatten().map(|(_, blob)| blob);
        self.offer_own(now, result.into_iter().chain(outputs));
        let dot = self.next_dot();
        self.change(now, key.job, |record| {
            if let Some(progress) = progress {
                record.report_progress(dot, key.claim, progress);
            }
            record.leave(dot, key.claim, named, tails);
            if let Some(usage) = usage {
                record.count_usage(dot, key.claim, usage);
            }
            let fate = fate_of(record, key.claim, dot, ending, remark);
            record.advance(key.claim, fate);
        });
        self.blobs.withdraw_offers();
    }
}

fn tail_of(part: &Option<(u64, Blob)>, as_of: Option<Timestamp>) -> Option<Tail> {
    part.as_ref().map(|(offset, blob)| Tail { offset: *offset, blob: blob.reference(), as_of })
}
