//! What happens when three times as much comes as can be done.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout};

use crate::http::{Head, submission};
use crate::nodes::{Nodes, PATIENCE, eventually};
use crate::submits::{rate, waiting};
use crate::table::{Spread, Table, p50_p99_ms, percentile};

const CLIENTS: usize = 600;
const SPAN: Duration = Duration::from_secs(10);
/// A few clients at their ease, for the comparison.
const FEW: usize = 4;

/// Clients that keep to three times the rate that three nodes managed: how long those wait who are served, what the
/// others are told, and how soon all is well afterwards.
pub fn three_times(rounds: usize, table: &mut Table) -> anyhow::Result<()> {
    let (mut times, mut recovered) = (Vec::new(), Vec::new());
    let mut all = Offered::default();
    for _ in 0..rounds {
        let round = one_round()?;
        times.push(p99(&round.loaded.served) / p99(&round.unloaded.served));
        recovered.push(round.recovered);
        all.served.extend(round.loaded.served);
        all.refusals.extend(round.loaded.refusals);
    }
    let share = all.refusals.len() as f64 / (all.refusals.len() + all.served.len()) as f64;
    table.say(
        "at three times the capacity: served",
        p50_p99_ms(&all.served),
        format!("p99, times the unloaded: {}", Spread::of(&times, 1)),
    );
    table.say(
        "at three times the capacity: refused (429)",
        format!("{:.0} %", share * 100.0),
        format!("after {}", p50_p99_ms(&all.refusals)),
    );
    table.say("after it: as before", format!("{} s", Spread::of(&recovered, 1)), "within; looked at once a second");
    Ok(())
}

struct Round {
    unloaded: Offered,
    loaded: Offered,
    /// Seconds until all was as before.
    recovered: f64,
}

fn one_round() -> anyhow::Result<Round> {
    let nodes = Nodes::start(3, "--replicas 3")?;
    let capacity = rate(&nodes, 64, 1)?;
    let unloaded = offered(&nodes, FEW, capacity / 20.0, Duration::from_secs(3))?;
    let loaded = offered(&nodes, CLIENTS, capacity * 3.0, SPAN)?;
    ensure!(!loaded.refusals.is_empty(), "three times the capacity is too much");
    let begun = Instant::now();
    eventually("requests are served as before", || {
        let after = offered(&nodes, FEW, capacity / 20.0, Duration::from_secs(1))?;
        Ok((after.refusals.is_empty() && p99(&after.served) < p99(&unloaded.served) * 3.0).then_some(()))
    })?;
    let recovered = begun.elapsed().as_secs_f64();
    let held: f64 = (0..3)
        .map(|place| nodes.connect(place)?.metric("flockwork_jobs{role=\"held\"}"))
        .sum::<anyhow::Result<f64>>()?;
    ensure!(held / 3.0 >= loaded.served.len() as f64, "every acknowledged job is held");
    Ok(Round { unloaded, loaded, recovered })
}

fn p99(times: &[f64]) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    percentile(&sorted, 0.99)
}

/// How long clients waited, in seconds.
#[derive(Default)]
struct Offered {
    served: Vec<f64>,
    refusals: Vec<f64>,
}

/// Clients that together begin so many requests a second, unless they still wait for an answer. They share one thread:
/// so many threads would stand in line with the nodes for the processors, which clients elsewhere do not.
fn offered(nodes: &Nodes, clients: usize, rate: f64, span: Duration) -> anyhow::Result<Offered> {
    let request: Arc<[u8]> = submission(&waiting()).into();
    let every = Duration::from_secs_f64(clients as f64 / rate);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (served, refusals) = runtime.block_on(async {
        let begun = Instant::now();
        let mut running = JoinSet::new();
        for client in 0..clients {
            let (addr, request) = (nodes.http(client % nodes.len()), Arc::clone(&request));
            let first = begun + every.mul_f64(client as f64 / clients as f64);
            running.spawn(one_client(addr, request, first, every, begun + span));
        }
        let (mut served, mut refusals) = (Vec::new(), Vec::new());
        while let Some(ended) = running.join_next().await {
            let (of_one, not) = ended??;
            served.extend(of_one);
            refusals.extend(not);
        }
        anyhow::Ok((served, refusals))
    })?;
    Ok(Offered { served, refusals })
}

/// How long it waited for what it was served, and for being refused, in seconds.
async fn one_client(
    addr: SocketAddr,
    request: Arc<[u8]>,
    first: Instant,
    every: Duration,
    end: Instant,
) -> anyhow::Result<(Vec<f64>, Vec<f64>)> {
    let stream = TcpStream::connect(addr).await?;
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    let (mut served, mut refused) = (Vec::new(), Vec::new());
    let mut next = first;
    while next < end {
        sleep_until(next.into()).await;
        let asked = Instant::now();
        match timeout(PATIENCE, ask(&mut stream, &request)).await?? {
            429 => refused.push(asked.elapsed().as_secs_f64()),
            200..300 => served.push(asked.elapsed().as_secs_f64()),
            status => bail!("a request failed otherwise: {status}"),
        }
        next = (next + every).max(Instant::now());
    }
    Ok((served, refused))
}

/// Sends a whole request and reads the whole answer. Its status.
async fn ask(stream: &mut BufReader<TcpStream>, request: &[u8]) -> anyhow::Result<u16> {
    stream.get_mut().write_all(request).await?;
    let (mut head, mut line) = (Head::default(), String::new());
    while !head.is_whole() {
        line.clear();
        stream.read_line(&mut line).await?;
        head.take(&line)?;
    }
    let (status, length) = head.parts()?;
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok(status)
}
