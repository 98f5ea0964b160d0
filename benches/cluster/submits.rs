//! How many jobs are taken and acknowledged. They are to start only in an hour, so that nothing but taking them is
//! measured.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::charts::{Chart, Line};
use crate::http::{Connection, submission};
use crate::limits;
use crate::nodes::{Nodes, expect};
use crate::peers::{Beanstalkd, Nats};
use crate::table::Table;

const CONNECTIONS: usize = 64;
/// Connections that each submit many at a time.
const BULK_CONNECTIONS: usize = 4;
/// Before a refused client asks again.
const PAUSE: Duration = Duration::from_millis(10);
const SPAN: Duration = Duration::from_secs(4);

/// A job that waits.
pub fn waiting() -> Value {
    json!({"command": ["/bin/true"], "delay": "1h"})
}

/// One job a request and a thousand, on one node and on three.
pub fn rates(rounds: usize, table: &mut Table) -> anyhow::Result<()> {
    let (mut log, mut beanstalkd, mut nats) = (Vec::new(), Vec::new(), Vec::new());
    let (mut single, mut single_of_three, mut bulk, mut bulk_of_three) = (vec![], vec![], vec![], vec![]);
    for _ in 0..rounds {
        log.push(limits::synced_log(CONNECTIONS, 2.0)?);
        let puts = Beanstalkd::start().and_then(|server| server.rate(CONNECTIONS, 2.0));
        beanstalkd.extend(table.unless_skipped("beanstalkd", puts));
        let publishes = Nats::start().and_then(|server| server.rate(CONNECTIONS, 2.0));
        nats.extend(table.unless_skipped("NATS", publishes));
        // New nodes for each round, so that none is slowed by what earlier rounds left.
        let one = Nodes::start(1, "--replicas 1")?;
        single.push(rate(&one, CONNECTIONS, 1)?);
        bulk.push(rate(&one, BULK_CONNECTIONS, 1_000)?);
        drop(one);
        let three = Nodes::start(3, "--replicas 3")?;
        single_of_three.push(rate(&three, CONNECTIONS, 1)?);
        bulk_of_three.push(rate(&three, BULK_CONNECTIONS, 1_000)?);
    }
    let limit = "a synced log's records, 64 writers";
    table.rates("durable submits, R=1, 64 connections, 1 job each", &single, limit, &log);
    table.rates("durable submits, R=3, 64 connections, 1 job each", &single_of_three, limit, &log);
    table.rates("durable submits, R=1, 1,000 jobs a request", &bulk, limit, &log);
    table.rates("durable submits, R=3, 1,000 jobs a request", &bulk_of_three, limit, &log);
    table.rates_of_peer("durable puts, beanstalkd, 64 connections", &beanstalkd, limit, &log);
    table.rates_of_peer("publishes, NATS (file store, not synced), 64 connections", &nats, limit, &log);
    Ok(())
}

/// Jobs acknowledged a second, by connections that are spread over the nodes and each submit so many at a time.
pub fn rate(nodes: &Nodes, connections: usize, jobs: usize) -> anyhow::Result<f64> {
    let request = submission(&if jobs == 1 { waiting() } else { json!(vec![waiting(); jobs]) });
    let (taken, begun) = (AtomicUsize::new(0), Instant::now());
    thread::scope(|scope| {
        let submit = |place: usize| {
            let mut connection = Connection::open(nodes.http(place))?;
            while begun.elapsed() < SPAN {
                let (status, body) = connection.ask(&request)?;
                if status == 429 {
                    // As it was told to, only sooner: what counts is what the node takes.
                    thread::sleep(PAUSE);
                    continue;
                }
                expect(status, &json!(String::from_utf8_lossy(&body)))?;
                taken.fetch_add(jobs, Ordering::Relaxed);
            }
            anyhow::Ok(())
        };
        let clients: Vec<_> = (0..connections).map(|at| scope.spawn(move || submit(at % nodes.len()))).collect();
        clients.into_iter().try_for_each(|client| client.join().expect("it does not panic"))
    })?;
    Ok(taken.load(Ordering::Relaxed) as f64 / begun.elapsed().as_secs_f64())
}

/// How the rate grows with the jobs in a request.
pub fn by_request_size() -> anyhow::Result<Chart> {
    let mut chart = Chart::new("Durable submits, by jobs in a request", "jobs in a request", "jobs/s");
    for (name, count) in [("1 node, R=1", 1), ("3 nodes, R=3", 3)] {
        let mut line = Line::new(name);
        for jobs in [1, 10, 100, 1_000, 10_000] {
            let nodes = Nodes::start(count, &format!("--replicas {count}"))?;
            let connections = if jobs == 1 { CONNECTIONS } else { BULK_CONNECTIONS };
            line.add(jobs as f64, rate(&nodes, connections, jobs)?);
        }
        chart.lines.push(line);
    }
    chart.is_logarithmic = true;
    Ok(chart)
}
