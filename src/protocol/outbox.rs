//! The one ordered queue in which effects leave, and the gate in front of it.
//!
//! Think of a post office with one postman to the disk. Letters that promise nothing go out at once. A letter
//! that promises "it is stored" waits until the postman, who carries all that changed since his last walk,
//! is back from the walk that carried what the letter speaks of. While he is away, the next load gathers:
//! that is group commit, and it needs no timer.

use std::collections::{BTreeMap, VecDeque};

use crate::model::blob::BlobId;
use crate::model::id::{JobId, NodeId};
use crate::model::member::Facts;
use crate::model::record::Version;
use crate::model::request::Response;
use crate::model::time::Now;

use super::blobs::{Blobs, Storing};
use super::effect::{Commit, Effect};
use super::records::Records;

/// What may leave: an effect for the shells, or what is looked at once more when the disk is done.
#[derive(Debug)]
pub enum Outgoing {
    /// For the shells.
    Effect(Effect),
    /// For this node's own gateway.
    Answer {
        /// To which question.
        call: u64,
        /// The answer.
        response: Response,
    },
    /// The acknowledgement of a push: good only for what is still here when it leaves.
    Stored {
        /// Who pushed.
        to: NodeId,
        /// Which push.
        seq: u64,
        /// What came of each of its records; nothing for those that are not kept.
        copies: Vec<Option<StoredHere>>,
    },
}

/// A record that was pushed to this node, and taken in.
#[derive(Debug, Clone, Copy)]
pub struct StoredHere {
    /// As what it is held now.
    pub version: Version,
    /// Whose it is; nothing where it is not held, because its time is over.
    pub job: Option<JobId>,
}

impl From<Effect> for Outgoing {
    fn from(effect: Effect) -> Self {
        Self::Effect(effect)
    }
}

/// Effects on their way out.
#[derive(Debug, Default)]
pub struct Outbox {
    ready: VecDeque<Outgoing>,
    gathering: Load,
    committing: Option<(u64, Load)>,
    committed: u64,
    /// No commit is handed out while the disk is full and the pause before another try lasts.
    held_back: bool,
}

/// What one commit carries, and what waits for it.
#[derive(Debug, Default)]
struct Load {
    /// Changed or removed records. What they are, and in which revision, is looked up when the commit leaves.
    changed: BTreeMap<JobId, u64>,
    /// Blobs to store or delete, looked up likewise; and whether the commit under way stores it.
    blobs: BTreeMap<BlobId, bool>,
    members: Option<Vec<Facts>>,
    waiting: Vec<Outgoing>,
}

impl Load {
    fn is_empty(&self) -> bool {
        self.changed.is_empty() && self.blobs.is_empty() && self.members.is_none()
    }
}

/// What a commit made durable.
#[derive(Debug, Default)]
pub struct Durable {
    /// Each record, with the revision that is on disk now.
    pub records: Vec<(JobId, u64)>,
    /// Blobs.
    pub blobs: Vec<BlobId>,
}

impl Outbox {
    /// Queues an effect that promises nothing.
    pub fn send(&mut self, outgoing: impl Into<Outgoing>) {
        self.ready.push_back(outgoing.into());
    }

    /// Queues an effect that may be seen only when everything saved so far is on disk.
    pub fn send_when_stored(&mut self, outgoing: impl Into<Outgoing>) {
        let outgoing = outgoing.into();
        if !self.gathering.is_empty() {
            self.gathering.waiting.push(outgoing);
        } else if let Some((_, load)) = &mut self.committing {
            load.waiting.push(outgoing);
        } else {
            self.ready.push_back(outgoing);
        }
    }

    /// The record of `job` changed or is gone: the next commit carries what it is then.
    pub fn save(&mut self, job: JobId) {
        self.gathering.changed.insert(job, 0);
    }

    /// A blob came, or is named no more: the next commit stores or deletes it.
    pub fn save_blob(&mut self, id: BlobId) {
        self.gathering.blobs.insert(id, false);
    }

    /// Remember these members for the next start.
    pub fn save_members(&mut self, members: Vec<Facts>) {
        self.gathering.members = Some(members);
    }

    /// The next thing that may leave now.
    pub fn poll(&mut self) -> Option<Outgoing> {
        self.ready.pop_front()
    }

    /// The next commit, when the last one is done and there is anything to store. Asked for when nothing else
    /// is left to do, so that it carries as much as possible.
    pub fn poll_commit(&mut self, now: Now, records: &Records, blobs: &Blobs) -> Option<Commit> {
        if self.committing.is_some() || self.gathering.is_empty() || self.held_back {
            return None;
        }
        let mut load = std::mem::take(&mut self.gathering);
        let mut commit = Commit { number: self.committed + 1, members: load.members.clone(), ..Commit::default() };
        for (job, revision) in &mut load.changed {
            match records.get(*job) {
                Some(held) => {
                    *revision = held.revision;
                    let record = held.record();
                    if record.spec().waits_for_a_time() {
                        commit.known_at.insert(*job, now.wall_at(held.known_since));
                    }
                    commit.put.push(record);
                }
                None => commit.delete.push(*job),
            }
        }
        for (id, stored) in &mut load.blobs {
            match blobs.storing(*id) {
                Storing::Put(blob) => {
                    *stored = true;
                    commit.put_blobs.push(blob);
                }
                Storing::Drop => commit.drop_blobs.push(*id),
                Storing::Nothing => {}
            }
        }
        self.committing = Some((commit.number, load));
        Some(commit)
    }

    /// Commit `number` is on disk: what waited for it goes out.
    pub fn handle_committed(&mut self, number: u64) -> Durable {
        match self.committing.take_if(|(under_way, _)| *under_way == number) {
            Some((_, load)) => {
                self.committed = number;
                self.ready.extend(load.waiting);
                Durable {
                    records: load.changed.into_iter().collect(),
                    blobs: load.blobs.into_iter().filter(|(_, stored)| *stored).map(|(id, _)| id).collect(),
                }
            }
            None => Durable::default(),
        }
    }

    /// Commit `number` failed and left the disk as it was: its load joins the next one, which waits for
    /// [`resume`](Self::resume).
    pub fn handle_commit_failed(&mut self, number: u64) {
        if let Some((_, mut load)) = self.committing.take_if(|(under_way, _)| *under_way == number) {
            self.committed = number;
            let newer = std::mem::take(&mut self.gathering);
            load.changed.extend(newer.changed);
            load.blobs.extend(newer.blobs);
            load.blobs.values_mut().for_each(|stored| *stored = false);
            load.members = newer.members.or(load.members);
            load.waiting.extend(newer.waiting);
            self.gathering = load;
            self.held_back = true;
        }
    }

    /// Try the disk again.
    pub fn resume(&mut self) {
        self.held_back = false;
    }

    /// Whether the record, as it is now, is on disk.
    pub fn is_stored(&self, job: JobId) -> bool {
        let carries = |load: &Load| load.changed.contains_key(&job);
        !carries(&self.gathering) && !self.committing.as_ref().is_some_and(|(_, load)| carries(load))
    }

    /// The records that are not on disk as they are now.
    pub fn unsaved(&self) -> impl Iterator<Item = JobId> + '_ {
        let under_way = self.committing.iter().flat_map(|(_, load)| load.changed.keys());
        self.gathering.changed.keys().chain(under_way).copied()
    }

    /// Whether everything saved is on disk.
    pub fn is_settled(&self) -> bool {
        self.gathering.is_empty() && self.committing.is_none()
    }
}
