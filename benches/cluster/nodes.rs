//! Node processes of the release build, and what they take of the machine.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::ops::{Add, Sub};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use flockwork::io::executor::GUARD_ARGUMENT;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::http::Connection;

/// How long anything that is waited for may take.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Between two looks at something that no event tells of.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// A running cluster; its processes end with it.
#[derive(Debug)]
pub struct Nodes {
    nodes: Vec<Node>,
    settings: Vec<String>,
    dir: TempDir,
}

#[derive(Debug)]
struct Node {
    process: Child,
    /// The node leaves when this is closed, so nothing is left behind however the benchmark ends.
    _lifeline: ChildStdin,
    id: String,
    cluster: SocketAddr,
    http: SocketAddr,
    ready_after: Duration,
}

impl Nodes {
    /// Starts so many nodes with these settings, and returns when all see all.
    pub fn start(count: usize, settings: &str) -> anyhow::Result<Self> {
        let settings = settings.split_whitespace().map(str::to_owned).collect();
        let mut nodes = Self { nodes: Vec::new(), settings, dir: TempDir::new()? };
        for place in 0..count {
            let node = nodes.spawn(place)?;
            nodes.nodes.push(node);
        }
        nodes.agree()?;
        Ok(nodes)
    }

    fn spawn(&self, place: usize) -> anyhow::Result<Node> {
        let begun = Instant::now();
        let free = "127.0.0.1:0".to_owned();
        let (cluster, http) =
            self.nodes.get(place).map_or((free.clone(), free), |old| (old.cluster.to_string(), old.http.to_string()));
        let log =
            std::fs::File::options().create(true).append(true).open(self.dir.path().join(format!("{place}.log")))?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_flockwork"));
        command
            .args(["node", "--config", "/dev/null", "--output", "json", "--until-stdin-closes", "--cluster", "bench"])
            .args(["--name", &format!("n{place}"), "--listen", &cluster, "--http", &http, "--data-dir"])
            .arg(self.data_dir(place))
            .args(&self.settings);
        // Any one of the others will do, a node that comes back remembers them all.
        if let Some(seed) = self.nodes.iter().enumerate().find(|(at, _)| *at != place) {
            command.args(["--seed", &seed.1.cluster.to_string()]);
        }
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log).spawn()?;
        let lifeline = process.stdin.take().context("it is piped")?;
        let mut line = String::new();
        BufReader::new(process.stdout.take().context("it is piped")?).read_line(&mut line)?;
        let ready: Value = serde_json::from_str(&line).with_context(|| format!("n{place} did not become ready"))?;
        let addr = |field: &str| anyhow::Ok(ready[field].as_str().with_context(|| ready.to_string())?.parse()?);
        Ok(Node {
            process,
            _lifeline: lifeline,
            id: ready["node"].as_str().unwrap_or_default().to_owned(),
            cluster: addr("cluster_addr")?,
            http: addr("http_addr")?,
            ready_after: begun.elapsed(),
        })
    }

    /// Waits until every node sees every other alive.
    pub fn agree(&self) -> anyhow::Result<()> {
        for place in 0..self.nodes.len() {
            eventually("all see all", || {
                let (_, body) = self.connect(place)?.get("/v1/nodes")?;
                let alive = body["nodes"]
                    .as_array()
                    .map_or(0, |nodes| nodes.iter().filter(|node| node["state"] == "alive").count());
                Ok((alive == self.nodes.len()).then_some(()))
            })?;
        }
        Ok(())
    }

    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    pub fn data_dir(&self, place: usize) -> PathBuf {
        self.dir.path().join(format!("n{place}"))
    }

    /// A folder for what jobs write.
    pub fn folder(&self) -> &Path {
        self.dir.path()
    }

    pub fn http(&self, place: usize) -> SocketAddr {
        self.nodes[place].http
    }

    pub fn connect(&self, place: usize) -> anyhow::Result<Connection> {
        Connection::open(self.http(place))
    }

    /// The place of the node with this id.
    pub fn place_of(&self, id: &str) -> anyhow::Result<usize> {
        self.nodes.iter().position(|node| node.id == id).with_context(|| format!("no node has the id {id}"))
    }

    /// Waits until a job's process runs: the place of its node, as the node at `via` tells it.
    pub fn executor_of(&self, job: &str, via: usize) -> anyhow::Result<usize> {
        let mut connection = self.connect(via)?;
        eventually("the job runs", || {
            let (status, answer) = connection.get(&format!("/v1/jobs/{job}"))?;
            expect(status, &answer)?;
            let attempts = answer["attempts"].as_array().map_or(&[][..], Vec::as_slice);
            match attempts.last() {
                Some(attempt) if attempt["phase"] != "claimed" => {
                    Ok(Some(self.place_of(attempt["node"].as_str().unwrap_or_default())?))
                }
                Some(_) | None => Ok(None),
            }
        })
    }

    pub fn kill(&mut self, place: usize) -> anyhow::Result<()> {
        self.nodes[place].process.kill()?;
        self.nodes[place].process.wait()?;
        Ok(())
    }

    /// Starts a killed node again, with what it has on disk. How long until it is ready.
    pub fn restart(&mut self, place: usize) -> anyhow::Result<Duration> {
        let node = self.spawn(place)?;
        let took = node.ready_after;
        self.nodes[place] = node;
        Ok(took)
    }

    pub fn signal(&self, place: usize, signal: Signal) -> anyhow::Result<()> {
        kill_process(self.pid(place), signal)?;
        Ok(())
    }

    fn pid(&self, place: usize) -> Pid {
        Pid::from_child(&self.nodes[place].process)
    }

    /// The memory that a node takes for itself, in bytes: pages it shares with others are counted in part.
    pub fn memory(&self, place: usize) -> anyhow::Result<f64> {
        let rollup = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", self.pid(place).as_raw_nonzero()))?;
        let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).context("there is no Pss line")?;
        let kilobytes: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
        Ok(kilobytes * 1024.0)
    }

    /// The processor time that a node has taken, in seconds; that of its pods, once they have ended; and that of its guard.
    /// Counted by the kernel in steps of 10 ms.
    pub fn processor_times(&self, place: usize) -> anyhow::Result<Times> {
        let node = self.pid(place).as_raw_nonzero().get();
        let mut times = Times { guard: 0.0, ..times_of(node)? };
        for thread in std::fs::read_dir(format!("/proc/{node}/task"))? {
            // Threads end at any moment, and so do children that are pods.
            let children = std::fs::read_to_string(thread?.path().join("children")).unwrap_or_default();
            for child in children.split_whitespace() {
                let arguments = std::fs::read(format!("/proc/{child}/cmdline")).unwrap_or_default();
                if arguments.split(|byte| *byte == 0).nth(1) == Some(GUARD_ARGUMENT.as_bytes()) {
                    times.guard += times_of(child.parse()?)?.own;
                }
            }
        }
        Ok(times)
    }

    /// Waits until no job that a node holds is open.
    pub fn all_ended(&self, place: usize) -> anyhow::Result<()> {
        let mut connection = self.connect(place)?;
        eventually("all jobs have ended", || {
            let open = connection.metric("flockwork_jobs{role=\"open\"}")?;
            Ok((open == 0.0).then_some(()))
        })
    }
}

/// Processor time, in seconds.
#[derive(Debug, Clone, Copy, Default)]
pub struct Times {
    /// Of all threads of a process, those that have ended too.
    pub own: f64,
    /// Of its children that have ended.
    pub children: f64,
    /// Of its guard.
    pub guard: f64,
}

impl Times {
    pub fn all(self) -> f64 {
        self.own + self.children + self.guard
    }
}

impl Add for Times {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        let (own, children) = (self.own + other.own, self.children + other.children);
        Self { own, children, guard: self.guard + other.guard }
    }
}

impl Sub for Times {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        let (own, children) = (self.own - before.own, self.children - before.children);
        Self { own, children, guard: self.guard - before.guard }
    }
}

/// Of a process, and without its guard, as /proc tells.
pub fn times_of(process: i32) -> anyhow::Result<Times> {
    let told = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    // Behind the program's name, which may contain anything. Linux shows these numbers in hundredths of a second, always.
    let fields: Vec<&str> = told.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let seconds =
        |at: usize| -> anyhow::Result<f64> { Ok(fields.get(at).context("a line of numbers")?.parse::<f64>()? / 100.0) };
    Ok(Times { own: seconds(11)? + seconds(12)?, children: seconds(13)? + seconds(14)?, guard: 0.0 })
}

impl Drop for Nodes {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            // It may have ended already, or be stopped.
            let _ = node.process.kill();
            let _ = node.process.wait();
        }
    }
}

/// Looks again and again until there is something.
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> anyhow::Result<Option<T>>) -> anyhow::Result<T> {
    let give_up = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        ensure!(Instant::now() < give_up, "waited in vain: {what}");
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Fails unless a request was answered as hoped.
pub fn expect(status: u16, answer: &Value) -> anyhow::Result<()> {
    if (200..300).contains(&status) {
        return Ok(());
    }
    bail!("answered {status}: {answer}")
}
