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

#[test]
fn a_store_of_schema_1_opens_and_is_read_rightly() {
    let dir = tempfile::tempdir().unwrap();
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/store-schema-1.db");
    std::fs::copy(kept, dir.path().join("node.db")).unwrap();
    // Twice, because what the first start writes must be read by the second.
    for start in 0..2 {
        let now = Timestamp(1_800_000_000_000);
        let (store, loaded) = Store::open(dir.path(), None, now, |_| {}).unwrap();
        assert_eq!(loaded.identity.node, NodeId(0x994c_55c6), "start {start}");
        assert_eq!(loaded.identity.name.as_deref(), Some("kept"));
        assert_eq!((loaded.damaged.len(), loaded.was_running), (0, false));
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
        assert_eq!(succeeded.claim.executor.node, NodeId(0x994c_55c6));
        let failed: Vec<_> = records["fails"].attempts.values().map(|attempt| attempt.fate.exit).collect();
        assert_eq!(failed, [Some(Exit::Code(3)), Some(Exit::Code(3))]);
        assert!(records["waits"].attempts.is_empty() && records["waits"].spec().delay.is_some());
        let reads = records["reads"].spec();
        assert_eq!((reads.key.as_deref(), reads.env["COLOUR"].as_str()), (Some("once"), "green"));
        assert_eq!(format!("{:032x}", records["reads"].id.0), "e655bae356acd2cd1c3fea1497955a94");
        store.close();
    }
}
