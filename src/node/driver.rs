//! The driver: one loop that feeds the Peer what happened and carries out what it wants.
//!
//! It owns the Peer, so nothing about jobs or members is ever locked or shared. A round takes everything that
//! has come in meanwhile, then drains the Peer's effects; so under load many messages share one commit and one
//! flush, and when idle a single one is handled at once. The loop never waits for a shell: what takes time is
//! handed over, and its end comes back as another input.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, broadcast, mpsc, oneshot, watch};
use tokio::time::{Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::io::blob_exchange::{BlobExchange, Place};
use crate::io::clock::Clock;
use crate::io::crash_points::{self, Step};
use crate::io::datagram::Datagrams;
use crate::io::executor::Executor;
use crate::io::faults::{Disk, Faults};
use crate::io::gossip::Gossip;
use crate::io::machine::Machine;
use crate::io::store::{CommitDone, CommitError, Store};
use crate::io::transport::{Incoming, LinkEvent, Transport};
use crate::model::attempt::Phase;
use crate::model::blob::{Blob, BlobId, BlobRef};
use crate::model::id::{Actor, JobIdPrefix, NodeId};
use crate::model::member::{Facts, Member, MemberState};
use crate::model::request::{Code, Event, EventKind, Refusal};
use crate::model::spec::Driver as PodDriver;
use crate::model::time::Moment;
use crate::model::wire::{Frame, LogChunk, LogRequest, Probe};
use crate::protocol::effect::{Commit, Effect, Fetched, PodEvent};
use crate::protocol::gateway::{Ask, AskId, Reply, Told};
use crate::protocol::peer::Peer;
use crate::protocol::snapshot::Snapshot;

use super::Stopped;
use super::handle::{Answer, Command};
use super::publisher::Publisher;

/// Inputs of one kind that are taken in one round.
const ROUND: usize = 512;
/// How often the machine's load is measured.
const MACHINE_EVERY: Duration = Duration::from_secs(2);
/// How often the snapshot for those who only look is renewed, when nothing calls for it sooner.
const SNAPSHOT_EVERY: Duration = Duration::from_secs(2);
/// How often logs are looked through for those that are older than finished jobs are kept.
const SWEEP_EVERY: Duration = Duration::from_secs(3_600);
/// How long a leaving node tries to hand over what others should have.
const LEAVE_WITHIN: Duration = Duration::from_secs(15);
/// Questions for logs that are answered at once, for other nodes.
const LOG_READERS: usize = 256;
/// How long a blob may be looked for, for a client.
const BLOB_WITHIN: Duration = Duration::from_secs(15);
/// How much longer than it may wait itself an answer about a log may take.
const LOG_SLACK: Duration = Duration::from_secs(5);
/// The most of a log that one answer may carry.
const LOG_CHUNK_BYTES: u32 = 4 << 20;

/// What the driver commands.
#[derive(Debug)]
pub(super) struct Shells {
    pub(super) clock: Clock,
    pub(super) machine: Machine,
    pub(super) transport: Transport,
    pub(super) datagrams: Datagrams,
    pub(super) gossip: Gossip,
    pub(super) executor: Executor,
    pub(super) blobs: BlobExchange,
    /// Where what comes of fetching a blob is told.
    pub(super) fetched: mpsc::UnboundedSender<(NodeId, BlobId, Fetched)>,
    pub(super) store: Store,
    pub(super) tracker: TaskTracker,
    pub(super) faults: Faults,
    /// Of those that the disk held at the start.
    pub(super) records_set_aside: u64,
}

/// What the driver hears.
#[derive(Debug)]
pub(super) struct Inputs {
    pub(super) incoming: mpsc::Receiver<Incoming>,
    pub(super) probes: mpsc::Receiver<(SocketAddr, Probe)>,
    pub(super) facts: watch::Receiver<Arc<Vec<Facts>>>,
    pub(super) pods: mpsc::UnboundedReceiver<PodEvent>,
    pub(super) fetched: mpsc::UnboundedReceiver<(NodeId, BlobId, Fetched)>,
    pub(super) damaged: mpsc::UnboundedReceiver<BlobId>,
    pub(super) commits_done: mpsc::UnboundedReceiver<CommitDone>,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) leave: CancellationToken,
}

/// The Peer, its shells, and who waits for its answers.
#[derive(Debug)]
pub(super) struct Driver {
    peer: Peer,
    shells: Shells,
    snapshots: watch::Sender<Arc<Snapshot>>,
    events: broadcast::Sender<(NodeId, Event)>,
    publisher: Publisher,
    asked: BTreeMap<AskId, Asked>,
    next_ask: u64,
    log_calls: BTreeMap<u64, LogCall>,
    next_log_call: u64,
    log_readers: Arc<Semaphore>,
    leaving_until: Option<Moment>,
    conflict: Option<String>,
    complaints: Vec<String>,
    /// What people are shown has changed.
    is_stale: bool,
    /// Of the members that they are shown.
    shown_epoch: u64,
    retention: Duration,
}

/// A client's question that the Peer has not answered yet.
#[derive(Debug)]
enum Asked {
    Submit(Answer<Vec<Result<crate::model::request::Submitted, Refusal>>>),
    Job(Answer<crate::model::request::JobAnswer>),
    Explain(Answer<crate::model::request::Explanation>),
    List(Answer<crate::protocol::gateway::Listing>),
    Copies(Answer<Vec<crate::protocol::gateway::Copy>>),
    Dependents(Answer<crate::model::request::Dependents>),
}

#[derive(Debug)]
struct LogCall {
    node: NodeId,
    until: Moment,
    answer: Answer<LogChunk>,
}

/// Whether the loop goes on.
enum Next {
    GoOn,
    Stop(Stopped),
}

impl Driver {
    pub(super) fn new(
        peer: Peer,
        shells: Shells,
        snapshots: watch::Sender<Arc<Snapshot>>,
        events: broadcast::Sender<(NodeId, Event)>,
        retention: Duration,
    ) -> Self {
        let publisher = Publisher::start(shells.gossip.clone(), &shells.tracker);
        Self {
            peer,
            shells,
            snapshots,
            events,
            publisher,
            asked: BTreeMap::new(),
            next_ask: 1,
            log_calls: BTreeMap::new(),
            next_log_call: 1,
            log_readers: Arc::new(Semaphore::new(LOG_READERS)),
            leaving_until: None,
            conflict: None,
            complaints: Vec::new(),
            is_stale: false,
            shown_epoch: 0,
            retention,
        }
    }

    /// Runs until the node has left or cannot go on.
    pub(super) async fn run(mut self, mut inputs: Inputs) -> Stopped {
        let mut machine = ticks(MACHINE_EVERY);
        let mut snapshot = ticks(SNAPSHOT_EVERY);
        let mut sweep = ticks(SWEEP_EVERY);
        let mut incoming = Vec::with_capacity(ROUND);
        let mut probes = Vec::with_capacity(ROUND);
        let mut pods = Vec::with_capacity(ROUND);
        let mut done = Vec::new();
        let mut commands = Vec::with_capacity(ROUND);
        let stopped = loop {
            if let Next::Stop(why) = self.carry_out_all() {
                break why;
            }
            let epoch = self.peer.membership().view_epoch();
            if std::mem::take(&mut self.is_stale) || self.shown_epoch != epoch {
                self.shown_epoch = epoch;
                self.renew_snapshot();
            }
            let wake = self.wake_at();
            tokio::select! {
                taken = inputs.incoming.recv_many(&mut incoming, ROUND) => {
                    if taken == 0 { break Stopped::Failed("the transport is gone".to_owned()); }
                }
                taken = inputs.probes.recv_many(&mut probes, ROUND) => {
                    if taken == 0 { break Stopped::Failed("the datagram socket is gone".to_owned()); }
                }
                changed = inputs.facts.changed() => {
                    if changed.is_err() { break Stopped::Failed("gossip is gone".to_owned()); }
                    let facts = Vec::clone(&inputs.facts.borrow_and_update());
                    self.peer.handle_facts(self.shells.clock.now(), facts);
                }
                taken = inputs.pods.recv_many(&mut pods, ROUND) => {
                    if taken == 0 { break Stopped::Failed("the executor is gone".to_owned()); }
                }
                taken = inputs.commits_done.recv_many(&mut done, ROUND) => {
                    if taken == 0 { break Stopped::Failed("the store is gone".to_owned()); }
                }
                Some((from, blob, fetched)) = inputs.fetched.recv() => {
                    self.peer.handle_blob(self.shells.clock.now(), from, blob, fetched);
                }
                Some(blob) = inputs.damaged.recv() => self.peer.handle_blob_damaged(blob),
                // Its senders are handles, and may all be dropped: the node runs on.
                _ = inputs.commands.recv_many(&mut commands, ROUND), if !inputs.commands.is_closed() || !inputs.commands.is_empty() => {}
                () = inputs.leave.cancelled(), if self.leaving_until.is_none() => self.begin_to_leave(),
                () = tokio::time::sleep_until(wake.into()) => {}
                _ = machine.tick() => {
                    let load = self.shells.machine.sample();
                    self.peer.handle_machine_load(load.cpu_permille, load.memory_available_bytes);
                    self.peer.handle_driver(PodDriver::Container, self.shells.executor.has_containers());
                }
                _ = snapshot.tick() => self.renew_snapshot(),
                _ = sweep.tick() => self.shells.executor.sweep_older(self.retention + SWEEP_EVERY),
            }
            // Whatever else has come meanwhile shares this round.
            take_all(&mut inputs.incoming, &mut incoming);
            take_all(&mut inputs.probes, &mut probes);
            let now = self.shells.clock.now();
            for done in done.drain(..) {
                if let Next::Stop(why) = self.handle_commit_done(done) {
                    self.close().await;
                    return why;
                }
            }
            for (from, probe) in probes.drain(..) {
                self.peer.handle_probe(now, from, probe, false);
            }
            for arrived in incoming.drain(..) {
                self.handle_incoming(arrived);
            }
            for event in pods.drain(..) {
                log_pod(&event);
                pass_event(&event);
                self.peer.handle_pod(now, event);
            }
            for command in commands.drain(..) {
                self.handle_command(command);
            }
            let now = self.shells.clock.now();
            self.peer.set_listening(now, self.events.receiver_count() > 0);
            if self.peer.poll_timeout().is_some_and(|at| at <= now.moment) {
                self.peer.handle_timeout(now);
            }
            self.give_up_log_calls(now.moment);
            if self.has_left(now.moment) {
                break self.say_goodbye().await;
            }
        };
        self.close().await;
        stopped
    }

    fn wake_at(&self) -> Instant {
        let logs = self.log_calls.values().map(|call| call.until).min();
        let wake = [self.peer.poll_timeout(), logs, self.leaving_until].into_iter().flatten().min();
        let latest = Instant::now() + SNAPSHOT_EVERY;
        wake.map_or(latest, |moment| self.shells.clock.instant(moment).min(latest))
    }

    fn handle_incoming(&mut self, arrived: Incoming) {
        let now = self.shells.clock.now();
        match arrived {
            Incoming::Frame { from, frame } => match frame {
                Frame::Message(message) => self.peer.handle_message(now, from, message),
                // The transport gives it to gossip without a detour.
                Frame::Gossip(_) => {}
                Frame::Probe(probe) => {
                    if let Some(addr) = self.addr_of(from) {
                        self.peer.handle_probe(now, addr, probe, true);
                    }
                }
                Frame::LogRequest { call, request } => self.read_log_for(from, call, request),
                Frame::LogResponse { call, response } => self.finish_log_call(from, call, response),
                Frame::BlobRequest { call, blob, part } => {
                    let Some(addr) = self.addr_of(from) else { return };
                    match self.peer.unstored_blob(blob) {
                        Some(blob) => self.shells.blobs.answer_from_memory((from, addr), call, blob, part),
                        None => self.shells.blobs.handle_request((from, addr), call, blob, part),
                    }
                }
                Frame::BlobResponse { call, part } => self.shells.blobs.handle_response(from, call, part),
            },
            Incoming::Link { node, addr, event } => match event {
                LinkEvent::Up => {
                    tracing::debug!(%node, %addr, "linked");
                    self.peer.handle_link_up(now, node);
                }
                LinkEvent::Refused => {
                    tracing::debug!(%node, %addr, "its machine refuses connections");
                    self.peer.handle_refused(now, node);
                }
                LinkEvent::Unreachable(reason) => {
                    tracing::debug!(%node, %addr, reason, "cannot be reached");
                    self.peer.handle_link_down(now, node);
                }
                LinkEvent::Closed(reason) => {
                    tracing::debug!(%node, %addr, reason, "link lost");
                    self.peer.handle_link_down(now, node);
                }
            },
        }
    }

    fn handle_command(&mut self, command: Command) {
        let now = self.shells.clock.now();
        let (asked, ask) = match command {
            Command::Submit(drafts, answer) => (Asked::Submit(answer), Ask::Submit(drafts)),
            Command::Job(prefix, answer) => (Asked::Job(answer), Ask::Job(prefix)),
            Command::Watch(job, known, patience, answer) => (Asked::Job(answer), Ask::Watch(job, known, patience)),
            Command::Cancel(prefix, reason, answer) => (Asked::Job(answer), Ask::Cancel(prefix, reason)),
            Command::Explain(prefix, answer) => (Asked::Explain(answer), Ask::Explain(prefix)),
            Command::List(filter, after, limit, answer) => (Asked::List(answer), Ask::List(filter, after, limit)),
            Command::Copies(job, answer) => (Asked::Copies(answer), Ask::Copies(JobIdPrefix::from(job))),
            Command::Dependents(node, answer) => (Asked::Dependents(answer), Ask::Dependents(node)),
            Command::ReadLog(node, request, answer) => return self.read_log(node, request, answer),
            Command::ReadBlob(blob, nodes, answer) => return self.read_blob(blob, &nodes, answer),
            Command::Drain(on, answer) => {
                self.peer.drain(now, on);
                // Whoever asked may have gone.
                let _ = answer.send(Ok(()));
                return;
            }
            Command::Forget(node, answer) => return give(answer, self.peer.forget(now, node)),
            Command::Snapshot(answer) => {
                let _ = answer.send(Ok(Arc::new(self.snapshot())));
                return;
            }
            Command::Members(answer) => {
                let mut report = self.peer.membership().report(now);
                report.complaints.extend(self.shells.gossip.complaint());
                let _ = answer.send(Ok(Box::new(report)));
                return;
            }
        };
        let id = AskId(self.next_ask);
        self.next_ask += 1;
        self.asked.insert(id, asked);
        self.peer.handle_ask(now, id, ask);
    }

    fn handle_commit_done(&mut self, done: CommitDone) -> Next {
        let now = self.shells.clock.now();
        match done.result {
            Ok(()) => self.peer.handle_committed(now, done.number),
            Err(CommitError::Full(reason)) => {
                tracing::error!(reason, "the disk is full: this node is read-only until there is room");
                self.peer.handle_commit_failed(now, done.number);
            }
            Err(CommitError::Fatal(reason)) => return stop_for_disk(&reason),
        }
        Next::GoOn
    }

    fn commit(&mut self, commit: Commit) -> Next {
        let pretended = match self.shells.faults.disk() {
            Disk::Real => {
                return match self.shells.store.commit(commit) {
                    Ok(()) => Next::GoOn,
                    Err(error) => stop_for_disk(&error.to_string()),
                };
            }
            Disk::Full => CommitError::Full("as it was told to pretend".to_owned()),
            Disk::FailsToSync => CommitError::Fatal("it pretends to, as it was told".to_owned()),
        };
        self.handle_commit_done(CommitDone { number: commit.number, result: Err(pretended) })
    }

    /// Drains the Peer's effects.
    fn carry_out_all(&mut self) -> Next {
        while let Some(effect) = self.peer.poll_effect(self.shells.clock.now()) {
            match effect {
                Effect::Commit(commit) => {
                    let me = self.peer.membership().me();
                    pass_commit(&commit, Actor { node: me.node, generation: me.generation });
                    if let Next::Stop(why) = self.commit(commit) {
                        return Next::Stop(why);
                    }
                }
                Effect::Send { to, message } => self.send(to, &Frame::Message(message)),
                Effect::Probe { to, addr, probe, by_link: true } => {
                    self.shells.transport.send(to, addr, &Frame::Probe(probe));
                }
                Effect::Probe { to: _, addr, probe, by_link: false } => self.shells.datagrams.send_probe(addr, &probe),
                Effect::Gossip { facts, urgent } => {
                    self.publisher.publish(*facts, urgent);
                }
                Effect::Call { addr } => self.shells.gossip.contact([addr]),
                Effect::StartPod(start) => {
                    crash_points::pass(Step::Start);
                    tracing::debug!(job = %start.key.job, attempt = start.number, "starting a pod");
                    self.shells.executor.start_pod(start);
                }
                Effect::StopPod(key) => {
                    tracing::debug!(job = %key.job, "ending a pod");
                    self.shells.executor.stop_pod(key);
                }
                Effect::Silence(key) => self.shells.executor.silence(key),
                Effect::AnswerPod { answer, result } => self.shells.executor.answer_pod(answer, result),
                Effect::FetchBlob { from, blob } => self.fetch_blob(from, blob),
                Effect::Reply(reply) => self.reply(reply),
                Effect::Tell { node, event } => {
                    // Nobody may be listening.
                    let _ = self.events.send((node, event));
                }
                Effect::Sweep(job) => self.shells.executor.sweep(job),
                Effect::Note(event) => self.note(&event),
            }
        }
        Next::GoOn
    }

    fn send(&self, to: NodeId, frame: &Frame) {
        if let Some(addr) = self.addr_of(to) {
            self.shells.transport.send(to, addr, frame);
        }
    }

    fn addr_of(&self, node: NodeId) -> Option<SocketAddr> {
        let known = self.peer.membership().view().get(&node).map(|member| member.facts.cluster_addr);
        known.or_else(|| self.shells.transport.address_of(node))
    }

    fn reply(&mut self, reply: Reply) {
        let Some(asked) = self.asked.remove(&reply.ask) else {
            return;
        };
        match (asked, reply.result) {
            (Asked::Submit(answer), Ok(Told::Submitted(told))) => give(answer, Ok(told)),
            (Asked::Submit(answer), Err(refusal)) => give(answer, Err(refusal)),
            (Asked::Job(answer), Ok(Told::Job(told))) => give(answer, Ok(told)),
            (Asked::Job(answer), Err(refusal)) => give(answer, Err(refusal)),
            (Asked::Explain(answer), Ok(Told::Explanation(told))) => give(answer, Ok(told)),
            (Asked::Explain(answer), Err(refusal)) => give(answer, Err(refusal)),
            (Asked::List(answer), Ok(Told::Listing(told))) => give(answer, Ok(told)),
            (Asked::List(answer), Err(refusal)) => give(answer, Err(refusal)),
            (Asked::Copies(answer), Ok(Told::Copies(told))) => give(answer, Ok(told)),
            (Asked::Copies(answer), Err(refusal)) => give(answer, Err(refusal)),
            (Asked::Dependents(answer), Ok(Told::Dependents(told))) => give(answer, Ok(told)),
            (Asked::Dependents(answer), Err(refusal)) => give(answer, Err(refusal)),
            // Dropping the answer tells the asker that there is none.
            (asked, Ok(told)) => tracing::error!(?asked, ?told, "an answer to another question"),
        }
    }

    /// Reads a log for a client of this node, here or at the node that has it.
    fn read_log(&mut self, node: NodeId, request: LogRequest, answer: Answer<LogChunk>) {
        let request = LogRequest { limit: request.limit.min(LOG_CHUNK_BYTES), ..request };
        let until = self.shells.clock.now().moment + Duration::from_millis(request.wait_ms.into()) + LOG_SLACK;
        if node == self.peer.membership().me().node {
            let executor = self.shells.executor.clone();
            self.shells.tracker.spawn(async move {
                let chunk = executor.read_log(request).await;
                give(answer, chunk.map_err(|reason| Refusal::new(Code::NotFound, reason)));
            });
            return;
        }
        let Some(addr) = self.addr_of(node) else {
            return give(answer, Err(out_of_reach(node)));
        };
        let call = self.next_log_call;
        self.next_log_call += 1;
        self.log_calls.insert(call, LogCall { node, until, answer });
        self.shells.transport.send(node, addr, &Frame::LogRequest { call, request });
    }

    /// Gets a blob from another node; what comes of it is an input.
    fn fetch_blob(&self, from: NodeId, blob: BlobRef) {
        let (exchange, fetched, addr) = (self.shells.blobs.clone(), self.shells.fetched.clone(), self.addr_of(from));
        self.shells.tracker.spawn(async move {
            let outcome = match addr {
                Some(addr) => exchange.fetch((from, addr), blob).await,
                None => Fetched::Failed,
            };
            // The driver may have gone.
            let _ = fetched.send((from, blob.id, outcome));
        });
    }

    /// Reads a blob for a client of this node, here or at one of `nodes`.
    fn read_blob(&self, blob: BlobRef, nodes: &[NodeId], answer: Answer<Blob>) {
        let me = self.peer.membership().me().node;
        let others = nodes.iter().filter(|node| **node != me);
        let others: Vec<Place> = others.filter_map(|node| Some((*node, self.addr_of(*node)?))).collect();
        let exchange = self.shells.blobs.clone();
        self.shells.tracker.spawn(async move {
            let finding = tokio::time::timeout(BLOB_WITHIN, exchange.find(blob, others)).await;
            let missing = || Refusal::new(Code::Unavailable, "no node that can be reached has this content now");
            give(answer, finding.ok().flatten().ok_or_else(missing));
        });
    }

    /// Reads a log for another node.
    fn read_log_for(&self, node: NodeId, call: u64, request: LogRequest) {
        let request = LogRequest { limit: request.limit.min(LOG_CHUNK_BYTES), ..request };
        let (executor, transport) = (self.shells.executor.clone(), self.shells.transport.clone());
        let Some(addr) = self.addr_of(node) else {
            return;
        };
        let Ok(permit) = Arc::clone(&self.log_readers).try_acquire_owned() else {
            let response = Err("too many logs are being read from this node".to_owned());
            return transport.send(node, addr, &Frame::LogResponse { call, response });
        };
        self.shells.tracker.spawn(async move {
            let response = executor.read_log(request).await;
            transport.send(node, addr, &Frame::LogResponse { call, response });
            drop(permit);
        });
    }

    fn finish_log_call(&mut self, from: NodeId, call: u64, response: Result<LogChunk, String>) {
        if self.log_calls.get(&call).is_some_and(|open| open.node == from)
            && let Some(open) = self.log_calls.remove(&call)
        {
            give(open.answer, response.map_err(|reason| Refusal::new(Code::NotFound, reason)));
        }
    }

    /// Calls whose time is over, or whose node is gone, are answered so.
    fn give_up_log_calls(&mut self, now: Moment) {
        let view = self.peer.membership().view();
        let is_gone = |node: &NodeId| view.get(node).is_none_or(|member| !member.is_live());
        let over: Vec<u64> = self
            .log_calls
            .iter()
            .filter(|(_, open)| open.until <= now || is_gone(&open.node) || open.answer.is_closed())
            .map(|(call, _)| *call)
            .collect();
        for call in over {
            if let Some(open) = self.log_calls.remove(&call) {
                give(open.answer, Err(out_of_reach(open.node)));
            }
        }
    }

    /// Says in the log what an operator cares about.
    fn note(&mut self, event: &Event) {
        match &event.kind {
            EventKind::Member { node, name, state, status, was, reason } => {
                match state {
                    MemberState::Down => tracing::warn!(%node, name, ?was, reason, "member is down"),
                    MemberState::Suspect => tracing::info!(%node, name, reason, "member is suspected"),
                    MemberState::Alive => tracing::info!(%node, name, ?status, ?was, reason, "member is alive"),
                    MemberState::Left => tracing::info!(%node, name, reason, "member left"),
                }
                self.keep_in_contact(*node, *state, *was);
                self.is_stale = true;
            }
            EventKind::Forgotten { node, name } => {
                tracing::info!(%node, name, "member is forgotten");
                self.is_stale = true;
            }
            EventKind::Job { job, state, attempt, node, reason, .. } => {
                tracing::debug!(%job, ?state, ?attempt, ?node, reason, "job changed");
            }
            EventKind::Overlap { job, attempts, certain, .. } => {
                tracing::warn!(%job, ?attempts, certain, "attempts ran, or may have run, at the same time");
            }
            EventKind::Rejected { job, from, reason } => {
                tracing::error!(%job, %from, reason, "a record that cannot be was not taken");
            }
        }
    }

    /// Whoever comes back brings half of a cluster with it, perhaps: both sides are told of each other at once. And
    /// whoever is gone is called now and then, so that a partition heals when no seed is left.
    fn keep_in_contact(&self, node: NodeId, state: MemberState, was: Option<MemberState>) {
        let worth_a_call = match (was, state) {
            (None | Some(MemberState::Down | MemberState::Left), MemberState::Alive) => true,
            (_, MemberState::Down) => true,
            (Some(MemberState::Alive | MemberState::Suspect), MemberState::Alive) => false,
            (_, MemberState::Suspect | MemberState::Left) => false,
        };
        if let Some(addr) = self.addr_of(node).filter(|_| worth_a_call) {
            self.shells.gossip.contact([addr]);
        }
    }

    /// What the Peer knows, with what its shells have counted.
    fn snapshot(&self) -> Snapshot {
        let mut snapshot = self.peer.snapshot(self.shells.clock.now());
        let (gossip, datagrams) = (self.shells.gossip.status(), self.shells.datagrams.status());
        let links = self.shells.transport.traffic();
        snapshot.complaints.extend(self.shells.gossip.complaint());
        snapshot.counters.extend([
            ("records_set_aside", self.shells.records_set_aside),
            ("gossip_restarts", gossip.restarts),
            ("gossip_messages_refused", gossip.refused_messages),
            ("gossip_messages_dropped", gossip.dropped_messages),
            ("gossip_datagrams_sent", gossip.sent_as_datagrams.messages),
            ("gossip_datagram_bytes_sent", gossip.sent_as_datagrams.bytes),
            ("gossip_datagrams_received", gossip.received_as_datagrams.messages),
            ("gossip_datagram_bytes_received", gossip.received_as_datagrams.bytes),
            ("gossip_link_messages_sent", gossip.sent_over_links.messages),
            ("gossip_link_bytes_sent", gossip.sent_over_links.bytes),
            ("gossip_link_messages_received", gossip.received_over_links.messages),
            ("gossip_link_bytes_received", gossip.received_over_links.bytes),
            ("link_frames_sent", links.sent.frames),
            ("link_bytes_sent", links.sent.bytes),
            ("link_frames_received", links.received.frames),
            ("link_bytes_received", links.received.bytes),
            ("comparison_frames_sent", links.comparison_sent.frames),
            ("comparison_bytes_sent", links.comparison_sent.bytes),
            ("comparison_frames_received", links.comparison_received.frames),
            ("comparison_bytes_received", links.comparison_received.bytes),
            ("datagrams_sent", datagrams.sent),
            ("datagram_bytes_sent", datagrams.sent_bytes),
            ("datagrams_unsent", datagrams.unsent),
            ("datagrams_received", datagrams.received),
            ("datagram_bytes_received", datagrams.received_bytes),
            ("datagrams_unreadable", datagrams.garbage),
            ("datagrams_overrun", datagrams.overrun),
        ]);
        let skew_of = |(node, member): (&NodeId, &Member)| {
            let skew = self.shells.datagrams.skew_of(member.facts.cluster_addr)?;
            Some((*node, skew))
        };
        snapshot.clock_skews_ms = snapshot.view.iter().filter_map(skew_of).collect();
        snapshot
    }

    fn renew_snapshot(&mut self) {
        let snapshot = self.snapshot();
        let conflict = self.peer.membership().conflict();
        for complaint in snapshot.complaints.iter().filter(|complaint| !self.complaints.contains(complaint)) {
            tracing::error!(complaint, "something is wrong with the members");
        }
        self.complaints.clone_from(&snapshot.complaints);
        if conflict != self.conflict {
            match &conflict {
                Some(conflict) => tracing::error!(conflict, "this node cannot serve"),
                None => tracing::info!("what kept this node from serving is over"),
            }
            self.conflict = conflict;
        }
        self.snapshots.send_replace(Arc::new(snapshot));
    }

    fn begin_to_leave(&mut self) {
        tracing::info!("leaving the cluster");
        let now = self.shells.clock.now();
        self.peer.leave(now);
        self.leaving_until = Some(now.moment + LEAVE_WITHIN);
    }

    fn has_left(&self, now: Moment) -> bool {
        match self.leaving_until {
            Some(until) if until <= now => {
                tracing::warn!("not everything could be handed over in time");
                true
            }
            Some(_) => self.peer.has_handed_over(),
            None => false,
        }
    }

    /// Tells some others, and then some more in case those did not hear.
    async fn say_goodbye(&mut self) -> Stopped {
        let now = self.shells.clock.now();
        let kept = self.peer.records().len();
        if kept > 0 {
            tracing::info!(jobs = kept, "these jobs stay on this node's disk until it is started again");
        }
        self.peer.say_goodbye(now);
        while let Some(effect) = self.peer.poll_effect(now) {
            if let Effect::Gossip { facts, .. } = effect {
                for _ in 0..GOODBYES {
                    self.publisher.publish(Facts::clone(&facts), true);
                    self.publisher.has_published().await;
                    tokio::time::sleep(GOODBYE_TAKES).await;
                }
            }
        }
        Stopped::Left
    }

    async fn close(self) {
        self.shells.executor.shut_down().await;
        let store = self.shells.store;
        let closing = tokio::task::spawn_blocking(move || store.close());
        if closing.await.is_err() {
            tracing::error!("the store did not close in order");
        }
    }
}

/// How often a goodbye is said, each time to others, and how long it is given to be heard.
const GOODBYES: u32 = 3;
const GOODBYE_TAKES: Duration = Duration::from_millis(50);

fn ticks(every: Duration) -> Interval {
    let mut interval = tokio::time::interval(every);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

fn take_all<T>(from: &mut mpsc::Receiver<T>, to: &mut Vec<T>) {
    while to.len() < ROUND {
        match from.try_recv() {
            Ok(item) => to.push(item),
            Err(_) => return,
        }
    }
}

/// Whoever asked may have gone, which is no fault.
fn give<T>(answer: oneshot::Sender<T>, value: T) {
    let _ = answer.send(value);
}

fn stop_for_disk(reason: &str) -> Next {
    tracing::error!(reason, "the disk cannot be trusted any more: this node stops");
    Next::Stop(Stopped::Failed(format!("the disk cannot be trusted any more: {reason}")))
}

fn out_of_reach(node: NodeId) -> Refusal {
    Refusal::new(Code::Unavailable, format!("node {node}, which has the log, cannot be reached"))
        .with_hint("the log is there again when the node is")
}

fn pass_event(event: &PodEvent) {
    match event {
        PodEvent::Started { .. } => crash_points::pass(Step::Running),
        PodEvent::Ended { .. } => crash_points::pass(Step::Report),
        PodEvent::Reported { .. } => {}
    }
}

/// Of the attempts of this start, `me`: records of earlier ones are written again when they are sealed.
fn pass_commit(commit: &Commit, me: Actor) {
    if cfg!(debug_assertions) {
        let attempts = commit.put.iter().flat_map(|record| record.attempts.values());
        for attempt in attempts.filter(|attempt| attempt.claim.executor == me) {
            match attempt.fate.phase {
                Phase::Claimed => crash_points::pass(Step::Claim),
                Phase::Succeeded => crash_points::pass(Step::Save),
                Phase::Running | Phase::Lost | Phase::Returned | Phase::Failed | Phase::Stopped => {}
            }
        }
    }
}

fn log_pod(event: &PodEvent) {
    match event {
        PodEvent::Started { key, .. } => tracing::debug!(job = %key.job, "pod started"),
        PodEvent::Reported { key, report } => tracing::trace!(job = %key.job, ?report, "pod reports"),
        PodEvent::Ended { key, end, .. } => tracing::debug!(job = %key.job, ?end, "pod ended"),
    }
}
