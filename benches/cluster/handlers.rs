//! Jobs that are functions of the program that runs the node.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::ensure;
use flockwork::io::executor::{GuardProgram, HandlerContext, Handlers};
use flockwork::model::config::{Config, Profile};
use flockwork::model::member::ClusterSettings;
use flockwork::model::request::Draft;
use flockwork::model::resources::{Cpus, Memory, Resources};
use flockwork::model::spec::{Driver, Spec};
use flockwork::node::Node;
use flockwork::node::options::NodeOptions;
use tempfile::TempDir;

use crate::limits;
use crate::peers::{Dask, Nats};
use crate::table::Table;

const JOBS: usize = 20_000;
/// Fewer of Dask's, which takes longer for each.
const TASKS: usize = 2_000;
/// Handed in at once, as the HTTP side would a request of so many.
const REQUEST: usize = 1_000;
/// Functions that run side by side.
const SLOTS: u32 = 64;

/// From being submitted to their durable ends, on one node; beside it, what a log that is synced for each of 64 writers
/// takes, because each job writes at least three records (submitted and claimed, running, ended). In turn with it what others
/// do in their workers' processes, none of which waits for a disk.
pub fn throughput(rounds: usize, table: &mut Table) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let (mut rates, mut limit, mut nats, mut dask) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        rates.push(runtime.block_on(round())?);
        limit.push(limits::synced_log(64, 2.0)?);
        nats.extend(table.unless_skipped("NATS", Nats::start().and_then(|server| server.work(JOBS))));
        dask.extend(table.unless_skipped("Dask", Dask::start().and_then(|mut cluster| cluster.rate(TASKS))));
    }
    table.rates("no-op handlers, 1 durable node", &rates, "a synced log's records, 64 writers", &limit);
    let flockwork = "flockwork's handlers, synced";
    table.rates_of_peer("no-op messages, NATS (file store, not synced), 2 workers", &nats, flockwork, &rates);
    table.rates_of_peer("no-op tasks, Dask (in memory), 2 workers", &dask, flockwork, &rates);
    Ok(())
}

async fn round() -> anyhow::Result<f64> {
    let dir = TempDir::new()?;
    let called = Arc::new(AtomicUsize::new(0));
    let mut handlers = Handlers::new();
    handlers.register("nothing", {
        let called = Arc::clone(&called);
        move |_: HandlerContext| {
            called.fetch_add(1, Ordering::Relaxed);
            std::future::ready(Ok(()))
        }
    });
    let capacity = Resources { cpus: Cpus::whole(SLOTS), memory: Memory { bytes: 1 << 40 }, slots: SLOTS };
    let config = Config::new(Profile::Local, capacity);
    let cluster = ClusterSettings { replicas: 1, ..config.cluster.clone() };
    let options = NodeOptions::new(dir.path(), Config { cluster, ..config });
    let node = Node::start(options, handlers, GuardProgram::default()).await?;
    let handle = node.handle();
    handle.snapshots().wait_for(|snapshot| snapshot.not_ready.is_none()).await?;
    let spec = Spec { driver: Driver::Handler, handler: Some("nothing".into()), ..Spec::default() };
    let draft = Draft { spec, retry_of: None };
    let begun = Instant::now();
    for _ in 0..JOBS / REQUEST {
        for outcome in handle.submit(vec![draft.clone(); REQUEST]).await? {
            outcome?;
        }
    }
    while handle.fresh_snapshot().await?.jobs.open > 0 {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let rate = JOBS as f64 / begun.elapsed().as_secs_f64();
    node.shut_down().await;
    ensure!(called.load(Ordering::Relaxed) >= JOBS, "every job ran");
    Ok(rate)
}
