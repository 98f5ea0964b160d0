//! What a job may ask for, asked of a real cluster of three unlike nodes.

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::{Value, json};

use crate::cluster::{Cluster, last_attempt, text, told};
use crate::processes::{gone, just_one, long_sleep};
use crate::{eventually, seconds};

#[tokio::test]
async fn a_job_gets_what_its_spec_asks_for() {
    let cluster = Cluster::with(3, |place| format!("--slots 8 --label place={place}")).await;
    tokio::join!(
        a_failed_attempt_is_tried_again_after_its_backoff(&cluster),
        some_failures_are_not_worth_another_attempt(&cluster),
        a_delayed_job_starts_when_it_is_due(&cluster),
        a_pending_job_is_cancelled(&cluster),
        a_running_job_is_cancelled_and_ended(&cluster),
        a_job_has_its_input_its_environment_and_its_directory(&cluster),
        a_job_runs_where_its_labels_are(&cluster),
        a_job_that_fits_nowhere_says_so_and_gives_up_in_time(&cluster),
        one_bad_spec_of_many_harms_no_other(&cluster),
        a_finished_job_is_tried_again_as_a_new_one(&cluster),
    );
}

async fn a_failed_attempt_is_tried_again_after_its_backoff(cluster: &Cluster) {
    let script = "echo attempt $FLOCKWORK_ATTEMPT; [ $FLOCKWORK_ATTEMPT = 3 ]";
    let backoff = json!({"initial": "400ms", "factor": 2, "max": "10s"});
    let id = cluster.submit(0, json!({"command": ["sh", "-c", script], "retries": 5, "backoff": backoff})).await;
    let job = cluster.ended(1, &id).await;
    assert_eq!((&job["state"], &last_attempt(&job)["number"]), (&json!("succeeded"), &json!(3)), "{job}");
    // Of 400 and 800 ms up to a quarter is taken off, so that jobs which failed together do not come back together.
    let attempts = job["attempts"].as_array().unwrap();
    for (pair, least) in attempts.windows(2).zip([300, 600]) {
        let pause = moment(&pair[1]["started_at"]) - moment(&pair[0]["ended_at"]);
        assert!(pause >= least - 20, "{pause} ms after attempt {}: {job}", pair[0]["number"]);
    }
    let all = cluster.request(2, Method::GET, &format!("/v1/jobs/{id}/logs?stream=stdout&attempt=all"));
    assert_eq!(all.send().await.unwrap().text().await.unwrap(), "attempt 1\nattempt 2\nattempt 3\n");
}

async fn some_failures_are_not_worth_another_attempt(cluster: &Cluster) {
    let spec = json!({"command": ["sh", "-c", "exit 7"], "retries": 5, "no_retry_on": [7]});
    let job = cluster.ended(2, &cluster.submit(1, spec).await).await;
    assert_eq!((&job["state"], &job["exit_code"]), (&json!("failed"), &json!(7)), "{job}");
    assert_eq!(job["attempts"].as_array().unwrap().len(), 1, "{job}");
}

async fn a_delayed_job_starts_when_it_is_due(cluster: &Cluster) {
    let id = cluster.submit(2, json!({"command": ["true"], "delay": "1500ms"})).await;
    let job = cluster.job(0, &id).await;
    assert_eq!(job["state"], "pending", "{job}");
    let (_, explanation) = cluster.get(0, &format!("/v1/jobs/{id}/explain")).await;
    assert!(explanation["due_at"].is_string(), "{explanation}");
    let job = cluster.ended(0, &id).await;
    let waited = moment(&job["started_at"]) - moment(&job["submitted_at"]);
    assert!(job["state"] == "succeeded" && waited >= 1_480, "{waited} ms: {job}");
}

async fn a_pending_job_is_cancelled(cluster: &Cluster) {
    let id = cluster.submit(0, json!({"command": ["true"], "delay": "1h"})).await;
    cluster.cancel(1, &id, "changed my mind").await;
    let job = cluster.ended(2, &id).await;
    assert_eq!((&job["state"], &job["attempts"]), (&json!("cancelled"), &json!([])), "{job}");
    assert!(text(&job["reason"]).contains("changed my mind"), "{job}");
}

async fn a_running_job_is_cancelled_and_ended(cluster: &Cluster) {
    let sleep = long_sleep();
    let id = cluster.submit(0, json!({"command": ["sleep", sleep]})).await;
    just_one(&sleep, seconds(20)).await;
    cluster.cancel(1, &id, "changed my mind").await;
    let job = cluster.ended(2, &id).await;
    assert_eq!((&job["state"], &last_attempt(&job)["phase"]), (&json!("cancelled"), &json!("stopped")), "{job}");
    gone(&sleep, seconds(10)).await;
    cluster.cancel(0, &id, "again").await;
}

async fn a_job_has_its_input_its_environment_and_its_directory(cluster: &Cluster) {
    let dir = tempfile::TempDir::new().unwrap();
    let dir = dir.path().canonicalize().unwrap();
    let script = "tr a-z A-Z; echo $COLOUR $FLOCKWORK_JOB_NAME $FLOCKWORK_ATTEMPT; pwd";
    let id = cluster
        .submit(
            1,
            json!({"command": ["sh", "-c", script], "stdin": "shout\n", "env": {"COLOUR": "red"}, "cwd": dir, "name": "all"}),
        )
        .await;
    assert_eq!(cluster.ended(0, &id).await["state"], "succeeded");
    assert_eq!(cluster.output(2, &id).await, format!("SHOUT\nred all 1\n{}\n", dir.display()));

    let bytes = json!({"command": ["od", "-An", "-tx1"], "stdin": {"base64": "/wAB"}});
    let id = cluster.submit(1, bytes).await;
    cluster.ended(0, &id).await;
    assert_eq!(cluster.output(2, &id).await, " ff 00 01\n");
}

async fn a_job_runs_where_its_labels_are(cluster: &Cluster) {
    for place in cluster.live() {
        let spec = json!({"command": ["sh", "-c", "echo $FLOCKWORK_NODE"], "require": {"place": place.to_string()}});
        let id = cluster.submit((place + 1) % 3, spec).await;
        let job = cluster.ended((place + 2) % 3, &id).await;
        assert_eq!(cluster.place_of(&last_attempt(&job)["node_name"]), place, "{job}");
        assert_eq!(cluster.output(0, &id).await, format!("node-{place}\n"));
    }
}

async fn a_job_that_fits_nowhere_says_so_and_gives_up_in_time(cluster: &Cluster) {
    let spec = json!({"command": ["true"], "require": {"place": "the moon"}, "queue_timeout": "2s"});
    let id = cluster.submit(0, spec).await;
    for via in cluster.live() {
        let (status, explanation) = cluster.get(via, &format!("/v1/jobs/{id}/explain")).await;
        assert_eq!(status, 200, "{explanation}");
        let nodes = explanation["nodes"].as_array().unwrap();
        assert_eq!(nodes.len(), 3, "{explanation}");
        for node in nodes {
            assert!(node["fits"] == false && text(&node["obstacle"]).contains("the moon"), "{explanation}");
        }
    }
    let explained = cluster.flockwork(&[1], &["explain", &id]).await.good();
    assert!(explained.contains("the moon"), "{explained}");
    let job = cluster.ended(2, &id).await;
    assert_eq!((&job["state"], &job["timed_out"]), (&json!("failed"), &json!(true)), "{job}");
    assert!(text(&job["reason"]).contains("queue_timeout"), "{job}");
}

async fn one_bad_spec_of_many_harms_no_other(cluster: &Cluster) {
    let specs = json!([{"command": ["echo", "a"]}, {"command": ["echo"], "timeout": -1}, {"command": ["echo", "c"]}]);
    let (status, body) = cluster.post(2, &specs).await;
    assert_eq!((status, &body["jobs"][1]["error"]["field"]), (207, &json!("timeout")), "{body}");
    for (place, word) in [(0, "a\n"), (2, "c\n")] {
        let id = text(&body["jobs"][place]["id"]);
        cluster.ended(0, &id).await;
        assert_eq!(cluster.output(1, &id).await, word);
    }
}

async fn a_finished_job_is_tried_again_as_a_new_one(cluster: &Cluster) {
    let id = cluster.shell(0, "exit 1").await;
    assert_eq!(cluster.ended(1, &id).await["state"], "failed");
    let (status, again) = told(cluster.request(2, Method::POST, &format!("/v1/jobs/{id}/retry"))).await;
    assert!(matches!(status, 201 | 202) && again["retry_of"] == json!(id), "{status}: {again}");
    assert_ne!(again["id"], json!(id));
    assert_eq!(cluster.ended(0, &text(&again["id"])).await["state"], "failed");
    assert_eq!(cluster.job(0, &id).await["attempts"].as_array().unwrap().len(), 1, "what has ended stays as it was");
}

#[tokio::test]
async fn a_full_node_hands_work_to_the_others_and_the_rest_waits_its_turn() {
    let cluster = Cluster::with(3, |_| "--slots 2".to_owned()).await;
    let sleeps: Vec<String> = (0..6).map(|_| long_sleep()).collect();
    let mut ids = Vec::new();
    for sleep in &sleeps {
        ids.push(cluster.submit(0, json!({"command": ["sleep", sleep]})).await);
    }
    let mut used = [0; 3];
    for id in &ids {
        used[cluster.runs_on(0, id).await] += 1;
    }
    assert_eq!(used, [2, 2, 2], "every slot is taken");

    let waiting = cluster.shell(0, "echo at last").await;
    let (_, explanation) = cluster.get(1, &format!("/v1/jobs/{waiting}/explain")).await;
    assert_eq!((&explanation["state"], &explanation["ahead"]), (&json!("pending"), &json!(0)), "{explanation}");
    cluster.cancel(1, &ids[0], "make room").await;
    assert_eq!(cluster.ended(2, &waiting).await["state"], "succeeded");
    assert_eq!(cluster.output(2, &waiting).await, "at last\n");
    for id in &ids {
        cluster.cancel(1, id, "the story is over").await;
    }
    cluster.all_ended(1, &ids).await;
}

#[tokio::test]
async fn every_node_tells_of_the_whole_cluster() {
    let mut cluster = Cluster::of(3).await;
    let mut events = cluster.events(0).await;
    let specs: Vec<Value> = (0..25).map(|n| json!({"command": ["true"], "name": format!("job {}", n % 2)})).collect();
    let mut ids = BTreeSet::new();
    for specs in specs.chunks(5) {
        ids.extend(cluster.submit_all(1, specs, true).await);
    }
    let mut untold = ids.clone();
    while !untold.is_empty() {
        let end = events.next_where(|event| event["kind"] == "job" && event["state"] == "succeeded").await;
        untold.remove(end["id"].as_str().unwrap());
    }
    for via in cluster.live() {
        // The list is of replicas that may be a moment behind the owner's word.
        eventually("the list shows every end", seconds(10), async || {
            let listed = cluster.list(via, 7, "&state=succeeded").await;
            if listed.keys().eq(&ids) { Ok(()) } else { Err(format!("{} are listed", listed.len())) }
        })
        .await;
        assert_eq!(cluster.list(via, 7, "&name=job%201").await.len(), 12);
        assert_eq!(cluster.list(via, 7, "&state=failed").await.len(), 0);
    }

    cluster.kill(2).await;
    let id = cluster.node(2).id.clone();
    let down = events.next_where(|event| event["node"] == id.as_str() && event["state"] == "down").await;
    assert_eq!(down["kind"], "member", "{down}");
    cluster.restart(&[2]).await;
    let back = events.next_where(|event| event["node"] == id.as_str() && event["state"] == "alive").await;
    assert_eq!(back["was"], "down", "{back}");
}

/// Milliseconds since 1970.
fn moment(time: &Value) -> i64 {
    text(time).parse::<jiff::Timestamp>().unwrap().as_millisecond()
}
