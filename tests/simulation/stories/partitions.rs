//! Some nodes do not reach the others: both sides go on, and agree when they meet.

use flockwork::model::member::MemberState;
use flockwork::model::record::JobState;
use flockwork::model::spec::{Durability, OnPartition, Spec};

use super::{SECOND, cluster, cluster_of};
use crate::pods::work;
use crate::world::{Options, World};

#[test]
fn one_key_given_to_both_sides_of_a_split_is_one_job() {
    let mut world = cluster(4);
    world.split(&[0, 1]);
    world.run_for(SECOND * 6);
    let spec = Spec { key: Some("both sides".into()), ..work(100, 0) };
    let (here, there) = (world.submit(0, spec.clone()), world.submit(2, spec));
    assert_eq!(here, there);
    world.run_for(SECOND * 2);
    world.heal();
    world.end_well();
}

#[test]
fn a_minority_that_is_cut_off_comes_home() {
    let mut world = cluster(5);
    world.let_clients_ask(Some(100.0));
    world.run_for(SECOND * 2);
    world.split(&[0, 3]);
    world.run_for(SECOND * 20);
    world.heal();
    world.end_well();
}

#[test]
fn nobody_says_that_all_agree_while_the_sides_of_a_split_have_yet_to_be_compared() {
    let mut world = cluster(2);
    world.split(&[0]);
    let jobs = [0, 1].map(|node| world.submit(node, work(10, 0)));
    world.wait_until("each side is at rest", |world| (0..2).all(|node| world.converged(node)));
    world.heal();
    let agree = |world: &World| jobs.iter().all(|job| world.disks_with(*job) == [0, 1]);
    world.soon("they agree", |world| {
        let see_each_other = (0..2).all(|node| world.sees(node, 1 - node) == Some(MemberState::Alive));
        let say_so = (0..2).all(|node| world.converged(node));
        assert!(!see_each_other || agree(world) || !say_so, "they are being compared");
        agree(world).then_some(())
    });
    world.end_well();
}

#[test]
fn a_minority_does_not_forget_the_majority_however_long_it_is_cut_off() {
    let mut world = cluster_of(Options { forget_after: SECOND * 20, ..Options::new(1, 5) });
    world.split(&[0, 1]);
    world.run_for(SECOND * 90);
    assert!((2..5).all(|node| world.sees(node, 0).is_none()), "the majority has forgotten the others");
    assert!((2..5).all(|other| world.sees(0, other) == Some(MemberState::Down)), "the minority remembers");
    let careful = Spec { on_partition: OnPartition::Pause, ..work(100, 0) };
    let (here, there) = (world.submit(0, careful.clone()), world.submit(2, careful));
    world.wait_for(there, JobState::Succeeded);
    world.run_for(SECOND * 20);
    assert_eq!(world.pods(here), 0, "it waits for a majority");
    world.heal();
    world.wait_for(here, JobState::Succeeded);
    world.end_well();
}

#[test]
fn what_only_an_absent_node_was_given_is_not_lost_when_it_was_forgotten() {
    let mut world = cluster_of(Options { forget_after: SECOND * 30, ..Options::new(1, 4) });
    world.split(&[3]);
    world.run_for(SECOND * 10);
    let spec = Spec { delay: Some(SECOND * 20), durability: Durability::One, ..work(50, 0) };
    let job = world.submit(3, spec);
    world.power_off(3);
    world.heal();
    world.run_for(SECOND * 90);
    assert!((0..3).all(|node| world.sees(node, 3).is_none()), "the others have forgotten it");
    world.start(3);
    world.wait_for(job, JobState::Succeeded);
    assert_eq!(world.pods(job), 1);
    world.end_well();
}

#[test]
fn a_cut_in_one_direction_condemns_nobody() {
    let mut world = cluster(4);
    world.cut(0, 1);
    world.run_for(SECOND * 20);
    let sees_all = |node| {
        let peer = world.peer(node).expect("it is up");
        peer.membership().view().values().all(|member| member.is_live())
    };
    assert!((0..4).all(sees_all), "others answer for either");
    world.end_well();
}
