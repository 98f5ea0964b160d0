//! How long a client waits that submits to an idle cluster, how long its job, and how long who reads along.

use std::fs;
use std::io::{BufRead, Read};
use std::mem::MaybeUninit;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use serde_json::json;

use crate::limits::Disks;
use crate::nodes::{Nodes, PATIENCE, expect};
use crate::peers::{Beanstalkd, Dask, Nats};
use crate::table::{Spread, Table, p50_p99_ms};

/// Submits in a round.
const SUBMITS: usize = 200;
/// Between two of them, so that each finds the cluster idle.
const PAUSE: Duration = Duration::from_millis(15);

/// Until the acknowledgement, until the process is there, and until it says so: on one node, and on three with three copies.
pub fn idle(rounds: usize, table: &mut Table) -> anyhow::Result<()> {
    [1, 3].into_iter().try_for_each(|replicas| idle_with(replicas, rounds, table))
}

fn idle_with(replicas: usize, rounds: usize, table: &mut Table) -> anyhow::Result<()> {
    let (mut acks, mut starts, mut acts) = (Vec::new(), Vec::new(), Vec::new());
    let nodes = Nodes::start(replicas, &format!("--replicas {replicas} --slots 4"))?;
    let pipe = nodes.folder().join("started");
    ensure!(Command::new("mkfifo").arg(&pipe).status()?.success(), "mkfifo works");
    // Opened for both, so that reading does not end when a writer does.
    let reader = std::fs::File::options().read(true).write(true).open(&pipe)?;
    let (acted, acts_seen) = mpsc::channel();
    thread::spawn(move || {
        let (mut reader, mut byte) = (reader, [0]);
        while reader.read_exact(&mut byte).is_ok() && acted.send(Instant::now()).is_ok() {}
    });
    let shell = nodes.folder().join("shell");
    fs::copy("/bin/sh", &shell)?;
    let starts_seen = executions_of(&shell)?;
    let script = format!("printf x >{}", pipe.display());
    let job = json!({"command": [&shell, "-c", script]});
    // In turn with them what the disk alone takes for as many copies, what the process takes when it is started directly, and
    // what other systems do for one job.
    let (disks, mut syncs) = (Disks::new(replicas)?, Vec::new());
    let (mut direct_starts, mut direct_acts) = (Vec::new(), Vec::new());
    let (beanstalkd, mut puts) = (table.unless_skipped("beanstalkd", Beanstalkd::start()), Vec::new());
    let mut putter = beanstalkd.as_ref().and_then(|server| table.unless_skipped("beanstalkd", server.connect()));
    let (nats, mut publishes) = (table.unless_skipped("NATS", Nats::start()), Vec::new());
    let mut publisher = nats.as_ref().and_then(|server| table.unless_skipped("NATS", server.connect()));
    let mut tasks = Vec::new();
    for _ in 0..rounds {
        for at in 0..SUBMITS {
            let mut connection = nodes.connect(at % nodes.len())?;
            let begun = Instant::now();
            let (status, answer) = connection.submit(&job)?;
            acks.push(begun.elapsed().as_secs_f64());
            expect(status, &answer)?;
            starts.push((starts_seen.recv_timeout(PATIENCE)? - begun).as_secs_f64());
            acts.push((acts_seen.recv_timeout(PATIENCE)? - begun).as_secs_f64());
            thread::sleep(PAUSE);
            syncs.push(disks.sync());
            thread::sleep(PAUSE);
            let begun = Instant::now();
            let mut process = Command::new(&shell).args(["-c", &script]).spawn()?;
            direct_starts.push((starts_seen.recv_timeout(PATIENCE)? - begun).as_secs_f64());
            direct_acts.push((acts_seen.recv_timeout(PATIENCE)? - begun).as_secs_f64());
            process.wait()?;
            thread::sleep(PAUSE);
            if let Some(connection) = &mut putter {
                puts.extend(table.unless_skipped("beanstalkd", connection.put()));
                thread::sleep(PAUSE);
            }
            if let Some(connection) = &mut publisher {
                publishes.extend(table.unless_skipped("NATS", connection.publish()));
                thread::sleep(PAUSE);
            }
        }
        // A round of its own, because its processes take of the processors when they have nothing to do, too.
        tasks.extend(table.unless_skipped("Dask", starts_in_dask()).into_iter().flatten());
    }
    let mut say = |what: &str, times: &[f64], beside: &str| {
        // Nothing is known of a system that was skipped.
        if !times.is_empty() {
            table.say(&format!("{what} R={replicas}, idle"), p50_p99_ms(times), beside);
        }
    };
    let synced = format!("p50 / p99 (submits); synced in {replicas} files at once {}", p50_p99_ms(&syncs));
    say("submit to acknowledgement,", &acks, &synced);
    say("submit to the process's start,", &starts, "until its program is executed");
    say("the same process's start, started directly, in turn with", &direct_starts, "its part of the row above");
    say("submit to the process's first act,", &acts, "until a shell has begun, and written a byte");
    say("the same process's first act, started directly, in turn with", &direct_acts, "its part of the row above");
    say("a put to beanstalkd, in turn with", &puts, "one copy, synced");
    say("a publish to NATS, in turn with", &publishes, "one copy, file store, not synced");
    say("submit to the task's start in Dask, in turn with", &tasks, "in memory, no process of its own");
    Ok(())
}

/// Tells when the kernel opens a program to execute it.
fn executions_of(program: &Path) -> anyhow::Result<mpsc::Receiver<Instant>> {
    let watch = inotify::init(CreateFlags::CLOEXEC)?;
    inotify::add_watch(&watch, program, WatchFlags::OPEN)?;
    let (executed, executions_seen) = mpsc::channel();
    thread::spawn(move || {
        let mut space = [MaybeUninit::uninit(); 512];
        let mut events = inotify::Reader::new(watch, &mut space);
        while events.next().is_ok() && executed.send(Instant::now()).is_ok() {}
    });
    Ok(executions_seen)
}

/// How long as many tasks take to start in Dask, each submitted when nothing else runs.
fn starts_in_dask() -> anyhow::Result<Vec<f64>> {
    let mut cluster = Dask::start()?;
    let mut start = || {
        let took = cluster.start_of_one();
        thread::sleep(PAUSE);
        took
    };
    (0..SUBMITS).map(|_| start()).collect()
}

/// From a job's writing a line to a client's reading it on another node; and how fast one client reads a long log.
pub fn logs(rounds: usize, table: &mut Table) -> anyhow::Result<()> {
    const MEGABYTES: usize = 200;
    let nodes = Nodes::start(2, "--replicas 2 --slots 2 --log-limit 1GiB")?;
    let (mut delays, mut rates) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let lines = "for i in $(seq 100); do date +%s.%N; sleep 0.02; done";
        let (id, other) = submitted(&nodes, lines)?;
        let mut log = nodes.connect(other)?.follow(&format!("/v1/jobs/{id}/logs?follow=true&stream=stdout"))?;
        let mut line = String::new();
        while log.read_line(&mut line)? > 0 {
            let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
            delays.push(now - line.trim().parse::<f64>().with_context(|| format!("{line:?} is no time"))?);
            line.clear();
        }
        let bytes = format!("head -c {MEGABYTES}000000 /dev/zero");
        let (id, other) = submitted(&nodes, &bytes)?;
        let begun = Instant::now();
        let mut log = nodes.connect(other)?.follow(&format!("/v1/jobs/{id}/logs?follow=true&stream=stdout"))?;
        let mut buffer = vec![0; 1 << 16];
        let mut read = 0;
        loop {
            match log.read(&mut buffer)? {
                0 => break,
                bytes => read += bytes,
            }
        }
        ensure!(read >= MEGABYTES * 1_000_000, "all of it was read: {read}");
        rates.push(read as f64 / 1e6 / begun.elapsed().as_secs_f64());
    }
    table.say("a line of a log, to a reader on another node", p50_p99_ms(&delays), "p50 / p99 (lines)");
    table.say("a log, to one reader on another node", format!("{} MB/s", Spread::of(&rates, 0)), "to reach: 50");
    Ok(())
}

/// Submits a script, and waits until it runs: its id, and a node that does not run it.
fn submitted(nodes: &Nodes, script: &str) -> anyhow::Result<(String, usize)> {
    let (status, answer) = nodes.connect(0)?.submit(&json!({"command": ["sh", "-c", script]}))?;
    expect(status, &answer)?;
    let id = answer["id"].as_str().context("an id")?.to_owned();
    let executor = nodes.executor_of(&id, 0)?;
    Ok((id, (executor + 1) % nodes.len()))
}
