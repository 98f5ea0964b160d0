//! Who has records of a partition, and has not said yet that it holds any.
//!
//! Everybody gossips of which partitions it holds records, and whoever seals one asks them all. A node that was cut off, or
//! died, between its first record of a partition and its next gossip is asked by nobody. But whoever gave it the record, or had
//! it from there, knows, and objects to the seal until that node has been heard of. A gateway that has a job written down gives
//! it too.
//!
//! That is written down with the next gossip, also where the node has said it by then. Whoever dies before that does not know it
//! after a restart: a seal may do without the one who has the record, and that one begin the sealed job again while it is cut
//! off, after two deaths and a cut within one interval of the gossip.

use std::collections::BTreeMap;

use crate::model::id::{JobId, NodeId, Partition};
use crate::model::member::{MemberState, PartitionSet};
use crate::model::request::Request;
use crate::model::time::Moment;
use crate::model::wire::Message;

use super::Peer;

/// Within so many intervals of the gossip all have heard what a live node says of itself.
const HEARD_AFTER: u32 = 20;

/// What nodes have that had not said that they hold any of it.
#[derive(Debug, Default)]
pub(super) struct Unannounced(BTreeMap<NodeId, Copies>);

#[derive(Debug, Default)]
struct Copies {
    partitions: PartitionSet,
    /// When it gave or was given something for the last time, or was last not to be heard; nothing if that was since the last
    /// review.
    since: Option<Moment>,
}

impl Unannounced {
    /// The nodes that may hold records of the partition, although they have not said so.
    pub(super) fn holders(&self, partition: Partition) -> impl Iterator<Item = NodeId> + '_ {
        self.0.iter().filter(move |(_, copies)| copies.partitions.contains(partition)).map(|(node, _)| *node)
    }

    /// What the node may hold, although it has not said so.
    pub(super) fn of(&self, node: NodeId) -> impl Iterator<Item = Partition> + '_ {
        self.0.get(&node).into_iter().flat_map(|copies| copies.partitions.iter())
    }
}

impl Peer {
    /// A message is about to be sent: notes what it gives away.
    pub(super) fn note_given(&mut self, to: NodeId, message: &Message) {
        self.note_copies(to, message);
        if let Message::Request { request: Request::Submit { jobs, .. }, .. } = message {
            jobs.iter().for_each(|job| self.note_holder(to, job.id));
        }
    }

    /// Whoever sends records, or is sent them, has copies of them.
    pub(super) fn note_copies(&mut self, node: NodeId, message: &Message) {
        if let Message::Push { records, .. } | Message::Fetched { records, .. } = message {
            records.iter().for_each(|record| self.note_holder(node, record.id));
        }
    }

    fn note_holder(&mut self, node: NodeId, job: JobId) {
        let partition = self.records.partition_of(job);
        if !self.remembered_held.get(&node).is_some_and(|held| held.contains(partition)) {
            // It is written down with the next gossip.
            self.remember_held_at = Moment::START;
        }
        if self.membership.view().get(&node).is_some_and(|member| member.facts.held.contains(partition)) {
            return;
        }
        let copies = self.unannounced.0.entry(node).or_default();
        copies.partitions.insert(partition);
        copies.since = None;
    }

    /// Forgets what those have who have said so since, or have been heard for long enough to have said so, or are members no
    /// longer.
    pub(super) fn review_unannounced(&mut self, now: Moment) {
        let (view, heard_after) = (self.membership.view(), self.config.timing.gossip_interval * HEARD_AFTER);
        self.unannounced.0.retain(|node, copies| {
            let Some(member) = view.get(node).filter(|member| member.state != MemberState::Left) else {
                return false;
            };
            let since = copies.since.filter(|_| member.state == MemberState::Alive).unwrap_or(now);
            copies.since = Some(since);
            copies.partitions = copies.partitions.iter().filter(|one| !member.facts.held.contains(*one)).collect();
            !copies.partitions.is_empty() && now < since + heard_after
        });
    }
}
