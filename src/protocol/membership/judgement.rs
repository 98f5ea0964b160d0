//! From evidence to verdicts: what probes found, who votes against whom, and what this node makes of it.
//!
//! Judging is level-triggered. Whenever anything has changed, every opinion in question is brought in line with
//! the votes as they stand now, so it does not matter in which order, or how often, news came.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::model::id::{Generation, Incarnation, NodeId};
use crate::model::member::Member;
use crate::model::time::{Moment, Now};

use super::super::failure_detector::{DetectorOutput, Finding, Standing, Target};
use super::suspicion::{CONFIRMATIONS, Cause, Suspicion};
use super::votes::Ballot;
use super::{Membership, MembershipOutput, Opinion, Rival};

/// How many votes a node gossips at once: what one value of the gossip holds.
const MOST_VOTES_TOLD: usize = 128;
/// So many votes say all that votes can say: in a cluster of a thousand, a thousand votes against one would only be
/// traffic.
const ENOUGH_VOTES: usize = 8;
/// A node that hears nobody waits for so many of the longest grace periods.
const GRACES_IF_DEAF: u32 = 8;
/// A grace period is stretched by no more than this.
const MOST_STRETCHED: u32 = 3;

impl Membership {
    /// Carries out what the detector wants, takes in what it found and judges, until nothing is left to do.
    pub(super) fn settle(&mut self, now: Now) {
        loop {
            while let Some(output) = self.detector.poll_output() {
                match output {
                    DetectorOutput::Send { to, addr, probe, by_link } => {
                        self.outputs.push_back(MembershipOutput::Probe { to, addr, probe, by_link });
                    }
                    DetectorOutput::Found(finding) => self.handle_finding(now, finding),
                }
            }
            if !self.judge_all(now) {
                return;
            }
        }
    }

    fn handle_finding(&mut self, now: Now, finding: Finding) {
        match finding {
            Finding::Answered { node, generation, incarnation } => {
                self.handle_answer(now, node, (generation, incarnation));
            }
            Finding::Refused { node, generation, since } => {
                if !self.is_current(node, generation) || self.accept_rival(now, node) {
                    return;
                }
                self.doubt(now, node, |doubt| {
                    doubt.refused_since.get_or_insert(since);
                });
            }
            Finding::Silent { node, generation } => {
                if !self.is_current(node, generation) || self.accept_rival(now, node) {
                    return;
                }
                self.doubt(now, node, |doubt| doubt.silent = true);
                let live = self.view.get(&node).is_some_and(Member::is_live);
                if live {
                    // Tell it first, and give it every chance to answer while the grace period lasts.
                    let gap = self.timing.probe_interval * self.detector.multiplier();
                    self.detector.look(now.moment, node, gap, false);
                }
            }
        }
    }

    fn is_current(&self, node: NodeId, generation: Generation) -> bool {
        self.view.get(&node).is_some_and(|member| member.facts.generation == generation)
    }

    /// This node has evidence of its own against `node`: it doubts, and votes.
    fn doubt(&mut self, now: Now, node: NodeId, evidence: impl FnOnce(&mut Suspicion)) {
        self.votes.touch(node);
        let Some(known) = self.known.get_mut(&node) else { return };
        match &mut known.opinion {
            Opinion::Trusted => {
                let mut doubt = Suspicion::new(Cause::Votes, now.moment);
                evidence(&mut doubt);
                self.cast_vote(node);
                self.suspect(now, node, doubt, "does not answer");
            }
            Opinion::Suspected(doubt) => {
                evidence(doubt);
                // A member that is only remembered is voted against when its full grace has passed, or a
                // cluster that starts together would condemn its slower half.
                if doubt.cause == Cause::Votes {
                    self.cast_vote(node);
                }
            }
            Opinion::Condemned | Opinion::Departed => {}
        }
    }

    fn handle_answer(&mut self, now: Now, node: NodeId, said: (Generation, Incarnation)) {
        self.votes.touch(node);
        let (Some(member), Some(known)) = (self.view.get_mut(&node), self.known.get_mut(&node)) else { return };
        let (generation, incarnation) = said;
        if generation < member.facts.generation {
            return;
        }
        if generation > member.facts.generation {
            // It has started anew; the facts of that start are on their way. Until then there is nothing
            // against it.
            if known.rival.as_ref().is_some_and(|rival| rival.facts.generation <= generation) {
                self.accept_rival(now, node);
            } else if let Opinion::Suspected(doubt) = &mut known.opinion {
                doubt.restart(now.moment);
                self.withdraw_vote(node);
            }
            return;
        }
        known.answered = true;
        if incarnation > member.facts.incarnation {
            member.facts.incarnation = incarnation;
            known.ahead_of_gossip = Some(now.moment);
            self.revive(now, node, "answered and refuted");
            return;
        }
        if incarnation < member.facts.incarnation {
            // Said before it refuted; what it said then has been heard.
            return;
        }
        match &mut known.opinion {
            Opinion::Trusted | Opinion::Departed => {}
            Opinion::Suspected(doubt) => {
                doubt.silent = false;
                doubt.refused_since = None;
                // From here on it is like any other member: without votes there is nothing against it.
                doubt.cause = Cause::Votes;
                self.withdraw_vote(node);
                // If others still vote, their suspect is told and asked until it refutes or falls silent.
                self.detector.look(now.moment, node, self.timing.probe_interval, false);
            }
            // If others still vote against it, judging makes it a suspect again, and it will be told.
            Opinion::Condemned => self.revive(now, node, "answers again"),
        }
    }

    /// The start that was known does not answer, so a later one at another address has replaced it.
    pub(super) fn accept_rival(&mut self, now: Now, node: NodeId) -> bool {
        let Some(Rival { facts, .. }) = self.known.get_mut(&node).and_then(|known| known.rival.take()) else {
            return false;
        };
        self.hear_votes(&facts);
        self.replace(now, facts);
        true
    }

    /// Who votes against `node`: live members, against what is known of it now.
    fn voters(&self, node: NodeId) -> BTreeSet<NodeId> {
        let Some(suspect) = self.view.get(&node) else { return BTreeSet::new() };
        let accused = (suspect.facts.generation, suspect.facts.incarnation);
        let is_live = |voter: &NodeId| self.view.get(voter).is_some_and(Member::is_live);
        self.votes.against(node, accused).filter(is_live).collect()
    }

    /// Brings every opinion in question in line with the votes and the time. Says whether anything changed.
    fn judge_all(&mut self, now: Now) -> bool {
        let possible = self.possible_confirmations();
        let mut nodes = self.votes.take_unsettled();
        if now.moment >= self.calm_at {
            let is_due = |node: &NodeId| self.verdict_at(*node, possible).is_some_and(|at| at <= now.moment);
            nodes.extend(self.doubted.iter().copied().filter(is_due));
        }
        let mut changed = false;
        for node in nodes {
            let voters = self.voters(node);
            changed |= self.judge(now, node, voters, possible);
        }
        changed
    }

    /// When the grace period of a suspect runs out that this node has found silent too.
    pub(super) fn verdict_at(&self, node: NodeId, possible: usize) -> Option<Moment> {
        match &self.known.get(&node)?.opinion {
            Opinion::Suspected(doubt) if self.has_evidence(doubt) => Some(self.grace_ends(doubt, possible)),
            Opinion::Suspected(_) | Opinion::Trusted | Opinion::Condemned | Opinion::Departed => None,
        }
    }

    /// A node that hears nobody waits longer; not forever, since it may be the last one. And one that distrusts its
    /// ears, and is confirmed by few, lets its grace period last as much longer as it stretches its other timeouts
    /// (Lifeguard, section IV-A, stretches only those).
    pub(super) fn grace_ends(&self, doubt: &Suspicion, possible: usize) -> Moment {
        let until = doubt.until(&self.timing, possible);
        let could_confirm = possible.min(CONFIRMATIONS);
        if self.is_deaf {
            until.max(doubt.since + self.timing.suspicion_max * GRACES_IF_DEAF)
        } else if doubt.refused_since.is_none() && could_confirm >= 2 && doubt.voters.len() <= could_confirm {
            doubt.since + until.since(doubt.since) * self.detector.multiplier().min(MOST_STRETCHED)
        } else {
            until
        }
    }

    fn has_evidence(&self, doubt: &Suspicion) -> bool {
        doubt.silent || !self.rules.own_probe
    }

    /// One opinion. This is where a suspicion is adopted, dropped or confirmed.
    fn judge(&mut self, now: Now, node: NodeId, voters: BTreeSet<NodeId>, possible: usize) -> bool {
        let is_calm = now.moment >= self.calm_at;
        let is_due = is_calm && self.verdict_at(node, possible).is_some_and(|at| at <= now.moment);
        let Some(known) = self.known.get_mut(&node) else { return false };
        match &mut known.opinion {
            Opinion::Trusted if voters.is_empty() => false,
            // SWIM's suspect message, section 4.2: doubt too, and find out.
            Opinion::Trusted => {
                let mut doubt = Suspicion::new(Cause::Votes, now.moment);
                doubt.voters = voters;
                self.suspect(now, node, doubt, "suspected by others");
                self.detector.look(now.moment, node, Duration::ZERO, true);
                true
            }
            Opinion::Suspected(doubt) => {
                let told_before = !doubt.voters.is_empty();
                doubt.voters = voters;
                if doubt.voters.is_empty() && doubt.cause == Cause::Votes {
                    self.set_opinion(now, node, Opinion::Trusted, "nobody suspects it any longer");
                    true
                } else if is_due {
                    let reason = doubt.explain();
                    self.counters.downs += 1;
                    self.cast_vote(node);
                    self.set_opinion(now, node, Opinion::Condemned, &reason);
                    true
                } else {
                    if told_before == doubt.voters.is_empty() {
                        self.retarget(node);
                    }
                    false
                }
            }
            Opinion::Condemned | Opinion::Departed => false,
        }
    }

    /// How many could confirm a vote against a suspect, as far as it matters: the live members, but for the first voter and the
    /// suspect, which is still counted as live itself.
    pub(super) fn possible_confirmations(&self) -> usize {
        if !self.rules.lifeguard {
            // SWIM's suspicion lasts as long as it lasts, however many share it.
            return 0;
        }
        self.view.values().filter(|member| member.is_live()).take(CONFIRMATIONS + 2).count().saturating_sub(2)
    }

    fn suspect(&mut self, now: Now, node: NodeId, doubt: Suspicion, reason: &str) {
        self.counters.suspicions += 1;
        self.set_opinion(now, node, Opinion::Suspected(doubt), reason);
    }

    /// Whoever makes itself heard although it is thought to be silent is asked again, now and then.
    pub(super) fn look_at_doubtful(&mut self, now: Now, node: NodeId) -> bool {
        let doubtful = self.known.get(&node).is_some_and(|known| match known.opinion {
            Opinion::Suspected(_) | Opinion::Condemned => true,
            Opinion::Trusted | Opinion::Departed => false,
        });
        if doubtful {
            self.detector.look(now.moment, node, self.timing.probe_interval, false);
        }
        doubtful
    }

    fn cast_vote(&mut self, node: NodeId) {
        let Some(member) = self.view.get(&node) else { return };
        let accused = (member.facts.generation, member.facts.incarnation);
        if self.ballot.get(&node) != Some(&accused) && self.voters(node).len() < ENOUGH_VOTES {
            let before: Ballot = self.ballot.insert(node, accused).map(|before| (node, before)).into_iter().collect();
            self.votes.change(self.me, &before, &Ballot::from([(node, accused)]));
            self.counters.votes += 1;
            self.tell_votes(true);
            self.retarget(node);
        }
    }

    pub(super) fn withdraw_vote(&mut self, node: NodeId) {
        if let Some(before) = self.ballot.remove(&node) {
            self.votes.change(self.me, &Ballot::from([(node, before)]), &Ballot::new());
            self.tell_votes(false);
        }
    }

    /// Gossips this node's votes; of very many, only those that can do most. Everybody leaves out the same ones, the
    /// higher ids, so that the votes that are told still add up. A verdict that has fallen needs its vote less than one
    /// that has not, so the others' turn comes as verdicts fall.
    fn tell_votes(&mut self, urgent: bool) {
        let is_open = |node: &NodeId| {
            self.known.get(node).is_some_and(|known| matches!(known.opinion, Opinion::Trusted | Opinion::Suspected(_)))
        };
        let told: Ballot = if self.ballot.len() <= MOST_VOTES_TOLD {
            self.ballot.clone()
        } else {
            let (open, closed): (Vec<_>, Vec<_>) = self.ballot.iter().partition(|(node, _)| is_open(node));
            open.into_iter().chain(closed).take(MOST_VOTES_TOLD).map(|(node, accused)| (*node, *accused)).collect()
        };
        if self.me().suspicions != told {
            self.own_mut().suspicions = told;
            self.gossip_own(urgent);
        }
    }

    pub(super) fn set_opinion(&mut self, now: Now, node: NodeId, opinion: Opinion, reason: &str) {
        let (Some(member), Some(known)) = (self.view.get_mut(&node), self.known.get_mut(&node)) else { return };
        let was = member.state;
        let was_live = member.is_live();
        member.state = opinion.state();
        member.since = now.moment;
        known.opinion = opinion;
        self.epoch += 1;
        self.votes.touch(node);
        if was_live != member.is_live() {
            self.votes.touch_all(&member.facts.suspicions);
        }
        if self.ballot.len() > MOST_VOTES_TOLD {
            self.tell_votes(true);
        }
        if !self.view.get(&node).is_some_and(Member::is_live) {
            // The start that was known is gone, so nothing keeps a later one from taking its place.
            if self.accept_rival(now, node) {
                return;
            }
        }
        self.retarget(node);
        self.tell_change(now, node, Some(was), reason);
    }

    /// Tells the detector whom it watches, and what to tell them.
    pub(super) fn retarget(&mut self, node: NodeId) {
        let (Some(member), Some(known)) = (self.view.get(&node), self.known.get(&node)) else { return };
        if matches!(known.opinion, Opinion::Suspected(_)) {
            self.doubted.insert(node);
        } else {
            self.doubted.remove(&node);
        }
        let accused = (member.facts.generation, member.facts.incarnation);
        let (standing, suspected) = match &known.opinion {
            Opinion::Trusted => (Standing::Trusted, None),
            Opinion::Suspected(doubt) => {
                let voted = !doubt.voters.is_empty() || self.ballot.contains_key(&node);
                (Standing::Doubted, (voted && self.rules.lifeguard).then_some(accused))
            }
            Opinion::Condemned => (Standing::Lost, Some(accused)),
            Opinion::Departed => {
                self.detector.remove_target(node);
                return;
            }
        };
        let (addr, generation) = (member.facts.cluster_addr, member.facts.generation);
        self.detector.set_target(node, Target { addr, generation, standing, suspected });
    }
}
