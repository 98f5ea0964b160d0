//! The commands that start a cluster themselves: `demo`, the first thing a new user types, and `up`.

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;
use tokio::time::Instant;

use crate::processes::{all_gone_from, signal};
use crate::program::{Running, program};
use crate::seconds;

#[tokio::test]
async fn the_demo_shows_what_it_promises_within_a_minute() {
    let home = TempDir::new().unwrap();
    let begun = Instant::now();
    let told = Running::start(program(home.path()), ["demo", "-o", "json"]).told().await;
    let took = begun.elapsed();
    let report: Value = serde_json::from_str(&told.out).unwrap_or_else(|error| panic!("{error}: {told:?}"));
    assert_eq!(told.code, Some(0), "{told:?}");
    assert!(took < seconds(60), "it took {took:?}");
    let acknowledged = report["acknowledged"].as_u64().unwrap();
    assert!(acknowledged >= 12, "{report}");
    assert_eq!((&report["lost"], report["outputs_right"].as_u64()), (&Value::from(0), Some(acknowledged)), "{report}");
}

#[tokio::test]
async fn up_is_a_cluster_until_ctrl_c() {
    let home = TempDir::new().unwrap();
    let data = home.path().join("data");
    let mut up =
        Running::start(program(home.path()), ["up", "--nodes", "3", "-o", "json", "--dir", data.to_str().unwrap()]);
    let told: Value = serde_json::from_str(&up.line().await).unwrap();
    let nodes = told["nodes"].as_array().unwrap();
    assert_eq!(nodes.len(), 3, "{told}");

    // Other commands of the same user find it by themselves.
    let told = Running::start(program(home.path()), ["run", "--", "echo", "found"]).told().await;
    assert_eq!(told.good(), "found\n");
    let pods = Running::start(program(home.path()), ["submit", "--", "sleep", "1000"]).told().await;
    pods.good();

    signal(up.pid(), Signal::INT);
    let told = up.told().await;
    assert_eq!(told.code, Some(0), "{told:?}");
    for node in nodes {
        let pid = node["pid"].as_u64().unwrap();
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "node {node} has ended");
    }
    all_gone_from(home.path(), seconds(5)).await;
}

#[tokio::test]
async fn nodes_of_up_leave_by_themselves_when_it_is_killed() {
    let home = TempDir::new().unwrap();
    let mut up = Running::start(program(home.path()), ["up", "--nodes", "2", "-o", "json"]);
    up.line().await;
    signal(up.pid(), Signal::KILL);
    assert_eq!(up.told().await.code, None);
    all_gone_from(home.path(), seconds(20)).await;
}
