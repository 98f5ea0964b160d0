//! **Who starts a job, and who ends it.** The whole rule is here.
//!
//! Nobody sends orders. Every node looks at the merged record, at its view of the members and at who it is
//! itself, and does what follows; it looks again whenever one of the three changes. So it does not matter
//! which message was lost on the way here, only what is known now. (Level-triggered reconciliation, as
//! controllers of other systems do it.)
//!
//! - [`owner_decides`] is asked by the one node that decides for the job's partition. It writes off attempts
//!   whose executor is gone, watches the job's own time limits, and places the next attempt when it is due.
//! - [`executor_decides`] is asked by the node that an attempt names. It starts what it was told to start,
//!   and ends what is stopped or superseded.
//!
//! Everybody else only keeps the record.

use std::time::Duration;

use crate::model::attempt::{Attempt, Phase};
use crate::model::id::{Actor, Dot, NodeId};
use crate::model::member::{MemberState, Status, View, majority_in_reach};
use crate::model::record::{JobState, Record};
use crate::model::spec::OnPartition;
use crate::model::time::Moment;

/// What the owner knows besides the record.
#[derive(Debug, Clone, Copy)]
pub struct OwnerSees<'a> {
    /// The members.
    pub view: &'a View,
    /// When this node first knew of the job.
    pub known_since: Moment,
    /// When this node saw the last attempt end.
    pub idle_since: Moment,
    /// Until when a node that is named in a record, but is no member, may still turn up.
    pub strangers_until: Moment,
    /// Since when this node has owned the job's partition, and reached a majority of the members, without a break.
    pub undisputed_since: Moment,
    /// How long the other side of a partition may take to notice that it is the smaller one, and to end what must
    /// not run there.
    pub pause_takes: Duration,
}

/// What the owner does about a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OwnerDoes {
    /// Nothing is left to do, ever.
    Rest,
    /// Nothing until the record or the members change, or until this moment.
    Wait(Option<Moment>),
    /// These attempts' executors are gone, for this reason: write that they are lost.
    WriteOff(Vec<(Dot, String)>),
    /// One of the job's time limits has passed: write that it is to end.
    TimeOut(String),
    /// See to it that enough nodes hold this claim, then tell its executor to start.
    Confirm(Dot),
    /// It is due: find it an executor.
    Place,
}

/// The owner's rule.
pub fn owner_decides(now: Moment, record: &Record, sees: &OwnerSees<'_>) -> OwnerDoes {
    let state = record.state();
    if state.is_terminal() {
        return OwnerDoes::Rest;
    }
    let live = || record.attempts.iter().filter(|(_, attempt)| attempt.is_live());
    let lost: Vec<(Dot, String)> = live()
        .filter_map(|(dot, attempt)| match standing(now, attempt.claim.executor, sees) {
            Standing::Gone(reason) => Some((*dot, reason)),
            Standing::Unknown | Standing::Present => None,
        })
        .collect();
    if !lost.is_empty() {
        return OwnerDoes::WriteOff(lost);
    }
    let spec = record.spec();
    // A job that was told to end has no limits left to wait for: they may have passed already.
    let is_limited = record.stop.is_none();
    let limits = TimeLimits {
        total: spec.total_timeout.filter(|_| is_limited).map(|limit| sees.known_since + limit),
        queue: spec
            .queue_timeout
            .filter(|_| is_limited && record.attempts.values().all(|attempt| attempt.started_at.is_none()))
            .map(|limit| sees.known_since + limit),
    };
    let is_over = |at: Option<Moment>| at.is_some_and(|at| at <= now);
    if let Some(limit) = spec.total_timeout.filter(|_| is_over(limits.total)) {
        let limit = humantime::format_duration(limit);
        return OwnerDoes::TimeOut(format!("it took longer in all than its total_timeout of {limit}"));
    }
    if let Some(limit) = spec.queue_timeout.filter(|_| is_over(limits.queue)) {
        let limit = humantime::format_duration(limit);
        return OwnerDoes::TimeOut(format!("it waited longer for its first attempt than its queue_timeout of {limit}"));
    }
    match (state, record.current()) {
        (JobState::Running, Some((claim, attempt))) if attempt.fate.phase == Phase::Claimed => {
            OwnerDoes::Confirm(claim)
        }
        (JobState::Running, Some(_)) => {
            let unknown = live().any(|(_, other)| standing(now, other.claim.executor, sees) == Standing::Unknown);
            OwnerDoes::Wait(limits.earliest_with(unknown.then_some(sees.strangers_until)))
        }
        (JobState::Pending, _) if must_pause(record, sees.view) => OwnerDoes::Wait(limits.earliest_with(None)),
        (JobState::Pending, _) => {
            let due = due_at(record, sees);
            if due > now { OwnerDoes::Wait(limits.earliest_with(Some(due))) } else { OwnerDoes::Place }
        }
        (JobState::Running | JobState::Succeeded | JobState::Failed | JobState::Cancelled, _) => OwnerDoes::Rest,
    }
}

/// When a pending job may have its next attempt, by the owner's clock: after its delay, after the backoff
/// that its failures call for, after a short pause where attempts were given back or lost, and, where it must not run
/// twice, once nobody runs it any more who did so for an owner that this one cannot ask.
pub fn due_at(record: &Record, sees: &OwnerSees<'_>) -> Moment {
    let spec = record.spec();
    let start = sees.known_since + spec.delay.unwrap_or_default();
    let pause = match last_attempt(record, |_| true).map(|attempt| attempt.fate.phase) {
        Some(Phase::Failed) => jittered(spec.backoff.wait_after(record.failures()), record),
        Some(Phase::Returned) => pause_after_returns(record),
        Some(Phase::Claimed | Phase::Running | Phase::Lost | Phase::Stopped | Phase::Succeeded) | None => {
            Duration::ZERO
        }
    };
    let pause = if may_live_on(record) { pause.max(sees.pause_takes) } else { pause };
    let waited = if record.attempts.is_empty() { start } else { sees.idle_since + pause };
    start.max(waited).max(alone_from(record, sees).unwrap_or(start))
}

/// The last of the attempts that are in such a phase.
fn last_attempt(record: &Record, is_such: impl Fn(Phase) -> bool) -> Option<&Attempt> {
    let attempts = record.attempts.iter().filter(|(_, attempt)| is_such(attempt.fate.phase));
    attempts.max_by_key(|(dot, attempt)| (attempt.claim.number, **dot)).map(|(_, attempt)| &**attempt)
}

/// Whether what must not run twice was written off, and its executor may live on, cut off: it is given the time to end what it
/// runs. A claim that was given back since has taken none of that.
fn may_live_on(record: &Record) -> bool {
    record.spec().on_partition == OnPartition::Pause
        && last_attempt(record, |phase| phase != Phase::Returned).is_some_and(was_written_off)
}

/// From when on no other side of a partition runs what must not run twice: whoever decided there before has
/// noticed by then that most of the members are out of its reach, and its pods have ended.
pub fn alone_from(record: &Record, sees: &OwnerSees<'_>) -> Option<Moment> {
    (record.spec().on_partition == OnPartition::Pause).then(|| sees.undisputed_since + sees.pause_takes)
}

/// Whether the job is one that runs only where most of the members are, and this is not there.
pub fn must_pause(record: &Record, view: &View) -> bool {
    record.spec().on_partition == OnPartition::Pause && !majority_in_reach(view)
}

/// The moments at which the job's own limits pass.
struct TimeLimits {
    total: Option<Moment>,
    queue: Option<Moment>,
}

impl TimeLimits {
    fn earliest_with(&self, other: Option<Moment>) -> Option<Moment> {
        [self.total, self.queue, other].into_iter().flatten().min()
    }
}

/// Takes up to a quarter off, differently for every job and failure, and the same on every node.
fn jittered(wait: Duration, record: &Record) -> Duration {
    let mixed = (record.id.0 as u64 ^ u64::from(record.failures())).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let share = (mixed >> 32) as f64 / f64::from(u32::MAX);
    wait.mul_f64(1.0 - share / 4.0)
}

/// A node that gave an attempt back will hardly take it at once: a tenth of a second after the first time,
/// up to five seconds.
fn pause_after_returns(record: &Record) -> Duration {
    let returned = record.attempts.values().filter(|attempt| attempt.fate.phase == Phase::Returned).count();
    Duration::from_millis(100).saturating_mul(1 << returned.min(6) as u32).min(Duration::from_secs(5))
}

/// Whether an executor can still be the one that was claimed.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Standing {
    Present,
    Gone(String),
    Unknown,
}

fn standing(now: Moment, executor: Actor, sees: &OwnerSees<'_>) -> Standing {
    let Some(member) = sees.view.get(&executor.node) else {
        return if now >= sees.strangers_until {
            Standing::Gone(format!("node {} is not a member", executor.node))
        } else {
            Standing::Unknown
        };
    };
    let name = &member.facts.name;
    match member.state {
        MemberState::Down => Standing::Gone(format!("node {name} is down")),
        MemberState::Left => Standing::Gone(format!("node {name} left")),
        MemberState::Alive | MemberState::Suspect if member.facts.generation > executor.generation => {
            Standing::Gone(format!("node {name} was restarted"))
        }
        MemberState::Alive | MemberState::Suspect => Standing::Present,
    }
}

/// What the executor has to do with an attempt that names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodState {
    /// No pod was started for it.
    None,
    /// A pod runs.
    Running,
    /// A pod is being ended.
    Ending,
}

/// What the executor does about one attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecutorDoes {
    /// Nothing until the record changes, or its owner says that the claim is safe.
    Wait,
    /// End the pod, for this reason.
    EndPod(&'static str),
    /// Write that the attempt will not run here, and why.
    GiveBack(&'static str),
    /// Write that it was lost with this node's earlier start, whose pods are all gone.
    OwnUp,
}

/// The executor's rule, for an attempt of `record` that names `me`'s node.
pub fn executor_decides(
    record: &Record,
    claim: Dot,
    attempt: &Attempt,
    me: Actor,
    pod: PodState,
    view: &View,
) -> ExecutorDoes {
    debug_assert_eq!(attempt.claim.executor.node, me.node);
    if attempt.claim.executor.generation < me.generation {
        // The earlier start's pods were ended before this one began; what it last said may be out of date.
        return if attempt.is_live() || was_written_off(attempt) { ExecutorDoes::OwnUp } else { ExecutorDoes::Wait };
    }
    let unwanted = if record.stop.is_some() {
        Some("the job was stopped")
    } else if record.is_superseded(claim) {
        Some("another attempt superseded it")
    } else if record.state().is_terminal() {
        Some("the job had ended")
    } else if must_pause(record, view) {
        Some("a majority of the members was out of reach")
    } else if record.spec().on_partition == OnPartition::Pause && was_written_off(attempt) {
        Some("it was taken for lost, and must not run beside the next attempt")
    } else if attempt.fate.phase == Phase::Claimed && pod == PodState::None && another_may_run(record, claim) {
        Some("another attempt runs, and it must not run beside that")
    } else {
        None
    };
    match (pod, unwanted) {
        (PodState::Running, Some(reason)) => ExecutorDoes::EndPod(reason),
        (PodState::None, Some(reason)) if attempt.is_live() => ExecutorDoes::GiveBack(reason),
        (PodState::None | PodState::Running | PodState::Ending, _) => ExecutorDoes::Wait,
    }
}

/// Whether another attempt may run, beside which `claim` must not begin: an owner on the other side of a partition claimed it.
fn another_may_run(record: &Record, claim: Dot) -> bool {
    record.spec().on_partition == OnPartition::Pause
        && record.attempts.iter().any(|(dot, another)| *dot != claim && another.is_live())
}

/// Whether somebody else said that the attempt is lost, and its executor nothing since.
fn was_written_off(attempt: &Attempt) -> bool {
    attempt.fate.phase == Phase::Lost && !attempt.fate.by_executor
}

/// Why `node` cannot run the job, if it cannot: whether it ever could, not whether it has room now.
pub fn unfit(record: &Record, node: NodeId, view: &View) -> Option<String> {
    let Some(member) = view.get(&node) else {
        return Some("it is not a member".into());
    };
    let (facts, spec) = (&member.facts, record.spec());
    match member.state {
        MemberState::Alive | MemberState::Suspect => {}
        MemberState::Down => return Some("it is down".into()),
        MemberState::Left => return Some("it has left".into()),
    }
    match facts.status {
        Status::Serving => {}
        Status::Joining => return Some("it is still joining".into()),
        Status::Returning => return Some("it is still coming back".into()),
        Status::Draining => return Some("it is draining".into()),
        Status::ReadOnly => return Some("it cannot write to its disk".into()),
        Status::Left => return Some("it is leaving".into()),
    }
    if !facts.drivers.contains(&spec.driver) {
        return Some(format!("it has no {} driver", spec.driver.as_str()));
    }
    for (label, wanted) in &spec.require {
        match facts.labels.get(label) {
            Some(value) if value == wanted => {}
            Some(value) => return Some(format!("its label {label} is {value}, not {wanted}")),
            None => return Some(format!("it has no label {label}={wanted}")),
        }
    }
    let (need, capacity) = (spec.need(), facts.capacity);
    if need.slots > capacity.slots {
        return Some(format!("it has {} slots in all, and the job takes {}", capacity.slots, need.slots));
    }
    if need.cpus > capacity.cpus {
        return Some(format!("it has {} processors in all, and the job takes {}", capacity.cpus, need.cpus));
    }
    if need.memory > capacity.memory {
        let has = capacity.memory.rounded();
        return Some(format!("it has {has} of memory in all, and the job takes {}", need.memory));
    }
    None
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::attempt::Fate;
    use crate::model::id::{Generation, JobId};
    use crate::model::record::Submission;
    use crate::model::spec::Spec;
    use crate::model::time::Timestamp;

    const HERE: Actor = Actor { node: NodeId(1), generation: Generation(1) };
    const CUT_OFF: Actor = Actor { node: NodeId(2), generation: Generation(1) };

    fn dot(counter: u64) -> Dot {
        Dot { actor: HERE, counter }
    }

    /// Two attempts, of which the second was given back, as the first one ran: by its executor, which was cut off then.
    fn given_back_beside(on_partition: OnPartition) -> Record {
        let (spec, home) = (Spec { on_partition, ..Spec::default() }, vec![HERE.node, CUT_OFF.node]);
        let submission = Submission { spec, submitted_at: Timestamp(0), gateway: HERE.node, home, retry_of: None };
        let mut record = Record::new(JobId(1), Arc::new(submission), dot(1));
        record.claim(dot(2), CUT_OFF, Timestamp(1));
        record.claim(dot(3), HERE, Timestamp(2));
        for (claim, phase, by_executor, counter) in [(2, Phase::Lost, false, 4), (3, Phase::Returned, true, 5)] {
            let (dot, at, reason) = (dot(counter), Timestamp(counter), String::new());
            record.advance(self::dot(claim), Fate { phase, by_executor, dot, at, exit: None, reason });
        }
        record
    }

    #[test]
    fn a_claim_that_was_given_back_takes_none_of_the_time_that_one_who_is_cut_off_has_to_end_what_it_runs() {
        let (view, pause_takes) = (View::new(), Duration::from_secs(10));
        let (known_since, idle_since) = (Moment::START, Moment::START + Duration::from_secs(60));
        let (strangers_until, undisputed_since) = (known_since, known_since);
        let sees = OwnerSees { view: &view, known_since, idle_since, strangers_until, undisputed_since, pause_takes };
        assert_eq!(due_at(&given_back_beside(OnPartition::Pause), &sees), idle_since + pause_takes);
        assert!(due_at(&given_back_beside(OnPartition::Run), &sees) < idle_since + pause_takes);
    }
}
