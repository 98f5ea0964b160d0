//! Stories of faults, a few lines each.
//!
//! Every story ends in a calm, in which all checkers judge the whole world.

mod checkers;
mod copies;
mod deaths;
mod jobs;
mod members;
mod on_partition;
mod partitions;
mod seals;

use std::collections::BTreeSet;
use std::time::Duration;

use flockwork::model::id::{JobId, JobIdPrefix};
use flockwork::model::member::{MemberState, Status};
use flockwork::model::record::{JobState, Record};
use flockwork::model::request::{Draft, Refusal, Submitted};
use flockwork::model::spec::Spec;
use flockwork::protocol::gateway::{Ask, AskId, Told};

use crate::network::short;
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

    /// Whether the job is final, where somebody who is up knows.
    fn is_sealed(&self, job: JobId) -> bool {
        self.merged(job).is_some_and(|record| record.is_final())
    }

    /// Waits until all who are up count the node as down.
    #[track_caller]
    fn wait_until_missed(&mut self, node: usize) {
        let misses = |world: &Self, other: &usize| world.sees(*other, node) == Some(MemberState::Down);
        self.wait_until("all have noticed", |world| world.up().iter().all(|other| misses(world, other)));
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
