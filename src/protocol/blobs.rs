//! The blobs that this node's records name: which are on its disk, which are on their way there, and whom to ask
//! for the rest.
//!
//! Think of a cloakroom attendant who has labels for everything that should hang here. A record that arrives
//! brings its labels at once; the pieces may come later, and until they do the attendant asks for them, one
//! neighbour after the other. A piece whose last label is gone is given away with the same commit.
//!
//! The content itself is only ever passing through: from a pod or a peer to the next commit, within a bound. What
//! this node has just made, and is small, is kept a little longer, because it can then ride along with the push of
//! its record and spare everybody a question.
//!
//! **The rule.** A node acknowledges a record only when it has every blob that the record names, or has asked
//! everybody alive who might have it and all have said no ([`expects`](Blobs::expects)). The exception keeps a
//! content that died with its only holder from holding up its job for ever. It is still asked for now and then,
//! since the holder may come back.
//!
//! Not known here: what records mean, who is alive, how a blob travels.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::model::blob::{Blob, BlobId, BlobRef};
use crate::model::id::{JobId, NodeId};
use crate::model::time::Moment;

use super::effect::Fetched;

/// Blobs that are asked for at one time, at the most.
const FETCHES: usize = 16;
/// Bytes that are under way to the disk, fetched or about to be, before no further blob is asked for.
const BYTES_UNDER_WAY: u64 = 32 << 20;
/// A blob up to this size rides along with its record.
const RIDES_ALONG_BYTES: u64 = 64 << 10;
/// How much is kept in memory for that.
const KEPT_TO_RIDE_BYTES: u64 = 8 << 20;
/// How long after everybody was asked in vain it is tried again: at first, and at the most.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Every blob that is named, and where it stands.
#[derive(Debug, Default)]
pub struct Blobs {
    named: BTreeMap<BlobId, Named>,
    /// Contents that were just handed in, for records that are about to name them.
    offered: BTreeMap<BlobId, Blob>,
    /// Lacking ones that somebody may be asked for now.
    to_ask: BTreeSet<BlobId>,
    /// Lacking ones that everybody was asked for.
    pauses: BTreeSet<(Moment, BlobId)>,
    /// Whom they are being asked of, and their size.
    under_way: BTreeMap<BlobId, (NodeId, u64)>,
    bytes_under_way: u64,
    own: OwnBlobs,
}

#[derive(Debug)]
struct Named {
    size: u64,
    by: Names,
    place: Place,
}

#[derive(Debug)]
enum Place {
    /// On this node's disk.
    Stored,
    /// Waits for the next commit, or for the one under way.
    ToStore(Box<Blob>),
    /// Not here.
    Lacking(Box<Search>),
}

/// The jobs whose records name a blob. Nearly always there is one, and a million blobs are that many ones.
#[derive(Debug)]
enum Names {
    One(JobId),
    Many(BTreeSet<JobId>),
}

impl Names {
    fn insert(&mut self, job: JobId) {
        match self {
            Self::One(known) if *known == job => {}
            Self::One(known) => *self = Self::Many(BTreeSet::from([*known, job])),
            Self::Many(known) => _ = known.insert(job),
        }
    }

    /// Returns whether none is left.
    fn remove(&mut self, job: JobId) -> bool {
        match self {
            Self::One(known) => *known == job,
            Self::Many(known) => {
                known.remove(&job);
                known.is_empty()
            }
        }
    }

    fn iter(&self) -> impl Iterator<Item = JobId> + '_ {
        let (one, many) = match self {
            Self::One(job) => (Some(*job), None),
            Self::Many(jobs) => (None, Some(jobs)),
        };
        one.into_iter().chain(many.into_iter().flatten().copied())
    }
}

/// Who was asked for a blob, and with what success, since the last pause.
#[derive(Debug, Default)]
struct Search {
    /// Nodes that sent a record which names it.
    likely: BTreeSet<NodeId>,
    absent: BTreeSet<NodeId>,
    failed: BTreeSet<NodeId>,
    rounds: u32,
    /// Everybody alive has said that they do not have it.
    nowhere: bool,
    /// Everybody was asked, and is asked again then.
    paused_until: Option<Moment>,
}

/// What the next commit has to do about a blob.
#[derive(Debug)]
pub enum Storing {
    /// Write it.
    Put(Blob),
    /// Delete it.
    Drop,
    /// Nothing: it is there, or is not here yet.
    Nothing,
}

impl Blobs {
    /// None named yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// At the start: the blobs on the disk, and the records' names of them. Returns the ids on the disk that no
    /// record names.
    pub fn load(&mut self, stored: &[BlobRef], named: impl Iterator<Item = (JobId, BlobRef)>) -> Vec<BlobId> {
        let on_disk: BTreeSet<BlobId> = stored.iter().map(|blob| blob.id).collect();
        for (job, blob) in named {
            self.add_name(job, blob);
        }
        for id in &on_disk {
            self.set_stored(*id);
        }
        on_disk.into_iter().filter(|id| !self.named.contains_key(id)).collect()
    }

    /// Contents have come of which records name some already, or will in a moment, until
    /// [`withdraw_offers`](Self::withdraw_offers). Returns those that were lacking.
    pub fn offer(&mut self, blobs: impl IntoIterator<Item = Blob>) -> Vec<BlobId> {
        let mut came = Vec::new();
        for blob in blobs {
            if self.take_in(&blob) {
                came.push(blob.id());
            } else {
                self.offered.insert(blob.id(), blob);
            }
        }
        came
    }

    /// As [`offer`](Self::offer), for what a pod of this node has made: it rides along with its record.
    pub fn offer_own(&mut self, blob: Blob) -> Vec<BlobId> {
        self.own.keep(&blob);
        self.offer([blob])
    }

    /// Whatever was offered and is named by no record is forgotten.
    pub fn withdraw_offers(&mut self) {
        self.offered.clear();
    }

    /// The blobs that a job's record names were `before` and are `after`. Returns those whose storing changes.
    pub fn rename(&mut self, job: JobId, before: &BTreeSet<BlobRef>, after: &BTreeSet<BlobRef>) -> Vec<BlobId> {
        let mut changed = Vec::new();
        for blob in after.difference(before) {
            if self.add_name(job, *blob) {
                changed.push(blob.id);
            }
        }
        for blob in before.difference(after) {
            if self.remove_name(job, blob.id) {
                changed.push(blob.id);
            }
        }
        changed
    }

    /// Returns whether there is something to store.
    fn add_name(&mut self, job: JobId, blob: BlobRef) -> bool {
        if let Some(named) = self.named.get_mut(&blob.id) {
            named.by.insert(job);
            return false;
        }
        let search = Place::Lacking(Box::default());
        self.named.insert(blob.id, Named { size: blob.size, by: Names::One(job), place: search });
        self.to_ask.insert(blob.id);
        match self.offered.remove(&blob.id) {
            Some(offered) => self.take_in(&offered),
            None => false,
        }
    }

    /// Returns whether it was the last name.
    fn remove_name(&mut self, job: JobId, id: BlobId) -> bool {
        let Some(named) = self.named.get_mut(&id) else {
            return false;
        };
        if !named.by.remove(job) {
            return false;
        }
        let Some(named) = self.named.remove(&id) else {
            return false;
        };
        match named.place {
            Place::ToStore(_) => self.bytes_under_way = self.bytes_under_way.saturating_sub(named.size),
            Place::Lacking(search) => self.stop_search(id, &search),
            Place::Stored => {}
        }
        true
    }

    /// Takes the content of a blob that is lacking. Returns whether it was.
    fn take_in(&mut self, blob: &Blob) -> bool {
        let Some(named) = self.named.get_mut(&blob.id()).filter(|named| matches!(named.place, Place::Lacking(_)))
        else {
            return false;
        };
        // What the record says of the size may be wrong, where somebody broke the rules.
        named.size = blob.size();
        self.bytes_under_way += blob.size();
        if let Place::Lacking(search) = std::mem::replace(&mut named.place, Place::ToStore(Box::new(blob.clone()))) {
            self.stop_search(blob.id(), &search);
        }
        true
    }

    fn set_stored(&mut self, id: BlobId) {
        let Some(named) = self.named.get_mut(&id) else {
            return;
        };
        match std::mem::replace(&mut named.place, Place::Stored) {
            Place::ToStore(_) => self.bytes_under_way = self.bytes_under_way.saturating_sub(named.size),
            Place::Lacking(search) => self.stop_search(id, &search),
            Place::Stored => {}
        }
    }

    fn stop_search(&mut self, id: BlobId, search: &Search) {
        self.to_ask.remove(&id);
        if let Some(until) = search.paused_until {
            self.pauses.remove(&(until, id));
        }
    }

    /// `from` has sent a record that names the blob, so it most likely has the content.
    pub fn hint(&mut self, id: BlobId, from: NodeId) {
        if let Some(Named { place: Place::Lacking(search), .. }) = self.named.get_mut(&id)
            && !search.absent.contains(&from)
            && search.likely.insert(from)
        {
            // It speaks, so it is worth another question even if it left the last one unanswered.
            search.failed.remove(&from);
            search.nowhere = false;
            if let Some(until) = search.paused_until.take() {
                self.pauses.remove(&(until, id));
            }
            self.to_ask.insert(id);
        }
    }

    /// `from` says that it has the content now, whatever it said before.
    pub fn assure(&mut self, id: BlobId, from: NodeId) {
        if let Some(Named { place: Place::Lacking(search), .. }) = self.named.get_mut(&id) {
            search.absent.remove(&from);
            search.likely.remove(&from);
            self.hint(id, from);
        }
    }

    /// A node is there that was not: it may have what nobody else has.
    pub fn handle_back(&mut self, node: NodeId) {
        for (_, id) in std::mem::take(&mut self.pauses) {
            if let Some(Named { place: Place::Lacking(search), .. }) = self.named.get_mut(&id) {
                search.paused_until = None;
                search.absent.remove(&node);
                search.failed.remove(&node);
                self.to_ask.insert(id);
            }
        }
    }

    /// Whether the blob is named and its content is not here.
    pub fn lacks(&self, id: BlobId) -> bool {
        self.named.get(&id).is_some_and(|named| matches!(named.place, Place::Lacking(_)))
    }

    /// The content, where it is here and not on the disk yet. Whoever is asked for a blob must look here as well: to
    /// say that it is not there would be taken at its word.
    pub fn unstored(&self, id: BlobId) -> Option<&Blob> {
        match self.named.get(&id).map(|named| &named.place) {
            Some(Place::ToStore(blob)) => Some(blob),
            Some(Place::Stored | Place::Lacking(_)) | None => None,
        }
    }

    /// Whether the content is not here, and somebody may still have it.
    pub fn expects(&self, id: BlobId) -> bool {
        self.named.get(&id).is_some_and(|named| match &named.place {
            Place::Lacking(search) => !search.nowhere,
            Place::Stored | Place::ToStore(_) => false,
        })
    }

    /// The jobs whose records name the blob.
    pub fn jobs_of(&self, id: BlobId) -> Vec<JobId> {
        self.named.get(&id).map(|named| named.by.iter().collect()).unwrap_or_default()
    }

    /// How many blobs are lacking.
    pub fn lacking(&self) -> usize {
        self.to_ask.len() + self.pauses.len() + self.under_way.len()
    }

    /// The next question to ask, and of whom. `candidates` says who, alive, might have what a job's record names.
    /// What it leaves behind in `nowhere` are blobs of which that has just become clear.
    pub fn poll_fetch(
        &mut self,
        now: Moment,
        candidates: impl Fn(JobId) -> BTreeSet<NodeId>,
        nowhere: &mut Vec<BlobId>,
    ) -> Option<(NodeId, BlobRef)> {
        while self.under_way.len() < FETCHES && self.bytes_under_way < BYTES_UNDER_WAY {
            let id = self.to_ask.pop_first()?;
            let Some(named) = self.named.get_mut(&id) else {
                continue;
            };
            let Place::Lacking(search) = &mut named.place else {
                continue;
            };
            if self.under_way.contains_key(&id) {
                continue;
            }
            let fresh = |node: &NodeId| !search.absent.contains(node) && !search.failed.contains(node);
            let likely = search.likely.iter().copied().find(fresh);
            let chosen = likely.or_else(|| named.by.iter().flat_map(&candidates).find(|node| fresh(node)));
            if let Some(node) = chosen {
                self.under_way.insert(id, (node, named.size));
                self.bytes_under_way += named.size;
                return Some((node, BlobRef { id, size: named.size }));
            }
            // Everybody was asked. One who could not answer might have it; only a no is a no.
            if search.failed.is_empty() && !search.nowhere {
                search.nowhere = true;
                nowhere.push(id);
            }
            let pause = FIRST_PAUSE.saturating_mul(1 << search.rounds.min(5)).min(LONGEST_PAUSE);
            search.rounds += 1;
            search.paused_until = Some(now + pause);
            self.pauses.insert((now + pause, id));
        }
        None
    }

    /// What came of asking `from`. Returns whether the blob has come, and must be stored.
    pub fn handle_fetched(&mut self, from: NodeId, id: BlobId, fetched: Fetched) -> bool {
        if self.under_way.get(&id).is_none_or(|(asked, _)| *asked != from) {
            return false;
        }
        if let Some((_, size)) = self.under_way.remove(&id) {
            self.bytes_under_way = self.bytes_under_way.saturating_sub(size);
        }
        let Some(Named { place: Place::Lacking(search), .. }) = self.named.get_mut(&id) else {
            return false;
        };
        match fetched {
            Fetched::Found(blob) if blob.id() == id => return self.take_in(&blob),
            Fetched::Absent => search.absent.insert(from),
            Fetched::Found(_) | Fetched::Failed => search.failed.insert(from),
        };
        self.to_ask.insert(id);
        false
    }

    /// When the next pause is over.
    pub fn poll_timeout(&self) -> Option<Moment> {
        self.pauses.first().map(|(at, _)| *at)
    }

    /// Asks everybody again for blobs whose pause is over.
    pub fn handle_timeout(&mut self, now: Moment) {
        while let Some((at, id)) = self.pauses.first().copied().filter(|(at, _)| *at <= now) {
            self.pauses.remove(&(at, id));
            if let Some(Named { place: Place::Lacking(search), .. }) = self.named.get_mut(&id) {
                search.paused_until = None;
                search.absent.clear();
                search.failed.clear();
                search.likely.clear();
                self.to_ask.insert(id);
            }
        }
    }

    /// What the next commit has to do about a blob whose storing changed.
    pub fn storing(&self, id: BlobId) -> Storing {
        match self.named.get(&id).map(|named| &named.place) {
            Some(Place::ToStore(blob)) => Storing::Put(Blob::clone(blob)),
            Some(Place::Stored | Place::Lacking(_)) => Storing::Nothing,
            None => Storing::Drop,
        }
    }

    /// These blobs are on the disk now. Returns those that were lacking: their last name had gone while they were written,
    /// and another came.
    pub fn handle_stored(&mut self, ids: &[BlobId]) -> Vec<BlobId> {
        let found = ids.iter().copied().filter(|id| self.lacks(*id)).collect();
        for id in ids {
            self.set_stored(*id);
        }
        found
    }

    /// The disk has damaged a blob: it is asked for anew.
    pub fn handle_damaged(&mut self, id: BlobId) {
        if let Some(named) = self.named.get_mut(&id)
            && matches!(named.place, Place::Stored)
        {
            named.place = Place::Lacking(Box::default());
            self.to_ask.insert(id);
        }
    }

    /// The blobs of a record that should ride along with its push to `to`: those of this node's own making that
    /// were not sent there before.
    pub fn riding_along(&mut self, to: NodeId, names: &BTreeSet<BlobRef>) -> Vec<Blob> {
        self.own.riding_along(to, names)
    }
}

/// Small blobs that this node has lately made, and to whom each was sent.
#[derive(Debug, Default)]
struct OwnBlobs {
    kept: BTreeMap<BlobId, (Blob, BTreeSet<NodeId>)>,
    in_order: VecDeque<BlobId>,
    bytes: u64,
}

impl OwnBlobs {
    fn keep(&mut self, blob: &Blob) {
        if blob.size() > RIDES_ALONG_BYTES || self.kept.contains_key(&blob.id()) {
            return;
        }
        self.kept.insert(blob.id(), (blob.clone(), BTreeSet::new()));
        self.in_order.push_back(blob.id());
        self.bytes += blob.size();
        while self.bytes > KEPT_TO_RIDE_BYTES {
            let Some((oldest, _)) = self.in_order.pop_front().and_then(|id| self.kept.remove(&id)) else { break };
            self.bytes -= oldest.size();
        }
    }

    fn riding_along(&mut self, to: NodeId, names: &BTreeSet<BlobRef>) -> Vec<Blob> {
        let mut riding = Vec::new();
        for name in names {
            if let Some((blob, sent_to)) = self.kept.get_mut(&name.id)
                && sent_to.insert(to)
            {
                riding.push(blob.clone());
            }
        }
        riding
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JOB: JobId = JobId(1);
    const A: NodeId = NodeId(0xa);
    const B: NodeId = NodeId(0xb);

    fn blob(text: &str) -> Blob {
        Blob::new(text.as_bytes().to_vec())
    }

    fn names(blobs: &[&Blob]) -> BTreeSet<BlobRef> {
        blobs.iter().map(|blob| blob.reference()).collect()
    }

    /// Blobs of which one is named and lacking, from a record that `A` sent.
    fn lacking(lost: &Blob) -> Blobs {
        let mut blobs = Blobs::new();
        assert_eq!(blobs.rename(JOB, &names(&[]), &names(&[lost])), [], "there is nothing to store yet");
        blobs.hint(lost.id(), A);
        assert!(blobs.lacks(lost.id()) && blobs.expects(lost.id()));
        blobs
    }

    /// Whom it asks next, and what it has found to be nowhere.
    fn ask(blobs: &mut Blobs, now: Moment, alive: &[NodeId]) -> (Option<NodeId>, Vec<BlobId>) {
        let mut nowhere = Vec::new();
        let asked = blobs.poll_fetch(now, |_| alive.iter().copied().collect(), &mut nowhere);
        (asked.map(|(node, _)| node), nowhere)
    }

    #[test]
    fn whoever_has_got_it_since_is_asked_although_it_said_no_before() {
        let state = blob("state");
        let mut blobs = lacking(&state);
        let now = Moment::START;
        assert_eq!(ask(&mut blobs, now, &[A]), (Some(A), vec![]));
        blobs.handle_fetched(A, state.id(), Fetched::Absent);
        assert_eq!(ask(&mut blobs, now, &[A]), (None, vec![state.id()]), "nobody has it");
        assert!(!blobs.expects(state.id()));

        blobs.hint(state.id(), A);
        assert!(!blobs.expects(state.id()), "the record alone says nothing new");
        blobs.assure(state.id(), A);
        assert!(blobs.expects(state.id()), "an acknowledgement has to wait for it");
        assert_eq!(ask(&mut blobs, now, &[A]), (Some(A), vec![]));
        assert!(blobs.handle_fetched(A, state.id(), Fetched::Found(state.clone())));
        assert!(!blobs.lacks(state.id()));
    }

    #[test]
    fn whoever_sent_the_record_is_asked_first_and_then_the_others() {
        let state = blob("state");
        let mut blobs = lacking(&state);
        let now = Moment::START;
        assert_eq!(ask(&mut blobs, now, &[B, A]), (Some(A), vec![]));
        assert_eq!(ask(&mut blobs, now, &[B, A]), (None, vec![]), "one is asked at a time");
        assert!(!blobs.handle_fetched(B, state.id(), Fetched::Found(state.clone())), "it was not asked");
        assert!(!blobs.handle_fetched(A, state.id(), Fetched::Found(blob("other"))), "it is another");
        assert_eq!(ask(&mut blobs, now, &[B, A]), (Some(B), vec![]));
        assert!(blobs.handle_fetched(B, state.id(), Fetched::Found(state.clone())));
        assert!(matches!(blobs.storing(state.id()), Storing::Put(found) if found == state));
        blobs.handle_stored(&[state.id()]);
        assert!(matches!(blobs.storing(state.id()), Storing::Nothing));
        assert_eq!(blobs.bytes_under_way, 0);
    }

    #[test]
    fn what_everybody_lacks_is_not_waited_for_and_what_cannot_be_asked_for_is() {
        let (lost, hidden) = (blob("lost"), blob("hidden"));
        let now = Moment::START;
        let mut blobs = lacking(&lost);
        assert_eq!(ask(&mut blobs, now, &[A]).0, Some(A));
        blobs.handle_fetched(A, lost.id(), Fetched::Absent);
        assert_eq!(ask(&mut blobs, now, &[A]), (None, vec![lost.id()]));
        assert!(blobs.lacks(lost.id()) && !blobs.expects(lost.id()));
        blobs.hint(lost.id(), A);
        assert!(!blobs.expects(lost.id()), "its no still counts");
        blobs.hint(lost.id(), B);
        assert!(blobs.expects(lost.id()), "somebody new may have it");

        let mut blobs = lacking(&hidden);
        assert_eq!(ask(&mut blobs, now, &[A, B]).0, Some(A));
        blobs.handle_fetched(A, hidden.id(), Fetched::Failed);
        assert_eq!(ask(&mut blobs, now, &[A, B]).0, Some(B));
        blobs.handle_fetched(B, hidden.id(), Fetched::Absent);
        assert_eq!(ask(&mut blobs, now, &[A, B]), (None, vec![]));
        assert!(blobs.expects(hidden.id()), "the first did not say no");
        let again = blobs.poll_timeout().unwrap();
        blobs.handle_timeout(again);
        assert_eq!(ask(&mut blobs, again, &[A, B]).0, Some(A));
        blobs.handle_fetched(A, hidden.id(), Fetched::Found(hidden.clone()));
        assert!(!blobs.lacks(hidden.id()));
        assert_eq!(blobs.poll_timeout(), None);
    }

    #[test]
    fn a_node_that_comes_back_is_asked_at_once() {
        let state = blob("state");
        let now = Moment::START;
        let mut blobs = lacking(&state);
        for node in [A, B] {
            assert_eq!(ask(&mut blobs, now, &[A, B]).0, Some(node));
            blobs.handle_fetched(node, state.id(), Fetched::Absent);
        }
        assert_eq!(ask(&mut blobs, now, &[A, B]), (None, vec![state.id()]));
        blobs.handle_back(B);
        assert_eq!(ask(&mut blobs, now, &[A, B]).0, Some(B));
    }

    #[test]
    fn the_last_name_takes_the_content_with_it() {
        let (old, new) = (blob("old"), blob("new"));
        let mut blobs = Blobs::new();
        blobs.offer_own(old.clone());
        assert_eq!(blobs.rename(JOB, &names(&[]), &names(&[&old])), [old.id()]);
        assert_eq!(blobs.rename(JobId(2), &names(&[]), &names(&[&old])), [], "two jobs may name the same");
        blobs.handle_stored(&[old.id()]);
        blobs.offer_own(new.clone());
        assert_eq!(blobs.rename(JOB, &names(&[&old]), &names(&[&new])), [new.id()]);
        assert!(matches!(blobs.storing(old.id()), Storing::Nothing));
        assert_eq!(blobs.rename(JobId(2), &names(&[&old]), &names(&[])), [old.id()]);
        assert!(matches!(blobs.storing(old.id()), Storing::Drop));
        assert_eq!(blobs.riding_along(A, &names(&[&new])), std::slice::from_ref(&new));
        assert_eq!(blobs.riding_along(A, &names(&[&new])), [], "it rides to everybody once");
    }

    #[test]
    fn memory_is_bounded_whatever_is_lacking() {
        let mut blobs = Blobs::new();
        let large: BTreeSet<BlobRef> = (0..40_u8).map(|n| BlobRef { id: BlobId([n; 32]), size: 16 << 20 }).collect();
        blobs.rename(JOB, &BTreeSet::new(), &large);
        let mut asked = 0;
        while ask(&mut blobs, Moment::START, &[A]).0.is_some() {
            asked += 1;
        }
        assert_eq!(asked, 2);
        assert_eq!(blobs.lacking(), 40);
    }

    #[test]
    fn a_start_forgets_what_nothing_names_and_lacks_what_is_gone() {
        let (kept, gone, unnamed) = (blob("kept"), blob("gone"), blob("unnamed"));
        let mut blobs = Blobs::new();
        let named = [(JOB, kept.reference()), (JOB, gone.reference())];
        let on_disk = [kept.reference(), unnamed.reference()];
        assert_eq!(blobs.load(&on_disk, named.into_iter()), [unnamed.id()]);
        assert!(!blobs.lacks(kept.id()) && blobs.lacks(gone.id()));
        blobs.handle_damaged(kept.id());
        assert!(blobs.expects(kept.id()));
    }
}
