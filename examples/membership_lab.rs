//! The membership's laboratory: what its rules are worth, and how it fares with a thousand members, in simulated time.
//!
//! ```text
//! cargo run --release --features simulation --example membership_lab -- lifeguard
//! cargo run --release --features simulation --example membership_lab -- thousand
//! cargo run --release --features simulation --example membership_lab -- soak --seeds 20000
//! ```
//!
//! `lifeguard` is the experiment of Lifeguard's paper (arXiv 1707.00788, section V): of 128 members some freeze again
//! and again. It counts what is believed of members that are well, and how fast a freeze is noticed, with Lifeguard's
//! rules and without them. `thousand` measures detection, spreading and traffic among 1,000 members, then cuts them in
//! two halves and heals the cut. `soak` lets faults of every kind befall ten members and looks whether every view
//! tells the truth afterwards, for as many seeds as are asked for.
#![allow(clippy::disallowed_methods, reason = "a laboratory has a clock, to say how long it took")]

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use flockwork::model::member::MemberState;
use flockwork::protocol::membership::Rules;
use flockwork::protocol::membership::simulation::{HostId, Process, World, soak};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    experiment: Experiment,
}

#[derive(Debug, Subcommand)]
enum Experiment {
    /// Members that freeze again and again, with Lifeguard's rules and without
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
    /// Faults of every kind; then every view must tell the truth
    Soak {
        /// How many seeds
        #[arg(long, default_value_t = 1_000)]
        seeds: u64,
        /// The first of them
        #[arg(long, default_value_t = 0)]
        from: u64,
    },
}

fn main() -> ExitCode {
    let began = Instant::now();
    let good = match Arguments::parse().experiment {
        Experiment::Lifeguard { members, seconds, seeds } => {
            lifeguard(members, Duration::from_secs(seconds), seeds);
            true
        }
        Experiment::Thousand { members } => thousand(members),
        Experiment::Soak { seeds, from } => soak_all(from..from + seeds),
    };
    println!("({:.0} s)", began.elapsed().as_secs_f64());
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What came of members freezing.
#[derive(Debug, Default)]
struct Freezing {
    /// Healthy members that were believed down, by anybody.
    false_downs: usize,
    /// Of these, by healthy members.
    at_healthy: usize,
    /// How long after a freeze began the first, and the last, healthy member believed it.
    first: Vec<Duration>,
    last: Vec<Duration>,
}

fn lifeguard(members: usize, span: Duration, seeds: u64) {
    let swim = Rules { lifeguard: false, own_probe: false, ..Rules::default() };
    let off = Rules { lifeguard: false, ..Rules::default() };
    let kinds = [("SWIM alone", swim), ("and own probe", off), ("and Lifeguard", Rules::default())];
    println!(
        "{members} members, {} s, {seeds} runs each; every frozen one freezes for 0.25 to 10 s, runs for 0.01 to 2 s, \
         and freezes again\n",
        span.as_secs()
    );
    println!(
        "| freezing | rules | healthy members believed down | of these, by healthy ones | first knows, median | last knows, median (freezes) |"
    );
    println!("|---|---|---|---|---|---|");
    let mut totals = [(0, 0, Vec::new()), (0, 0, Vec::new()), (0, 0, Vec::new())];
    for freezing in [1, 4, 8, 16, 24, 32] {
        for (kind, (name, rules)) in kinds.iter().enumerate() {
            let mut sum = Freezing::default();
            for seed in 0..seeds {
                freeze_some(seed, members, freezing, span, *rules, &mut sum);
            }
            let samples = sum.last.len();
            let total = &mut totals[kind];
            total.0 += sum.false_downs;
            total.1 += sum.at_healthy;
            total.2.extend(sum.last.iter().copied());
            println!(
                "| {freezing} | {name} | {} | {} | {} | {} ({samples}) |",
                sum.false_downs,
                sum.at_healthy,
                seconds(median(sum.first)),
                seconds(median(sum.last)),
            );
        }
    }
    for ((name, _), (downs, at_healthy, last)) in kinds.iter().zip(totals) {
        let median = seconds(median(last));
        println!("| all | {name} | {downs} | {at_healthy} | | {median} |");
    }
}

/// One run. Host 0 is everybody's seed, and never freezes.
fn freeze_some(seed: u64, members: usize, freezing: usize, span: Duration, rules: Rules, sum: &mut Freezing) {
    let mut world = World::running_by(seed, members, rules);
    let mut dice = StdRng::seed_from_u64(seed ^ 0x0006_11fe);
    let begins_at = world.now;
    let is_healthy = |host: HostId| host == 0 || host > freezing;
    let mut next: Vec<Duration> =
        (0..freezing).map(|_| begins_at + Duration::from_secs_f64(dice.random_range(0.0..2.0))).collect();
    // Who is frozen since when, and who of the healthy has noticed when.
    let mut freezes: Vec<(HostId, Duration, Duration)> = Vec::new();
    while world.now < begins_at + span {
        let (at, which) = next.iter().copied().zip(1..).min().expect("somebody freezes");
        world.run(at.saturating_sub(world.now));
        let is_frozen = matches!(world.hosts[which].process, Process::Frozen(..));
        let pause = if is_frozen {
            world.thaw(which);
            dice.random_range(0.01..2.0)
        } else {
            world.freeze(which);
            dice.random_range(0.25..10.0)
        };
        let pause = Duration::from_secs_f64(pause);
        if !is_frozen {
            freezes.push((which, world.now, world.now + pause));
        }
        next[which - 1] = world.now + pause;
    }
    let host_of = |world: &World, node| world.hosts.iter().position(|host| host.id == node).expect("a host");
    for down in &world.downs {
        let about = host_of(&world, down.about);
        if is_healthy(about) {
            sum.false_downs += 1;
            sum.at_healthy += usize::from(is_healthy(down.by));
        }
    }
    for (which, from, until) in freezes {
        let id = world.hosts[which].id;
        let noticed = world
            .downs
            .iter()
            .filter(|down| down.about == id && is_healthy(down.by) && (from..until).contains(&down.at));
        let times: Vec<Duration> = noticed.map(|down| down.at - from).collect();
        // Only a freeze that all the healthy noticed before it ended tells how long the last one takes.
        if times.len() == members - freezing {
            sum.first.extend(times.iter().min());
            sum.last.extend(times.iter().max());
        }
    }
}

fn thousand(members: usize) -> bool {
    let mut world = World::running(1, members);
    println!("{members} members know each other after {}", seconds(Some(world.now)));

    let (packets, handshakes, at) = (world.packets, world.handshakes, world.now);
    world.run(Duration::from_secs(30));
    let per_node_second = (world.now - at).as_secs_f64() * members as f64;
    println!(
        "idle: {:.1} probe packets and {:.1} gossip handshakes a node and second",
        (world.packets - packets) as f64 / per_node_second,
        (world.handshakes - handshakes) as f64 / per_node_second,
    );

    let (mut first, mut last) = (Vec::new(), Vec::new());
    for round in 0..5 {
        let victim = 10 + round * 7;
        let at = world.now;
        world.downs.clear();
        world.freeze(victim);
        if let Err(wrong) = world.run_until_agreed(Duration::from_secs(60)) {
            println!("{wrong}");
            return false;
        }
        first.extend(world.downs.iter().map(|down| down.at - at).min());
        last.extend(world.downs.iter().map(|down| down.at - at).max());
        world.thaw(victim);
        let back = world.run_until_agreed(Duration::from_secs(60));
        if let Err(wrong) = back {
            println!("{wrong}");
            return false;
        }
    }
    println!(
        "a freeze: the first knows after {}, the last after {} (medians of 5)",
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

fn soak_all(seeds: std::ops::Range<u64>) -> bool {
    let threads = std::thread::available_parallelism().map_or(1, |count| count.get() as u64);
    let failures: Vec<String> = std::thread::scope(|scope| {
        let run = |first: u64| {
            let seeds = seeds.clone().skip(first as usize).step_by(threads as usize);
            scope.spawn(move || {
                let tell = |seed, wrong| {
                    format!("seed {seed}: {wrong}\n  replay: membership_lab soak --seeds 1 --from {seed}")
                };
                seeds
                    .filter_map(|seed| Some(tell(seed, soak(seed, Rules::default(), |_| {}).err()?)))
                    .collect::<Vec<_>>()
            })
        };
        let running: Vec<_> = (0..threads).map(run).collect();
        running.into_iter().flat_map(|thread| thread.join().expect("a run does not panic")).collect()
    });
    for failure in &failures {
        println!("{failure}");
    }
    println!("{} seeds, {} failures", seeds.count(), failures.len());
    failures.is_empty()
}

fn median(mut times: Vec<Duration>) -> Option<Duration> {
    times.sort();
    times.get(times.len() / 2).copied()
}

fn seconds(time: Option<Duration>) -> String {
    time.map_or_else(|| "-".to_owned(), |time| format!("{:.2} s", time.as_secs_f64()))
}
