//! The checkers of the membership, and the runs that they watch over: faults of every kind at random times, by a seed.
//!
//! What is checked: nobody is condemned whom enough others reach; nobody who is well is condemned because others are
//! not; after any faults, once all is calm, every
//! live member that can be reached is alive in every view, and every dead one is down in every view, within a bound;
//! and from then on nobody who runs is condemned any more.

use std::ops::Range;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IteratorRandom;
use rand::{RngExt, SeedableRng};

use super::Rules;
use super::simulation::{HostId, Network, Process, World, ms, secs};

/// From so few members to so many, by the seed.
const MEMBERS: Range<u64> = 5..16;
/// Within this all views must tell the truth once all is calm. Long enough for a restarted node's full grace period,
/// with the local health at its worst.
const AGREE_WITHIN: Duration = secs(40);

/// Nobody who ran was believed down.
///
/// # Errors
/// Who was, by whom and when.
pub fn nobody_was_condemned(world: &World) -> Result<(), String> {
    nobody_of(world, |_| true)
}

fn nobody_of(world: &World, counts: impl Fn(HostId) -> bool) -> Result<(), String> {
    let host_of = |node| world.hosts.iter().position(|host| host.id == node).expect("only hosts are members");
    let meant = world.false_downs().into_iter().filter(|down| counts(host_of(down.about)));
    let tell = |down: &super::simulation::Down| format!("n{} condemned {} at {:?}", down.by, down.about, down.at);
    let all: Vec<String> = meant.map(tell).collect();
    if all.is_empty() { Ok(()) } else { Err(format!("of those who ran, {}", all.join(", "))) }
}

/// One run by `seed`, where everybody keeps to `rules`. `plant` may break the network first.
///
/// # Errors
/// What the checkers call wrong.
pub fn soak(seed: u64, rules: Rules, plant: impl FnOnce(&mut Network)) -> Result<(), String> {
    let members = (MEMBERS.start + seed % (MEMBERS.end - MEMBERS.start)) as usize;
    let mut world = World::running_by(seed, members, rules);
    plant(&mut world.network);
    let mut dice = StdRng::seed_from_u64(seed ^ 0x5eed);
    links_are_cut(&mut world, &mut dice)?;
    some_are_unwell(&mut world, &mut dice)?;
    anything_happens(&mut world, &mut dice);
    calm_down(&mut world, &mut dice);
    world.run_until_agreed(AGREE_WITHIN)?;
    world.downs.clear();
    world.run(secs(10));
    nobody_was_condemned(&world)?;
    world.run_until_agreed(secs(5)).map(|_| ())
}

/// One member is cut off from all but a few of the others, and some links work in one direction only. Everybody can still be
/// reached by others, so nobody may be condemned.
fn links_are_cut(world: &mut World, dice: &mut StdRng) -> Result<(), String> {
    let count = world.hosts.len();
    let lonely = dice.random_range(0..count);
    let reached_by = dice.random_range(2..=count / 2);
    let cut_off = (0..count).filter(|host| *host != lonely).sample(dice, count - 1 - reached_by);
    world.cut(&[lonely], &cut_off, true);
    for _ in 0..count / 4 {
        let (from, to) = (dice.random_range(0..count), dice.random_range(0..count));
        if from != lonely && to != lonely {
            world.cut_one_way(from, to, true);
        }
    }
    world.run(secs(20));
    nobody_was_condemned(world)?;
    world.network.cuts.clear();
    Ok(())
}

/// A third of the members freezes and stalls again and again. The others are well, and nobody may condemn them.
fn some_are_unwell(world: &mut World, dice: &mut StdRng) -> Result<(), String> {
    let count = world.hosts.len();
    let unwell = (0..count).sample(dice, count / 3);
    let end = world.now + secs(20);
    while world.now < end {
        world.run(ms(dice.random_range(50..1_500)));
        let host = unwell[dice.random_range(0..unwell.len())];
        match (&world.hosts[host].process, world.is_stalled(host)) {
            (Process::Frozen(..), _) => world.thaw(host),
            (_, true) => world.resume(host),
            (Process::Running(_) | Process::Off, false) if dice.random_bool(0.5) => world.freeze(host),
            (Process::Running(_) | Process::Off, false) => world.stall(host),
        }
    }
    nobody_of(world, |host| !unwell.contains(&host)).map_err(|wrong| format!("{wrong}; unwell: {unwell:?}"))
}

fn anything_happens(world: &mut World, dice: &mut StdRng) {
    let count = world.hosts.len();
    let end = world.now + secs(60);
    while world.now < end {
        world.run(ms(dice.random_range(100..4_000)));
        let host = dice.random_range(0..count);
        match dice.random_range(0..11) {
            0 | 1 => match world.hosts[host].process {
                Process::Running(_) => world.crash(host),
                Process::Off => world.start(host),
                Process::Frozen(..) => world.thaw(host),
            },
            2 | 3 if world.is_running(host) => world.freeze(host),
            4 => world.thaw(host),
            5 => world.cut_one_way(host, dice.random_range(0..count), true),
            6 => {
                let side = (0..count).sample(dice, count * 2 / 5);
                let rest: Vec<HostId> = (0..count).filter(|other| !side.contains(other)).collect();
                world.cut(&side, &rest, true);
            }
            7 => world.network.cuts.clear(),
            8 => world.network.loss_percent = dice.random_range(0..30),
            9 if world.is_running(host) => world.stall(host),
            10 => world.resume(host),
            _ => {}
        }
    }
}

/// The network is mended, whoever is held up goes on, and some of the dead come back.
fn calm_down(world: &mut World, dice: &mut StdRng) {
    world.network.cuts.clear();
    world.network.loss_percent = 0;
    for host in 0..world.hosts.len() {
        world.resume(host);
        match world.hosts[host].process {
            Process::Frozen(..) => world.thaw(host),
            Process::Off if dice.random_bool(0.5) => world.start(host),
            Process::Off | Process::Running(_) => {}
        }
    }
}
