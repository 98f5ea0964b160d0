//! Stories of faults, each told with many seeds. A failing one prints the line that replays it.

use super::simulation::{HostId, Process, World, ms, secs};
use super::*;
use crate::model::config::Profile;
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IteratorRandom};

/// Names a single seed to replay.
const SEED_VARIABLE: &str = "MEMBERSHIP_SEED";

/// Tells `story` once for every seed.
fn tell(name: &str, seeds: u64, story: impl Fn(u64) -> Result<(), String>) {
    let chosen: Option<u64> = std::env::var(SEED_VARIABLE).ok().and_then(|seed| seed.parse().ok());
    for seed in chosen.map_or(0..seeds, |seed| seed..seed + 1) {
        if let Err(wrong) = story(seed) {
            panic!("{wrong}\nreplay: {SEED_VARIABLE}={seed} cargo test --lib membership::stories::{name}");
        }
    }
}

fn nobody_was_condemned(world: &World) -> Result<(), String> {
    let all: Vec<_> = world.false_downs();
    if all.is_empty() { Ok(()) } else { Err(format!("condemned although they ran: {all:?}")) }
}

fn ensure(holds: bool, otherwise: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise.to_owned()) }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

#[test]
fn a_killed_node_is_down_everywhere_and_its_next_start_is_alive() {
    tell("a_killed_node_is_down_everywhere_and_its_next_start_is_alive", 20, |seed| {
        let mut world = World::running(seed, 10);
        world.crash(3);
        world.run_until_agreed(secs(3))?;
        world.start(3);
        world.run_until_agreed(secs(10))?;
        nobody_was_condemned(&world)
    });
}
