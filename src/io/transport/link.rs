//! The line to one peer: what waits for it, its connections, and its circuit breaker.
//!
//! A [`Peer`] is what everybody sees: an outbox (one buffer of encoded frames, so that whatever gathered while
//! the last batch was written leaves with a single flush) and the breaker's state. A [`Link`] is the task
//! behind it; it alone opens connections, decides which one to write to, and moves the breaker. Connections
//! reach it as [`Arrival`]s, whether it asked for them or the peer did.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::model::id::{Generation, NodeId};
use crate::model::wire::Frame;

use super::connection::{self, Connection, Greeted, Refusal};
use super::{Incoming, LinkEvent, LinkState, LinkStatus, Shared};

/// Connections that one peer may have at a time: two from calling each other at one moment, and a newer one
/// whose predecessor's end has not been noticed yet.
const MAX_CONNECTIONS: usize = 3;
/// Connections that may wait for the link to look at them.
const MAX_ARRIVALS: usize = 4;
/// How long a node that stops gives its last frames.
const FAREWELL: Duration = Duration::from_millis(300);
/// An outbox that has grown beyond this gives its memory back once it is empty.
const KEPT_CAPACITY: usize = 256 << 10;

/// A connection for the link, or the lack of one.
#[derive(Debug)]
pub(super) enum Arrival {
    /// The peer called.
    Accepted(Greeted),
    /// The link called the peer, and this came of it.
    Called(SocketAddr, Result<Greeted, Refusal>),
}

/// A peer as the rest of the transport sees it.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) node: NodeId,
    outbox: Mutex<Outbox>,
    /// Something waits in the outbox, or a connection has ended.
    wake: Notify,
    arrivals: mpsc::Sender<Arrival>,
    sent: AtomicU64,
    received: AtomicU64,
    dropped: AtomicU64,
}

#[derive(Debug)]
struct Outbox {
    addr: SocketAddr,
    state: LinkState,
    retry_at: Option<Instant>,
    last_error: Option<String>,
    /// Encoded frames with their lengths, ready to be written.
    buffer: BytesMut,
    frames: usize,
}

impl Peer {
    fn outbox(&self) -> MutexGuard<'_, Outbox> {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets an encoded frame wait for the peer, or says why not.
    pub(super) fn queue(&self, addr: SocketAddr, encoded: Bytes, max_bytes: usize) -> Result<(), &'static str> {
        let mut outbox = self.outbox();
        if outbox.addr != addr {
            // It moved. What was learned about the old address says nothing about the new one.
            outbox.addr = addr;
            if outbox.state == LinkState::Backoff {
                outbox.state = LinkState::HalfOpen;
                outbox.retry_at = None;
            }
        }
        if outbox.state == LinkState::Backoff {
            return Err("the link is in backoff");
        }
        if outbox.buffer.len() + encoded.len() > max_bytes {
            return Err("the peer's queue is full");
        }
        connection::append(encoded, &mut outbox.buffer).map_err(|_| "it is too long")?;
        outbox.frames += 1;
        drop(outbox);
        self.wake.notify_one();
        Ok(())
    }

    /// Hands a connection to the link. An error means that it has too many to look at.
    pub(super) fn arrive(&self, arrival: Arrival) -> Result<(), ()> {
        self.arrivals.try_send(arrival).map_err(|_| ())
    }

    pub(super) fn count_dropped(&self, frames: usize) {
        self.dropped.fetch_add(frames as u64, Ordering::Relaxed);
    }

    pub(super) fn addr(&self) -> SocketAddr {
        self.outbox().addr
    }

    pub(super) fn status(&self) -> LinkStatus {
        let outbox = self.outbox();
        LinkStatus {
            node: self.node,
            addr: outbox.addr,
            state: outbox.state,
            retry_in_ms: outbox.retry_at.map(|at| at.duration_since(Instant::now()).as_millis() as u64),
            queued_frames: outbox.frames,
            queued_bytes: outbox.buffer.len(),
            sent_frames: self.sent.load(Ordering::Relaxed),
            received_frames: self.received.load(Ordering::Relaxed),
            dropped_frames: self.dropped.load(Ordering::Relaxed),
            last_error: outbox.last_error.clone(),
        }
    }

    /// Takes all that waits; `spare` becomes the outbox's next buffer.
    fn take(&self, spare: BytesMut) -> Option<(BytesMut, usize)> {
        let mut outbox = self.outbox();
        if outbox.frames == 0 {
            return None;
        }
        let frames = std::mem::take(&mut outbox.frames);
        Some((std::mem::replace(&mut outbox.buffer, spare), frames))
    }

    fn drop_queued(&self) {
        if let Some((_, frames)) = self.take(BytesMut::new()) {
            self.count_dropped(frames);
        }
    }
}

/// Makes the line to `node` and starts its task.
pub(super) fn start(shared: &Arc<Shared>, node: NodeId, addr: SocketAddr) -> Arc<Peer> {
    let (sender, arrivals) = mpsc::channel(MAX_ARRIVALS);
    let outbox =
        Outbox { addr, state: LinkState::Closed, retry_at: None, last_error: None, buffer: BytesMut::new(), frames: 0 };
    let peer = Arc::new(Peer {
        node,
        outbox: Mutex::new(outbox),
        wake: Notify::new(),
        arrivals: sender,
        sent: AtomicU64::new(0),
        received: AtomicU64::new(0),
        dropped: AtomicU64::new(0),
    });
    let link = Link {
        shared: Arc::clone(shared),
        peer: Arc::clone(&peer),
        arrivals,
        connections: Vec::new(),
        known: None,
        opened_at: Instant::now(),
        calling: false,
        calls_again: false,
        failures: 0,
    };
    shared.tracker.spawn(link.run());
    peer
}

/// The task behind a peer.
struct Link {
    shared: Arc<Shared>,
    peer: Arc<Peer>,
    arrivals: mpsc::Receiver<Arrival>,
    /// Oldest first. The last is written to, all are read.
    connections: Vec<Connection>,
    /// The start of the peer that last called or answered and was taken, and where it listens.
    known: Option<(Generation, SocketAddr)>,
    /// Since when there has been a connection.
    opened_at: Instant,
    calling: bool,
    /// The next call does not wait for a frame: the last one may have met a dying process, and the next will tell.
    calls_again: bool,
    /// In a row.
    failures: u32,
}

impl Link {
    async fn run(mut self) {
        let stop = self.shared.stop.clone();
        let mut spare = BytesMut::new();
        loop {
            self.bury_ended().await;
            if let Some(current) = self.connections.last_mut() {
                if let Some((mut batch, frames)) = self.peer.take(std::mem::take(&mut spare)) {
                    let written = tokio::select! {
                        written = current.write(&mut batch, self.shared.config.write_within) => written,
                        () = async { stop.cancelled().await; sleep(FAREWELL).await } => false,
                    };
                    if !written {
                        // Part of a frame may have gone out; nothing can follow it.
                        current.end("this node stops");
                    }
                    let count = if written { &self.peer.sent } else { &self.peer.dropped };
                    count.fetch_add(frames as u64, Ordering::Relaxed);
                    if batch.capacity() <= KEPT_CAPACITY {
                        batch.clear();
                        spare = batch;
                    }
                    while let Ok(arrival) = self.arrivals.try_recv() {
                        self.handle_arrival(arrival).await;
                    }
                    continue;
                }
            } else {
                self.call_if_wanted();
            }
            let (retry_at, idle) = self.next_times();
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(arrival) = self.arrivals.recv() => self.handle_arrival(arrival).await,
                () = self.peer.wake.notified() => {}
                () = sleep_until(retry_at.unwrap_or_else(Instant::now)), if retry_at.is_some() => self.end_backoff(),
                () = sleep(self.shared.config.dismantle_after), if idle => {
                    if self.dismantle() {
                        return;
                    }
                }
            }
        }
        if let (Some(current), Some((mut batch, _))) = (self.connections.last_mut(), self.peer.take(BytesMut::new())) {
            // The last words may be the goodbye that spares the others a suspicion.
            let _ = timeout(FAREWELL, current.write(&mut batch, FAREWELL)).await;
        }
    }

    /// When the breaker moves by itself, and whether there is nothing else to wait for.
    fn next_times(&self) -> (Option<Instant>, bool) {
        let outbox = self.peer.outbox();
        (outbox.retry_at, self.connections.is_empty() && !self.calling)
    }

    /// Opens a connection if there is a reason to, and the breaker permits.
    fn call_if_wanted(&mut self) {
        let mut outbox = self.peer.outbox();
        let is_wanted = outbox.frames > 0 || self.calls_again;
        if self.calling || !is_wanted || outbox.state == LinkState::Backoff {
            return;
        }
        self.calls_again = false;
        if outbox.state == LinkState::Closed {
            outbox.state = LinkState::Connecting;
        }
        let addr = outbox.addr;
        drop(outbox);
        self.calling = true;
        let (shared, peer) = (Arc::clone(&self.shared), Arc::clone(&self.peer));
        self.shared.tracker.spawn(async move {
            let called = tokio::select! {
                () = shared.stop.cancelled() => return,
                called = shared.greeter.call(peer.node, addr) => called,
            };
            // Unlike the peer's own calls, this answer is waited for: `calling` ends with it.
            let _ = peer.arrivals.send(Arrival::Called(addr, called)).await;
        });
    }

    async fn handle_arrival(&mut self, arrival: Arrival) {
        match arrival {
            Arrival::Accepted(greeted) => {
                let addr = greeted.hello.cluster_addr;
                if let Err(refusal) = self.adopt(addr, greeted).await {
                    self.shared.note_refusal(&addr, &refusal);
                }
            }
            Arrival::Called(addr, called) => {
                self.calling = false;
                let adopted = match called {
                    Ok(greeted) => self.adopt(addr, greeted).await,
                    Err(refusal) => Err(refusal),
                };
                match adopted {
                    // If the peer has called in the meantime, that serves as well.
                    Err(refusal) if self.connections.is_empty() => self.fail(addr, refusal).await,
                    Ok(()) | Err(_) => {}
                }
            }
        }
    }

    /// Takes a connection into use, unless it comes from an earlier start of the peer, or from a second process with
    /// its id (a data directory was copied, perhaps). Which of two processes is the member is the membership's to find
    /// out, and shows in the address that messages are for. Until then whoever is connected stays.
    async fn adopt(&mut self, addr: SocketAddr, greeted: Greeted) -> Result<(), Refusal> {
        let (generation, place) = (greeted.hello.generation, greeted.hello.cluster_addr);
        if let Some((known, there)) = self.known
            && (known, there) != (generation, place)
        {
            let is_connected = self.connections.iter().any(|connection| connection.ended().is_none());
            if place == there && generation < known {
                return Err(Refusal::OlderGeneration { found: generation, known });
            }
            if place != there && is_connected && self.peer.addr() != place {
                return Err(Refusal::SecondProcess { found: place, known: there });
            }
            for older in &self.connections {
                older.end("the peer has started anew");
            }
            self.bury_ended().await;
        }
        self.known = Some((generation, place));
        while self.connections.len() >= MAX_CONNECTIONS {
            self.connections.remove(0);
        }
        let (shared, peer) = (Arc::clone(&self.shared), Arc::clone(&self.peer));
        let receive = move |frame: Frame, bytes| {
            peer.received.fetch_add(1, Ordering::Relaxed);
            shared.meters.count_received(&frame, bytes);
            let (shared, peer) = (Arc::clone(&shared), Arc::clone(&peer));
            async move { shared.take(&peer, frame).await }
        };
        let ending = Arc::clone(&self.peer);
        let (connection, reading) = greeted.split(receive, move || ending.wake.notify_one());
        let first = self.connections.is_empty();
        self.connections.push(connection);
        if first {
            self.opened_at = Instant::now();
            {
                let mut outbox = self.peer.outbox();
                outbox.addr = addr;
                outbox.state = LinkState::Open;
                outbox.retry_at = None;
            }
            // Up comes before any frame of the connection.
            self.tell(addr, LinkEvent::Up).await;
        }
        self.shared.tracker.spawn(reading);
        Ok(())
    }

    /// Lets go of connections that are over. Where the last one is, the link closes; one that did not last
    /// counts as a failure, so that a peer which greets and hangs up is not called in a tight loop.
    async fn bury_ended(&mut self) {
        let mut reason = None;
        self.connections.retain(|connection| {
            let ended = connection.ended();
            if let Some(why) = ended {
                reason = Some(why.to_owned());
            }
            ended.is_none()
        });
        let (Some(reason), true) = (reason, self.connections.is_empty()) else {
            return;
        };
        tracing::info!(node = %self.peer.node, %reason, "a peer connection has ended");
        let addr = self.peer.addr();
        if self.opened_at.elapsed() > self.shared.config.backoff_max {
            self.failures = 0;
            let mut outbox = self.peer.outbox();
            outbox.state = LinkState::Closed;
            outbox.last_error = Some(reason.clone());
        } else {
            self.begin_backoff(reason.clone());
        }
        self.tell(addr, LinkEvent::Closed(reason)).await;
    }

    /// The peer was called, and no connection came of it.
    async fn fail(&mut self, addr: SocketAddr, refusal: Refusal) {
        let event =
            if refusal.is_by_the_machine() { LinkEvent::Refused } else { LinkEvent::Unreachable(refusal.to_string()) };
        if self.failures == 0 {
            tracing::info!(node = %self.peer.node, %addr, reason = %refusal, "a peer cannot be reached");
        }
        self.calls_again = self.failures == 0 && refusal.is_breaking_off();
        self.peer.drop_queued();
        self.begin_backoff(refusal.to_string());
        self.tell(addr, event).await;
    }

    fn begin_backoff(&mut self, reason: String) {
        let config = &self.shared.config;
        let longest = config.backoff_min.saturating_mul(1 << self.failures.min(16)).min(config.backoff_max);
        self.failures = self.failures.saturating_add(1);
        // Half of it is by chance, so that those who lost one peer do not all come back at one moment.
        let pause = longest.mul_f64(rand::random_range(0.5..=1.0));
        let mut outbox = self.peer.outbox();
        outbox.state = LinkState::Backoff;
        outbox.retry_at = Some(Instant::now() + pause);
        outbox.last_error = Some(reason);
    }

    fn end_backoff(&mut self) {
        let mut outbox = self.peer.outbox();
        outbox.retry_at = None;
        if outbox.state == LinkState::Backoff {
            outbox.state = LinkState::HalfOpen;
        }
    }

    /// Removes the link if nothing has come in between. The table is held meanwhile, so nothing can.
    fn dismantle(&mut self) -> bool {
        let mut peers = self.shared.peers();
        let idle = self.peer.outbox().frames == 0 && self.arrivals.is_empty();
        if idle {
            peers.remove(&self.peer.node);
        }
        idle
    }

    async fn tell(&self, addr: SocketAddr, event: LinkEvent) {
        let told = Incoming::Link { node: self.peer.node, addr, event };
        tokio::select! {
            () = self.shared.stop.cancelled() => {}
            _ = self.shared.incoming.send(told) => {}
        }
    }
}
