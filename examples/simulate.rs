//! Replays one seed of the simulation with a trace of what happened, or explores many.
//!
//! ```text
//! cargo run --release --example simulate -- --seed 42 [--nodes 5] [--minutes 5] [--quiet]
//! cargo run --release --example simulate -- --seeds 200 [--first 0] [--nodes 10] [--minutes 10]
//! cargo run --release --features sabotage --example simulate -- --sabotage [--minutes 5]
//! ```
//!
//! The last plants bugs, one at a time, and shows that each is caught. What the promises are, and which checker watches which, is in `docs/promises.md`.
#![allow(dead_code, reason = "the stories of the test use more of the world than a replay does")]
#![allow(clippy::unwrap_used, reason = "the world is shared with a test")]
#![allow(unreachable_pub, reason = "the modules are shared with a test")]
#![allow(clippy::disallowed_methods, reason = "the simulated time is no measure of how fast it is simulated")]

#[path = "../tests/simulation/attempts.rs"]
mod attempts;
#[path = "../tests/simulation/checkers.rs"]
mod checkers;
#[path = "../tests/simulation/clients.rs"]
mod clients;
#[path = "../tests/simulation/disk.rs"]
mod disk;
#[path = "../tests/simulation/explore.rs"]
mod explore;
#[path = "../tests/simulation/fleet.rs"]
mod fleet;
#[path = "../tests/simulation/network.rs"]
mod network;
#[path = "../tests/simulation/pods.rs"]
mod pods;
#[cfg(feature = "sabotage")]
#[path = "../tests/simulation/sabotage.rs"]
mod sabotage;
#[path = "../tests/simulation/saved_work.rs"]
mod saved_work;
#[path = "../tests/simulation/world.rs"]
mod world;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use explore::{Run, explore};
use fleet::Tally;
use flockwork::protocol::sabotage::Bug;
use world::Trace;

/// Replays one seed of the simulation, or explores many.
#[derive(Debug, Parser)]
struct Arguments {
    /// Which run to replay, with a trace.
    #[arg(long, required_unless_present_any = ["seeds", "sabotage"], conflicts_with = "seeds")]
    seed: Option<u64>,
    /// How many runs to explore, on all processors.
    #[arg(long)]
    seeds: Option<u64>,
    /// The first of them.
    #[arg(long, default_value_t = 0, requires = "seeds")]
    first: u64,
    /// How many nodes at first; what the exploration takes for the seed by default.
    #[arg(long)]
    nodes: Option<usize>,
    /// How many simulated minutes of trouble.
    #[arg(long, default_value_t = 5.0)]
    minutes: f64,
    /// After how many milliseconds in the mean clients ask for something again, half of the time for a job; what the
    /// exploration takes for the seed by default.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..), conflicts_with = "sabotage")]
    pace: Option<u32>,
    /// Plant every known bug in turn, and find out how many seeds it takes to catch it.
    #[arg(long, conflicts_with_all = ["seed", "seeds"])]
    sabotage: bool,
    /// Plant this bug.
    #[arg(long, value_parser = bug_of, conflicts_with = "sabotage")]
    plant: Option<Bug>,
    /// Print only what came of it.
    #[arg(long)]
    quiet: bool,
}

impl Arguments {
    fn run_of(&self, seed: u64) -> Run {
        let usual = Run::of(seed, self.minutes);
        Run { nodes: self.nodes.unwrap_or(usual.nodes), pace_ms: self.pace, planted: self.plant, ..usual }
    }
}

const NO_BUGS: &str = "this build has no bugs to plant: cargo run --release --features sabotage --example simulate";

fn bug_of(name: &str) -> Result<Bug, String> {
    if !cfg!(feature = "sabotage") {
        return Err(NO_BUGS.to_owned());
    }
    let known = || Bug::ALL.iter().map(|bug| format!("{bug:?}")).collect::<Vec<_>>().join(", ");
    let bug = Bug::ALL.iter().find(|bug| format!("{bug:?}") == name);
    bug.copied().ok_or_else(|| format!("no such bug is known; these are: {}", known()))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.sabotage {
        return hunt(&arguments);
    }
    match (arguments.seed, arguments.seeds) {
        (Some(seed), _) => replay(&arguments, seed),
        (None, seeds) => explore_many(&arguments, seeds.unwrap_or(1)),
    }
}

fn replay(arguments: &Arguments, seed: u64) -> ExitCode {
    let trace = if arguments.quiet { Trace::Off } else { Trace::Print };
    let world = explore(arguments.run_of(seed), trace);
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
    verdict(findings.violations.is_empty())
}

#[cfg(feature = "sabotage")]
fn hunt(arguments: &Arguments) -> ExitCode {
    let hunt = sabotage::Hunt { minutes: arguments.minutes, trials: 5, most: 100 };
    // What a broken protocol panics with is a catch like any other, and is counted.
    std::panic::set_hook(Box::new(|_| {}));
    let caught = sabotage::hunt_all(hunt, |one| eprintln!("{:?}: {:?} seeds", one.bug, one.seeds));
    print!("{}", sabotage::table(&caught, hunt));
    let missed = caught.iter().filter(|one| !one.always()).count();
    println!("{} bugs, of which {missed} were not always caught", caught.len());
    verdict(missed == 0)
}

#[cfg(not(feature = "sabotage"))]
fn hunt(_arguments: &Arguments) -> ExitCode {
    eprintln!("error: {NO_BUGS}");
    ExitCode::FAILURE
}

/// How often the state of a long exploration is told where nobody watches: in a log.
const TELL_EVERY: Duration = Duration::from_secs(30);

fn explore_many(arguments: &Arguments, seeds: u64) -> ExitCode {
    let begun = Instant::now();
    let watched = std::io::stderr().is_terminal();
    let mut told = begun;
    let mut failed = 0_u64;
    let tally = fleet::explore_all(
        arguments.first..arguments.first + seeds,
        |seed| arguments.run_of(seed),
        |so_far, outcome| {
            if let Err(text) = outcome {
                failed += 1;
                println!("{text}");
            }
            let now = Instant::now();
            if watched {
                eprint!("\r{}", progress(so_far, seeds, now - begun));
            } else if now - told > TELL_EVERY {
                told = now;
                eprintln!("{}", progress(so_far, seeds, now - begun));
            }
        },
    );
    if watched {
        eprintln!();
    }
    println!("{tally}");
    let took = begun.elapsed().as_secs_f64();
    println!("{:.0} simulated seconds a second, in {took:.0} s", tally.simulated.as_secs_f64() / took);
    println!("{failed} of {seeds} seeds failed");
    verdict(failed == 0)
}

fn progress(tally: &Tally, of: u64, took: Duration) -> String {
    let rate = tally.simulated.as_secs_f64() / took.as_secs_f64().max(0.001);
    let hours = tally.simulated.as_secs_f64() / 3_600.0;
    format!("{} of {of} seeds, {hours:.1} simulated hours, {rate:.0} simulated seconds a second", tally.seeds)
}

fn verdict(is_good: bool) -> ExitCode {
    if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
