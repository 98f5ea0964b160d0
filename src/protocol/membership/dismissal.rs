//! Forgetting a member by hand: somebody knows that a machine is gone for good, and does not want to wait until it has
//! been down for `forget_after`.
//!
//! Until then it keeps its places on the ring, and what it holds a copy of is not sealed. Whoever is told to forget it
//! says so in its own gossip for as long as it would remember having forgotten it, and so does everybody who heeds that:
//! also a node that was away hears of it when it comes back, and takes the word of one live member for it. But it heeds
//! only what concerns a member that it believes gone itself, as it was known to the one who forgot it. One that says
//! anything newer than that lives, and joins anew.
//!
//! A member that is alive is drained and stopped instead. That the majority of the members may be forgotten in this way
//! by a minority is meant: it is how a person says that they will not come back.

use std::collections::BTreeMap;

use crate::model::id::{Generation, Incarnation, NodeId};
use crate::model::member::{Member, MemberState};
use crate::model::time::Now;

use super::Membership;

/// The latest dismissals that are told: more than anybody takes machines away by hand in a day.
const MOST_TOLD: usize = 64;

/// Why a member was forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// It was gone for too long.
    Silence,
    /// Somebody said so.
    ByHand,
}

/// Why a member is not forgotten by hand.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CannotForget {
    /// Nobody knows it (any more).
    #[error("no member has the id {0}")]
    Unknown(NodeId),
    /// It would come back at once.
    #[error("{name} is {}", if *.state == MemberState::Suspect { "suspected, and not known to be down" } else { "alive" })]
    Lives {
        /// Its name.
        name: String,
        /// The verdict on it.
        state: MemberState,
    },
}

impl Membership {
    /// Forgets a member that is down, or has left, everywhere.
    ///
    /// # Errors
    /// It lives, or is not known. Nothing was changed.
    pub fn dismiss(&mut self, now: Now, node: NodeId) -> Result<(), CannotForget> {
        let member = self.view.get(&node).ok_or(CannotForget::Unknown(node))?;
        if member.is_live() {
            return Err(CannotForget::Lives { name: member.facts.name.clone(), state: member.state });
        }
        self.forget_one(now, node, Why::ByHand, "forgotten by hand");
        self.settle(now);
        Ok(())
    }

    /// The members forgotten by hand, the latest ones if there are many.
    pub fn dismissed(&self) -> BTreeMap<NodeId, (Generation, Incarnation)> {
        let by_hand = self.forgotten.iter().filter(|(_, tombstone)| tombstone.why == Why::ByHand);
        let mut by_hand: Vec<_> = by_hand.map(|(node, tombstone)| (tombstone.until, *node, tombstone.known)).collect();
        by_hand.sort_unstable();
        by_hand.into_iter().rev().take(MOST_TOLD).map(|(_, node, known)| (node, known)).collect()
    }

    /// Takes the word of live members that those who are gone here as well are forgotten.
    pub(super) fn heed_dismissals(&mut self, now: Now) {
        let tellers = self.view.values().filter(|member| member.state == MemberState::Alive);
        let told = tellers.flat_map(|teller| &teller.facts.dismissed);
        let is_gone_here = |(node, known): &(&NodeId, &(Generation, Incarnation))| {
            let is_over =
                |member: &Member| !member.is_live() && (member.facts.generation, member.facts.incarnation) <= **known;
            self.view.get(node).is_some_and(is_over)
        };
        let dismissed: Vec<NodeId> = told.filter(is_gone_here).map(|(node, _)| *node).collect();
        for node in dismissed {
            self.forget_one(now, node, Why::ByHand, "forgotten by hand, as others know");
        }
    }
}
