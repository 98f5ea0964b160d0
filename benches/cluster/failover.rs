//! How long it takes until a job runs again, after the node that ran it was killed or frozen.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rustix::process::Signal;
use serde_json::json;

use crate::nodes::{Nodes, PATIENCE, eventually, expect};
use crate::table::{Spread, Table};

/// Until a cluster that lost a node, and has it back, is well again.
const CALM: Duration = Duration::from_secs(6);
const NODES: usize = 5;

/// So often each, on five nodes.
pub fn deaths(count: usize, table: &mut Table) -> anyhow::Result<()> {
    let mut nodes = Nodes::start(NODES, "--slots 2")?;
    for (how, is_killed) in [("killed (SIGKILL)", true), ("frozen (SIGSTOP)", false)] {
        let mut times = Vec::new();
        for round in 0..count {
            std::thread::sleep(CALM);
            times.push(death(&mut nodes, round, is_killed)?);
        }
        let what = format!("a job runs again elsewhere, its node {how}, {NODES} nodes");
        table.say(&what, format!("{} s", Spread::of(&times, 2)), format!("median (smallest to largest) of {count}"));
    }
    Ok(())
}

fn death(nodes: &mut Nodes, round: usize, is_killed: bool) -> anyhow::Result<f64> {
    let file = nodes.folder().join(format!("starts-{is_killed}-{round}"));
    // Each start of the job leaves a line with its time.
    let script = format!("date +%s.%N >>{}; sleep 60", file.display());
    let starts = || -> anyhow::Result<Vec<f64>> {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        text.lines().map(|line| Ok(line.parse()?)).collect()
    };
    let (status, answer) = nodes.connect(round % NODES)?.submit(&json!({"command": ["sh", "-c", script]}))?;
    expect(status, &answer)?;
    let id = answer["id"].as_str().context("an id")?.to_owned();
    let victim = nodes.executor_of(&id, round % NODES)?;
    eventually("the job has said that it runs", || Ok((starts()?.len() == 1).then_some(())))?;
    let at = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs_f64();
    if is_killed {
        nodes.kill(victim)?;
    } else {
        nodes.signal(victim, Signal::STOP)?;
    }
    let again = eventually("the job runs again", || Ok(starts()?.get(1).copied()));
    if is_killed {
        nodes.restart(victim)?;
    } else {
        nodes.signal(victim, Signal::CONT)?;
    }
    let took = again? - at;
    let deadline = Instant::now() + PATIENCE;
    while nodes.agree().is_err() {
        ensure!(Instant::now() < deadline, "the cluster does not recover");
    }
    let mut connection = nodes.connect((victim + 1) % NODES)?;
    let (status, body) =
        connection.ask(format!("DELETE /v1/jobs/{id} HTTP/1.1\r\nhost: localhost\r\n\r\n").as_bytes())?;
    ensure!(status == 200, "{status}: {}", String::from_utf8_lossy(&body));
    Ok(took)
}
