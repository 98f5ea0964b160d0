//! Jobs that are processes that do nothing, from being submitted to their ends.

use std::time::Instant;

use serde_json::json;

use crate::charts::{Chart, Line};
use crate::limits;
use crate::nodes::{Nodes, Times, expect, times_of};
use crate::peers;
use crate::table::{Spread, Table};

/// Enough for some seconds.
const JOBS: usize = 4_000;
/// Processes that a node runs side by side: enough that none of the processors waits for the disk.
const SLOTS: usize = 16;
/// In one request; a client that has so many to submit does so.
const REQUEST: usize = 1_000;

/// On one node, and on three that replicate everything three times.
pub fn processes(rounds: usize, table: &mut Table) -> anyhow::Result<()> {
    let single = Nodes::start(1, &format!("--replicas 1 --slots {SLOTS}"))?;
    let three = Nodes::start(3, "--replicas 3 --slots 2")?;
    run(&single, JOBS / 4)?;
    run(&three, JOBS / 4)?;
    let (mut limit, mut of_one, mut of_three, mut of_xargs) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut times_of_limit, mut times_of_one, mut times_of_three) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let myself = i32::try_from(std::process::id())?;
        let before = times_of(myself)?;
        limit.push(limits::spawns(JOBS));
        times_of_limit.push(times_of(myself)? - before);
        of_one.push(run_timed(&single, &mut times_of_one)?);
        of_three.push(run_timed(&three, &mut times_of_three)?);
        of_xargs.extend(table.unless_skipped("xargs", peers::xargs(JOBS)));
    }
    table.rates("no-op processes, 1 durable node", &of_one, "the spawn limit", &limit);
    table.rates("no-op processes, 3 nodes, R=3", &of_three, "the spawn limit", &limit);
    table.rates_of_peer("no-op processes, xargs -P2", &of_xargs, "the spawn limit", &limit);
    // On a busy machine this says more than rates do.
    let told =
        [("the spawn limit", times_of_limit), ("1 durable node", times_of_one), ("3 nodes, R=3", times_of_three)];
    for (whose, times) in told {
        let a_job = |part: fn(Times) -> f64| {
            let of_rounds: Vec<f64> = times.iter().map(|times| part(*times) * 1e3 / JOBS as f64).collect();
            Spread::of(&of_rounds, 2).median
        };
        let (all, children) = (a_job(Times::all), a_job(|times| times.children));
        let (own, guard) = (a_job(|times| times.own), a_job(|times| times.guard));
        let beside = format!("the process {children:.2}, who starts it {own:.2}, its guard {guard:.2}");
        table.say(&format!("processor time of a no-op process, {whose}"), format!("{all:.2} ms"), beside);
    }
    Ok(())
}

/// [`run`], and the processor time that it took.
fn run_timed(nodes: &Nodes, times: &mut Vec<Times>) -> anyhow::Result<f64> {
    let so_far =
        || (0..nodes.len()).try_fold(Times::default(), |sum, node| anyhow::Ok(sum + nodes.processor_times(node)?));
    let before = so_far()?;
    let rate = run(nodes, JOBS)?;
    times.push(so_far()? - before);
    Ok(rate)
}

/// Submits so many no-op processes, in equal parts to all nodes, and waits for all ends. Jobs a second.
fn run(nodes: &Nodes, count: usize) -> anyhow::Result<f64> {
    let request = json!(vec![json!({"command": ["/bin/true"]}); REQUEST.min(count)]);
    let begun = Instant::now();
    for at in 0..count.div_ceil(REQUEST) {
        let (status, answer) = nodes.connect(at % nodes.len())?.submit(&request)?;
        expect(status, &answer)?;
    }
    for place in 0..nodes.len() {
        nodes.all_ended(place)?;
    }
    Ok(count as f64 / begun.elapsed().as_secs_f64())
}

/// How the rate changes with the number of nodes, which share this machine.
pub fn by_nodes() -> anyhow::Result<Chart> {
    let mut chart = Chart::new("No-op processes, by nodes on one machine", "nodes (R = 3, or all)", "jobs/s");
    let (mut rates, mut limit) = (Line::new("flockwork"), Line::new("spawn limit"));
    for count in [1, 3, 5, 10] {
        let slots = (SLOTS / count).max(2);
        let nodes = Nodes::start(count, &format!("--replicas {} --slots {slots}", count.min(3)))?;
        run(&nodes, JOBS / 4)?;
        let mut of_rounds: Vec<(f64, f64)> = Vec::new();
        for _ in 0..3 {
            of_rounds.push((run(&nodes, JOBS)?, limits::spawns(JOBS)));
        }
        of_rounds.sort_by(|a, b| (a.0 / a.1).total_cmp(&(b.0 / b.1)));
        let (rate, spawns) = of_rounds[1];
        rates.add(count as f64, rate);
        limit.add(count as f64, spawns);
    }
    chart.lines = vec![rates, limit];
    Ok(chart)
}
