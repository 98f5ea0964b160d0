//! Read repair: whoever reads several copies of a record, and sees that they differ, has them merged at once.
//!
//! Comparisons would find the same within seconds. But a person who looks at a job's replicas, or a gateway that is
//! one of them, has the copies in hand already: what they come to is told to those that lack something of it, as any
//! record is. Nothing rests on it; a repair that is lost is made by the next comparison.

use std::sync::Arc;

use crate::model::id::NodeId;
use crate::model::record::Record;
use crate::model::request::{JobAnswer, Response};
use crate::model::time::Now;
use crate::model::wire::Message;

use super::super::gateway::Copy;
use super::Peer;

/// No push of a spread has this number, so nobody waits for its acknowledgement.
const UNANSWERED: u64 = 0;

impl Peer {
    /// A client was shown these copies of a record: if they differ, they are merged where they are, and where one
    /// should be and is not.
    pub(super) fn repair_copies(&mut self, now: Now, copies: &[Copy]) {
        let known = || {
            let found = copies.iter().filter_map(|copy| Some((copy.node, copy.record.as_ref().ok()?.as_ref()?)));
            found.filter(|(_, record)| record.validate().is_ok())
        };
        let Some((source, first)) = known().next() else {
            return;
        };
        let mut merged = Record::clone(first);
        for (_, record) in known().filter(|(_, record)| record.id == first.id) {
            merged.merge(record);
        }
        let merged = Arc::new(merged);
        let partition = self.records.partition_of(merged.id);
        let lacking: Vec<NodeId> = copies
            .iter()
            .filter(|copy| match &copy.record {
                Ok(Some(record)) => record.id == merged.id && *record != merged,
                Ok(None) => self.should_keep(copy.node, partition),
                Err(_) => false,
            })
            .map(|copy| copy.node)
            .collect();
        for node in lacking {
            self.counters.repaired_by_reading += 1;
            if node == self.me.node {
                self.absorb(now, source, Arc::clone(&merged));
            } else {
                // This node may have none of the blobs: those who have are asked for them.
                let lacking = if merged.blobs().is_empty() { Vec::new() } else { vec![merged.id] };
                let records = vec![Arc::clone(&merged)];
                let (blobs, known_for) = (Vec::new(), self.records.known_for(now.moment, &records));
                self.send(node, Message::Push { seq: UNANSWERED, records, blobs, lacking, known_for });
            }
        }
    }

    /// An answer shows a record as another node has it. If this one should have the same, it merges the two.
    pub(super) fn repair_own_copy(&mut self, now: Now, from: NodeId, response: &Response) {
        let Response::Job(JobAnswer { record, version, .. }) = response else {
            return;
        };
        let differs = self.records.get(record.id).is_some_and(|held| held.version != *version);
        if differs && self.placement.acting(self.records.partition_of(record.id)).contains(&self.me.node) {
            self.counters.repaired_by_reading += 1;
            self.absorb(now, from, Arc::clone(record));
        }
    }
}
