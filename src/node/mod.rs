//! A running node: one Peer, driven by one loop, with all its shells around it.
//!
//! [`Node::start`] opens the store, binds the sockets, starts the shells and then the driver, in that order, so
//! that whatever cannot work is said before anybody hears of this node. [`Node::shut_down`] goes the other way:
//! pods end and go on elsewhere, what others should have is handed over, goodbye is said, files are closed.

#![allow(clippy::disallowed_methods, reason = "a node has a clock and tasks; the floors below are given them")]

mod driver;
pub mod handle;
pub mod options;
mod publisher;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::io::blob_exchange::BlobExchange;
use crate::io::clock::Clock;
use crate::io::datagram::Datagrams;
use crate::io::executor::{Executor, ExecutorConfig, GuardProgram, Handlers};
use crate::io::gossip::{Gossip, GossipConfig, GossipError};
use crate::io::machine::Machine;
use crate::io::store::{CommitDone, Loaded, Store, StoreError};
use crate::io::transport::{Transport, TransportConfig};
use crate::model::config::Config;
use crate::model::id::{Generation, Incarnation, NodeId};
use crate::model::member::{Facts, Fingerprint, Load, PartitionSet, Status, WIRE_VERSION};
use crate::model::spec::{Driver as PodDriver, InvalidField};
use crate::model::wire::Hello;
use crate::protocol::effect::PodEvent;
use crate::protocol::former::FormerEnds;
use crate::protocol::peer::{Peer, Start};

use driver::{Driver, Inputs, Shells};
use handle::Handle;
use options::NodeOptions;

/// Questions of the edges that may wait for the driver.
const COMMANDS_WAITING: usize = 1_024;
/// Frames and link events that may wait for the driver.
const INCOMING_WAITING: usize = 4_096;
/// Probes that may wait for the driver.
const PROBES_WAITING: usize = 1_024;
/// Events that a slow listener may lag behind before it misses some.
const EVENTS_KEPT: usize = 4_096;
/// How often another pair of free ports is tried.
const PORT_TRIES: usize = 32;
/// The label of nodes that hold processes to the processors and the memory that their jobs set aside. Jobs may require it.
const LABEL_OF_LIMITS: &str = "limits";

/// How long the shells may take to stop once the driver has.
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// Why a node could not start. Nobody has heard of it then.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An option cannot be what it is.
    #[error(transparent)]
    Options(#[from] InvalidField),
    /// The data directory cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The cluster address cannot be listened on.
    #[error("cannot listen on {addr} for peers: {error}")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// What the system said.
        error: io::Error,
    },
    /// The advertised host is not one.
    #[error("cannot advertise {host}: {error}")]
    Advertise {
        /// The host.
        host: String,
        /// What is wrong with it.
        error: io::Error,
    },
    /// Pods cannot be run.
    #[error("cannot run pods: {0}")]
    Executor(io::Error),
    /// Gossip cannot be started.
    #[error(transparent)]
    Gossip(#[from] GossipError),
}

/// Why a node stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stopped {
    /// It was told to, and has left.
    Left,
    /// It could not go on.
    Failed(String),
}

impl std::fmt::Display for Stopped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Left => f.write_str("it has left the cluster"),
            Self::Failed(reason) => f.write_str(reason),
        }
    }
}

/// A running node. Dropping it does not stop it: see [`shut_down`](Self::shut_down).
#[derive(Debug)]
pub struct Node {
    handle: Handle,
    id: NodeId,
    name: String,
    cluster_addr: SocketAddr,
    leave: CancellationToken,
    stopped: watch::Receiver<Option<Stopped>>,
}

impl Node {
    /// Starts a node. `handlers` is what jobs of driver `handler` may run; `guard` ends its pods should this
    /// process be killed.
    ///
    /// # Errors
    /// Something that it needs is not to be had; what had been started is stopped again.
    pub async fn start(options: NodeOptions, handlers: Handlers, guard: GuardProgram) -> Result<Self, StartError> {
        options.validate()?;
        let clock = Clock::with_faults(options.faults.clone());
        let (tcp, udp) = bind(options.listen).await?;
        let bound = tcp.local_addr().map_err(|error| StartError::Listen { addr: options.listen, error })?;
        let cluster_addr = advertised(bound, options.advertise.as_deref()).await?;

        let (store, loaded, commits_done) = open_store(&options, &clock).await?;
        let identity = loaded.identity;
        let name = identity.name.clone().unwrap_or_else(|| format!("node-{}", identity.node));
        let records_set_aside = loaded.damaged.len() as u64;

        let tracker = TaskTracker::new();
        let stop = CancellationToken::new();
        let (pod_events, pods) = mpsc::unbounded_channel();
        let (damaged_to, damaged) = mpsc::unbounded_channel();
        let blob_reader = store.blob_reader(damaged_to);
        let executor_config = ExecutorConfig {
            log_limit_bytes: options.log_limit_bytes,
            handlers,
            guard,
            generation: identity.generation,
            blobs: Some(blob_reader.clone()),
            docker: options.docker.clone(),
            ..ExecutorConfig::new(options.data_dir.join("pods"), name.clone())
        };
        let mut config = options.config.clone();
        let (executor, former_ends) = start_executor(executor_config, &mut config, pod_events, &tracker).await?;

        let http_addr = SocketAddr::new(at_host(cluster_addr.ip(), options.http_addr.ip()), options.http_addr.port());
        let facts = first_facts(&config, identity.node, identity.generation, &name, cluster_addr, http_addr);
        let hello = Hello {
            cluster: config.cluster.name.clone(),
            wire_version: WIRE_VERSION,
            node: identity.node,
            generation: identity.generation,
            cluster_addr,
        };
        let (incoming_to, incoming) = mpsc::channel(INCOMING_WAITING);
        let transport_config = TransportConfig { faults: options.faults.clone(), ..TransportConfig::new(hello) };
        let (transport, gossip_frames) =
            Transport::start(tcp, transport_config, incoming_to, tracker.clone(), stop.clone());
        let (probes_to, probes) = mpsc::channel(PROBES_WAITING);
        let listen_error = |error| StartError::Listen { addr: bound, error };
        let (datagrams, gossip_packets) =
            Datagrams::start(udp, probes_to, clock.clone(), options.faults.clone(), &tracker, stop.clone())
                .map_err(listen_error)?;
        let gossip_config = GossipConfig { interval: config.timing.gossip_interval, seeds: options.seeds.clone() };
        let gossip = Gossip::start(
            &facts,
            gossip_config,
            (datagrams.clone(), gossip_packets),
            (transport.clone(), gossip_frames),
            &tracker,
            stop.clone(),
        )
        .await?;
        gossip.contact(loaded.members.iter().map(|member| member.cluster_addr));

        let blobs = BlobExchange::new(facts.generation, blob_reader, transport.clone(), tracker.clone());
        let start = Start {
            has_seeds: !options.seeds.is_empty(),
            records: loaded.records,
            known_at: loaded.known_at,
            blobs: loaded.blobs,
            members: loaded.members,
            former_ends,
            seed: rand::random(),
            config,
            facts,
        };
        let now = clock.now();
        let peer = Peer::new(now, start);
        let (commands_to, commands) = mpsc::channel(COMMANDS_WAITING);
        let (snapshots_to, snapshots) = watch::channel(Arc::new(peer.snapshot(now)));
        let (events, _) = broadcast::channel(EVENTS_KEPT);
        let leave = CancellationToken::new();
        let (fetched_to, fetched) = mpsc::unbounded_channel();
        let shells = Shells {
            clock,
            machine: Machine::new(&options.data_dir),
            transport,
            datagrams,
            gossip: gossip.clone(),
            executor,
            blobs,
            fetched: fetched_to,
            store,
            tracker: tracker.clone(),
            faults: options.faults.clone(),
            records_set_aside,
        };
        let inputs = Inputs {
            incoming,
            probes,
            facts: gossip.facts(),
            pods,
            fetched,
            damaged,
            commits_done,
            commands,
            leave: leave.clone(),
        };
        let driver = Driver::new(peer, shells, snapshots_to, events.clone(), options.config.retention);
        let stopped = supervise(tokio::spawn(driver.run(inputs)), stop, tracker);
        let handle = Handle::new(commands_to, snapshots, events);
        Ok(Self { handle, id: identity.node, name, cluster_addr, leave, stopped })
    }

    /// The way in.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Who it is.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where peers reach it.
    pub fn cluster_addr(&self) -> SocketAddr {
        self.cluster_addr
    }

    /// Waits until the node has stopped, and says why.
    pub async fn stopped(&self) -> Stopped {
        let mut stopped = self.stopped.clone();
        match stopped.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or(Stopped::Left),
            Err(_) => Stopped::Failed("the node's supervisor is gone".to_owned()),
        }
    }

    /// Leaves the cluster in order, and waits until all is closed: at most about half a minute.
    pub async fn shut_down(&self) -> Stopped {
        self.leave.cancel();
        self.stopped().await
    }
}

/// Starts the executor, and notes in the node's settings what it can do.
async fn start_executor(
    executor_config: ExecutorConfig,
    config: &mut Config,
    pod_events: mpsc::UnboundedSender<PodEvent>,
    tracker: &TaskTracker,
) -> Result<(Executor, FormerEnds), StartError> {
    if executor_config.handlers.names().next().is_some() {
        config.drivers.insert(PodDriver::Handler);
    }
    let executor = Executor::start(executor_config, pod_events, tracker.clone()).map_err(StartError::Executor)?;
    // Before this start is heard of: it is about to say that its earlier pods are gone.
    let leftovers = executor.reap_leftovers().await;
    for key in &leftovers {
        tracing::warn!(job = %key.job, claim = %key.claim, "ended what an earlier start of this node had left running");
    }
    let former_ends = executor.former_ends(&leftovers).await;
    if executor.enforces_limits() {
        config.labels.entry(LABEL_OF_LIMITS.to_owned()).or_insert_with(|| "enforced".to_owned());
    }
    if executor.has_containers() {
        config.drivers.insert(PodDriver::Container);
    }
    Ok((executor, former_ends))
}

/// Opens the data directory. What becomes of commits comes out of the receiver.
async fn open_store(
    options: &NodeOptions,
    clock: &Clock,
) -> Result<(Store, Loaded, mpsc::UnboundedReceiver<CommitDone>), StartError> {
    let (committed, commits_done) = mpsc::unbounded_channel();
    let (dir, name, wall) = (options.data_dir.clone(), options.name.clone(), clock.now().wall);
    let opening = tokio::task::spawn_blocking(move || {
        Store::open(&dir, name.as_deref(), wall, move |done| {
            // The driver may have stopped already; then nobody is left to be told.
            let _ = committed.send(done);
        })
    });
    let (store, loaded) = opening.await.map_err(|error| StartError::Executor(io::Error::other(error)))??;
    for damaged in &loaded.damaged {
        let job = damaged.id.map(|id| id.to_string()).unwrap_or_default();
        tracing::error!(job, reason = damaged.reason, "a record on the disk is damaged and was set aside");
    }
    Ok((store, loaded, commits_done))
}

/// What a node that has just started says of itself.
fn first_facts(
    config: &Config,
    node: NodeId,
    generation: Generation,
    name: &str,
    cluster_addr: SocketAddr,
    http_addr: SocketAddr,
) -> Facts {
    Facts {
        node,
        name: name.to_owned(),
        generation,
        incarnation: Incarnation(0),
        cluster_addr,
        http_addr,
        status: Status::Joining,
        revision: 0,
        capacity: config.capacity,
        weight: config.weight,
        load: Load::default(),
        labels: config.labels.clone(),
        drivers: config.drivers.clone(),
        held: PartitionSet::default(),
        ring: Fingerprint::default(),
        cluster: config.cluster.clone(),
        wire_version: WIRE_VERSION,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        suspicions: BTreeMap::new(),
        departed: BTreeMap::new(),
        dismissed: BTreeMap::new(),
    }
}

/// Waits for the driver's end, has everything else end, and tells why.
fn supervise(
    driving: JoinHandle<Stopped>,
    stop: CancellationToken,
    tracker: TaskTracker,
) -> watch::Receiver<Option<Stopped>> {
    let (stopped_to, stopped) = watch::channel(None);
    tokio::spawn(async move {
        let why = match driving.await {
            Ok(why) => why,
            Err(error) => Stopped::Failed(format!("the driver failed: {error}")),
        };
        stop.cancel();
        tracker.close();
        if tokio::time::timeout(STOP_WITHIN, tracker.wait()).await.is_err() {
            tracing::warn!(tasks = tracker.len(), "some tasks did not stop in time");
        }
        // Nobody may be left to be told.
        let _ = stopped_to.send(Some(why));
    });
    stopped
}

/// One port for both protocols. With port 0, a pair that is free for both.
async fn bind(addr: SocketAddr) -> Result<(TcpListener, UdpSocket), StartError> {
    let wrong = |error| StartError::Listen { addr, error };
    let mut tries = if addr.port() == 0 { PORT_TRIES } else { 1 };
    loop {
        let tcp = TcpListener::bind(addr).await.map_err(wrong)?;
        let bound = tcp.local_addr().map_err(wrong)?;
        tries -= 1;
        match UdpSocket::bind(bound).await {
            Ok(udp) => return Ok((tcp, udp)),
            Err(error) if tries == 0 => return Err(wrong(error)),
            Err(_) => {}
        }
    }
}

/// What peers are told: the bound address, or the advertised host with the bound port.
async fn advertised(bound: SocketAddr, host: Option<&str>) -> Result<SocketAddr, StartError> {
    let Some(host) = host else {
        return Ok(bound);
    };
    let wrong = |error| StartError::Advertise { host: host.to_owned(), error };
    let found: BTreeSet<SocketAddr> = tokio::net::lookup_host((host, bound.port())).await.map_err(wrong)?.collect();
    let same_family = found.iter().find(|addr| addr.is_ipv4() == bound.is_ipv4());
    same_family.or(found.first()).copied().ok_or_else(|| wrong(io::Error::other("it has no address")))
}

/// A listener on all interfaces is reached where the node is reached.
fn at_host(cluster: IpAddr, http: IpAddr) -> IpAddr {
    if http.is_unspecified() { cluster } else { http }
}
