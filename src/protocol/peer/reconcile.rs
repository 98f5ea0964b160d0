//! Carrying out what the rules of [`lifecycle`](crate::protocol::lifecycle) say about a job, and the two
//! ways in which a record changes: this node writes to it, or merges what another knows.

use std::sync::Arc;
use std::time::Duration;

use crate::model::attempt::{Fate, Phase};
use crate::model::id::{Dot, JobId, NodeId};
use crate::model::record::{JobState, Record, Stop, StopKind, Version};
use crate::model::request::EventKind;
use crate::model::time::{Moment, Now};
use crate::model::wire::Message;

use super::super::blobs::Blobs;
use super::super::effect::Effect;
use super::super::lifecycle::{OwnerDoes, OwnerSees, owner_decides};
use super::super::records::Held;
use super::super::sabotage::Bug;
use super::telling::outline;
use super::{Confirming, Peer, Waiting};

/// How long a pod that is told to end may take, killing it included.
const POD_GRACE: Duration = Duration::from_secs(6);
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

    /// The same, of a record that its sender has known for some time. Who has not known it until now counts from then: what
    /// moves must not begin to wait anew.
    pub(super) fn absorb_known(
        &mut self,
        now: Now,
        from: NodeId,
        record: Arc<Record>,
        known_for: Option<&Duration>,
    ) -> Option<Version> {
        let job = record.id;
        let is_new = self.records.get(job).is_none();
        let version = self.absorb(now, from, record);
        if let Some(known_for) = known_for.filter(|_| is_new) {
            self.records.know_since(job, now.moment - *known_for);
        }
        version
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

    fn decide_as_owner(&mut self, now: Now, job: JobId) {
        let Some(held) = self.records.get(job) else {
            return;
        };
        let record = held.record();
        let does =
            self.sabotaged(now, &record, owner_decides(now.moment, &record, &self.owner_sees(now.moment, &held)));
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

    pub(super) fn owner_sees(&self, now: Moment, held: &Held<'_>) -> OwnerSees<'_> {
        let owned_since = self.ownership.owned_since(self.records.partition_of(held.job()));
        OwnerSees {
            view: self.membership.view(),
            known_since: held.known_since,
            idle_since: held.idle_since,
            strangers_until: self.started + self.config.timing.suspicion_max * 2,
            undisputed_since: owned_since.unwrap_or(now).max(self.majority_since.unwrap_or(now)),
            pause_takes: self.pause_takes(),
        }
    }

    /// A cut-off executor suspects the others after a probe of each at the worst, and doubts for no longer than the
    /// longest grace; then its pods get theirs. A node alone has nobody to wait for.
    fn pause_takes(&self) -> Duration {
        let timing = &self.config.timing;
        let members = u32::try_from(self.membership.view().len()).unwrap_or(u32::MAX);
        if members == 1 || self.sabotage.has(Bug::BeginBesideOthers) {
            return Duration::ZERO;
        }
        timing.suspicion_max + timing.probe_interval.saturating_mul(members) + POD_GRACE
    }

    fn stop_deciding(&mut self, job: JobId) {
        self.unqueue(job);
        self.records.wake(job, None);
        self.confirming.remove(&job);
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
            || self.would_be_missed(partition)
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
}
