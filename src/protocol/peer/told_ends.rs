//! How attempts of this node ended whose records are no longer here.
//!
//! Whoever runs a job and does not act for it lets go of its record when it has ended and those who act have it. An older
//! copy may be left with a node that was away just then, and come back here on one side of a partition: by it the attempt still
//! runs, or has yet to begin. A node that had forgotten how it ended would give it back, or begin it once more, and have
//! it run again although it knew better. So the latest ends are remembered, and said again word for word: it is one write,
//! however often it is told.

use std::collections::{BTreeMap, VecDeque};

use crate::model::attempt::Fate;
use crate::model::id::{Dot, JobId};
use crate::model::time::Now;

use super::Peer;

/// Ends remembered, at the most; the oldest is forgotten first. Raising it covers copies of older jobs, and costs memory.
const REMEMBERED: usize = 1 << 14;

/// What this start has said, or known to be said, of attempts of this node, by their claims.
#[derive(Debug, Default)]
pub(super) struct ToldEnds {
    fates: BTreeMap<Dot, Fate>,
    in_order: VecDeque<Dot>,
}

impl ToldEnds {
    fn remember(&mut self, claim: Dot, fate: Fate) {
        if self.fates.insert(claim, fate).is_none() {
            self.in_order.push_back(claim);
        }
        if self.in_order.len() > REMEMBERED {
            self.in_order.pop_front().map(|oldest| self.fates.remove(&oldest));
        }
    }
}

impl Peer {
    /// This node is about to let go of the record. Of a sealed one there is no older copy to come.
    pub(super) fn remember_ends(&mut self, job: JobId) {
        let held = self.records.get(job).filter(|held| held.summary.has_attempts() && !held.is_final());
        let Some(record) = held.map(|held| held.record()) else {
            return;
        };
        for (claim, attempt) in &record.attempts {
            if attempt.claim.executor.node == self.me.node && attempt.fate.by_executor && !attempt.is_live() {
                self.told_ends.remember(*claim, attempt.fate.clone());
            }
        }
    }

    /// A copy of the record has come from another node: says what this one has said of it before.
    pub(super) fn say_ends_again(&mut self, now: Now, job: JobId) {
        let held = self.records.get(job).filter(|held| held.summary.has_open_fates());
        let Some(record) = held.filter(|_| !self.told_ends.fates.is_empty()).map(|held| held.record()) else {
            return;
        };
        let told = |claim: &Dot| self.told_ends.fates.get(claim).map(|fate| (*claim, fate.clone()));
        let told: Vec<(Dot, Fate)> = record.attempts.keys().filter_map(told).collect();
        if !told.is_empty() {
            self.change(now, job, |record| told.into_iter().for_each(|(claim, fate)| record.advance(claim, fate)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::attempt::Phase;
    use crate::model::id::{Actor, Generation, NodeId};
    use crate::model::time::Timestamp;

    #[test]
    fn the_oldest_ends_are_forgotten_first() {
        let actor = Actor { node: NodeId(1), generation: Generation(1) };
        let claim = |nth: usize| Dot { actor, counter: nth as u64 };
        let mut ends = ToldEnds::default();
        for nth in (0..=REMEMBERED).chain(1..10) {
            let fate = Fate {
                phase: Phase::Succeeded,
                by_executor: true,
                dot: claim(nth),
                at: Timestamp(0),
                exit: None,
                reason: String::new(),
            };
            ends.remember(claim(nth), fate);
        }
        assert_eq!((ends.fates.len(), ends.in_order.len()), (REMEMBERED, REMEMBERED));
        assert!(!ends.fates.contains_key(&claim(0)) && ends.fates.contains_key(&claim(1)));
    }
}
