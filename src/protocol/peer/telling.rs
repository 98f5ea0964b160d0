//! What a node tells of itself: its events, and how it stands.

use std::sync::Arc;

use crate::model::id::Partition;
use crate::model::member::Status;
use crate::model::request::{Event, EventKind};
use crate::model::ring::Placement;
use crate::model::time::Now;

use super::super::effect::Effect;
use super::super::membership::Membership;
use super::super::records::Records;
use super::super::snapshot::{Convergence, JobCounts, Snapshot};
use super::Peer;

/// Events that are kept for those who ask a little late.
const EVENTS_KEPT: usize = 4_096;

impl Peer {
    /// Tells an event to whoever asks this node for its events, once what it speaks of is stored.
    pub(super) fn tell(&mut self, now: Now, kind: EventKind) {
        let event = Event { seq: self.next_event, at: now.wall, kind };
        self.next_event += 1;
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
        self.answer_event_readers(now);
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

    /// How the node stands: see [`Convergence`].
    fn convergence(&self, now: Now) -> Convergence {
        let fingerprints: Vec<_> = self
            .membership
            .view()
            .values()
            .filter(|member| member.is_live())
            .map(|member| (member.facts.node, member.facts.ring))
            .collect();
        let acting = self.acting_for.len() as u32;
        let behind = self.behind(now.moment);
        let since = self.settled_since.unwrap_or(self.unsettled_since);
        Convergence {
            converged: self.settled_since.is_some(),
            since: since.wall,
            since_moment: since.moment,
            fingerprints,
            acting,
            in_sync: acting - behind.len() as u32,
            behind: behind.into_iter().collect(),
            strays: self.stray_count() as u32,
            moving: self.moving(),
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
}
