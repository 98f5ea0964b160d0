//! How fast a cluster of real processes notices what happens to its members, and what watching costs.
//!
//! Starts nodes of the release build on loopback and does to them what machines do: freezes one (SIGSTOP), kills
//! one (kill -9), lets one leave, has one say something urgent. What is measured is the time until the last of the
//! others knows. Every node's log is read as it is written, so nothing is asked of the nodes while they are
//! measured. If HashiCorp's Serf is installed, the same is done to as many of its agents, in the same run and by the
//! same code.
//!
//! ```text
//! cargo bench --bench membership -- [--nodes 24] [--rounds 20] [--only WORD] [--idle 60] [--overload MINUTES] [--without-serf]
//! ```
#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark has a clock, talks, and stops at what it cannot do"
)]
#![allow(unreachable_pub, reason = "one program in several files")]

mod cluster;
mod flockwork;
mod serf;
mod table;

use std::time::Duration;

use clap::Parser;

use cluster::{Cluster, System};
use table::{Column, machine};

#[derive(Debug, Parser)]
struct Arguments {
    /// How many nodes
    #[arg(long, default_value_t = 24)]
    nodes: usize,
    /// How often each thing happens to a node
    #[arg(long, default_value_t = 20)]
    rounds: usize,
    /// How often to a Serf agent, which takes longer to notice
    #[arg(long, default_value_t = 5)]
    serf_rounds: usize,
    /// For how many seconds the idle cluster is watched
    #[arg(long, default_value_t = 60)]
    idle: u64,
    /// For how many minutes, at the end, busy processes take twice what the processors can give
    #[arg(long, default_value_t = 0.0)]
    overload: f64,
    /// Of what happens to nodes, only this: frozen, killed, change or leave
    #[arg(long, value_name = "WORD")]
    only: Option<String>,
    /// Nothing but the overload, or the idling
    #[arg(long)]
    no_faults: bool,
    /// Do not measure Serf even if it is installed
    #[arg(long)]
    without_serf: bool,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let arguments = Arguments::parse();
    println!("{}", machine());
    let ours = flockwork::Flockwork::new(arguments.nodes);
    let mut columns = vec![measure(&ours, &arguments, arguments.rounds)];
    if !arguments.without_serf {
        match serf::Serf::find(arguments.nodes) {
            Some(serf) => columns.push(measure(&serf, &arguments, arguments.serf_rounds)),
            None => println!("serf: not installed"),
        }
    }
    println!("\n{}", table::drawn(arguments.nodes, &columns));
    println!("{}", machine());
}

/// What can befall a process; how long until the last of the others knew.
type Fault = fn(&mut Cluster<'_>, usize) -> Option<Duration>;

/// Everything that is measured of one system.
fn measure(system: &dyn System, arguments: &Arguments, rounds: usize) -> Column {
    let mut column = Column::new(system.name());
    let mut cluster = Cluster::new(system, arguments.nodes);
    column.add("all see all, from the last start", vec![cluster.join()]);
    cluster.settle(Duration::from_secs(8));
    let idle = cluster.idle(Duration::from_secs(arguments.idle));
    column.say("idle: CPU a node, ms/s", format!("{:.2}", idle.cpu_ms_per_s));
    let (rss, own) = (idle.rss_mb, idle.own_mb);
    column.say("idle: memory a node (median RSS, of which its own)", format!("{rss:.1} MB, {own:.1} MB"));
    column.say("idle: traffic a node", idle.traffic);
    if !arguments.no_faults {
        let victims: Vec<usize> = (0..rounds).map(|round| 1 + round * 7 % (arguments.nodes - 1)).collect();
        let faults: [(&str, Fault); 4] = [
            ("frozen (SIGSTOP)", |cluster, victim| cluster.freeze(victim)),
            ("killed (kill -9)", |cluster, victim| cluster.kill(victim)),
            ("an urgent change", |cluster, victim| cluster.change(victim)),
            ("a graceful leave", |cluster, victim| cluster.leave(victim)),
        ];
        let wanted = |name: &str| arguments.only.as_ref().is_none_or(|word| name.contains(word.as_str()));
        for (name, befall) in faults.into_iter().filter(|(name, _)| wanted(name)) {
            column.add(name, victims.iter().map(|victim| befall(&mut cluster, *victim)).collect());
        }
        column.say("false downs meanwhile", cluster.false_downs().to_string());
    }
    if arguments.overload > 0.0 {
        let told = cluster.overload(Duration::from_secs_f64(arguments.overload * 60.0));
        column.say("overload: false downs", told.false_downs.to_string());
        column.say("overload: suspicions", told.suspicions.to_string());
    }
    column
}
