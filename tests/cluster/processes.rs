//! What runs on this machine, as `/proc` tells it, and signals to processes of our own.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
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

/// The processes that sleep for just this long.
pub fn sleepers(sleep: &str) -> Vec<u32> {
    let line = format!("sleep\0{sleep}\0").into_bytes();
    matching("cmdline", |found| found == line)
}

/// The processes that were given this argument.
pub fn given(argument: &OsStr) -> Vec<u32> {
    matching("cmdline", |found| found.split(|byte| *byte == 0).any(|word| word == argument.as_bytes()))
}

/// The children of a process that were given this argument.
pub fn children(parent: u32, argument: &str) -> Vec<u32> {
    let is_child = |pid: &u32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().any(|line| line.strip_prefix("PPid:").is_some_and(|of| of.trim() == parent.to_string()))
    };
    given(argument.as_ref()).into_iter().filter(is_child).collect()
}

/// The processes whose environment names this directory, or something below it: nodes and their pods.
pub fn at_home_in(dir: &Path) -> Vec<u32> {
    let dir = dir.as_os_str().as_bytes();
    let ends = |rest: &[u8]| matches!(rest.first(), None | Some(b'/' | b'\0'));
    matching("environ", |environment| {
        environment.windows(dir.len()).enumerate().any(|(at, part)| part == dir && ends(&environment[at + dir.len()..]))
    })
}

/// Waits until there are none.
pub async fn all_gone_from(dir: &Path, within: Duration) {
    eventually("the end of all nodes and pods", within, async || none(&at_home_in(dir))).await;
}

/// Waits until nobody sleeps that long any more.
pub async fn gone(sleep: &str, within: Duration) {
    eventually(&format!("the end of sleep {sleep}"), within, async || none(&sleepers(sleep))).await;
}

/// Waits until just one process sleeps that long, and says which.
pub async fn just_one(sleep: &str, within: Duration) -> u32 {
    eventually(&format!("one sleep {sleep}"), within, async || match sleepers(sleep).as_slice() {
        [pid] => Ok(*pid),
        pids => Err(format!("{pids:?} live")),
    })
    .await
}

fn none(pids: &[u32]) -> Result<(), String> {
    if pids.is_empty() { Ok(()) } else { Err(format!("{pids:?} live")) }
}

fn matching(file: &str, is_meant: impl Fn(&[u8]) -> bool) -> Vec<u32> {
    let all = std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    // A process may end while it is looked at, and others' environments are not ours to read.
    all.filter(|pid: &u32| std::fs::read(format!("/proc/{pid}/{file}")).is_ok_and(|content| is_meant(&content)))
        .collect()
}
