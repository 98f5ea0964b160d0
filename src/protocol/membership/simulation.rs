//! A small world for [`Membership`]: hosts, a network that loses and cuts, gossip, and a clock that jumps.
//!
//! Everything happens in one thread by one queue of events, so the same seed is the same run. The world knows
//! the truth (who runs, who is frozen), and its checkers compare every node's view with it. Gossip is
//! modelled by what it promises: at each interval a node and three random live members of its view bring each
//! other up to date; news that cannot wait is handed on to three others at once, and once more by each of them.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IteratorRandom;
use rand::{RngExt, SeedableRng};

use super::{Membership, MembershipOutput};
use crate::model::config::{Config, Profile, Timing};
use crate::model::id::{Generation, Incarnation, NodeId};
use crate::model::member::{
    ClusterSettings, Facts, Fingerprint, Load, MemberState, PartitionSet, Status, WIRE_VERSION,
};
use crate::model::resources::Resources;
use crate::model::time::{Moment, Now, Timestamp};
use crate::model::wire::{Probe, ProbeBody};

/// How many peers a gossip round, or a handing on, goes to.
const FANOUT: usize = 3;
/// How much a frozen process's sockets hold.
const SOCKET_BUFFER: usize = 256;
/// How long a start takes until the node serves.
const START_UP: Duration = Duration::from_secs(1);

pub(super) fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

pub(super) fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// A machine, by its number.
pub(super) type HostId = usize;

pub(super) struct Host {
    pub(super) id: NodeId,
    pub(super) name: String,
    pub(super) port: u16,
    pub(super) settings: ClusterSettings,
    /// What it keeps on disk for the next start.
    pub(super) disk: Vec<Facts>,
    pub(super) process: Process,
    pub(super) said_goodbye: bool,
    generation: u64,
    /// Counts starts, so that events of an earlier one are ignored.
    life: u64,
    wake_at: Option<Duration>,
    gossip: BTreeMap<(NodeId, Generation), (u64, Rc<Facts>)>,
    version: u64,
}

impl Host {
    /// The next start counts on from here.
    pub(super) fn set_generation(&mut self, generation: u64) {
        self.generation = generation;
    }
}

pub(super) enum Process {
    Off,
    Running(Box<Membership>),
    Frozen(Box<Membership>, Vec<Delivery>),
}

/// What reaches a process.
#[derive(Clone)]
pub(super) enum Delivery {
    Probe { from: SocketAddr, probe: Probe, by_link: bool },
    Gossip { from: HostId, life: u64, hops: u8 },
    Refused { node: NodeId },
    LinkDown { node: NodeId },
}

enum Event {
    Wake { host: HostId, life: u64 },
    GossipTick { host: HostId, life: u64 },
    Serve { host: HostId, life: u64 },
    Deliver { host: HostId, delivery: Delivery },
}

/// Where the network misbehaves. Changed by the stories at will.
#[derive(Default)]
pub(super) struct Network {
    /// From whom to whom nothing passes.
    pub(super) cuts: BTreeSet<(HostId, HostId)>,
    /// How many datagrams of a hundred are lost.
    pub(super) loss_percent: u32,
    /// Peer connections pass nothing, while datagrams do.
    pub(super) no_links: bool,
    /// Added to every packet's way, each time up to twice this.
    pub(super) slowness: Duration,
    /// Nobody hears of votes against itself: for the tests of the checkers.
    pub(super) refutation_sabotaged: bool,
}

/// A verdict that somebody gave: when, who, about whom, and whether the condemned was running.
#[derive(Debug, Clone)]
pub(super) struct Down {
    pub(super) at: Duration,
    pub(super) by: HostId,
    pub(super) about: NodeId,
    pub(super) was_running: bool,
}

pub(super) struct World {
    pub(super) now: Duration,
    pub(super) rng: StdRng,
    pub(super) hosts: Vec<Host>,
    pub(super) network: Network,
    pub(super) timing: Timing,
    pub(super) downs: Vec<Down>,
    pub(super) late_ticks: u32,
    /// Datagrams and link packets sent.
    pub(super) packets: u64,
    queue: BinaryHeap<Reverse<(Duration, u64)>>,
    events: BTreeMap<u64, Event>,
    next_event: u64,
    links: BTreeSet<(HostId, HostId)>,
}

impl World {
    /// `count` hosts, all of them off.
    pub(super) fn new(seed: u64, count: usize) -> Self {
        let mut world = Self {
            now: Duration::ZERO,
            rng: StdRng::seed_from_u64(seed),
            hosts: Vec::new(),
            network: Network::default(),
            timing: Timing::of(Profile::Lan),
            downs: Vec::new(),
            late_ticks: 0,
            packets: 0,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            next_event: 0,
            links: BTreeSet::new(),
        };
        for _ in 0..count {
            world.add_host();
        }
        world
    }

    /// A cluster of `count` members that all know each other.
    pub(super) fn running(seed: u64, count: usize) -> Self {
        let mut world = Self::new(seed, count);
        for host in 0..count {
            world.start(host);
        }
        world.run_until_agreed(secs(20)).expect("a healthy cluster forms");
        world.run(secs(2));
        world.downs.clear();
        world
    }

    pub(super) fn add_host(&mut self) -> HostId {
        let host = self.hosts.len();
        self.hosts.push(Host {
            id: NodeId(0xa000_0000 + host as u32),
            name: format!("n{host}"),
            port: 7_000,
            settings: ClusterSettings {
                name: "sim".to_owned(),
                partitions: 1_024,
                replicas: 3,
                forget_after: secs(24 * 3_600),
            },
            disk: Vec::new(),
            process: Process::Off,
            said_goodbye: false,
            generation: 100,
            life: 0,
            wake_at: None,
            gossip: BTreeMap::new(),
            version: 0,
        });
        host
    }

    // What happens to hosts.

    pub(super) fn start(&mut self, host: HostId) {
        let seed = self.rng.random();
        let now = self.moment();
        let addr = self.addr(host);
        let timing = self.timing.clone();
        let this = &mut self.hosts[host];
        this.generation += 1;
        this.life += 1;
        this.said_goodbye = false;
        this.gossip.clear();
        let facts = Facts {
            node: this.id,
            name: this.name.clone(),
            generation: Generation(this.generation),
            incarnation: Incarnation(0),
            cluster_addr: addr,
            http_addr: addr,
            status: Status::Joining,
            capacity: Resources::default(),
            weight: 1,
            load: Load::default(),
            labels: BTreeMap::new(),
            drivers: BTreeSet::new(),
            held: PartitionSet::default(),
            ring: Fingerprint::default(),
            cluster: this.settings.clone(),
            wire_version: WIRE_VERSION,
            version: "0".to_owned(),
            suspicions: BTreeMap::new(),
        };
        let config =
            Config { cluster: this.settings.clone(), timing, ..Config::new(Profile::Local, Resources::default()) };
        let membership = Membership::new(now, &config, facts, this.disk.clone(), seed);
        this.process = Process::Running(Box::new(membership));
        this.wake_at = None;
        let life = this.life;
        self.publish(host);
        let offset = self.timing.gossip_interval.mul_f64(self.rng.random_range(0.0..1.0));
        self.schedule(offset, Event::GossipTick { host, life });
        self.schedule(START_UP, Event::Serve { host, life });
        self.drain(host);
    }

    /// As by kill -9: the machine lives on and refuses connections.
    pub(super) fn crash(&mut self, host: HostId) {
        if let Process::Running(membership) | Process::Frozen(membership, _) = &self.hosts[host].process {
            self.hosts[host].disk = membership.remembered();
        }
        self.hosts[host].process = Process::Off;
        self.hosts[host].life += 1;
        let node = self.hosts[host].id;
        let broken: Vec<_> = self.links.iter().copied().filter(|(a, b)| *a == host || *b == host).collect();
        for (a, b) in broken {
            self.links.remove(&(a, b));
            let other = if a == host { b } else { a };
            if !self.is_cut(a, b) && !self.is_cut(b, a) {
                self.schedule(ms(1), Event::Deliver { host: other, delivery: Delivery::LinkDown { node } });
            }
        }
    }

    /// All are connected with all, or nobody with anybody, so that a crash is noticed by probes only.
    pub(super) fn set_links(&mut self, connected: bool) {
        let count = self.hosts.len();
        let pairs = (0..count).flat_map(|a| (a + 1..count).map(move |b| (a, b)));
        self.links = pairs.filter(|_| connected).collect();
    }

    /// As by SIGSTOP: the machine still accepts connections and packets, and nothing answers.
    pub(super) fn freeze(&mut self, host: HostId) {
        let process = std::mem::replace(&mut self.hosts[host].process, Process::Off);
        self.hosts[host].process = match process {
            Process::Running(membership) => Process::Frozen(membership, Vec::new()),
            Process::Frozen(..) | Process::Off => process,
        };
    }

    pub(super) fn thaw(&mut self, host: HostId) {
        let process = std::mem::replace(&mut self.hosts[host].process, Process::Off);
        let Process::Frozen(membership, inbox) = process else {
            self.hosts[host].process = process;
            return;
        };
        self.hosts[host].process = Process::Running(membership);
        for delivery in inbox {
            self.deliver(host, delivery);
        }
        let life = self.hosts[host].life;
        self.hosts[host].wake_at = Some(self.now);
        self.schedule(Duration::ZERO, Event::Wake { host, life });
        self.schedule(ms(1), Event::GossipTick { host, life });
    }

    /// Says goodbye, and stops a second later.
    pub(super) fn leave(&mut self, host: HostId) {
        let now = self.moment();
        self.hosts[host].said_goodbye = true;
        self.member(host).set_status(now, Status::Left);
        self.drain(host);
        self.run(secs(1));
        self.crash(host);
    }

    /// Cuts every way between `left` and `right`, or heals it.
    pub(super) fn cut(&mut self, left: &[HostId], right: &[HostId], is_cut: bool) {
        for a in left {
            for b in right.iter().filter(|b| *b != a) {
                for pair in [(*a, *b), (*b, *a)] {
                    self.cut_one_way(pair.0, pair.1, is_cut);
                }
            }
        }
    }

    pub(super) fn cut_one_way(&mut self, from: HostId, to: HostId, is_cut: bool) {
        if is_cut {
            self.network.cuts.insert((from, to));
        } else {
            self.network.cuts.remove(&(from, to));
        }
    }

    // What is seen.

    pub(super) fn member(&mut self, host: HostId) -> &mut Membership {
        match &mut self.hosts[host].process {
            Process::Running(membership) | Process::Frozen(membership, _) => membership,
            Process::Off => panic!("host {host} is off"),
        }
    }

    pub(super) fn is_running(&self, host: HostId) -> bool {
        matches!(self.hosts[host].process, Process::Running(_))
    }

    pub(super) fn state(&self, host: HostId, of: HostId) -> Option<MemberState> {
        let Process::Running(membership) = &self.hosts[host].process else { return None };
        membership.view().get(&self.hosts[of].id).map(|member| member.state)
    }

    pub(super) fn false_downs(&self) -> Vec<&Down> {
        self.downs.iter().filter(|down| down.was_running).collect()
    }

    /// Where views differ from the truth, among the hosts of one side that all reach each other.
    pub(super) fn disagreements(&self, side: &[HostId]) -> Vec<String> {
        let mut wrong = Vec::new();
        for observer in side.iter().copied().filter(|host| self.is_running(*host)) {
            for (about, host) in self.hosts.iter().enumerate().filter(|(_, host)| host.generation > 100) {
                let seen = self.state(observer, about);
                let right = match (&host.process, host.said_goodbye) {
                    (Process::Running(_), false) if side.contains(&about) => seen == Some(MemberState::Alive),
                    (Process::Frozen(..) | Process::Off | Process::Running(_), false) => {
                        seen.is_none() || seen == Some(MemberState::Down)
                    }
                    (_, true) => seen.is_none() || seen == Some(MemberState::Left),
                };
                if !right {
                    wrong.push(format!("n{observer} sees n{about} as {seen:?}"));
                }
            }
        }
        wrong
    }

    // Time.

    pub(super) fn run(&mut self, span: Duration) {
        let until = self.now + span;
        while let Some(Reverse((at, number))) = self.queue.peek().copied() {
            if at > until {
                break;
            }
            self.queue.pop();
            self.now = at;
            let event = self.events.remove(&number).expect("every queued number has its event");
            self.handle(event);
        }
        self.now = until;
    }

    /// Runs until all views tell the truth; how long that took, or what is still wrong after `bound`.
    pub(super) fn run_until_agreed(&mut self, bound: Duration) -> Result<Duration, String> {
        let everybody: Vec<HostId> = (0..self.hosts.len()).collect();
        self.run_until_side_agreed(&everybody, bound)
    }

    pub(super) fn run_until_side_agreed(&mut self, side: &[HostId], bound: Duration) -> Result<Duration, String> {
        let began = self.now;
        loop {
            let wrong = self.disagreements(side);
            if wrong.is_empty() {
                return Ok(self.now - began);
            }
            if self.now - began >= bound {
                return Err(format!(
                    "after {bound:?}, {} views are wrong: {}",
                    wrong.len(),
                    wrong[..wrong.len().min(5)].join(", ")
                ));
            }
            self.run(ms(20));
        }
    }

    pub(super) fn moment(&self) -> Now {
        let wall = Timestamp(1_700_000_000_000) + self.now;
        Now { moment: Moment::from_start(self.now), wall }
    }

    fn schedule(&mut self, after: Duration, event: Event) {
        let number = self.next_event;
        self.next_event += 1;
        self.queue.push(Reverse((self.now + after, number)));
        self.events.insert(number, event);
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Wake { host, life } => {
                // A wake that an earlier one has replaced is no longer meant.
                if self.hosts[host].life != life || self.hosts[host].wake_at != Some(self.now) {
                    return;
                }
                self.hosts[host].wake_at = None;
                let now = self.moment();
                if let Process::Running(membership) = &mut self.hosts[host].process {
                    if membership.poll_timeout().is_some_and(|due| due <= now.moment) {
                        membership.handle_timeout(now);
                    }
                    self.drain(host);
                }
            }
            Event::GossipTick { host, life } => {
                if self.hosts[host].life == life && self.is_running(host) {
                    self.gossip(host, 0);
                    self.schedule(self.timing.gossip_interval, Event::GossipTick { host, life });
                }
            }
            Event::Serve { host, life } => {
                let now = self.moment();
                if self.hosts[host].life == life && self.is_running(host) && !self.hosts[host].said_goodbye {
                    if self.member(host).conflict().is_none() {
                        self.member(host).set_status(now, Status::Serving);
                    }
                    self.drain(host);
                }
            }
            Event::Deliver { host, delivery } => self.deliver(host, delivery),
        }
    }

    // The network.

    pub(super) fn addr(&self, host: HostId) -> SocketAddr {
        SocketAddr::from(([10, 0, (host / 250) as u8, (host % 250) as u8], self.hosts[host].port))
    }

    fn host_at(&self, addr: SocketAddr) -> Option<HostId> {
        (0..self.hosts.len()).find(|host| self.addr(*host) == addr)
    }

    fn is_cut(&self, from: HostId, to: HostId) -> bool {
        self.network.cuts.contains(&(from, to))
    }

    fn is_lost(&mut self, from: HostId, to: HostId) -> bool {
        self.is_cut(from, to) || self.rng.random_range(0..100) < self.network.loss_percent
    }

    fn delay(&mut self) -> Duration {
        Duration::from_micros(self.rng.random_range(100..1_500))
            + self.network.slowness.mul_f64(self.rng.random_range(0.0..2.0))
    }

    pub(super) fn drain(&mut self, host: HostId) {
        loop {
            let Process::Running(membership) = &mut self.hosts[host].process else { return };
            let Some(output) = membership.poll_output() else { break };
            self.obey(host, output);
        }
        let Process::Running(membership) = &self.hosts[host].process else { return };
        let due = membership.poll_timeout().expect("a membership always has something due").since_start();
        let life = self.hosts[host].life;
        if self.hosts[host].wake_at.is_none_or(|at| due < at) {
            let due = due.max(self.now);
            self.hosts[host].wake_at = Some(due);
            self.schedule(due - self.now, Event::Wake { host, life });
        }
    }

    fn obey(&mut self, host: HostId, output: MembershipOutput) {
        match output {
            MembershipOutput::Probe { to, addr, probe, by_link } => self.send(host, to, addr, probe, by_link),
            MembershipOutput::OwnFactsChanged { urgent } => {
                self.publish(host);
                if urgent {
                    self.gossip(host, 1);
                }
            }
            MembershipOutput::MemberChanged { node, was, .. } => {
                let of = self.hosts.iter().position(|other| other.id == node).expect("only hosts are members");
                let is = self.state(host, of);
                if is == Some(MemberState::Down) {
                    let was_running = self.is_running(of);
                    self.downs.push(Down { at: self.now, by: host, about: node, was_running });
                } else if was == Some(MemberState::Down) && is == Some(MemberState::Alive) {
                    self.gossip_with(host, of, 1);
                }
            }
            MembershipOutput::Forgotten { .. } => {}
            MembershipOutput::LateTick { .. } => self.late_ticks += 1,
        }
    }

    fn send(&mut self, from: HostId, to: NodeId, addr: SocketAddr, mut probe: Probe, by_link: bool) {
        self.packets += 1;
        if let (true, ProbeBody::Ping { suspected, .. }) = (self.network.refutation_sabotaged, &mut probe.body) {
            *suspected = None;
        }
        let Some(host) = self.host_at(addr) else {
            if by_link {
                let delivery = Delivery::Refused { node: to };
                self.schedule(ms(1), Event::Deliver { host: from, delivery });
            }
            return;
        };
        let delivery = Delivery::Probe { from: self.addr(from), probe, by_link };
        if !by_link {
            if !self.is_lost(from, host) {
                let delay = self.delay();
                self.schedule(delay, Event::Deliver { host, delivery });
            }
            return;
        }
        if self.network.no_links || self.is_cut(from, host) || self.is_cut(host, from) {
            return;
        }
        let delay = self.delay() + self.delay();
        if matches!(self.hosts[host].process, Process::Off) {
            self.schedule(delay, Event::Deliver { host: from, delivery: Delivery::Refused { node: to } });
        } else {
            self.links.insert((from.min(host), from.max(host)));
            self.schedule(delay, Event::Deliver { host, delivery });
        }
    }

    fn deliver(&mut self, host: HostId, delivery: Delivery) {
        let now = self.moment();
        match &mut self.hosts[host].process {
            Process::Off => return,
            Process::Frozen(_, inbox) => {
                if inbox.len() < SOCKET_BUFFER {
                    inbox.push(delivery);
                }
                return;
            }
            Process::Running(membership) => match delivery {
                Delivery::Probe { from, probe, by_link } => membership.handle_probe(now, from, probe, by_link),
                Delivery::Refused { node } => membership.handle_refused(now, node),
                Delivery::LinkDown { node } => membership.handle_link_down(now, node),
                Delivery::Gossip { from, life, hops } => {
                    if self.hosts[from].life == life && self.is_running(from) {
                        self.exchange(from, host, hops);
                    }
                }
            },
        }
        self.drain(host);
    }

    // Gossip.

    /// Takes the node's own facts into its gossip.
    fn publish(&mut self, host: HostId) {
        let facts = Rc::new(self.member(host).me().clone());
        let this = &mut self.hosts[host];
        this.version += 1;
        this.gossip.insert((facts.node, facts.generation), (this.version, facts));
    }

    fn gossip(&mut self, host: HostId, hops: u8) {
        let Process::Running(membership) = &self.hosts[host].process else { return };
        let own = membership.me().node;
        let live = membership.view().values().filter(|member| member.is_live() && member.facts.node != own);
        let mut addrs: Vec<SocketAddr> = live.map(|member| member.facts.cluster_addr).sample(&mut self.rng, FANOUT);
        if membership.me().status == Status::Joining {
            addrs.push(self.addr(0));
        }
        for peer in addrs.into_iter().filter_map(|addr| self.host_at(addr)).collect::<Vec<_>>() {
            self.gossip_with(host, peer, hops);
        }
    }

    pub(super) fn gossip_with(&mut self, host: HostId, peer: HostId, hops: u8) {
        if host != peer && !self.is_lost(host, peer) {
            let delay = self.delay();
            let delivery = Delivery::Gossip { from: host, life: self.hosts[host].life, hops };
            self.schedule(delay, Event::Deliver { host: peer, delivery });
        }
    }

    /// Brings both up to date, or only the one whom packets reach.
    fn exchange(&mut self, from: HostId, to: HostId, hops: u8) {
        let news = self.bring_up_to_date(from, to);
        if news && hops > 0 {
            self.gossip(to, hops - 1);
        }
        if !self.is_lost(to, from) {
            self.bring_up_to_date(to, from);
            self.drain(from);
        }
    }

    fn bring_up_to_date(&mut self, from: HostId, to: HostId) -> bool {
        let now = self.moment();
        let own = (self.hosts[to].id, Generation(self.hosts[to].generation));
        let mut news = Vec::new();
        let mut told = std::mem::take(&mut self.hosts[to].gossip);
        for (key, (version, facts)) in &self.hosts[from].gossip {
            if *key != own && told.get(key).is_none_or(|(known, _)| known < version) {
                told.insert(*key, (*version, Rc::clone(facts)));
                news.push((**facts).clone());
            }
        }
        self.hosts[to].gossip = told;
        if self.network.refutation_sabotaged {
            news.iter_mut().for_each(|facts| {
                facts.suspicions.remove(&own.0);
            });
        }
        let any = !news.is_empty();
        if let (true, Process::Running(membership)) = (any, &mut self.hosts[to].process) {
            membership.handle_facts(now, news);
        }
        any
    }
}
