//! Whether all is well, for the debug page: the same view everywhere, every record where it belongs, and nothing on its way for
//! long.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::model::id::{JobId, Partition};
use crate::model::member::{MemberState, PartitionSet, Status};
use crate::model::time::{Moment, Now};

use super::super::snapshot::Convergence;
use super::Peer;

/// How long a record may be on its way before its partition counts as behind: shorter lags are life.
const LAG_ALLOWED: Duration = Duration::from_secs(5);
/// How long all must have been well before the cluster is called converged.
const CALM_FOR: Duration = Duration::from_millis(500);

impl Peer {
    /// How the node stands: see [`Convergence`].
    pub(super) fn convergence(&self, now: Now) -> Convergence {
        let fingerprints: Vec<_> = self
            .membership
            .view()
            .values()
            .filter(|member| member.is_live())
            .map(|member| (member.facts.node, member.facts.ring))
            .collect();
        let acting = self.acting_for.len() as u32;
        let behind = self.behind(now.moment);
        // It is looked at with the gossip, and may have come to an end since.
        let is_well = self.is_well(&behind);
        let since = match self.settled_since {
            Some(settled) if is_well => settled,
            Some(_) => now,
            None => self.unsettled_since,
        };
        Convergence {
            converged: self.settled_since.is_some() && is_well,
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

    /// Notes whether all is well, for the debug page. These partitions are not the same everywhere.
    pub(super) fn watch_convergence(&mut self, now: Now, behind: &BTreeSet<Partition>) {
        if !self.is_well(behind) {
            self.last_trouble = now.moment;
            if self.settled_since.take().is_some() {
                self.unsettled_since = now;
            }
        } else if self.settled_since.is_none() && now.moment.since(self.last_trouble) >= CALM_FOR {
            self.settled_since = Some(now);
        }
    }

    /// Whether all see the same at this moment, and these partitions, which are not the same everywhere, are none.
    fn is_well(&self, behind: &BTreeSet<Partition>) -> bool {
        let mine = self.placement.fingerprint();
        let agreed = self.membership.view().values().all(|member| match member.state {
            MemberState::Alive => member.facts.ring == mine,
            MemberState::Suspect => false,
            MemberState::Down | MemberState::Left => true,
        });
        agreed && self.status() == Status::Serving && behind.is_empty() && self.strays().next().is_none()
    }

    /// The partitions that this node acts for and that are not, as far as it knows, the same everywhere.
    pub(super) fn behind(&self, now: Moment) -> BTreeSet<Partition> {
        let spreading = self.replication.spreading_from(JobId(0));
        let lagging = spreading.filter(|(_, since)| now.since(*since) > LAG_ALLOWED);
        let lagging: PartitionSet = lagging.map(|(job, _)| self.records.partition_of(job)).collect();
        let lagging = lagging.iter().filter(|partition| self.acts_for(*partition));
        let first_of = self.first_of.iter().copied();
        let not_caught_up = first_of.filter(|partition| !self.ownership.is_caught_up(*partition));
        let differing = self.agreements.differing();
        let differing = differing.filter(|(partition, peer)| {
            self.placement.acting(*partition).contains(peer) && self.acts_for(*partition) && !self.is_busy(*partition)
        });
        let differing = differing.map(|(partition, _)| partition);
        let short_of_copies = self.absence.waiting().filter(|partition| self.acts_for(*partition));
        let rest = not_caught_up.chain(differing).chain(short_of_copies);
        lagging.chain(rest).collect()
    }

    /// Whether records of the partition are changing at this moment: then copies differ for a moment, too.
    fn is_busy(&self, partition: Partition) -> bool {
        self.records.in_partition(partition).any(|(_, held)| !held.state().is_terminal())
    }

    pub(super) fn nothing_spreads(&self) -> bool {
        self.replication.spreading_from(JobId(0)).next().is_none()
    }
}
