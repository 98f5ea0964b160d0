//! What peers say to each other.
//!
//! About jobs there is one kind of message: here are records, merge them ([`Message::Push`]); the rest
//! finds out what to push, reserves room, or carries clients' questions. Every message may be lost, repeated
//! or late.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::blob::{Blob, BlobId};
use super::id::{Dot, Generation, Incarnation, JobId, NodeId, Partition};
use super::member::{Load, Memories};
use super::record::{Record, Version};
use super::request::{Request, Response};
use super::resources::Resources;

/// The first thing that either end of a peer connection says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The name of the cluster it belongs to.
    pub cluster: String,
    /// What it speaks.
    pub wire_version: u16,
    /// Who it is.
    pub node: NodeId,
    /// In which start.
    pub generation: Generation,
    /// Where it listens for peers.
    pub cluster_addr: SocketAddr,
}

/// What travels over a peer connection after the [`Hello`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Frame {
    /// To the other node's `Peer`.
    Message(Message),
    /// A gossip message too large for a datagram, as the gossip library wrote it.
    Gossip(#[serde(with = "serde_bytes")] Vec<u8>),
    /// A probe by the third way (Lifeguard, section 3.3: TCP beside UDP).
    Probe(Probe),
    /// A question about an attempt's log, to the node that ran it.
    LogRequest {
        /// Names the answer.
        call: u64,
        /// Which part.
        request: LogRequest,
    },
    /// Its answer.
    LogResponse {
        /// Of which question.
        call: u64,
        /// The part, or why there is none.
        response: Result<LogChunk, String>,
    },
    /// A question for part of a blob.
    BlobRequest {
        /// Names the answer.
        call: u64,
        /// Which blob.
        blob: BlobId,
        /// Which of its parts, counted from 0.
        part: u32,
    },
    /// Its answer.
    BlobResponse {
        /// To which question.
        call: u64,
        /// The part.
        part: BlobPart,
    },
}

/// The size of every part of a blob but the last, in bytes.
pub const BLOB_PART_BYTES: usize = 256 << 10;

/// What a node has of a part of a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum BlobPart {
    /// The part.
    Bytes(bytes::Bytes),
    /// The node does not have this blob.
    Absent,
    /// It may have it, and cannot say now.
    Busy,
}

/// Between the Peers of two nodes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Message {
    /// Here are records: merge them, and say so with `seq` when they are on disk.
    Push {
        /// Counts the sender's pushes.
        seq: u64,
        /// The records.
        records: Vec<Arc<Record>>,
        /// Small blobs that they name and the receiver most likely lacks. It asks for others.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        blobs: Vec<Blob>,
        /// The jobs among them of which the sender itself lacks some blob: there is no use in asking it. Of all others
        /// it has everything, and keeps it until the push is acknowledged.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        lacking: Vec<JobId>,
        /// For how long the sender has known those of them that wait for a time to pass. Clocks differ, and durations do not.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        known_for: Vec<(JobId, Duration)>,
    },
    /// The records of push `seq` are on disk, merged; these are the versions they have now, in the order of the
    /// push.
    Stored {
        /// Which push.
        seq: u64,
        /// By the push's order; `None` for one that was refused, or whose blobs have not all come.
        versions: Vec<Option<Version>>,
    },
    /// The blobs of these records, which were pushed and not acknowledged, have come now.
    PushAgain {
        /// Which.
        jobs: Vec<JobId>,
    },
    /// Your ring differs from mine: this is what I remember of members that are gone.
    Remember {
        /// What.
        memories: Memories,
    },
    /// These are my digests: where do you differ? With `takeover`, the asker is about to decide for these
    /// partitions, and whoever answers stops doing so.
    Compare {
        /// Names the answer.
        round: u64,
        /// Whether the asker takes over.
        takeover: bool,
        /// Sealed records that expire before this hour are left out of account.
        horizon: u32,
        /// A digest for each partition asked about.
        digests: Vec<(Partition, Version)>,
    },
    /// In these partitions I differ, and this is what I hold there.
    Differ {
        /// Which question.
        round: u64,
        /// Sealed records that expire before this hour were left out of account. If it is later than the question's,
        /// nothing was compared: ask again with this one.
        horizon: u32,
        /// What the answering node holds, partition by partition.
        partitions: Vec<(Partition, Vec<(JobId, Version)>)>,
        /// The records of all the partitions asked about that are not on the answering node's disk yet, as it
        /// holds them: it promises nothing about these.
        unsaved: Vec<JobId>,
    },
    /// Send me these records.
    Fetch {
        /// Names the answer; that of the comparison.
        round: u64,
        /// Which.
        jobs: Vec<JobId>,
    },
    /// Here they are, as far as I have them.
    Fetched {
        /// Which question.
        round: u64,
        /// The records.
        records: Vec<Arc<Record>>,
        /// As in a push.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        known_for: Vec<(JobId, Duration)>,
        /// Whether this was the last part of the answer.
        last: bool,
    },
    /// Do you hold these records in these versions? The owner asks before it seals.
    Check {
        /// Names the answer.
        round: u64,
        /// Terminal records.
        versions: Vec<(JobId, Version)>,
    },
    /// Those that I hold just so, on disk.
    Checked {
        /// Which question.
        round: u64,
        /// The same order; `true` for the same version.
        same: Vec<bool>,
    },
    /// Would you run this? Room is set aside for a moment if so.
    Offer {
        /// The job.
        job: JobId,
        /// What it takes.
        need: Resources,
    },
    /// Yes or no, and how busy I am.
    OfferAnswer {
        /// The job.
        job: JobId,
        /// Whether room was set aside.
        accepted: bool,
        /// The load with it.
        load: Load,
    },
    /// I no longer need the room that you set aside.
    Withdraw {
        /// The job.
        job: JobId,
    },
    /// Enough nodes hold this claim: start its pod. With the record, in case it has not come.
    Start {
        /// The record, claim and all.
        record: Arc<Record>,
        /// Which attempt.
        claim: Dot,
    },
    /// I have room: offer me some of your backlog.
    Idle {
        /// How much.
        free: Resources,
    },
    /// A client's question.
    Request {
        /// Names the answer.
        call: u64,
        /// The question.
        request: Request,
    },
    /// Its answer.
    Response {
        /// Which question.
        call: u64,
        /// The answer.
        response: Response,
    },
}

/// The failure detector's packets (SWIM, section 3.1; Lifeguard, section 3.1 for the nack).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// The cluster it is for.
    pub cluster: String,
    /// Who sends it.
    pub from: NodeId,
    /// In which start.
    pub generation: Generation,
    /// For whom. A node that is somebody else answers nothing: its address was another's before.
    pub to: NodeId,
    /// What it says.
    pub body: ProbeBody,
}

/// What a probe says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProbeBody {
    /// Are you there?
    Ping {
        /// Names the answer.
        seq: u64,
        /// The receiver is suspected in this start and incarnation, and should refute at once.
        suspected: Option<(Generation, Incarnation)>,
    },
    /// I am, in this start and incarnation.
    Ack {
        /// Which ping.
        seq: u64,
        /// The answering node's start.
        generation: Generation,
        /// And incarnation.
        incarnation: Incarnation,
    },
    /// Please ping `target` for me.
    PingReq {
        /// Names the answer.
        seq: u64,
        /// Whom.
        target: NodeId,
        /// Where.
        target_addr: SocketAddr,
    },
    /// `target` answered your ping-req.
    IndirectAck {
        /// Which ping-req.
        seq: u64,
        /// Who answered.
        target: NodeId,
        /// In which start.
        generation: Generation,
        /// And incarnation.
        incarnation: Incarnation,
    },
    /// I am there, but `target` has not answered me.
    Nack {
        /// Which ping-req.
        seq: u64,
    },
}

/// Which of a pod's two outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Which part of an attempt's log is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRequest {
    /// The job.
    pub job: JobId,
    /// Which attempt, by its claim.
    pub claim: Dot,
    /// Which output.
    pub stream: Stream,
    /// From which byte of all that was ever written.
    pub offset: u64,
    /// How many bytes at the most.
    pub limit: u32,
    /// How long to wait for more where there is none yet, in milliseconds.
    pub wait_ms: u32,
}

/// Part of a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogChunk {
    /// Where it begins: after the offset asked for, if what was there has been rotated away.
    pub offset: u64,
    /// What was written.
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
    /// Whether nothing will follow.
    pub end: bool,
}
