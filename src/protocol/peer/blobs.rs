//! The blobs that records name: named and dropped with them, fetched where they are lacking, and kept for the pods that are to
//! begin with them.
//!
//! The bookkeeping is that of [`Blobs`](crate::protocol::blobs::Blobs); here it meets the records.

use std::collections::BTreeSet;

use crate::model::blob::{Blob, BlobId, BlobRef};
use crate::model::id::{AttemptKey, Dot, JobId, NodeId};
use crate::model::record::Record;
use crate::model::time::Now;

use super::super::effect::{Effect, Fetched};
use super::Peer;

impl Peer {
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
    pub(super) fn take_in(&mut self, now: Now, came: &[BlobId]) {
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
}
