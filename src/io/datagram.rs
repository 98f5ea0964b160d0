//! The node's UDP socket: small packets to anybody, without a connection and without a promise.
//!
//! Two kinds share the cluster's port: the failure detector's probes and the gossip library's messages. The
//! first byte of a datagram is the wire version, the second its kind; the rest is the sender's, and is looked
//! into no further than its receiver needs. Sending never waits: what the socket will not take at once is
//! dropped and counted, as the network would drop it.
//!
//! Whatever comes from the network and cannot be read is counted and otherwise without effect. Datagrams are
//! neither authenticated nor encrypted yet; a layer that seals them belongs in `Datagrams::send` and
//! `receive`, where the whole payload passes.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::model::member::WIRE_VERSION;
use crate::model::time::Timestamp;
use crate::model::wire::Probe;

use super::clock::Clock;
use super::faults::Faults;
use super::skew::Skews;
use super::throttle::Throttle;

/// What fits into one packet on any network, headers of tunnels included.
pub const SAFE_BYTES: usize = 1_200;
/// The longest payload that is sent at all: one datagram, which the network cuts up and puts together again.
pub const MAX_BYTES: usize = 60_000;
/// What this module puts before a payload.
const HEADER_BYTES: usize = 2;
/// Room in the kernel for a burst from every peer.
const RECEIVE_BUFFER_BYTES: usize = 1 << 20;
/// Gossip that may wait to be taken. It is repeated, so what does not fit may go.
const GOSSIP_QUEUE: usize = 512;

/// What a datagram is. The number is its second byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Gossip = 1,
    Probe = 2,
}

/// Gossip as it arrived, with the address to answer to.
pub type GossipPacket = (SocketAddr, Bytes);

/// What has passed through the socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct DatagramStatus {
    /// Datagrams received, of whatever kind.
    pub received: u64,
    /// Of these, those that could not be read.
    pub garbage: u64,
    /// Of these, those that nobody took in time.
    pub overrun: u64,
    /// Datagrams handed to the kernel.
    pub sent: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// The bytes of all that were received.
    pub received_bytes: u64,
    /// Datagrams that the kernel did not take, or that were too long.
    pub unsent: u64,
}

#[derive(Debug, Default)]
struct Counters {
    received: AtomicU64,
    garbage: AtomicU64,
    overrun: AtomicU64,
    sent: AtomicU64,
    sent_bytes: AtomicU64,
    received_bytes: AtomicU64,
    unsent: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// The node's UDP socket. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Datagrams {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Watched for what comes only. To hear from the kernel after each datagram that there is room for the next would
    /// wake an idle node twice as often.
    socket: AsyncFd<std::net::UdpSocket>,
    counters: Counters,
    garbage: Throttle,
    clock: Clock,
    faults: Faults,
    skews: Skews,
}

impl Datagrams {
    /// Receives on `socket` in a task of `tracker`, until `stop`. Probes go to `probes`, and are dropped while it
    /// is full; gossip comes out of the returned receiver. Probes carry the time by `clock`.
    ///
    /// # Errors
    /// The socket is unusable.
    pub fn start(
        socket: UdpSocket,
        probes: mpsc::Sender<(SocketAddr, Probe)>,
        clock: Clock,
        faults: Faults,
        tracker: &TaskTracker,
        stop: CancellationToken,
    ) -> io::Result<(Self, mpsc::Receiver<GossipPacket>)> {
        // The kernel may grant less. Then a burst loses more, which is no error.
        let _ = socket2::SockRef::from(&socket).set_recv_buffer_size(RECEIVE_BUFFER_BYTES);
        let shared = Arc::new(Shared {
            socket: watched_for_arrivals(socket.into_std()?)?,
            counters: Counters::default(),
            garbage: Throttle::default(),
            clock,
            faults,
            skews: Skews::default(),
        });
        let (gossip, gossip_inbox) = mpsc::channel(GOSSIP_QUEUE);
        let receiving = Arc::clone(&shared);
        tracker.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = receive(&receiving, &probes, &gossip) => {}
            }
        });
        Ok((Self { shared }, gossip_inbox))
    }

    /// Sends `probe` to `addr`. Never waits; may be lost.
    pub fn send_probe(&self, addr: SocketAddr, probe: &Probe) {
        // The time follows the probe. Whoever does not expect it does not look there.
        let stamped = rmp_serde::to_vec_named(probe).and_then(|mut payload| {
            rmp_serde::encode::write(&mut payload, &self.shared.clock.wall())?;
            Ok(payload)
        });
        match stamped {
            Ok(payload) => self.send(addr, Kind::Probe, &payload),
            Err(error) => {
                count(&self.shared.counters.unsent);
                tracing::error!(%addr, %error, "a probe cannot be encoded");
            }
        }
    }

    /// Sends a gossip message of at most [`MAX_BYTES`] to `addr`. Never waits; may be lost.
    pub(super) fn send_gossip(&self, addr: SocketAddr, payload: &[u8]) {
        self.send(addr, Kind::Gossip, payload);
    }

    fn send(&self, addr: SocketAddr, kind: Kind, payload: &[u8]) {
        let counters = &self.shared.counters;
        if payload.len() > MAX_BYTES {
            return count(&counters.unsent);
        }
        if self.shared.faults.drops_to(addr) {
            return;
        }
        let mut datagram = Vec::with_capacity(HEADER_BYTES + payload.len());
        datagram.extend_from_slice(&[version_byte(), kind as u8]);
        datagram.extend_from_slice(payload);
        match self.shared.socket.get_ref().send_to(&datagram, addr) {
            Ok(bytes) => {
                count(&counters.sent);
                counters.sent_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
            }
            Err(error) => {
                count(&counters.unsent);
                tracing::trace!(%addr, %error, "a datagram was not sent");
            }
        }
    }

    /// How far the wall clock of whoever sends from `addr` is ahead of this node's, in milliseconds; negative if it is
    /// behind. Nothing while too little has been heard from there.
    pub fn skew_of(&self, addr: SocketAddr) -> Option<i64> {
        self.shared.skews.of(addr, self.shared.clock.moment())
    }

    /// What has passed so far.
    pub fn status(&self) -> DatagramStatus {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.shared.counters;
        DatagramStatus {
            received: get(&counters.received),
            garbage: get(&counters.garbage),
            overrun: get(&counters.overrun),
            sent: get(&counters.sent),
            sent_bytes: get(&counters.sent_bytes),
            received_bytes: get(&counters.received_bytes),
            unsent: get(&counters.unsent),
        }
    }
}

#[expect(unsafe_code, reason = "the runtime offers no safe way to watch a socket in one direction")]
fn watched_for_arrivals(socket: std::net::UdpSocket) -> io::Result<AsyncFd<std::net::UdpSocket>> {
    // SAFETY: the socket owns its descriptor, which is the same and open until the socket is dropped, and that is
    // when the runtime lets go of both.
    unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }.map_err(io::Error::from)
}

/// The wire version as one byte; versions are counted, and will not reach 256 in this program's life.
fn version_byte() -> u8 {
    const { assert!(WIRE_VERSION <= u8::MAX as u16) };
    WIRE_VERSION as u8
}

async fn receive(shared: &Shared, probes: &mpsc::Sender<(SocketAddr, Probe)>, gossip: &mpsc::Sender<GossipPacket>) {
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let (length, from) =
            match shared.socket.async_io(Interest::READABLE, |socket| socket.recv_from(&mut buffer)).await {
                Ok(received) => received,
                Err(error) => {
                    // Mostly the echo of something that was sent to a dead port. Should it be worse, it must not
                    // become a busy loop.
                    tracing::debug!(%error, "the datagram socket reports an error");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                }
            };
        if shared.faults.drops_from(from) {
            continue;
        }
        count(&shared.counters.received);
        shared.counters.received_bytes.fetch_add(length as u64, Ordering::Relaxed);
        let taken = match read(&buffer[..length]) {
            Ok(Datagram::Gossip(payload)) => gossip.try_send((from, Bytes::copy_from_slice(payload))).is_ok(),
            Ok(Datagram::Probe(probe, sent_at)) => {
                if let Some(sent_at) = sent_at {
                    let now = shared.clock.now();
                    shared.skews.learn(from, now, sent_at);
                }
                probes.try_send((from, probe)).is_ok()
            }
            Err(reason) => {
                count(&shared.counters.garbage);
                if let Some(left_out) = shared.garbage.admit() {
                    tracing::debug!(%from, length, reason, left_out, "a datagram cannot be read");
                }
                continue;
            }
        };
        if !taken {
            count(&shared.counters.overrun);
        }
    }
}

enum Datagram<'a> {
    Gossip(&'a [u8]),
    /// With the time at which it was sent, by its sender's clock.
    Probe(Probe, Option<Timestamp>),
}

fn read(datagram: &[u8]) -> Result<Datagram<'_>, &'static str> {
    match datagram {
        [version, ..] if *version != version_byte() => Err("another wire version"),
        [_, kind, payload @ ..] if *kind == Kind::Gossip as u8 => Ok(Datagram::Gossip(payload)),
        [_, kind, payload @ ..] if *kind == Kind::Probe as u8 => {
            let mut reader = rmp_serde::Deserializer::from_read_ref(payload);
            let probe = Probe::deserialize(&mut reader).map_err(|_| "it is no probe")?;
            Ok(Datagram::Probe(probe, Timestamp::deserialize(&mut reader).ok()))
        }
        [] | [_] => Err("too short"),
        [_, _, ..] => Err("unknown kind"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::{Generation, NodeId};
    use crate::model::wire::ProbeBody;

    const PATIENCE: Duration = Duration::from_secs(10);

    async fn bound() -> UdpSocket {
        UdpSocket::bind("127.0.0.1:0").await.unwrap()
    }

    #[tokio::test]
    async fn probes_and_gossip_share_a_socket_that_garbage_does_not_harm() {
        let (tracker, stop) = (TaskTracker::new(), CancellationToken::new());
        let (probes, mut probe_inbox) = mpsc::channel(8);
        let socket = bound().await;
        let addr = socket.local_addr().unwrap();
        let (receiver, mut gossip) =
            Datagrams::start(socket, probes, Clock::new(), Faults::disarmed(), &tracker, stop.clone()).unwrap();
        let (nobody, _) = mpsc::channel(1);
        let (sender, _) =
            Datagrams::start(bound().await, nobody, Clock::new(), Faults::disarmed(), &tracker, stop.clone()).unwrap();

        let stranger = bound().await;
        for garbage in [&b""[..], b"\x01", b"\x01\x02garbage", b"\x01\x09?", b"\xff\x01?", &[0; 60_000]] {
            stranger.send_to(garbage, addr).await.unwrap();
        }
        let probe = Probe {
            cluster: "test".to_owned(),
            from: NodeId(1),
            generation: Generation(1),
            to: NodeId(2),
            body: ProbeBody::Ping { seq: 7, suspected: None },
        };
        sender.send_probe(addr, &probe);
        sender.send_gossip(addr, b"hearsay");
        let (_, received) = tokio::time::timeout(PATIENCE, probe_inbox.recv()).await.unwrap().unwrap();
        assert_eq!(received, probe);
        let (_, heard) = tokio::time::timeout(PATIENCE, gossip.recv()).await.unwrap().unwrap();
        assert_eq!(heard, "hearsay");
        let status = receiver.status();
        assert_eq!((status.received, status.garbage, status.overrun), (8, 6, 0));
        assert!(status.received_bytes > 60_000);
        assert_eq!(sender.status().sent, 2);

        sender.send_gossip(addr, &vec![0; MAX_BYTES + 1]);
        assert_eq!(sender.status().unsent, 1);
        stop.cancel();
        tracker.close();
        tokio::time::timeout(PATIENCE, tracker.wait()).await.unwrap();
    }
}
