//! What a cluster of real processes does, and how fast, next to what the machine allows and what others do.
//!
//! Starts nodes of the release build on loopback and gives them work. Every figure that depends on the machine is taken
//! in turn with its limit and with other systems that are installed, in the same run: a round of one, then a round of
//! the next. Their ratio survives a busy machine better than either does. A system that is not installed is skipped, and
//! named below the table. "Durable" means what it means everywhere in flockwork: synced to the disk before it is
//! acknowledged, on as many nodes as there are replicas.
//!
//! ```text
//! cargo bench --bench cluster -- [--only WORD] [--rounds 5] [--scale] [--charts docs/charts]
//! ```
#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark has a clock, talks, and stops at what it cannot do"
)]
#![allow(unreachable_pub, reason = "one program in several files")]

mod charts;
mod failover;
mod handlers;
mod http;
mod known;
mod latency;
mod limits;
mod nodes;
mod overload;
mod peers;
mod submits;
mod table;
mod throughput;

use std::path::PathBuf;

use clap::Parser;

use charts::Chart;
use table::{Table, machine};

#[derive(Debug, Parser)]
struct Arguments {
    /// Only the measurements whose name contains this word
    #[arg(long)]
    only: Option<String>,
    /// How often each figure is taken
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How often a node is killed, and how often frozen
    #[arg(long, default_value_t = 20)]
    deaths: usize,
    /// How many jobs are known where that is measured
    #[arg(long, default_value_t = 1_000_000)]
    jobs: usize,
    /// Measure how the cost grows, too: with nodes, with jobs known, with the size of a request
    #[arg(long)]
    scale: bool,
    /// The folder for the charts of what grows
    #[arg(long, default_value = "docs/charts")]
    charts: PathBuf,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

impl Arguments {
    fn wants(&self, name: &str) -> bool {
        self.only.as_ref().is_none_or(|word| name.contains(word.as_str()))
    }
}

type Measurement = fn(&Arguments, &mut Table) -> anyhow::Result<()>;
type Growth = fn(&Arguments) -> anyhow::Result<Chart>;

/// Every measurement by its name.
const MEASUREMENTS: [(&str, Measurement); 10] = [
    ("throughput", |arguments, table| throughput::processes(arguments.rounds, table)),
    ("handlers", |arguments, table| handlers::throughput(arguments.rounds, table)),
    ("submits", |arguments, table| submits::rates(arguments.rounds, table)),
    ("latency", |arguments, table| latency::idle(arguments.rounds, table)),
    ("logs", |arguments, table| latency::logs(arguments.rounds, table)),
    ("failover", |arguments, table| failover::deaths(arguments.deaths, table)),
    ("known", |arguments, table| known::jobs(arguments.rounds, arguments.jobs, table)),
    ("idle", |arguments, table| known::idle(arguments.rounds, table)),
    ("sleepers", |arguments, table| known::sleepers(arguments.rounds, table)),
    ("overload", |arguments, table| overload::three_times(arguments.rounds, table)),
];

/// What grows with something, each drawn as a chart.
const GROWTHS: [(&str, Growth); 3] = [
    ("nodes", |_| throughput::by_nodes()),
    ("requests", |_| submits::by_request_size()),
    ("jobs", |arguments| known::by_jobs(arguments.jobs)),
];

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    println!("{}", machine());
    let mut table = Table::default();
    for (name, measure) in MEASUREMENTS.iter().filter(|(name, _)| arguments.wants(name)) {
        println!("\n{name}");
        if let Err(error) = measure(&arguments, &mut table) {
            println!("{name} failed: {error:#}");
        }
    }
    if arguments.scale {
        std::fs::create_dir_all(&arguments.charts)?;
        for (name, measure) in GROWTHS.iter().filter(|(name, _)| arguments.wants(name)) {
            println!("\nby {name}");
            let chart = measure(&arguments)?;
            chart.draw(&arguments.charts.join(format!("{name}.svg")))?;
            println!("{}", chart.told());
        }
    }
    println!("\n{table}\n{}", machine());
    Ok(())
}
