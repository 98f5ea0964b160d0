//! What is let through to the gossip library.
//!
//! The library trusts its peers: some messages that it can parse make its task panic, and with it all gossip of
//! the node. A key whose first character is not ASCII does, a version that goes backwards inside one message,
//! a peer that tells us what we say ourselves, and so many nodes that their digest no longer fits into a message. The
//! guard reads every message first, in the library's own format, and passes on only what is safe. It keeps
//! count of the nodes it has let in, because how much room is left depends on all of them together.
//!
//! The format, all integers little-endian, a text being its length (two bytes) and its bytes:
//!
//! ```text
//! message: 45139 (2 bytes), 0, then  0 digest text | 1 digest delta | 2 delta | 3
//! digest:  count (2), for each an id, heartbeat (8), collected up to (8), version (8)
//! id:      text, generation (8), 4 or 6 and the address, port (2)
//! delta:   blocks, each  1 length (2) zstd | 2 length (2) plain,  then 0; inside them operations:
//!          0 id, collected up to (8), from version (8) | 1 key, value, version (8), status (1) | 2 version (8)
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use chitchat::{ChitchatId, ChitchatMessage, Deserializable};

use crate::model::id::NodeId;

use super::facts::MAX_VALUE_BYTES;
use super::view::EPOCH_BITS;
use super::wire::Unpacker;

/// The library's own limit on a message.
pub(super) const MAX_MESSAGE_BYTES: usize = 65_507;
/// At most this much of a message may be its digest: what is left must hold a delta with the largest value.
/// About 1,140 starts of nodes with IPv4 addresses; the library panics at about 1,330.
pub(super) const MAX_DIGEST_BYTES: usize = 56_000;
/// A digest this large is worth a warning: there is time left to look for the reason.
pub(super) const CROWDED_DIGEST_BYTES: usize = 40_000;
/// What a delta may unpack to. A thousand nodes' facts take less than two megabytes.
const MAX_DELTA_BYTES: usize = 8 << 20;
const MAX_BLOCK_BYTES: usize = 65_535;
/// Keys that one start of a node may have. Ours have at most two dozen; later versions may have more.
const MAX_KEYS: usize = 48;
const MAX_KEY_BYTES: usize = 64;
const MAGIC: u16 = 45_139;

/// One start of a node, as the library names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Start {
    pub(super) node: NodeId,
    /// The library's generation, which is finer than ours.
    pub(super) generation: u64,
    pub(super) addr: SocketAddr,
}

impl Start {
    /// The same in our terms, unless its name is none that a node of ours would have.
    pub(super) fn of(id: &ChitchatId) -> Option<Self> {
        let node = id.node_id.parse().ok()?;
        Some(Self { node, generation: id.generation_id, addr: id.gossip_advertise_addr })
    }

    /// What its entry takes in a digest.
    fn digest_bytes(&self) -> usize {
        let address = if self.addr.is_ipv4() { 4 } else { 16 };
        2 + 8 + 8 + 1 + address + 2 + 3 * 8
    }
}

/// Why a message is not passed on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unsafe {
    #[error("it is no gossip message: {0}")]
    Malformed(&'static str),
    #[error("it would unpack to more than {MAX_DELTA_BYTES} bytes")]
    Bomb,
    #[error("it has a key that no node of ours writes")]
    ForeignKey,
    #[error("it has a value of {0} bytes")]
    LargeValue(usize),
    #[error("it has more keys for one node than a node may have")]
    TooManyKeys,
    #[error("it names a node by something that is no node id")]
    ForeignId,
    #[error("its versions go backwards")]
    Backwards,
    #[error("it tells this node what its own present start says")]
    InOurName,
}

/// A message that is safe.
#[derive(Debug)]
pub(super) struct Admitted {
    pub(super) message: ChitchatMessage,
    /// Starts of nodes that were taken out of it, because with them our own digest would no longer fit into a
    /// message. The others it speaks of are heard as ever.
    pub(super) kept_out: usize,
}

/// What others believe of this node's latest start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Claim {
    pub(super) generation: u64,
    pub(super) heartbeat: u64,
}

/// Reads messages before the library does.
#[derive(Debug)]
pub(super) struct Guard {
    own: NodeId,
    /// The library's generation of this node's present start, and where that listens. Of its earlier ones others
    /// may speak, and of another process that was given the same id.
    present: (u64, Option<SocketAddr>),
    /// Every start that the library knows, or is about to, with its keys.
    known: BTreeMap<Start, BTreeSet<String>>,
    /// Of the message let through last. The library may not have looked at it when it is asked what it knows.
    latest: BTreeSet<Start>,
    /// The latest start of this node that others speak of.
    claim: Option<Claim>,
    unpacker: Unpacker,
}

impl Guard {
    pub(super) fn new(own: NodeId) -> Self {
        Self {
            own,
            present: (0, None),
            known: BTreeMap::new(),
            latest: BTreeSet::new(),
            claim: None,
            unpacker: Unpacker::default(),
        }
    }

    /// From now on the library speaks for this node, which listens at `addr`, under `generation`.
    pub(super) fn begin(&mut self, generation: u64, addr: SocketAddr) {
        self.present = (generation, Some(addr));
    }

    /// Whether `start` is of this node, and not of another process that began with the same generation elsewhere.
    fn is_own(&self, start: &Start) -> bool {
        let (generation, addr) = self.present;
        let same_generation = start.generation >> EPOCH_BITS == generation >> EPOCH_BITS;
        start.node == self.own && !(same_generation && addr.is_some_and(|addr| addr != start.addr))
    }

    /// The message, as far as the library can be given it.
    pub(super) fn admit(&mut self, bytes: &[u8]) -> Result<Admitted, Unsafe> {
        if bytes.len() > MAX_MESSAGE_BYTES {
            return Err(Unsafe::Malformed("too long"));
        }
        let contents = Contents::read(bytes, &mut self.unpacker)?;
        let claim = |entry: &DigestEntry| Claim { generation: entry.start.generation, heartbeat: entry.heartbeat };
        self.claim = contents.digest.iter().filter(|entry| self.is_own(&entry.start)).map(claim).max().max(self.claim);
        if contents.deltas.keys().any(|start| self.is_own(start) && start.generation == self.present.0) {
            return Err(Unsafe::InOurName);
        }
        for (start, keys) in &contents.deltas {
            let known = self.known.get(start).into_iter().flatten().filter(|key| !keys.contains(*key)).count();
            if known + keys.len() > MAX_KEYS {
                return Err(Unsafe::TooManyKeys);
            }
        }
        let mut room = MAX_DIGEST_BYTES.saturating_sub(self.digest_bytes());
        let mut named = BTreeSet::new();
        for DigestEntry { start, .. } in &contents.digest {
            if !self.known.contains_key(start) && !named.contains(start) {
                let Some(left) = room.checked_sub(start.digest_bytes()) else { continue };
                room = left;
            }
            named.insert(*start);
        }
        let kept_out = contents.digest.iter().filter(|entry| !named.contains(&entry.start)).count();
        let without = (kept_out > 0).then(|| contents.without_those_not_in(&named));
        let message = ChitchatMessage::deserialize(&mut without.as_deref().unwrap_or(bytes))
            .map_err(|_| Unsafe::Malformed("unreadable"))?;
        for start in &named {
            self.known.entry(*start).or_default();
        }
        for (start, mut keys) in contents.deltas {
            // The library ignores what is said of a node that no digest has named.
            if let Some(known) = self.known.get_mut(&start) {
                known.append(&mut keys);
            }
        }
        self.latest = named;
        Ok(Admitted { message, kept_out })
    }

    /// Learns which starts the library knows now; it forgets dead ones in time.
    pub(super) fn retain(&mut self, actual: &BTreeSet<Start>) {
        self.known.retain(|start, _| actual.contains(start) || self.latest.contains(start));
        for start in actual {
            self.known.entry(*start).or_default();
        }
    }

    /// How many starts are known, and what a digest of them takes.
    pub(super) fn size(&self) -> (usize, usize) {
        (self.known.len(), self.digest_bytes())
    }

    /// Who listens at `addr`: the latest start of those that do.
    pub(super) fn node_at(&self, addr: SocketAddr) -> Option<NodeId> {
        let there = self.known.keys().filter(|start| start.addr == addr && start.node != self.own);
        there.max_by_key(|start| start.generation).map(|start| start.node)
    }

    /// Where the latest start of `node` listens.
    pub(super) fn addr_of(&self, node: NodeId) -> Option<SocketAddr> {
        let starts = self.known.keys().filter(|start| start.node == node);
        starts.max_by_key(|start| start.generation).map(|start| start.addr)
    }

    /// The latest start of this node that others have spoken of.
    pub(super) fn claim(&self) -> Option<Claim> {
        self.claim
    }

    fn digest_bytes(&self) -> usize {
        2 + self.known.keys().map(Start::digest_bytes).sum::<usize>()
    }
}

struct DigestEntry<'a> {
    start: Start,
    heartbeat: u64,
    raw: &'a [u8],
}

/// What matters of a message.
struct Contents<'a> {
    /// What comes before the digest.
    head: &'a [u8],
    digest: Vec<DigestEntry<'a>>,
    /// What comes after the digest.
    tail: &'a [u8],
    deltas: BTreeMap<Start, BTreeSet<String>>,
}

impl<'a> Contents<'a> {
    fn read(message: &'a [u8], unpacker: &mut Unpacker) -> Result<Self, Unsafe> {
        let mut bytes = Bytes(message);
        if bytes.u16()? != MAGIC || bytes.u8()? != 0 {
            return Err(Unsafe::Malformed("another protocol"));
        }
        let kind = bytes.u8()?;
        let head = &message[..message.len() - bytes.0.len()];
        let digest = if kind <= 1 { read_digest(&mut bytes)? } else { Vec::new() };
        let mut contents = Self { head, digest, tail: bytes.0, deltas: BTreeMap::new() };
        match kind {
            0 => {
                bytes.text()?;
            }
            1 | 2 => contents.read_delta(&unpack(&mut bytes, unpacker)?)?,
            3 => {}
            _ => return Err(Unsafe::Malformed("unknown kind")),
        }
        if bytes.0.is_empty() { Ok(contents) } else { Err(Unsafe::Malformed("something follows it")) }
    }

    /// The message, of whose digest only what `named` holds is left.
    fn without_those_not_in(&self, named: &BTreeSet<Start>) -> Vec<u8> {
        let kept: Vec<&[u8]> =
            self.digest.iter().filter(|entry| named.contains(&entry.start)).map(|entry| entry.raw).collect();
        let count = (kept.len() as u16).to_le_bytes();
        [self.head, &count, &kept.concat(), self.tail].concat()
    }

    fn read_delta(&mut self, operations: &[u8]) -> Result<(), Unsafe> {
        let mut operations = Bytes(operations);
        // The node that the operations are about, and the highest version so far.
        let mut current: Option<(&mut BTreeSet<String>, u64)> = None;
        let headless = || Unsafe::Malformed("an operation about nobody");
        while !operations.0.is_empty() {
            match operations.u8()? {
                0 => {
                    let start = operations.start()?;
                    let (_collected_up_to, _from) = (operations.u64()?, operations.u64()?);
                    if self.deltas.contains_key(&start) {
                        return Err(Unsafe::Malformed("a node twice"));
                    }
                    current = Some((self.deltas.entry(start).or_default(), 0));
                }
                1 => {
                    let (key, value) = (operations.text()?, operations.text()?);
                    let (version, status) = (operations.u64()?, operations.u8()?);
                    let (keys, highest) = current.as_mut().ok_or_else(headless)?;
                    let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"._/-".contains(&c);
                    if key.is_empty() || key.len() > MAX_KEY_BYTES || !key.bytes().all(plain) {
                        return Err(Unsafe::ForeignKey);
                    }
                    if value.len() > MAX_VALUE_BYTES {
                        return Err(Unsafe::LargeValue(value.len()));
                    }
                    if version <= *highest {
                        return Err(Unsafe::Backwards);
                    }
                    if status > 2 {
                        return Err(Unsafe::Malformed("unknown status"));
                    }
                    *highest = version;
                    keys.insert(key.to_owned());
                }
                2 => {
                    let version = operations.u64()?;
                    let (_, highest) = current.as_mut().ok_or_else(headless)?;
                    if version < *highest {
                        return Err(Unsafe::Backwards);
                    }
                    *highest = version;
                }
                _ => return Err(Unsafe::Malformed("unknown operation")),
            }
        }
        Ok(())
    }
}

fn read_digest<'a>(bytes: &mut Bytes<'a>) -> Result<Vec<DigestEntry<'a>>, Unsafe> {
    let mut digest = Vec::new();
    for _ in 0..bytes.u16()? {
        let before = bytes.0;
        let start = bytes.start()?;
        let heartbeat = bytes.u64()?;
        let (_collected_up_to, _version) = (bytes.u64()?, bytes.u64()?);
        digest.push(DigestEntry { start, heartbeat, raw: &before[..before.len() - bytes.0.len()] });
    }
    Ok(digest)
}

/// The operations of a delta, out of its blocks.
fn unpack(bytes: &mut Bytes<'_>, unpacker: &mut Unpacker) -> Result<Vec<u8>, Unsafe> {
    let mut unpacked = Vec::new();
    loop {
        let kind = bytes.u8()?;
        if kind == 0 {
            return Ok(unpacked);
        }
        let length = usize::from(bytes.u16()?);
        let block = bytes.take(length)?;
        match kind {
            1 => {
                let plain = unpacker.decompress(block, MAX_BLOCK_BYTES);
                unpacked.extend(plain.ok_or(Unsafe::Malformed("a block does not unpack"))?);
            }
            2 => unpacked.extend_from_slice(block),
            _ => return Err(Unsafe::Malformed("unknown block")),
        }
        if unpacked.len() > MAX_DELTA_BYTES {
            return Err(Unsafe::Bomb);
        }
    }
}

/// Bytes yet to be read.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Unsafe> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Unsafe::Malformed("it ends early"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Unsafe> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(Unsafe::Malformed("it ends early"))?;
        self.0 = rest;
        Ok(*taken)
    }

    fn u8(&mut self) -> Result<u8, Unsafe> {
        self.array().map(u8::from_le_bytes)
    }

    fn u16(&mut self) -> Result<u16, Unsafe> {
        self.array().map(u16::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Unsafe> {
        self.array().map(u64::from_le_bytes)
    }

    fn text(&mut self) -> Result<&'a str, Unsafe> {
        let length = usize::from(self.u16()?);
        std::str::from_utf8(self.take(length)?).map_err(|_| Unsafe::Malformed("a text is no text"))
    }

    fn start(&mut self) -> Result<Start, Unsafe> {
        let name = self.text()?;
        let node: NodeId = name.parse().map_err(|_| Unsafe::ForeignId)?;
        // Only one spelling, or one node could take several places in the digest.
        if node.to_string() != name {
            return Err(Unsafe::ForeignId);
        }
        let generation = self.u64()?;
        let ip = match self.u8()? {
            4 => IpAddr::from(self.array::<4>()?),
            6 => IpAddr::from(self.array::<16>()?),
            _ => return Err(Unsafe::Malformed("unknown address")),
        };
        Ok(Start { node, generation, addr: SocketAddr::new(ip, self.u16()?) })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Messages that the library would never write.
    #[derive(Default)]
    pub(in crate::io::gossip) struct Forgery {
        digest: Vec<u8>,
        entries: u16,
        operations: Vec<u8>,
    }

    fn text(text: &str) -> Vec<u8> {
        [&u16::try_from(text.len()).unwrap().to_le_bytes()[..], text.as_bytes()].concat()
    }

    fn id(name: &str, generation: u64, port: u16) -> Vec<u8> {
        [text(name), generation.to_le_bytes().to_vec(), vec![4, 127, 0, 0, 1], port.to_le_bytes().to_vec()].concat()
    }

    impl Forgery {
        pub(in crate::io::gossip) fn name(mut self, node: &str, generation: u64, heartbeat: u64) -> Self {
            self.digest.extend(id(node, generation, 1_000));
            self.digest.extend(heartbeat.to_le_bytes());
            self.digest.extend([0; 16]);
            self.entries += 1;
            self
        }

        pub(in crate::io::gossip) fn about(mut self, node: &str, generation: u64) -> Self {
            self.operations.push(0);
            self.operations.extend(id(node, generation, 1_000));
            self.operations.extend([0; 16]);
            self
        }

        pub(in crate::io::gossip) fn set(mut self, key: &str, value: &str, version: u64) -> Self {
            self.operations.extend([vec![1], text(key), text(value), version.to_le_bytes().to_vec(), vec![0]].concat());
            self
        }

        fn raise(mut self, version: u64) -> Self {
            self.operations.push(2);
            self.operations.extend(version.to_le_bytes());
            self
        }

        pub(in crate::io::gossip) fn forge(self) -> Vec<u8> {
            let mut message = [&MAGIC.to_le_bytes()[..], &[0, 1], &self.entries.to_le_bytes(), &self.digest].concat();
            for block in self.operations.chunks(60_000) {
                message.push(2);
                message.extend(u16::try_from(block.len()).unwrap().to_le_bytes());
                message.extend(block);
            }
            message.push(0);
            message
        }
    }

    fn refused(forgery: Forgery) -> Unsafe {
        let mut guard = Guard::new(NodeId(1));
        guard.begin(7, SocketAddr::from(([127, 0, 0, 1], 1_000)));
        guard.admit(&forgery.forge()).expect_err("it is unsafe")
    }

    #[test]
    fn what_is_as_it_should_be_passes() {
        let mut guard = Guard::new(NodeId(1));
        let message = Forgery::default().name("00000002", 7, 3).about("00000002", 7).set("a.b/c-1", "x", 5).raise(6);
        let admitted = guard.admit(&message.forge()).unwrap();
        assert!(matches!(admitted, Admitted { message: ChitchatMessage::SynAck { .. }, kept_out: 0 }));
        let addr = SocketAddr::from(([127, 0, 0, 1], 1_000));
        assert_eq!((guard.node_at(addr), guard.addr_of(NodeId(2))), (Some(NodeId(2)), Some(addr)));
        assert_eq!(guard.size().0, 1);
        // Forgotten by the library, forgotten here, as soon as another message has come.
        assert!(guard.admit(&Forgery::default().forge()).is_ok());
        guard.retain(&BTreeSet::new());
        assert_eq!(guard.size().0, 0);
    }

    #[test]
    fn what_would_make_the_library_panic_is_refused() {
        let about = || Forgery::default().about("00000002", 7);
        assert_eq!(refused(about().set("é", "x", 1)), Unsafe::ForeignKey);
        assert_eq!(refused(about().set("", "x", 1)), Unsafe::ForeignKey);
        assert_eq!(refused(about().set("k", &"x".repeat(MAX_VALUE_BYTES + 1), 1)), Unsafe::LargeValue(4_097));
        assert_eq!(refused(about().set("a", "x", 5).set("b", "x", 5)), Unsafe::Backwards);
        assert_eq!(refused(about().set("a", "x", 5).raise(3)), Unsafe::Backwards);
        assert_eq!(refused(Forgery::default().about("00000001", 7)), Unsafe::InOurName);
        assert_eq!(refused(Forgery::default().name("somebody", 7, 1)), Unsafe::ForeignId);
        assert_eq!(refused(Forgery::default().name("0000000A", 7, 1)), Unsafe::ForeignId);
        let many = (0..=MAX_KEYS as u64).fold(about(), |all, n| all.set(&format!("k{n}"), "", n + 1));
        assert_eq!(refused(many), Unsafe::TooManyKeys);
        assert!(matches!(refused(Forgery::default().set("a", "x", 1)), Unsafe::Malformed(_)));
    }

    #[test]
    fn keys_are_counted_over_all_messages() {
        let mut guard = Guard::new(NodeId(1));
        let mut said = |n: u64| {
            let message = Forgery::default().name("00000002", 7, n).about("00000002", 7);
            guard.admit(&message.set(&format!("k{n}"), "", n).forge()).map(|_| ())
        };
        assert!((1..=MAX_KEYS as u64).all(|n| said(n).is_ok()));
        assert_eq!(said(MAX_KEYS as u64 + 1), Err(Unsafe::TooManyKeys));
        assert_eq!(said(3), Ok(()), "a known key may change");
    }

    #[test]
    fn the_digest_never_outgrows_a_message() {
        let mut guard = Guard::new(NodeId(1));
        let crowd = |range: std::ops::Range<u32>| {
            range.fold(Forgery::default(), |all, n| all.name(&NodeId(n).to_string(), 7, 1)).forge()
        };
        assert!(guard.admit(&crowd(2..802)).is_ok());
        assert!(guard.size().1 < CROWDED_DIGEST_BYTES);
        assert!(guard.admit(&crowd(700..1_100)).is_ok());
        assert!(guard.size().1 > CROWDED_DIGEST_BYTES);
        let kept_out = guard.admit(&crowd(1_000..1_300)).unwrap().kept_out;
        assert!(kept_out > 100 && guard.size().1 <= MAX_DIGEST_BYTES);
        assert_eq!(guard.size().0 + kept_out, 1_298, "those for whom there was room are in");
        assert_eq!(guard.admit(&crowd(900..1_100)).unwrap().kept_out, 0, "those who are known are still heard");
    }

    #[test]
    fn no_beginning_and_no_flipped_byte_of_a_message_panics() {
        let whole = Forgery::default().name("00000002", 7, 3).about("00000002", 7).set("key", "value", 5).forge();
        for length in 0..whole.len() {
            assert!(Guard::new(NodeId(1)).admit(&whole[..length]).is_err());
        }
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut flipped = whole.clone();
                flipped[at] ^= 1 << bit;
                let _ = Guard::new(NodeId(1)).admit(&flipped);
            }
        }
    }

    #[test]
    fn a_bomb_is_not_unpacked() {
        let zeros = zstd::bulk::compress(&[2; 60_000], 1).unwrap();
        let mut message = [&MAGIC.to_le_bytes()[..], &[0, 2]].concat();
        while message.len() + zeros.len() + 4 < MAX_MESSAGE_BYTES {
            message.push(1);
            message.extend(u16::try_from(zeros.len()).unwrap().to_le_bytes());
            message.extend(&zeros);
        }
        message.push(0);
        assert!(matches!(Guard::new(NodeId(1)).admit(&message), Err(Unsafe::Bomb)));
    }
}
