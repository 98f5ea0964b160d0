//! Nodes as their peers see them: what each says about itself, and what the others make of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::id::{Generation, Incarnation, NodeId, Partition};
use super::resources::Resources;
use super::spec::Driver;
use super::time::Moment;

/// The version of everything that peers send each other.
pub const WIRE_VERSION: u16 = 1;

/// What every node of a cluster must agree on. A node that differs refuses to join and says what differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterSettings {
    /// The cluster's name.
    pub name: String,
    /// Q: how many partitions there are; a power of two.
    pub partitions: u32,
    /// R: how many nodes keep each record.
    pub replicas: u32,
    /// After how long a down member is forgotten, by those who reach a majority of the members.
    #[serde(with = "super::time::duration")]
    pub forget_after: Duration,
}

impl Default for ClusterSettings {
    fn default() -> Self {
        let day = Duration::from_secs(24 * 3_600);
        Self { name: "flockwork".to_owned(), partitions: 1_024, replicas: 3, forget_after: day }
    }
}

/// What a node says it is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Started, and not yet sure whom it belongs to.
    Joining,
    /// Started again with the records that it had, and not yet sure how the others stand. It has its places on the ring, as
    /// it had while it was away: a restart moves nothing.
    Returning,
    /// Serving.
    Serving,
    /// Serving what it has, taking nothing new.
    Draining,
    /// Cannot write to its disk: keeps its pods, owns nothing.
    ReadOnly,
    /// Said goodbye.
    Left,
}

impl Status {
    /// Whether the node has started and does not serve yet.
    pub fn is_starting(self) -> bool {
        match self {
            Self::Joining | Self::Returning => true,
            Self::Serving | Self::Draining | Self::ReadOnly | Self::Left => false,
        }
    }
}

/// How busy a node says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Load {
    /// What its pods and its open offers have set aside.
    pub used: Resources,
    /// Jobs it owns that are due and have found no room.
    pub backlog: u32,
    /// Processor use of the whole machine, in thousandths of all its processors.
    pub cpu_permille: u16,
    /// Memory of the whole machine that is available, in bytes.
    pub memory_available_bytes: u64,
}

/// Everything a node gossips about itself, at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    /// Who it is, for as long as it keeps its disk.
    pub node: NodeId,
    /// Its name, for people; unique in the cluster.
    pub name: String,
    /// Which start of it.
    pub generation: Generation,
    /// Raised to refute suspicion.
    pub incarnation: Incarnation,
    /// Where peers reach it, by TCP and UDP.
    pub cluster_addr: SocketAddr,
    /// Where clients reach it.
    pub http_addr: SocketAddr,
    /// What it is doing.
    pub status: Status,
    /// Counts the changes of its status and weight in this start: of two that remember it differently when it is gone, the
    /// one with the higher count heard it last.
    #[serde(default)]
    pub revision: u64,
    /// What it has for jobs.
    pub capacity: Resources,
    /// Its share of the ring, relative to the others'.
    pub weight: u16,
    /// How busy it is.
    pub load: Load,
    /// What jobs can ask for by `require`.
    pub labels: BTreeMap<String, String>,
    /// What it can run.
    pub drivers: BTreeSet<Driver>,
    /// The partitions it holds records of.
    pub held: PartitionSet,
    /// The ring it computes from its view.
    pub ring: Fingerprint,
    /// What it believes the cluster agreed on.
    pub cluster: ClusterSettings,
    /// What it speaks.
    pub wire_version: u16,
    /// Its program's version, for people.
    pub version: String,
    /// Its votes: whom it suspects, in which start and incarnation.
    pub suspicions: BTreeMap<NodeId, (Generation, Incarnation)>,
    /// The members that it knows to have left, and in which start: for those who were away when they did.
    #[serde(default)]
    pub departed: BTreeMap<NodeId, Generation>,
    /// The members that somebody had forgotten by hand, and what was known of each: for those who did not hear of it.
    #[serde(default)]
    pub dismissed: BTreeMap<NodeId, (Generation, Incarnation)>,
}

/// What a ring, or a view, comes down to: equal for all who agree.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fingerprint(pub u64);

impl std::fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl std::fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

/// A set of partitions as bits, small enough to gossip.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PartitionSet(#[serde(with = "serde_bytes")] Vec<u8>);

impl PartitionSet {
    /// Whether `partition` is in it.
    pub fn contains(&self, partition: Partition) -> bool {
        let (byte, bit) = Self::place(partition);
        self.0.get(byte).is_some_and(|bits| bits & bit != 0)
    }

    /// Adds `partition`.
    pub fn insert(&mut self, partition: Partition) {
        let (byte, bit) = Self::place(partition);
        if self.0.len() <= byte {
            self.0.resize(byte + 1, 0);
        }
        self.0[byte] |= bit;
    }

    /// Takes `partition` out.
    pub fn remove(&mut self, partition: Partition) {
        let (byte, bit) = Self::place(partition);
        if let Some(bits) = self.0.get_mut(byte) {
            *bits &= !bit;
        }
        while self.0.last() == Some(&0) {
            self.0.pop();
        }
    }

    /// Adds all that are in `other`.
    pub fn union_with(&mut self, other: &Self) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        self.0.iter_mut().zip(&other.0).for_each(|(bits, more)| *bits |= more);
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Its members in order.
    pub fn iter(&self) -> impl Iterator<Item = Partition> + '_ {
        (0..self.0.len() * 8).map(|at| Partition(at as u16)).filter(|partition| self.contains(*partition))
    }

    fn place(partition: Partition) -> (usize, u8) {
        (usize::from(partition.0 / 8), 1 << (partition.0 % 8))
    }
}

impl FromIterator<Partition> for PartitionSet {
    fn from_iter<I: IntoIterator<Item = Partition>>(partitions: I) -> Self {
        let mut set = Self::default();
        for partition in partitions {
            set.insert(partition);
        }
        set
    }
}

/// What this node makes of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemberState {
    /// It answers, or others say that it does.
    Alive,
    /// It did not answer, and may still refute.
    Suspect,
    /// Its grace period ran out.
    Down,
    /// It said goodbye.
    Left,
}

/// A member of the view.
#[derive(Debug, Clone, PartialEq)]
pub struct Member {
    /// What it last said about itself.
    pub facts: Facts,
    /// The verdict.
    pub state: MemberState,
    /// Since when.
    pub since: Moment,
}

impl Member {
    /// Whether work and messages are sent its way: alive, or suspected only.
    pub fn is_live(&self) -> bool {
        match self.state {
            MemberState::Alive | MemberState::Suspect => true,
            MemberState::Down | MemberState::Left => false,
        }
    }

    /// Whether it takes new records and new work when it is live.
    pub fn takes_work(&self) -> bool {
        self.is_live() && self.facts.status == Status::Serving
    }
}

/// A member that is gone, as somebody remembers it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Absentee {
    /// What it last said about itself.
    pub facts: Facts,
    /// For how long it has been down.
    #[serde(with = "super::time::duration")]
    pub gone_for: Duration,
}

/// What a node remembers of members that are gone.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Memories {
    /// Those that are down, or some of them.
    pub down: Vec<Absentee>,
    /// Those that have been gone for too long, and what was known of them.
    pub forgotten: Vec<(NodeId, Generation, Incarnation)>,
}

impl Memories {
    /// Whether there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        self.down.is_empty() && self.forgotten.is_empty()
    }
}

/// All members that this node knows and has not forgotten, itself included.
pub type View = BTreeMap<NodeId, Member>;

/// Whether more than half of the members that have not left are alive, as far as this view knows. A suspect does
/// not count: who wants to be careful is so before the verdict.
pub fn majority_in_reach(view: &View) -> bool {
    let members = view.values().filter(|member| member.state != MemberState::Left).count();
    let alive = view.values().filter(|member| member.state == MemberState::Alive).count();
    alive * 2 > members
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_set_holds_what_was_put_in() {
        let mut set: PartitionSet = [Partition(0), Partition(9), Partition(1_023)].into_iter().collect();
        assert_eq!(set.iter().collect::<Vec<_>>(), [Partition(0), Partition(9), Partition(1_023)]);
        set.remove(Partition(1_023));
        assert!(!set.contains(Partition(1_023)) && set.contains(Partition(9)));
        set.remove(Partition(0));
        set.remove(Partition(9));
        assert_eq!(set, PartitionSet::default());
        let (few, many) =
            (PartitionSet::from_iter([Partition(3)]), PartitionSet::from_iter([Partition(2), Partition(700)]));
        for (one, other) in [(&few, &many), (&many, &few)] {
            set.clone_from(one);
            set.union_with(other);
            assert_eq!(set.iter().collect::<Vec<_>>(), [Partition(2), Partition(3), Partition(700)]);
        }
    }
}
