//! What a node keeps on its disk: who it is, the members it knew, and the records of its jobs.
//!
//! Think of a notary with one desk. Whoever has something to be kept hands it in and walks on; the notary (one
//! thread, which alone holds the database) writes it down, makes sure that it would survive the lights going
//! out, and calls back. A [`Commit`] is all or nothing, and a [`CommitDone`] without an error means that its
//! content is on the disk, not on the way there.
//!
//! Everything that is kept is also in memory, with the Peer. So the database is read once, at the start, and
//! then only written; no question is ever answered from it. Not known here: what a record means, whether it is
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

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::model::id::{Generation, JobId, NodeId};
use crate::model::member::Facts;
use crate::model::record::Record;
use crate::model::time::Timestamp;
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
    pub records: Vec<Record>,
    /// The members that were known at the last commit of them.
    pub members: Vec<Facts>,
    /// Records that could not be read, and were set aside.
    pub damaged: Vec<Damaged>,
    /// The last process with this directory did not close it: it was killed, or its machine died.
    pub was_running: bool,
}

/// How many commits may wait. The Peer has one under way at a time; the rest is room for a mistake.
const WAITING_COMMITS: usize = 4;

/// After how long without commits the store tidies up.
const IDLE: Duration = Duration::from_secs(1);

/// A commit that takes longer is worth a line in the log: every submit waits for it.
const SLOW_COMMIT: Duration = Duration::from_secs(1);

/// The open store. Dropping it does what [`close`](Self::close) does.
#[derive(Debug)]
pub struct Store {
    commits: Option<SyncSender<Commit>>,
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
        let (commits, handed_in) = sync_channel(WAITING_COMMITS);
        let thread = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || write_all(database, &handed_in, done))
            .map_err(|error| StoreError::Refused {
                doing: "starting the thread that writes to",
                path: dir.to_owned(),
                reason: error.to_string(),
            })?;
        Ok((Self { commits: Some(commits), thread: Some(thread) }, loaded))
    }

    /// Hands in a commit and returns at once; its end is reported to the `done` given to [`open`](Self::open).
    ///
    /// # Errors
    /// [`CommitError::Fatal`], and nothing will be reported: the store's thread is gone, or more commits wait
    /// than the contract allows.
    pub fn commit(&self, commit: Commit) -> Result<(), CommitError> {
        let Some(commits) = &self.commits else {
            return Err(CommitError::Fatal("it is closed".to_owned()));
        };
        commits.try_send(commit).map_err(|refused| {
            CommitError::Fatal(match refused {
                TrySendError::Full(commit) => format!("commit {} is one too many at a time", commit.number),
                TrySendError::Disconnected(_) => "its thread has ended".to_owned(),
            })
        })
    }

    /// Finishes what was handed in, writes down that the node stopped in order, and releases the directory.
    /// Blocks for as long as that takes.
    pub fn close(self) {
        drop(self);
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.commits = None;
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the store's thread panicked; the next start will check the database");
        }
    }
}

/// The life of the store's thread.
fn write_all(mut database: Database, handed_in: &Receiver<Commit>, done: impl Fn(CommitDone)) {
    loop {
        let next = if database.is_tidy() {
            handed_in.recv().map_err(RecvTimeoutError::from)
        } else {
            handed_in.recv_timeout(IDLE)
        };
        match next {
            Ok(commit) => {
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
