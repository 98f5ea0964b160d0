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
//! How a job comes along is decided in [`lifecycle`](super::lifecycle) and carried out in `reconcile`, by its owner, and
//! `attempts`, by its executor. Ownership of partitions is in `ownership`, what peers and clients are answered in `serve`, what
//! passes between the membership and the rest in `members`, what is told to people in `telling`.

mod absence;
mod attempts;
mod blobs;
mod comparing;
mod convergence;
mod dependents;
mod full_disk;
mod keeping;
mod leaving;
mod members;
mod moving;
mod ownership;
mod placing;
mod pod_reports;
mod pushes;
mod reconcile;
mod repair;
mod ring_changes;
mod sealing;
mod serve;
mod telling;
mod told_ends;
mod turns;
mod unannounced;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::model::blob::BlobRef;
use crate::model::config::Config;
use crate::model::id::{Actor, Dot, Generation, JobId, NodeId, Partition};
use crate::model::member::{Facts, Member, PartitionSet, Status};
use crate::model::packed::PackedRecord;
use crate::model::record::{Record, Version};
use crate::model::request::{Event, SubmitOutcome};
use crate::model::ring::Placement;
use crate::model::time::{Moment, Now, Timestamp};
use crate::model::wire::Message;

use self::absence::Absence;
use self::full_disk::{Due, FullDisk};
use self::leaving::Successors;
use self::unannounced::Unannounced;
use super::blobs::Blobs;
use super::comparison::{Answer, Comparison, Purpose, Step};
use super::effect::Effect;
use super::former::FormerEnds;
use super::gateway::{Ask, AskId, Gateway, Routing, Told};
use super::membership::Membership;
use super::numbers::Numbers;
use super::outbox::{Outbox, Outgoing};
use super::records::Records;
use super::replication::Replication;
use super::room::Room;
use super::sabotage::{Bug, Sabotage};
use super::scheduler::Scheduler;

use attempts::{Pod, Starting};
use comparing::Agreements;
use moving::Move;
use ownership::Ownership;
use pushes::Pushed;
use ring_changes::Standing;
use sealing::Sealing;
use serve::{Asker, Parked};
use told_ends::ToldEnds;
use turns::Turns;

/// Jobs looked at in one go, at the most: a node that comes to own a million does other things in between.
const RECONCILED_AT_ONCE: usize = 2_048;

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
    /// Since when those of them are known that wait for a time to pass, by its own clock.
    pub known_at: BTreeMap<JobId, Timestamp>,
    /// The blobs on its disk.
    pub blobs: Vec<BlobRef>,
    /// The members it knew when it last ran.
    pub members: Vec<Facts>,
    /// What is known of the ends of what it ran then.
    pub former_ends: FormerEnds,
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
    placed_standings: Option<Vec<Standing>>,
    /// Since when a majority of the members has been in reach, if it is.
    majority_since: Option<Moment>,
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
    agreements: Agreements,
    turns: Turns,
    sealing: Sealing,
    unannounced: Unannounced,
    successors: Successors,
    /// What moves because the ring changed.
    moving: Option<Move>,
    next_comparison: Moment,
    pods: BTreeMap<Dot, Pod>,
    /// How what this node's earlier starts ran has ended.
    former_ends: FormerEnds,
    told_ends: ToldEnds,
    /// Claims of this node whose checkpoint is waited for, and until when.
    starting: BTreeMap<Dot, Starting>,
    /// Checkpoints that pods are to begin with which have not started yet.
    kept_for_start: BTreeMap<Dot, (JobId, BlobRef)>,
    /// Who pushed a record and waits until its blobs have come.
    pushed_by: BTreeMap<JobId, BTreeSet<NodeId>>,
    confirming: BTreeMap<JobId, Confirming>,
    /// To be looked at again.
    dirty: BTreeSet<JobId>,
    /// How many have been, since this node last came to rest.
    reconciled: usize,
    /// When it came to rest with some left.
    goes_on_at: Option<Moment>,
    must_schedule: bool,

    submits: BTreeMap<u64, PendingSubmit>,
    next_submit: u64,
    watchers: BTreeMap<JobId, Vec<Parked<Option<Version>>>>,
    event_readers: Vec<Parked<u64>>,
    parked_until: BTreeSet<(Moment, u64)>,
    next_parked: u64,
    events: VecDeque<Event>,
    event_numbers: Numbers,

    published: Option<(Moment, Facts)>,
    gossip_urgently: bool,
    full_disk: FullDisk,
    /// What this node was doing when its disk was found full, and does again when there is room.
    before_full_disk: Status,
    leaving: bool,
    /// The members that were last saved for the next start: who, in which start, where, doing what.
    remembered: Vec<(NodeId, Generation, SocketAddr, Status)>,
    /// What they held by what was saved, and when that is looked at again.
    remembered_held: BTreeMap<NodeId, PartitionSet>,
    remember_held_at: Moment,
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
        let Start { config, mut facts, has_seeds, members, former_ends, seed, .. } = start;
        let (stored, known_at, stored_blobs) = (start.records, start.known_at, start.blobs);
        if !stored.is_empty() && facts.status == Status::Joining {
            facts.status = Status::Returning;
        }
        let moment = now.moment;
        let me = Actor { node: facts.node, generation: facts.generation };
        let mut rng = StdRng::seed_from_u64(seed);
        let timing = &config.timing;
        // The only clock that ran on while this process did not is the wall's. It is compared with itself where it can be.
        let known_at = |job: JobId, submitted_at| known_at.get(&job).copied().unwrap_or(submitted_at);
        let known_since = |job, submitted_at| moment - now.wall.since(known_at(job, submitted_at));
        let mut records = Records::load(config.cluster.partitions, stored, moment, known_since);
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
            majority_since: None,
            lingering_from: JobId(0),
            absence: Absence::default(),
            outbox,
            blobs,
            replication: Replication::new(me.generation, timing.resend_after),
            comparison: Comparison::new(me.generation, timing.resend_after * 4),
            scheduler: Scheduler::default(),
            room: Room::new(config.capacity),
            gateway: Gateway::new(me.generation, timing.resend_after, timing.acknowledge_within),
            ownership: Ownership::default(),
            agreements: Agreements::default(),
            turns: Turns::default(),
            sealing: Sealing::new(me.generation),
            unannounced: Unannounced::default(),
            successors: Successors::default(),
            moving: None,
            next_comparison: moment + timing.compare_interval,
            pods: BTreeMap::new(),
            former_ends,
            told_ends: ToldEnds::default(),
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
            event_numbers: Numbers::of(me.generation),
            published: None,
            gossip_urgently: true,
            full_disk: FullDisk::default(),
            before_full_disk: Status::Serving,
            leaving: false,
            remembered: Vec::new(),
            remembered_held: BTreeMap::new(),
            remember_held_at: now.moment,
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
            reconciled: 0,
            goes_on_at: None,
        }
    }

    /// Breaks a rule from now on.
    #[cfg(feature = "sabotage")]
    pub fn plant(&mut self, sabotage: Sabotage) {
        self.sabotage = sabotage;
        self.gateway.plant(sabotage);
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
        self.note_copies(from, &message);
        match message {
            Message::Push { seq, records, blobs, lacking, known_for } => {
                let (lacking, known_for) = (lacking.into_iter().collect(), known_for.into_iter().collect());
                self.handle_push(now, from, Pushed { seq, records, blobs, lacking, known_for });
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
                let difference = self.comparison.handle_differ(now.moment, from, answer, records, wants);
                self.learn_difference(now, from, &difference);
            }
            Message::Fetch { round, jobs } => self.handle_fetch(now.moment, from, round, &jobs),
            Message::Fetched { round, records, known_for, last } => {
                let known_for: BTreeMap<JobId, Duration> = known_for.into_iter().collect();
                let mut came = Vec::with_capacity(records.len());
                for record in records {
                    let job = record.id;
                    let version = self.absorb_known(now, from, record, known_for.get(&job));
                    came.extend(version.map(|version| (job, version)));
                }
                self.comparison.handle_fetched(now.moment, from, round, came, last);
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

    /// The next effect to carry out, or nothing.
    pub fn poll_effect(&mut self, now: Now) -> Option<Effect> {
        loop {
            match self.outbox.poll() {
                Some(Outgoing::Effect(Effect::StartPod(start))) => match self.must_not_begin(now, &start) {
                    Some(reason) => {
                        self.give_up_start(now, start.key, reason);
                        continue;
                    }
                    None => return Some(Effect::StartPod(start)),
                },
                Some(Outgoing::Effect(effect)) => return Some(effect),
                Some(Outgoing::Answer { call, response }) => {
                    let me = self.me.node;
                    let routing = Routing { me, view: self.membership.view(), placement: &self.placement };
                    self.gateway.handle_response(now.moment, me, call, response, routing);
                    continue;
                }
                Some(Outgoing::Stored { to, seq, copies }) => return Some(self.acknowledge(to, seq, copies)),
                None => {}
            }
            if !self.settle(now) {
                // What is left to be looked at is, when this node has seen what else has come.
                self.reconciled = 0;
                self.goes_on_at = (!self.dirty.is_empty()).then_some(now.moment);
                return self.outbox.poll_commit(now, &self.records, &self.blobs).map(Effect::Commit);
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
            self.turns.poll_timeout(),
            self.absence.poll_timeout(),
            self.records.next_waking(),
            self.parked_until.first().map(|(at, _)| *at),
            self.blobs.poll_timeout(),
            self.starting.values().map(|starting| starting.until).min(),
            self.full_disk.poll_timeout(),
            Some(self.next_comparison),
            self.goes_on_at,
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
        for (peer, partition) in self.turns.handle_timeout(moment) {
            self.comparison.want(peer, partition, Purpose::Routine);
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
            self.review_unannounced(moment);
            self.seal_what_can_be(now);
            self.let_expired_go(now);
            self.records.clear_desk();
        }
    }

    /// Turns the children's outputs into each other's inputs. Returns whether anything came of it.
    fn settle(&mut self, now: Now) -> bool {
        let mut progress = self.drain_membership(now);
        progress |= self.refresh_placement(now);
        while let Some(step) = self.comparison.poll_step() {
            progress = true;
            match step {
                Step::Ask(peer, message) => self.send(peer, message),
                Step::Done(compared) => self.finish_comparison(now, compared),
            }
        }
        while let Some((node, call, request)) = self.gateway.poll_question() {
            progress = true;
            if node == self.me.node {
                self.serve(now, Asker::Gateway { call }, request);
            } else {
                self.send(node, Message::Request { call, request });
            }
        }
        while self.reconciled < RECONCILED_AT_ONCE
            && let Some(job) = self.dirty.pop_first()
        {
            progress = true;
            self.reconciled += 1;
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
        self.note_given(to, &message);
        self.outbox.send(Effect::Send { to, message });
    }

    fn jittered(&mut self, interval: Duration) -> Duration {
        let share = f64::from(self.rng.next_u32()) / f64::from(u32::MAX);
        interval.mul_f64(0.75 + share / 2.0)
    }
}
