//! What clients ask of the cluster, and what they are told.
//!
//! The same questions travel from the node that a client talks to (the gateway) to the node that can answer
//! them (the owner, as a rule), so they are values of the wire as well.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::id::{JobId, JobIdPrefix, NodeId};
use super::member::{MemberState, PartitionSet, Status};
use super::record::{JobState, Record, Submission, Version};
use super::spec::{InvalidField, Spec};
use super::time::Timestamp;

/// What a client hands in: a spec, and the job it tries again, if it does.
#[derive(Debug, Clone, PartialEq)]
pub struct Draft {
    /// What is asked.
    pub spec: Spec,
    /// The finished job that this one tries again.
    pub retry_of: Option<JobId>,
}

/// A draft that has its id: what the gateway asks the owner to write down. Sending it twice, or to two
/// owners, makes one job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NewJob {
    /// The job.
    pub id: JobId,
    /// Everything about it that never changes.
    pub submission: Arc<Submission>,
}

/// A question to the node that can answer it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// Write these jobs down. Answered by [`Response::Submitted`], one outcome for each in order.
    Submit {
        /// The jobs.
        jobs: Vec<NewJob>,
        /// The owner is silent: take them although you do not decide for them.
        insist: bool,
    },
    /// The job with this id. Answered by [`Response::Job`].
    Job(JobIdPrefix),
    /// The same, as soon as its record differs from `known`, or after `patience`.
    Watch {
        /// The job.
        job: JobId,
        /// The version the asker has.
        known: Option<Version>,
        /// How long the answer may wait for a change.
        #[serde(with = "super::time::duration")]
        patience: Duration,
    },
    /// End the job. Answered by [`Response::Job`] with the record as it is then.
    Cancel {
        /// The job.
        job: JobIdPrefix,
        /// Why, for people.
        reason: String,
    },
    /// Why the job is, or is not, running. Answered by [`Response::Explanation`].
    Explain(JobIdPrefix),
    /// Jobs of `partitions`, newest first. Answered by [`Response::Jobs`].
    List {
        /// Which jobs.
        filter: Filter,
        /// Those after this one in the order of the list.
        after: Option<Cursor>,
        /// How many at the most.
        limit: u32,
        /// The partitions the asked node shall answer for.
        partitions: PartitionSet,
    },
    /// What depends on this node, in the partitions that the asked one decides for. Answered by
    /// [`Response::Dependents`].
    Dependents(NodeId),
    /// The asked node's own copy of a record, for debugging. Answered by [`Response::Copy`].
    Copy(JobIdPrefix),
    /// Events of the asked node with a sequence number above `after`, as soon as there are any, or after
    /// `patience`. Answered by [`Response::Events`].
    Events {
        /// The last one the asker has; `None` asks for the present number only.
        after: Option<u64>,
        /// How long the answer may wait for an event.
        #[serde(with = "super::time::duration")]
        patience: Duration,
    },
}

/// Which jobs a list is to have; a condition that is absent, or false, holds for all.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Filter {
    /// In this state.
    pub state: Option<JobState>,
    /// With exactly this name.
    pub name: Option<String>,
    /// With an attempt, live or the last, on this node.
    pub node: Option<NodeId>,
    /// With attempts that ran, or may have run, at the same time.
    pub overlapped: bool,
}

/// A place in the list of all jobs, which runs from the newest to the oldest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Cursor {
    /// When the job at this place was submitted.
    pub submitted_at: Timestamp,
    /// The job.
    pub job: JobId,
}

/// The answer to a [`Request`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Response {
    /// To [`Request::Submit`].
    Submitted(Vec<SubmitOutcome>),
    /// A job.
    Job(JobAnswer),
    /// To [`Request::List`]: at most as many as asked; `more` if the limit cut the list.
    Jobs {
        /// The records, newest first.
        records: Vec<Arc<Record>>,
        /// Whether there are more after the last.
        more: bool,
    },
    /// To [`Request::Explain`].
    Explanation(Explanation),
    /// To [`Request::Dependents`].
    Dependents(Dependents),
    /// To [`Request::Copy`].
    Copy(Option<Arc<Record>>),
    /// To [`Request::Events`].
    Events {
        /// The newest number given out.
        newest: u64,
        /// What happened, in order.
        events: Vec<Event>,
    },
    /// The asked node does not decide for this job, or not yet: ask again, or elsewhere.
    NotOwner,
    /// It cannot be, and why.
    Refused(Refusal),
}

/// What became of one job of a submit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum SubmitOutcome {
    /// It is written down.
    Written(Submitted),
    /// It cannot be.
    Refused(Refusal),
    /// The asked node does not decide for it, or not yet.
    NotOwner,
}

/// A job that was written down.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Submitted {
    /// The job.
    pub id: JobId,
    /// Its state.
    pub state: JobState,
    /// Whether it was there before, under the same key.
    pub existed: bool,
    /// What durability was reached.
    pub receipt: Receipt,
}

/// What a submit's acknowledgement rests on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// How many nodes have the record on disk.
    pub stored: u32,
    /// How many were wanted.
    pub wanted: u32,
    /// Which nodes have it.
    pub replicas: Vec<NodeId>,
}

/// A job, as the answering node knows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobAnswer {
    /// The merged record.
    pub record: Arc<Record>,
    /// Its version.
    pub version: Version,
    /// Who answered.
    pub by: NodeId,
    /// Whether that node decides for the job, and has compared its copy with the others'.
    pub by_owner: bool,
    /// When, by that node's clock.
    pub as_of: Timestamp,
    /// The nodes of the acting list, and whether each is known to hold this very version on disk.
    pub replicas: Vec<(NodeId, bool)>,
}

/// Why a job is, or is not, running.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// The job.
    pub id: JobId,
    /// Its state.
    pub state: JobState,
    /// In a sentence.
    pub reason: String,
    /// Who decides for it.
    pub owner: NodeId,
    /// When it is due again, where it waits for a time.
    pub due_at: Option<Timestamp>,
    /// How many jobs are before it in its owner's queue, where it waits for room.
    pub ahead: Option<u32>,
    /// Every live member, and what speaks against it; nothing if it fits.
    pub nodes: Vec<(NodeId, Option<String>)>,
}

/// What depends on a node: what would become of the jobs if it were gone.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Dependents {
    /// The partitions that this is about; nobody who could tell was asked about the others.
    pub partitions: PartitionSet,
    /// Jobs that it runs, or is about to.
    pub running: u64,
    /// Those of them that no other live node could run, room aside.
    pub stuck: u64,
    /// Some of these, for people.
    pub stuck_jobs: Vec<JobId>,
    /// Records of which it should hold a copy.
    pub held: u64,
    /// Those of them of which fewer copies than a majority of the replicas are known to be elsewhere.
    pub thin: u64,
    /// Those of these of which none is known to be anywhere else.
    pub only_here: u64,
}

impl Dependents {
    /// How many jobs are named, of those that are stuck.
    pub const NAMED: usize = 8;

    /// Adds what another node said of other partitions.
    pub fn add(&mut self, other: Self) {
        for partition in other.partitions.iter() {
            self.partitions.insert(partition);
        }
        self.running += other.running;
        self.stuck += other.stuck;
        self.stuck_jobs.extend(other.stuck_jobs);
        self.stuck_jobs.truncate(Self::NAMED);
        self.held += other.held;
        self.thin += other.thin;
        self.only_here += other.only_here;
    }
}

/// Something that happened, told after it was stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Counts the events of the node that tells, and goes on where it is started anew, with a leap.
    pub seq: u64,
    /// When, by its clock.
    pub at: Timestamp,
    /// What.
    pub kind: EventKind,
}

/// What can happen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum EventKind {
    /// A member changed, as the telling node sees it.
    Member {
        /// Which.
        node: NodeId,
        /// Its name.
        name: String,
        /// The verdict.
        state: MemberState,
        /// What it says it is doing.
        status: Status,
        /// What was known until now; nothing for one just met.
        was: Option<MemberState>,
        /// Why, for people.
        reason: String,
    },
    /// A member that had been gone for long is no longer counted as one.
    Forgotten {
        /// Which.
        node: NodeId,
        /// Its name.
        name: String,
    },
    /// A job's state or its current attempt changed. Told by its owner.
    Job {
        /// Which.
        job: JobId,
        /// Its name, for people.
        title: String,
        /// Its state now.
        state: JobState,
        /// The number of its telling attempt.
        attempt: Option<u32>,
        /// The node of that attempt.
        node: Option<NodeId>,
        /// In a few words.
        reason: String,
    },
    /// Two attempts of a job ran, or may have run, at the same time. Told by its owner.
    Overlap {
        /// Which.
        job: JobId,
        /// Its name, for people.
        title: String,
        /// The attempts, by number and node.
        attempts: [(u32, NodeId); 2],
        /// Both are known to have run on; otherwise one may have been dead by then.
        certain: bool,
    },
    /// A record that another node sent cannot be, and was not taken.
    Rejected {
        /// Which.
        job: JobId,
        /// Who sent it.
        from: NodeId,
        /// What is wrong with it.
        reason: String,
    },
}

/// Why something was refused, as HTTP classes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// It could not be read at all (400).
    Malformed,
    /// There is no such thing (404).
    NotFound,
    /// It contradicts what is there (409).
    Conflict,
    /// It is too large (413).
    TooLarge,
    /// A field cannot be what it is (422).
    Invalid,
    /// Too much at once; try again later (429).
    SlowDown,
    /// The node, or every node that could answer, is not ready (503).
    Unavailable,
    /// No room on disk (507).
    Full,
    /// A fault of our own (500).
    Internal,
}

/// A refusal: what is wrong, where, and what would be right. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// Its class.
    pub code: Code,
    /// What is wrong.
    pub message: String,
    /// What would be right, or what to do.
    pub hint: Option<String>,
    /// The field at fault.
    pub field: Option<String>,
}

impl Refusal {
    /// A refusal of class `code`.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None, field: None }
    }

    /// With what to do about it.
    #[must_use]
    pub fn with_hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// There is no job with this id.
    pub fn no_such_job(prefix: JobIdPrefix) -> Self {
        Self::new(Code::NotFound, format!("no job has the id {prefix}"))
            .with_hint("`flockwork ps` lists the jobs; finished ones are kept for a limited time")
    }
}

impl From<InvalidField> for Refusal {
    fn from(invalid: InvalidField) -> Self {
        let InvalidField { field, message } = invalid;
        Self { code: Code::Invalid, message: format!("{field}: {message}"), hint: None, field: Some(field) }
    }
}
