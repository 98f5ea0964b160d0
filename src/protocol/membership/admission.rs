//! Who may be a member at all: what two nodes of one cluster must agree on, and what no two may share.

use crate::model::id::{Generation, NodeId};
use crate::model::member::{ClusterSettings, Facts, Status, WIRE_VERSION};
use crate::model::time::Moment;

/// A node that gossips with us and cannot be a member.
#[derive(Debug, Clone)]
pub(super) struct Outsider {
    pub(super) generation: Generation,
    pub(super) status: Status,
    /// What differs, for people.
    pub(super) differs: String,
    pub(super) seen: Moment,
}

/// A second process with this node's id is taken for gone after so many questions in a row without an answer.
const TWIN_SILENCES: u32 = 3;

/// Another process that runs, or ran, as this very node.
#[derive(Debug, Clone)]
pub(super) struct Twin {
    pub(super) facts: Facts,
    /// The ping that is to find out whether it still runs.
    pub(super) seq: u64,
    pub(super) asked_at: Option<Moment>,
    answered_at: Option<Moment>,
    /// How many pings in a row have gone unanswered.
    silences: u32,
}

impl Twin {
    pub(super) fn new(facts: Facts) -> Self {
        Self { facts, seq: 0, asked_at: None, answered_at: None, silences: 0 }
    }

    /// It is asked once more.
    pub(super) fn ask(&mut self, now: Moment, seq: u64) {
        if self.asked_at.is_some() && self.answered_at < self.asked_at {
            self.silences += 1;
        }
        self.seq = seq;
        self.asked_at = Some(now);
    }

    pub(super) fn answered(&mut self, now: Moment) {
        self.answered_at = Some(now);
        self.silences = 0;
    }

    /// It has not answered for so long that nobody asks any more.
    pub(super) fn is_gone(&self) -> bool {
        self.silences >= TWIN_SILENCES
    }

    /// It has answered, and not fallen silent since.
    pub(super) fn is_running(&self) -> bool {
        self.answered_at.is_some() && !self.is_gone()
    }
}

/// What keeps the node that `theirs` is about out of a cluster with `ours`, for people.
pub(super) fn what_differs(ours: &ClusterSettings, theirs: &Facts) -> Option<String> {
    let their = &theirs.cluster;
    let mut differences = Vec::new();
    let mut compare = |what: &str, here: String, there: String| {
        if here != there {
            differences.push(format!("{what} is {here} here and {there} there"));
        }
    };
    compare("the cluster's name", ours.name.clone(), their.name.clone());
    compare("partitions", ours.partitions.to_string(), their.partitions.to_string());
    compare("replicas", ours.replicas.to_string(), their.replicas.to_string());
    let pretty = |duration| humantime::format_duration(duration).to_string();
    compare("forget_after", pretty(ours.forget_after), pretty(their.forget_after));
    compare("the wire version", WIRE_VERSION.to_string(), theirs.wire_version.to_string());
    let who = format!("node {} ({}) at {}", theirs.name, theirs.node, theirs.cluster_addr);
    (!differences.is_empty()).then(|| format!("{who} has other settings: {}", differences.join("; ")))
}

/// Of two nodes that cannot both serve, the newer one gives way: the later start, then the higher id.
pub(super) fn gives_way(me: (Generation, NodeId), other: (Generation, NodeId)) -> bool {
    me > other
}
