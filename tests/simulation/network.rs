//! What lies between the machines: datagrams, peer connections and gossip.
//!
//! Everything takes a little time. Packets of one connection keep their order unless the network is told to
//! shuffle; a cut in either direction stops a connection, and a datagram only in its own direction. A machine
//! that is up but has no process refuses connections, one that is off is silent. Gossip works as the gossip
//! shell does: each node holds the newest facts of all, sends them to three others at every fourth interval and gets
//! back what is newer there. What changes meanwhile is told to three others by its own node, and an urgent fact is
//! handed on at once by everybody who did not know it. What has shown no heartbeat for long is dropped.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use flockwork::model::id::{Generation, NodeId};
use flockwork::model::member::{Facts, Status};
use flockwork::model::time::Now;
use flockwork::model::wire::{Message, Probe};
use flockwork::protocol::numbers::PER_START;

use crate::world::{Happening, World};

/// How often a node compares everything with some others.
const GOSSIP_EVERY: Duration = Duration::from_millis(800);
/// To how many of those who are heard.
const GOSSIP_TO: usize = 3;
/// And to how many by somebody who has no company yet.
const CALLS_AT_ONCE: usize = 16;
/// Whoever has had no heartbeat for so long is heard no more, for the library. It calls one of these at a time, the oftener the
/// more of them there are, and three only where nobody is heard.
const HEARD_FOR: Duration = GOSSIP_EVERY.saturating_mul(8);
/// Facts without a heartbeat for so long are no longer handed on...
const SILENT_AFTER: Duration = Duration::from_secs(90);
/// ...and are dropped after so long.
const DROPPED_AFTER: Duration = Duration::from_secs(180);

/// How the network behaves now.
#[derive(Debug)]
pub struct Network {
    /// From whom to whom nothing gets through.
    pub cuts: BTreeSet<(usize, usize)>,
    /// How many packets of a hundred are lost, or come twice.
    pub loss: f64,
    pub duplicates: f64,
    /// How many of a hundred come much later.
    pub stragglers: f64,
    /// Whether packets of one connection may overtake each other.
    pub shuffles: bool,
    /// The usual delay, in milliseconds.
    pub delay_ms: (f64, f64),
    last_arrival: BTreeMap<(usize, usize), Duration>,
    /// Pairs of processes that have a connection.
    links: BTreeSet<(u64, u64)>,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            cuts: BTreeSet::new(),
            loss: 0.0,
            duplicates: 0.0,
            stragglers: 0.0,
            shuffles: false,
            delay_ms: (0.1, 2.0),
            last_arrival: BTreeMap::new(),
            links: BTreeSet::new(),
        }
    }
}

/// Facts on their way, with their nodes.
type Told = Vec<(NodeId, Known)>;

impl Network {
    pub fn lets_through(&self, from: usize, to: usize, by_link: bool) -> bool {
        !(self.cuts.contains(&(from, to)) || by_link && self.cuts.contains(&(to, from)))
    }

    /// Whether it loses nothing, and delays nothing for long.
    pub fn is_well(&self) -> bool {
        let usual = Self::default();
        self.cuts.is_empty()
            && (self.loss, self.duplicates, self.stragglers) == (usual.loss, usual.duplicates, usual.stragglers)
            && !self.shuffles
            && self.delay_ms == usual.delay_ms
    }

    pub fn forget_process(&mut self, process: u64) {
        self.links.retain(|(one, other)| *one != process && *other != process);
    }
}

/// What travels.
#[derive(Debug, Clone)]
pub enum Packet {
    /// Over the connection between two processes.
    Message { sender: u64, addressee: u64, message: Box<Message> },
    /// A failure detector's packet; with an addressee if it is sent over the connection.
    Probe { addressee: Option<u64>, from_addr: SocketAddr, probe: Probe },
    /// Facts.
    Gossip { known: Arc<Told>, answer: bool, urgent: bool },
}

impl Packet {
    /// The process to which it goes, if no other may have it.
    pub fn process(&self) -> Option<u64> {
        match self {
            Self::Message { addressee, .. } => Some(*addressee),
            Self::Probe { addressee, .. } => *addressee,
            Self::Gossip { .. } => None,
        }
    }

    pub fn by_link(&self) -> bool {
        self.process().is_some()
    }
}

/// What a node's gossip shell knows of one node.
#[derive(Debug, Clone)]
pub struct Known {
    generation: Generation,
    heartbeat: u64,
    version: u64,
    facts: Option<Arc<Facts>>,
}

/// A node's gossip shell.
#[derive(Debug)]
pub struct Gossip {
    contacts: Vec<NodeId>,
    known: BTreeMap<NodeId, (Known, Duration)>,
}

impl Gossip {
    /// One that knows these addresses.
    pub fn new(contacts: Vec<NodeId>) -> Self {
        Self { contacts, known: BTreeMap::new() }
    }

    fn knows_nobody_but(&self, me: NodeId) -> bool {
        self.known.keys().all(|node| *node == me)
    }

    fn all(&self, now: Duration) -> Told {
        let fresh = self.known.iter().filter(|(_, (_, heard_at))| now.saturating_sub(*heard_at) < SILENT_AFTER);
        fresh.map(|(node, (known, _))| (*node, known.clone())).collect()
    }

    /// Whom it may call: those who are heard, and the rest. The shell's own calls, with what is urgent, spare who has left.
    fn others(&self, now: Duration, me: NodeId, urgent: bool) -> (Vec<NodeId>, Vec<NodeId>) {
        let has_left = |node: &NodeId| {
            let facts = self.known.get(node).and_then(|(known, _)| known.facts.as_ref());
            facts.is_some_and(|facts| facts.status == Status::Left)
        };
        let is_called = |node: &NodeId| *node != me && !(urgent && has_left(node));
        let others: BTreeSet<NodeId> = self.known.keys().chain(&self.contacts).copied().filter(is_called).collect();
        let is_heard =
            |node: &NodeId| self.known.get(node).is_some_and(|(_, heard_at)| now.saturating_sub(*heard_at) < HEARD_FOR);
        others.into_iter().partition(is_heard)
    }

    /// Takes in what another knows. Returns the facts that are news, with their nodes, and what is newer here.
    fn take_in(&mut self, now: Duration, me: NodeId, theirs: &[(NodeId, Known)]) -> (Told, Told) {
        let mut news = Vec::new();
        let mut newer_here = Vec::new();
        let mut theirs = theirs.iter().peekable();
        let mut unknown = Vec::new();
        for (node, (known, heard_at)) in &mut self.known {
            while let Some(told) = theirs.next_if(|(other, _)| other < node) {
                unknown.push(told.clone());
            }
            let is_fresh = now.saturating_sub(*heard_at) < SILENT_AFTER;
            let Some((_, told)) = theirs.next_if(|(other, _)| other == node) else {
                if is_fresh {
                    newer_here.push((*node, known.clone()));
                }
                continue;
            };
            let order = |known: &Known| (known.generation, known.version);
            let beat = |known: &Known| (known.generation, known.heartbeat);
            if is_fresh && (order(told) < order(known) || beat(told) < beat(known)) {
                newer_here.push((*node, known.clone()));
            }
            if *node == me {
                continue;
            }
            if beat(told) > beat(known) {
                *heard_at = now;
                known.heartbeat = told.heartbeat;
            }
            if order(told) > order(known) {
                news.push((*node, told.clone()));
                *known = Known { heartbeat: told.heartbeat.max(known.heartbeat), ..told.clone() };
            }
        }
        unknown.extend(theirs.cloned());
        for (node, told) in unknown {
            news.push((node, told.clone()));
            self.known.insert(node, (told, now));
        }
        (news, newer_here)
    }
}

impl World {
    /// Cuts `group` off from all others, in both directions.
    pub fn split(&mut self, group: &[usize]) {
        self.faults.splits += 1;
        (self.disturbances.any, self.disturbances.doubt) = (true, true);
        for one in 0..self.nodes.len() {
            for other in 0..self.nodes.len() {
                if group.contains(&one) != group.contains(&other) {
                    self.network.cuts.insert((one, other));
                }
            }
        }
        self.log_fault(|| format!("the network splits: {group:?} are cut off"));
    }

    /// Nothing gets from `from` to `to` any longer.
    pub fn cut(&mut self, from: usize, to: usize) {
        self.faults.cuts += 1;
        (self.disturbances.any, self.disturbances.doubt) = (true, true);
        self.network.cuts.insert((from, to));
        self.log_fault(|| format!("the network is cut from n{from} to n{to}"));
    }

    /// Everything gets through again.
    pub fn heal(&mut self) {
        let last_arrival = std::mem::take(&mut self.network.last_arrival);
        let links = std::mem::take(&mut self.network.links);
        let was_well = self.network.is_well();
        self.network = Network { last_arrival, links, ..Network::default() };
        if !was_well {
            self.log_fault(|| "the network heals".into());
        }
    }

    /// Puts a packet on its way, once, twice or not at all.
    fn transmit(&mut self, from: usize, to: usize, packet: Packet) {
        if !self.network.lets_through(from, to, packet.by_link()) {
            self.note_packet(from, to, &packet, ", but is cut off");
            if packet.by_link() && self.dice.chance(5.0) {
                // The dial, or the connection, times out.
                let process = self.process(from).map_or(0, |process| process.number);
                let after = self.dice.ms(1_000.0, 3_000.0);
                self.schedule(after, Happening::LinkDown { to: from, process, peer: to });
            }
            return;
        }
        if self.dice.chance(self.network.loss) {
            return self.note_packet(from, to, &packet, ", which is lost");
        }
        if self.dice.chance(self.network.duplicates) {
            let after = self.delay();
            self.schedule(after, Happening::Arrival { to, from, packet: packet.clone() });
        }
        self.note_packet(from, to, &packet, "");
        let mut at = self.now + self.delay();
        if packet.by_link() && !self.network.shuffles {
            let last = self.network.last_arrival.entry((from, to)).or_default();
            at = at.max(*last + Duration::from_nanos(1));
            *last = at;
        }
        self.schedule_at(at, Happening::Arrival { to, from, packet });
    }

    fn delay(&mut self) -> Duration {
        let (low, high) = self.network.delay_ms;
        let straggles = self.dice.chance(self.network.stragglers);
        if straggles { self.dice.ms(high, 400.0) } else { self.dice.ms(low, high) }
    }

    /// A connection needs a process at the other end. Returns it, or lets the sender know after a moment.
    fn connect(&mut self, from: usize, to: usize) -> Option<u64> {
        if let Some(process) = self.process(to) {
            return Some(process.number);
        }
        if !self.nodes[to].powered_off && self.network.lets_through(from, to, true) {
            let (delay, process) = (self.dice.ms(0.2, 3.0), self.process(from)?.number);
            self.schedule(delay, Happening::Refused { to: from, process, peer: to });
        }
        None
    }

    pub fn send_message(&mut self, from: usize, to: usize, message: Message) {
        let Some(addressee) = self.connect(from, to) else {
            return;
        };
        let sender = self.process(from).map_or(0, |process| process.number);
        let packet = Packet::Message { sender, addressee, message: Box::new(message) };
        self.transmit(from, to, packet);
    }

    pub fn send_probe(&mut self, from: usize, _to: NodeId, addr: SocketAddr, probe: Probe, by_link: bool) {
        let Some(to) = self.nodes.iter().position(|node| node.addr == addr) else {
            return;
        };
        let addressee = if by_link {
            match self.connect(from, to) {
                Some(process) => Some(process),
                None => return,
            }
        } else {
            None
        };
        let from_addr = self.nodes[from].addr;
        self.transmit(from, to, Packet::Probe { addressee, from_addr, probe });
    }

    /// The node's own facts changed.
    pub fn gossip_own(&mut self, node: usize, facts: Facts, urgent: bool) {
        let (me, now) = (self.nodes[node].id, self.now);
        let Some(process) = self.nodes[node].process.as_mut() else {
            return;
        };
        let before = process.gossip.known.get(&me).map_or((0, 0), |(known, _)| (known.heartbeat, known.version));
        let own = Known {
            generation: facts.generation,
            heartbeat: before.0 + 1,
            version: before.1 + 1,
            facts: Some(Arc::new(facts)),
        };
        process.gossip.known.insert(me, (own.clone(), now));
        self.spread(node, vec![(me, own)], false, urgent);
    }

    pub fn gossip_tick(&mut self, node: usize) {
        let (me, now) = (self.nodes[node].id, self.now);
        let Some(process) = self.nodes[node].process.as_mut() else {
            return;
        };
        if let Some((own, heard_at)) = process.gossip.known.get_mut(&me) {
            own.heartbeat += 1;
            *heard_at = now;
        }
        process.gossip.known.retain(|_, (_, heard_at)| now.saturating_sub(*heard_at) < DROPPED_AFTER);
        let (number, all) = (process.number, process.gossip.all(now));
        self.spread(node, all, true, false);
        self.schedule(GOSSIP_EVERY, Happening::GossipTick { node, process: number });
    }

    /// Sends facts to some others, as the library chooses them, and the shell while there is no company.
    fn spread(&mut self, node: usize, known: Told, answer: bool, urgent: bool) {
        let me = self.nodes[node].id;
        let Some(process) = self.nodes[node].process.as_ref() else {
            return;
        };
        let (heard, silent) = process.gossip.others(self.now, me, urgent);
        let (mut candidates, silent) = if heard.is_empty() { (silent, heard) } else { (heard, silent) };
        let for_one_of_the_silent = 100.0 * silent.len() as f64 / (candidates.len() + 1) as f64;
        let most = if process.gossip.knows_nobody_but(me) { CALLS_AT_ONCE } else { GOSSIP_TO };
        let mut chosen = Vec::with_capacity(GOSSIP_TO + 1);
        while let Some(one) = self.dice.pick(&candidates).filter(|_| chosen.len() < most) {
            candidates.retain(|other| *other != one);
            chosen.push(one);
        }
        if self.dice.chance(for_one_of_the_silent) {
            chosen.extend(self.dice.pick(&silent));
        }
        let known = Arc::new(known);
        let places: Vec<usize> = chosen.into_iter().filter_map(|one| self.place_of(one)).collect();
        for to in places {
            self.transmit(node, to, Packet::Gossip { known: Arc::clone(&known), answer, urgent });
        }
    }

    /// A packet has arrived at a process that runs.
    pub fn receive(&mut self, now: Now, node: usize, from: usize, packet: Packet) {
        let sender = self.nodes[from].id;
        match packet {
            Packet::Message { sender: process, addressee, message } => {
                self.link_up(now, node, from, (process, addressee));
                self.call(node, |peer| peer.handle_message(now, sender, *message));
            }
            Packet::Probe { addressee, from_addr, probe } => {
                self.call(node, |peer| peer.handle_probe(now, from_addr, probe, addressee.is_some()));
            }
            Packet::Gossip { known, answer, urgent } => self.receive_gossip(now, node, from, known, answer, urgent),
        }
    }

    /// The first message between two processes: their connection was opened just before it.
    fn link_up(&mut self, now: Now, node: usize, from: usize, (sender, addressee): (u64, u64)) {
        if self.network.links.insert((sender.min(addressee), sender.max(addressee))) {
            let (mine, theirs) = (self.nodes[node].id, self.nodes[from].id);
            self.call(node, |peer| peer.handle_link_up(now, theirs));
            let there = self.local_now(from);
            let other = self.nodes[from].process.as_mut().filter(|process| process.number == sender && !process.paused);
            if let Some(process) = other {
                process.peer.handle_link_up(there, mine);
                self.pump(from);
            }
        }
    }

    fn receive_gossip(&mut self, now: Now, node: usize, from: usize, known: Arc<Told>, answer: bool, urgent: bool) {
        let (me, at) = (self.nodes[node].id, self.now);
        let Some(process) = self.nodes[node].process.as_mut() else {
            return;
        };
        let (news, newer_here) = process.gossip.take_in(at, me, &known);
        let facts: Vec<Facts> =
            news.iter().filter_map(|(_, known)| known.facts.as_ref()).map(|facts| Facts::clone(facts)).collect();
        if !facts.is_empty() {
            process.peer.handle_facts(now, facts);
        }
        if answer && !newer_here.is_empty() {
            self.transmit(node, from, Packet::Gossip { known: Arc::new(newer_here), answer: false, urgent: false });
        }
        if urgent && !news.is_empty() {
            self.spread(node, news, false, true);
        }
    }
}

/// A message in a few words, for the trace; nothing for the chatter of gossip and probes.
pub fn describe(packet: &Packet) -> String {
    let Packet::Message { message, .. } = packet else {
        return String::new();
    };
    match &**message {
        Message::Push { seq, records, .. } => {
            let records: Vec<String> = records
                .iter()
                .take(4)
                .map(|record| format!("{} {}", short(record.id.0), record.state().as_str()))
                .collect();
            format!("push {}: {}", numbered(*seq), records.join(", "))
        }
        Message::Stored { seq, versions } => format!("stored {}: {} records", numbered(*seq), versions.len()),
        Message::PushAgain { jobs } => format!("push again: {} records", jobs.len()),
        Message::Remember { memories } => {
            format!("remembers {} down, {} forgotten", memories.down.len(), memories.forgotten.len())
        }
        Message::Compare { round, takeover, horizon: _, digests } => {
            format!(
                "compare {}: {} partitions{}",
                numbered(*round),
                digests.len(),
                if *takeover { ", to take over" } else { "" }
            )
        }
        Message::Differ { round, partitions, .. } => {
            format!("differ {}: {} partitions", numbered(*round), partitions.len())
        }
        Message::Fetch { round, jobs } => format!("fetch {}: {} records", numbered(*round), jobs.len()),
        Message::Fetched { round, records, .. } => format!("fetched {}: {} records", numbered(*round), records.len()),
        Message::Check { round, versions } => format!("check {}: {} records", numbered(*round), versions.len()),
        Message::Checked { round, same } => format!("checked {}: {} records", numbered(*round), same.len()),
        Message::Offer { job, .. } => format!("offer of {}", short(job.0)),
        Message::OfferAnswer { job, accepted, .. } => format!("offer of {}: {accepted}", short(job.0)),
        Message::Withdraw { job } => format!("offer of {} withdrawn", short(job.0)),
        Message::Start { record, claim } => format!("start {} by claim {claim}", short(record.id.0)),
        Message::Idle { free } => format!("idle: {} slots", free.slots),
        Message::Request { call, request } => {
            let text = format!("{request:?}");
            format!("request {}: {}", numbered(*call), text.split([' ', '(', '{']).next().unwrap_or_default())
        }
        Message::Response { call, response } => {
            let text = format!("{response:?}");
            format!("response {}: {}", numbered(*call), text.split([' ', '(', '{']).next().unwrap_or_default())
        }
    }
}

/// A question's number: in which start it was asked, and as the how many-th there.
fn numbered(number: u64) -> String {
    format!("{}.{}", number / PER_START, number % PER_START)
}

/// The first digits of an id.
pub fn short(id: u128) -> String {
    format!("{id:032x}")[..8].to_owned()
}
