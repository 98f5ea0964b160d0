//! A job is final when whoever may know more of it has been heard, and what ended does not begin again.

use std::time::Duration;

use flockwork::model::id::JobId;
use flockwork::model::member::Status;
use flockwork::model::record::JobState;
use flockwork::model::spec::Spec;
use flockwork::protocol::gateway::AskId;

use super::{PATIENCE, SECOND, cluster, cluster_of};
use crate::pods::work;
use crate::world::{Options, World};

#[test]
fn an_executor_that_is_away_is_waited_for_before_a_seal() {
    let mut world = cluster(5);
    let there = [("place".to_owned(), "n2".to_owned())];
    let elsewhere = loop {
        let job = world.submit(0, Spec { require: there.clone().into(), ..work(50, 0) });
        let record = world.wait_for(job, JobState::Succeeded);
        if !record.submission.home.contains(&world.nodes[2].id) {
            break job;
        }
    };
    world.power_off(2);
    assert!(!world.is_sealed(elsewhere), "there was no time to ask everybody");
    world.run_for(SECOND * 40);
    assert!(
        !world.is_sealed(elsewhere),
        "cut off, its executor may have been its owner, and have begun another attempt"
    );
    world.start(2);
    world.wait_until("it is sealed", |world| world.is_sealed(elsewhere));
    world.end_well();
}

/// Who was away comes back in reach of n2 alone, which ran the job and has let go of its record.
fn learns_from_n2_that_it_succeeded(mut world: World, away: usize, job: JobId) {
    world.split(&[2, away]);
    world.start(away);
    let state = |world: &World| world.peer(away)?.records().get(job).map(|held| held.state());
    world.wait_until("it knows", |world| state(world) == Some(JobState::Succeeded));
    assert_eq!(world.pods(job), 1);
    world.heal();
    world.end_well();
}

#[test]
fn an_executor_says_again_how_it_ended_where_an_older_copy_has_it_run() {
    let mut world = cluster(5);
    let on_n2 = |ms| Spec { require: [("place".to_owned(), "n2".to_owned())].into(), ..work(ms, 0) };
    let (job, away) = loop {
        let job = world.submit(0, on_n2(4_000));
        assert_eq!(world.wait_for_pod(job), 2);
        world.run_for(SECOND / 10);
        let home = world.merged(job).expect("it runs").submission.home.clone();
        if !home.contains(&world.nodes[2].id) {
            break (job, world.place_of(home[2]).expect("it is one of them"));
        }
        world.cancel(0, job).expect("it is cancelled");
        world.wait_for(job, JobState::Cancelled);
    };
    world.kill(away);
    world.wait_until("it has ended and is handed over", |world| !world.has(2, job));
    let others: Vec<JobId> = (0..4).map(|_| world.submit(2, on_n2(20_000))).collect();
    world.wait_until("there is no room", |world| others.iter().all(|other| world.pods(*other) == 1));
    learns_from_n2_that_it_succeeded(world, away, job);
}

#[test]
fn an_executor_says_again_what_it_ran_where_an_older_copy_knows_of_no_attempt() {
    let mut world = cluster(5);
    let on_n2 = |delay| Spec { require: [("place".to_owned(), "n2".to_owned())].into(), delay, ..work(1_000, 0) };
    let (job, away) = loop {
        let job = world.submit(0, on_n2(Some(SECOND * 3)));
        let home = world.merged(job).expect("it waits").submission.home.clone();
        if !home.contains(&world.nodes[2].id) {
            break (job, world.place_of(home[2]).expect("it is one of them"));
        }
        world.cancel(0, job).expect("it is cancelled");
    };
    world.run_for(SECOND);
    world.kill(away);
    world.wait_for(job, JobState::Succeeded);
    world.wait_until("it is handed over", |world| !world.has(2, job));
    learns_from_n2_that_it_succeeded(world, away, job);
}

#[test]
fn whoever_has_handed_a_record_over_keeps_no_seal_waiting() {
    let mut world = cluster(3);
    let spec = || Spec { delay: Some(SECOND * 15), ..work(50, 0) };
    let jobs: Vec<JobId> = (0..20).map(|_| world.submit(0, spec())).collect();
    for _ in 0..3 {
        let newcomer = world.add_machine();
        world.start(newcomer);
    }
    let has = |world: &World, job: &JobId, node: usize| world.nodes[node].disk.records.contains_key(job);
    world.wait_until("some are handed over", |world| jobs.iter().any(|job| (0..3).any(|node| !has(world, job, node))));
    world.wait_until("all are sealed", |world| jobs.iter().all(|job| world.is_sealed(*job)));
    world.end_well();
}

#[test]
fn whoever_is_forgotten_keeps_no_seal_waiting() {
    let mut world = cluster_of(Options { forget_after: SECOND * 20, ..Options::new(1, 4) });
    let jobs: Vec<JobId> = (0..10).map(|_| world.submit(0, work(50, 0))).collect();
    world.power_off(3);
    world.run_for(SECOND * 10);
    assert!(!jobs.iter().all(|job| world.is_sealed(*job)), "some of them have a copy on the machine that is off");
    world.wait_until("all are sealed", |world| jobs.iter().all(|job| world.is_sealed(*job)));
    world.end_well();
}

#[test]
fn whoever_was_forgotten_comes_back_with_old_copies_and_nothing_runs_again() {
    let minute = SECOND * 60;
    let (forget_after, retention, into_the_hour) = (minute * 10, Duration::ZERO, minute * 40);
    let mut world = cluster_of(Options { forget_after, retention, into_the_hour, ..Options::new(1, 4) });
    let jobs: Vec<JobId> = (0..20).map(|_| world.submit(0, Spec { delay: Some(SECOND * 20), ..work(50, 0) })).collect();
    world.power_off(3);
    let kept = world.nodes[3].disk.records.values().filter(|record| !record.state().is_terminal()).count();
    assert!(kept > 0, "it takes jobs along that have yet to run");
    world.run_for(minute * 22);
    assert!((0..3).all(|node| world.sees(node, 3).is_none()), "the others have forgotten it");
    let is_sealed = |world: &World, job: &JobId| world.seals.contains_key(job);
    assert!(jobs.iter().all(|job| is_sealed(&world, job)), "and have sealed what it took along");
    let hour = world.local_now(0).wall.hour();
    let gone = jobs.iter().filter(|job| world.merged(**job).is_none()).count();
    assert!(gone > 0 && gone < jobs.len(), "what it may not have has expired, {gone} of them");
    world.start(3);
    world.wait_until("it is a member", |world| {
        (0..4).all(|node| world.converged(node) && world.sees(node, 3).is_some())
    });
    world.run_for(minute);
    assert!(world.local_now(0).wall.hour() == hour && jobs.iter().all(|job| world.pods(*job) == 1));
    // In the end all of it is gone.
    for node in 0..4 {
        world.power_off(node);
    }
    world.run_for(minute * 60 * 6);
    for node in 0..4 {
        world.start(node);
    }
    world.run_for(minute);
    assert!(jobs.iter().all(|job| world.merged(*job).is_none()));
    world.end_well();
}

/// A job that waits, the two that should hold it, the first of which was killed, and one that was given it by the second
/// and cut off before it could say so.
fn cut_off_with_a_copy(world: &mut World) -> (JobId, Vec<usize>, usize) {
    let nowhere = [("place".to_owned(), "nowhere".to_owned())];
    let job = world.submit(0, Spec { require: nowhere.into(), ..work(50, 0) });
    let keepers = world.disks_with(job);
    let stand_in = |world: &World| {
        let has_it = |node: &usize| world.peer(*node).is_some_and(|peer| peer.records().get(job).is_some());
        world.others(&keepers).into_iter().find(has_it)
    };
    world.kill(keepers[0]);
    for _ in 0..PATIENCE.as_millis() {
        if stand_in(world).is_some() {
            break;
        }
        world.run_for(SECOND / 1_000);
    }
    let stand_in = stand_in(world).expect("somebody stands in");
    world.split(&[stand_in]);
    (job, keepers, stand_in)
}

/// The job is cancelled, and its end is not final as long as somebody is cut off who has a copy.
fn is_sealed_only_when_healed(mut world: World, job: JobId, keepers: &[usize]) {
    world.cancel(keepers[1], job).unwrap();
    world.run_for(SECOND * 30);
    assert!(keepers.iter().all(|node| !world.peer(*node).unwrap().records().get(job).unwrap().is_final()));
    world.heal();
    world.wait_until("it is sealed", |world| world.is_sealed(job));
    world.end_well();
}

#[test]
fn nothing_is_sealed_without_one_that_was_cut_off_before_it_could_say_that_it_has_a_copy() {
    let mut world = cluster_of(Options { replicas: 2, repair_after: Duration::ZERO, ..Options::new(1, 4) });
    let (job, keepers, _) = cut_off_with_a_copy(&mut world);
    world.start(keepers[0]);
    is_sealed_only_when_healed(world, job, &keepers);
}

#[test]
fn whoever_gave_a_copy_to_one_that_was_cut_off_remembers_it_over_a_restart() {
    let mut world = cluster_of(Options { replicas: 2, repair_after: Duration::ZERO, ..Options::new(1, 4) });
    let (job, keepers, stand_in) = cut_off_with_a_copy(&mut world);
    world.start(keepers[0]);
    world.run_for(SECOND * 3);
    let others = world.others(&[stand_in]);
    others.iter().for_each(|node| world.kill(*node));
    others.iter().for_each(|node| world.start(*node));
    world.wait_until("they serve", |world| others.iter().all(|node| world.status(*node) == Status::Serving));
    is_sealed_only_when_healed(world, job, &keepers);
}

#[test]
fn what_somebody_heard_of_the_dead_before_it_was_cut_off_is_no_news_to_those_that_were_started_anew() {
    let mut world = cluster_of(Options { replicas: 2, repair_after: Duration::ZERO, ..Options::new(1, 4) });
    let job = world.submit(0, Spec { delay: Some(PATIENCE), ..work(50, 0) });
    let keepers = world.disks_with(job);
    let placement = world.peer(0).expect("it is up").placement();
    let stand_in =
        placement.next(placement.partition_of(job)).and_then(|id| world.place_of(id)).expect("there are four");
    let away = *world.others(&[keepers[0], keepers[1], stand_in]).first().expect("there are four");
    world.split(&[away]);
    world.kill(keepers[0]);
    world.wait_until("somebody stands in", |world| world.disks_with(job).contains(&stand_in));
    world.run_for(SECOND * 6);
    for node in [stand_in, keepers[1]] {
        world.kill(node);
    }
    for node in &keepers {
        world.start(*node);
    }
    world.wait_until("they serve", |world| keepers.iter().all(|node| world.status(*node) == Status::Serving));
    world.heal();
    world.wait_until("it is back", |world| world.converged(away));
    world.cancel(keepers[1], job).unwrap();
    world.run_for(SECOND * 30);
    assert!(!world.seals.contains_key(&job), "the dead has a copy");
    world.start(stand_in);
    world.wait_until("it is sealed", |world| world.is_sealed(job));
    world.end_well();
}

#[test]
fn nothing_is_sealed_without_one_whose_full_disk_still_has_what_it_let_go_of() {
    let mut world = cluster_of(Options { replicas: 2, repair_after: Duration::ZERO, ..Options::new(1, 4) });
    let job = world.submit(0, Spec { delay: Some(PATIENCE), ..work(50, 0) });
    let keepers = world.disks_with(job);
    world.kill(keepers[0]);
    world.wait_until("somebody stands in", |world| world.disks_with(job).len() == 3);
    let stand_in = *world.disks_with(job).iter().find(|node| !keepers.contains(node)).expect("it was just there");
    world.nodes[stand_in].disk.full = true;
    world.disturbances.any = true;
    world.start(keepers[0]);
    world.wait_until("it lets go", |world| !world.has(stand_in, job));
    assert!(world.disks_with(job).contains(&stand_in));
    world.run_for(SECOND * 3);
    world.kill(stand_in);
    world.cancel(keepers[1], job).unwrap();
    world.run_for(SECOND * 30);
    assert!(!world.seals.contains_key(&job));
    world.nodes[stand_in].disk.mend();
    world.start(stand_in);
    world.wait_until("it is sealed", |world| world.is_sealed(job));
    world.end_well();
}

/// A job that n0 was just asked for and whose home list writes it down this instant: n0, which is not of it, has not heard
/// that yet. Nor would n0 be the next to be asked.
fn just_written_down(world: &mut World, spec: &Spec) -> (AskId, JobId, Vec<usize>) {
    for _ in 0..50 {
        let known = world.jobs_held();
        let ask = world.ask_to_submit(0, spec.clone());
        let job = world.soon("it is written down", |world| world.jobs_held().difference(&known).next().copied());
        let placement = world.peer(0).expect("it is up").placement();
        let partition = placement.partition_of(job);
        let home: Vec<usize> = placement.home(partition).iter().filter_map(|id| world.place_of(*id)).collect();
        if !home.contains(&0) && placement.next(partition) != Some(world.nodes[0].id) {
            return (ask, job, home);
        }
        world.run_for(SECOND);
    }
    panic!("n0 is of every list");
}

#[test]
fn what_both_sides_of_a_split_wrote_down_for_one_submit_is_not_sealed_on_one_side() {
    let mut world = cluster_of(Options { replicas: 2, ..Options::new(1, 6) });
    let (_, job, home) = just_written_down(&mut world, &work(10, 0));
    world.split(&home);
    world.run_for(SECOND * 30);
    assert_eq!(world.pods(job), 2, "the gateway had it written down on its side too");
    assert!(!world.seals.contains_key(&job));
    world.heal();
    world.wait_until("it is sealed", |world| world.is_sealed(job));
    world.end_well();
}

#[test]
fn nothing_is_sealed_without_one_of_whom_only_the_gateway_knows_that_it_was_asked_to_write_it_down() {
    let mut world = cluster_of(Options { replicas: 2, ..Options::new(2, 6) });
    let (_, job, home) = just_written_down(&mut world, &work(10, 0));
    world.split(&home);
    let others = world.others(&home);
    let has_it = |world: &World| others.iter().copied().find(|node| world.has(*node, job));
    let third = world.soon("it is written down once more", has_it);
    world.heal();
    world.split(&[third]);
    world.run_for(SECOND * 30);
    let peer = world.peer(0).expect("it is up");
    let partition = peer.placement().partition_of(job);
    let said = &peer.membership().view()[&world.nodes[third].id].facts.held;
    assert!(!said.contains(partition), "it was cut off before it could say that it has a copy");
    assert!(!world.seals.contains_key(&job));
    world.heal();
    world.wait_until("it is sealed", |world| world.is_sealed(job));
    world.end_well();
}

#[test]
fn nothing_is_sealed_before_its_submit_is_over() {
    let mut world = cluster_of(Options { replicas: 2, ..Options::new(1, 6) });
    for _ in 0..10 {
        let (ask, job, _) = just_written_down(&mut world, &work(10, 0));
        world.split(&[0]);
        world.run_for(SECOND / 100);
        world.heal();
        world.soon("it is sealed", |world| world.seals.get(&job).map(drop));
        assert!(world.clients.answers.contains_key(&ask), "the gateway may yet ask others to write it down");
    }
    world.end_well();
}

#[test]
fn a_gateway_that_was_forgotten_comes_back_with_what_it_had_written_down_anew_and_nothing_runs_again() {
    let minute = SECOND * 60;
    let (forget_after, retention, into_the_hour) = (minute * 10, Duration::ZERO, minute * 40);
    let options = Options { replicas: 2, forget_after, retention, into_the_hour, ..Options::new(1, 6) };
    let mut world = cluster_of(options);
    let (_, job, home) = just_written_down(&mut world, &Spec { delay: Some(SECOND * 30), ..work(10, 0) });
    let another = world.others(&home).into_iter().find(|node| *node != 0).expect("there are six");
    world.split(&[0, another]);
    world.run_for(SECOND * 15);
    assert!(world.has(0, job) && world.has(another, job), "they wrote the job down on their side");
    world.power_off(0);
    world.power_off(another);
    world.heal();
    world.run_for(minute * 22);
    assert!(world.sees(home[0], 0).is_none() && world.seals.contains_key(&job), "the others went on without them");
    world.start(0);
    world.start(another);
    let is_back = |world: &World| (0..6).all(|node| world.converged(node) && world.sees(node, 0).is_some());
    world.wait_until("they are members", is_back);
    world.run_for(minute);
    assert_eq!(world.pods(job), 1);
    world.end_well();
}
