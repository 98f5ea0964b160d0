//! A cluster of node processes, and what can happen to it.
//!
//! Nodes are named by their place, from 0. Node 0 founds the cluster and the others are given its address, but
//! nothing else sets it apart. A node keeps its directory and its ports when it is started again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use flockwork::io::crash_points::Step;
use futures_util::{StreamExt, TryStreamExt, stream};
use reqwest::{Method, RequestBuilder};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, BufReader, Lines};
use tokio::net::TcpSocket;
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;
use tokio_util::io::StreamReader;

use crate::program::{Running, Told, program};
use crate::{eventually, processes, seconds};

/// How long a node may take to become ready.
const READY_WITHIN: Duration = seconds(30);

/// How long nodes may take to agree after something happened.
const AGREE_WITHIN: Duration = seconds(45);

/// How long a job of a story may take at the most.
pub const JOB_WITHIN: Duration = seconds(90);

/// How many questions are asked side by side where there are many.
const AT_ONCE: usize = 16;

/// Few machines that run these tests can run many clusters at once and keep their timing.
const CLUSTERS_AT_ONCE: u32 = 2;
static CLUSTERS: Semaphore = Semaphore::const_new(CLUSTERS_AT_ONCE as usize);

pub struct Cluster {
    nodes: Vec<Node>,
    dir: TempDir,
    http: reqwest::Client,
    _turn: SemaphorePermit<'static>,
}

pub struct Node {
    pub name: String,
    dir: PathBuf,
    settings: Vec<String>,
    /// Set for its process besides.
    environment: Vec<(String, String)>,
    /// What it said when it was last ready.
    pub id: String,
    cluster_addr: Address,
    http_addr: Address,
    process: Option<Process>,
    is_ready: bool,
    is_frozen: bool,
}

/// A loopback address with a port that nobody else is given while a node is down: no connection gets the port as its own
/// as long as a socket is bound to it, and beside one that does not listen the node can.
struct Address {
    text: String,
    _kept: TcpSocket,
}

struct Process {
    child: Child,
    pid: u32,
    /// Held open: the node leaves when this test is gone.
    _lifeline: ChildStdin,
}

impl Cluster {
    /// A cluster of so many nodes with eight slots each.
    pub async fn of(nodes: usize) -> Self {
        Self::with(nodes, |_| "--slots 8".to_owned()).await
    }

    /// A cluster whose nodes are given these settings besides.
    pub async fn with(nodes: usize, settings: impl Fn(usize) -> String) -> Self {
        Self::start(nodes, settings, 1).await
    }

    /// A cluster that has the machine to itself.
    pub async fn alone(nodes: usize) -> Self {
        Self::start(nodes, |_| "--slots 8".to_owned(), CLUSTERS_AT_ONCE).await
    }

    async fn start(nodes: usize, settings: impl Fn(usize) -> String, turns: u32) -> Self {
        let turn = CLUSTERS.acquire_many(turns).await.unwrap();
        let dir = TempDir::new().unwrap();
        let http = reqwest::Client::builder().no_proxy().timeout(JOB_WITHIN + seconds(10)).build().unwrap();
        let node = |place: usize| {
            let name = format!("node-{place}");
            let settings = settings(place).split_whitespace().map(str::to_owned).collect();
            Node::new(&name, dir.path().join(&name), settings)
        };
        let nodes = (0..nodes).map(node).collect();
        let mut cluster = Self { nodes, dir, http, _turn: turn };
        let (first, others) = cluster.nodes.split_first_mut().unwrap();
        first.start().await;
        for other in others.iter_mut() {
            other.settings.extend(["--seed".to_owned(), first.cluster_addr.text.clone()]);
        }
        futures_util::future::join_all(others.iter_mut().map(Node::start)).await;
        cluster.agree().await;
        cluster
    }

    // What happens to nodes.

    /// Kills a node as a power failure would.
    pub async fn kill(&mut self, node: usize) {
        self.kill_all(&[node]).await;
    }

    /// Kills nodes at the same moment.
    pub async fn kill_all(&mut self, nodes: &[usize]) {
        for node in nodes {
            processes::signal(self.pid(*node), Signal::KILL);
        }
        for node in nodes {
            let ended = self.ended_process(*node).await;
            assert!(!ended.success(), "{ended}");
        }
    }

    /// Kills a node and the guard of its pods, so that nobody is left to end what it has started.
    pub async fn kill_with_its_guard(&mut self, node: usize) {
        let pid = self.pid(node);
        // It must not replace its guard meanwhile.
        processes::signal(pid, Signal::STOP);
        for guard in processes::children(pid, "pod-guard") {
            processes::signal(guard, Signal::KILL);
        }
        self.kill(node).await;
    }

    /// Stops a node's process, but nothing it started; it notices nothing.
    pub fn freeze(&mut self, node: usize) {
        processes::signal(self.pid(node), Signal::STOP);
        self.nodes[node].is_frozen = true;
    }

    pub fn thaw(&mut self, node: usize) {
        processes::signal(self.pid(node), Signal::CONT);
        self.nodes[node].is_frozen = false;
    }

    /// Asks a node to leave, and waits until it has.
    pub async fn leave(&mut self, node: usize) {
        processes::signal(self.pid(node), Signal::TERM);
        let ended = self.ended_process(node).await;
        assert!(ended.success(), "{ended}");
    }

    /// Starts nodes again, together, with what they have on disk.
    pub async fn restart(&mut self, nodes: &[usize]) {
        let starting = self.nodes.iter_mut().enumerate().filter(|(place, _)| nodes.contains(place));
        futures_util::future::join_all(starting.map(|(_, node)| node.start())).await;
    }

    /// Starts a node that kills itself at this step of an attempt's life.
    pub async fn restart_to_die_at(&mut self, node: usize, step: Step) {
        self.restart_with(node, "FLOCKWORK_DIE_AT", step).await;
    }

    /// Starts a node that stops, the first time, at this step of an attempt's life.
    pub async fn restart_to_freeze_at(&mut self, node: usize, step: Step) {
        self.restart_with(node, "FLOCKWORK_FREEZE_AT", step).await;
    }

    async fn restart_with(&mut self, node: usize, variable: &'static str, step: Step) {
        self.set_environment(node, variable, step.as_str());
        self.restart(&[node]).await;
        self.nodes[node].environment.pop();
    }

    /// Waits until a node has killed itself.
    pub async fn dies(&mut self, node: usize) {
        let ended = self.ended_process(node).await;
        assert!(!ended.success(), "{ended}");
    }

    /// One more node, which does not run yet, called `name`. With `copy_of` it has a copy of that node's data.
    pub fn add(&mut self, name: &str, copy_of: Option<usize>) -> usize {
        let dir = self.dir.path().join(format!("added-{}", self.nodes.len()));
        std::fs::create_dir_all(dir.join("data")).unwrap();
        for file in copy_of.into_iter().flat_map(|node| std::fs::read_dir(self.nodes[node].dir.join("data")).unwrap()) {
            let file = file.unwrap();
            if file.file_type().unwrap().is_file() {
                std::fs::copy(file.path(), dir.join("data").join(file.file_name())).unwrap();
            }
        }
        let settings = vec!["--seed".to_owned(), self.nodes[0].cluster_addr.text.clone()];
        self.nodes.push(Node::new(name, dir, settings));
        self.nodes.len() - 1
    }

    /// Starts a node that will not serve, and waits until its log says why.
    pub async fn start_in_vain(&mut self, node: usize, why: &str) {
        let _stdout = self.nodes[node].spawn();
        let node = &self.nodes[node];
        eventually(&format!("{} says why it does not serve", node.name), READY_WITHIN, async || {
            let log = node.log();
            let says = log.lines().any(|line| line.contains("this node cannot serve") && line.contains(why));
            if says { Ok(()) } else { Err(log) }
        })
        .await;
    }

    /// Waits until this node complains of something.
    pub async fn complains(&self, node: usize, of: &str) {
        eventually(&format!("node {node} complains"), AGREE_WITHIN, async || {
            let (_, view) = self.get(node, "/debug/members").await;
            let complaints = &view["complaints"];
            if complaints.to_string().contains(of) { Ok(()) } else { Err(complaints.to_string()) }
        })
        .await;
    }

    /// Waits until a process that is started now is later than this node's, which are told apart by the second.
    pub async fn outlive_the_second_of(&self, node: usize) {
        let (_, view) = self.get(node, "/v1/nodes").await;
        let nodes = view["nodes"].as_array().unwrap();
        let own = nodes.iter().find(|other| other["id"] == self.node(node).id.as_str()).unwrap();
        let over = SystemTime::UNIX_EPOCH + Duration::from_secs(own["generation"].as_u64().unwrap() + 1);
        tokio::time::sleep(over.duration_since(SystemTime::now()).unwrap_or_default()).await;
    }

    /// The node's next start is at another address.
    pub fn move_elsewhere(&mut self, node: usize) {
        self.nodes[node].cluster_addr = Address::new();
    }

    /// The node's next start finds an empty disk.
    pub fn lose_disk(&mut self, node: usize) {
        let node = &mut self.nodes[node];
        assert!(node.process.is_none(), "{} runs", node.name);
        std::fs::remove_dir_all(node.dir.join("data")).unwrap();
        node.id.clear();
    }

    /// Cuts these nodes off from all others. The cluster must have been started with `--enable-fault-injection`.
    pub async fn cut_off(&self, side: &[usize]) {
        for place in 0..self.nodes.len() {
            let others =
                self.nodes.iter().enumerate().filter(|(other, _)| side.contains(other) != side.contains(&place));
            let others: Vec<&str> = others.map(|(_, node)| node.cluster_addr.text.as_str()).collect();
            self.pretend(place, &json!({"drop_to": others, "drop_from": others})).await;
        }
    }

    /// Joins what was cut.
    pub async fn heal(&self) {
        for place in 0..self.nodes.len() {
            self.pretend(place, &json!({})).await;
        }
    }

    /// Makes a node pretend a fault.
    pub async fn pretend(&self, node: usize, plan: &Value) {
        let (status, body) = told(self.request(node, Method::POST, "/debug/faults").json(plan)).await;
        assert_eq!(status, 200, "{body}");
    }

    /// Sets a variable for a node's next start.
    pub fn set_environment(&mut self, node: usize, name: &str, value: &str) {
        self.nodes[node].environment.retain(|(known, _)| known != name);
        self.nodes[node].environment.push((name.to_owned(), value.to_owned()));
    }

    /// Waits until a node's process ends by itself, and says how.
    pub async fn ends_by_itself(&mut self, node: usize) -> ExitStatus {
        self.ended_process(node).await
    }

    /// Starts a node that cannot start, and says what it said.
    pub async fn refuses_to_start(&mut self, node: usize) -> String {
        let before = self.nodes[node].log().len();
        let mut child = self.nodes[node].command().stdin(Stdio::piped()).spawn().unwrap();
        let ended = timeout(READY_WITHIN, child.wait()).await.expect("it ends in time").unwrap();
        assert!(!ended.success(), "{ended}");
        self.nodes[node].log().split_off(before)
    }

    /// Starts a node whose directory is gone: it has a new id then.
    pub async fn restart_as_somebody_new(&mut self, node: usize) {
        self.nodes[node].id.clear();
        self.restart(&[node]).await;
    }

    fn pid(&self, node: usize) -> u32 {
        self.nodes[node].process.as_ref().expect("the node runs").pid
    }

    async fn ended_process(&mut self, node: usize) -> ExitStatus {
        self.nodes[node].is_ready = false;
        let mut process = self.nodes[node].process.take().expect("the node runs");
        timeout(READY_WITHIN, process.child.wait()).await.expect("the node ends in time").unwrap()
    }

    // What the nodes make of it.

    pub fn node(&self, node: usize) -> &Node {
        &self.nodes[node]
    }

    /// The place of the node with this name.
    pub fn place_of(&self, name: &Value) -> usize {
        self.nodes.iter().position(|node| *name == node.name).unwrap_or_else(|| panic!("no node is called {name}"))
    }

    /// The nodes that run.
    pub fn live(&self) -> Vec<usize> {
        let is_live = |place: &usize| self.nodes[*place].is_ready && !self.nodes[*place].is_frozen;
        (0..self.nodes.len()).filter(is_live).collect()
    }

    /// Waits until every live node sees just the live nodes, and all compute one ring.
    pub async fn agree(&self) {
        self.wait_for_views("the live nodes agree about the members", |_| Ok(())).await;
    }

    /// Waits until, besides, every live node says that it is in step with the others.
    pub async fn converge(&self) {
        self.wait_for_views("the live nodes converge", |view| {
            let partitions = &view["partitions"];
            let in_step = view["converged"] == true
                && partitions["total"] == partitions["in_sync"]
                && partitions["behind"] == json!([])
                && view["strays"] == 0;
            if in_step { Ok(()) } else { Err(format!("{partitions}, strays {}", view["strays"])) }
        })
        .await;
    }

    async fn wait_for_views(&self, what: &str, is_right: impl Fn(&Value) -> Result<(), String>) {
        let live: BTreeSet<&str> = self.live().into_iter().map(|place| self.nodes[place].id.as_str()).collect();
        eventually(what, AGREE_WITHIN, async || {
            let mut fingerprints = BTreeSet::new();
            for place in self.live() {
                let (status, view) = self.get(place, "/debug/convergence").await;
                assert_eq!(status, 200, "{view}");
                let members = view["members"].as_object().unwrap();
                let alive = members.iter().filter(|(_, member)| member["state"] == "alive");
                let alive: BTreeSet<&str> = alive.map(|(id, _)| id.as_str()).collect();
                if alive != live || view["ring"]["agree"] != true {
                    return Err(format!("node {place} sees {members:?}, its ring is {}", view["ring"]));
                }
                is_right(&view).map_err(|why| format!("node {place}: {why}"))?;
                fingerprints.insert(view["ring"]["own"].as_str().unwrap().to_owned());
            }
            if fingerprints.len() == 1 { Ok(()) } else { Err(format!("the rings are {fingerprints:?}")) }
        })
        .await;
    }

    /// Waits until `observer` sees `node` in this state.
    pub async fn sees(&self, observer: usize, node: usize, state: &str) {
        let id = &self.nodes[node].id;
        eventually(&format!("node {observer} sees node {node} {state}"), AGREE_WITHIN, async || {
            let (_, view) = self.get(observer, "/debug/convergence").await;
            let seen = &view["members"][id]["state"];
            if seen == state { Ok(()) } else { Err(format!("it is {seen}")) }
        })
        .await;
    }

    // What clients do.

    pub fn request(&self, via: usize, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("http://{}{path}", self.nodes[via].http_addr.text))
    }

    pub async fn get(&self, via: usize, path: &str) -> (u16, Value) {
        told(self.request(via, Method::GET, path)).await
    }

    pub async fn post(&self, via: usize, spec: &Value) -> (u16, Value) {
        told(self.request(via, Method::POST, "/v1/jobs").json(spec)).await
    }

    /// Submits one job, which must be new, and returns its id.
    pub async fn submit(&self, via: usize, spec: Value) -> String {
        let (status, body) = self.post(via, &spec).await;
        assert!(matches!(status, 201 | 202) && body["existed"] == false, "{status}: {body}");
        text(&body["id"])
    }

    /// Submits many jobs at once, as lines or as an array, and returns their ids in the given order. What a busy
    /// machine has stored on too few nodes in time is submitted again under its key until it is on enough.
    pub async fn submit_all(&self, via: usize, specs: &[Value], as_lines: bool) -> Vec<String> {
        static KEYS: AtomicU32 = AtomicU32::new(0);
        let with_key = |spec: &Value| {
            let key = format!("story {}", KEYS.fetch_add(1, Ordering::Relaxed));
            let mut spec = spec.clone();
            spec["key"] = key.into();
            spec
        };
        let specs: Vec<Value> = specs.iter().map(with_key).collect();
        eventually("all jobs are acknowledged", JOB_WITHIN, async || {
            let request = self.request(via, Method::POST, "/v1/jobs");
            let request = if as_lines {
                let lines: String = specs.iter().map(|spec| format!("{spec}\n")).collect();
                request.header("content-type", "application/x-ndjson").body(lines)
            } else {
                request.json(&specs)
            };
            let (status, body) = told(request).await;
            assert!((200..300).contains(&status), "{status}: {body}");
            let jobs = body["jobs"].as_array().unwrap();
            assert_eq!(jobs.len(), specs.len());
            let is_short = |job: &&Value| {
                let receipt = &job["receipt"];
                !job["id"].is_string() || receipt["stored"].as_u64() < receipt["wanted"].as_u64()
            };
            match jobs.iter().find(is_short) {
                None => Ok(jobs.iter().map(|job| text(&job["id"])).collect()),
                Some(short) => Err(format!("{status}: {short}")),
            }
        })
        .await
    }

    /// The same for a shell script.
    pub async fn shell(&self, via: usize, script: &str) -> String {
        self.submit(via, json!({"command": ["sh", "-c", script]})).await
    }

    pub async fn job(&self, via: usize, id: &str) -> Value {
        let (status, job) = self.get(via, &format!("/v1/jobs/{id}")).await;
        assert_eq!(status, 200, "{job}");
        job
    }

    /// Waits until the job has ended.
    pub async fn ended(&self, via: usize, id: &str) -> Value {
        let path = format!("/v1/jobs/{id}/wait?timeout={}", JOB_WITHIN.as_secs());
        let (status, job) = self.get(via, &path).await;
        assert_eq!(status, 200, "{job}");
        assert!(job["ended_at"].is_string(), "it has not ended in time: {job}");
        job
    }

    /// Waits until all of the jobs have ended, and returns them in the given order.
    pub async fn all_ended(&self, via: usize, ids: &[String]) -> Vec<Value> {
        stream::iter(ids).map(|id| self.ended(via, id)).buffered(AT_ONCE).collect().await
    }

    /// Waits until the job is as it should be.
    pub async fn job_where(&self, via: usize, id: &str, is_right: impl Fn(&Value) -> bool) -> Value {
        eventually("a job comes to what was waited for", JOB_WITHIN, async || {
            let job = self.job(via, id).await;
            if is_right(&job) { Ok(job) } else { Err(job.to_string()) }
        })
        .await
    }

    /// Waits until an attempt of the job runs, and returns the place of its node.
    pub async fn runs_on(&self, via: usize, id: &str) -> usize {
        let job = self.job_where(via, id, |job| last_attempt(job)["phase"] == "running").await;
        self.place_of(&last_attempt(&job)["node_name"])
    }

    /// What the attempt that tells how the job stands wrote to its standard output.
    pub async fn output(&self, via: usize, id: &str) -> String {
        let response =
            self.request(via, Method::GET, &format!("/v1/jobs/{id}/logs?stream=stdout")).send().await.unwrap();
        let (status, text) = (response.status(), response.text().await.unwrap());
        assert_eq!(status, 200, "{text}");
        text
    }

    /// The outputs of many jobs, in the given order.
    pub async fn outputs(&self, via: usize, ids: &[String]) -> Vec<String> {
        stream::iter(ids).map(|id| self.output(via, id)).buffered(AT_ONCE).collect().await
    }

    pub async fn cancel(&self, via: usize, id: &str, reason: &str) {
        let request = self.request(via, Method::DELETE, &format!("/v1/jobs/{id}")).query(&[("reason", reason)]);
        let (status, body) = told(request).await;
        assert_eq!(status, 200, "{body}");
    }

    /// All jobs that the query selects, by id, read in pages of this size from one node.
    pub async fn list(&self, via: usize, page: usize, query: &str) -> BTreeMap<String, Value> {
        let mut all = BTreeMap::new();
        let mut cursor = String::new();
        loop {
            let (status, body) = self.get(via, &format!("/v1/jobs?limit={page}{query}{cursor}")).await;
            assert_eq!(status, 200, "{body}");
            assert_eq!(body["partial"], false, "missing {}", body["missing"]);
            let jobs = body["jobs"].as_array().unwrap();
            assert!(jobs.len() <= page);
            for job in jobs {
                assert!(all.insert(text(&job["id"]), job.clone()).is_none(), "listed twice: {job}");
            }
            match body["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return all,
            }
        }
    }

    /// Follows the cluster's events through a node, from now on.
    pub async fn events(&self, via: usize) -> Events {
        let response = self.request(via, Method::GET, "/v1/events").send().await.unwrap();
        assert_eq!(response.status(), 200);
        let bytes = response.bytes_stream().map_err(std::io::Error::other);
        let text: Pin<Box<dyn AsyncBufRead + Send>> = Box::pin(StreamReader::new(bytes));
        let mut events = Events(text.lines());
        let greeting = events.line().await;
        assert!(greeting.starts_with(':'), "{greeting}");
        events
    }

    /// The value of one of a node's metrics.
    pub async fn metric(&self, via: usize, name: &str) -> f64 {
        let text = self.request(via, Method::GET, "/metrics").send().await.unwrap().text().await.unwrap();
        let mut values = text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
        values.next_back().unwrap_or_else(|| panic!("no metric {name} in {text}"))
    }

    // The command line.

    /// Runs `flockwork` with the addresses of these nodes.
    pub async fn flockwork(&self, via: &[usize], arguments: &[&str]) -> Told {
        self.begin(via, arguments).told().await
    }

    /// Begins to.
    pub fn begin(&self, via: &[usize], arguments: &[&str]) -> Running {
        let addresses: Vec<&str> = via.iter().map(|place| self.nodes[*place].http_addr.text.as_str()).collect();
        let mut command = program(self.dir.path());
        command.env("FLOCKWORK_ADDR", addresses.join(","));
        Running::start(command, arguments)
    }
}

impl Address {
    fn new() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        Self { text: socket.local_addr().unwrap().to_string(), _kept: socket }
    }
}

impl Node {
    fn new(name: &str, dir: PathBuf, settings: Vec<String>) -> Self {
        Self {
            name: name.to_owned(),
            dir,
            settings,
            environment: Vec::new(),
            id: String::new(),
            cluster_addr: Address::new(),
            http_addr: Address::new(),
            process: None,
            is_ready: false,
            is_frozen: false,
        }
    }

    async fn start(&mut self) {
        let mut lines = BufReader::new(self.spawn()).lines();
        let pid = self.process.as_ref().expect("it was just started").pid;
        let line = timeout(READY_WITHIN, lines.next_line()).await;
        let Ok(Ok(Some(line))) = line else { panic!("{} did not become ready: {line:?}", self.name) };
        let ready: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(ready["name"], self.name.as_str(), "{ready}");
        assert_eq!(ready["pid"], pid, "{ready}");
        assert!(self.id.is_empty() || ready["node"] == self.id.as_str(), "it is who it was: {ready}");
        self.id = text(&ready["node"]);
        assert_eq!(ready["cluster_addr"], self.cluster_addr.text.as_str(), "{ready}");
        assert_eq!(ready["http_addr"], self.http_addr.text.as_str(), "{ready}");
        self.is_ready = true;
    }

    /// Starts the process. What it prints when it is ready comes out of what is returned.
    fn spawn(&mut self) -> ChildStdout {
        assert!(self.process.is_none(), "{} runs", self.name);
        let mut child = self.command().stdin(Stdio::piped()).spawn().unwrap();
        let (pid, lifeline) = (child.id().unwrap(), child.stdin.take().unwrap());
        let stdout = child.stdout.take().unwrap();
        self.process = Some(Process { child, pid, _lifeline: lifeline });
        stdout
    }

    fn command(&self) -> tokio::process::Command {
        std::fs::create_dir_all(&self.dir).unwrap();
        let log = File::options().create(true).append(true).open(self.dir.join("log")).unwrap();
        let mut command = program(&self.dir);
        command
            .args(["node", "--config", "/dev/null", "--output", "json", "--until-stdin-closes"])
            .args(["--profile", "local", "--cluster", "stories", "--name", &self.name])
            .args(["--listen", &self.cluster_addr.text, "--http", &self.http_addr.text, "--data-dir"])
            .arg(self.data_dir())
            .args(&self.settings)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stderr(log)
            .process_group(0);
        command
    }

    /// Where it keeps its data.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    pub fn log(&self) -> String {
        // A node whose directory could not even be made has no log.
        let log = std::fs::read(self.dir.join("log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for process in self.nodes.iter_mut().filter_map(|node| node.process.as_mut()) {
            // It may have ended by itself, which its log will tell.
            let _ = process.child.start_kill();
        }
        let mut left = Vec::new();
        for _ in 0..100 {
            left = processes::at_home_in(self.dir.path());
            if left.is_empty() {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        for pid in &left {
            // Only what the cluster itself has started is on this list.
            processes::signal(*pid, Signal::KILL);
        }
        if std::thread::panicking() {
            for node in &self.nodes {
                let log = node.log();
                let lines: Vec<&str> = log.lines().collect();
                eprintln!("--- {} ({}), the end of its log:", node.name, node.id);
                eprintln!("{}", lines[lines.len().saturating_sub(60)..].join("\n"));
            }
            return;
        }
        assert!(left.is_empty(), "processes outlived their nodes: {left:?}");
        for node in &self.nodes {
            let panic = node.log().lines().find(|line| line.contains("panic")).map(str::to_owned);
            assert_eq!(panic, None, "{} panicked", node.name);
        }
    }
}

/// The cluster's events, as one node tells them.
pub struct Events(Lines<Pin<Box<dyn AsyncBufRead + Send>>>);

impl Events {
    /// Waits for the next event that is meant.
    pub async fn next_where(&mut self, is_meant: impl Fn(&Value) -> bool) -> Value {
        loop {
            if let Some(data) = self.line().await.strip_prefix("data: ") {
                let event: Value = serde_json::from_str(data).unwrap();
                if is_meant(&event) {
                    return event;
                }
            }
        }
    }

    async fn line(&mut self) -> String {
        let line = timeout(JOB_WITHIN, self.0.next_line()).await.expect("an event in time").unwrap();
        line.expect("the stream goes on")
    }
}

/// The status and the JSON body.
pub async fn told(request: RequestBuilder) -> (u16, Value) {
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    let text = response.text().await.unwrap();
    (status, serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}")))
}

pub fn last_attempt(job: &Value) -> &Value {
    job["attempts"].as_array().and_then(|attempts| attempts.last()).unwrap_or(&Value::Null)
}

pub fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is not text")).to_owned()
}
