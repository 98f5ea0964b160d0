//! A machine's disk: what survives its process.
//!
//! One transaction is under way at a time. A crash finds it either synced, although nobody was told, or gone
//! without a trace; what was synced before stays. A full disk fails every transaction and changes nothing. A sync that fails
//! leaves either, and ends the process.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use flockwork::model::blob::{Blob, BlobId};
use flockwork::model::id::JobId;
use flockwork::model::member::Facts;
use flockwork::model::record::Record;
use flockwork::model::time::Timestamp;
use flockwork::protocol::effect::Commit;

/// See the top of this file.
#[derive(Debug, Default)]
pub struct Disk {
    pub records: BTreeMap<JobId, Arc<Record>>,
    /// Since when those are known that wait for a time to pass, by the machine's clock.
    pub known_at: BTreeMap<JobId, Timestamp>,
    pub blobs: BTreeMap<BlobId, Blob>,
    /// What it let go of when all others that should have it had it on their disks, and has not got back since.
    pub handed_over: BTreeSet<JobId>,
    /// What its node has let go of, and has yet to be deleted: for long if the disk is full.
    pub lingering: BTreeSet<JobId>,
    pub members: Vec<Facts>,
    /// That of the last start.
    pub generation: u64,
    pub full: bool,
    /// The next sync fails.
    pub fails_to_sync: bool,
    /// How long a sync may take, in milliseconds.
    pub slow_ms: f64,
    pub writing: Option<Write>,
}

/// A transaction under way.
#[derive(Debug)]
pub struct Write {
    pub process: u64,
    pub commit: Commit,
}

impl Disk {
    /// Ends its troubles.
    pub fn mend(&mut self) {
        (self.full, self.slow_ms, self.fails_to_sync) = (false, 0.0, false);
    }

    /// The transaction of `process` is done. Returns its number, and whether it is on the disk.
    pub fn finish(&mut self, process: u64) -> Option<(u64, bool)> {
        let write = self.writing.take_if(|write| write.process == process)?;
        let number = write.commit.number;
        if !self.full {
            self.apply(write.commit);
        }
        Some((number, !self.full))
    }

    /// The process died: the transaction under way may or may not have been synced.
    pub fn crash(&mut self, synced: bool) {
        if let Some(write) = self.writing.take()
            && synced
            && !self.full
        {
            self.apply(write.commit);
        }
    }

    fn apply(&mut self, commit: Commit) {
        for record in commit.put {
            self.handed_over.remove(&record.id);
            self.lingering.remove(&record.id);
            self.known_at.remove(&record.id);
            self.records.insert(record.id, record);
        }
        self.known_at.extend(commit.known_at);
        for job in commit.delete {
            self.records.remove(&job);
            self.lingering.remove(&job);
            self.known_at.remove(&job);
        }
        self.blobs.extend(commit.put_blobs.into_iter().map(|blob| (blob.id(), blob)));
        for blob in commit.drop_blobs {
            self.blobs.remove(&blob);
        }
        if let Some(members) = commit.members {
            self.members = members;
        }
    }
}
