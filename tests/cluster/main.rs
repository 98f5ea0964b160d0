//! Whole clusters of real node processes on loopback, told as stories of what befalls them.
//!
//! Nothing here reaches into the library: the stories start the program that users start, speak to it over HTTP
//! and through its command line, and do to its processes what machines do to them (they die, freeze, come back).
//! The small vocabulary is in [`cluster`] (nodes and what happens to them), [`program`] (the command line) and
//! [`processes`] (what runs on this machine), and [`docker`] (a daemon for containers).
//!
//! Every wait ends when what it waits for is there, and has a deadline. When a story fails, the ends of the nodes'
//! logs are printed. Whatever a story started is gone when it ends, and it fails if a pod outlived its node or if
//! any node panicked.
//!
//! A few waits are long by nature; `FLOCKWORK_TEST_PATIENCE=full` makes them as long as they are in the promise
//! (a node frozen for 30 seconds instead of 10).
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a test has a clock, and stops at what it cannot do"
)]
#![allow(unreachable_pub, reason = "one test program in several files")]

mod cluster;
mod docker;
mod processes;
mod program;

mod bad_input;
mod checkpoints;
mod clients;
mod containers;
mod crashes;
mod deaths;
mod disks;
mod identity;
mod leases;
mod limits;
mod local_clusters;
mod partitions;
mod rough_guests;
mod specs;
mod thousand_jobs;

use std::time::Duration;

use tokio::time::Instant;

/// Asks again and again until there is an answer; fails the story when there is none in time.
async fn eventually<T>(what: &str, within: Duration, mut ask: impl AsyncFnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + within;
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(why) if Instant::now() >= deadline => panic!("not within {within:?}: {what}: {why}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}
