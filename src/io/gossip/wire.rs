//! How gossip messages travel: what the gossip library takes for its socket.
//!
//! A message that fits into one safe packet goes as a datagram, compressed where that makes it smaller; a larger
//! one goes over the peer connection, where nothing cuts it up. The first message to a seed may be addressed to
//! somebody whose node id is not known yet: then even a large one goes as a datagram, and the network cuts it.
//!
//! The library sends and receives in one task, so sending only enqueues: a full queue loses the message, and the
//! next round repeats what it said. Everything that comes in passes the `Guard` first.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use chitchat::transport::Socket;
use chitchat::{ChitchatMessage, Serializable};
use serde::Serialize;
use tokio::sync::mpsc;

use crate::io::datagram::{self, Datagrams, GossipPacket};
use crate::io::throttle::Throttle;
use crate::io::transport::{GossipFrame, Transport};
use crate::model::id::NodeId;
use crate::model::wire::Frame;

use super::guard::{Admitted, Guard, MAX_MESSAGE_BYTES};

/// The first byte of a datagram's payload.
const PLAIN: u8 = 0;
const COMPRESSED: u8 = 1;
/// Below this many bytes compression gains nothing worth its time.
const WORTH_COMPRESSING: usize = 256;

/// What all of a node's incarnations of the gossip library send and receive through.
pub(super) struct Wire {
    datagrams: Datagrams,
    transport: Transport,
    guard: Mutex<Guard>,
    inbox: tokio::sync::Mutex<Inbox>,
    packer: Mutex<Packer>,
    refusals: Throttle,
    /// Messages that were not passed on to the library.
    pub(super) refused: AtomicU64,
    /// How often a start of a node was kept out, for want of room in the digest.
    pub(super) kept_out: AtomicU64,
    /// Messages lost here, for want of room or of an address.
    pub(super) dropped: AtomicU64,
    /// Sent as datagrams.
    pub(super) by_datagram: Meter,
    /// Sent over peer connections.
    pub(super) by_link: Meter,
    /// Came as datagrams.
    pub(super) from_datagram: Meter,
    /// Came over peer connections.
    pub(super) from_link: Meter,
}

/// Messages of one kind, and their bytes, as they travelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Traffic {
    /// How many.
    pub messages: u64,
    /// Their bytes, without what the layers below add.
    pub bytes: u64,
}

/// Counts [`Traffic`].
#[derive(Debug, Default)]
pub(super) struct Meter {
    messages: AtomicU64,
    bytes: AtomicU64,
}

impl Meter {
    fn count(&self, bytes: usize) {
        self.messages.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn read(&self) -> Traffic {
        Traffic { messages: self.messages.load(Ordering::Relaxed), bytes: self.bytes.load(Ordering::Relaxed) }
    }
}

struct Inbox {
    datagrams: mpsc::Receiver<GossipPacket>,
    frames: mpsc::Receiver<GossipFrame>,
    unpacker: Unpacker,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Wire {
    pub(super) fn new(
        own: NodeId,
        datagrams: Datagrams,
        datagram_inbox: mpsc::Receiver<GossipPacket>,
        transport: Transport,
        frame_inbox: mpsc::Receiver<GossipFrame>,
    ) -> Self {
        Self {
            datagrams,
            transport,
            guard: Mutex::new(Guard::new(own)),
            inbox: tokio::sync::Mutex::new(Inbox {
                datagrams: datagram_inbox,
                frames: frame_inbox,
                unpacker: Unpacker::default(),
            }),
            packer: Mutex::default(),
            refusals: Throttle::default(),
            refused: AtomicU64::new(0),
            kept_out: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            by_datagram: Meter::default(),
            by_link: Meter::default(),
            from_datagram: Meter::default(),
            from_link: Meter::default(),
        }
    }

    pub(super) fn guard(&self) -> MutexGuard<'_, Guard> {
        self.guard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, to: SocketAddr, message: &ChitchatMessage) {
        let plain = message.serialize_to_vec();
        let payload = self.packer.lock().unwrap_or_else(PoisonError::into_inner).pack(&plain);
        if payload.len() <= datagram::SAFE_BYTES {
            self.by_datagram.count(payload.len());
            return self.datagrams.send_gossip(to, &payload);
        }
        let node = self.guard().node_at(to);
        match node {
            Some(node) => {
                self.by_link.count(plain.len());
                self.transport.send(node, to, &Frame::Gossip(plain));
            }
            None if payload.len() <= datagram::MAX_BYTES => {
                self.by_datagram.count(payload.len());
                self.datagrams.send_gossip(to, &payload);
            }
            None => count(&self.dropped),
        }
    }

    /// The next message that the library can be given. Waits without end once the node stops.
    async fn receive(&self) -> (SocketAddr, ChitchatMessage) {
        loop {
            let (from, message) = {
                let mut inbox = self.inbox.lock().await;
                let Inbox { datagrams, frames, unpacker } = &mut *inbox;
                tokio::select! {
                    Some((from, payload)) = datagrams.recv() => {
                        self.from_datagram.count(payload.len());
                        (from, unpacker.unpack(&payload))
                    }
                    Some((from, message)) = frames.recv() => {
                        self.from_link.count(message.len());
                        let addr = self.transport.address_of(from).or_else(|| self.guard().addr_of(from));
                        let Some(addr) = addr else {
                            count(&self.dropped);
                            continue;
                        };
                        (addr, Some(message))
                    }
                    // Both have ended: the node stops, and with it whoever asks.
                    else => std::future::pending().await,
                }
            };
            let admitted = match message {
                Some(message) => self.guard().admit(&message).map_err(|reason| reason.to_string()),
                None => Err("its packing is unreadable".to_owned()),
            };
            match admitted {
                Ok(Admitted { message, kept_out }) => {
                    if kept_out > 0 {
                        self.kept_out.fetch_add(kept_out as u64, Ordering::Relaxed);
                        if let Some(left_out) = self.refusals.admit() {
                            tracing::error!(%from, kept_out, left_out, "too many starts of nodes: newcomers are kept out");
                        }
                    }
                    return (from, message);
                }
                Err(reason) => {
                    count(&self.refused);
                    if let Some(left_out) = self.refusals.admit() {
                        tracing::warn!(%from, reason, left_out, "refused a gossip message");
                    }
                }
            }
        }
    }
}

/// Makes payloads of messages. Its workspace takes longer to make than most messages to compress, so it is kept; none
/// means that there was no memory for one, and messages go as they are.
struct Packer(Option<zstd::bulk::Compressor<'static>>);

impl Default for Packer {
    fn default() -> Self {
        Self(zstd::bulk::Compressor::new(1).ok())
    }
}

impl Packer {
    /// A message as a datagram's payload.
    fn pack(&mut self, plain: &[u8]) -> Vec<u8> {
        let worth_it = self.0.as_mut().filter(|_| plain.len() >= WORTH_COMPRESSING);
        let compressed = worth_it.and_then(|compressor| compressor.compress(plain).ok());
        match compressed.filter(|compressed| compressed.len() < plain.len()) {
            Some(compressed) => [&[COMPRESSED], &compressed[..]].concat(),
            None => [&[PLAIN], plain].concat(),
        }
    }
}

/// The way back; its workspace is kept too.
pub(super) struct Unpacker(Option<zstd::bulk::Decompressor<'static>>);

impl Default for Unpacker {
    fn default() -> Self {
        Self(zstd::bulk::Decompressor::new().ok())
    }
}

impl std::fmt::Debug for Unpacker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Unpacker").finish_non_exhaustive()
    }
}

impl Unpacker {
    fn unpack(&mut self, payload: &[u8]) -> Option<Vec<u8>> {
        match payload {
            [PLAIN, plain @ ..] => Some(plain.to_vec()),
            [COMPRESSED, compressed @ ..] => self.decompress(compressed, MAX_MESSAGE_BYTES),
            _ => None,
        }
    }

    /// What was compressed, unless it is longer than `most_bytes` or damaged.
    pub(super) fn decompress(&mut self, compressed: &[u8], most_bytes: usize) -> Option<Vec<u8>> {
        // A frame says how long it is; room for more than that would be made for nothing.
        let told = zstd::zstd_safe::get_frame_content_size(compressed).ok().flatten();
        let room = told.and_then(|bytes| usize::try_from(bytes).ok()).map_or(most_bytes, |bytes| bytes.min(most_bytes));
        self.0.as_mut()?.decompress(compressed, room).ok()
    }
}

/// The library opens its socket anew in every incarnation; they all share one wire.
pub(super) struct Sockets(pub(super) Arc<Wire>);

#[async_trait]
impl chitchat::transport::Transport for Sockets {
    async fn open(&self, _listen_addr: SocketAddr) -> anyhow::Result<Box<dyn Socket>> {
        Ok(Box::new(Self(Arc::clone(&self.0))))
    }
}

#[async_trait]
impl Socket for Sockets {
    async fn send(&mut self, to: SocketAddr, message: ChitchatMessage) -> anyhow::Result<()> {
        self.0.send(to, &message);
        Ok(())
    }

    async fn recv(&mut self) -> anyhow::Result<(SocketAddr, ChitchatMessage)> {
        Ok(self.0.receive().await)
    }
}
