//! Whoever does its part of a job dies, stands still or has a bad disk, one or all of them.

use std::collections::BTreeSet;
use std::time::Duration;

use flockwork::model::attempt::Phase;
use flockwork::model::id::JobId;
use flockwork::model::member::Status;
use flockwork::model::record::JobState;
use flockwork::model::request::{Event, EventKind};
use flockwork::model::spec::{Durability, Spec};
use flockwork::protocol::gateway::AskId;

use super::{SECOND, cluster, cluster_of, owned_by};
use crate::pods::work;
use crate::world::{Options, World};

#[test]
fn the_owner_dies_before_it_acknowledges() {
    for after_ms in [0, 1, 2, 3, 5] {
        let mut world = cluster(4);
        let job = world.submit(0, work(1, 0));
        let owner = world.owner(job);
        let gateway = world.others(&[owner])[0];
        // The same partition, and so the same owner: ids with one key differ in their low bits only.
        let spec = Spec { key: Some("once".into()), ..work(300, 0) };
        let first = world.submit(gateway, spec.clone());
        let owner = world.owner(first);
        let gateway = world.others(&[owner])[0];
        let second = Spec { key: Some("twice".into()), ..spec };
        let ask = world.ask_to_submit(gateway, second.clone());
        world.run_for(Duration::from_millis(after_ms));
        world.kill(owner);
        let outcome = world.outcome(ask);
        let again = world.submit(gateway, second);
        assert!(outcome.is_ok_and(|submitted| submitted.id == again), "killed after {after_ms} ms");
        world.wait_for(again, JobState::Succeeded);
        world.end_well();
    }
}

#[test]
fn the_owner_dies_after_it_acknowledged() {
    let mut world = cluster(4);
    let job = world.submit(0, Spec { delay: Some(SECOND), ..work(300, 0) });
    let owner = world.owner(job);
    world.power_off(owner);
    let record = world.wait_for(job, JobState::Succeeded);
    assert_eq!(record.attempts.len(), 1);
    assert_ne!(world.owner(job), owner);
    world.end_well();
}

#[test]
fn the_executor_dies_in_the_middle() {
    let mut world = cluster(3);
    let job = world.submit(0, work(3_000, 0));
    let executor = world.wait_for_pod(job);
    world.kill(executor);
    let record = world.wait_for(job, JobState::Succeeded);
    assert_eq!((record.losses(), world.pods(job)), (1, 2));
    assert_ne!(world.ledger.runs_of(job).last().unwrap().node, executor);
    assert!(record.overlaps().iter().all(|overlap| !overlap.certain), "the first died before the second began");
    world.end_well();
}

#[test]
fn what_a_dead_executor_has_told_of_its_pod_is_there_and_counts_until_another_succeeds() {
    let mut world = cluster(3);
    let job = world.submit(0, work(20_000, 0));
    let executor = world.wait_for_pod(job);
    world.wait_until("it is told that its result is safe", |world| world.ledger.safe_results.contains_key(&job));
    world.kill(executor);
    world.wait_until("it is lost", |world| world.merged(job).is_some_and(|record| record.losses() == 1));
    let record = world.merged(job).unwrap();
    let (first, result) = record.result().expect("the result so far");
    assert_eq!((first.claim.number, first.fate.phase), (1, Phase::Lost));
    let tail = first.tails.stdout.expect("the end of its output");
    assert!(tail.as_of.is_some());
    for blob in [result.blob(), tail.blob] {
        assert!(world.up().iter().any(|node| world.nodes[*node].disk.blobs.contains_key(&blob.id)));
    }
    let record = world.wait_for(job, JobState::Succeeded);
    assert_eq!(record.result().map(|(attempt, _)| attempt.claim.number), Some(2));
    world.end_well();
}

#[test]
fn too_many_losses_are_a_failure() {
    let mut world = cluster(3);
    let job = world.submit(0, Spec { lost_limit: 1, ..work(20_000, 0) });
    for _ in 0..2 {
        let executor = world.wait_for_pod(job);
        world.kill(executor);
        world.run_for(Duration::from_millis(200));
        world.start(executor);
    }
    let record = world.wait_for(job, JobState::Failed);
    assert_eq!(record.losses(), 2);
    world.end_well();
}

#[test]
fn the_gateway_dies_and_the_job_goes_on() {
    let mut world = cluster(4);
    let job = world.submit(0, work(1_000, 0));
    let executor = world.wait_for_pod(job);
    if executor != 0 {
        world.kill(0);
    }
    let record = world.wait_for(job, JobState::Succeeded);
    assert_eq!(record.attempts.len(), 1, "nothing of it ran on the gateway");
    world.end_well();
}

#[test]
fn a_paused_owner_returns_and_stands_by() {
    let mut world = cluster(3);
    let job = owned_by(&mut world, 0, work(300, 0));
    world.pause(0);
    world.run_for(SECOND * 8);
    let successor = world.owner(job);
    assert_ne!(successor, 0);
    world.resume(0);
    world.run_for(Duration::from_millis(1));
    assert!(!world.peer(0).unwrap().decides_for(world.peer(0).unwrap().records().partition_of(job)));
    world.end_well();
}

#[test]
fn a_paused_executor_is_superseded_and_ends_its_pod() {
    let mut world = cluster(3);
    let job = world.submit(0, work(20_000, 0));
    let executor = world.wait_for_pod(job);
    world.pause(executor);
    world.wait_until("another attempt runs", |world| world.pods(job) == 2);
    world.run_for(SECOND);
    world.resume(executor);
    let record = world.wait_for(job, JobState::Succeeded);
    assert_eq!(record.overlaps().len(), 1, "two ran at once, and the record says so");
    let phases: Vec<Phase> = record.attempts.values().map(|attempt| attempt.fate.phase).collect();
    assert!(phases.contains(&Phase::Stopped), "{phases:?}");
    world.end_well();
}

#[test]
fn a_node_that_restarts_goes_on_with_what_it_had() {
    let mut world = cluster(3);
    let jobs: Vec<JobId> = (0..10).map(|_| world.submit(0, Spec { delay: Some(SECOND * 3), ..work(200, 0) })).collect();
    world.kill(1);
    world.run_for(Duration::from_millis(300));
    world.start(1);
    for job in jobs {
        world.wait_for(job, JobState::Succeeded);
        assert_eq!(world.pods(job), 1);
    }
    world.end_well();
}

#[test]
fn a_disk_that_fails_to_sync_ends_its_process_and_nothing_acknowledged_is_lost() {
    let mut world = cluster(3);
    let asks: Vec<AskId> = (0..20).map(|_| world.ask_to_submit(0, work(50, 0))).collect();
    world.nodes[1].disk.fails_to_sync = true;
    world.wait_until("its process has ended", |world| world.process(1).is_none());
    for ask in asks {
        world.outcome(ask).expect("others take it");
    }
    world.start(1);
    world.end_well();
}

#[test]
fn all_nodes_restart_at_once() {
    let mut world = cluster(4);
    let jobs: Vec<JobId> = (0..8).map(|at| world.submit(at % 4, work(2_000, 0))).collect();
    for node in 0..4 {
        world.power_off(node);
    }
    world.run_for(SECOND);
    for node in 0..4 {
        world.start(node);
        world.run_for(Duration::from_millis(100));
    }
    for job in jobs {
        world.wait_for(job, JobState::Succeeded);
    }
    world.end_well();
}

#[test]
fn a_node_with_a_full_disk_stands_aside_and_comes_back() {
    let mut world = cluster(4);
    world.nodes[1].disk.full = true;
    world.disturbances.any = true;
    let jobs: Vec<JobId> = (0..20).map(|_| world.submit(0, work(100, 0))).collect();
    let status = |world: &World| world.peer(1).unwrap().membership().me().status;
    world.wait_until("it is read-only", |world| status(world) == Status::ReadOnly);
    for job in jobs {
        world.wait_for(job, JobState::Succeeded);
    }
    world.nodes[1].disk.full = false;
    world.wait_until("it serves", |world| status(world) == Status::Serving);
    world.end_well();
}

#[test]
fn a_cluster_that_was_off_for_a_month_goes_on_with_all_it_had() {
    let mut world = cluster_of(Options { forget_after: SECOND * 60, ..Options::new(1, 4) });
    let jobs: Vec<JobId> =
        (0..20).map(|at| world.submit(at % 4, Spec { delay: Some(SECOND), ..work(900, 0) })).collect();
    world.run_for(SECOND);
    for node in 0..4 {
        world.power_off(node);
    }
    world.run_for(SECOND * 3_600 * 24 * 30);
    // They come one after the other, the last when it would have been forgotten long ago.
    for node in 0..4 {
        world.start(node);
        world.run_for(SECOND * 80);
    }
    for job in jobs {
        world.wait_for(job, JobState::Succeeded);
    }
    world.end_well();
}

#[test]
fn what_is_answered_to_an_earlier_start_acknowledges_nothing_of_the_present_one() {
    for asked_before in 0..8 {
        let mut world = cluster_of(Options { replicas: 2, ..Options::new(1, 2) });
        let spec = || Spec { delay: Some(SECOND * 30), durability: Durability::All, ..work(50, 0) };
        world.kill(0);
        world.start(0);
        world.wait_until("it is back", |world| (0..2).all(|node| world.converged(node)));
        for _ in 0..asked_before {
            world.submit(0, spec());
        }
        world.run_for(SECOND);
        world.pause(1);
        world.ask_to_submit(0, spec());
        world.run_for(SECOND / 5);
        world.kill(0);
        world.start(0);
        let asks: Vec<AskId> = (0..8).map(|_| world.ask_to_submit(0, spec())).collect();
        world.run_for(Duration::from_millis(2_500));
        world.nodes[1].disk.slow_ms = 500.0;
        // It finds what both starts have pushed to it, and answers to the first of them at once.
        world.resume(1);
        for ask in asks {
            world.outcome(ask).expect("it is taken");
        }
        world.end_well();
    }
}

#[test]
fn whoever_listens_hears_all_that_a_node_tells_after_it_was_started_anew() {
    let mut world = cluster_of(Options { replicas: 2, ..Options::new(1, 2) });
    let now = world.local_now(0);
    world.call(0, |peer| peer.set_listening(now, true));
    world.pump(0);
    let ended = |event: &Event| {
        let EventKind::Job { job, state: JobState::Succeeded, .. } = event.kind else { return None };
        Some(job)
    };
    for is_noticed in [false, true, true] {
        let jobs: BTreeSet<JobId> = (0..12).map(|_| world.submit(0, work(50, 0))).collect();
        world.wait_until("it is told of each that it has ended", |world| {
            world.told.iter().filter_map(|(_, event)| ended(event)).collect::<BTreeSet<JobId>>().is_superset(&jobs)
        });
        world.kill(1);
        if is_noticed {
            world.wait_until_missed(1);
        }
        world.start(1);
    }
    world.end_well();
}

#[test]
fn whoever_was_paused_asks_those_too_of_whom_it_hears_while_it_asks_others() {
    let mut world = cluster(3);
    world.kill(2);
    world.wait_until_missed(2);
    world.pause(0);
    world.start(2);
    world.run_for(SECOND * 8);
    world.leave(1);
    world.wait_until("it has left", |world| world.nodes[1].has_left);
    // It finds, one after the other, its own lateness, the farewell of the one and the return of the other.
    world.resume(0);
    world.start(1);
    world.end_well();
}
