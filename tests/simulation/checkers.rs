//! What must hold, and where it did not.
//!
//! Some promises are watched while the world runs: the clients, the ledger and the pods report what they see by
//! [`World::find`]. The others are judged after a calm: everything is healed, every machine is on, the clients
//! are quiet, and the cluster has had its bounded time to come to rest. What a fault excuses is kept as an
//! exception, and counted, so that a checker that excuses everything is noticed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use flockwork::model::attempt::{Attempt, Phase};
use flockwork::model::blob::BlobId;
use flockwork::model::id::{Dot, JobId, NodeId, Partition};
use flockwork::model::member::{Member, MemberState, Status, View};
use flockwork::model::record::{JobState, Record, Seal, Submission};
use flockwork::model::request::Receipt;
use flockwork::protocol::effect::Commit;
use flockwork::protocol::lifecycle::must_pause;
use flockwork::protocol::peer::Peer;

use crate::network::short;
use crate::pods::{Run, all_attempts_take};
use crate::world::{Node, Process, WRITTEN_WITHIN, World};

/// How long the cluster may take to come to rest when nothing disturbs it any longer, besides the time that its slots
/// need for what they were still given to do. The longest jobs of the clients take less than half of it, all attempts
/// included.
pub const CALM_WITHIN: Duration = Duration::from_secs(240);

/// How long after a fault a job may still come to run twice at once because of it: an owner that was cut off, or a
/// suspicion, may be that old.
const WAKE: Duration = Duration::from_secs(20);
/// By then, the nodes that were started first know of each other.
const SETTLED_AFTER: Duration = Duration::from_secs(10);
/// A pause that a node notices: the time between two of its ticks, and what is lateness.
const NOTICED_PAUSE: Duration = Duration::from_millis(600);
/// What a node has decided to run begins by then, where nobody is cut off: its claim is written down, and told.
const BEGUN_WITHIN: Duration = Duration::from_millis(500);

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
            self.nodes[node].disk.mend();
            self.resume(node);
            self.drain(node, false);
            // What could not be handed over is on the disk of whoever left with it, and its operator was told so.
            if !self.nodes[node].has_left || self.nodes[node].took_records_along {
                self.start(node);
            }
        }
        let until = self.now + CALM_WITHIN + self.work_left();
        loop {
            // Not everybody has heard at once of what was just undone.
            self.run_for(Duration::from_secs(1));
            if self.now >= until || self.is_at_rest() {
                break;
            }
        }
        self.judge();
    }

    /// How long all slots that there are would take for the open jobs, at the most. Where nodes leave and do not come back, a
    /// single one may be left with what many were given to do: that every job ends is promised, not that it ends sooner than
    /// there is room for it. The bound is of the work, so a job that is not worked at is still found.
    fn work_left(&self) -> Duration {
        let mut open = BTreeMap::new();
        for peer in self.up().into_iter().filter_map(|node| self.peer(node)) {
            let records = peer.records();
            let held = records.open().iter().filter_map(|job| records.get(*job));
            open.extend(held.map(|held| held.record()).map(|record| (record.id, all_attempts_take(record.spec()))));
        }
        let slots: u32 = self.up().into_iter().map(|node| self.nodes[node].slots).sum();
        open.values().sum::<Duration>() / slots.max(1)
    }

    fn is_at_rest(&self) -> bool {
        self.clients.waiting() == 0
            && self.clients.keys.values().all(|keyed| keyed.job.is_some() || keyed.misused)
            && self.up().iter().filter_map(|node| self.peer(*node)).all(|peer| peer.records().open().is_empty())
            && self.up().iter().filter_map(|node| self.peer(*node)).all(Peer::has_passed_all_on)
            && self.up().iter().all(|node| self.sees_all(*node) && self.is_converged(*node) && self.is_on_disk(*node))
            && !self.up().iter().any(|node| self.is_leaving(*node))
    }

    /// One that was asked to just before the calm still leaves.
    fn is_leaving(&self, node: usize) -> bool {
        self.process(node).is_some_and(|process| process.leave_until.is_some())
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
            self.judge_saved_work(&record);
            self.judge_results(&record);
            self.judge_reports(&record);
        }
        for (job, tracked) in self.clients.jobs.clone() {
            if !jobs.contains(&job) && self.may_have_expired(job) {
                continue;
            }
            if !jobs.contains(&job) {
                self.find("acknowledged jobs are known", format!("nobody knows {}", short(job.0)));
                continue;
            }
            let record = self.merged(job).expect("somebody holds it");
            if let Some(told) = tracked.told.filter(|told| *told != record.state()) {
                self.final_state_left(job, told, record.state());
            }
            if tracked.cancelled && record.stop.is_none() {
                // Who knew of it had left, or was forgotten, or nobody there had ever heard of them.
                if record.is_final() && self.given_up_for_a_seal.contains(&job) {
                    self.except(format!("a cancel that a seal passed over: {}", short(job.0)));
                } else {
                    self.find("an acknowledged cancel stays", short(job.0));
                }
            }
        }
        self.judge_expiry();
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
                let not_ready = snapshot.not_ready;
                faults.push(format!("n{node} is not converged: behind {behind:?}, strays {strays}, {not_ready:?}"));
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
        let mut copies: BTreeMap<JobId, BTreeMap<usize, Arc<Record>>> = BTreeMap::new();
        let mut faults = Vec::new();
        for node in &up {
            let peer = self.peer(*node).expect("it is up");
            let disk = &self.nodes[*node].disk.records;
            for (job, held) in peer.records().iter() {
                let record = held.record();
                if disk.get(&job) != Some(&record) {
                    faults.push(("what is known is on disk", format!("n{node} has another {} there", short(job.0))));
                }
                if held.version != record.version() {
                    faults.push(("versions are right", format!("n{node}, {}", short(job.0))));
                }
                copies.entry(job).or_default().insert(*node, record);
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
            let text = format!("{name} is {}: {attempts:?}", record.state().as_str());
            // More than half of those that somebody remembers are gone for good, and nobody has said so.
            let must_wait =
                |node: &usize| self.peer(*node).is_some_and(|peer| must_pause(record, peer.membership().view()));
            if self.up().iter().all(must_wait) {
                self.except(format!("it waits for a majority: {text}"));
            } else {
                self.find("every job ends", text);
            }
        }
        for (dot, attempt) in &record.attempts {
            let seen = &attempt.claim.seen;
            let knew = |write: &Dot| seen.get(&write.actor) >= write.counter;
            if record.stop.as_ref().is_some_and(|stop| knew(&stop.dot)) {
                let text = format!("{name}, claim {dot}");
                // Its owner had let go of the first of the two, with the stop, and knew nothing of it.
                if self.ledger.submitted_anew.contains(&record.id) {
                    self.except(format!("a claim of what was submitted anew, and stopped before: {text}"));
                } else {
                    self.find("nothing is claimed by a node that knows of the stop", text);
                }
            }
            let ended: Vec<&Attempt> = record
                .attempts
                .values()
                .map(|other| &**other)
                .filter(|other| !other.is_live() && knew(&other.fate.dot))
                .collect();
            let count = |phase| {
                let numbers = ended.iter().filter(|other| other.fate.phase == phase).map(|other| other.claim.number);
                numbers.collect::<BTreeSet<u32>>().len() as u32
            };
            let spec = record.spec();
            if count(Phase::Failed) > spec.retries
                || count(Phase::Lost) > spec.lost_limit
                || count(Phase::Succeeded) > 0
            {
                let text = format!("{name}, claim {dot}");
                if self.ledger.submitted_anew.contains(&record.id) {
                    self.except(format!("beyond the limits, by two submissions: {text}"));
                } else {
                    self.find("attempts stay within their limits", text);
                }
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
        // Whoever knows it died before any other was there to hear of it.
        let knows = |node: usize| self.nodes[node].disk.records.get(&job).is_some_and(|record| record.state() == told);
        let is_dead = |node: usize| self.process(node).is_none() && !self.nodes[node].has_left;
        let (dead, others): (Vec<usize>, Vec<usize>) = (0..self.nodes.len()).partition(|node| is_dead(*node));
        let only_the_dead_know = dead.into_iter().any(knows) && !others.into_iter().any(knows);
        if self.disturbances.doubt || executor_died || only_the_dead_know {
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
            let is_given_up = self.given_up_for_a_seal.contains(&job)
                && pair.iter().any(|claim| !record.attempts.contains_key(claim));
            if is_shown || is_given_up {
                self.except(format!("ran twice at once: {text}"));
            } else {
                self.find("every overlap is reported", text);
            }
        }
    }
}

// What is watched at the moment at which it happens.
impl World {
    /// Two pods of one job run at once: something must have happened that can make a live node look dead.
    pub fn check_overlap_has_a_cause(&mut self, job: JobId, one: usize, other: usize) {
        let last = self.fault_log.last().cloned();
        let is_recent = last.as_ref().is_some_and(|(at, _)| self.now - *at <= WAKE);
        if !is_recent && !self.is_disturbed() {
            let text = format!("{} on n{one} and n{other}; the last fault was {last:?}", short(job.0));
            self.find("outside faults nothing runs twice at once", text);
        }
    }

    /// A pod is about to start: where nothing is amiss, as many disks as the claim's owner wanted have the claim.
    pub fn check_claim_is_safe(&mut self, node: usize, job: JobId, claim: Dot) {
        let is_quiet = self.fault_log.is_empty() && self.faults.joins + self.faults.leaves + self.faults.drains == 0;
        let Some(owner) = self.place_of(claim.actor.node).and_then(|owner| self.peer(owner)).filter(|_| is_quiet)
        else {
            return;
        };
        let placement = owner.placement();
        let partition = placement.partition_of(job);
        let (home, acting) = (placement.home(partition).len(), placement.acting(partition).len());
        let wanted = (home / 2 + 1).min(acting);
        let has_claim =
            |node: &Node| node.disk.records.get(&job).is_some_and(|record| record.attempts.contains_key(&claim));
        let have = self.nodes.iter().filter(|node| has_claim(node)).count();
        if have < wanted && self.now > SETTLED_AFTER {
            let text = format!("n{node} starts {} by {claim}, which is on {have} of {wanted} disks", short(job.0));
            self.find("a pod starts when its claim is safe", text);
        }
    }

    /// A node that was paused long enough for others to take over decides for nothing before it has asked them, whoever it
    /// believed alive before. What nobody else acts for, as it sees the ring when it goes on, is its own to decide.
    pub fn check_resumed(&mut self, node: usize, paused_for: Duration) {
        let Some(peer) = self.peer(node).filter(|_| paused_for > NOTICED_PAUSE) else {
            return;
        };
        let (me, placement) = (self.nodes[node].id, peer.placement());
        let is_shared = |partition: &Partition| placement.acting(*partition).iter().any(|id| *id != me);
        let decides = placement.all().filter(|partition| is_shared(partition) && peer.decides_for(*partition)).count();
        if decides > 0 {
            let text = format!("n{node} was paused for {paused_for:?} and decides for {decides} partitions at once");
            self.find("whoever was paused asks before it decides", text);
        }
    }

    /// A node that said in time that it has handed over exits: others have everything it had, unless all others had left.
    pub fn check_handed_over(&mut self, node: usize) {
        let Some(process) = self.process(node).filter(|process| process.handed_over) else {
            return;
        };
        // Where all others that it knew of drained when it said goodbye, they had copies all the same, and it kept its own.
        let others_served = process.others_served && self.somebody_serves(node, Duration::ZERO);
        let has = |other: usize, job: &JobId| other != node && self.nodes[other].disk.records.contains_key(job);
        let is_safe = |job: &JobId| (0..self.nodes.len()).any(|other| has(other, job)) || self.may_have_expired(*job);
        let left_behind = self.nodes[node].disk.records.keys().filter(|job| !is_safe(job)).count();
        let kept = self.nodes[node].disk.records.len();
        if left_behind > 0 {
            self.find("leaving nodes hand over", format!("n{node} leaves and takes {left_behind} records along"));
        } else if kept > 0 && !self.disturbances.any && others_served {
            self.find("leaving nodes hand over", format!("n{node} leaves with {kept} records on its disk"));
        }
    }

    /// Whether `node` knows of another that takes jobs, and what others hand over.
    pub fn sees_somebody_serve(&self, node: usize) -> bool {
        let serves = |member: &Member| member.is_live() && member.facts.status == Status::Serving;
        let others = |peer: &Peer| {
            let me = peer.membership().me().node;
            peer.membership().view().values().any(|member| member.facts.node != me && serves(member))
        };
        self.peer(node).is_some_and(others)
    }

    /// Whether a node other than `node` is up and takes jobs, and has not drained for so long.
    pub fn somebody_serves(&self, node: usize, long: Duration) -> bool {
        let serves = |process: &Process| {
            let drained = process.drained_until.is_some_and(|until| self.now < until + long);
            !drained && process.peer.membership().me().status == Status::Serving
        };
        self.up().into_iter().any(|other| other != node && self.process(other).is_some_and(serves))
    }

    /// A sealed record goes to a disk: it is sealed there for the first time, or it is the same record.
    pub fn check_seal(&mut self, node: usize, record: &Arc<Record>) {
        self.judge_sealing(node, record);
        let Some(first) = self.seals.get(&record.id) else {
            self.seals.insert(record.id, Arc::clone(record));
            return;
        };
        if first.state() != record.state() && !self.sealed_again.contains(&record.id) {
            let text = format!("{} is sealed in two states", short(record.id.0));
            if self.is_seal_out_of_reach(node, record.id) {
                self.sealed_again.insert(record.id);
                self.except(text);
            } else {
                self.find("a final state is never left", text);
            }
        }
    }

    /// A sealed record leaves `node` for its disk, or for another node. The first time that it leaves its sealer, nobody may
    /// know anything that the seal lacks, since that would be lost for good, and no pod of the job may run. An older copy that
    /// says less than the seal does no harm: whenever the two meet, the seal stays. Machines that are off count as well, but
    /// for those that have left or were forgotten, as the sealer sees it: neither what they know counts, nor what others know
    /// that they told on their side of a partition, nor what they run.
    pub fn judge_sealing(&mut self, node: usize, record: &Arc<Record>) {
        let is_judged = |seal: &Seal| self.seals_judged.get(&record.id).is_some_and(|judged| judged.contains(seal));
        let Some(seal) = record.seal.filter(|seal| !is_judged(seal)) else {
            return;
        };
        let is_another = self.seals.get(&record.id).is_some_and(|first| first.seal != record.seal);
        if is_another || self.place_of(seal.dot.actor.node) != Some(node) {
            return;
        }
        let Some(peer) = self.peer(node) else {
            return;
        };
        let view = peer.membership().view();
        let counts = |at: &usize| view.get(&self.nodes[*at].id).is_some_and(|member| member.state != MemberState::Left);
        let (others, waived): (Vec<usize>, Vec<usize>) =
            (0..self.nodes.len()).filter(|at| *at != node).partition(counts);
        self.seals_judged.entry(record.id).or_default().push(seal);
        if self.disks_with(record.id).iter().any(|at| waived.contains(at)) {
            self.sealed_without.insert(record.id);
        }
        let copies_at = |at: usize| {
            let in_memory = self.peer(at).and_then(|peer| peer.records().get(record.id)).map(|held| held.record());
            in_memory.into_iter().chain(self.nodes[at].disk.records.get(&record.id).cloned())
        };
        let has_more = |at: &usize| copies_at(*at).any(|copy| lacks(record, &copy));
        let wiser_and_waived: Vec<usize> = waived.iter().copied().filter(has_more).collect();
        let mut known = Record { seal: None, ..Record::clone(record) };
        let of_this = |copy: &Arc<Record>| !copy.is_final() && copy.submission == record.submission;
        waived.iter().flat_map(|at| copies_at(*at)).filter(of_this).for_each(|copy| known.merge(&copy));
        let more_at = |at: &usize| copies_at(*at).find(|copy| lacks(&known, copy));
        let (same, another): (Vec<_>, Vec<_>) = others
            .into_iter()
            .filter_map(|at| more_at(&at).map(|copy| (at, copy)))
            .partition(|(_, copy)| copy.submission == record.submission);
        let wiser: Vec<usize> = same.into_iter().map(|(at, _)| at).collect();
        let is_under_way = |run: &Run| run.started.is_some() && run.ended.is_none() && !waived.contains(&run.node);
        let is_at_work = self.ledger.runs_of(record.id).any(is_under_way);
        let name = short(record.id.0);
        if !wiser_and_waived.is_empty() {
            self.given_up_for_a_seal.insert(record.id);
            self.except(format!(
                "n{node} seals {name}, of which {wiser_and_waived:?} knew more, and left or were forgotten"
            ));
        }
        if !wiser.is_empty() {
            self.find("a seal is asked for", format!("n{node} seals {name}, of which {wiser:?} know more"));
        }
        if !another.is_empty() {
            // The key was used again where nobody knew of the job.
            self.given_up_for_a_seal.insert(record.id);
            self.except(format!("n{node} seals {name}, which was submitted anew elsewhere"));
        } else if is_at_work {
            self.find("a seal is asked for", format!("n{node} seals {name}, of which a pod runs"));
        }
    }

    /// A pod is about to start: nobody has sealed its job. A key can be used again where nobody knows of the job, on the
    /// side of a partition that has no copy; it is written down anew there, and no seal that is elsewhere can be heeded.
    /// Such a record shows that by its submission, and gives way to the seal when the two meet.
    pub fn check_not_sealed(&mut self, node: usize, job: JobId, claim: Dot, submission: &Arc<Submission>) {
        let Some(sealed) = self.seals.get(&job) else {
            return;
        };
        let text = format!("n{node} starts {} by {claim}", short(job.0));
        if sealed.submission != *submission {
            self.given_up_for_a_seal.insert(job);
            self.saved_work.forget(job);
            self.except(format!("its seal is not known there: {text}"));
        } else if self.is_seal_out_of_reach(node, job) {
            self.given_up_for_a_seal.insert(job);
            self.except(format!("nobody is in reach who knows its seal: {text}"));
        } else {
            self.find("nothing starts after its seal", text);
        }
    }

    /// Whether the job was sealed without somebody who may come back with a copy, and all who know of the seal are off, or out
    /// of the node's reach.
    fn is_seal_out_of_reach(&self, node: usize, job: JobId) -> bool {
        let reaches = |peer: &Peer, at: usize| {
            // Whoever is just coming back has yet to say what it knows.
            let has_come = |member: &Member| !matches!(member.facts.status, Status::Joining | Status::Returning);
            // What was decided before it came into reach may yet begin.
            let is_new = |member: &Member| self.local_now(node).moment.since(member.since) < BEGUN_WITHIN;
            let member = peer.membership().view().get(&self.nodes[at].id);
            member.is_some_and(|member| member.is_live() && has_come(member) && !is_new(member))
        };
        let is_in_reach = |at: &usize| *at == node || self.peer(node).is_some_and(|peer| reaches(peer, *at));
        let seal = self.seals.get(&job).and_then(|sealed| sealed.seal);
        let knows = |peer: &Peer| peer.records().get(job).is_some_and(|held| held.record().seal == seal);
        let in_reach = self.up().into_iter().filter(is_in_reach).filter_map(|at| self.peer(at));
        self.sealed_without.contains(&job) && !in_reach.into_iter().any(knows)
    }

    /// Whether some clock has passed the hour that a seal of the job names.
    pub fn may_have_expired(&self, job: JobId) -> bool {
        let hour = (0..self.nodes.len()).map(|node| self.local_now(node).wall.hour()).max();
        let mut seals = self.seals_judged.get(&job).into_iter().flatten();
        seals.any(|seal| hour.is_some_and(|hour| seal.expires_hour < hour))
    }

    /// What has expired by every clock is nowhere.
    fn judge_expiry(&mut self) {
        let Some(hour) = (0..self.nodes.len()).map(|node| self.local_now(node).wall.hour()).min() else {
            return;
        };
        let is_past = |record: &Record| record.seal.is_some_and(|seal| seal.expires_hour < hour);
        let past: Vec<JobId> = self.seals.values().filter(|record| is_past(record)).map(|record| record.id).collect();
        for job in past {
            let holders: Vec<usize> = self
                .up()
                .into_iter()
                .filter(|node| self.peer(*node).is_some_and(|peer| peer.records().get(job).is_some()))
                .collect();
            if !holders.is_empty() {
                self.find("what has expired does not come back", format!("{} is held by {holders:?}", short(job.0)));
            }
        }
    }
}

/// Whether an unsealed copy says anything that the seal does not.
fn lacks(sealed: &Record, copy: &Record) -> bool {
    if copy.is_final() {
        return false;
    }
    let content = Record { seal: None, ..sealed.clone() };
    let mut both = content.clone();
    both.merge(copy);
    // Who knew what when is left out of every seal.
    both.clock.clone_from(&content.clock);
    both != content
}

impl World {
    /// Whether the node drains or leaves, or has done so.
    fn gives_copies_up(&self, node: usize) -> bool {
        let Some(process) = self.process(node) else {
            return self.nodes[node].has_left;
        };
        let drained = process.drained_until.is_some_and(|until| self.now < until + WRITTEN_WITHIN);
        drained || process.peer.membership().me().status == Status::Draining || process.leave_until.is_some()
    }

    /// A node that neither drains nor leaves lets go of a record that it need not keep: that is on as many other disks, whether
    /// their machines are off or on, as there should be copies, by the node's own ring.
    fn check_letting_go(&mut self, node: usize, job: JobId) {
        let Some(process) = self.process(node) else {
            return;
        };
        let goes = self.gives_copies_up(node);
        let placement = process.peer.placement();
        let wanted = placement.home(placement.partition_of(job)).len();
        let on: Vec<usize> = self.disks_with(job).into_iter().filter(|at| *at != node).collect();
        // Whoever left, or drained, has given its copy up, and not everybody need have heard of that.
        let acting = placement.acting(placement.partition_of(job));
        let gave_up =
            |at: &usize| !on.contains(at) && acting.contains(&self.nodes[*at].id) && self.gives_copies_up(*at);
        let given_up = (0..self.nodes.len()).filter(gave_up).count();
        if !goes && on.len() + given_up < wanted && !self.may_have_expired(job) {
            let text = format!("n{node} lets go of {}, which {on:?} have, of {wanted} who should", short(job.0));
            self.find("nobody lets go of what too few others have", text);
        }
    }

    /// What a node lets go of stays on its disk for long if that is full, and others may go meanwhile, or the node no longer
    /// drain.
    pub fn watch_what_lingers(&mut self, node: usize) {
        let may_linger = |peer: &&Peer| matches!(peer.membership().me().status, Status::ReadOnly | Status::Draining);
        let Some(peer) = self.peer(node).filter(may_linger) else {
            return;
        };
        let disk = &self.nodes[node].disk;
        let lingers = |job: &JobId| peer.records().get(*job).is_none() && !disk.lingering.contains(job);
        let lingering: Vec<JobId> = disk.records.keys().copied().filter(lingers).collect();
        for job in lingering {
            self.check_letting_go(node, job);
            self.nodes[node].disk.lingering.insert(job);
        }
    }

    /// Notes what `node` lets go of in the hands of as many as should have it, by its own ring, or by the ring that has
    /// become of it since: it may act for the job again already, with the record still on its way back, or somebody else may
    /// act for it who has just begun to. A stand-in is not given what was written before, as long as a majority of the home
    /// list acts.
    pub fn note_handovers(&mut self, node: usize, commit: &Commit) {
        for job in &commit.delete {
            let disk = &self.nodes[node].disk;
            if disk.records.contains_key(job) && !disk.lingering.contains(job) {
                self.check_letting_go(node, *job);
            }
            let Some(placement) = self.peer(node).map(Peer::placement) else { continue };
            let partition = placement.partition_of(*job);
            let (home, acting) = (placement.home(partition), placement.acting(partition));
            let at_home = acting.iter().filter(|id| home.contains(*id)).count();
            let has_stand_ins = at_home < home.len() && at_home > home.len() / 2;
            let keeps = |id: &NodeId| !has_stand_ins || home.contains(id);
            let others = acting.iter().filter(|id| **id != self.nodes[node].id && keeps(id)).count();
            let on: Vec<usize> = self.disks_with(*job).into_iter().filter(|at| *at != node).collect();
            if others > 0 && on.len() >= others {
                self.note(node, || format!("lets go of {}, which {on:?} have", short(job.0)));
                self.nodes[node].disk.handed_over.insert(*job);
            }
        }
    }

    /// The nodes that a receipt counts have the record on their disks. Those that have handed it over since need not:
    /// a receipt may be on its way for seconds, behind the others of its batch.
    pub fn check_receipt(&mut self, job: JobId, receipt: &Receipt) {
        let keeps = |id: &NodeId| {
            self.place_of(*id).map(|place| &self.nodes[place]).is_some_and(|node| {
                node.disk.records.contains_key(&job) || node.disk.handed_over.contains(&job) || node.has_left
            })
        };
        let is_true = receipt.replicas.iter().all(keeps) && !self.disks_with(job).is_empty();
        if receipt.stored as usize != receipt.replicas.len() || (!is_true && !self.may_have_expired(job)) {
            let on = self.disks_with(job);
            self.find("a receipt is true", format!("{} is on the disks of {on:?}, and {receipt:?}", short(job.0)));
        }
    }
}
