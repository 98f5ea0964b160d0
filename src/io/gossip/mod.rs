//! Gossip: what every node says of itself reaches every other, without anybody in the middle.
//!
//! Picture a village where everyone keeps a page about themselves and copies of everyone else's. A few times a
//! second each calls some others; they compare page numbers and copy what is newer (the protocol is Scuttlebutt,
//! van Renesse et al., "Efficient Reconciliation and Flow Control for Anti-Entropy Protocols", LADIS 2008). News
//! that cannot wait is different: whoever first reads that somebody is suspected, refutes, or leaves, calls three
//! others at once, and so do they, each once per piece of news. What can wait a little (how busy a node is) is told
//! to some others once an interval, by the node that it is about. The rounds in which everybody compares everything
//! with somebody are what heals all loss; they cost the same whether anything has happened or not, so they are slow.
//!
//! The protocol is the `chitchat` library's; this is the one place that knows it, and it stands between the
//! library and its traps:
//! - The library also judges who is alive. Nobody here asks it: it only means that somebody relays a heartbeat.
//! - Some messages make it panic, and some values silence a node for good: `guard` and `facts` keep
//!   both out, on the way in and on the way out.
//! - A start that it has seen before is ignored until it says more than before. So its generation is ours with
//!   a count of our own restarts of it below (an epoch); when others turn out to know more of our present
//!   start than we have said, as after a restart with the same generation, the next epoch begins.
//! - Of two starts of one node both are shown, for minutes after the first has ended. At one address the `view`
//!   takes the later; of two addresses it tells both, and the membership finds out which of them is there.
//! - Its digest grows with every start it remembers, up to a size at which it panics. It is told to forget the
//!   dead within minutes, the size is shown and warned about, and the guard stops newcomers before it is reached.
//! - If its task dies all the same, it is started anew with another epoch, loudly. What was known stays known.
//!
//! It does not know what the facts mean, apart from which of them are urgent, and never concludes anything from
//! silence. A node that is no longer in the list has been forgotten, not found dead: that is membership's to say.

mod facts;
mod guard;
#[cfg(test)]
mod tests;
mod view;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chitchat::{ChitchatConfig, ChitchatHandle, ChitchatId, FailureDetectorConfig, spawn_chitchat};
use rand::seq::IteratorRandom;
use serde::Serialize;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::model::id::{Generation, NodeId};
use crate::model::member::Facts;

pub use self::facts::EncodeFactsError;
use self::facts::Keys;
use self::guard::{CROWDED_DIGEST_BYTES, Claim, MAX_DIGEST_BYTES, Start};
use self::view::{EPOCH_BITS, Shown, View};
pub use self::wire::Traffic;
use self::wire::{Sockets, Wire};
use super::datagram::{Datagrams, GossipPacket};
use super::throttle::Throttle;
use super::transport::{GossipFrame, Transport};

/// After how long the library forgets a node that it thinks dead. It stops telling others of it after half of
/// that. Every start that is remembered takes room in every digest, so this is minutes; membership remembers
/// the dead for longer.
const DEAD_NODE_GRACE: Duration = Duration::from_secs(180);
/// How many others hear urgent news at once, from each who reads them.
const FANOUT: usize = 3;
/// The library's own rounds, in intervals.
const ROUND_INTERVALS: u32 = 4;
/// News that come together are reported together.
const COALESCE: Duration = Duration::from_millis(2);
/// How often the library is looked at although it reports no change, since it forgets in silence.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often seeds' names are resolved while nobody is known.
const RESOLVE_EVERY: Duration = Duration::from_secs(3);
/// How often, in rounds, some address is called that may have been forgotten: a seed, a node that was met
/// before. This is how two halves that have forgotten each other meet again.
const REUNION_EVERY: u32 = 10;
/// How long resolving one name may take.
const RESOLVE_WITHIN: Duration = Duration::from_secs(2);
/// Addresses to call that are remembered.
const MAX_CONTACTS: usize = 256;
/// How many of them are called in one go.
const CALLS_AT_ONCE: usize = 16;
/// How long the library is left alone after it has died: at first, and at most.
const RESTART_AFTER: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// The longest that stopping waits for the library.
const STOP_WITHIN: Duration = Duration::from_secs(1);

/// How a node gossips.
#[derive(Debug, Clone)]
pub struct GossipConfig {
    /// How often it tells some others what is new about itself; everything is compared with some others at every
    /// fourth. Shorter spreads facts faster; costs about six digests each time.
    pub interval: Duration,
    /// Whom to call while nobody is known: `host:port`, names or addresses.
    pub seeds: Vec<String>,
}

/// Why gossip could not start, or facts could not be published. Nothing has been changed.
#[derive(Debug, thiserror::Error)]
pub enum GossipError {
    /// The facts do not fit into gossip.
    #[error(transparent)]
    Facts(#[from] EncodeFactsError),
    /// The generation leaves no room for counting restarts. It must be below 2^44; seconds since 1970 are.
    #[error("generation {} is too high to gossip under", .0.0)]
    Generation(Generation),
    /// The gossip library did not start.
    #[error("the gossip library did not start: {0}")]
    Library(String),
}

/// How gossip is doing, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GossipStatus {
    /// Whether the library runs at this moment.
    pub running: bool,
    /// How often the library died, or had to begin another epoch.
    pub restarts: u64,
    /// Why it last did.
    pub last_failure: Option<String>,
    /// How many starts of nodes the library remembers.
    pub known_starts: usize,
    /// What they take in every digest.
    pub digest_bytes: usize,
    /// Beyond this, newcomers are not let in.
    pub digest_limit_bytes: usize,
    /// Whether the digest is uncomfortably large.
    pub crowded: bool,
    /// Messages that were refused as unsafe.
    pub refused_messages: u64,
    /// How often a start of a node was kept out, because the digest had no room for it.
    pub kept_out_starts: u64,
    /// Messages lost for want of room.
    pub dropped_messages: u64,
    /// Sent as datagrams.
    pub sent_as_datagrams: Traffic,
    /// Sent over peer connections.
    pub sent_over_links: Traffic,
    /// Came as datagrams.
    pub received_as_datagrams: Traffic,
    /// Came over peer connections.
    pub received_over_links: Traffic,
    /// Others speak of a later generation of this node than its own: two nodes have one id, or this one has
    /// lost its stored generation. It is not heard until it starts with a higher one.
    pub outdone_by: Option<Generation>,
}

/// This node's part in the gossip. Cheap to clone.
#[derive(Clone)]
pub struct Gossip {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Gossip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gossip").field("status", &self.status()).finish_non_exhaustive()
    }
}

struct Shared {
    node: NodeId,
    generation: Generation,
    addr: SocketAddr,
    cluster: String,
    /// Between two tellings of what is new.
    interval: Duration,
    /// Between the library's rounds.
    round: Duration,
    seeds: Vec<String>,
    wire: Arc<Wire>,
    /// What the library is to say of this node, whichever epoch it is in.
    published: Mutex<Keys>,
    running: Mutex<Option<Arc<ChitchatHandle>>>,
    view: Mutex<View>,
    facts: watch::Sender<Arc<Vec<Facts>>>,
    /// Something that the library knows has changed.
    changed: Arc<Notify>,
    /// There is something new about this node that can wait until the interval is over.
    news: Notify,
    /// Others know more of this start than it has said.
    overtaken: Notify,
    contacts: Mutex<BTreeSet<SocketAddr>>,
    restarts: AtomicU64,
    last_failure: Mutex<Option<String>>,
    crowded: AtomicBool,
    outdone_by: Mutex<Option<Generation>>,
    resolving: Throttle,
    stop: CancellationToken,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Gossip {
    /// Starts to gossip `me`, in tasks of `tracker`, until `stop`. What comes from others comes out of `datagrams` and
    /// `transport`, each with its inbox.
    ///
    /// # Errors
    /// The facts cannot be gossiped, or the library does not start.
    pub async fn start(
        me: &Facts,
        config: GossipConfig,
        (datagrams, datagram_inbox): (Datagrams, mpsc::Receiver<GossipPacket>),
        (transport, frame_inbox): (Transport, mpsc::Receiver<GossipFrame>),
        tracker: &TaskTracker,
        stop: CancellationToken,
    ) -> Result<Self, GossipError> {
        if me.generation.0 >> (u64::BITS - EPOCH_BITS) != 0 {
            return Err(GossipError::Generation(me.generation));
        }
        let shared = Arc::new(Shared {
            node: me.node,
            generation: me.generation,
            addr: me.cluster_addr,
            cluster: me.cluster.name.clone(),
            interval: config.interval,
            round: config.interval.saturating_mul(ROUND_INTERVALS),
            seeds: config.seeds,
            wire: Arc::new(Wire::new(me.node, datagrams, datagram_inbox, transport, frame_inbox)),
            published: Mutex::new(facts::encode(me)?),
            running: Mutex::default(),
            view: Mutex::default(),
            facts: watch::Sender::default(),
            changed: Arc::default(),
            news: Notify::new(),
            overtaken: Notify::new(),
            contacts: Mutex::default(),
            restarts: AtomicU64::new(0),
            last_failure: Mutex::default(),
            crowded: AtomicBool::new(false),
            outdone_by: Mutex::default(),
            resolving: Throttle::default(),
            stop,
        });
        let first = shared.launch(0).await?;
        tracker.spawn(Arc::clone(&shared).supervise(first));
        tracker.spawn(Arc::clone(&shared).watch());
        tracker.spawn(Arc::clone(&shared).tell_news());
        tracker.spawn(Arc::clone(&shared).keep_contact());
        Ok(Self { shared })
    }

    /// Gossips `facts` about this node from now on. If `urgent`, some others hear of it at once.
    ///
    /// # Errors
    /// The facts do not fit into gossip; what was gossiped before stays.
    pub async fn publish(&self, facts: &Facts, urgent: bool) -> Result<(), GossipError> {
        let mut keys = facts::encode(facts)?;
        {
            let mut published = lock(&self.shared.published);
            // Keys are never deleted; one that is no longer needed holds nothing.
            for old in published.keys() {
                keys.entry(old.clone()).or_insert_with(|| "{}".to_owned());
            }
            published.clone_from(&keys);
        }
        let Some(handle) = self.shared.handle() else {
            // It is being started anew, and will begin with what was just stored.
            return Ok(());
        };
        set(&handle, &keys).await;
        if urgent {
            self.shared.spread_news();
        } else {
            self.shared.news.notify_one();
        }
        Ok(())
    }

    /// The newest facts of every other node at each of its addresses, of its latest start there, and those of other
    /// processes that run, or ran, with this node's id. Incomplete ones are left out, and so is this process
    /// itself. Wakes whenever something has changed.
    pub fn facts(&self) -> watch::Receiver<Arc<Vec<Facts>>> {
        self.shared.facts.subscribe()
    }

    /// Calls those who listen at `addresses`, once now, and again from time to time: members that were known
    /// before this start, members that are believed down. A limited number is remembered.
    pub fn contact(&self, addresses: impl IntoIterator<Item = SocketAddr>) {
        let new: Vec<SocketAddr> = addresses.into_iter().take(MAX_CONTACTS).collect();
        self.shared.remember(&new);
        self.shared.call(new);
    }

    /// What is wrong and worth a person's look, if anything is.
    pub fn complaint(&self) -> Option<String> {
        let later = (*lock(&self.shared.outdone_by))?;
        let (node, own) = (self.shared.node, self.shared.generation);
        Some(format!(
            "others have heard of a later start of node {node}, generation {}, than this one, {}: if another process \
             runs as this node, stop it; if this one was set back to an older copy of its data directory, start it \
             once more with the clock set right",
            later.0, own.0
        ))
    }

    /// How it is doing.
    pub fn status(&self) -> GossipStatus {
        let shared = &self.shared;
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (known_starts, digest_bytes) = shared.wire.guard().size();
        GossipStatus {
            running: shared.handle().is_some(),
            restarts: get(&shared.restarts),
            last_failure: lock(&shared.last_failure).clone(),
            known_starts,
            digest_bytes,
            digest_limit_bytes: MAX_DIGEST_BYTES,
            crowded: digest_bytes > CROWDED_DIGEST_BYTES,
            refused_messages: get(&shared.wire.refused),
            kept_out_starts: get(&shared.wire.kept_out),
            dropped_messages: get(&shared.wire.dropped),
            sent_as_datagrams: shared.wire.by_datagram.read(),
            sent_over_links: shared.wire.by_link.read(),
            received_as_datagrams: shared.wire.from_datagram.read(),
            received_over_links: shared.wire.from_link.read(),
            outdone_by: *lock(&shared.outdone_by),
        }
    }
}

/// Sets the library's keys; those that are the same stay as they are.
async fn set(handle: &ChitchatHandle, keys: &Keys) {
    let chitchat = handle.chitchat();
    let mut chitchat = chitchat.lock().await;
    let state = chitchat.self_node_state();
    for (key, value) in keys {
        state.set(key, value);
    }
}

impl Shared {
    fn handle(&self) -> Option<Arc<ChitchatHandle>> {
        lock(&self.running).clone()
    }

    /// Starts the library in `epoch`.
    async fn launch(&self, epoch: u64) -> Result<Arc<ChitchatHandle>, GossipError> {
        let generation = self.generation.0 << EPOCH_BITS | epoch;
        let config = ChitchatConfig {
            chitchat_id: ChitchatId::new(self.node.to_string(), generation, self.addr),
            cluster_id: self.cluster.clone(),
            gossip_interval: self.round,
            listen_addr: self.addr,
            // Seeds are called from here: the library resolves names once a minute only.
            seed_nodes: Vec::new(),
            // What it makes of these decides only whom it calls and when it forgets.
            failure_detector_config: FailureDetectorConfig {
                phi_threshold: 8.0,
                sampling_window_size: 100,
                max_interval: self.round.saturating_mul(40),
                initial_interval: self.round,
                dead_node_grace_period: DEAD_NODE_GRACE,
            },
            marked_for_deletion_grace_period: Duration::from_secs(3_600),
            catchup_callback: None,
            extra_liveness_predicate: None,
        };
        self.wire.guard().begin(generation, self.addr);
        let keys = lock(&self.published).clone();
        let handle = spawn_chitchat(config, keys.into_iter().collect(), &Sockets(Arc::clone(&self.wire)))
            .await
            .map_err(|error| GossipError::Library(error.to_string()))?;
        let changed = Arc::clone(&self.changed);
        handle
            .with_chitchat(|chitchat| {
                let changed = Arc::clone(&changed);
                chitchat.subscribe_event("", move |_| changed.notify_one()).forever();
            })
            .await;
        let handle = Arc::new(handle);
        *lock(&self.running) = Some(Arc::clone(&handle));
        // What was published while it started.
        let keys = lock(&self.published).clone();
        set(&handle, &keys).await;
        self.changed.notify_one();
        Ok(handle)
    }

    /// Sees to it that the library runs.
    async fn supervise(self: Arc<Self>, mut handle: Arc<ChitchatHandle>) {
        let mut pause = RESTART_AFTER.0;
        loop {
            let began = Instant::now();
            let termination = handle.termination_watcher();
            let reason = tokio::select! {
                () = self.stop.cancelled() => {
                    let _ = handle.initiate_shutdown();
                    // An error here only means that it is gone already.
                    let _ = timeout(STOP_WITHIN, handle.termination_watcher()).await;
                    handle.abort();
                    return;
                }
                ended = termination => match ended {
                    Ok(()) => "it stopped by itself".to_owned(),
                    Err(error) => error.to_string(),
                },
                () = self.overtaken.notified() => "others know more of this start of the node than it has said; \
                    an earlier process used the same generation, or another one does".to_owned(),
            };
            let mut reason = reason;
            pause = if began.elapsed() > RESTART_AFTER.1 { RESTART_AFTER.0 } else { pause };
            handle = loop {
                *lock(&self.running) = None;
                handle.abort();
                let restarts = self.restarts.fetch_add(1, Ordering::Relaxed) + 1;
                tracing::error!(restarts, reason, ?pause, "gossip has to be started anew");
                *lock(&self.last_failure) = Some(reason);
                tokio::select! {
                    () = self.stop.cancelled() => return,
                    () = sleep(pause) => {}
                }
                pause = (pause * 2).min(RESTART_AFTER.1);
                match self.launch(self.next_epoch(handle.chitchat_id().generation_id)).await {
                    Ok(handle) => break handle,
                    Err(error) => reason = error.to_string(),
                }
            };
            let known = lock(&self.view).addresses();
            self.call(known);
        }
    }

    /// The epoch after every one that this node has been in, or is said to have been in.
    fn next_epoch(&self, last: u64) -> u64 {
        let claimed = self.wire.guard().claim().map(|claim| claim.generation);
        let same_generation = |claimed: &u64| claimed >> EPOCH_BITS == self.generation.0;
        let latest = claimed.filter(same_generation).map_or(last, |claimed| claimed.max(last));
        // A million restarts, at least a tenth of a second apart. Should they come to an end, the last epoch stays,
        // and the node is heard again when its process starts anew.
        let mask = (1 << EPOCH_BITS) - 1;
        ((latest & mask) + 1).min(mask)
    }

    /// Keeps the view up to date, and hands on what is urgent.
    async fn watch(self: Arc<Self>) {
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = self.changed.notified() => sleep(COALESCE).await,
                () = sleep(LOOK_EVERY) => {}
            }
            if let Some(handle) = self.handle() {
                self.look(&handle).await;
            }
        }
    }

    async fn look(&self, handle: &ChitchatHandle) {
        // Before the library is asked: what others say of this node must not be newer than what it says itself.
        let claim = self.wire.guard().claim();
        let chitchat = handle.chitchat();
        let (shown, own) = {
            let mut chitchat = chitchat.lock().await;
            let own = chitchat.self_node_state();
            let own = (own.chitchat_id().generation_id, u64::from(own.heartbeat()));
            let view = lock(&self.view);
            let shown: Vec<Shown> =
                chitchat.node_states().values().filter_map(|state| Shown::of(state, &view)).collect();
            (shown, own)
        };
        let starts: BTreeSet<Start> = shown.iter().map(|shown| shown.start).collect();
        let is_this = |start: &Start| start.node == self.node && start.addr == self.addr;
        let others = shown.into_iter().filter(|shown| !is_this(&shown.start));
        let changes = lock(&self.view).take(others, Instant::now());
        if changes.urgent {
            self.spread_news();
        }
        if changes.facts {
            let facts = Arc::new(lock(&self.view).facts());
            self.facts.send_if_modified(|known| {
                let changed = *known != facts;
                *known = facts;
                changed
            });
        }
        self.remember(&changes.gone);
        self.check_room(&starts);
        if let Some(claim) = claim {
            self.check_claim(claim, own);
        }
    }

    /// Warns before the digest grows beyond what a message holds.
    fn check_room(&self, starts: &BTreeSet<Start>) {
        let (known_starts, digest_bytes) = {
            let mut guard = self.wire.guard();
            guard.retain(starts);
            guard.size()
        };
        let crowded = digest_bytes > CROWDED_DIGEST_BYTES;
        if crowded && !self.crowded.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                known_starts,
                digest_bytes,
                limit = MAX_DIGEST_BYTES,
                "gossip remembers so many starts of nodes that newcomers may soon not be let in"
            );
        } else if !crowded {
            self.crowded.store(false, Ordering::Relaxed);
        }
    }

    /// Whether others know more of this node than it has said itself. The heartbeat given was read after the
    /// claim was heard, and only this process raises it, so a higher claim is another process's.
    fn check_claim(&self, claim: Claim, (generation, heartbeat): (u64, u64)) {
        let claimed = Generation(claim.generation >> EPOCH_BITS);
        if claimed > self.generation {
            if lock(&self.outdone_by).replace(claimed) != Some(claimed) {
                tracing::error!(
                    node = %self.node,
                    generation = self.generation.0,
                    later = claimed.0,
                    "others know a later start of this node: two nodes have one id, or its stored generation is lost"
                );
            }
        } else if (claim.generation, claim.heartbeat) > (generation, heartbeat) {
            self.overtaken.notify_one();
        }
    }

    /// Tells some others what is new about this node, at most once an interval.
    async fn tell_news(self: Arc<Self>) {
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = self.news.notified() => self.spread_news(),
            }
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = sleep(self.interval) => {}
            }
        }
    }

    /// Calls some others at once.
    fn spread_news(&self) {
        let others = lock(&self.view).addresses();
        self.call(others.into_iter().sample(&mut rand::rng(), FANOUT));
    }

    /// Has the library exchange what it knows with those who listen at `addresses`, or with some of them.
    fn call(&self, addresses: Vec<SocketAddr>) {
        let Some(handle) = self.handle() else {
            return;
        };
        let others = addresses.into_iter().filter(|addr| *addr != self.addr);
        for addr in others.sample(&mut rand::rng(), CALLS_AT_ONCE) {
            // Fails only when the library's task has ended, which its supervisor sees too.
            let _ = handle.gossip(addr);
        }
    }

    fn remember(&self, addresses: &[SocketAddr]) {
        let mut contacts = lock(&self.contacts);
        for addr in addresses {
            contacts.insert(*addr);
            if contacts.len() > MAX_CONTACTS {
                // Which one goes is left to chance: none is known to be better.
                let some = contacts.iter().copied().choose(&mut rand::rng());
                some.map(|addr| contacts.remove(&addr));
            }
        }
    }

    /// Looks for company: all the time while there is none, now and then when there is.
    async fn keep_contact(self: Arc<Self>) {
        let mut facts = self.facts.subscribe();
        let mut resolved: BTreeMap<String, Vec<SocketAddr>> = BTreeMap::new();
        let mut resolved_at: Option<Instant> = None;
        loop {
            let is_alone = |facts: &[Facts]| facts.iter().all(|facts| facts.node == self.node);
            let alone = is_alone(&facts.borrow_and_update());
            if resolved_at.is_none_or(|at| at.elapsed() >= RESOLVE_EVERY) {
                self.resolve_seeds(&mut resolved).await;
                resolved_at = Some(Instant::now());
            }
            let mut candidates: BTreeSet<SocketAddr> = resolved.values().flatten().copied().collect();
            candidates.extend(lock(&self.contacts).iter());
            candidates.remove(&self.addr);
            let pause = if alone {
                self.call(candidates.into_iter().collect());
                self.interval.saturating_mul(2)
            } else {
                self.call(candidates.into_iter().choose(&mut rand::rng()).into_iter().collect());
                self.round.saturating_mul(REUNION_EVERY)
            };
            let until_company_changes = async {
                // Facts change all the time; only whether there are any matters here.
                while facts.changed().await.is_ok() && is_alone(&facts.borrow_and_update()) == alone {}
            };
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = sleep(pause) => {}
                () = until_company_changes => {}
            }
        }
    }

    /// Resolves the seeds' names. One that cannot be resolved keeps the addresses it had.
    async fn resolve_seeds(&self, resolved: &mut BTreeMap<String, Vec<SocketAddr>>) {
        for seed in &self.seeds {
            let resolving = timeout(RESOLVE_WITHIN, tokio::net::lookup_host(seed));
            let answer = tokio::select! {
                () = self.stop.cancelled() => return,
                answer = resolving => answer,
            };
            let error = match answer {
                Ok(Ok(addresses)) => {
                    resolved.insert(seed.clone(), addresses.take(CALLS_AT_ONCE).collect());
                    continue;
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => "no answer in time".to_owned(),
            };
            if let Some(left_out) = self.resolving.admit() {
                tracing::warn!(seed, error, left_out, "a seed's name cannot be resolved");
            }
        }
    }
}
