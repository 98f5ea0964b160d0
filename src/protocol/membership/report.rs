//! What the membership shows to people: every member, who doubts it and until when, and what was decided.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::model::id::{Generation, Incarnation, NodeId};
use crate::model::member::{MemberState, Status};
use crate::model::time::Timestamp;

/// A node's members, as it sees them and why.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MembershipReport {
    /// How far the node distrusts its own ears: 0 is healthy, 8 the worst (Lifeguard's local health).
    pub local_health: u32,
    /// Until when it gives no verdict, because its own ticks came late.
    pub withheld_until: Option<Timestamp>,
    /// Why it must not serve, if it must not.
    pub conflict: Option<String>,
    /// What else is wrong and worth a person's look.
    pub complaints: Vec<String>,
    /// Every member, itself included.
    pub members: Vec<MemberReport>,
    /// The latest changes, oldest first.
    pub history: Vec<Verdict>,
}

/// One member.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MemberReport {
    /// Who.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// In which start.
    pub generation: Generation,
    /// And incarnation.
    pub incarnation: Incarnation,
    /// What it says it is doing.
    pub status: Status,
    /// What this node makes of it.
    pub state: MemberState,
    /// Since when.
    pub since: Timestamp,
    /// How long it usually takes to answer, in milliseconds; none while it was not measured, and for this node.
    pub round_trip_ms: Option<f64>,
    /// Why it is in doubt, if it is.
    pub suspicion: Option<SuspicionReport>,
}

/// A suspicion.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SuspicionReport {
    /// Since when this node has held it.
    pub since: Timestamp,
    /// When its grace period runs out, as things stand.
    pub until: Timestamp,
    /// Who votes against the member.
    pub voters: BTreeSet<NodeId>,
    /// Whether this node's own probe failed too, without which it gives no verdict.
    pub silent: bool,
    /// Whether the member's machine refuses connections.
    pub refused: bool,
    /// Whether the member is only remembered from an earlier start of this node.
    pub remembered: bool,
}

/// One change of one member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// When.
    pub at: Timestamp,
    /// Whose.
    pub node: NodeId,
    /// What it was before; none for one that was not known.
    pub was: Option<MemberState>,
    /// What it is; none for one that was forgotten.
    pub is: Option<MemberState>,
    /// Why, for people.
    pub reason: String,
}
