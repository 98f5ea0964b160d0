//! The account at the end: each promise with what was found against it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::{Duration, Instant};

use anyhow::Context;
use futures_util::{StreamExt, stream};
use serde_json::Value;

use crate::Options;
use crate::cluster::{Cluster, elapsed};
use crate::faults::{Happened, Trouble};
use crate::ledger::{self, Run};
use crate::work::Work;

/// How often it is looked whether there is calm, and how often it is told that there is none yet.
const LOOK_EVERY: Duration = Duration::from_millis(500);
const TELL_EVERY: Duration = Duration::from_secs(10);
/// How many answers are awaited side by side.
const AT_ONCE: usize = 16;
/// The clock that jobs read has steps of a hundredth of a second.
const CLOCK_STEP: f64 = 0.02;
/// How long after a fault its consequences may show: until all know of it, and of its end.
const AFTERMATH: f64 = 60.0;
/// How many findings of a kind are shown.
const SHOWN: usize = 5;

/// How a line of a node's log tells of an overlap.
const TELLS_OF_OVERLAP: &str = "attempts ran, or may have run, at the same time";

/// What was promised.
const PROMISES: [&str; 8] = [
    "no acknowledged job is lost",
    "every job has ended well",
    "its output is right",
    "what ran is what the records say",
    "nothing ran twice at once unreported",
    "no overlap without a fault",
    "all nodes and replicas agree",
    "no node panicked or ended by itself",
];

pub struct Verdict {
    found: BTreeMap<&'static str, Vec<String>>,
    facts: Vec<String>,
}

impl Verdict {
    pub fn is_good(&self) -> bool {
        self.found.values().all(Vec::is_empty)
    }

    fn against(&mut self, promise: usize, what: String) {
        self.found.entry(PROMISES[promise]).or_default().push(what);
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for fact in &self.facts {
            writeln!(f, "{fact}")?;
        }
        for promise in PROMISES {
            let found = self.found.get(promise).map(Vec::as_slice).unwrap_or_default();
            let word = if found.is_empty() { "kept" } else { "BROKEN" };
            writeln!(
                f,
                "{word:<7} {promise}{}",
                if found.is_empty() { String::new() } else { format!(": {}", found.len()) }
            )?;
            for what in found.iter().take(SHOWN) {
                writeln!(f, "          {what}")?;
            }
        }
        write!(f, "verdict: {}", if self.is_good() { "all promises were kept" } else { "PROMISES WERE BROKEN" })
    }
}

pub async fn reach(cluster: &Cluster, work: &Work, trouble: &Trouble, options: &Options) -> anyhow::Result<Verdict> {
    let mut verdict = Verdict { found: BTreeMap::new(), facts: Vec::new() };
    let begun = Instant::now();
    let calm = wait_for_calm(cluster, Duration::from_secs(options.calm_within)).await;
    match calm {
        Ok(()) => println!("{} calm after {:.1} s", elapsed(), begun.elapsed().as_secs_f64()),
        Err(why) => verdict.against(6, format!("there was no calm within {} s: {why}", options.calm_within)),
    }
    if work.unacknowledged() > 0 {
        let within = options.calm_within;
        verdict.against(
            1,
            format!("{} jobs were not acknowledged within {within} s after the trouble", work.unacknowledged()),
        );
    }
    let acknowledged = work.acknowledged().clone();
    let ledger = ledger::read(&cluster.ledger)?;
    let first = cluster.nodes.first().context("there are nodes")?;
    // The specs are the same in all of them, and long.
    let jobs = list(cluster, first, |mut job| {
        job["spec"] = Value::Null;
        job
    })
    .await?;
    for node in cluster.nodes.iter().skip(1) {
        let theirs = list(cluster, node, |job| job["state"].clone()).await?;
        for (id, job) in &jobs {
            match theirs.get(id) {
                None => verdict.against(6, format!("{} does not list job {id}", node.name)),
                Some(state) if *state != job["state"] => {
                    verdict.against(
                        6,
                        format!("job {id} is {} by {}, {state} by {}", job["state"], first.name, node.name),
                    );
                }
                Some(_) => {}
            }
        }
        for id in theirs.keys().filter(|id| !jobs.contains_key(*id)) {
            verdict.against(6, format!("{} lists job {id}, and {} does not", node.name, first.name));
        }
    }
    for (key, id) in &acknowledged {
        if !jobs.contains_key(id) {
            verdict.against(0, format!("{key}, job {id}"));
        }
    }
    let happened = trouble.log().clone();
    let mut overlaps = Overlaps { told: told_overlaps(cluster)?, ..Overlaps::default() };
    for job in jobs.values() {
        check_job(&mut verdict, &mut overlaps, cluster, job, &ledger, &happened);
    }
    check_each(&mut verdict, cluster, &jobs).await;
    for broken in cluster.broken_nodes() {
        verdict.against(7, broken);
    }
    let runs: usize = ledger.values().map(Vec::len).sum();
    verdict.facts = vec![
        format!("jobs      {}", work.progress()),
        format!("receipts  {}", work.latency()),
        format!("repeated  {}", work.reasons()),
        format!("trouble   {}", trouble.progress()),
        format!("records   {} jobs on {} nodes; {runs} executions in the ledger", jobs.len(), cluster.nodes.len()),
        format!(
            "overlaps  {} by the ledger; reported: {} certain, {} possible, and {} executions that a seal ended",
            overlaps.seen, overlaps.certain, overlaps.possible, overlaps.ended_by_a_seal
        ),
    ];
    Ok(verdict)
}

/// Waits until no job is open, and all nodes say that they agree.
async fn wait_for_calm(cluster: &Cluster, within: Duration) -> Result<(), String> {
    let deadline = Instant::now() + within;
    let mut told = Instant::now();
    loop {
        match is_calm(cluster).await {
            Ok(()) => return Ok(()),
            Err(why) if Instant::now() >= deadline => return Err(format!("{why:#}")),
            Err(why) if told.elapsed() >= TELL_EVERY => {
                told = Instant::now();
                println!("{} no calm yet: {why:#}", elapsed());
            }
            Err(_) => {}
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn is_calm(cluster: &Cluster) -> anyhow::Result<()> {
    let mut rings = BTreeSet::new();
    for node in &cluster.nodes {
        let view = cluster.get(node, "/debug/convergence").await?;
        let alive =
            view["members"].as_object().map_or(0, |members| members.values().filter(|m| m["state"] == "alive").count());
        let partitions = &view["partitions"];
        anyhow::ensure!(alive == cluster.nodes.len(), "{} sees {alive} nodes alive", node.name);
        anyhow::ensure!(
            view["converged"] == true && partitions["in_sync"] == partitions["total"] && view["strays"] == 0,
            "{} is behind: {} of {} partitions in step, {} strays",
            node.name,
            partitions["in_sync"],
            partitions["total"],
            view["strays"]
        );
        rings.insert(view["ring"]["own"].to_string());
    }
    anyhow::ensure!(rings.len() == 1, "the rings differ");
    let first = cluster.nodes.first().context("there are nodes")?;
    for state in ["pending", "running"] {
        let open = cluster.get(first, &format!("/v1/jobs?limit=1&state={state}")).await?;
        let job = open["jobs"].as_array().and_then(|jobs| jobs.first());
        anyhow::ensure!(open["partial"] == false, "the list is partial");
        anyhow::ensure!(job.is_none(), "job {} is {state}", job.map_or(&Value::Null, |job| &job["id"]));
    }
    Ok(())
}

/// What is to be kept of all jobs as a node lists them, by id.
async fn list(
    cluster: &Cluster,
    node: &crate::cluster::Node,
    keep: impl Fn(Value) -> Value,
) -> anyhow::Result<BTreeMap<String, Value>> {
    let mut all = BTreeMap::new();
    let mut cursor = String::new();
    loop {
        let mut page = cluster.get(node, &format!("/v1/jobs?limit=1000{cursor}")).await?;
        anyhow::ensure!(page["partial"] == false, "the list of {} is partial: {}", node.name, page["missing"]);
        let Some(Value::Array(jobs)) = page.get_mut("jobs").map(Value::take) else {
            anyhow::bail!("not a list: {page}")
        };
        for job in jobs {
            all.insert(job["id"].as_str().context("an id")?.to_owned(), keep(job));
        }
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return Ok(all),
        }
    }
}

#[derive(Default)]
struct Overlaps {
    seen: usize,
    certain: usize,
    possible: usize,
    /// What nodes have told of as it came about, by the job: the number and the node of each attempt.
    told: BTreeMap<String, BTreeSet<(u64, String)>>,
    /// Executions that were told of, and that no record has: whoever ran them had made the job anew while it was cut off,
    /// and the other side's is sealed.
    ended_by_a_seal: usize,
}

/// What the nodes' logs tell of attempts that ran at the same time.
fn told_overlaps(cluster: &Cluster) -> anyhow::Result<BTreeMap<String, BTreeSet<(u64, String)>>> {
    let mut told: BTreeMap<String, BTreeSet<(u64, String)>> = BTreeMap::new();
    for node in &cluster.nodes {
        let log = node.log()?;
        for line in log.lines().filter(|line| line.contains(TELLS_OF_OVERLAP)) {
            let Some((job, attempts)) = line.split_once("job=").and_then(|(_, rest)| rest.split_once(" attempts=["))
            else {
                continue;
            };
            let Some((attempts, _)) = attempts.split_once(']') else { continue };
            for attempt in attempts.split("), (") {
                let Some((number, node)) = attempt.trim_matches(['(', ')']).split_once(", ") else { continue };
                told.entry(job.to_owned()).or_default().insert((number.parse()?, cluster.name_of(node).to_owned()));
            }
        }
    }
    Ok(told)
}

fn check_job(
    verdict: &mut Verdict,
    overlaps: &mut Overlaps,
    cluster: &Cluster,
    job: &Value,
    ledger: &BTreeMap<String, Vec<Run>>,
    happened: &[Happened],
) {
    let (id, key) = (job["id"].as_str().unwrap_or_default(), job["name"].as_str().unwrap_or_default());
    if job["state"] != "succeeded" {
        verdict.against(1, format!("{key}, job {id}, is {}: {}", job["state"], job["reason"]));
    }
    let no_attempts = Vec::new();
    let attempts = job["attempts"].as_array().unwrap_or(&no_attempts);
    let attempt_of = |run: &Run| {
        let is_it = |attempt: &&Value| {
            attempt["number"] == run.number && cluster.name_of(attempt["node"].as_str().unwrap_or_default()) == run.node
        };
        attempts.iter().find(is_it)
    };
    let told = overlaps.told.remove(id).unwrap_or_default();
    let was_told = |run: &Run| told.contains(&(run.number, run.node.clone()));
    let nothing = Vec::new();
    let runs = ledger.get(key).unwrap_or(&nothing);
    let all_listed = job["attempts_omitted"].as_u64().unwrap_or(0) == 0;
    for run in runs {
        if run.starts != 1 {
            verdict.against(3, format!("{key}: attempt {} on {} started {} times", run.number, run.node, run.starts));
        }
        if attempt_of(run).is_none() && all_listed && was_told(run) {
            overlaps.ended_by_a_seal += 1;
        } else if attempt_of(run).is_none() && all_listed {
            verdict.against(
                3,
                format!("{key}: attempt {} on {} ran, and job {id} does not know it", run.number, run.node),
            );
        }
    }
    for attempt in attempts {
        let node = cluster.name_of(attempt["node"].as_str().unwrap_or_default());
        let has_run = runs.iter().any(|run| attempt["number"] == run.number && run.node == node && run.has_ended);
        if attempt["phase"] == "succeeded" && !has_run {
            verdict.against(
                3,
                format!("{key}: attempt {} on {node} succeeded, and never came to its end", attempt["number"]),
            );
        }
        for overlap in attempt["overlaps"].as_array().unwrap_or(&no_attempts) {
            // Each is told at both of its attempts.
            let is_first = (overlap["number"].as_u64(), overlap["node"].as_str())
                > (attempt["number"].as_u64(), attempt["node"].as_str());
            overlaps.certain += usize::from(is_first && overlap["certain"] == true);
            overlaps.possible += usize::from(is_first && overlap["certain"] != true);
        }
    }
    for (at, one) in runs.iter().enumerate() {
        for other in &runs[at + 1..] {
            let (from, until) = (one.from.max(other.from), one.until.min(other.until));
            if until - from <= CLOCK_STEP {
                continue;
            }
            overlaps.seen += 1;
            let is_reported = attempt_of(one).zip(attempt_of(other)).is_some_and(|(attempt, with)| {
                let told = attempt["overlaps"].as_array().unwrap_or(&no_attempts);
                told.iter().any(|overlap| overlap["number"] == with["number"] && overlap["node"] == with["node"])
            });
            let story = format!(
                "{key}, job {id}: attempt {} on {} and attempt {} on {} for {:.2} s",
                one.number,
                one.node,
                other.number,
                other.node,
                until - from
            );
            if !is_reported && all_listed && !(was_told(one) && was_told(other)) {
                verdict.against(4, story.clone());
            }
            let explains = |fault: &Happened| fault.from <= from && from <= fault.until.unwrap_or(f64::MAX) + AFTERMATH;
            if !happened.iter().any(explains) {
                verdict.against(5, story);
            }
        }
    }
}

/// What has to be asked for each job: its output, and whether its replicas hold the same.
async fn check_each(verdict: &mut Verdict, cluster: &Cluster, jobs: &BTreeMap<String, Value>) {
    let nodes = cluster.nodes.len();
    let asked = jobs.iter().enumerate().map(|(turn, (id, job))| async move {
        let node = &cluster.nodes[turn % nodes];
        let mut wrong = Vec::new();
        match cluster.get(node, &format!("/v1/jobs/{id}")).await {
            Ok(told) if told["replicas"]["agree"] == told["replicas"]["of"] && told["replicas"].is_object() => {}
            Ok(told) => wrong.push((6, format!("job {id} by {}: replicas {}", node.name, told["replicas"]))),
            Err(error) => wrong.push((6, format!("job {id} by {}: {error:#}", node.name))),
        }
        let right = format!("done {}\n", job["name"].as_str().unwrap_or_default());
        let url = format!("http://{}/v1/jobs/{id}/logs?stream=stdout", node.http_addr);
        let output = async { cluster.http.get(url).timeout(Duration::from_secs(30)).send().await?.text().await };
        match output.await {
            Ok(output) if output == right => {}
            Ok(output) => wrong.push((2, format!("job {id} by {}: {output:?}", node.name))),
            Err(error) => wrong.push((2, format!("job {id} by {}: {error}", node.name))),
        }
        wrong
    });
    let found: Vec<_> = stream::iter(asked).buffer_unordered(AT_ONCE).collect().await;
    for (promise, what) in found.into_iter().flatten() {
        verdict.against(promise, what);
    }
}
