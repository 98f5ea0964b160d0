//! Anti-entropy: finding out where two nodes' records differ, and making them equal.
//!
//! Pushing alone forgets: a message is lost, a node was away, a ring changed. So nodes compare. The asker
//! sends a digest for each partition in question; the other answers with what it holds where they differ;
//! the asker fetches what it lacks and pushes what the other lacks. Equal partitions cost twenty bytes.
//! (Demers et al., "Epidemic Algorithms for Replicated Database Maintenance", PODC 1987.)
//!
//! A comparison is done about a (peer, partition) pair, for a reason: routine, or because this node is about
//! to decide for the partition ([`Purpose::Takeover`]), in which case whoever answers stops deciding for it.
//! One round is under way with a peer at a time; wants gather meanwhile.
//!
//! Sealed records that expire before the horizon, the present hour, are left out. Where two clocks differ, the
//! later horizon counts for both: the answer to a question with an earlier one is only that later hour.
//!
//! A question that is not answered in time is asked again, and either answer counts: a node that has much to do answers
//! late, and would never be done if only its answer to the last question were good.
//!
//! Not known here: what is in the records, and who ought to hold what.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::model::id::{JobId, NodeId, Partition};
use crate::model::record::Version;
use crate::model::time::Moment;
use crate::model::wire::Message;

use super::records::Records;

/// Partitions in one round, at the most.
const ROUND_PARTITIONS: usize = 256;
/// Records asked for in one fetch, at the most.
const FETCH_RECORDS: usize = 4_096;

/// A question is asked so often, each time waiting twice as long, before it is asked anew, of what has changed since.
const MOST_ASKED: u32 = 4;
/// Records that were asked for may take so many times longer to come than the answer to a question.
const FETCH_PATIENCE: u32 = 4;

/// Why a comparison is wanted. The stronger reason wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Purpose {
    /// To keep equal what should be.
    Routine,
    /// To know all that is known before deciding.
    Takeover,
}

/// The comparisons that are wanted and under way.
#[derive(Debug)]
pub struct Comparison {
    patience: Duration,
    next_round: u64,
    wanted: BTreeMap<NodeId, BTreeMap<Partition, Purpose>>,
    rounds: BTreeMap<NodeId, Round>,
    /// Those of them whose question is to be asked again.
    unanswered: BTreeSet<NodeId>,
    /// The latest horizon that each peer has named.
    horizons: BTreeMap<NodeId, u32>,
}

#[derive(Debug)]
struct Round {
    number: u64,
    horizon: u32,
    purpose: Purpose,
    /// What was asked about, and what it came down to then.
    partitions: BTreeMap<Partition, Version>,
    /// Where the two differed.
    differing: BTreeSet<Partition>,
    /// What the peer has not on its disk.
    unsaved: BTreeSet<JobId>,
    /// Still to be fetched.
    lacking: Vec<JobId>,
    fetching: bool,
    /// How often its question was asked.
    asked: u32,
    give_up_at: Moment,
}

impl Round {
    fn question(&self) -> Message {
        let digests = self.partitions.iter().map(|(partition, digest)| (*partition, *digest)).collect();
        let takeover = self.purpose == Purpose::Takeover;
        Message::Compare { round: self.number, takeover, horizon: self.horizon, digests }
    }
}

/// What a finished round showed.
#[derive(Debug)]
pub struct Compared {
    /// With whom.
    pub peer: NodeId,
    /// For what reason.
    pub purpose: Purpose,
    /// Without the sealed records that expire before this hour.
    pub horizon: u32,
    /// These partitions were the same when the question was asked, and came down to this.
    pub same: Vec<(Partition, Version)>,
    /// These were not; all that the peer had has been merged, and what it lacked has been pushed.
    pub differed: Vec<Partition>,
    /// What the peer did not have on its disk when it answered.
    pub unsaved: BTreeSet<JobId>,
}

/// What the peer said: a [`Message::Differ`].
#[derive(Debug)]
pub struct Answer {
    /// To which question.
    pub round: u64,
    /// Without the sealed records that expire before this hour.
    pub horizon: u32,
    /// What it holds where the two differ.
    pub partitions: Vec<(Partition, Vec<(JobId, Version)>)>,
    /// What it has not on its disk yet.
    pub unsaved: Vec<JobId>,
}

/// What the other's list of a partition means for this node.
#[derive(Debug, Default)]
pub struct Difference {
    /// Records that the peer has in this very version, on its disk.
    pub same: Vec<(JobId, Version)>,
    /// Records that the peer lacks, or has in another version.
    pub theirs_lack: Vec<JobId>,
}

impl Comparison {
    /// Nothing wanted; a round without progress for `patience` is given up and wanted again.
    pub fn new(patience: Duration) -> Self {
        Self {
            patience,
            next_round: 1,
            wanted: BTreeMap::new(),
            rounds: BTreeMap::new(),
            unanswered: BTreeSet::new(),
            horizons: BTreeMap::new(),
        }
    }

    /// Wants `partition` compared with `peer`.
    pub fn want(&mut self, peer: NodeId, partition: Partition, purpose: Purpose) {
        let wanted = self.wanted.entry(peer).or_default().entry(partition).or_insert(purpose);
        *wanted = purpose.max(*wanted);
    }

    /// `peer` is gone: nothing is compared with it.
    pub fn handle_gone(&mut self, peer: NodeId) {
        self.wanted.remove(&peer);
        self.rounds.remove(&peer);
        self.horizons.remove(&peer);
    }

    /// Whether anything is wanted of or under way with `peer` about `partition`.
    pub fn is_pending(&self, peer: NodeId, partition: Partition) -> bool {
        self.wanted.get(&peer).is_some_and(|wanted| wanted.contains_key(&partition))
            || self.rounds.get(&peer).is_some_and(|round| round.partitions.contains_key(&partition))
    }

    /// The next question to send. `hour` is the present one.
    pub fn poll_message(&mut self, now: Moment, hour: u32, records: &Records) -> Option<(NodeId, Message)> {
        while let Some(peer) = self.unanswered.pop_first() {
            if let Some(round) = self.rounds.get_mut(&peer).filter(|round| !round.fetching) {
                round.give_up_at = now + self.patience * (1 << round.asked);
                round.asked += 1;
                return Some((peer, round.question()));
            }
        }
        let peer = *self.wanted.keys().find(|peer| !self.rounds.contains_key(peer))?;
        let wanted = self.wanted.get_mut(&peer)?;
        let purpose = wanted.values().copied().max()?;
        let horizon = self.horizons.get(&peer).copied().unwrap_or(0).max(hour);
        let chosen: BTreeMap<Partition, Version> = wanted
            .iter()
            .filter(|(_, reason)| **reason == purpose)
            .map(|(partition, _)| (*partition, records.digest(*partition, horizon)))
            .take(ROUND_PARTITIONS)
            .collect();
        wanted.retain(|partition, _| !chosen.contains_key(partition));
        if wanted.is_empty() {
            self.wanted.remove(&peer);
        }
        let number = self.next_round;
        self.next_round += 1;
        let round = Round {
            number,
            horizon,
            purpose,
            partitions: chosen,
            differing: BTreeSet::new(),
            unsaved: BTreeSet::new(),
            lacking: Vec::new(),
            fetching: false,
            asked: 1,
            give_up_at: now + self.patience,
        };
        let question = round.question();
        self.rounds.insert(peer, round);
        Some((peer, question))
    }

    /// The peer listed what it holds where the two differ. Returns what that means, and the next question or
    /// the finished round. What this node does not want is not fetched.
    pub fn handle_differ(
        &mut self,
        now: Moment,
        peer: NodeId,
        answer: Answer,
        records: &Records,
        wants: impl Fn(JobId) -> bool,
    ) -> (Difference, Step) {
        let Answer { round: number, horizon, partitions, unsaved } = answer;
        let mut difference = Difference::default();
        let Some(round) = self.rounds.get_mut(&peer).filter(|round| round.number == number && !round.fetching) else {
            return (difference, Step::Stale);
        };
        if horizon > round.horizon {
            self.horizons.insert(peer, horizon);
            self.want_again(peer);
            return (difference, Step::Wait);
        }
        let horizon = round.horizon;
        round.unsaved.extend(unsaved);
        for (partition, theirs) in partitions {
            if !round.partitions.contains_key(&partition) {
                continue;
            }
            round.differing.insert(partition);
            let theirs: BTreeMap<JobId, Version> = theirs.into_iter().collect();
            for (job, version) in records.versions_in(partition, horizon) {
                if theirs.get(&job) == Some(&version) {
                    if !round.unsaved.contains(&job) {
                        difference.same.push((job, version));
                    }
                } else {
                    difference.theirs_lack.push(job);
                }
            }
            let mine = |job: &JobId| records.get(*job).map(|held| held.compared());
            // Only ids of the partition they are said to be in: others would never be compared again.
            let lacking = theirs
                .into_iter()
                .filter(|(job, version)| records.partition_of(*job) == partition && mine(job) != Some(*version))
                .map(|(job, _)| job);
            round.lacking.extend(lacking.filter(|job| wants(*job)));
        }
        round.fetching = true;
        (difference, self.go_on(now, peer))
    }

    /// Part of what was fetched has come and has been merged.
    pub fn handle_fetched(&mut self, now: Moment, peer: NodeId, number: u64, last: bool) -> Step {
        match self.rounds.get_mut(&peer) {
            Some(round) if round.number == number && round.fetching => {
                round.give_up_at = now + self.patience * FETCH_PATIENCE;
                if last { self.go_on(now, peer) } else { Step::Wait }
            }
            Some(_) | None => Step::Stale,
        }
    }

    fn go_on(&mut self, now: Moment, peer: NodeId) -> Step {
        let Some(round) = self.rounds.get_mut(&peer) else {
            return Step::Stale;
        };
        round.give_up_at = now + self.patience * FETCH_PATIENCE;
        if !round.lacking.is_empty() {
            let rest = round.lacking.split_off(round.lacking.len().min(FETCH_RECORDS));
            let jobs = std::mem::replace(&mut round.lacking, rest);
            return Step::Ask(Message::Fetch { round: round.number, jobs });
        }
        let round = self.rounds.remove(&peer).expect("it was just there");
        let Round { purpose, horizon, partitions, differing, unsaved, .. } = round;
        let same = partitions.into_iter().filter(|(partition, _)| !differing.contains(partition)).collect();
        Step::Done(Compared { peer, purpose, horizon, same, differed: differing.into_iter().collect(), unsaved })
    }

    /// The next moment at which a round is given up.
    pub fn poll_timeout(&self) -> Option<Moment> {
        self.rounds.values().map(|round| round.give_up_at).min()
    }

    /// Asks again where there was no answer, and gives up rounds without progress, and wants them again.
    pub fn handle_timeout(&mut self, now: Moment) {
        let late: Vec<(NodeId, bool)> = self
            .rounds
            .iter()
            .filter(|(_, round)| round.give_up_at <= now)
            .map(|(peer, round)| (*peer, round.fetching || round.asked >= MOST_ASKED))
            .collect();
        for (peer, is_over) in late {
            if is_over {
                self.want_again(peer);
            } else {
                self.unanswered.insert(peer);
            }
        }
    }

    /// Asks everything under way again: this process was paused, and the answers that wait for it are old.
    pub fn start_over(&mut self) {
        for peer in self.rounds.keys().copied().collect::<Vec<_>>() {
            self.want_again(peer);
        }
    }

    fn want_again(&mut self, peer: NodeId) {
        if let Some(round) = self.rounds.remove(&peer) {
            for partition in round.partitions.into_keys() {
                self.want(peer, partition, round.purpose);
            }
        }
    }
}

/// How a round goes on.
#[derive(Debug)]
pub enum Step {
    /// Ask this next.
    Ask(Message),
    /// More is on its way.
    Wait,
    /// It is finished.
    Done(Compared),
    /// It belongs to no round under way.
    Stale,
}
