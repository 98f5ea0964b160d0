//! What befalls nodes: killed, frozen, asked to leave, all at once; and what becomes of their jobs.

use serde_json::{Value, json};

use crate::cluster::{Cluster, last_attempt, text};
use crate::processes::{gone, just_one, long_sleep, sleepers};
use crate::{eventually, seconds};

#[tokio::test]
async fn a_killed_nodes_pods_die_with_it_and_their_jobs_go_on_as_new_attempts() {
    let mut cluster = Cluster::with(3, |place| format!("--slots 8 --label place={place}")).await;
    let sleep = long_sleep();
    // Both processes of the pod must go, not only the one that the node started itself.
    let family = format!("sleep {sleep} & sleep {sleep}; wait");
    let bound = json!({"command": ["sh", "-c", family], "require": {"place": "2"}});
    let id = cluster.submit(0, bound).await;
    let both = eventually("both sleepers", seconds(20), async || match sleepers(&sleep) {
        pids if pids.len() == 2 => Ok(pids),
        pids => Err(format!("{pids:?}")),
    })
    .await;

    let done = json!({"command": ["echo", "kept"], "require": {"place": "2"}});
    let done = cluster.submit(0, done).await;
    cluster.ended(1, &done).await;

    cluster.kill(2).await;
    gone(&sleep, seconds(5)).await;
    // Its log is out of reach, and so short that all of it was kept with the record.
    assert_eq!(cluster.flockwork(&[0], &["logs", &done]).await.good(), "kept\n");
    let waiting = cluster.job_where(0, &id, |job| job["state"] == "pending").await;
    assert_eq!(last_attempt(&waiting)["phase"], "lost", "{waiting}");

    cluster.restart(&[2]).await;
    let again = cluster.job_where(0, &id, |job| last_attempt(job)["number"] == 2).await;
    assert_eq!(again["attempts"][0]["phase"], "lost", "{again}");
    assert_eq!(cluster.runs_on(1, &id).await, 2);
    eventually("two new sleepers", seconds(20), async || match sleepers(&sleep) {
        pids if pids.len() == 2 && pids.iter().all(|pid| !both.contains(pid)) => Ok(()),
        pids => Err(format!("{pids:?}")),
    })
    .await;
    assert_eq!(cluster.flockwork(&[0], &["logs", &done]).await.good(), "kept\n");
    cluster.cancel(1, &id, "enough").await;
    gone(&sleep, seconds(10)).await;
    assert_eq!(cluster.ended(2, &id).await["state"], "cancelled");
}

#[tokio::test]
async fn a_killed_node_that_is_back_says_when_what_it_ran_was_ended() {
    let mut cluster = Cluster::of(3).await;
    let id = cluster.shell(0, "exec sleep 1000").await;
    let place = cluster.runs_on(0, &id).await;
    let via = (place + 1) % 3;
    cluster.kill(place).await;
    let doubtful = cluster.job_where(via, &id, |job| job["attempts"][1]["phase"] == "running").await;
    let overlap = &doubtful["attempts"][0]["overlaps"][0];
    assert_eq!((&overlap["number"], &overlap["certain"]), (&json!(2), &json!(false)), "{doubtful}");

    // Some time passes. It must not be taken for the time at which the first attempt ended.
    tokio::time::sleep(seconds(2)).await;
    cluster.restart(&[place]).await;
    let told =
        |job: &Value| text(&job["attempts"][0]["reason"]).contains("its node died, and what ran there was ended");
    let job = cluster.job_where(via, &id, told).await;
    let (first, second) = (&job["attempts"][0], &job["attempts"][1]);
    assert_eq!((&first["phase"], &first["signal"]), (&json!("lost"), &json!(9)), "{job}");
    assert!(text(&first["ended_at"]) < text(&second["started_at"]), "{job}");
    assert_eq!(first["overlaps"][0]["certain"], false, "clocks settle nothing: {job}");
    let merges = cluster.flockwork(&[via], &["merges"]).await.good();
    assert!(merges.contains("not by their clocks"), "{merges}");
    cluster.cancel(via, &id, "it is told").await;
    cluster.ended(via, &id).await;
}

#[tokio::test]
async fn what_nobody_ended_while_its_node_was_away_is_said_to_have_run_until_it_was_back() {
    let mut cluster = Cluster::of(3).await;
    let id = cluster.shell(0, "exec sleep 1000").await;
    let place = cluster.runs_on(0, &id).await;
    let via = (place + 1) % 3;
    cluster.kill_with_its_guard(place).await;
    let second = |job: &Value| job["attempts"][1]["phase"] == "running";
    cluster.job_where(via, &id, second).await;
    tokio::time::sleep(seconds(1)).await;
    cluster.restart(&[place]).await;
    let ran_on = |job: &Value| text(&job["attempts"][0]["ended_at"]) > text(&job["attempts"][1]["started_at"]);
    let job = cluster.job_where(via, &id, |job| job["attempts"][0]["signal"] == 9 && ran_on(job)).await;
    assert_eq!(job["attempts"][0]["overlaps"].as_array().map(Vec::len), Some(1), "{job}");
    cluster.cancel(via, &id, "it is told").await;
    cluster.ended(via, &id).await;
}

#[tokio::test]
async fn jobs_of_a_frozen_node_go_on_elsewhere_and_it_comes_back_by_itself() {
    let mut cluster = Cluster::of(3).await;
    let frozen_for = match std::env::var("FLOCKWORK_TEST_PATIENCE").as_deref() {
        Ok("full") => seconds(30),
        _ => seconds(10),
    };
    let sleeps: Vec<String> = (0..9).map(|_| long_sleep()).collect();
    let mut ids = Vec::new();
    for (turn, sleep) in sleeps.iter().enumerate() {
        ids.push(cluster.submit(turn % 3, json!({"command": ["sleep", sleep]})).await);
    }
    let mut places = Vec::new();
    for id in &ids {
        places.push(cluster.runs_on(0, id).await);
    }
    let frozen = places[0];
    let (one, other) = ((frozen + 1) % 3, (frozen + 2) % 3);
    let theirs = |pids: Vec<u32>| pids.first().copied().unwrap_or_else(|| panic!("its pod runs"));
    let first_pods: Vec<u32> = sleeps.iter().map(|sleep| theirs(sleepers(sleep))).collect();

    let begun = tokio::time::Instant::now();
    cluster.freeze(frozen);
    cluster.sees(one, frozen, "down").await;
    for (id, place) in ids.iter().zip(&places) {
        if *place == frozen {
            let moved = cluster.job_where(one, id, |job| last_attempt(job)["number"] == 2).await;
            assert_eq!(moved["attempts"][0]["phase"], "lost", "{moved}");
            assert_ne!(cluster.runs_on(other, id).await, frozen);
        }
    }
    let quick = cluster.shell(other, "echo the others go on").await;
    assert_eq!(cluster.ended(one, &quick).await["state"], "succeeded");
    // Its machine still takes connections, and says nothing on them.
    let got_over = cluster.flockwork(&[frozen, one], &["run", "--", "echo", "not for long"]).await;
    assert_eq!(got_over.good(), "not for long\n");
    tokio::time::sleep_until(begun + frozen_for).await;

    cluster.thaw(frozen);
    cluster.converge().await;
    for ((id, sleep), (place, first_pod)) in ids.iter().zip(&sleeps).zip(places.iter().zip(&first_pods)) {
        let pod = just_one(sleep, seconds(10)).await;
        assert_eq!(pod != *first_pod, *place == frozen, "just the frozen node's pods were superseded and ended");
        let job = cluster.job(frozen, id).await;
        assert_eq!(job["state"], "running", "{job}");
        if *place == frozen {
            // The first attempt may have been alive all that time, and so it was: that is told, not hidden.
            let overlaps = &last_attempt(&job)["overlaps"];
            assert_eq!(overlaps[0]["number"], 1, "{job}");
        }
        cluster.cancel(frozen, id, "the story is over").await;
    }
    for job in cluster.all_ended(frozen, &ids).await {
        assert_eq!(job["state"], "cancelled", "{job}");
    }
}

#[tokio::test]
async fn a_node_that_is_asked_to_leave_hands_over_and_says_goodbye() {
    let mut cluster = Cluster::of(3).await;
    let sleeps: Vec<String> = (0..6).map(|_| long_sleep()).collect();
    let mut ids = Vec::new();
    for (turn, sleep) in sleeps.iter().enumerate() {
        ids.push(cluster.submit(turn % 3, json!({"command": ["sleep", sleep]})).await);
    }
    let done = cluster.shell(0, "echo done before").await;
    cluster.ended(1, &done).await;
    let leaver = cluster.runs_on(0, &ids[0]).await;
    let (one, other) = ((leaver + 1) % 3, (leaver + 2) % 3);

    let mut events = cluster.events(one).await;
    cluster.leave(leaver).await;
    let id = cluster.node(leaver).id.clone();
    let verdict = events
        .next_where(|event| {
            let gone = event["state"] == "left" || event["state"] == "down" || event["state"] == "suspect";
            event["kind"] == "member" && event["node"] == id.as_str() && gone
        })
        .await;
    assert_eq!(verdict["state"], "left", "nobody had to find out: {verdict}");
    cluster.sees(other, leaver, "left").await;
    for (id, sleep) in ids.iter().zip(&sleeps) {
        assert_ne!(cluster.runs_on(one, id).await, leaver);
        just_one(sleep, seconds(10)).await;
        cluster.cancel(other, id, "the story is over").await;
    }
    for job in cluster.all_ended(one, &ids).await {
        assert_eq!(job["state"], "cancelled", "{job}");
    }
    assert_eq!(cluster.job(other, &done).await["state"], "succeeded");
    cluster.converge().await;

    cluster.restart(&[leaver]).await;
    cluster.converge().await;
    assert_eq!(cluster.output(leaver, &done).await, "done before\n");
}

#[tokio::test]
async fn a_drain_is_done_when_all_is_handed_over_and_not_before() {
    let cluster = Cluster::of(4).await;
    let specs: Vec<Value> = (0..60).map(|n| json!({"command": ["echo", n.to_string()]})).collect();
    let ids = cluster.submit_all(1, &specs, false).await;
    cluster.all_ended(0, &ids).await;
    let sleep = long_sleep();
    let long = cluster.submit(0, json!({"command": ["sleep", sleep]})).await;
    let drained = cluster.runs_on(0, &long).await;
    let other = (drained + 1) % 4;
    let name = format!("node-{drained}");

    let late = cluster.flockwork(&[other], &["drain", &name, "--deadline", "2s"]).await;
    assert_eq!(late.code, Some(1), "{late:?}");
    assert!(late.err.contains("has not drained in time: 1 still running"), "{late:?}");
    just_one(&sleep, seconds(1)).await;
    let elsewhere = cluster.shell(drained, "true").await;
    assert_ne!(cluster.ended(other, &elsewhere).await["attempts"][0]["node_name"], name.as_str());

    cluster.cancel(other, &long, "the story is over").await;
    let done = cluster.flockwork(&[other], &["drain", &name, "--deadline", "60s"]).await.good();
    assert!(done.contains("others have all that it kept"), "{done}");
    let (_, view) = cluster.get(drained, "/debug/convergence").await;
    assert_eq!(view["strays"], 0, "{view}");
    let mine = cluster.node(drained).id.clone();
    for id in &ids {
        let (_, copies) = cluster.get(other, &format!("/debug/jobs/{id}")).await;
        let holders = copies["replicas"].as_array().unwrap().iter();
        let holders = holders.filter(|copy| copy["present"] == true && copy["node"] != mine.as_str()).count();
        assert!(holders >= 3, "{copies}");
    }
    cluster.flockwork(&[other], &["undrain", &name]).await.good();
    cluster.converge().await;
}

#[tokio::test]
async fn every_acknowledged_job_ends_though_all_nodes_are_killed_at_once() {
    let mut cluster = Cluster::of(3).await;
    let specs: Vec<Value> = (0..60).map(|n| json!({"command": ["sh", "-c", format!("sleep 0.3; echo {n}")]})).collect();
    let ids = cluster.submit_all(1, &specs, false).await;

    cluster.ended(0, &ids[5]).await;
    cluster.kill_all(&[0, 1, 2]).await;
    cluster.restart(&[0, 1, 2]).await;
    for job in cluster.all_ended(2, &ids).await {
        assert_eq!(job["state"], "succeeded", "{job}");
    }
    for (number, output) in cluster.outputs(1, &ids).await.iter().enumerate() {
        assert_eq!(*output, format!("{number}\n"));
    }
    cluster.converge().await;
}

#[tokio::test]
async fn a_lone_survivor_takes_jobs_and_says_that_they_are_less_durable() {
    let mut cluster = Cluster::of(3).await;
    cluster.kill_all(&[0, 2]).await;
    cluster.agree().await;
    let (status, body) = cluster.post(1, &json!({"command": ["echo", "alone"]})).await;
    let receipt = &body["receipt"];
    assert_eq!((status, &receipt["stored"], &receipt["wanted"]), (202, &json!(1), &json!(2)), "{body}");
    let id = text(&body["id"]);
    assert_eq!(cluster.ended(1, &id).await["state"], "succeeded");
    let told = cluster.flockwork(&[1], &["submit", "--", "true"]).await;
    assert_eq!((told.code, told.out.trim().len()), (Some(6), 32), "{told:?}");

    cluster.restart(&[0, 2]).await;
    cluster.converge().await;
    for via in cluster.live() {
        let job = cluster.job(via, &id).await;
        assert_eq!((&job["state"], &job["replicas"]), (&json!("succeeded"), &json!({"agree": 3, "of": 3})), "{job}");
    }
}

#[tokio::test]
async fn a_single_node_is_a_cluster_and_says_how_durable_it_is() {
    for (replicas, status, stored, wanted) in [(1, 201, 1, 1), (3, 201, 1, 1)] {
        let cluster = Cluster::with(1, |_| format!("--slots 4 --replicas {replicas}")).await;
        let (told, body) = cluster.post(0, &json!({"command": ["echo", "alone"]})).await;
        assert_eq!(
            (told, &body["receipt"]["stored"], &body["receipt"]["wanted"]),
            (status, &json!(stored), &json!(wanted)),
            "{body}"
        );
        assert_eq!(body["receipt"]["replicas"], json!([cluster.node(0).id]), "{body}");
        let id = text(&body["id"]);
        assert_eq!(cluster.ended(0, &id).await["state"], "succeeded");
        assert_eq!(cluster.output(0, &id).await, "alone\n");
        cluster.converge().await;
    }
}

#[tokio::test]
async fn a_node_that_is_down_for_good_is_forgotten_and_may_join_anew() {
    let mut cluster = Cluster::of(4).await;
    let impact = cluster.flockwork(&[0], &["impact", "node-3", "-o", "json"]).await.good();
    let impact: Value = serde_json::from_str(&impact).unwrap();
    assert_eq!((&impact["safe"], &impact["members"]["majority"]), (&json!(true), &json!(true)), "{impact}");
    let refused = cluster.flockwork(&[0], &["forget", "node-3"]).await;
    assert_eq!(refused.code, Some(4), "{refused:?}");
    assert!(refused.err.contains("flockwork drain node-3"), "{refused:?}");
    cluster.kill(3).await;
    cluster.sees(0, 3, "down").await;
    cluster.flockwork(&[0], &["forget", "node-3"]).await.good();
    let is_known = async |via: usize| {
        let (_, nodes) = cluster.get(via, "/v1/nodes").await;
        nodes["nodes"].as_array().unwrap().iter().any(|node| node["name"] == "node-3")
    };
    for via in 0..3 {
        let forgets = async || if is_known(via).await { Err("it is a member".to_owned()) } else { Ok(()) };
        eventually(&format!("node {via} forgets it"), seconds(10), forgets).await;
    }
    cluster.agree().await;
    cluster.restart(&[3]).await;
    cluster.converge().await;
    cluster.sees(0, 3, "alive").await;
}
