//! Stores that earlier versions wrote open, and say what was written.
//!
//! Each file of `tests/fixtures` is a node's database as some version left it; `tests/fixtures/make-store` made it.
#![allow(clippy::unwrap_used, reason = "a test stops at what it cannot do")]

use std::collections::BTreeMap;
use std::path::Path;

use flockwork::io::store::Store;
use flockwork::model::attempt::{Exit, Phase};
use flockwork::model::id::NodeId;
use flockwork::model::packed::PackedRecord;
use flockwork::model::record::{JobState, Record};
use flockwork::model::time::Timestamp;

/// What a file of `tests/fixtures` is to hold.
struct Kept {
    file: &'static str,
    node: NodeId,
    /// The id of the job with a key.
    with_key: &'static str,
    /// How many jobs it says since when they are known: those that wait for a time to pass.
    known_at: usize,
}

#[test]
fn a_store_of_schema_1_opens_and_is_read_rightly() {
    let (node, with_key) = (NodeId(0x994c_55c6), "e655bae356acd2cd1c3fea1497955a94");
    is_read_rightly(&Kept { file: "store-schema-1.db", node, with_key, known_at: 0 });
}

#[test]
fn a_store_of_schema_3_opens_and_is_read_rightly() {
    let (node, with_key) = (NodeId(0x75fe_ce9d), "e655bae356acd2cd1c3fea1497955a94");
    is_read_rightly(&Kept { file: "store-schema-3.db", node, with_key, known_at: 2 });
}

fn is_read_rightly(kept: &Kept) {
    let dir = tempfile::tempdir().unwrap();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(kept.file);
    std::fs::copy(path, dir.path().join("node.db")).unwrap();
    // Twice, because what the first start writes must be read by the second.
    for start in 0..2 {
        let now = Timestamp(1_800_000_000_000);
        let (store, loaded) = Store::open(dir.path(), None, now, |_| {}).unwrap();
        assert_eq!(loaded.identity.node, kept.node, "start {start}");
        assert_eq!(loaded.identity.name.as_deref(), Some("kept"));
        assert_eq!((loaded.damaged.len(), loaded.was_running), (0, false));
        assert_eq!(loaded.known_at.len(), kept.known_at);
        assert!(loaded.known_at.values().all(|at| Timestamp(1_700_000_000_000) < *at && *at < now));
        let unpacked: Vec<Record> = loaded.records.iter().map(PackedRecord::unpack).collect();
        let records: BTreeMap<&str, &Record> =
            unpacked.iter().map(|record| (record.spec().name.as_deref().unwrap(), record)).collect();
        assert_eq!(records.len(), 5);

        let state = |name: &str| records[name].state();
        let told: Vec<JobState> = ["succeeds", "fails", "waits", "stopped", "reads"].into_iter().map(state).collect();
        assert_eq!(
            told,
            [JobState::Succeeded, JobState::Failed, JobState::Pending, JobState::Cancelled, JobState::Succeeded]
        );
        let succeeded = records["succeeds"].telling().unwrap();
        assert_eq!((succeeded.fate.phase, succeeded.fate.exit), (Phase::Succeeded, Some(Exit::Code(0))));
        assert_eq!(succeeded.claim.executor.node, kept.node);
        let failed: Vec<_> = records["fails"].attempts.values().map(|attempt| attempt.fate.exit).collect();
        assert_eq!(failed, [Some(Exit::Code(3)), Some(Exit::Code(3))]);
        assert!(records["waits"].attempts.is_empty() && records["waits"].spec().delay.is_some());
        let reads = records["reads"].spec();
        assert_eq!((reads.key.as_deref(), reads.env["COLOUR"].as_str()), (Some("once"), "green"));
        assert_eq!(format!("{:032x}", records["reads"].id.0), kept.with_key);
        store.close();
    }
}
