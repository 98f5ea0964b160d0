//! What the membership says, and what this node says of itself to the members.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use crate::model::id::NodeId;
use crate::model::member::{Facts, Load, MemberState, PartitionSet, Status};
use crate::model::request::{Code, EventKind, Refusal};
use crate::model::spec::Driver;
use crate::model::time::{Moment, Now};
use crate::model::wire::{Message, Probe};

use super::super::effect::Effect;
use super::super::membership::{CannotForget, MembershipOutput};
use super::super::sabotage::Bug;
use super::Peer;

/// How far apart, at the least, two savings of what others say they have come to hold are; what this node gave them, or they gave
/// it, is saved with its next gossip. Raising it spares commits where partitions get their first records, and lets a node that is started anew
/// know less of one that is down.
const REMEMBER_HELD_EVERY: Duration = Duration::from_secs(5);
/// By how much the processors' use must move before others are told.
const CPU_STEP_PERMILLE: u16 = 100;
/// By what part of itself the free memory must move.
const MEMORY_STEPS: u64 = 16;

impl Peer {
    /// Gossip brought newer facts of other nodes.
    pub fn handle_facts(&mut self, now: Now, facts: Vec<Facts>) {
        self.membership.handle_facts(now, facts);
    }

    /// A failure detector's packet came.
    pub fn handle_probe(&mut self, now: Now, from: SocketAddr, probe: Probe, by_link: bool) {
        self.membership.handle_probe(now, from, probe, by_link);
    }

    /// The machine of `node` refused a connection: nothing listens there.
    pub fn handle_refused(&mut self, now: Now, node: NodeId) {
        self.membership.handle_refused(now, node);
    }

    /// A connection with `node` was opened.
    pub fn handle_link_up(&mut self, now: Now, node: NodeId) {
        self.membership.handle_link_up(now, node);
    }

    /// The last connection with `node` was lost, or none came about.
    pub fn handle_link_down(&mut self, now: Now, node: NodeId) {
        self.membership.handle_link_down(now, node);
    }

    /// How busy the machine is.
    pub fn handle_machine_load(&mut self, cpu_permille: u16, memory_available_bytes: u64) {
        self.membership.update_own(|facts| {
            // Every change is told to everybody, so small ones are kept to oneself.
            if facts.load.cpu_permille.abs_diff(cpu_permille) >= CPU_STEP_PERMILLE {
                facts.load.cpu_permille = cpu_permille;
            }
            let known = facts.load.memory_available_bytes;
            if known.abs_diff(memory_available_bytes) >= known / MEMORY_STEPS {
                facts.load.memory_available_bytes = memory_available_bytes;
            }
        });
    }

    /// Whether this node can run what needs `driver`, from now on.
    pub fn handle_driver(&mut self, driver: Driver, is_there: bool) {
        if self.membership.me().drivers.contains(&driver) == is_there {
            return;
        }
        self.membership.update_own(|facts| {
            if is_there {
                facts.drivers.insert(driver);
            } else {
                facts.drivers.remove(&driver);
            }
        });
        // What waits here may have waited for that. What waits elsewhere comes when this node asks for work.
        self.must_schedule = true;
    }

    /// Forgets a member that is down, or has left, before its time: somebody knows that it will not come back.
    ///
    /// # Errors
    /// It lives, or nobody knows it.
    pub fn forget(&mut self, now: Now, node: NodeId) -> Result<(), Refusal> {
        self.membership.dismiss(now, node).map_err(|cannot| {
            let (code, hint) = match &cannot {
                CannotForget::Unknown(_) => (Code::NotFound, "`flockwork nodes` lists the members".to_owned()),
                CannotForget::Lives { name, state: MemberState::Suspect } => {
                    (Code::Conflict, format!("wait until the others know whether {name} is down; it takes seconds"))
                }
                CannotForget::Lives { name, .. } => {
                    let hint = format!("only a node that is down is forgotten: `flockwork drain {name}`, then stop it");
                    (Code::Conflict, hint)
                }
            };
            Refusal::new(code, cannot.to_string()).with_hint(hint)
        })?;
        // Whoever asked looks at other nodes next.
        self.gossip_urgently = true;
        Ok(())
    }

    /// A joining node serves as soon as it sees what the others see, or has looked for long enough.
    pub(super) fn try_to_join(&mut self, now: Now) {
        if !self.status().is_starting() || self.membership.conflict().is_some() {
            return;
        }
        let waited = now.moment.since(self.started);
        let timing = &self.config.timing;
        let others = || self.membership.view().values().filter(|member| member.facts.node != self.me.node);
        let mut serving =
            others().filter(|m| m.state == MemberState::Alive && m.facts.status == Status::Serving).peekable();
        let joined = if serving.peek().is_some() {
            serving.all(|member| member.facts.ring == self.placement.fingerprint())
        } else if others().any(|member| member.state == MemberState::Alive) {
            // All are new. Give those who start at the same time a moment to be seen.
            waited >= timing.gossip_interval * 3
        } else {
            !self.has_seeds && others().next().is_none()
        };
        if joined || waited >= timing.join_grace {
            self.membership.set_status(now, Status::Serving);
            self.gossip_urgently = true;
        }
    }

    pub(super) fn drain_membership(&mut self, now: Now) -> bool {
        let mut progress = false;
        while let Some(output) = self.membership.poll_output() {
            progress = true;
            match output {
                MembershipOutput::Probe { to, addr, probe, by_link } => {
                    self.outbox.send(Effect::Probe { to, addr, probe, by_link });
                }
                MembershipOutput::OwnFactsChanged { urgent } => self.gossip_urgently |= urgent,
                MembershipOutput::MemberChanged { node, was, reason } => {
                    if let Some(member) = self.membership.view().get(&node) {
                        let kind = EventKind::Member {
                            node,
                            name: member.facts.name.clone(),
                            state: member.state,
                            status: member.facts.status,
                            was,
                            reason,
                        };
                        if !member.is_live() {
                            self.handle_gone(node);
                        } else if was.is_none_or(|was| matches!(was, MemberState::Down | MemberState::Left)) {
                            self.blobs.handle_back(node);
                        }
                        self.tell(now, kind);
                    }
                    self.remember_members();
                }
                MembershipOutput::TellOfTheGone { to, memories } => self.send(to, Message::Remember { memories }),
                MembershipOutput::Call { addr } => self.outbox.send(Effect::Call { addr }),
                MembershipOutput::Forgotten { node, name } => {
                    self.handle_gone(node);
                    self.tell(now, EventKind::Forgotten { node, name });
                    self.remember_members();
                }
                MembershipOutput::LateTick { by } => {
                    // Nobody is taken for dead, and followed in what it decides, before it has been silent for a whole
                    // grace period; a busy machine is often late by less.
                    if by < self.config.timing.suspicion_min / 2 || self.sabotage.has(Bug::TrustViewAfterPause) {
                        continue;
                    }
                    // This process was paused: others may have decided in its place meanwhile.
                    self.ownership.clear();
                    self.comparison.start_over();
                    (self.placed_epoch, self.placed_standings, self.majority_since) = (None, None, None);
                }
            }
        }
        progress
    }

    /// Saves whom to look for after a restart, if that has changed. Verdicts do not matter then: everybody is asked. But
    /// whether one that is down by then has its places on the ring depends on what it last said that it does.
    fn remember_members(&mut self) {
        let members = self.members_to_remember();
        let where_they_are: Vec<_> =
            members.iter().map(|facts| (facts.node, facts.generation, facts.cluster_addr, facts.status)).collect();
        if self.remembered != where_they_are {
            self.remembered = where_they_are;
            self.save_members(members);
        }
    }

    /// Saves now and then what the others have come to hold: one that is down when this node is started again is not there
    /// to say it, and nothing that it may know of is to be sealed without it.
    fn remember_what_is_held(&mut self, now: Moment) {
        if now < self.remember_held_at {
            return;
        }
        self.remember_held_at = now + REMEMBER_HELD_EVERY;
        let members = self.members_to_remember();
        if held_by(&members) != self.remembered_held {
            self.save_members(members);
        }
    }

    /// What others have, but have not said yet, counts as held by them.
    fn members_to_remember(&self) -> Vec<Facts> {
        let mut members = self.membership.remembered();
        for facts in &mut members {
            for partition in self.unannounced.of(facts.node) {
                facts.held.insert(partition);
            }
        }
        members
    }

    fn save_members(&mut self, members: Vec<Facts>) {
        self.remembered_held = held_by(&members);
        self.outbox.save_members(members);
    }

    fn handle_gone(&mut self, node: NodeId) {
        self.replication.handle_gone(node);
        self.comparison.handle_gone(node);
        self.turns.handle_gone(node);
        self.dirty.extend(self.scheduler.handle_gone(node));
    }

    /// The partitions of which this node holds records, or may after a restart: what it has let go of is on a full disk for long.
    fn held_or_on_disk(&self) -> PartitionSet {
        let mut held = self.records.partitions_held().clone();
        self.outbox.unsaved().for_each(|job| held.insert(self.records.partition_of(job)));
        held
    }

    /// Gossips this node's facts when they changed and it is time, or at once if that is called for.
    pub(super) fn gossip(&mut self, now: Now) -> bool {
        let due =
            self.published.as_ref().is_none_or(|(at, _)| now.moment.since(*at) >= self.config.timing.gossip_interval);
        if !due && !self.gossip_urgently {
            return false;
        }
        let (load, held, ring) = (self.load(), self.held_or_on_disk(), self.placement.fingerprint());
        let (departed, dismissed) = (self.membership.departed(), self.membership.dismissed());
        self.membership.update_own(|facts| {
            facts.departed = departed;
            facts.dismissed = dismissed;
            facts.load = load;
            facts.held = held;
            facts.ring = ring;
        });
        let facts = self.membership.me().clone();
        let changed = self.published.as_ref().is_none_or(|(_, published)| *published != facts);
        let urgent = std::mem::take(&mut self.gossip_urgently);
        if due {
            self.ask_for_work();
            self.try_to_join(now);
            let behind = self.behind(now.moment);
            self.watch_convergence(now, &behind);
            self.watch_move(&behind);
            self.remember_what_is_held(now.moment);
            self.look_for_successors(now.moment);
        }
        self.published = Some((now.moment, facts.clone()));
        if changed {
            self.outbox.send(Effect::Gossip { facts: Box::new(facts), urgent });
        }
        // A join, or a request for work, is something to go on with.
        changed || due
    }

    /// What this node says of its load.
    pub(super) fn load(&self) -> Load {
        Load {
            used: self.room.used(),
            backlog: u32::try_from(self.scheduler.backlog()).unwrap_or(u32::MAX),
            ..self.membership.me().load
        }
    }
}

fn held_by(members: &[Facts]) -> BTreeMap<NodeId, PartitionSet> {
    members.iter().map(|facts| (facts.node, facts.held.clone())).collect()
}
