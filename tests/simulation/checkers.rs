//! What must hold, and where it did not.
//!
//! Some promises are watched while the world runs: the clients, the ledger and the pods report what they see by
//! [`World::find`]. The others are judged after a calm: everything is healed, every machine is on, the clients
//! are quiet, and the cluster has had its bounded time to come to rest. What a fault excuses is kept as an
//! exception, and counted, so that a checker that excuses everything is noticed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use flockwork::model::blob::BlobId;
use flockwork::model::id::{Dot, JobId};
use flockwork::model::member::{MemberState, Status, View};
use flockwork::model::record::{Attempt, JobState, Phase, Record};

use crate::network::short;
use crate::world::World;

/// How long the cluster may take to come to rest when nothing disturbs it any longer. The longest jobs of the
/// clients take less than half of it, all attempts included.
pub const CALM_WITHIN: Duration = Duration::from_secs(240);

/// What the checkers found.
#[derive(Debug, Default)]
pub struct Findings {
    pub violations: Vec<Violation>,
    /// What would be violations, had there been no faults.
    pub exceptions: Vec<String>,
}

/// A promise that was not kept.
#[derive(Debug, Clone)]
pub struct Violation {
    pub checker: &'static str,
    pub at: Duration,
    pub what: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "at {:.3} s: {}: {}", self.at.as_secs_f64(), self.checker, self.what)
    }
}

impl World {
    /// A promise was not kept.
    pub fn find(&mut self, checker: &'static str, what: String) {
        self.write_line(|| format!("VIOLATION of \"{checker}\": {what}"));
        self.findings.violations.push(Violation { checker, at: self.now, what });
    }

    /// It would be a violation, had there been no faults.
    pub fn except(&mut self, what: String) {
        self.write_line(|| format!("exception: {what}"));
        self.findings.exceptions.push(what);
    }

    /// Ends every disturbance, and gives the cluster its time to come to rest. Then judges.
    pub fn calm_down_and_check(&mut self) {
        self.write_line(|| "calm".into());
        self.let_clients_ask(None);
        self.heal();
        for node in 0..self.nodes.len() {
            (self.nodes[node].disk.full, self.nodes[node].disk.slow_ms) = (false, 0.0);
            self.resume(node);
            self.drain(node, false);
            if !self.nodes[node].has_left {
                self.start(node);
            }
        }
        let until = self.now + CALM_WITHIN;
        while self.now < until && !self.is_at_rest() {
            self.run_for(Duration::from_secs(1));
        }
        self.judge();
    }

    fn is_at_rest(&self) -> bool {
        self.clients.waiting() == 0
            && self.clients.keys.values().all(|keyed| keyed.job.is_some() || keyed.misused)
            && self.up().iter().filter_map(|node| self.peer(*node)).all(|peer| peer.records().open().is_empty())
            && self.up().iter().all(|node| self.sees_all(*node) && self.is_converged(*node) && self.is_on_disk(*node))
    }

    /// A slow disk may still be writing what all nodes know already.
    fn is_on_disk(&self, node: usize) -> bool {
        self.nodes[node].disk.writing.is_none()
    }

    /// The sides of a split that has just healed are each at rest by themselves, and see it only later.
    fn sees_all(&self, node: usize) -> bool {
        let view = self.peer(node).map(|peer| peer.membership().view());
        let is_seen = |other: &usize| {
            let member = view.and_then(|view| view.get(&self.nodes[*other].id));
            member.is_some_and(|member| member.state == MemberState::Alive)
        };
        self.up().iter().all(is_seen)
    }

    fn is_converged(&self, node: usize) -> bool {
        let now = self.local_now(node);
        self.peer(node).is_some_and(|peer| peer.snapshot(now).convergence.converged)
    }

    fn judge(&mut self) {
        self.check_asks();
        self.judge_views();
        self.judge_replicas();
        self.judge_blobs();
        let jobs: BTreeSet<JobId> = self
            .up()
            .into_iter()
            .filter_map(|node| self.peer(node))
            .flat_map(|peer| peer.records().iter().map(|(job, _)| job))
            .collect();
        for job in &jobs {
            let record = self.merged(*job).expect("somebody holds it");
            self.judge_record(&record);
        }
        for (job, tracked) in self.clients.jobs.clone() {
            if !jobs.contains(&job) {
                self.find("acknowledged jobs are known", format!("nobody knows {}", short(job.0)));
                continue;
            }
            let record = self.merged(job).expect("somebody holds it");
            if let Some(told) = tracked.told.filter(|told| *told != record.state()) {
                self.final_state_left(job, told, record.state());
            }
            if tracked.cancelled && record.stop.is_none() {
                self.find("an acknowledged cancel stays", short(job.0));
            }
        }
        self.judge_keys(&jobs);
        self.judge_overlaps();
    }

    /// All nodes see the same members in the same way, and compute the same ring.
    fn judge_views(&mut self) {
        let up = self.up();
        let mut faults = Vec::new();
        for node in &up {
            let snapshot = self.peer(*node).expect("it is up").snapshot(self.local_now(*node));
            for other in &up {
                let process = self.process(*other).expect("it is up");
                match snapshot.view.get(&self.nodes[*other].id) {
                    Some(member)
                        if member.state == MemberState::Alive
                            && member.facts.generation == process.generation
                            && member.facts.status == Status::Serving => {}
                    seen => {
                        let seen = seen.map(|member| (member.state, member.facts.generation, member.facts.status));
                        faults.push(format!("n{node} sees n{other} as {seen:?}"));
                    }
                }
            }
            let first = self.peer(up[0]).expect("it is up").snapshot(self.local_now(up[0]));
            let (mine, theirs) = (snapshot.placement.fingerprint(), first.placement.fingerprint());
            if mine != theirs {
                let absent = |view: &View| -> Vec<_> {
                    let gone = view.values().filter(|member| member.state != MemberState::Alive);
                    gone.map(|member| (member.facts.name.clone(), member.state, member.facts.status)).collect()
                };
                let (gone_here, gone_there) = (absent(&snapshot.view), absent(&first.view));
                faults.push(format!("the rings of n{node} and n{} differ: {gone_here:?}, {gone_there:?}", up[0]));
            }
            let convergence = snapshot.convergence;
            if !convergence.converged {
                let (behind, strays) = (convergence.behind, convergence.strays);
                faults.push(format!(
                    "n{node} is not converged: behind {behind:?}, strays {strays}, {:?}",
                    snapshot.not_ready
                ));
            }
        }
        for fault in faults {
            self.find("all nodes see the same", fault);
        }
    }

    /// Every node of an acting list has the same copy, on disk too, and nobody else has one.
    fn judge_replicas(&mut self) {
        let up = self.up();
        let Some(first) = up.first().and_then(|node| self.peer(*node)) else {
            return;
        };
        let placement = first.snapshot(self.local_now(up[0])).placement;
        let mut copies: BTreeMap<JobId, BTreeMap<usize, &Record>> = BTreeMap::new();
        let mut faults = Vec::new();
        for node in &up {
            let peer = self.peer(*node).expect("it is up");
            let disk = &self.nodes[*node].disk.records;
            for (job, held) in peer.records().iter() {
                copies.entry(job).or_default().insert(*node, &held.record);
                if disk.get(&job) != Some(&held.record) {
                    faults.push(("what is known is on disk", format!("n{node} has another {} there", short(job.0))));
                }
                if held.version != held.record.version() {
                    faults.push(("versions are right", format!("n{node}, {}", short(job.0))));
                }
            }
            if disk.len() != peer.records().len() {
                let (on_disk, known) = (disk.len(), peer.records().len());
                faults.push((
                    "what is known is on disk",
                    format!("n{node} has {on_disk} records there and knows {known}"),
                ));
            }
        }
        for (job, copies) in copies {
            let acting: BTreeSet<usize> =
                placement.acting(placement.partition_of(job)).iter().filter_map(|id| self.place_of(*id)).collect();
            let holders: BTreeSet<usize> = copies.keys().copied().collect();
            if holders != acting {
                let text = format!("{} is held by {holders:?} and acted for by {acting:?}", short(job.0));
                faults.push(("every record is where it belongs", text));
            }
            let versions: BTreeSet<_> = copies.values().map(|record| record.version()).collect();
            if versions.len() != 1 {
                faults.push(("replicas are equal", format!("{} has {} versions", short(job.0), versions.len())));
            }
        }
        for (checker, fault) in faults {
            self.find(checker, fault);
        }
    }

    /// Whoever has a record has what it names, and nobody has what nothing names.
    fn judge_blobs(&mut self) {
        let anywhere: BTreeSet<BlobId> = self.nodes.iter().flat_map(|node| node.disk.blobs.keys().copied()).collect();
        let (mut faults, mut losses) = (Vec::new(), Vec::new());
        for node in self.up() {
            let disk = &self.nodes[node].disk;
            let named: BTreeMap<BlobId, JobId> =
                disk.records.values().flat_map(|r| r.blobs().into_iter().map(|blob| (blob.id, r.id))).collect();
            for (blob, job) in named.iter().filter(|(blob, _)| !disk.blobs.contains_key(blob)) {
                let text = format!("n{node} lacks {blob:?} of {}", short(job.0));
                if anywhere.contains(blob) { faults.push(text) } else { losses.push(text) }
            }
            let unnamed = disk.blobs.keys().filter(|blob| !named.contains_key(blob)).count();
            if unnamed > 0 {
                faults.push(format!("n{node} keeps {unnamed} that no record names"));
            }
        }
        for fault in faults {
            self.find("blobs go with their records", fault);
        }
        for loss in losses {
            if self.disturbances.any { self.except(loss) } else { self.find("nothing saved is lost", loss) }
        }
    }

    fn judge_record(&mut self, record: &Record) {
        let name = short(record.id.0);
        if let Err(invalid) = record.validate() {
            self.find("records are valid", format!("{name}: {invalid}"));
        }
        if !record.state().is_terminal() {
            let attempts: Vec<_> = record.attempts.values().map(|a| (a.claim.executor, a.fate.phase)).collect();
            self.find("every job ends", format!("{name} is {}: {attempts:?}", record.state().as_str()));
        }
        for (dot, attempt) in &record.attempts {
            let seen = &attempt.claim.seen;
            let knew = |write: &Dot| seen.get(&write.actor) >= write.counter;
            if record.stop.as_ref().is_some_and(|stop| knew(&stop.dot)) {
                self.find("nothing is claimed by a node that knows of the stop", format!("{name}, claim {dot}"));
            }
            let ended: Vec<&Attempt> =
                record.attempts.values().filter(|other| !other.is_live() && knew(&other.fate.dot)).collect();
            let count = |phase| {
                let numbers = ended.iter().filter(|other| other.fate.phase == phase).map(|other| other.claim.number);
                numbers.collect::<BTreeSet<u32>>().len() as u32
            };
            let spec = record.spec();
            if count(Phase::Failed) > spec.retries
                || count(Phase::Lost) > spec.lost_limit
                || count(Phase::Succeeded) > 0
            {
                self.find("attempts stay within their limits", format!("{name}, claim {dot}"));
            }
        }
    }

    /// An owner told a final state that is no longer the job's.
    pub fn final_state_left(&mut self, job: JobId, told: JobState, now: JobState) {
        let text = format!("{} was told to be {} and is {}", short(job.0), told.as_str(), now.as_str());
        let executor_died = self.merged(job).is_some_and(|record| {
            let executors = record.attempts.values().map(|attempt| attempt.claim.executor.node);
            executors.filter_map(|node| self.place_of(node)).any(|node| self.nodes[node].crashes > 0)
        });
        if self.disturbances.doubt || executor_died {
            self.except(text);
        } else {
            self.find("a final state is never left", text);
        }
    }

    fn judge_keys(&mut self, jobs: &BTreeSet<JobId>) {
        let mut by_key: BTreeMap<String, Vec<JobId>> = BTreeMap::new();
        for job in jobs {
            let record = self.merged(*job).expect("somebody holds it");
            let spec = record.spec();
            if let Some(key) = &spec.key
                && self.clients.keys.get(key).is_some_and(|keyed| keyed.spec == *spec)
            {
                by_key.entry(key.clone()).or_default().push(*job);
            }
        }
        for (key, jobs) in by_key.into_iter().filter(|(_, jobs)| jobs.len() > 1) {
            self.find("one key and spec, one job", format!("{key} is {} jobs", jobs.len()));
        }
        for (key, keyed) in self.clients.keys.clone() {
            if keyed.job.is_none() && !keyed.misused {
                self.find("whoever asks on is acknowledged in the end", key);
            }
        }
    }

    /// Whatever ran at the same time is shown by its record.
    fn judge_overlaps(&mut self) {
        for (one, other) in self.ledger.overlaps.clone() {
            let (one, other) = (&self.ledger.runs[one], &self.ledger.runs[other]);
            let (job, pair) = (one.job, BTreeSet::from([one.claim, other.claim]));
            let on = (one.node, other.node);
            let Some(record) = self.merged(job) else {
                continue;
            };
            let is_shown =
                record.overlaps().iter().any(|overlap| BTreeSet::from([overlap.first, overlap.second]) == pair);
            let text = format!("{} on n{} and n{} by {pair:?}", short(job.0), on.0, on.1);
            if is_shown {
                self.except(format!("ran twice at once: {text}"));
            } else {
                self.find("every overlap is reported", text);
            }
        }
    }
}
