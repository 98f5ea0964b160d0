//! What happens when three times as much comes as can be done.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::http::{Connection, submission};
use crate::nodes::{Nodes, eventually};
use crate::submits::{rate, waiting};
use crate::table::{Table, p50_p99_ms, percentile};

const CLIENTS: usize = 600;
const SPAN: Duration = Duration::from_secs(10);
/// A few clients at their ease, for the comparison.
const FEW: usize = 4;

/// Clients that keep to three times the rate that three nodes managed: how long those wait who are served, what the
/// others are told, and how soon all is well afterwards.
pub fn three_times(table: &mut Table) -> anyhow::Result<()> {
    let nodes = Nodes::start(3, "--replicas 3")?;
    let capacity = rate(&nodes, 64, 1)?;
    let unloaded = p99(&offered(&nodes, FEW, capacity / 20.0, Duration::from_secs(3))?.served);
    let loaded = offered(&nodes, CLIENTS, capacity * 3.0, SPAN)?;
    let begun = Instant::now();
    eventually("requests are served as before", || {
        let after = offered(&nodes, FEW, capacity / 20.0, Duration::from_secs(1))?;
        Ok((after.refused == 0 && p99(&after.served) < unloaded * 3.0).then_some(()))
    })?;
    let recovered = begun.elapsed().as_secs_f64();
    let held: f64 = (0..3)
        .map(|place| nodes.connect(place)?.metric("flockwork_jobs{role=\"held\"}"))
        .sum::<anyhow::Result<f64>>()?;
    ensure!(held / 3.0 >= loaded.served.len() as f64, "every acknowledged job is held");
    let share = loaded.refused as f64 / (loaded.refused + loaded.served.len()) as f64;
    table.say(
        "at three times the capacity: served",
        p50_p99_ms(&loaded.served),
        format!("unloaded p99 {:.1} ms", unloaded * 1e3),
    );
    table.say(
        "at three times the capacity: refused (429)",
        format!("{:.0} %", share * 100.0),
        format!("after {}", p50_p99_ms(&loaded.refusals)),
    );
    table.say("after it: as before", format!("{recovered:.1} s"), "within; looked at once a second");
    Ok(())
}

fn p99(times: &[f64]) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    percentile(&sorted, 0.99)
}

struct Offered {
    served: Vec<f64>,
    refused: usize,
    refusals: Vec<f64>,
}

/// Clients that together begin so many requests a second, unless they still wait for an answer.
fn offered(nodes: &Nodes, clients: usize, rate: f64, span: Duration) -> anyhow::Result<Offered> {
    let request = submission(&waiting());
    let (served, refusals, failed) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()), AtomicUsize::new(0));
    let every = Duration::from_secs_f64(clients as f64 / rate);
    let begun = Instant::now();
    thread::scope(|scope| {
        for client in 0..clients {
            let (request, served, refusals, failed) = (&request, &served, &refusals, &failed);
            scope.spawn(move || {
                let Ok(mut connection) = Connection::open(nodes.http(client % nodes.len())) else {
                    failed.fetch_add(1, Ordering::Relaxed);
                    return;
                };
                let (mut mine, mut not) = (Vec::new(), Vec::new());
                let mut next = begun + every.mul_f64(client as f64 / clients as f64);
                while next < begun + span {
                    thread::sleep(next.saturating_duration_since(Instant::now()));
                    let asked = Instant::now();
                    match connection.ask(request) {
                        Ok((429, _)) => not.push(asked.elapsed().as_secs_f64()),
                        Ok((200..300, _)) => mine.push(asked.elapsed().as_secs_f64()),
                        Ok(_) | Err(_) => _ = failed.fetch_add(1, Ordering::Relaxed),
                    }
                    next = (next + every).max(Instant::now());
                }
                served.lock().unwrap().extend(mine);
                refusals.lock().unwrap().extend(not);
            });
        }
    });
    ensure!(failed.load(Ordering::Relaxed) == 0, "{} requests failed otherwise", failed.load(Ordering::Relaxed));
    let refusals = refusals.into_inner().unwrap();
    let refused = refusals.len();
    Ok(Offered {
        served: served.into_inner().unwrap(),
        refused,
        refusals: if refused == 0 { vec![0.0] } else { refusals },
    })
}
