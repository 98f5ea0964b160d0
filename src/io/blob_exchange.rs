//! Moves blobs between nodes, a part at a time.
//!
//! Records are small and are pushed; what belongs to them may be large, and is pulled by whoever lacks it. A blob comes
//! in parts, a few of which are asked for at a time, so that a large one neither fills the peer connection nor keeps
//! the records behind it waiting. What comes is believed only when its hash is the name that was asked for.
//!
//! It does not know who needs which blob, or why. Every question has a deadline, and every fetch an end: the blob, or
//! word that the other node does not have it, or that it could not be had from there.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{sleep, timeout};
use tokio_util::task::TaskTracker;

use super::store::{BlobError, BlobReader, parts_of};
use super::transport::Transport;
use crate::model::blob::{Blob, BlobId, BlobRef, MAX_CHECKPOINT_BYTES};
use crate::model::id::{Generation, NodeId};
use crate::model::wire::{BLOB_PART_BYTES, BlobPart, Frame};
use crate::protocol::effect::Fetched;
use crate::protocol::numbers::Numbers;

/// Parts of one blob that are asked for at a time.
const PARTS_AT_ONCE: usize = 4;
/// How long one part may take.
const PART_TIMEOUT: Duration = Duration::from_secs(3);
/// How often a part is asked for, where it does not come or the other node is busy.
const TRIES: u32 = 3;
/// The pause before another try.
const PAUSE: Duration = Duration::from_millis(100);
/// Parts that are read for other nodes at a time; more are told that this one is busy.
const SERVED_AT_ONCE: usize = 64;

/// Where another node is.
pub type Place = (NodeId, SocketAddr);

/// Asks other nodes for blobs, and answers them. Cheap to clone.
#[derive(Debug, Clone)]
pub struct BlobExchange {
    reader: BlobReader,
    transport: Transport,
    tracker: TaskTracker,
    calls: Arc<Mutex<Calls>>,
    serving: Arc<Semaphore>,
}

/// Questions that were not answered yet.
#[derive(Debug)]
struct Calls {
    numbers: Numbers,
    open: BTreeMap<u64, (NodeId, oneshot::Sender<BlobPart>)>,
}

/// Why a part did not come.
enum NoPart {
    Absent,
    Failed,
}

impl BlobExchange {
    /// In this start of the node: over `transport`, from the blobs of `reader`, in tasks of `tracker`.
    pub fn new(start: Generation, reader: BlobReader, transport: Transport, tracker: TaskTracker) -> Self {
        let calls = Arc::new(Mutex::new(Calls { numbers: Numbers::of(start), open: BTreeMap::new() }));
        let serving = Arc::new(Semaphore::new(SERVED_AT_ONCE));
        Self { reader, transport, tracker, calls, serving }
    }

    /// Gets a blob from another node.
    pub async fn fetch(&self, from: Place, blob: BlobRef) -> Fetched {
        if blob.size > MAX_CHECKPOINT_BYTES {
            return Fetched::Failed;
        }
        let parts = stream::iter(0..parts_of(blob)).map(|part| self.ask(from, blob.id, part)).buffered(PARTS_AT_ONCE);
        let all = parts.try_fold(Vec::new(), |mut all, part| async move {
            all.extend_from_slice(&part);
            Ok(all)
        });
        match all.await {
            Ok(bytes) => {
                let naming = tokio::task::spawn_blocking(move || Blob::new(bytes));
                match naming.await {
                    Ok(found) if found.reference() == blob => Fetched::Found(found),
                    Ok(found) => {
                        tracing::warn!(node = %from.0, blob = %blob.id, came = %found.id(), "another blob than was asked for");
                        Fetched::Failed
                    }
                    Err(_) => Fetched::Failed,
                }
            }
            Err(NoPart::Absent) => Fetched::Absent,
            Err(NoPart::Failed) => Fetched::Failed,
        }
    }

    /// A blob, from this node's disk or from the first of `others` that has it.
    pub async fn find(&self, blob: BlobRef, others: Vec<Place>) -> Option<Blob> {
        if let Ok(found) = self.reader.read(blob).await {
            return Some(found);
        }
        for from in others {
            if let Fetched::Found(found) = self.fetch(from, blob).await {
                return Some(found);
            }
        }
        None
    }

    async fn ask(&self, (node, addr): Place, blob: BlobId, part: u32) -> Result<Bytes, NoPart> {
        for attempt in 0..TRIES {
            if attempt > 0 {
                sleep(PAUSE * attempt).await;
            }
            let (answer, answered) = oneshot::channel();
            let call = {
                let mut calls = self.calls();
                let call = calls.numbers.take();
                calls.open.insert(call, (node, answer));
                call
            };
            let open = OpenCall { calls: &self.calls, call };
            self.transport.send(node, addr, &Frame::BlobRequest { call, blob, part });
            let told = timeout(PART_TIMEOUT, answered).await;
            drop(open);
            match told {
                Ok(Ok(BlobPart::Bytes(bytes))) => return Ok(bytes),
                Ok(Ok(BlobPart::Absent)) => return Err(NoPart::Absent),
                Ok(Ok(BlobPart::Busy) | Err(_)) | Err(_) => {}
            }
        }
        Err(NoPart::Failed)
    }

    /// Another node asks for part of a blob, which is in memory: `unstored` is on its way to the disk.
    pub fn answer_from_memory(&self, (node, addr): Place, call: u64, unstored: &Blob, part: u32) {
        let bytes = unstored.bytes();
        let begin = usize::try_from(part).unwrap_or(usize::MAX).saturating_mul(BLOB_PART_BYTES);
        let part = match bytes.len().checked_sub(begin) {
            // An empty blob has a part as well.
            Some(left) if left > 0 || part == 0 => {
                BlobPart::Bytes(bytes.slice(begin..begin + left.min(BLOB_PART_BYTES)))
            }
            Some(_) | None => BlobPart::Absent,
        };
        self.transport.send(node, addr, &Frame::BlobResponse { call, part });
    }

    /// Another node asks for part of a blob, which is on this node's disk if it is here at all.
    pub fn handle_request(&self, (node, addr): Place, call: u64, blob: BlobId, part: u32) {
        let Ok(place) = Arc::clone(&self.serving).try_acquire_owned() else {
            return self.transport.send(node, addr, &Frame::BlobResponse { call, part: BlobPart::Busy });
        };
        let this = self.clone();
        self.tracker.spawn(async move {
            let part = match this.reader.read_part(blob, part).await {
                Ok(bytes) => BlobPart::Bytes(bytes),
                Err(BlobError::Absent | BlobError::Damaged) => BlobPart::Absent,
                Err(BlobError::Closed) => BlobPart::Busy,
            };
            this.transport.send(node, addr, &Frame::BlobResponse { call, part });
            drop(place);
        });
    }

    /// Another node answers.
    pub fn handle_response(&self, from: NodeId, call: u64, part: BlobPart) {
        let mut calls = self.calls();
        if calls.open.get(&call).is_some_and(|(asked, _)| *asked == from)
            && let Some((_, answer)) = calls.open.remove(&call)
        {
            // Whoever asked may have given up.
            let _ = answer.send(part);
        }
    }

    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Forgets a question when nobody waits for its answer any more.
struct OpenCall<'a> {
    calls: &'a Mutex<Calls>,
    call: u64,
}

impl Drop for OpenCall<'_> {
    fn drop(&mut self) {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).open.remove(&self.call);
    }
}
