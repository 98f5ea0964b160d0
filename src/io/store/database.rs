//! The database itself: its schema, how it is opened, read, written and kept small.
//!
//! SQLite in WAL mode, `synchronous=FULL`: a commit is one append to the log and one sync of it. What was
//! measured, on records of about 400 bytes, decided the rest:
//! - A record's row is numbered in the order of arrival, and which row a job has is remembered in memory. Jobs
//!   that are young change most, and so share pages; an index over random ids would dirty one more page for
//!   nearly every write (half to a third of the throughput).
//! - The log is carried over into the database ("checkpointed") when it holds 16 MiB, which takes about 20 ms,
//!   or when nothing happens. Larger is hardly faster, and the commit that comes next waits longer. It is done
//!   here by hand, because SQLite on its own ignores errors on the way.
//! - No memory mapping. The database is read once, from start to end, where a mapping is slower than reads; and
//!   a disk error under a mapping kills the process with a signal instead of failing a call.
//! - A blob is stored in parts, a row each, in rows that follow one another: a part can be read without the rest,
//!   and no table is needed to find it.
//! - The lock is exclusive: no other process reads along while the node runs. In return there is no shared
//!   memory file, whose growth on a full disk SQLite would report as a broken disk.

use std::collections::{BTreeMap, HashMap};
use std::fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rand::TryRng;
use rusqlite::config::DbConfig;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, TransactionBehavior, ffi, params};
use serde::{Deserialize, Serialize};

use crate::model::blob::{BlobId, BlobRef};
use crate::model::id::{Generation, JobId, NodeId};
use crate::model::member::Facts;
use crate::model::packed::PackedRecord;
use crate::model::time::Timestamp;
use crate::model::wire::BLOB_PART_BYTES;
use crate::protocol::effect::Commit;

use super::envelope;
use super::unpacking::{self, StoredRow, Unpacked};
use super::{BlobRead, CommitError, Damaged, Identity, Loaded, StoreError};

const DATABASE_FILE: &str = "node.db";
const LOCK_FILE: &str = "node.lock";

/// Marks the file as ours, for this program and for file(1): "flwk".
const APPLICATION_ID: i64 = 0x666c_776b;

/// The road from an empty database to the newest schema. Entry n leads from schema n to schema n + 1; entries
/// are added at the end and never changed.
const ROAD: &[&str] = &[
    "
    CREATE TABLE record (row INTEGER PRIMARY KEY, id BLOB NOT NULL, value BLOB NOT NULL) STRICT;
    CREATE TABLE node (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID, STRICT;
    CREATE TABLE quarantine (
        row INTEGER PRIMARY KEY, id ANY, value ANY, reason TEXT NOT NULL, set_aside_at_unix_ms INTEGER NOT NULL
    ) STRICT;
",
    "
    CREATE TABLE blob (row INTEGER PRIMARY KEY, id BLOB NOT NULL, part INTEGER NOT NULL, value BLOB NOT NULL) STRICT;
",
    "
    ALTER TABLE record ADD COLUMN known_at BLOB;
",
];

/// The keys of the table `node`.
const SELF_KEY: &str = "self";
const MEMBERS_KEY: &str = "members";

/// The log is carried over when it has this many pages: 16 MiB.
const LOG_PAGES: i64 = 2_048;

/// How much is written, at about a page for each row besides its bytes, between two looks at the log's length. A look takes
/// as long as to write a row.
const BYTES_BETWEEN_LOOKS: usize = 1 << 20;
const ROW_BYTES: usize = 8 << 10;

/// Free pages are given back to the file system, in an idle moment, where they are more than these...
const KEPT_FREE_PAGES: i64 = 1_024;
/// ...and this many at a time, so that no commit has to wait long for it.
const RETURNED_PAGES: i64 = 1_024;

/// What the table `node` holds about the node.
#[derive(Serialize, Deserialize)]
struct StoredSelf {
    node: NodeId,
    #[serde(default)]
    name: Option<String>,
    generation: Generation,
    /// Set while a process has the store open.
    running: bool,
}

/// A stored record that goes into quarantine.
struct SetAside {
    row: i64,
    damaged: Damaged,
}

/// What the table of records holds.
struct ReadRecords {
    records: Vec<PackedRecord>,
    known_at: BTreeMap<JobId, Timestamp>,
    unreadable: Vec<SetAside>,
}

/// Where a blob's parts are: `parts` rows from `first` on.
#[derive(Clone, Copy)]
struct BlobRows {
    first: i64,
    parts: i64,
    size: u64,
}

/// Numbers from here on no store ever counted to; a row that has one is damaged there.
const FIRST_ABSURD_ROW: i64 = 1 << 60;

/// The open database. Belongs to one thread.
pub(super) struct Database {
    connection: Connection,
    dir: PathBuf,
    stored: StoredSelf,
    /// The row of every record. In a tree, which takes half of what a table does.
    rows: BTreeMap<JobId, i64>,
    next_row: i64,
    /// The rows of every blob.
    blobs: HashMap<BlobId, BlobRows>,
    next_blob_row: i64,
    /// Rows that the next commit removes.
    damaged_blobs: Vec<BlobRows>,
    buffer: Vec<u8>,
    /// The write that failed in a way after which nothing must be believed.
    failed: Option<String>,
    /// Nothing is left to do in an idle moment.
    tidy: bool,
    /// A write found the disk full. A log that is carried over can be written again from its start.
    needs_room: bool,
    /// How much was written since the log's length was last looked at.
    unlooked_bytes: usize,
    /// Held until everything else is closed.
    _lock: Lock,
}

/// The directory is this process's. Let go of expressly: a process that is being started just then has a copy of the file for
/// a moment, and would hold it on.
struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // What cannot be unlocked is when the last copy is closed.
        let _ = self.0.unlock();
    }
}

impl Database {
    pub(super) fn open(dir: &Path, name: Option<&str>, now: Timestamp) -> Result<(Self, Loaded), StoreError> {
        let (dir, lock) = occupy(dir)?;
        let path = dir.join(DATABASE_FILE);
        let connection = connect(&dir, &path)?;
        let explain = |error| explain(&dir, &path, &error);
        let damaged = |reason| StoreError::Damaged { dir: dir.clone(), path: path.clone(), reason };

        let stored: Option<Vec<u8>> = connection
            .query_row("SELECT value FROM node WHERE key = ?1", [SELF_KEY], |row| row.get(0))
            .optional()
            .map_err(explain)?;
        let stored: Option<StoredSelf> = stored
            .map(|bytes| envelope::unpack(&bytes))
            .transpose()
            .map_err(|error| damaged(format!("what it says about the node itself is unreadable: {error}")))?;

        let was_running = stored.as_ref().is_some_and(|stored| stored.running);
        if was_running {
            // About a sixth of a second for a million records, and only after a crash.
            let verdict: String =
                connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(explain)?;
            if verdict != "ok" {
                return Err(damaged(verdict));
            }
        }

        let stored = begin_generation(stored, name, now).map_err(|error| StoreError::Refused {
            doing: "drawing a node id for",
            path: dir.clone(),
            reason: error.to_string(),
        })?;
        let identity = Identity { node: stored.node, name: stored.name.clone(), generation: stored.generation };
        let mut database = Self {
            connection,
            dir: dir.clone(),
            stored,
            rows: BTreeMap::new(),
            next_row: 1,
            blobs: HashMap::new(),
            next_blob_row: 1,
            damaged_blobs: Vec::new(),
            buffer: Vec::new(),
            failed: None,
            tidy: true,
            needs_room: false,
            unlooked_bytes: 0,
            _lock: lock,
        };
        database.write_self().map_err(explain)?;
        let members = database.read_members().map_err(explain)?;
        let ReadRecords { records, known_at, unreadable } = database.read_records().map_err(explain)?;
        let damaged = database.quarantine(unreadable, now).map_err(explain)?;
        let blobs = database.find_blobs().map_err(explain)?;
        // The pages were read once, and are never read again.
        database.connection.execute_batch("PRAGMA shrink_memory").map_err(explain)?;
        Ok((database, Loaded { identity, records, known_at, blobs, members, damaged, was_running }))
    }

    /// Writes one commit as one transaction and syncs it.
    pub(super) fn commit(&mut self, commit: &Commit) -> Result<(), CommitError> {
        if let Some(reason) = &self.failed {
            return Err(CommitError::Fatal(reason.clone()));
        }
        let mut added = Vec::new();
        let mut added_blobs = Vec::new();
        let written = self.write(commit, &mut added, &mut added_blobs);
        match written {
            Ok(()) => {
                for id in &commit.delete {
                    self.rows.remove(id);
                }
                for id in &commit.drop_blobs {
                    self.blobs.remove(id);
                }
                self.blobs.extend(added_blobs);
                self.damaged_blobs.clear();
                self.tidy = false;
                Ok(())
            }
            Err(error) => {
                for id in &added {
                    self.rows.remove(id);
                }
                Err(self.judge(&error))
            }
        }
    }

    /// The library's own transactions would parse their two statements again for each.
    fn write(
        &mut self,
        commit: &Commit,
        added: &mut Vec<JobId>,
        added_blobs: &mut Vec<(BlobId, BlobRows)>,
    ) -> rusqlite::Result<()> {
        execute_cached(&self.connection, "BEGIN IMMEDIATE")?;
        let written = self.write_rows(commit, added, added_blobs);
        let committed = written.and_then(|()| execute_cached(&self.connection, "COMMIT"));
        if committed.is_err() && !self.connection.is_autocommit() {
            // Where this fails as well, the connection stays within its transaction, which tells.
            let _ = execute_cached(&self.connection, "ROLLBACK");
        }
        committed
    }

    fn write_rows(
        &mut self,
        commit: &Commit,
        added: &mut Vec<JobId>,
        added_blobs: &mut Vec<(BlobId, BlobRows)>,
    ) -> rusqlite::Result<()> {
        let connection = &self.connection;
        {
            let mut put = connection
                .prepare_cached("INSERT OR REPLACE INTO record (row, id, value, known_at) VALUES (?1, ?2, ?3, ?4)")?;
            for record in &commit.put {
                let row = *self.rows.entry(record.id).or_insert_with(|| {
                    added.push(record.id);
                    self.next_row += 1;
                    self.next_row - 1
                });
                envelope::pack(record.as_ref(), &mut self.buffer);
                let known_at = commit.known_at.get(&record.id).map(envelope::packed);
                put.execute(params![row, record.id.0.to_be_bytes(), self.buffer, known_at])?;
                self.unlooked_bytes += ROW_BYTES + self.buffer.len();
            }
            let mut delete = connection.prepare_cached("DELETE FROM record WHERE row = ?1")?;
            for row in commit.delete.iter().filter_map(|id| self.rows.get(id)) {
                delete.execute([row])?;
                self.unlooked_bytes += ROW_BYTES;
            }
            let mut drop_blob = connection.prepare_cached("DELETE FROM blob WHERE row >= ?1 AND row < ?2")?;
            let dropped = commit.drop_blobs.iter().filter_map(|id| self.blobs.get(id));
            for rows in dropped.chain(&self.damaged_blobs) {
                drop_blob.execute([rows.first, rows.first + rows.parts])?;
            }
            let mut put_blob =
                connection.prepare_cached("INSERT INTO blob (row, id, part, value) VALUES (?1, ?2, ?3, ?4)")?;
            for blob in &commit.put_blobs {
                if self.blobs.contains_key(&blob.id()) {
                    continue;
                }
                // An empty one has a part as well: it is there.
                let parts = i64::try_from(blob.bytes().len().div_ceil(BLOB_PART_BYTES).max(1)).unwrap_or(i64::MAX);
                let first = self.next_blob_row;
                self.next_blob_row += parts;
                let mut rest = &blob.bytes()[..];
                for part in 0..parts {
                    let (value, after) = rest.split_at(rest.len().min(BLOB_PART_BYTES));
                    rest = after;
                    envelope::pack_bytes(value, &mut self.buffer);
                    put_blob.execute(params![first + part, blob.id().0, part, self.buffer])?;
                    self.unlooked_bytes += ROW_BYTES + self.buffer.len();
                }
                added_blobs.push((blob.id(), BlobRows { first, parts, size: blob.size() }));
            }
        }
        if let Some(members) = &commit.members {
            envelope::pack(members, &mut self.buffer);
            write_value(connection, MEMBERS_KEY, &self.buffer)?;
        }
        Ok(())
    }

    /// Whether a failed write leaves the disk believable. If it does not, no further one is tried.
    fn judge(&mut self, error: &rusqlite::Error) -> CommitError {
        if is_full(&self.dir, error) && self.connection.is_autocommit() {
            self.needs_room = true;
            return CommitError::Full(error.to_string());
        }
        let reason = error.to_string();
        tracing::error!(%reason, dir = %self.dir.display(), "the store has failed; nothing more is written to it");
        self.failed = Some(reason.clone());
        CommitError::Fatal(reason)
    }

    /// Keeps the log short. Comes after the commit is reported, so that only the next one can be kept waiting.
    pub(super) fn after_commit(&mut self) {
        if self.failed.is_some() || (self.unlooked_bytes < BYTES_BETWEEN_LOOKS && !self.needs_room) {
            return;
        }
        self.unlooked_bytes = 0;
        let pages = self
            .connection
            .prepare_cached("PRAGMA wal_checkpoint(NOOP)")
            .and_then(|mut look| look.query_row([], |row| row.get::<_, i64>(1)));
        match pages {
            Ok(pages) if pages >= LOG_PAGES || self.needs_room => self.checkpoint(),
            Ok(_) => {}
            Err(error) => {
                self.judge(&error);
            }
        }
    }

    /// Whether there is nothing to do in an idle moment.
    pub(super) fn is_tidy(&self) -> bool {
        self.tidy || self.failed.is_some()
    }

    /// Carries the log over, and returns some of the free space if there is much.
    pub(super) fn tidy(&mut self) {
        self.tidy = true;
        match self.return_free_pages() {
            Ok(all_returned) => {
                self.checkpoint();
                self.tidy = all_returned;
            }
            Err(error) => {
                self.judge(&error);
                self.tidy = true;
            }
        }
    }

    fn return_free_pages(&self) -> rusqlite::Result<bool> {
        let count = |pragma| self.connection.query_row(pragma, [], |row| row.get::<_, i64>(0));
        let free = count("PRAGMA freelist_count")?;
        let kept = KEPT_FREE_PAGES.max(count("PRAGMA page_count")? / 4);
        if free <= kept {
            return Ok(true);
        }
        let mut vacuum = self.connection.prepare_cached(&format!("PRAGMA incremental_vacuum({RETURNED_PAGES})"))?;
        // It returns a page for each row that is asked of it, and commits at the end.
        let mut returned = vacuum.query([])?;
        while returned.next()?.is_some() {}
        Ok(free - RETURNED_PAGES <= kept)
    }

    fn checkpoint(&mut self) {
        self.needs_room = false;
        if let Err(error) = checkpoint(&self.connection, Log::Kept) {
            self.judge(&error);
        }
    }

    /// Writes down that the node stopped in order, and lets go of the directory.
    pub(super) fn close(mut self) {
        if self.failed.is_some() {
            // Closing would carry over the log, which is a write.
            let _ = self.connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true);
            return;
        }
        self.stored.running = false;
        let closed = self
            .write_self()
            .and_then(|()| checkpoint(&self.connection, Log::Emptied))
            .and_then(|()| self.connection.close().map_err(|(_, error)| error));
        if let Err(error) = closed {
            tracing::warn!(%error, "the store was not closed cleanly; the next start will check it");
        }
    }

    fn write_self(&mut self) -> rusqlite::Result<()> {
        envelope::pack(&self.stored, &mut self.buffer);
        write_value(&self.connection, SELF_KEY, &self.buffer)
    }

    fn read_members(&self) -> rusqlite::Result<Vec<Facts>> {
        let bytes: Option<Vec<u8>> = self
            .connection
            .query_row("SELECT value FROM node WHERE key = ?1", [MEMBERS_KEY], |row| row.get(0))
            .optional()?;
        Ok(match bytes.map(|bytes| envelope::unpack(&bytes)) {
            None => Vec::new(),
            Some(Ok(members)) => members,
            Some(Err(error)) => {
                tracing::warn!(%error, "the members known before are forgotten: what was stored is unreadable");
                Vec::new()
            }
        })
    }

    /// Reads every record, and remembers its row.
    fn read_records(&mut self) -> rusqlite::Result<ReadRecords> {
        let mut select = self.connection.prepare("SELECT row, id, value, known_at FROM record")?;
        let mut known_at: HashMap<i64, Timestamp> = HashMap::new();
        let mut rows = select.query([])?;
        let read = unpacking::all(|values| -> rusqlite::Result<Option<StoredRow>> {
            let Some(row) = rows.next()? else { return Ok(None) };
            let number: i64 = row.get(0)?;
            if number < FIRST_ABSURD_ROW {
                self.next_row = self.next_row.max(number + 1);
            }
            let id = row.get::<_, [u8; 16]>(1).ok().map(|bytes| JobId(u128::from_be_bytes(bytes)));
            match row.get_ref(2)? {
                ValueRef::Blob(bytes) => values.extend_from_slice(bytes),
                // Nothing, not even a header, and unreadable like all that is cut short.
                ValueRef::Null | ValueRef::Integer(_) | ValueRef::Real(_) | ValueRef::Text(_) => {}
            }
            // Damage to it costs no more than the time that passed.
            let packed: Option<&[u8]> = row.get_ref(3)?.as_blob_or_null().unwrap_or_default();
            known_at.extend(packed.and_then(|packed| Some((number, envelope::unpack(packed).ok()?))));
            Ok(Some(StoredRow { number, id }))
        })?;
        let mut found: Vec<(i64, PackedRecord)> = Vec::with_capacity(read.len());
        let mut unreadable = Vec::new();
        for Unpacked { row, id, result } in read {
            match result {
                Ok(record) => found.push((row, record)),
                Err(error) => {
                    let damaged = Damaged { id, reason: error.to_string() };
                    unreadable.push(SetAside { row, damaged });
                }
            }
        }
        let known = |(row, record): &(i64, PackedRecord)| Some((record.id, *known_at.get(row)?));
        let known_at = if known_at.is_empty() { BTreeMap::new() } else { found.iter().filter_map(known).collect() };
        found.sort_unstable_by_key(|(row, record)| (record.id, *row));
        // A map that is made of everything at once is full; one that grows has room for as much again.
        self.rows = found.iter().map(|(row, record)| (record.id, *row)).collect();
        let mut records: Vec<PackedRecord> = Vec::with_capacity(found.len());
        let mut row_of_last = 0;
        for (row, record) in found {
            match records.last_mut().filter(|last| last.id == record.id) {
                None => records.push(record),
                // Only damage to a row's number makes two rows of one job. Both copies are true.
                Some(last) => {
                    let damaged = Damaged { id: Some(record.id), reason: "it is there twice".to_owned() };
                    unreadable.push(SetAside { row: row_of_last, damaged });
                    let mut both = record.unpack();
                    both.merge(&last.unpack());
                    *last = PackedRecord::from(&both);
                }
            }
            row_of_last = row;
        }
        Ok(ReadRecords { records, known_at, unreadable })
    }

    /// Finds the blobs that are stored, without reading them. Parts without the others, which only damage can have
    /// left, are removed.
    fn find_blobs(&mut self) -> rusqlite::Result<Vec<BlobRef>> {
        let mut found: BTreeMap<BlobId, (BlobRows, bool)> = BTreeMap::new();
        let mut strays = Vec::new();
        {
            let mut select = self.connection.prepare("SELECT row, id, part, length(value) FROM blob ORDER BY row")?;
            let mut rows = select.query([])?;
            while let Some(row) = rows.next()? {
                let (number, part, length): (i64, i64, i64) = (row.get(0)?, row.get(2)?, row.get(3)?);
                if number < FIRST_ABSURD_ROW {
                    self.next_blob_row = self.next_blob_row.max(number + 1);
                }
                let Ok(id) = row.get::<_, [u8; 32]>(1).map(BlobId) else {
                    strays.push(number);
                    continue;
                };
                let size = u64::try_from(length).unwrap_or(0).saturating_sub(envelope::HEADER_BYTES as u64);
                match found.get_mut(&id) {
                    None => {
                        found.insert(id, (BlobRows { first: number, parts: 1, size }, part == 0));
                    }
                    Some((rows, is_whole)) if rows.first + rows.parts == number && part == rows.parts => {
                        // Only the last part may be short.
                        *is_whole &= rows.size == rows.parts.unsigned_abs() * BLOB_PART_BYTES as u64;
                        rows.parts += 1;
                        rows.size += size;
                    }
                    Some(_) => strays.push(number),
                }
            }
        }
        for row in strays {
            self.connection.execute("DELETE FROM blob WHERE row = ?1", [row])?;
        }
        let mut whole = Vec::with_capacity(found.len());
        for (id, (rows, is_whole)) in found {
            if is_whole {
                whole.push(BlobRef { id, size: rows.size });
                self.blobs.insert(id, rows);
            } else {
                let end = rows.first + rows.parts;
                self.connection.execute("DELETE FROM blob WHERE row >= ?1 AND row < ?2", [rows.first, end])?;
            }
        }
        Ok(whole)
    }

    /// Reads one part of a blob. One that is damaged is forgotten as a whole.
    pub(super) fn read_blob(&mut self, id: BlobId, part: u32) -> BlobRead {
        let Some(rows) = self.blobs.get(&id).copied() else {
            return BlobRead::Absent;
        };
        let part = i64::from(part);
        if part >= rows.parts {
            return BlobRead::Absent;
        }
        let read: rusqlite::Result<Option<Vec<u8>>> = self
            .connection
            .prepare_cached("SELECT value FROM blob WHERE row = ?1")
            .and_then(|mut select| select.query_row([rows.first + part], |row| row.get(0)).optional());
        let reason = match read {
            Ok(Some(value)) => match envelope::unpack_bytes(&value) {
                Ok(bytes) => return BlobRead::Part(bytes.to_vec().into()),
                Err(error) => error.to_string(),
            },
            Ok(None) => "a part of it is missing".to_owned(),
            Err(error) => error.to_string(),
        };
        tracing::error!(blob = %id, reason, "a stored blob is damaged, and is fetched anew");
        self.blobs.remove(&id);
        self.damaged_blobs.push(rows);
        BlobRead::Damaged
    }

    /// Moves unreadable records to where they hurt nobody and can still be looked at.
    fn quarantine(&mut self, unreadable: Vec<SetAside>, now: Timestamp) -> rusqlite::Result<Vec<Damaged>> {
        let now = i64::try_from(now.unix_ms()).unwrap_or(i64::MAX);
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        for SetAside { row, damaged: Damaged { id, reason } } in &unreadable {
            tracing::error!(?id, reason, "a stored record is unreadable and is set aside");
            transaction.execute(
                "INSERT INTO quarantine (id, value, reason, set_aside_at_unix_ms)
                 SELECT id, value, ?2, ?3 FROM record WHERE row = ?1",
                params![row, reason, now],
            )?;
            transaction.execute("DELETE FROM record WHERE row = ?1", [row])?;
        }
        transaction.commit()?;
        Ok(unreadable.into_iter().map(|set_aside| set_aside.damaged).collect())
    }
}

/// Creates the directory where it is missing, and locks it for this process.
fn occupy(dir: &Path) -> Result<(PathBuf, Lock), StoreError> {
    let refused = |doing, path: &Path| {
        let path = path.to_owned();
        move |error: std::io::Error| {
            if is_want_of_room(&error) {
                StoreError::Full { dir: path }
            } else {
                StoreError::Refused { doing, path, reason: error.to_string() }
            }
        }
    };
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(refused("creating the data directory", dir))?;
    // An absolute path, because SQLite gives some relative ones a meaning of their own.
    let dir = dir.canonicalize().map_err(refused("finding the data directory", dir))?;

    let path = dir.join(LOCK_FILE);
    let mut lock = open_private(&path).map_err(refused("opening the lock", &path))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let known = lock.take(32).read_to_string(&mut holder).is_ok() && !holder.trim().is_empty();
            let holder = if known { format!(" (process {})", holder.trim()) } else { String::new() };
            return Err(StoreError::InUse { dir, holder });
        }
        Err(TryLockError::Error(error)) => return Err(refused("locking", &path)(error)),
    }
    // Only for the message above; a full disk must not be what keeps the node from saying that it is full.
    let _ = lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id()));

    let path = dir.join(DATABASE_FILE);
    let file = open_private(&path).map_err(refused("opening the database", &path))?;
    file.set_permissions(Permissions::from_mode(0o600)).map_err(refused("taking for itself", &path))?;
    // A file is only there for good once the directory that names it is synced, and so is a directory.
    for named_in in [Some(dir.as_path()), dir.parent()].into_iter().flatten() {
        match File::open(named_in).and_then(|directory| directory.sync_all()) {
            Ok(()) => {}
            // Not every directory may be read, and not every file system syncs directories.
            Err(error) if matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::InvalidInput) => {}
            Err(error) => return Err(refused("syncing the directory", named_in)(error)),
        }
    }
    Ok((dir, Lock(lock)))
}

fn open_private(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// Opens the database and brings its schema up to date.
fn connect(dir: &Path, path: &Path) -> Result<Connection, StoreError> {
    let explain = |error| explain(dir, path, &error);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags).map_err(explain)?;
    // The lock is settled with the first read, the page size and the kind of vacuum with the first table.
    connection
        .execute_batch(
            "PRAGMA locking_mode = EXCLUSIVE;
             PRAGMA page_size = 8192;
             PRAGMA auto_vacuum = INCREMENTAL;
             PRAGMA synchronous = FULL;
             PRAGMA wal_autocheckpoint = 0;
             PRAGMA temp_store = MEMORY;
             PRAGMA cache_size = -16384;",
        )
        .map_err(explain)?;
    let number = |pragma| connection.query_row(pragma, [], |row| row.get::<_, i64>(0)).map_err(explain);
    let (application, schema) = (number("PRAGMA application_id")?, number("PRAGMA user_version")?);
    let is_empty = number("SELECT count(*) FROM sqlite_schema")? == 0;
    if application != APPLICATION_ID && !is_empty {
        let reason = "it is some other program's database".to_owned();
        return Err(StoreError::Damaged { dir: dir.to_owned(), path: path.to_owned(), reason });
    }
    let steps = usize::try_from(schema).ok().and_then(|schema| ROAD.get(schema..));
    let Some(steps) = steps else {
        return Err(StoreError::Newer { path: path.to_owned(), found: schema, known: ROAD.len() as i64 });
    };
    connection.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(())).map_err(explain)?;
    for (at, step) in (schema + 1..).zip(steps) {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(explain)?;
        let stamp = format!("PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {at};");
        transaction.execute_batch(step).and_then(|()| transaction.execute_batch(&stamp)).map_err(explain)?;
        transaction.commit().map_err(explain)?;
    }
    // The log that a crash leaves may hold pages that only the kernel has, though it calls them written. Nothing
    // must be appended to such a log.
    checkpoint(&connection, Log::Emptied).map_err(explain)?;
    Ok(connection)
}

/// Who the node is in this start.
fn begin_generation(
    stored: Option<StoredSelf>,
    name: Option<&str>,
    now: Timestamp,
) -> Result<StoredSelf, rand::rngs::SysError> {
    let seconds = Generation(now.unix_ms() / 1_000);
    let mut stored = match stored {
        Some(known) => {
            let next = Generation(known.generation.0.saturating_add(1));
            StoredSelf { generation: next.max(seconds), running: true, ..known }
        }
        None => {
            let node = NodeId(rand::rngs::SysRng.try_next_u32()?);
            StoredSelf { node, name: None, generation: seconds, running: true }
        }
    };
    if let Some(name) = name {
        stored.name = Some(name.to_owned());
    }
    Ok(stored)
}

/// Executes a statement that it need not parse again the next time.
fn execute_cached(connection: &Connection, statement: &str) -> rusqlite::Result<()> {
    connection.prepare_cached(statement)?.execute([]).map(drop)
}

fn write_value(connection: &Connection, key: &str, value: &[u8]) -> rusqlite::Result<()> {
    let mut write = connection.prepare_cached("INSERT OR REPLACE INTO node (key, value) VALUES (?1, ?2)")?;
    write.execute(params![key, value]).map(drop)
}

/// What becomes of the log's file when its content is carried over.
enum Log {
    /// It is written again from its start. A sync is cheaper where the file does not grow.
    Kept,
    /// It gives its room back.
    Emptied,
}

/// Carries the whole log over into the database, and syncs that.
fn checkpoint(connection: &Connection, log: Log) -> rusqlite::Result<()> {
    let how = match log {
        Log::Kept => "PRAGMA wal_checkpoint(PASSIVE)",
        Log::Emptied => "PRAGMA wal_checkpoint(TRUNCATE)",
    };
    connection.query_row(how, [], |_| Ok(()))
}

fn extended_code(error: &rusqlite::Error) -> Option<(ErrorCode, i32)> {
    error.sqlite_error().map(|error| (error.code, error.extended_code))
}

/// Whether a write failed for want of room.
fn is_full(dir: &Path, error: &rusqlite::Error) -> bool {
    match extended_code(error) {
        Some((ErrorCode::DiskFull, _)) => true,
        // SQLite knows a full disk, but takes a full quota for a broken disk. So ask the disk directly.
        Some((_, ffi::SQLITE_IOERR_WRITE)) => is_without_room(dir),
        _ => false,
    }
}

fn is_without_room(dir: &Path) -> bool {
    let path = dir.join("room.tmp");
    let tried = open_private(&path).and_then(|mut file| file.write_all(&[0; 1 << 16]));
    let _ = std::fs::remove_file(&path);
    tried.is_err_and(|error| is_want_of_room(&error))
}

fn is_want_of_room(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

/// What an error at the start means for whoever starts the node.
fn explain(dir: &Path, path: &Path, error: &rusqlite::Error) -> StoreError {
    let reason = error.to_string();
    match extended_code(error) {
        Some((ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt, _)) => {
            StoreError::Damaged { dir: dir.to_owned(), path: path.to_owned(), reason }
        }
        _ if is_full(dir, error) => StoreError::Full { dir: dir.to_owned() },
        _ => StoreError::Refused { doing: "opening", path: path.to_owned(), reason },
    }
}
