//! Names for everything that can be pointed at.
//!
//! A node, a start of a node, a job, a slice of the id space: each has its own type, so that one can never
//! be passed where another is meant. People and JSON see text (`a3f19c02`, 32 hexadecimal digits for a
//! job); the wire and the disk see plain numbers.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {expected}")]
pub struct ParseIdError {
    text: String,
    expected: &'static str,
}

macro_rules! hexadecimal_id {
    ($name:ident($inner:ty), $digits:literal, $expected:literal) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!("{:0", $digits, "x}"), self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                let digits: usize = $digits.parse().expect("the digit count is a number");
                if text.len() == digits && text.bytes().all(|b| b.is_ascii_hexdigit()) {
                    if let Ok(value) = <$inner>::from_str_radix(text, 16) {
                        return Ok(Self(value));
                    }
                }
                Err(ParseIdError { text: text.to_owned(), expected: $expected })
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() { serializer.collect_str(self) } else { self.0.serialize(serializer) }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
                } else {
                    <$inner>::deserialize(deserializer).map(Self)
                }
            }
        }
    };
}

/// A node, for as long as it keeps its data directory. Short, because every gossip digest repeats it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u32);
hexadecimal_id!(NodeId(u32), "8", "a node id (8 hexadecimal digits)");

/// A job: 128 bits, random, or derived from an idempotency key. The top bits are its [`Partition`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(pub u128);
hexadecimal_id!(JobId(u128), "32", "a job id (32 hexadecimal digits)");

impl JobId {
    /// How many of the top bits come from the idempotency key, where a job has one.
    const KEY_BITS: u32 = 80;

    /// The id that one key and one spec always have, whoever computes it, so that the same submit given to
    /// both sides of a partition is one job. Both arguments are hashes; their leading bits are used.
    pub fn from_key(key_hash: &[u8; 32], spec_hash: &[u8; 32]) -> Self {
        let take = |bytes: &[u8; 32]| u128::from_be_bytes(bytes[..16].try_into().expect("16 of 32 bytes"));
        let spec_bits = 128 - Self::KEY_BITS;
        Self((take(key_hash) >> spec_bits << spec_bits) | (take(spec_hash) >> Self::KEY_BITS))
    }

    /// The ids that share this one's key: the lowest and the highest, both included.
    pub fn key_range(self) -> (Self, Self) {
        let spec_mask = u128::MAX >> Self::KEY_BITS;
        (Self(self.0 & !spec_mask), Self(self.0 | spec_mask))
    }

    /// The partition this job lives in, of `partitions` (a power of two).
    pub fn partition(self, partitions: u32) -> Partition {
        debug_assert!(partitions.is_power_of_two());
        match partitions.trailing_zeros() {
            0 => Partition(0),
            bits => Partition((self.0 >> (128 - bits)) as u16),
        }
    }
}

/// The start of a job id, as people type it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobIdPrefix {
    /// The lowest id with this prefix.
    pub low: JobId,
    /// The highest id with this prefix.
    pub high: JobId,
}

impl JobIdPrefix {
    /// Fewer digits than this might span several partitions.
    pub const MIN_DIGITS: usize = 4;
}

/// The digits that all ids with the prefix share.
impl fmt::Display for JobIdPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shared = (self.low.0 ^ self.high.0).leading_zeros() as usize / 4;
        f.write_str(&self.low.to_string()[..shared])
    }
}

impl From<JobId> for JobIdPrefix {
    fn from(id: JobId) -> Self {
        Self { low: id, high: id }
    }
}

impl FromStr for JobIdPrefix {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let usable = (Self::MIN_DIGITS..=32).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
        let digits = usable.then(|| u128::from_str_radix(text, 16).ok()).flatten();
        let Some(digits) = digits else {
            let expected = "a job id, or at least the first 4 of its 32 hexadecimal digits";
            return Err(ParseIdError { text: text.to_owned(), expected });
        };
        let open_bits = 128 - 4 * text.len() as u32;
        let low = if open_bits == 0 { digits } else { digits << open_bits };
        let high = low | 1u128.checked_shl(open_bits).map_or(0, |bit| bit - 1);
        Ok(Self { low: JobId(low), high: JobId(high) })
    }
}

/// One start of a node's process. Always higher than that of any earlier start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub u64);

/// Raised by a member to refute a suspicion about itself (SWIM, section 4.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Incarnation(pub u64);

/// A fixed slice of the id space. What a partition's jobs have in common is who looks after them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Partition(pub u16);

/// Who wrote an entry of a vector clock: a node in one of its starts. A start that lost what it had not
/// yet synced is followed by another generation, so no counter is ever used twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Actor {
    #[serde(rename = "n")]
    pub node: NodeId,
    #[serde(rename = "g")]
    pub generation: Generation,
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.node, self.generation.0)
    }
}

impl fmt::Debug for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One write: the n-th of an actor. (`crdts::Dot` is only partially ordered, and keys must have an order.)
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Dot {
    #[serde(rename = "a")]
    pub actor: Actor,
    #[serde(rename = "c")]
    pub counter: u64,
}

impl From<Dot> for crdts::Dot<Actor> {
    fn from(dot: Dot) -> Self {
        Self::new(dot.actor, dot.counter)
    }
}

impl fmt::Display for Dot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.actor, self.counter)
    }
}

impl fmt::Debug for Dot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Which writes are known.
pub type Clock = crdts::VClock<Actor>;

/// A number that grows with every attempt of a job, for whatever the job writes to: refuse a smaller one
/// than you have seen. The attempt's number in the upper half, its node below, so that two attempts which
/// were both given one number during a partition still differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fence(u64);

impl Fence {
    /// The token of attempt `number` on `node`.
    pub fn new(number: u32, node: NodeId) -> Self {
        Self(u64::from(number) << 32 | u64::from(node.0))
    }
}

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One attempt of one job, by the dot of its claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AttemptKey {
    pub job: JobId,
    pub claim: Dot,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_as_they_are_written() {
        let job = JobId(0x00ff_0000_0000_0000_0000_0000_0000_0001);
        assert_eq!(job.to_string().parse(), Ok(job));
        assert_eq!("000000ff".parse(), Ok(NodeId(255)));
        assert!("+00000ff".parse::<NodeId>().is_err());
        assert!("ff".parse::<NodeId>().is_err());
    }

    #[test]
    fn a_prefix_spans_the_ids_that_start_with_it() {
        let prefix: JobIdPrefix = "00ff".parse().unwrap();
        assert_eq!(prefix.low, JobId(0x00ff << 112));
        assert_eq!(prefix.high, JobId((0x0100 << 112) - 1));
        let whole = JobId(7);
        assert_eq!(whole.to_string().parse(), Ok(JobIdPrefix::from(whole)));
        assert!("00f".parse::<JobIdPrefix>().is_err());
        assert!("xyzw".parse::<JobIdPrefix>().is_err());
    }

    #[test]
    fn one_key_is_one_partition_whatever_the_spec() {
        let (a, b) = (JobId::from_key(&[7; 32], &[1; 32]), JobId::from_key(&[7; 32], &[2; 32]));
        assert_ne!(a, b);
        assert_eq!(a.partition(1 << 16), b.partition(1 << 16));
        assert_eq!(a.key_range(), b.key_range());
        assert!(a.key_range().0 <= a && a <= a.key_range().1);
    }
}
