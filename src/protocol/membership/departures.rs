//! Goodbyes, for those who were away.
//!
//! A node that leaves says so by gossip, and gossip forgets it within minutes. Whoever was down just then still
//! remembers the node from its disk, finds it silent, and would keep a place for it on the ring for as long as the
//! dead are remembered, while the others have none. So every node gossips whom it knows to have left.

use std::collections::BTreeMap;

use crate::model::id::{Generation, NodeId};
use crate::model::member::{Facts, Member, MemberState, Status};
use crate::model::time::Now;

use super::{Membership, Opinion};

/// The latest departures that are told: what gossip has room for, in hours in which machines come and go.
const MOST_TOLD: usize = 128;

impl Membership {
    /// The members that have left, the latest ones if there are many.
    pub fn departed(&self) -> BTreeMap<NodeId, Generation> {
        let left = self.view.values().filter(|member| member.state == MemberState::Left);
        let mut left: Vec<_> = left.map(|member| (member.since, member.facts.node, member.facts.generation)).collect();
        left.sort_unstable();
        left.into_iter().rev().take(MOST_TOLD).map(|(_, node, generation)| (node, generation)).collect()
    }

    /// Takes the word of live members that those who do not answer have left.
    pub(super) fn heed_departures(&mut self, now: Now) {
        let is_in_doubt = |member: &&Member| match member.state {
            MemberState::Suspect | MemberState::Down => true,
            MemberState::Alive | MemberState::Left => false,
        };
        let tellers = || self.view.values().filter(|member| member.state == MemberState::Alive);
        let has_left = |doubtful: &&Member| {
            let Facts { node, generation, .. } = doubtful.facts;
            tellers().any(|teller| teller.facts.departed.get(&node).is_some_and(|left| *left >= generation))
        };
        let left: Vec<NodeId> =
            self.view.values().filter(is_in_doubt).filter(has_left).map(|member| member.facts.node).collect();
        for node in left {
            if let Some(member) = self.view.get_mut(&node) {
                member.facts.status = Status::Left;
            }
            self.withdraw_vote(node);
            self.set_opinion(now, node, Opinion::Departed, "left, as others know");
        }
    }
}
