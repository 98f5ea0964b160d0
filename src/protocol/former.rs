//! What a node knows of the ends of what its earlier starts ran.
//!
//! A process that was killed says nothing of its pods any more. But whoever ended them has noted when (`io/executor/notes.rs`),
//! what was found alive at the start had run until then, and nothing runs on through the start of its machine.

use std::collections::BTreeMap;

use crate::model::id::{AttemptKey, Generation};
use crate::model::time::Timestamp;

/// The ends of pods of earlier starts, as far as they are known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FormerEnds {
    /// When all that a start had left running was ended.
    pub starts: BTreeMap<Generation, Timestamp>,
    /// When single pods were ended, which goes before.
    pub pods: BTreeMap<AttemptKey, Timestamp>,
    /// When the machine was started.
    pub booted_at: Option<Timestamp>,
}

/// An end that was not seen by the node itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FormerEnd {
    /// It was killed then.
    Killed(Timestamp),
    /// It ended then at the latest.
    Before(Timestamp),
}

impl FormerEnds {
    /// When a pod of the start `generation` ended. Nothing where nobody knows more than that it has.
    pub fn of(&self, generation: Generation, key: AttemptKey) -> Option<FormerEnd> {
        let killed = self.pods.get(&key).or_else(|| self.starts.get(&generation));
        // Generations are seconds, as far as the clock went forward.
        let began = Timestamp(generation.0.saturating_mul(1_000));
        let bound = || self.booted_at.filter(|at| *at > began).map(FormerEnd::Before);
        killed.copied().map(FormerEnd::Killed).or_else(bound)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::{Actor, Dot, JobId, NodeId};

    #[test]
    fn what_is_known_best_is_told() {
        let key = |counter| {
            let claim = Dot { actor: Actor { node: NodeId(1), generation: Generation(9) }, counter };
            AttemptKey { job: JobId(1), claim }
        };
        let mut ends = FormerEnds::default();
        assert_eq!(ends.of(Generation(5), key(1)), None);
        ends.booted_at = Some(Timestamp(5_500));
        assert_eq!(ends.of(Generation(5), key(1)), Some(FormerEnd::Before(Timestamp(5_500))));
        assert_eq!(ends.of(Generation(6), key(1)), None, "the machine has not been started since");
        ends.starts.insert(Generation(5), Timestamp(5_300));
        ends.pods.insert(key(2), Timestamp(5_200));
        assert_eq!(ends.of(Generation(5), key(1)), Some(FormerEnd::Killed(Timestamp(5_300))));
        assert_eq!(ends.of(Generation(5), key(2)), Some(FormerEnd::Killed(Timestamp(5_200))));
    }
}
