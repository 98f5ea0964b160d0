//! What others gossip about themselves, one node's facts at a time: who is admitted, who has started anew or
//! moved, who has left, who must stay outside, and who else runs as this very node.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use crate::model::id::{Generation, Incarnation, NodeId};
use crate::model::member::{Facts, Member, MemberState, Status};
use crate::model::time::Now;
use crate::model::wire::{Probe, ProbeBody};

use super::admission::{Outsider, Twin};
use super::{Acquaintance, Membership, MembershipOutput, Opinion, Rival, status_name};

/// Bounds the nodes with other settings that are kept for complaints.
const MOST_OUTSIDERS: usize = 64;
/// How far above its own a vote may put this node's incarnation.
const MOST_AHEAD: u64 = 1 << 32;
/// A second process with this node's id is asked again after so many probe intervals.
const TWIN_EVERY: u32 = 5;

impl Membership {
    pub(super) fn handle_one(&mut self, now: Now, facts: Facts) {
        let node = facts.node;
        let said = (facts.generation, facts.incarnation);
        if let Some(tombstone) = self.forgotten.get_mut(&node) {
            if said <= tombstone.known {
                // Either gossip still speaks of the dead, or it was only out of reach: then it can say so.
                let may_ask = tombstone.asked_at.is_none_or(|at| now.moment >= at + self.timing.probe_interval);
                if may_ask && facts.status != Status::Left {
                    tombstone.asked_at = Some(now.moment);
                    let body = ProbeBody::Ping { seq: self.detector.take_seq(), suspected: Some(said) };
                    let (addr, probe) = (facts.cluster_addr, self.detector.packet(node, body));
                    self.outputs.push_back(MembershipOutput::Probe { to: node, addr, probe, by_link: false });
                }
                return;
            }
            self.forgotten.remove(&node);
        }
        self.outsiders.remove(&node);
        let Some(member) = self.view.get(&node) else {
            self.hear_votes(&facts);
            let opinion = if facts.status == Status::Left { Opinion::Departed } else { Opinion::Trusted };
            let same_name = facts.name == self.me().name;
            self.admit(now, facts, opinion, "first heard of");
            if same_name {
                // Whether it is there, or only spoken of, decides whether the name is taken.
                self.detector.look(now.moment, node, Duration::ZERO, false);
            }
            return;
        };
        if facts.generation < member.facts.generation {
            return;
        }
        let moved = facts.cluster_addr != member.facts.cluster_addr;
        if facts.generation == member.facts.generation && !moved {
            self.hear_votes(&facts);
            self.renew(now, facts);
            return;
        }
        // A new start. At the old address the old process cannot be running; elsewhere it might, and then its
        // double neither takes its place nor takes it along when it leaves.
        let Some(known) = self.known.get_mut(&node) else { return };
        if moved && matches!(known.opinion, Opinion::Trusted) {
            if facts.status == Status::Left {
                known.rival = None;
            } else if known.rival.as_ref().is_none_or(|rival| rival.facts.generation <= facts.generation) {
                let is_new = known.rival.is_none();
                known.rival = Some(Rival { facts, heard: now.moment });
                if is_new {
                    self.detector.look(now.moment, node, self.timing.probe_interval, true);
                }
            }
        } else {
            self.hear_votes(&facts);
            self.replace(now, facts);
        }
    }

    /// A node that is not yet in the view.
    pub(super) fn admit(&mut self, now: Now, facts: Facts, opinion: Opinion, reason: &str) {
        let node = facts.node;
        self.votes.change(node, &BTreeMap::new(), &facts.suspicions);
        self.votes.touch(node);
        self.view.insert(node, Member { facts, state: opinion.state(), since: now.moment });
        self.known.insert(node, Acquaintance { opinion, answered: false, ahead_of_gossip: None, rival: None });
        self.epoch += 1;
        self.retarget(node);
        self.tell_change(now, node, None, reason);
    }

    /// Newer facts of the start that is known.
    fn renew(&mut self, now: Now, mut facts: Facts) {
        let node = facts.node;
        let Some(member) = self.view.get_mut(&node) else { return };
        if facts.revision < member.facts.revision {
            // Gossip that is late: others told its later words when it was believed dead.
            return;
        }
        // An answer may have told of a later incarnation than this gossip.
        let raised = facts.incarnation > member.facts.incarnation;
        if facts.incarnation >= member.facts.incarnation
            && let Some(known) = self.known.get_mut(&node)
        {
            known.ahead_of_gossip = None;
        }
        facts.incarnation = facts.incarnation.max(member.facts.incarnation);
        if member.state != MemberState::Alive {
            // This may be late, too: somebody who was cut off may speak of one that is dead, whose records this node remembers
            // from before its own restart. That it holds less is believed when it is there.
            facts.held.union_with(&member.facts.held);
        }
        if member.state == MemberState::Left || member.facts == facts {
            return;
        }
        let before = member.facts.status;
        let (was, after) = (member.state, facts.status);
        if before != after || member.facts.weight != facts.weight {
            self.epoch += 1;
        }
        self.votes.change(node, &member.facts.suspicions, &facts.suspicions);
        self.votes.touch(node);
        member.facts = facts;
        if after == Status::Left {
            self.withdraw_vote(node);
            self.set_opinion(now, node, Opinion::Departed, "left");
            return;
        }
        if raised {
            self.revive(now, node, "refuted by gossip");
        }
        if before != after {
            self.tell_change(now, node, Some(was), &format!("says that it is {}", status_name(after)));
        }
        self.retarget(node);
        // Gossip about itself is a sign of life, if not a proof: it may have been on its way for long.
        self.look_at_doubtful(now, node);
    }

    /// Facts of a later start, which replaces the one that is known.
    pub(super) fn replace(&mut self, now: Now, facts: Facts) {
        let node = facts.node;
        self.withdraw_vote(node);
        let (Some(member), Some(known)) = (self.view.get_mut(&node), self.known.get_mut(&node)) else { return };
        let reason = format!("started anew, as generation {}", facts.generation.0);
        let was = member.state;
        self.votes.change(node, &member.facts.suspicions, &facts.suspicions);
        // Perhaps it was dead when it voted so.
        self.votes.touch_all(&facts.suspicions);
        self.votes.touch(node);
        known.opinion = if facts.status == Status::Left { Opinion::Departed } else { Opinion::Trusted };
        known.answered = false;
        known.ahead_of_gossip = None;
        known.rival = None;
        *member = Member { facts, state: known.opinion.state(), since: now.moment };
        self.epoch += 1;
        self.retarget(node);
        self.tell_change(now, node, Some(was), &reason);
    }

    /// The member has said something newer than any vote against it.
    pub(super) fn revive(&mut self, now: Now, node: NodeId, reason: &str) {
        self.withdraw_vote(node);
        match self.known.get(&node).map(|known| &known.opinion) {
            Some(Opinion::Condemned) => {
                self.counters.false_downs += 1;
                self.set_opinion(now, node, Opinion::Trusted, reason);
            }
            Some(Opinion::Suspected(_)) => self.set_opinion(now, node, Opinion::Trusted, reason),
            Some(Opinion::Trusted) => self.retarget(node),
            Some(Opinion::Departed) | None => {}
        }
    }

    /// What members have said about themselves to this node, and gossip has not brought for a while, is fetched:
    /// perhaps hardly anybody else can reach them, and votes against them stand until it is known.
    pub(super) fn fetch_refutations(&mut self, now: Now) {
        let patience = self.timing.probe_interval / 4;
        for (node, known) in &mut self.known {
            if known.ahead_of_gossip.is_some_and(|since| now.moment >= since + patience)
                && let Some(member) = self.view.get(node)
            {
                known.ahead_of_gossip = Some(now.moment);
                self.outputs.push_back(MembershipOutput::Call { addr: member.facts.cluster_addr });
            }
        }
    }

    /// Votes against others count by what is known of those others; one against this node is refuted at once.
    pub(super) fn hear_votes(&mut self, facts: &Facts) {
        if let Some(accused) = facts.suspicions.get(&self.me) {
            self.refute(*accused);
        }
    }

    /// This node is accused in this start and incarnation (SWIM, section 4.2). An incarnation somewhat above its
    /// own is possible where a machine was set back to a snapshot; far above it is nonsense, and answering it
    /// would use up the numbers.
    pub(super) fn refute(&mut self, (generation, incarnation): (Generation, Incarnation)) {
        let own = self.me();
        let plausible = own.incarnation.0..=own.incarnation.0.saturating_add(MOST_AHEAD);
        let is_said_of_this = generation == own.generation && plausible.contains(&incarnation.0);
        if !is_said_of_this || own.status == Status::Left || !self.rules.refutation {
            return;
        }
        let own = self.own_mut();
        own.incarnation = Incarnation(incarnation.0.saturating_add(1));
        self.counters.refutations += 1;
        self.detector.handle_refuted();
        self.gossip_own(true);
    }

    pub(super) fn handle_outsider(&mut self, now: Now, facts: &Facts, differs: String) {
        let node = facts.node;
        if let Some(member) = self.view.get(&node)
            && member.facts.generation < facts.generation
            && member.is_live()
        {
            self.set_opinion(now, node, Opinion::Condemned, "came back with other cluster settings");
        }
        if facts.status == Status::Left {
            self.outsiders.remove(&node);
        } else if self.outsiders.contains_key(&node) || self.outsiders.len() < MOST_OUTSIDERS {
            let (generation, status) = (facts.generation, facts.status);
            self.outsiders.insert(node, Outsider { generation, status, differs, seen: now.moment });
        }
    }

    // Other processes with this node's id.

    pub(super) fn handle_own_id(&mut self, now: Now, facts: Facts) {
        let own = self.me();
        // Copies of one directory that were started in the same second have the same generation.
        let (mine, theirs) = ((own.generation, own.cluster_addr), (facts.generation, facts.cluster_addr));
        if theirs > mine {
            self.newer_self = (facts.status != Status::Left).then_some((facts.cluster_addr, now.moment));
            if facts.status != Status::Left {
                // Tells it that it is not alone. What others would tell it by its id may reach this process instead.
                let seq = self.detector.take_seq();
                let probe = self.detector.packet(self.me, ProbeBody::Ping { seq, suspected: None });
                let (to, addr) = (self.me, facts.cluster_addr);
                self.outputs.push_back(MembershipOutput::Probe { to, addr, probe, by_link: false });
            }
        } else if facts.cluster_addr != own.cluster_addr
            && facts.status != Status::Left
            && self.twin.as_ref().is_none_or(|twin| twin.facts.generation < facts.generation)
        {
            // Most likely an earlier start of this very node, of which gossip still speaks.
            self.twin = Some(Twin::new(facts));
            self.ask_twin(now);
        }
    }

    pub(super) fn ask_twin(&mut self, now: Now) {
        let every = self.timing.probe_interval * TWIN_EVERY;
        let Some(twin) = self.twin.as_mut() else { return };
        if twin.is_gone() || twin.asked_at.is_some_and(|at| now.moment < at + every) {
            return;
        }
        let seq = self.detector.take_seq();
        twin.ask(now.moment, seq);
        let addr = twin.facts.cluster_addr;
        let probe = self.detector.packet(self.me, ProbeBody::Ping { seq, suspected: None });
        self.outputs.push_back(MembershipOutput::Probe { to: self.me, addr, probe, by_link: false });
    }

    pub(super) fn handle_probe_of_twin(&mut self, now: Now, from_addr: SocketAddr, probe: &Probe, by_link: bool) {
        let (own_generation, own_addr) = (self.me().generation, self.me().cluster_addr);
        let is_another = |generation| generation != own_generation || from_addr != own_addr;
        match probe.body {
            ProbeBody::Ping { seq, .. } if is_another(probe.generation) => {
                if (probe.generation, from_addr) > (own_generation, own_addr) {
                    self.newer_self = Some((from_addr, now.moment));
                } else if self.twin.as_ref().is_none_or(|twin| twin.is_gone() || twin.facts.cluster_addr != from_addr) {
                    let facts = Facts { generation: probe.generation, cluster_addr: from_addr, ..self.me().clone() };
                    let mut twin = Twin::new(facts);
                    twin.answered(now.moment);
                    self.twin = Some(twin);
                }
                self.acknowledge(self.me, from_addr, seq, by_link);
            }
            ProbeBody::Ack { seq, generation, .. } if is_another(generation) => {
                if let Some(twin) = self.twin.as_mut().filter(|twin| twin.seq == seq) {
                    twin.answered(now.moment);
                }
            }
            ProbeBody::Ping { .. }
            | ProbeBody::Ack { .. }
            | ProbeBody::PingReq { .. }
            | ProbeBody::IndirectAck { .. }
            | ProbeBody::Nack { .. } => {}
        }
    }

    pub(super) fn namesakes(&self) -> impl Iterator<Item = &Facts> {
        let name = &self.me().name;
        let live = self.view.values().filter(|member| member.is_live() && member.facts.node != self.me);
        let answered = |node: &NodeId| self.known.get(node).is_some_and(|known| known.answered);
        live.map(|member| &member.facts).filter(move |facts| facts.name == *name && answered(&facts.node))
    }
}
