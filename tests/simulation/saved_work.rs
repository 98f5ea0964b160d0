//! The work that jobs save on their way, and that it never goes back.
//!
//! Checkpoints of one job have an order, that of the records' merge. Four looks at one promise: on no disk does a
//! record take the place of one with newer work; an attempt begins with what its owner knew, or with newer work; what a
//! pod was told is safe is what every later attempt begins with, and what all nodes know of in the end; and an owner
//! that answers a client never tells of older work than before.
//!
//! Faults excuse two of them, while they last and for [`WAKE`] after: that an attempt begins without work that is on
//! disks, since those may all be off or cut away, and that an owner tells of older work, since there may be two owners.
//! Nothing excuses the others, but that whoever need not keep a record may let go of it once others have it, and be
//! given an older copy by one who was cut off.

use std::collections::BTreeMap;
use std::time::Duration;

use flockwork::model::attempt::Attempt;
use flockwork::model::blob::{BlobId, BlobRef};
use flockwork::model::id::{Dot, JobId};
use flockwork::model::record::Record;
use flockwork::model::report::Checkpoint;
use flockwork::protocol::peer::Peer;

use crate::network::short;
use crate::world::World;

/// How long after a fault an attempt may still begin without work that it hid: as long as an executor waits for its
/// checkpoint, and as long as it took until the claim.
const WAKE: Duration = Duration::from_secs(40);

/// What was saved.
#[derive(Debug, Default)]
pub struct SavedWork {
    /// Every checkpoint that was ever written to a disk, by its content.
    known: BTreeMap<BlobId, Checkpoint>,
    /// The newest of each job that a pod was told is safe.
    safe: BTreeMap<JobId, Checkpoint>,
    /// The newest of each job that an owner told a client of.
    told: BTreeMap<JobId, Checkpoint>,
}

impl SavedWork {
    /// The job was submitted anew after its record had expired, or a seal has ended what its key was used for on the other
    /// side of a partition: it is another one now.
    pub fn forget(&mut self, job: JobId) {
        self.safe.remove(&job);
        self.told.remove(&job);
    }

    /// A pod was told that enough disks have this work of its job.
    pub fn is_safe(&mut self, job: JobId, content: BlobId) {
        let newest = self.safe.get(&job);
        if let Some(checkpoint) =
            self.known.get(&content).filter(|checkpoint| newest.is_none_or(|safe| safe < checkpoint))
        {
            self.safe.insert(job, checkpoint.clone());
        }
    }
}

impl World {
    /// A record is about to be written to a disk.
    pub fn check_saved_work_stays(&mut self, node: usize, record: &Record) {
        if let Some(checkpoint) = &record.checkpoint {
            self.saved_work.known.entry(checkpoint.blob.id).or_insert_with(|| checkpoint.clone());
        }
        let hour = self.local_now(node).wall.hour();
        // What has expired is no more, and the job may have been submitted anew.
        let counts = |before: &&std::sync::Arc<Record>| before.seal.is_none_or(|seal| seal.expires_hour >= hour);
        let Some(before) = self.nodes[node].disk.records.get(&record.id).filter(counts) else {
            return;
        };
        if record.checkpoint >= before.checkpoint {
            return;
        }
        let place = |saved: &Option<Checkpoint>| saved.as_ref().map(|saved| (saved.chain, saved.number, saved.serial));
        let (was, is) = (place(&before.checkpoint), place(&record.checkpoint));
        let text = format!("{} on n{node}: {is:?} after {was:?}", short(record.id.0));
        let keeps = |peer: &Peer| {
            let placement = peer.placement();
            placement.acting(placement.partition_of(record.id)).contains(&self.nodes[node].id)
        };
        let is_kept = !self.nodes[node].disk.lingering.contains(&record.id) && self.peer(node).is_some_and(keeps);
        // A key that was used on both sides of a partition is two records, of which a seal may end the one.
        if record.is_final() && before.submission != record.submission {
            self.except(format!("saved work of another record: {text}"));
            self.saved_work.forget(record.id);
        } else if before.checkpoint.as_ref().is_some_and(|saved| self.was_passed_over(record, saved.claim)) {
            self.except(format!("saved work that a seal passed over: {text}"));
        } else if !is_kept {
            self.except(format!("another copy after one that was let go of: {text}"));
        } else {
            self.find("checkpoints never go back", text);
        }
    }

    /// A pod is about to begin, with this work.
    pub fn check_begins_with_saved_work(&mut self, node: usize, job: JobId, claim: Dot, begins_with: Option<BlobRef>) {
        let begins_with = begins_with.and_then(|blob| self.saved_work.known.get(&blob.id)).cloned();
        let text = |saved: &Checkpoint| {
            let place = |saved: &Checkpoint| (saved.chain, saved.number, saved.serial);
            format!(
                "{} by {claim} on n{node} with {:?} of {:?}",
                short(job.0),
                begins_with.as_ref().map(place),
                place(saved)
            )
        };
        let here = self.nodes[node].disk.records.get(&job);
        let owner_knew = here.and_then(|record| record.attempts.get(&claim)).and_then(|it| it.claim.resumed_from);
        let newest_here = here.and_then(|record| record.checkpoint.clone());
        if let Some(saved) = newest_here
            && begins_with.as_ref().map(|saved| saved.chain) < owner_knew
        {
            let has = |at: &usize| self.nodes[*at].disk.blobs.contains_key(&saved.blob.id);
            let somebody_has = self.up().iter().any(has);
            let text = text(&saved);
            // That nobody who is up has the work any more is told with the attempt.
            if has(&node) || (somebody_has && !self.is_or_was_disturbed()) {
                self.find("an attempt goes on with what was saved", text);
            } else {
                self.except(format!("begins without saved work: {text}"));
            }
        }
        let safe = self.saved_work.safe.get(&job).filter(|safe| begins_with.as_ref().is_none_or(|with| with < safe));
        if let Some(text) = safe.map(text) {
            if self.is_or_was_disturbed() {
                self.except(format!("begins without safe work: {text}"));
            } else {
                self.find("saved work is not lost", text);
            }
        }
    }

    /// An owner tells a client of a job.
    pub fn check_told_work(&mut self, node: usize, record: &Record) {
        let before = self.saved_work.told.get(&record.id);
        if before.is_some_and(|before| record.checkpoint.as_ref().is_none_or(|now| now < before)) {
            let text = format!("n{node} tells of older work of {} than an owner told before", short(record.id.0));
            if self.is_or_was_disturbed() { self.except(text) } else { self.find("checkpoints never go back", text) }
        } else if let Some(now) = &record.checkpoint {
            self.saved_work.told.insert(record.id, now.clone());
        }
    }

    /// What was safe is known in the end, whatever happened.
    pub fn judge_saved_work(&mut self, record: &Record) {
        let safe = self.saved_work.safe.get(&record.id);
        let is_lost = |safe: &&Checkpoint| record.checkpoint.as_ref().is_none_or(|now| now < *safe);
        let Some(lost) = safe.filter(is_lost) else {
            return;
        };
        // A key that was used again where nobody knew of its job: the seal of the one ended the other.
        if record.is_final() && record.spec().key.is_some() && !record.attempts.contains_key(&lost.claim) {
            self.except(format!("saved work of another record: of {} in the end", short(record.id.0)));
        } else if self.was_passed_over(record, lost.claim) {
            self.except(format!("saved work that a seal passed over: of {} in the end", short(record.id.0)));
        } else {
            self.find("saved work is not lost", format!("of {} in the end", short(record.id.0)));
        }
    }

    /// The same of what attempts posted as their results.
    pub fn judge_results(&mut self, record: &Record) {
        let Some(safe) = self.ledger.safe_results.get(&record.id) else {
            return;
        };
        let lost = safe
            .iter()
            .find(|(claim, safe)| record.attempts.get(claim).is_none_or(|attempt| attempt.result < Some(**safe)));
        let Some((claim, _)) = lost else {
            return;
        };
        let text = format!("of {claim} of {} in the end", short(record.id.0));
        if self.was_passed_over(record, *claim) || (record.is_final() && !record.attempts.contains_key(claim)) {
            self.except(format!("a result that a seal passed over: {text}"));
        } else {
            self.find("results are not lost", text);
        }
    }

    /// Whether the record was sealed without what the attempt's executor knew of it: a seal may end what only nodes knew that
    /// left, or were forgotten, while they were cut off. Often the end of the attempt is not known from its executor either.
    fn was_passed_over(&self, record: &Record, claim: Dot) -> bool {
        let told_its_end = |attempt: &Attempt| !attempt.is_live() && attempt.fate.by_executor;
        let is_open = |claim| record.attempts.get(&claim).is_some_and(|attempt| !told_its_end(attempt));
        record.is_final() && (self.given_up_for_a_seal.contains(&record.id) || is_open(claim))
    }

    fn is_or_was_disturbed(&self) -> bool {
        self.is_disturbed() || self.fault_log.last().is_some_and(|(at, _)| self.now - *at <= WAKE)
    }
}
