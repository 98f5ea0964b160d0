//! The records this node holds, and what can be said of them without opening one: which are open, how a
//! partition sums up, what is newest.
//!
//! Every change goes through [`Records::put`] and [`Records::remove`], which keep the indexes; nobody else
//! touches them. A partition's digest is the exclusive or of its records' versions, so it does not depend on
//! the order in which they came and costs one operation a change. Sealed records are summed up by the hour in
//! which they expire, so that two nodes whose clocks differ can leave the same ones out of account.
//!
//! Think of an archive with one desk. What is being worked on lies open on the desk; everything else is packed
//! ([`Packed`]) with a label on the outside ([`Summary`]). The desk has room for `DESK_RECORDS`: whoever puts down one
//! more packs the one that was left alone for the longest time, and now and then everything is packed that nobody
//! has touched since the last time. So a node may know millions of jobs, and has memory for what it works on. Whoever
//! only looks at a packed record ([`Held::record`]) unpacks a copy of their own; whoever is about to change it
//! lays it on the desk first ([`Records::lay_open`]).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::model::id::{Actor, JobId, JobIdPrefix, Partition};
use crate::model::member::PartitionSet;
use crate::model::packed::{Packed, PackedRecord, Packer, Summary};
use crate::model::record::{JobState, Record, Version};
use crate::model::request::{Cursor, Filter};
use crate::model::time::{CoarseMoment, Moment, Timestamp};
use crate::protocol::sorted::Sorted;

/// Records that lie open at one time, at the most. Each takes about 2 KiB there.
const DESK_RECORDS: usize = 8_192;
/// So many are left open however long nobody touches them: they take half a megabyte, and where a node knows few jobs it
/// need not pack and unpack them at all.
const ALWAYS_OPEN: usize = 256;
/// A record that takes more bytes than this when written down is never left open: it takes as long to read as it
/// takes to unpack.
const DESK_BYTES: usize = 16 << 10;

/// For jobs that are not to be looked at again unless something happens.
const NEVER: CoarseMoment = CoarseMoment::LAST;

/// Open jobs are few where they are less than this part of all.
const FEW: usize = 8;

/// A record, and what is known of it besides.
#[derive(Debug, Clone, Copy)]
pub struct Held<'a> {
    job: JobId,
    /// Counts the changes of this copy; what was sent or stored at one revision includes all earlier ones.
    pub revision: u64,
    /// When this node first knew of the job: its own clock's start for the job's waits.
    pub known_since: Moment,
    /// When this node saw the job's last attempt end.
    pub idle_since: Moment,
    entry: &'a Entry,
}

/// What is kept of a record. [`Held`] shows it.
#[derive(Debug)]
pub struct Entry {
    body: Body,
    /// Its version.
    pub version: Version,
    revision: Revision,
    known_since: CoarseMoment,
    idle_since: CoarseMoment,
    /// When the job is to be looked at again. A moment that never comes where it is not.
    wake_at: CoarseMoment,
    /// What the record comes down to.
    pub summary: Summary,
    /// Whether blobs that the record names are not here.
    pub lacking: bool,
    /// Somebody changed it, or was about to, since the desk was last looked over.
    touched: bool,
}

/// There is one for every job that a node knows: what is added here is multiplied by millions.
const _: () = assert!(size_of::<Entry>() == 64);

/// A number of a change, in six bytes: enough for a million changes a second, for nine years.
#[derive(Debug, Clone, Copy)]
struct Revision([u8; 6]);

impl Revision {
    fn of(number: u64) -> Self {
        let [_, _, a, b, c, d, e, f] = number.to_be_bytes();
        Self([a, b, c, d, e, f])
    }

    fn number(self) -> u64 {
        let [a, b, c, d, e, f] = self.0;
        u64::from_be_bytes([0, 0, a, b, c, d, e, f])
    }
}

#[derive(Debug)]
enum Body {
    /// On the desk.
    Open(Arc<Record>),
    Packed(Packed),
}

impl Body {
    fn record(&self, job: JobId) -> Arc<Record> {
        match self {
            Self::Open(record) => Arc::clone(record),
            Self::Packed(packed) => Arc::new(packed.unpack(job)),
        }
    }
}

impl std::ops::Deref for Held<'_> {
    type Target = Entry;

    fn deref(&self) -> &Entry {
        self.entry
    }
}

impl<'a> Held<'a> {
    fn new(job: JobId, entry: &'a Entry) -> Self {
        let (revision, known_since) = (entry.revision.number(), entry.known_since.moment());
        Self { job, revision, known_since, idle_since: entry.idle_since.moment(), entry }
    }
}

impl Held<'_> {
    /// The job that it is of.
    pub fn job(&self) -> JobId {
        self.job
    }

    /// The record: shared where it lies open, else a copy that takes microseconds to unpack.
    pub fn record(&self) -> Arc<Record> {
        self.entry.body.record(self.job)
    }

    /// The executors of its live attempts. Looks into the record only where there may be any.
    pub fn live_executors(&self) -> Vec<Actor> {
        if !self.summary.has_open_fates() {
            return Vec::new();
        }
        let record = self.record();
        record.attempts.values().filter(|attempt| attempt.is_live()).map(|attempt| attempt.claim.executor).collect()
    }

    /// The record, if the filter holds for it.
    fn record_if(&self, filter: &Filter) -> Option<Arc<Record>> {
        let may_be = filter.state.is_none_or(|state| self.state() == state)
            && (!filter.overlapped || self.summary.has_overlaps())
            && match &self.entry.body {
                Body::Open(_) => true,
                Body::Packed(packed) => packed.may_match(filter),
            };
        let record = may_be.then(|| self.record())?;
        let has_name = filter.name.as_ref().is_none_or(|name| record.spec().name.as_ref() == Some(name));
        let node = record.telling().map(|attempt| attempt.claim.executor.node);
        (has_name && filter.node.is_none_or(|wanted| node == Some(wanted))).then_some(record)
    }
}

impl Entry {
    /// The record's state.
    pub fn state(&self) -> JobState {
        self.summary.state
    }

    /// The version by which copies are compared. One that lacks blobs counts as another, so that comparing finds
    /// what is missing; and it is not merely altered by a constant, which two such copies would cancel out.
    pub fn compared(&self) -> Version {
        if self.lacking { self.compared_without_blobs() } else { self.version }
    }

    /// The version by which this very record is compared where blobs of it are lacking.
    pub fn compared_without_blobs(&self) -> Version {
        Version(self.version.0.rotate_left(1))
    }

    /// Whether the record is taken into account where sealed ones that expire before `horizon` are not.
    pub fn counts_at(&self, horizon: u32) -> bool {
        self.summary.expires_hour().is_none_or(|hour| hour >= horizon)
    }

    /// Whether nothing can change the record any more.
    pub fn is_final(&self) -> bool {
        self.summary.expires_hour().is_some()
    }

    fn is_to_seal(&self) -> bool {
        self.state().is_terminal() && !self.is_final()
    }
}

/// A job's place in the list of all, in less room than a [`Cursor`] takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    submitted_at: u64,
    job: HalfAligned,
}

/// The number of a job in two halves, which leaves no gap beside other numbers.
type HalfAligned = [u64; 2];

fn halves(job: JobId) -> HalfAligned {
    [(job.0 >> 64) as u64, job.0 as u64]
}

fn whole(job: HalfAligned) -> JobId {
    JobId(u128::from(job[0]) << 64 | u128::from(job[1]))
}

impl From<Cursor> for Place {
    fn from(cursor: Cursor) -> Self {
        Self { submitted_at: cursor.submitted_at.0, job: halves(cursor.job) }
    }
}

impl Place {
    fn of(job: JobId, submitted_at: Timestamp) -> Self {
        Self::from(Cursor { submitted_at, job })
    }

    fn job(&self) -> JobId {
        whole(self.job)
    }
}

/// All records this node holds.
#[derive(Debug)]
pub struct Records {
    held: BTreeMap<JobId, Entry>,
    open: BTreeSet<JobId>,
    /// Terminal, and not sealed.
    to_seal: BTreeSet<JobId>,
    by_age: Sorted<Place>,
    /// When jobs are to be looked at again: what is in their entries, in order.
    wakings: Sorted<(CoarseMoment, HalfAligned)>,
    digests: Vec<Digest>,
    /// The partitions of which any record is held.
    inhabited: PartitionSet,
    next_revision: u64,
    /// Those that lie open, and some that do not any more, in the order in which they were laid there.
    desk: VecDeque<JobId>,
    packer: Packer,
}

#[derive(Debug, Clone, Default)]
struct Digest {
    /// Of the records that are not sealed.
    open_ended: u128,
    /// Of the sealed ones, by the hour after which they may go.
    by_hour: BTreeMap<u32, u128>,
    count: u32,
    /// How many of them are not terminal.
    open: u32,
}

impl Digest {
    fn add(&mut self, entry: &Entry) {
        self.toggle(entry.summary.expires_hour(), entry.compared());
        self.count += 1;
        self.open += u32::from(!entry.state().is_terminal());
    }

    fn take_away(&mut self, entry: &Entry) {
        self.toggle(entry.summary.expires_hour(), entry.compared());
        self.count -= 1;
        self.open -= u32::from(!entry.state().is_terminal());
    }

    /// Adds a version, or takes it away again.
    fn toggle(&mut self, expires_hour: Option<u32>, version: Version) {
        match expires_hour {
            None => self.open_ended ^= version.0,
            Some(hour) => {
                let sum = self.by_hour.entry(hour).or_default();
                *sum ^= version.0;
                if *sum == 0 {
                    self.by_hour.remove(&hour);
                }
            }
        }
    }
}

impl Records {
    /// None yet, in `partitions` partitions.
    pub fn new(partitions: u32) -> Self {
        Self::load(partitions, Vec::new(), Moment::START, |_, _| Moment::START)
    }

    /// Those that were stored. `known_since` says since when a job is known that was submitted at some time. When its last
    /// attempt ended nobody knows: the wait that follows begins anew.
    pub fn load(
        partitions: u32,
        stored: Vec<PackedRecord>,
        now: Moment,
        known_since: impl Fn(JobId, Timestamp) -> Moment,
    ) -> Self {
        // Maps that are made of everything at once are full; those that grow have room for as much again.
        let mut next_revision = 1;
        let mut entry = |stored: PackedRecord| {
            let PackedRecord { id, submitted_at, version, summary, body } = stored;
            let (since, revision) = (known_since(id, submitted_at).to_coarse(), Revision::of(next_revision));
            next_revision += 1;
            let entry = Entry {
                body: Body::Packed(body),
                version,
                revision,
                known_since: since,
                idle_since: now.to_coarse(),
                wake_at: NEVER,
                summary,
                lacking: false,
                touched: false,
            };
            (id, entry)
        };
        let by_age = stored.iter().map(|stored| Place::of(stored.id, stored.submitted_at)).collect();
        let held: BTreeMap<JobId, Entry> = stored.into_iter().map(&mut entry).collect();
        let mut digests = vec![Digest::default(); partitions as usize];
        let mut inhabited = PartitionSet::default();
        for (job, entry) in &held {
            let partition = job.partition(partitions);
            digests[usize::from(partition.0)].add(entry);
            inhabited.insert(partition);
        }
        let those = |holds: fn(&Entry) -> bool| {
            held.iter().filter(|(_, entry)| holds(entry)).map(|(job, _)| *job).collect::<BTreeSet<_>>()
        };
        let (open, to_seal) = (those(|entry| !entry.state().is_terminal()), those(Entry::is_to_seal));
        let (desk, packer, wakings) = (VecDeque::new(), Packer::default(), Sorted::default());
        Self { held, open, to_seal, by_age, wakings, digests, inhabited, next_revision, desk, packer }
    }

    /// The record of `job`, if held.
    pub fn get(&self, job: JobId) -> Option<Held<'_>> {
        self.held.get(&job).map(|entry| Held::new(job, entry))
    }

    /// The same, of one that is about to be changed or asked for several times: it lies open from now on.
    pub fn lay_open(&mut self, job: JobId) -> Option<Held<'_>> {
        let entry = self.held.get_mut(&job)?;
        entry.touched = true;
        if let Body::Packed(packed) = &entry.body
            && packed.unpacked_len() <= DESK_BYTES
        {
            entry.body = Body::Open(Arc::new(packed.unpack(job)));
            self.desk.push_back(job);
            self.keep_desk_small();
        }
        self.get(job)
    }

    /// The record has been known since this moment, elsewhere.
    pub fn know_since(&mut self, job: JobId, moment: Moment) {
        if let Some(entry) = self.held.get_mut(&job) {
            entry.known_since = moment.to_coarse();
        }
    }

    /// For how long these are known that wait for a time to pass.
    pub fn known_for(&self, now: Moment, records: &[Arc<Record>]) -> Vec<(JobId, Duration)> {
        let timed = records.iter().filter(|record| record.spec().waits_for_a_time());
        timed.filter_map(|record| Some((record.id, now.since(self.get(record.id)?.known_since)))).collect()
    }

    /// Inserts or replaces a record, and returns its new revision and its version.
    pub fn put(&mut self, now: Moment, record: Arc<Record>) -> (u64, Version) {
        let id = record.id;
        let encoded = self.packer.encode(&record);
        let (version, is_small) = (Version::of(encoded), encoded.len() <= DESK_BYTES);
        let summary = Summary::of(&record);
        let revision = self.next_revision;
        self.next_revision += 1;
        let place = Place::from(cursor_of(&record));
        let before = self.unindex(id, Some(place));
        let was_open = before.as_ref().is_some_and(|before| matches!(before.body, Body::Open(_)));
        let known_since = before.as_ref().map_or(now.to_coarse(), |before| before.known_since);
        let wake_at = before.as_ref().map_or(NEVER, |before| before.wake_at);
        let lacking = before.as_ref().is_some_and(|before| before.lacking);
        // Whenever an attempt may have ended, the wait for the next one starts over.
        let idle_since = match &before {
            Some(before) if before.state() == summary.state && before.summary.has_as_many_attempts(&summary) => {
                before.idle_since
            }
            _ => now.to_coarse(),
        };
        let body = if is_small { Body::Open(record) } else { Body::Packed(self.packer.pack(&record)) };
        let numbered = Revision::of(revision);
        let entry = Entry {
            body,
            version,
            revision: numbered,
            known_since,
            idle_since,
            wake_at,
            summary,
            lacking,
            touched: true,
        };
        self.by_age.insert(place);
        if !entry.state().is_terminal() {
            self.open.insert(id);
        } else if entry.is_to_seal() {
            self.to_seal.insert(id);
        }
        self.digest_mut(id).add(&entry);
        self.inhabited.insert(self.partition_of(id));
        self.held.insert(id, entry);
        if is_small && !was_open {
            self.desk.push_back(id);
            self.keep_desk_small();
        }
        (revision, version)
    }

    /// Packs what nobody has touched since the last call, but for a few.
    pub fn clear_desk(&mut self) {
        for _ in ALWAYS_OPEN..self.desk.len() {
            self.look_at_desk();
        }
    }

    fn keep_desk_small(&mut self) {
        while self.desk.len() > DESK_RECORDS {
            self.look_at_desk();
        }
    }

    /// Packs the record that has lain there for longest, or leaves it for another round if it was touched meanwhile.
    fn look_at_desk(&mut self) {
        let Some(job) = self.desk.pop_front() else {
            return;
        };
        let Some(entry) = self.held.get_mut(&job) else {
            return;
        };
        if let Body::Open(record) = &entry.body {
            if std::mem::take(&mut entry.touched) {
                self.desk.push_back(job);
            } else {
                entry.body = Body::Packed(self.packer.pack(record));
            }
        }
    }

    /// Says whether blobs that the record names are not here.
    pub fn set_lacking(&mut self, job: JobId, lacking: bool) {
        let Some(entry) = self.held.get_mut(&job).filter(|entry| entry.lacking != lacking) else {
            return;
        };
        let before = entry.compared();
        entry.lacking = lacking;
        let (after, expires_hour) = (entry.compared(), entry.summary.expires_hour());
        let digest = self.digest_mut(job);
        digest.toggle(expires_hour, before);
        digest.toggle(expires_hour, after);
    }

    /// Lets go of a record.
    pub fn remove(&mut self, job: JobId) {
        self.wake(job, None);
        self.unindex(job, None);
    }

    /// Says when the job is to be looked at again, or that it need not be. Nothing, if it is not held.
    pub fn wake(&mut self, job: JobId, at: Option<Moment>) {
        let Some(entry) = self.held.get_mut(&job) else {
            return;
        };
        // Never too early, or it would be found not to be due, and looked at again at once.
        let at = at.map_or(NEVER, |at| at.to_coarse().after());
        let before = std::mem::replace(&mut entry.wake_at, at);
        if before == at {
            return;
        }
        if before != NEVER {
            self.wakings.remove((before, halves(job)));
        }
        if at != NEVER {
            self.wakings.insert((at, halves(job)));
        }
    }

    /// When the next job is to be looked at.
    pub fn next_waking(&self) -> Option<Moment> {
        self.wakings.first().map(|(at, _)| at.moment())
    }

    /// Takes a job whose moment to be looked at has come.
    pub fn wake_next(&mut self, now: Moment) -> Option<JobId> {
        let (_, job) = self.wakings.first().filter(|(at, _)| at.moment() <= now)?;
        self.wake(whole(job), None);
        Some(whole(job))
    }

    /// Takes a record out, of all indexes too; of the list of all only if its place is not `place`.
    fn unindex(&mut self, job: JobId, place: Option<Place>) -> Option<Entry> {
        let entry = self.held.remove(&job)?;
        if !place.is_some_and(|place| self.by_age.contains(place)) {
            self.by_age.remove(Place::from(cursor_of(&entry.body.record(job))));
        }
        self.open.remove(&job);
        self.to_seal.remove(&job);
        let digest = self.digest_mut(job);
        digest.take_away(&entry);
        if digest.count == 0 {
            self.inhabited.remove(self.partition_of(job));
        }
        Some(entry)
    }

    fn digest_mut(&mut self, job: JobId) -> &mut Digest {
        let partition = self.partition_of(job);
        &mut self.digests[usize::from(partition.0)]
    }

    /// The partition of `job`.
    pub fn partition_of(&self, job: JobId) -> Partition {
        job.partition(self.digests.len() as u32)
    }

    /// What the partition's records come down to, without the sealed ones that expire before `horizon`; the
    /// default for none.
    pub fn digest(&self, partition: Partition, horizon: u32) -> Version {
        let digest = &self.digests[usize::from(partition.0)];
        Version(digest.by_hour.range(horizon..).fold(digest.open_ended, |sum, (_, versions)| sum ^ versions))
    }

    /// The records of `partition` that count at `horizon`, with their versions.
    pub fn versions_in(&self, partition: Partition, horizon: u32) -> impl Iterator<Item = (JobId, Version)> + '_ {
        self.in_partition(partition)
            .filter(move |(_, held)| held.counts_at(horizon))
            .map(|(job, held)| (job, held.compared()))
    }

    /// How many records of `partition` are held.
    pub fn count_in(&self, partition: Partition) -> u32 {
        self.digests[usize::from(partition.0)].count
    }

    /// How many records of `partition` are held that are not terminal.
    pub fn open_in(&self, partition: Partition) -> u32 {
        self.digests[usize::from(partition.0)].open
    }

    /// The partitions of which any record is held.
    pub fn partitions_held(&self) -> &PartitionSet {
        &self.inhabited
    }

    /// The records of `partition`, by id.
    pub fn in_partition(&self, partition: Partition) -> impl Iterator<Item = (JobId, Held<'_>)> + '_ {
        let bits = (self.digests.len() as u32).trailing_zeros();
        let (low, high) = match bits {
            0 => (0, u128::MAX),
            bits => {
                let low = u128::from(partition.0) << (128 - bits);
                (low, low | (u128::MAX >> bits))
            }
        };
        self.held.range(JobId(low)..=JobId(high)).map(|(id, entry)| (*id, Held::new(*id, entry)))
    }

    /// The records whose ids have this prefix.
    pub fn with_prefix(&self, prefix: JobIdPrefix) -> impl Iterator<Item = (JobId, Held<'_>)> + '_ {
        self.held.range(prefix.low..=prefix.high).map(|(id, entry)| (*id, Held::new(*id, entry)))
    }

    /// The jobs that are not terminal.
    pub fn open(&self) -> &BTreeSet<JobId> {
        &self.open
    }

    /// The terminal jobs that are not sealed yet.
    pub fn to_seal(&self) -> &BTreeSet<JobId> {
        &self.to_seal
    }

    /// Up to `most` sealed records that expire before `horizon`.
    pub fn expired(&self, horizon: u32, most: usize) -> Vec<JobId> {
        let has_any = |digest: &Digest| digest.by_hour.first_key_value().is_some_and(|(hour, _)| *hour < horizon);
        let partitions = self.digests.iter().enumerate().filter(|(_, digest)| has_any(digest));
        let records = partitions.flat_map(|(at, _)| self.in_partition(Partition(at as u16)));
        records.filter(|(_, held)| !held.counts_at(horizon)).map(|(job, _)| job).take(most).collect()
    }

    /// How many records are held.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Whether none is held.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Every record, by id.
    pub fn iter(&self) -> impl Iterator<Item = (JobId, Held<'_>)> + '_ {
        self.held.iter().map(|(id, entry)| (*id, Held::new(*id, entry)))
    }

    /// Up to `limit` records of `partitions` that `filter` holds for, newest first, those after `after` only;
    /// and whether there are more.
    pub fn list(
        &self,
        filter: &Filter,
        after: Option<Cursor>,
        limit: usize,
        partitions: &PartitionSet,
    ) -> (Vec<Arc<Record>>, bool) {
        let newest = Place { submitted_at: u64::MAX, job: [u64::MAX; 2] };
        let before = after.map_or(newest, Place::from);
        let few = self.few_open(filter);
        let places = match &few {
            Some(open) => open,
            None => &self.by_age,
        };
        let mut matching = places
            .down_from(before)
            .map(|place| place.job())
            .filter(|job| partitions.contains(self.partition_of(*job)))
            .filter_map(|job| self.get(job)?.record_if(filter));
        let page: Vec<_> = matching.by_ref().take(limit).collect();
        let more = matching.next().is_some();
        (page, more)
    }

    /// The places of all jobs in a state that only few are in: those are sought out, where going through all the others
    /// would take long.
    fn few_open(&self, filter: &Filter) -> Option<Sorted<Place>> {
        let wanted = filter.state.filter(|state| !state.is_terminal())?;
        if self.open.len() > self.held.len() / FEW {
            return None;
        }
        let held = self.open.iter().filter_map(|job| self.get(*job)).filter(|held| held.state() == wanted);
        Some(held.map(|held| Place::from(cursor_of(&held.record()))).collect())
    }
}

/// The job's place in the list of all jobs.
pub fn cursor_of(record: &Record) -> Cursor {
    Cursor { submitted_at: record.submission.submitted_at, job: record.id }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::{Dot, Generation, NodeId};
    use crate::model::record::{Seal, Stop, StopKind, Submission};
    use crate::model::spec::Spec;

    const NOW: Moment = Moment::START;
    const ME: Actor = Actor { node: NodeId(7), generation: Generation(1) };

    fn dot(counter: u64) -> Dot {
        Dot { actor: ME, counter }
    }

    /// Spread over all partitions, submitted one after the other, and every tenth has a name.
    fn record(number: u64) -> Record {
        let id = JobId(u128::from(number.wrapping_mul(0x9e37_79b9_7f4a_7c15)) << 64 | u128::from(number));
        let name = number.is_multiple_of(10).then(|| "tenth".to_owned());
        let spec = Spec { command: vec!["/bin/true".into()], name, ..Spec::default() };
        let submitted_at = Timestamp(1_700_000_000_000 + number);
        let submission = Submission { spec, submitted_at, gateway: ME.node, home: vec![ME.node], retry_of: None };
        Record::new(id, Arc::new(submission), dot(number + 1))
    }

    fn cancelled(mut record: Record) -> Record {
        record.request_stop(Stop { kind: StopKind::Cancelled, dot: dot(9), at: Timestamp(9), reason: String::new() });
        record
    }

    fn held(records: impl IntoIterator<Item = Record>) -> Records {
        let mut held = Records::new(64);
        for record in records {
            held.put(NOW, Arc::new(record));
        }
        held
    }

    fn is_open(records: &Records, job: JobId) -> bool {
        matches!(records.held[&job].body, Body::Open(_))
    }

    fn lying_open(records: &Records) -> usize {
        records.held.keys().filter(|job| is_open(records, **job)).count()
    }

    #[test]
    fn most_are_packed_and_all_are_what_was_put_there() {
        let count = 3 * DESK_RECORDS as u64;
        let records = held((0..count).map(record));
        assert_eq!((records.len(), lying_open(&records)), (count as usize, DESK_RECORDS));
        for number in 0..count {
            let expected = record(number);
            let found = records.get(expected.id).unwrap();
            assert_eq!((&*found.record(), found.version), (&expected, expected.version()));
        }
    }

    #[test]
    fn what_is_worked_on_stays_open_and_the_rest_is_packed_in_time() {
        let count = ALWAYS_OPEN as u64 + 100;
        let mut records = held((0..count).map(record));
        let busy = record(50).id;
        records.clear_desk();
        assert_eq!(lying_open(&records), ALWAYS_OPEN + 100, "all were touched a moment ago");
        for _ in 0..10 {
            records.lay_open(busy).unwrap();
            records.clear_desk();
            assert!(is_open(&records, busy));
        }
        assert_eq!(lying_open(&records), ALWAYS_OPEN);
        let packed = (0..count).map(record).find(|record| !is_open(&records, record.id)).unwrap();
        let changed = cancelled(packed);
        records.put(NOW, Arc::new(changed.clone()));
        assert!(is_open(&records, changed.id));
        assert_eq!(*records.get(changed.id).unwrap().record(), changed);
    }

    #[test]
    fn large_ones_are_never_left_open() {
        let mut large = record(1);
        let spec = Spec { command: vec!["x".repeat(2 * DESK_BYTES)], ..large.spec().clone() };
        large.submission = Arc::new(Submission { spec, ..Submission::clone(&large.submission) });
        let mut records = held([large.clone()]);
        assert_eq!(lying_open(&records), 0);
        assert_eq!(*records.lay_open(large.id).unwrap().record(), large);
        assert_eq!(lying_open(&records), 0);
    }

    #[test]
    fn a_job_is_woken_once_at_the_last_moment_said_and_not_before() {
        let mut records = held((0..3).map(record));
        let [early, late, dropped] = [0, 1, 2].map(|number| record(number).id);
        let at = |ms| NOW + std::time::Duration::from_millis(ms);
        for (job, moment) in [(early, 300), (late, 100), (dropped, 50), (early, 10), (late, 20)] {
            records.wake(job, Some(at(moment)));
        }
        records.wake(record(9).id, Some(at(1)));
        records.remove(dropped);
        // A change of the record changes nothing about that.
        records.put(at(5), Arc::new(cancelled(record(0))));
        let next = records.next_waking().unwrap();
        assert!(next >= at(10) && next <= at(11), "{next:?}");
        assert_eq!(records.wake_next(at(10)), None);
        assert_eq!(records.wake_next(next), Some(early));
        assert_eq!((records.wake_next(next), records.wake_next(at(21))), (None, Some(late)));
        records.wake(late, Some(at(30)));
        records.wake(late, None);
        assert_eq!((records.wake_next(at(1_000)), records.next_waking()), (None, None));
    }

    #[test]
    fn a_load_and_the_same_records_one_by_one_are_equal() {
        let all = || (0..500).map(|number| if number % 3 == 0 { cancelled(record(number)) } else { record(number) });
        let one_by_one = held(all());
        let stored = all().map(|record| PackedRecord::from(&record)).collect();
        let loaded = Records::load(64, stored, NOW, |_, _| NOW);
        assert_eq!((&loaded.open, &loaded.to_seal), (&one_by_one.open, &one_by_one.to_seal));
        assert_eq!(loaded.by_age, one_by_one.by_age);
        for partition in (0..64).map(Partition) {
            assert_eq!(loaded.digest(partition, 0), one_by_one.digest(partition, 0));
            let counts = |records: &Records| (records.count_in(partition), records.open_in(partition));
            assert_eq!(counts(&loaded), counts(&one_by_one));
        }
    }

    #[test]
    fn lists_are_the_same_whether_packed_or_open() {
        let mut records =
            held((0..1_000).map(|number| if number % 4 == 0 { cancelled(record(number)) } else { record(number) }));
        let all = records.partitions_held().clone();
        let named = Filter { name: Some("tenth".into()), ..Filter::default() };
        let stopped = Filter { state: Some(JobState::Cancelled), ..named.clone() };
        let list = |records: &Records, filter: &Filter| {
            let (page, more) = records.list(filter, None, 75, &all);
            (page.iter().map(|record| record.id).collect::<Vec<_>>(), more)
        };
        let open = (list(&records, &named), list(&records, &stopped));
        for _ in 0..10 {
            records.clear_desk();
        }
        assert_eq!(lying_open(&records), ALWAYS_OPEN);
        assert_eq!((list(&records, &named), list(&records, &stopped)), open);
        assert_eq!(open.0, ((25..100).rev().map(|tenth| record(tenth * 10).id).collect(), true));
        assert_eq!(open.1, ((0..50).rev().map(|twentieth| record(twentieth * 20).id).collect(), false));
    }

    #[test]
    fn few_open_jobs_among_many_are_listed_as_if_they_were_many() {
        let records =
            held((0..400).map(|number| if number % 40 == 0 { record(number) } else { cancelled(record(number)) }));
        let all = records.partitions_held();
        let pending = Filter { state: Some(JobState::Pending), ..Filter::default() };
        assert!(records.few_open(&pending).is_some() && records.few_open(&Filter::default()).is_none());
        let (first, more) = records.list(&pending, None, 4, all);
        let (rest, no_more) = records.list(&pending, first.last().map(|record| cursor_of(record)), 10, all);
        assert_eq!((first.len(), more, rest.len(), no_more), (4, true, 6, false));
        let listed: Vec<JobId> = first.iter().chain(&rest).map(|record| record.id).collect();
        assert_eq!(listed, (0..10).rev().map(|number| record(number * 40).id).collect::<Vec<_>>());
    }

    #[test]
    fn what_expires_is_found_and_leaves_nothing_behind() {
        let sealed = |number, expires_hour| {
            let mut record = cancelled(record(number));
            record.seal(Seal { expires_hour, dot: dot(10), at: Timestamp(10) });
            record
        };
        let (early, late) = (sealed(1, 100), sealed(2, 200));
        let mut records = held([early.clone(), late.clone(), record(3)]);
        assert!(records.expired(100, 10).is_empty());
        assert_eq!(records.expired(101, 10), [early.id]);
        assert_eq!(records.expired(u32::MAX, 1).len(), 1);
        records.remove(early.id);
        assert_eq!(records.expired(101, 10), []);
        records.remove(late.id);
        records.remove(record(3).id);
        let empty = Records::new(64);
        assert_eq!((records.len(), &records.by_age), (0, &empty.by_age));
        assert!((0..64).map(Partition).all(|partition| records.digest(partition, 0) == Version::default()));
    }
}
