//! Work that outlives the machines it runs on: the example that counts primes, on nodes that are killed under it.

use std::path::Path;

use serde_json::{Value, json};

use crate::cluster::{Cluster, last_attempt};
use crate::{eventually, seconds};

const LIMIT: u64 = 600_000;
const STEP: u64 = 10_000;
const PRIMES_BELOW_LIMIT: u64 = 49_098;

/// How often the job's node is killed.
const DEATHS: usize = 3;

/// What the job wrote down itself, outside of flockwork: what, up to where, in which attempt.
fn read_ledger(path: &Path) -> Vec<(String, u64, u32)> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let entry = |line: &str| {
        let mut words = line.split(' ');
        let word = words.next().unwrap().to_owned();
        (word, words.next().unwrap().parse().unwrap(), words.next().unwrap().parse().unwrap())
    };
    // A killed writer may leave half a line, which only the last could be.
    text.lines().filter(|line| line.split(' ').count() == 3).map(entry).collect()
}

#[tokio::test]
async fn a_long_computation_never_repeats_more_than_the_step_it_was_in() {
    let mut cluster = Cluster::of(3).await;
    let dir = tempfile::tempdir().unwrap();
    let ledger = dir.path().join("ledger");
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/resumable.py");
    let (limit, step) = (LIMIT.to_string(), STEP.to_string());
    let command = json!(["python3", program, limit, "--step", step, "--pause", "0.05", "--ledger", ledger]);
    let id = cluster.submit(0, json!({"command": command, "lost_limit": 20})).await;

    let mut via = 0;
    for death in 0..DEATHS {
        let steps_before = read_ledger(&ledger).len();
        let place = cluster.runs_on(via, &id).await;
        eventually("the attempt does some work", seconds(60), async || {
            let steps = read_ledger(&ledger).len() - steps_before;
            if steps >= 10 { Ok(()) } else { Err(format!("{steps} entries")) }
        })
        .await;
        cluster.kill(place).await;
        via = (place + 1) % 3;
        let number = death + 2;
        cluster
            .job_where(via, &id, |job| last_attempt(job)["number"] == number && last_attempt(job)["phase"] == "running")
            .await;
        cluster.restart(&[place]).await;
    }
    let job = cluster.ended(via, &id).await;
    assert_eq!(job["state"], "succeeded", "{job}");
    let result: Value = serde_json::from_str(job["result"].as_str().unwrap()).unwrap();
    assert_eq!((&result["primes"], &result["next"]), (&json!(PRIMES_BELOW_LIMIT), &json!(LIMIT)));
    assert_eq!(job["progress"]["fraction"], 1.0);
    assert_eq!(job["checkpoint"]["attempt"], last_attempt(&job)["number"], "{job}");

    // Every attempt begins no earlier than where the last acknowledged step before it ended.
    let (mut safe, mut begun, mut repeated) = (0, 0, 0);
    let mut attempt_before = 0;
    for (what, at, attempt) in read_ledger(&ledger) {
        match what.as_str() {
            "begin" => {
                if attempt != attempt_before {
                    assert!(at >= safe, "attempt {attempt} begins at {at}, and {safe} was safe");
                    repeated += u64::from(at < begun + STEP && attempt > 1);
                }
                attempt_before = attempt;
                begun = at;
            }
            "saved" => safe = at,
            "unsafe" => {}
            other => panic!("{other}"),
        }
    }
    assert_eq!(safe, LIMIT);
    assert!(repeated <= DEATHS as u64, "{repeated}");

    // A node that never ran it tells its whole story.
    let story = cluster.flockwork(&[via], &["logs", &id]).await.good();
    assert!(story.contains(&format!("{PRIMES_BELOW_LIMIT} primes below {LIMIT}")), "{story}");
    assert!(story.contains("goes on from"), "{story}");
}

#[tokio::test]
async fn what_a_job_left_is_there_when_its_node_is_not() {
    let mut cluster = Cluster::with(3, |place| format!("--slots 8 --label place={place}")).await;
    let script = "seq 1 4000; echo problem >&2; printf 42 > $FLOCKWORK_RESULT_FILE";
    let bound = json!({"command": ["sh", "-c", script], "require": {"place": "2"}});
    let id = cluster.submit(0, bound).await;
    assert_eq!(cluster.ended(1, &id).await["result"], "42");
    cluster.converge().await;

    cluster.kill(2).await;
    cluster.sees(0, 2, "down").await;
    for via in [0, 1] {
        assert_eq!(cluster.job(via, &id).await["result"], "42");
        let logs = cluster.flockwork(&[via], &["logs", "--stream", "stdout", &id]).await;
        assert!(logs.out.ends_with("3999\n4000\n") && logs.out.len() <= 16 << 10, "{logs:?}");
        assert!(logs.err.contains("only the end is left"), "{logs:?}");
        let logs = cluster.flockwork(&[via], &["logs", "--stream", "stderr", &id]).await;
        assert_eq!((logs.code, logs.err.as_str()), (Some(0), "problem\n"), "nothing is missing of what was short");
    }
}

#[tokio::test]
async fn what_a_running_job_posted_and_wrote_outlives_its_node() {
    let mut cluster = Cluster::with(3, |place| format!("--slots 8 --label place={place}")).await;
    let script = "echo begun; echo first > r; flockwork pod result r || exit $?; echo second > r
                  flockwork pod result r || exit $?; flockwork pod progress 0.5 posted; sleep 600";
    let bound = json!({"command": ["sh", "-c", script], "require": {"place": "2"}, "lost_limit": 20});
    let id = cluster.submit(0, bound).await;
    // It is there while the job runs, and on every node.
    let job = cluster.job_where(0, &id, |job| job["progress"]["message"] == "posted").await;
    assert_eq!(
        (&job["state"], &job["result"], &job["result_attempt"]),
        (&json!("running"), &json!("second\n"), &json!(1))
    );
    cluster.job_where(0, &id, |job| job["attempts"][0]["stdout_bytes"] == 6).await;
    cluster.kill(2).await;
    cluster.sees(0, 2, "down").await;
    for via in [0, 1] {
        let job = cluster.job_where(via, &id, |job| job["attempts"][0]["phase"] == "lost").await;
        assert_eq!(job["result"], "second\n", "{job}");
        let logs = cluster.flockwork(&[via], &["logs", "--stream", "stdout", &id]).await;
        assert_eq!((logs.code, logs.out.as_str()), (Some(0), "begun\n"), "{logs:?}");
        assert!(logs.err.contains("only the end is left, as it was at 20"), "{logs:?}");
    }
}

#[tokio::test]
async fn a_job_that_is_cancelled_keeps_what_it_came_to_until_then() {
    let cluster = Cluster::of(3).await;
    let script = "echo posted | flockwork pod result -; flockwork pod progress 0.5 ready; sleep 600 & wait";
    let with_file = format!("trap 'printf left > $FLOCKWORK_RESULT_FILE; exit 1' TERM; {script}");
    for (script, result) in [(script, "posted\n"), (&with_file, "left")] {
        let id = cluster.submit(0, json!({"command": ["sh", "-c", script]})).await;
        cluster.job_where(0, &id, |job| job["progress"]["message"] == "ready").await;
        cluster.cancel(1, &id, "enough").await;
        let job = cluster.ended(2, &id).await;
        assert_eq!((&job["state"], &job["result"]), (&json!("cancelled"), &json!(result)), "{job}");
    }
}

#[tokio::test]
async fn what_a_node_does_not_keep_is_said_and_not_only_left_out() {
    let cluster = Cluster::with(1, |_| "--slots 2 --log-limit 64KiB".to_owned()).await;
    let id = cluster
        .shell(0, "head -c 999999 /dev/zero | tr '\\0' x; echo; head -c 70000 /dev/zero > $FLOCKWORK_RESULT_FILE")
        .await;
    let job = cluster.ended(0, &id).await;
    assert_eq!(job["attempts"][0]["stdout_bytes"], 1_000_000, "{job}");
    assert!(job["reason"].as_str().is_some_and(|why| why.contains("its result is lost")), "{job}");
    let logs = cluster.flockwork(&[0], &["logs", &id]).await;
    let gone = 1_000_000 - logs.out.len();
    assert!(
        gone > 900_000 && logs.err.contains(&format!("{gone} bytes of stdout of attempt 1")),
        "{gone} {}",
        logs.err
    );
    let plain = cluster.request(0, reqwest::Method::GET, &format!("/v1/jobs/{id}/logs")).send().await.unwrap();
    assert_eq!(plain.headers()["x-flockwork-log-from"], gone.to_string().as_str());
    let large = "head -c 70000 /dev/zero > $FLOCKWORK_RESULT_FILE";
    let ran = cluster.flockwork(&[0], &["run", "--", "sh", "-c", large]).await;
    assert!(ran.code == Some(0) && ran.err.contains("succeeded, but its result is lost"), "{ran:?}");
}

#[tokio::test]
async fn a_job_that_falls_silent_is_tried_again() {
    let cluster = Cluster::of(3).await;
    let script = "if [ $FLOCKWORK_ATTEMPT = 1 ]; then sleep 600; else echo spoke; fi";
    let spec = json!({"command": ["sh", "-c", script], "retries": 1, "heartbeat_timeout": "1s",
                      "backoff": {"initial": "50ms"}});
    let id = cluster.submit(0, spec).await;
    let job = cluster.ended(1, &id).await;
    assert_eq!(job["state"], "succeeded", "{job}");
    let first = &job["attempts"][0];
    assert_eq!((&first["phase"], &first["reason"]), (&json!("failed"), &json!("no heartbeat for 1s")), "{job}");
}

#[tokio::test]
async fn large_work_is_saved_on_every_replica_and_found_on_another_node() {
    let mut cluster = Cluster::with(3, |place| format!("--slots 8 --label place={place}")).await;
    // The first attempt saves nine megabytes and hangs; the second, elsewhere, says what it finds.
    let script = "if [ -e $FLOCKWORK_CHECKPOINT_FILE ]; then cksum < $FLOCKWORK_CHECKPOINT_FILE; exit; fi
                  head -c 9000000 /dev/urandom > work; cksum < work; flockwork pod checkpoint work || exit $?
                  flockwork pod progress 0.5 saved; sleep 600";
    let id = cluster.submit(0, json!({"command": ["sh", "-c", script], "lost_limit": 20})).await;
    let job = cluster.job_where(0, &id, |job| job["progress"]["message"] == "saved").await;
    assert_eq!(job["checkpoint"]["size"], 9_000_000, "{job}");
    let place = cluster.runs_on(0, &id).await;
    let first = cluster.output(0, &id).await;
    cluster.kill(place).await;
    let via = (place + 1) % 3;
    let ended = cluster.ended(via, &id).await;
    assert_eq!(
        (&ended["state"], &ended["attempts"][1]["phase"]),
        (&json!("succeeded"), &json!("succeeded")),
        "{ended}"
    );
    assert_eq!(cluster.output(via, &id).await, first, "{ended}");
}
