//! The whole protocol, run in virtual time against a simulated world.
#![allow(clippy::unwrap_used, reason = "a test stops at what cannot be")]
#![allow(unreachable_pub, reason = "the modules are shared with an example")]

mod attempts;
mod checkers;
mod clients;
mod disk;
mod explore;
mod fleet;
mod network;
mod pods;
mod saved_work;
mod stories;
mod world;

use explore::{Run, explore};
use world::Trace;

/// Runs many seeds. `SIM_SEEDS` says how many and `SIM_FIRST` from which on; `SIM_MINUTES` how long each.
#[test]
fn random_faults_break_no_promise() {
    let asked = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<f64>().ok());
    let (first, seeds) = (asked("SIM_FIRST").unwrap_or(0.0) as u64, asked("SIM_SEEDS").unwrap_or(10.0) as u64);
    let minutes = asked("SIM_MINUTES").unwrap_or(2.0);
    let mut failures = Vec::new();
    let tally = fleet::explore_all(
        first..first + seeds,
        |seed| Run::of(seed, minutes),
        |_, outcome| failures.extend(outcome.err()),
    );
    println!("{tally}");
    assert!(failures.is_empty(), "{} of {seeds} seeds failed:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn the_same_seed_is_the_same_run() {
    let run = Run { seed: 19, nodes: 4, minutes: 0.5, pace_ms: None, planted: None };
    let text = || match explore(run, Trace::Collect(String::new())).trace {
        Trace::Collect(text) => text,
        Trace::Off | Trace::Print => unreachable!("the trace was to be collected"),
    };
    let (first, second) = (text(), text());
    assert!(first.lines().count() > 1_000, "there is something to compare");
    assert!(
        first == second,
        "the runs differ from line {:?} on",
        first.lines().zip(second.lines()).position(|(a, b)| a != b)
    );
}
