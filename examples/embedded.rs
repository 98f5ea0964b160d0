//! Nodes inside a Rust program, which bring their own work: an async function as the handler of jobs.
//!
//! `cargo run --example embedded -- 200000` starts two nodes in this process, where a real program would start
//! one on each of its machines, and registers the handler `primes` with both. It submits one job for each slice
//! of the range to the first node; the cluster decides which node runs it; what they found is added up.
//!
//! Jobs of a handler are jobs like all others: they are stored before they are acknowledged, have retries and
//! timeouts, go on elsewhere when their node dies, and `flockwork ps` shows them wherever the program also
//! serves HTTP (`flockwork::api::serve`).

#![allow(clippy::disallowed_methods, reason = "a program of its own, with its own clock")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use flockwork::io::executor::{GuardProgram, HandlerContext, HandlerError, Handlers};
use flockwork::io::machine::Machine;
use flockwork::model::attempt::Phase;
use flockwork::model::config::{Config, Profile};
use flockwork::model::id::JobId;
use flockwork::model::record::JobState;
use flockwork::model::request::Draft;
use flockwork::model::spec::{Driver, Spec};
use flockwork::model::wire::{LogRequest, Stream};
use flockwork::node::Node;
use flockwork::node::handle::Handle;
use flockwork::node::options::NodeOptions;

/// How many jobs the range is cut into.
const SLICES: u64 = 8;

/// How long a slice may take, waiting for its turn included.
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let below: u64 = std::env::args().nth(1).map_or(Ok(200_000), |text| text.parse()).context("give a number")?;
    let dir = tempfile::tempdir()?;
    let first = start_node(&dir.path().join("a"), "a", None).await?;
    let second = start_node(&dir.path().join("b"), "b", Some(first.cluster_addr())).await?;
    // Both see both; until then a job would run just as well, but always on the first.
    first.handle().snapshots().wait_for(|snapshot| snapshot.view.len() == 2).await?;

    let counted = count_below(&first.handle(), below).await;
    // Whatever came of it, the nodes leave properly.
    second.shut_down().await;
    first.shut_down().await;
    let found = counted?;
    for (node, (slices, primes)) in &found {
        println!("node {node} ran {slices} of {SLICES} slices and found {primes} primes");
    }
    let primes: u64 = found.values().map(|(_, primes)| primes).sum();
    println!("there are {primes} primes below {below}");
    Ok(())
}

/// Starts a node, and returns when it serves.
async fn start_node(dir: &Path, name: &str, seed: Option<SocketAddr>) -> anyhow::Result<Node> {
    std::fs::create_dir_all(dir)?;
    let mut handlers = Handlers::new();
    handlers.register("primes", count_primes);
    let mut options = NodeOptions::new(dir, Config::new(Profile::Local, Machine::new(dir).capacity()));
    options.name = Some(name.to_owned());
    options.seeds = seed.iter().map(SocketAddr::to_string).collect();
    // Should this process be killed, the guard ends the processes of its jobs. There are none here, but the same
    // node could run them too.
    let node = Node::start(options, handlers, GuardProgram::default()).await?;
    node.handle().snapshots().wait_for(|snapshot| snapshot.not_ready.is_none()).await?;
    Ok(node)
}

/// Submits a job for each slice and gathers what they found: for each node, how many slices and primes.
async fn count_below(handle: &Handle, below: u64) -> anyhow::Result<BTreeMap<String, (u64, u64)>> {
    let slice = below.div_ceil(SLICES);
    let drafts = (0..SLICES).map(|at| {
        let payload = serde_json::json!({"from": at * slice, "to": ((at + 1) * slice).min(below)});
        let (driver, handler, payload) = (Driver::Handler, Some("primes".into()), Some(payload));
        Draft { spec: Spec { driver, handler, payload, ..Spec::default() }, retry_of: None }
    });
    let mut found = BTreeMap::<String, (u64, u64)>::new();
    for outcome in handle.submit(drafts.collect()).await? {
        let (node, primes) = result_of(handle, outcome?.id).await?;
        let of_node = found.entry(node).or_default();
        *of_node = (of_node.0 + 1, of_node.1 + primes);
    }
    Ok(found)
}

/// The work: runs as a job, on any node whose program registered it.
async fn count_primes(context: HandlerContext) -> Result<(), HandlerError> {
    let payload = context.payload.as_ref().ok_or("a range is needed")?;
    let bound = |name: &str| payload[name].as_u64().ok_or_else(|| format!("`{name}` must be a number"));
    let (from, to) = (bound("from")?, bound("to")?);
    let mut primes = 0;
    for number in from..to {
        if number.is_multiple_of(1_024) {
            if context.cancelled.is_cancelled() {
                return Err(format!("cancelled at {number}").into());
            }
            // Lets the node, which shares this program's threads, have its turn.
            tokio::task::yield_now().await;
        }
        primes += u64::from(is_prime(number));
    }
    context.stdout.line(primes).await?;
    Ok(())
}

fn is_prime(number: u64) -> bool {
    number >= 2
        && (2..).take_while(|divisor| divisor * divisor <= number).all(|divisor| !number.is_multiple_of(divisor))
}

/// Waits for the job's end; returns the node that ran it and the number that it wrote.
async fn result_of(handle: &Handle, id: JobId) -> anyhow::Result<(String, u64)> {
    let give_up = tokio::time::Instant::now() + PATIENCE;
    let mut known = None;
    let record = loop {
        let left = give_up.saturating_duration_since(tokio::time::Instant::now());
        ensure!(!left.is_zero(), "job {id} took longer than {PATIENCE:?}");
        let answer = handle.watch(id, known, left).await?;
        match answer.record.state() {
            JobState::Pending | JobState::Running => known = Some(answer.version),
            JobState::Succeeded => break answer.record,
            JobState::Failed | JobState::Cancelled => bail!("job {id} did not succeed"),
        }
    };
    let ended = record.attempts.iter().find(|(_, attempt)| attempt.fate.phase == Phase::Succeeded);
    let (claim, attempt) = ended.context("a job that succeeded has an attempt that did")?;
    let node = attempt.claim.executor.node;
    let request = LogRequest { job: id, claim: *claim, stream: Stream::Stdout, offset: 0, limit: 64, wait_ms: 1_000 };
    let chunk = handle.read_log(node, request).await?;
    let name = handle.snapshot().view.get(&node).map_or_else(|| node.to_string(), |member| member.facts.name.clone());
    Ok((name, String::from_utf8(chunk.bytes)?.trim().parse()?))
}
