//! Jobs that must not run twice at once, on a node that is frozen.

use std::path::Path;

use flockwork::io::crash_points::Step;
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::{eventually, seconds};

/// Who wrote into the ledger, in the order of the writing.
fn read_ledger(path: &Path) -> Vec<String> {
    std::fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn a_node_that_was_frozen_says_when_its_guard_ended_what_it_had_leased() {
    let mut cluster = Cluster::of(3).await;
    let command = ["sh", "-c", "echo this is attempt $FLOCKWORK_ATTEMPT; exec sleep 1000"];
    let id = cluster.submit(0, json!({"command": command, "on_partition": "pause"})).await;
    let place = cluster.runs_on(0, &id).await;
    let via = (place + 1) % 3;
    cluster.freeze(place);
    cluster.job_where(via, &id, |job| job["attempts"][1]["phase"] == "running").await;
    cluster.thaw(place);
    let job = cluster.job_where(via, &id, |job| job["attempts"][0]["phase"] == "returned").await;
    let (first, second) = (&job["attempts"][0], &job["attempts"][1]);
    assert!(first["reason"].to_string().contains("its guard ended it"), "{job}");
    assert!(first["ended_at"].as_str() < second["started_at"].as_str(), "it had ended before the other began: {job}");
    assert_eq!(first["overlaps"][0]["certain"], false, "{job}");
    let merges = cluster.flockwork(&[via], &["merges"]).await.good();
    assert!(merges.contains("not by their clocks"), "{merges}");

    // It ran, so it has a log, although it counts as given back.
    let logs = async |which| cluster.flockwork(&[via], &["logs", "--attempt", which, &id]).await.good();
    assert_eq!(logs("1").await, "this is attempt 1\n");
    assert_eq!(logs("all").await, "this is attempt 1\nthis is attempt 2\n");
    cluster.cancel(via, &id, "seen enough").await;
    cluster.ended(via, &id).await;
}

#[tokio::test]
async fn a_frozen_nodes_leased_pods_end_before_others_take_their_jobs_over() {
    let mut cluster = Cluster::of(3).await;
    let dir = tempfile::tempdir().unwrap();
    let (leased, free) = (dir.path().join("leased"), dir.path().join("free"));
    // Each pod has a daemon that left its group, and both write whose they are, again and again.
    let script = "beat() { while :; do echo $FLOCKWORK_ATTEMPT $1 >> $LEDGER; sleep 0.05; done; }
                  if [ \"$1\" = daemon ]; then beat daemon; fi
                  setsid sh -c \"$SCRIPT\" sh daemon > /dev/null 2>&1 & beat leader";
    let spec = |ledger: &Path, on_partition: &str| {
        json!({"command": ["sh", "-c", script], "env": {"LEDGER": ledger, "SCRIPT": script},
               "on_partition": on_partition})
    };
    let paused = cluster.submit(0, spec(&leased, "pause")).await;
    let place = cluster.runs_on(0, &paused).await;
    let via = (place + 1) % 3;
    eventually("both write", seconds(20), async || {
        let told = read_ledger(&leased);
        let both = ["1 leader", "1 daemon"].map(str::to_owned);
        if both.iter().all(|who| told.contains(who)) { Ok(()) } else { Err(format!("{told:?}")) }
    })
    .await;
    // Its neighbour on the same node is not leased.
    let mut neighbour = spec(&free, "run");
    neighbour["require"] = json!({});
    let neighbour = loop {
        let id = cluster.submit(via, neighbour.clone()).await;
        if cluster.runs_on(via, &id).await == place {
            break id;
        }
        cluster.cancel(via, &id, "on another node").await;
        cluster.ended(via, &id).await;
    };

    cluster.freeze(place);
    let again =
        cluster.job_where(via, &paused, |job| job["attempts"].as_array().is_some_and(|all| all.len() == 2)).await;
    assert_eq!(again["attempts"][0]["phase"], "lost", "{again}");
    eventually("the second attempt writes", seconds(30), async || {
        let told = read_ledger(&leased);
        if told.iter().filter(|who| who.starts_with('2')).count() > 20 { Ok(()) } else { Err(format!("{told:?}")) }
    })
    .await;
    let told = read_ledger(&leased);
    assert!(told.is_sorted_by_key(|who| who.split(' ').next().unwrap().to_owned()), "two ran at once: {told:?}");
    let of_first = |told: &[String]| told.iter().filter(|who| who.starts_with('1')).count();
    let before = of_first(&read_ledger(&free));
    eventually("the neighbour's pod runs on", seconds(10), async || {
        if of_first(&read_ledger(&free)) > before { Ok(()) } else { Err("it is silent".to_owned()) }
    })
    .await;

    cluster.thaw(place);
    cluster.sees(via, place, "alive").await;
    for id in [&paused, &neighbour] {
        cluster.cancel(via, id, "seen enough").await;
        assert_eq!(cluster.ended(via, id).await["state"], "cancelled");
    }
}

#[tokio::test]
async fn what_a_frozen_node_had_not_launched_yet_does_not_begin_beside_the_next_attempt() {
    does_not_begin_late(Step::Launch).await;
}

#[tokio::test]
async fn what_a_frozen_node_had_decided_to_start_does_not_begin_beside_the_next_attempt() {
    does_not_begin_late(Step::Start).await;
}

/// A node freezes at this step of an attempt that must not run twice, and goes on when others run the next.
async fn does_not_begin_late(step: Step) {
    let mut cluster = Cluster::of(3).await;
    let dir = tempfile::tempdir().unwrap();
    cluster.leave(2).await;
    cluster.restart_to_freeze_at(2, step).await;
    cluster.sees(0, 2, "alive").await;
    let ledger = dir.path().join("ledger");
    let command = ["sh", "-c", "echo $FLOCKWORK_ATTEMPT > $LEDGER"];
    let spec = json!({"command": command, "env": {"LEDGER": &ledger}, "on_partition": "pause"});
    let was_lost = |job: &Value| job["attempts"].as_array().unwrap().iter().any(|one| one["phase"] == "lost");
    // One by one, until one finds its way to the node, which freezes as it is about to begin.
    let mut tries = 0..100;
    let id = loop {
        tries.next().expect("one of so many finds its way to the node");
        let id = cluster.submit(0, spec.clone()).await;
        if was_lost(&cluster.ended(0, &id).await) {
            break id;
        }
    };
    std::fs::remove_file(&ledger).unwrap();
    cluster.thaw(2);
    cluster.sees(0, 2, "alive").await;
    let job = cluster.job_where(0, &id, |job| job["attempts"][0]["phase"] == "returned").await;
    assert!(!ledger.exists(), "the first attempt began: {job}");
}
