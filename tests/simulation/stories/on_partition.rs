//! Jobs with `--on-partition pause`, which no two sides may run at once.

use std::time::Duration;

use flockwork::model::attempt::Phase;
use flockwork::model::id::JobId;
use flockwork::model::record::JobState;
use flockwork::model::spec::{OnPartition, Spec};

use super::{PATIENCE, SECOND, cluster, cluster_of};
use crate::pods::work;
use crate::world::{Options, World};

/// Whether an attempt of the job is in this phase, as this node has it.
fn has_one(phase: Phase, world: &World, node: usize, job: JobId) -> bool {
    let record = world.peer(node).and_then(|peer| peer.records().get(job)).map(|held| held.record());
    record.is_some_and(|record| record.attempts.values().any(|attempt| attempt.fate.phase == phase))
}

#[test]
fn what_must_not_run_twice_is_ended_where_it_was_taken_for_lost_before_it_runs_again() {
    let mut world = cluster(4);
    let job = world.submit(0, Spec { on_partition: OnPartition::Pause, ..work(PATIENCE.as_millis() as u64, 0) });
    let away = world.wait_for_pod(job);
    world.pause(away);
    let others = world.others(&[away]);
    world.wait_until("it is written off", |world| others.iter().any(|node| has_one(Phase::Lost, world, *node, job)));
    world.resume(away);
    world.wait_until("it runs again", |world| world.pods(job) == 2);
    world.run_for(SECOND);
    assert!(world.ledger.overlaps.is_empty(), "never both at once");
    world.cancel(others[0], job).unwrap();
    world.end_well();
}

#[test]
fn whoever_restarts_gives_one_that_is_cut_off_its_time_to_end_what_must_not_run_twice() {
    let mut world = cluster(4);
    let job = world.submit(0, Spec { on_partition: OnPartition::Pause, ..work(PATIENCE.as_millis() as u64, 0) });
    let away = world.wait_for_pod(job);
    let others = world.others(&[away]);
    world.run_for(SECOND * 20);
    world.split(&[away]);
    world.wait_until("it is written off", |world| others.iter().any(|node| has_one(Phase::Lost, world, *node, job)));
    let written_off = world.now;
    others.iter().for_each(|node| world.kill(*node));
    others.iter().for_each(|node| world.start(*node));
    world.wait_until("it runs again", |world| world.pods(job) == 2);
    // What it takes to doubt four members and to end a pod.
    assert!(world.now - written_off >= SECOND * 10, "no sooner than after {:?}", world.now - written_off);
    world.heal();
    world.cancel(others[0], job).unwrap();
    world.end_well();
}

#[test]
fn two_sides_that_come_to_a_majority_by_the_same_member_do_not_both_run_what_must_not_run_twice() {
    let mut world = cluster(5);
    let delay = Some(SECOND * 20);
    let job = world.submit(0, Spec { on_partition: OnPartition::Pause, delay, ..work(15_000, 0) });
    world.run_for(SECOND);
    world.kill(4);
    world.split(&[0, 1]);
    world.run_for(SECOND * 30);
    assert_eq!(world.pods(job), 0, "neither side is a majority");
    world.heal();
    for (here, there) in [(0, 2), (0, 3), (1, 2), (1, 3)] {
        world.cut(here, there);
        world.cut(there, here);
    }
    world.start(4);
    world.wait_for_pod(job);
    world.wait_for(job, JobState::Succeeded);
    assert!(world.ledger.overlaps.is_empty(), "never both at once");
    world.heal();
    world.end_well();
}

#[test]
fn whoever_takes_over_lets_the_other_side_end_what_must_not_run_twice_and_it_has_not_heard_of() {
    for seed in 1..=8 {
        let mut world = cluster_of(Options::new(seed, 5));
        let delay = Some(SECOND * 10);
        let job = world.submit(0, Spec { on_partition: OnPartition::Pause, delay, ..work(15_000, 0) });
        world.run_for(SECOND * 5);
        let owner = world.owner(job);
        let another = world.disks_with(job).into_iter().find(|node| *node != owner).expect("there are three copies");
        world.run_for(Duration::from_millis(4_000 + 30 * seed));
        world.split(&[owner, another]);
        world.wait_until("the majority runs it", |world| {
            world.ledger.runs_of(job).any(|run| run.started.is_some() && ![owner, another].contains(&run.node))
        });
        assert!(world.ledger.overlaps.is_empty(), "not while it runs on the other side, with seed {seed}");
        world.heal();
        world.wait_for(job, JobState::Succeeded);
        world.end_well();
    }
}

#[test]
fn whoever_was_replaced_unawares_does_not_begin_beside_what_its_successor_runs() {
    let mut claimed_twice = 0;
    for seed in 1..=12 {
        let mut world = cluster_of(Options::new(seed, 6));
        let delay = Some(SECOND * 2);
        let pauses = Spec { on_partition: OnPartition::Pause, delay, ..work(PATIENCE.as_millis() as u64, 0) };
        let job = world.submit(0, pauses);
        let owner = world.owner(job);
        world.split(&[owner]);
        world.wait_for_pod(job);
        // It reaches both sides: by it the owner, who only doubts the others, finds a majority again.
        let newcomer = world.add_machine();
        world.start(newcomer);
        // Where the newcomer acts for the job, it tells the owner of the pod.
        claimed_twice += u32::from(world.run_until(SECOND * 15, |world| has_one(Phase::Claimed, world, owner, job)));
        world.heal();
        world.run_for(SECOND * 5);
        assert!(world.ledger.overlaps.is_empty(), "never both at once, with seed {seed}");
        world.cancel(owner, job).unwrap();
        world.end_well();
    }
    assert!(claimed_twice > 2, "the owner claimed it, too: {claimed_twice} times");
}
