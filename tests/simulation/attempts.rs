//! What becomes of attempts whose executor is gone, and of those that were given up while they ran on.
//!
//! That a job ends in the end shows neither: when all is mended the dead are back, and say themselves what they did not
//! finish; and a job that went on elsewhere ends whatever its first executor has to say.

use std::collections::BTreeMap;
use std::time::Duration;

use flockwork::model::id::{Dot, JobId};
use flockwork::model::member::MemberState;
use flockwork::model::record::Record;
use flockwork::protocol::peer::Peer;

use crate::network::short;
use crate::world::World;

/// How long an owner may know that an executor is down before it has written off what that one ran.
const WRITTEN_OFF_WITHIN: Duration = Duration::from_secs(5);
/// How often that is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The attempts of the dead that have not been written off, by the owner's process, and since when.
#[derive(Debug, Default)]
pub struct Attempts {
    of_the_dead: BTreeMap<(u64, JobId, Dot), Duration>,
    next_look: Duration,
}

impl World {
    /// An owner that knows that an executor is down writes off what ran there, and does not wait for it to come back.
    pub fn check_write_offs(&mut self) {
        if self.now < self.attempts.next_look {
            return;
        }
        self.attempts.next_look = self.now + LOOK_EVERY;
        let processes = self.nodes.iter().filter_map(|node| node.process.as_ref()).filter(|process| !process.paused);
        let left: Vec<(u64, JobId, Dot)> = processes
            .flat_map(|process| left_to_the_dead(&process.peer).map(|(job, claim)| (process.number, job, claim)))
            .collect();
        let before = std::mem::take(&mut self.attempts.of_the_dead);
        for one in left {
            let since = before.get(&one).copied().unwrap_or(self.now);
            self.attempts.of_the_dead.insert(one, since);
            if !before.contains_key(&one) || self.now - since < WRITTEN_OFF_WITHIN {
                continue;
            }
            let (_, job, claim) = one;
            self.find("what the dead ran is written off", format!("{}, claim {claim}, since {since:?}", short(job.0)));
            self.attempts.of_the_dead.remove(&one);
        }
    }

    /// Whoever ran an attempt, and has not died since, has said how it ended, whatever the others made of it meanwhile.
    pub fn judge_reports(&mut self, record: &Record) {
        if self.given_up_for_a_seal.contains(&record.id) {
            return;
        }
        let unsaid = self.ledger.runs_of(record.id).filter(|run| run.ended.is_some()).find(|run| {
            let lives = |generation| self.process(run.node).is_some_and(|process| process.generation == generation);
            record
                .attempts
                .get(&run.claim)
                .is_some_and(|attempt| lives(attempt.claim.executor.generation) && !attempt.fate.by_executor)
        });
        if let Some(run) = unsaid.cloned() {
            let text = format!("n{} has not said how {} ended, claim {}", run.node, short(record.id.0), run.claim);
            self.find("late reports are written down", text);
        }
    }
}

/// The attempts of which this node decides, and which it leaves to executors that it knows to be down.
fn left_to_the_dead(peer: &Peer) -> impl Iterator<Item = (JobId, Dot)> {
    let (records, view) = (peer.records(), peer.membership().view());
    let decided = records.open().iter().filter(|job| peer.decides_for(records.partition_of(**job)));
    let running = decided.filter_map(|job| records.get(*job)).filter(|held| held.summary.has_open_fates());
    running.map(|held| held.record()).flat_map(|record| {
        let is_down = |node| view.get(&node).is_some_and(|member| member.state == MemberState::Down);
        let live = record.attempts.iter().filter(|(_, attempt)| attempt.is_live());
        let dead = live.filter(|(_, attempt)| is_down(attempt.claim.executor.node));
        dead.map(|(claim, _)| (record.id, *claim)).collect::<Vec<_>>()
    })
}
