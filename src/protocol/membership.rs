//! Who belongs to the cluster, and who of them is alive: every node's own opinion, reached in such a way that
//! all nodes reach the same one.
//!
//! Nobody is asked to decide. A node that cannot reach a member by any way casts a *vote* against it, which
//! is nothing but an entry in the facts that it gossips about itself. Whoever sees a vote of a live member
//! doubts too: it starts a grace period of its own, tells the suspect so, and probes it. The suspect, told by
//! a ping or by gossip, *refutes* by raising its incarnation, which voids every vote against the one before.
//! If it does not, and the grace period runs out, it is down for every node whose own probe failed as well.
//! This is SWIM (Das, Gupta and Motivala, DSN 2002; section 4.2 for suspicion and incarnations) with
//! Lifeguard's repairs (Dadgar, Phillips and Currey, arXiv 1707.00788, section IV), where the suspect, confirm
//! and alive messages have become state that merges: a node that was out of touch when something was said
//! reads it later.
//!
//! What always holds:
//! - A verdict concerns one (generation, incarnation). A member that says something newer is alive.
//! - `Down` needs both a vote that stands and a whole failed probe of this node's own. One cut between two
//!   nodes condemns nobody, since others answer for either.
//! - A node that was paused condemns nobody for what it did not hear meanwhile: all graces begin again.
//! - A vote stands while its voter is live and neither the voter nor the suspect has said otherwise. The voter
//!   of a `Down` member keeps its vote until the member returns or is forgotten, so verdicts spread.
//! - `Left` is final for a generation, and so is being forgotten.
//! - Time alone makes nobody forgotten where a majority of the members is out of reach.
//!
//! What it does not know: how gossip travels, what placement makes of the view, and what time it is.

mod admission;
mod departures;
mod dismissal;
mod gone;
mod gossip;
mod judgement;
mod report;
mod suspicion;
mod votes;

#[cfg(any(test, feature = "simulation"))]
pub mod simulation;
#[cfg(any(test, feature = "simulation"))]
pub mod soak;
#[cfg(test)]
mod stories;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use crate::model::config::{Config, Timing};
use crate::model::id::{Generation, Incarnation, NodeId, Partition};
use crate::model::member::{
    ClusterSettings, Facts, Load, Member, MemberState, Memories, PartitionSet, Status, View, majority_in_reach,
};
use crate::model::time::{Moment, Now, Timestamp};
use crate::model::wire::{Probe, ProbeBody};

use super::failure_detector::FailureDetector;

use self::admission::{Outsider, Twin, gives_way, what_differs};
pub use self::dismissal::CannotForget;
use self::dismissal::Why;
pub use self::report::{MemberReport, MembershipReport, SuspicionReport, Verdict};
use self::suspicion::{Cause, Suspicion};
use self::votes::{Ballot, Votes};

/// A tick that comes later than this is late, however short the probe timeout. Together with the interval
/// between ticks it is shorter than any grace period, so a pause long enough for the others to condemn this
/// node is always noticed by this node.
const SHORTEST_LATENESS: Duration = Duration::from_millis(200);
/// A node that has heard nothing of anybody for so many probe intervals suspects its own ears.
const DEAF_AFTER: u32 = 3;
/// How many members must fall silent together to be more likely well than dead.
const MANY: usize = 4;
/// A later start elsewhere that nobody has spoken of for so long is gone.
const RIVAL_FADES: Duration = Duration::from_secs(60);
/// Bounds the changes kept for people.
const MOST_HISTORY: usize = 128;

/// What the membership wants done, or has to tell.
#[derive(Debug, Clone, PartialEq)]
pub enum MembershipOutput {
    /// Send a failure detector's packet. May be lost.
    Probe {
        /// To whom.
        to: NodeId,
        /// Where.
        addr: SocketAddr,
        /// What.
        probe: Probe,
        /// Over the peer connection instead of as a datagram. If its machine refuses the connection, report
        /// that by [`Membership::handle_refused`].
        by_link: bool,
    },
    /// [`Membership::me`] has changed and is to be gossiped.
    OwnFactsChanged {
        /// Do not wait for the next gossip interval.
        urgent: bool,
    },
    /// A member's state, generation or status has changed; the view shows it already.
    MemberChanged {
        /// Whose.
        node: NodeId,
        /// What it was before; none for one that was not known.
        was: Option<MemberState>,
        /// Why, for people.
        reason: String,
    },
    /// A member that had been gone for long is no longer in the view.
    Forgotten {
        /// Who.
        node: NodeId,
        /// Its name.
        name: String,
    },
    /// Exchange gossip with whoever listens there: a member has told this node something newer about itself than
    /// gossip has brought, so perhaps few others can reach it.
    Call {
        /// Where.
        addr: SocketAddr,
    },
    /// Tell a member whose ring differs from this node's what this one remembers of those that are gone.
    TellOfTheGone {
        /// Whom.
        to: NodeId,
        /// What.
        memories: Memories,
    },
    /// This process was paused or starved: whatever it believed about the others' silence is void.
    LateTick {
        /// By how much.
        by: Duration,
    },
}

/// Which of its rules a membership keeps: all of them, but for a laboratory that finds out what each is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// A node that hears itself accused raises its incarnation (SWIM, section 4.2).
    pub refutation: bool,
    /// Local health, graces that shrink with confirmations, telling the suspect first, and no verdict after a
    /// pause of one's own (Lifeguard, section IV).
    pub lifeguard: bool,
    /// A member is down only for those whose own probe failed; without it, the word of others is enough.
    pub own_probe: bool,
}

impl Default for Rules {
    fn default() -> Self {
        Self { refutation: true, lifeguard: true, own_probe: true }
    }
}

/// One node's knowledge of the members. See the top of this file.
#[derive(Debug)]
pub struct Membership {
    me: NodeId,
    settings: ClusterSettings,
    timing: Timing,
    view: View,
    epoch: u64,
    known: BTreeMap<NodeId, Acquaintance>,
    detector: FailureDetector,
    votes: Votes,
    /// This node's own votes; what it gossips of them may be fewer.
    ballot: Ballot,
    rules: Rules,
    forgotten: BTreeMap<NodeId, Tombstone>,
    /// Who was last told of the gone, and of whom last.
    told_last: NodeId,
    told_of: NodeId,
    outsiders: BTreeMap<NodeId, Outsider>,
    /// An older process with this node's id.
    twin: Option<Twin>,
    /// A newer one, which should give way.
    newer_self: Option<(SocketAddr, Moment)>,
    /// When the next tick is due, by which lateness is measured.
    next_tick: Moment,
    /// When the last one was.
    latest_tick: Moment,
    /// No verdicts before.
    calm_at: Moment,
    /// When anything was last heard of anybody.
    heard_at: Moment,
    /// Nobody is heard any longer, although not all others are in doubt: what is silent is this node's ears.
    is_deaf: bool,
    /// The members in doubt.
    doubted: BTreeSet<NodeId>,
    /// Own facts have changed; urgently?
    own_changed: Option<bool>,
    outputs: VecDeque<MembershipOutput>,
    history: VecDeque<Verdict>,
    counters: Counters,
}

/// What this node makes of another member, beyond what the view shows.
#[derive(Debug)]
struct Acquaintance {
    opinion: Opinion,
    /// It has answered this start of this node, in its present generation.
    answered: bool,
    /// Since when answers have told of a later incarnation than gossip has.
    ahead_of_gossip: Option<Moment>,
    rival: Option<Rival>,
}

/// A later start at another address, while the present one still answers.
#[derive(Debug)]
struct Rival {
    facts: Facts,
    /// When it was last spoken of.
    heard: Moment,
}

#[derive(Debug)]
enum Opinion {
    Trusted,
    Suspected(Suspicion),
    Condemned,
    Departed,
}

impl Opinion {
    fn state(&self) -> MemberState {
        match self {
            Self::Trusted => MemberState::Alive,
            Self::Suspected(_) => MemberState::Suspect,
            Self::Condemned => MemberState::Down,
            Self::Departed => MemberState::Left,
        }
    }
}

/// What was known of a forgotten member: gossip that says no more than this does not bring it back.
#[derive(Debug, Clone)]
struct Tombstone {
    known: (Generation, Incarnation),
    /// The partitions that it held records of, by its own word.
    held: PartitionSet,
    /// When it was forgotten.
    since: Moment,
    until: Moment,
    why: Why,
    /// When it was last asked to say something newer.
    asked_at: Option<Moment>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Counters {
    suspicions: u64,
    votes: u64,
    refutations: u64,
    downs: u64,
    false_downs: u64,
    late_ticks: u64,
    stray_packets: u64,
    forgotten: u64,
}

impl Membership {
    /// A node that has just started, as `me`, and remembers these members from earlier starts.
    ///
    /// The remembered are suspects with a full grace period, and are probed at once: that this node hears
    /// nobody yet says nothing about them.
    pub fn new(now: Now, config: &Config, mut me: Facts, remembered: Vec<Facts>, seed: u64) -> Self {
        me.suspicions.clear();
        let timing = config.timing.clone();
        let detector = FailureDetector::new(now.moment, &config.cluster.name, me.node, me.generation, &timing, seed);
        let own = Member { facts: me.clone(), state: MemberState::Alive, since: now.moment };
        let mut this = Self {
            me: me.node,
            settings: config.cluster.clone(),
            view: View::from([(me.node, own)]),
            epoch: 0,
            known: BTreeMap::new(),
            detector,
            votes: Votes::default(),
            ballot: Ballot::new(),
            rules: Rules::default(),
            forgotten: BTreeMap::new(),
            told_last: NodeId(0),
            told_of: NodeId(0),
            outsiders: BTreeMap::new(),
            twin: None,
            newer_self: None,
            next_tick: now.moment + timing.probe_interval,
            latest_tick: now.moment,
            calm_at: now.moment,
            heard_at: now.moment,
            is_deaf: false,
            doubted: BTreeSet::new(),
            own_changed: None,
            outputs: VecDeque::new(),
            history: VecDeque::new(),
            counters: Counters::default(),
            timing,
        };
        for mut facts in remembered {
            let fits = facts.node != this.me && what_differs(&this.settings, &facts).is_none();
            if fits && facts.status == Status::Left && !this.view.contains_key(&facts.node) {
                this.admit(now, facts, Opinion::Departed, "had left before this start");
            } else if fits && !this.view.contains_key(&facts.node) {
                // What it thought of others then is no vote now.
                facts.suspicions.clear();
                let node = facts.node;
                let doubt = Opinion::Suspected(Suspicion::new(Cause::Remembered, now.moment));
                this.admit(now, facts, doubt, "known from an earlier start");
                this.detector.look(now.moment, node, Duration::ZERO, false);
            }
        }
        this.settle(now);
        this
    }

    /// Breaks or restores rules. For laboratories and for the tests of the checkers.
    #[cfg(any(test, feature = "simulation"))]
    pub fn set_rules(&mut self, rules: Rules) {
        self.rules = rules;
        self.detector.set_local_health(rules.lifeguard);
    }

    /// Takes in what others gossip about themselves: everything that is new since the last call, all
    /// generations of a node included. Which of them counts is decided here.
    pub fn handle_facts(&mut self, now: Now, facts: Vec<Facts>) {
        self.notice_pause(now);
        self.hear(now);
        for facts in facts {
            if facts.node == self.me {
                self.handle_own_id(now, facts);
            } else if let Some(differs) = what_differs(&self.settings, &facts) {
                self.handle_outsider(now, &facts, differs);
            } else {
                self.handle_one(now, facts);
            }
        }
        self.settle(now);
    }

    /// Takes in a failure detector's packet.
    pub fn handle_probe(&mut self, now: Now, from_addr: SocketAddr, probe: Probe, by_link: bool) {
        self.notice_pause(now);
        if probe.cluster != self.settings.name || probe.to != self.me {
            self.counters.stray_packets += 1;
            return;
        }
        if probe.from == self.me {
            self.handle_probe_of_twin(now, from_addr, &probe, by_link);
            return;
        }
        self.hear(now);
        if let ProbeBody::Ping { seq, suspected } = &probe.body {
            if let Some(accused) = suspected {
                self.refute(*accused);
            }
            self.acknowledge(probe.from, from_addr, *seq, by_link);
            self.look_at_doubtful(now, probe.from);
        } else {
            self.detector.handle_probe(now.moment, from_addr, probe, by_link);
        }
        self.settle(now);
    }

    /// The machine of `node` refused a connection: nothing listens there.
    pub fn handle_refused(&mut self, now: Now, node: NodeId) {
        self.notice_pause(now);
        self.hear(now);
        self.detector.handle_refused(now.moment, node);
        self.settle(now);
    }

    /// A connection to `node` with a valid Hello exists. Its process said something not long ago, but may be
    /// frozen since: what a process has written still arrives afterwards. So this is a reason to ask it again
    /// at once, and no verdict.
    pub fn handle_link_up(&mut self, now: Now, node: NodeId) {
        self.handle_heard(now, node);
    }

    /// The connection to `node` broke: a reason to look at once. A process that was killed is noticed by this.
    pub fn handle_link_down(&mut self, now: Now, node: NodeId) {
        self.notice_pause(now);
        if self.known.get(&node).is_some_and(|known| matches!(known.opinion, Opinion::Trusted)) {
            self.detector.look(now.moment, node, self.timing.probe_timeout, true);
        }
        self.settle(now);
    }

    /// Any message came from `node` over its connection just now. It saves one probe that would otherwise fail,
    /// not two in a row, and answers no suspicion, for the reason given at [`Membership::handle_link_up`].
    pub fn handle_heard(&mut self, now: Now, node: NodeId) {
        self.notice_pause(now);
        self.hear(now);
        self.detector.handle_heard(now.moment, node);
        if self.look_at_doubtful(now, node) {
            self.settle(now);
        }
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Now) {
        self.notice_pause(now);
        self.detector.handle_timeout(now.moment);
        if now.moment >= self.next_tick {
            self.next_tick = now.moment + self.timing.probe_interval;
            self.latest_tick = now.moment;
            self.heed_departures(now);
            self.heed_dismissals(now);
            self.forget(now);
            self.tell_of_the_gone(now);
            self.ask_twin(now);
            self.fetch_refutations(now);
            self.notice_deafness(now);
        }
        self.settle(now);
    }

    /// When [`Membership::handle_timeout`] is due. Always within a probe interval, since lateness is measured
    /// by it.
    pub fn poll_timeout(&self) -> Option<Moment> {
        let possible = self.possible_confirmations();
        let verdicts = self.doubted.iter().filter_map(|node| self.verdict_at(*node, possible));
        Some(
            verdicts.map(|at| at.max(self.calm_at)).fold(self.next_tick.min(self.detector.poll_timeout()), Moment::min),
        )
    }

    /// The next thing to do or to tell.
    pub fn poll_output(&mut self) -> Option<MembershipOutput> {
        let own_change = |urgent| MembershipOutput::OwnFactsChanged { urgent };
        self.outputs.pop_front().or_else(|| self.own_changed.take().map(own_change))
    }

    /// Says what this node is doing from now on.
    pub fn set_status(&mut self, now: Now, status: Status) {
        let own = self.own_mut();
        if own.status != status {
            own.status = status;
            own.revision += 1;
            self.epoch += 1;
            self.gossip_own(true);
            let alive = Some(MemberState::Alive);
            self.write_history(now, self.me, alive, alive, &format!("says that it is {}", status_name(status)));
        }
    }

    /// Changes what this node says about itself, apart from what is the membership's own: who it is, in which
    /// start and incarnation, its status and its votes.
    pub fn update_own(&mut self, change: impl FnOnce(&mut Facts)) {
        let before = self.me().clone();
        let mut after = before.clone();
        change(&mut after);
        after.node = before.node;
        after.generation = before.generation;
        after.incarnation = before.incarnation;
        after.status = before.status;
        after.revision = before.revision + u64::from(after.weight != before.weight);
        after.suspicions.clone_from(&before.suspicions);
        if after == before {
            return;
        }
        if after.weight != before.weight {
            self.epoch += 1;
        }
        *self.own_mut() = after;
        self.gossip_own(false);
    }

    /// A member told its load in an answer, sooner than gossip would.
    pub fn update_load(&mut self, node: NodeId, load: Load) {
        if let Some(member) = self.view.get_mut(&node).filter(|_| node != self.me) {
            member.facts.load = load;
        }
    }

    /// All members that are known and not forgotten, this node included, which is always alive.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// Counts the changes of everything that placement depends on: who is a member, in which state, generation
    /// and status, with what weight.
    pub fn view_epoch(&self) -> u64 {
        self.epoch
    }

    /// What this node says about itself.
    pub fn me(&self) -> &Facts {
        &self.view.get(&self.me).expect("a node is always in its own view").facts
    }

    /// Why this node must not serve, if it must not: it is not the only one with its id or name, or the cluster
    /// that it is joining has other settings. The newer of two nodes gives way; the other only complains.
    pub fn conflict(&self) -> Option<String> {
        let me = self.me();
        let mine = (me.generation, self.me);
        if let Some(twin) = self.twin.as_ref().filter(|twin| twin.is_running()) {
            let (addr, node) = (twin.facts.cluster_addr, self.me);
            return Some(format!(
                "another process already runs as node {node}, at {addr}: was the data directory copied? \
                 Every node needs its own"
            ));
        }
        if let Some(other) = self.namesakes().find(|other| gives_way(mine, (other.generation, other.node))) {
            return Some(format!(
                "the name {} is taken by node {} at {}: give this node another name",
                me.name, other.node, other.cluster_addr
            ));
        }
        if !me.status.is_starting() {
            return None;
        }
        let stands = |(node, outsider): (&NodeId, &Outsider)| match outsider.status {
            Status::Serving | Status::Draining | Status::ReadOnly => Some(outsider.differs.clone()),
            Status::Joining | Status::Returning => {
                gives_way(mine, (outsider.generation, *node)).then(|| outsider.differs.clone())
            }
            Status::Left => None,
        };
        self.outsiders.iter().find_map(stands)
    }

    /// What else is wrong and worth a person's look, one sentence each.
    pub fn complaints(&self) -> Vec<String> {
        let mut complaints: Vec<String> = self.outsiders.values().map(|outsider| outsider.differs.clone()).collect();
        for other in self.namesakes() {
            let (name, node, addr) = (&other.name, other.node, other.cluster_addr);
            complaints.push(format!("node {node} at {addr} has this node's name, {name}"));
        }
        let down = self.view.values().filter(|member| member.state == MemberState::Down);
        let overdue = down.filter(|member| self.latest_tick.since(member.since) >= self.settings.forget_after);
        let overdue: Vec<&str> = overdue.map(|member| member.facts.name.as_str()).collect();
        if !overdue.is_empty() {
            complaints.push(format!(
                "down for longer than forget_after, and not forgotten, since no majority of the members is in reach: {}; \
                 `flockwork forget` does it by hand where they are gone for good",
                overdue.join(", ")
            ));
        }
        if let Some((addr, _)) = self.newer_self {
            complaints.push(format!("a newer process at {addr} runs as this node, {}", self.me));
        }
        for (node, known) in &self.known {
            if let (Some(rival), Some(member)) = (&known.rival, self.view.get(node)) {
                let (here, there) = (member.facts.cluster_addr, rival.facts.cluster_addr);
                complaints.push(format!("two processes run as node {node}: at {here} and, newer, at {there}"));
            }
        }
        complaints
    }

    /// What has been counted since the start.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        let (own, detector) = (self.counters, self.detector.counters());
        vec![
            ("probes", detector.probes),
            ("probes_answered", detector.answered),
            ("probes_saved_by_others", detector.saved_by_others),
            ("probes_saved_by_link", detector.saved_by_link),
            ("probes_saved_by_hearing", detector.saved_by_hearing),
            ("probes_silent", detector.silent),
            ("probes_relayed", detector.relayed),
            ("missed_nacks", detector.missed_nacks),
            ("suspicions", own.suspicions),
            ("votes", own.votes),
            ("refutations", own.refutations),
            ("downs", own.downs),
            ("false_downs", own.false_downs),
            ("late_ticks", own.late_ticks),
            ("stray_probe_packets", own.stray_packets),
            ("forgotten_members", own.forgotten),
        ]
    }

    /// How far the node distrusts its own ears: 0 is healthy, 8 the worst (Lifeguard's local health).
    pub fn local_health(&self) -> u32 {
        self.detector.health()
    }

    /// The members to keep on disk for the next start: all that have not been forgotten. Those that have left are
    /// kept for others, who may have been away when they did.
    pub fn remembered(&self) -> Vec<Facts> {
        let kept = self.view.values().filter(|member| member.facts.node != self.me);
        kept.map(|member| member.facts.clone()).collect()
    }

    /// Whether a member that held records of `partition` has been forgotten since `moment`, as far as this node
    /// remembers. It may come back with any of them as it was then.
    pub fn has_forgotten_a_holder(&self, partition: Partition, moment: Moment) -> bool {
        self.forgotten.values().any(|tombstone| tombstone.since >= moment && tombstone.held.contains(partition))
    }

    /// Everything at once, for people.
    pub fn report(&self, now: Now) -> MembershipReport {
        MembershipReport {
            local_health: self.detector.health(),
            withheld_until: (self.calm_at > now.moment).then(|| wall_time(now, self.calm_at)),
            conflict: self.conflict(),
            complaints: self.complaints(),
            members: self.view.values().map(|member| self.report_member(now, member)).collect(),
            history: self.history.iter().cloned().collect(),
        }
    }

    fn report_member(&self, now: Now, member: &Member) -> MemberReport {
        let node = member.facts.node;
        let suspicion = match self.known.get(&node).map(|known| &known.opinion) {
            Some(Opinion::Suspected(doubt)) => Some(SuspicionReport {
                since: wall_time(now, doubt.since),
                until: wall_time(now, self.grace_ends(doubt, self.possible_confirmations())),
                voters: doubt.voters.clone(),
                silent: doubt.silent,
                refused: doubt.refused_since.is_some(),
                remembered: doubt.cause == Cause::Remembered,
            }),
            Some(Opinion::Trusted | Opinion::Condemned | Opinion::Departed) | None => None,
        };
        MemberReport {
            node,
            name: member.facts.name.clone(),
            generation: member.facts.generation,
            incarnation: member.facts.incarnation,
            status: member.facts.status,
            state: member.state,
            since: wall_time(now, member.since),
            round_trip_ms: self.detector.round_trip(node).map(|trip| trip.as_secs_f64() * 1_000.0),
            suspicion,
        }
    }

    // Time and the rest.

    /// A tick that comes late means that this process did not run (a pause, a debugger, a starved machine): what
    /// it did not hear meanwhile is no evidence (Lifeguard, section IV-A).
    pub fn notice_pause(&mut self, now: Now) {
        let late_by = now.moment.since(self.next_tick);
        if late_by <= self.timing.probe_timeout.max(SHORTEST_LATENESS) || !self.rules.lifeguard {
            return;
        }
        self.counters.late_ticks += 1;
        self.next_tick = now.moment + self.timing.probe_interval;
        self.detector.handle_pause(late_by);
        self.calm_at = now.moment + self.timing.probe_interval * self.detector.multiplier();
        self.doubt_anew(now, |_| true);
        self.outputs.push_back(MembershipOutput::LateTick { by: late_by });
    }

    /// The graces of those whom it concerns begin again, and all who are in doubt are asked again.
    fn doubt_anew(&mut self, now: Now, concerns: impl Fn(&Suspicion) -> bool) {
        for node in self.doubted.clone() {
            if let Some(Opinion::Suspected(doubt)) = self.known.get_mut(&node).map(|known| &mut known.opinion)
                && concerns(doubt)
            {
                doubt.restart(now.moment);
            }
            self.detector.look(now.moment, node, Duration::ZERO, false);
        }
    }

    /// That so many fell silent together is less likely than that this node is deaf. (Those who never answered this
    /// start of it may have been gone for long.)
    fn has_lost_many(&self) -> bool {
        let fell_silent = |node: &&NodeId| {
            let opinion = self.known.get(node).map(|known| &known.opinion);
            matches!(opinion, Some(Opinion::Suspected(doubt)) if doubt.cause == Cause::Votes)
        };
        self.doubted.iter().filter(fell_silent).count() >= MANY
    }

    /// Something came from somebody. After deafness it is as after a pause: what was not heard meanwhile, such as a
    /// refutation, is no evidence. Nobody refutes where a machine refuses; and were those graces to begin again as well, the
    /// last one of all, which hears nothing but refusals, would doubt the dead for ever.
    fn hear(&mut self, now: Now) {
        self.heard_at = now.moment;
        if std::mem::take(&mut self.is_deaf) {
            self.calm_at = now.moment + self.timing.probe_interval;
            self.doubt_anew(now, |doubt| doubt.refused_since.is_none());
        }
    }

    /// A node in doubt of others that hears nothing of anybody asks some that it trusts, who would answer at once. If
    /// they do not, it is deaf, and the time of its deafness does not count against those in doubt.
    fn notice_deafness(&mut self, now: Now) {
        let silence = now.moment.since(self.heard_at);
        if self.doubted.is_empty() || silence < self.timing.probe_interval || !self.rules.lifeguard {
            return;
        }
        let may_be_deaf = silence >= self.timing.probe_interval * DEAF_AFTER;
        if !may_be_deaf {
            self.detector.ask_trusted(now.moment);
        }
        self.is_deaf = may_be_deaf && (self.detector.trusts_anybody() || self.has_lost_many());
    }

    /// Forgets those that have been gone for too long. A member that is down counts towards the majority without which
    /// jobs may ask not to run, so it is forgotten only by those who are one: else the lesser side of a partition would
    /// come to take itself for all there is, and go on as if the other side had died. What has left counts nowhere.
    fn forget(&mut self, now: Now) {
        let after = self.settings.forget_after;
        let is_over = |member: &&Member| !member.is_live() && now.moment >= member.since + after;
        let has_majority = majority_in_reach(&self.view);
        let may_go = |member: &&Member| has_majority || member.state == MemberState::Left;
        let gone = self.view.values().filter(is_over).filter(may_go);
        let gone: Vec<NodeId> = gone.map(|member| member.facts.node).collect();
        for node in gone {
            self.forget_one(now, node, Why::Silence, "gone for too long");
        }
        for known in self.known.values_mut() {
            known.rival.take_if(|rival| now.moment.since(rival.heard) > RIVAL_FADES);
        }
        self.newer_self.take_if(|(_, heard)| now.moment.since(*heard) > RIVAL_FADES);
        self.forgotten.retain(|_, tombstone| tombstone.until > now.moment);
        self.outsiders.retain(|_, outsider| now.moment < outsider.seen + after);
    }

    fn forget_one(&mut self, now: Now, node: NodeId, why: Why, reason: &str) {
        let Some(member) = self.view.remove(&node) else { return };
        self.votes.change(node, &member.facts.suspicions, &BTreeMap::new());
        self.known.remove(&node);
        self.doubted.remove(&node);
        self.detector.remove_target(node);
        self.withdraw_vote(node);
        let known = (member.facts.generation, member.facts.incarnation);
        let until = now.moment + self.settings.forget_after;
        let held = member.facts.held;
        self.forgotten.insert(node, Tombstone { known, held, since: now.moment, until, why, asked_at: None });
        self.counters.forgotten += 1;
        self.epoch += 1;
        self.write_history(now, node, Some(member.state), None, reason);
        self.outputs.push_back(MembershipOutput::Forgotten { node, name: member.facts.name });
    }

    fn acknowledge(&mut self, to: NodeId, addr: SocketAddr, seq: u64, by_link: bool) {
        let (generation, incarnation) = (self.me().generation, self.me().incarnation);
        let probe = self.detector.packet(to, ProbeBody::Ack { seq, generation, incarnation });
        self.outputs.push_back(MembershipOutput::Probe { to, addr, probe, by_link });
    }

    fn own_mut(&mut self) -> &mut Facts {
        &mut self.view.get_mut(&self.me).expect("a node is always in its own view").facts
    }

    fn gossip_own(&mut self, urgent: bool) {
        self.own_changed = Some(urgent || self.own_changed.unwrap_or(false));
    }

    fn tell_change(&mut self, now: Now, node: NodeId, was: Option<MemberState>, reason: &str) {
        let is = self.view.get(&node).map(|member| member.state);
        self.write_history(now, node, was, is, reason);
        self.outputs.push_back(MembershipOutput::MemberChanged { node, was, reason: reason.to_owned() });
    }

    fn write_history(
        &mut self,
        now: Now,
        node: NodeId,
        was: Option<MemberState>,
        is: Option<MemberState>,
        reason: &str,
    ) {
        if self.history.len() == MOST_HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(Verdict { at: now.wall, node, was, is, reason: reason.to_owned() });
    }
}

/// `moment` as people would write it, by what both clocks show now.
fn wall_time(now: Now, moment: Moment) -> Timestamp {
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let ago = ms(now.moment.since(moment));
    Timestamp(now.wall.unix_ms().saturating_add(ms(moment.since(now.moment))).saturating_sub(ago))
}

fn status_name(status: Status) -> &'static str {
    match status {
        Status::Joining => "joining",
        Status::Returning => "returning",
        Status::Serving => "serving",
        Status::Draining => "draining",
        Status::ReadOnly => "read-only",
        Status::Left => "gone",
    }
}
