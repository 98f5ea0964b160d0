//! Who answers, and who does not: the probing half of SWIM.
//!
//! Picture a night watchman with a shuffled list. Every period he calls one name of it (Das, Gupta and
//! Motivala, "SWIM", DSN 2002, section 4.3: everybody is called once before anybody is called twice, which
//! bounds the time to detection). Who does not answer the call within its usual time is called over the peer
//! connection too, and k others are asked to call for him (section 3.1). A helper says so when it hears
//! nothing either: a *nack* (Lifeguard, arXiv 1707.00788, section IV-A). Helpers that stay silent altogether
//! tell the watchman that it may be he who is deaf, see `LocalHealth`.
//!
//! What comes out are packets to send and `Finding`s. This half knows no verdict, no vote and no gossip: who
//! is to be probed, where, and what it should be told about itself is a `Target`, set by the membership.
//!
//! What always holds: at most `MOST_RUNS` probes are under way, at most one of them per member; every probe
//! ends with one finding or is dropped because this process was paused; an answer counts only for the
//! ping it names, from the member that was pinged.

mod local_health;
mod round_trip;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::{IteratorRandom, SliceRandom};
use rand::{RngExt, SeedableRng};

use crate::model::config::Timing;
use crate::model::id::{Generation, Incarnation, NodeId};
use crate::model::time::Moment;
use crate::model::wire::{Probe, ProbeBody};

use self::local_health::LocalHealth;
use self::round_trip::RoundTrip;

/// How many others are asked to probe a member that did not answer (SWIM's k).
const HELPERS: usize = 3;
/// How many others a node that hears nobody asks at once.
const EARS: usize = 2;
/// Bounds the probes under way; more are put off until some have ended.
const MOST_RUNS: usize = 64;
/// Bounds the pings under way for others; more requests are ignored, which a requester takes as our deafness.
const MOST_RELAYS: usize = 256;
/// An answer later than this many probe intervals teaches nothing any more.
const LATE_ANSWERS: u32 = 10;
/// However slow a member was measured to be, it is not waited for longer than this many probe intervals.
const MOST_PATIENCE: u32 = 3;
/// One of the lost members is tried again after so many probe intervals.
const RETRY_EVERY: u32 = 5;

/// What the detector is to know of a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    /// Where it listens for peers.
    pub(super) addr: SocketAddr,
    /// In which start it is known.
    pub(super) generation: Generation,
    /// How far it is trusted.
    pub(super) standing: Standing,
    /// What it should be told first (Lifeguard's buddy system, section IV-C): that it is voted against.
    pub(super) suspected: Option<(Generation, Incarnation)>,
}

/// How far a member is trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// Probed in turn, and asked for help.
    Trusted,
    /// Probed in turn, not asked for help.
    Doubted,
    /// Tried again at a slow rate.
    Lost,
}

/// What came of a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Finding {
    /// The member answered in this start and incarnation.
    Answered { node: NodeId, generation: Generation, incarnation: Incarnation },
    /// A ping has gone unanswered for its usual time, and the member's machine refuses connections.
    Refused { node: NodeId, generation: Generation, since: Moment },
    /// Nothing came back by any way: not directly, not over the peer connection, not through others.
    Silent { node: NodeId, generation: Generation },
}

/// What the detector wants done, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum DetectorOutput {
    Send { to: NodeId, addr: SocketAddr, probe: Probe, by_link: bool },
    Found(Finding),
}

/// What has been counted since the start.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct DetectorCounters {
    pub(super) probes: u64,
    pub(super) answered: u64,
    pub(super) saved_by_others: u64,
    pub(super) saved_by_link: u64,
    pub(super) saved_by_hearing: u64,
    pub(super) silent: u64,
    pub(super) missed_nacks: u64,
    pub(super) relayed: u64,
}

#[derive(Debug)]
pub(super) struct FailureDetector {
    cluster: String,
    me: NodeId,
    generation: Generation,
    timing: Timing,
    rng: StdRng,
    health: LocalHealth,
    watched: BTreeMap<NodeId, Watched>,
    /// Whom to probe in the rest of this round, the next one last.
    turn: Vec<NodeId>,
    next_turn: Moment,
    next_retry: Moment,
    last_retried: Option<NodeId>,
    /// Whom to probe out of turn, and from when on.
    wanted: BTreeMap<NodeId, Wanted>,
    runs: BTreeMap<NodeId, Run>,
    /// Pings and ping-reqs that an answer may name, for as long as an answer teaches something.
    asked: BTreeMap<u64, Asked>,
    /// Pings for others, by our number for them.
    relays: BTreeMap<u64, Relay>,
    next_seq: u64,
    outputs: VecDeque<DetectorOutput>,
    counters: DetectorCounters,
}

/// A member under watch.
#[derive(Debug)]
struct Watched {
    target: Target,
    round_trip: RoundTrip,
    /// When anything last came from it over its connection.
    heard: Option<Moment>,
    /// Its last probe was saved only by what was heard. Not twice in a row: what a frozen process had
    /// written before still comes out of its socket buffers.
    saved_by_hearing: bool,
    last_probed: Option<Moment>,
    /// Who last passed on an answer of it. Asked again before others: where only few reach a member, one of them
    /// must be among the helpers, and chance alone seldom sees to that.
    heard_through: Option<NodeId>,
}

#[derive(Debug, Clone, Copy)]
struct Wanted {
    due: Moment,
    by_link: bool,
}

/// A probe under way.
#[derive(Debug)]
struct Run {
    addr: SocketAddr,
    generation: Generation,
    started: Moment,
    stage: Stage,
    by_link: bool,
    refused_since: Option<Moment>,
    refusal_told: bool,
    told: Option<(Generation, Incarnation)>,
}

#[derive(Debug)]
enum Stage {
    /// Pinged; the usual time is not over.
    Direct { until: Moment },
    /// Others were asked, and whether each has said that it hears nothing either.
    Others { until: Moment, seq: u64, nacked: BTreeMap<NodeId, bool> },
}

impl Stage {
    fn until(&self) -> Moment {
        match self {
            Self::Direct { until } | Self::Others { until, .. } => *until,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Datagram,
    Link,
    Others,
}

#[derive(Debug, Clone, Copy)]
struct Asked {
    node: NodeId,
    way: Way,
    at: Moment,
    /// The member was in doubt.
    in_doubt: bool,
}

/// A ping on behalf of another member.
#[derive(Debug)]
struct Relay {
    requester: NodeId,
    addr: SocketAddr,
    by_link: bool,
    seq: u64,
    target: NodeId,
    /// When to say that nothing was heard; `None` once said.
    nack_at: Option<Moment>,
    until: Moment,
}

impl FailureDetector {
    pub(super) fn new(
        now: Moment,
        cluster: &str,
        me: NodeId,
        generation: Generation,
        timing: &Timing,
        seed: u64,
    ) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        // Nodes that were started together should not probe together.
        let offset = timing.probe_interval.mul_f64(rng.random_range(0.0..1.0));
        Self {
            cluster: cluster.to_owned(),
            me,
            generation,
            timing: timing.clone(),
            health: LocalHealth::new(true),
            watched: BTreeMap::new(),
            turn: Vec::new(),
            next_turn: now + offset,
            next_retry: now + timing.probe_interval * RETRY_EVERY,
            last_retried: None,
            wanted: BTreeMap::new(),
            runs: BTreeMap::new(),
            asked: BTreeMap::new(),
            relays: BTreeMap::new(),
            // Numbers of different starts should not meet: an answer to an earlier start names another ping.
            next_seq: rng.random_range(1..u64::MAX / 2),
            rng,
            outputs: VecDeque::new(),
            counters: DetectorCounters::default(),
        }
    }

    /// Watches `node` as `target` says from now on.
    pub(super) fn set_target(&mut self, node: NodeId, target: Target) {
        if let Some(watched) = self.watched.get_mut(&node) {
            if watched.target.generation != target.generation || watched.target.addr != target.addr {
                watched.round_trip = RoundTrip::default();
                self.runs.remove(&node);
                self.asked.retain(|_, asked| asked.node != node);
            }
            if target.standing == Standing::Trusted && watched.target.standing != Standing::Trusted {
                self.wanted.remove(&node);
            }
            watched.target = target;
            return;
        }
        let fresh = Watched {
            target,
            round_trip: RoundTrip::default(),
            heard: None,
            saved_by_hearing: false,
            last_probed: None,
            heard_through: None,
        };
        self.watched.insert(node, fresh);
        // A newcomer's first probe comes at a random place of the round (SWIM, section 4.3).
        let place = self.rng.random_range(0..=self.turn.len());
        self.turn.insert(place, node);
    }

    /// Watches `node` no longer.
    pub(super) fn remove_target(&mut self, node: NodeId) {
        self.watched.remove(&node);
        self.wanted.remove(&node);
        self.runs.remove(&node);
        self.turn.retain(|other| *other != node);
        self.asked.retain(|_, asked| asked.node != node);
    }

    /// Probes `node` out of turn: now, or when `gap` has passed since its last probe began. With `by_link`, over
    /// the peer connection from the beginning, which finds out at once whether its machine refuses.
    pub(super) fn look(&mut self, now: Moment, node: NodeId, gap: Duration, by_link: bool) {
        let Some(watched) = self.watched.get(&node) else { return };
        if let Some(run) = self.runs.get(&node) {
            // What it is to be told, or the way to take, may be news to a probe under way.
            let untold = run.told < watched.target.suspected;
            let add_link = by_link && !run.by_link;
            if untold {
                self.ping(now, node, Way::Datagram);
            }
            if add_link {
                self.ping(now, node, Way::Link);
            }
            return;
        }
        let due = watched.last_probed.map_or(now, |last| now.max(last + gap));
        let wanted = self.wanted.entry(node).or_insert(Wanted { due, by_link });
        wanted.due = wanted.due.min(due);
        wanted.by_link |= by_link;
        self.begin_wanted(now);
    }

    /// Probes some trusted members out of turn, to hear whether this node hears anything.
    pub(super) fn ask_trusted(&mut self, now: Moment) {
        let trusted = self.watched.iter().filter(|(_, watched)| watched.target.standing == Standing::Trusted);
        let some = trusted.map(|(node, _)| *node).sample(&mut self.rng, EARS);
        for node in some {
            self.look(now, node, self.timing.probe_interval, false);
        }
    }

    pub(super) fn trusts_anybody(&self) -> bool {
        self.watched.values().any(|watched| watched.target.standing == Standing::Trusted)
    }

    /// Anything came from `node` over its connection. Cheap.
    pub(super) fn handle_heard(&mut self, now: Moment, node: NodeId) {
        if let Some(watched) = self.watched.get_mut(&node) {
            watched.heard = Some(now);
        }
    }

    /// The machine of `node` refused a connection.
    pub(super) fn handle_refused(&mut self, now: Moment, node: NodeId) {
        let Some(watched) = self.watched.get(&node) else { return };
        if watched.target.standing == Standing::Lost {
            return;
        }
        if !self.runs.contains_key(&node) {
            if self.runs.len() >= MOST_RUNS {
                return;
            }
            self.begin(now, node, false);
        }
        if let Some(run) = self.runs.get_mut(&node) {
            run.refused_since.get_or_insert(now);
        }
        self.tell_refusal(node);
        self.end_if_hopeless(now, node);
    }

    /// Takes in a packet that is addressed to this node and not a ping.
    pub(super) fn handle_probe(&mut self, now: Moment, addr: SocketAddr, probe: Probe, by_link: bool) {
        match probe.body {
            // The answer names this node's incarnation, which the membership keeps; it answers.
            ProbeBody::Ping { .. } => {}
            ProbeBody::Ack { seq, generation, incarnation } => {
                if let Some(relay) = self.relays.get(&seq) {
                    if relay.target == probe.from {
                        self.pass_on(seq, generation, incarnation);
                        self.found(Finding::Answered { node: probe.from, generation, incarnation });
                    }
                } else if self.asked.get(&seq).is_some_and(|asked| asked.node == probe.from) {
                    self.answered(now, seq, generation, incarnation);
                }
            }
            ProbeBody::IndirectAck { seq, target, generation, incarnation } => {
                let named = |asked: &Asked| asked.node == target && asked.way == Way::Others;
                if self.asked.get(&seq).is_some_and(named) {
                    if let Some(watched) = self.watched.get_mut(&target) {
                        watched.heard_through = Some(probe.from);
                    }
                    self.answered(now, seq, generation, incarnation);
                }
            }
            ProbeBody::PingReq { seq, target, target_addr } => {
                self.relay(now, (probe.from, addr, by_link), seq, (target, target_addr));
            }
            ProbeBody::Nack { seq } => {
                let Some(node) = self.asked.get(&seq).map(|asked| asked.node) else { return };
                if let Some(Stage::Others { seq: current, nacked, .. }) =
                    self.runs.get_mut(&node).map(|run| &mut run.stage)
                    && *current == seq
                    && let Some(nacked) = nacked.get_mut(&probe.from)
                {
                    *nacked = true;
                    self.end_if_hopeless(now, node);
                }
            }
        }
    }

    /// Does everything that is due.
    pub(super) fn handle_timeout(&mut self, now: Moment) {
        self.end_runs(now);
        self.end_relays(now);
        self.begin_wanted(now);
        if now >= self.next_turn {
            self.next_turn = now + self.timing.probe_interval * self.health.multiplier();
            self.begin_turn(now);
            let oldest = now - self.timing.probe_interval * LATE_ANSWERS * self.health.multiplier();
            self.asked.retain(|_, asked| asked.at >= oldest);
        }
        if now >= self.next_retry {
            self.next_retry = now + self.timing.probe_interval * RETRY_EVERY;
            self.begin_retry(now);
        }
    }

    pub(super) fn poll_timeout(&self) -> Moment {
        let runs = self.runs.values().map(|run| run.stage.until());
        let relays = self.relays.values().map(|relay| relay.nack_at.unwrap_or(relay.until));
        let has_room = self.runs.len() < MOST_RUNS;
        let wanted = self.wanted.values().filter(|_| has_room).map(|wanted| wanted.due);
        runs.chain(relays).chain(wanted).fold(self.next_turn.min(self.next_retry), Moment::min)
    }

    pub(super) fn poll_output(&mut self) -> Option<DetectorOutput> {
        self.outputs.pop_front()
    }

    /// This process was paused: nothing that was under way means anything, and neither does how long it took.
    pub(super) fn handle_pause(&mut self, late_by: Duration) {
        self.runs.clear();
        self.asked.clear();
        self.relays.clear();
        let intervals = late_by.as_nanos() / self.timing.probe_interval.as_nanos().max(1);
        self.health.worsen(1 + intervals.min(3) as u32);
    }

    /// This node had to refute a suspicion: it may be slower than it thinks (Lifeguard, section IV-A).
    pub(super) fn handle_refuted(&mut self) {
        self.health.worsen(1);
    }

    pub(super) fn health(&self) -> u32 {
        self.health.score()
    }

    pub(super) fn multiplier(&self) -> u32 {
        self.health.multiplier()
    }

    pub(super) fn round_trip(&self, node: NodeId) -> Option<Duration> {
        self.watched.get(&node).and_then(|watched| watched.round_trip.smoothed())
    }

    pub(super) fn counters(&self) -> DetectorCounters {
        self.counters
    }

    /// A packet from this node, as it is in this start.
    pub(super) fn packet(&self, to: NodeId, body: ProbeBody) -> Probe {
        Probe { cluster: self.cluster.clone(), from: self.me, generation: self.generation, to, body }
    }

    /// Whether signs of trouble here slow this node down.
    #[cfg(any(test, feature = "simulation"))]
    pub(super) fn set_local_health(&mut self, on: bool) {
        self.health = LocalHealth::new(on);
    }

    /// A number that no packet of this start has had.
    pub(super) fn take_seq(&mut self) -> u64 {
        self.next_seq = self.next_seq.wrapping_add(1);
        self.next_seq
    }

    // Whose turn it is.

    fn begin_turn(&mut self, now: Moment) {
        if self.turn.is_empty() {
            self.turn = self.watched.keys().copied().collect();
            self.turn.shuffle(&mut self.rng);
        }
        while let Some(node) = self.turn.pop() {
            let in_turn = self.watched.get(&node).is_some_and(|watched| watched.target.standing != Standing::Lost);
            if in_turn && !self.runs.contains_key(&node) && self.runs.len() < MOST_RUNS {
                self.begin(now, node, false);
                return;
            }
        }
    }

    fn begin_retry(&mut self, now: Moment) {
        let is_lost =
            |(node, watched): (&NodeId, &Watched)| (watched.target.standing == Standing::Lost).then_some(*node);
        let after = |last: &NodeId| (std::ops::Bound::Excluded(*last), std::ops::Bound::Unbounded);
        let next = self.last_retried.as_ref().and_then(|last| self.watched.range(after(last)).find_map(is_lost));
        // The first one is left to chance: many that have lost the same members should not all try the same one.
        let next = next.or_else(|| match self.last_retried {
            None => self.watched.iter().filter_map(is_lost).choose(&mut self.rng),
            Some(_) => self.watched.iter().find_map(is_lost),
        });
        self.last_retried = next;
        if let Some(node) = next {
            self.look(now, node, Duration::ZERO, false);
        }
    }

    fn begin_wanted(&mut self, now: Moment) {
        while self.runs.len() < MOST_RUNS {
            let due = self.wanted.iter().find(|(_, wanted)| wanted.due <= now);
            let Some((node, by_link)) = due.map(|(node, wanted)| (*node, wanted.by_link)) else { return };
            self.wanted.remove(&node);
            if !self.runs.contains_key(&node) {
                self.begin(now, node, by_link);
            }
        }
    }

    // One probe, from its beginning to its end.

    fn begin(&mut self, now: Moment, node: NodeId, by_link: bool) {
        let patience = self.patience(node) * self.health.multiplier();
        let Some(watched) = self.watched.get_mut(&node) else { return };
        watched.last_probed = Some(now);
        self.wanted.remove(&node);
        let run = Run {
            addr: watched.target.addr,
            generation: watched.target.generation,
            started: now,
            stage: Stage::Direct { until: now + patience },
            by_link: false,
            refused_since: None,
            refusal_told: false,
            told: None,
        };
        self.runs.insert(node, run);
        self.counters.probes += 1;
        self.ping(now, node, Way::Datagram);
        if by_link {
            self.ping(now, node, Way::Link);
        }
    }

    /// How long a healthy node waits for an answer of `node`.
    fn patience(&self, node: NodeId) -> Duration {
        let measured = self.watched.get(&node).map_or(Duration::ZERO, |watched| watched.round_trip.overdue_after());
        self.timing.probe_timeout.max(measured.min(self.timing.probe_interval * MOST_PATIENCE))
    }

    /// How long a healthy node waits for what others hear of `node`.
    fn patience_with_others(&self, node: NodeId) -> Duration {
        let rest = self.timing.probe_interval.saturating_sub(self.timing.probe_timeout);
        let measured = self.watched.get(&node).map_or(Duration::ZERO, |watched| watched.round_trip.overdue_after());
        rest.max((measured * 2).min(self.timing.probe_interval * MOST_PATIENCE))
    }

    fn ping(&mut self, now: Moment, node: NodeId, way: Way) {
        let seq = self.take_seq();
        let (Some(run), Some(watched)) = (self.runs.get_mut(&node), self.watched.get(&node)) else { return };
        let suspected = watched.target.suspected;
        let by_link = way == Way::Link;
        run.told = suspected;
        run.by_link |= by_link;
        let addr = run.addr;
        let in_doubt = watched.target.standing != Standing::Trusted;
        self.asked.insert(seq, Asked { node, way, at: now, in_doubt });
        let probe = self.packet(node, ProbeBody::Ping { seq, suspected });
        self.outputs.push_back(DetectorOutput::Send { to: node, addr, probe, by_link });
    }

    fn end_runs(&mut self, now: Moment) {
        let due: Vec<NodeId> =
            self.runs.iter().filter(|(_, run)| run.stage.until() <= now).map(|(node, _)| *node).collect();
        for node in due {
            match self.runs.get(&node).map(|run| &run.stage) {
                Some(Stage::Direct { .. }) => self.ask_others(now, node),
                Some(Stage::Others { .. }) => self.end_unanswered(node),
                None => {}
            }
        }
    }

    /// The usual time is over: the second and the third way.
    fn ask_others(&mut self, now: Moment, node: NodeId) {
        let is_lost = self.watched.get(&node).is_none_or(|watched| watched.target.standing == Standing::Lost);
        let helpers: Vec<(NodeId, SocketAddr)> = if is_lost { Vec::new() } else { self.choose_helpers(node) };
        let until = now + self.patience_with_others(node) * self.health.multiplier();
        let seq = self.take_seq();
        let Some(run) = self.runs.get_mut(&node) else { return };
        let target_addr = run.addr;
        let ask_by_link = !run.by_link && run.refused_since.is_none();
        let nacked = helpers.iter().map(|(helper, _)| (*helper, false)).collect();
        run.stage = Stage::Others { until, seq, nacked };
        self.asked.insert(seq, Asked { node, way: Way::Others, at: now, in_doubt: is_lost });
        if ask_by_link {
            self.ping(now, node, Way::Link);
        }
        for (helper, addr) in helpers {
            let probe = self.packet(helper, ProbeBody::PingReq { seq, target: node, target_addr });
            self.outputs.push_back(DetectorOutput::Send { to: helper, addr, probe, by_link: false });
        }
        self.tell_refusal(node);
    }

    /// Some of the trusted, by chance but for the one that last heard `node`.
    fn choose_helpers(&mut self, node: NodeId) -> Vec<(NodeId, SocketAddr)> {
        let trusted = |(other, watched): (&NodeId, &Watched)| {
            let is_trusted = *other != node && watched.target.standing == Standing::Trusted;
            is_trusted.then_some((*other, watched.target.addr))
        };
        let mut helpers = self.watched.iter().filter_map(trusted).sample(&mut self.rng, HELPERS);
        let heard_through = self.watched.get(&node).and_then(|watched| watched.heard_through);
        let proven = heard_through.and_then(|other| trusted((&other, self.watched.get(&other)?)));
        if let Some(proven) = proven.filter(|proven| !helpers.contains(proven)) {
            helpers.pop();
            helpers.push(proven);
        }
        helpers
    }

    /// A refusal says something once the ping has had its usual time: whoever refuses connections and
    /// answers pings is alive behind a firewall.
    fn tell_refusal(&mut self, node: NodeId) {
        let Some(run) = self.runs.get_mut(&node) else { return };
        if let (Stage::Others { .. }, Some(since), false) = (&run.stage, run.refused_since, run.refusal_told) {
            run.refusal_told = true;
            let generation = run.generation;
            self.found(Finding::Refused { node, generation, since });
        }
    }

    /// Nothing more can come when its machine refuses and every helper has heard nothing.
    fn end_if_hopeless(&mut self, now: Moment, node: NodeId) {
        let Some(run) = self.runs.get(&node) else { return };
        if let Stage::Others { nacked, until, .. } = &run.stage
            && run.refused_since.is_some()
            && !nacked.is_empty()
            && nacked.values().all(|nacked| *nacked)
            && *until > now
        {
            self.end_unanswered(node);
        }
    }

    fn end_unanswered(&mut self, node: NodeId) {
        let Some(run) = self.runs.remove(&node) else { return };
        self.charge_missed_nacks(node, &run);
        let Some(watched) = self.watched.get_mut(&node) else { return };
        let heard_since = watched.heard.is_some_and(|heard| heard > run.started);
        if heard_since && !watched.saved_by_hearing && watched.target.suspected.is_none() {
            watched.saved_by_hearing = true;
            self.counters.saved_by_hearing += 1;
            return;
        }
        self.counters.silent += 1;
        self.found(Finding::Silent { node, generation: run.generation });
    }

    /// A helper that is well would have said that it hears nothing either; if it did not, maybe we are deaf.
    /// With nobody to ask, silence itself is the only sign (Lifeguard, section IV-A). A lost member's silence
    /// is no sign of anything.
    ///
    /// Here we differ from Lifeguard: a helper that we do hear vouches for our ears, and weighs up one that we
    /// do not. Else, when half of the cluster is cut off, every node takes the missing half of its helpers for
    /// its own fault, and views take twice as long to settle.
    fn charge_missed_nacks(&mut self, node: NodeId, run: &Run) {
        let Stage::Others { nacked, .. } = &run.stage else { return };
        if nacked.is_empty() {
            let was_lost = self.watched.get(&node).is_none_or(|watched| watched.target.standing == Standing::Lost);
            self.health.worsen(u32::from(!was_lost));
            return;
        }
        let still_trusted = |helper: &NodeId| {
            self.watched.get(helper).is_some_and(|watched| watched.target.standing == Standing::Trusted)
        };
        let missed = nacked.iter().filter(|(helper, nacked)| !**nacked && still_trusted(helper)).count() as u32;
        self.counters.missed_nacks += u64::from(missed);
        let vouching = nacked.values().filter(|nacked| **nacked).count() as u32;
        self.health.worsen(missed.saturating_sub(vouching));
    }

    fn answered(&mut self, now: Moment, seq: u64, generation: Generation, incarnation: Incarnation) {
        let Some(asked) = self.asked.remove(&seq) else { return };
        let node = asked.node;
        let is_late = now.since(asked.at) > self.patience(node);
        let mut wants_another = false;
        if let Some(watched) = self.watched.get_mut(&node) {
            watched.saved_by_hearing = false;
            if asked.way == Way::Datagram {
                watched.round_trip.observe(asked.at, now, asked.in_doubt, is_late);
                wants_another = watched.round_trip.wants_another();
            }
        }
        if let Some(run) = self.runs.get(&node)
            && run.started <= asked.at
        {
            let saved = match run.stage {
                Stage::Direct { .. } => None,
                Stage::Others { .. } => Some(asked.way),
            };
            match saved {
                None | Some(Way::Datagram) => {}
                Some(Way::Link) => self.counters.saved_by_link += 1,
                Some(Way::Others) => self.counters.saved_by_others += 1,
            }
            self.counters.answered += 1;
            self.health.improve();
            self.runs.remove(&node);
        }
        if wants_another {
            self.look(now, node, self.timing.probe_interval, false);
        }
        self.found(Finding::Answered { node, generation, incarnation });
    }

    fn found(&mut self, finding: Finding) {
        self.outputs.push_back(DetectorOutput::Found(finding));
    }

    // Probes for others.

    fn relay(
        &mut self,
        now: Moment,
        (requester, addr, by_link): (NodeId, SocketAddr, bool),
        their_seq: u64,
        (target, target_addr): (NodeId, SocketAddr),
    ) {
        if target == self.me || self.relays.len() >= MOST_RELAYS {
            return;
        }
        let seq = self.take_seq();
        // The requester still waits when the nack comes: four fifths of what it waits (Lifeguard, IV-A).
        let rest = self.timing.probe_interval.saturating_sub(self.timing.probe_timeout);
        let nack_at = now + self.patience(target).min(rest) * 4 / 5;
        let until = now + self.timing.probe_interval * MOST_PATIENCE;
        let relay = Relay {
            requester,
            addr,
            by_link,
            seq: their_seq,
            target,
            nack_at: Some(nack_at),
            until: until.max(nack_at),
        };
        self.relays.insert(seq, relay);
        self.counters.relayed += 1;
        let suspected = self.watched.get(&target).and_then(|watched| watched.target.suspected);
        let probe = self.packet(target, ProbeBody::Ping { seq, suspected });
        self.outputs.push_back(DetectorOutput::Send { to: target, addr: target_addr, probe, by_link: false });
    }

    fn pass_on(&mut self, seq: u64, generation: Generation, incarnation: Incarnation) {
        let Some(relay) = self.relays.remove(&seq) else { return };
        let body = ProbeBody::IndirectAck { seq: relay.seq, target: relay.target, generation, incarnation };
        let probe = self.packet(relay.requester, body);
        let (to, addr, by_link) = (relay.requester, relay.addr, relay.by_link);
        self.outputs.push_back(DetectorOutput::Send { to, addr, probe, by_link });
    }

    fn end_relays(&mut self, now: Moment) {
        self.relays.retain(|_, relay| relay.until > now || relay.nack_at.is_some());
        let mut nacks = Vec::new();
        for relay in self.relays.values_mut().filter(|relay| relay.nack_at.is_some_and(|at| at <= now)) {
            relay.nack_at = None;
            nacks.push((relay.requester, relay.addr, relay.by_link, relay.seq));
        }
        for (to, addr, by_link, seq) in nacks {
            let probe = self.packet(to, ProbeBody::Nack { seq });
            self.outputs.push_back(DetectorOutput::Send { to, addr, probe, by_link });
        }
    }
}
