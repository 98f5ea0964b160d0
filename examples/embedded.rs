//! A node inside a Rust program, which brings its own work: an async function as a job's handler.
//!
//! `cargo run --example embedded -- 200000` starts one node in this process, registers the handler `primes`,
//! submits one job for each slice of the range and adds up what they found. More nodes could join it: each of
//! them that registers the same handler would take its share.

use std::time::Duration;

use anyhow::{Context, bail};
use flockwork::io::executor::{GuardProgram, HandlerContext, HandlerError, Handlers};
use flockwork::io::machine::Machine;
use flockwork::model::config::{Config, Profile};
use flockwork::model::id::JobId;
use flockwork::model::record::JobState;
use flockwork::model::request::Draft;
use flockwork::model::spec::{Driver, Spec};
use flockwork::model::wire::{LogRequest, Stream};
use flockwork::node::Node;
use flockwork::node::handle::Handle;
use flockwork::node::options::NodeOptions;

const SLICES: u64 = 8;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let below: u64 = std::env::args().nth(1).map_or(Ok(200_000), |text| text.parse()).context("give a number")?;
    let dir = tempfile::tempdir()?;
    let mut handlers = Handlers::new();
    handlers.register("primes", count_primes);
    let config = Config::new(Profile::Local, Machine::new(dir.path()).capacity());
    let node = Node::start(NodeOptions::new(dir.path(), config), handlers, GuardProgram::default()).await?;
    let handle = node.handle();
    handle.snapshots().wait_for(|snapshot| snapshot.not_ready.is_none()).await?;

    let slice = below.div_ceil(SLICES);
    let drafts = (0..SLICES).map(|at| {
        let payload = serde_json::json!({"from": at * slice, "to": ((at + 1) * slice).min(below)});
        let spec =
            Spec { driver: Driver::Handler, handler: Some("primes".into()), payload: Some(payload), ..Spec::default() };
        Draft { spec, retry_of: None }
    });
    let submitted = handle.submit(drafts.collect()).await?;
    let mut found = 0;
    for outcome in submitted {
        found += result_of(&handle, outcome?.id).await?;
    }
    println!("there are {found} primes below {below}");
    node.shut_down().await;
    Ok(())
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

/// Waits for the job's end and reads the number that it wrote.
async fn result_of(handle: &Handle, id: JobId) -> anyhow::Result<u64> {
    let mut known = None;
    let attempt = loop {
        let answer = handle.watch(id, known, Duration::from_secs(60)).await?;
        match answer.record.state() {
            JobState::Pending | JobState::Running => known = Some(answer.version),
            JobState::Succeeded => break answer.record,
            JobState::Failed | JobState::Cancelled => bail!("job {id} did not succeed"),
        }
    };
    let (claim, attempt) =
        attempt.attempts.iter().find(|(_, a)| a.fate.exit.is_some()).context("a job that succeeded has an attempt")?;
    let request = LogRequest { job: id, claim: *claim, stream: Stream::Stdout, offset: 0, limit: 64, wait_ms: 1_000 };
    let chunk = handle.read_log(attempt.claim.executor.node, request).await?;
    Ok(String::from_utf8(chunk.bytes)?.trim().parse()?)
}
