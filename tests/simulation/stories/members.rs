//! Nodes join, drain, leave, and are forgotten.

use std::time::Duration;

use flockwork::model::id::JobId;
use flockwork::model::member::{MemberState, Status};
use flockwork::model::request::Code;
use flockwork::model::spec::{Durability, Spec};
use flockwork::protocol::gateway::{Ask, Told};

use super::{PATIENCE, SECOND, cluster, cluster_of};
use crate::pods::work;
use crate::world::{Options, World};

#[test]
fn a_join_under_load_runs_nothing_twice() {
    let mut world = cluster(3);
    world.let_clients_ask(Some(40.0));
    world.run_for(SECOND * 5);
    let newcomer = world.add_machine();
    world.start(newcomer);
    world.run_for(SECOND * 10);
    let snapshot = world.peer(newcomer).unwrap().snapshot(world.local_now(newcomer));
    assert!(snapshot.convergence.acting > 0, "it acts for some partitions");
    let world = world.end_well();
    assert!(world.ledger.runs.iter().any(|run| run.node == newcomer), "it runs some jobs");
    assert!(world.ledger.overlaps.is_empty());
}

#[test]
fn whoever_leaves_hands_over_first() {
    let mut world = cluster(4);
    world.let_clients_ask(Some(60.0));
    world.run_for(SECOND * 5);
    world.leave(1);
    world.wait_until("it has left", |world| world.nodes[1].has_left);
    assert!(world.nodes[1].disk.records.is_empty(), "others have all that it had");
    let world = world.end_well();
    assert!(world.ledger.overlaps.is_empty());
}

#[test]
fn whoever_drains_or_leaves_and_is_cut_off_takes_nothing_new() {
    let mut world = cluster(4);
    world.drain(3, true);
    world.run_for(SECOND * 2);
    let spec = Spec { key: Some("held".into()), delay: Some(SECOND * 40), durability: Durability::One, ..work(50, 0) };
    let forwarded = world.submit(3, spec);
    assert!(!world.nodes[3].disk.records.contains_key(&forwarded), "others take what it is given");
    world.split(&[3]);
    let is_alone = |world: &World| (0..3).all(|node| world.sees(3, node) == Some(MemberState::Down));
    world.wait_until("it is alone", is_alone);
    let is_refused = |world: &mut World| {
        let ask = world.ask_to_submit(3, Spec { durability: Durability::One, ..work(50, 0) });
        let refused = world.outcome(ask).unwrap_err();
        assert!(refused.code == Code::Unavailable && refused.message.contains("draining"), "{refused:?}");
    };
    is_refused(&mut world);
    world.drain(3, false);
    world.heal();
    world.wait_until("it is back", |world| (0..4).all(|node| world.converged(node)));
    for _ in 0..12 {
        world.submit(3, Spec { delay: Some(SECOND * 60), ..work(50, 0) });
    }
    world.split(&[3]);
    world.wait_until("it is alone", is_alone);
    world.leave(3);
    is_refused(&mut world);
    world.end_well();
}

#[test]
fn whoever_is_forgotten_by_hand_is_forgotten_everywhere_and_joins_anew() {
    let mut world = cluster(5);
    let jobs: Vec<JobId> = (0..10).map(|_| world.submit(0, work(50, 0))).collect();
    let refused = world.forget(0, 4).unwrap_err();
    assert!(refused.code == Code::Conflict && refused.hint.is_some_and(|hint| hint.contains("drain")));
    world.power_off(4);
    world.wait_until("it is down", |world| world.sees(0, 4) == Some(MemberState::Down));
    world.kill(3);
    world.forget(0, 4).unwrap();
    assert_eq!(world.forget(0, 4).unwrap_err().code, Code::NotFound);
    world.wait_until("all have heard of it", |world| (0..3).all(|node| world.sees(node, 4).is_none()));
    // Gossip has had its time, and whoever was away remembers the dead.
    world.run_for(SECOND * 200);
    world.start(3);
    world.wait_until("so has who was away", |world| world.sees(3, 4).is_none() && world.converged(3));
    world.wait_until("all are sealed", |world| jobs.iter().all(|job| world.is_sealed(*job)));
    world.start(4);
    world.wait_until("it is a member", |world| (0..4).all(|node| world.sees(node, 4) == Some(MemberState::Alive)));
    world.end_well();
}

#[test]
fn a_member_that_had_left_or_drained_can_be_forgotten_by_hand_too() {
    let mut world = cluster(5);
    world.leave(4);
    world.drain(3, true);
    world.wait_until("it has left", |world| world.nodes[4].has_left);
    world.run_for(SECOND * 5);
    world.power_off(3);
    world.wait_until("both are gone", |world| world.sees(0, 3) == Some(MemberState::Down));
    world.forget(0, 4).unwrap();
    world.forget(0, 3).unwrap();
    let knows = |world: &World, node| world.sees(node, 3).is_some() || world.sees(node, 4).is_some();
    world.wait_until("nobody knows them", |world| !(0..3).any(|node| knows(world, node)));
    world.end_well();
}

#[test]
fn what_a_leaver_ran_while_it_was_cut_off_is_told_when_it_is_back() {
    let mut world = cluster(3);
    let jobs: Vec<JobId> = (0..12).map(|at| world.submit(at % 3, work(12_000, 0))).collect();
    world.split(&[2]);
    let ran_twice = |world: &World| jobs.iter().any(|job| world.pods(*job) > 1);
    world.wait_until("both sides go on", |world| world.ledger.runs.iter().any(|run| run.node == 2) && ran_twice(world));
    world.leave(2);
    world.wait_until("it says goodbye", |world| world.status(2) == Status::Left);
    world.heal();
    world.wait_until("it has left", |world| world.nodes[2].has_left);
    for job in &jobs {
        world.wait_until("it is sealed", |world| world.is_sealed(*job));
    }
    let told =
        |world: &World| -> u64 { world.up().iter().map(|node| world.counter(*node, "overlaps_told_total")).sum() };
    let before = told(&world);
    world.start(2);
    world.wait_until("what was not known is told", |world| told(world) > before);
    world.end_well();
}

#[test]
fn what_depends_on_a_node_is_what_only_it_could_do() {
    let mut world = cluster(3);
    let there = [("place".to_owned(), "n2".to_owned())];
    let stuck = world.submit(0, Spec { require: there.into(), ..work(30_000, 0) });
    let free = world.submit(0, work(30_000, 0));
    world.wait_for_pod(stuck);
    world.wait_for_pod(free);
    let dependents = |world: &mut World, node: usize| {
        let ask = world.ask(0, Ask::Dependents(world.nodes[node].id)).expect("the node is up");
        match world.answer(ask) {
            Ok(Told::Dependents(told)) => told,
            other => panic!("{other:?}"),
        }
    };
    world.run_for(SECOND * 2);
    let told = dependents(&mut world, 2);
    assert_eq!((told.stuck, told.stuck_jobs.as_slice()), (1, [stuck].as_slice()));
    let running: u64 = (0..3).map(|node| dependents(&mut world, node).running).sum();
    assert_eq!((running, told.partitions.iter().count()), (2, 32));
    assert_eq!((told.held, told.thin, told.only_here), (2, 0, 0), "two others have all that it has");
    world.power_off(0);
    world.power_off(1);
    world.wait_until("it is alone", |world| world.sees(2, 0) == Some(MemberState::Down) && world.converged(2));
    let ask = world.ask(2, Ask::Dependents(world.nodes[2].id)).expect("the node is up");
    let Ok(Told::Dependents(told)) = world.answer(ask) else { panic!("it is up") };
    assert_eq!((told.held, told.thin, told.only_here), (2, 2, 2));
    world.end_well();
}

#[test]
fn whoever_comes_later_hears_of_the_dead() {
    let mut world = cluster(4);
    world.power_off(3);
    // By then, gossip does not speak of it any more.
    world.run_for(SECOND * 200);
    let newcomer = world.add_machine();
    world.start(newcomer);
    world.wait_until("the rings are the same", |world| world.up().iter().all(|node| world.converged(*node)));
    let dead = world.nodes[3].id;
    assert!(world.peer(newcomer).expect("it is up").membership().view().contains_key(&dead));
    world.end_well();
}

#[test]
fn whoever_was_cut_off_hears_the_last_words_of_the_dead() {
    let mut world = cluster(4);
    world.split(&[0]);
    world.run_for(SECOND * 10);
    world.drain(3, true);
    world.run_for(SECOND * 5);
    world.power_off(3);
    world.run_for(SECOND * 200);
    world.heal();
    world.wait_until("the rings are the same", |world| world.up().iter().all(|node| world.converged(*node)));
    world.end_well();
}

#[test]
fn a_restart_does_not_make_the_dead_remembered_for_longer() {
    let mut world = cluster_of(Options { forget_after: SECOND * 60, ..Options::new(1, 4) });
    world.power_off(3);
    world.run_for(SECOND * 50);
    world.kill(0);
    world.start(0);
    world.run_for(SECOND * 20);
    let knows = |node: usize| world.peer(node).is_some_and(|p| p.membership().view().contains_key(&world.nodes[3].id));
    assert!(!(0..3).any(knows), "it has been gone for longer than anybody is to be remembered");
    assert!((0..3).all(|node| world.converged(node)));
    world.end_well();
}

#[test]
fn whoever_has_the_only_copies_and_is_cut_off_waits_for_the_others_before_it_leaves() {
    let mut world = cluster(3);
    world.drain(0, true);
    world.drain(2, true);
    world.run_for(SECOND * 5);
    let job = world.submit(1, Spec { delay: Some(PATIENCE), ..work(50, 0) });
    assert_eq!(world.disks_with(job), [1], "whoever drains keeps nothing");
    world.split(&[1]);
    world.wait_until("it is alone", |world| [0, 2].iter().all(|node| world.sees(1, *node) == Some(MemberState::Down)));
    world.leave(1);
    world.run_for(SECOND * 5);
    world.drain(0, false);
    world.heal();
    world.wait_until("it has left", |world| world.process(1).is_none());
    assert!(world.disks_with(job).contains(&0));
    world.end_well();
}

#[test]
fn the_last_who_serves_hands_over_to_one_who_drains() {
    let mut world = cluster(2);
    world.drain(1, true);
    world.run_for(SECOND * 5);
    let job = world.submit(0, Spec { delay: Some(PATIENCE), ..work(50, 0) });
    assert_eq!(world.disks_with(job), [0], "whoever drains keeps nothing");
    world.leave(0);
    world.wait_until("it has left", |world| world.process(0).is_none());
    assert!(world.disks_with(job).contains(&1));
    world.drain(1, false);
    world.end_well();
}

#[test]
fn two_who_leave_at_one_moment_do_not_each_rely_on_the_other() {
    for after_ms in (400..1_400).step_by(100) {
        let mut world = cluster(2);
        let jobs: Vec<JobId> = (0..8).map(|_| world.submit(0, work(50, 0))).collect();
        world.leave(0);
        world.wait_until("it has left", |world| world.process(0).is_none());
        world.drain(1, true);
        world.start(0);
        world.run_for(Duration::from_millis(after_ms));
        world.leave(0);
        world.leave(1);
        world.wait_until("both have left", |world| (0..2).all(|node| world.process(node).is_none()));
        assert!(jobs.iter().all(|job| !world.disks_with(*job).is_empty()));
        world.start(0);
        world.start(1);
        world.end_well();
    }
}
