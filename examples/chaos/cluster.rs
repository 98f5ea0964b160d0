//! The nodes: processes on addresses of their own, and what each is to pretend.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use flockwork::io::faults::{Disk, Plan};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::timeout;

use crate::Options;

/// How long a node may take to become ready.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How long a node may take to leave.
const LEAVE_WITHIN: Duration = Duration::from_secs(40);
/// How often nodes are told what to pretend, where they do not do so yet.
const TELL_EVERY: Duration = Duration::from_millis(200);
/// How long a node may take to answer such a thing.
const TOLD_WITHIN: Duration = Duration::from_secs(2);

static BEGUN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// The time since the beginning, for lines of the report.
pub fn elapsed() -> String {
    format!("[{:7.2}s]", BEGUN.elapsed().as_secs_f64())
}

pub struct Cluster {
    pub nodes: Vec<Arc<Node>>,
    pub http: reqwest::Client,
    pub ledger: PathBuf,
}

pub struct Node {
    pub name: String,
    pub id: String,
    pub cluster_addr: SocketAddr,
    pub http_addr: SocketAddr,
    dir: PathBuf,
    program: PathBuf,
    settings: Vec<String>,
    /// Whoever holds it may do something to the process.
    process: Arc<tokio::sync::Mutex<Option<Process>>>,
    plan: Mutex<Plan>,
    /// Where its process ended although nobody had asked it to, or did not although somebody had.
    broken: Mutex<Vec<String>>,
}

struct Process {
    child: Child,
    pid: u32,
    /// Held open: the node leaves when this program is gone.
    _lifeline: ChildStdin,
}

impl Cluster {
    pub async fn start(program: &Path, dir: &Path, options: &Options) -> anyhow::Result<Self> {
        LazyLock::force(&BEGUN);
        let ledger = dir.join("ledger");
        std::fs::create_dir_all(&ledger).with_context(|| ledger.display().to_string())?;
        let http = reqwest::Client::builder().no_proxy().build()?;
        let mut nodes: Vec<Arc<Node>> = Vec::new();
        for place in 0..options.nodes {
            let seed = nodes.first().map(|first| first.cluster_addr);
            nodes.push(Arc::new(Node::begin(program, dir, place, seed, options).await?));
        }
        Ok(Self { nodes, http, ledger })
    }

    /// Makes the nodes pretend what they are to, for as long as this is polled. A node that was restarted pretends
    /// nothing, and one that was frozen may be told the past when it thaws, so each is asked again and again.
    pub async fn keep_told(self: Arc<Self>) {
        loop {
            let told = self.nodes.iter().map(|node| self.tell(node));
            futures_util::future::join_all(told).await;
            tokio::time::sleep(TELL_EVERY).await;
        }
    }

    /// Whether the node pretends what it is to.
    async fn tell(&self, node: &Node) -> bool {
        let wanted = node.plan().clone();
        let url = format!("http://{}/debug/faults", node.http_addr);
        let telling = async {
            let pretends: Plan = self.http.get(&url).send().await?.json().await?;
            if pretends != wanted {
                self.http.post(&url).json(&wanted).send().await?.error_for_status()?;
            }
            Ok::<_, reqwest::Error>(pretends == wanted)
        };
        // Nodes that are down are told when they are back.
        matches!(timeout(TOLD_WITHIN, telling).await, Ok(Ok(true)))
    }

    /// Ends all that is pretended, and starts what does not run.
    pub async fn mend(&self) -> anyhow::Result<()> {
        for node in &self.nodes {
            *node.plan() = Plan::default();
        }
        for node in &self.nodes {
            let mut process = node.process.lock().await;
            if node.note_its_end(&mut process) {
                *process = None;
            }
            if process.is_none() {
                *process = Some(node.start().await?.0);
            }
        }
        let deadline = Instant::now() + READY_WITHIN;
        for node in &self.nodes {
            while !self.tell(node).await {
                anyhow::ensure!(Instant::now() < deadline, "{} goes on pretending faults", node.name);
                tokio::time::sleep(TELL_EVERY).await;
            }
        }
        Ok(())
    }

    pub async fn get(&self, node: &Node, path: &str) -> anyhow::Result<Value> {
        let asked = self.http.get(format!("http://{}{path}", node.http_addr)).timeout(Duration::from_secs(60));
        Ok(asked.send().await?.error_for_status()?.json().await?)
    }

    /// Lets all nodes go.
    pub async fn stop(&self) {
        for node in &self.nodes {
            // Killed when dropped; the guards of its pods end those.
            node.process.lock().await.take();
        }
    }

    /// Lines of the nodes' logs that tell of a panic, and processes that did not end as they should.
    pub fn broken_nodes(&self) -> Vec<String> {
        let mut found = Vec::new();
        for node in &self.nodes {
            found.extend(node.broken.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned());
            let log = std::fs::read(node.dir.join("log")).unwrap_or_default();
            let log = String::from_utf8_lossy(&log);
            found
                .extend(log.lines().filter(|line| line.contains("panic")).map(|line| format!("{}: {line}", node.name)));
        }
        found
    }

    /// The name of the node with this id.
    pub fn name_of<'a>(&'a self, id: &'a str) -> &'a str {
        self.nodes.iter().find(|node| node.id == id).map_or(id, |node| &node.name)
    }
}

/// The right to do something to a node's process.
pub struct Held<'a> {
    node: &'a Node,
    process: tokio::sync::OwnedMutexGuard<Option<Process>>,
}

impl Node {
    async fn begin(
        program: &Path,
        dir: &Path,
        place: u8,
        seed: Option<SocketAddr>,
        options: &Options,
    ) -> anyhow::Result<Self> {
        let host = format!("127.0.0.{}", 11 + place);
        let mut settings = vec!["--slots".to_owned(), "8".to_owned()];
        settings.extend(["--replicas".to_owned(), options.replicas.to_string()]);
        settings.extend(seed.into_iter().flat_map(|seed| ["--seed".to_owned(), seed.to_string()]));
        let anywhere: SocketAddr = format!("{host}:0").parse()?;
        let mut node = Self {
            name: format!("node-{place}"),
            id: String::new(),
            cluster_addr: anywhere,
            http_addr: anywhere,
            dir: dir.join(format!("node-{place}")),
            program: program.to_owned(),
            settings,
            process: Arc::default(),
            plan: Mutex::default(),
            broken: Mutex::default(),
        };
        let (process, ready) = node.start().await?;
        let text = |name: &str| ready[name].as_str().map(str::to_owned).with_context(|| format!("no {name}: {ready}"));
        node.id = text("node")?;
        node.cluster_addr = text("cluster_addr")?.parse()?;
        node.http_addr = text("http_addr")?.parse()?;
        node.process = Arc::new(tokio::sync::Mutex::new(Some(process)));
        println!("{} {} ({}) at {}, clients at {}", elapsed(), node.name, node.id, node.cluster_addr, node.http_addr);
        Ok(node)
    }

    /// What all its starts have logged.
    pub fn log(&self) -> anyhow::Result<String> {
        let file = self.dir.join("log");
        std::fs::read_to_string(&file).with_context(|| file.display().to_string())
    }

    async fn start(&self) -> anyhow::Result<(Process, Value)> {
        std::fs::create_dir_all(&self.dir)?;
        let log = File::options().create(true).append(true).open(self.dir.join("log"))?;
        let mut command = Command::new(&self.program);
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("FLOCKWORK_") && name != "FLOCKWORK_LOG") {
                command.env_remove(&name);
            }
        }
        command
            .args(["node", "--config", "/dev/null", "--output", "json", "--until-stdin-closes"])
            .args(["--profile", "local", "--cluster", "chaos", "--enable-fault-injection", "--name", &self.name])
            .args(["--listen", &self.cluster_addr.to_string(), "--http", &self.http_addr.to_string(), "--data-dir"])
            .arg(self.dir.join("data"))
            .args(&self.settings)
            .env("TMPDIR", &self.dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .process_group(0)
            .kill_on_drop(true);
        let mut child = command.spawn().with_context(|| format!("cannot start {}", self.name))?;
        let (Some(pid), Some(lifeline), Some(out)) = (child.id(), child.stdin.take(), child.stdout.take()) else {
            bail!("{} is not connected", self.name);
        };
        let mut lines = BufReader::new(out).lines();
        let line = timeout(READY_WITHIN, lines.next_line()).await;
        let Ok(Ok(Some(line))) = line else {
            bail!("{} did not become ready; its log is {}", self.name, self.dir.join("log").display());
        };
        Ok((Process { child, pid, _lifeline: lifeline }, serde_json::from_str(&line)?))
    }

    pub fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The right to do something to it, if nobody else does at this moment.
    pub fn try_hold(&self) -> Option<Held<'_>> {
        let mut process = Arc::clone(&self.process).try_lock_owned().ok()?;
        self.note_its_end(&mut process);
        process.is_some().then_some(Held { node: self, process })
    }

    /// Whether its process has ended although nobody did anything to it.
    fn note_its_end(&self, process: &mut Option<Process>) -> bool {
        let Some(Ok(Some(status))) = process.as_mut().map(|process| process.child.try_wait()) else { return false };
        let mut broken = self.broken.lock().unwrap_or_else(PoisonError::into_inner);
        broken.push(format!("{} ended by itself: {status}", self.name));
        true
    }
}

impl Held<'_> {
    fn signal(&self, signal: Signal) {
        let pid = self.process.as_ref().and_then(|process| Pid::from_raw(i32::try_from(process.pid).ok()?));
        if let Some(pid) = pid {
            // It may have ended by itself, and waits to be buried.
            let _ = kill_process(pid, signal);
        }
    }

    /// Kills it as a power failure would, and starts it again after `pause`.
    pub async fn kill(&mut self, pause: Duration) -> anyhow::Result<()> {
        self.signal(Signal::KILL);
        self.bury(READY_WITHIN).await?;
        self.come_back(pause).await
    }

    /// Freezes it for a while.
    pub async fn freeze(&mut self, pause: Duration) {
        self.signal(Signal::STOP);
        tokio::time::sleep(pause).await;
        self.signal(Signal::CONT);
    }

    /// Asks it to leave, and starts it again later.
    pub async fn leave(&mut self, pause: Duration) -> anyhow::Result<()> {
        self.signal(Signal::TERM);
        self.bury(LEAVE_WITHIN).await?;
        self.come_back(pause).await
    }

    /// Waits until it has stopped by itself, and starts it again.
    pub async fn come_back_when_it_stops(&mut self, within: Duration) -> anyhow::Result<()> {
        self.bury(within).await?;
        self.node.plan().disk = Disk::Real;
        self.come_back(Duration::ZERO).await
    }

    async fn bury(&mut self, within: Duration) -> anyhow::Result<()> {
        let Some(process) = self.process.as_mut() else { return Ok(()) };
        if timeout(within, process.child.wait()).await.is_err() {
            let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid)).unwrap_or_default();
            let state = status.lines().find(|line| line.starts_with("State:")).unwrap_or("it is gone").to_owned();
            let what = format!("{} did not end within {within:?} at {} ({state})", self.node.name, elapsed());
            self.node.broken.lock().unwrap_or_else(PoisonError::into_inner).push(what);
            process.child.kill().await?;
        }
        *self.process = None;
        Ok(())
    }

    async fn come_back(&mut self, pause: Duration) -> anyhow::Result<()> {
        tokio::time::sleep(pause).await;
        *self.process = Some(self.node.start().await?.0);
        Ok(())
    }
}

/// Cuts the nodes of `side` off from all others, in the given directions.
pub fn cut(nodes: &[Arc<Node>], side: &BTreeSet<usize>, outward: bool, inward: bool) {
    let addresses = |inside: bool| -> BTreeSet<SocketAddr> {
        let of = nodes.iter().enumerate().filter(|(place, _)| side.contains(place) == inside);
        of.map(|(_, node)| node.cluster_addr).collect()
    };
    for (place, node) in nodes.iter().enumerate() {
        let is_inside = side.contains(&place);
        let others = addresses(!is_inside);
        let (to, from) = if is_inside { (outward, inward) } else { (inward, outward) };
        let mut plan = node.plan();
        plan.drop_to = if to { others.clone() } else { BTreeSet::new() };
        plan.drop_from = if from { others } else { BTreeSet::new() };
    }
}

/// Joins what was cut.
pub fn join(nodes: &[Arc<Node>]) {
    for node in nodes {
        let mut plan = node.plan();
        plan.drop_to.clear();
        plan.drop_from.clear();
    }
}
