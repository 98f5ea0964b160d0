//! Many seeds on all processors, and what they came to together.

use std::fmt;
use std::ops::{AddAssign, Range};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use crate::explore::{Run, explore};
use crate::world::{Faults, Trace, World};

/// Violations that are told of one seed; the rest mostly follows from them.
const TOLD_OF_ONE_SEED: usize = 5;

/// What some runs came to.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    pub seeds: u64,
    pub simulated: Duration,
    pub events: u64,
    pub jobs: u64,
    pub pods: u64,
    pub faults: Faults,
    pub overlaps: u64,
    pub exceptions: u64,
    pub violations: u64,
    pub panics: u64,
}

impl Tally {
    fn of(world: &World) -> Self {
        Self {
            seeds: 1,
            simulated: world.now,
            events: world.steps,
            jobs: world.clients.jobs.len() as u64,
            pods: world.ledger.runs.len() as u64,
            faults: world.faults,
            overlaps: world.ledger.overlaps.len() as u64,
            exceptions: world.findings.exceptions.len() as u64,
            violations: world.findings.violations.len() as u64,
            panics: 0,
        }
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.seeds += other.seeds;
        self.simulated += other.simulated;
        self.events += other.events;
        self.jobs += other.jobs;
        self.pods += other.pods;
        self.faults += other.faults;
        self.overlaps += other.overlaps;
        self.exceptions += other.exceptions;
        self.violations += other.violations;
        self.panics += other.panics;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Faults { crashes, splits, cuts, pauses, bad_networks, wrong_clocks, disk_faults, joins, leaves, drains } =
            self.faults;
        let hours = self.simulated.as_secs_f64() / 3_600.0;
        writeln!(f, "{} seeds, {hours:.1} simulated hours, {} events", self.seeds, self.events)?;
        writeln!(f, "{} acknowledged jobs, {} pods, {} overlaps", self.jobs, self.pods, self.overlaps)?;
        writeln!(
            f,
            "{crashes} crashes, {splits} partitions, {cuts} one-way cuts, {pauses} pauses, {bad_networks} bad networks, \
             {disk_faults} disk faults, {wrong_clocks} wrong clocks, {joins} joins, {leaves} leaves, {drains} drains"
        )?;
        write!(f, "{} exceptions, {} violations, {} panics", self.exceptions, self.violations, self.panics)
    }
}

/// Explores `seeds`, and calls `after` for each one that is done with all that has come of it so far, and with what
/// to print if it failed: the line that replays it, and what it broke.
pub fn explore_all(
    seeds: Range<u64>,
    run_of: impl Fn(u64) -> Run + Sync,
    mut after: impl FnMut(&Tally, Result<(), String>),
) -> Tally {
    let next = AtomicU64::new(seeds.start);
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let mut tally = Tally::default();
    std::thread::scope(|scope| {
        let (tell, told) = mpsc::channel();
        for _ in 0..workers {
            let (tell, next, run_of) = (tell.clone(), &next, &run_of);
            scope.spawn(move || {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    if tell.send(explore_one(run_of(seed))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(tell);
        for (one, outcome) in told {
            tally += one;
            after(&tally, outcome);
        }
    });
    tally
}

fn explore_one(run: Run) -> (Tally, Result<(), String>) {
    let Ok(world) = catch_unwind(AssertUnwindSafe(|| explore(run, Trace::Off))) else {
        let tally = Tally { seeds: 1, panics: 1, ..Tally::default() };
        return (tally, Err(format!("{}\n    it panicked", run.replay())));
    };
    let violations = &world.findings.violations;
    let outcome = if violations.is_empty() {
        Ok(())
    } else {
        let broken: Vec<String> = violations.iter().take(TOLD_OF_ONE_SEED).map(ToString::to_string).collect();
        Err(format!("{}\n    {}", run.replay(), broken.join("\n    ")))
    };
    (Tally::of(&world), outcome)
}
