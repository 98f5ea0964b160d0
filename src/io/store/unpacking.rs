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

/// Rows handed over at one time, at the most, and about how many bytes of them.
const BASKET: usize = 1_024;
const BASKET_BYTES: usize = 512 << 10;
/// Baskets that wait for each thread, at the most.
const BASKETS_WAITING: usize = 2;
/// More threads than this would wait for the one that reads.
const MOST_THREADS: usize = 8;

/// A row of the table of records.
#[derive(Debug)]
pub(super) struct StoredRow {
    /// Its number.
    pub(super) number: i64,
    /// The job, as its column says.
    pub(super) id: Option<JobId>,
}

/// Rows on their way to whoever unpacks them, with their values in one piece.
#[derive(Debug, Default)]
struct Basket {
    /// Each with the place where its value ends; it begins where the one before ends.
    rows: Vec<(StoredRow, usize)>,
    values: Vec<u8>,
}

impl Basket {
    fn unpack(self, packer: &mut Packer) -> impl Iterator<Item = Unpacked> {
        let Self { rows, values } = self;
        let mut begin = 0;
        rows.into_iter().map(move |(row, end)| {
            let value = &values[std::mem::replace(&mut begin, end)..end];
            let result = envelope::unpack::<Record>(value).map(|record| packer.pack_with_label(&record));
            Unpacked { row: row.number, id: row.id, result }
        })
    }
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
type Hand<'scope> = (SyncSender<Basket>, ScopedJoinHandle<'scope, Vec<Unpacked>>);

/// Reads rows until there are none, and unpacks them all. Each row's value is added to the bytes that it is given.
pub(super) fn all<E>(
    mut next_row: impl FnMut(&mut Vec<u8>) -> Result<Option<StoredRow>, E>,
) -> Result<Vec<Unpacked>, E> {
    scope(|scope| {
        let threads = available_parallelism().map_or(1, |count| count.get().min(MOST_THREADS));
        let mut hands: Vec<Hand<'_>> = Vec::new();
        let mut basket = Basket::default();
        let mut baskets = 0;
        while let Some(row) = next_row(&mut basket.values)? {
            basket.rows.push((row, basket.values.len()));
            if basket.rows.len() == BASKET || basket.values.len() >= BASKET_BYTES {
                if hands.len() < threads {
                    let (baskets, waiting) = sync_channel(BASKETS_WAITING);
                    hands.push((baskets, scope.spawn(move || unpack_all(&waiting))));
                }
                let full = std::mem::take(&mut basket);
                // A thread ends before its baskets do only if it panics, which the join below passes on.
                let _ = hands[baskets % hands.len()].0.send(full);
                baskets += 1;
            }
        }
        let mut unpacked: Vec<Unpacked> = basket.unpack(&mut Packer::default()).collect();
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

fn unpack_all(baskets: &Receiver<Basket>) -> Vec<Unpacked> {
    let mut packer = Packer::default();
    let mut unpacked = Vec::new();
    for basket in baskets {
        unpacked.extend(basket.unpack(&mut packer));
    }
    unpacked
}
