//! Stories of gossip over real sockets, and of every trap that the library lays.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::facts::tests::facts;
use super::guard::tests::Forgery;
use super::*;
use crate::io::clock::Clock;
use crate::io::faults::Faults;
use crate::io::transport::{Incoming, TransportConfig};
use crate::model::id::Incarnation;
use crate::model::member::{Load, Status, WIRE_VERSION};
use crate::model::wire::Hello;

const PATIENCE: Duration = Duration::from_secs(20);
const OFTEN: Duration = Duration::from_millis(50);
/// So seldom that within a test only urgent news travel.
const SELDOM: Duration = Duration::from_secs(600);

struct Node {
    me: Facts,
    gossip: Gossip,
    others: watch::Receiver<Arc<Vec<Facts>>>,
    _unread: mpsc::Receiver<Incoming>,
    tracker: TaskTracker,
    stop: CancellationToken,
}

/// A UDP and a TCP socket with one port.
async fn sockets(addr: SocketAddr) -> (UdpSocket, TcpListener) {
    loop {
        let listener = TcpListener::bind(addr).await.unwrap();
        match UdpSocket::bind(listener.local_addr().unwrap()).await {
            Ok(socket) => return (socket, listener),
            Err(error) => assert!(addr.port() == 0, "{error}"),
        }
    }
}

fn any_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

impl Node {
    async fn start(id: u32, interval: Duration, seeds: &[&Self]) -> Self {
        Self::start_at(any_port(), id, 1, interval, &addresses(seeds), |_| {}).await
    }

    async fn start_at(
        addr: SocketAddr,
        id: u32,
        generation: u64,
        interval: Duration,
        seeds: &[String],
        set: impl Fn(&mut Facts),
    ) -> Self {
        let (socket, listener) = sockets(addr).await;
        let mut me = facts(id, generation, listener.local_addr().unwrap());
        set(&mut me);
        let (tracker, stop) = (TaskTracker::new(), CancellationToken::new());
        let hello = Hello {
            cluster: me.cluster.name.clone(),
            wire_version: WIRE_VERSION,
            node: me.node,
            generation: me.generation,
            cluster_addr: me.cluster_addr,
        };
        // Gossip comes through although nobody reads what else comes.
        let (incoming, unread) = mpsc::channel(64);
        let config = TransportConfig::new(hello);
        let transport = Transport::start(listener, config, incoming, tracker.clone(), stop.clone());
        let (probes, _) = mpsc::channel(1);
        let datagrams =
            Datagrams::start(socket, probes, Clock::new(), Faults::disarmed(), &tracker, stop.clone()).unwrap();
        let config = GossipConfig { interval, seeds: seeds.to_vec() };
        let gossip = Gossip::start(&me, config, datagrams, transport, &tracker, stop.clone()).await.unwrap();
        Self { me, others: gossip.facts(), gossip, _unread: unread, tracker, stop }
    }

    async fn publish(&mut self, urgent: bool, change: impl Fn(&mut Facts)) {
        change(&mut self.me);
        self.gossip.publish(&self.me, urgent).await.unwrap();
    }

    /// Waits until this node knows exactly what `node` says of itself.
    async fn until_it_knows(&mut self, node: &Facts) {
        let (own, name) = (self.me.node, node.node);
        let known = self.others.wait_for(|others| others.contains(node));
        assert!(timeout(PATIENCE, known).await.is_ok(), "{own} never knew what {name} said: {:?}", self.gossip);
    }

    async fn stop(self) -> SocketAddr {
        self.stop.cancel();
        self.tracker.close();
        timeout(PATIENCE, self.tracker.wait()).await.expect("every task ends");
        self.me.cluster_addr
    }
}

fn addresses(nodes: &[&Node]) -> Vec<String> {
    nodes.iter().map(|node| node.me.cluster_addr.to_string()).collect()
}

async fn until_all_know_all(nodes: &mut [Node]) {
    let all: Vec<Facts> = nodes.iter().map(|node| node.me.clone()).collect();
    for node in nodes {
        let own = node.me.node;
        for facts in all.iter().filter(|facts| facts.node != own) {
            node.until_it_knows(facts).await;
        }
        assert_eq!(node.others.borrow().len(), all.len() - 1);
    }
}

/// Says `message` to `node` from a socket of no node.
async fn inject(node: &Node, message: &[u8]) {
    let socket = UdpSocket::bind(any_port()).await.unwrap();
    let compressed = zstd::bulk::compress(message, 1).unwrap();
    let datagram = [&[WIRE_VERSION as u8, 1, 1], &compressed[..]].concat();
    socket.send_to(&datagram, node.me.cluster_addr).await.unwrap();
}

async fn until_it_is(node: &Node, so: impl Fn(&GossipStatus) -> bool) {
    let becoming = async {
        while !so(&node.gossip.status()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(timeout(PATIENCE, becoming).await.is_ok(), "{:?}", node.gossip);
}

#[tokio::test]
async fn five_nodes_see_each_other_and_each_others_changes() {
    let mut nodes = vec![Node::start(1, OFTEN, &[]).await];
    for id in 2..=5 {
        nodes.push(Node::start(id, OFTEN, &[&nodes[0]]).await);
    }
    until_all_know_all(&mut nodes).await;
    nodes[3].publish(false, |me| me.load = Load { backlog: 77, ..me.load }).await;
    nodes[4].publish(true, |me| me.status = Status::Draining).await;
    until_all_know_all(&mut nodes).await;
    for node in nodes {
        assert_eq!(node.gossip.status().restarts, 0);
        node.stop().await;
    }
}

#[tokio::test]
async fn urgent_news_do_not_wait_for_the_next_round() {
    let mut nodes = vec![Node::start(1, SELDOM, &[]).await];
    for id in 2..=4 {
        // Each calls the first one only. That somebody is there at all is urgent too, so the first one and the
        // newcomer hand it on to the others.
        nodes.push(Node::start(id, SELDOM, &[&nodes[0]]).await);
        until_all_know_all(&mut nodes).await;
    }
    nodes[2].publish(true, |me| me.incarnation = Incarnation(1)).await;
    until_all_know_all(&mut nodes).await;
    nodes[3].publish(true, |me| me.suspicions.clear()).await;
    until_all_know_all(&mut nodes).await;
    // What is not urgent waits, and comes along with the next urgent news.
    nodes[1].publish(false, |me| me.load = Load { backlog: 3, ..me.load }).await;
    nodes[1].publish(true, |me| me.incarnation = Incarnation(1)).await;
    until_all_know_all(&mut nodes).await;
}

#[tokio::test]
async fn what_is_too_large_for_a_packet_travels_over_the_peer_connection() {
    let hard_to_compress = |me: &mut Facts| {
        let text = |n: u64| blake3::hash(&(u64::from(me.node.0) << 32 | n).to_be_bytes()).to_hex().to_string();
        me.labels = (0..16).map(|n| (text(n), text(n + 100))).collect();
    };
    let first = Node::start_at(any_port(), 1, 1, OFTEN, &[], hard_to_compress).await;
    let second = Node::start_at(any_port(), 2, 1, OFTEN, &addresses(&[&first]), hard_to_compress).await;
    let mut nodes = [first, second];
    until_all_know_all(&mut nodes).await;
    assert!(nodes.iter().any(|node| node.gossip.status().sent_over_links.bytes > 0));
}

#[tokio::test]
async fn a_seed_that_comes_later_and_is_known_by_name_is_found() {
    let (socket, listener) = sockets(any_port()).await;
    let addr = listener.local_addr().unwrap();
    drop((socket, listener));
    let by_name = [format!("localhost:{}", addr.port()), "no port in it".to_owned()];
    let mut early = Node::start_at(any_port(), 1, 1, OFTEN, &by_name, |_| {}).await;
    let mut late = Node::start_at(addr, 2, 1, OFTEN, &[], |_| {}).await;
    early.until_it_knows(&late.me).await;
    late.until_it_knows(&early.me).await;
}

#[tokio::test]
async fn a_message_that_makes_the_library_panic_does_not_reach_it() {
    let mut nodes = [Node::start(1, OFTEN, &[]).await];
    let poisoned = |key| Forgery::default().name("00000009", 7, 1).about("00000009", 7).set(key, "x", 1).forge();
    inject(&nodes[0], &poisoned("é")).await;
    inject(&nodes[0], b"nothing").await;
    until_it_is(&nodes[0], |status| status.refused_messages == 2).await;
    let mut other = Node::start(2, OFTEN, &[&nodes[0]]).await;
    other.until_it_knows(&nodes[0].me).await;
    nodes[0].until_it_knows(&other.me).await;
    assert_eq!(nodes[0].gossip.status().restarts, 0);
}

#[tokio::test]
async fn a_value_too_large_for_gossip_is_refused_and_what_was_said_before_stays() {
    let mut nodes = [Node::start(1, OFTEN, &[]).await, Node::start(2, OFTEN, &[]).await];
    nodes[1].gossip.contact([nodes[0].me.cluster_addr]);
    let large = Facts { version: "9".repeat(30_000), ..nodes[0].me.clone() };
    let refused = nodes[0].gossip.publish(&large, true).await;
    assert!(matches!(refused, Err(GossipError::Facts(EncodeFactsError::TooLarge { .. }))));
    until_all_know_all(&mut nodes).await;
    nodes[0].publish(false, |me| me.load = Load { backlog: 5, ..me.load }).await;
    until_all_know_all(&mut nodes).await;
}

#[tokio::test]
async fn a_restart_with_the_same_generation_is_heard_all_the_same() {
    let mut stays = Node::start(1, OFTEN, &[]).await;
    let mut goes = Node::start(2, OFTEN, &[&stays]).await;
    for backlog in 0..20 {
        goes.publish(false, |me| me.load = Load { backlog, ..me.load }).await;
    }
    stays.until_it_knows(&goes.me).await;
    let addr = goes.stop().await;
    let mut back = Node::start_at(addr, 2, 1, OFTEN, &addresses(&[&stays]), |me| me.weight = 9).await;
    stays.until_it_knows(&back.me).await;
    back.until_it_knows(&stays.me).await;
    assert!(back.gossip.status().restarts > 0);
}

#[tokio::test]
async fn of_two_starts_of_one_node_both_are_told_and_the_earlier_knows() {
    let mut stays = Node::start(1, OFTEN, &[]).await;
    let earlier = Node::start(2, OFTEN, &[&stays]).await;
    stays.until_it_knows(&earlier.me).await;
    let mut later = Node::start_at(any_port(), 2, 2, OFTEN, &addresses(&[&stays]), |_| {}).await;
    stays.until_it_knows(&later.me).await;
    // The library goes on showing both, and here even both live.
    later.publish(false, |me| me.load = Load { backlog: 5, ..me.load }).await;
    stays.until_it_knows(&later.me).await;
    // Which of them counts is for the membership to say: it may be looking at two processes with one id.
    let starts: Vec<_> = stays.others.borrow().iter().map(|facts| (facts.node, facts.generation)).collect();
    assert_eq!(starts, [(later.me.node, earlier.me.generation), (later.me.node, later.me.generation)]);
    until_it_is(&earlier, |status| status.outdone_by == Some(Generation(2))).await;
    assert!(stays.gossip.status().known_starts >= 3);
}

#[tokio::test]
async fn a_crowd_is_warned_of_and_kept_out_before_the_digest_overflows() {
    // Digests of a thousand entries keep an unoptimised build busy.
    let seldom = 4 * OFTEN;
    let mut nodes = [Node::start(1, seldom, &[]).await, Node::start(2, seldom, &[]).await];
    nodes[1].gossip.contact([nodes[0].me.cluster_addr]);
    until_all_know_all(&mut nodes).await;
    for hundreds in 1..=20 {
        let named = |all: Forgery, n: u32| all.name(&NodeId(hundreds * 100 + n).to_string(), 7, 1);
        inject(&nodes[0], &(0..100).fold(Forgery::default(), named).forge()).await;
    }
    for node in &nodes {
        until_it_is(node, |status| status.crowded && status.known_starts > 1_000).await;
    }
    until_it_is(&nodes[0], |status| status.kept_out_starts > 0).await;
    // Those who were there before still hear each other, although their digests now need the peer connection.
    nodes[0].publish(true, |me| me.status = Status::Draining).await;
    nodes[1].publish(false, |me| me.load = Load { backlog: 5, ..me.load }).await;
    until_all_know_all(&mut nodes).await;
    for node in &nodes {
        let status = node.gossip.status();
        assert!(status.digest_bytes <= status.digest_limit_bytes && status.restarts == 0, "{status:?}");
    }
}

#[tokio::test]
async fn when_the_librarys_task_dies_gossip_goes_on() {
    let mut nodes = vec![Node::start(1, OFTEN, &[]).await];
    for id in 2..=3 {
        nodes.push(Node::start(id, OFTEN, &[&nodes[0]]).await);
    }
    until_all_know_all(&mut nodes).await;
    nodes[0].gossip.shared.handle().unwrap().abort();
    until_it_is(&nodes[0], |status| status.restarts == 1 && status.running).await;
    assert_eq!(nodes[0].others.borrow().len(), 2, "what was known stays known");
    nodes[0].publish(false, |me| me.load = Load { backlog: 1, ..me.load }).await;
    nodes[1].publish(false, |me| me.load = Load { backlog: 2, ..me.load }).await;
    until_all_know_all(&mut nodes).await;
    assert!(nodes[0].gossip.status().last_failure.is_some());
}
