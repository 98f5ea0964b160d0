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
//! What several peers hold in the same version is fetched from one of them. The rounds with the others wait for it, and
//! fetch it after all where that one does not bring it.
//!
//! Not known here: what is in the records, and who ought to hold what.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::model::id::{Generation, JobId, NodeId, Partition};
use crate::model::record::Version;
use crate::model::time::Moment;
use crate::model::wire::Message;

use super::numbers::Numbers;
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
    numbers: Numbers,
    wanted: BTreeMap<NodeId, BTreeMap<Partition, Purpose>>,
    rounds: BTreeMap<NodeId, Round>,
    /// What is being fetched, or is about to be.
    coming: BTreeMap<JobId, Coming>,
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
    /// Still to be fetched, with the versions that the peer named.
    lacking: Vec<(JobId, Version)>,
    /// Asked for.
    asked_for: BTreeMap<JobId, Version>,
    /// What the peer has in a version that another was asked for.
    left_to_others: BTreeSet<JobId>,
    fetching: bool,
    /// When its question was asked first.
    asked_at: Moment,
    /// How often it was asked.
    asked: u32,
    give_up_at: Moment,
}

/// A record that a peer was asked for.
#[derive(Debug)]
struct Coming {
    version: Version,
    from: NodeId,
    /// Who has the same.
    also_at: Vec<NodeId>,
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
    /// When the question was asked.
    pub asked_at: Moment,
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
    /// Records that the peer has in another version.
    pub theirs_differ: Vec<JobId>,
    /// Records that the peer lacks, or blobs of them.
    pub theirs_lack: Vec<JobId>,
    /// Records that this node lacks nothing of but blobs, which the peer has.
    pub has_blobs_of: Vec<JobId>,
}

impl Comparison {
    /// Nothing wanted in this start; a round without progress for `patience` is given up and wanted again.
    pub fn new(start: Generation, patience: Duration) -> Self {
        Self {
            patience,
            numbers: Numbers::of(start),
            wanted: BTreeMap::new(),
            rounds: BTreeMap::new(),
            coming: BTreeMap::new(),
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
        self.end_round(peer);
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
        let number = self.numbers.take();
        let round = Round {
            number,
            horizon,
            purpose,
            partitions: chosen,
            differing: BTreeSet::new(),
            unsaved: BTreeSet::new(),
            lacking: Vec::new(),
            asked_for: BTreeMap::new(),
            left_to_others: BTreeSet::new(),
            fetching: false,
            asked_at: now,
            asked: 1,
            give_up_at: now + self.patience,
        };
        let question = round.question();
        self.rounds.insert(peer, round);
        Some((peer, question))
    }

    /// The peer listed what it holds where the two differ. Returns what that means. What this node does not want is not
    /// fetched.
    pub fn handle_differ(
        &mut self,
        now: Moment,
        peer: NodeId,
        answer: Answer,
        records: &Records,
        wants: impl Fn(JobId) -> bool,
    ) -> Difference {
        let Answer { round: number, horizon, partitions, unsaved } = answer;
        let mut difference = Difference::default();
        let Some(round) = self.rounds.get_mut(&peer).filter(|round| round.number == number && !round.fetching) else {
            return difference;
        };
        if horizon > round.horizon {
            self.horizons.insert(peer, horizon);
            self.want_again(peer);
            return difference;
        }
        let horizon = round.horizon;
        round.unsaved.extend(unsaved);
        let mut lacking = Vec::new();
        for (partition, theirs) in partitions {
            if !round.partitions.contains_key(&partition) {
                continue;
            }
            round.differing.insert(partition);
            let mut theirs: BTreeMap<JobId, Version> = theirs.into_iter().collect();
            for (job, held) in records.in_partition(partition).filter(|(_, held)| held.counts_at(horizon)) {
                match theirs.remove(&job) {
                    Some(version) if version == held.compared() => {
                        if !round.unsaved.contains(&job) {
                            difference.same.push((job, version));
                        }
                    }
                    Some(version) if version == held.version => difference.has_blobs_of.push(job),
                    Some(version) if version == held.compared_without_blobs() => difference.theirs_lack.push(job),
                    Some(version) => {
                        difference.theirs_differ.push(job);
                        lacking.push((job, version));
                    }
                    None => difference.theirs_lack.push(job),
                }
            }
            // Only ids of the partition they are said to be in: others would never be compared again.
            lacking.extend(theirs.into_iter().filter(|(job, _)| records.partition_of(*job) == partition));
        }
        round.fetching = true;
        round.give_up_at = now + self.patience * FETCH_PATIENCE;
        lacking.retain(|(job, _)| wants(*job));
        for (job, version) in lacking {
            self.take_on(peer, job, version);
        }
        difference
    }

    /// The round with `peer` needs this version of the record: it fetches it, unless another peer was asked for the same.
    fn take_on(&mut self, peer: NodeId, job: JobId, version: Version) {
        let Some(round) = self.rounds.get_mut(&peer) else {
            return;
        };
        match self.coming.get_mut(&job) {
            Some(coming) if coming.version == version && coming.from != peer => {
                coming.also_at.push(peer);
                round.left_to_others.insert(job);
                return;
            }
            Some(_) => {}
            None => {
                self.coming.insert(job, Coming { version, from: peer, also_at: Vec::new() });
            }
        }
        round.lacking.push((job, version));
    }

    /// Part of what was fetched has come: these records, which have been merged and are held in these versions now.
    pub fn handle_fetched(
        &mut self,
        now: Moment,
        peer: NodeId,
        number: u64,
        came: impl IntoIterator<Item = (JobId, Version)>,
        last: bool,
    ) {
        let Some(round) = self.rounds.get_mut(&peer).filter(|round| round.number == number && round.fetching) else {
            return;
        };
        let mut settled: Vec<(JobId, bool)> = Vec::new();
        for (job, version) in came {
            if let Some(wanted) = round.asked_for.remove(&job) {
                settled.push((job, wanted == version));
            }
        }
        if last {
            settled.extend(std::mem::take(&mut round.asked_for).into_keys().map(|job| (job, false)));
        }
        round.give_up_at = now + self.patience * FETCH_PATIENCE;
        for other in self.rounds.values_mut().filter(|round| !round.left_to_others.is_empty()) {
            other.give_up_at = now + self.patience * FETCH_PATIENCE;
        }
        for (job, is_here) in settled {
            self.release(peer, job, is_here);
        }
    }

    /// `peer` is not asked for the record any more, for the very version is here now, or because it does not bring it: then
    /// whoever else has it is asked.
    fn release(&mut self, peer: NodeId, job: JobId, is_here: bool) {
        if self.coming.get(&job).is_none_or(|coming| coming.from != peer) {
            return;
        }
        let Some(Coming { version, also_at, .. }) = self.coming.remove(&job) else {
            return;
        };
        for other in also_at {
            if let Some(round) = self.rounds.get_mut(&other) {
                round.left_to_others.remove(&job);
            }
            if !is_here {
                self.take_on(other, job, version);
            }
        }
    }

    /// Takes a round out, and what it was to bring from it.
    fn end_round(&mut self, peer: NodeId) -> Option<Round> {
        let round = self.rounds.remove(&peer)?;
        for job in &round.left_to_others {
            if let Some(coming) = self.coming.get_mut(job) {
                coming.also_at.retain(|other| *other != peer);
            }
        }
        let lacking = round.lacking.iter().map(|(job, _)| *job);
        for job in lacking.chain(round.asked_for.keys().copied()) {
            self.release(peer, job, false);
        }
        Some(round)
    }

    /// How a round goes on, if one can.
    pub fn poll_step(&mut self) -> Option<Step> {
        let can_go_on = |round: &Round| {
            round.fetching
                && round.asked_for.is_empty()
                && (!round.lacking.is_empty() || round.left_to_others.is_empty())
        };
        let peer = self.rounds.iter().find(|(_, round)| can_go_on(round)).map(|(peer, _)| *peer)?;
        let round = self.rounds.get_mut(&peer)?;
        if !round.lacking.is_empty() {
            let rest = round.lacking.split_off(round.lacking.len().min(FETCH_RECORDS));
            let asked_for = std::mem::replace(&mut round.lacking, rest);
            let jobs = asked_for.iter().map(|(job, _)| *job).collect();
            round.asked_for.extend(asked_for);
            return Some(Step::Ask(peer, Message::Fetch { round: round.number, jobs }));
        }
        let Round { purpose, asked_at, horizon, partitions, differing, unsaved, .. } = self.end_round(peer)?;
        let same = partitions.into_iter().filter(|(partition, _)| !differing.contains(partition)).collect();
        let differed = differing.into_iter().collect();
        Some(Step::Done(Compared { peer, purpose, asked_at, horizon, same, differed, unsaved }))
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
        if let Some(round) = self.end_round(peer) {
            for partition in round.partitions.into_keys() {
                self.want(peer, partition, round.purpose);
            }
        }
    }
}

/// How a round goes on.
#[derive(Debug)]
pub enum Step {
    /// Ask this of this peer.
    Ask(NodeId, Message),
    /// It is finished.
    Done(Compared),
}

#[cfg(test)]
mod tests {
    use super::*;

    const B: NodeId = NodeId(0xb);
    const C: NodeId = NodeId(0xc);
    const PATIENCE: Duration = Duration::from_secs(1);
    const WHOLE: Partition = Partition(0);

    /// A node that holds nothing, and has been told by each of these peers what it holds.
    fn told(told: &[(NodeId, &[(u128, u128)])]) -> (Comparison, Records) {
        let (mut comparison, records) = (Comparison::new(Generation(1), PATIENCE), Records::new(1));
        for (peer, theirs) in told {
            comparison.want(*peer, WHOLE, Purpose::Takeover);
            let (_, question) = comparison.poll_message(Moment::START, 0, &records).unwrap();
            let Message::Compare { round, .. } = question else { panic!("{question:?}") };
            let theirs = theirs.iter().map(|(job, version)| (JobId(*job), Version(*version))).collect();
            let answer = Answer { round, horizon: 0, partitions: vec![(WHOLE, theirs)], unsaved: vec![] };
            comparison.handle_differ(Moment::START, *peer, answer, &records, |_| true);
        }
        (comparison, records)
    }

    /// Whom it asks for what, and with whom it is done.
    fn steps(comparison: &mut Comparison) -> Vec<(NodeId, Vec<u128>)> {
        let told = |step| match step {
            Step::Ask(peer, Message::Fetch { jobs, .. }) => (peer, jobs.iter().map(|job| job.0).collect()),
            Step::Ask(_, other) => panic!("{other:?}"),
            Step::Done(compared) => (compared.peer, vec![]),
        };
        std::iter::from_fn(|| comparison.poll_step().map(told)).collect()
    }

    fn comes(comparison: &mut Comparison, peer: NodeId, came: &[(u128, u128)]) {
        let came = came.iter().map(|(job, version)| (JobId(*job), Version(*version)));
        let round = comparison.rounds[&peer].number;
        comparison.handle_fetched(Moment::START, peer, round, came, true);
    }

    #[test]
    fn what_two_hold_alike_is_fetched_from_one_of_them() {
        let (mut comparison, _) = told(&[(B, &[(1, 10), (2, 20)]), (C, &[(1, 10), (2, 21), (3, 30)])]);
        assert_eq!(steps(&mut comparison), [(B, vec![1, 2]), (C, vec![2, 3])], "the second is not the same");
        comes(&mut comparison, C, &[(2, 21), (3, 30)]);
        assert_eq!(steps(&mut comparison), [], "what C has is not all here");
        comes(&mut comparison, B, &[(1, 10), (2, 22)]);
        assert_eq!(steps(&mut comparison), [(B, vec![]), (C, vec![])]);
        assert!(comparison.coming.is_empty());
    }

    #[test]
    fn whoever_does_not_bring_the_very_version_leaves_it_to_the_next() {
        let (mut comparison, _) = told(&[(B, &[(1, 10), (2, 20)]), (C, &[(1, 10), (2, 20)])]);
        assert_eq!(steps(&mut comparison), [(B, vec![1, 2])]);
        comes(&mut comparison, B, &[(2, 19)]);
        assert_eq!(steps(&mut comparison), [(B, vec![]), (C, vec![2, 1])], "B let go of one, and has another older");
        comes(&mut comparison, C, &[(1, 10), (2, 20)]);
        assert_eq!(steps(&mut comparison), [(C, vec![])]);
        assert!(comparison.coming.is_empty());
    }

    #[test]
    fn whoever_dies_leaves_it_to_the_next() {
        let (mut comparison, _) = told(&[(B, &[(1, 10)]), (C, &[(1, 10)])]);
        assert_eq!(steps(&mut comparison), [(B, vec![1])]);
        comparison.handle_gone(B);
        assert_eq!(steps(&mut comparison), [(C, vec![1])]);
        comparison.handle_gone(C);
        assert_eq!(steps(&mut comparison), []);
        assert!(comparison.coming.is_empty());
    }

    #[test]
    fn whoever_is_waited_for_too_long_is_asked_anew() {
        let (mut comparison, records) = told(&[(B, &[(1, 10)]), (C, &[(1, 10)])]);
        assert_eq!(steps(&mut comparison), [(B, vec![1])]);
        let late = comparison.poll_timeout().unwrap();
        comparison.handle_timeout(late);
        assert!(comparison.coming.is_empty() && comparison.is_pending(B, WHOLE) && comparison.is_pending(C, WHOLE));
        assert!(comparison.poll_message(late, 0, &records).is_some());
    }
}
