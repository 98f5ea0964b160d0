//! Stories of disks: killed, damaged, full, taken twice.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use rusqlite::Connection;
use tempfile::TempDir;

use super::*;
use crate::model::blob::Blob;
use crate::model::id::{Actor, Dot, Incarnation};
use crate::model::member::{ClusterSettings, Fingerprint, Load, PartitionSet, Status, WIRE_VERSION};
use crate::model::record::{Record, Submission};
use crate::model::resources::Resources;
use crate::model::spec::Spec;
use crate::model::wire::BLOB_PART_BYTES;

const NOON: Timestamp = Timestamp(1_700_000_000_000);
const LONG: Duration = Duration::from_secs(30);

/// An open store whose commits can be waited for.
struct Desk {
    store: Store,
    done: Receiver<CommitDone>,
    number: u64,
}

impl Desk {
    fn open(dir: &Path) -> (Self, Loaded) {
        Self::open_at(dir, NOON).unwrap()
    }

    fn open_at(dir: &Path, now: Timestamp) -> Result<(Self, Loaded), StoreError> {
        let (report, done) = channel();
        let report = move |commit_done| report.send(commit_done).unwrap_or_default();
        let (store, loaded) = Store::open(dir, None, now, report)?;
        Ok((Self { store, done, number: 0 }, loaded))
    }

    fn commit(&mut self, put: Vec<Arc<Record>>, delete: &[u128], members: Option<Vec<Facts>>) -> CommitDone {
        self.number += 1;
        let delete = delete.iter().map(|id| JobId(*id)).collect();
        self.store.commit(Commit { number: self.number, put, delete, members, ..Commit::default() }).unwrap();
        let done = self.done.recv_timeout(LONG).expect("every commit is reported");
        assert_eq!(done.number, self.number);
        done
    }

    fn put(&mut self, put: Vec<Arc<Record>>) {
        assert_eq!(self.commit(put, &[], None).result, Ok(()));
    }
}

fn record(id: u128, name: &str) -> Arc<Record> {
    let spec = Spec { name: Some(name.to_owned()), ..a_spec() };
    let submission =
        Submission { spec, submitted_at: NOON, gateway: NodeId(1), home: vec![NodeId(1), NodeId(2)], retry_of: None };
    let dot = Dot { actor: Actor { node: NodeId(1), generation: Generation(1) }, counter: 1 };
    Arc::new(Record::new(JobId(id), Arc::new(submission), dot))
}

fn a_spec() -> Spec {
    serde_json::from_str(r#"{"command":["/bin/true"]}"#).unwrap()
}

fn member(node: u32) -> Facts {
    Facts {
        node: NodeId(node),
        name: format!("n{node}"),
        generation: Generation(3),
        incarnation: Incarnation(0),
        cluster_addr: ([127, 0, 0, 1], 7_000).into(),
        http_addr: ([127, 0, 0, 1], 7_001).into(),
        status: Status::Serving,
        revision: 0,
        capacity: Resources::default(),
        weight: 1,
        load: Load::default(),
        labels: BTreeMap::new(),
        drivers: BTreeSet::new(),
        held: PartitionSet::default(),
        ring: Fingerprint(9),
        cluster: ClusterSettings { name: "c".to_owned(), partitions: 1_024, replicas: 3, forget_after: LONG },
        wire_version: WIRE_VERSION,
        version: "1".to_owned(),
        suspicions: BTreeMap::new(),
        departed: BTreeMap::new(),
        dismissed: BTreeMap::new(),
    }
}

fn sorted(records: &[PackedRecord]) -> Vec<Record> {
    let mut records: Vec<Record> = records.iter().map(PackedRecord::unpack).collect();
    records.sort_by_key(|record| record.id);
    records
}

fn in_a_closed(dir: &TempDir, work: impl FnOnce(&Connection)) {
    let connection = Connection::open(dir.path().join("node.db")).unwrap();
    work(&connection);
    connection.close().unwrap();
}

#[test]
fn since_when_a_job_is_known_is_kept_and_its_damage_costs_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let (desk, _) = Desk::open(dir.path());
    let put = vec![record(1, "waits"), record(2, "does not"), record(3, "waits as well")];
    let known_at = BTreeMap::from([(JobId(1), NOON), (JobId(3), NOON)]);
    desk.store.commit(Commit { number: 1, put, known_at: known_at.clone(), ..Commit::default() }).unwrap();
    assert_eq!(desk.done.recv_timeout(LONG).expect("it is reported").result, Ok(()));
    desk.store.close();

    let (desk, loaded) = Desk::open(dir.path());
    assert_eq!((loaded.records.len(), loaded.known_at), (3, known_at));
    desk.store.close();
    in_a_closed(&dir, |connection| {
        connection.execute("UPDATE record SET known_at = substr(known_at, 1, 7) WHERE row = 1", []).unwrap();
        connection.execute("UPDATE record SET known_at = 'noon' WHERE row = 2", []).unwrap_err();
    });
    let (desk, loaded) = Desk::open(dir.path());
    assert_eq!((loaded.records.len(), loaded.known_at), (3, BTreeMap::from([(JobId(3), NOON)])));
    desk.store.close();
}

#[test]
fn what_was_committed_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (mut desk, first) = Desk::open(dir.path());
    assert_eq!((first.records.len(), first.members.len(), first.was_running), (0, 0, false));
    desk.put(vec![record(1, "first"), record(2, "second"), record(3, "third")]);
    desk.put(vec![record(2, "second, again"), record(2, "second, and again")]);
    assert_eq!(desk.commit(vec![record(4, "fourth")], &[1, 77], Some(vec![member(5), member(6)])).result, Ok(()));
    desk.store.close();

    let (mut desk, second) = Desk::open(dir.path());
    assert!(!second.was_running);
    assert_eq!(second.identity.node, first.identity.node);
    assert_eq!(second.members, [member(5), member(6)]);
    let expected: Vec<Record> =
        [record(2, "second, and again"), record(3, "third"), record(4, "fourth")].map(Arc::unwrap_or_clone).into();
    assert_eq!(sorted(&second.records), expected);

    // Rows of a former start are found again: changed in place, and deleted.
    assert_eq!(desk.commit(vec![record(3, "changed"), record(9, "new")], &[2], None).result, Ok(()));
    desk.store.close();
    let (_, third) = Desk::open(dir.path());
    let expected: Vec<Record> =
        [record(3, "changed"), record(4, "fourth"), record(9, "new")].map(Arc::unwrap_or_clone).into();
    assert_eq!(sorted(&third.records), expected);
}

#[test]
fn what_is_stored_is_for_its_owner_alone() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let (mut desk, _) = Desk::open(&data);
    desk.put(vec![record(1, "private")]);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&data), 0o700);
    for entry in fs::read_dir(&data).unwrap() {
        assert_eq!(mode(&entry.unwrap().path()), 0o600);
    }
}

#[test]
fn a_generation_is_never_used_twice_though_the_clock_goes_back() {
    let dir = tempfile::tempdir().unwrap();
    let generation = |now| Desk::open_at(dir.path(), Timestamp(now)).unwrap().1.identity.generation;
    assert_eq!(generation(5_000_999), Generation(5_000));
    assert_eq!(generation(6_000_000), Generation(6_000));
    assert_eq!(generation(1_000), Generation(6_001));
    assert_eq!(generation(0), Generation(6_002));
    assert_eq!(generation(u64::MAX), Generation(u64::MAX / 1_000));
}

#[test]
fn a_node_keeps_the_name_it_was_given() {
    let dir = tempfile::tempdir().unwrap();
    let named = |name| Store::open(dir.path(), name, NOON, |_| {}).unwrap().1.identity.name;
    assert_eq!(named(None), None);
    assert_eq!(named(Some("anvil")), Some("anvil".to_owned()));
    assert_eq!(named(None), Some("anvil".to_owned()));
    assert_eq!(named(Some("bellows")), Some("bellows".to_owned()));
}

#[test]
fn a_second_node_on_one_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (desk, _) = Desk::open(dir.path());
    let error = Desk::open_at(dir.path(), NOON).err().unwrap();
    assert!(matches!(error, StoreError::InUse { .. }));
    let said = error.to_string();
    assert!(said.contains(&dir.path().canonicalize().unwrap().display().to_string()), "{said}");
    assert!(said.contains(&format!("process {}", std::process::id())), "{said}");
    desk.store.close();
    Desk::open(dir.path());
}

#[test]
fn a_flipped_byte_costs_one_record_and_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let (mut desk, _) = Desk::open(dir.path());
    desk.put(vec![record(1, "left"), record(2, "flip me here"), record(3, "right")]);
    desk.store.close();

    let path = dir.path().join("node.db");
    let mut bytes = fs::read(&path).unwrap();
    let places: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(b"flip me here")).collect();
    assert_eq!(places.len(), 1);
    bytes[places[0]] ^= 0x20;
    fs::write(&path, bytes).unwrap();

    let (mut desk, loaded) = Desk::open(dir.path());
    assert_eq!(loaded.records.iter().map(|record| record.id.0).collect::<Vec<_>>(), [1, 3]);
    assert_eq!(loaded.damaged, [Damaged { id: Some(JobId(2)), reason: "its checksum is wrong".to_owned() }]);
    // A replica sends it again.
    desk.put(vec![record(2, "fetched again")]);
    desk.store.close();

    let (desk, loaded) = Desk::open(dir.path());
    assert_eq!((loaded.records.len(), loaded.damaged.len()), (3, 0));
    desk.store.close();
    in_a_closed(&dir, |connection| {
        let kept: (Vec<u8>, String) = connection
            .query_row("SELECT id, reason FROM quarantine", [], |row| Ok((row.get(0)?, row.get(1)?)))
            .unwrap();
        assert_eq!(kept, (2u128.to_be_bytes().to_vec(), "its checksum is wrong".to_owned()));
    });
}

#[test]
fn a_record_of_a_newer_format_is_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    let (mut desk, _) = Desk::open(dir.path());
    desk.put(vec![record(1, "old"), record(2, "new")]);
    desk.store.close();
    in_a_closed(&dir, |connection| {
        let newer = [envelope::FORMAT + 1, 0x55];
        let checksum = crc32fast::hash(&newer).to_le_bytes();
        let value = [&newer[..1], &checksum, &newer[1..]].concat();
        let id = 2u128.to_be_bytes();
        assert_eq!(connection.execute("UPDATE record SET value = ?1 WHERE id = ?2", (value, id)), Ok(1));
        // And one that is damaged beyond its name.
        assert_eq!(connection.execute("INSERT INTO record (id, value) VALUES (x'00', x'')", []), Ok(1));
    });
    let (_, loaded) = Desk::open(dir.path());
    assert_eq!(loaded.records.len(), 1);
    assert_eq!(loaded.damaged.iter().map(|damaged| damaged.id).collect::<Vec<_>>(), [Some(JobId(2)), None]);
    assert!(loaded.damaged[0].reason.contains("format 2"), "{:?}", loaded.damaged);
}

#[test]
fn a_row_whose_number_was_damaged_neither_hides_nor_returns() {
    let dir = tempfile::tempdir().unwrap();
    let (mut desk, _) = Desk::open(dir.path());
    desk.put(vec![record(1, "moved"), record(2, "there twice")]);
    desk.store.close();
    in_a_closed(&dir, |connection| {
        let last = i64::MAX;
        assert_eq!(connection.execute("UPDATE record SET row = ?1 WHERE row = 1", [last]), Ok(1));
        assert_eq!(
            connection
                .execute("INSERT INTO record (row, id, value) SELECT -5, id, value FROM record WHERE row = 2", []),
            Ok(1)
        );
    });
    let (mut desk, loaded) = Desk::open(dir.path());
    assert_eq!(loaded.records.iter().map(|record| record.id.0).collect::<BTreeSet<_>>(), [1, 2].into());
    assert_eq!(loaded.damaged.len(), 1);
    assert_eq!(desk.commit(vec![record(3, "new")], &[1, 2], None).result, Ok(()));
    desk.store.close();
    let (_, loaded) = Desk::open(dir.path());
    assert_eq!(loaded.records, [PackedRecord::from(&*record(3, "new"))]);
}

#[test]
fn a_database_of_a_newer_program_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    Desk::open(dir.path()).0.store.close();
    in_a_closed(&dir, |connection| connection.execute_batch("PRAGMA user_version = 99").unwrap());
    let error = Desk::open_at(dir.path(), NOON).err().unwrap();
    assert!(matches!(error, StoreError::Newer { found: 99, .. }), "{error}");
    in_a_closed(&dir, |connection| connection.execute_batch("PRAGMA user_version = 3").unwrap());
    assert_eq!(Desk::open(dir.path()).1.damaged, []);
}

#[test]
fn what_is_no_database_of_ours_is_refused_with_advice() {
    let refuse = |spoil: &dyn Fn(&Path)| {
        let dir = tempfile::tempdir().unwrap();
        spoil(&dir.path().join("node.db"));
        let error = Desk::open_at(dir.path(), NOON).err().expect("it is refused");
        assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
        assert!(error.to_string().contains("Move the directory"), "{error}");
    };
    refuse(&|path| fs::write(path, "not a database at all, but a longish text. ".repeat(100)).unwrap());
    refuse(&|path| fs::write(path, "short").unwrap());
    refuse(&|path| {
        Connection::open(path)
            .unwrap()
            .execute_batch("CREATE TABLE theirs (x); INSERT INTO theirs VALUES (1)")
            .unwrap();
    });
    // Ours, but only half of it is left.
    refuse(&|path| {
        let (mut desk, _) = Desk::open(path.parent().unwrap());
        desk.put((1..500).map(|id| record(id, "one of many")).collect());
        desk.store.close();
        let file = fs::OpenOptions::new().write(true).open(path).unwrap();
        file.set_len(file.metadata().unwrap().len() / 2).unwrap();
    });
    // Ours, but it does not know who it is.
    refuse(&|path| {
        Desk::open(path.parent().unwrap()).0.store.close();
        Connection::open(path).unwrap().execute_batch("UPDATE node SET value = x'00' WHERE key = 'self'").unwrap();
    });
}

#[test]
fn a_directory_that_cannot_be_made_is_named() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    let error = Desk::open_at(&dir.path().join("file/data"), NOON).err().unwrap();
    assert!(matches!(error, StoreError::Refused { .. }) && error.to_string().contains("file/data"), "{error}");
}

#[test]
fn the_log_stays_short_and_free_space_goes_back() {
    let dir = tempfile::tempdir().unwrap();
    let (mut database, _) = Database::open(dir.path(), None, NOON).unwrap();
    let size = |file: &str| fs::metadata(dir.path().join(file)).unwrap().len();
    let long_name = "n".repeat(7_000);
    let mut commit = |put, delete| {
        assert_eq!(database.commit(&Commit { put, delete, ..Commit::default() }), Ok(()));
        database.after_commit();
    };
    for round in 0..20u128 {
        commit((0..300).map(|id| record(round * 300 + id, &long_name)).collect(), Vec::new());
        assert!(size("node.db-wal") < 32 << 20, "{} bytes", size("node.db-wal"));
    }
    commit(Vec::new(), (0..6_000).map(JobId).collect());

    let mut moments = 0;
    while !database.is_tidy() {
        database.tidy();
        moments += 1;
        assert!(moments < 100, "{} bytes are left", size("node.db"));
    }
    assert!(size("node.db") < 20 << 20, "{} bytes", size("node.db"));
    database.close();
    assert_eq!(Desk::open(dir.path()).1.records, []);
}

/// What the next two tests run, and break.
#[test]
#[ignore = "runs as another test's child"]
fn a_process_that_commits_for_as_long_as_it_can() {
    let dir = std::env::var_os("FLOCKWORK_TEST_STORE").expect("the parent names the directory");
    let (mut desk, _) = Desk::open(Path::new(&dir));
    for number in 1..u128::from(u32::MAX) {
        // Every record of a commit carries its number, as does one that all commits change.
        let name = number.to_string();
        let put = || (0..8).map(|at| record(number * 8 + at, &name)).chain([record(0, &name)]).collect();
        let result = desk.commit(put(), &[], None).result;
        if let Err(error) = result {
            assert!(matches!(error, CommitError::Fatal(_)), "{error}");
            assert_eq!(desk.commit(put(), &[], None).result, Err(error), "it stays failed");
            assert!(desk.commit(Vec::new(), &[1], None).result.is_err());
            desk.store.close();
            writeln!(std::io::stdout(), "the store broke").unwrap();
            return;
        }
        writeln!(std::io::stdout(), "acknowledged {number}").unwrap();
    }
}

/// Runs that process by `launcher`, kills it after `kill_at` commits, and gives what it printed last: how many
/// commits were acknowledged, and whether the store failed.
fn run_committing(launcher: &str, dir: &Path, kill_at: u128) -> (u128, bool) {
    let mut child = Command::new("sh")
        .args(["-c", launcher])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "io::store::tests::a_process_that_commits_for_as_long_as_it_can", "--ignored", "--nocapture"])
        .env("FLOCKWORK_TEST_STORE", dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut acknowledged, mut failed) = (0, false);
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        failed |= line == "the store broke";
        if let Some(number) = line.strip_prefix("acknowledged ") {
            acknowledged = number.parse().unwrap();
            if acknowledged == kill_at {
                child.kill().unwrap();
            }
        }
    }
    child.wait().unwrap();
    (acknowledged, failed)
}

fn check_that_nothing_is_lost(dir: &Path, acknowledged: u128) {
    let (_, loaded) = Desk::open(dir);
    assert!(loaded.was_running);
    assert_eq!(loaded.damaged, []);
    let name_of = |record: &Record| record.spec().name.clone().unwrap();
    let records: BTreeMap<u128, String> =
        loaded.records.iter().map(|record| (record.id.0, name_of(&record.unpack()))).collect();
    // The last commit may have reached the disk without being acknowledged, but then wholly.
    let last: u128 = records[&0].parse().unwrap();
    assert!((acknowledged..=acknowledged + 1).contains(&last), "{acknowledged} acknowledged, {last} found");
    let expected: BTreeMap<u128, String> =
        (8..(last + 1) * 8).map(|id| (id, (id / 8).to_string())).chain([(0, last.to_string())]).collect();
    assert_eq!(records, expected);
}

#[test]
fn a_killed_process_has_lost_nothing_that_it_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let (acknowledged, failed) = run_committing("exec \"$0\" \"$@\"", dir.path(), 300);
    assert!(acknowledged >= 300 && !failed);
    check_that_nothing_is_lost(dir.path(), acknowledged);
}

#[test]
fn after_a_broken_write_nothing_more_is_taken_and_nothing_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    // Files may not grow beyond some megabyte, which is neither a full disk nor a full quota.
    let launcher = "trap '' XFSZ; ulimit -f 2000; exec \"$0\" \"$@\"";
    let (acknowledged, failed) = run_committing(launcher, dir.path(), u128::MAX);
    assert!(acknowledged > 0 && failed);
    check_that_nothing_is_lost(dir.path(), acknowledged);
}

/// A file system with room for very little; gone when dropped.
struct TinyDisk(TempDir);

impl TinyDisk {
    fn mount(size: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(dir.path())
            .stderr(Stdio::null())
            .status();
        mounted.is_ok_and(|status| status.success()).then_some(Self(dir))
    }
}

impl Drop for TinyDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(self.0.path()).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("{} is still mounted", self.0.path().display());
        }
    }
}

#[test]
fn a_full_disk_fails_a_commit_and_not_the_store() {
    let Some(disk) = TinyDisk::mount("5m") else {
        eprintln!("skipped: only root can mount a small disk");
        return;
    };
    let dir = disk.0.path();
    let (mut desk, _) = Desk::open(dir);
    let ballast = dir.join("ballast");
    fs::write(&ballast, vec![0; 3 << 20]).unwrap();
    let long_name = "n".repeat(4_000);

    let mut kept = 0u128;
    let refused = loop {
        assert!(kept < 10_000, "the disk never filled");
        let done = desk.commit((0..4).map(|at| record(kept * 4 + at, &long_name)).collect(), &[], None);
        match done.result {
            Ok(()) => kept += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, CommitError::Full(_)), "{refused}");
    let large: Vec<_> = (0..100).map(|at| record(1_000_000 + at, &long_name)).collect();
    for _ in 0..3 {
        let again = desk.commit(large.clone(), &[], None).result;
        assert!(matches!(again, Err(CommitError::Full(_))), "{again:?}");
    }

    fs::remove_file(&ballast).unwrap();
    assert_eq!(desk.commit(large, &[0], None).result, Ok(()));
    desk.store.close();
    let (desk, loaded) = Desk::open(dir);
    assert!(!loaded.was_running);
    assert_eq!((loaded.records.len() as u128, loaded.damaged.len()), (kept * 4 + 100 - 1, 0));
    desk.store.close();

    // And a start that finds no room at all says so.
    let mut ballast = fs::File::create(&ballast).unwrap();
    while ballast.write_all(&[0; 4_096]).is_ok() {}
    let error = Desk::open_at(dir, NOON).err().expect("there is no room to begin a generation");
    assert!(matches!(error, StoreError::Full { .. }), "{error}");
}

/// Reads a blob as the rest of the program does.
fn read_blob(reader: &super::BlobReader, blob: crate::model::blob::BlobRef) -> Result<Blob, super::BlobError> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(reader.read(blob))
}

fn commit_blobs(desk: &mut Desk, put: Vec<Blob>, drop: Vec<Blob>) {
    desk.number += 1;
    let drop_blobs = drop.iter().map(Blob::id).collect();
    let commit = Commit { number: desk.number, put_blobs: put, drop_blobs, ..Commit::default() };
    desk.store.commit(commit).unwrap();
    assert_eq!(desk.done.recv().unwrap(), CommitDone { number: desk.number, result: Ok(()) });
}

#[test]
fn blobs_are_kept_in_parts_until_they_are_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let sizes = [0, 1, BLOB_PART_BYTES - 1, BLOB_PART_BYTES, BLOB_PART_BYTES + 1, 3 * BLOB_PART_BYTES + 7];
    let blobs: Vec<Blob> =
        sizes.iter().map(|size| Blob::new((0..*size).map(|n| n as u8).collect::<Vec<_>>())).collect();
    let (mut desk, loaded) = Desk::open(dir.path());
    assert_eq!(loaded.blobs, []);
    commit_blobs(&mut desk, blobs.clone(), vec![]);
    // Once more, and beside others.
    let another = Blob::new("another");
    commit_blobs(&mut desk, vec![blobs[4].clone(), another.clone()], vec![blobs[3].clone()]);
    let (damaged, _) = tokio::sync::mpsc::unbounded_channel();
    let reader = desk.store.blob_reader(damaged.clone());
    desk.store.close();
    assert_eq!(read_blob(&reader, another.reference()), Err(super::BlobError::Closed));

    let (desk, mut loaded) = Desk::open(dir.path());
    let reader = desk.store.blob_reader(damaged);
    let mut kept: Vec<Blob> =
        blobs.iter().enumerate().filter(|(at, _)| *at != 3).map(|(_, blob)| blob.clone()).collect();
    kept.push(another);
    let mut expected: Vec<_> = kept.iter().map(Blob::reference).collect();
    expected.sort();
    loaded.blobs.sort();
    assert_eq!(loaded.blobs, expected);
    for blob in &kept {
        assert_eq!(read_blob(&reader, blob.reference()).as_ref(), Ok(blob));
    }
    assert_eq!(read_blob(&reader, blobs[3].reference()), Err(super::BlobError::Absent));
}

#[test]
fn a_damaged_blob_is_named_forgotten_and_can_be_stored_anew() {
    let dir = tempfile::tempdir().unwrap();
    let (good, bad, torn) =
        (Blob::new("good"), Blob::new(vec![7; BLOB_PART_BYTES + 9]), Blob::new(vec![8; BLOB_PART_BYTES + 9]));
    let (mut desk, _) = Desk::open(dir.path());
    commit_blobs(&mut desk, vec![good.clone(), bad.clone(), torn.clone()], vec![]);
    desk.store.close();
    in_a_closed(&dir, |connection| {
        let flipped = "UPDATE blob SET value = CAST(substr(value, 1, 9) || x'00' || substr(value, 11) AS BLOB) WHERE part = 1 AND id = ?1";
        assert_eq!(connection.execute(flipped, [bad.id().0]).unwrap(), 1);
        assert_eq!(connection.execute("DELETE FROM blob WHERE part = 0 AND id = ?1", [torn.id().0]).unwrap(), 1);
    });

    let (mut desk, loaded) = Desk::open(dir.path());
    assert_eq!(loaded.blobs.len(), 2, "what has lost a part is not there: {:?}", loaded.blobs);
    let (damaged, mut named) = tokio::sync::mpsc::unbounded_channel();
    let reader = desk.store.blob_reader(damaged);
    assert_eq!(read_blob(&reader, bad.reference()), Err(super::BlobError::Damaged));
    assert_eq!(named.try_recv(), Ok(bad.id()));
    assert_eq!(read_blob(&reader, bad.reference()), Err(super::BlobError::Absent));
    assert_eq!(read_blob(&reader, good.reference()).as_ref(), Ok(&good));
    commit_blobs(&mut desk, vec![bad.clone(), torn.clone()], vec![]);
    for blob in [&good, &bad, &torn] {
        assert_eq!(read_blob(&reader, blob.reference()).as_ref(), Ok(blob));
    }
    desk.store.close();
    in_a_closed(&dir, |connection| {
        let rows: i64 = connection.query_row("SELECT count(*) FROM blob", [], |row| row.get(0)).unwrap();
        assert_eq!(rows, 5, "what was damaged is gone");
    });
}
