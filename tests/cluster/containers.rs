//! Jobs that are containers: the same life as processes have, and the same certain end.

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::cluster::{Cluster, last_attempt};
use crate::docker::{Docker, IMAGE};
use crate::processes::{gone, just_one, long_sleep, sleepers};
use crate::{eventually, seconds};

/// A cluster whose nodes all have this daemon.
async fn cluster_with(docker: &Docker, nodes: usize) -> Cluster {
    Cluster::with(nodes, |_| format!("--slots 8 --docker {}", docker.host())).await
}

fn boxed(script: &str) -> Value {
    json!({"driver": "container", "image": IMAGE, "pull": "never", "command": ["sh", "-c", script]})
}

fn with(mut spec: Value, more: Value) -> Value {
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    spec
}

/// Waits until the daemon has no container of ours left.
async fn tidied(docker: &Docker) {
    eventually("no container is left", seconds(30), async || {
        let left = docker.containers();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
}

#[tokio::test]
async fn a_container_is_a_pod_like_any_other() {
    let Some(docker) = Docker::start() else { return };
    let cluster = cluster_with(&docker, 1).await;
    // What it is given, what it writes, what it says of itself.
    let script = "echo $GREETING from $(id -un) in $(pwd), attempt $FLOCKWORK_ATTEMPT; cat; echo complaint >&2
                  echo mine > $FLOCKWORK_TMPDIR/file && cat $FLOCKWORK_TMPDIR/file
                  post() { wget -q -O - --header \"Authorization: Bearer $FLOCKWORK_POD_TOKEN\" --post-data \"$2\" \\
                           \"$FLOCKWORK_POD_URL?kind=$1\" > /dev/null; }
                  post progress '{\"fraction\": 0.5, \"message\": \"half\"}' || exit 98
                  echo -n 42 > $FLOCKWORK_RESULT_FILE; exit 7";
    let more = json!({"env": {"GREETING": "hello"}, "user": "guest", "cwd": "/home", "stdin": "given\n"});
    let id = cluster.submit(0, with(boxed(script), more)).await;
    let job = cluster.ended(0, &id).await;
    assert_eq!(
        (&job["state"], &job["exit_code"], &job["signal"]),
        (&json!("failed"), &json!(7), &Value::Null),
        "{job}"
    );
    assert_eq!(cluster.output(0, &id).await, "hello from guest in /home, attempt 1\ngiven\nmine\n");
    let complaint = cluster.flockwork(&[0], &["logs", "--stream", "stderr", &id]).await;
    assert_eq!(complaint.err, "complaint\n", "{complaint:?}");
    assert_eq!((&job["progress"]["message"], &job["result"]), (&json!("half"), &json!("42")), "{job}");

    // The command line's way; a program that the image does not have; binary output.
    let ran = cluster.flockwork(&[0], &["run", "--driver", "container", "--image", IMAGE, "--", "echo", "hi"]).await;
    assert_eq!((ran.code, ran.out.as_str()), (Some(0), "hi\n"), "{ran:?}");
    let absent = cluster.submit(0, with(boxed(""), json!({"command": ["no-such-program"]}))).await;
    assert_eq!(cluster.ended(0, &absent).await["exit_code"], 127);
    let much = cluster.submit(0, boxed("i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done")).await;
    assert_eq!(cluster.ended(0, &much).await["state"], "succeeded");
    let lines: String = (0..20_000).map(|number| format!("line {number}\n")).collect();
    assert_eq!(cluster.output(0, &much).await, lines);
    tidied(&docker).await;
}

#[tokio::test]
async fn containers_end_as_they_are_told_and_say_how() {
    let Some(docker) = Docker::start() else { return };
    let cluster = cluster_with(&docker, 1).await;

    let polite = boxed("trap 'echo saved; exit 3' TERM; echo ready; while :; do sleep 0.1; done");
    let id = cluster.submit(0, with(polite, json!({"timeout": "1s"}))).await;
    let job = cluster.ended(0, &id).await;
    assert_eq!((&job["state"], &job["attempts"][0]["phase"]), (&json!("failed"), &json!("failed")), "{job}");
    assert!(job["attempts"][0]["reason"].as_str().unwrap_or_default().contains("time"), "{job}");
    assert_eq!(cluster.output(0, &id).await, "ready\nsaved\n");

    let (sleep, begun) = (long_sleep(), Instant::now());
    let deaf = boxed(&format!("trap '' TERM; setsid sleep {sleep} & while :; do sleep 1; done"));
    let id = cluster.submit(0, deaf).await;
    just_one(&sleep, seconds(30)).await;
    cluster.cancel(0, &id, "enough").await;
    assert_eq!(cluster.ended(0, &id).await["state"], "cancelled");
    eventually("the attempt ends", seconds(30), async || {
        let job = cluster.job(0, &id).await;
        if job["attempts"][0]["phase"] == "stopped" { Ok(()) } else { Err(job.to_string()) }
    })
    .await;
    assert!(begun.elapsed() > seconds(5), "it was asked first");
    assert!(sleepers(&sleep).is_empty(), "what left its session is gone too");

    let id = cluster.submit(0, boxed("kill -USR1 $$; sleep 60")).await;
    let job = cluster.ended(0, &id).await;
    assert_eq!(job["signal"], 10, "{job}");

    // The last stage doubles until the kernel says no.
    let id = cluster.submit(0, with(boxed("tail -c 1000000000 /dev/zero"), json!({"memory": "24MiB"}))).await;
    let job = cluster.ended(0, &id).await;
    assert_eq!((&job["state"], &job["signal"]), (&json!("failed"), &json!(9)), "{job}");
    let reason = job["attempts"][0]["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("out of memory") && reason.contains("24MiB"), "{job}");
    tidied(&docker).await;
}

#[tokio::test]
async fn an_image_that_cannot_be_had_is_said_plainly() {
    let Some(docker) = Docker::start() else { return };
    let cluster = cluster_with(&docker, 1).await;
    for (image, pull, expected) in [
        ("nowhere:1", "never", "pull is never"),
        // Nobody listens there.
        ("127.0.0.1:9/nowhere", "missing", "cannot be pulled"),
        ("127.0.0.1:9/nowhere:2", "always", "cannot be pulled"),
    ] {
        let spec = json!({"driver": "container", "image": image, "pull": pull, "command": ["true"]});
        let id = cluster.submit(0, spec).await;
        let job = cluster.ended(0, &id).await;
        assert_eq!((&job["state"], &job["exit_code"]), (&json!("failed"), &json!(125)), "{job}");
        let reason = job["attempts"][0]["reason"].as_str().unwrap_or_default();
        assert!(reason.contains(expected) && reason.contains(image), "{job}");
    }
    tidied(&docker).await;
}

#[tokio::test]
async fn containers_do_not_outlive_their_node_and_others_go_on_from_their_checkpoint() {
    let Some(docker) = Docker::start() else { return };
    let mut cluster = cluster_with(&docker, 2).await;
    let sleep = long_sleep();
    let script = format!(
        "if [ -e $FLOCKWORK_CHECKPOINT_FILE ]; then cat $FLOCKWORK_CHECKPOINT_FILE; exit 0; fi
         wget -q -O - --header \"Authorization: Bearer $FLOCKWORK_POD_TOKEN\" --post-data 'work so far' \\
              \"$FLOCKWORK_POD_URL?kind=checkpoint\" > /dev/null || exit 98
         env -i setsid sleep {sleep} & exec env -i sleep {sleep}"
    );
    let id = cluster.submit(0, boxed(&script)).await;
    let place = cluster.runs_on(0, &id).await;
    eventually("both processes of the first attempt sleep", seconds(30), async || {
        let count = sleepers(&sleep).len();
        if count == 2 { Ok(()) } else { Err(format!("{count} sleep")) }
    })
    .await;
    assert_eq!(docker.containers().len(), 1);
    // The guard ends what does not even carry the mark any more.
    cluster.kill(place).await;
    gone(&sleep, seconds(15)).await;
    let via = 1 - place;
    let job = cluster.ended(via, &id).await;
    assert_eq!((&job["state"], &last_attempt(&job)["number"]), (&json!("succeeded"), &json!(2)), "{job}");
    assert_eq!(cluster.output(via, &id).await, "work so far");
    tidied(&docker).await;

    // Without its guard, the node's own next start does it.
    cluster.restart(&[place]).await;
    cluster.agree().await;
    let sleep = long_sleep();
    let id = cluster.submit(via, boxed(&format!("[ $FLOCKWORK_ATTEMPT = 1 ] && exec sleep {sleep}"))).await;
    let place = cluster.runs_on(via, &id).await;
    just_one(&sleep, seconds(30)).await;
    cluster.kill_with_its_guard(place).await;
    assert_eq!(sleepers(&sleep).len(), 1, "nobody was left to end it");
    cluster.restart(&[place]).await;
    gone(&sleep, seconds(15)).await;
    cluster.ended(place, &id).await;
    tidied(&docker).await;
}

#[tokio::test]
async fn a_frozen_nodes_leased_container_ends_before_others_would_take_its_job_over() {
    let Some(docker) = Docker::start() else { return };
    let mut cluster = cluster_with(&docker, 1).await;
    let sleep = long_sleep();
    let spec = boxed(&format!("[ $FLOCKWORK_ATTEMPT = 1 ] && exec sleep {sleep}; exit 0"));
    let id = cluster.submit(0, with(spec, json!({"on_partition": "pause"}))).await;
    just_one(&sleep, seconds(30)).await;
    cluster.freeze(0);
    gone(&sleep, seconds(10)).await;
    cluster.thaw(0);
    let job = cluster.ended(0, &id).await;
    assert_eq!((&job["state"], &job["attempts"][0]["phase"]), (&json!("succeeded"), &json!("returned")), "{job}");
    tidied(&docker).await;
}

#[tokio::test]
async fn a_node_without_docker_says_so_and_gets_no_containers() {
    let cluster = Cluster::with(1, |_| "--slots 8 --docker off".to_owned()).await;
    let (_, nodes) = cluster.get(0, "/v1/nodes").await;
    assert_eq!(nodes["nodes"][0]["drivers"], json!(["process"]), "{nodes}");
    let id = cluster.submit(0, boxed("true")).await;
    let explained = cluster.flockwork(&[0], &["explain", &id]).await;
    assert!(explained.out.contains("it has no container driver"), "{explained:?}");
    assert_eq!(cluster.job(0, &id).await["state"], "pending");
    cluster.cancel(0, &id, "in vain").await;
}

#[tokio::test]
async fn a_daemon_that_comes_and_goes_costs_an_attempt_at_the_most() {
    let Some(mut docker) = Docker::start() else { return };
    docker.crash();
    let cluster = cluster_with(&docker, 1).await;
    let sleep = long_sleep();
    let script = format!("[ $FLOCKWORK_ATTEMPT = 1 ] || exit 0; sleep {sleep}");
    let id = cluster.submit(0, boxed(&script)).await;
    assert_eq!(cluster.job(0, &id).await["state"], "pending");
    docker.restart();
    cluster.runs_on(0, &id).await;
    just_one(&sleep, seconds(10)).await;
    docker.crash();
    docker.restart();
    let job = cluster.ended(0, &id).await;
    assert_eq!(job["state"], "succeeded", "{job}");
    assert_eq!(job["attempts"][0]["phase"], "returned", "{job}");
    assert!(sleepers(&sleep).is_empty());
    tidied(&docker).await;
}
