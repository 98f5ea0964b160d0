//! The proof that the checkers can fail: every planted bug, and how many seeds it took to be caught.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use flockwork::protocol::sabotage::Bug;

use crate::explore::{Run, explore};
use crate::world::Trace;

/// How far the first seeds of two trials are apart.
const TRIALS_APART: u64 = 1_000;

/// How a bug was hunted.
#[derive(Debug, Clone, Copy)]
pub struct Hunt {
    pub minutes: f64,
    /// How often each bug is hunted, each time with other seeds.
    pub trials: u64,
    /// How many seeds a bug may take.
    pub most: u64,
}

/// What came of it.
#[derive(Debug)]
pub struct Caught {
    pub bug: Bug,
    /// How many seeds each trial took, in order; nothing for a trial that did not catch it.
    pub seeds: Vec<Option<u64>>,
    /// Who caught it, and how often.
    pub by: BTreeMap<&'static str, u64>,
}

impl Caught {
    pub fn always(&self) -> bool {
        self.seeds.iter().all(Option::is_some)
    }

    /// The median number of seeds; a trial that failed counts as the longest.
    pub fn median(&self) -> Option<u64> {
        let mut seeds: Vec<u64> = self.seeds.iter().map(|seeds| seeds.unwrap_or(u64::MAX)).collect();
        seeds.sort_unstable();
        Some(seeds[seeds.len() / 2]).filter(|median| *median != u64::MAX)
    }
}

/// Hunts every bug, on all processors.
pub fn hunt_all(hunt: Hunt, told: impl Fn(&Caught) + Sync) -> Vec<Caught> {
    let next = AtomicUsize::new(0);
    let caught = Mutex::new(Vec::new());
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(bug) = Bug::ALL.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let one = hunt_one(*bug, hunt);
                    told(&one);
                    caught.lock().unwrap().push(one);
                }
            });
        }
    });
    let mut caught = caught.into_inner().unwrap();
    caught.sort_by_key(|one| one.bug);
    caught
}

fn hunt_one(bug: Bug, hunt: Hunt) -> Caught {
    let mut caught = Caught { bug, seeds: Vec::new(), by: BTreeMap::new() };
    for trial in 0..hunt.trials {
        let first = trial * TRIALS_APART;
        let checker = (first..first + hunt.most).find_map(|seed| Some((seed - first + 1, catch(bug, hunt, seed)?)));
        caught.seeds.push(checker.map(|(seeds, _)| seeds));
        if let Some((_, checker)) = checker {
            *caught.by.entry(checker).or_default() += 1;
        }
    }
    caught
}

/// The checker that catches the bug first in this run, if one does.
fn catch(bug: Bug, hunt: Hunt, seed: u64) -> Option<&'static str> {
    let run = Run { planted: Some(bug), ..Run::of(seed, hunt.minutes) };
    match catch_unwind(AssertUnwindSafe(|| explore(run, Trace::Off))) {
        Ok(world) => world.findings.violations.first().map(|violation| violation.checker),
        Err(_) => Some("the protocol's own assertions"),
    }
}

/// The table, as Markdown.
pub fn table(caught: &[Caught], hunt: Hunt) -> String {
    let mut text = format!("| planted bug | seeds until caught, median of {} | by |\n|---|---|---|\n", hunt.trials);
    for one in caught {
        let median = one.median().map_or_else(|| format!("not within {}", hunt.most), |median| median.to_string());
        let by: Vec<String> = one.by.iter().map(|(checker, times)| format!("{checker} ({times})")).collect();
        writeln!(text, "| `{:?}` | {median} | {} |", one.bug, by.join(", ")).expect("a String takes everything");
    }
    text
}
