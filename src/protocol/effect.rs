//! What a Peer wants done, as values in one ordered queue.
//!
//! The order means something. A [`Effect::Commit`] is the only road to the disk; whatever promises that
//! something is stored (an acknowledgement, a reply, an event, a pod's start) is held back inside the Peer
//! until the driver reports that commit done, and only then becomes an effect. A pushed record promises
//! nothing, so it may overtake the commit of its own content. Effects that come out must be carried out in
//! the order in which they come out, as far as they concern one addressee.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::model::attempt::{Exit, Usage};
use crate::model::blob::{Blob, BlobId, BlobRef};
use crate::model::id::{AttemptKey, Fence, JobId, NodeId};
use crate::model::member::Facts;
use crate::model::record::{Record, Submission};
use crate::model::report::Progress;
use crate::model::request::{Event, Receipt};
use crate::model::time::Timestamp;
use crate::model::wire::{Message, Probe};

use super::gateway::Reply;

/// Something for the shells to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Write this to disk as one transaction, sync, and report its number. At most one is under way.
    Commit(Commit),
    /// Send over the peer connection. May be lost.
    Send {
        /// To whom.
        to: NodeId,
        /// What.
        message: Message,
    },
    /// Send a failure detector's packet, as a datagram or over the peer connection. May be lost.
    Probe {
        /// To whom.
        to: NodeId,
        /// Where.
        addr: SocketAddr,
        /// What.
        probe: Probe,
        /// Over the peer connection instead of as a datagram.
        by_link: bool,
    },
    /// Gossip these facts about this node from now on.
    Gossip {
        /// All of them.
        facts: Box<Facts>,
        /// Do not wait for the next tick.
        urgent: bool,
    },
    /// Exchange gossip with whoever listens there, now.
    Call {
        /// Where.
        addr: SocketAddr,
    },
    /// Start a pod.
    StartPod(PodStart),
    /// End a pod: politely, then not.
    StopPod(AttemptKey),
    /// A pod has no say any more: its job was stopped, or goes on elsewhere. Its token is void from now on.
    Silence(AttemptKey),
    /// Answer what a pod reported.
    AnswerPod {
        /// Which report, by the number that came with it.
        answer: u64,
        /// Where it is stored now, or why it is not.
        result: Result<Receipt, Rejected>,
    },
    /// Get a blob from another node, and report what came of it.
    FetchBlob {
        /// From whom.
        from: NodeId,
        /// Which.
        blob: BlobRef,
    },
    /// Answer a client of this node.
    Reply(Reply),
    /// Tell whoever listens: an event of the cluster, and the node that told it.
    Tell {
        /// Who told it; perhaps this node.
        node: NodeId,
        /// What happened.
        event: Event,
    },
    /// Note in this node's own log what it has just told.
    Note(Event),
    /// Forget a finished attempt's local leavings (its log, its directory): its record is gone from the cluster.
    Sweep(JobId),
}

/// One transaction of the store.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Commit {
    /// Counts this Peer's commits.
    pub number: u64,
    /// Records to insert or replace.
    pub put: Vec<Arc<Record>>,
    /// Since when those of them are known that wait for a time to pass, by this node's own clock.
    pub known_at: BTreeMap<JobId, Timestamp>,
    /// Records to delete.
    pub delete: Vec<JobId>,
    /// Blobs to keep beside the records.
    pub put_blobs: Vec<Blob>,
    /// Blobs that no record names any more.
    pub drop_blobs: Vec<BlobId>,
    /// The members to remember for the next start, if they changed.
    pub members: Option<Vec<Facts>>,
}

/// A pod to start. Everything the executor needs to know of the job.
#[derive(Debug, Clone, PartialEq)]
pub struct PodStart {
    /// Names the pod.
    pub key: AttemptKey,
    /// The attempt's number, for people and for the job.
    pub number: u32,
    /// The attempt's fencing token.
    pub fence: Fence,
    /// What to run.
    pub submission: Arc<Submission>,
    /// The saved work it goes on from. On this node's disk.
    pub checkpoint: Option<BlobRef>,
}

/// What an executor reports of a pod. Every started pod is reported ended exactly once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PodEvent {
    /// Its process runs.
    Started {
        /// Which.
        key: AttemptKey,
        /// When.
        at: Timestamp,
    },
    /// It says something of itself.
    Reported {
        /// Which.
        key: AttemptKey,
        /// What.
        report: PodReport,
    },
    /// It has ended, and nothing of it is left running.
    Ended {
        /// Which.
        key: AttemptKey,
        /// When it did, which may be long ago.
        at: Timestamp,
        /// How.
        end: PodEnd,
        /// What it leaves behind.
        left: Box<Leavings>,
    },
}

/// What a pod says of itself while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PodReport {
    /// How far it has come.
    Progress(Progress),
    /// Work to go on from. Answered by an [`Effect::AnswerPod`], always.
    Checkpoint {
        /// Names the answer.
        answer: u64,
        /// Counts the attempt's reports.
        serial: u64,
        /// When it was handed in.
        at: Timestamp,
        /// The work.
        blob: Blob,
    },
    /// What it comes to, as far as it knows. Answered by an [`Effect::AnswerPod`], always.
    Result {
        /// Names the answer.
        answer: u64,
        /// Counts the attempt's reports.
        serial: u64,
        /// The result.
        blob: Blob,
    },
    /// What it has written last, of each output that has grown: where that begins in the whole, and the bytes.
    Output {
        /// When it was read.
        at: Timestamp,
        /// The end of its standard output.
        stdout: Option<(u64, Blob)>,
        /// The end of its standard error.
        stderr: Option<(u64, Blob)>,
    },
}

/// Why a pod's report was not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// The attempt has no say any more.
    #[error("this attempt was stopped, or another has superseded it")]
    Stale,
    /// Work that continues more than this attempt began with is known already.
    #[error("a later attempt has saved more than this one")]
    Overtaken,
    /// The disk takes nothing.
    #[error("no node could write it to its disk in time")]
    NotStored,
}

/// What a pod leaves behind when it ends.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Leavings {
    /// How far it had come, if that is not reported yet.
    pub progress: Option<Progress>,
    /// What it came to.
    pub result: Option<Blob>,
    /// The end of its standard output, and where that begins in the whole.
    pub stdout: Option<(u64, Blob)>,
    /// The end of its standard error.
    pub stderr: Option<(u64, Blob)>,
    /// What it used of its machine, if that was counted.
    pub usage: Option<Usage>,
    /// What people should know about its end.
    pub remark: String,
}

/// What came of [`Effect::FetchBlob`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fetched {
    /// The blob that was asked for.
    Found(Blob),
    /// That node does not have it.
    Absent,
    /// That node did not answer, or what it sent was something else.
    Failed,
}

/// How a pod ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PodEnd {
    /// By itself, or by its own time limit.
    Exited(Exit),
    /// It said nothing of itself for this long, its heartbeat timeout, and was ended.
    Silent(Duration),
    /// It was told to stop, by [`Effect::StopPod`] or because the node shuts down.
    Stopped(Exit),
    /// This node stood still, and its guard killed the pod meanwhile: it must not run beside its successor.
    Lapsed,
    /// It never ran, for a reason that lies in the job: what was to run is missing (127), cannot be executed
    /// (126), or the like.
    CouldNotStart {
        /// As a shell would say it.
        code: i32,
        /// What is missing.
        reason: String,
    },
    /// It never ran, for a reason that lies in this node (no more processes, no more files): another node may
    /// do better.
    Unable {
        /// What is missing.
        reason: String,
    },
}
