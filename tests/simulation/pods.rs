//! The executors' pods, and the ledger: what really ran, written down outside the system under test.
//!
//! A job's command is its plan: `work <milliseconds> <failures>` runs that long, and its first so many attempts
//! end with exit code 1. On the way it saves its work: what a checkpoint holds is how many attempts it goes back on,
//! so that a pod which starts says whether any of that was lost. It posts what it has come to, and its node tells what it
//! has written, at the same moments. A pod dies with its node's process; a paused process
//! does not stop its pods, but for those that it holds a lease for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use flockwork::model::attempt::Exit;
use flockwork::model::blob::{Blob, BlobId};
use flockwork::model::id::{AttemptKey, Dot, JobId};
use flockwork::model::record::Submission;
use flockwork::model::report::{Outcome, Progress};
use flockwork::model::request::Receipt;
use flockwork::model::spec::{OnPartition, Spec};
use flockwork::model::time::Timestamp;
use flockwork::protocol::effect::{Leavings, PodEnd, PodEvent, PodReport, PodStart, Rejected};

use crate::network::short;
use crate::world::{Happening, World};

/// How long the guard of a node that stands still waits before it ends what must not run twice.
const LEASE: Duration = Duration::from_secs(4);

/// One pod.
#[derive(Debug, Clone)]
pub struct Run {
    pub job: JobId,
    pub claim: Dot,
    pub number: u32,
    pub node: usize,
    pub slots: u32,
    /// When its process began to run, if it did.
    pub started: Option<Duration>,
    /// When nothing of it ran any longer.
    pub ended: Option<Duration>,
    /// How many checkpoints, one upon the other, it goes back on.
    pub depth: u64,
    serial: u64,
    plan: Plan,
}

#[derive(Debug, Clone, Copy)]
struct Plan {
    takes: Duration,
    exit: Exit,
    /// It must not run where most of the members are out of reach, and so holds a lease of its node.
    leased: bool,
}

/// All pods that ever were.
#[derive(Debug, Default)]
pub struct Ledger {
    pub runs: Vec<Run>,
    by_key: BTreeMap<AttemptKey, usize>,
    live: BTreeMap<AttemptKey, usize>,
    /// Told to end before they began.
    ended_early: BTreeSet<AttemptKey>,
    /// Pairs of runs of one job that ran at the same time.
    pub overlaps: Vec<(usize, usize)>,
    /// By the content of every checkpoint: the depth that it stands for.
    saved: BTreeMap<BlobId, u64>,
    submissions: BTreeMap<JobId, Arc<Submission>>,
    /// Jobs that ran by two submissions: their key was used again where nobody knew of them. The executors' writes of the
    /// first lie before those of the second, and tell nothing of what the second's owner knew.
    pub submitted_anew: BTreeSet<JobId>,
    /// Reports: of which job, and of what content, until they are answered.
    reports: BTreeMap<u64, Option<(JobId, Posted)>>,
    /// The newest result of each attempt that its pod was told is safe.
    pub safe_results: BTreeMap<JobId, BTreeMap<Dot, Outcome>>,
}

impl Ledger {
    /// The pods of a node died with its process.
    pub fn end_all(&mut self, node: usize, now: Duration) {
        for run in self.live.values().copied().filter(|run| self.runs[*run].node == node).collect::<Vec<_>>() {
            self.runs[run].ended = Some(now);
        }
        let runs = &self.runs;
        self.live.retain(|_, run| runs[*run].node != node);
    }

    /// The runs of a job.
    pub fn runs_of(&self, job: JobId) -> impl Iterator<Item = &Run> {
        self.runs.iter().filter(move |run| run.job == job)
    }

    /// Slots of a node that pods take.
    fn slots_taken(&self, node: usize) -> u32 {
        self.live.values().map(|run| &self.runs[*run]).filter(|run| run.node == node).map(|run| run.slots).sum()
    }
}

/// What a pod has handed in.
#[derive(Debug, Clone, Copy)]
enum Posted {
    Work(BlobId),
    Result(Dot, Outcome),
}

/// A job that runs for `ms`, and whose first `failures` attempts fail.
pub fn work(ms: u64, failures: u32) -> Spec {
    Spec { command: vec!["work".into(), ms.to_string(), failures.to_string()], ..Spec::default() }
}

fn plan_of(spec: &Spec, number: u32) -> Plan {
    let word = |at: usize| spec.command.get(at).and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
    let takes = Duration::from_millis(word(1));
    let fails = u64::from(number) <= word(2);
    let leased = spec.on_partition == OnPartition::Pause;
    match spec.timeout {
        Some(limit) if limit < takes => Plan { takes: limit, exit: Exit::TimedOut, leased },
        Some(_) | None => Plan { takes, exit: Exit::Code(i32::from(fails)), leased },
    }
}

/// How long a slot is busy with a job of this spec, or several are in all, if it has every attempt that it may need.
pub fn all_attempts_take(spec: &Spec) -> Duration {
    let mut takes = Duration::ZERO;
    for plan in (1..=spec.retries.saturating_add(1)).map(|number| plan_of(spec, number)) {
        takes += plan.takes * spec.slots;
        if plan.exit == Exit::Code(0) {
            break;
        }
    }
    takes
}

impl World {
    pub fn start_pod(&mut self, node: usize, start: PodStart) {
        let PodStart { key, number, submission, checkpoint, .. } = start;
        let Some(process) = self.process(node).map(|process| process.number) else {
            return;
        };
        let (job, claim) = (key.job, key.claim);
        let spec = &submission.spec;
        let run = self.ledger.runs.len();
        if self.ledger.by_key.insert(key, run).is_some() {
            self.find("an attempt has one pod", format!("n{node} starts {} {claim} again", short(job.0)));
        }
        if self.ledger.ended_early.contains(&key) {
            self.find("nothing begins that was told to end", format!("n{node} starts {}", short(job.0)));
        }
        self.check_claim_is_safe(node, job, claim);
        self.check_not_sealed(node, job, claim, &submission);
        let first = self.ledger.submissions.entry(job).or_insert_with(|| Arc::clone(&submission));
        if *first != submission {
            self.ledger.submitted_anew.insert(job);
        }
        let plan = plan_of(spec, number);
        let slots = spec.slots;
        let depth = match checkpoint {
            Some(blob) => {
                if !self.nodes[node].disk.blobs.contains_key(&blob.id) {
                    self.find("checkpoints are there when they are needed", format!("n{node} starts {}", short(job.0)));
                }
                self.ledger.saved.get(&blob.id).copied().unwrap_or(0)
            }
            None => 0,
        };
        self.check_begins_with_saved_work(node, job, claim, checkpoint);
        let run_of = Run { job, claim, number, node, slots, started: None, ended: None, depth, serial: 0, plan };
        self.ledger.runs.push(run_of);
        self.ledger.live.insert(key, run);
        let (taken, has) = (self.ledger.slots_taken(node), self.nodes[node].slots);
        if taken > has {
            self.find("no node is oversubscribed", format!("n{node} runs pods of {taken} slots and has {has}"));
        }
        let takes = self.dice.ms(1.0, 20.0);
        self.schedule(takes, Happening::PodStarts { node, process, run });
    }

    pub fn stop_pod(&mut self, node: usize, key: AttemptKey) {
        let Some(run) = self.ledger.live.get(&key).copied() else {
            if !self.ledger.by_key.contains_key(&key) {
                self.ledger.ended_early.insert(key);
            }
            return;
        };
        let process = self.process(node).map_or(0, |process| process.number);
        let takes = self.dice.ms(1.0, 100.0);
        self.schedule(takes, Happening::PodEnds { node, process, run, end: Some(PodEnd::Stopped(Exit::Signal(15))) });
    }

    /// The node stands still: its guard ends what it holds a lease for, once that lapses.
    pub fn leases_lapse(&mut self, node: usize) {
        let Some(process) = self.process(node).map(|process| process.number) else {
            return;
        };
        let leased = |run: &&usize| self.ledger.runs[**run].node == node && self.ledger.runs[**run].plan.leased;
        for run in self.ledger.live.values().filter(leased).copied().collect::<Vec<_>>() {
            self.schedule(LEASE, Happening::LeaseLapses { node, process, run, since: self.now });
        }
    }

    pub fn lease_lapses(&mut self, node: usize, process: u64, run: usize, since: Duration) {
        if self.process(node).is_some_and(|up| up.number == process && up.paused && up.paused_at == since) {
            self.pod_ends(node, process, run, Some(PodEnd::Lapsed));
        }
    }

    fn local_wall(&self, node: usize) -> Timestamp {
        self.local_now(node).wall
    }

    pub fn pod_starts(&mut self, node: usize, process: u64, run: usize) {
        if self.ledger.runs[run].ended.is_some() {
            return;
        }
        let (job, claim, number) =
            (self.ledger.runs[run].job, self.ledger.runs[run].claim, self.ledger.runs[run].number);
        self.note(node, || format!("pod: {} attempt {number} runs", short(job.0)));
        self.ledger.runs[run].started = Some(self.now);
        let key = AttemptKey { job, claim };
        let beside: Vec<usize> = self
            .ledger
            .live
            .range(..)
            .filter(|(other, _)| other.job == job && **other != key)
            .map(|(_, run)| *run)
            .collect();
        for other in beside.into_iter().filter(|other| self.ledger.runs[*other].started.is_some()).collect::<Vec<_>>() {
            self.ledger.overlaps.push((other, run));
            if self.ledger.runs[run].plan.leased {
                let place = self.ledger.runs[other].node;
                self.find("what must not overlap does not", format!("{} on n{place} and n{node}", short(job.0)));
            }
            self.check_overlap_has_a_cause(job, self.ledger.runs[other].node, node);
        }
        let takes = self.ledger.runs[run].plan.takes;
        self.schedule(takes, Happening::PodEnds { node, process, run, end: None });
        for part in 1..=2 {
            self.schedule(takes * part / 4, Happening::PodReports { node, process, run });
        }
        let event = PodEvent::Started { key, at: self.local_wall(node) };
        self.tell_of_pod(node, process, vec![event]);
    }

    /// It ends by itself, or is ended.
    pub fn pod_ends(&mut self, node: usize, process: u64, run: usize, end: Option<PodEnd>) {
        let (job, claim) = (self.ledger.runs[run].job, self.ledger.runs[run].claim);
        if self.ledger.runs[run].ended.is_some() {
            return;
        }
        let end = end.unwrap_or(PodEnd::Exited(self.ledger.runs[run].plan.exit));
        self.note(node, || format!("pod: {} ends, {end:?}", short(job.0)));
        self.ledger.runs[run].ended = Some(self.now);
        let key = AttemptKey { job, claim };
        self.ledger.live.remove(&key);
        let output = Blob::new(format!("{claim} says goodbye{}", ".".repeat(200)));
        let result = (end == PodEnd::Exited(Exit::Code(0))).then(|| Blob::new(format!("{claim} is done")));
        let left = Leavings { result, stdout: Some((0, output)), ..Leavings::default() };
        let event = PodEvent::Ended { key, at: self.local_wall(node), end, left: Box::new(left) };
        self.tell_of_pod(node, process, vec![event]);
    }

    /// A pod that still runs says how far it has come, and saves its work.
    pub fn pod_reports(&mut self, node: usize, process: u64, run: usize) {
        let live = self.process(node).is_some_and(|up| up.number == process) && self.ledger.runs[run].ended.is_none();
        if !live {
            return;
        }
        self.ledger.runs[run].serial += 3;
        self.ledger.runs[run].depth += 1;
        let Run { job, claim, serial, depth, .. } = self.ledger.runs[run];
        let key = AttemptKey { job, claim };
        let progress = Progress { serial: serial - 2, permille: 500, message: String::new() };
        let mut reports = vec![PodReport::Progress(progress)];
        // Some ride along with their records, and some are too large for that.
        let size = if depth % 2 == 0 { 100 } else { 80 << 10 };
        let mut content = format!("{job} {claim} {depth} ").into_bytes();
        content.resize(size, b'.');
        let blob = Blob::new(content);
        self.ledger.saved.insert(blob.id(), depth);
        let answer = self.ledger.reports.last_key_value().map_or(1, |(last, _)| last + 1);
        self.ledger.reports.insert(answer, Some((job, Posted::Work(blob.id()))));
        let at = self.local_wall(node);
        reports.push(PodReport::Checkpoint { answer, serial: serial - 1, at, blob });
        let (answer, blob) = (answer + 1, Blob::new(format!("{claim} so far: {serial}")));
        self.ledger
            .reports
            .insert(answer, Some((job, Posted::Result(claim, Outcome::posted(serial, blob.reference())))));
        reports.push(PodReport::Result { answer, serial, blob });
        let stdout = Some((0, Blob::new(format!("{claim} has written {}", "x".repeat(serial as usize)))));
        reports.push(PodReport::Output { at, stdout, stderr: None });
        let events = reports.into_iter().map(|report| PodEvent::Reported { key, report }).collect();
        self.tell_of_pod(node, process, events);
    }

    /// A pod hears what became of its work.
    pub fn pod_is_answered(&mut self, node: usize, answer: u64, result: Result<Receipt, Rejected>) {
        let Some((job, posted)) = self.ledger.reports.insert(answer, None).flatten() else {
            return self.find("every report is answered once", format!("n{node} answers {answer} again"));
        };
        if let Ok(receipt) = result
            && receipt.stored >= receipt.wanted
        {
            match posted {
                Posted::Work(content) => self.saved_work.is_safe(job, content),
                Posted::Result(claim, result) => {
                    let safe = self.ledger.safe_results.entry(job).or_default().entry(claim).or_insert(result);
                    *safe = result.max(*safe);
                }
            }
        }
    }

    fn tell_of_pod(&mut self, node: usize, process: u64, events: Vec<PodEvent>) {
        self.schedule(Duration::from_micros(50), Happening::Pod { node, process, events });
    }
}
