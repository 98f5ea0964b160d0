//! What becomes of a job: submits and their keys, retries, cancels, limits and waits.

use std::time::Duration;

use flockwork::model::id::JobId;
use flockwork::model::member::Status;
use flockwork::model::record::{JobState, StopKind};
use flockwork::model::request::{Code, Draft, Submitted};
use flockwork::model::spec::{Durability, Spec};
use flockwork::protocol::gateway::{Ask, AskId};

use super::{SECOND, cluster, cluster_of};
use crate::pods::work;
use crate::world::Options;

#[test]
fn a_job_given_to_any_node_runs_once() {
    let mut world = cluster(3);
    let jobs: Vec<JobId> = (0..12).map(|at| world.submit(at % 3, work(50, 0))).collect();
    for job in jobs {
        world.wait_for(job, JobState::Succeeded);
        assert_eq!(world.pods(job), 1);
    }
    world.end_well();
}

#[test]
fn an_acknowledgement_rests_on_the_copies_that_were_asked_for() {
    let mut world = cluster(4);
    for (durability, copies) in [(Durability::One, 1), (Durability::Majority, 2), (Durability::All, 3)] {
        let ask = world.ask_to_submit(0, Spec { durability, ..work(50, 0) });
        let receipt = world.outcome(ask).unwrap().receipt;
        assert_eq!(receipt.wanted, copies);
        assert!(receipt.stored >= copies, "{receipt:?}");
    }
    world.end_well();
}

/// A job that is to begin after `delay`, and to have ended soon after.
fn timed(delay: Duration) -> Spec {
    Spec { delay: Some(delay), total_timeout: Some(delay + SECOND * 60), ..work(50, 0) }
}

#[test]
fn a_delay_does_not_begin_anew_where_a_job_moves() {
    let mut world = cluster_of(Options { replicas: 1, ..Options::new(1, 3) });
    let job = world.submit(0, timed(SECOND * 60));
    let submitted = world.now;
    for _ in 0..2 {
        world.run_for(SECOND * 10);
        let owner = world.owner(job);
        world.leave(owner);
        world.wait_until("it has left", |world| world.process(owner).is_none());
    }
    assert_eq!(world.pods(job), 0);
    world.run_for((submitted + SECOND * 62).saturating_sub(world.now));
    assert_eq!(world.state(job), Some(JobState::Succeeded));
    world.end_well();
}

#[test]
fn clocks_that_are_hours_apart_make_no_wait_shorter_or_longer() {
    let mut world = cluster(3);
    for (node, hours) in [(0, -4), (1, 0), (2, 4)] {
        world.nodes[node].skew_ms = hours * 3_600_000;
    }
    let jobs: Vec<JobId> = (0..12).map(|at| world.submit(at % 3, timed(SECOND * 60))).collect();
    let submitted = world.now;
    world.run_for(SECOND * 10);
    (0..3).for_each(|node| world.kill(node));
    world.run_for(SECOND);
    (0..3).for_each(|node| world.start(node));
    world.run_for((submitted + SECOND * 55).saturating_sub(world.now));
    assert!(jobs.iter().all(|job| world.pods(*job) == 0), "no delay is over");
    world.run_for(SECOND * 10);
    assert!(jobs.iter().all(|job| world.state(*job) == Some(JobState::Succeeded)));
    world.end_well();
}

#[test]
fn one_key_given_to_three_nodes_at_once_is_one_job() {
    let mut world = cluster(3);
    let spec = Spec { key: Some("the same".into()), ..work(100, 0) };
    let asks: Vec<AskId> = (0..3).map(|node| world.ask_to_submit(node, spec.clone())).collect();
    let jobs: Vec<Submitted> = asks.into_iter().map(|ask| world.outcome(ask).unwrap()).collect();
    assert!(jobs.iter().all(|job| job.id == jobs[0].id));
    assert_eq!(jobs.iter().filter(|job| !job.existed).count(), 1);
    world.wait_for(jobs[0].id, JobState::Succeeded);
    assert_eq!(world.pods(jobs[0].id), 1);
    world.end_well();
}

#[test]
fn a_key_for_another_spec_is_a_conflict() {
    let mut world = cluster(3);
    let spec = Spec { key: Some("taken".into()), ..work(100, 0) };
    world.submit(0, spec.clone());
    world.clients.keys.insert("taken".into(), crate::clients::Keyed { spec: spec.clone(), job: None, misused: true });
    let ask = world.ask_to_submit(1, Spec { retries: 7, ..spec });
    assert_eq!(world.outcome(ask).unwrap_err().code, Code::Conflict);
    world.end_well();
}

#[test]
fn failures_are_tried_again_after_a_growing_wait() {
    let mut world = cluster(3);
    let job = world.submit(0, Spec { retries: 3, ..work(50, 3) });
    let record = world.wait_for(job, JobState::Succeeded);
    assert_eq!(record.failures(), 3);
    let starts: Vec<Duration> = world.ledger.runs_of(job).filter_map(|run| run.started).collect();
    let waits: Vec<f64> = starts.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
    assert!(
        (0.75..1.6).contains(&waits[0]) && (1.5..2.6).contains(&waits[1]) && (3.0..4.6).contains(&waits[2]),
        "{waits:?}"
    );
    world.end_well();
}

#[test]
fn used_up_retries_and_hopeless_exits_are_failures() {
    let mut world = cluster(3);
    let used_up = world.submit(0, Spec { retries: 1, ..work(50, 9) });
    let hopeless = world.submit(0, Spec { retries: 9, no_retry_on: [1].into(), ..work(50, 9) });
    world.wait_for(used_up, JobState::Failed);
    world.wait_for(hopeless, JobState::Failed);
    assert_eq!((world.pods(used_up), world.pods(hopeless)), (2, 1));
    world.end_well();
}

#[test]
fn a_running_job_is_cancelled() {
    let mut world = cluster(3);
    let job = world.submit(0, work(50_000, 0));
    world.wait_for_pod(job);
    world.cancel(1, job).unwrap();
    world.wait_for(job, JobState::Cancelled);
    assert!(world.ledger.runs_of(job).all(|run| run.ended.is_some()));
    world.end_well();
}

#[test]
fn a_pending_job_is_cancelled_and_never_runs() {
    let mut world = cluster(3);
    let job = world.submit(0, Spec { delay: Some(SECOND * 5), ..work(50, 0) });
    world.cancel(2, job).unwrap();
    world.wait_for(job, JobState::Cancelled);
    world.run_for(SECOND * 8);
    assert_eq!(world.pods(job), 0);
    world.end_well();
}

#[test]
fn what_is_cancelled_while_it_waits_for_the_disk_to_begin_does_not_begin() {
    let mut world = cluster(3);
    world.nodes.iter_mut().for_each(|node| node.disk.slow_ms = 1_000.0);
    for after_ms in (0..1_000).step_by(50) {
        let job = world.submit(0, work(60_000, 0));
        world.soon("it is claimed", |world| (world.state(job) == Some(JobState::Running)).then_some(()));
        world.run_for(Duration::from_millis(after_ms));
        world.cancel(0, job).unwrap();
        world.run_for(SECOND * 2);
        assert!(world.ledger.runs_of(job).all(|run| run.ended.is_some()), "cancelled {after_ms} ms after its claim");
    }
    world.end_well();
}

#[test]
fn time_limits_end_what_takes_too_long() {
    let mut world = cluster(3);
    let attempt = world.submit(0, Spec { timeout: Some(SECOND), ..work(9_000, 0) });
    let total = world.submit(0, Spec { total_timeout: Some(SECOND * 2), ..work(9_000, 0) });
    let nowhere = [("place".to_owned(), "the moon".to_owned())].into();
    let queue = world.submit(0, Spec { queue_timeout: Some(SECOND), require: nowhere, ..work(50, 0) });
    for (job, stop) in [(attempt, None), (total, Some(StopKind::TimedOut)), (queue, Some(StopKind::TimedOut))] {
        let record = world.wait_for(job, JobState::Failed);
        assert_eq!(record.stop.map(|stop| stop.kind), stop);
    }
    assert!(world.ledger.runs_of(total).all(|run| run.ended.is_some()));
    world.end_well();
}

#[test]
fn a_job_runs_only_where_its_labels_say() {
    let mut world = cluster(4);
    let there = [("place".to_owned(), "n2".to_owned())];
    let job = world.submit(0, Spec { require: there.into(), ..work(50, 0) });
    world.wait_for(job, JobState::Succeeded);
    assert!(world.ledger.runs_of(job).all(|run| run.node == 2));
    world.end_well();
}

#[test]
fn more_jobs_than_room_wait_their_turn() {
    let mut world = cluster(2);
    let jobs: Vec<JobId> = (0..40).map(|_| world.submit(0, work(300, 0))).collect();
    for job in jobs {
        world.wait_for(job, JobState::Succeeded);
        assert_eq!(world.pods(job), 1);
    }
    assert!(world.ledger.runs.iter().any(|run| run.node == 0) && world.ledger.runs.iter().any(|run| run.node == 1));
    world.end_well();
}

#[test]
fn one_node_alone_is_a_cluster() {
    let mut world = cluster_of(Options { replicas: 1, ..Options::new(1, 1) });
    let done = world.submit(0, work(100, 0));
    world.wait_for(done, JobState::Succeeded);
    let cut_short = world.submit(0, work(2_000, 0));
    world.wait_for_pod(cut_short);
    world.kill(0);
    world.run_for(SECOND);
    world.start(0);
    let record = world.wait_for(cut_short, JobState::Succeeded);
    assert_eq!((record.losses(), record.overlaps().len()), (1, 0));
    world.end_well();
}

#[test]
fn a_node_that_comes_to_own_more_jobs_than_it_looks_at_in_one_go_looks_at_all_of_them_at_once() {
    const JOBS: usize = 2_500;
    let mut world = cluster_of(Options { slots: 64, ..Options::new(1, 1) });
    let draft = Draft { spec: Spec { delay: Some(SECOND * 5), ..work(1_000, 0) }, retry_of: None };
    let ask = world.ask(0, Ask::Submit(vec![draft; JOBS])).expect("the node is up");
    world.answer(ask).expect("they are acknowledged");
    world.kill(0);
    world.run_for(SECOND * 10);
    world.start(0);
    world.soon("it serves", |world| (world.status(0) == Status::Serving).then_some(()));
    world.run_for(SECOND / 1_000);
    let jobs = world.peer(0).expect("it is up").snapshot(world.local_now(0)).jobs;
    assert_eq!(jobs.waiting + jobs.pods, JOBS as u64, "{jobs:?}");
    world.end_well();
}

#[test]
fn a_job_that_asked_for_it_is_known_for_less_long_than_others() {
    let mut world = cluster(3);
    let brief = world.submit(0, Spec { ttl: Some(SECOND * 3_600), ..work(50, 0) });
    let other = world.submit(0, work(50, 0));
    world.run_for(SECOND * 60);
    assert_eq!([world.disks_with(brief).len(), world.disks_with(other).len()], [3, 3]);
    world.run_for(SECOND * 2 * 3_600);
    assert_eq!([world.disks_with(brief).len(), world.disks_with(other).len()], [0, 3]);
    world.end_well();
}
