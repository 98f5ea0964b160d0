//! Which partitions this node decides for, and how it comes to know enough to do so.
//!
//! The ring names the owner; being named is not enough. A node that begins to own a partition first compares
//! what it holds with every live node that may know more, and each that answers stops deciding in its turn.
//! Only when all have answered is it **caught up**, and acts. A node that stepped down although its own view
//! still names it waits a little, for the view to follow, before it tries to take over again.
//!
//! The same comparisons, without the taking over, keep replicas equal and bring strays home.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use rand::Rng;

use crate::model::id::{Generation, JobId, NodeId, Partition};
use crate::model::member::{Member, MemberState, PartitionSet, Status, View, majority_in_reach};
use crate::model::record::Version;
use crate::model::ring::Placement;
use crate::model::time::{Moment, Now};
use crate::model::wire::Message;

use super::super::comparison::{Compared, Difference, Purpose};
use super::super::sabotage::Bug;
use super::{FETCHED_RECORDS, Peer, Routing};

/// How long a record may be on its way before its partition counts as behind: shorter lags are life.
const LAG_ALLOWED: Duration = Duration::from_secs(5);
/// Records on their way for long that are looked at together, at the most.
const LINGERING_AT_ONCE: usize = 2_048;
/// How long all must have been well before the cluster is called converged.
const CALM_FOR: Duration = Duration::from_millis(500);

/// The partitions that this node's ring gives it.
#[derive(Debug, Default)]
pub(super) struct Ownership {
    owned: BTreeMap<Partition, Owning>,
    /// Partitions given up to somebody who asked, until the moment at which this node may ask in turn.
    stepped_down: BTreeMap<Partition, Moment>,
    /// Who asked. It decides for the partition by its own view, which may be ahead of this node's: whatever this one
    /// knows of the members, it asks that node before it decides there again.
    taken_by: BTreeMap<Partition, NodeId>,
    /// With whom the last comparison of a partition showed no difference.
    agreeing: BTreeSet<(Partition, NodeId)>,
    /// With whom it showed one.
    differing: BTreeSet<(Partition, NodeId)>,
}

#[derive(Debug)]
enum Owning {
    /// These have not answered yet.
    Comparing(BTreeSet<NodeId>),
    CaughtUp,
}

impl Ownership {
    pub(super) fn is_caught_up(&self, partition: Partition) -> bool {
        matches!(self.owned.get(&partition), Some(Owning::CaughtUp))
    }

    /// Nothing that was known is trusted any more.
    pub(super) fn clear(&mut self) {
        self.owned.clear();
        self.stepped_down.clear();
    }

    pub(super) fn poll_timeout(&self) -> Option<Moment> {
        self.stepped_down.values().min().copied()
    }

    /// The partitions that may be asked for again.
    pub(super) fn handle_timeout(&mut self, now: Moment) -> Vec<Partition> {
        let again: Vec<Partition> =
            self.stepped_down.iter().filter(|(_, until)| **until <= now).map(|(partition, _)| *partition).collect();
        for partition in &again {
            self.stepped_down.remove(partition);
        }
        again
    }

    /// Whether this node and `peer` agreed on `partition` when they last compared; unknown counts as not.
    pub(super) fn agrees(&self, partition: Partition, peer: NodeId) -> bool {
        self.agreeing.contains(&(partition, peer))
    }

    /// Notes what a comparison showed. Returns whether it is news that they differ.
    fn note_compared(&mut self, partition: Partition, peer: NodeId, agrees: bool) -> bool {
        let key = (partition, peer);
        if agrees {
            self.differing.remove(&key);
            self.agreeing.insert(key);
            return false;
        }
        self.agreeing.remove(&key);
        self.differing.insert(key)
    }

    /// Forgets what comparisons of `partition` with others than `peers` showed.
    fn retain_compared(&mut self, partition: Partition, peers: &[NodeId]) {
        for noted in [&mut self.agreeing, &mut self.differing] {
            let of_partition = noted.range((partition, NodeId(0))..=(partition, NodeId(u32::MAX)));
            let others: Vec<_> = of_partition.filter(|(_, node)| !peers.contains(node)).copied().collect();
            for other in others {
                noted.remove(&other);
            }
        }
    }
}

/// What placement and ownership depend on of a member: whether it lives, in which start, doing what, how much of it.
pub(super) type Standing = (NodeId, MemberState, Generation, Status, u16);

/// A doubt changes nothing about where records belong, and is the most frequent change of all.
fn standings(view: &View) -> Vec<Standing> {
    let one = |member: &Member| {
        let state = if member.is_live() { MemberState::Alive } else { member.state };
        let facts = &member.facts;
        (facts.node, state, facts.generation, facts.status, facts.weight)
    };
    view.values().map(one).collect()
}

impl Peer {
    /// Computes the ring anew if the members changed, and draws the consequences.
    pub(super) fn refresh_placement(&mut self, now: Now) -> bool {
        let epoch = self.membership.view_epoch();
        if self.placed_epoch == Some(epoch) {
            return false;
        }
        self.placed_epoch = Some(epoch);
        self.look_at_open_jobs();
        self.must_schedule = true;
        let standings = standings(self.membership.view());
        if self.placed_standings.as_ref() != Some(&standings) {
            self.placed_standings = Some(standings);
            self.place_anew(now);
        }
        let routing = Routing { me: self.me.node, view: self.membership.view(), placement: &self.placement };
        self.gateway.handle_view_change(now.moment, routing);
        true
    }

    /// A death, a restart or a doubt can change what is to be done about any job that somebody runs, and about any at all
    /// if there is a majority now and was none before.
    fn look_at_open_jobs(&mut self) {
        let has_majority = Some(majority_in_reach(self.membership.view()));
        let all = std::mem::replace(&mut self.had_majority, has_majority) != has_majority;
        let has_run = |job: &JobId| self.records.get(*job).is_some_and(|held| held.summary.has_attempts());
        self.dirty.extend(self.records.open().iter().copied().filter(|job| all || has_run(job)));
    }

    fn place_anew(&mut self, now: Now) {
        let placement = self.placement.after(self.membership.view(), self.config.cluster.replicas);
        let before = std::mem::replace(&mut self.placement, Arc::new(placement));
        let me = self.me.node;
        self.acting_for = self.placement.all().filter(|p| self.acts_for(*p)).collect();
        self.first_of = self.acting_for.iter().copied().filter(|p| self.placement.owner(*p) == Some(me)).collect();
        if before.fingerprint() != self.placement.fingerprint() {
            self.gossip_urgently |= self.status() == Status::Serving;
            self.begin_move(now);
        }
        let waited = self.wait_for_the_absent(now.moment);
        for partition in self.placement.all() {
            self.follow_ring(now.moment, partition, &before, &waited);
        }
        let moved = |partition: &Partition| {
            self.placement.acting(*partition) != before.acting(*partition)
                || self.placement.home(*partition) != before.home(*partition)
                || self.absence.is_awaited(*partition) != waited.contains(*partition)
        };
        let moved = self.placement.all().filter(moved).collect();
        self.retarget_all(&moved);
        self.ask_for_what_is_kept_now();
    }

    /// Who should have what is on its way is asked anew, for these partitions, and for what somebody runs, who may be gone.
    fn retarget_all(&mut self, moved: &PartitionSet) {
        let is_run = |job: &JobId| {
            self.records.get(*job).is_some_and(|held| !held.state().is_terminal() && held.summary.has_attempts())
        };
        let is_concerned = |job: &JobId| moved.contains(self.records.partition_of(*job)) || is_run(job);
        let spreading = self.replication.spreading_from(JobId(0)).map(|(job, _)| job);
        for job in spreading.filter(is_concerned).collect::<Vec<_>>() {
            self.retarget(job);
            self.dirty.insert(job);
        }
    }

    fn retarget(&mut self, job: JobId) {
        let targets = if self.replication.insists(job) { self.targets(job) } else { self.keepers(job) };
        self.replication.retarget(job, targets);
    }

    /// Stops waiting for those whose time to come back is over: what they should hold is copied to those who act in their
    /// place.
    pub(super) fn give_up_the_absent(&mut self, now: Moment) {
        let waited = self.wait_for_the_absent(now);
        let given_up: PartitionSet = waited.iter().filter(|partition| !self.absence.is_awaited(*partition)).collect();
        for partition in given_up.iter() {
            let acting = self.placement.acting(partition).to_vec();
            let is_concerned = acting.contains(&self.me.node) || self.records.count_in(partition) > 0;
            for node in acting.into_iter().filter(|node| is_concerned && *node != self.me.node) {
                self.comparison.want(node, partition, Purpose::Routine);
            }
        }
        if !given_up.is_empty() {
            self.retarget_all(&given_up);
            self.ask_for_what_is_kept_now();
        }
    }

    fn follow_ring(&mut self, now: Moment, partition: Partition, before: &Placement, waited: &PartitionSet) {
        let me = self.me.node;
        // Whoever is back may have decided in this node's place while they did not see each other.
        let is_back = |node: &&NodeId| **node != me && !before.acting(partition).contains(*node);
        let company: Vec<NodeId> = self.placement.acting(partition).iter().filter(is_back).copied().collect();
        if self.ownership.is_caught_up(partition) && !company.is_empty() {
            self.ownership.owned.remove(&partition);
            self.look_at_jobs_of(partition);
        }
        if self.may_own(partition) {
            let view = self.membership.view();
            let caught_up = match self.ownership.owned.get_mut(&partition) {
                Some(Owning::Comparing(waiting_for)) => {
                    waiting_for.retain(|node| view.get(node).is_some_and(|member| member.is_live()));
                    company.iter().for_each(|node| self.comparison.want(*node, partition, Purpose::Takeover));
                    waiting_for.extend(company);
                    waiting_for.is_empty()
                }
                Some(Owning::CaughtUp) => false,
                None => {
                    self.begin_takeover(now, partition, before.owner(partition));
                    false
                }
            };
            if caught_up {
                self.become_owner(partition);
            }
        } else {
            if self.ownership.owned.remove(&partition).is_some() {
                self.look_at_jobs_of(partition);
            }
            self.ownership.stepped_down.remove(&partition);
            self.ownership.taken_by.remove(&partition);
        }
        let acting = self.placement.acting(partition).to_vec();
        self.ownership.retain_compared(partition, &acting);
        if self.records.count_in(partition) == 0 {
            return;
        }
        let is_stray = !self.keeps_for_now(partition);
        if is_stray {
            self.track_strays(now, partition);
        }
        let kept = |node: NodeId| {
            before.acting(partition).contains(&node)
                && (!waited.contains(partition) || before.home(partition).contains(&node))
        };
        let newly = |node: NodeId| is_stray || !kept(node) || !kept(me);
        let keeps = |node: NodeId| self.should_keep(node, partition);
        let has_a_part = is_stray || keeps(me);
        let is_wanted = |node: &NodeId| *node != me && has_a_part && keeps(*node) && newly(*node);
        let others: Vec<NodeId> = acting.iter().copied().filter(is_wanted).collect();
        for node in others {
            self.comparison.want(node, partition, Purpose::Routine);
        }
    }

    /// Whether this node's ring and status allow it to own `partition`.
    fn may_own(&self, partition: Partition) -> bool {
        let serves = match self.status() {
            Status::Serving | Status::Draining => true,
            Status::Joining | Status::Returning | Status::ReadOnly | Status::Left => false,
        };
        serves && self.placement.owner(partition) == Some(self.me.node) && self.membership.conflict().is_none()
    }

    /// Asks every live node that may know more of `partition` than this one: those of its lists, those that say that they hold
    /// records of it, and whoever has decided for it, by what this node knows, and may not have said yet what it holds.
    pub(super) fn begin_takeover(&mut self, now: Moment, partition: Partition, decided: Option<NodeId>) {
        let held_off = self.ownership.stepped_down.get(&partition).is_some_and(|until| *until > now);
        if held_off || !self.may_own(partition) || self.ownership.owned.contains_key(&partition) {
            return;
        }
        let view = self.membership.view();
        let holders = view.values().filter(|member| member.facts.held.contains(partition)).map(|m| m.facts.node);
        let lists = self.placement.home(partition).iter().chain(self.placement.acting(partition)).copied();
        let waiting_for: BTreeSet<NodeId> = lists
            .chain(self.placement.next(partition))
            .chain(self.ownership.taken_by.get(&partition).copied())
            .chain(decided)
            .chain(holders)
            .filter(|node| *node != self.me.node && view.get(node).is_some_and(|member| member.is_live()))
            .collect();
        self.counters.takeovers += 1;
        for node in &waiting_for {
            self.comparison.want(*node, partition, Purpose::Takeover);
        }
        let alone = waiting_for.is_empty() || self.sabotage.has(Bug::ActBeforeComparing);
        self.ownership.owned.insert(partition, Owning::Comparing(waiting_for));
        if alone {
            self.become_owner(partition);
        }
    }

    fn become_owner(&mut self, partition: Partition) {
        self.ownership.owned.insert(partition, Owning::CaughtUp);
        self.look_at_jobs_of(partition);
    }

    /// This node decides for the partition from now on, or no longer: what waits in its queue is another matter then.
    fn look_at_jobs_of(&mut self, partition: Partition) {
        let open = self.records.in_partition(partition).filter(|(_, held)| !held.state().is_terminal());
        self.dirty.extend(open.map(|(job, _)| job));
    }

    /// Somebody compares with this node.
    pub(super) fn handle_compare(
        &mut self,
        now: Now,
        from: NodeId,
        round: u64,
        takeover: bool,
        horizon: u32,
        digests: &[(Partition, Version)],
    ) {
        let asker_is_up = self
            .membership
            .view()
            .get(&from)
            .is_some_and(|member| matches!(member.state, MemberState::Alive | MemberState::Suspect));
        let in_range = |partition: &Partition| u32::from(partition.0) < self.placement.partitions();
        if !asker_is_up || !digests.iter().all(|(partition, _)| in_range(partition)) {
            // Somebody whom this node believes dead must not take over from those who took over from it: it
            // asks again when it has refuted that.
            return;
        }
        let own_horizon = now.wall.hour();
        if own_horizon > horizon {
            return self.send(
                from,
                Message::Differ { round, horizon: own_horizon, partitions: Vec::new(), unsaved: Vec::new() },
            );
        }
        let mut differing = Vec::new();
        for (partition, theirs) in digests {
            if takeover {
                self.step_down(now.moment, *partition, from);
            }
            if self.records.digest(*partition, horizon) != *theirs {
                differing.push((*partition, self.records.versions_in(*partition, horizon).collect()));
            }
        }
        let asked: BTreeSet<Partition> = digests.iter().map(|(partition, _)| *partition).collect();
        let is_asked = |job: &JobId| asked.contains(&self.records.partition_of(*job));
        let unsaved = self.outbox.unsaved().filter(is_asked).collect();
        self.send(from, Message::Differ { round, horizon, partitions: differing, unsaved });
    }

    fn step_down(&mut self, now: Moment, partition: Partition, for_whom: NodeId) {
        if self.ownership.owned.remove(&partition).is_some() {
            self.ownership.taken_by.insert(partition, for_whom);
            let hold_off = self.config.timing.gossip_interval * 4;
            self.ownership.stepped_down.insert(partition, now + hold_off);
            self.look_at_jobs_of(partition);
        }
    }

    /// Sends the records that a comparison showed to be wanting. A part at a time: a frame has its limits.
    pub(super) fn handle_fetch(&mut self, from: NodeId, round: u64, jobs: &[JobId]) {
        let records: Vec<_> = jobs.iter().filter_map(|job| self.records.get(*job)).map(|held| held.record()).collect();
        let mut parts: Vec<Vec<_>> = records.chunks(FETCHED_RECORDS).map(<[_]>::to_vec).collect();
        let last = parts.pop().unwrap_or_default();
        for records in parts {
            self.send(from, Message::Fetched { round, records, last: false });
        }
        self.send(from, Message::Fetched { round, records: last, last: true });
    }

    /// What a peer's list showed: who has what this node has, and who lacks it.
    pub(super) fn learn_difference(&mut self, now: Now, peer: NodeId, difference: &Difference) {
        for (job, version) in &difference.same {
            let is_stray = !self.placement.acting(self.records.partition_of(*job)).contains(&self.me.node);
            if let Some(held) = self.records.get(*job).filter(|held| !is_stray && held.compared() == *version) {
                self.replication.learn(*job, peer, held.revision, *version);
                self.check_copies(now, *job);
            }
        }
        for job in &difference.has_blobs_of {
            if let Some(held) = self.records.get(*job) {
                held.record().blobs().iter().for_each(|name| self.blobs.assure(name.id, peer));
            }
        }
        // A node that should not hold a record is not given it.
        let lacks = |job: &JobId| self.keepers(*job).contains(&peer);
        let theirs_lack: Vec<JobId> = difference.theirs_lack.iter().copied().filter(lacks).collect();
        let mut to_give: Vec<JobId> = difference.theirs_differ.iter().copied().filter(lacks).collect();
        let mut lacking: BTreeMap<Partition, usize> = BTreeMap::new();
        for job in &theirs_lack {
            *lacking.entry(self.records.partition_of(*job)).or_default() += 1;
        }
        let partitions = self.partitions_to_give(now.moment, peer, &lacking);
        to_give.extend(theirs_lack.iter().filter(|job| partitions.contains(&self.records.partition_of(**job))));
        for job in to_give {
            self.replication.push_once(job, peer);
        }
    }

    pub(super) fn finish_comparison(&mut self, now: Now, compared: Compared) {
        let Compared { peer, purpose, asked_at, horizon, same, differed, unsaved } = compared;
        self.counters.comparisons += 1;
        self.counters.differing_partitions += differed.len() as u64;
        for (partition, digest) in &same {
            // What was written here since the question was asked is not part of the answer.
            if self.records.digest(*partition, horizon) == *digest {
                self.learn_equal(now, *partition, horizon, peer, &unsaved);
            }
        }
        let shown = same.iter().map(|(p, _)| (*p, true)).chain(differed.iter().map(|p| (*p, false)));
        for (partition, agrees) in shown {
            // What whoever does not act has now says nothing of what it will keep.
            let acts = self.placement.acting(partition).contains(&peer);
            let is_news = acts && self.ownership.note_compared(partition, peer, agrees);
            if agrees {
                self.turns.handle_agreement(now.moment, peer, partition);
            }
            self.successors.note_compared(partition, peer, agrees, asked_at);
            if is_news && self.should_keep(peer, partition) {
                // What differed has been exchanged: look once more, to know that it is the same now.
                self.comparison.want(peer, partition, Purpose::Routine);
            }
            if purpose != Purpose::Takeover {
                continue;
            }
            if let Some(Owning::Comparing(waiting_for)) = self.ownership.owned.get_mut(&partition) {
                waiting_for.remove(&peer);
                if waiting_for.is_empty() {
                    self.become_owner(partition);
                }
            }
        }
    }

    /// The whole partition is the same at `peer`, and on its disk but for `unsaved`: so is every record of it
    /// that this node still spreads.
    fn learn_equal(&mut self, now: Now, partition: Partition, horizon: u32, peer: NodeId, unsaved: &BTreeSet<JobId>) {
        if !self.placement.acting(partition).contains(&self.me.node) {
            // That the other has it does not say that it keeps it; its acknowledgement does.
            return;
        }
        let tracked: Vec<(JobId, u64, Version)> = self
            .records
            .in_partition(partition)
            .filter(|(job, held)| {
                self.replication.is_spreading(*job) && !unsaved.contains(job) && held.counts_at(horizon)
            })
            .map(|(job, held)| (job, held.revision, held.version))
            .collect();
        for (job, revision, version) in tracked {
            self.replication.learn(job, peer, revision, version);
            self.check_copies(now, job);
        }
    }

    /// Compares with one live node everything that both should hold, and what this node holds for it.
    pub(super) fn compare_with_somebody(&mut self) {
        let me = self.me.node;
        let live = self.membership.view().values().filter(|m| m.is_live() && m.facts.node != me);
        let others: Vec<NodeId> = live.map(|member| member.facts.node).collect();
        if others.is_empty() || self.sabotage.has(Bug::SkipAntiEntropy) {
            return;
        }
        let peer = others[self.rng.next_u32() as usize % others.len()];
        for partition in self.placement.all() {
            let is_stray = !self.keeps_for_now(partition) && self.records.count_in(partition) > 0;
            if (is_stray || self.should_keep(me, partition)) && self.should_keep(peer, partition) {
                self.comparison.want(peer, partition, Purpose::Routine);
            }
        }
    }

    /// Pushes again what has been on its way for long: a record that changed while it was compared is otherwise
    /// known to have arrived only by luck. Of very many, some at a time.
    pub(super) fn push_what_lingers(&mut self, now: Moment) {
        let lingers = self.config.timing.compare_interval;
        let from = std::mem::replace(&mut self.lingering_from, JobId(0));
        let lingering = self.replication.spreading_from(from).filter(|(_, since)| now.since(*since) > lingers);
        let lingering: Vec<JobId> = lingering.map(|(job, _)| job).take(LINGERING_AT_ONCE).collect();
        if lingering.len() == LINGERING_AT_ONCE {
            self.lingering_from = lingering.last().map_or(JobId(0), |last| JobId(last.0.wrapping_add(1)));
        }
        for job in &lingering {
            self.retarget(*job);
            self.dirty.insert(*job);
        }
        self.replication.push_again(&lingering);
    }

    /// Keeps account of who holds this node's strays of `partition`, so that they can be let go of.
    fn track_strays(&mut self, now: Moment, partition: Partition) {
        let strays: Vec<(JobId, u64)> =
            self.records.in_partition(partition).map(|(job, held)| (job, held.revision)).collect();
        for (job, revision) in strays {
            let targets = self.keepers(job);
            self.replication.track(now, job, revision, targets);
        }
    }

    /// The records that this node holds outside their acting lists, and not for a pod of its own.
    pub(super) fn strays(&self) -> impl Iterator<Item = JobId> + '_ {
        self.records
            .partitions_held()
            .iter()
            .filter(|partition| !self.keeps_for_now(*partition))
            .flat_map(|partition| self.records.in_partition(partition))
            .filter(move |(_, held)| !held.live_executors().contains(&self.me))
            .map(|(job, _)| job)
    }

    pub(super) fn nothing_spreads(&self) -> bool {
        self.replication.spreading_from(JobId(0)).next().is_none()
    }

    /// The nodes that are to have what is written to the record now, this one apart: the acting list, and whoever runs it.
    pub(super) fn targets(&self, job: JobId) -> BTreeSet<NodeId> {
        let acting = self.placement.acting(self.records.partition_of(job)).iter().copied();
        let view = self.membership.view();
        let live = |node: &NodeId| view.get(node).is_some_and(|member| member.is_live());
        let executors = self.records.get(job).map(|held| held.live_executors()).unwrap_or_default();
        let executors = executors.into_iter().map(|executor| executor.node);
        acting.chain(executors).filter(|node| *node != self.me.node && live(node)).collect()
    }

    /// Those of them that should hold the record although nothing was written to it of late.
    pub(super) fn keepers(&self, job: JobId) -> BTreeSet<NodeId> {
        let partition = self.records.partition_of(job);
        let mut keepers = self.targets(job);
        keepers.retain(|node| !self.stands_in(*node, partition));
        keepers
    }

    /// How many strays there are, and a few that await a pod.
    pub(super) fn stray_count(&self) -> u64 {
        let left = |partition: &Partition| !self.keeps_for_now(*partition);
        let held: u64 =
            self.records.partitions_held().iter().filter(left).map(|p| u64::from(self.records.count_in(p))).sum();
        let at_work: BTreeSet<JobId> = self.pods.values().map(|pod| pod.job).collect();
        let stays = |job: &JobId| {
            left(&self.records.partition_of(*job))
                && self.records.get(*job).is_some_and(|held| held.live_executors().contains(&self.me))
        };
        held - at_work.iter().filter(|job| stays(job)).count() as u64
    }

    /// The partitions that this node acts for and that are not, as far as it knows, the same everywhere.
    pub(super) fn behind(&self, now: Moment) -> BTreeSet<Partition> {
        let spreading = self.replication.spreading_from(JobId(0));
        let lagging = spreading.filter(|(_, since)| now.since(*since) > LAG_ALLOWED);
        let lagging: PartitionSet = lagging.map(|(job, _)| self.records.partition_of(job)).collect();
        let lagging = lagging.iter().filter(|partition| self.acts_for(*partition));
        let first_of = self.first_of.iter().copied();
        let not_caught_up = first_of.filter(|partition| !self.ownership.is_caught_up(*partition));
        let differing = self.ownership.differing.iter();
        let differing = differing.filter(|(partition, peer)| {
            self.placement.acting(*partition).contains(peer) && self.acts_for(*partition) && !self.is_busy(*partition)
        });
        let differing = differing.map(|(partition, _)| *partition);
        let short_of_copies = self.absence.waiting().filter(|partition| self.acts_for(*partition));
        let rest = not_caught_up.chain(differing).chain(short_of_copies);
        lagging.chain(rest).collect()
    }

    /// Whether this node acts for the partition, or will in a moment: what a restart finds on the disk stays there.
    pub(super) fn keeps_for_now(&self, partition: Partition) -> bool {
        let is_back = self.status() == Status::Returning && self.placement.home(partition).contains(&self.me.node);
        is_back || self.acts_for(partition)
    }

    fn acts_for(&self, partition: Partition) -> bool {
        self.placement.acting(partition).contains(&self.me.node)
    }

    /// Whether records of the partition are changing at this moment: then copies differ for a moment, too.
    fn is_busy(&self, partition: Partition) -> bool {
        self.records.in_partition(partition).any(|(_, held)| !held.state().is_terminal())
    }

    /// Notes whether all is well, for the debug page. These partitions are not the same everywhere.
    pub(super) fn watch_convergence(&mut self, now: Now, behind: &BTreeSet<Partition>) {
        let view = self.membership.view();
        let mine = self.placement.fingerprint();
        let agreed = view.values().all(|member| match member.state {
            MemberState::Alive => member.facts.ring == mine,
            MemberState::Suspect => false,
            MemberState::Down | MemberState::Left => true,
        });
        let well = agreed && self.status() == Status::Serving && behind.is_empty() && self.strays().next().is_none();
        if !well {
            self.last_trouble = now.moment;
            if self.settled_since.take().is_some() {
                self.unsettled_since = now;
            }
        } else if self.settled_since.is_none() && now.moment.since(self.last_trouble) >= CALM_FOR {
            self.settled_since = Some(now);
        }
    }

    /// A joining node serves as soon as it sees what the others see, or has looked for long enough.
    pub(super) fn try_to_join(&mut self, now: Now) {
        if !self.status().is_starting() || self.membership.conflict().is_some() {
            return;
        }
        let waited = now.moment.since(self.started);
        let timing = &self.config.timing;
        let others = || self.membership.view().values().filter(|member| member.facts.node != self.me.node);
        let mut serving =
            others().filter(|m| m.state == MemberState::Alive && m.facts.status == Status::Serving).peekable();
        let joined = if serving.peek().is_some() {
            serving.all(|member| member.facts.ring == self.placement.fingerprint())
        } else if others().any(|member| member.state == MemberState::Alive) {
            // All are new. Give those who start at the same time a moment to be seen.
            waited >= timing.gossip_interval * 3
        } else {
            !self.has_seeds && others().next().is_none()
        };
        if joined || waited >= timing.join_grace {
            self.membership.set_status(now, Status::Serving);
            self.gossip_urgently = true;
        }
    }
}
