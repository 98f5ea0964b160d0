//! Clients: they submit, read, watch, list and cancel through whichever node is up, and remember what they were
//! told, since that is what the cluster has promised.
//!
//! A submit with a key that fails, or whose gateway dies, is tried again with the same key elsewhere, until it
//! is acknowledged. One without a key is not: then nobody can know whether it was taken.

use std::collections::BTreeMap;
use std::time::Duration;

use flockwork::model::id::{JobId, JobIdPrefix};
use flockwork::model::record::JobState;
use flockwork::model::request::{Code, Draft, Filter, JobAnswer, Refusal, Submitted};
use flockwork::model::spec::{OnPartition, Spec};
use flockwork::protocol::gateway::{Ask, AskId, Reply, Told};

use crate::network::short;
use crate::pods::work;
use crate::world::{Happening, KNOWN_WITHIN, World};

/// What clocks that differ, and a busy instant, may add to a deadline.
const SLACK: Duration = Duration::from_millis(500);

/// What the clients know.
#[derive(Debug, Default)]
pub struct Clients {
    /// The mean time between two questions, in milliseconds; nothing while they are quiet.
    pub pace_ms: Option<f64>,
    /// Jobs that were acknowledged.
    pub jobs: BTreeMap<JobId, Tracked>,
    pub keys: BTreeMap<String, Keyed>,
    /// The answers that nobody has taken yet.
    pub answers: BTreeMap<AskId, Result<Told, Refusal>>,
    open: BTreeMap<AskId, OpenAsk>,
    next_key: u64,
}

/// What was promised of a job.
#[derive(Debug, Clone)]
pub struct Tracked {
    /// The first final state that an owner told.
    pub told: Option<JobState>,
    /// What its sealed record said.
    pub final_state: Option<JobState>,
    pub cancelled: bool,
}

/// A key that clients use.
#[derive(Debug, Clone)]
pub struct Keyed {
    pub spec: Spec,
    pub job: Option<JobId>,
    /// Somebody used it for another spec too.
    pub misused: bool,
}

#[derive(Debug)]
struct OpenAsk {
    what: Ask,
    process: u64,
    deadline: Duration,
    /// Its gateway was paused meanwhile.
    excused: bool,
}

impl Clients {
    pub fn asked(&mut self, ask: AskId, now: Duration, process: u64, what: &Ask) {
        let within = match what {
            Ask::Submit(_) => Duration::from_secs(10),
            Ask::Watch(_, _, patience) => *patience + Duration::from_secs(8),
            Ask::Job(_) | Ask::Cancel(..) | Ask::Explain(_) => Duration::from_secs(8),
            Ask::List(..) | Ask::Copies(_) | Ask::Dependents(_) => Duration::from_secs(3),
        };
        let deadline = now + within + SLACK;
        self.open.insert(ask, OpenAsk { what: what.clone(), process, deadline, excused: false });
    }

    /// The gateway's process is gone, and its questions with it. Returns the keys to try again.
    pub fn forget_gateway(&mut self, process: u64) -> Vec<String> {
        let gone: Vec<AskId> =
            self.open.iter().filter(|(_, open)| open.process == process).map(|(ask, _)| *ask).collect();
        let gone = gone.into_iter().filter_map(|ask| self.open.remove(&ask));
        gone.flat_map(|open| match open.what {
            Ask::Submit(drafts) => drafts.into_iter().filter_map(|draft| draft.spec.key).collect(),
            Ask::Job(_)
            | Ask::Watch(..)
            | Ask::Cancel(..)
            | Ask::Explain(_)
            | Ask::List(..)
            | Ask::Copies(_)
            | Ask::Dependents(_) => Vec::new(),
        })
        .collect()
    }

    pub fn gateway_paused(&mut self, process: u64) {
        self.open.values_mut().filter(|open| open.process == process).for_each(|open| open.excused = true);
    }

    /// Questions that nobody has answered yet.
    pub fn waiting(&self) -> usize {
        self.open.len()
    }
}

impl World {
    /// Begins, or stops, to ask all kinds of things, every `pace_ms` milliseconds in the mean.
    pub fn let_clients_ask(&mut self, pace_ms: Option<f64>) {
        let was_quiet = self.clients.pace_ms.is_none();
        self.clients.pace_ms = pace_ms;
        if was_quiet && pace_ms.is_some() {
            self.schedule(Duration::ZERO, Happening::ClientStep);
        }
    }

    pub fn client_step(&mut self) {
        let Some(pace) = self.clients.pace_ms else {
            return;
        };
        let next = self.dice.ms(0.0, pace * 2.0);
        self.schedule(next, Happening::ClientStep);
        let Some(node) = self.a_gateway() else {
            return;
        };
        let jobs: Vec<JobId> = self.clients.jobs.keys().copied().collect();
        let job = self.dice.pick(&jobs);
        let what = match (self.dice.number(0..100), job) {
            (0..45, _) | (_, None) => Ask::Submit(vec![self.a_draft()]),
            (45..52, _) => {
                let count = self.dice.number(2..9);
                Ask::Submit((0..count).map(|_| self.a_draft()).collect())
            }
            // What has expired may be submitted anew, and is another job then.
            (52..56, _) if !self.options.retention.is_zero() => {
                let keys: Vec<String> = self.clients.keys.keys().cloned().collect();
                let chosen = self.dice.number(0..keys.len().max(1) as u64) as usize;
                let Some(key) = keys.get(chosen) else { return };
                Ask::Submit(vec![self.a_draft_with_key(key)])
            }
            (52..70, Some(job)) => Ask::Job(JobIdPrefix::from(job)),
            (70..82, Some(job)) => Ask::Watch(job, None, Duration::from_secs(3)),
            (82..90, Some(job)) => Ask::Cancel(JobIdPrefix::from(job), "no longer wanted".into()),
            (90..94, Some(job)) => Ask::Explain(JobIdPrefix::from(job)),
            (94..97, Some(job)) => Ask::Copies(JobIdPrefix::from(job)),
            (_, Some(_)) => Ask::List(Filter::default(), None, 20),
        };
        self.ask(node, what);
    }

    /// A node that takes questions, at random.
    fn a_gateway(&mut self) -> Option<usize> {
        let up: Vec<usize> =
            self.up().into_iter().filter(|node| self.process(*node).is_some_and(|process| !process.paused)).collect();
        self.dice.pick(&up)
    }

    fn a_draft(&mut self) -> Draft {
        let ms = if self.dice.chance(10.0) { self.dice.number(2_000..15_000) } else { self.dice.number(10..1_500) };
        let failures = if self.dice.chance(25.0) { self.dice.number(1..4) as u32 } else { 0 };
        let mut spec = Spec { retries: self.dice.number(0..4) as u32, ..work(ms, failures) };
        spec.backoff.initial = Duration::from_millis(200);
        if self.dice.chance(10.0) {
            spec.timeout = Some(self.dice.ms(100.0, 2_000.0));
        }
        if self.dice.chance(6.0) {
            spec.total_timeout = Some(self.dice.ms(500.0, 20_000.0));
        }
        if self.dice.chance(4.0) {
            spec.queue_timeout = Some(self.dice.ms(500.0, 10_000.0));
        }
        if self.dice.chance(8.0) {
            spec.delay = Some(self.dice.ms(100.0, 5_000.0));
        }
        if self.dice.chance(10.0) {
            spec.priority = self.dice.number(0..5) as i32;
        }
        if self.dice.chance(10.0) {
            spec.slots = 2;
        }
        if self.dice.chance(10.0) {
            let Spec { command, .. } = work(self.dice.number(2_000..20_000), failures);
            (spec.command, spec.on_partition) = (command, OnPartition::Pause);
        }
        if self.dice.chance(15.0) {
            spec.lost_limit = self.dice.number(0..2) as u32;
        }
        if self.dice.chance(60.0) {
            self.clients.next_key += 1;
            let key = format!("key-{}", self.clients.next_key);
            spec.key = Some(key.clone());
            self.clients.keys.insert(key, Keyed { spec: spec.clone(), job: None, misused: false });
        }
        Draft { spec, retry_of: None }
    }

    /// The same submit again; or, now and then, another one under the same key.
    fn a_draft_with_key(&mut self, key: &str) -> Draft {
        let misuse = self.dice.chance(30.0);
        let keyed = self.clients.keys.get_mut(key).expect("the key was chosen from those that are known");
        let mut spec = keyed.spec.clone();
        if misuse {
            keyed.misused = true;
            spec.retries += 4;
        }
        Draft { spec, retry_of: None }
    }

    pub fn ask_again(&mut self, key: &str) {
        let Some(keyed) = self.clients.keys.get(key) else {
            return;
        };
        if keyed.job.is_some() {
            return;
        }
        let draft = Draft { spec: keyed.spec.clone(), retry_of: None };
        if self.a_gateway().and_then(|node| self.ask(node, Ask::Submit(vec![draft]))).is_none() {
            self.schedule(Duration::from_secs(1), Happening::AskAgain { key: key.to_owned() });
        }
    }

    /// The Peer answers a client.
    pub fn take_reply(&mut self, node: usize, reply: Reply) {
        let Reply { ask, result } = reply;
        let Some(open) = self.clients.open.remove(&ask) else {
            return self.find("an ask is answered once", format!("n{node} answers {ask:?}, which is not open"));
        };
        match (&open.what, &result) {
            (Ask::Submit(drafts), Ok(Told::Submitted(outcomes))) => {
                if drafts.len() != outcomes.len() {
                    self.find("every draft has its outcome", format!("{} of {}", outcomes.len(), drafts.len()));
                }
                for (draft, outcome) in drafts.iter().zip(outcomes) {
                    match outcome {
                        Ok(submitted) => self.acknowledged(node, &draft.spec, submitted),
                        Err(refusal) => self.refused(node, &draft.spec, refusal),
                    }
                }
            }
            (Ask::Job(_) | Ask::Watch(..) | Ask::Cancel(..), Ok(Told::Job(answer))) => {
                let is_cancel = matches!(open.what, Ask::Cancel(..));
                self.told(node, answer, is_cancel);
            }
            (Ask::Job(prefix) | Ask::Cancel(prefix, _) | Ask::Explain(prefix), Err(refusal)) => {
                self.denied(node, prefix.low, refusal);
            }
            (Ask::Watch(job, ..), Err(refusal)) => self.denied(node, *job, refusal),
            (_, Ok(_) | Err(_)) => self.note(node, || "answers a client".to_owned()),
        }
        self.clients.answers.insert(ask, result);
    }

    fn acknowledged(&mut self, node: usize, spec: &Spec, submitted: &Submitted) {
        let Submitted { id, receipt, .. } = submitted;
        self.note(node, || format!("acknowledges {}: {} of {} copies", short(id.0), receipt.stored, receipt.wanted));
        self.check_receipt(*id, receipt);
        if let Some(keyed) = spec.key.as_ref().and_then(|key| self.clients.keys.get_mut(key))
            && keyed.spec == *spec
        {
            let before = *keyed.job.get_or_insert(*id);
            if before != *id {
                self.find("one key and spec, one job", format!("{} and {}", short(before.0), short(id.0)));
            }
        }
        // Whose record has expired may submit it anew.
        let is_open = |node: &crate::world::Node| node.disk.records.get(id).is_some_and(|record| !record.is_final());
        if self.nodes.iter().any(is_open) && self.may_have_expired(*id) {
            self.saved_work.forget(*id);
            self.ledger.safe_results.remove(id);
            self.seals.remove(id);
            self.seals_judged.remove(id);
        }
        let tracked = Tracked { told: None, final_state: None, cancelled: false };
        self.clients.jobs.entry(*id).or_insert(tracked);
    }

    fn refused(&mut self, node: usize, spec: &Spec, refusal: &Refusal) {
        self.note(node, || format!("refuses a submit: {refusal}"));
        let keyed = spec.key.as_ref().and_then(|key| self.clients.keys.get(key)).cloned();
        match refusal.code {
            Code::Conflict => {
                if !keyed.as_ref().is_some_and(|keyed| keyed.misused) {
                    self.find("a key conflicts only with another spec", refusal.message.clone());
                }
            }
            Code::Unavailable | Code::Full | Code::SlowDown => {
                // Where all who are up drain or leave, nobody is there to take a job, and who drained is not back at once.
                if !self.disturbances.any && self.somebody_serves(node, KNOWN_WITHIN) {
                    self.find("without faults every submit is acknowledged", refusal.message.clone());
                }
                if let Some(key) = spec.key.clone().filter(|_| keyed.as_ref().is_some_and(|keyed| keyed.spec == *spec))
                {
                    let after = self.dice.ms(200.0, 2_000.0);
                    self.schedule(after, Happening::AskAgain { key });
                }
            }
            Code::Malformed | Code::NotFound | Code::TooLarge | Code::Invalid | Code::Internal => {
                self.find("a good submit is not refused", format!("{refusal:?}"));
            }
        }
    }

    fn told(&mut self, node: usize, answer: &JobAnswer, is_cancel: bool) {
        let job = answer.record.id;
        let state = answer.record.state();
        self.note(node, || format!("tells a client that {} is {}", short(job.0), state.as_str()));
        if answer.version != answer.record.version() {
            self.find("an answer carries its version", short(job.0));
        }
        if is_cancel && answer.record.stop.is_none() && !state.is_terminal() {
            self.find("a cancel leaves its mark", short(job.0));
        }
        if answer.by_owner {
            self.check_told_work(node, &answer.record);
        }
        let Some(tracked) = self.clients.jobs.get_mut(&job) else {
            return;
        };
        tracked.cancelled |= is_cancel && !state.is_terminal();
        if answer.record.is_final() {
            let first = *tracked.final_state.get_or_insert(state);
            if first != state {
                self.find("a final state is never left", format!("{} is sealed in two states", short(job.0)));
                return;
            }
        }
        if !answer.by_owner {
            return;
        }
        let before = tracked.told;
        if state.is_terminal() && before.is_none() {
            tracked.told = Some(state);
        }
        if let Some(before) = before.filter(|before| *before != state) {
            self.final_state_left(job, before, state);
        }
    }

    fn denied(&mut self, node: usize, job: JobId, refusal: &Refusal) {
        self.note(node, || format!("tells a client nothing of {}: {refusal}", short(job.0)));
        if self.clients.jobs.contains_key(&job) && refusal.code == Code::NotFound && !self.may_have_expired(job) {
            let text = format!("n{node} says that there is no {}, which was acknowledged", short(job.0));
            // Whoever leaves last takes along what nobody is left to take, and says so; when it is back, it needs a moment
            // to be seen and asked.
            let on = self.disks_with(job);
            let is_away = |holder: &usize| self.nodes[*holder].has_left || self.has_just_come_back(*holder);
            let was_taken_along = !on.is_empty() && on.iter().all(is_away);
            if self.disturbances.any || was_taken_along {
                self.except(text);
            } else {
                self.find("acknowledged jobs are known", text);
            }
        }
    }

    /// Questions whose time is over.
    pub fn check_asks(&mut self) {
        let now = self.now;
        let is_overdue = |open: &OpenAsk| open.deadline < now && !open.excused;
        let overdue: Vec<AskId> =
            self.clients.open.iter().filter(|(_, open)| is_overdue(open)).map(|(ask, _)| *ask).collect();
        for ask in overdue {
            if let Some(open) = self.clients.open.remove(&ask) {
                self.find("every ask is answered in time", format!("{:?}", open.what));
            }
        }
    }
}
