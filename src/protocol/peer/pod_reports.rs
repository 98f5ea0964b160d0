//! What pods say of themselves and leave behind: progress, checkpoints, results, output.
//!
//! What a pod hands in to be kept is answered only when it is on as many disks as make it safe.

use crate::model::blob::Blob;
use crate::model::id::{AttemptKey, JobId, NodeId};
use crate::model::report::{Checkpoint, Outcome, Tail, Tails};
use crate::model::request::Receipt;
use crate::model::time::{Now, Timestamp};

use super::super::effect::{Effect, Leavings, PodReport, Rejected};
use super::super::lifecycle::PodState;
use super::attempts::{Ending, fate_of};
use super::{Peer, Waiting};

/// How many times the usual patience a checkpoint's copies are waited for, since it may be large.
const COPIES_PATIENCE: u32 = 4;

impl Peer {
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

    fn save_result(&mut self, now: Now, key: AttemptKey, answer: u64, serial: u64, blob: Blob) {
        let result = Outcome::posted(serial, blob.reference());
        let dot = self.next_dot();
        self.offer_own(now, [blob]);
        self.change(now, key.job, |record| record.leave(dot, key.claim, Some(result), Tails::default()));
        self.blobs.withdraw_offers();
        self.answer_when_copied(now, key.job, answer);
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

    /// Contents that a pod of this node has made, and that its record is about to name.
    fn offer_own(&mut self, now: Now, blobs: impl IntoIterator<Item = Blob>) {
        for blob in blobs {
            let came = self.blobs.offer_own(blob);
            self.take_in(now, &came);
        }
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
}

fn tail_of(part: &Option<(u64, Blob)>, as_of: Option<Timestamp>) -> Option<Tail> {
    part.as_ref().map(|(offset, blob)| Tail { offset: *offset, blob: blob.reference(), as_of })
}
