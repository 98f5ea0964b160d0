//! Processors and memory that a job sets aside, where nodes can make control groups: limits of all its processes together,
//! and an end that none of them escapes. Where nodes cannot, these stories are skipped; what holds then is told in
//! `rough_guests`.

use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::processes::{gone, just_one, long_sleep, sleepers};
use crate::{eventually, seconds};

/// A cluster of one node that enforces limits, unless this machine does not let it; that is said.
async fn strict() -> Option<Cluster> {
    let cluster = Cluster::of(1).await;
    let (_, nodes) = cluster.get(0, "/v1/nodes").await;
    if nodes["nodes"][0]["labels"]["limits"] == "enforced" {
        return Some(cluster);
    }
    let log = cluster.node(0).log();
    let why =
        log.lines().find(|line| line.contains("no control groups")).unwrap_or_else(|| panic!("it does not say why"));
    eprintln!("skipped: this node cannot make control groups: {why}");
    None
}

#[tokio::test]
async fn memory_is_limited_for_all_processes_of_a_job_together() {
    let Some(cluster) = strict().await else { return };
    // Neither of the two would reach it alone.
    let script = "tail -c 60000000 /dev/zero & tail -c 60000000 /dev/zero & wait; sleep 0.1; exit 137";
    let hold = script.replace("tail -c 60000000 /dev/zero", "(head -c 60000000 /dev/zero; sleep 3) | tail -c 60000000");
    let spec = |memory| json!({"command": ["sh", "-c", hold], "memory": memory});
    let id = cluster.submit(0, spec("96MiB")).await;
    let job = cluster.ended(0, &id).await;
    let reason = job["attempts"][0]["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("out of memory: it reached its limit of 96MiB"), "{job}");
    let peak = job["attempts"][0]["usage"]["peak_memory_bytes"].as_u64().unwrap();
    assert!((90 << 20..=96 << 20).contains(&peak), "{peak}");

    let roomy = cluster.submit(0, spec("512MiB")).await;
    let job = cluster.ended(0, &roomy).await;
    assert_eq!(job["exit_code"], 137, "{job}");
    assert!(!job["attempts"][0]["reason"].as_str().unwrap_or_default().contains("limit"), "{job}");
    let shown = cluster.flockwork(&[0], &["job", &roomy]).await.good();
    assert!(shown.contains("of memory by attempt 1"), "{shown}");
}

#[tokio::test]
async fn root_is_held_to_a_number_of_processes_or_told_that_it_cannot_be() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: whoever is not root is held to it by the kernel");
        return;
    }
    let is_strict = strict().await.is_some();
    let cluster = Cluster::of(1).await;
    let script = "for n in 1 2 3 4 5 6 7 8 9; do sleep 5 & done; wait";
    let limited = json!({"command": ["sh", "-c", script], "limits": {"processes": 5}});
    let id = cluster.submit(0, limited).await;
    let job = cluster.ended(0, &id).await;
    assert_eq!(job["state"], "failed", "{job}");
    if is_strict {
        let logs = cluster.flockwork(&[0], &["logs", "--stream", "stderr", &id]).await;
        assert!(logs.err.to_lowercase().contains("fork"), "{logs:?}");
    } else {
        assert!(job["attempts"][0]["reason"].to_string().contains("does not hold root to a number of"), "{job}");
    }
}

#[tokio::test]
async fn processors_are_dealt_out_as_they_were_set_aside() {
    let Some(cluster) = strict().await else { return };
    let spec = json!({"command": ["sh", "-c", "while :; do :; done"], "cpus": 0.2, "timeout": "3s"});
    let id = cluster.submit(0, spec).await;
    let job = cluster.ended(0, &id).await;
    let used = &job["attempts"][0]["usage"]["cpu_ms"];
    if *used == Value::Null {
        eprintln!("this machine does not count the processor time of groups");
        return;
    }
    let used = used.as_u64().unwrap();
    assert!((100..1_000).contains(&used), "a fifth of three seconds, not {used} ms");
}

#[tokio::test]
async fn whoever_leaves_its_session_and_its_environment_ends_with_its_job() {
    let Some(cluster) = strict().await else { return };
    let sleep = long_sleep();
    let script =
        format!("env -i setsid sh -c 'sleep {sleep} & sleep {sleep}' > /dev/null 2>&1 & sleep 0.5; echo left it");
    let job = json!({"command": ["sh", "-c", script], "memory": "64MiB"});
    let id = cluster.submit(0, job).await;
    let job = cluster.ended(0, &id).await;
    assert_eq!((&job["state"], cluster.output(0, &id).await.as_str()), (&json!("succeeded"), "left it\n"), "{job}");
    assert!(sleepers(&sleep).is_empty(), "nothing is left when the end is reported");
}

#[tokio::test]
async fn whoever_has_shed_every_mark_ends_soon_after_its_job_and_spares_its_neighbours() {
    let Some(cluster) = strict().await else { return };
    let [stays, leaves, neighbours] = [long_sleep(), long_sleep(), long_sleep()];
    let script = |sleep: &str| format!("env -i setsid sleep {sleep} > /dev/null 2>&1 & echo left it; sleep 1");
    let ended = cluster.shell(0, &script(&leaves)).await;
    assert_eq!(cluster.ended(0, &ended).await["state"], "succeeded");
    gone(&leaves, seconds(10)).await;

    // What is younger than a pod that runs may be that one's.
    let neighbour = cluster.shell(0, &format!("env -i setsid sleep {neighbours} & exec sleep 1000")).await;
    just_one(&neighbours, seconds(10)).await;
    let cancelled = cluster.shell(0, &format!("{}; exec sleep 1000", script(&stays))).await;
    just_one(&stays, seconds(10)).await;
    cluster.cancel(0, &cancelled, "enough of it").await;
    cluster.ended(0, &cancelled).await;
    tokio::time::sleep(seconds(3)).await;
    assert_eq!((sleepers(&stays).len(), sleepers(&neighbours).len()), (1, 1), "the neighbour runs on with all it has");
    cluster.cancel(0, &neighbour, "enough of this one too").await;
    cluster.ended(0, &neighbour).await;
    for sleep in [&stays, &neighbours] {
        gone(sleep, seconds(10)).await;
    }
}

#[tokio::test]
async fn whoever_has_shed_every_mark_does_not_outlive_its_node() {
    let Some(mut cluster) = strict().await else { return };
    // With limits of their own, its pods have control groups of their own.
    for (with_its_guard, cpus) in [(false, 0.0), (true, 0.0), (false, 0.5), (true, 0.5)] {
        let sleep = long_sleep();
        let script = format!("[ $FLOCKWORK_ATTEMPT = 1 ] || exit 0; env -i setsid sleep {sleep} & exec sleep {sleep}");
        let id = cluster.submit(0, json!({"command": ["sh", "-c", script], "cpus": cpus})).await;
        eventually("both sleep", seconds(20), async || {
            let count = sleepers(&sleep).len();
            if count == 2 { Ok(()) } else { Err(format!("{count} sleep")) }
        })
        .await;
        if with_its_guard {
            cluster.kill_with_its_guard(0).await;
            assert_eq!(sleepers(&sleep).len(), 2, "nobody was left to end them");
        } else {
            cluster.kill(0).await;
            gone(&sleep, seconds(10)).await;
        }
        cluster.restart(&[0]).await;
        gone(&sleep, seconds(10)).await;
        assert_eq!(cluster.ended(0, &id).await["state"], "succeeded");
    }
}
