//! Copies are where they belong: reads repair them, changes of the ring move them, absent nodes are stood in for.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use flockwork::model::id::{Actor, Dot, Generation, JobId, JobIdPrefix};
use flockwork::model::member::Status;
use flockwork::model::record::{JobState, Stop, StopKind, Version};
use flockwork::model::spec::{Durability, Spec};
use flockwork::model::wire::Message;
use flockwork::protocol::gateway::Ask;

use super::{PATIENCE, SECOND, cluster, cluster_of};
use crate::pods::work;
use crate::world::{Options, World};

#[test]
fn whoever_reads_copies_that_differ_has_them_merged_at_once() {
    let mut world = cluster(5);
    let job = world.submit(0, Spec { delay: Some(PATIENCE), ..work(50, 0) });
    world.run_for(SECOND * 2);
    let owner = world.owner(job);
    let holders = world.disks_with(job);
    let replica = holders.iter().copied().find(|node| *node != owner).expect("there are three");
    let reader = world.others(&holders)[0];
    let versions = |world: &World| {
        let held = holders.iter().filter_map(|node| Some(world.peer(*node)?.records().get(job)?.version));
        held.collect::<BTreeSet<Version>>().len()
    };
    for look in [false, true] {
        // One replica alone hears of something, and nobody spreads it.
        let mut record = world.merged(job).expect("somebody holds it");
        let actor = Actor { node: world.nodes[reader].id, generation: Generation(u64::MAX) };
        let (kind, dot) =
            (if look { StopKind::Cancelled } else { StopKind::TimedOut }, Dot { actor, counter: 1 + u64::from(look) });
        let at = world.local_now(owner).wall;
        record.request_stop(Stop { kind, dot, at, reason: "heard by one alone".into() });
        let (now, from) = (world.local_now(replica), world.nodes[reader].id);
        let push = Message::Push {
            seq: 1,
            records: vec![Arc::new(record)],
            blobs: Vec::new(),
            lacking: Vec::new(),
            known_for: Vec::new(),
        };
        world.call(replica, |peer| peer.handle_message(now, from, push));
        world.pump(replica);
        assert_eq!(versions(&world), 2);
        if look {
            let ask = world.ask(reader, Ask::Copies(JobIdPrefix::from(job))).expect("the node is up");
            world.answer(ask).expect("it is told");
        }
        world.run_for(Duration::from_millis(50));
        assert_eq!(versions(&world), if look { 1 } else { 2 });
        world.wait_until("all have compared", |world| versions(world) == 1);
    }
    world.end_well();
}

#[test]
fn what_moves_when_the_ring_changes_is_told_until_all_has_moved() {
    let mut world = cluster(4);
    for _ in 0..60 {
        world.submit(0, Spec { delay: Some(PATIENCE), ..work(50, 0) });
    }
    let convergence = |world: &World, node| world.peer(node).unwrap().snapshot(world.local_now(node)).convergence;
    world.wait_until("nothing moves", |world| (0..4).all(|node| convergence(world, node).moving.is_none()));
    world.drain(3, true);
    world.wait_until("it begins", |world| convergence(world, 3).moving.is_some_and(|moving| moving.records > 0));
    let all = convergence(&world, 3).moving.unwrap().records;
    assert!(all >= 20, "about three quarters of the records have a copy there: {all}");
    world.wait_until("all has moved", |world| (0..4).all(|node| convergence(world, node).moving.is_none()));
    assert!(world.nodes[3].disk.records.is_empty());
    world.end_well();
}

/// Jobs that wait for long, on the disks of those who should have them.
fn waiting_jobs(world: &mut World, count: usize) -> BTreeSet<JobId> {
    let spec = || Spec { delay: Some(PATIENCE * 60), durability: Durability::All, ..work(50, 0) };
    let jobs = (0..count).map(|at| world.submit(at % world.nodes.len(), spec())).collect();
    world.wait_until("nothing is on its way", |world| world.up().iter().all(|node| world.converged(*node)));
    jobs
}

/// How many copies there are on the disks of all nodes but `absent`.
fn copies_but_for(world: &World, absent: &[usize]) -> usize {
    (0..world.nodes.len()).filter(|node| !absent.contains(node)).map(|node| world.nodes[node].disk.records.len()).sum()
}

fn cancel_all(world: &mut World, jobs: &BTreeSet<JobId>) {
    for job in jobs {
        world.cancel(0, *job).expect("it is cancelled");
    }
}

#[test]
fn a_restart_moves_nothing() {
    let mut world = cluster(5);
    let jobs = waiting_jobs(&mut world, 60);
    let copies = copies_but_for(&world, &[3]);
    for is_noticed in [false, true] {
        world.kill(3);
        if is_noticed {
            world.wait_until_missed(3);
            world.run_for(SECOND * 5);
            assert_eq!(copies_but_for(&world, &[3]), copies, "it is waited for");
        }
        world.start(3);
        world.wait_until("it serves", |world| world.status(3) == Status::Serving);
        world.wait_until("all is well again", |world| world.up().iter().all(|node| world.converged(*node)));
        assert_eq!(copies_but_for(&world, &[3]), copies);
    }
    let let_go: u64 = world.up().iter().map(|node| world.counter(*node, "strays_handed_over_total")).sum();
    assert_eq!(let_go, 0);
    cancel_all(&mut world, &jobs);
    world.end_well();
}

#[test]
fn what_is_written_while_a_node_is_away_is_on_as_many_disks_as_ever() {
    let mut world = cluster(5);
    world.power_off(3);
    world.wait_until_missed(3);
    for at in 0..20 {
        let ask = world.ask_to_submit(at % 3, Spec { durability: Durability::All, ..work(50, 0) });
        assert_eq!(world.outcome(ask).unwrap().receipt.stored, 3);
    }
    world.end_well();
}

#[test]
fn whoever_stays_away_is_replaced_in_the_end() {
    let mut world = cluster(5);
    let jobs = waiting_jobs(&mut world, 60);
    world.power_off(3);
    world.wait_until_missed(3);
    assert!(copies_but_for(&world, &[3]) < 3 * jobs.len());
    let up = world.others(&[3]);
    assert!(up.iter().all(|node| !world.converged(*node)), "that copies are short is told");
    world.wait_until("all is well again", |world| up.iter().all(|node| world.converged(*node)));
    assert_eq!(copies_but_for(&world, &[3]), 3 * jobs.len());
    cancel_all(&mut world, &jobs);
    world.end_well();
}

#[test]
fn where_two_of_three_are_away_copies_are_made_at_once() {
    let mut world = cluster_of(Options { repair_after: PATIENCE * 60, ..Options::new(1, 5) });
    let jobs = waiting_jobs(&mut world, 60);
    let have = |world: &World, job: &JobId, absent: &[usize]| {
        world.disks_with(*job).into_iter().filter(|node| !absent.contains(node)).count()
    };
    let thin: Vec<JobId> = jobs.iter().copied().filter(|job| have(&world, job, &[3, 4]) == 1).collect();
    assert!(thin.len() > 5, "some have two copies there: {}", thin.len());
    world.power_off(3);
    world.power_off(4);
    world.wait_until("these have three copies", |world| thin.iter().all(|job| have(world, job, &[3, 4]) == 3));
    let others = jobs.iter().filter(|job| !thin.contains(job) && have(&world, job, &[3, 4]) == 2).count();
    assert!(others > 5, "the others are waited with: {others}");
    cancel_all(&mut world, &jobs);
    world.end_well();
}

#[test]
fn whoever_decides_no_longer_for_a_job_has_it_in_its_queue_no_longer() {
    let mut world = cluster(3);
    let nowhere = || Spec { require: [("place".to_owned(), "nowhere".to_owned())].into(), ..work(50, 0) };
    let jobs: BTreeSet<JobId> = (0..40).map(|at| world.submit(at % 3, nowhere())).collect();
    let queued = |world: &World| -> Vec<u64> {
        let waiting = |node: usize| world.peer(node).map(|peer| peer.snapshot(world.local_now(node)).jobs.waiting);
        (0..world.nodes.len()).filter_map(waiting).collect()
    };
    world.wait_until("each is in one queue", |world| queued(world).iter().sum::<u64>() == 40);
    let newcomer = world.add_machine();
    world.start(newcomer);
    world.wait_until("it decides for some", |world| queued(world).last().is_some_and(|waiting| *waiting > 0));
    world.wait_until("each is in one queue again", |world| queued(world).iter().sum::<u64>() == 40);
    world.pause(0);
    world.run_for(SECOND * 8);
    assert_eq!(queued(&world)[1..].iter().sum::<u64>(), 40, "the others have taken over");
    world.resume(0);
    for _ in 0..300 {
        world.run_for(SECOND / 100);
        for node in 0..4 {
            let peer = world.peer(node).unwrap();
            let decided = jobs.iter().filter(|job| peer.decides_for(peer.records().partition_of(**job))).count();
            assert!(queued(&world)[node] <= decided as u64, "n{node} decides for {decided} of {:?}", queued(&world));
        }
    }
    cancel_all(&mut world, &jobs);
    world.end_well();
}

/// The node's disk is full, and it notices: what is submitted through `via` it is to write down.
fn fill_disk(world: &mut World, node: usize, via: usize) {
    world.nodes[node].disk.full = true;
    world.disturbances.any = true;
    for _ in 0..5 {
        world.submit(via, work(50, 0));
    }
    world.wait_until("it is read-only", |world| world.status(node) == Status::ReadOnly);
}

#[test]
fn a_node_with_a_full_disk_keeps_what_too_few_others_have() {
    // With two nodes nobody else can have a copy. With four a stand-in is not given what was written before.
    for nodes in [2, 4] {
        let mut world = cluster(nodes);
        let job = world.submit(0, Spec { delay: Some(SECOND * 30), ..work(50, 0) });
        let mut others = world.disks_with(job);
        let full = others.pop().expect("it is acknowledged");
        fill_disk(&mut world, full, others[0]);
        world.run_for(SECOND * 5);
        others.iter().for_each(|node| world.power_off(*node));
        world.nodes[full].disk.mend();
        world.wait_for(job, JobState::Succeeded);
        world.end_well();
    }
}

#[test]
fn whoever_ran_a_job_and_drained_meanwhile_is_not_taken_to_have_its_record_still() {
    let mut world = cluster_of(Options { repair_after: SECOND, ..Options::new(1, 4) });
    let job = world.submit(0, work(20_000, 0));
    let runner = world.wait_for_pod(job);
    let full = *world.disks_with(job).iter().find(|node| **node != runner).expect("there are three");
    fill_disk(&mut world, full, runner);
    world.drain(runner, true);
    world.wait_until("it has ended, and the record is handed over", |world| !world.has(runner, job));
    assert!(world.has(full, job));
    world.drain(runner, false);
    world.run_for(SECOND);
    world.nodes[full].disk.mend();
    world.end_well();
}
