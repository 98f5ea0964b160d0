//! The records this node holds, and what can be said of them without opening one: which are open, how a
//! partition sums up, what is newest.
//!
//! Every change goes through [`Records::put`] and [`Records::remove`], which keep the indexes; nobody else
//! touches them. A partition's digest is the exclusive or of its records' versions, so it does not depend on
//! the order in which they came and costs one operation a change. Sealed records are summed up by the hour in
//! which they expire, so that two nodes whose clocks differ can leave the same ones out of account.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::model::id::{JobId, JobIdPrefix, Partition};
use crate::model::member::PartitionSet;
use crate::model::record::{JobState, Record, Version};
use crate::model::request::{Cursor, Filter};
use crate::model::time::Moment;

/// A record, and what is known of it besides.
#[derive(Debug, Clone)]
pub struct Held {
    /// The record.
    pub record: Arc<Record>,
    /// Its version.
    pub version: Version,
    /// Its state.
    pub state: JobState,
    /// Counts the changes of this copy; what was sent or stored at one revision includes all earlier ones.
    pub revision: u64,
    /// When this node first knew of the job: its own clock's start for the job's waits.
    pub known_since: Moment,
    /// When this node saw the job's last attempt end.
    pub idle_since: Moment,
    /// Whether blobs that the record names are not here.
    pub lacking: bool,
}

impl Held {
    /// The version by which copies are compared. One that lacks blobs counts as another, so that comparing finds
    /// what is missing; and it is not merely altered by a constant, which two such copies would cancel out.
    pub fn compared(&self) -> Version {
        if self.lacking { Version(self.version.0.rotate_left(1)) } else { self.version }
    }
}

impl Held {
    /// Whether the record is taken into account where sealed ones that expire before `horizon` are not.
    pub fn counts_at(&self, horizon: u32) -> bool {
        self.record.seal.is_none_or(|seal| seal.expires_hour >= horizon)
    }
}

/// All records this node holds.
#[derive(Debug)]
pub struct Records {
    held: BTreeMap<JobId, Held>,
    open: BTreeSet<JobId>,
    /// Terminal, and not sealed.
    to_seal: BTreeSet<JobId>,
    /// Sealed, by the hour after which they may go.
    expiring: BTreeSet<(u32, JobId)>,
    by_age: BTreeSet<Cursor>,
    digests: Vec<Digest>,
    /// The partitions of which any record is held.
    inhabited: PartitionSet,
    next_revision: u64,
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
        Self {
            held: BTreeMap::new(),
            open: BTreeSet::new(),
            to_seal: BTreeSet::new(),
            expiring: BTreeSet::new(),
            by_age: BTreeSet::new(),
            digests: vec![Digest::default(); partitions as usize],
            inhabited: PartitionSet::default(),
            next_revision: 1,
        }
    }

    /// The record of `job`, if held.
    pub fn get(&self, job: JobId) -> Option<&Held> {
        self.held.get(&job)
    }

    /// Inserts or replaces a record, and returns its new revision. `version` must be its own.
    pub fn put(&mut self, now: Moment, record: Arc<Record>, version: Version) -> u64 {
        let id = record.id;
        let state = record.state();
        let revision = self.next_revision;
        self.next_revision += 1;
        let before = self.held.get(&id);
        let known_since = before.map_or(now, |held| held.known_since);
        let lacking = before.is_some_and(|held| held.lacking);
        // Whenever an attempt may have ended, the wait for the next one starts over.
        let idle_since = match before {
            Some(held) if held.state == state && held.record.attempts.len() == record.attempts.len() => held.idle_since,
            _ => now,
        };
        self.unindex(id);
        self.by_age.insert(cursor_of(&record));
        if !state.is_terminal() {
            self.open.insert(id);
        }
        let expires_hour = record.seal.map(|seal| seal.expires_hour);
        if let Some(hour) = expires_hour {
            self.expiring.insert((hour, id));
        } else if state.is_terminal() {
            self.to_seal.insert(id);
        }
        let held = Held { record, version, state, revision, known_since, idle_since, lacking };
        let digest = self.digest_mut(id);
        digest.toggle(expires_hour, held.compared());
        digest.count += 1;
        digest.open += u32::from(!state.is_terminal());
        self.inhabited.insert(self.partition_of(id));
        self.held.insert(id, held);
        revision
    }

    /// Says whether blobs that the record names are not here.
    pub fn set_lacking(&mut self, job: JobId, lacking: bool) {
        let Some(held) = self.held.get_mut(&job).filter(|held| held.lacking != lacking) else {
            return;
        };
        let before = held.compared();
        held.lacking = lacking;
        let (after, expires_hour) = (held.compared(), held.record.seal.map(|seal| seal.expires_hour));
        let digest = self.digest_mut(job);
        digest.toggle(expires_hour, before);
        digest.toggle(expires_hour, after);
    }

    /// Lets go of a record.
    pub fn remove(&mut self, job: JobId) {
        self.unindex(job);
        self.held.remove(&job);
    }

    /// Says that the job was known for `age` before this node's clock started: after a restart.
    pub fn backdate(&mut self, job: JobId, known_since: Moment) {
        if let Some(held) = self.held.get_mut(&job) {
            held.known_since = known_since;
            held.idle_since = known_since;
        }
    }

    fn unindex(&mut self, job: JobId) {
        let Some(held) = self.held.get(&job) else {
            return;
        };
        let (version, cursor, was_open) = (held.compared(), cursor_of(&held.record), !held.state.is_terminal());
        let expires_hour = held.record.seal.map(|seal| seal.expires_hour);
        self.by_age.remove(&cursor);
        self.open.remove(&job);
        self.to_seal.remove(&job);
        if let Some(hour) = expires_hour {
            self.expiring.remove(&(hour, job));
        }
        let digest = self.digest_mut(job);
        digest.toggle(expires_hour, version);
        digest.count -= 1;
        digest.open -= u32::from(was_open);
        if digest.count == 0 {
            self.inhabited.remove(self.partition_of(job));
        }
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
    pub fn in_partition(&self, partition: Partition) -> impl Iterator<Item = (JobId, &Held)> + '_ {
        let bits = (self.digests.len() as u32).trailing_zeros();
        let (low, high) = match bits {
            0 => (0, u128::MAX),
            bits => {
                let low = u128::from(partition.0) << (128 - bits);
                (low, low | (u128::MAX >> bits))
            }
        };
        self.held.range(JobId(low)..=JobId(high)).map(|(id, held)| (*id, held))
    }

    /// The records whose ids have this prefix.
    pub fn with_prefix(&self, prefix: JobIdPrefix) -> impl Iterator<Item = (JobId, &Held)> + '_ {
        self.held.range(prefix.low..=prefix.high).map(|(id, held)| (*id, held))
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
        self.expiring.range(..(horizon, JobId(0))).take(most).map(|(_, job)| *job).collect()
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
    pub fn iter(&self) -> impl Iterator<Item = (JobId, &Held)> + '_ {
        self.held.iter().map(|(id, held)| (*id, held))
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
        let newest = Cursor { submitted_at: crate::model::time::Timestamp(u64::MAX), job: JobId(u128::MAX) };
        let mut matching = self
            .by_age
            .range(..after.unwrap_or(newest))
            .rev()
            .filter(|cursor| partitions.contains(self.partition_of(cursor.job)))
            .filter_map(|cursor| self.held.get(&cursor.job))
            .filter(|held| matches(filter, held))
            .map(|held| Arc::clone(&held.record));
        let page: Vec<_> = matching.by_ref().take(limit).collect();
        let more = matching.next().is_some();
        (page, more)
    }
}

/// The job's place in the list of all jobs.
pub fn cursor_of(record: &Record) -> Cursor {
    Cursor { submitted_at: record.submission.submitted_at, job: record.id }
}

fn matches(filter: &Filter, held: &Held) -> bool {
    filter.state.is_none_or(|state| held.state == state)
        && filter.name.as_ref().is_none_or(|name| held.record.spec().name.as_ref() == Some(name))
        && filter
            .node
            .is_none_or(|node| held.record.telling().is_some_and(|attempt| attempt.claim.executor.node == node))
        && (!filter.overlapped || !held.record.overlaps().is_empty())
}
