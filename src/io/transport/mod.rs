//! Peer connections: frames to a node, frames from nodes, and what the links are like.
//!
//! Think of a telephone exchange with one line to every peer. A line is opened by the first frame that wants
//! to go there, or by the peer calling us; both ends say who they are ([`Hello`]) before anything else is
//! believed; then frames flow both ways, each prefixed with its length. Whoever hands over a frame never
//! waits and is never told what became of it: frames may be lost, and the floors above are built for that.
//!
//! Each peer has one task (`link`) that owns its connections and doubles as its circuit breaker:
//!
//! ```text
//! closed --frame--> connecting --hello--> open --lost--> closed (or backoff, if it did not last)
//!                       |                  ^
//!                     failed               | hello
//!                       v                  |
//!                    backoff --over--> half open --failed--> backoff, twice as long up to a limit
//! ```
//!
//! During backoff frames to that peer are dropped, and counted. The limit is low (seconds), because whether a
//! peer is dead is membership's verdict, not the link's: a link only reports what it saw ([`LinkEvent`]).
//!
//! What always holds:
//! - [`Transport::send`] never blocks. What waits for one peer is bounded in bytes, and a peer that does not
//!   read delays nobody but itself.
//! - Nothing that arrives before a valid `Hello` has any effect, and whatever does not fit (another cluster,
//!   another wire version, garbage, a frame too long, silence) closes that connection, with the reason logged.
//! - Frames that went over one connection are delivered in their order. Two nodes that call each other at one
//!   moment keep both connections; each end writes to the one it got last and reads from both.
//! - Of two starts of one node only the later is listened to.
//!
//! It knows nothing of what the frames mean. Connections are not yet encrypted or authenticated: a peer is
//! believed to be whom its `Hello` says. Where a security layer belongs is `connection::Greeter`, which turns a
//! socket into a reader and a writer before the first byte.

mod connection;
mod link;
mod traffic;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::model::id::NodeId;
use crate::model::wire::{Frame, Hello};

use self::connection::Greeter;
use self::link::{Arrival, Peer};
use self::traffic::Meters;
pub use self::traffic::{Count, Traffic};
use super::faults::Faults;
use super::throttle::Throttle;

/// Gossip messages that may wait to be read. What is lost is said again with the next round.
const GOSSIP_QUEUE: usize = 64;

/// How the peer connections behave.
#[derive(Debug, Clone)]
pub struct TransportConfig {
    /// What this node says of itself at the start of every connection.
    pub hello: Hello,
    /// The longest frame that is sent or accepted, in bytes. Must hold the largest record with its blobs; a
    /// peer can make us set aside this much per connection. All nodes should agree on it.
    pub max_frame_bytes: usize,
    /// How many bytes may wait for one peer; further frames to it are dropped. At least `max_frame_bytes`.
    pub queue_bytes: usize,
    /// How long opening a TCP connection may take. Several round trips.
    pub connect_within: Duration,
    /// How long the other end may take to say its `Hello`.
    pub hello_within: Duration,
    /// How long a write may make no progress at all before the connection is given up. Also how long the
    /// kernel may wait for acknowledgements of what was sent.
    pub write_within: Duration,
    /// How many connections may be open at once that have not said their `Hello`. More wait to be accepted.
    pub max_unknown: usize,
    /// How many nodes may be linked at once, by their own account of who they are.
    pub max_peers: usize,
    /// The first pause after a failure. Doubles with every further one, with jitter.
    pub backoff_min: Duration,
    /// The longest pause. Longer spares a dead peer's network some packets, and finds it later when it is back.
    pub backoff_max: Duration,
    /// After how long a link that has no connection and nothing to say is dismantled.
    pub dismantle_after: Duration,
    /// Whom it pretends not to reach.
    pub faults: Faults,
}

impl TransportConfig {
    /// The usual settings, for a node that says `hello`.
    pub fn new(hello: Hello) -> Self {
        Self {
            hello,
            max_frame_bytes: 32 << 20,
            queue_bytes: 64 << 20,
            connect_within: Duration::from_secs(2),
            hello_within: Duration::from_secs(3),
            write_within: Duration::from_secs(5),
            max_unknown: 64,
            max_peers: 4_096,
            backoff_min: Duration::from_millis(50),
            backoff_max: Duration::from_secs(2),
            dismantle_after: Duration::from_secs(600),
            faults: Faults::disarmed(),
        }
    }
}

/// What comes out of the transport.
#[derive(Debug)]
pub enum Incoming {
    /// A peer sent this. Never gossip, which has a way of its own.
    Frame {
        /// Who, by its `Hello`.
        from: NodeId,
        /// What.
        frame: Frame,
    },
    /// Something happened to a link.
    Link {
        /// The peer.
        node: NodeId,
        /// Where it was called; or, of a peer that called us, where it says that it listens.
        addr: SocketAddr,
        /// What.
        event: LinkEvent,
    },
}

/// What happened to a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkEvent {
    /// Both ends have said who they are.
    Up,
    /// The machine is there, and says that nobody listens: the peer's process is gone.
    Refused,
    /// No connection came about, for this reason; also when somebody else answers there.
    Unreachable(String),
    /// The last connection was lost, for this reason.
    Closed(String),
}

/// Where a link's circuit breaker stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkState {
    /// No connection; the next frame opens one.
    Closed,
    /// A connection is being opened; frames wait for it.
    Connecting,
    /// Frames flow.
    Open,
    /// The last attempt failed and its pause is over: the next frame tries again.
    HalfOpen,
    /// The last attempt failed; frames are dropped until the pause is over.
    Backoff,
}

/// A link as people see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LinkStatus {
    /// The peer.
    pub node: NodeId,
    /// Where it is called.
    pub addr: SocketAddr,
    /// Where the breaker stands.
    pub state: LinkState,
    /// During backoff, how long until it may be tried again, in milliseconds.
    pub retry_in_ms: Option<u64>,
    /// Frames that wait to be written.
    pub queued_frames: usize,
    /// Their size in bytes.
    pub queued_bytes: usize,
    /// Frames handed to the kernel.
    pub sent_frames: u64,
    /// Frames received.
    pub received_frames: u64,
    /// Frames given up: for want of room, during backoff, or with a connection; gossip that came and nobody took.
    pub dropped_frames: u64,
    /// Why the last connection, or the last attempt at one, ended.
    pub last_error: Option<String>,
}

/// A gossip message, and who sent it, by its `Hello`.
pub type GossipFrame = (NodeId, Vec<u8>);

/// The peer connections of this node. Cheap to clone; ends when the token it was started with is cancelled.
#[derive(Debug, Clone)]
pub struct Transport {
    shared: Arc<Shared>,
}

/// What the tasks of a transport have in common.
#[derive(Debug)]
struct Shared {
    config: TransportConfig,
    greeter: Greeter,
    incoming: mpsc::Sender<Incoming>,
    gossip: mpsc::Sender<GossipFrame>,
    tracker: TaskTracker,
    stop: CancellationToken,
    peers: Mutex<BTreeMap<NodeId, Arc<Peer>>>,
    refused_connections: AtomicU64,
    meters: Meters,
    refusals: Throttle,
    drops: Throttle,
}

impl Shared {
    fn peers(&self) -> MutexGuard<'_, BTreeMap<NodeId, Arc<Peer>>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn peer(self: &Arc<Self>, peers: &mut BTreeMap<NodeId, Arc<Peer>>, node: NodeId, addr: SocketAddr) -> Arc<Peer> {
        Arc::clone(peers.entry(node).or_insert_with(|| link::start(self, node, addr)))
    }

    /// Passes on what came from `peer`. False if this node stops.
    async fn take(&self, peer: &Peer, frame: Frame) -> bool {
        if self.config.faults.drops_from(peer.addr()) {
            return true;
        }
        let from = peer.node;
        let Frame::Gossip(message) = frame else {
            return self.incoming.send(Incoming::Frame { from, frame }).await.is_ok();
        };
        if self.gossip.try_send((from, message)).is_err() {
            peer.count_dropped(1);
        }
        true
    }

    /// Counts a connection that was turned away, and says why, unless a flood of them would fill the log.
    fn note_refusal(&self, remote: &dyn std::fmt::Display, reason: &dyn std::fmt::Display) {
        self.refused_connections.fetch_add(1, Ordering::Relaxed);
        if let Some(left_out) = self.refusals.admit() {
            tracing::warn!(%remote, %reason, left_out, "refused a peer connection");
        }
    }
}

impl Transport {
    /// Accepts on `listener` and opens connections as frames ask for it, in tasks of `tracker`, until `stop`.
    ///
    /// Gossip comes out of the returned receiver, and is dropped while nobody takes it: it neither waits for the work on
    /// other frames nor holds it up. All else goes to `incoming`, which should be read all the time: while it is full,
    /// nothing is read from any peer.
    pub fn start(
        listener: TcpListener,
        config: TransportConfig,
        incoming: mpsc::Sender<Incoming>,
        tracker: TaskTracker,
        stop: CancellationToken,
    ) -> (Self, mpsc::Receiver<GossipFrame>) {
        let (gossip, gossip_inbox) = mpsc::channel(GOSSIP_QUEUE);
        let shared = Arc::new(Shared {
            greeter: Greeter::new(&config),
            config,
            incoming,
            gossip,
            tracker: tracker.clone(),
            stop,
            peers: Mutex::default(),
            refused_connections: AtomicU64::new(0),
            meters: Meters::default(),
            refusals: Throttle::default(),
            drops: Throttle::default(),
        });
        tracker.spawn(accept(Arc::clone(&shared), listener));
        (Self { shared }, gossip_inbox)
    }

    /// Sends `frame` to node `to`, which listens at `addr`. Never blocks; whatever cannot be queued is dropped
    /// and counted: during backoff, beyond the queue's bound, or longer than a frame may be.
    pub fn send(&self, to: NodeId, addr: SocketAddr, frame: &Frame) {
        let shared = &self.shared;
        let (dropped, reason) = match connection::encode(frame, shared.config.max_frame_bytes) {
            Ok(_) if shared.config.faults.drops_to(addr) => {
                (None, "the node pretends that it cannot be reached".to_owned())
            }
            Ok(_) if to == shared.config.hello.node => (None, "it is addressed to this node itself".to_owned()),
            Ok(encoded) => {
                let mut peers = shared.peers();
                if !peers.contains_key(&to) && peers.len() >= shared.config.max_peers {
                    (None, "too many links".to_owned())
                } else {
                    let peer = shared.peer(&mut peers, to, addr);
                    // While the table is held, the link cannot be dismantled under the frame.
                    let bytes = encoded.len();
                    match peer.queue(addr, encoded, shared.config.queue_bytes) {
                        Ok(()) => return shared.meters.count_sent(frame, bytes),
                        Err(reason) => (Some(peer.clone()), reason.to_owned()),
                    }
                }
            }
            Err(error) => (shared.peers().get(&to).cloned(), error.to_string()),
        };
        if let Some(peer) = dropped {
            peer.count_dropped(1);
        }
        if let Some(left_out) = shared.drops.admit() {
            tracing::debug!(%to, %addr, %reason, left_out, "dropped a frame");
        }
    }

    /// Every link, by node.
    pub fn links(&self) -> Vec<LinkStatus> {
        let peers: Vec<Arc<Peer>> = self.shared.peers().values().cloned().collect();
        peers.iter().map(|peer| peer.status()).collect()
    }

    /// Where `node` listens, as far as there is a link to it.
    pub fn address_of(&self, node: NodeId) -> Option<SocketAddr> {
        self.shared.peers().get(&node).map(|peer| peer.addr())
    }

    /// What went over all links so far.
    pub fn traffic(&self) -> Traffic {
        self.shared.meters.read()
    }

    /// How many connections were turned away.
    pub fn refused_connections(&self) -> u64 {
        self.shared.refused_connections.load(Ordering::Relaxed)
    }
}

/// Takes calls until the node stops. At most `max_unknown` callers are listened to at a time; the kernel holds
/// the others back, so that a flood of silent connections delays good peers but turns none away.
async fn accept(shared: Arc<Shared>, listener: TcpListener) {
    let unknown = Arc::new(Semaphore::new(shared.config.max_unknown));
    loop {
        let next = async {
            let permit = Arc::clone(&unknown).acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            () = shared.stop.cancelled() => return,
            next = next => next,
        };
        let (stream, remote) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, mostly. Trying again at once would only burn the processor.
                tracing::warn!(%error, "cannot accept a peer connection");
                tokio::select! {
                    () = shared.stop.cancelled() => return,
                    () = tokio::time::sleep(Duration::from_millis(100)) => continue,
                }
            }
        };
        let answering = Arc::clone(&shared);
        shared.tracker.spawn(async move {
            let _permit = permit;
            tokio::select! {
                () = answering.stop.cancelled() => {}
                () = answer(&answering, stream, remote) => {}
            }
        });
    }
}

/// Finds out who calls, and hands the connection to that peer's link.
async fn answer(shared: &Arc<Shared>, stream: tokio::net::TcpStream, remote: SocketAddr) {
    let greeted = match shared.greeter.answer(stream).await {
        Ok(greeted) => greeted,
        Err(refusal) => return shared.note_refusal(&remote, &refusal),
    };
    let (node, addr) = (greeted.hello.node, greeted.hello.cluster_addr);
    let mut peers = shared.peers();
    if !peers.contains_key(&node) && peers.len() >= shared.config.max_peers {
        return shared.note_refusal(&remote, &"too many links");
    }
    let peer = shared.peer(&mut peers, node, addr);
    if peer.arrive(Arrival::Accepted(greeted)).is_err() {
        shared.note_refusal(&remote, &"too many calls from this node at once");
    }
}
