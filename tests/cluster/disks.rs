//! Stories of disks: full ones, failing ones, and such as have changed what was written to them.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use reqwest::Method;
use rusqlite::Connection;
use serde_json::{Value, json};

use crate::cluster::{Cluster, text, told};
use crate::processes::{just_one, long_sleep};
use crate::{eventually, seconds};

/// Wraps the calls that sync, so that they fail while a certain file is there.
const FAILING_SYNC: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>
static int fails(void) {
    const char *file = getenv("FAIL_SYNC_WHILE");
    return file && access(file, F_OK) == 0;
}
int fsync(int fd) {
    if (fails()) { errno = EIO; return -1; }
    return (int)syscall(SYS_fsync, fd);
}
int fdatasync(int fd) {
    if (fails()) { errno = EIO; return -1; }
    return (int)syscall(SYS_fdatasync, fd);
}
"#;

/// A file system with room for very little; gone when dropped.
struct TinyDisk(PathBuf);

impl TinyDisk {
    /// Mounts it where `dir` is, with what is in it. Only root can.
    fn under(dir: &Path, size: &str) -> Option<Self> {
        let aside = dir.with_extension("aside");
        std::fs::rename(dir, &aside).unwrap();
        std::fs::create_dir(dir).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(dir).stderr(Stdio::null());
        let is_mounted = mount.status().is_ok_and(|status| status.success());
        let copied = Command::new("cp").arg("-a").arg(aside.join(".")).arg(dir).status();
        assert!(copied.is_ok_and(|status| status.success()));
        is_mounted.then(|| Self(dir.to_owned()))
    }
}

impl Drop for TinyDisk {
    fn drop(&mut self) {
        // Lazily: the node that uses it may be ended after this.
        let unmounted = Command::new("umount").arg("--lazy").arg(&self.0).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("{} is still mounted", self.0.display());
        }
    }
}

#[tokio::test]
async fn a_node_whose_disk_is_full_says_so_keeps_its_pods_and_recovers_by_itself() {
    let mut cluster = Cluster::with(3, |place| format!("--slots 8 --label place={place}")).await;
    cluster.leave(2).await;
    let Some(disk) = TinyDisk::under(&cluster.node(2).data_dir(), "8m") else {
        eprintln!("skipped: only root can mount a small disk");
        return;
    };
    cluster.restart(&[2]).await;
    cluster.converge().await;
    let sleep = long_sleep();
    let long = cluster.submit(0, json!({"command": ["sleep", sleep], "require": {"place": "2"}})).await;
    assert_eq!(cluster.runs_on(0, &long).await, 2);
    let pod = just_one(&sleep, seconds(10)).await;

    let ballast = disk.0.join("ballast");
    let mut file = File::create(&ballast).unwrap();
    while file.write_all(&[0; 4_096]).is_ok() {}
    // What it is given now it cannot write, and so it notices.
    let mut ids = Vec::new();
    let payload = "x".repeat(20_000);
    let status_seen_by = async |via: usize| {
        let (_, nodes) = cluster.get(via, "/v1/nodes").await;
        let nodes = nodes["nodes"].as_array().unwrap();
        text(&nodes.iter().find(|node| node["name"] == "node-2").unwrap()["status"])
    };
    eventually("the others see that it is read-only", seconds(60), async || {
        let (_, body) = cluster.post(0, &json!({"command": ["true"], "env": {"PAYLOAD": payload}})).await;
        ids.push(text(&body["id"]));
        match status_seen_by(0).await.as_str() {
            "readonly" => Ok(()),
            other => Err(other.to_owned()),
        }
    })
    .await;
    let (status, health) = told(cluster.request(2, Method::GET, "/readyz")).await;
    assert_eq!(status, 503, "{health}");
    assert!(health["error"]["message"].as_str().unwrap().contains("disk"), "{health}");
    // Nothing that is handed in meanwhile waits for it, and its pod goes on.
    for job in cluster.all_ended(0, &ids).await {
        assert_eq!(job["state"], "succeeded", "{job}");
    }
    let quick = cluster.shell(1, "echo elsewhere").await;
    assert_eq!(cluster.ended(1, &quick).await["state"], "succeeded");
    assert_eq!(just_one(&sleep, seconds(1)).await, pod);

    // A file that is open still takes its room.
    drop(file);
    std::fs::remove_file(&ballast).unwrap();
    eventually("it serves again", seconds(60), async || match status_seen_by(1).await.as_str() {
        "serving" => Ok(()),
        other => Err(other.to_owned()),
    })
    .await;
    cluster.converge().await;
    assert_eq!(just_one(&sleep, seconds(1)).await, pod);
    assert_eq!(cluster.job(0, &long).await["attempts"].as_array().unwrap().len(), 1);
    cluster.cancel(1, &long, "the story is over").await;
    cluster.ended(1, &long).await;
    cluster.leave(2).await;
}

#[tokio::test]
async fn a_node_whose_disk_fails_to_sync_stops_says_why_and_loses_nothing() {
    let mut cluster = Cluster::of(3).await;
    let dir = tempfile::tempdir().unwrap();
    let (source, library, switch) = (dir.path().join("sync.c"), dir.path().join("sync.so"), dir.path().join("fails"));
    std::fs::write(&source, FAILING_SYNC).unwrap();
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status().unwrap();
    assert!(built.success());
    cluster.leave(1).await;
    cluster.set_environment(1, "LD_PRELOAD", library.to_str().unwrap());
    cluster.set_environment(1, "FAIL_SYNC_WHILE", switch.to_str().unwrap());
    cluster.restart(&[1]).await;
    cluster.converge().await;

    let specs: Vec<Value> = (0..40).map(|n| json!({"command": ["sh", "-c", format!("sleep 0.2; echo {n}")]})).collect();
    let mut ids = cluster.submit_all(1, &specs, false).await;
    std::fs::write(&switch, "").unwrap();
    // Sooner or later something has to be synced there.
    let more: Vec<Value> = (0..40).map(|n| json!({"command": ["echo", n.to_string()]})).collect();
    ids.extend(cluster.submit_all(0, &more, false).await);
    let ended = cluster.ends_by_itself(1).await;
    assert!(!ended.success(), "{ended}");
    let log = cluster.node(1).log();
    assert!(log.contains("the disk cannot be trusted any more"), "{log}");
    for job in cluster.all_ended(2, &ids).await {
        assert_eq!(job["state"], "succeeded", "{job}");
    }

    std::fs::remove_file(&switch).unwrap();
    cluster.restart(&[1]).await;
    cluster.converge().await;
    for job in cluster.all_ended(1, &ids).await {
        assert_eq!((&job["state"], &job["replicas"]), (&json!("succeeded"), &json!({"agree": 3, "of": 3})), "{job}");
    }
}

#[tokio::test]
async fn a_record_that_the_disk_has_changed_is_named_set_aside_and_fetched_again() {
    let mut cluster = Cluster::of(3).await;
    let specs: Vec<Value> = (0..20).map(|n| json!({"command": ["echo", n.to_string()]})).collect();
    let ids = cluster.submit_all(0, &specs, false).await;
    cluster.all_ended(1, &ids).await;
    cluster.converge().await;
    cluster.kill(2).await;
    let database = cluster.node(2).data_dir().join("node.db");
    {
        let connection = Connection::open(&database).unwrap();
        let id = u128::from_str_radix(&ids[7], 16).unwrap().to_be_bytes();
        let changed =
            connection.execute("UPDATE record SET value = zeroblob(length(value)) WHERE id = ?1", [&id[..]]).unwrap();
        assert_eq!(changed, 1);
    }
    cluster.restart(&[2]).await;
    cluster.converge().await;
    let log = cluster.node(2).log();
    let named = log.lines().find(|line| line.contains("set aside") && line.contains(&ids[7]));
    assert!(named.is_some(), "{log}");
    assert_eq!(cluster.metric(2, "flockwork_records_set_aside_total").await, 1.0);
    for id in &ids {
        let (status, copies) = cluster.get(2, &format!("/debug/jobs/{id}")).await;
        assert_eq!(status, 200, "{copies}");
        assert_eq!(copies["agree"], true, "{copies}");
        assert!(copies["replicas"].as_array().unwrap().iter().all(|copy| copy["present"] == true), "{copies}");
    }
}

#[tokio::test]
async fn a_node_whose_database_is_ruined_says_what_to_do_and_that_works() {
    let mut cluster = Cluster::of(3).await;
    let specs: Vec<Value> = (0..20).map(|n| json!({"command": ["echo", n.to_string()]})).collect();
    let ids = cluster.submit_all(0, &specs, false).await;
    cluster.all_ended(1, &ids).await;
    cluster.leave(2).await;
    let data = cluster.node(2).data_dir();
    let length = std::fs::metadata(data.join("node.db")).unwrap().len();
    // Half of it is there, as after a copy that was broken off; and what is there is not all what it was.
    let file = File::options().write(true).open(data.join("node.db")).unwrap();
    file.set_len(length / 2).unwrap();
    (&file).write_all(&[0x5a; 4_096]).unwrap();
    let why = cluster.refuses_to_start(2).await;
    assert!(why.contains("Move the directory") && why.contains("new id"), "{why}");

    std::fs::rename(&data, data.with_extension("ruined")).unwrap();
    cluster.restart_as_somebody_new(2).await;
    cluster.converge().await;
    for job in cluster.all_ended(2, &ids).await {
        assert_eq!((&job["state"], &job["replicas"]), (&json!("succeeded"), &json!({"agree": 3, "of": 3})), "{job}");
    }
}
