//! What this node runs: from a claim that names it, over the pod's start with the work that was saved for it, to the
//! word that ends the attempt.
//!
//! What is to be done about an attempt is decided in [`lifecycle`](crate::protocol::lifecycle); what pods say of themselves
//! comes in by `pod_reports`.

use std::sync::Arc;
use std::time::Duration;

use crate::model::attempt::{Exit, Fate, Phase};
use crate::model::id::{AttemptKey, Dot, Generation, JobId};
use crate::model::member::Status;
use crate::model::record::Record;
use crate::model::report::Checkpoint;
use crate::model::spec::OnPartition;
use crate::model::time::{Moment, Now, Timestamp};

use super::super::effect::{Effect, PodEnd, PodEvent, PodStart};
use super::super::former::FormerEnd;
use super::super::lifecycle::{ExecutorDoes, PodState, executor_decides};
use super::super::records::Held;
use super::super::sabotage::Bug;
use super::Peer;

/// How long an attempt waits for its checkpoint to come, before it starts without.
const CHECKPOINT_PATIENCE: Duration = Duration::from_secs(20);
/// What must not run twice is started so soon after this node has decided to, or not at all: where its disk or its process
/// stood still, others may have decided since. The lease that its guard holds for it is longer than that.
const START_WITHIN: Duration = Duration::from_secs(2);
/// Within so many intervals of the gossip a node that was paused, or has just come to a majority, has taken in what others did
/// meanwhile. It is told again then to start what it still is to start.
const CAUGHT_UP_AFTER: u32 = 4;
/// Why an attempt is given back that comes after the promise of its room has lapsed.
const NO_ROOM: &str = "its node has no room for it any longer";
/// Why an attempt was given back that must not run twice, and was not begun in time.
const TOO_LATE: &str = "its node or its disk stood still before it began";
/// Why an attempt was given back that its node's guard had to end.
const STOOD_STILL: &str = "its node stood still for so long that its guard ended it";

/// A pod of this node.
#[derive(Debug)]
pub(super) struct Pod {
    pub(super) job: JobId,
    pub(super) state: PodState,
    /// When this node decided to start it.
    decided: Moment,
    /// Why it was told to end; nothing while it was not.
    pub(super) ended_because: &'static str,
    /// The chain of the checkpoint it began with.
    pub(super) resumed: Option<u32>,
    /// The number of the attempt whose checkpoint it should have begun with, and could not.
    began_without: Option<u32>,
}

/// A claim of this node that may start, but for its checkpoint.
#[derive(Debug)]
pub(super) struct Starting {
    pub(super) job: JobId,
    pub(super) until: Moment,
}

/// How a pod of this node ended.
#[derive(Debug)]
pub(super) struct Ending {
    at: Timestamp,
    end: PodEnd,
    /// Why it was told to end, if it was.
    because: &'static str,
}

impl Peer {
    /// Does what follows for the attempts of this node.
    pub(super) fn see_to_own_attempts(&mut self, now: Now, job: JobId) {
        // Where every executor has said how its attempt ended, nothing is left to do but to end a pod and to give its room
        // back: most records need not be opened for that.
        let is_at_work = || self.room.holds_any_of(job) || self.pods.values().any(|pod| pod.job == job);
        let concerns = |held: &Held<'_>| held.summary.has_attempts() && (held.summary.has_open_fates() || is_at_work());
        let Some(record) = self.records.get(job).filter(concerns).map(|held| held.record()) else {
            return;
        };
        for (claim, attempt) in &record.attempts {
            if attempt.claim.executor.node != self.me.node {
                continue;
            }
            if !attempt.is_live() && !self.pods.contains_key(claim) {
                self.must_schedule |= self.room.release(*claim);
            }
            let pod = self.pods.get(claim).map_or(PodState::None, |pod| pod.state);
            match executor_decides(&record, *claim, attempt, self.me, pod, self.membership.view()) {
                ExecutorDoes::Wait => {
                    if attempt.is_live()
                        && attempt.claim.executor == self.me
                        && !self.room.take(job, *claim, record.spec().need())
                        && !self.sabotage.has(Bug::ClaimWithoutRoom)
                    {
                        self.say_of_own_attempt(now, job, *claim, Phase::Returned, NO_ROOM);
                    }
                }
                ExecutorDoes::EndPod(reason) => {
                    if let Some(pod) = self.pods.get_mut(claim) {
                        pod.state = PodState::Ending;
                        pod.ended_because = reason;
                        self.outbox.send(Effect::Silence(AttemptKey { job, claim: *claim }));
                        self.outbox.send(Effect::StopPod(AttemptKey { job, claim: *claim }));
                    }
                }
                ExecutorDoes::GiveBack(reason) => {
                    self.say_of_own_attempt(now, job, *claim, Phase::Returned, reason);
                }
                ExecutorDoes::OwnUp => {
                    self.own_up(now, AttemptKey { job, claim: *claim }, attempt.claim.executor.generation);
                }
            }
        }
    }

    fn say_of_own_attempt(&mut self, now: Now, job: JobId, claim: Dot, phase: Phase, reason: &str) {
        let dot = self.next_dot();
        let reason = reason.to_owned();
        let fate = Fate { phase, by_executor: true, dot, at: now.wall, exit: None, reason };
        self.change(now, job, |record| record.advance(claim, fate));
    }

    /// Says of an attempt of this node's earlier start that it was lost, and when it ended, if that is known.
    fn own_up(&mut self, now: Now, key: AttemptKey, start: Generation) {
        let (at, exit, reason) = match self.former_ends.of(start, key) {
            Some(FormerEnd::Killed(at)) => (at, Some(Exit::KILLED), "its node died, and what ran there was ended"),
            Some(FormerEnd::Before(at)) => (at, None, "its machine was restarted"),
            None => (now.wall, None, "its node was restarted"),
        };
        let dot = self.next_dot();
        let fate = Fate { phase: Phase::Lost, by_executor: true, dot, at, exit, reason: reason.to_owned() };
        self.change(now, key.job, |record| record.advance(key.claim, fate));
    }

    /// This node is told that a claim which names it is safe: starts the pod, once.
    pub(super) fn start_pod(&mut self, now: Now, job: JobId, claim: Dot) {
        let Some(held) = self.records.get(job) else {
            return;
        };
        let record = held.record();
        let Some(attempt) = record.attempts.get(&claim) else {
            return;
        };
        let startable = attempt.claim.executor == self.me
            && (attempt.fate.phase == Phase::Claimed || self.sabotage.has(Bug::StartTwice))
            && (!self.pods.contains_key(&claim) || self.sabotage.has(Bug::StartTwice))
            && executor_decides(&record, claim, attempt, self.me, PodState::None, self.membership.view())
                == ExecutorDoes::Wait;
        if !startable || !self.knows_enough_to_start(now, &record) {
            return;
        }
        if self.status() != Status::Serving {
            self.room.release(claim);
            self.say_of_own_attempt(now, job, claim, Phase::Returned, "its node takes no new work");
            return;
        }
        if !self.room.take(job, claim, record.spec().need()) && !self.sabotage.has(Bug::ClaimWithoutRoom) {
            return self.say_of_own_attempt(now, job, claim, Phase::Returned, NO_ROOM);
        }
        if self.waits_for_checkpoint(now, &record, claim) {
            return;
        }
        let saved = record.checkpoint.as_ref();
        let has_it = |saved: &&Checkpoint| !self.blobs.lacks(saved.blob.id) && !self.sabotage.has(Bug::BeginAnew);
        let checkpoint = saved.filter(has_it);
        let pod = Pod {
            job,
            state: PodState::Running,
            decided: now.moment,
            ended_because: "",
            resumed: checkpoint.map(|checkpoint| checkpoint.chain),
            began_without: saved.filter(|_| checkpoint.is_none()).map(|saved| saved.number),
        };
        self.pods.insert(claim, pod);
        self.counters.started += 1;
        let key = AttemptKey { job, claim };
        if let Some(checkpoint) = checkpoint {
            self.keep_for_start(key, checkpoint.blob);
        }
        self.outbox.send_when_stored(Effect::StartPod(PodStart {
            key,
            number: attempt.claim.number,
            fence: attempt.fence(),
            submission: Arc::clone(&record.submission),
            checkpoint: checkpoint.map(|checkpoint| checkpoint.blob),
        }));
    }

    /// Whether this node has heard enough of the others to begin what must not run twice. It looks at the clock first: that it was
    /// paused may not have been noticed yet.
    fn knows_enough_to_start(&mut self, now: Now, record: &Record) -> bool {
        if record.spec().on_partition == OnPartition::Run {
            return true;
        }
        self.membership.notice_pause(now);
        self.drain_membership(now);
        let caught_up_after = self.config.timing.gossip_interval * CAUGHT_UP_AFTER;
        let is_alone = self.membership.view().len() == 1;
        is_alone || self.majority_since.is_some_and(|since| now.moment.since(since) >= caught_up_after)
    }

    /// Why a pod that waited for the disk must not begin after all, if so: it was told to end meanwhile, which its executor has
    /// passed over as there was no such pod yet, or it must not run twice and comes too late.
    pub(super) fn must_not_begin(&self, now: Now, start: &PodStart) -> Option<&'static str> {
        let pod = self.pods.get(&start.key.claim)?;
        match pod.state {
            PodState::Ending => Some(pod.ended_because),
            PodState::None | PodState::Running => {
                let is_overdue = start.submission.spec.on_partition == OnPartition::Pause
                    && now.moment.since(pod.decided) > START_WITHIN;
                is_overdue.then_some(TOO_LATE)
            }
        }
    }

    /// A pod that was to begin does not.
    pub(super) fn give_up_start(&mut self, now: Now, key: AttemptKey, reason: &str) {
        let end = PodEnd::Unable { reason: reason.to_owned() };
        self.handle_pod(now, PodEvent::Ended { key, at: now.wall, end, left: Box::default() });
    }

    /// Whether the attempt must not start yet, because the work that was saved for it is on its way here.
    pub(super) fn waits_for_checkpoint(&mut self, now: Now, record: &Record, claim: Dot) -> bool {
        let blob = record.checkpoint.as_ref().map(|checkpoint| checkpoint.blob.id);
        let is_awaited = blob.is_some_and(|id| self.blobs.expects(id));
        let until = match self.starting.get(&claim) {
            Some(starting) => starting.until,
            None => now.moment + CHECKPOINT_PATIENCE,
        };
        if is_awaited && until > now.moment {
            self.starting.insert(claim, Starting { job: record.id, until });
            return true;
        }
        self.starting.remove(&claim);
        false
    }

    /// Starts what has waited for its checkpoint for long enough, and forgets what is not to start any more.
    pub(super) fn start_without_checkpoints(&mut self, now: Now) {
        let due: Vec<(Dot, JobId)> = self
            .starting
            .iter()
            .filter(|(_, starting)| starting.until <= now.moment)
            .map(|(claim, starting)| (*claim, starting.job))
            .collect();
        for (claim, job) in due {
            self.start_pod(now, job, claim);
            self.starting.remove(&claim);
        }
    }

    /// What people should know of a pod that has just started.
    pub(super) fn remark_on_start(&self, key: AttemptKey) -> String {
        match self.pods.get(&key.claim).and_then(|pod| pod.began_without) {
            Some(number) => format!("began anew: no live node has the checkpoint of attempt {number}"),
            None => String::new(),
        }
    }

    /// A pod of this node started or ended.
    pub fn handle_pod(&mut self, now: Now, event: PodEvent) {
        match event {
            PodEvent::Started { key, at } => {
                self.keep_no_longer(key);
                let dot = self.next_dot();
                let remark = self.remark_on_start(key);
                self.change(now, key.job, |record| record.start_remarkably(dot, key.claim, at, remark));
            }
            PodEvent::Reported { key, report } => self.handle_report(now, key, report),
            PodEvent::Ended { key, at, end, left } => {
                self.keep_no_longer(key);
                let because = self.pods.remove(&key.claim).map_or("", |pod| pod.ended_because);
                self.must_schedule |= self.room.release(key.claim);
                if self.sabotage.has(Bug::SwallowLateReports)
                    && self.records.get(key.job).is_some_and(|held| held.record().is_superseded(key.claim))
                {
                    return;
                }
                self.handle_end(now, key, Ending { at, end, because }, *left);
                self.dirty.insert(key.job);
            }
        }
    }
}

/// What becomes of an attempt whose pod ended, by its executor's own word. One that was told to end without the
/// job being over goes back: it counts against nothing.
pub(super) fn fate_of(record: &Record, claim: Dot, dot: Dot, ending: Ending, remark: String) -> Fate {
    let Ending { at, end, because } = ending;
    let (phase, exit, reason) = match end {
        PodEnd::Exited(Exit::Code(0)) => (Phase::Succeeded, Some(Exit::Code(0)), remark),
        PodEnd::Exited(exit) => (Phase::Failed, Some(exit), remark),
        PodEnd::Silent(limit) => {
            (Phase::Failed, None, format!("no heartbeat for {}", humantime::format_duration(limit)))
        }
        PodEnd::Stopped(exit) => {
            let over = record.stop.is_some() || record.is_superseded(claim) || record.state().is_terminal();
            (if over { Phase::Stopped } else { Phase::Returned }, Some(exit), because.to_owned())
        }
        PodEnd::Lapsed => (Phase::Returned, Some(Exit::KILLED), STOOD_STILL.to_owned()),
        PodEnd::CouldNotStart { code, reason } => (Phase::Failed, Some(Exit::Code(code)), reason),
        PodEnd::Unable { reason } => (Phase::Returned, None, reason),
    };
    Fate { phase, by_executor: true, dot, at, exit, reason }
}
