//! A node dies by kill -9 at every step of an attempt's life, and the job is finished correctly after.

use std::path::Path;

use flockwork::io::crash_points::Step;
use serde_json::json;

use crate::cluster::Cluster;

/// What the pods wrote down themselves: who began, and who came to the end.
fn read_ledger(path: &Path) -> Vec<(String, u32)> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let entry = |line: &str| {
        let (word, attempt) = line.split_once(' ').unwrap();
        (word.to_owned(), attempt.parse().unwrap())
    };
    text.lines().map(entry).collect()
}

#[tokio::test]
async fn a_job_is_finished_correctly_after_a_death_at_any_step() {
    let mut cluster = Cluster::with(3, |place| format!("--slots 8 --label place={place}")).await;
    let dir = tempfile::tempdir().unwrap();
    for point in Step::ALL {
        cluster.leave(2).await;
        cluster.restart_to_die_at(2, point).await;
        let step = point.as_str();
        cluster.sees(0, 2, "alive").await;
        let ledger = dir.path().join(step);
        let script = "echo begin $FLOCKWORK_ATTEMPT >> $LEDGER; sleep 0.5; echo done
                      printf $FLOCKWORK_ATTEMPT > $FLOCKWORK_RESULT_FILE; echo end $FLOCKWORK_ATTEMPT >> $LEDGER";
        let spec = json!({"command": ["sh", "-c", script], "env": {"LEDGER": ledger}, "require": {"place": "2"}});
        let id = cluster.submit(0, spec).await;
        cluster.dies(2).await;
        let before = read_ledger(&ledger);
        cluster.restart(&[2]).await;
        let job = cluster.ended(1, &id).await;

        assert_eq!(job["state"], "succeeded", "{step}: {job}");
        let written = read_ledger(&ledger);
        let attempts = job["attempts"].as_array().unwrap();
        let last = attempts.last().unwrap();
        assert_eq!(last["phase"], "succeeded", "{step}: {job}");
        assert_eq!(job["result"], last["number"].to_string(), "{step}: {job}");
        assert_eq!(cluster.output(1, &id).await, "done\n", "{step}");
        for earlier in &attempts[..attempts.len() - 1] {
            assert_eq!((&earlier["phase"], &earlier["overlaps"]), (&json!("lost"), &json!([])), "{step}: {job}");
        }
        // No attempt wrote anything after the next had begun.
        assert!(written.is_sorted_by_key(|(_, attempt)| *attempt), "{step}: {written:?}");
        let begun = |number: u32| written.contains(&("begin".to_owned(), number));
        let ended = |number: u32| written.contains(&("end".to_owned(), number));
        match step {
            "claim" | "start" | "launch" => assert!(before.is_empty(), "{step}: {before:?}"),
            "spawn" | "running" => assert!(!ended(1) && begun(2) && ended(2), "{step}: {written:?}"),
            _ => assert!(ended(1) && (ended(2) || attempts.len() == 1), "{step}: {written:?}"),
        }
    }
}
