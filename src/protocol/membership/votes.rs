//! Who votes against whom, kept so that a change costs what has changed.
//!
//! When half of a large cluster is cut off, everybody soon votes against everybody of the other half. Counting all of
//! that anew at every packet would cost a node its whole processor. So votes are kept by suspect, and whose verdict
//! may have to change is noted as votes come and go.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::id::{Generation, Incarnation, NodeId};

/// Votes as one node gossips them: whom it suspects, in which start and incarnation.
pub(super) type Ballot = BTreeMap<NodeId, (Generation, Incarnation)>;

/// Everybody's votes, whether they stand or not: that depends on the voter being live, and on what the suspect has
/// said since.
#[derive(Debug, Default)]
pub(super) struct Votes {
    against: BTreeMap<NodeId, Ballot>,
    unsettled: BTreeSet<NodeId>,
}

impl Votes {
    /// `voter` said `before`, and says `after` now.
    pub(super) fn change(&mut self, voter: NodeId, before: &Ballot, after: &Ballot) {
        if before == after {
            return;
        }
        for suspect in before.keys().filter(|suspect| !after.contains_key(*suspect)) {
            if let Some(votes) = self.against.get_mut(suspect) {
                votes.remove(&voter);
                if votes.is_empty() {
                    self.against.remove(suspect);
                }
            }
            self.unsettled.insert(*suspect);
        }
        for (suspect, accused) in after.iter().filter(|(suspect, accused)| before.get(suspect) != Some(accused)) {
            self.against.entry(*suspect).or_default().insert(voter, *accused);
            self.unsettled.insert(*suspect);
        }
    }

    /// Something else has changed that the verdict on `node` depends on.
    pub(super) fn touch(&mut self, node: NodeId) {
        self.unsettled.insert(node);
    }

    /// The same for everybody that this ballot names: its voter has come or gone.
    pub(super) fn touch_all(&mut self, ballot: &Ballot) {
        self.unsettled.extend(ballot.keys());
    }

    /// Those whose verdict may have to change, to be looked at now.
    pub(super) fn take_unsettled(&mut self) -> BTreeSet<NodeId> {
        std::mem::take(&mut self.unsettled)
    }

    /// Who votes against `suspect` as `accused`.
    pub(super) fn against(
        &self,
        suspect: NodeId,
        accused: (Generation, Incarnation),
    ) -> impl Iterator<Item = NodeId> + '_ {
        let votes = self.against.get(&suspect).into_iter().flatten();
        votes.filter(move |(voter, said)| **said == accused && **voter != suspect).map(|(voter, _)| *voter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: (Generation, Incarnation) = (Generation(1), Incarnation(0));
    const SECOND: (Generation, Incarnation) = (Generation(1), Incarnation(1));

    fn against(votes: &Votes, suspect: u32, accused: (Generation, Incarnation)) -> Vec<u32> {
        votes.against(NodeId(suspect), accused).map(|voter| voter.0).collect()
    }

    #[test]
    fn votes_come_and_go_and_name_whom_they_concern() {
        let mut votes = Votes::default();
        let (none, one) = (Ballot::new(), Ballot::from([(NodeId(9), FIRST)]));
        votes.change(NodeId(1), &none, &one);
        votes.change(NodeId(2), &none, &one);
        assert_eq!(against(&votes, 9, FIRST), [1, 2]);
        assert_eq!(votes.take_unsettled(), BTreeSet::from([NodeId(9)]));
        votes.change(NodeId(1), &one, &one);
        assert!(votes.take_unsettled().is_empty(), "nothing has changed");

        let newer = Ballot::from([(NodeId(8), FIRST), (NodeId(9), SECOND)]);
        votes.change(NodeId(1), &one, &newer);
        assert_eq!((against(&votes, 9, FIRST), against(&votes, 9, SECOND)), (vec![2], vec![1]));
        assert_eq!(votes.take_unsettled(), BTreeSet::from([NodeId(8), NodeId(9)]));
        votes.change(NodeId(1), &newer, &none);
        votes.change(NodeId(2), &one, &none);
        assert!(votes.against.is_empty(), "nothing is left of those who take their votes back");
        votes.change(NodeId(9), &none, &one);
        assert!(against(&votes, 9, FIRST).is_empty(), "nobody votes against itself");
    }
}
