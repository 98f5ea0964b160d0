//! What a node tells of itself: its events, and how it stands.

use std::sync::Arc;

use crate::model::attempt::{Attempt, Phase};
use crate::model::id::{Dot, JobId, NodeId, Partition};
use crate::model::member::Status;
use crate::model::record::{JobState, Record};
use crate::model::request::{Event, EventKind};
use crate::model::ring::Placement;
use crate::model::time::Now;

use super::super::effect::Effect;
use super::super::membership::Membership;
use super::super::records::Records;
use super::super::snapshot::{JobCounts, Snapshot};
use super::Peer;

/// Events that are kept for those who ask a little late.
const EVENTS_KEPT: usize = 4_096;

impl Peer {
    /// Tells an event to whoever asks this node for its events, once what it speaks of is stored.
    pub(super) fn tell(&mut self, now: Now, kind: EventKind) {
        let event = Event { seq: self.event_numbers.take(), at: now.wall, kind };
        if self.events.len() == EVENTS_KEPT {
            self.events.pop_front();
        }
        let note = Effect::Note(event.clone());
        match event.kind {
            // What is thought of a member promises nothing that a disk could keep.
            EventKind::Member { .. } | EventKind::Forgotten { .. } | EventKind::Rejected { .. } => {
                self.outbox.send(note);
            }
            EventKind::Job { .. } | EventKind::Overlap { .. } => self.outbox.send_when_stored(note),
        }
        self.events.push_back(event);
        self.answer_event_readers();
    }

    /// What this node knows at this moment.
    pub fn snapshot(&self, now: Now) -> Snapshot {
        let owned = self.first_of.iter().filter(|partition| self.ownership.is_caught_up(**partition));
        let jobs = JobCounts {
            held: self.records.len() as u64,
            open: self.records.open().len() as u64,
            owned: owned.map(|partition| u64::from(self.records.open_in(*partition))).sum(),
            waiting: self.scheduler.backlog() as u64,
            pods: self.pods.len() as u64,
        };
        let not_ready = self.membership.conflict().or_else(|| match self.status() {
            Status::Joining | Status::Returning => Some("looking for the other nodes of the cluster".to_owned()),
            Status::ReadOnly => Some("the disk is full: nothing can be written".to_owned()),
            Status::Left => Some("leaving the cluster".to_owned()),
            Status::Serving | Status::Draining => None,
        });
        let counters = &self.counters;
        let mut counted = vec![
            ("jobs_submitted_total", counters.submitted),
            ("attempts_claimed_total", counters.claimed),
            ("pods_started_total", counters.started),
            ("attempts_lost_total", counters.lost),
            ("records_merged_total", counters.merged),
            ("records_rejected_total", counters.rejected_records),
            ("takeovers_total", counters.takeovers),
            ("comparisons_total", counters.comparisons),
            ("comparisons_differing_partitions_total", counters.differing_partitions),
            ("strays_handed_over_total", counters.strays_handed_over),
            ("records_sealed_total", counters.sealed),
            ("records_expired_total", counters.expired),
            ("late_reports_total", counters.late_reports),
            ("overlaps_told_total", counters.overlaps_told),
            ("records_repaired_by_reading_total", counters.repaired_by_reading),
        ];
        counted.extend(self.membership.counters());
        Snapshot {
            now,
            node: self.me.node,
            generation: self.me.generation,
            facts: self.membership.me().clone(),
            not_ready,
            complaints: self.membership.complaints(),
            local_health: self.membership.local_health(),
            view: self.membership.view().clone(),
            placement: Arc::clone(&self.placement),
            convergence: self.convergence(now),
            jobs,
            counters: counted,
            clock_skews_ms: Vec::new(),
        }
    }

    /// The records this node holds; for the simulator's checkers.
    pub fn records(&self) -> &Records {
        &self.records
    }

    /// Whether nothing that was written here is on its way to another node or to the disk.
    pub fn has_passed_all_on(&self) -> bool {
        self.nothing_spreads() && self.outbox.is_settled()
    }

    /// The membership; for the debug pages and the simulator's checkers.
    pub fn membership(&self) -> &Membership {
        &self.membership
    }

    /// The ring as this node computes it.
    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    /// Whether this node decides for `partition` now.
    pub fn decides_for(&self, partition: Partition) -> bool {
        self.ownership.is_caught_up(partition)
    }

    /// The owner tells whoever listens that a job's state, or its telling attempt, changed.
    pub(super) fn tell_of_change(&mut self, now: Now, job: JobId, before: Option<Outline>) {
        let is_owner = self.ownership.is_caught_up(self.records.partition_of(job));
        let Some(record) = self.records.get(job).filter(|_| is_owner).map(|held| held.record()) else {
            return;
        };
        let after = outline(&record);
        if before.is_none_or(|before| before.overlaps < after.overlaps) {
            self.tell_of_overlaps(now, &record);
        }
        if before == Some(after) {
            return;
        }
        let telling = record.telling();
        let kind = EventKind::Job {
            job,
            title: record.spec().title(),
            state: after.state,
            attempt: telling.map(|attempt| attempt.claim.number),
            node: telling.map(|attempt| attempt.claim.executor.node),
            reason: telling.map(|attempt| attempt.fate.reason.clone()).unwrap_or_default(),
        };
        self.tell(now, kind);
    }

    /// The owner says openly what ran twice, or may have.
    fn tell_of_overlaps(&mut self, now: Now, record: &Record) {
        for overlap in record.overlaps() {
            let of = |claim: Dot| record.attempts.get(&claim).map(|a| (a.claim.number, a.claim.executor.node));
            let (Some(first), Some(second)) = (of(overlap.first), of(overlap.second)) else {
                continue;
            };
            self.counters.overlaps_told += 1;
            let (title, certain) = (record.spec().title(), overlap.certain);
            self.tell(now, EventKind::Overlap { job: record.id, title, attempts: [first, second], certain });
        }
    }

    /// This node's copy has met a seal for which it was not asked: it had left while it was cut off, or the key was used again
    /// here where nobody knew of the job. What ran of it is no part of the sealed record. Whoever gives up such a copy says so,
    /// since nothing else will.
    pub(super) fn tell_of_what_a_seal_ends(&mut self, now: Now, sealed: &Record, copy: &Record) {
        if !sealed.is_final() || copy.is_final() {
            return;
        }
        let of = |attempt: &Attempt| (attempt.claim.number, attempt.claim.executor.node);
        let Some(kept) = sealed.telling().map(of) else {
            return;
        };
        let unknown = copy
            .attempts
            .iter()
            .filter(|(claim, attempt)| attempt.may_have_run() && !sealed.attempts.contains_key(claim));
        for ended in unknown.map(|(_, attempt)| of(attempt)) {
            self.counters.overlaps_told += 1;
            let (title, attempts) = (sealed.spec().title(), [kept, ended]);
            self.tell(now, EventKind::Overlap { job: sealed.id, title, attempts, certain: false });
        }
    }
}

/// What a change must touch to be worth an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Outline {
    state: JobState,
    attempt: Option<(u32, NodeId, Phase)>,
    /// Pairs of attempts that may have run at once, and those that are certain to have.
    overlaps: (usize, usize),
}

pub(super) fn outline(record: &Record) -> Outline {
    let attempt = record.telling().map(|a| (a.claim.number, a.claim.executor.node, a.fate.phase));
    Outline { state: record.state(), attempt, overlaps: overlaps_of(record) }
}

/// Nearly every job has one attempt, and then there is nothing to count.
fn overlaps_of(record: &Record) -> (usize, usize) {
    if record.attempts.len() < 2 {
        return (0, 0);
    }
    let overlaps = record.overlaps();
    (overlaps.len(), overlaps.iter().filter(|overlap| overlap.certain).count())
}
