//! What is remembered of members that are gone, made the same everywhere.
//!
//! A member that is down keeps its places on the ring, so what it last said of itself still counts, and gossip speaks of
//! the dead for some minutes only. Whoever came later has never heard of it; whoever was cut off missed its last words; a
//! restart forgets for how long it has been gone, and others have forgotten it altogether. Their rings would differ for as
//! long as the dead are remembered. So these memories are state that merges, like all else: a node tells its own to those
//! whose ring differs from its own, one of them in turn with each tick, and nothing is told where all rings are the same.
//!
//! Of one member, a later start counts for more than an earlier one, within one start its later words do, and of two
//! opinions on how long it has been gone the longer one. That others have forgotten it lets a node forget it too: they were
//! a majority, or were told to by hand. Whoever has been gone for longer than anybody is to be remembered, and is remembered
//! still by some who are no majority, is a member for those whom they tell, too; if these are one, they forget it at once.
//!
//! Memories are about those who are down here as well, or unknown: about anybody who seems to live, this node hears and
//! probes for itself. Somebody first heard of in this way counts as down without a probe of this node's own, until it
//! answers: it is probed like all who are down.

use std::ops::Bound;

use crate::model::id::{Generation, Incarnation, NodeId};
use crate::model::member::{Absentee, Member, MemberState, Memories, Status};
use crate::model::time::{Moment, Now};

use super::admission::what_differs;
use super::dismissal::Why;
use super::{Membership, MembershipOutput, Opinion};

/// Members that are down, told of at once at the most; of more, the others' turn comes with the next ticks.
const DOWN_AT_ONCE: usize = 32;
/// Members that were forgotten, likewise: the latest ones.
const FORGOTTEN_AT_ONCE: usize = 256;

impl Membership {
    /// Tells one of those whose rings differ, each in turn.
    pub(super) fn tell_of_the_gone(&mut self, now: Now) {
        let ring = self.me().ring;
        let last = self.told_last;
        let differs = |member: &&Member| member.state == MemberState::Alive && member.facts.ring != ring;
        let mut others = self.view.values().filter(differs).map(|member| member.facts.node);
        let Some(first) = others.next() else { return };
        let to = if first > last { first } else { others.find(|node| *node > last).unwrap_or(first) };
        self.told_last = to;
        let memories = self.memories(now);
        if !memories.is_empty() {
            self.outputs.push_back(MembershipOutput::TellOfTheGone { to, memories });
        }
    }

    fn memories(&mut self, now: Now) -> Memories {
        let is_down = |member: &&Member| member.state == MemberState::Down;
        let after = self.view.range((Bound::Excluded(self.told_of), Bound::Unbounded));
        let in_turn = after.chain(self.view.range(..=self.told_of)).map(|(_, member)| member);
        let one = |member: &Member| {
            let mut facts = member.facts.clone();
            // What it thought of others then is no vote now.
            facts.suspicions.clear();
            facts.departed.clear();
            facts.dismissed.clear();
            Absentee { facts, gone_for: now.moment.since(member.since) }
        };
        let down: Vec<Absentee> = in_turn.filter(is_down).take(DOWN_AT_ONCE).map(one).collect();
        if let Some(last) = down.last() {
            self.told_of = last.facts.node;
        }
        let mut forgotten: Vec<_> = self.forgotten.iter().map(|(node, t)| (t.until, *node, t.known)).collect();
        forgotten.sort_unstable();
        let forgotten = forgotten.into_iter().rev().take(FORGOTTEN_AT_ONCE);
        Memories { down, forgotten: forgotten.map(|(_, node, (g, i))| (node, g, i)).collect() }
    }

    /// Somebody whose ring differs from this node's tells what it remembers.
    pub fn handle_memories(&mut self, now: Now, memories: Memories) {
        self.notice_pause(now);
        for absentee in memories.down.into_iter().take(DOWN_AT_ONCE) {
            self.remember_too(now, absentee);
        }
        for (node, generation, incarnation) in memories.forgotten.into_iter().take(FORGOTTEN_AT_ONCE) {
            self.forget_too(now, node, (generation, incarnation));
        }
        self.settle(now);
    }

    fn remember_too(&mut self, now: Now, absentee: Absentee) {
        let Absentee { mut facts, gone_for } = absentee;
        let (node, said) = (facts.node, (facts.generation, facts.incarnation));
        let is_known_forgotten = self.forgotten.get(&node).is_some_and(|tombstone| said <= tombstone.known);
        if node == self.me
            || is_known_forgotten
            || facts.status == Status::Left
            || what_differs(&self.settings, &facts).is_some()
        {
            return;
        }
        facts.suspicions.clear();
        facts.departed.clear();
        facts.dismissed.clear();
        let since = now.moment - gone_for;
        let Some(member) = self.view.get_mut(&node) else {
            self.forgotten.remove(&node);
            self.admit(now, facts, Opinion::Condemned, "down, as others know");
            self.backdate(node, since);
            return;
        };
        let known = &member.facts;
        if member.is_live() || facts.generation < known.generation {
            return;
        }
        if facts.generation > known.generation {
            member.facts = facts;
            self.withdraw_vote(node);
            if let Some(known) = self.known.get_mut(&node) {
                (known.answered, known.ahead_of_gossip, known.rival) = (false, None, None);
            }
            self.set_opinion(now, node, Opinion::Condemned, "started anew and down, as others know");
            self.backdate(node, since);
            return;
        }
        if member.state == MemberState::Left {
            return;
        }
        let agrees = facts.incarnation >= known.incarnation;
        if facts.revision > known.revision {
            facts.incarnation = facts.incarnation.max(known.incarnation);
            let was = member.state;
            member.facts = facts;
            self.epoch += 1;
            self.retarget(node);
            self.tell_change(now, node, Some(was), "others know what it last said");
        }
        if agrees {
            self.backdate(node, since);
        }
    }

    /// It has been gone at least since then.
    fn backdate(&mut self, node: NodeId, since: Moment) {
        if let Some(member) = self.view.get_mut(&node).filter(|member| !member.is_live()) {
            member.since = member.since.min(since);
        }
    }

    fn forget_too(&mut self, now: Now, node: NodeId, known: (Generation, Incarnation)) {
        let is_down_here = |member: &&Member| {
            member.state == MemberState::Down && (member.facts.generation, member.facts.incarnation) <= known
        };
        if self.view.get(&node).filter(is_down_here).is_some() {
            self.forget_one(now, node, Why::Silence, "others have forgotten it");
        }
    }
}
