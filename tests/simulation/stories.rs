//! Stories of faults, a few lines each.
//!
//! Every story ends in a calm, in which all checkers judge the whole world.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use flockwork::model::attempt::Phase;
use flockwork::model::id::{Actor, Dot, Generation, JobId, JobIdPrefix};
use flockwork::model::member::{MemberState, Status};
use flockwork::model::record::{JobState, Record, Stop, StopKind, Version};
use flockwork::model::request::{Code, Draft, Refusal, Submitted};
use flockwork::model::spec::{Durability, OnPartition, Spec};
use flockwork::model::wire::Message;
use flockwork::protocol::gateway::{Ask, AskId, Told};

use crate::network::short;
use crate::pods::work;
use crate::world::{Options, Process, World};

/// Longer than anything in a story takes.
const PATIENCE: Duration = Duration::from_secs(60);

const SECOND: Duration = Duration::from_secs(1);

/// Nodes that have found each other.
fn cluster(nodes: usize) -> World {
    cluster_of(Options::new(1, nodes))
}

fn cluster_of(options: Options) -> World {
    let mut world = World::new(options);
    for node in 0..world.nodes.len() {
        world.start(node);
    }
    world.wait_until("the cluster converges", |world| world.up().iter().all(|node| world.converged(*node)));
    world
}

impl World {
    fn converged(&self, node: usize) -> bool {
        self.peer(node).is_some_and(|peer| peer.snapshot(self.local_now(node)).convergence.converged)
    }

    #[track_caller]
    fn wait_until(&mut self, what: &str, done: impl FnMut(&Self) -> bool) {
        assert!(self.run_until(PATIENCE, done), "waited in vain until {what}");
    }

    #[track_caller]
    fn answer(&mut self, ask: AskId) -> Result<Told, Refusal> {
        self.wait_until("the client is answered", |world| world.clients.answers.contains_key(&ask));
        self.clients.answers.remove(&ask).expect("it was just there")
    }

    fn ask_to_submit(&mut self, node: usize, spec: Spec) -> AskId {
        self.ask(node, Ask::Submit(vec![Draft { spec, retry_of: None }])).expect("the node is up")
    }

    #[track_caller]
    fn outcome(&mut self, ask: AskId) -> Result<Submitted, Refusal> {
        match self.answer(ask) {
            Ok(Told::Submitted(mut outcomes)) if outcomes.len() == 1 => outcomes.remove(0),
            other => panic!("one submit was asked, and the answer is {other:?}"),
        }
    }

    #[track_caller]
    fn submit(&mut self, node: usize, spec: Spec) -> JobId {
        let ask = self.ask_to_submit(node, spec);
        self.outcome(ask).expect("it is acknowledged").id
    }

    fn state(&self, job: JobId) -> Option<JobState> {
        self.merged(job).map(|record| record.state())
    }

    #[track_caller]
    fn wait_for(&mut self, job: JobId, state: JobState) -> Record {
        let text = format!("{} is {}", short(job.0), state.as_str());
        self.wait_until(&text, |world| world.state(job) == Some(state));
        self.merged(job).expect("somebody holds it")
    }

    /// A pod of the job runs. Returns where.
    #[track_caller]
    fn wait_for_pod(&mut self, job: JobId) -> usize {
        let runs = |world: &Self| {
            let mut live = world.ledger.runs_of(job).filter(|run| run.started.is_some() && run.ended.is_none());
            live.next().map(|run| run.node)
        };
        self.wait_until("a pod runs", |world| runs(world).is_some());
        runs(self).expect("it was just there")
    }

    /// The node that decides for the job.
    #[track_caller]
    fn owner(&mut self, job: JobId) -> usize {
        let owner = |world: &Self| {
            let decides = |process: &Process| process.peer.decides_for(process.peer.records().partition_of(job));
            let awake = |node: &usize| world.process(*node).is_some_and(|process| !process.paused && decides(process));
            world.up().into_iter().find(awake)
        };
        self.wait_until("somebody decides", |world| owner(world).is_some());
        owner(self).expect("it was just there")
    }

    fn others(&self, than: &[usize]) -> Vec<usize> {
        self.up().into_iter().filter(|node| !than.contains(node)).collect()
    }

    fn cancel(&mut self, node: usize, job: JobId) -> Result<Told, Refusal> {
        let ask = self.ask(node, Ask::Cancel(JobIdPrefix::from(job), "enough".into())).expect("the node is up");
        self.answer(ask)
    }

    fn status(&self, node: usize) -> Status {
        self.peer(node).map_or(Status::Left, |peer| peer.membership().me().status)
    }

    fn counter(&self, node: usize, name: &str) -> u64 {
        let counters = self.peer(node).expect("it is up").snapshot(self.local_now(node)).counters;
        counters.iter().find(|(counter, _)| *counter == name).expect("there is such a counter").1
    }

    /// How many pods of the job there were.
    fn pods(&self, job: JobId) -> usize {
        self.ledger.runs_of(job).count()
    }

    fn has(&self, node: usize, job: JobId) -> bool {
        self.peer(node).is_some_and(|peer| peer.records().get(job).is_some())
    }

    /// Waits until there is one, and not a millisecond longer.
    #[track_caller]
    fn soon<T>(&mut self, what: &str, find: impl Fn(&Self) -> Option<T>) -> T {
        for _ in 0..PATIENCE.as_millis() {
            if let Some(found) = find(self) {
                return found;
            }
            self.run_for(SECOND / 1_000);
        }
        panic!("waited in vain until {what}");
    }

    fn jobs_held(&self) -> BTreeSet<JobId> {
        self.up()
            .iter()
            .filter_map(|node| self.peer(*node))
            .flat_map(|peer| peer.records().iter())
            .map(|(job, _)| job)
            .collect()
    }

    /// Somebody tells `node` to forget `other`.
    fn forget(&mut self, node: usize, other: usize) -> Result<(), Refusal> {
        let (now, other) = (self.local_now(node), self.nodes[other].id);
        let mut outcome = Ok(());
        self.call(node, |peer| outcome = peer.forget(now, other));
        self.pump(node);
        outcome
    }

    /// What the node makes of the other.
    fn sees(&self, node: usize, other: usize) -> Option<MemberState> {
        let view = self.peer(node)?.membership().view();
        view.get(&self.nodes[other].id).map(|member| member.state)
    }

    /// Calms down, and nothing may be wrong.
    #[track_caller]
    fn end_well(mut self) -> Self {
        self.calm_down_and_check();
        let violations: Vec<String> = self.findings.violations.iter().map(ToString::to_string).collect();
        assert!(violations.is_empty(), "\n{}", violations.join("\n"));
        self
    }
}

/// A job whose partition `node` decides for.
fn owned_by(world: &mut World, node: usize, spec: Spec) -> JobId {
    for _ in 0..200 {
        let job = world.submit(node, Spec { delay: Some(PATIENCE), ..spec.clone() });
        if world.owner(job) == node {
            return job;
        }
        world.cancel(node, job).expect("it is cancelled");
    }
    panic!("n{node} decides for nothing");
}

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
    let is_sealed = |world: &World| world.merged(elsewhere).is_some_and(|record| record.is_final());
    assert!(!is_sealed(&world), "there was no time to ask everybody");
    world.run_for(SECOND * 40);
    assert!(!is_sealed(&world), "cut off, its executor may have been its owner, and have begun another attempt");
    world.start(2);
    world.wait_until("it is sealed", is_sealed);
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
    world.split(&[2, away]);
    world.start(away);
    let state = |world: &World| world.peer(away)?.records().get(job).map(|held| held.state());
    world.wait_until("it knows", |world| state(world) == Some(JobState::Succeeded));
    assert_eq!(world.pods(job), 1);
    world.heal();
    world.end_well();
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
    let is_sealed = |world: &World, job: &JobId| world.merged(*job).is_some_and(|record| record.is_final());
    world.wait_until("all are sealed", |world| jobs.iter().all(|job| is_sealed(world, job)));
    world.end_well();
}

#[test]
fn whoever_is_forgotten_keeps_no_seal_waiting() {
    let mut world = cluster_of(Options { forget_after: SECOND * 20, ..Options::new(1, 4) });
    let jobs: Vec<JobId> = (0..10).map(|_| world.submit(0, work(50, 0))).collect();
    world.power_off(3);
    world.run_for(SECOND * 10);
    let is_sealed = |world: &World, job: &JobId| world.merged(*job).is_some_and(|record| record.is_final());
    assert!(!jobs.iter().all(|job| is_sealed(&world, job)), "some of them have a copy on the machine that is off");
    world.wait_until("all are sealed", |world| jobs.iter().all(|job| is_sealed(world, job)));
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
    let is_sealed = |world: &World, job: &JobId| world.merged(*job).is_some_and(|record| record.is_final());
    world.wait_until("all are sealed", |world| jobs.iter().all(|job| is_sealed(world, job)));
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

/// Whether an attempt of the job is lost, as this node has it.
fn was_lost(world: &World, node: usize, job: JobId) -> bool {
    let record = world.peer(node).and_then(|peer| peer.records().get(job)).map(|held| held.record());
    record.is_some_and(|record| record.attempts.values().any(|attempt| attempt.fate.phase == Phase::Lost))
}

#[test]
fn what_must_not_run_twice_is_ended_where_it_was_taken_for_lost_before_it_runs_again() {
    let mut world = cluster(4);
    let job = world.submit(0, Spec { on_partition: OnPartition::Pause, ..work(PATIENCE.as_millis() as u64, 0) });
    let away = world.wait_for_pod(job);
    world.pause(away);
    let others = world.others(&[away]);
    world.wait_until("it is written off", |world| others.iter().any(|node| was_lost(world, *node, job)));
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
    world.wait_until("it is written off", |world| others.iter().any(|node| was_lost(world, *node, job)));
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
            world.wait_until("all have noticed", |world| {
                world.up().iter().all(|node| world.sees(*node, 3) == Some(MemberState::Down))
            });
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
    world.wait_until("all have noticed", |world| {
        world.up().iter().all(|node| world.sees(*node, 3) == Some(MemberState::Down))
    });
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
    world.wait_until("all have noticed", |world| {
        world.up().iter().all(|node| world.sees(*node, 3) == Some(MemberState::Down))
    });
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
    world.wait_until("it is sealed", |world| world.merged(job).unwrap().is_final());
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
    world.wait_until("it is sealed", |world| world.merged(job).unwrap().is_final());
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
    world.wait_until("it is sealed", |world| world.merged(job).unwrap().is_final());
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
    world.wait_until("it is sealed", |world| world.merged(job).unwrap().is_final());
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
        world.wait_until("it is sealed", |world| world.merged(*job).is_some_and(|record| record.is_final()));
    }
    let told =
        |world: &World| -> u64 { world.up().iter().map(|node| world.counter(*node, "overlaps_told_total")).sum() };
    let before = told(&world);
    world.start(2);
    world.wait_until("what was not known is told", |world| told(world) > before);
    world.end_well();
}

#[test]
fn whoever_was_paused_asks_those_too_of_whom_it_hears_while_it_asks_others() {
    let mut world = cluster(3);
    world.kill(2);
    world.wait_until("it is down", |world| (0..2).all(|node| world.sees(node, 2) == Some(MemberState::Down)));
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

#[test]
fn the_checkers_notice_a_lost_disk() {
    let mut world = cluster(3);
    let job = world.submit(0, Spec { delay: Some(PATIENCE), ..work(50, 0) });
    for node in 0..3 {
        world.kill(node);
        world.nodes[node].disk.records.remove(&job);
    }
    world.calm_down_and_check();
    assert!(world.findings.violations.iter().any(|violation| violation.checker == "acknowledged jobs are known"));
}

#[test]
fn the_checkers_notice_a_copy_that_was_tampered_with() {
    let mut world = cluster(3);
    let job = world.submit(0, work(50, 0));
    world.wait_for(job, JobState::Succeeded);
    world.run_for(SECOND);
    world.nodes[1].disk.records.remove(&job);
    world.calm_down_and_check();
    let found: Vec<&str> = world.findings.violations.iter().map(|violation| violation.checker).collect();
    assert!(found.contains(&"what is known is on disk"), "{found:?}");
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
