//! The examples do what they say, on real nodes.
//!
//! They are run through cargo, as a reader of the README would, so that what is tested is never an old build.
#![allow(clippy::unwrap_used, reason = "a test stops at what it cannot do")]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// A local cluster, as `flockwork up` starts it.
struct Cluster {
    up: Child,
    /// Kept open, so that `up` never writes into a closed pipe.
    _stdout: BufReader<ChildStdout>,
    nodes: Vec<Value>,
    _home: tempfile::TempDir,
}

impl Cluster {
    fn start(nodes: usize) -> Self {
        let home = tempfile::tempdir().unwrap();
        let mut up = Command::new(env!("CARGO_BIN_EXE_flockwork"))
            .args(["up", "--nodes", &nodes.to_string(), "--slots", "2", "-o", "json", "--dir"])
            .arg(home.path().join("cluster"))
            .env("HOME", home.path())
            .env("XDG_STATE_HOME", home.path().join("state"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(up.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let told: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
        Self { up, _stdout: stdout, nodes: told["nodes"].as_array().unwrap().clone(), _home: home }
    }

    fn addresses(&self) -> String {
        let addresses: Vec<&str> = self.nodes.iter().map(|node| node["http_addr"].as_str().unwrap()).collect();
        addresses.join(",")
    }

    /// `kill -9`, as the README suggests.
    fn kill(&self, node: usize) {
        let pid = i32::try_from(self.nodes[node]["pid"].as_i64().unwrap()).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let pid = Pid::from_child(&self.up);
        if kill_process(pid, Signal::INT).is_ok() {
            // It stops its nodes within a deadline of its own.
            let _ = self.up.wait();
        }
    }
}

fn example(name: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO"));
    command.args(["run", "--quiet", "--example", name, "--"]).args(arguments);
    command.current_dir(env!("CARGO_MANIFEST_DIR")).stdin(Stdio::null());
    command
}

#[track_caller]
fn success(output: &Output) -> String {
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{stdout}\n{stderr}", output.status);
    stdout.into_owned()
}

#[test]
fn two_embedded_nodes_count_primes() {
    let told = success(&example("embedded", &["20000"]).output().unwrap());
    assert!(told.ends_with("there are 2262 primes below 20000\n"), "{told}");
}

/// Files of all kinds, and how many.
fn write_tree(root: &Path) -> usize {
    let mut files = 0;
    for folder in ["", "deep/er", "with space"] {
        std::fs::create_dir_all(root.join(folder)).unwrap();
        for (name, size) in [("empty", 0_usize), ("small", 7), ("it's \"quoted\" $HOME", 4_096), ("-n", 70_000)] {
            let content: Vec<u8> = (0..size).map(|at| (at * at % 251) as u8).collect();
            std::fs::write(root.join(folder).join(name), content).unwrap();
            files += 1;
        }
    }
    // Is not followed, or the walk would never end.
    std::os::unix::fs::symlink(root, root.join("deep/loop")).unwrap();
    files
}

#[test]
fn a_tree_is_checksummed_by_three_nodes() {
    let (tree, cluster) = (tempfile::tempdir().unwrap(), Cluster::start(3));
    let files = write_tree(tree.path());
    let manifest = tree.path().with_extension("sums");
    let (dir, sums) = (tree.path().to_str().unwrap(), manifest.to_str().unwrap());
    let told = success(
        &example("checksum_tree", &[dir, "--addr", &cluster.addresses(), "--manifest", sums]).output().unwrap(),
    );
    assert!(told.contains(&format!("all {files} results are equal")), "{told}");
    let checked = Command::new("sha256sum").args(["--check", "--strict", sums]).output().unwrap();
    std::fs::remove_file(&manifest).unwrap();
    assert_eq!(success(&checked).lines().filter(|line| line.ends_with(": OK")).count(), files);
}

#[test]
fn a_node_dies_while_a_tree_is_checksummed() {
    let (tree, cluster) = (tempfile::tempdir().unwrap(), Cluster::start(3));
    for file in 0..120 {
        std::fs::write(tree.path().join(file.to_string()), vec![file; 300_000]).unwrap();
    }
    let run = example("checksum_tree", &[tree.path().to_str().unwrap(), "--addr", &cluster.addresses()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    cluster.wait_for_the_first_success();
    cluster.kill(2);
    let told = success(&run.wait_with_output().unwrap());
    assert!(told.contains("all 120 results are equal"), "{told}");
}

impl Cluster {
    /// Returns when a job has succeeded.
    fn wait_for_the_first_success(&self) {
        let first = self.nodes[0]["http_addr"].as_str().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut events = reqwest::get(format!("http://{first}/v1/events")).await.unwrap();
            let mut heard = Vec::new();
            while let Some(chunk) = events.chunk().await.unwrap() {
                heard.extend_from_slice(&chunk);
                if String::from_utf8_lossy(&heard).contains("succeeded") {
                    return;
                }
            }
            panic!("the events ended: {}", String::from_utf8_lossy(&heard));
        });
    }
}
