//! A member in doubt, and how long it has to answer for itself.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::model::config::Timing;
use crate::model::id::NodeId;
use crate::model::time::Moment;

/// How many voters beyond the first make the grace period its shortest (Lifeguard's K).
pub(super) const CONFIRMATIONS: usize = 3;

/// Why a member is in doubt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// Live members, or this one, vote against it.
    Votes,
    /// It is known from an earlier start of this node only, and has not answered this start yet. It gets the
    /// full grace period: a node that hears nobody has just started, which says nothing about the others.
    Remembered,
}

/// A suspicion as this node holds it.
#[derive(Debug, Clone)]
pub(super) struct Suspicion {
    pub(super) cause: Cause,
    pub(super) since: Moment,
    /// The live members that vote against it in its present start and incarnation, this node included.
    pub(super) voters: BTreeSet<NodeId>,
    /// A whole probe of this node's own has failed since, and none was answered after it.
    pub(super) silent: bool,
    /// Since when its machine refuses connections.
    pub(super) refused_since: Option<Moment>,
}

impl Suspicion {
    pub(super) fn new(cause: Cause, since: Moment) -> Self {
        Self { cause, since, voters: BTreeSet::new(), silent: false, refused_since: None }
    }

    /// Everything again from the beginning: this process was paused, and heard nothing meanwhile.
    pub(super) fn restart(&mut self, now: Moment) {
        self.since = now;
        self.silent = false;
        self.refused_since = None;
    }

    /// Why the member is down now that the grace period has passed, for people.
    pub(super) fn explain(&self) -> String {
        match (self.cause, self.refused_since) {
            (Cause::Votes, Some(_)) => "refuses connections and did not refute in time".to_owned(),
            (Cause::Votes, None) => match self.voters.len() {
                1 => "did not refute in time; suspected by 1 node".to_owned(),
                voters => format!("did not refute in time; suspected by {voters} nodes"),
            },
            (Cause::Remembered, _) => "has not answered since this node started".to_owned(),
        }
    }

    /// When the grace period runs out, where `possible` further voters could confirm the first.
    pub(super) fn until(&self, timing: &Timing, possible: usize) -> Moment {
        let grace = match (self.cause, self.voters.len()) {
            (Cause::Remembered, 0) => timing.suspicion_max,
            (Cause::Remembered | Cause::Votes, voters) => {
                grace(timing.suspicion_min, timing.suspicion_max, voters.saturating_sub(1), possible.min(CONFIRMATIONS))
            }
        };
        let patient = self.since + grace;
        match (self.cause, self.refused_since) {
            (Cause::Votes, Some(refused)) => patient.min(refused.max(self.since) + timing.suspicion_refused),
            (Cause::Votes, None) | (Cause::Remembered, _) => patient,
        }
    }
}

/// The grace period after `confirmations` independent votes beyond the first, of `expected`: long while only
/// one node doubts, which may be deaf, and falling steeply with the first confirmations (Lifeguard, arXiv
/// 1707.00788, section IV-B). Where nobody is left to confirm, there is nothing to wait for.
fn grace(min: Duration, max: Duration, confirmations: usize, expected: usize) -> Duration {
    if confirmations >= expected {
        return min;
    }
    let part = ((confirmations + 1) as f64).ln() / ((expected + 1) as f64).ln();
    max.saturating_sub(max.saturating_sub(min).mul_f64(part)).max(min)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_vote_shortens_the_grace_period_less_than_the_one_before() {
        let (min, max) = (Duration::from_secs(1), Duration::from_secs(5));
        let graces: Vec<Duration> = (0..=4).map(|votes| grace(min, max, votes, 3)).collect();
        assert_eq!(graces[0], max);
        assert_eq!(graces[1], Duration::from_secs(3));
        assert_eq!(graces[3], min);
        assert_eq!(graces[4], min);
        assert!(graces[0] - graces[1] > graces[1] - graces[2]);
        assert_eq!(grace(min, max, 0, 0), min);
    }

    #[test]
    fn a_refusal_shortens_it_but_not_for_those_who_are_only_remembered() {
        let timing = Timing::default();
        let start = Moment::START + Duration::from_secs(10);
        let mut suspicion = Suspicion::new(Cause::Votes, start);
        suspicion.voters.insert(NodeId(1));
        assert_eq!(suspicion.until(&timing, 3), start + timing.suspicion_max);
        suspicion.refused_since = Some(start);
        assert_eq!(suspicion.until(&timing, 3), start + timing.suspicion_refused);
        let mut remembered = Suspicion::new(Cause::Remembered, start);
        remembered.refused_since = Some(start);
        assert_eq!(remembered.until(&timing, 0), start + timing.suspicion_max);
    }
}
