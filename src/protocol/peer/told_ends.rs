//! How attempts of this node ended whose records are no longer here.
//!
//! Whoever runs a job and does not act for it lets go of its record when it has ended and those who act have it. An older
//! copy may be left with a node that was away just then, and come back here on one side of a partition: by it the attempt still
//! runs, or has yet to begin, or nobody has claimed it yet. A node that had forgotten how it ended would give it back, or
//! begin it once more, or decide anew that it shall run, although it knew better. So the latest ends are remembered, with what
//! was asked of the job, and said again word for word: it is one write, however often it is told.

use std::collections::{BTreeMap, VecDeque};

use crate::model::attempt::Attempt;
use crate::model::id::{Dot, JobId, NodeId};
use crate::model::record::{Record, Stop};
use crate::model::report::Tails;
use crate::model::time::{Now, Timestamp};

use super::Peer;

/// Ends remembered, at the most; the oldest is forgotten first. Raising it covers copies of older jobs, and costs memory.
const REMEMBERED: usize = 1 << 14;

/// What this start has said, or known to be said, of attempts of this node.
#[derive(Debug, Default)]
pub(super) struct ToldEnds {
    of: BTreeMap<JobId, Told>,
    in_order: VecDeque<(JobId, Dot)>,
}

/// The same of one job.
#[derive(Debug, Clone)]
struct Told {
    submission: (Timestamp, NodeId),
    stop: Option<Stop>,
    /// By their claims. What they left behind is not remembered.
    attempts: BTreeMap<Dot, Attempt>,
}

/// Tells the submissions of one id apart: a key may have been used again.
fn submission_of(record: &Record) -> (Timestamp, NodeId) {
    (record.submission.submitted_at, record.submission.gateway)
}

impl ToldEnds {
    fn remember(&mut self, record: &Record, claim: Dot, attempt: &Attempt) {
        let (job, submission) = (record.id, submission_of(record));
        let anew = || Told { submission, stop: None, attempts: BTreeMap::new() };
        let told = self.of.entry(job).or_insert_with(anew);
        if told.submission != submission {
            *told = anew();
        }
        if record.stop > told.stop {
            told.stop.clone_from(&record.stop);
        }
        let end = Attempt { progress: None, result: None, tails: Tails::default(), usage: None, ..attempt.clone() };
        if told.attempts.insert(claim, end).is_none() {
            self.in_order.push_back((job, claim));
        }
        if self.in_order.len() > REMEMBERED
            && let Some((job, oldest)) = self.in_order.pop_front()
            && let Some(told) = self.of.get_mut(&job)
        {
            told.attempts.remove(&oldest);
            if told.attempts.is_empty() {
                self.of.remove(&job);
            }
        }
    }
}

impl Peer {
    /// This node is about to let go of the record. Of a sealed one there is no older copy to come.
    pub(super) fn remember_ends(&mut self, job: JobId) {
        let held = self.records.get(job).filter(|held| held.summary.has_attempts() && !held.is_final());
        let Some(record) = held.map(|held| held.record()) else {
            return;
        };
        for (claim, attempt) in &record.attempts {
            if attempt.claim.executor.node == self.me.node && attempt.fate.by_executor && !attempt.is_live() {
                self.told_ends.remember(&record, *claim, attempt);
            }
        }
    }

    /// A copy of the record has come from another node: says what this one has said of it before.
    pub(super) fn say_ends_again(&mut self, now: Now, job: JobId) {
        let Some(told) = self.told_ends.of.get(&job) else {
            return;
        };
        let is_meant = |record: &Record| !record.is_final() && submission_of(record) == told.submission;
        if !self.records.get(job).is_some_and(|held| is_meant(&held.record())) {
            return;
        }
        let Told { stop, attempts, .. } = told.clone();
        self.change(now, job, |record| {
            attempts.into_iter().for_each(|(claim, attempt)| record.recall(claim, attempt));
            stop.into_iter().for_each(|stop| record.request_stop(stop));
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::id::{Actor, Generation};
    use crate::model::record::Submission;
    use crate::model::spec::Spec;

    #[test]
    fn the_oldest_ends_are_forgotten_first() {
        let actor = Actor { node: NodeId(1), generation: Generation(1) };
        let dot = |nth: usize| Dot { actor, counter: nth as u64 };
        let submission = Arc::new(Submission {
            spec: Spec { command: vec!["true".into()], ..Spec::default() },
            submitted_at: Timestamp(0),
            gateway: actor.node,
            home: vec![actor.node],
            retry_of: None,
        });
        let mut ends = ToldEnds::default();
        for nth in (0..=REMEMBERED).chain(1..10) {
            let mut record = Record::new(JobId(nth as u128), Arc::clone(&submission), dot(1));
            record.claim(dot(nth), actor, Timestamp(0));
            ends.remember(&record, dot(nth), &record.attempts[&dot(nth)]);
        }
        assert_eq!((ends.of.len(), ends.in_order.len()), (REMEMBERED, REMEMBERED));
        assert!(!ends.of.contains_key(&JobId(0)) && ends.of.contains_key(&JobId(1)));
    }
}
