//! A small world for [`Membership`]: hosts, a network that loses and cuts, gossip, and a clock that jumps.
//!
//! Everything happens in one thread by one queue of events, so the same seed is the same run. The world knows
//! the truth (who runs, who is frozen), and its checkers compare every node's view with it. Gossip is
//! modelled by what it promises: in each round a node and three random live members of its view bring each
//! other up to date; news that cannot wait is handed on to three others at once, and by each who did not know it.
//!
//! Faults can be planted: rules of the membership that are broken in every node, and a gossip that hands news on but
//! never compares everything. [`super::soak`] is what they are caught by.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IteratorRandom;
use rand::{RngExt, SeedableRng};

use super::{Membership, MembershipOutput, Rules};
use crate::model::config::{Config, Profile, Timing};
use crate::model::id::{Generation, Incarnation, NodeId};
use crate::model::member::{
    ClusterSettings, Facts, Fingerprint, Load, MemberState, PartitionSet, Status, WIRE_VERSION,
};
use crate::model::resources::Resources;
use crate::model::time::{Moment, Now, Timestamp};
use crate::model::wire::Probe;

/// How many peers a gossip round, or a handing on, goes to.
const FANOUT: usize = 3;
/// How many of the members that it knew a starting node calls at once.
const CALLS_AT_START: usize = 16;
/// How much a frozen process's sockets hold.
const SOCKET_BUFFER: usize = 256;
/// Below the first start of every host.
const FIRST_GENERATION: u64 = 100;
/// How long a start takes until the node serves.
const START_UP: Duration = Duration::from_secs(1);

pub const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

pub const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// A machine, by its number.
pub type HostId = usize;

#[derive(Debug)]
pub struct Host {
    pub id: NodeId,
    pub name: String,
    pub port: u16,
    pub settings: ClusterSettings,
    /// What it keeps on disk for the next start.
    pub disk: Vec<Facts>,
    pub process: Process,
    /// What waits to get in and out while the process runs but neither sends nor receives.
    stalled: Option<Stall>,
    pub said_goodbye: bool,
    generation: u64,
    /// Counts starts, so that events of an earlier one are ignored.
    life: u64,
    wake_at: Option<Duration>,
    /// What it knows of each host by gossip, with the number of that saying of the host's.
    gossip: Vec<Option<(u64, Rc<Facts>)>>,
    version: u64,
}

impl Host {
    fn remember(&mut self, about: HostId, version: u64, facts: Rc<Facts>) {
        if self.gossip.len() <= about {
            self.gossip.resize(about + 1, None);
        }
        self.gossip[about] = Some((version, facts));
    }

    /// The next start counts on from here.
    pub fn set_generation(&mut self, generation: u64) {
        self.generation = generation;
    }
}

#[derive(Debug, Default)]
struct Stall {
    inbox: Vec<Delivery>,
    outbox: Vec<(HostId, Delivery, bool)>,
}

#[derive(Debug)]
pub enum Process {
    Off,
    Running(Box<Membership>),
    Frozen(Box<Membership>, Vec<Delivery>),
}

/// What reaches a process.
#[derive(Debug, Clone)]
pub enum Delivery {
    Probe { from: SocketAddr, probe: Probe, by_link: bool },
    Gossip { from: HostId, life: u64, urgent: bool },
    Refused { node: NodeId },
    LinkDown { node: NodeId },
}

#[derive(Debug)]
enum Event {
    Wake { host: HostId, life: u64 },
    GossipTick { host: HostId, life: u64 },
    Serve { host: HostId, life: u64 },
    Deliver { host: HostId, delivery: Delivery },
}

/// Where the network misbehaves. Changed by the stories at will.
#[derive(Debug, Default)]
pub struct Network {
    /// From whom to whom nothing passes.
    pub cuts: BTreeSet<(HostId, HostId)>,
    /// How many datagrams of a hundred are lost.
    pub loss_percent: u32,
    /// Peer connections pass nothing, while datagrams do.
    pub no_links: bool,
    /// Added to every packet's way, each time up to twice this.
    pub slowness: Duration,
    /// News are handed on, and nothing is ever compared: a fault for the checkers to find.
    pub without_comparison: bool,
}

/// A verdict that somebody gave: when, who, about whom, and whether the condemned was running.
#[derive(Debug, Clone)]
pub struct Down {
    pub at: Duration,
    pub by: HostId,
    pub about: NodeId,
    pub was_running: bool,
}

#[derive(Debug)]
pub struct World {
    pub now: Duration,
    pub rng: StdRng,
    pub hosts: Vec<Host>,
    pub network: Network,
    pub timing: Timing,
    /// What every membership keeps to that starts from now on.
    pub rules: Rules,
    pub downs: Vec<Down>,
    pub late_ticks: u32,
    /// Datagrams and link packets sent.
    pub packets: u64,
    /// Handshakes of the gossip begun.
    pub handshakes: u64,
    queue: BinaryHeap<Reverse<(Duration, u64)>>,
    events: BTreeMap<u64, Event>,
    next_event: u64,
    links: BTreeSet<(HostId, HostId)>,
}

impl World {
    /// `count` hosts, all of them off.
    pub fn new(seed: u64, count: usize) -> Self {
        let mut world = Self {
            now: Duration::ZERO,
            rng: StdRng::seed_from_u64(seed),
            hosts: Vec::new(),
            network: Network::default(),
            timing: Timing::of(Profile::Lan),
            rules: Rules::default(),
            downs: Vec::new(),
            late_ticks: 0,
            packets: 0,
            handshakes: 0,
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
    pub fn running(seed: u64, count: usize) -> Self {
        Self::running_by(seed, count, Rules::default())
    }

    /// The same, where all keep to these rules only.
    pub fn running_by(seed: u64, count: usize, rules: Rules) -> Self {
        let mut world = Self { rules, ..Self::new(seed, count) };
        for host in 0..count {
            world.start(host);
        }
        world.run_until_agreed(secs(60)).expect("a healthy cluster forms");
        world.run(secs(2));
        world.downs.clear();
        world
    }

    pub fn add_host(&mut self) -> HostId {
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
            stalled: None,
            said_goodbye: false,
            generation: FIRST_GENERATION,
            life: 0,
            wake_at: None,
            gossip: Vec::new(),
            version: 0,
        });
        host
    }

    // What happens to hosts.

    pub fn start(&mut self, host: HostId) {
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
            revision: 0,
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
            departed: BTreeMap::new(),
            dismissed: BTreeMap::new(),
        };
        let config =
            Config { cluster: this.settings.clone(), timing, ..Config::new(Profile::Local, Resources::default()) };
        let mut membership = Membership::new(now, &config, facts, this.disk.clone(), seed);
        membership.set_rules(self.rules);
        this.process = Process::Running(Box::new(membership));
        this.wake_at = None;
        let life = this.life;
        let remembered = this.disk.iter().map(|facts| facts.cluster_addr).sample(&mut self.rng, CALLS_AT_START);
        self.publish(host);
        for addr in remembered.into_iter().chain([self.addr(0)]) {
            if let Some(peer) = self.host_at(addr) {
                self.gossip_with(host, peer, true);
            }
        }
        let offset = self.gossip_round().mul_f64(self.rng.random_range(0.0..1.0));
        self.schedule(offset, Event::GossipTick { host, life });
        self.schedule(START_UP, Event::Serve { host, life });
        self.drain(host);
    }

    /// As by kill -9: the machine lives on and refuses connections.
    pub fn crash(&mut self, host: HostId) {
        if let Process::Running(membership) | Process::Frozen(membership, _) = &self.hosts[host].process {
            self.hosts[host].disk = membership.remembered();
        }
        self.hosts[host].process = Process::Off;
        self.hosts[host].stalled = None;
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
    pub fn set_links(&mut self, connected: bool) {
        let count = self.hosts.len();
        let pairs = (0..count).flat_map(|a| (a + 1..count).map(move |b| (a, b)));
        self.links = pairs.filter(|_| connected).collect();
    }

    /// As by SIGSTOP: the machine still accepts connections and packets, and nothing answers.
    pub fn freeze(&mut self, host: HostId) {
        let process = std::mem::replace(&mut self.hosts[host].process, Process::Off);
        self.hosts[host].process = match process {
            Process::Running(membership) => Process::Frozen(membership, Vec::new()),
            Process::Frozen(..) | Process::Off => process,
        };
    }

    pub fn thaw(&mut self, host: HostId) {
        let process = std::mem::replace(&mut self.hosts[host].process, Process::Off);
        let Process::Frozen(membership, inbox) = process else {
            self.hosts[host].process = process;
            return;
        };
        self.hosts[host].process = Process::Running(membership);
        // It is a matter of chance whether a process looks at its timers or at its sockets first.
        if self.rng.random_bool(0.5) {
            let now = self.moment();
            self.member(host).handle_timeout(now);
            self.drain(host);
        }
        for delivery in inbox {
            self.deliver(host, delivery);
        }
        let life = self.hosts[host].life;
        self.hosts[host].wake_at = Some(self.now);
        self.schedule(Duration::ZERO, Event::Wake { host, life });
        self.schedule(ms(1), Event::GossipTick { host, life });
    }

    /// Its process runs and its timers go on, but nothing gets in or out: the slow processing of messages that
    /// Lifeguard's experiments have (section V).
    pub fn stall(&mut self, host: HostId) {
        self.hosts[host].stalled.get_or_insert_default();
    }

    /// What waited goes on its way.
    pub fn resume(&mut self, host: HostId) {
        let Some(stall) = self.hosts[host].stalled.take() else { return };
        for (to, delivery, by_link) in stall.outbox {
            self.transmit(host, to, delivery, by_link);
        }
        for delivery in stall.inbox {
            self.deliver(host, delivery);
        }
    }

    pub fn is_stalled(&self, host: HostId) -> bool {
        self.hosts[host].stalled.is_some()
    }

    /// Says goodbye, and stops a second later.
    pub fn leave(&mut self, host: HostId) {
        let now = self.moment();
        self.hosts[host].said_goodbye = true;
        self.member(host).set_status(now, Status::Left);
        self.drain(host);
        self.run(secs(1));
        self.crash(host);
    }

    /// Cuts every way between `left` and `right`, or heals it.
    pub fn cut(&mut self, left: &[HostId], right: &[HostId], is_cut: bool) {
        for a in left {
            for b in right.iter().filter(|b| *b != a) {
                for pair in [(*a, *b), (*b, *a)] {
                    self.cut_one_way(pair.0, pair.1, is_cut);
                }
            }
        }
    }

    pub fn cut_one_way(&mut self, from: HostId, to: HostId, is_cut: bool) {
        if is_cut {
            self.network.cuts.insert((from, to));
        } else {
            self.network.cuts.remove(&(from, to));
        }
    }

    // What is seen.

    pub fn member(&mut self, host: HostId) -> &mut Membership {
        match &mut self.hosts[host].process {
            Process::Running(membership) | Process::Frozen(membership, _) => membership,
            Process::Off => panic!("host {host} is off"),
        }
    }

    pub fn is_running(&self, host: HostId) -> bool {
        matches!(self.hosts[host].process, Process::Running(_))
    }

    pub fn state(&self, host: HostId, of: HostId) -> Option<MemberState> {
        let Process::Running(membership) = &self.hosts[host].process else { return None };
        membership.view().get(&self.hosts[of].id).map(|member| member.state)
    }

    pub fn false_downs(&self) -> Vec<&Down> {
        self.downs.iter().filter(|down| down.was_running).collect()
    }

    /// Where views differ from the truth, among the hosts of one side that all reach each other.
    pub fn disagreements(&self, side: &[HostId]) -> impl Iterator<Item = String> {
        let reached: BTreeSet<HostId> = side.iter().copied().collect();
        let observers = side.iter().copied().filter(|host| self.is_running(*host));
        observers.flat_map(move |observer| {
            let reached = reached.clone();
            let known = self.hosts.iter().enumerate().filter(|(_, host)| host.generation > FIRST_GENERATION);
            known.filter_map(move |(about, host)| {
                let seen = self.state(observer, about);
                let right = match (&host.process, host.said_goodbye) {
                    (Process::Running(_), false) if reached.contains(&about) => seen == Some(MemberState::Alive),
                    (Process::Frozen(..) | Process::Off | Process::Running(_), false) => {
                        seen.is_none() || seen == Some(MemberState::Down)
                    }
                    (_, true) => seen.is_none() || seen == Some(MemberState::Left),
                };
                (!right).then(|| format!("n{observer} sees n{about} as {seen:?}"))
            })
        })
    }

    // Time.

    pub fn run(&mut self, span: Duration) {
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
    pub fn run_until_agreed(&mut self, bound: Duration) -> Result<Duration, String> {
        let everybody: Vec<HostId> = (0..self.hosts.len()).collect();
        self.run_until_side_agreed(&everybody, bound)
    }

    pub fn run_until_side_agreed(&mut self, side: &[HostId], bound: Duration) -> Result<Duration, String> {
        let began = self.now;
        loop {
            // Most of the time it is enough to find one that is wrong.
            if self.disagreements(side).next().is_none() {
                return Ok(self.now - began);
            }
            if self.now - began >= bound {
                let wrong: Vec<String> = self.disagreements(side).collect();
                let some = wrong[..wrong.len().min(5)].join(", ");
                return Err(format!("after {bound:?}, {} views are wrong: {some}", wrong.len()));
            }
            // Looking at a million views takes longer than it takes them to change.
            self.run(if self.hosts.len() > 200 { ms(200) } else { ms(20) });
        }
    }

    /// Every fourth interval all is compared.
    fn gossip_round(&self) -> Duration {
        self.timing.gossip_interval * 4
    }

    pub fn moment(&self) -> Now {
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
                    if !self.network.without_comparison {
                        self.gossip(host, false);
                    }
                    self.schedule(self.gossip_round(), Event::GossipTick { host, life });
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

    pub fn addr(&self, host: HostId) -> SocketAddr {
        SocketAddr::from(([10, 0, (host / 250) as u8, (host % 250) as u8], self.hosts[host].port))
    }

    fn host_at(&self, addr: SocketAddr) -> Option<HostId> {
        let SocketAddr::V4(v4) = addr else { return None };
        let [_, _, high, low] = v4.ip().octets();
        let host = HostId::from(high) * 250 + HostId::from(low);
        (host < self.hosts.len() && self.addr(host) == addr).then_some(host)
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

    pub fn drain(&mut self, host: HostId) {
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
                    self.gossip(host, true);
                }
            }
            MembershipOutput::MemberChanged { node, was, .. } => {
                let of = self.hosts.iter().position(|other| other.id == node).expect("only hosts are members");
                let is = self.state(host, of);
                if is == Some(MemberState::Down) {
                    let was_running = self.is_running(of);
                    self.downs.push(Down { at: self.now, by: host, about: node, was_running });
                } else if was == Some(MemberState::Down) && is == Some(MemberState::Alive) {
                    self.gossip_with(host, of, true);
                }
            }
            MembershipOutput::Call { addr } => {
                if let Some(peer) = self.host_at(addr) {
                    self.gossip_with(host, peer, true);
                }
            }
            // The rings are not computed here, so none differs.
            MembershipOutput::TellOfTheGone { .. } | MembershipOutput::Forgotten { .. } => {}
            MembershipOutput::LateTick { .. } => self.late_ticks += 1,
        }
    }

    fn send(&mut self, from: HostId, to: NodeId, addr: SocketAddr, probe: Probe, by_link: bool) {
        self.packets += 1;
        let Some(host) = self.host_at(addr) else {
            if by_link {
                let delivery = Delivery::Refused { node: to };
                self.schedule(ms(1), Event::Deliver { host: from, delivery });
            }
            return;
        };
        let delivery = Delivery::Probe { from: self.addr(from), probe, by_link };
        self.transmit(from, host, delivery, by_link);
    }

    fn transmit(&mut self, from: HostId, host: HostId, delivery: Delivery, by_link: bool) {
        if let Some(stall) = &mut self.hosts[from].stalled {
            if stall.outbox.len() < SOCKET_BUFFER {
                stall.outbox.push((host, delivery, by_link));
            }
            return;
        }
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
            let node = self.hosts[host].id;
            self.schedule(delay, Event::Deliver { host: from, delivery: Delivery::Refused { node } });
        } else {
            self.links.insert((from.min(host), from.max(host)));
            self.schedule(delay, Event::Deliver { host, delivery });
        }
    }

    fn deliver(&mut self, host: HostId, delivery: Delivery) {
        let now = self.moment();
        if let Some(stall) = &mut self.hosts[host].stalled {
            if stall.inbox.len() < SOCKET_BUFFER {
                stall.inbox.push(delivery);
            }
            return;
        }
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
                Delivery::Gossip { from, life, urgent } => {
                    if self.hosts[from].life == life && self.is_running(from) && !self.is_stalled(from) {
                        self.exchange(from, host, urgent);
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
        let version = this.version;
        this.remember(host, version, facts);
    }

    fn gossip(&mut self, host: HostId, urgent: bool) {
        let Process::Running(membership) = &self.hosts[host].process else { return };
        let own = membership.me().node;
        let live = membership.view().values().filter(|member| member.is_live() && member.facts.node != own);
        let live: Vec<SocketAddr> = live.map(|member| member.facts.cluster_addr).collect();
        let mut addrs: Vec<SocketAddr> = rand::seq::index::sample(&mut self.rng, live.len(), FANOUT.min(live.len()))
            .iter()
            .map(|at| live[at])
            .collect();
        if membership.me().status == Status::Joining {
            addrs.push(self.addr(0));
        }
        for peer in addrs.into_iter().filter_map(|addr| self.host_at(addr)).collect::<Vec<_>>() {
            self.gossip_with(host, peer, urgent);
        }
    }

    pub fn gossip_with(&mut self, host: HostId, peer: HostId, urgent: bool) {
        self.handshakes += 1;
        if host != peer {
            let delivery = Delivery::Gossip { from: host, life: self.hosts[host].life, urgent };
            self.transmit(host, peer, delivery, false);
        }
    }

    /// Brings both up to date, or only the one whom packets reach.
    fn exchange(&mut self, from: HostId, to: HostId, urgent: bool) {
        let is_only_news = urgent && self.network.without_comparison;
        let news = self.bring_up_to_date(from, to, is_only_news);
        if news && urgent {
            self.gossip(to, true);
        }
        if !is_only_news && !self.is_lost(to, from) {
            let news = self.bring_up_to_date(to, from, false);
            if news && urgent {
                self.gossip(from, true);
            }
            self.drain(from);
        }
    }

    /// Whether there was anything urgent among what was new.
    fn bring_up_to_date(&mut self, from: HostId, to: HostId, only_its_own: bool) -> bool {
        let now = self.moment();
        let mut known = std::mem::take(&mut self.hosts[to].gossip);
        known.resize(self.hosts.len(), None);
        let (mut news, mut is_urgent) = (Vec::new(), false);
        let told = self.hosts[from].gossip.iter().enumerate();
        for (about, told) in told.filter(|(about, _)| *about != to && (!only_its_own || *about == from)) {
            let Some((version, facts)) = told else { continue };
            let before = known[about].as_ref();
            if before.is_none_or(|(known, _)| known < version) {
                is_urgent |= before.is_none_or(|(_, before)| is_urgent_change(before, facts));
                news.push((**facts).clone());
                known[about] = Some((*version, Rc::clone(facts)));
            }
        }
        self.hosts[to].gossip = known;
        if let (false, Process::Running(membership)) = (news.is_empty(), &mut self.hosts[to].process) {
            membership.handle_facts(now, news);
        }
        is_urgent
    }
}

/// What the gossip hands on at once: who stands where, and who votes against whom.
fn is_urgent_change(before: &Facts, after: &Facts) -> bool {
    let standing = |facts: &Facts| (facts.generation, facts.incarnation, facts.status);
    standing(before) != standing(after) || before.suspicions != after.suspicions
}
