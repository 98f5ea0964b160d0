//! A record that nobody is looking at: its bytes, made small, and a label on the outside.
//!
//! Most of the jobs that a node knows have ended, or wait for an hour that is far away. Unpacked, such a record takes
//! kilobytes: every map and list in it has room for more. Packed it is a line of text for each job in a ledger: about
//! 150 bytes for a job with nothing special about it, and it is unpacked again in microseconds. What is asked of many
//! records at a time (the state, when it may go) stands on the label, a [`Summary`], so that a question about a million
//! of them opens none.
//!
//! What makes it small is that all records look alike. They are written with the names of their fields, as on the
//! disk and on the wire, and then compressed (LZ4) as if each continued a text that everybody knows: the bytes of a few
//! typical records. What a record shares with those costs a reference of three bytes.
//!
//! Packed bytes never leave the process: neither the compression nor the known text is part of any format.
//!
//! What always holds: unpacking gives the record that was packed, equal in every field.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use super::attempt::{Exit, Fate, Phase};
use super::id::{Actor, Dot, Generation, JobId, NodeId};
use super::record::{JobState, Record, Seal, Stop, StopKind, Submission, Version};
use super::request::Filter;
use super::spec::{Driver, Spec};
use super::time::Timestamp;

/// What can be said of a record without looking into it. Six bytes: there may be millions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Its state.
    pub state: JobState,
    traits: Traits,
    /// So many, or more where it is the highest number.
    attempts: u8,
    /// The hour after which it may go, the lowest byte first; [`NEVER`] where it is not sealed. Three bytes of hours are
    /// good for nineteen hundred years.
    expires_hour: [u8; 3],
}

/// The hour of what never expires.
const NEVER: u32 = (1 << 24) - 1;

/// Yes and no, eight to a byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Traits(u8);

impl Traits {
    const NAMES_BLOBS: u8 = 1;
    const HAS_OPEN_FATES: u8 = 2;
    const HAS_OVERLAPS: u8 = 4;
}

impl Summary {
    /// Of a record.
    pub fn of(record: &Record) -> Self {
        let trait_if = |holds: bool, bit: u8| if holds { bit } else { 0 };
        let has_overlaps = record.attempts.len() > 1 && !record.overlaps().is_empty();
        let traits = trait_if(record.names_blobs(), Traits::NAMES_BLOBS)
            | trait_if(record.open_fates().next().is_some(), Traits::HAS_OPEN_FATES)
            | trait_if(has_overlaps, Traits::HAS_OVERLAPS);
        let hour = record.seal.map_or(NEVER, |seal| seal.expires_hour.min(NEVER - 1)).to_le_bytes();
        Self {
            state: record.state(),
            traits: Traits(traits),
            attempts: u8::try_from(record.attempts.len()).unwrap_or(u8::MAX),
            expires_hour: [hour[0], hour[1], hour[2]],
        }
    }

    /// The hour after which it may go, where it is sealed.
    pub fn expires_hour(&self) -> Option<u32> {
        let [a, b, c] = self.expires_hour;
        Some(u32::from_le_bytes([a, b, c, 0])).filter(|hour| *hour != NEVER)
    }

    /// Whether it has any attempt.
    pub fn has_attempts(&self) -> bool {
        self.attempts > 0
    }

    /// Whether it is known to have as many attempts as `other`, which it is up to 254.
    pub fn has_as_many_attempts(&self, other: &Self) -> bool {
        self.attempts == other.attempts && self.attempts < u8::MAX
    }

    /// Whether it names any blob.
    pub fn names_blobs(&self) -> bool {
        self.has(Traits::NAMES_BLOBS)
    }

    /// Whether some attempt's own executor has not said how it ended.
    pub fn has_open_fates(&self) -> bool {
        self.has(Traits::HAS_OPEN_FATES)
    }

    /// Whether attempts of it ran, or may have run, at the same time.
    pub fn has_overlaps(&self) -> bool {
        self.has(Traits::HAS_OVERLAPS)
    }

    fn has(&self, one: u8) -> bool {
        self.traits.0 & one != 0
    }
}

/// The bytes of a packed record. Its job is not among them: whoever keeps them knows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Packed(Box<[u8]>);

/// A packed record as it comes from the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedRecord {
    /// The job.
    pub id: JobId,
    /// When it was submitted.
    pub submitted_at: Timestamp,
    /// Its version.
    pub version: Version,
    /// What it comes down to.
    pub summary: Summary,
    /// The rest.
    pub body: Packed,
}

/// Packs records, one after the other, in memory that it keeps.
#[derive(Debug, Default)]
pub struct Packer {
    encoded: Vec<u8>,
    compressed: Vec<u8>,
}

/// Where the job's id lies in an encoded record: behind the map's head and the key, in 16 bytes with a head of two.
const ID_PREFIX: &[u8] = b"\xa2id\xc4\x10";
const ID_AT: usize = 1 + ID_PREFIX.len();
const ID_BYTES: usize = 16;

/// What comes before the compressed bytes: the hints for [`Packed::may_match`].
const HINT_BYTES: usize = 4;

impl Packer {
    /// The record's canonical bytes, which stay until the next call.
    pub fn encode(&mut self, record: &Record) -> &[u8] {
        record.encode(&mut self.encoded);
        &self.encoded
    }

    /// Packs a record.
    pub fn pack(&mut self, record: &Record) -> Packed {
        record.encode(&mut self.encoded);
        self.pack_encoded(record)
    }

    /// The same of the record that was encoded last.
    fn pack_encoded(&mut self, record: &Record) -> Packed {
        // An id is random, and as good as any other here. Zeros are in the known text.
        if self.encoded.get(1..ID_AT) == Some(ID_PREFIX)
            && let Some(id) = self.encoded.get_mut(ID_AT..ID_AT + ID_BYTES)
        {
            id.fill(0);
        }
        let mut size = [0; 10];
        let size = written_size(self.encoded.len() as u64, &mut size);
        let head = HINT_BYTES + size.len();
        self.compressed.resize(head + lz4_flex::block::get_maximum_output_size(self.encoded.len()), 0);
        let (hints, rest) = self.compressed.split_at_mut(HINT_BYTES);
        hints[..2].copy_from_slice(&name_hint(record.spec().name.as_deref()).to_le_bytes());
        hints[2..].copy_from_slice(&node_hint(node_of(record)).to_le_bytes());
        rest[..size.len()].copy_from_slice(size);
        let length = lz4_flex::block::compress_into_with_dict(&self.encoded, &mut rest[size.len()..], &KNOWN_TEXT)
            .expect("the output has room for the worst case");
        Packed(Box::from(&self.compressed[..head + length]))
    }

    /// Packs a record with its label.
    pub fn pack_with_label(&mut self, record: &Record) -> PackedRecord {
        PackedRecord {
            id: record.id,
            submitted_at: record.submission.submitted_at,
            version: Version::of(self.encode(record)),
            summary: Summary::of(record),
            body: self.pack_encoded(record),
        }
    }
}

impl From<&Record> for PackedRecord {
    fn from(record: &Record) -> Self {
        Packer::default().pack_with_label(record)
    }
}

impl PackedRecord {
    /// The record.
    pub fn unpack(&self) -> Record {
        self.body.unpack(self.id)
    }
}

impl Packed {
    /// The record of `id`, which must be the one that was packed.
    pub fn unpack(&self, id: JobId) -> Record {
        let (size, compressed) = read_size(&self.0[HINT_BYTES..]);
        let encoded = lz4_flex::block::decompress_with_dict(compressed, size, &KNOWN_TEXT)
            .expect("these bytes were compressed in this process and never left it");
        let record: Record = rmp_serde::from_slice(&encoded).expect("these bytes were encoded in this process");
        Record { id, ..record }
    }

    /// Whether the record may be one that the filter's name and node hold for. Now and then it says so of one that is
    /// not, never the other way round.
    pub fn may_match(&self, filter: &Filter) -> bool {
        let hint = |at: usize| u16::from_le_bytes([self.0[at], self.0[at + 1]]);
        filter.name.as_deref().is_none_or(|name| hint(0) == name_hint(Some(name)))
            && filter.node.is_none_or(|node| hint(2) == node_hint(Some(node)))
    }

    /// How many bytes the record takes when written down.
    pub fn unpacked_len(&self) -> usize {
        read_size(&self.0[HINT_BYTES..]).0
    }

    /// How many bytes it takes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it takes none, which no record does.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl std::fmt::Debug for Packed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Packed({} bytes)", self.0.len())
    }
}

fn node_of(record: &Record) -> Option<NodeId> {
    record.telling().map(|attempt| attempt.claim.executor.node)
}

fn name_hint(name: Option<&str>) -> u16 {
    name.map_or(0, |name| crc32fast::hash(name.as_bytes()) as u16)
}

fn node_hint(node: Option<NodeId>) -> u16 {
    node.map_or(0, |node| (node.0 ^ (node.0 >> 16)) as u16)
}

/// Seven bits to a byte, the lowest first.
fn written_size(mut size: u64, room: &mut [u8; 10]) -> &[u8] {
    let mut at = 0;
    while size >= 0x80 {
        room[at] = size as u8 | 0x80;
        size >>= 7;
        at += 1;
    }
    room[at] = size as u8;
    &room[..=at]
}

fn read_size(bytes: &[u8]) -> (usize, &[u8]) {
    let mut size = 0;
    for (at, byte) in bytes.iter().enumerate() {
        size |= usize::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return (size, &bytes[at + 1..]);
        }
    }
    unreachable!("a size was written in front of every packed record")
}

/// What every record is taken to continue: typical ones, encoded. Only how small records become depends on it.
static KNOWN_TEXT: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut text = Vec::new();
    let mut encoded = Vec::new();
    for record in typical_records() {
        record.encode(&mut encoded);
        text.extend_from_slice(&encoded);
    }
    text
});

fn typical_records() -> [Record; 3] {
    let at = Timestamp(1 << 40);
    let me = Actor { node: NodeId(0), generation: Generation(1 << 30) };
    let dot = |counter| Dot { actor: me, counter };
    let record = |spec| {
        let submission = Submission { spec, submitted_at: at, gateway: me.node, home: vec![me.node], retry_of: None };
        Record::new(JobId(0), Arc::new(submission), dot(1 << 16))
    };
    let ends = |record: &mut Record, phase, exit| {
        record.claim(dot(1 << 16), me, at);
        record.start(dot(1 << 16 | 1), dot(1 << 16), at);
        let fate = Fate { phase, by_executor: true, dot: dot(1 << 16 | 2), at, exit, reason: String::new() };
        record.advance(dot(1 << 16), fate);
        record.seal(Seal { expires_hour: 1 << 19, dot: dot(1 << 16), at });
    };
    let mut failed = record(Spec {
        driver: Driver::Handler,
        handler: Some(String::new()),
        timeout: Some(Duration::from_secs(60)),
        retries: 3,
        ..Spec::default()
    });
    ends(&mut failed, Phase::Failed, Some(Exit::Code(1)));
    let mut cancelled = record(Spec { delay: Some(Duration::from_secs(3_600)), ..Spec::default() });
    let reason = "a client asked for it".to_owned();
    cancelled.request_stop(Stop { kind: StopKind::Cancelled, dot: dot(1 << 16), at, reason });
    let mut succeeded = record(Spec { command: vec!["sh".into(), "-c".into()], ..Spec::default() });
    ends(&mut succeeded, Phase::Succeeded, Some(Exit::Code(0)));
    [failed, cancelled, succeeded]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_comes_out_again() {
        let mut packer = Packer::default();
        for mut record in typical_records() {
            record.id = JobId(0x0123_4567_89ab_cdef << 64 | 0xfedc_ba98_7654_3210);
            let packed = packer.pack_with_label(&record);
            assert_eq!(packed.unpack(), record);
            assert_eq!((packed.version, packed.summary.state), (record.version(), record.state()));
            assert_eq!(packed.summary, Summary::of(&packed.unpack()));
        }
    }

    #[test]
    fn a_large_record_comes_out_again() {
        let [mut record, ..] = typical_records();
        let spec = Spec { command: (0..20_000).map(|n| n.to_string()).collect(), ..record.spec().clone() };
        record.submission = Arc::new(Submission { spec, ..Submission::clone(&record.submission) });
        let packed = PackedRecord::from(&record);
        assert!(packed.body.len() > 1 << 16);
        assert_eq!(packed.unpack(), record);
    }

    #[test]
    fn a_job_with_nothing_special_about_it_takes_little() {
        let me = Actor { node: NodeId(0x8f31_c29d), generation: Generation(1_763_711_243) };
        let dot = |counter| Dot { actor: me, counter };
        let at = |ms: u64| Timestamp(1_763_711_300_123 + ms);
        let spec = Spec { command: vec!["/bin/true".into()], ..Spec::default() };
        let submission =
            Submission { spec, submitted_at: at(0), gateway: me.node, home: vec![me.node], retry_of: None };
        let mut record = Record::new(JobId(0x9d3f << 100), Arc::new(submission), dot(900_001));
        let fresh = PackedRecord::from(&record);
        record.claim(dot(900_011), me, at(7));
        record.start(dot(900_105), dot(900_011), at(13));
        let (phase, exit) = (Phase::Succeeded, Some(Exit::Code(0)));
        let (dot_of_end, reason) = (dot(900_207), String::new());
        record.advance(dot(900_011), Fate { phase, by_executor: true, dot: dot_of_end, at: at(19), exit, reason });
        let ended = PackedRecord::from(&record);
        record.seal(Seal { expires_hour: 489_923, dot: dot(901_400), at: at(5_000) });
        let sealed = PackedRecord::from(&record);
        assert_eq!(sealed.unpack(), record);
        let sizes = [fresh, ended, sealed].map(|packed| packed.body.len());
        assert!(sizes[0] < 100 && sizes[1] < 200 && sizes[2] < 200, "{sizes:?}");
    }

    #[test]
    fn hints_never_hide_a_record() {
        let [mut record, ..] = typical_records();
        let named = |name: &str| Filter { name: Some(name.into()), ..Filter::default() };
        let spec = Spec { name: Some("nightly".into()), ..record.spec().clone() };
        record.submission = Arc::new(Submission { spec, ..Submission::clone(&record.submission) });
        let packed = PackedRecord::from(&record).body;
        assert!(packed.may_match(&Filter::default()) && packed.may_match(&named("nightly")));
        assert!(!packed.may_match(&named("daily")));
        let on = |node| Filter { node: Some(NodeId(node)), ..Filter::default() };
        assert!(packed.may_match(&on(0)) && !packed.may_match(&on(7)));
    }
}
