//! Carrying out what the rules of [`lifecycle`](crate::protocol::lifecycle) say about a job, and the two
//! ways in which a record changes: this node writes to it, or merges what another knows.

use std::sync::Arc;
use std::time::Duration;

use crate::model::id::{Actor, AttemptKey, Dot, Generation, JobId, NodeId};
use crate::model::member::{Load, Status};
use crate::model::record::{Attempt, Exit, Fate, JobState, Phase, Record, Stop, StopKind, Version};
use crate::model::report::Checkpoint;
use crate::model::request::EventKind;
use crate::model::resources::Resources;
use crate::model::time::Now;
use crate::model::wire::Message;

use super::super::blobs::Blobs;
use super::super::effect::{Effect, PodStart};
use super::super::former::FormerEnd;
use super::super::lifecycle::{ExecutorDoes, OwnerDoes, OwnerSees, PodState, executor_decides, owner_decides, unfit};
use super::super::records::Held;
use super::super::sabotage::Bug;
use super::{Confirming, Peer, Pod, Waiting};

/// How long a pod that is told to end may take, killing it included.
const POD_GRACE: Duration = Duration::from_secs(6);
/// Why an attempt is given back that comes after the promise of its room has lapsed.
const NO_ROOM: &str = "its node has no room for it any longer";

impl Peer {
    /// Writes to a record this node holds, and spreads it if that changed anything.
    pub(super) fn change(&mut self, now: Now, job: JobId, write: impl FnOnce(&mut Record)) {
        let Some(held) = self.records.lay_open(job) else {
            return;
        };
        if held.is_final() {
            // What is said too late of a sealed record is only counted.
            self.counters.late_reports += 1;
            return;
        }
        let before = held.record();
        let mut record = Record::clone(&before);
        write(&mut record);
        if record != *before {
            self.write(now, record);
        }
    }

    /// Stores a record as this node now has it, and spreads it.
    pub(super) fn write(&mut self, now: Now, record: Record) -> u64 {
        let job = record.id;
        let (revision, _) = self.put(now, Arc::new(record));
        let targets = self.targets(job);
        self.replication.spread(now.moment, job, revision, targets);
        revision
    }

    fn put(&mut self, now: Now, record: Arc<Record>) -> (u64, Version) {
        let job = record.id;
        let before = self.records.get(job).map(|held| outline(&held.record()));
        self.name_blobs(job, &record);
        let put = self.records.put(now.moment, record);
        self.note_lacking(job);
        self.outbox.save(job);
        self.dirty.insert(job);
        self.answer_watchers(now, job);
        self.tell_of_change(now, job, before);
        put
    }

    /// Merges what another node knows. Returns the version that came of it, or nothing if the record is not
    /// one that can be, in which case nothing was changed.
    pub(super) fn absorb(&mut self, now: Now, from: NodeId, record: Arc<Record>) -> Option<Version> {
        let job = record.id;
        let hint = |blobs: &mut Blobs| {
            if blobs.lacking() > 0 {
                record.blobs().iter().for_each(|name| blobs.hint(name.id, from));
            }
        };
        hint(&mut self.blobs);
        // Comparing costs a tenth of what a version does, and most of what comes is known already.
        if let Some(held) = self.records.lay_open(job).filter(|held| *held.record() == *record) {
            return Some(held.version);
        }
        if let Err(invalid) = record.validate() {
            self.counters.rejected_records += 1;
            self.tell(now, EventKind::Rejected { job, from, reason: invalid.to_string() });
            return None;
        }
        if record.seal.is_some_and(|seal| seal.expires_hour < now.wall.hour()) {
            // Its time is over here: whoever still has it may count this node among those that had it.
            if self.records.get(job).is_some() {
                self.counters.expired += 1;
                self.drop_record(job);
            }
            return Some(record.version());
        }
        let merged = match self.records.get(job) {
            None => Arc::clone(&record),
            Some(held) => {
                let before = held.record();
                let mut merged = Record::clone(&before);
                if self.sabotage.has(Bug::LastWriterWins) {
                    merged = Record::clone(&record);
                } else {
                    merged.merge(&record);
                }
                if self.sabotage.has(Bug::TakeOlderWork) {
                    merged.checkpoint.clone_from(&record.checkpoint);
                }
                if merged == *before {
                    let version = held.version;
                    self.replication.push_once(job, from);
                    return Some(version);
                }
                self.tell_of_what_a_seal_ends(now, &merged, &before);
                Arc::new(merged)
            }
        };
        self.counters.merged += 1;
        let lacking_there = *merged != *record;
        let (revision, _) = self.put(now, merged);
        hint(&mut self.blobs);
        if lacking_there {
            // The other lacks something that this node had.
            self.replication.push_once(job, from);
        }
        if !self.placement.acting(self.records.partition_of(job)).contains(&self.me.node) {
            let targets = self.keepers(job);
            self.replication.track(now.moment, job, revision, targets);
        }
        self.say_ends_again(now, job);
        self.records.get(job).map(|held| held.version)
    }

    /// Looks at one job again, and does what follows.
    pub(super) fn reconcile(&mut self, now: Now, job: JobId) {
        self.see_to_own_attempts(now, job);
        if self.ownership.is_caught_up(self.records.partition_of(job)) {
            self.decide_as_owner(now, job);
        } else {
            self.stop_deciding(job);
        }
        self.let_go_if_done(job);
    }

    fn see_to_own_attempts(&mut self, now: Now, job: JobId) {
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

    fn decide_as_owner(&mut self, now: Now, job: JobId) {
        let Some(held) = self.records.get(job) else {
            return;
        };
        let record = held.record();
        let does = self.sabotaged(now, &record, owner_decides(now.moment, &record, &self.owner_sees(&held)));
        if does != OwnerDoes::Place {
            self.unqueue(job);
        }
        self.records.wake(job, None);
        match does {
            OwnerDoes::Rest => {
                self.confirming.remove(&job);
            }
            OwnerDoes::Wait(at) => {
                self.confirming.remove(&job);
                self.records.wake(job, at);
            }
            OwnerDoes::WriteOff(lost) => {
                self.counters.lost += lost.len() as u64;
                for (claim, reason) in lost {
                    let dot = self.next_dot();
                    let fate = Fate { phase: Phase::Lost, by_executor: false, dot, at: now.wall, exit: None, reason };
                    self.change(now, job, |record| record.advance(claim, fate));
                }
            }
            OwnerDoes::TimeOut(reason) => {
                let dot = self.next_dot();
                self.change(now, job, |record| {
                    record.request_stop(Stop { kind: StopKind::TimedOut, dot, at: now.wall, reason });
                });
            }
            OwnerDoes::Confirm(claim) => self.confirm(now, job, claim),
            OwnerDoes::Place => {
                self.confirming.remove(&job);
                self.scheduler.enqueue(&record);
                self.must_schedule = true;
                let spec = record.spec();
                let limits = [spec.total_timeout, spec.queue_timeout].into_iter().flatten();
                let known_since = self.records.get(job).map(|held| held.known_since);
                let at =
                    limits.filter_map(|limit| known_since.map(|since| since + limit)).filter(|at| *at > now.moment);
                self.records.wake(job, at.min());
            }
        }
    }

    /// What an owner does that cannot read its own rules.
    fn sabotaged(&self, now: Now, record: &Record, does: OwnerDoes) -> OwnerDoes {
        let tries_again = |is_over: bool| if is_over { OwnerDoes::Place } else { does.clone() };
        let ended = record.state().is_terminal() && record.state() != JobState::Succeeded && !record.is_final();
        // Once is enough to be caught, and a run that never ends tells nobody.
        let ended = ended && record.attempts.len() < 12;
        if self.sabotage.has(Bug::IgnoreStop) {
            return tries_again(ended && record.stop.is_some());
        }
        if self.sabotage.has(Bug::MiscountFailures) {
            return tries_again(ended && record.stop.is_none() && record.failures() == record.spec().retries + 1);
        }
        if self.sabotage.has(Bug::MiscountLosses) {
            return tries_again(ended && record.stop.is_none() && record.losses() > record.spec().lost_limit);
        }
        if self.sabotage.has(Bug::IgnoreDeaths) && matches!(does, OwnerDoes::WriteOff(_)) {
            return OwnerDoes::Wait(Some(now.moment + POD_GRACE));
        }
        does
    }

    pub(super) fn owner_sees(&self, held: &Held<'_>) -> OwnerSees<'_> {
        OwnerSees {
            view: self.membership.view(),
            known_since: held.known_since,
            idle_since: held.idle_since,
            strangers_until: self.started + self.config.timing.suspicion_max * 2,
            pause_takes: self.pause_takes(),
        }
    }

    /// A cut-off executor suspects the others after a probe of each at the worst, and doubts for no longer than the
    /// longest grace; then its pods get theirs.
    fn pause_takes(&self) -> Duration {
        let timing = &self.config.timing;
        let members = u32::try_from(self.membership.view().len()).unwrap_or(u32::MAX);
        timing.suspicion_max + timing.probe_interval.saturating_mul(members) + POD_GRACE
    }

    fn stop_deciding(&mut self, job: JobId) {
        self.unqueue(job);
        self.records.wake(job, None);
        self.confirming.remove(&job);
    }

    /// Takes a job out of the queue, and back from the node to which it was offered.
    fn unqueue(&mut self, job: JobId) {
        if let Some(node) = self.scheduler.remove(job) {
            self.send(node, Message::Withdraw { job });
        }
    }

    /// Lets go of a record that is safe elsewhere and none of this node's business.
    fn let_go_if_done(&mut self, job: JobId) {
        if !self.replication.is_spreading(job) || !self.replication.is_complete(job) {
            return;
        }
        let Some(held) = self.records.get(job) else {
            return;
        };
        let partition = self.records.partition_of(job);
        let acting = self.placement.acting(partition);
        let keep = acting.is_empty()
            || self.sabotage.has(Bug::KeepStrays)
            || self.keeps_for_now(partition)
            || self.pods.values().any(|pod| pod.job == job)
            || held.live_executors().contains(&self.me);
        if keep && !acting.contains(&self.me.node) {
            return;
        }
        self.replication.forget(job);
        if !keep {
            self.remember_ends(job);
            self.counters.strays_handed_over += 1;
            self.unname_blobs(job);
            self.records.remove(job);
            self.outbox.save(job);
        }
    }

    /// Lets go of a record that is nobody's business any more, and of what its attempts left on this machine.
    pub(super) fn drop_record(&mut self, job: JobId) {
        self.replication.forget(job);
        self.stop_deciding(job);
        self.unname_blobs(job);
        self.records.remove(job);
        self.outbox.save(job);
        self.outbox.send_when_stored(Effect::Sweep(job));
    }

    /// Copies of the record were stored: tells those who waited for that.
    pub(super) fn check_copies(&mut self, now: Now, job: JobId) {
        for waited in self.replication.satisfied(now.moment, job, self.me.node) {
            let enough = waited.replicas.len() >= waited.wanted as usize;
            match waited.token {
                Waiting::Submit(submit, at) => {
                    self.settle_submit(submit, at, job, waited.replicas, waited.wanted);
                }
                Waiting::Pod(answer) => self.answer_pod(answer, waited.replicas, waited.wanted),
                Waiting::Claim(claim) => {
                    let still_wanted = self.confirming.get(&job).is_some_and(|waiting| waiting.claim == claim);
                    if enough && still_wanted {
                        self.tell_executor(now, job, claim);
                    } else if still_wanted {
                        self.confirming.remove(&job);
                        self.dirty.insert(job);
                    }
                }
            }
        }
        if self.replication.is_complete(job) {
            self.dirty.insert(job);
        }
    }

    /// Sees to it that enough nodes hold the claim before its executor is told.
    fn confirm(&mut self, now: Now, job: JobId, claim: Dot) {
        match self.confirming.get(&job) {
            Some(Confirming { claim: under_way, tell_again_at }) if *under_way == claim => match *tell_again_at {
                // Copies are being waited for.
                None => return,
                Some(at) if at > now.moment => return self.records.wake(job, Some(at)),
                Some(_) => return self.tell_executor(now, job, claim),
            },
            Some(_) | None => {}
        }
        let Some(held) = self.records.get(job) else {
            return;
        };
        let revision = held.revision;
        let wanted = self.copies_for_safety(job);
        if !self.replication.is_spreading(job) {
            let targets = self.targets(job);
            self.replication.spread(now.moment, job, revision, targets);
        }
        self.confirming.insert(job, Confirming { claim, tell_again_at: None });
        if self.sabotage.has(Bug::StartBeforeReplicated) {
            return self.tell_executor(now, job, claim);
        }
        let deadline = now.moment + self.config.timing.resend_after * 2;
        self.replication.wait(job, revision, wanted, deadline, Waiting::Claim(claim));
        if self.outbox.is_stored(job) {
            self.replication.handle_stored_here(job, revision);
        }
        self.check_copies(now, job);
    }

    /// How many copies of the record make it safe: a majority of its home list, or all there can be now.
    pub(super) fn copies_for_safety(&self, job: JobId) -> u32 {
        let partition = self.records.partition_of(job);
        let acting = self.placement.acting(partition).len() as u32;
        majority(self.placement.home(partition).len()).min(acting).max(1)
    }

    fn tell_executor(&mut self, now: Now, job: JobId, claim: Dot) {
        let Some(held) = self.records.get(job) else {
            return;
        };
        let record = held.record();
        let Some(executor) = record.attempts.get(&claim).map(|attempt| attempt.claim.executor) else {
            return;
        };
        let tell_again_at = now.moment + self.config.timing.resend_after * 2;
        self.confirming.insert(job, Confirming { claim, tell_again_at: Some(tell_again_at) });
        self.records.wake(job, Some(tell_again_at));
        if executor == self.me {
            self.start_pod(now, job, claim);
        } else {
            self.send(executor.node, Message::Start { record, claim });
        }
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
        if !startable {
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

    /// Finds room for the jobs that wait, best first.
    pub(super) fn schedule(&mut self, now: Now) -> bool {
        let mut progress = false;
        loop {
            let mut placed = false;
            for job in self.scheduler.candidates() {
                let serves = self.status() == Status::Serving;
                let room_here = serves && self.room.free().slots > 0;
                if !room_here && !self.scheduler.anybody_has_room(self.me.node, self.membership.view()) {
                    return progress;
                }
                placed |= self.place(now, job);
            }
            if !placed {
                return progress;
            }
            progress = true;
        }
    }

    /// Claims the job for this node, or offers it to another. Returns whether it is out of the queue.
    fn place(&mut self, now: Now, job: JobId) -> bool {
        let Some(held) = self.records.lay_open(job) else {
            self.scheduler.remove(job);
            return true;
        };
        let record = held.record();
        let need = record.spec().need();
        let view = self.membership.view();
        if unfit(&record, self.me.node, view).is_none() && self.room.free().fits(&need) {
            self.claim(now, job, self.me);
            return true;
        }
        let walk = self.placement.walk(job);
        match self.scheduler.choose(&record, &walk, self.me.node, view) {
            Some(node) => {
                self.scheduler.offer(now.moment, job, node, need);
                self.send(node, Message::Offer { job, need });
                true
            }
            None => false,
        }
    }

    fn claim(&mut self, now: Now, job: JobId, executor: Actor) {
        self.scheduler.remove(job);
        self.counters.claimed += 1;
        let dot = self.next_dot();
        self.change(now, job, |record| record.claim(dot, executor, now.wall));
        if executor == self.me {
            let need = self.records.get(job).map(|held| held.record().spec().need());
            let fits = self.room.take(job, dot, need.unwrap_or_default());
            debug_assert!(fits, "a node claims for itself only what it has room for");
        }
    }

    pub(super) fn handle_offer_answer(&mut self, now: Now, from: NodeId, job: JobId, accepted: bool, load: Load) {
        self.membership.update_load(from, load);
        if !self.scheduler.handle_answer(now.moment, job, from, accepted) {
            if accepted {
                self.send(from, Message::Withdraw { job });
            }
            return;
        }
        let executor = self
            .membership
            .view()
            .get(&from)
            .filter(|member| member.takes_work())
            .map(|member| Actor { node: from, generation: member.facts.generation });
        let still_due = self.ownership.is_caught_up(self.records.partition_of(job))
            && self.records.get(job).is_some_and(|held| {
                owner_decides(now.moment, &held.record(), &self.owner_sees(&held)) == OwnerDoes::Place
            });
        match executor {
            Some(executor) if accepted && still_due => self.claim(now, job, executor),
            Some(_) | None => {
                if accepted {
                    self.send(from, Message::Withdraw { job });
                }
                self.dirty.insert(job);
            }
        }
    }

    /// A peer has room: it is offered what waits here and fits.
    pub(super) fn handle_idle(&mut self, now: Now, from: NodeId, free: Resources) {
        let view = self.membership.view();
        if !view.get(&from).is_some_and(|member| member.takes_work()) {
            return;
        }
        let mut left = free;
        let mut offers = Vec::new();
        for job in self.scheduler.candidates() {
            let Some(held) = self.records.get(job) else {
                continue;
            };
            let record = held.record();
            let need = record.spec().need();
            if left.fits(&need) && unfit(&record, from, view).is_none() {
                left = left.minus(&need);
                offers.push((job, need));
            }
        }
        for (job, need) in offers {
            self.scheduler.offer(now.moment, job, from, need);
            self.send(from, Message::Offer { job, need });
        }
    }

    /// With room and nothing to do, asks one of those who have more than they can do.
    pub(super) fn ask_for_work(&mut self, _now: Now) {
        let free = self.room.free();
        if self.status() != Status::Serving || free.slots == 0 || self.scheduler.backlog() > 0 {
            return;
        }
        let me = self.me.node;
        let busy = self
            .membership
            .view()
            .values()
            .filter(|member| member.is_live() && member.facts.node != me && member.facts.load.backlog > 0);
        let busy: Vec<NodeId> = busy.map(|member| member.facts.node).collect();
        if !busy.is_empty() {
            let chosen = busy[rand::Rng::next_u32(&mut self.rng) as usize % busy.len()];
            self.send(chosen, Message::Idle { free });
        }
    }

    /// The owner says openly what ran twice, or may have.
    fn tell_of_overlaps(&mut self, now: Now, record: &Record) {
        for overlap in record.overlaps() {
            let of = |claim: Dot| record.attempts.get(&claim).map(|a| (a.claim.number, a.claim.executor.node));
            let (Some(first), Some(second)) = (of(overlap.first), of(overlap.second)) else {
                continue;
            };
            self.counters.overlaps_told += 1;
            let (title, certain) = (record.spec().title(), overlap.certain);
            self.tell(now, EventKind::Overlap { job: record.id, title, attempts: [first, second], certain });
        }
    }

    /// This node's copy has met a seal for which it was not asked: it had left while it was cut off, or the key was used again
    /// here where nobody knew of the job. What ran of it is no part of the sealed record. Whoever gives up such a copy says so,
    /// since nothing else will.
    fn tell_of_what_a_seal_ends(&mut self, now: Now, sealed: &Record, copy: &Record) {
        if !sealed.is_final() || copy.is_final() {
            return;
        }
        let of = |attempt: &Attempt| (attempt.claim.number, attempt.claim.executor.node);
        let Some(kept) = sealed.telling().map(of) else {
            return;
        };
        let unknown = copy
            .attempts
            .iter()
            .filter(|(claim, attempt)| attempt.may_have_run() && !sealed.attempts.contains_key(claim));
        for ended in unknown.map(|(_, attempt)| of(attempt)) {
            self.counters.overlaps_told += 1;
            let (title, attempts) = (sealed.spec().title(), [kept, ended]);
            self.tell(now, EventKind::Overlap { job: sealed.id, title, attempts, certain: false });
        }
    }

    /// The owner tells whoever listens that a job's state, or its telling attempt, changed.
    fn tell_of_change(&mut self, now: Now, job: JobId, before: Option<Outline>) {
        let Some(held) = self.records.get(job) else {
            return;
        };
        let record = held.record();
        let after = outline(&record);
        if !self.ownership.is_caught_up(self.records.partition_of(job)) {
            return;
        }
        if before.is_none_or(|before| before.overlaps < after.overlaps) {
            self.tell_of_overlaps(now, &record);
        }
        if before == Some(after) || !self.ownership.is_caught_up(self.records.partition_of(job)) {
            return;
        }
        let telling = record.telling();
        let kind = EventKind::Job {
            job,
            title: record.spec().title(),
            state: after.state,
            attempt: telling.map(|attempt| attempt.claim.number),
            node: telling.map(|attempt| attempt.claim.executor.node),
            reason: telling.map(|attempt| attempt.fate.reason.clone()).unwrap_or_default(),
        };
        self.tell(now, kind);
    }
}

/// What a change must touch to be worth an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Outline {
    state: JobState,
    attempt: Option<(u32, NodeId, Phase)>,
    /// Pairs of attempts that may have run at once, and those that are certain to have.
    overlaps: (usize, usize),
}

fn outline(record: &Record) -> Outline {
    let attempt = record.telling().map(|a| (a.claim.number, a.claim.executor.node, a.fate.phase));
    Outline { state: record.state(), attempt, overlaps: overlaps_of(record) }
}

/// Nearly every job has one attempt, and then there is nothing to count.
fn overlaps_of(record: &Record) -> (usize, usize) {
    if record.attempts.len() < 2 {
        return (0, 0);
    }
    let overlaps = record.overlaps();
    (overlaps.len(), overlaps.iter().filter(|overlap| overlap.certain).count())
}

/// More than half.
pub(super) fn majority(of: usize) -> u32 {
    (of / 2 + 1) as u32
}
