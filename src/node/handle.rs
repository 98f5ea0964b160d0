//! The way into a running node, for the edges (HTTP, command line) and for embedding programs.
//!
//! A [`Handle`] is cheap to clone. Questions travel over a bounded channel to the driver, whose loop owns the
//! Peer; a full channel is refused at once ([`Code::SlowDown`]) rather than waited for. What can be read
//! without asking (membership, placement, convergence) is in the latest [`Snapshot`].

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{broadcast, mpsc, oneshot, watch};

use crate::model::blob::{Blob, BlobRef};
use crate::model::id::{JobId, JobIdPrefix, NodeId};
use crate::model::record::Version;
use crate::model::request::{
    Code, Cursor, Dependents, Draft, Event, Explanation, Filter, JobAnswer, Refusal, Submitted,
};
use crate::model::wire::{LogChunk, LogRequest};
use crate::protocol::gateway::{Copy, Listing};
use crate::protocol::membership::MembershipReport;
use crate::protocol::snapshot::Snapshot;

/// Where the answer to a question goes.
pub type Answer<T> = oneshot::Sender<Result<T, Refusal>>;

/// A question to the driver.
#[derive(Debug)]
pub enum Command {
    /// Submit jobs; one outcome for each.
    Submit(Vec<Draft>, Answer<Vec<Result<Submitted, Refusal>>>),
    /// Read a job.
    Job(JobIdPrefix, Answer<JobAnswer>),
    /// Read a job as soon as it differs from a version, or after the duration.
    Watch(JobId, Option<Version>, Duration, Answer<JobAnswer>),
    /// Cancel a job, with the reason.
    Cancel(JobIdPrefix, String, Answer<JobAnswer>),
    /// Explain a job.
    Explain(JobIdPrefix, Answer<Explanation>),
    /// List jobs: which, after which, how many.
    List(Filter, Option<Cursor>, u32, Answer<Listing>),
    /// Every replica's own copy of a record.
    Copies(JobId, Answer<Vec<Copy>>),
    /// Part of a log, from the node that ran the attempt.
    ReadLog(NodeId, LogRequest, Answer<LogChunk>),
    /// A blob, from this node or one of these.
    ReadBlob(BlobRef, Vec<NodeId>, Answer<Blob>),
    /// Begin to drain this node (`true`), or stop draining.
    Drain(bool, Answer<()>),
    /// What depends on a node.
    Dependents(NodeId, Answer<Dependents>),
    /// Forget a member that is down.
    Forget(NodeId, Answer<()>),
    /// A fresh snapshot.
    Snapshot(Answer<Arc<Snapshot>>),
    /// What this node makes of each member, and why.
    Members(Answer<Box<MembershipReport>>),
}

/// The way into a running node.
#[derive(Debug, Clone)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    events: broadcast::Sender<(NodeId, Event)>,
}

impl Handle {
    /// The edges' half of the driver's channels: `commands` go to it; it keeps `snapshots` fresh while nothing
    /// asks, and sends every event of the cluster to `events`, with the node that told it.
    pub fn new(
        commands: mpsc::Sender<Command>,
        snapshots: watch::Receiver<Arc<Snapshot>>,
        events: broadcast::Sender<(NodeId, Event)>,
    ) -> Self {
        Self { commands, snapshots, events }
    }

    /// Submits jobs. The outer error means that none was taken.
    ///
    /// # Errors
    /// The node is too busy, not ready, or shutting down.
    pub async fn submit(&self, drafts: Vec<Draft>) -> Result<Vec<Result<Submitted, Refusal>>, Refusal> {
        self.ask(|answer| Command::Submit(drafts, answer)).await
    }

    /// The job with this id, or with an id that begins so.
    ///
    /// # Errors
    /// There is none, or several, or nobody who knows could be asked.
    pub async fn job(&self, prefix: JobIdPrefix) -> Result<JobAnswer, Refusal> {
        self.ask(|answer| Command::Job(prefix, answer)).await
    }

    /// The job as soon as its record differs from `known`, or as it is after `patience`.
    ///
    /// # Errors
    /// As [`job`](Self::job).
    pub async fn watch(&self, job: JobId, known: Option<Version>, patience: Duration) -> Result<JobAnswer, Refusal> {
        self.ask(|answer| Command::Watch(job, known, patience, answer)).await
    }

    /// Asks that the job end. Asking again, or for a job that has ended, changes nothing and is no error.
    ///
    /// # Errors
    /// As [`job`](Self::job).
    pub async fn cancel(&self, prefix: JobIdPrefix, reason: String) -> Result<JobAnswer, Refusal> {
        self.ask(|answer| Command::Cancel(prefix, reason, answer)).await
    }

    /// Why the job is, or is not, running.
    ///
    /// # Errors
    /// As [`job`](Self::job).
    pub async fn explain(&self, prefix: JobIdPrefix) -> Result<Explanation, Refusal> {
        self.ask(|answer| Command::Explain(prefix, answer)).await
    }

    /// A page of the list of all jobs, newest first.
    ///
    /// # Errors
    /// The node is too busy, not ready, or shutting down.
    pub async fn list(&self, filter: Filter, after: Option<Cursor>, limit: u32) -> Result<Listing, Refusal> {
        self.ask(|answer| Command::List(filter, after, limit, answer)).await
    }

    /// The copies of a record that the nodes of its home and acting lists hold.
    ///
    /// # Errors
    /// The node is too busy, not ready, or shutting down.
    pub async fn copies(&self, job: JobId) -> Result<Vec<Copy>, Refusal> {
        self.ask(|answer| Command::Copies(job, answer)).await
    }

    /// Part of an attempt's log, from `node`, which ran it.
    ///
    /// # Errors
    /// The node cannot be reached, or has no such log.
    pub async fn read_log(&self, node: NodeId, request: LogRequest) -> Result<LogChunk, Refusal> {
        self.ask(|answer| Command::ReadLog(node, request, answer)).await
    }

    /// What a record only names: a result, the end of a log. From this node, or else from `nodes`, one after the other.
    ///
    /// # Errors
    /// None of them has it, or can be reached.
    pub async fn read_blob(&self, blob: BlobRef, nodes: Vec<NodeId>) -> Result<Blob, Refusal> {
        self.ask(|answer| Command::ReadBlob(blob, nodes, answer)).await
    }

    /// Begins to drain this node, or stops draining it.
    ///
    /// # Errors
    /// The node is shutting down.
    pub async fn drain(&self, on: bool) -> Result<(), Refusal> {
        self.ask(|answer| Command::Drain(on, answer)).await
    }

    /// What depends on a node: what would become of the jobs if it were gone.
    ///
    /// # Errors
    /// This node is too busy, or shutting down.
    pub async fn dependents(&self, node: NodeId) -> Result<Dependents, Refusal> {
        self.ask(|answer| Command::Dependents(node, answer)).await
    }

    /// Forgets a member that is down, or has left, everywhere: it will not come back.
    ///
    /// # Errors
    /// It lives, or is not known; or this node is too busy, or shutting down.
    pub async fn forget(&self, node: NodeId) -> Result<(), Refusal> {
        self.ask(|answer| Command::Forget(node, answer)).await
    }

    /// What the node knows at this moment.
    ///
    /// # Errors
    /// The node is too busy, or shutting down.
    pub async fn fresh_snapshot(&self) -> Result<Arc<Snapshot>, Refusal> {
        self.ask(Command::Snapshot).await
    }

    /// What the node makes of each member, and why.
    ///
    /// # Errors
    /// The node is too busy, or shutting down.
    pub async fn members(&self) -> Result<Box<MembershipReport>, Refusal> {
        self.ask(Command::Members).await
    }

    /// What the node knew a moment ago; never waits.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshots.borrow())
    }

    /// Wakes whenever there is a newer snapshot.
    pub fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshots.clone()
    }

    /// Every event of the cluster from now on, each with the node that told it. A reader that is too slow
    /// misses some, and is told how many.
    pub fn events(&self) -> broadcast::Receiver<(NodeId, Event)> {
        self.events.subscribe()
    }

    async fn ask<T>(&self, command: impl FnOnce(Answer<T>) -> Command) -> Result<T, Refusal> {
        let (answer, answered) = oneshot::channel();
        self.commands.try_send(command(answer)).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => {
                Refusal::new(Code::SlowDown, "this node has as many requests under way as it can hold")
                    .with_hint("try again in a second, or ask another node")
            }
            mpsc::error::TrySendError::Closed(_) => shutting_down(),
        })?;
        answered.await.unwrap_or_else(|_| Err(shutting_down()))
    }
}

fn shutting_down() -> Refusal {
    Refusal::new(Code::Unavailable, "this node is shutting down").with_hint("ask another node")
}
