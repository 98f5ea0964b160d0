//! A node's knowledge at one moment, for those who look: the debug pages, the metrics, the simulator's
//! checkers. A plain value; taking one changes nothing.

use std::sync::Arc;

use crate::model::id::{Generation, NodeId, Partition};
use crate::model::member::{Facts, Fingerprint, View};
use crate::model::ring::Placement;
use crate::model::time::{Moment, Now, Timestamp};

/// What a node knows, and how it stands.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// When it was taken.
    pub now: Now,
    /// Who took it.
    pub node: NodeId,
    /// In which start.
    pub generation: Generation,
    /// What it says about itself.
    pub facts: Facts,
    /// Nothing if it serves; else why it does not.
    pub not_ready: Option<String>,
    /// What else is wrong and worth a person's look, one sentence each.
    pub complaints: Vec<String>,
    /// How far it distrusts its own ears: 0 is healthy, 8 the worst.
    pub local_health: u32,
    /// All members as it sees them, itself included.
    pub view: View,
    /// The ring it computes from that view, with each partition's home and acting lists.
    pub placement: Arc<Placement>,
    /// How far it is from agreement with the others.
    pub convergence: Convergence,
    /// How many jobs it holds, and in which role.
    pub jobs: JobCounts,
    /// What has been counted since the start, by metric name.
    pub counters: Vec<(&'static str, u64)>,
    /// How far each member's wall clock is ahead of this node's, in milliseconds, as far as it was measured.
    pub clock_skews_ms: Vec<(NodeId, i64)>,
}

/// How far a node is from agreement with the others.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Convergence {
    /// All live members gossip this node's ring fingerprint, and nothing has been behind for longer than the
    /// settling time.
    pub converged: bool,
    /// Since when it has been as `converged` says.
    pub since: Timestamp,
    /// The same on the local clock.
    pub since_moment: Moment,
    /// Each live member's ring fingerprint, as gossiped.
    pub fingerprints: Vec<(NodeId, Fingerprint)>,
    /// The partitions whose acting list names this node.
    pub acting: u32,
    /// Those of them that agree with every other live replica, by the last comparison.
    pub in_sync: u32,
    /// The others.
    pub behind: Vec<Partition>,
    /// Records held outside their acting list.
    pub strays: u32,
    /// What the ring's last change has left to do here, while it has.
    pub moving: Option<Moving>,
}

/// How far records have moved since the ring changed. What is left of it are the strays, and the partitions behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Moving {
    /// When it began.
    pub since: Timestamp,
    /// The same on the local clock.
    pub since_moment: Moment,
    /// How many records this node was to hand over in all.
    pub records: u64,
    /// How many of them it has.
    pub handed_over: u64,
    /// How many of its partitions were behind at once, at the most.
    pub partitions: u32,
    /// Records that wait to be sent to nodes that lack them, counted once for each; their pace is bounded.
    pub waiting_to_be_sent: u64,
}

/// Jobs by what this node has to do with them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct JobCounts {
    /// Records held, in any role.
    pub held: u64,
    /// Not yet terminal, of those held.
    pub open: u64,
    /// Open ones that this node decides for.
    pub owned: u64,
    /// Owned ones that are due and wait for room.
    pub waiting: u64,
    /// Pods of this node.
    pub pods: u64,
}
