//! A whole cluster in one thread and in virtual time.
//!
//! The world owns a clock that only events move, one queue of what is going to happen, and one seeded
//! generator; so a seed is a run, byte for byte. Every node has a disk that outlives its process, a clock that
//! is a little wrong, and, while it is up, a process: the Peer and what a driver would keep beside it. The
//! world is that driver. It hands in what happened, carries out what the Peer wants through the simulated
//! network, disk, executor and clients, and comes back when the Peer says that it is due.
//!
//! What it deliberately does not know: what a Peer should do. That is for the checkers to judge.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use flockwork::model::blob::{BlobId, BlobRef};
use flockwork::model::config::{Config, Profile, Timing};
use flockwork::model::id::{Generation, Incarnation, JobId, NodeId};
use flockwork::model::member::{
    ClusterSettings, Facts, Fingerprint, Load, MemberState, PartitionSet, Status, WIRE_VERSION,
};
use flockwork::model::packed::PackedRecord;
use flockwork::model::record::{Record, Seal};
use flockwork::model::request::Event;
use flockwork::model::resources::Resources;
use flockwork::model::time::{Moment, Now, Timestamp};
use flockwork::model::wire::Message;
use flockwork::protocol::effect::{Effect, Fetched, PodEnd, PodEvent};
use flockwork::protocol::former::FormerEnds;
use flockwork::protocol::gateway::{Ask, AskId};
use flockwork::protocol::peer::{Peer, Start};
use flockwork::protocol::sabotage::Bug;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

use crate::attempts::Attempts;
use crate::checkers::Findings;
use crate::clients::Clients;
use crate::disk::{Disk, Write};
use crate::network::{Gossip, Network, Packet, describe};
use crate::pods::Ledger;
use crate::saved_work::SavedWork;

/// What a process may want done at one instant; more than this, and it never comes to rest.
const EFFECTS_AT_ONCE: usize = 200_000;
/// How often a Peer may ask to be called again at once.
const CALLS_AT_ONCE: u32 = 1_000;
/// When the worlds begin, in milliseconds of wall time, give or take.
const AN_HOUR_BEGINS: i64 = 1_800_000_000_000;
/// How long a leaving node may take to hand over before it goes anyway.
const LEAVE_WITHIN: Duration = Duration::from_secs(20);
/// How long it may take until all know that a node is back, and what it has with it: one that left with records, or drained.
pub const KNOWN_WITHIN: Duration = Duration::from_secs(3);
/// What a node has decided on is on its disk by then, unless that is full: a write under way and the next.
pub const WRITTEN_WITHIN: Duration = Duration::from_secs(2);

/// The world's dice.
#[derive(Debug)]
pub struct Dice(StdRng);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(StdRng::seed_from_u64(seed))
    }

    /// True in `percent` of cases.
    pub fn chance(&mut self, percent: f64) -> bool {
        percent > 0.0 && self.0.random_range(0.0..100.0) < percent
    }

    pub fn number(&mut self, range: std::ops::Range<u64>) -> u64 {
        self.0.random_range(range)
    }

    /// A duration from `low` to `high` milliseconds, in microseconds.
    pub fn ms(&mut self, low: f64, high: f64) -> Duration {
        Duration::from_micros(self.0.random_range(low * 1_000.0..high * 1_000.0) as u64)
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        if from.is_empty() { None } else { Some(from[self.0.random_range(0..from.len())]) }
    }

    pub fn bits(&mut self) -> u64 {
        self.0.next_u64()
    }
}

/// How a world begins.
#[derive(Debug, Clone)]
pub struct Options {
    pub seed: u64,
    pub nodes: usize,
    pub replicas: u32,
    pub partitions: u32,
    pub slots: u32,
    pub forget_after: Duration,
    /// How long whoever is away is waited for before its copies are made elsewhere.
    pub repair_after: Duration,
    /// How wrong the nodes' clocks may be: thousandths of a percent of speed, and milliseconds of wall time.
    pub drift_ppm: i64,
    pub skew_ms: i64,
    /// How long finished jobs are kept. Nothing shorter than an hour is told apart.
    pub retention: Duration,
    /// How far into an hour the world begins, by a clock that is right.
    pub into_the_hour: Duration,
    /// The rule that everybody breaks.
    pub planted: Option<Bug>,
}

impl Options {
    pub fn new(seed: u64, nodes: usize) -> Self {
        Self {
            seed,
            nodes,
            replicas: 3,
            partitions: 32,
            slots: 4,
            forget_after: Duration::from_secs(3_600),
            repair_after: Timing::of(Profile::Local).repair_after,
            drift_ppm: 200,
            skew_ms: 5_000,
            retention: Duration::from_secs(7 * 24 * 3_600),
            into_the_hour: Duration::ZERO,
            planted: None,
        }
    }
}

/// A machine: what stays when its process dies.
#[derive(Debug)]
pub struct Node {
    pub id: NodeId,
    pub addr: SocketAddr,
    pub disk: Disk,
    pub process: Option<Process>,
    /// Off, so that nothing even refuses a connection.
    pub powered_off: bool,
    /// It said goodbye, and is not to be started again by itself.
    pub has_left: bool,
    /// It went before it had handed everything over.
    pub took_records_along: bool,
    /// How often its process died.
    pub crashes: u32,
    pub slots: u32,
    drift_ppm: i64,
    pub skew_ms: i64,
    has_seeds: bool,
}

/// What dies with the process.
#[derive(Debug)]
pub struct Process {
    /// Unlike any other in this world.
    pub number: u64,
    pub generation: Generation,
    pub peer: Peer,
    pub gossip: Gossip,
    pub paused: bool,
    pub paused_at: Duration,
    stalled: Vec<Happening>,
    timer: Option<Duration>,
    last_call: (Duration, u32),
    pub leave_until: Option<Duration>,
    said_goodbye: bool,
    /// Whether others had all that it had when it did, by its own account; nothing was handed over where all others had left.
    pub handed_over: bool,
    /// Whether it knew of anybody to hand over to when it did.
    pub others_served: bool,
    /// When it ceased to drain, if it did.
    pub drained_until: Option<Duration>,
    started: Duration,
}

/// Something that is going to happen.
#[derive(Debug, Clone)]
pub enum Happening {
    /// A packet arrives.
    Arrival { to: usize, from: usize, packet: Packet },
    /// A connection was refused.
    Refused { to: usize, process: u64, peer: usize },
    /// A connection broke.
    LinkDown { to: usize, process: u64, peer: usize },
    /// The Peer wanted to be called.
    Timer { node: usize, process: u64 },
    /// The gossip shell's interval is over.
    GossipTick { node: usize, process: u64 },
    /// The disk is done with a transaction.
    DiskDone { node: usize, process: u64 },
    /// The Peer learns that it is.
    Committed { node: usize, process: u64, number: u64, ok: bool },
    /// A pod's process runs, or ends as planned, or ends as told.
    PodStarts { node: usize, process: u64, run: usize },
    PodEnds {
        node: usize,
        process: u64,
        run: usize,
        /// Nothing if it ends by itself.
        end: Option<PodEnd>,
    },
    LeaseLapses {
        node: usize,
        process: u64,
        run: usize,
        /// Since when the node has stood still.
        since: Duration,
    },
    /// The Peer learns of it, and of all else that came from pods at that moment.
    Pod { node: usize, process: u64, events: Vec<PodEvent> },
    /// A pod says something of itself, if it still runs.
    PodReports { node: usize, process: u64, run: usize },
    /// Another node is asked for a blob.
    BlobAsked { node: usize, process: u64, from: usize, blob: BlobId },
    /// The Peer learns what came of it.
    BlobFetched { node: usize, process: u64, from: usize, blob: BlobId, fetched: Fetched },
    /// A node that said goodbye exits.
    Exit { node: usize, process: u64 },
    /// The clients' next step.
    ClientStep,
    /// A client asks again what was not answered.
    AskAgain { key: String },
}

/// What is printed of a run.
#[derive(Debug, Default)]
pub enum Trace {
    #[default]
    Off,
    Collect(String),
    #[allow(dead_code, reason = "the example that replays a seed prints")]
    Print,
}

/// What kinds of trouble there have been; checkers are stricter where there was less.
#[derive(Debug, Clone, Copy, Default)]
pub struct Disturbances {
    /// Anything at all that is not everyday business.
    pub any: bool,
    /// Something that can make a live node look dead.
    pub doubt: bool,
}

/// How often what was done to the cluster.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    pub crashes: u64,
    pub splits: u64,
    pub cuts: u64,
    pub pauses: u64,
    pub bad_networks: u64,
    pub wrong_clocks: u64,
    pub disk_faults: u64,
    pub joins: u64,
    pub leaves: u64,
    pub drains: u64,
}

impl std::ops::AddAssign for Faults {
    fn add_assign(&mut self, other: Self) {
        self.crashes += other.crashes;
        self.splits += other.splits;
        self.cuts += other.cuts;
        self.pauses += other.pauses;
        self.bad_networks += other.bad_networks;
        self.wrong_clocks += other.wrong_clocks;
        self.disk_faults += other.disk_faults;
        self.joins += other.joins;
        self.leaves += other.leaves;
        self.drains += other.drains;
    }
}

/// What is going to happen, by time; at one instant, in the order in which it was planned.
#[derive(Debug, Default)]
struct Queue {
    /// When, the how-manieth plan it is, and where it is kept.
    order: BinaryHeap<Reverse<(Duration, u64, usize)>>,
    kept: Vec<Option<Happening>>,
    free: Vec<usize>,
    planned: u64,
}

impl Queue {
    fn push(&mut self, at: Duration, what: Happening) {
        self.planned += 1;
        let place = self.free.pop().unwrap_or_else(|| {
            self.kept.push(None);
            self.kept.len() - 1
        });
        self.kept[place] = Some(what);
        self.order.push(Reverse((at, self.planned, place)));
    }

    /// The next thing, if it happens by `until`.
    fn pop(&mut self, until: Duration) -> Option<(Duration, Happening)> {
        self.order.peek().filter(|Reverse((at, ..))| *at <= until)?;
        let Reverse((at, _, place)) = self.order.pop()?;
        self.free.push(place);
        self.kept[place].take().map(|what| (at, what))
    }
}

/// The whole cluster.
#[derive(Debug)]
pub struct World {
    pub options: Options,
    pub now: Duration,
    pub dice: Dice,
    pub nodes: Vec<Node>,
    pub network: Network,
    pub ledger: Ledger,
    pub clients: Clients,
    pub findings: Findings,
    pub disturbances: Disturbances,
    pub faults: Faults,
    /// What was done to the cluster, and undone, and when.
    pub fault_log: Vec<(Duration, String)>,
    /// Every record's seal, as it was first written to a disk, and by its content then.
    pub seals: BTreeMap<JobId, Arc<Record>>,
    /// Every seal that has left its sealer's memory: of each it was judged then whether anybody knew more.
    pub seals_judged: BTreeMap<JobId, Vec<Seal>>,
    /// Jobs that were sealed while their key was used again where nobody knew of them, or without somebody who had left and
    /// knew more: what is no part of the seal is given up.
    pub given_up_for_a_seal: BTreeSet<JobId>,
    /// Jobs that were sealed while somebody who had left, or was forgotten, had a copy.
    pub sealed_without: BTreeSet<JobId>,
    /// Those of them that such a copy brought to another end while nobody was up who had the seal.
    pub sealed_again: BTreeSet<JobId>,
    pub saved_work: SavedWork,
    pub attempts: Attempts,
    /// Which node, listening to the cluster's events, has heard which.
    pub told: Vec<(usize, Event)>,
    pub trace: Trace,
    queue: Queue,
    next_process: u64,
    next_ask: u64,
    pub steps: u64,
}

impl World {
    /// Machines, all off.
    pub fn new(options: Options) -> Self {
        let mut world = Self {
            dice: Dice::new(options.seed),
            now: Duration::from_secs(1),
            nodes: Vec::new(),
            network: Network::default(),
            ledger: Ledger::default(),
            clients: Clients::default(),
            findings: Findings::default(),
            disturbances: Disturbances::default(),
            faults: Faults::default(),
            fault_log: Vec::new(),
            seals: BTreeMap::new(),
            seals_judged: BTreeMap::new(),
            given_up_for_a_seal: BTreeSet::new(),
            sealed_without: BTreeSet::new(),
            sealed_again: BTreeSet::new(),
            saved_work: SavedWork::default(),
            attempts: Attempts::default(),
            told: Vec::new(),
            trace: Trace::Off,
            queue: Queue::default(),
            next_process: 1,
            next_ask: 1,
            steps: 0,
            options,
        };
        for _ in 0..world.options.nodes {
            world.add_machine();
        }
        world
    }

    /// One more machine, off. Returns its place.
    pub fn add_machine(&mut self) -> usize {
        let at = self.nodes.len();
        let (drift, skew) = (self.options.drift_ppm, self.options.skew_ms);
        let around_zero = |dice: &mut Dice, most: i64| dice.number(0..(2 * most as u64 + 1)) as i64 - most;
        let node = Node {
            id: NodeId(self.dice.bits() as u32),
            addr: SocketAddr::from(([10, 0, 0, at as u8 + 1], 7_000)),
            disk: Disk::default(),
            process: None,
            powered_off: false,
            has_left: false,
            took_records_along: false,
            crashes: 0,
            slots: self.options.slots,
            drift_ppm: around_zero(&mut self.dice, drift),
            skew_ms: around_zero(&mut self.dice, skew),
            has_seeds: at > 0,
        };
        self.nodes.push(node);
        at
    }

    /// The machine's place of a node.
    pub fn place_of(&self, id: NodeId) -> Option<usize> {
        self.nodes.iter().position(|node| node.id == id)
    }

    /// Both clocks of `node` at this instant.
    pub fn local_now(&self, node: usize) -> Now {
        let Node { drift_ppm, skew_ms, .. } = self.nodes[node];
        let nanos = self.now.as_nanos() as i64;
        let local = nanos + nanos * drift_ppm / 1_000_000;
        let moment = Moment::from_start(Duration::from_nanos(local as u64));
        let into_the_hour = self.options.into_the_hour.as_millis() as i64;
        let wall = AN_HOUR_BEGINS + into_the_hour + local / 1_000_000 + skew_ms;
        Now { moment, wall: Timestamp(wall as u64) }
    }

    /// The world's time at which `node`'s clock will have reached `moment`.
    fn world_time(&self, node: usize, moment: Moment) -> Duration {
        let local = moment.since_start().as_nanos() as i128;
        let rate = 1_000_000 + i128::from(self.nodes[node].drift_ppm);
        Duration::from_nanos((local * 1_000_000 / rate + 2) as u64).max(self.now)
    }

    /// The nodes whose processes are up, paused or not.
    pub fn up(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|node| self.nodes[*node].process.is_some()).collect()
    }

    pub fn process(&self, node: usize) -> Option<&Process> {
        self.nodes[node].process.as_ref()
    }

    pub fn peer(&self, node: usize) -> Option<&Peer> {
        self.process(node).map(|process| &process.peer)
    }

    // ---- Time --------------------------------------------------------------------------------------------------

    pub fn schedule(&mut self, after: Duration, what: Happening) {
        self.schedule_at(self.now + after, what);
    }

    pub fn schedule_at(&mut self, at: Duration, what: Happening) {
        self.queue.push(at, what);
    }

    /// Lets time pass.
    pub fn run_for(&mut self, duration: Duration) {
        let until = self.now + duration;
        while let Some((at, what)) = self.queue.pop(until) {
            self.now = at;
            self.steps += 1;
            self.happen(what);
        }
        self.now = until;
        self.check_asks();
        self.check_write_offs();
    }

    /// Lets time pass until `done`, for at most `limit`. Returns whether it came to that.
    pub fn run_until(&mut self, limit: Duration, mut done: impl FnMut(&Self) -> bool) -> bool {
        let end = self.now + limit;
        while self.now < end {
            if done(self) {
                return true;
            }
            self.run_for(Duration::from_millis(50));
        }
        done(self)
    }

    fn happen(&mut self, what: Happening) {
        let (node, process) = match &what {
            Happening::Arrival { to, from, packet } => {
                let (to, from) = (*to, *from);
                if let Some(expected) = packet.process()
                    && self.process(to).map(|process| process.number) != Some(expected)
                {
                    return;
                }
                if !self.network.lets_through(from, to, packet.by_link()) {
                    return;
                }
                (to, None)
            }
            Happening::Refused { to, process, .. } | Happening::LinkDown { to, process, .. } => (*to, Some(*process)),
            Happening::Timer { node, process }
            | Happening::GossipTick { node, process }
            | Happening::Committed { node, process, .. }
            | Happening::Pod { node, process, .. }
            | Happening::BlobFetched { node, process, .. } => (*node, Some(*process)),
            Happening::PodReports { node, process, run } => return self.pod_reports(*node, *process, *run),
            Happening::BlobAsked { node, process, from, blob } => {
                return self.answer_for_blob(*node, *process, *from, *blob);
            }
            Happening::DiskDone { node, process } => return self.finish_write(*node, *process),
            Happening::PodStarts { node, process, run } => return self.pod_starts(*node, *process, *run),
            Happening::PodEnds { node, process, run, end } => return self.pod_ends(*node, *process, *run, end.clone()),
            Happening::LeaseLapses { node, process, run, since } => {
                return self.lease_lapses(*node, *process, *run, *since);
            }
            Happening::Exit { node, process } => {
                if self.process(*node).is_some_and(|up| up.number == *process) {
                    self.note(*node, || "has left".into());
                    self.check_handed_over(*node);
                    self.nodes[*node].took_records_along = !self.nodes[*node].disk.records.is_empty();
                    self.end_process(*node);
                    self.nodes[*node].has_left = true;
                }
                return;
            }
            Happening::ClientStep => return self.client_step(),
            Happening::AskAgain { key } => {
                let key = key.clone();
                return self.ask_again(&key);
            }
        };
        let Some(up) = self.nodes[node].process.as_mut() else {
            return;
        };
        if process.is_some_and(|process| process != up.number) {
            return;
        }
        if up.paused {
            up.stalled.push(what);
            return;
        }
        self.hand_in(node, what);
        self.pump(node);
    }

    /// Tells the Peer of `node` what happened.
    fn hand_in(&mut self, node: usize, what: Happening) {
        let now = self.local_now(node);
        match what {
            Happening::Arrival { from, packet, .. } => self.receive(now, node, from, packet),
            Happening::Refused { peer, .. } => {
                let peer = self.nodes[peer].id;
                self.call(node, |p| p.handle_refused(now, peer));
            }
            Happening::LinkDown { peer, .. } => {
                let peer = self.nodes[peer].id;
                self.call(node, |p| p.handle_link_down(now, peer));
            }
            Happening::Timer { .. } => {
                let Some(process) = self.nodes[node].process.as_mut() else { return };
                if process.timer.is_some_and(|at| at <= self.now) {
                    process.timer = None;
                    process.last_call = if process.last_call.0 == self.now {
                        (self.now, process.last_call.1 + 1)
                    } else {
                        (self.now, 1)
                    };
                    assert!(
                        process.last_call.1 < CALLS_AT_ONCE,
                        "the Peer of n{node} asks to be called again and again at {now:?}"
                    );
                    process.peer.handle_timeout(now);
                }
            }
            Happening::GossipTick { .. } => self.gossip_tick(node),
            Happening::Committed { number, ok, .. } => {
                self.call(
                    node,
                    |p| if ok { p.handle_committed(now, number) } else { p.handle_commit_failed(now, number) },
                );
            }
            Happening::Pod { events, .. } => {
                self.call(node, |p| events.into_iter().for_each(|event| p.handle_pod(now, event)));
            }
            Happening::BlobFetched { from, blob, fetched, .. } => {
                let from = self.nodes[from].id;
                self.call(node, |p| p.handle_blob(now, from, blob, fetched));
            }
            Happening::DiskDone { .. }
            | Happening::PodReports { .. }
            | Happening::BlobAsked { .. }
            | Happening::PodStarts { .. }
            | Happening::PodEnds { .. }
            | Happening::LeaseLapses { .. }
            | Happening::Exit { .. }
            | Happening::ClientStep
            | Happening::AskAgain { .. } => unreachable!("these are the world's own"),
        }
    }

    /// Calls the Peer of `node`, if it is up.
    pub fn call(&mut self, node: usize, with: impl FnOnce(&mut Peer)) {
        if let Some(process) = self.nodes[node].process.as_mut() {
            with(&mut process.peer);
        }
    }

    /// Carries out all that the Peer of `node` wants now, and sees when it wants to be called.
    pub fn pump(&mut self, node: usize) {
        let now = self.local_now(node);
        for polled in 0.. {
            let Some(process) = self.nodes[node].process.as_mut() else {
                return;
            };
            let Some(effect) = process.peer.poll_effect(now) else {
                break;
            };
            assert!(polled < EFFECTS_AT_ONCE, "the Peer never comes to rest");
            self.carry_out(node, effect);
        }
        self.watch_what_lingers(node);
        self.see_to_leaving(node);
        let Some(process) = self.nodes[node].process.as_ref() else {
            return;
        };
        let (number, due) = (process.number, process.peer.poll_timeout());
        if let Some(moment) = due {
            let at = self.world_time(node, moment);
            let process = self.nodes[node].process.as_mut().expect("it was just there");
            if process.timer.is_none_or(|planned| at < planned) {
                process.timer = Some(at);
                self.schedule_at(at, Happening::Timer { node, process: number });
            }
        }
    }

    fn carry_out(&mut self, node: usize, effect: Effect) {
        match effect {
            Effect::Commit(commit) => self.begin_write(node, commit),
            Effect::Send { to, message } => {
                if let Message::Push { records, .. } = &message {
                    records.iter().for_each(|record| self.judge_sealing(node, record));
                }
                if let Some(to) = self.place_of(to) {
                    self.send_message(node, to, message);
                }
            }
            Effect::Probe { to, addr, probe, by_link } => self.send_probe(node, to, addr, probe, by_link),
            Effect::Gossip { facts, urgent } => self.gossip_own(node, *facts, urgent),
            Effect::StartPod(start) => self.start_pod(node, start),
            Effect::StopPod(key) => self.stop_pod(node, key),
            Effect::Silence(_) => {}
            Effect::AnswerPod { answer, result } => self.pod_is_answered(node, answer, result),
            Effect::FetchBlob { from, blob } => self.fetch_blob(node, from, blob),
            Effect::Reply(reply) => self.take_reply(node, reply),
            Effect::Tell { event, .. } => self.told.push((node, event)),
            Effect::Note(_) | Effect::Sweep(_) | Effect::Call { .. } => {}
        }
    }

    fn see_to_leaving(&mut self, node: usize) {
        let (now, me) = (self.local_now(node), self.nodes[node].id);
        let Some(process) = self.nodes[node].process.as_mut() else {
            return;
        };
        let Some(until) = process.leave_until.filter(|_| !process.said_goodbye) else {
            return;
        };
        if process.peer.has_handed_over() || until <= self.now {
            let in_time = process.peer.has_handed_over();
            let mut others = process.peer.membership().view().values().filter(|member| member.facts.node != me);
            process.handed_over = in_time && others.any(|member| member.state != MemberState::Left);
            process.said_goodbye = true;
            process.peer.say_goodbye(now);
            let process = process.number;
            let others_served = self.sees_somebody_serve(node);
            self.nodes[node].process.as_mut().expect("it was just there").others_served = others_served;
            self.note(node, || format!("says goodbye{}", if in_time { "" } else { " without having handed over" }));
            if !in_time && !self.disturbances.any {
                self.find("leaving nodes hand over", format!("n{node} had not within {LEAVE_WITHIN:?}"));
            }
            self.schedule(Duration::from_millis(500), Happening::Exit { node, process });
            self.pump(node);
        }
    }

    // ---- Machines and processes --------------------------------------------------------------------------------

    fn config(&self, node: usize) -> Config {
        Config {
            cluster: ClusterSettings {
                name: "sim".into(),
                partitions: self.options.partitions,
                replicas: self.options.replicas,
                forget_after: self.options.forget_after,
            },
            retention: self.options.retention,
            labels: BTreeMap::from([("place".to_owned(), format!("n{node}"))]),
            timing: Timing { repair_after: self.options.repair_after, ..Timing::of(Profile::Local) },
            ..Config::new(Profile::Local, Resources { slots: self.nodes[node].slots, ..Resources::default() })
        }
    }

    /// Starts the node's process, with what its disk has.
    pub fn start(&mut self, node: usize) {
        if self.nodes[node].process.is_some() {
            return;
        }
        let config = self.config(node);
        let (number, seed) = (self.next_process, self.dice.bits());
        self.next_process += 1;
        let place = &mut self.nodes[node];
        (place.powered_off, place.has_left) = (false, false);
        place.disk.lingering.clear();
        if self.options.planted != Some(Bug::ReuseCounters) || place.disk.generation == 0 {
            place.disk.generation += 1;
        }
        let generation = Generation(place.disk.generation);
        let facts = Facts {
            node: place.id,
            name: format!("n{node}"),
            generation,
            incarnation: Incarnation::default(),
            cluster_addr: place.addr,
            http_addr: place.addr,
            status: Status::Joining,
            revision: 0,
            capacity: config.capacity,
            weight: config.weight,
            load: Load::default(),
            labels: config.labels.clone(),
            drivers: config.drivers.clone(),
            held: PartitionSet::default(),
            ring: Fingerprint::default(),
            cluster: config.cluster.clone(),
            wire_version: WIRE_VERSION,
            version: "simulated".into(),
            suspicions: BTreeMap::new(),
            departed: BTreeMap::new(),
            dismissed: BTreeMap::new(),
        };
        let records: Vec<_> = place.disk.records.values().map(|record| PackedRecord::from(&**record)).collect();
        let known_at = place.disk.known_at.clone();
        let blobs = place.disk.blobs.values().map(flockwork::model::blob::Blob::reference).collect();
        let members = place.disk.members.clone();
        let mut contacts: Vec<NodeId> = members.iter().map(|member| member.node).collect();
        let has_seeds = place.has_seeds;
        // Whoever starts a node names some of those who are there.
        contacts.extend(self.nodes.iter().filter(|seed| has_seeds && !seed.has_left).map(|seed| seed.id));
        contacts.sort_unstable();
        contacts.dedup();
        let held = records.len();
        let former_ends = FormerEnds::default();
        let start = Start { config, facts, has_seeds, records, known_at, blobs, members, former_ends, seed };
        let peer = planted(self.options.planted, Peer::new(self.local_now(node), start));
        self.nodes[node].process = Some(Process {
            number,
            generation,
            peer,
            gossip: Gossip::new(contacts),
            paused: false,
            paused_at: Duration::ZERO,
            stalled: Vec::new(),
            timer: None,
            last_call: (Duration::ZERO, 0),
            leave_until: None,
            said_goodbye: false,
            handed_over: false,
            drained_until: None,
            others_served: false,
            started: self.now,
        });
        let text = || format!("n{node} starts as generation {} with {held} records", generation.0);
        if generation.0 == 1 {
            self.write_line(text);
        } else {
            self.log_fault(text);
        }
        let tick = self.dice.ms(1.0, 100.0);
        self.schedule(tick, Happening::GossipTick { node, process: number });
        self.pump(node);
    }

    /// Ends a process at once: pods die with it, and what was not synced is lost.
    pub fn kill(&mut self, node: usize) {
        if self.nodes[node].process.is_some() {
            self.disturbances.any = true;
            self.log_fault(|| format!("n{node} is killed"));
            self.nodes[node].crashes += 1;
            self.faults.crashes += 1;
            self.end_process(node);
        }
    }

    /// The same for the whole machine: nobody refuses a connection either.
    pub fn power_off(&mut self, node: usize) {
        self.kill(node);
        self.nodes[node].powered_off = true;
    }

    fn end_process(&mut self, node: usize) {
        let Some(process) = self.nodes[node].process.take() else {
            return;
        };
        self.ledger.end_all(node, self.now);
        let synced_unseen = self.dice.chance(50.0);
        self.nodes[node].disk.crash(synced_unseen);
        for key in self.clients.forget_gateway(process.number) {
            let after = self.dice.ms(100.0, 1_000.0);
            self.schedule(after, Happening::AskAgain { key });
        }
        self.network.forget_process(process.number);
        if !self.nodes[node].powered_off {
            for other in self.up() {
                let delay = self.dice.ms(0.2, 2.0);
                let process = self.process(other).map_or(0, |up| up.number);
                self.schedule(delay, Happening::LinkDown { to: other, process, peer: node });
            }
        }
    }

    /// Stops the process's clock hands: it does nothing until it is resumed, and its pods run on.
    pub fn pause(&mut self, node: usize) {
        if let Some(process) = self.nodes[node].process.as_mut().filter(|process| !process.paused) {
            process.paused = true;
            self.faults.pauses += 1;
            (self.disturbances.any, self.disturbances.doubt) = (true, true);
            process.paused_at = self.now;
            let number = process.number;
            self.clients.gateway_paused(number);
            self.log_fault(|| format!("n{node} is paused"));
            self.leases_lapse(node);
        }
    }

    /// All that came meanwhile is there at once.
    pub fn resume(&mut self, node: usize) {
        let Some(process) = self.nodes[node].process.as_mut().filter(|process| process.paused) else {
            return;
        };
        process.paused = false;
        let paused_for = self.now - process.paused_at;
        let stalled = std::mem::take(&mut process.stalled);
        self.log_fault(|| format!("n{node} is resumed, and finds {} things to see to", stalled.len()));
        for what in stalled {
            self.hand_in(node, what);
            self.pump(node);
        }
        self.pump(node);
        self.check_resumed(node, paused_for);
    }

    /// Asks the node to hand over and go.
    pub fn leave(&mut self, node: usize) {
        let now = self.local_now(node);
        let until = self.now + LEAVE_WITHIN;
        if let Some(process) = self.nodes[node].process.as_mut().filter(|p| !p.paused && p.leave_until.is_none()) {
            process.leave_until = Some(until);
            self.faults.leaves += 1;
            process.peer.leave(now);
            self.note(node, || "is asked to leave".into());
            self.pump(node);
        }
    }

    pub fn drain(&mut self, node: usize, on: bool) {
        let now = self.local_now(node);
        if self.process(node).is_some_and(|process| !process.paused) {
            self.note(node, || format!("is drained: {on}"));
            self.faults.drains += u64::from(on);
            let process = self.nodes[node].process.as_mut().expect("it is up");
            if !on && process.peer.membership().me().status != Status::Serving {
                process.drained_until = Some(self.now);
            }
            self.call(node, |peer| peer.drain(now, on));
            self.pump(node);
        }
    }

    /// A client asks `node` something. Returns the question's name, or nothing if the node is not up.
    pub fn ask(&mut self, node: usize, what: Ask) -> Option<AskId> {
        let process = self.process(node).filter(|process| !process.paused)?.number;
        let ask = AskId(self.next_ask);
        self.next_ask += 1;
        let now = self.local_now(node);
        self.clients.asked(ask, self.now, process, &what);
        self.call(node, |peer| peer.handle_ask(now, ask, what));
        self.pump(node);
        Some(ask)
    }

    // ---- Disk --------------------------------------------------------------------------------------------------

    fn begin_write(&mut self, node: usize, commit: flockwork::protocol::effect::Commit) {
        let Some(process) = self.process(node).map(|process| process.number) else {
            return;
        };
        for record in commit.put.iter().filter(|record| record.is_final()) {
            self.check_seal(node, record);
        }
        for record in &commit.put {
            self.check_saved_work_stays(node, record);
        }
        if !commit.delete.is_empty() {
            self.note(node, || {
                let jobs: Vec<String> = commit.delete.iter().map(|job| crate::network::short(job.0)).collect();
                format!("disk: commit {} drops {}", commit.number, jobs.join(", "))
            });
        }
        self.note_handovers(node, &commit);
        let disk = &mut self.nodes[node].disk;
        assert!(disk.writing.is_none(), "one commit at a time");
        let slow = disk.slow_ms;
        disk.writing = Some(Write { process, commit });
        let takes = self.dice.ms(0.2, slow.max(2.0));
        self.schedule(takes, Happening::DiskDone { node, process });
    }

    fn finish_write(&mut self, node: usize, process: u64) {
        let disk = &mut self.nodes[node].disk;
        let is_concerned = disk.writing.as_ref().is_some_and(|write| write.process == process);
        if is_concerned && std::mem::take(&mut disk.fails_to_sync) {
            // What the disk has now nobody knows, so the process must end.
            self.log_fault(|| format!("n{node}'s disk fails to sync"));
            return self.kill(node);
        }
        let Some((number, ok)) = self.nodes[node].disk.finish(process) else {
            return;
        };
        self.note(node, || format!("disk: commit {number} {}", if ok { "synced" } else { "failed, it is full" }));
        self.happen(Happening::Committed { node, process, number, ok });
    }

    // ---- Blobs -------------------------------------------------------------------------------------------------

    fn fetch_blob(&mut self, node: usize, from: NodeId, blob: BlobRef) {
        let Some(process) = self.process(node).map(|process| process.number) else {
            return;
        };
        let takes = self.dice.ms(0.2, 2.0);
        match self.place_of(from) {
            Some(from) => self.schedule(takes, Happening::BlobAsked { node, process, from, blob: blob.id }),
            None => panic!("n{node} asks somebody for a blob who never was"),
        }
    }

    /// The question has arrived at `from`, or never will.
    fn answer_for_blob(&mut self, node: usize, process: u64, from: usize, blob: BlobId) {
        let answers = self.process(from).is_some_and(|process| !process.paused);
        let through = self.network.lets_through(node, from, true);
        let (takes, fetched) = if answers && through {
            let unstored = self.peer(from).and_then(|peer| peer.unstored_blob(blob));
            let found = unstored.or_else(|| self.nodes[from].disk.blobs.get(&blob)).cloned();
            (self.dice.ms(0.2, 50.0), found.map_or(Fetched::Absent, Fetched::Found))
        } else {
            (Duration::from_secs(3), Fetched::Failed)
        };
        self.note(node, || {
            format!(
                "blob {blob:?} from n{from}: {}",
                match &fetched {
                    Fetched::Found(_) => "found",
                    Fetched::Absent => "absent",
                    Fetched::Failed => "failed",
                }
            )
        });
        self.schedule(takes, Happening::BlobFetched { node, process, from, blob, fetched });
    }

    // ---- Records, wherever they are ------------------------------------------------------------------------------

    /// Whether the node left with records on its disk, and started again so lately that the others may not know yet.
    pub fn has_just_come_back(&self, node: usize) -> bool {
        let is_new = |process: &Process| self.now < process.started + KNOWN_WITHIN;
        self.nodes[node].took_records_along && self.process(node).is_some_and(is_new)
    }

    /// The machines on whose disks the job's record is.
    pub fn disks_with(&self, job: JobId) -> Vec<usize> {
        (0..self.nodes.len()).filter(|node| self.nodes[*node].disk.records.contains_key(&job)).collect()
    }

    /// All that the running nodes know of a job, merged.
    pub fn merged(&self, job: JobId) -> Option<flockwork::model::record::Record> {
        let copies = self.up().into_iter().filter_map(|node| self.peer(node)?.records().get(job));
        let mut copies = copies.map(|held| held.record());
        let first = copies.next()?;
        Some(copies.fold((*first).clone(), |mut merged, copy| {
            merged.merge(&copy);
            merged
        }))
    }

    // ---- Faults ----------------------------------------------------------------------------------------------

    /// Something was done to the cluster, or was undone.
    pub fn log_fault(&mut self, what: impl FnOnce() -> String) {
        let what = what();
        self.write_line(|| what.clone());
        self.fault_log.push((self.now, what));
    }

    /// Whether anything is out of order now that can make a node doubt another, or keeps it from answering.
    pub fn is_disturbed(&self) -> bool {
        let is_amiss = |node: &Node| {
            node.disk.full || node.disk.slow_ms > 0.0 || node.process.as_ref().map_or(!node.has_left, |up| up.paused)
        };
        !self.network.is_well() || self.nodes.iter().any(is_amiss)
    }

    // ---- The trace ---------------------------------------------------------------------------------------------

    /// Writes one line about `node`.
    pub fn note(&mut self, node: usize, what: impl FnOnce() -> String) {
        self.write_line(|| format!("n{node} {}", what()));
    }

    pub fn write_line(&mut self, what: impl FnOnce() -> String) {
        let at = self.now.as_micros();
        let line = || format!("{:>4}.{:06} {}", at / 1_000_000, at % 1_000_000, what());
        match &mut self.trace {
            Trace::Off => {}
            Trace::Collect(text) => writeln!(text, "{}", line()).expect("a String takes everything"),
            Trace::Print => println!("{}", line()),
        }
    }

    pub fn note_packet(&mut self, from: usize, to: usize, packet: &Packet, fate: &str) {
        if !matches!(self.trace, Trace::Off) {
            let what = describe(packet);
            if !what.is_empty() {
                self.write_line(|| format!("n{from} -> n{to} {what}{fate}"));
            }
        }
    }
}

/// `peer`, which breaks a rule from now on if it is to.
#[cfg(feature = "sabotage")]
fn planted(bug: Option<Bug>, mut peer: Peer) -> Peer {
    peer.plant(flockwork::protocol::sabotage::Sabotage::new(bug));
    peer
}

/// `peer` as it is: this build knows of no rule to break.
#[cfg(not(feature = "sabotage"))]
fn planted(bug: Option<Bug>, peer: Peer) -> Peer {
    assert!(bug.is_none(), "planted bugs need the feature `sabotage`");
    peer
}
