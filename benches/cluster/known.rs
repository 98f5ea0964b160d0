//! What it costs to have jobs, to have nothing to do, and to have much that sleeps.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::charts::{Chart, Line};
use crate::nodes::{Nodes, eventually, expect};
use crate::submits::waiting;
use crate::table::Table;

/// In one request.
const REQUEST: usize = 5_000;
/// How long an idle node is watched.
const WATCHED: Duration = Duration::from_secs(30);
/// Until what a start does once is done.
const SETTLED: Duration = Duration::from_secs(8);

/// What a node that knows so many jobs takes.
struct Known {
    bytes_a_job: f64,
    open_after: Duration,
}

/// Memory for each job that waits and for each that has ended, and the time a node takes to open their store.
pub fn jobs(count: usize, table: &mut Table) -> anyhow::Result<()> {
    for (which, ends) in [("waiting", false), ("ended", true)] {
        let known = measured(count, ends)?;
        let what = format!("memory for each of {count} jobs known, {which}");
        table.say(&what, format!("{:.0} bytes", known.bytes_a_job), "beanstalkd 236, HyperQueue 365");
        let what = format!("open a store of {count} jobs, {which}, until ready");
        table.say(&what, format!("{:.2} s", known.open_after.as_secs_f64()), "");
    }
    Ok(())
}

fn measured(count: usize, ends: bool) -> anyhow::Result<Known> {
    let mut nodes = Nodes::start(1, "--replicas 1 --slots 4")?;
    thread::sleep(SETTLED);
    let empty = nodes.memory(0)?;
    let request = json!(vec![waiting(); REQUEST.min(count)]);
    let mut connection = nodes.connect(0)?;
    for _ in 0..count.div_ceil(REQUEST) {
        let (status, answer) = connection.submit(&request)?;
        expect(status, &answer)?;
        if ends {
            for job in answer["jobs"].as_array().into_iter().flatten() {
                let id = job["id"].as_str().unwrap_or_default();
                connection.ask(format!("DELETE /v1/jobs/{id} HTTP/1.1\r\nhost: localhost\r\n\r\n").as_bytes())?;
            }
        }
    }
    nodes.kill(0)?;
    let open_after = nodes.restart(0)?;
    thread::sleep(SETTLED);
    let bytes_a_job = (nodes.memory(0)? - empty) / count as f64;
    Ok(Known { bytes_a_job, open_after })
}

/// How memory and the time to open grow with the jobs known.
pub fn by_jobs(most: usize) -> anyhow::Result<Chart> {
    let mut chart = Chart::new("A node that starts, by jobs known", "jobs known", "bytes a job; milliseconds to ready");
    let (mut memory, mut open) = (Line::new("memory, bytes a job"), Line::new("time to ready, ms"));
    for count in [10_000, 30_000, 100_000, 300_000, 1_000_000].into_iter().filter(|count| *count <= most) {
        let known = measured(count, false)?;
        memory.add(count as f64, known.bytes_a_job);
        open.add(count as f64, known.open_after.as_secs_f64() * 1e3);
    }
    chart.lines = vec![memory, open];
    chart.is_logarithmic = true;
    Ok(chart)
}

/// A node of three that have nothing to do.
pub fn idle(table: &mut Table) -> anyhow::Result<()> {
    let nodes = Nodes::start(3, "")?;
    thread::sleep(SETTLED);
    let (before, begun) = (nodes.processor_time(0)?, Instant::now());
    thread::sleep(WATCHED);
    let share = (nodes.processor_time(0)? - before) / begun.elapsed().as_secs_f64();
    table.say("an idle node's memory", format!("{:.1} MB", nodes.memory(0)? / 1e6), "proportional set size");
    table.say("an idle node's processor", format!("{:.2} % of one", share * 100.0), "of three nodes, 30 s");
    Ok(())
}

/// A thousand processes that sleep on one node.
pub fn sleepers(table: &mut Table) -> anyhow::Result<()> {
    const PODS: usize = 1_000;
    let nodes = Nodes::start(1, &format!("--replicas 1 --slots {PODS} --cpus {PODS}"))?;
    thread::sleep(SETTLED);
    let memory = nodes.memory(0)?;
    let mut connection = nodes.connect(0)?;
    let (status, answer) = connection.submit(&json!(vec![json!({"command": ["sleep", "600"]}); PODS]))?;
    expect(status, &answer)?;
    eventually("all of them run", || {
        let running = connection.metric("flockwork_jobs{role=\"running_here\"}")?;
        Ok((running == PODS as f64).then_some(()))
    })?;
    thread::sleep(SETTLED);
    let (before, begun) = (nodes.processor_time(0)?, Instant::now());
    thread::sleep(WATCHED);
    let share = (nodes.processor_time(0)? - before) / begun.elapsed().as_secs_f64();
    let bytes = (nodes.memory(0)? - memory) / PODS as f64;
    table.say(
        "1,000 sleeping processes: the node's processor",
        format!("{:.2} % of one", share * 100.0),
        "to reach: 2",
    );
    table.say("1,000 sleeping processes: the node's memory", format!("{:.1} kB for each", bytes / 1e3), "");
    Ok(())
}
