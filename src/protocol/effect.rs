//! What a Peer wants done, as values in one ordered queue.
//!
//! The order means something. A [`Effect::Commit`] is the only road to the disk; whatever promises that
//! something is stored (an acknowledgement, a reply, an event, a pod's start) is held back inside the Peer
//! until the driver reports that commit done, and only then becomes an effect. A pushed record promises
//! nothing, so it may overtake the commit of its own content. Effects that come out must be carried out in
//! the order in which they come out, as far as they concern one addressee.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::model::id::{AttemptKey, Fence, JobId, NodeId};
use crate::model::member::Facts;
use crate::model::record::{Exit, Record, Submission};
use crate::model::request::Event;
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
#[derive(Debug, Clone, PartialEq)]
pub struct Commit {
    /// Counts this Peer's commits.
    pub number: u64,
    /// Records to insert or replace.
    pub put: Vec<Arc<Record>>,
    /// Records to delete.
    pub delete: Vec<JobId>,
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
    /// It has ended, and nothing of it is left running.
    Ended {
        /// Which.
        key: AttemptKey,
        /// When.
        at: Timestamp,
        /// How.
        end: PodEnd,
    },
}

/// How a pod ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PodEnd {
    /// By itself, or by its own time limit.
    Exited(Exit),
    /// It was told to stop, by [`Effect::StopPod`] or because the node shuts down.
    Stopped(Exit),
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
