//! Why a job is in the state it is in, in a sentence for people.
//!
//! A function of the record, like the state itself; only the nodes' names come from the view. What depends on
//! the whole cluster (who has room, how long the queue is) is the owner's to explain, not this file's.

use crate::model::attempt::{Attempt, Exit, Phase};
use crate::model::id::NodeId;
use crate::model::member::View;
use crate::model::record::{JobState, Record, StopKind};
use crate::model::time::Timestamp;

/// The names of nodes, as far as they are known.
#[derive(Debug, Clone, Copy)]
pub(super) struct Names<'a>(pub(super) &'a View);

impl Names<'_> {
    /// The node's name; its id where the name was forgotten.
    pub(super) fn of(self, node: NodeId) -> String {
        self.0.get(&node).map_or_else(|| node.to_string(), |member| member.facts.name.clone())
    }
}

/// The sentence, as of `now`.
pub(super) fn of(record: &Record, names: Names<'_>, now: Timestamp) -> String {
    let telling = record.telling();
    match record.state() {
        JobState::Pending => pending(record, telling, names, now),
        JobState::Running => running(record, telling, names),
        JobState::Succeeded => telling.map_or_else(String::new, |attempt| {
            let (number, node) = (attempt.claim.number, names.of(attempt.claim.executor.node));
            with_reason(&format!("attempt {number} succeeded on {node}"), &attempt.fate.reason)
        }),
        JobState::Cancelled => match &record.stop {
            Some(stop) if !stop.reason.is_empty() => format!("cancelled: {}", stop.reason),
            _ => "cancelled".to_owned(),
        },
        JobState::Failed => failed(record, telling, names),
    }
}

/// How a pod ended, in a few words.
pub(super) fn of_exit(exit: Exit) -> String {
    match exit {
        Exit::Code(code) => format!("exit code {code}"),
        Exit::Signal(signal) => format!("ended by signal {signal}"),
        Exit::TimedOut => "ran longer than its timeout".to_owned(),
    }
}

fn pending(record: &Record, telling: Option<&Attempt>, names: Names<'_>, now: Timestamp) -> String {
    let Some(last) = telling else {
        return match record.spec().delay.map(|delay| record.submission.submitted_at + delay) {
            Some(due) if due > now => format!("waits until {due}, as its delay says"),
            _ => "waiting for room".to_owned(),
        };
    };
    match last.fate.phase {
        Phase::Failed => format!("{}; {}; waiting for the next", end_of(last, names), retries_used(record)),
        Phase::Lost => format!("{}; waiting for another node", end_of(last, names)),
        Phase::Returned | Phase::Stopped => format!("{}; waiting for room", end_of(last, names)),
        Phase::Claimed | Phase::Running | Phase::Succeeded => "waiting for room".to_owned(),
    }
}

fn running(record: &Record, telling: Option<&Attempt>, names: Names<'_>) -> String {
    let Some(attempt) = telling else { return String::new() };
    let (number, node) = (attempt.claim.number, names.of(attempt.claim.executor.node));
    match (&record.stop, attempt.fate.phase) {
        (Some(stop), _) => {
            let why = match stop.kind {
                StopKind::Cancelled => "cancelled",
                StopKind::TimedOut => "out of time",
            };
            format!("stopping ({}): attempt {number} is being ended on {node}", with_reason(why, &stop.reason))
        }
        (None, Phase::Claimed) => format!("attempt {number} is about to start on {node}"),
        (None, _) => format!("attempt {number} runs on {node}"),
    }
}

fn failed(record: &Record, telling: Option<&Attempt>, names: Names<'_>) -> String {
    if let Some(stop) = &record.stop {
        return with_reason("out of time", &stop.reason);
    }
    let Some(last) = telling else { return String::new() };
    let spec = record.spec();
    let verdict = match last.fate.exit {
        Some(Exit::Code(code)) if last.fate.phase == Phase::Failed && spec.no_retry_on.contains(&code) => {
            "not to be retried after this code".to_owned()
        }
        _ if record.losses() > spec.lost_limit => {
            let lost = match record.losses() {
                1 => "1 attempt was lost".to_owned(),
                losses => format!("{losses} attempts were lost"),
            };
            format!("{lost}, and the limit is {}", spec.lost_limit)
        }
        _ => retries_used(record),
    };
    format!("{}; {verdict}", end_of(last, names))
}

fn end_of(attempt: &Attempt, names: Names<'_>) -> String {
    let (number, node, fate) = (attempt.claim.number, names.of(attempt.claim.executor.node), &attempt.fate);
    let what = match (fate.phase, fate.exit) {
        (Phase::Lost, _) => format!("attempt {number} was lost with {node}"),
        (Phase::Returned, _) => format!("attempt {number} was given back by {node}"),
        (Phase::Stopped, _) => format!("attempt {number} was stopped on {node}"),
        (_, Some(exit)) => format!("attempt {number}: {} on {node}", of_exit(exit)),
        (_, None) => format!("attempt {number} failed on {node}"),
    };
    with_reason(&what, &fate.reason)
}

fn with_reason(what: &str, reason: &str) -> String {
    if reason.is_empty() { what.to_owned() } else { format!("{what}: {reason}") }
}

fn retries_used(record: &Record) -> String {
    match record.spec().retries {
        0 => "no retries were asked for".to_owned(),
        retries => format!("{} of {retries} retries used", record.failures().saturating_sub(1).min(retries)),
    }
}
