//! A peer: everything that one node decides, in one state machine without IO.
//!
//! Feed it what happened (`handle_*`: a message, a gossip, a pod's end, a client's question, a finished
//! commit, the time), then carry out what it wants (`poll_effect`, until there is nothing), and come back no
//! later than `poll_timeout`. Given the same inputs, times and seed it does the same again.
//!
//! It is the parent of the smaller machines: [`Membership`] (who is there), [`Placement`] (who looks after
//! what), [`Records`] (what is known), [`Replication`] and [`Comparison`] (making it equal elsewhere),
//! [`Scheduler`] and [`Room`] (where work fits), [`Gateway`] (clients). It drains their outputs and turns
//! them into each other's inputs; they do not know of one another.
//!
//! How a job comes along is decided in [`lifecycle`](super::lifecycle) and carried out in `reconcile`.
//! Ownership of partitions is in `ownership`, what peers and clients are answered in `serve`.

mod absence;
mod blobs;
mod dependents;
mod full_disk;
mod moving;
mod ownership;
mod reconcile;
mod repair;
mod sealing;
mod serve;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::model::blob::BlobRef;
use crate::model::config::Config;
use crate::model::id::{Actor, AttemptKey, Dot, Generation, JobId, NodeId, Partition};
use crate::model::member::{Facts, Load, Member, MemberState, Status};
use crate::model::packed::PackedRecord;
use crate::model::record::{Exit, Fate, Phase, Record, Version};
use crate::model::request::{Code, Event, EventKind, Refusal, SubmitOutcome};
use crate::model::ring::Placement;
use crate::model::spec::Driver;
use crate::model::time::{Moment, Now, Timestamp};
use crate::model::wire::{Message, Probe};

use self::absence::Absence;
use self::full_disk::{Due, FullDisk};
use super::blobs::Blobs;
use super::comparison::{Answer, Comparison};
use super::effect::{Effect, PodEnd, PodEvent};
use super::gateway::{Ask, AskId, Gateway, Routing, Told};
use super::lifecycle::PodState;
use super::membership::{CannotForget, Membership, MembershipOutput};
use super::outbox::{Outbox, Outgoing};
use super::records::Records;
use super::replication::Replication;
use super::room::Room;
use super::sabotage::{Bug, Sabotage};
use super::scheduler::Scheduler;
use super::snapshot::{Convergence, JobCounts, Snapshot};

use blobs::Pushed;
use moving::Move;
use ownership::Ownership;
use sealing::Sealing;
use serve::{Asker, Parked};

/// Events that are kept for those who ask a little late.
const EVENTS_KEPT: usize = 4_096;
/// By how much the processors' use must move before others are told.
const CPU_STEP_PERMILLE: u16 = 100;
/// By what part of itself the free memory must move.
const MEMORY_STEPS: u64 = 16;
/// Records in one answer to a fetch, at the most.
const FETCHED_RECORDS: usize = 256;

/// What a peer starts from.
#[derive(Debug)]
pub struct Start {
    /// Its settings.
    pub config: Config,
    /// What it says of itself at first; its status must be `Joining`.
    pub facts: Facts,
    /// Whether it was given anybody to join.
    pub has_seeds: bool,
    /// The records on its disk.
    pub records: Vec<PackedRecord>,
    /// The blobs on its disk.
    pub blobs: Vec<BlobRef>,
    /// The members it knew when it last ran.
    pub members: Vec<Facts>,
    /// For its dice.
    pub seed: u64,
}

/// One node's part of the protocol.
#[derive(Debug)]
pub struct Peer {
    config: Config,
    me: Actor,
    rng: StdRng,
    next_write: u64,
    started: Moment,
    has_seeds: bool,

    membership: Membership,
    placement: Arc<Placement>,
    /// The partitions whose acting list names this node.
    acting_for: Vec<Partition>,
    /// Those of them that are this node's to own.
    first_of: Vec<Partition>,
    placed_epoch: Option<u64>,
    placed_standings: Option<Vec<ownership::Standing>>,
    /// Whether a majority of the members was in reach when the members were last looked at.
    had_majority: Option<bool>,
    /// Where the next look at what is on its way for long begins.
    lingering_from: JobId,
    absence: Absence,
    records: Records,
    blobs: Blobs,
    outbox: Outbox,
    replication: Replication<Waiting>,
    comparison: Comparison,
    scheduler: Scheduler,
    room: Room,
    gateway: Gateway,

    ownership: Ownership,
    sealing: Sealing,
    /// What moves because the ring changed.
    moving: Option<Move>,
    next_comparison: Moment,
    pods: BTreeMap<Dot, Pod>,
    /// Claims of this node whose checkpoint is waited for, and until when.
    starting: BTreeMap<Dot, Starting>,
    /// Checkpoints that pods are to begin with which have not started yet.
    kept_for_start: BTreeMap<Dot, (JobId, BlobRef)>,
    /// Who pushed a record and waits until its blobs have come.
    pushed_by: BTreeMap<JobId, BTreeSet<NodeId>>,
    confirming: BTreeMap<JobId, Confirming>,
    dirty: BTreeSet<JobId>,
    must_schedule: bool,

    submits: BTreeMap<u64, PendingSubmit>,
    next_submit: u64,
    watchers: BTreeMap<JobId, Vec<Parked<Option<Version>>>>,
    event_readers: Vec<Parked<u64>>,
    parked_until: BTreeSet<(Moment, u64)>,
    next_parked: u64,
    events: VecDeque<Event>,
    next_event: u64,

    published: Option<(Moment, Facts)>,
    gossip_urgently: bool,
    full_disk: FullDisk,
    /// What this node was doing when its disk was found full, and does again when there is room.
    before_full_disk: Status,
    leaving: bool,
    /// The members that were last saved for the next start: who, in which start, where, doing what.
    remembered: Vec<(NodeId, Generation, SocketAddr, Status)>,
    settled_since: Option<Now>,
    unsettled_since: Now,
    last_trouble: Moment,
    counters: Counters,
    sabotage: Sabotage,
}

/// Why copies are waited for.
#[derive(Debug)]
enum Waiting {
    /// One job of a submit: which submit, and its place in it.
    Submit(u64, usize),
    /// A claim that may start once it is safe.
    Claim(Dot),
    /// A pod's report, which is answered by this number.
    Pod(u64),
}

/// A pod of this node.
#[derive(Debug)]
struct Pod {
    job: JobId,
    state: PodState,
    /// Why it was told to end; nothing while it was not.
    ended_because: &'static str,
    /// The chain of the checkpoint it began with.
    resumed: Option<u32>,
    /// The number of the attempt whose checkpoint it should have begun with, and could not.
    began_without: Option<u32>,
}

/// A claim of this node that may start, but for its checkpoint.
#[derive(Debug)]
struct Starting {
    job: JobId,
    until: Moment,
}

/// A claim on its way to its executor's start.
#[derive(Debug)]
struct Confirming {
    claim: Dot,
    /// Nothing while copies are waited for; else when the executor is told again, should it still be needed.
    tell_again_at: Option<Moment>,
}

/// A submit whose copies are waited for.
#[derive(Debug)]
struct PendingSubmit {
    asker: Asker,
    outcomes: Vec<Option<SubmitOutcome>>,
    existed: Vec<bool>,
}

/// What has been counted since the start.
#[derive(Debug, Default)]
struct Counters {
    submitted: u64,
    claimed: u64,
    started: u64,
    lost: u64,
    merged: u64,
    rejected_records: u64,
    takeovers: u64,
    comparisons: u64,
    differing_partitions: u64,
    strays_handed_over: u64,
    sealed: u64,
    expired: u64,
    late_reports: u64,
    overlaps_told: u64,
    repaired_by_reading: u64,
}

impl Peer {
    /// A peer that has just started, with what its disk had.
    pub fn new(now: Now, start: Start) -> Self {
        let Start { config, mut facts, has_seeds, records: stored, blobs: stored_blobs, members, seed } = start;
        if !stored.is_empty() && facts.status == Status::Joining {
            facts.status = Status::Returning;
        }
        let moment = now.moment;
        let me = Actor { node: facts.node, generation: facts.generation };
        let mut rng = StdRng::seed_from_u64(seed);
        let timing = &config.timing;
        // Best effort: the only clock that ran on while this process did not is the wall's.
        let known_since = |submitted_at| moment - now.wall.since(submitted_at);
        let mut records = Records::load(config.cluster.partitions, stored, known_since);
        // What has ended is looked at only if somebody has yet to say how; what is open will be when the ring is known.
        let in_doubt = records.iter().filter(|(_, held)| held.summary.has_open_fates());
        let dirty = in_doubt.map(|(job, _)| job).collect();
        let mut blobs = Blobs::new();
        let mut outbox = Outbox::default();
        let naming = || records.iter().filter(|(_, held)| held.summary.names_blobs());
        let named = naming().flat_map(|(job, held)| held.record().blobs().into_iter().map(move |blob| (job, blob)));
        for unnamed in blobs.load(&stored_blobs, named) {
            outbox.save_blob(unnamed);
        }
        let lacking: Vec<JobId> = if blobs.lacking() == 0 {
            Vec::new()
        } else {
            let lacks_any = |record: &Record| record.blobs().iter().any(|blob| blobs.lacks(blob.id));
            naming().filter(|(_, held)| lacks_any(&held.record())).map(|(job, _)| job).collect()
        };
        for job in lacking {
            records.set_lacking(job, true);
        }
        let membership = Membership::new(now, &config, facts, members, rng.next_u64());
        let placement = Placement::new(membership.view(), config.cluster.partitions, config.cluster.replicas);
        Self {
            me,
            next_write: 1,
            started: moment,
            has_seeds,
            placement: Arc::new(placement),
            acting_for: Vec::new(),
            first_of: Vec::new(),
            placed_epoch: None,
            placed_standings: None,
            had_majority: None,
            lingering_from: JobId(0),
            absence: Absence::default(),
            outbox,
            blobs,
            replication: Replication::new(timing.resend_after),
            comparison: Comparison::new(timing.resend_after * 4),
            scheduler: Scheduler::default(),
            room: Room::new(config.capacity),
            gateway: Gateway::new(timing.resend_after, timing.acknowledge_within),
            ownership: Ownership::default(),
            sealing: Sealing::default(),
            moving: None,
            next_comparison: moment + timing.compare_interval,
            pods: BTreeMap::new(),
            starting: BTreeMap::new(),
            kept_for_start: BTreeMap::new(),
            pushed_by: BTreeMap::new(),
            confirming: BTreeMap::new(),
            must_schedule: false,
            submits: BTreeMap::new(),
            next_submit: 1,
            watchers: BTreeMap::new(),
            event_readers: Vec::new(),
            parked_until: BTreeSet::new(),
            next_parked: 1,
            events: VecDeque::new(),
            next_event: 1,
            published: None,
            gossip_urgently: true,
            full_disk: FullDisk::default(),
            before_full_disk: Status::Serving,
            leaving: false,
            remembered: Vec::new(),
            settled_since: None,
            unsettled_since: now,
            last_trouble: moment,
            counters: Counters::default(),
            sabotage: Sabotage::default(),
            config,
            rng,
            membership,
            records,
            dirty,
        }
    }

    /// Breaks a rule from now on.
    #[cfg(feature = "sabotage")]
    pub fn plant(&mut self, sabotage: Sabotage) {
        self.sabotage = sabotage;
        self.gateway.plant(sabotage);
    }

    /// Gossip brought newer facts of other nodes.
    pub fn handle_facts(&mut self, now: Now, facts: Vec<Facts>) {
        self.membership.handle_facts(now, facts);
    }

    /// A failure detector's packet came.
    pub fn handle_probe(&mut self, now: Now, from: SocketAddr, probe: Probe, by_link: bool) {
        self.membership.handle_probe(now, from, probe, by_link);
    }

    /// The machine of `node` refused a connection: nothing listens there.
    pub fn handle_refused(&mut self, now: Now, node: NodeId) {
        self.membership.handle_refused(now, node);
    }

    /// A connection with `node` was opened.
    pub fn handle_link_up(&mut self, now: Now, node: NodeId) {
        self.membership.handle_link_up(now, node);
    }

    /// The last connection with `node` was lost, or none came about.
    pub fn handle_link_down(&mut self, now: Now, node: NodeId) {
        self.membership.handle_link_down(now, node);
    }

    /// How busy the machine is.
    pub fn handle_machine_load(&mut self, cpu_permille: u16, memory_available_bytes: u64) {
        self.membership.update_own(|facts| {
            // Every change is told to everybody, so small ones are kept to oneself.
            if facts.load.cpu_permille.abs_diff(cpu_permille) >= CPU_STEP_PERMILLE {
                facts.load.cpu_permille = cpu_permille;
            }
            let known = facts.load.memory_available_bytes;
            if known.abs_diff(memory_available_bytes) >= known / MEMORY_STEPS {
                facts.load.memory_available_bytes = memory_available_bytes;
            }
        });
    }

    /// Whether this node can run what needs `driver`, from now on.
    pub fn handle_driver(&mut self, driver: Driver, is_there: bool) {
        if self.membership.me().drivers.contains(&driver) == is_there {
            return;
        }
        self.membership.update_own(|facts| {
            if is_there {
                facts.drivers.insert(driver);
            } else {
                facts.drivers.remove(&driver);
            }
        });
        // What waits here may have waited for that. What waits elsewhere comes when this node asks for work.
        self.must_schedule = true;
    }

    /// A client of this node asks. Answered by an [`Effect::Reply`], always.
    pub fn handle_ask(&mut self, now: Now, ask: AskId, what: Ask) {
        let routing = Routing { me: self.me.node, view: self.membership.view(), placement: &self.placement };
        self.gateway.handle_ask(now, ask, what, routing, &mut self.rng);
    }

    /// Whether anybody listens to the cluster's events at this node.
    pub fn set_listening(&mut self, now: Now, on: bool) {
        let routing = Routing { me: self.me.node, view: self.membership.view(), placement: &self.placement };
        self.gateway.listen(now.moment, on, routing);
    }

    /// A peer's message came.
    pub fn handle_message(&mut self, now: Now, from: NodeId, message: Message) {
        self.membership.handle_heard(now, from);
        if self.status() == Status::Left {
            // What came now would go down with this node, and whoever sent it would count on it.
            return;
        }
        match message {
            Message::Push { seq, records, blobs, lacking } => {
                self.handle_push(now, from, Pushed { seq, records, blobs, lacking: lacking.into_iter().collect() });
            }
            Message::PushAgain { jobs } => self.push_again(from, &jobs),
            Message::Stored { seq, versions } => {
                for job in self.replication.handle_stored(now.moment, from, seq, &versions) {
                    self.check_copies(now, job);
                }
            }
            Message::Remember { memories } => {
                if self.membership.view().get(&from).is_some_and(Member::is_live) {
                    self.membership.handle_memories(now, memories);
                }
            }
            Message::Compare { round, takeover, horizon, digests } => {
                self.handle_compare(now, from, round, takeover, horizon, &digests);
            }
            Message::Differ { round, horizon, partitions, unsaved } => {
                let answer = Answer { round, horizon, partitions, unsaved };
                // A node that only holds strays hands them over; if it fetched what is newer, it would never be done.
                let (me, placement, records, absence) = (self.me, &self.placement, &self.records, &self.absence);
                let wants = |job: JobId| {
                    let (partition, held) = (records.partition_of(job), records.get(job));
                    let acts = placement.acting(partition).contains(&me.node);
                    acts && (held.is_some() || !absence.stands_in(placement, me.node, partition))
                        || held.is_some_and(|held| held.live_executors().contains(&me))
                };
                let (difference, step) = self.comparison.handle_differ(now.moment, from, answer, records, wants);
                self.learn_difference(now, from, &difference);
                self.step_comparison(now, from, step);
            }
            Message::Fetch { round, jobs } => self.handle_fetch(from, round, &jobs),
            Message::Fetched { round, records, last } => {
                for record in records {
                    self.absorb(now, from, record);
                }
                let step = self.comparison.handle_fetched(now.moment, from, round, last);
                self.step_comparison(now, from, step);
            }
            Message::Check { round, versions } => self.handle_check(from, round, &versions),
            Message::Checked { round, same } => self.handle_checked(now, from, round, &same),
            Message::Offer { job, need } => {
                let has_room = self.room.promise(now.moment, job, need) || self.sabotage.has(Bug::ClaimWithoutRoom);
                let accepted = self.status() == Status::Serving && has_room;
                let load = self.load();
                self.send(from, Message::OfferAnswer { job, accepted, load });
            }
            Message::OfferAnswer { job, accepted, load } => self.handle_offer_answer(now, from, job, accepted, load),
            Message::Withdraw { job } => {
                self.room.withdraw(job);
                self.must_schedule = true;
            }
            Message::Start { record, claim } => {
                let job = record.id;
                if self.absorb(now, from, record).is_some() {
                    self.start_pod(now, job, claim);
                }
            }
            Message::Idle { free } => self.handle_idle(now, from, free),
            Message::Request { call, request } => self.serve(now, Asker::Peer { node: from, call }, request),
            Message::Response { call, response } => {
                self.repair_own_copy(now, from, &response);
                let routing = Routing { me: self.me.node, view: self.membership.view(), placement: &self.placement };
                self.gateway.handle_response(now.moment, from, call, response, routing);
            }
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

    /// Commit `number` is on disk.
    pub fn handle_committed(&mut self, now: Now, number: u64) {
        let durable = self.outbox.handle_committed(number);
        for found in self.blobs.handle_stored(&durable.blobs) {
            self.look_again(now, found);
        }
        for (job, revision) in durable.records {
            self.replication.handle_stored_here(job, revision);
            self.check_copies(now, job);
        }
        if self.status() == Status::ReadOnly {
            self.full_disk.handle_success(now.moment);
        }
    }

    /// Commit `number` failed for want of space; the disk is as it was.
    pub fn handle_commit_failed(&mut self, now: Now, number: u64) {
        self.outbox.handle_commit_failed(number);
        self.full_disk.handle_failure(now.moment);
        if self.status() != Status::ReadOnly {
            self.before_full_disk = self.status();
            self.membership.set_status(now, Status::ReadOnly);
        }
    }

    /// Takes nothing new (`true`), or serves again.
    pub fn drain(&mut self, now: Now, on: bool) {
        if self.leaving {
            return;
        }
        match (on, self.status()) {
            (true, Status::Serving) => self.membership.set_status(now, Status::Draining),
            (false, Status::Draining) => self.membership.set_status(now, Status::Serving),
            (_, Status::ReadOnly) => self.before_full_disk = full_disk::drained(self.before_full_disk, on),
            (_, Status::Joining | Status::Returning | Status::Serving | Status::Draining | Status::Left) => {}
        }
    }

    /// Forgets a member that is down, or has left, before its time: somebody knows that it will not come back.
    ///
    /// # Errors
    /// It lives, or nobody knows it.
    pub fn forget(&mut self, now: Now, node: NodeId) -> Result<(), Refusal> {
        self.membership.dismiss(now, node).map_err(|cannot| {
            let (code, hint) = match &cannot {
                CannotForget::Unknown(_) => (Code::NotFound, "`flockwork nodes` lists the members".to_owned()),
                CannotForget::Lives { name, state: MemberState::Suspect } => {
                    (Code::Conflict, format!("wait until the others know whether {name} is down; it takes seconds"))
                }
                CannotForget::Lives { name, .. } => {
                    let hint = format!("only a node that is down is forgotten: `flockwork drain {name}`, then stop it");
                    (Code::Conflict, hint)
                }
            };
            Refusal::new(code, cannot.to_string()).with_hint(hint)
        })?;
        // Whoever asked looks at other nodes next.
        self.gossip_urgently = true;
        Ok(())
    }

    /// Begins to leave: ends the pods, which go on elsewhere, and hands over what others should have.
    /// [`has_handed_over`](Self::has_handed_over) says when that is done.
    pub fn leave(&mut self, now: Now) {
        self.leaving = true;
        self.membership.set_status(now, Status::Draining);
        for (claim, pod) in &mut self.pods {
            pod.state = PodState::Ending;
            pod.ended_because = "its node was shut down";
            self.outbox.send(Effect::StopPod(AttemptKey { job: pod.job, claim: *claim }));
        }
    }

    /// Whether nothing is left here that others should have: no pod, no stray, nothing unsent or unsaved.
    pub fn has_handed_over(&self) -> bool {
        if self.sabotage.has(Bug::LeaveWithoutHandover) {
            return self.pods.is_empty();
        }
        // Whoever has not heard yet that this node leaves does not keep what it is given for it, and so does not
        // acknowledge it: what is handed over was heard of.
        self.pods.is_empty() && self.strays().next().is_none() && self.outbox.is_settled() && self.nothing_spreads()
    }

    /// Says goodbye: the last thing a leaving node gossips.
    pub fn say_goodbye(&mut self, now: Now) {
        self.membership.set_status(now, Status::Left);
        self.gossip_urgently = true;
    }

    /// The next effect to carry out, or nothing.
    pub fn poll_effect(&mut self, now: Now) -> Option<Effect> {
        loop {
            match self.outbox.poll() {
                Some(Outgoing::Effect(effect)) => return Some(effect),
                Some(Outgoing::Answer { call, response }) => {
                    let me = self.me.node;
                    let routing = Routing { me, view: self.membership.view(), placement: &self.placement };
                    self.gateway.handle_response(now.moment, me, call, response, routing);
                    continue;
                }
                None => {}
            }
            if !self.settle(now) {
                return self.outbox.poll_commit(&self.records, &self.blobs).map(Effect::Commit);
            }
        }
    }

    /// When to call [`handle_timeout`](Self::handle_timeout) at the latest.
    pub fn poll_timeout(&self) -> Option<Moment> {
        let gossip = self.published.as_ref().map(|(at, _)| *at + self.config.timing.gossip_interval);
        [
            self.membership.poll_timeout(),
            self.replication.poll_timeout(),
            self.comparison.poll_timeout(),
            self.scheduler.poll_timeout(),
            self.room.poll_timeout(),
            self.gateway.poll_timeout(),
            self.ownership.poll_timeout(),
            self.absence.poll_timeout(),
            self.records.next_waking(),
            self.parked_until.first().map(|(at, _)| *at),
            self.blobs.poll_timeout(),
            self.starting.values().map(|starting| starting.until).min(),
            self.full_disk.poll_timeout(),
            Some(self.next_comparison),
            gossip,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Now) {
        let moment = now.moment;
        self.membership.handle_timeout(now);
        for job in self.replication.handle_timeout(moment) {
            self.check_copies(now, job);
        }
        self.comparison.handle_timeout(moment);
        for (job, node) in self.scheduler.handle_timeout(moment) {
            self.send(node, Message::Withdraw { job });
            self.dirty.insert(job);
        }
        self.must_schedule |= self.room.handle_timeout(moment);
        let routing = Routing { me: self.me.node, view: self.membership.view(), placement: &self.placement };
        self.gateway.handle_timeout(moment, routing);
        for partition in self.ownership.handle_timeout(moment) {
            self.begin_takeover(moment, partition, None);
        }
        if self.absence.poll_timeout().is_some_and(|until| until <= moment) {
            self.give_up_the_absent(moment);
        }
        while let Some(job) = self.records.wake_next(moment) {
            self.dirty.insert(job);
        }
        self.answer_parked_until(now);
        self.blobs.handle_timeout(moment);
        self.start_without_checkpoints(now);
        match self.full_disk.handle_timeout(moment) {
            Some(Due::Retry) => self.outbox.resume(),
            Some(Due::Recovery) => {
                let status = if self.leaving { Status::Draining } else { self.before_full_disk };
                self.membership.set_status(now, status);
            }
            None => {}
        }
        if self.next_comparison <= moment {
            self.next_comparison = moment + self.jittered(self.config.timing.compare_interval);
            self.compare_with_somebody();
            self.push_what_lingers(moment);
            self.seal_what_can_be(now);
            self.let_expired_go(now);
            self.records.clear_desk();
        }
    }

    /// Turns the children's outputs into each other's inputs. Returns whether anything came of it.
    fn settle(&mut self, now: Now) -> bool {
        let mut progress = self.drain_membership(now);
        progress |= self.refresh_placement(now);
        while let Some((node, call, request)) = self.gateway.poll_question() {
            progress = true;
            if node == self.me.node {
                self.serve(now, Asker::Gateway { call }, request);
            } else {
                self.send(node, Message::Request { call, request });
            }
        }
        while let Some(job) = self.dirty.pop_first() {
            progress = true;
            self.reconcile(now, job);
        }
        if std::mem::take(&mut self.must_schedule) {
            progress |= self.schedule(now);
        }
        while let Some((to, message)) = self.replication.poll_push(now.moment, &self.records, &mut self.blobs) {
            progress = true;
            self.send(to, message);
        }
        progress |= self.fetch_blobs(now);
        while let Some((to, message)) = self.comparison.poll_message(now.moment, now.wall.hour(), &self.records) {
            progress = true;
            self.send(to, message);
        }
        while let Some(reply) = self.gateway.poll_reply() {
            progress = true;
            if let Ok(Told::Copies(copies)) = &reply.result {
                self.repair_copies(now, copies);
            }
            self.outbox.send(Effect::Reply(reply));
        }
        while let Some((node, event)) = self.gateway.poll_heard() {
            progress = true;
            self.outbox.send(Effect::Tell { node, event });
        }
        progress | self.gossip(now)
    }

    fn drain_membership(&mut self, now: Now) -> bool {
        let mut progress = false;
        while let Some(output) = self.membership.poll_output() {
            progress = true;
            match output {
                MembershipOutput::Probe { to, addr, probe, by_link } => {
                    self.outbox.send(Effect::Probe { to, addr, probe, by_link });
                }
                MembershipOutput::OwnFactsChanged { urgent } => self.gossip_urgently |= urgent,
                MembershipOutput::MemberChanged { node, was, reason } => {
                    if let Some(member) = self.membership.view().get(&node) {
                        let kind = EventKind::Member {
                            node,
                            name: member.facts.name.clone(),
                            state: member.state,
                            status: member.facts.status,
                            was,
                            reason,
                        };
                        if !member.is_live() {
                            self.handle_gone(node);
                        } else if was.is_none_or(|was| matches!(was, MemberState::Down | MemberState::Left)) {
                            self.blobs.handle_back(node);
                        }
                        self.tell(now, kind);
                    }
                    self.remember_members();
                }
                MembershipOutput::TellOfTheGone { to, memories } => self.send(to, Message::Remember { memories }),
                MembershipOutput::Call { addr } => self.outbox.send(Effect::Call { addr }),
                MembershipOutput::Forgotten { node, name } => {
                    self.handle_gone(node);
                    self.tell(now, EventKind::Forgotten { node, name });
                    self.remember_members();
                }
                MembershipOutput::LateTick { by } => {
                    // Nobody is taken for dead, and followed in what it decides, before it has been silent for a whole
                    // grace period; a busy machine is often late by less.
                    if by < self.config.timing.suspicion_min / 2 || self.sabotage.has(Bug::TrustViewAfterPause) {
                        continue;
                    }
                    // This process was paused: others may have decided in its place meanwhile.
                    self.ownership.clear();
                    self.comparison.start_over();
                    (self.placed_epoch, self.placed_standings, self.had_majority) = (None, None, None);
                }
            }
        }
        progress
    }

    /// Saves whom to look for after a restart, if that has changed. Verdicts do not matter then: everybody is asked. But
    /// whether one that is down by then has its places on the ring depends on what it last said that it does.
    fn remember_members(&mut self) {
        let members = self.membership.remembered();
        let where_they_are: Vec<_> =
            members.iter().map(|facts| (facts.node, facts.generation, facts.cluster_addr, facts.status)).collect();
        if self.remembered != where_they_are {
            self.remembered = where_they_are;
            self.outbox.save_members(members);
        }
    }

    fn handle_gone(&mut self, node: NodeId) {
        self.replication.handle_gone(node);
        self.comparison.handle_gone(node);
        self.dirty.extend(self.scheduler.handle_gone(node));
    }

    /// Gossips this node's facts when they changed and it is time, or at once if that is called for.
    fn gossip(&mut self, now: Now) -> bool {
        let due =
            self.published.as_ref().is_none_or(|(at, _)| now.moment.since(*at) >= self.config.timing.gossip_interval);
        if !due && !self.gossip_urgently {
            return false;
        }
        let (load, held, ring) = (self.load(), self.records.partitions_held().clone(), self.placement.fingerprint());
        let (departed, dismissed) = (self.membership.departed(), self.membership.dismissed());
        self.membership.update_own(|facts| {
            facts.departed = departed;
            facts.dismissed = dismissed;
            facts.load = load;
            facts.held = held;
            facts.ring = ring;
        });
        let facts = self.membership.me().clone();
        let changed = self.published.as_ref().is_none_or(|(_, published)| *published != facts);
        let urgent = std::mem::take(&mut self.gossip_urgently);
        if due {
            self.ask_for_work(now);
            self.try_to_join(now);
            let behind = self.behind(now.moment);
            self.watch_convergence(now, &behind);
            self.watch_move(&behind);
        }
        self.published = Some((now.moment, facts.clone()));
        if changed {
            self.outbox.send(Effect::Gossip { facts: Box::new(facts), urgent });
        }
        // A join, or a request for work, is something to go on with.
        changed || due
    }

    /// What this node says of its load.
    fn load(&self) -> Load {
        Load {
            used: self.room.used(),
            backlog: u32::try_from(self.scheduler.backlog()).unwrap_or(u32::MAX),
            ..self.membership.me().load
        }
    }

    fn status(&self) -> Status {
        self.membership.me().status
    }

    /// The name of the next write of this node. Never given twice, not even to another job's record.
    fn next_dot(&mut self) -> Dot {
        let dot = Dot { actor: self.me, counter: self.next_write };
        self.next_write += 1;
        dot
    }

    fn send(&mut self, to: NodeId, message: Message) {
        self.outbox.send(Effect::Send { to, message });
    }

    fn jittered(&mut self, interval: Duration) -> Duration {
        let share = f64::from(self.rng.next_u32()) / f64::from(u32::MAX);
        interval.mul_f64(0.75 + share / 2.0)
    }

    /// Tells an event to whoever asks this node for its events, once what it speaks of is stored.
    fn tell(&mut self, now: Now, kind: EventKind) {
        let event = Event { seq: self.next_event, at: now.wall, kind };
        self.next_event += 1;
        if self.events.len() == EVENTS_KEPT {
            self.events.pop_front();
        }
        let note = Effect::Note(event.clone());
        match event.kind {
            // What is thought of a member promises nothing that a disk could keep.
            EventKind::Member { .. } | EventKind::Forgotten { .. } | EventKind::Rejected { .. } => {
                self.outbox.send(note);
            }
            EventKind::Job { .. } | EventKind::Overlap { .. } => self.outbox.send_when_stored(note),
        }
        self.events.push_back(event);
        self.answer_event_readers(now);
    }

    /// What this node knows at this moment.
    pub fn snapshot(&self, now: Now) -> Snapshot {
        let owned = self.first_of.iter().filter(|partition| self.ownership.is_caught_up(**partition));
        let jobs = JobCounts {
            held: self.records.len() as u64,
            open: self.records.open().len() as u64,
            owned: owned.map(|partition| u64::from(self.records.open_in(*partition))).sum(),
            waiting: self.scheduler.backlog() as u64,
            pods: self.pods.len() as u64,
        };
        let not_ready = self.membership.conflict().or_else(|| match self.status() {
            Status::Joining | Status::Returning => Some("looking for the other nodes of the cluster".to_owned()),
            Status::ReadOnly => Some("the disk is full: nothing can be written".to_owned()),
            Status::Left => Some("leaving the cluster".to_owned()),
            Status::Serving | Status::Draining => None,
        });
        let counters = &self.counters;
        let mut counted = vec![
            ("jobs_submitted_total", counters.submitted),
            ("attempts_claimed_total", counters.claimed),
            ("pods_started_total", counters.started),
            ("attempts_lost_total", counters.lost),
            ("records_merged_total", counters.merged),
            ("records_rejected_total", counters.rejected_records),
            ("takeovers_total", counters.takeovers),
            ("comparisons_total", counters.comparisons),
            ("comparisons_differing_partitions_total", counters.differing_partitions),
            ("strays_handed_over_total", counters.strays_handed_over),
            ("records_sealed_total", counters.sealed),
            ("records_expired_total", counters.expired),
            ("late_reports_total", counters.late_reports),
            ("overlaps_told_total", counters.overlaps_told),
            ("records_repaired_by_reading_total", counters.repaired_by_reading),
        ];
        counted.extend(self.membership.counters());
        Snapshot {
            now,
            node: self.me.node,
            generation: self.me.generation,
            facts: self.membership.me().clone(),
            not_ready,
            complaints: self.membership.complaints(),
            local_health: self.membership.local_health(),
            view: self.membership.view().clone(),
            placement: Arc::clone(&self.placement),
            convergence: self.convergence(now),
            jobs,
            counters: counted,
            clock_skews_ms: Vec::new(),
        }
    }

    /// The records this node holds; for the simulator's checkers.
    pub fn records(&self) -> &Records {
        &self.records
    }

    /// The membership; for the debug pages and the simulator's checkers.
    pub fn membership(&self) -> &Membership {
        &self.membership
    }

    /// The ring as this node computes it.
    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    /// Whether this node decides for `partition` now.
    pub fn decides_for(&self, partition: Partition) -> bool {
        self.ownership.is_caught_up(partition)
    }

    /// How the node stands: see [`Convergence`].
    fn convergence(&self, now: Now) -> Convergence {
        let fingerprints: Vec<_> = self
            .membership
            .view()
            .values()
            .filter(|member| member.is_live())
            .map(|member| (member.facts.node, member.facts.ring))
            .collect();
        let acting = self.acting_for.len() as u32;
        let behind = self.behind(now.moment);
        let since = self.settled_since.unwrap_or(self.unsettled_since);
        Convergence {
            converged: self.settled_since.is_some(),
            since: since.wall,
            since_moment: since.moment,
            fingerprints,
            acting,
            in_sync: acting - behind.len() as u32,
            behind: behind.into_iter().collect(),
            strays: self.stray_count() as u32,
            moving: self.moving(),
        }
    }
}

/// How a pod of this node ended.
#[derive(Debug)]
struct Ending {
    at: Timestamp,
    end: PodEnd,
    /// Why it was told to end, if it was.
    because: &'static str,
}

/// What becomes of an attempt whose pod ended, by its executor's own word. One that was told to end without the
/// job being over goes back: it counts against nothing.
fn fate_of(record: &Record, claim: Dot, dot: Dot, ending: Ending, remark: String) -> Fate {
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
        PodEnd::CouldNotStart { code, reason } => (Phase::Failed, Some(Exit::Code(code)), reason),
        PodEnd::Unable { reason } => (Phase::Returned, None, reason),
    };
    Fate { phase, by_executor: true, dot, at, exit, reason }
}
