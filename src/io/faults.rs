//! Faults on request: what a node pretends so that tests can see the cluster live through it.
//!
//! A cut cable, a full disk and a wrong clock are hard to come by on one machine, above all without being its
//! administrator. A node that was started for it can be told to behave as if it had them: it drops what it would
//! send to, or has received from, the peers that it is told; it finds its disk full, or failing; its wall clock is
//! off. Everything else about it stays real.
//!
//! What always holds: unless the node was armed at its start, none of this can be turned on, and every question
//! here is answered by one look at a constant. Nothing is kept over a restart.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

/// What a node pretends. The default is nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Plan {
    /// Cluster addresses of peers to whom nothing gets through.
    #[schema(value_type = Vec<String>)]
    pub drop_to: BTreeSet<SocketAddr>,
    /// Cluster addresses of peers from whom nothing arrives.
    #[schema(value_type = Vec<String>)]
    pub drop_from: BTreeSet<SocketAddr>,
    /// How the disk is.
    pub disk: Disk,
    /// By how much the wall clock is ahead, in milliseconds; negative if it is behind.
    pub clock_offset_ms: i64,
}

/// How a disk is, as the node is to find it at its next write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Disk {
    /// As it really is.
    #[default]
    Real,
    /// Full: writes fail, and succeed again when this is over.
    Full,
    /// It fails to sync, after which nothing on it may be believed.
    FailsToSync,
}

/// The faults of one node. Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub struct Faults(Option<Arc<Mutex<Plan>>>);

impl Faults {
    /// A node that pretends nothing, and cannot be told to. The same as the default.
    pub fn disarmed() -> Self {
        Self(None)
    }

    /// A node that pretends nothing yet.
    pub fn armed() -> Self {
        Self(Some(Arc::default()))
    }

    /// What it pretends now; nothing if it is not armed.
    pub fn plan(&self) -> Option<Plan> {
        self.lock().map(|plan| plan.clone())
    }

    /// Pretends this from now on, in place of what it was. False if it is not armed.
    #[must_use]
    pub fn set(&self, plan: Plan) -> bool {
        match self.lock() {
            Some(mut current) => {
                tracing::warn!(?plan, "this node pretends faults");
                *current = plan;
                true
            }
            None => false,
        }
    }

    /// Whether what is sent to the peer that listens at `addr` is to be lost.
    pub fn drops_to(&self, addr: SocketAddr) -> bool {
        self.lock().is_some_and(|plan| plan.drop_to.contains(&addr))
    }

    /// Whether what comes from the peer that listens at `addr` is to be lost.
    pub fn drops_from(&self, addr: SocketAddr) -> bool {
        self.lock().is_some_and(|plan| plan.drop_from.contains(&addr))
    }

    /// Whether no connection with the peer that listens at `addr` can come about.
    pub fn separates_from(&self, addr: SocketAddr) -> bool {
        self.lock().is_some_and(|plan| plan.drop_to.contains(&addr) || plan.drop_from.contains(&addr))
    }

    /// How the disk is.
    pub fn disk(&self) -> Disk {
        self.lock().map_or(Disk::Real, |plan| plan.disk)
    }

    /// By how much the wall clock is ahead, in milliseconds.
    pub fn clock_offset_ms(&self) -> i64 {
        self.lock().map_or(0, |plan| plan.clock_offset_ms)
    }

    fn lock(&self) -> Option<MutexGuard<'_, Plan>> {
        // Whoever panicked with the lock held left a whole plan.
        self.0.as_ref().map(|plan| plan.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Two nodes have the same faults if both pretend the same.
impl PartialEq for Faults {
    fn eq(&self, other: &Self) -> bool {
        self.plan() == other.plan()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_is_not_armed_can_be_told_nothing() {
        let somebody: SocketAddr = ([127, 0, 0, 1], 7).into();
        let plan =
            Plan { drop_to: [somebody].into(), disk: Disk::Full, clock_offset_ms: -3_600_000, ..Plan::default() };
        let none = Faults::disarmed();
        assert!(!none.set(plan.clone()));
        assert!(!none.drops_to(somebody) && none.disk() == Disk::Real && none.clock_offset_ms() == 0);

        let armed = Faults::armed();
        assert!(armed.clone().set(plan));
        assert!(armed.drops_to(somebody) && armed.separates_from(somebody) && !armed.drops_from(somebody));
        assert_eq!((armed.disk(), armed.clock_offset_ms()), (Disk::Full, -3_600_000));
        assert!(armed.set(Plan::default()));
        assert!(!armed.separates_from(somebody));
    }
}
