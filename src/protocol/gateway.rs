//! The node that a client talks to: finds who can answer, asks, asks elsewhere, gathers.

use crate::model::id::{JobId, JobIdPrefix, NodeId};
use crate::model::record::{Record, Version};
use crate::model::request::{Cursor, Draft, Explanation, Filter, JobAnswer, Refusal, Submitted};
use std::sync::Arc;
use std::time::Duration;

/// Names a client's question inside this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AskId(pub u64);

/// What a client of this node may ask.
#[derive(Debug, Clone, PartialEq)]
pub enum Ask {
    /// Submit jobs.
    Submit(Vec<Draft>),
    /// Read a job.
    Job(JobIdPrefix),
    /// Read a job as soon as it differs from a version, or after the duration.
    Watch(JobId, Option<Version>, Duration),
    /// Cancel a job, with the reason.
    Cancel(JobIdPrefix, String),
    /// Explain a job.
    Explain(JobIdPrefix),
    /// List jobs: which, after which, how many.
    List(Filter, Option<Cursor>, u32),
    /// Every replica's own copy of a record.
    Copies(JobId),
}

/// The answer to an [`Ask`].
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    /// To which.
    pub ask: AskId,
    /// What.
    pub result: Result<Told, Refusal>,
}

/// What a client is told.
#[derive(Debug, Clone, PartialEq)]
pub enum Told {
    /// To [`Ask::Submit`], one outcome for each draft in order.
    Submitted(Vec<Result<Submitted, Refusal>>),
    /// To [`Ask::Job`], [`Ask::Watch`] and [`Ask::Cancel`].
    Job(JobAnswer),
    /// To [`Ask::Explain`].
    Explanation(Explanation),
    /// To [`Ask::List`].
    Listing(Listing),
    /// To [`Ask::Copies`].
    Copies(Vec<Copy>),
}

/// A page of the list of all jobs.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Listing {
    /// The records, newest first.
    pub records: Vec<Arc<Record>>,
    /// Where the next page begins, if there is one.
    pub next: Option<Cursor>,
    /// Nodes that should have answered for some partitions, and did not; nobody else could. The list is
    /// partial if there are any.
    pub missing: Vec<NodeId>,
}

/// A node's own copy of a record, or why it is not known.
#[derive(Debug, Clone, PartialEq)]
pub struct Copy {
    /// Whose.
    pub node: NodeId,
    /// `Ok(None)`: it has none.
    pub record: Result<Option<Arc<Record>>, Refusal>,
}
