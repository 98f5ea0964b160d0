//! Jobs that behave badly, each next to a neighbour on the same node that must not suffer.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::cluster::Cluster;
use crate::processes::{gone, long_sleep, sleepers};
use crate::seconds;

struct Guesthouse {
    cluster: Cluster,
    neighbour: String,
}

impl Guesthouse {
    async fn open() -> Self {
        let cluster = Cluster::of(1).await;
        let beats = "while :; do echo $(($(date +%s%N) / 1000000)); sleep 0.1; done";
        let neighbour = cluster.shell(0, beats).await;
        cluster.runs_on(0, &neighbour).await;
        Self { cluster, neighbour }
    }

    /// Runs the guest to its end, and returns what is told of it.
    async fn run(&self, spec: Value) -> Value {
        let id = self.cluster.submit(0, spec).await;
        self.cluster.ended(0, &id).await
    }

    /// The neighbour has been running all the time, without a long pause, and another job can still be run.
    async fn close(self) {
        assert_eq!(self.run(json!({"command": ["echo", "hi"]})).await["state"], "succeeded");
        let neighbour = self.cluster.job(0, &self.neighbour).await;
        assert_eq!((&neighbour["state"], neighbour["attempts"].as_array().unwrap().len()), (&json!("running"), 1));
        self.cluster.cancel(0, &self.neighbour, "enough").await;
        self.cluster.ended(0, &self.neighbour).await;
        let told = self.cluster.output(0, &self.neighbour).await;
        let beats: Vec<u64> = told.lines().map(|line| line.parse().unwrap()).collect();
        let pause = beats.windows(2).map(|pair| pair[1].saturating_sub(pair[0])).max().unwrap_or(u64::MAX);
        assert!(pause < 5_000, "it stood still for {pause} ms");
    }
}

#[tokio::test]
async fn a_fork_bomb_goes_off_within_its_limit() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can run the bomb as a user of whom nothing else runs here");
        return;
    }
    let house = Guesthouse::open().await;
    // It makes sure that it is bounded before it begins.
    let script = "[ $(id -u) = 65534 ] && [ $(awk '/Max processes/ {print $3}' /proc/self/limits) = 40 ] || exit 99
                  echo lit; bomb() { bomb & bomb & wait; }; bomb; sleep 600";
    let spec = json!({"command": ["sh", "-c", script], "user": "65534", "cwd": "/", "timeout": "2s",
                      "limits": {"processes": 40}});
    let job = house.run(spec).await;
    assert_ne!(job["exit_code"], 99, "{job}");
    assert_eq!(job["state"], "failed", "{job}");
    let left = std::fs::read_dir("/proc").unwrap().flatten().filter(|entry| {
        let status = std::fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        status.contains("\nUid:\t65534") && !status.contains("\nState:\tZ")
    });
    assert_eq!(left.count(), 0, "nothing of it is left");
    house.close().await;
}

#[tokio::test]
async fn who_ignores_sigterm_is_killed_after_the_grace() {
    let house = Guesthouse::open().await;
    let sleep = long_sleep();
    let script = format!("trap '' TERM INT HUP; (trap '' TERM; sleep {sleep}) & while :; do sleep {sleep}; done");
    let begun = Instant::now();
    let job = house.run(json!({"command": ["sh", "-c", script], "timeout": "1s"})).await;
    assert_eq!((&job["state"], &job["attempts"][0]["phase"]), (&json!("failed"), &json!("failed")), "{job}");
    assert!(begun.elapsed() > Duration::from_secs(5), "it was asked first");
    assert!(sleepers(&sleep).is_empty());
    house.close().await;
}

#[tokio::test]
async fn of_endless_output_the_end_is_kept_and_the_disk_is_spared() {
    const WRITTEN: u64 = 300 << 20;
    let house = Guesthouse::open().await;
    let job = house.run(json!({"command": ["sh", "-c", format!("head -c {WRITTEN} /dev/zero; echo the end")]})).await;
    assert_eq!(job["state"], "succeeded", "{job}");
    let id = job["id"].as_str().unwrap();
    let log = house.cluster.output(0, id).await;
    assert!(log.ends_with("the end\n"));
    assert!((32 << 20..=64 << 20).contains(&log.len()), "{} bytes are kept", log.len());
    house.close().await;
}

#[tokio::test]
async fn daemons_do_not_outlive_their_job() {
    let house = Guesthouse::open().await;
    let sleep = long_sleep();
    let script = format!("setsid sh -c 'sleep {sleep} & sleep {sleep}' > /dev/null 2>&1 & sleep 0.3; echo left it");
    let job = house.run(json!({"command": ["sh", "-c", script]})).await;
    assert_eq!(job["state"], "succeeded", "{job}");
    gone(&sleep, seconds(10)).await;
    house.close().await;
}

#[tokio::test]
async fn who_eats_memory_meets_its_limit() {
    let house = Guesthouse::open().await;
    let script = "import resource; assert resource.getrlimit(resource.RLIMIT_AS)[0] == 256 << 20\n\
                  eaten = []\nwhile True: eaten.append(bytearray(1 << 20))";
    let spec = json!({"command": ["python3", "-c", script], "limits": {"address_space": 256 << 20}});
    let job = house.run(spec).await;
    assert_eq!((&job["state"], &job["exit_code"]), (&json!("failed"), &json!(1)), "{job}");
    let id = job["id"].as_str().unwrap();
    let logs = house.cluster.flockwork(&[0], &["logs", "--stream", "stderr", id]).await;
    assert!(logs.err.contains("MemoryError"), "{logs:?}");
    house.close().await;
}
