//! What it costs to have jobs, to have nothing to do, and to have much that sleeps.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use flockwork::io::store::Store;
use flockwork::model::attempt::{Exit, Fate, Phase};
use flockwork::model::id::{Actor, Dot, JobId};
use flockwork::model::record::{Record, Seal, Submission};
use flockwork::model::spec::Spec;
use flockwork::model::time::Timestamp;
use flockwork::protocol::effect::Commit;
use serde_json::json;

use crate::charts::{Chart, Line};
use crate::nodes::{Nodes, eventually, expect};
use crate::submits::waiting;
use crate::table::{Spread, Table};

/// In one request.
const REQUEST: usize = 5_000;
/// How long an idle node is watched at a time.
const WATCHED: Duration = Duration::from_secs(10);
/// Until what a start does once is done.
const SETTLED: Duration = Duration::from_secs(8);

/// What a node that knows so many jobs takes.
struct Known {
    /// While they came, where they did.
    bytes_as_they_came: Option<f64>,
    /// After each of some starts.
    bytes_after_a_start: Vec<f64>,
    /// Seconds until each of them was ready.
    open_after: Vec<f64>,
}

/// Which jobs are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Submitted one after the other, to wait for an hour.
    Waiting,
    /// Succeeded and sealed, as a node leaves them on its disk for a week.
    Ended,
}

/// Memory for each job that waits and for each that has ended, and the time a node takes to open their store.
pub fn jobs(rounds: usize, count: usize, table: &mut Table) -> anyhow::Result<()> {
    let others = "beanstalkd 236, HyperQueue 365";
    for (which, kind) in [("waiting", Kind::Waiting), ("ended", Kind::Ended)] {
        let known = measured(rounds, count, kind)?;
        if let Some(bytes) = known.bytes_as_they_came {
            let what = format!("memory for each of {count} jobs known, {which}, as they came");
            table.say(&what, format!("{bytes:.0} bytes"), others);
        }
        let what = format!("memory for each of {count} jobs known, {which}, after a start");
        table.say(&what, format!("{} bytes", Spread::of(&known.bytes_after_a_start, 0)), others);
        let what = format!("open a store of {count} jobs, {which}, until ready");
        table.say(&what, format!("{} s", Spread::of(&known.open_after, 2)), format!("{rounds} starts"));
    }
    Ok(())
}

fn measured(starts: usize, count: usize, kind: Kind) -> anyhow::Result<Known> {
    let mut nodes = Nodes::start(1, "--replicas 1 --slots 4")?;
    thread::sleep(SETTLED);
    let empty = nodes.memory(0)?;
    let a_job = |bytes: f64| (bytes - empty) / count as f64;
    let mut bytes_as_they_came = None;
    match kind {
        Kind::Waiting => {
            let request = json!(vec![waiting(); REQUEST.min(count)]);
            let mut connection = nodes.connect(0)?;
            for _ in 0..count.div_ceil(REQUEST) {
                let (status, answer) = connection.submit(&request)?;
                expect(status, &answer)?;
            }
            thread::sleep(SETTLED);
            bytes_as_they_came = Some(a_job(nodes.memory(0)?));
        }
        Kind::Ended => {
            nodes.kill(0)?;
            leave_ended(&nodes, count)?;
        }
    }
    let mut known = Known { bytes_as_they_came, bytes_after_a_start: Vec::new(), open_after: Vec::new() };
    for _ in 0..starts {
        nodes.kill(0)?;
        known.open_after.push(nodes.restart(0)?.as_secs_f64());
        thread::sleep(SETTLED);
        known.bytes_after_a_start.push(a_job(nodes.memory(0)?));
    }
    Ok(known)
}

/// Writes the records of so many jobs that have ended into the store of a node that does not run.
fn leave_ended(nodes: &Nodes, count: usize) -> anyhow::Result<()> {
    let now = Timestamp(u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?);
    let (report, done) = channel();
    let (store, loaded) =
        Store::open(&nodes.data_dir(0), None, now, move |done| report.send(done).unwrap_or_default())?;
    let me = Actor { node: loaded.identity.node, generation: loaded.identity.generation };
    for (number, first) in (1..).zip((0..count).step_by(REQUEST)) {
        let jobs = first..count.min(first + REQUEST);
        let put = jobs.map(|job| Arc::new(ended(me, job as u64, now))).collect();
        store.commit(Commit { number, put, ..Commit::default() })?;
        done.recv()?.result?;
    }
    store.close();
    Ok(())
}

/// A job as others are, but for its times and its random id.
fn ended(me: Actor, job: u64, now: Timestamp) -> Record {
    let counter = job * 4 + 1;
    let dot = |after: u64| Dot { actor: me, counter: counter + after };
    let at = |after: u64| Timestamp(now.0 - 3_600_000 + job / 8 + after);
    let spec = Spec { command: vec!["/bin/true".into()], ..Spec::default() };
    let submission = Submission { spec, submitted_at: at(0), gateway: me.node, home: vec![me.node], retry_of: None };
    let mut record = Record::new(JobId(rand::random()), Arc::new(submission), dot(0));
    record.claim(dot(1), me, at(2));
    record.start(dot(2), dot(1), at(5));
    let (phase, exit) = (Phase::Succeeded, Some(Exit::Code(0)));
    record.advance(dot(1), Fate { phase, by_executor: true, dot: dot(3), at: at(9), exit, reason: String::new() });
    let expires = now + Duration::from_secs(7 * 24 * 3_600);
    record.seal(Seal { expires_hour: expires.hour(), dot: dot(3), at: at(5_000) });
    record
}

/// How memory and the time to open grow with the jobs known.
pub fn by_jobs(most: usize) -> anyhow::Result<Chart> {
    let mut chart = Chart::new("A node that starts, by jobs known", "jobs known", "bytes a job; milliseconds to ready");
    let (mut memory, mut open) = (Line::new("memory, bytes a job"), Line::new("time to ready, ms"));
    for count in [10_000, 30_000, 100_000, 300_000, 1_000_000].into_iter().filter(|count| *count <= most) {
        let known = measured(1, count, Kind::Ended)?;
        memory.add(count as f64, known.bytes_after_a_start[0]);
        open.add(count as f64, known.open_after[0] * 1e3);
    }
    chart.lines = vec![memory, open];
    chart.is_logarithmic = true;
    Ok(chart)
}

/// A node of three that have nothing to do.
pub fn idle(rounds: usize, table: &mut Table) -> anyhow::Result<()> {
    let nodes = Nodes::start(3, "")?;
    thread::sleep(SETTLED);
    let (mut shares, mut megabytes) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        shares.push(percent_of_a_processor(&nodes)?);
        megabytes.push(nodes.memory(0)? / 1e6);
    }
    table.say("an idle node's memory", format!("{} MB", Spread::of(&megabytes, 1)), "proportional set size");
    table.say("an idle node's processor", format!("{} % of one", Spread::of(&shares, 2)), "of three nodes, 10 s each");
    Ok(())
}

/// A thousand processes that sleep on one node, next to the same node before it had any.
pub fn sleepers(rounds: usize, table: &mut Table) -> anyhow::Result<()> {
    const PODS: usize = 1_000;
    let nodes = Nodes::start(1, &format!("--replicas 1 --slots {PODS} --cpus {PODS}"))?;
    thread::sleep(SETTLED);
    let memory = nodes.memory(0)?;
    let watch = || (0..rounds).map(|_| percent_of_a_processor(&nodes)).collect::<anyhow::Result<Vec<f64>>>();
    let idle = watch()?;
    let mut connection = nodes.connect(0)?;
    let (status, answer) = connection.submit(&json!(vec![json!({"command": ["sleep", "600"]}); PODS]))?;
    expect(status, &answer)?;
    eventually("all of them run", || {
        let running = connection.metric("flockwork_jobs{role=\"running_here\"}")?;
        Ok((running == PODS as f64).then_some(()))
    })?;
    thread::sleep(SETTLED);
    let busy = watch()?;
    let bytes = (nodes.memory(0)? - memory) / PODS as f64;
    let without = format!("{} % without them; to reach: 2", Spread::of(&idle, 2));
    let share = format!("{} % of one", Spread::of(&busy, 2));
    table.say("1,000 sleeping processes: the node's processor", share, &without);
    table.say("1,000 sleeping processes: the node's memory", format!("{:.1} kB for each", bytes / 1e3), "");
    Ok(())
}

/// What the first node takes of one processor while it is watched.
fn percent_of_a_processor(nodes: &Nodes) -> anyhow::Result<f64> {
    let (before, begun) = (nodes.processor_times(0)?, Instant::now());
    thread::sleep(WATCHED);
    Ok((nodes.processor_times(0)? - before).own / begun.elapsed().as_secs_f64() * 100.0)
}
