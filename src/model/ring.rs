//! Who looks after which partition: consistent hashing over the members.
//!
//! Picture a circle. Every node is put on it at many pseudo-random places (virtual nodes, more of them the
//! larger its weight); every partition has one place. A partition belongs to the nodes that come next when
//! you walk on from its place: the first R distinct ones are its home list. A node that joins takes over
//! only what lies just before its places, so 1 of N nodes moves about 1/N of the partitions (Karger et al.,
//! "Consistent Hashing and Random Trees", STOC 1997).
//!
//! The **home list** counts every member that may come back, down ones included, so that a death moves
//! nothing. The **acting list** is the same walk that skips whoever cannot act now; its first node is the
//! owner. Two nodes with the same view compute the same lists, which their fingerprint shows.

use std::collections::BTreeMap;
use std::sync::Arc;

use hashring::HashRing;

use super::id::{JobId, NodeId, Partition};
use super::member::{Fingerprint, Member, MemberState, Status, View};

/// Virtual nodes for each unit of weight: enough that equal nodes' shares differ by about a fifth.
const PLACES_PER_WEIGHT: u16 = 32;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct VirtualNode {
    node: NodeId,
    nth: u16,
}

/// The circle of one set of members, and what follows from it for every partition.
#[derive(Debug, Clone)]
pub struct Placement {
    /// Who is on the circle, and with what weight.
    weights: BTreeMap<NodeId, u16>,
    /// Virtual nodes in the circle's order.
    circle: Arc<Vec<NodeId>>,
    /// Where in the circle each partition's walk begins.
    starts: Arc<Vec<usize>>,
    home: Vec<Vec<NodeId>>,
    acting: Vec<Vec<NodeId>>,
    /// The node after the acting list, which was in it before the last of it came.
    next: Vec<Option<NodeId>>,
    fingerprint: Fingerprint,
}

impl Placement {
    /// The placement that follows from `view`, for `partitions` partitions and `replicas` copies of each.
    pub fn new(view: &View, partitions: u32, replicas: u32) -> Self {
        Self::following(None, view, partitions, replicas)
    }

    /// The same after `view` has changed. Most changes leave the circle as it was, which is the costly part.
    pub fn after(&self, view: &View, replicas: u32) -> Self {
        Self::following(Some(self), view, self.partitions(), replicas)
    }

    fn following(before: Option<&Self>, view: &View, partitions: u32, replicas: u32) -> Self {
        let belongs = |member: &&Member| belongs_to_ring(member);
        let mut members: Vec<&Member> = view.values().filter(belongs).collect();
        if members.is_empty() {
            // Nobody else is left: those who are leaving keep what they have.
            members = view.values().filter(|member| member.is_live()).collect();
        }
        let weights: BTreeMap<NodeId, u16> = members.iter().map(|m| (m.facts.node, m.facts.weight.max(1))).collect();
        let (circle, starts) = match before.filter(|before| before.weights == weights) {
            Some(before) => (Arc::clone(&before.circle), Arc::clone(&before.starts)),
            None => {
                let (circle, starts) = lay_out(&weights, partitions);
                (Arc::new(circle), Arc::new(starts))
            }
        };
        let replicas = replicas as usize;
        let walk = |start: usize, keep: &dyn Fn(NodeId) -> bool, most| distinct(&circle, start, keep, most);
        let can_act = |node: NodeId| view.get(&node).is_some_and(acts);
        let nobody_acts = !weights.keys().any(|node| can_act(*node));
        let is_live = |node: NodeId| view.get(&node).is_some_and(Member::is_live);
        // A walk that looks for more nodes than there are goes all the way round, for each partition.
        let homes = replicas.min(weights.len());
        let home: Vec<_> = starts.iter().map(|start| walk(*start, &|_| true, homes)).collect();
        let keep: &dyn Fn(NodeId) -> bool = if nobody_acts { &is_live } else { &can_act };
        let actors = weights.keys().filter(|node| keep(**node)).count().min(replicas + 1);
        let mut acting: Vec<_> = starts.iter().map(|start| walk(*start, keep, actors)).collect();
        let next = acting.iter_mut().map(|list| list.split_off(list.len().min(replicas)).pop()).collect();
        let fingerprint = fingerprint_of(&weights, &home, &acting);
        Self { weights, circle, starts, home, acting, next, fingerprint }
    }

    /// Equal for all nodes that compute the same lists.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// How many partitions there are.
    pub fn partitions(&self) -> u32 {
        self.starts.len() as u32
    }

    /// The partition of `job`.
    pub fn partition_of(&self, job: JobId) -> Partition {
        job.partition(self.partitions())
    }

    /// The nodes that keep this partition's records for good, whether or not they are up.
    pub fn home(&self, partition: Partition) -> &[NodeId] {
        &self.home[usize::from(partition.0)]
    }

    /// The nodes that keep and serve this partition's records now. The first is its owner.
    pub fn acting(&self, partition: Partition) -> &[NodeId] {
        &self.acting[usize::from(partition.0)]
    }

    /// The node after the acting list, if there is one: it acted before the newest of the list did.
    pub fn next(&self, partition: Partition) -> Option<NodeId> {
        self.next[usize::from(partition.0)]
    }

    /// The node that decides for this partition.
    pub fn owner(&self, partition: Partition) -> Option<NodeId> {
        self.acting(partition).first().copied()
    }

    /// Every node of the ring once, in the order in which they are asked to run `job`: jobs of one partition
    /// begin at different places, so that they spread.
    pub fn walk(&self, job: JobId) -> Vec<NodeId> {
        if self.circle.is_empty() {
            return Vec::new();
        }
        // The low bits: the top ones are the partition's and would start all its jobs at one place.
        let start = (job.0 as u64 % self.circle.len() as u64) as usize;
        distinct(&self.circle, start, &|_| true, self.weights.len())
    }

    /// Every partition.
    pub fn all(&self) -> impl Iterator<Item = Partition> + use<> {
        (0..self.starts.len()).map(|at| Partition(at as u16))
    }
}

/// Down members keep their places; those that left, drain or were never sure of joining have none.
fn belongs_to_ring(member: &Member) -> bool {
    match (member.state, member.facts.status) {
        (MemberState::Left, _) | (_, Status::Left | Status::Draining | Status::Joining) => false,
        (
            MemberState::Alive | MemberState::Suspect | MemberState::Down,
            Status::Returning | Status::Serving | Status::ReadOnly,
        ) => true,
    }
}

fn acts(member: &Member) -> bool {
    member.is_live() && member.facts.status == Status::Serving
}

fn lay_out(weights: &BTreeMap<NodeId, u16>, partitions: u32) -> (Vec<NodeId>, Vec<usize>) {
    let mut ring = HashRing::new();
    ring.batch_add(
        weights
            .iter()
            .flat_map(|(node, weight)| {
                let places = weight.saturating_mul(PLACES_PER_WEIGHT);
                (0..places).map(|nth| VirtualNode { node: *node, nth })
            })
            .collect(),
    );
    let firsts: Vec<Option<VirtualNode>> = (0..partitions).map(|at| ring.get(&("partition", at)).copied()).collect();
    // The ring gives away its order only when it is consumed; a virtual node's place in it is found by value.
    let in_order: Vec<VirtualNode> = ring.into_iter().collect();
    let places: BTreeMap<VirtualNode, usize> = in_order.iter().enumerate().map(|(at, node)| (*node, at)).collect();
    let starts = firsts.into_iter().map(|first| first.map_or(0, |node| places[&node])).collect();
    (in_order.into_iter().map(|place| place.node).collect(), starts)
}

/// The first `most` distinct nodes that `keep` holds for, walking once around from `start`.
fn distinct(circle: &[NodeId], start: usize, keep: &dyn Fn(NodeId) -> bool, most: usize) -> Vec<NodeId> {
    let mut found: Vec<NodeId> = Vec::new();
    for step in 0..circle.len() {
        if found.len() == most {
            break;
        }
        let node = circle[(start + step) % circle.len()];
        if !found.contains(&node) && keep(node) {
            found.push(node);
        }
    }
    found
}

fn fingerprint_of(weights: &BTreeMap<NodeId, u16>, home: &[Vec<NodeId>], acting: &[Vec<NodeId>]) -> Fingerprint {
    let mut hasher = blake3::Hasher::new();
    for (node, weight) in weights {
        hasher.update(&node.0.to_be_bytes()).update(&weight.to_be_bytes());
    }
    for list in home.iter().chain(acting) {
        hasher.update(&[list.len() as u8]);
        for node in list {
            hasher.update(&node.0.to_be_bytes());
        }
    }
    Fingerprint(u64::from_be_bytes(hasher.finalize().as_bytes()[..8].try_into().expect("8 of 32 bytes")))
}
