//! Many stored records made into packed ones, on all processors.
//!
//! To read a row from the disk costs a fraction of what it costs to check, decode, sum up and pack its record. So
//! one thread reads, and hands out the rows in baskets; as many as there are processors do the rest. Few rows are
//! not worth a thread, and are unpacked where they are read.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{ScopedJoinHandle, available_parallelism, scope};

use crate::model::id::JobId;
use crate::model::packed::{PackedRecord, Packer};
use crate::model::record::Record;

use super::envelope::{self, Unreadable};

/// Rows handed over at one time.
const BASKET: usize = 2_048;
/// Baskets that wait for each thread, at the most.
const BASKETS_WAITING: usize = 4;
/// More threads than this would wait for the one that reads.
const MOST_THREADS: usize = 8;

/// A row of the table of records.
#[derive(Debug)]
pub(super) struct StoredRow {
    /// Its number.
    pub(super) number: i64,
    /// The job, as its column says.
    pub(super) id: Option<JobId>,
    /// The record.
    pub(super) value: Vec<u8>,
}

/// What a row holds.
#[derive(Debug)]
pub(super) struct Unpacked {
    /// Its number.
    pub(super) row: i64,
    /// The job, as its column says. The record's own id is covered by its checksum, this one is not.
    pub(super) id: Option<JobId>,
    /// The record, or why there is none.
    pub(super) result: Result<PackedRecord, Unreadable>,
}

/// A thread that unpacks, and where its baskets are put.
type Hand<'scope> = (SyncSender<Vec<StoredRow>>, ScopedJoinHandle<'scope, Vec<Unpacked>>);

/// Reads rows until there are none, and unpacks them all.
pub(super) fn all<E>(mut next_row: impl FnMut() -> Result<Option<StoredRow>, E>) -> Result<Vec<Unpacked>, E> {
    scope(|scope| {
        let threads = available_parallelism().map_or(1, |count| count.get().min(MOST_THREADS));
        let mut hands: Vec<Hand<'_>> = Vec::new();
        let mut basket = Vec::new();
        let mut baskets = 0;
        while let Some(row) = next_row()? {
            basket.push(row);
            if basket.len() == BASKET {
                if hands.len() < threads {
                    let (baskets, waiting) = sync_channel(BASKETS_WAITING);
                    hands.push((baskets, scope.spawn(move || unpack_all(&waiting))));
                }
                let full = std::mem::replace(&mut basket, Vec::with_capacity(BASKET));
                // A thread ends before its baskets do only if it panics, which the join below passes on.
                let _ = hands[baskets % hands.len()].0.send(full);
                baskets += 1;
            }
        }
        let mut packer = Packer::default();
        let mut unpacked: Vec<Unpacked> = basket.into_iter().map(|row| unpack(&mut packer, row)).collect();
        for (baskets, thread) in hands {
            drop(baskets);
            match thread.join() {
                Ok(more) => unpacked.extend(more),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(unpacked)
    })
}

fn unpack_all(baskets: &Receiver<Vec<StoredRow>>) -> Vec<Unpacked> {
    let mut packer = Packer::default();
    baskets.iter().flatten().map(|row| unpack(&mut packer, row)).collect()
}

fn unpack(packer: &mut Packer, row: StoredRow) -> Unpacked {
    let result = envelope::unpack::<Record>(&row.value).map(|record| packer.pack_with_label(&record));
    Unpacked { row: row.number, id: row.id, result }
}
