//! Random faults, by seed.
//!
//! A seed decides how many kinds of trouble there are in its run (some runs have none: they are held to the
//! strictest promises), when they come, and how long they last. Then everything is healed, and judged.

use std::collections::BTreeMap;
use std::time::Duration;

use flockwork::protocol::sabotage::Bug;

use crate::world::{Options, Trace, World};

/// One run.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    pub seed: u64,
    pub nodes: usize,
    pub minutes: f64,
    /// The mean time between two questions of clients, where the seed does not choose it.
    pub pace_ms: Option<u32>,
    /// The rule that everybody breaks.
    pub planted: Option<Bug>,
}

impl Run {
    /// The run of a seed, as the exploration chooses it.
    pub fn of(seed: u64, minutes: f64) -> Self {
        Self { seed, nodes: 3 + (seed % 5) as usize, minutes, pace_ms: None, planted: None }
    }

    /// The command that replays it.
    pub fn replay(&self) -> String {
        let Self { seed, nodes, minutes, pace_ms, planted } = self;
        let pace = pace_ms.map(|pace| format!(" --pace {pace}")).unwrap_or_default();
        let (feature, plant) = match planted {
            Some(bug) => (" --features sabotage", format!(" --plant {bug:?}")),
            None => ("", String::new()),
        };
        format!(
            "cargo run --release{feature} --example simulate -- --seed {seed} --nodes {nodes} --minutes {minutes}{pace}{plant}"
        )
    }
}

/// A kind of trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    Kill,
    PowerOff,
    KillAll,
    Pause,
    Split,
    Cut,
    BadNetwork,
    FullDisk,
    SlowDisk,
    FailedSync,
    WrongClock,
    Join,
    Leave,
    Drain,
}

const ALL: [Trouble; 14] = [
    Trouble::Kill,
    Trouble::PowerOff,
    Trouble::KillAll,
    Trouble::Pause,
    Trouble::Split,
    Trouble::Cut,
    Trouble::BadNetwork,
    Trouble::FullDisk,
    Trouble::SlowDisk,
    Trouble::FailedSync,
    Trouble::WrongClock,
    Trouble::Join,
    Trouble::Leave,
    Trouble::Drain,
];

/// How far clocks jump, at the most: three hours.
const CLOCK_JUMPS_MS: u64 = 3 * 3_600_000;

/// How a trouble ends.
#[derive(Debug, Clone, Copy)]
enum Relief {
    Start(usize),
    Resume(usize),
    Heal,
    MendDisk(usize),
    SetClock(usize, i64),
    EndDrain(usize),
}

/// Runs a world with random faults, and judges it.
pub fn explore(run: Run, trace: Trace) -> World {
    let mut options = Options::new(run.seed, run.nodes);
    options.replicas = if run.seed.is_multiple_of(7) { 2 } else { 3 };
    if run.seed.is_multiple_of(3) {
        options.forget_after = Duration::from_secs(60);
    }
    if run.seed % 4 == 1 {
        // Finished jobs are kept for no longer than the present hour, which ends in the middle of the run.
        options.retention = Duration::ZERO;
        options.into_the_hour = Duration::from_secs(3_600).saturating_sub(Duration::from_secs_f64(run.minutes * 30.0));
    }
    // At once, sooner than most faults are over, later, and later than any.
    options.repair_after = Duration::from_secs([0, 3, 10, 30][(run.seed / 4 % 4) as usize]);
    options.planted = run.planted;
    let mut world = World::new(options);
    world.trace = trace;
    let kinds = choose_kinds(&mut world);
    world.write_line(|| format!("{run:?} with {kinds:?}"));
    for node in 0..run.nodes {
        let after = world.dice.ms(0.0, 300.0);
        world.start(node);
        world.run_for(after);
    }
    let pace = [250, 500, 1_000][world.dice.number(0..3) as usize];
    world.let_clients_ask(Some(run.pace_ms.unwrap_or(pace).into()));
    let end = world.now + Duration::from_secs_f64(run.minutes * 60.0);
    let mut reliefs: BTreeMap<(Duration, u64), Relief> = BTreeMap::new();
    let mut next_relief = 0;
    let mut next_trouble = world.now + world.dice.ms(2_000.0, 8_000.0);
    while world.now < end {
        let relief = reliefs.first_key_value().map(|(key, _)| *key);
        let at = relief.map_or(next_trouble, |(at, _)| at.min(next_trouble)).min(end);
        world.run_for(at.saturating_sub(world.now));
        if let Some(key) = relief.filter(|(at, _)| *at <= world.now) {
            let relief = reliefs.remove(&key).expect("it was just there");
            world.relieve(relief);
        } else if next_trouble <= world.now {
            next_trouble = world.now + world.dice.ms(300.0, 12_000.0);
            if let Some(kind) = world.dice.pick(&kinds) {
                for (after, relief) in world.trouble(kind) {
                    next_relief += 1;
                    reliefs.insert((world.now + after, next_relief), relief);
                }
            }
        }
    }
    world.calm_down_and_check();
    world
}

fn choose_kinds(world: &mut World) -> Vec<Trouble> {
    let share = [0.0, 15.0, 30.0, 60.0, 100.0][world.dice.number(0..5) as usize];
    let mut among = ALL.to_vec();
    if world.dice.chance(12.0) {
        // What operators do every day, and nothing worse.
        among = vec![Trouble::Join, Trouble::Leave, Trouble::Drain];
    }
    if world.options.retention.is_zero() {
        // A copy that is on its way between nodes, or on one that is away, while its record expires elsewhere brings it
        // back: retention must be longer than that, and is a week unless somebody says otherwise.
        among = vec![Trouble::Join];
    }
    among.into_iter().filter(|_| world.dice.chance(share)).collect()
}

impl World {
    fn trouble(&mut self, kind: Trouble) -> Vec<(Duration, Relief)> {
        let up = self.up();
        let Some(node) = self.dice.pick(&up) else {
            return Vec::new();
        };
        let lasts = if self.dice.chance(50.0) { self.dice.ms(100.0, 2_500.0) } else { self.dice.ms(2_500.0, 25_000.0) };
        match kind {
            Trouble::Kill => {
                self.kill(node);
                vec![(lasts, Relief::Start(node))]
            }
            Trouble::PowerOff => {
                self.power_off(node);
                let lasts = if self.dice.chance(10.0) { lasts * 4 } else { lasts };
                vec![(lasts, Relief::Start(node))]
            }
            Trouble::KillAll => {
                let mut reliefs = Vec::new();
                for node in up {
                    self.kill(node);
                    reliefs.push((self.dice.ms(50.0, 3_000.0), Relief::Start(node)));
                }
                reliefs
            }
            Trouble::Pause => {
                self.pause(node);
                vec![(lasts / 2, Relief::Resume(node))]
            }
            Trouble::Split => {
                let group: Vec<usize> = (0..self.nodes.len()).filter(|_| self.dice.chance(40.0)).collect();
                self.split(&group);
                vec![(lasts, Relief::Heal)]
            }
            Trouble::Cut => {
                let others: Vec<usize> = up.into_iter().filter(|other| *other != node).collect();
                if let Some(other) = self.dice.pick(&others) {
                    self.cut(node, other);
                }
                vec![(lasts, Relief::Heal)]
            }
            Trouble::BadNetwork => {
                (self.disturbances.any, self.disturbances.doubt) = (true, true);
                self.faults.bad_networks += 1;
                self.network.loss = self.dice.number(0..30) as f64;
                self.network.duplicates = self.dice.number(0..20) as f64;
                self.network.stragglers = self.dice.number(0..10) as f64;
                self.network.shuffles = self.dice.chance(50.0);
                self.network.delay_ms = (0.1, self.dice.number(1..60) as f64);
                self.log_fault(|| "the network goes bad".into());
                vec![(lasts, Relief::Heal)]
            }
            Trouble::FullDisk => {
                self.disturbances.any = true;
                self.faults.disk_faults += 1;
                self.nodes[node].disk.full = true;
                self.log_fault(|| format!("n{node}'s disk is full"));
                vec![(lasts / 2, Relief::MendDisk(node))]
            }
            Trouble::SlowDisk => {
                // Slow enough that a process waits for it, not so slow that it looks dead.
                self.disturbances.any = true;
                self.faults.disk_faults += 1;
                self.nodes[node].disk.slow_ms = self.dice.number(20..800) as f64;
                self.log_fault(|| format!("n{node}'s disk is slow"));
                vec![(lasts, Relief::MendDisk(node))]
            }
            Trouble::FailedSync => {
                self.disturbances.any = true;
                self.faults.disk_faults += 1;
                self.nodes[node].disk.fails_to_sync = true;
                vec![(lasts, Relief::Start(node))]
            }
            Trouble::WrongClock => {
                self.faults.wrong_clocks += 1;
                let by_ms = self.dice.number(0..2 * CLOCK_JUMPS_MS) as i64 - CLOCK_JUMPS_MS as i64;
                self.set_clock(node, by_ms);
                vec![(lasts, Relief::SetClock(node, -by_ms))]
            }
            Trouble::Join => {
                if self.nodes.len() < self.options.nodes + 3 {
                    let node = self.add_machine();
                    self.faults.joins += 1;
                    self.start(node);
                }
                Vec::new()
            }
            Trouble::Leave => {
                if self.up().len() > 2 {
                    self.leave(node);
                    let back = self.dice.chance(50.0);
                    return if back {
                        vec![(Duration::from_secs(25) + lasts, Relief::Start(node))]
                    } else {
                        Vec::new()
                    };
                }
                Vec::new()
            }
            Trouble::Drain => {
                self.drain(node, true);
                vec![(lasts, Relief::EndDrain(node))]
            }
        }
    }

    fn set_clock(&mut self, node: usize, by_ms: i64) {
        self.nodes[node].skew_ms += by_ms;
        self.log_fault(|| format!("n{node}'s clock jumps by {by_ms} ms"));
    }

    fn relieve(&mut self, relief: Relief) {
        match relief {
            Relief::Start(node) => self.start(node),
            Relief::Resume(node) => self.resume(node),
            Relief::Heal => self.heal(),
            Relief::MendDisk(node) => {
                self.nodes[node].disk.mend();
                self.log_fault(|| format!("n{node}'s disk is well"));
            }
            Relief::SetClock(node, by_ms) => self.set_clock(node, by_ms),
            Relief::EndDrain(node) => self.drain(node, false),
        }
    }
}
