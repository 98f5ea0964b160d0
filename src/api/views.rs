//! The JSON shapes of jobs, computed from their records.
//!
//! A record is what nodes merge; a view is what people and programs read: names beside ids, times as text, the
//! exit where one looks for it. Views only leave; nothing is ever read back from one. What could grow without
//! bound (attempts, standard input in lists) is cut, and the view says so.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Serialize, Serializer};

use super::reason::{self, Names};
use crate::model::attempt::{Attempt, Exit, Phase};
use crate::model::id::{Clock, Dot, JobId, NodeId};
use crate::model::record::{JobState, Record, StopKind, Submission};
use crate::model::request::{JobAnswer, Receipt, Submitted};
use crate::model::spec::{Spec, Stdin};
use crate::model::time::Timestamp;
use crate::protocol::snapshot::Snapshot;

/// How many attempts a job shows: the last ones.
const MOST_ATTEMPTS: usize = 1_000;

/// How many each job of a list shows.
const MOST_ATTEMPTS_IN_LISTS: usize = 20;

/// Standard input above this size is left out of lists.
const MOST_STDIN_BYTES_IN_LISTS: usize = 1 << 10;

/// A node, by its id and its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub(super) struct NodeRef {
    /// Its id.
    #[schema(value_type = String, example = "a3f19c02")]
    pub(super) node: NodeId,
    /// Its name, or its id where the name is not known.
    pub(super) name: String,
}

impl NodeRef {
    pub(super) fn new(node: NodeId, names: Names<'_>) -> Self {
        Self { node, name: names.of(node) }
    }

    pub(super) fn all(nodes: &[NodeId], names: Names<'_>) -> Vec<Self> {
        nodes.iter().map(|node| Self::new(*node, names)).collect()
    }
}

/// A job.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub(super) struct JobView {
    /// Its id.
    #[schema(value_type = String, example = "3f2a9c0417be5d6880aa10c2fe49b7d1")]
    pub(super) id: JobId,
    /// Its name, if it was given one.
    pub(super) name: Option<String>,
    /// Its state.
    pub(super) state: JobState,
    /// Whether nothing, not even a replica that is out of touch, can change it any more.
    #[serde(rename = "final")]
    pub(super) is_final: bool,
    /// The finished job that this one tries again.
    #[schema(value_type = Option<String>)]
    pub(super) retry_of: Option<JobId>,
    /// Why it is in this state, for people.
    #[schema(example = "attempt 2 runs on node-b")]
    pub(super) reason: String,
    /// What was asked.
    #[schema(value_type = Spec)]
    pub(super) spec: SpecView,
    /// The size of the standard input, where it was left out of a list.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) stdin_omitted_bytes: Option<usize>,
    /// When, by the clock of the node that took the submit.
    #[schema(value_type = String, format = DateTime)]
    pub(super) submitted_at: Timestamp,
    /// When its first attempt started.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub(super) started_at: Option<Timestamp>,
    /// When it ended.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub(super) ended_at: Option<Timestamp>,
    /// The exit code of the telling attempt, once the job has ended; 124 where it ran longer than its timeout.
    pub(super) exit_code: Option<i32>,
    /// The signal that ended it, where one did.
    pub(super) signal: Option<i32>,
    /// In a job that has ended: one of its time limits ended it. In an answer to `/wait` with a job that has not:
    /// the wait was over first.
    pub(super) timed_out: bool,
    /// How far it says it has come: what its telling attempt said last.
    pub(super) progress: Option<ProgressView>,
    /// The newest work that was saved, for the next attempt to go on from.
    pub(super) checkpoint: Option<CheckpointView>,
    /// What it came to, or has come to so far: text where it is text, `{"base64": …}` where it is not. Of the attempt
    /// that succeeded or, where that left nothing, the last one that did. Not in lists.
    #[schema(value_type = Option<String>)]
    pub(super) result: Option<Content>,
    /// The size of the result, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) result_bytes: Option<u64>,
    /// The number of the attempt that left it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) result_attempt: Option<u32>,
    /// Its attempts, oldest first.
    pub(super) attempts: Vec<AttemptView>,
    /// How many older attempts are not shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) attempts_omitted: Option<usize>,
    /// Which writes the record includes, by `node@generation`.
    pub(super) clock: BTreeMap<String, u64>,
    /// When the answer was given, by the clock of the node that gave it. Not in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub(super) as_of: Option<Timestamp>,
    /// Who answered. Not in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) answered_by: Option<AnswererView>,
    /// How many of the nodes that act for the job hold just this record. Not in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) replicas: Option<AgreementView>,
}

/// How far a job says it has come.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub(super) struct ProgressView {
    /// From 0 to 1.
    pub(super) fraction: f64,
    /// In its own words.
    pub(super) message: String,
}

/// Work that was saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub(super) struct CheckpointView {
    /// Its size in bytes.
    pub(super) size: u64,
    /// The number of the attempt that saved it.
    pub(super) attempt: u32,
    /// When, by the clock of that attempt's node.
    #[schema(value_type = String, format = DateTime)]
    pub(super) saved_at: Timestamp,
}

/// Bytes that a job made, as JSON says them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Content(pub(super) bytes::Bytes);

impl Serialize for Content {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // As standard input is said, so that a result can be one.
        Stdin(self.0.to_vec()).serialize(serializer)
    }
}

/// Who answered a question about a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub(super) struct AnswererView {
    /// Its id.
    #[schema(value_type = String)]
    pub(super) node: NodeId,
    /// Its name.
    pub(super) name: String,
    /// Whether it decides for the job and has compared its copy with the others'. Otherwise there may be news
    /// that it has not heard.
    pub(super) owner: bool,
}

/// How many replicas agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub(super) struct AgreementView {
    /// This many hold just this record.
    pub(super) agree: usize,
    /// Of this many that should.
    pub(super) of: usize,
}

/// One execution of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub(super) struct AttemptView {
    /// Counts from 1. Nodes that did not know of each other may have given one number twice.
    pub(super) number: u32,
    /// The node that runs it.
    #[schema(value_type = String)]
    pub(super) node: NodeId,
    /// That node's name.
    pub(super) node_name: String,
    /// How far it has come.
    pub(super) phase: Phase,
    /// When it was decided.
    #[schema(value_type = String, format = DateTime)]
    pub(super) claimed_at: Timestamp,
    /// When its pod was started.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub(super) started_at: Option<Timestamp>,
    /// When it ended, or was seen to be lost.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub(super) ended_at: Option<Timestamp>,
    /// Its exit code; 124 where it ran longer than its timeout.
    pub(super) exit_code: Option<i32>,
    /// The signal that ended it.
    pub(super) signal: Option<i32>,
    /// Whether it ran longer than its timeout.
    pub(super) timed_out: bool,
    /// Why it is where it is, for people.
    pub(super) reason: String,
    /// How many bytes it has written to its standard output, once it has ended or has run for some seconds: as far as its
    /// node has told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) stdout_bytes: Option<u64>,
    /// The same of its standard error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) stderr_bytes: Option<u64>,
    /// What people should know of how it ended beside that: that its result was lost, for one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) remark: Option<String>,
    /// What it used of its machine: of jobs that set processors or memory aside, where their node can count it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) usage: Option<UsageView>,
    /// The attempts that ran, or may have run, at the same time.
    pub(super) overlaps: Vec<OverlapView>,
}

/// What an attempt used, all of its processes together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub(super) struct UsageView {
    /// Processor time, in milliseconds.
    pub(super) cpu_ms: Option<u64>,
    /// The most memory at one time, in bytes.
    pub(super) peak_memory_bytes: Option<u64>,
}

/// Another attempt that ran, or may have run, at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub(super) struct OverlapView {
    /// Its number.
    pub(super) number: u32,
    /// Its node.
    #[schema(value_type = String)]
    pub(super) node: NodeId,
    /// Both are known to have run; otherwise one may have died before.
    pub(super) certain: bool,
}

/// A spec as it was submitted, without the standard input where that is left out.
#[derive(Debug, Clone)]
pub(super) struct SpecView {
    submission: Arc<Submission>,
    without_stdin: bool,
}

impl Serialize for SpecView {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.without_stdin {
            Spec { stdin: None, ..self.submission.spec.clone() }.serialize(serializer)
        } else {
            self.submission.spec.serialize(serializer)
        }
    }
}

impl JobView {
    /// All that is known of one job.
    pub(super) fn of_answer(answer: &JobAnswer, snapshot: &Snapshot) -> Self {
        let names = Names(&snapshot.view);
        let agree = answer.replicas.iter().filter(|(_, agrees)| *agrees).count();
        Self {
            as_of: Some(answer.as_of),
            answered_by: Some(AnswererView { node: answer.by, name: names.of(answer.by), owner: answer.by_owner }),
            replicas: Some(AgreementView { agree, of: answer.replicas.len() }),
            ..Self::new(&answer.record, names, answer.as_of, MOST_ATTEMPTS)
        }
    }

    /// What a list says of a job.
    pub(super) fn of_listed(record: &Record, snapshot: &Snapshot) -> Self {
        let view = Self::new(record, Names(&snapshot.view), snapshot.now.wall, MOST_ATTEMPTS_IN_LISTS);
        match &record.spec().stdin {
            Some(Stdin(bytes)) if bytes.len() > MOST_STDIN_BYTES_IN_LISTS => Self {
                spec: SpecView { without_stdin: true, ..view.spec },
                stdin_omitted_bytes: Some(bytes.len()),
                ..view
            },
            _ => view,
        }
    }

    /// One replica's copy.
    pub(super) fn of_copy(record: &Record, snapshot: &Snapshot) -> Self {
        Self::new(record, Names(&snapshot.view), snapshot.now.wall, MOST_ATTEMPTS)
    }

    fn new(record: &Record, names: Names<'_>, now: Timestamp, most_attempts: usize) -> Self {
        let state = record.state();
        let ended = state.is_terminal();
        // A job that was given up because its nodes died did not end by what killed the last attempt with its node.
        let telling_of_end = record.telling().filter(|attempt| ended && attempt.fate.phase != Phase::Lost);
        let outcome = Outcome::of(telling_of_end.and_then(|attempt| attempt.fate.exit));
        let ended_by_limit =
            state == JobState::Failed && record.stop.as_ref().is_some_and(|stop| stop.kind == StopKind::TimedOut);
        let (attempts, omitted) = attempts_of(record, names, most_attempts);
        let telling = record.telling();
        let progress = telling.and_then(|attempt| attempt.progress.as_ref());
        Self {
            id: record.id,
            name: record.spec().name.clone(),
            state,
            is_final: record.is_final(),
            retry_of: record.submission.retry_of,
            reason: reason::of(record, names, now),
            spec: SpecView { submission: Arc::clone(&record.submission), without_stdin: false },
            stdin_omitted_bytes: None,
            submitted_at: record.submission.submitted_at,
            started_at: record.attempts.values().filter_map(|attempt| attempt.started_at).min(),
            ended_at: record.ended_at(),
            exit_code: outcome.exit_code,
            signal: outcome.signal,
            timed_out: ended && (outcome.timed_out || ended_by_limit),
            progress: progress.map(|progress| ProgressView {
                fraction: f64::from(progress.permille) / 1_000.0,
                message: progress.message.clone(),
            }),
            checkpoint: record.checkpoint.as_ref().map(|checkpoint| CheckpointView {
                size: checkpoint.blob.size,
                attempt: checkpoint.number,
                saved_at: checkpoint.saved_at,
            }),
            result: None,
            result_bytes: record.result().map(|(_, result)| result.size),
            result_attempt: record.result().map(|(attempt, _)| attempt.claim.number),
            attempts,
            attempts_omitted: omitted,
            clock: clock_as_text(&record.clock),
            as_of: None,
            answered_by: None,
            replicas: None,
        }
    }
}

/// The exit code that stands for "out of time", as `timeout(1)` has it.
const TIMED_OUT_CODE: i32 = 124;

#[derive(Debug, Default)]
struct Outcome {
    exit_code: Option<i32>,
    signal: Option<i32>,
    timed_out: bool,
}

impl Outcome {
    fn of(exit: Option<Exit>) -> Self {
        match exit {
            None => Self::default(),
            Some(Exit::Code(code)) => Self { exit_code: Some(code), ..Self::default() },
            Some(Exit::Signal(signal)) => Self { signal: Some(signal), ..Self::default() },
            Some(Exit::TimedOut) => Self { exit_code: Some(TIMED_OUT_CODE), timed_out: true, ..Self::default() },
        }
    }
}

/// The last `most` attempts, oldest first, and how many there are before them. Overlaps are sought among the
/// shown ones only: the search is quadratic, and a job may have many attempts.
fn attempts_of(record: &Record, names: Names<'_>, most: usize) -> (Vec<AttemptView>, Option<usize>) {
    let mut order: Vec<(&Dot, &Attempt)> = record.attempts.iter().map(|(dot, attempt)| (dot, &**attempt)).collect();
    order.sort_by_key(|(dot, attempt)| (attempt.fence(), **dot));
    let omitted = order.len().saturating_sub(most);
    let shown = &order[omitted..];
    let overlaps = if omitted == 0 {
        record.overlaps()
    } else {
        let attempts = shown.iter().map(|(dot, attempt)| (**dot, Box::new((*attempt).clone()))).collect();
        Record { attempts, ..record.clone() }.overlaps()
    };
    let mut others: BTreeMap<Dot, Vec<OverlapView>> = BTreeMap::new();
    for overlap in overlaps {
        for (one, other) in [(overlap.first, overlap.second), (overlap.second, overlap.first)] {
            if let Some(attempt) = record.attempts.get(&other) {
                others.entry(one).or_default().push(OverlapView {
                    number: attempt.claim.number,
                    node: attempt.claim.executor.node,
                    certain: overlap.certain,
                });
            }
        }
    }
    let views = shown.iter().map(|(dot, attempt)| {
        let overlaps = others.remove(dot).unwrap_or_default();
        attempt_view(attempt, names, overlaps)
    });
    (views.collect(), (omitted > 0).then_some(omitted))
}

fn attempt_view(attempt: &Attempt, names: Names<'_>, overlaps: Vec<OverlapView>) -> AttemptView {
    let outcome = Outcome::of(attempt.fate.exit);
    let node = attempt.claim.executor.node;
    AttemptView {
        number: attempt.claim.number,
        node,
        node_name: names.of(node),
        phase: attempt.fate.phase,
        claimed_at: attempt.claim.at,
        started_at: attempt.started_at,
        ended_at: (!attempt.is_live()).then_some(attempt.fate.at),
        exit_code: outcome.exit_code,
        signal: outcome.signal,
        timed_out: outcome.timed_out,
        reason: match (attempt.fate.exit, attempt.fate.reason.as_str()) {
            (Some(exit), "") => reason::of_exit(exit),
            (_, reason) => reason.to_owned(),
        },
        stdout_bytes: attempt.tails.stdout.map(|tail| tail.end()),
        stderr_bytes: attempt.tails.stderr.map(|tail| tail.end()),
        remark: attempt.remark().map(str::to_owned),
        usage: attempt
            .usage
            .as_deref()
            .map(|usage| UsageView { cpu_ms: usage.cpu_ms, peak_memory_bytes: usage.peak_memory_bytes }),
        overlaps,
    }
}

/// A vector clock for people.
pub(super) fn clock_as_text(clock: &Clock) -> BTreeMap<String, u64> {
    clock.dots.iter().map(|(actor, counter)| (actor.to_string(), *counter)).collect()
}

/// A job that was written down.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub(super) struct SubmittedView {
    /// Its id.
    #[schema(value_type = String)]
    pub(super) id: JobId,
    /// Its state.
    pub(super) state: JobState,
    /// Whether it was there before, under the same key.
    pub(super) existed: bool,
    /// The finished job that it tries again.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub(super) retry_of: Option<JobId>,
    /// What the acknowledgement rests on.
    pub(super) receipt: ReceiptView,
}

/// What a submit's acknowledgement rests on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub(super) struct ReceiptView {
    /// How many nodes have the record on disk.
    pub(super) stored: u32,
    /// How many were wanted.
    pub(super) wanted: u32,
    /// Which nodes have it.
    #[schema(value_type = Vec<String>)]
    pub(super) replicas: Vec<NodeId>,
}

impl SubmittedView {
    pub(super) fn new(submitted: Submitted, retry_of: Option<JobId>) -> Self {
        let Submitted { id, state, existed, receipt } = submitted;
        let Receipt { stored, wanted, replicas } = receipt;
        Self { id, state, existed, retry_of, receipt: ReceiptView { stored, wanted, replicas } }
    }
}
