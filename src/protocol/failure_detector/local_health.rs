//! How far this node trusts its own ears.
//!
//! A node that hears nobody is more likely deaf than alone. Lifeguard (arXiv 1707.00788, section IV-A) keeps a
//! score of signs that something is wrong *here*: helpers that did not even say that they heard nothing,
//! suspicions of this node that it had to refute, ticks that came late. The higher the score, the longer
//! this node waits for answers and the more slowly it probes, so that a slow node does not condemn fast ones.

/// The score: zero is healthy.
#[derive(Debug, Clone, Copy)]
pub(super) struct LocalHealth {
    score: u32,
    worst: u32,
}

impl LocalHealth {
    /// The worst score (Lifeguard's S).
    const WORST: u32 = 8;

    /// A healthy node's, which stays so whatever happens if it is not `on`.
    pub(super) fn new(on: bool) -> Self {
        Self { score: 0, worst: if on { Self::WORST } else { 0 } }
    }

    /// A probe of this node's own was answered in time.
    pub(super) fn improve(&mut self) {
        self.score = self.score.saturating_sub(1);
    }

    /// So many signs of trouble here.
    pub(super) fn worsen(&mut self, by: u32) {
        self.score = self.score.saturating_add(by).min(self.worst);
    }

    /// The score, from 0 to [`Self::WORST`].
    pub(super) fn score(self) -> u32 {
        self.score
    }

    /// What own timeouts and the own probe interval are multiplied by.
    pub(super) fn multiplier(self) -> u32 {
        self.score + 1
    }
}
