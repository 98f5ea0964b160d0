//! Stories of peer connections: what gets through, what is refused, and what a bad peer cannot do.
#![allow(clippy::unwrap_used, reason = "a test stops at what it cannot do")]
#![allow(clippy::disallowed_methods, reason = "a test of sockets owns its clock")]

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use flockwork::io::transport::{GossipFrame, Incoming, LinkEvent, LinkState, LinkStatus, Transport, TransportConfig};
use flockwork::model::id::{Generation, JobId, NodeId};
use flockwork::model::member::WIRE_VERSION;
use flockwork::model::wire::{Frame, Hello, Message};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const PATIENCE: Duration = Duration::from_secs(20);

/// A node that is nothing but a transport.
struct Node {
    id: NodeId,
    addr: SocketAddr,
    transport: Transport,
    incoming: mpsc::Receiver<Incoming>,
    gossip: mpsc::Receiver<GossipFrame>,
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl Node {
    async fn start(id: u32) -> Self {
        Self::start_with(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap(), id, 1, |_| {})
    }

    fn start_with(listener: TcpListener, id: u32, generation: u64, set: impl Fn(&mut TransportConfig)) -> Self {
        let addr = listener.local_addr().unwrap();
        let (id, tracker, stop) = (NodeId(id), TaskTracker::new(), CancellationToken::new());
        let mut config = TransportConfig::new(Hello { generation: Generation(generation), ..hello(id, addr) });
        set(&mut config);
        let (sender, incoming) = mpsc::channel(64);
        let (transport, gossip) = Transport::start(listener, config, sender, tracker.clone(), stop.clone());
        Self { id, addr, transport, incoming, gossip, tracker, stop }
    }

    fn send(&self, to: &Self, seq: u64) {
        self.transport.send(to.id, to.addr, &numbered(seq));
    }

    async fn next(&mut self) -> Incoming {
        timeout(PATIENCE, self.incoming.recv()).await.expect("something comes in time").expect("the transport runs")
    }

    /// The next frame's number, whatever links do in between.
    async fn next_number(&mut self) -> (NodeId, u64) {
        loop {
            match self.next().await {
                Incoming::Frame { from, frame } => return (from, number_of(&frame)),
                Incoming::Link { .. } => {}
            }
        }
    }

    /// The next thing that happens to a link, whatever frames come in between.
    async fn next_event(&mut self) -> (NodeId, LinkEvent) {
        loop {
            match self.next().await {
                Incoming::Frame { .. } => {}
                Incoming::Link { node, event, .. } => return (node, event),
            }
        }
    }

    fn link(&self, to: NodeId) -> LinkStatus {
        self.transport.links().into_iter().find(|link| link.node == to).expect("there is a link")
    }

    async fn until_refused(&self, connections: u64) {
        let refused = async {
            while self.transport.refused_connections() < connections {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, refused).await.expect("the connection is refused");
    }

    async fn stop(self) {
        self.stop.cancel();
        self.tracker.close();
        timeout(PATIENCE, self.tracker.wait()).await.expect("every task ends");
    }
}

fn hello(node: NodeId, cluster_addr: SocketAddr) -> Hello {
    Hello { cluster: "test".to_owned(), wire_version: WIRE_VERSION, node, generation: Generation(1), cluster_addr }
}

fn numbered(seq: u64) -> Frame {
    Frame::Message(Message::Stored { seq, versions: Vec::new() })
}

fn number_of(frame: &Frame) -> u64 {
    let Frame::Message(Message::Stored { seq, .. }) = frame else { panic!("unexpected {frame:?}") };
    *seq
}

fn framed(payload: &[u8]) -> Vec<u8> {
    [&u32::try_from(payload.len()).unwrap().to_be_bytes()[..], payload].concat()
}

fn greeting(hello: &Hello) -> Vec<u8> {
    framed(&rmp_serde::to_vec_named(hello).unwrap())
}

/// Says `bytes` to `node` and waits until it hangs up.
async fn say(node: &Node, bytes: &[u8]) {
    let mut stream = TcpStream::connect(node.addr).await.unwrap();
    // The node may hang up before it has read all of it.
    let _ = stream.write_all(bytes).await;
    let _ = timeout(PATIENCE, stream.read_to_end(&mut Vec::new())).await.expect("the node hangs up");
}

#[tokio::test]
async fn frames_go_both_ways_in_order_over_one_connection() {
    let (mut a, mut b) = (Node::start(1).await, Node::start(2).await);
    for seq in 0..500 {
        a.send(&b, seq);
    }
    for seq in 0..500 {
        assert_eq!(b.next_number().await, (a.id, seq));
    }
    for seq in 0..500 {
        b.send(&a, seq);
    }
    for seq in 0..500 {
        assert_eq!(a.next_number().await, (b.id, seq));
    }
    // b answered on the connection that a had opened.
    assert_eq!((a.link(b.id).state, b.link(a.id).state), (LinkState::Open, LinkState::Open));
    assert_eq!(a.transport.refused_connections() + b.transport.refused_connections(), 0);
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn two_that_call_each_other_at_one_moment_lose_nothing() {
    let (mut a, mut b) = (Node::start(1).await, Node::start(2).await);
    for seq in 0..50 {
        a.send(&b, seq);
        b.send(&a, seq);
    }
    let mut heard = [Vec::new(), Vec::new()];
    for _ in 0..50 {
        heard[0].push(b.next_number().await.1);
        heard[1].push(a.next_number().await.1);
    }
    for numbers in &mut heard {
        numbers.sort_unstable();
        assert_eq!(*numbers, (0..50).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn what_does_not_fit_is_refused_and_harms_no_good_peer() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let mut node = Node::start_with(listener, 1, 1, |config| config.hello_within = Duration::from_millis(200));
    let stranger = hello(NodeId(9), node.addr);
    say(&node, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    say(&node, &framed(b"\xc1 garbage")).await;
    say(&node, &framed(&vec![0; 5_000])).await;
    say(&node, &greeting(&Hello { cluster: "other".to_owned(), ..stranger.clone() })).await;
    say(&node, &greeting(&Hello { wire_version: WIRE_VERSION + 1, ..stranger.clone() })).await;
    say(&node, &greeting(&hello(node.id, node.addr))).await;
    say(&node, &greeting(&Hello { generation: Generation(7), ..hello(node.id, node.addr) })).await;
    say(&node, b"").await;
    node.until_refused(8).await;
    assert!(node.transport.links().is_empty());

    let mut good = Node::start(2).await;
    good.send(&node, 1);
    assert_eq!(node.next_number().await, (good.id, 1));
    node.send(&good, 2);
    assert_eq!(good.next_number().await, (node.id, 2));
}

#[tokio::test]
async fn garbage_and_oversize_after_a_good_greeting_end_that_connection_only() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let mut node = Node::start_with(listener, 1, 1, |config| config.max_frame_bytes = 10_000);
    let good = Node::start(2).await;
    good.send(&node, 1);
    assert_eq!(node.next_number().await.1, 1);

    let liar = NodeId(9);
    for bad in [framed(b"\xc1"), framed(&vec![0x90; 9_000]), 20_000_u32.to_be_bytes().to_vec()] {
        say(&node, &[greeting(&hello(liar, node.addr)), bad].concat()).await;
        assert_eq!(node.next_event().await, (liar, LinkEvent::Up));
        let (from, event) = node.next_event().await;
        assert!(from == liar && matches!(event, LinkEvent::Closed(_)), "{event:?}");
    }
    good.send(&node, 2);
    assert_eq!(node.next_number().await, (good.id, 2));
    // Nor does the node itself send what is too long.
    node.transport.send(good.id, good.addr, &Frame::Gossip(vec![0; 20_000]));
    assert_eq!(node.link(good.id).dropped_frames, 1);
}

#[tokio::test]
async fn silent_connections_are_bounded_and_do_not_keep_a_good_peer_out() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let mut node = Node::start_with(listener, 1, 1, |config| {
        (config.max_unknown, config.hello_within) = (4, Duration::from_millis(300));
    });
    let mut silent = Vec::new();
    for _ in 0..8 {
        silent.push(TcpStream::connect(node.addr).await.unwrap());
    }
    let good = Node::start(2).await;
    good.send(&node, 1);
    assert_eq!(node.next_number().await, (good.id, 1));
    node.until_refused(8).await;
}

#[tokio::test]
async fn a_restarted_peer_replaces_its_earlier_start_which_is_refused_from_then_on() {
    let mut node = Node::start(1).await;
    let peer_addr = node.addr;
    let start = |generation| Hello { generation: Generation(generation), ..hello(NodeId(2), peer_addr) };
    let mut first = TcpStream::connect(node.addr).await.unwrap();
    first.write_all(&greeting(&start(5))).await.unwrap();
    assert_eq!(node.next_event().await, (NodeId(2), LinkEvent::Up));

    let mut second = TcpStream::connect(node.addr).await.unwrap();
    second.write_all(&greeting(&start(6))).await.unwrap();
    assert!(matches!(node.next_event().await, (NodeId(2), LinkEvent::Closed(_))));
    assert_eq!(node.next_event().await, (NodeId(2), LinkEvent::Up));
    let _ = timeout(PATIENCE, first.read_to_end(&mut Vec::new())).await.expect("the earlier start is hung up on");

    say(&node, &greeting(&start(5))).await;
    assert_eq!(node.transport.refused_connections(), 1);
    second.write_all(&framed(&rmp_serde::to_vec_named(&numbered(3)).unwrap())).await.unwrap();
    assert_eq!(node.next_number().await, (NodeId(2), 3));
    drop(second);
    assert!(matches!(node.next_event().await, (NodeId(2), LinkEvent::Closed(_))));

    // Which of two processes with one id is the member is not for connections to say: one that is called where the
    // membership says it is will do, although the other started later.
    let elsewhere = Node::start_with(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap(), 2, 5, |_| {});
    node.transport.send(NodeId(2), elsewhere.addr, &numbered(4));
    assert_eq!(node.next_event().await, (NodeId(2), LinkEvent::Up));
    assert_eq!(node.link(NodeId(2)).state, LinkState::Open);
}

#[tokio::test]
async fn a_dead_port_is_told_apart_and_the_link_recovers_when_the_peer_is_back() {
    let mut node = Node::start(1).await;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let (peer, addr) = (NodeId(2), listener.local_addr().unwrap());
    drop(listener);
    node.transport.send(peer, addr, &numbered(0));
    assert_eq!(node.next_event().await, (peer, LinkEvent::Refused));
    let link = node.link(peer);
    assert_eq!((link.queued_frames, link.dropped_frames), (0, 1));
    assert!(link.last_error.is_some());
    // In backoff a frame is dropped at once; when it is over, the next one tries again.
    let again = async {
        while !matches!(node.link(peer).state, LinkState::HalfOpen) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, again).await.expect("backoff ends");
    let mut back = Node::start_with(TcpListener::bind(addr).await.unwrap(), 2, 2, |_| {});
    node.transport.send(peer, addr, &numbered(1));
    assert_eq!(back.next_number().await, (node.id, 1));
    assert_eq!(node.next_event().await, (peer, LinkEvent::Up));
    assert_eq!(node.link(peer).state, LinkState::Open);
}

#[tokio::test]
async fn a_call_that_meets_a_dying_process_is_repeated_to_learn_that_it_is_dead() {
    let mut node = Node::start(1).await;
    let dying = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let (peer, addr) = (NodeId(2), dying.local_addr().unwrap());
    node.transport.send(peer, addr, &numbered(0));
    let (socket, _) = dying.accept().await.unwrap();
    drop((dying, socket));
    assert!(matches!(node.next_event().await, (_, LinkEvent::Unreachable(_))));
    // Nothing more is sent to it.
    assert_eq!(node.next_event().await, (peer, LinkEvent::Refused));
}

#[tokio::test]
async fn another_node_at_a_known_address_is_not_taken_for_the_one_that_was_there() {
    let mut node = Node::start(1).await;
    let other = Node::start(3).await;
    node.transport.send(NodeId(2), other.addr, &numbered(0));
    let (whom, event) = node.next_event().await;
    assert!(whom == NodeId(2) && matches!(event, LinkEvent::Unreachable(_)), "{event:?}");
}

#[tokio::test]
async fn a_node_does_not_call_itself() {
    let mut node = Node::start(1).await;
    node.transport.send(NodeId(2), node.addr, &numbered(0));
    assert!(matches!(node.next_event().await, (NodeId(2), LinkEvent::Unreachable(_))));
    node.transport.send(node.id, node.addr, &numbered(0));
    assert_eq!(node.transport.links().len(), 1);
}

#[tokio::test]
async fn a_peer_that_never_reads_is_given_up_and_delays_nobody() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let mut node = Node::start_with(listener, 1, 1, |config| {
        (config.write_within, config.queue_bytes) = (Duration::from_millis(500), 4 << 20);
    });
    let mut stalled = TcpStream::connect(node.addr).await.unwrap();
    stalled.write_all(&greeting(&hello(NodeId(9), node.addr))).await.unwrap();
    assert_eq!(node.next_event().await, (NodeId(9), LinkEvent::Up));

    let mut good = Node::start(2).await;
    let bulk = Frame::Gossip(vec![7; 1 << 20]);
    for _ in 0..40 {
        node.transport.send(NodeId(9), node.addr, &bulk);
        assert!(node.link(NodeId(9)).queued_bytes <= 4 << 20);
    }
    assert!(node.link(NodeId(9)).dropped_frames > 0, "the queue is bounded");
    for seq in 0..100 {
        node.send(&good, seq);
        assert_eq!(good.next_number().await, (node.id, seq));
    }
    loop {
        if let (NodeId(9), LinkEvent::Closed(_)) = node.next_event().await {
            break;
        }
    }
    drop(stalled);
}

#[tokio::test]
async fn a_peer_that_floods_waits_for_the_reader_and_loses_nothing() {
    let (node, mut slow) = (Node::start(1).await, Node::start(2).await);
    // Far more than the receiver's channel holds; the rest waits in sockets and in the sender's outbox.
    for seq in 0..5_000 {
        node.send(&slow, seq);
    }
    for seq in 0..5_000 {
        assert_eq!(slow.next_number().await, (node.id, seq));
    }
}

#[tokio::test]
async fn gossip_does_not_wait_for_a_node_that_is_busy_with_other_frames() {
    let (node, mut busy) = (Node::start(1).await, Node::start(2).await);
    for seq in 0..3 {
        node.send(&busy, seq);
        node.transport.send(busy.id, busy.addr, &Frame::Gossip(vec![u8::try_from(seq).unwrap()]));
    }
    for seq in 0..3 {
        let heard = timeout(PATIENCE, busy.gossip.recv()).await.expect("it comes in time");
        assert_eq!(heard, Some((node.id, vec![seq])));
    }
    // A flood of gossip that nobody takes is lost, and the other frames come.
    for _ in 0..1_000 {
        node.transport.send(busy.id, busy.addr, &Frame::Gossip(vec![7; 100]));
    }
    node.send(&busy, 3);
    for seq in 0..4 {
        assert_eq!(busy.next_number().await, (node.id, seq));
    }
    assert!(busy.link(node.id).dropped_frames > 0);
}

#[tokio::test]
async fn the_last_words_of_a_node_that_stops_arrive() {
    let (node, mut peer) = (Node::start(1).await, Node::start(2).await);
    node.send(&peer, 0);
    assert_eq!(peer.next_number().await.1, 0);
    node.transport.send(peer.id, peer.addr, &Frame::Message(Message::Withdraw { job: JobId(1) }));
    node.stop().await;
    loop {
        if let Incoming::Frame { frame, .. } = peer.next().await {
            assert_eq!(frame, Frame::Message(Message::Withdraw { job: JobId(1) }));
            break;
        }
    }
}

#[tokio::test]
async fn what_goes_over_the_links_is_counted_and_comparisons_apart() {
    let (one, mut other) = (Node::start(1).await, Node::start(2).await);
    one.send(&other, 1);
    let compare = Message::Compare { round: 2, takeover: false, horizon: 0, digests: Vec::new() };
    one.transport.send(other.id, other.addr, &Frame::Message(compare));
    for _ in 0..2 {
        while !matches!(other.next().await, Incoming::Frame { .. }) {}
    }
    let (sent, received) = (one.transport.traffic(), other.transport.traffic());
    assert_eq!((sent.sent, sent.comparison_sent), (received.received, received.comparison_received));
    assert_eq!((sent.sent.frames, sent.comparison_sent.frames, sent.received.frames), (2, 1, 0));
    let (all, compared) = (sent.sent.bytes, sent.comparison_sent.bytes);
    assert!(compared > 40 && all > compared + 10, "{sent:?}");
}
