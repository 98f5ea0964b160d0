//! The membership's laboratory: what its rules are worth, and how it fares with a thousand members, in simulated time.
//!
//! ```text
//! cargo run --release --features simulation --example membership_lab -- lifeguard
//! cargo run --release --features simulation --example membership_lab -- thousand
//! cargo run --release --features simulation --example membership_lab -- grow --charts docs/charts
//! cargo run --release --features simulation --example membership_lab -- soak --seeds 20000
//! cargo run --release --features simulation --example membership_lab -- planted
//! ```
//!
//! `lifeguard` is the experiment of Lifeguard's paper (arXiv 1707.00788, section V): of 128 members some stall or freeze
//! again and again. It counts what is believed of members that are well, and how fast the others are noticed, with
//! Lifeguard's rules and without them. `thousand` measures detection, spreading and traffic among 1,000 members, then cuts them in
//! two halves and heals the cut. `grow` draws how detection and traffic grow with the members. `soak` lets faults of every kind befall some members and looks whether every view tells
//! the truth afterwards, for as many seeds as are asked for; `planted` breaks a rule, and counts how many seeds the soak
//! needs to notice.
#![allow(clippy::disallowed_methods, reason = "a laboratory has a clock, to say how long it took")]
#![allow(unreachable_pub, reason = "one program in several files")]

#[path = "../benches/cluster/charts.rs"]
mod charts;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use flockwork::model::member::MemberState;
use flockwork::protocol::membership::Rules;
use flockwork::protocol::membership::simulation::{HostId, Network, Process, World};
use flockwork::protocol::membership::soak::soak;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use charts::{Chart, Line};

#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    experiment: Experiment,
}

#[derive(Debug, Subcommand)]
enum Experiment {
    /// Members that stall or freeze again and again, with Lifeguard's rules and without
    Lifeguard {
        /// How many members
        #[arg(long, default_value_t = 128)]
        members: usize,
        /// For how many simulated seconds
        #[arg(long, default_value_t = 120)]
        seconds: u64,
        /// How many runs of each kind
        #[arg(long, default_value_t = 3)]
        seeds: u64,
    },
    /// Many members: detection, spreading, traffic, and two halves that part and meet again
    Thousand {
        /// How many members
        #[arg(long, default_value_t = 1_000)]
        members: usize,
    },
    /// How detection and traffic grow with the members, as a chart
    Grow {
        /// The folder for it
        #[arg(long, default_value = "docs/charts")]
        charts: PathBuf,
    },
    /// Faults of every kind; then every view must tell the truth
    Soak {
        /// How many seeds
        #[arg(long, default_value_t = 1_000)]
        seeds: u64,
        /// The first of them
        #[arg(long, default_value_t = 0)]
        from: u64,
    },
    /// Faults in the rules: how many seeds the soak needs to catch each
    Planted {
        /// How often each is looked for, with other seeds every time
        #[arg(long, default_value_t = 21)]
        times: u64,
    },
}

fn main() -> ExitCode {
    let began = Instant::now();
    let good = match Arguments::parse().experiment {
        Experiment::Lifeguard { members, seconds, seeds } => lifeguard(members, Duration::from_secs(seconds), seeds),
        Experiment::Thousand { members } => thousand(members),
        Experiment::Grow { charts } => grow(&charts),
        Experiment::Soak { seeds, from } => soak_all(from..from + seeds),
        Experiment::Planted { times } => planted(times),
    };
    println!("({:.0} s)", began.elapsed().as_secs_f64());
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The ways in which a member can fail to take part for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Anomaly {
    /// Nothing gets in or out, while the timers go on: the experiment of Lifeguard's paper, whose members stop before
    /// they send and after they receive. A process that is starved of everything but its timers.
    Stall,
    /// Nothing goes on at all, as by SIGSTOP.
    Freeze,
}

/// What came of it.
#[derive(Debug, Default)]
struct Outcome {
    /// Healthy members that were believed down, by anybody.
    false_downs: usize,
    /// Of these, by healthy members.
    at_healthy: usize,
    /// How long after an anomaly began the first, and the last, healthy member believed it.
    first: Vec<Duration>,
    last: Vec<Duration>,
}

impl Outcome {
    fn add(&mut self, other: Self) {
        self.false_downs += other.false_downs;
        self.at_healthy += other.at_healthy;
        self.first.extend(other.first);
        self.last.extend(other.last);
    }
}

/// Says whether the goals are reached: false positives at least 50 times fewer, and detection no slower than 1.1 times.
fn lifeguard(members: usize, span: Duration, seeds: u64) -> bool {
    let off = Rules { lifeguard: false, ..Rules::default() };
    let kinds = [("off", off), ("on", Rules::default())];
    println!(
        "{members} members, {} s, {seeds} runs each; whoever is afflicted is so for 0.25 to 20 s, is well for 0.01 to \
         2 s, and is afflicted again\n",
        span.as_secs()
    );
    println!(
        "| anomaly | members | Lifeguard | healthy ones believed down | of these, by healthy ones | first knows, median | last knows, median (times) |"
    );
    println!("|---|---|---|---|---|---|---|");
    let mut good = true;
    for anomaly in [Anomaly::Stall, Anomaly::Freeze] {
        let mut totals = [Outcome::default(), Outcome::default()];
        for afflicted in [1, 4, 8, 16, 24, 32] {
            for (kind, (name, rules)) in kinds.iter().enumerate() {
                let mut sum = Outcome::default();
                let runs = side_by_side(0..seeds, |seed| afflict(seed, members, afflicted, span, *rules, anomaly));
                runs.into_iter().for_each(|run| sum.add(run));
                println!("| {anomaly:?} | {afflicted} | {name} | {}", drawn(&sum));
                totals[kind].add(sum);
            }
        }
        let [off, on] = totals;
        println!("| {anomaly:?} | all | off | {}", drawn(&off));
        println!("| {anomaly:?} | all | on | {}", drawn(&on));
        let detects = |outcome: &Outcome| median(outcome.last.clone()).unwrap_or_default().as_secs_f64();
        good &= on.false_downs * 50 <= off.false_downs && detects(&on) <= detects(&off) * 1.1;
    }
    good
}

fn drawn(outcome: &Outcome) -> String {
    format!(
        "{} | {} | {} | {} ({}) |",
        outcome.false_downs,
        outcome.at_healthy,
        seconds(median(outcome.first.clone())),
        seconds(median(outcome.last.clone())),
        outcome.last.len(),
    )
}

/// One run. Host 0 is everybody's seed, and always well.
fn afflict(seed: u64, members: usize, afflicted: usize, span: Duration, rules: Rules, anomaly: Anomaly) -> Outcome {
    let mut world = World::running_by(seed, members, rules);
    let mut dice = StdRng::seed_from_u64(seed ^ 0x0006_11fe);
    let begins_at = world.now;
    let is_healthy = |host: HostId| host == 0 || host > afflicted;
    let mut next: Vec<Duration> =
        (0..afflicted).map(|_| begins_at + Duration::from_secs_f64(dice.random_range(0.0..2.0))).collect();
    // Who was afflicted, from when until when.
    let mut spells: Vec<(HostId, Duration, Duration)> = Vec::new();
    while world.now < begins_at + span {
        let (at, which) = next.iter().copied().zip(1..).min().expect("somebody is afflicted");
        world.run(at.saturating_sub(world.now));
        let is_over = world.is_stalled(which) || matches!(world.hosts[which].process, Process::Frozen(..));
        match (anomaly, is_over) {
            (Anomaly::Stall, false) => world.stall(which),
            (Anomaly::Stall, true) => world.resume(which),
            (Anomaly::Freeze, false) => world.freeze(which),
            (Anomaly::Freeze, true) => world.thaw(which),
        }
        let lasts = Duration::from_secs_f64(dice.random_range(if is_over { 0.01..2.0 } else { 0.25..20.0 }));
        if !is_over {
            spells.push((which, world.now, world.now + lasts));
        }
        next[which - 1] = world.now + lasts;
    }
    let host_of = |node| world.hosts.iter().position(|host| host.id == node).expect("a host");
    let mut outcome = Outcome::default();
    for down in &world.downs {
        if is_healthy(host_of(down.about)) {
            outcome.false_downs += 1;
            outcome.at_healthy += usize::from(is_healthy(down.by));
        }
    }
    for (which, from, until) in spells {
        let id = world.hosts[which].id;
        let by_healthy = world.downs.iter().filter(|down| down.about == id && is_healthy(down.by));
        let times: Vec<Duration> =
            by_healthy.filter(|down| (from..until).contains(&down.at)).map(|down| down.at - from).collect();
        // Only one that all the healthy noticed before it was over tells how long the last one takes.
        if times.len() == members - afflicted {
            outcome.first.extend(times.iter().min());
            outcome.last.extend(times.iter().max());
        }
    }
    outcome
}

/// Runs `experiment` with every seed, on all processors.
fn side_by_side<T: Send>(seeds: std::ops::Range<u64>, experiment: impl Fn(u64) -> T + Sync) -> Vec<T> {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let experiment = &experiment;
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads)
            .map(|first| {
                let seeds = seeds.clone().skip(first).step_by(threads);
                scope.spawn(move || seeds.map(experiment).collect::<Vec<T>>())
            })
            .collect();
        running.into_iter().flat_map(|thread| thread.join().expect("a run does not panic")).collect()
    })
}

fn thousand(members: usize) -> bool {
    let mut world = World::running(1, members);
    println!("{members} members know each other after {}", seconds(Some(world.now)));

    let (packets, handshakes) = idle_traffic(&mut world);
    println!("idle: {packets:.1} probe packets and {handshakes:.1} gossip handshakes a node and second");
    let (first, last) = match freezes(&mut world) {
        Ok(times) => times,
        Err(wrong) => {
            println!("{wrong}");
            return false;
        }
    };
    println!(
        "a freeze: the first knows after {}, the last after {} (medians of {FREEZES})",
        seconds(median(first)),
        seconds(median(last))
    );

    let everybody: Vec<HostId> = (0..members).collect();
    let (left, right) = everybody.split_at(members / 2);
    world.cut(left, right, true);
    let at = world.now;
    for side in [left, right] {
        if let Err(wrong) = world.run_until_side_agreed(side, Duration::from_secs(240)) {
            println!("the halves do not settle: {wrong}");
            return false;
        }
    }
    println!("cut in halves: each side agrees after {}", seconds(Some(world.now - at)));
    world.run(Duration::from_secs(30));
    world.cut(left, right, false);
    match world.run_until_agreed(Duration::from_secs(60)) {
        Ok(took) => {
            let alive = world.state(0, members - 1) == Some(MemberState::Alive);
            println!("healed: all {} views tell the truth after {} ({alive})", members * members, seconds(Some(took)));
            alive
        }
        Err(wrong) => {
            println!("not healed: {wrong}");
            false
        }
    }
}

/// Probe packets and gossip handshakes of a node and second, where nothing happens.
fn idle_traffic(world: &mut World) -> (f64, f64) {
    let (packets, handshakes, at) = (world.packets, world.handshakes, world.now);
    world.run(Duration::from_secs(30));
    let per_node_second = (world.now - at).as_secs_f64() * world.hosts.len() as f64;
    ((world.packets - packets) as f64 / per_node_second, (world.handshakes - handshakes) as f64 / per_node_second)
}

const FREEZES: usize = 5;

/// Some members freeze, one after the other, and come back: after how long the first, and the last, of the others know.
fn freezes(world: &mut World) -> Result<(Vec<Duration>, Vec<Duration>), String> {
    let (mut first, mut last) = (Vec::new(), Vec::new());
    for round in 0..FREEZES {
        let victim = (10 + round * 7) % world.hosts.len();
        let at = world.now;
        world.downs.clear();
        world.freeze(victim);
        world.run_until_agreed(Duration::from_secs(60))?;
        first.extend(world.downs.iter().map(|down| down.at - at).min());
        last.extend(world.downs.iter().map(|down| down.at - at).max());
        world.thaw(victim);
        world.run_until_agreed(Duration::from_secs(60))?;
    }
    Ok((first, last))
}

fn grow(folder: &Path) -> bool {
    let mut chart = Chart::new("Membership, by simulated members", "members", "seconds; a node and second");
    let mut knows = Line::new("a freeze: the last one knows after, s");
    let mut packets = Line::new("idle: probe packets a node and second");
    let mut handshakes = Line::new("idle: gossip handshakes a node and second");
    for members in [10, 30, 100, 300, 1_000] {
        let mut world = World::running(1, members);
        let (of_probes, of_gossip) = idle_traffic(&mut world);
        match freezes(&mut world) {
            Ok((_, last)) => knows.add(members as f64, median(last).unwrap_or_default().as_secs_f64()),
            Err(wrong) => {
                println!("{wrong}");
                return false;
            }
        }
        packets.add(members as f64, of_probes);
        handshakes.add(members as f64, of_gossip);
    }
    chart.lines = vec![knows, packets, handshakes];
    chart.is_logarithmic = true;
    let drawn = std::fs::create_dir_all(folder).map_err(anyhow::Error::from);
    if let Err(wrong) = drawn.and_then(|()| chart.draw(&folder.join("members.svg"))) {
        println!("{wrong:#}");
        return false;
    }
    println!("{}", chart.told());
    true
}

fn soak_all(seeds: std::ops::Range<u64>) -> bool {
    let outcomes = side_by_side(seeds, |seed| (seed, soak(seed, Rules::default(), |_| {})));
    let count = outcomes.len();
    let failures: Vec<(u64, String)> =
        outcomes.into_iter().filter_map(|(seed, outcome)| Some((seed, outcome.err()?))).collect();
    for (seed, wrong) in &failures {
        println!("seed {seed}: {wrong}\n  replay: membership_lab soak --seeds 1 --from {seed}");
    }
    println!("{count} seeds, {} failures", failures.len());
    failures.is_empty()
}

/// A seed in so many is enough to call a planted fault caught.
const MOST_SEEDS: u64 = 500;

/// Breaks the network in some way.
type Plant = fn(&mut Network);

fn planted(times: u64) -> bool {
    let whole = Rules::default();
    let faults: [(&str, Rules, Plant); 3] = [
        ("nobody refutes", Rules { refutation: false, ..whole }, |_| {}),
        ("nothing is compared", whole, |network| network.without_comparison = true),
        ("no local health", Rules { lifeguard: false, ..whole }, |_| {}),
    ];
    println!("| planted fault | seeds until it is caught: median, most |\n|---|---|");
    let mut good = true;
    for (name, rules, plant) in faults {
        let needed = side_by_side(0..times, |time| {
            let first = 1_000_000 + time * MOST_SEEDS;
            (first..first + MOST_SEEDS).position(|seed| soak(seed, rules, plant).is_err()).map(|at| at + 1)
        });
        let mut caught: Vec<usize> = needed.iter().flatten().copied().collect();
        caught.sort_unstable();
        let missed = needed.len() - caught.len();
        good &= missed == 0;
        match (missed, caught.get(caught.len() / 2), caught.last()) {
            (0, Some(median), Some(most)) => println!("| {name} | {median}, {most} |"),
            _ => println!("| {name} | not caught {missed} times of {times} |"),
        }
    }
    good
}

fn median(mut times: Vec<Duration>) -> Option<Duration> {
    times.sort();
    times.get(times.len() / 2).copied()
}

fn seconds(time: Option<Duration>) -> String {
    time.map_or_else(|| "-".to_owned(), |time| format!("{:.2} s", time.as_secs_f64()))
}
