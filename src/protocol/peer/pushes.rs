//! What peers push to this node, and when it says that it has it.
//!
//! Whoever pushes may let go of a record that is acknowledged. So an acknowledgement is a promise to keep the record,
//! with its blobs: it leaves late, when the disk is done and the blobs have come, and only if this node would keep the record
//! by its own ring at that moment. Where it would not, it remembers who pushed, and asks for it once more when that has changed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::model::attempt::Attempt;
use crate::model::blob::Blob;
use crate::model::id::{JobId, NodeId};
use crate::model::member::Status;
use crate::model::record::Record;
use crate::model::time::Now;
use crate::model::wire::Message;

use super::super::effect::Effect;
use super::super::outbox::{Outgoing, StoredHere};
use super::super::sabotage::Bug;
use super::Peer;

/// A push as it came.
#[derive(Debug)]
pub(super) struct Pushed {
    pub(super) seq: u64,
    pub(super) records: Vec<Arc<Record>>,
    pub(super) blobs: Vec<Blob>,
    /// The jobs of which the sender lacks some blob.
    pub(super) lacking: BTreeSet<JobId>,
    /// For how long the sender has known those that wait for a time to pass.
    pub(super) known_for: BTreeMap<JobId, Duration>,
}

impl Peer {
    /// Records were pushed to this node: merge them, and say so once they are stored. Those whose blobs have not all
    /// come, and those that this node would not keep as it sees the ring, are acknowledged later: see
    /// [`push_again`](Self::push_again). Whoever pushes may let go of a record that is acknowledged, so two nodes that each
    /// take the other for its place must not acknowledge it to each other.
    ///
    /// Much can happen until the disk is done, where it was full: what was let go of meanwhile is not acknowledged either.
    pub(super) fn handle_push(&mut self, now: Now, from: NodeId, pushed: Pushed) {
        let Pushed { seq, records, blobs, lacking, known_for } = pushed;
        let came = self.blobs.offer(blobs);
        self.take_in(now, &came);
        let mut copies = Vec::with_capacity(records.len());
        for record in records {
            let job = record.id;
            if self.has_no_use_for(&record) {
                copies.push(None);
                continue;
            }
            let version = self.absorb_known(now, from, Arc::clone(&record), known_for.get(&job));
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

    /// The ring has changed: asks for what was not acknowledged, and would be kept now.
    pub(super) fn ask_for_what_is_kept_now(&mut self) {
        let kept: Vec<JobId> =
            self.pushed_by.keys().copied().filter(|job| self.keeps(*job) && !self.expects_blobs(*job)).collect();
        for job in kept {
            self.ask_to_push_again(job);
        }
    }

    pub(super) fn ask_to_push_again(&mut self, job: JobId) {
        for node in self.pushed_by.remove(&job).unwrap_or_default() {
            self.send(node, Message::PushAgain { jobs: vec![job] });
        }
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
}
