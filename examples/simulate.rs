//! Replays one seed of the simulation, with a trace of what happened.
//!
//! `cargo run --example simulate -- --seed 42 [--nodes 5] [--minutes 5] [--quiet]`
#![allow(dead_code, reason = "the stories of the test use more of the world than a replay does")]
#![allow(clippy::unwrap_used, reason = "the world is shared with a test")]
#![allow(unreachable_pub, reason = "the modules are shared with a test")]

#[path = "../tests/simulation/checkers.rs"]
mod checkers;
#[path = "../tests/simulation/clients.rs"]
mod clients;
#[path = "../tests/simulation/disk.rs"]
mod disk;
#[path = "../tests/simulation/explore.rs"]
mod explore;
#[path = "../tests/simulation/network.rs"]
mod network;
#[path = "../tests/simulation/pods.rs"]
mod pods;
#[path = "../tests/simulation/world.rs"]
mod world;

use std::process::ExitCode;

use clap::Parser;
use explore::{Run, explore};
use world::Trace;

/// Replays one seed of the simulation.
#[derive(Debug, Parser)]
struct Arguments {
    /// Which run.
    #[arg(long)]
    seed: u64,
    /// How many nodes at first; what the exploration takes for this seed by default.
    #[arg(long)]
    nodes: Option<usize>,
    /// How many simulated minutes of trouble.
    #[arg(long, default_value_t = 5.0)]
    minutes: f64,
    /// Print only what came of it.
    #[arg(long)]
    quiet: bool,
}

fn main() -> ExitCode {
    let Arguments { seed, nodes, minutes, quiet } = Arguments::parse();
    let usual = Run::of(seed, minutes);
    let run = Run { nodes: nodes.unwrap_or(usual.nodes), ..usual };
    let world = explore(run, if quiet { Trace::Off } else { Trace::Print });
    let findings = &world.findings;
    println!(
        "{:.0} simulated seconds, {} events, {} jobs, {} pods, {} exceptions, {} violations",
        world.now.as_secs_f64(),
        world.steps,
        world.clients.jobs.len(),
        world.ledger.runs.len(),
        findings.exceptions.len(),
        findings.violations.len(),
    );
    for violation in &findings.violations {
        println!("{violation}");
    }
    if findings.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
