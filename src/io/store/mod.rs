//! What a node keeps on its disk: who it is, the members it knew, and the records of its jobs.
//!
//! Think of a notary with one desk. Whoever has something to be kept hands it in and walks on; the notary (one
//! thread, which alone holds the database) writes it down, makes sure that it would survive the lights going
//! out, and calls back. A [`Commit`] is all or nothing, and a [`CommitDone`] without an error means that its
//! content is on the disk, not on the way there.
//!
//! Every record that is kept is also in memory, with the Peer. So those are read once, at the start, and then only
//! written. Blobs are not in memory: they are read from here, a part at a time, through a [`BlobReader`], for which
//! the notary lays down the pen for a moment. Not known here: what a record means, whether it is
//! right to keep it, who else has it.
//!
//! What always holds:
//! - What was reported done is there after the process or the machine dies.
//! - A record that the disk has changed is noticed (each carries a checksum; SQLite notices none of it), set
//!   aside and named. Its replicas have another copy. It never stops a start and never harms its neighbours.
//! - A full disk fails the commit that meets it, changes nothing, and the next one may succeed.
//! - After any other failed write nothing more is written: what the kernel failed to sync once it may report
//!   as synced the next time (Rebello et al., "Can Applications Recover from fsync Failures?", 2020).

mod database;
mod envelope;
#[cfg(test)]
mod tests;
mod unpacking;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::model::blob::{Blob, BlobId, BlobRef};
use crate::model::id::{Generation, JobId, NodeId};
use crate::model::member::Facts;
use crate::model::packed::PackedRecord;
use crate::model::time::Timestamp;
use crate::model::wire::BLOB_PART_BYTES;
use crate::protocol::effect::Commit;

use database::Database;

/// Why a data directory cannot be used. Nothing in it was changed, except where a variant says so.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process holds it.
    #[error("the data directory {} is in use by another node{holder}: give each node its own", dir.display())]
    InUse {
        /// The directory.
        dir: PathBuf,
        /// " (process 17)", where it is known.
        holder: String,
    },
    /// A newer flockwork has written it.
    #[error(
        "{} was written by a newer flockwork (its schema is {found}, this program knows up to {known}): \
         start that version, or move the directory away to begin anew", path.display()
    )]
    Newer {
        /// The database.
        path: PathBuf,
        /// Its schema.
        found: i64,
        /// The newest schema that this program knows.
        known: i64,
    },
    /// What is there cannot be read.
    #[error(
        "{} cannot be used: {reason}. Move the directory {} away and start again: the node will come back \
         with a new id and get its records from its replicas", path.display(), dir.display()
    )]
    Damaged {
        /// The directory.
        dir: PathBuf,
        /// The database.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no room to write down even that the node starts.
    #[error("the disk (or the quota) under {} is full: make room and start again", dir.display())]
    Full {
        /// The directory.
        dir: PathBuf,
    },
    /// The operating system refused something.
    #[error("{doing} {}: {reason}", path.display())]
    Refused {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What it said.
        reason: String,
    },
}

/// Why a commit is not on the disk. None of it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// The disk or the quota is full. The same store takes the next commit, which may succeed.
    #[error("the disk is full: {0}")]
    Full(String),
    /// The disk fails, and what it says of earlier writes need not be true any more. The store takes nothing
    /// further, and the node must stop.
    #[error("the store has failed: {0}")]
    Fatal(String),
}

/// What became of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitDone {
    /// Which.
    pub number: u64,
    /// Whether its content is durable.
    pub result: Result<(), CommitError>,
}

/// Who this node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Drawn at the first start, kept as long as the data directory.
    pub node: NodeId,
    /// The name it was last given.
    pub name: Option<String>,
    /// This start. Already durable: no later start will have it again.
    pub generation: Generation,
}

/// A record that was set aside because its bytes cannot be what was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damaged {
    /// Its job; unknown where the damage covers even that.
    pub id: Option<JobId>,
    /// What is wrong with it.
    pub reason: String,
}

/// What the disk held at the start.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// Who this node is.
    pub identity: Identity,
    /// Every record that could be read.
    pub records: Vec<PackedRecord>,
    /// Since when those of them were known that wait for a time to pass, by this node's own clock.
    pub known_at: BTreeMap<JobId, Timestamp>,
    /// Every blob that is there; read and checked only when it is wanted.
    pub blobs: Vec<BlobRef>,
    /// The members that were known at the last commit of them.
    pub members: Vec<Facts>,
    /// Records that could not be read, and were set aside.
    pub damaged: Vec<Damaged>,
    /// The last process with this directory did not close it: it was killed, or its machine died.
    pub was_running: bool,
}

/// How many commits may wait. The Peer has one under way at a time; the rest is room for a mistake.
const WAITING_COMMITS: usize = 4;

/// More than any blob has: what is set aside in memory for one at once.
const LARGEST_BLOB_BYTES: usize = crate::model::blob::MAX_CHECKPOINT_BYTES as usize;

/// After how long without commits the store tidies up.
const IDLE: Duration = Duration::from_secs(1);

/// A commit that takes longer is worth a line in the log: every submit waits for it.
const SLOW_COMMIT: Duration = Duration::from_secs(1);

/// How many parts of blobs are being read at one time, at the most; other readers wait.
const WAITING_READS: usize = 16;

/// What the store's thread is asked to do.
#[derive(Debug)]
enum Work {
    Commit(Commit),
    ReadBlob {
        id: BlobId,
        part: u32,
        answer: oneshot::Sender<BlobRead>,
        /// A place among the reads, until it is done, whether or not anybody still waits for it.
        place: OwnedSemaphorePermit,
    },
    /// What came before is done; readers may be left, and find nobody.
    Close,
}

/// What became of reading a part of a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BlobRead {
    /// The part.
    Part(Bytes),
    /// There is no such blob, or no such part of it.
    Absent,
    /// It is not what was written, and is forgotten.
    Damaged,
}

/// Why a stored blob could not be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BlobError {
    /// It is not here, or not any more.
    #[error("this node does not have it")]
    Absent,
    /// The disk has damaged it.
    #[error("this node's disk has damaged it")]
    Damaged,
    /// The store is closed.
    #[error("this node is shutting down")]
    Closed,
}

/// Reads blobs from the store. Cheap to clone; outlives the store, and finds it closed then.
#[derive(Debug, Clone)]
pub struct BlobReader {
    queue: SyncSender<Work>,
    reading: Arc<Semaphore>,
    damaged: mpsc::UnboundedSender<BlobId>,
}

/// The open store. Dropping it does what [`close`](Self::close) does.
#[derive(Debug)]
pub struct Store {
    work: SyncSender<Work>,
    reading: Arc<Semaphore>,
    thread: Option<JoinHandle<()>>,
}

impl Store {
    /// Opens the store in `dir`, creating whatever is missing, and reads all of it. `name` is remembered where
    /// given. `done` is called on the store's own thread, once for every commit, and must not block.
    ///
    /// # Errors
    /// The directory is in use, full, forbidden, damaged, or of a newer version.
    pub fn open(
        dir: &Path,
        name: Option<&str>,
        now: Timestamp,
        done: impl Fn(CommitDone) + Send + 'static,
    ) -> Result<(Self, Loaded), StoreError> {
        let (database, loaded) = Database::open(dir, name, now)?;
        let (work, handed_in) = sync_channel(WAITING_COMMITS + WAITING_READS);
        let thread = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || write_all(database, &handed_in, done))
            .map_err(|error| StoreError::Refused {
                doing: "starting the thread that writes to",
                path: dir.to_owned(),
                reason: error.to_string(),
            })?;
        Ok((Self { work, reading: Arc::new(Semaphore::new(WAITING_READS)), thread: Some(thread) }, loaded))
    }

    /// Hands in a commit and returns at once; its end is reported to the `done` given to [`open`](Self::open).
    ///
    /// # Errors
    /// [`CommitError::Fatal`], and nothing will be reported: the store's thread is gone, or more commits wait
    /// than the contract allows.
    pub fn commit(&self, commit: Commit) -> Result<(), CommitError> {
        self.work.try_send(Work::Commit(commit)).map_err(|refused| {
            CommitError::Fatal(match refused {
                TrySendError::Full(_) => "more commits wait than there may be".to_owned(),
                TrySendError::Disconnected(_) => "its thread has ended".to_owned(),
            })
        })
    }

    /// A way to read blobs. Those that turn out to be damaged are named to `damaged`.
    pub fn blob_reader(&self, damaged: mpsc::UnboundedSender<BlobId>) -> BlobReader {
        BlobReader { queue: self.work.clone(), reading: Arc::clone(&self.reading), damaged }
    }

    /// Finishes what was handed in, writes down that the node stopped in order, and releases the directory.
    /// Blocks for as long as that takes.
    pub fn close(self) {
        drop(self);
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // Without a thread there is nothing to close; the join tells.
        let _ = self.work.send(Work::Close);
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the store's thread panicked; the next start will check the database");
        }
    }
}

impl BlobReader {
    /// Part `part` of a blob, counted from 0; each but the last has
    /// [`BLOB_PART_BYTES`].
    ///
    /// # Errors
    /// There is no such part, it is damaged, or the store is closed.
    pub async fn read_part(&self, id: BlobId, part: u32) -> Result<Bytes, BlobError> {
        let place = Arc::clone(&self.reading).acquire_owned().await.map_err(|_| BlobError::Closed)?;
        let (answer, answered) = oneshot::channel();
        // Whoever has a place finds room in the queue.
        self.queue.try_send(Work::ReadBlob { id, part, answer, place }).map_err(|_| BlobError::Closed)?;
        match answered.await.map_err(|_| BlobError::Closed)? {
            BlobRead::Part(bytes) => Ok(bytes),
            BlobRead::Absent => Err(BlobError::Absent),
            BlobRead::Damaged => {
                // The driver, which would see to a new copy, may have gone.
                let _ = self.damaged.send(id);
                Err(BlobError::Damaged)
            }
        }
    }

    /// A whole blob.
    ///
    /// # Errors
    /// As [`read_part`](Self::read_part).
    pub async fn read(&self, blob: BlobRef) -> Result<Blob, BlobError> {
        let mut bytes = Vec::with_capacity(usize::try_from(blob.size).unwrap_or(0).min(LARGEST_BLOB_BYTES));
        for part in 0..parts_of(blob) {
            bytes.extend_from_slice(&self.read_part(blob.id, part).await?);
        }
        let read = Blob::new(bytes);
        if read.reference() == blob { Ok(read) } else { Err(BlobError::Damaged) }
    }
}

/// How many parts a blob has. An empty one has a part as well.
pub fn parts_of(blob: BlobRef) -> u32 {
    u32::try_from(blob.size.div_ceil(BLOB_PART_BYTES as u64).max(1)).unwrap_or(u32::MAX)
}

/// The life of the store's thread.
fn write_all(mut database: Database, handed_in: &Receiver<Work>, done: impl Fn(CommitDone)) {
    loop {
        let next = if database.is_tidy() {
            handed_in.recv().map_err(RecvTimeoutError::from)
        } else {
            handed_in.recv_timeout(IDLE)
        };
        match next {
            Ok(Work::ReadBlob { id, part, answer, place }) => {
                // Whoever asked may have gone.
                let _ = answer.send(database.read_blob(id, part));
                drop(place);
            }
            Ok(Work::Close) => break,
            Ok(Work::Commit(commit)) => {
                let begun = Instant::now();
                let result = database.commit(&commit);
                let took = begun.elapsed();
                if took > SLOW_COMMIT {
                    tracing::warn!(number = commit.number, records = commit.put.len(), ?took, "slow commit");
                }
                done(CommitDone { number: commit.number, result });
                database.after_commit();
            }
            Err(RecvTimeoutError::Timeout) => database.tidy(),
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    database.close();
}
