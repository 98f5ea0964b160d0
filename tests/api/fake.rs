//! A node that is none: a task behind a real `Handle`, answering from a few records in memory. What a test wants to
//! happen to a job, it makes happen here.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flockwork::api::{ApiConfig, serve};
use flockwork::model::attempt::{Exit, Fate, Phase};
use flockwork::model::blob::{Blob, BlobId, MAX_TAIL_BYTES};
use flockwork::model::id::{Actor, Dot, Generation, Incarnation, JobId, JobIdPrefix, NodeId, Partition};
use flockwork::model::member::{
    ClusterSettings, Facts, Fingerprint, Load, Member, MemberState, PartitionSet, Status, View, WIRE_VERSION,
};
use flockwork::model::record::{Record, Stop, StopKind, Submission};
use flockwork::model::report::{Checkpoint, Outcome, Progress, Tail, Tails};
use flockwork::model::request::{
    Code, Cursor, Dependents, Draft, Event, Explanation, JobAnswer, Receipt, Refusal, Submitted,
};
use flockwork::model::resources::{Cpus, Memory, Resources};
use flockwork::model::ring::Placement;
use flockwork::model::spec::{Driver, Durability};
use flockwork::model::time::{Moment, Now, Timestamp};
use flockwork::model::wire::{LogChunk, Stream};
use flockwork::node::handle::{Command, Handle};
use flockwork::protocol::gateway::{Copy, Listing};
use flockwork::protocol::membership::{MemberReport, MembershipReport, SuspicionReport, Verdict};
use flockwork::protocol::snapshot::{Convergence, JobCounts, Moving, Snapshot};
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub const A: NodeId = NodeId(0xa0a0_a0a0);
pub const B: NodeId = NodeId(0xb0b0_b0b0);

/// What a test waits for at the most.
pub const SOON: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
struct State {
    records: BTreeMap<JobId, Record>,
    keys: BTreeMap<String, JobId>,
    logs: BTreeMap<(Dot, Stream), (Vec<u8>, bool)>,
    blobs: BTreeMap<BlobId, Blob>,
    /// Copies that differ from the record, by node.
    copies: BTreeMap<(JobId, NodeId), Record>,
    unreachable: Vec<NodeId>,
    submitted: u64,
    writes: u64,
    draining: bool,
    not_ready: Option<String>,
    refuse: Option<Refusal>,
}

/// The fake node and the real HTTP server before it.
pub struct World {
    pub addr: SocketAddr,
    pub client: reqwest::Client,
    pub stop: CancellationToken,
    pub events: broadcast::Sender<(NodeId, Event)>,
    pub served: JoinHandle<std::io::Result<()>>,
    state: Arc<Mutex<State>>,
    changed: watch::Sender<u64>,
    snapshots: watch::Sender<Arc<Snapshot>>,
}

pub async fn world() -> World {
    world_with(ApiConfig::default()).await
}

pub async fn world_with(config: ApiConfig) -> World {
    let state = Arc::new(Mutex::new(State::default()));
    let (changed, _) = watch::channel(0);
    let (commands, asked) = mpsc::channel(64);
    let (snapshots, seen) = watch::channel(snapshot(&State::default()));
    let (events, _) = broadcast::channel(16);
    let handle = Handle::new(commands, seen, events.clone());
    tokio::spawn(drive(asked, Arc::clone(&state), changed.clone()));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let served = tokio::spawn(serve(listener, handle, config, stop.clone()));
    let client = reqwest::Client::builder().no_proxy().timeout(SOON * 2).build().unwrap();
    World { addr, client, stop, events, served, state, changed, snapshots }
}

impl World {
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let told = change(&mut self.state.lock().unwrap());
        self.changed.send_modify(|count| *count += 1);
        told
    }

    fn write<T>(&self, job: JobId, by: NodeId, write: impl FnOnce(&mut Record, Dot, Timestamp) -> T) -> T {
        self.change(|state| {
            let (dot, at) = state.next_dot(by);
            write(state.records.get_mut(&job).unwrap(), dot, at)
        })
    }

    /// An attempt of `job` is claimed for `node`, and its pod starts. Returns the claim.
    pub fn start(&self, job: JobId, node: NodeId) -> Dot {
        let claim = self.write(job, A, |record, dot, at| {
            record.claim(dot, actor(node), at);
            dot
        });
        self.write(job, node, |record, dot, at| record.start(dot, claim, at));
        claim
    }

    /// The node of a running attempt tells what it has written last.
    pub fn tell_output(&self, job: JobId, claim: Dot, last: &'static str, offset: u64, at: Timestamp) {
        let blob = Blob::new(last);
        self.change(|state| state.blobs.insert(blob.id(), blob.clone()));
        let tail = Tail { offset, blob: blob.reference(), as_of: Some(at) };
        let tails = Tails { stdout: Some(tail), stderr: None };
        self.write(job, claim.actor.node, |record, dot, _| record.leave(dot, claim, None, tails));
    }

    /// The attempt ends, and so do its logs, of which the last part stays with the record.
    pub fn finish(&self, job: JobId, claim: Dot, phase: Phase, exit: Option<Exit>) {
        let tail = |stream| {
            self.change(|state| {
                let (bytes, ended) = state.logs.entry((claim, stream)).or_default();
                *ended = true;
                let offset = bytes.len().saturating_sub(MAX_TAIL_BYTES as usize);
                let blob = Blob::new(bytes[offset..].to_vec());
                state.blobs.insert(blob.id(), blob.clone());
                (blob.size() > 0).then(|| Tail { offset: offset as u64, blob: blob.reference(), as_of: None })
            })
        };
        let tails = Tails { stdout: tail(Stream::Stdout), stderr: tail(Stream::Stderr) };
        let by_executor = phase != Phase::Lost;
        let executor = self.state.lock().unwrap().records[&job].attempts[&claim].claim.executor.node;
        self.write(job, if by_executor { executor } else { A }, |record, dot, at| {
            if by_executor {
                record.leave(dot, claim, None, tails);
            }
            record.advance(claim, Fate { phase, by_executor, dot, at, exit, reason: String::new() });
        });
    }

    /// The attempt says how far it has come, and saves some work; `result` is what it will have come to.
    pub fn report(&self, job: JobId, claim: Dot, progress: Progress, saved: &[u8], result: &[u8]) {
        let (saved, result) = (Blob::new(saved.to_vec()), Blob::new(result.to_vec()));
        self.change(|state| {
            state.blobs.extend([(saved.id(), saved.clone()), (result.id(), result.clone())]);
        });
        self.write(job, claim.actor.node, |record, dot, at| {
            let (number, node, serial) = (1, claim.actor.node, progress.serial);
            let blob = saved.reference();
            record.report_progress(dot, claim, progress);
            record.save_checkpoint(dot, Checkpoint { chain: 0, number, node, serial, claim, blob, saved_at: at });
            record.leave(dot, claim, Some(Outcome::left(result.reference())), Tails::default());
        });
    }

    pub fn log(&self, claim: Dot, stream: Stream, bytes: &[u8]) {
        self.change(|state| state.logs.entry((claim, stream)).or_default().0.extend_from_slice(bytes));
    }

    /// The node's logs cannot be read from now on.
    pub fn cut_off(&self, node: NodeId) {
        self.change(|state| state.unreachable.push(node));
    }

    /// `node` holds this instead of the record.
    pub fn set_copy(&self, node: NodeId, change: impl FnOnce(&mut Record, Dot)) -> JobId {
        self.change(|state| {
            let mut record = state.records.values().next().unwrap().clone();
            let (dot, _) = state.next_dot(node);
            change(&mut record, dot);
            let id = record.id;
            state.copies.insert((id, node), record);
            id
        })
    }

    pub fn refuse_everything(&self, refusal: Option<Refusal>) {
        self.change(|state| state.refuse = refusal);
    }

    pub fn set_not_ready(&self, reason: &str) {
        self.change(|state| {
            state.not_ready = Some(reason.to_owned());
            self.snapshots.send_replace(snapshot(state));
        });
    }

    pub fn jobs_held(&self) -> usize {
        self.state.lock().unwrap().records.len()
    }

    /// Adds a job with this very id.
    pub fn plant(&self, id: JobId) {
        self.change(|state| {
            let (dot, at) = state.next_dot(A);
            let spec = flockwork::model::spec::Spec { command: vec!["true".into()], ..Default::default() };
            let submission = Submission { spec, submitted_at: at, gateway: A, home: vec![A, B], retry_of: None };
            state.records.insert(id, Record::new(id, Arc::new(submission), dot));
        });
    }
}

pub fn actor(node: NodeId) -> Actor {
    Actor { node, generation: Generation(1) }
}

impl State {
    fn next_dot(&mut self, by: NodeId) -> (Dot, Timestamp) {
        self.writes += 1;
        (Dot { actor: actor(by), counter: self.writes }, Timestamp(1_700_000_000_000 + self.writes * 1_000))
    }

    fn find(&self, prefix: JobIdPrefix) -> Result<JobAnswer, Refusal> {
        let mut found = self.records.range(prefix.low..=prefix.high);
        match (found.next(), found.next()) {
            (None, _) => Err(Refusal::no_such_job(prefix)),
            (Some((_, record)), None) => Ok(JobAnswer {
                record: Arc::new(record.clone()),
                version: record.version(),
                by: A,
                by_owner: true,
                as_of: Timestamp(1_700_000_999_000),
                replicas: vec![(A, true), (B, false)],
            }),
            (Some(_), Some(_)) => {
                Err(Refusal::new(Code::Conflict, format!("several jobs have ids that begin with {prefix}")))
            }
        }
    }

    fn submit(&mut self, draft: Draft) -> Result<Submitted, Refusal> {
        let Draft { spec, retry_of } = draft;
        let receipt = match spec.durability {
            Durability::All => Receipt { stored: 1, wanted: 2, replicas: vec![A] },
            Durability::One | Durability::Majority => Receipt { stored: 2, wanted: 2, replicas: vec![A, B] },
        };
        if let Some(id) = spec.key.as_ref().and_then(|key| self.keys.get(key)) {
            let known = &self.records[id];
            if *known.spec() != spec {
                return Err(Refusal {
                    field: Some("key".into()),
                    ..Refusal::new(Code::Conflict, "another spec has this key")
                });
            }
            return Ok(Submitted { id: *id, state: known.state(), existed: true, receipt });
        }
        self.submitted += 1;
        let id = JobId(u128::from(self.submitted) << 112 | 0xfeed);
        if let Some(key) = &spec.key {
            self.keys.insert(key.clone(), id);
        }
        let (dot, at) = self.next_dot(A);
        let submission = Submission { spec, submitted_at: at, gateway: A, home: vec![A, B], retry_of };
        let record = Record::new(id, Arc::new(submission), dot);
        let state = record.state();
        self.records.insert(id, record);
        Ok(Submitted { id, state, existed: false, receipt })
    }

    fn list(&self, filter: &flockwork::model::request::Filter, after: Option<Cursor>, limit: u32) -> Listing {
        let place = |record: &Record| (record.submission.submitted_at, record.id);
        let on_node =
            |record: &Record, node| record.telling().is_some_and(|attempt| attempt.claim.executor.node == node);
        let mut records: Vec<_> = self
            .records
            .values()
            .filter(|record| filter.state.is_none_or(|state| record.state() == state))
            .filter(|record| filter.name.is_none() || record.spec().name == filter.name)
            .filter(|record| !filter.overlapped || !record.overlaps().is_empty())
            .filter(|record| filter.node.is_none_or(|node| on_node(record, node)))
            .filter(|record| after.is_none_or(|after| place(record) < (after.submitted_at, after.job)))
            .cloned()
            .map(Arc::new)
            .collect();
        records.sort_by_key(|record| std::cmp::Reverse(place(record)));
        let more = records.len() > limit as usize;
        records.truncate(limit as usize);
        let next = records.last().filter(|_| more);
        let next = next.map(|last| Cursor { submitted_at: last.submission.submitted_at, job: last.id });
        Listing { records, next, missing: self.unreachable.clone() }
    }

    fn copies(&self, job: JobId) -> Vec<Copy> {
        let copy = |node| {
            let own = self.copies.get(&(job, node)).or_else(|| self.records.get(&job));
            Copy { node, record: Ok(own.cloned().map(Arc::new)) }
        };
        vec![copy(A), copy(B)]
    }
}

async fn drive(mut asked: mpsc::Receiver<Command>, state: Arc<Mutex<State>>, changed: watch::Sender<u64>) {
    while let Some(command) = asked.recv().await {
        let (state, changed, mut changes) = (Arc::clone(&state), changed.clone(), changed.subscribe());
        tokio::spawn(async move {
            let lock = || state.lock().unwrap();
            let refused = || lock().refuse.clone();
            match command {
                Command::Submit(drafts, answer) => {
                    let told =
                        refused().map_or_else(|| Ok(drafts.into_iter().map(|d| lock().submit(d)).collect()), Err);
                    let _ = answer.send(told);
                    changed.send_modify(|count| *count += 1);
                }
                Command::Job(prefix, answer) => {
                    let told = refused().map_or_else(|| lock().find(prefix), Err);
                    let _ = answer.send(told);
                }
                Command::Watch(job, known, patience, answer) => {
                    let told = tokio::time::timeout(patience, async {
                        loop {
                            changes.borrow_and_update();
                            let told = lock().find(job.into());
                            if told.as_ref().map_or(true, |told| Some(told.version) != known) {
                                return told;
                            }
                            changes.changed().await.unwrap();
                        }
                    });
                    let told = told.await.unwrap_or_else(|_| lock().find(job.into()));
                    let _ = answer.send(told);
                }
                Command::Cancel(prefix, reason, answer) => {
                    let found = lock().find(prefix);
                    if let Ok(found) = &found {
                        let mut state = lock();
                        let (dot, at) = state.next_dot(A);
                        let record = state.records.get_mut(&found.record.id).unwrap();
                        record.request_stop(Stop { kind: StopKind::Cancelled, dot, at, reason });
                    }
                    let _ = answer.send(lock().find(prefix));
                    changed.send_modify(|count| *count += 1);
                }
                Command::Explain(prefix, answer) => {
                    let told = lock().find(prefix).map(|found| Explanation {
                        id: found.record.id,
                        state: found.record.state(),
                        reason: "waiting for room".into(),
                        owner: A,
                        due_at: None,
                        ahead: Some(3),
                        nodes: vec![(A, Some("no free slot".into())), (B, None)],
                    });
                    let _ = answer.send(told);
                }
                Command::List(filter, after, limit, answer) => {
                    let _ = answer.send(Ok(lock().list(&filter, after, limit)));
                }
                Command::Copies(job, answer) => {
                    let _ = answer.send(Ok(lock().copies(job)));
                }
                Command::ReadLog(node, request, answer) => {
                    let read = || {
                        let state = lock();
                        if state.unreachable.contains(&node) {
                            return Err(Refusal::new(Code::Unavailable, "the node cannot be reached"));
                        }
                        let none = (Vec::new(), false);
                        let (bytes, ended) = state.logs.get(&(request.claim, request.stream)).unwrap_or(&none);
                        let from = (request.offset as usize).min(bytes.len());
                        let to = (from + request.limit as usize).min(bytes.len());
                        let end = *ended && to == bytes.len();
                        Ok(LogChunk { offset: from as u64, bytes: bytes[from..to].to_vec(), end })
                    };
                    let wait = Duration::from_millis(request.wait_ms.into());
                    let told = tokio::time::timeout(wait, async {
                        loop {
                            changes.borrow_and_update();
                            match read() {
                                Ok(chunk) if chunk.bytes.is_empty() && !chunk.end => changes.changed().await.unwrap(),
                                told => return told,
                            }
                        }
                    });
                    let told = told.await.unwrap_or_else(|_| read());
                    let _ = answer.send(told);
                }
                Command::ReadBlob(blob, nodes, answer) => {
                    let state = lock();
                    let reachable = nodes.iter().any(|node| !state.unreachable.contains(node));
                    let found = state.blobs.get(&blob.id).filter(|_| reachable).cloned();
                    let missing = || Refusal::new(Code::Unavailable, "no node that can be reached has this content");
                    let _ = answer.send(found.ok_or_else(missing));
                }
                Command::Drain(on, answer) => {
                    lock().draining = on;
                    let _ = answer.send(Ok(()));
                }
                Command::Forget(_, answer) => {
                    let hint = "only a node that is down is forgotten: `flockwork drain node-b`, then stop it";
                    let _ = answer.send(Err(Refusal::new(Code::Conflict, "node-b is alive").with_hint(hint)));
                }
                Command::Dependents(_, answer) => {
                    let partitions = (0..15).map(Partition).collect();
                    let stuck_jobs = vec![JobId(7)];
                    let (running, stuck, held, thin, only_here) = (3, 1, 20, 5, 2);
                    let told = Dependents { partitions, running, stuck, stuck_jobs, held, thin, only_here };
                    let _ = answer.send(Ok(told));
                }
                Command::Snapshot(answer) => {
                    let _ = answer.send(Ok(snapshot(&lock())));
                }
                Command::Members(answer) => {
                    let _ = answer.send(Ok(Box::new(report())));
                }
            }
        });
    }
}

fn facts(node: NodeId, name: &str, http_port: u16) -> Facts {
    let capacity = Resources { cpus: Cpus::whole(4), memory: Memory { bytes: 8 << 30 }, slots: 4 };
    Facts {
        node,
        name: name.into(),
        generation: Generation(1),
        incarnation: Incarnation(2),
        cluster_addr: "127.0.0.1:7400".parse().unwrap(),
        http_addr: SocketAddr::from(([127, 0, 0, 1], http_port)),
        status: Status::Serving,
        revision: 0,
        capacity,
        weight: 1,
        load: Load { used: Resources { slots: 1, ..Resources::default() }, cpu_permille: 250, ..Load::default() },
        labels: [("zone".to_owned(), "east".to_owned())].into(),
        drivers: [Driver::Process].into(),
        held: PartitionSet::default(),
        ring: Fingerprint(7),
        cluster: ClusterSettings {
            name: "test".into(),
            partitions: 16,
            replicas: 2,
            forget_after: Duration::from_secs(86_400),
        },
        wire_version: WIRE_VERSION,
        version: "0.1.0".into(),
        suspicions: [].into(),
        departed: [].into(),
        dismissed: [].into(),
    }
}

fn report() -> MembershipReport {
    let since = Timestamp(1_700_000_490_000);
    let suspicion = SuspicionReport {
        since,
        until: since + Duration::from_secs(5),
        voters: [A].into(),
        silent: true,
        refused: false,
        remembered: false,
    };
    let member = |facts: Facts, state, suspicion: Option<SuspicionReport>| MemberReport {
        node: facts.node,
        name: facts.name,
        generation: facts.generation,
        incarnation: facts.incarnation,
        status: facts.status,
        state,
        since,
        round_trip_ms: suspicion.as_ref().map(|_| 0.25),
        suspicion,
    };
    MembershipReport {
        local_health: 1,
        withheld_until: None,
        conflict: None,
        complaints: vec!["two processes run as node b0b0b0b0".to_owned()],
        members: vec![
            member(facts(A, "node-a", 7401), MemberState::Alive, None),
            member(facts(B, "node-b", 7402), MemberState::Suspect, Some(suspicion)),
        ],
        history: vec![Verdict {
            at: since,
            node: B,
            was: Some(MemberState::Alive),
            is: Some(MemberState::Suspect),
            reason: "does not answer".to_owned(),
        }],
    }
}

fn snapshot(state: &State) -> Arc<Snapshot> {
    let since = Moment::from_start(Duration::from_secs(5));
    let mut own = facts(A, "node-a", 7401);
    if state.draining {
        own.status = Status::Draining;
    }
    let members = [(own.clone(), MemberState::Alive), (facts(B, "node-b", 7402), MemberState::Suspect)];
    let view: View = members.into_iter().map(|(facts, state)| (facts.node, Member { facts, state, since })).collect();
    let placement = Arc::new(Placement::new(&view, 16, 2));
    let fingerprints = vec![(A, placement.fingerprint()), (B, Fingerprint(1))];
    Arc::new(Snapshot {
        now: Now { moment: Moment::from_start(Duration::from_secs(15)), wall: Timestamp(1_700_000_500_000) },
        node: A,
        generation: Generation(1),
        facts: own,
        not_ready: state.not_ready.clone(),
        complaints: vec!["two processes run as node b0b0b0b0".to_owned()],
        local_health: 1,
        view,
        placement,
        convergence: Convergence {
            fingerprints,
            acting: 16,
            in_sync: 15,
            strays: 2,
            moving: Some(Moving {
                since: Timestamp(1_700_000_490_000),
                since_moment: since,
                records: 40,
                handed_over: 38,
                partitions: 5,
                waiting_to_be_sent: 7,
            }),
            ..Convergence::default()
        },
        jobs: JobCounts { held: 3, ..JobCounts::default() },
        counters: vec![("probes_sent", 42)],
        clock_skews_ms: Vec::new(),
    })
}
