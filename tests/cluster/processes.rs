//! What runs on this machine, as `/proc` tells it, and signals to processes of our own.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::eventually;

/// A `sleep` for longer than any story, told from all others by the fraction of a second.
pub fn long_sleep() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(1);
    format!("1000.{:07}{:03}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// Sends a signal to a process that this test started, directly or through a node.
pub fn signal(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).unwrap();
    kill_process(pid, signal).unwrap_or_else(|error| panic!("{signal:?} to {pid:?}: {error}"));
}

/// The processes that have just this argument.
pub fn with_argument(argument: &str) -> Vec<u32> {
    matching("cmdline", |line| line.split(|byte| *byte == 0).any(|word| word == argument.as_bytes()))
}

/// The processes whose environment names something below this directory: a cluster's pods.
pub fn with_environment_below(dir: &Path) -> Vec<u32> {
    let below = format!("{}/", dir.display()).into_bytes();
    matching("environ", |environment| environment.windows(below.len()).any(|window| window == below))
}

/// Waits until no process has the argument any more.
pub async fn gone(argument: &str, within: Duration) {
    eventually(&format!("the end of the processes with {argument}"), within, async || {
        match with_argument(argument).as_slice() {
            [] => Ok(()),
            pids => Err(format!("{pids:?} live")),
        }
    })
    .await;
}

/// Waits until just one process has the argument, and says which.
pub async fn just_one(argument: &str, within: Duration) -> u32 {
    eventually(&format!("one process with {argument}"), within, async || {
        match with_argument(argument).as_slice() {
            [pid] => Ok(*pid),
            pids => Err(format!("{pids:?} live")),
        }
    })
    .await
}

fn matching(file: &str, is_meant: impl Fn(&[u8]) -> bool) -> Vec<u32> {
    let all = std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    // A process may end while it is looked at, and others' environments are not ours to read.
    all.filter(|pid: &u32| std::fs::read(format!("/proc/{pid}/{file}")).is_ok_and(|content| is_meant(&content)))
        .collect()
}
