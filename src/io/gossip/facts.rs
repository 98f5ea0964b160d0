//! Facts as gossip keys: which key carries what, and the way back.
//!
//! Facts are spread over keys by how often they change, because a changed key is sent again as a whole: who a
//! node is and what it has never changes in one start, its load changes all the time. Values are compact JSON
//! (which compresses well among many nodes, and can be read by people), except the set of held partitions,
//! which is MessagePack in base64.
//!
//! The gossip library silently stops sending a node's keys at the first value that is too large for its
//! packets, and panics at the receiver of a key whose first character takes more than one byte. So keys are the
//! constants here, and no value is longer than [`MAX_VALUE_BYTES`]: facts that would not fit are refused.
//!
//! Keys are never deleted. What a reader does not know, it ignores; what it misses makes the facts incomplete,
//! and incomplete facts are not reported.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use data_encoding::BASE64_NOPAD;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::model::id::{Generation, Incarnation, NodeId};
use crate::model::member::{ClusterSettings, Facts, Fingerprint, Load, PartitionSet, Status};
use crate::model::resources::Resources;
use crate::model::spec::Driver;

/// The longest value that is gossiped.
pub(super) const MAX_VALUE_BYTES: usize = 4 << 10;

const IDENTITY: &str = "identity";
const STANDING: &str = "standing";
const SUSPICIONS: &str = "suspicions";
const DEPARTED: &str = "departed";
const DISMISSED: &str = "dismissed";
const LOAD: &str = "load";
const RING: &str = "ring";
const HELD: &str = "held";
/// Labels take as many keys as they need: `labels.0`, `labels.1`, …
const LABELS: &str = "labels.";

/// The keys whose change is handed on at once: they decide who is believed to be alive.
pub(super) const URGENT: [&str; 2] = [STANDING, SUSPICIONS];

/// Keys and values, as gossiped.
pub(super) type Keys = BTreeMap<String, String>;

/// What does not change in one start of a node.
#[derive(Serialize, Deserialize)]
struct Identity {
    name: String,
    generation: Generation,
    cluster_addr: SocketAddr,
    http_addr: SocketAddr,
    capacity: Resources,
    weight: u16,
    /// How many labels there are in the label keys.
    labels: usize,
    drivers: BTreeSet<Driver>,
    cluster: ClusterSettings,
    wire_version: u16,
    version: String,
}

#[derive(Serialize, Deserialize)]
struct Standing {
    status: Status,
    incarnation: Incarnation,
    #[serde(default)]
    revision: u64,
}

/// Why facts cannot be gossiped. Nothing has been published.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeFactsError {
    /// A part of the facts is larger than gossip can carry.
    #[error("the facts under `{key}` take {bytes} bytes, and at most {MAX_VALUE_BYTES} can be gossiped")]
    TooLarge {
        /// Which key.
        key: String,
        /// How long its value is.
        bytes: usize,
    },
    /// A part of the facts has no JSON.
    #[error("the facts under `{key}` cannot be encoded: {reason}")]
    Unencodable {
        /// Which key.
        key: String,
        /// Why not.
        reason: String,
    },
}

/// Why a node's keys do not make facts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum DecodeFactsError {
    /// More may be on its way.
    #[error("`{0}` has not come yet")]
    Incomplete(&'static str),
    #[error("`{key}` cannot be read: {reason}")]
    Unreadable { key: String, reason: String },
    #[error("it contradicts the name it is gossiped under")]
    Contradiction,
}

/// `facts` as keys and values.
pub(super) fn encode(facts: &Facts) -> Result<Keys, EncodeFactsError> {
    let identity = Identity {
        name: facts.name.clone(),
        generation: facts.generation,
        cluster_addr: facts.cluster_addr,
        http_addr: facts.http_addr,
        capacity: facts.capacity,
        weight: facts.weight,
        labels: facts.labels.len(),
        drivers: facts.drivers.clone(),
        cluster: facts.cluster.clone(),
        wire_version: facts.wire_version,
        version: facts.version.clone(),
    };
    let standing = Standing { status: facts.status, incarnation: facts.incarnation, revision: facts.revision };
    let held = rmp_serde::to_vec(&facts.held)
        .map_err(|error| EncodeFactsError::Unencodable { key: HELD.to_owned(), reason: error.to_string() })?;
    let mut keys = Keys::from([
        (IDENTITY.to_owned(), json(IDENTITY, &identity)?),
        (STANDING.to_owned(), json(STANDING, &standing)?),
        (SUSPICIONS.to_owned(), suspicions_that_fit(&facts.suspicions)?),
        (DEPARTED.to_owned(), json(DEPARTED, &facts.departed)?),
        (DISMISSED.to_owned(), json(DISMISSED, &facts.dismissed)?),
        (LOAD.to_owned(), json(LOAD, &facts.load)?),
        (RING.to_owned(), json(RING, &facts.ring)?),
        (HELD.to_owned(), BASE64_NOPAD.encode(&held)),
    ]);
    for (at, some) in spread_labels(&facts.labels)?.into_iter().enumerate() {
        keys.insert(format!("{LABELS}{at}"), some);
    }
    match keys.iter().find(|(_, value)| value.len() > MAX_VALUE_BYTES) {
        Some((key, value)) => Err(EncodeFactsError::TooLarge { key: key.clone(), bytes: value.len() }),
        None => Ok(keys),
    }
}

/// The votes that fit into one value: those against the lowest node ids. In a mass failure every voter leaves
/// out the same ones, so that the votes that remain still add up; the others' turn comes as verdicts fall.
fn suspicions_that_fit(suspicions: &BTreeMap<NodeId, (Generation, Incarnation)>) -> Result<String, EncodeFactsError> {
    let mut some = suspicions.clone();
    loop {
        let value = json(SUSPICIONS, &some)?;
        if value.len() <= MAX_VALUE_BYTES {
            return Ok(value);
        }
        // Never empties the map: a single vote is far smaller than a value may be.
        let kept = some.len() * MAX_VALUE_BYTES / value.len();
        some = some.into_iter().take(kept).collect();
    }
}

/// The labels in as few values as hold them.
fn spread_labels(labels: &BTreeMap<String, String>) -> Result<Vec<String>, EncodeFactsError> {
    let mut values = Vec::new();
    let mut some = BTreeMap::new();
    for (name, value) in labels {
        some.insert(name, value);
        if some.len() > 1 && json(LABELS, &some)?.len() > MAX_VALUE_BYTES {
            some.remove(name);
            values.push(json(LABELS, &some)?);
            some = BTreeMap::from([(name, value)]);
        }
    }
    if !some.is_empty() {
        values.push(json(LABELS, &some)?);
    }
    Ok(values)
}

/// The facts of `node` in its start `generation`, from the keys gossiped under that name.
pub(super) fn decode(node: NodeId, generation: Generation, keys: &Keys) -> Result<Facts, DecodeFactsError> {
    let identity: Identity = read(keys, IDENTITY)?;
    let standing: Standing = read(keys, STANDING)?;
    let suspicions = read(keys, SUSPICIONS)?;
    let departed = read(keys, DEPARTED)?;
    let dismissed = read(keys, DISMISSED)?;
    let load: Load = read(keys, LOAD)?;
    let ring: Fingerprint = read(keys, RING)?;
    let held = keys.get(HELD).ok_or(DecodeFactsError::Incomplete(HELD))?;
    let unreadable = |reason: String| DecodeFactsError::Unreadable { key: HELD.to_owned(), reason };
    let held = BASE64_NOPAD.decode(held.as_bytes()).map_err(|error| unreadable(error.to_string()))?;
    let held: PartitionSet = rmp_serde::from_slice(&held).map_err(|error| unreadable(error.to_string()))?;
    let mut labels = BTreeMap::new();
    for (key, value) in keys.range(LABELS.to_owned()..).take_while(|(key, _)| key.starts_with(LABELS)) {
        labels.append(&mut parse::<BTreeMap<String, String>>(key, value)?);
    }
    if labels.len() != identity.labels {
        return Err(DecodeFactsError::Incomplete(LABELS));
    }
    if identity.generation != generation {
        return Err(DecodeFactsError::Contradiction);
    }
    Ok(Facts {
        node,
        name: identity.name,
        generation,
        incarnation: standing.incarnation,
        cluster_addr: identity.cluster_addr,
        http_addr: identity.http_addr,
        status: standing.status,
        revision: standing.revision,
        capacity: identity.capacity,
        weight: identity.weight,
        load,
        labels,
        drivers: identity.drivers,
        held,
        ring,
        cluster: identity.cluster,
        wire_version: identity.wire_version,
        version: identity.version,
        suspicions,
        departed,
        dismissed,
    })
}

fn json<T: Serialize>(key: &str, value: &T) -> Result<String, EncodeFactsError> {
    serde_json::to_string(value)
        .map_err(|error| EncodeFactsError::Unencodable { key: key.to_owned(), reason: error.to_string() })
}

fn read<T: DeserializeOwned>(keys: &Keys, key: &'static str) -> Result<T, DecodeFactsError> {
    parse(key, keys.get(key).ok_or(DecodeFactsError::Incomplete(key))?)
}

fn parse<T: DeserializeOwned>(key: &str, value: &str) -> Result<T, DecodeFactsError> {
    serde_json::from_str(value)
        .map_err(|error| DecodeFactsError::Unreadable { key: key.to_owned(), reason: error.to_string() })
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::id::Partition;
    use crate::model::member::WIRE_VERSION;
    use crate::model::resources::{Cpus, Memory};

    pub(in crate::io::gossip) fn facts(node: u32, generation: u64, cluster_addr: SocketAddr) -> Facts {
        Facts {
            node: NodeId(node),
            name: format!("node-{node}"),
            generation: Generation(generation),
            incarnation: Incarnation(0),
            cluster_addr,
            http_addr: SocketAddr::from(([127, 0, 0, 1], 8_080)),
            status: Status::Serving,
            revision: 4,
            capacity: Resources { cpus: Cpus { millis: 1_500 }, memory: Memory { bytes: 7_777 }, slots: 4 },
            weight: 3,
            load: Load { backlog: 9, cpu_permille: 250, ..Load::default() },
            labels: BTreeMap::from([("zone".to_owned(), "süd".to_owned())]),
            drivers: BTreeSet::from([Driver::Process]),
            held: [Partition(3), Partition(1_023)].into_iter().collect(),
            ring: Fingerprint(u64::MAX),
            cluster: ClusterSettings {
                name: "test".to_owned(),
                partitions: 1_024,
                replicas: 3,
                forget_after: Duration::from_millis(86_400_001),
            },
            wire_version: WIRE_VERSION,
            version: "0.1.0".to_owned(),
            departed: BTreeMap::from([(NodeId(9), Generation(3))]),
            dismissed: BTreeMap::from([(NodeId(8), (Generation(4), Incarnation(1)))]),
            suspicions: BTreeMap::from([(NodeId(7), (Generation(5), Incarnation(2)))]),
        }
    }

    fn addr() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 7_070))
    }

    #[test]
    fn facts_are_read_as_they_were_written() {
        let facts = facts(1, 2, addr());
        let keys = encode(&facts).unwrap();
        assert_eq!(decode(NodeId(1), Generation(2), &keys), Ok(facts));
        assert_eq!(decode(NodeId(1), Generation(3), &keys), Err(DecodeFactsError::Contradiction));
    }

    #[test]
    fn facts_that_lack_a_key_are_not_facts() {
        let keys = encode(&facts(1, 2, addr())).unwrap();
        for missing in keys.keys() {
            let mut some = keys.clone();
            some.remove(missing);
            let decoded = decode(NodeId(1), Generation(2), &some);
            assert!(matches!(decoded, Err(DecodeFactsError::Incomplete(_))), "{missing}: {decoded:?}");
        }
    }

    #[test]
    fn the_largest_labels_and_partitions_fit_into_values_of_the_permitted_size() {
        let mut facts = facts(1, 2, addr());
        // Sixteen labels of the greatest length, in characters that JSON spells out.
        let long = |at: u32| format!("{at:02}{}", "\u{1}".repeat(126));
        facts.labels = (0..16).map(|at| (long(at), long(at))).collect();
        facts.held = (0..1 << 14).map(Partition).collect();
        let keys = encode(&facts).unwrap();
        assert!(keys.values().all(|value| value.len() <= MAX_VALUE_BYTES));
        let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"._/-".contains(&c);
        assert!(keys.keys().all(|key| key.bytes().all(plain)));
        assert_eq!(decode(NodeId(1), Generation(2), &keys), Ok(facts));
    }

    #[test]
    fn of_too_many_suspicions_all_voters_keep_the_same() {
        let vote = (Generation(u64::MAX), Incarnation(u64::MAX));
        let mut facts = facts(1, 2, addr());
        facts.suspicions = (0..5_000).map(|node| (NodeId(node), vote)).collect();
        let keys = encode(&facts).unwrap();
        let kept = decode(NodeId(1), Generation(2), &keys).unwrap().suspicions;
        assert!(kept.len() > 50 && kept.keys().copied().eq((0..kept.len() as u32).map(NodeId)));
    }

    #[test]
    fn what_is_too_large_is_refused() {
        let mut facts = facts(1, 2, addr());
        facts.name = "x".repeat(5_000);
        assert!(matches!(encode(&facts), Err(EncodeFactsError::TooLarge { key, .. }) if key == IDENTITY));
    }
}
