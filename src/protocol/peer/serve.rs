//! Answering questions about jobs: those of other nodes' gateways, and of this node's own.
//!
//! Every answer that speaks of a record waits until what it says is on this node's disk, so that nobody is
//! told what a crash could still take back. A question that waits for something (a watch, the next event) is
//! parked, and answered when it happens or when its patience ends.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::model::id::{JobId, JobIdPrefix, NodeId};
use crate::model::member::Status;
use crate::model::record::{JobState, Record, Stop, StopKind, Version};
use crate::model::request::{
    Code, Event, Explanation, JobAnswer, NewJob, Receipt, Refusal, Request, Response, SubmitOutcome, Submitted,
};
use crate::model::spec::Durability;
use crate::model::time::{Moment, Now};
use crate::model::wire::Message;

use super::super::effect::Effect;
use super::super::lifecycle::{OwnerDoes, alone_from, due_at, must_pause, owner_decides, unfit};
use super::super::outbox::Outgoing;
use super::super::records::Held;
use super::super::sabotage::Bug;
use super::keeping::majority;
use super::{Peer, PendingSubmit, Waiting};

/// Jobs in one answer to a list, at the most.
const LIST_LIMIT: usize = 1_000;
/// The longest that a question may stay parked.
const LONGEST_PATIENCE: Duration = Duration::from_secs(30);
/// Questions parked at once, at the most.
const PARKED_LIMIT: usize = 50_000;
/// Events in one answer, at the most.
const EVENTS_AT_ONCE: usize = 1_000;
/// How many of a prefix's jobs are named when it is ambiguous.
const AMBIGUOUS_NAMED: usize = 4;

/// Who asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asker {
    /// This node's own gateway.
    Gateway {
        /// Its question.
        call: u64,
    },
    /// Another node's.
    Peer {
        /// Which node's.
        node: NodeId,
        /// Its question.
        call: u64,
    },
}

/// A question that waits.
#[derive(Debug)]
pub(super) struct Parked<T> {
    number: u64,
    asker: Asker,
    /// What the asker has already.
    known: T,
    until: Moment,
}

impl Peer {
    pub(super) fn serve(&mut self, now: Now, asker: Asker, request: Request) {
        match request {
            Request::Submit { jobs, insist } => self.serve_submit(now, asker, jobs, insist),
            Request::Job(prefix) => {
                let response = match self.find(prefix) {
                    Ok(job) => self.job_answer(now, job),
                    Err(response) => response,
                };
                self.answer(asker, response);
            }
            Request::Watch { job, known, patience } => self.serve_watch(now, asker, job, known, patience),
            Request::Cancel { job, reason } => {
                let response = match self.find(job) {
                    Ok(job) => {
                        let dot = self.next_dot();
                        let is_open = self.records.get(job).is_some_and(|held| !held.state().is_terminal());
                        if is_open {
                            self.change(now, job, |record| {
                                record.request_stop(Stop { kind: StopKind::Cancelled, dot, at: now.wall, reason });
                            });
                        }
                        self.job_answer(now, job)
                    }
                    Err(response) => response,
                };
                self.answer(asker, response);
            }
            Request::Explain(prefix) => {
                let response = match self.find(prefix) {
                    Ok(job) => self.explain(now, job),
                    Err(response) => response,
                };
                self.answer(asker, response);
            }
            Request::List { filter, after, limit, partitions } => {
                let limit = (limit as usize).min(LIST_LIMIT);
                let (records, more) = self.records.list(&filter, after, limit, &partitions);
                self.answer(asker, Response::Jobs { records, more });
            }
            Request::Copy(prefix) => {
                let record = self.records.with_prefix(prefix).next().map(|(_, held)| held.record());
                self.answer(asker, Response::Copy(record));
            }
            Request::Dependents(node) => {
                let dependents = self.dependents(node);
                self.answer_at_once(asker, Response::Dependents(dependents));
            }
            Request::Events { after, patience } => self.serve_events(now, asker, after, patience),
        }
    }

    /// The one record with this prefix; or what to answer instead.
    fn find(&self, prefix: JobIdPrefix) -> Result<JobId, Response> {
        let mut found = self.records.with_prefix(prefix).map(|(job, _)| job);
        match (found.next(), found.next()) {
            (Some(job), None) => Ok(job),
            (Some(first), Some(second)) => {
                let named: Vec<String> =
                    [first, second].into_iter().chain(found).take(AMBIGUOUS_NAMED).map(|job| job.to_string()).collect();
                let refusal = Refusal::new(Code::Conflict, format!("several jobs have ids that begin with {prefix}"))
                    .with_hint(format!("say more of the id; for instance {}", named.join(" or ")));
                Err(Response::Refused(refusal))
            }
            (None, _) => {
                let decides = self.ownership.is_caught_up(self.placement.partition_of(prefix.low));
                Err(if decides { Response::Refused(Refusal::no_such_job(prefix)) } else { Response::NotOwner })
            }
        }
    }

    fn job_answer(&self, now: Now, job: JobId) -> Response {
        let Some(held) = self.records.get(job) else {
            return Response::NotOwner;
        };
        let partition = self.records.partition_of(job);
        let known_copies = self.replication.known_copies(job, held.version);
        let agrees = |node: NodeId| match &known_copies {
            Some(copies) => copies.contains(&node),
            None => {
                self.agreements.agrees(partition, node)
                    || !self.replication.is_spreading(job) && !self.stands_in(node, partition)
            }
        };
        let me = self.me.node;
        let acting = self.placement.acting(partition);
        Response::Job(JobAnswer {
            record: held.record(),
            version: held.version,
            by: me,
            by_owner: self.ownership.is_caught_up(partition),
            as_of: now.wall,
            replicas: acting.iter().map(|node| (*node, *node == me || agrees(*node))).collect(),
        })
    }

    fn serve_submit(&mut self, now: Now, asker: Asker, jobs: Vec<NewJob>, insist: bool) {
        let submit = self.next_submit;
        self.next_submit += 1;
        let mut pending = PendingSubmit { asker, outcomes: vec![None; jobs.len()], existed: vec![false; jobs.len()] };
        let mut awaited = Vec::new();
        for (at, job) in jobs.into_iter().enumerate() {
            match self.write_down(now, job, insist) {
                Ok(written) => {
                    pending.existed[at] = written.existed;
                    awaited.push((at, written));
                }
                Err(outcome) => pending.outcomes[at] = Some(outcome),
            }
        }
        self.submits.insert(submit, pending);
        let deadline = now.moment + self.config.timing.acknowledge_within;
        for (at, written) in awaited {
            let WrittenDown { id, revision, wanted, .. } = written;
            self.replication.wait(id, revision, wanted, deadline, Waiting::Submit(submit, at));
            if self.outbox.is_stored(id) || self.sabotage.has(Bug::AcknowledgeBeforeSync) {
                self.replication.handle_stored_here(id, revision);
            }
            self.check_copies(now, id);
        }
        self.finish_submit(submit);
    }

    /// Writes one job down, or says why not.
    fn write_down(&mut self, now: Now, job: NewJob, insist: bool) -> Result<WrittenDown, SubmitOutcome> {
        let NewJob { id, submission } = job;
        let partition = self.records.partition_of(id);
        let refused = |refusal| Err(SubmitOutcome::Refused(refusal));
        let takes = match self.status() {
            Status::Serving => self.ownership.is_caught_up(partition) || insist,
            // What it has it answers for. What is new would be its alone, and go down with it.
            Status::Draining if self.records.get(id).is_some() => self.ownership.is_caught_up(partition),
            Status::Draining if self.placement.acting(partition).iter().all(|node| *node == self.me.node) => {
                let refusal =
                    Refusal::new(Code::Unavailable, "this node is draining, and reaches no other that takes jobs");
                return refused(refusal.with_hint("ask another node, or end the drain with `flockwork undrain`"));
            }
            Status::Draining | Status::Joining | Status::Returning | Status::ReadOnly | Status::Left => false,
        };
        if !takes {
            return Err(SubmitOutcome::NotOwner);
        }
        if let Err(invalid) = submission.spec.validate() {
            return refused(invalid.into());
        }
        let wanted = self.copies_wanted(submission.spec.durability, self.placement.home(partition).len());
        if let Some(held) = self.records.get(id) {
            let existed = held.record().submission != submission;
            let revision = held.revision;
            if !self.replication.is_spreading(id) {
                let targets = self.targets(id);
                self.replication.spread(now.moment, id, revision, targets);
            }
            return Ok(WrittenDown { id, revision, wanted, existed });
        }
        if submission.spec.key.is_some() {
            let (low, high) = id.key_range();
            if let Some((other, _)) = self.records.with_prefix(JobIdPrefix { low, high }).next() {
                let refusal = Refusal {
                    field: Some("key".into()),
                    hint: Some(format!("`flockwork job {other}` shows the job; use another key for another spec")),
                    ..Refusal::new(Code::Conflict, format!("the key was used for another spec, by job {other}"))
                };
                return refused(refusal);
            }
        }
        self.counters.submitted += 1;
        let dot = self.next_dot();
        let revision = self.write(now, Record::new(id, submission, dot));
        Ok(WrittenDown { id, revision, wanted, existed: false })
    }

    fn copies_wanted(&self, durability: Durability, replicas: usize) -> u32 {
        match durability {
            Durability::One => 1,
            Durability::Majority => majority(replicas.max(1)),
            Durability::All => replicas.max(1) as u32,
        }
    }

    /// One job of a submit has its copies, or its time is over.
    pub(super) fn settle_submit(&mut self, submit: u64, at: usize, job: JobId, replicas: Vec<NodeId>, wanted: u32) {
        let replicas = if self.sabotage.has(Bug::AcknowledgeWithTooFew) {
            self.targets(job).into_iter().chain([self.me.node]).collect()
        } else {
            replicas
        };
        let state = self.records.get(job).map_or(JobState::Pending, |held| held.state());
        if let Some(pending) = self.submits.get_mut(&submit) {
            let stored = replicas.len() as u32;
            let existed = pending.existed[at];
            pending.outcomes[at] = Some(if stored == 0 {
                let refusal = Refusal::new(Code::Full, "no node could write the job to its disk in time");
                SubmitOutcome::Refused(refusal.with_hint("it may still run; ask again with the same key to find out"))
            } else {
                let receipt = Receipt { stored, wanted, replicas };
                SubmitOutcome::Written(Submitted { id: job, state, existed, receipt })
            });
        }
        self.finish_submit(submit);
    }

    fn finish_submit(&mut self, submit: u64) {
        let is_done = |pending: &PendingSubmit| pending.outcomes.iter().all(Option::is_some);
        if !self.submits.get(&submit).is_some_and(is_done) {
            return;
        }
        if let Some(pending) = self.submits.remove(&submit) {
            let outcomes = pending.outcomes.into_iter().flatten().collect();
            // The copies that the receipts count are stored already; no later commit is waited for.
            self.answer_at_once(pending.asker, Response::Submitted(outcomes));
        }
    }

    fn serve_watch(&mut self, now: Now, asker: Asker, job: JobId, known: Option<Version>, patience: Duration) {
        let until = now.moment + patience.min(LONGEST_PATIENCE);
        match self.find(JobIdPrefix::from(job)) {
            Err(response) => self.answer(asker, response),
            Ok(_) => {
                let version = self.records.get(job).map(|held| held.version);
                if version != known || patience.is_zero() || self.parked_until.len() >= PARKED_LIMIT {
                    let response = self.job_answer(now, job);
                    return self.answer(asker, response);
                }
                let number = self.next_parked;
                self.next_parked += 1;
                self.parked_until.insert((until, number));
                self.watchers.entry(job).or_default().push(Parked { number, asker, known, until });
            }
        }
    }

    /// The job's record changed: whoever watches it is told.
    pub(super) fn answer_watchers(&mut self, now: Now, job: JobId) {
        let Some(parked) = self.watchers.remove(&job) else {
            return;
        };
        let version = self.records.get(job).map(|held| held.version);
        let (waiting, told): (Vec<_>, Vec<_>) = parked.into_iter().partition(|parked| parked.known == version);
        for parked in told {
            self.parked_until.remove(&(parked.until, parked.number));
            let response = self.job_answer(now, job);
            self.answer(parked.asker, response);
        }
        if !waiting.is_empty() {
            self.watchers.insert(job, waiting);
        }
    }

    fn serve_events(&mut self, now: Now, asker: Asker, after: Option<u64>, patience: Duration) {
        let newest = self.event_numbers.last();
        let known = after.unwrap_or(newest);
        if after.is_none() || known < newest || patience.is_zero() || self.parked_until.len() >= PARKED_LIMIT {
            let response = self.events_after(known);
            return self.answer(asker, response);
        }
        let number = self.next_parked;
        self.next_parked += 1;
        let until = now.moment + patience.min(LONGEST_PATIENCE);
        self.parked_until.insert((until, number));
        self.event_readers.push(Parked { number, asker, known, until });
    }

    pub(super) fn answer_event_readers(&mut self) {
        for parked in std::mem::take(&mut self.event_readers) {
            self.parked_until.remove(&(parked.until, parked.number));
            let response = self.events_after(parked.known);
            self.answer(parked.asker, response);
        }
    }

    fn events_after(&self, known: u64) -> Response {
        let events: Vec<Event> =
            self.events.iter().filter(|event| event.seq > known).take(EVENTS_AT_ONCE).cloned().collect();
        let newest = events.last().map_or(self.event_numbers.last(), |event| event.seq);
        Response::Events { newest, events }
    }

    /// Answers the parked questions whose patience has ended with what there is.
    pub(super) fn answer_parked_until(&mut self, now: Now) {
        if self.parked_until.first().is_none_or(|(until, _)| *until > now.moment) {
            return;
        }
        self.parked_until.retain(|(until, _)| *until > now.moment);
        let is_over = |until: Moment| until <= now.moment;
        let (over, waiting): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.event_readers).into_iter().partition(|parked| is_over(parked.until));
        self.event_readers = waiting;
        for parked in over {
            let response = self.events_after(parked.known);
            self.answer(parked.asker, response);
        }
        let mut over = Vec::new();
        let watchers = std::mem::take(&mut self.watchers);
        self.watchers = watchers
            .into_iter()
            .filter_map(|(job, parked)| {
                let (done, waiting): (Vec<_>, Vec<_>) = parked.into_iter().partition(|parked| is_over(parked.until));
                over.extend(done.into_iter().map(|parked| (job, parked.asker)));
                (!waiting.is_empty()).then_some((job, waiting))
            })
            .collect::<BTreeMap<_, _>>();
        for (job, asker) in over {
            let response = self.job_answer(now, job);
            self.answer(asker, response);
        }
    }

    fn explain(&self, now: Now, job: JobId) -> Response {
        let partition = self.records.partition_of(job);
        let Some(held) = self.records.get(job).filter(|_| self.ownership.is_caught_up(partition)) else {
            return Response::NotOwner;
        };
        let record = held.record();
        let view = self.membership.view();
        let nodes: Vec<(NodeId, Option<String>)> = view
            .values()
            .filter(|member| member.is_live())
            .map(|member| (member.facts.node, unfit(&record, member.facts.node, view)))
            .collect();
        let due = due_at(&record, &self.owner_sees(now.moment, &held));
        let due_at = (due > now.moment && held.state() == JobState::Pending).then(|| now.wall + due.since(now.moment));
        Response::Explanation(Explanation {
            id: job,
            state: held.state(),
            reason: self.reason_for_state(now, job, &held, &nodes),
            owner: self.me.node,
            due_at,
            ahead: self.scheduler.ahead_of(job),
            nodes,
        })
    }

    fn reason_for_state(&self, now: Now, job: JobId, held: &Held<'_>, nodes: &[(NodeId, Option<String>)]) -> String {
        let name = |node: NodeId| {
            self.membership.view().get(&node).map_or_else(|| node.to_string(), |member| member.facts.name.clone())
        };
        let record = &held.record();
        let sees = self.owner_sees(now.moment, held);
        match owner_decides(now.moment, record, &sees) {
            OwnerDoes::Place if nodes.iter().all(|(_, against)| against.is_some()) => {
                "no live node can run it: see what speaks against each".into()
            }
            OwnerDoes::Place => match self.scheduler.offered_to(job) {
                Some(node) => format!("it is being offered to {}", name(node)),
                None => "it waits for room: every node that can run it is busy".into(),
            },
            OwnerDoes::Wait(_) if held.state() == JobState::Pending && must_pause(record, self.membership.view()) => {
                "it waits until a majority of the members is in reach".into()
            }
            OwnerDoes::Wait(_)
                if held.state() == JobState::Pending
                    && alone_from(record, &sees).is_some_and(|alone_from| alone_from > now.moment) =>
            {
                "it waits until the other side of a partition, if there is one, would have ended it".into()
            }
            OwnerDoes::Wait(_) if held.state() == JobState::Pending && record.attempts.is_empty() => {
                "it waits for its delay to pass".into()
            }
            OwnerDoes::Wait(_) if held.state() == JobState::Pending => {
                "it waits before its next attempt, as its backoff asks".into()
            }
            OwnerDoes::Wait(_) | OwnerDoes::Confirm(_) => match record.current() {
                Some((_, attempt)) => {
                    let node = name(attempt.claim.executor.node);
                    let verb = if attempt.started_at.is_some() { "runs on" } else { "is about to start on" };
                    let stopping = if record.stop.is_some() { ", and is being stopped" } else { "" };
                    format!("attempt {} {verb} {node}{stopping}", attempt.claim.number)
                }
                None => "it waits".into(),
            },
            OwnerDoes::WriteOff(_) => "the node that ran it is gone; it goes on elsewhere".into(),
            OwnerDoes::TimeOut(reason) => reason,
            OwnerDoes::Rest => match held.state() {
                JobState::Succeeded => "it succeeded".into(),
                JobState::Cancelled => {
                    let reason = record.stop.as_ref().map(|stop| stop.reason.as_str()).filter(|r| !r.is_empty());
                    reason.map_or_else(|| "it was cancelled".into(), |reason| format!("it was cancelled: {reason}"))
                }
                JobState::Failed => match &record.stop {
                    Some(stop) => stop.reason.clone(),
                    None => format!(
                        "its attempts are used up: {} failed, {} were lost with their node",
                        record.failures(),
                        record.losses()
                    ),
                },
                JobState::Pending | JobState::Running => "nothing is to be done about it".into(),
            },
        }
    }

    /// Answers as soon as everything this node has written so far is on its disk.
    fn answer(&mut self, asker: Asker, response: Response) {
        self.outbox.send_when_stored(outgoing(asker, response));
    }

    fn answer_at_once(&mut self, asker: Asker, response: Response) {
        self.outbox.send(outgoing(asker, response));
    }
}

fn outgoing(asker: Asker, response: Response) -> Outgoing {
    match asker {
        Asker::Gateway { call } => Outgoing::Answer { call, response },
        Asker::Peer { node, call } => {
            Outgoing::Effect(Effect::Send { to: node, message: Message::Response { call, response } })
        }
    }
}

/// A job that is in memory, and on its way to its copies.
struct WrittenDown {
    id: JobId,
    revision: u64,
    wanted: u32,
    existed: bool,
}
