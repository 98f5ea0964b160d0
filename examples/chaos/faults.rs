//! The trouble: which fault comes when, to whom and for how long; and a log of it, against which overlaps are held.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flockwork::io::faults::Disk;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::Options;
use crate::cluster::{self, Cluster, elapsed};
use crate::ledger::uptime;

/// How long a node whose disk fails may take to notice.
const NOTICES_WITHIN: Duration = Duration::from_secs(60);

/// What can happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Kill,
    KillAll,
    Freeze,
    Cut,
    OneWayCut,
    FullDisk,
    FailedSync,
    Leave,
    Drain,
    WrongClock,
}

/// Each kind with its weight.
const KINDS: [(Kind, u32); 10] = [
    (Kind::Kill, 40),
    (Kind::KillAll, 1),
    (Kind::Freeze, 14),
    (Kind::Cut, 12),
    (Kind::OneWayCut, 5),
    (Kind::FullDisk, 6),
    (Kind::FailedSync, 5),
    (Kind::Leave, 6),
    (Kind::Drain, 5),
    (Kind::WrongClock, 6),
];

/// A fault that happened, by the ledger's clock.
#[derive(Debug, Clone)]
pub struct Happened {
    pub kind: Kind,
    /// The nodes it concerned, by name.
    pub nodes: BTreeSet<String>,
    pub from: f64,
    /// Nothing while it lasts.
    pub until: Option<f64>,
}

pub struct Trouble {
    cluster: Arc<Cluster>,
    log: Mutex<Vec<Happened>>,
    dice: Mutex<StdRng>,
    every: f64,
    is_cut: AtomicBool,
}

/// A fault as it was drawn, so that the plan depends on the seed alone.
struct Drawn {
    kind: Kind,
    place: usize,
    side: BTreeSet<usize>,
    lasts: Duration,
    clock_offset_ms: i64,
    outward: bool,
}

impl Trouble {
    pub fn new(cluster: Arc<Cluster>, options: &Options) -> Self {
        Self {
            cluster,
            log: Mutex::default(),
            dice: Mutex::new(StdRng::seed_from_u64(options.seed)),
            every: options.fault_every,
            is_cut: AtomicBool::new(false),
        }
    }

    /// Makes trouble until `stop`, and then mends everything.
    pub async fn make(self: Arc<Self>, stop: CancellationToken) -> anyhow::Result<()> {
        let mut faults = JoinSet::new();
        loop {
            let (pause, drawn) = self.draw();
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(pause) => {}
                Some(ended) = faults.join_next(), if !faults.is_empty() => {
                    ended??;
                    continue;
                }
            }
            let this = Arc::clone(&self);
            faults.spawn(async move { this.inflict(drawn).await });
        }
        while let Some(ended) = faults.join_next().await {
            ended??;
        }
        self.cluster.mend().await
    }

    fn draw(&self) -> (Duration, Drawn) {
        let mut dice = self.dice.lock().unwrap_or_else(PoisonError::into_inner);
        let nodes = self.cluster.nodes.len();
        let pause = Duration::from_secs_f64(self.every * dice.random_range(0.2..1.8));
        let mut at = dice.random_range(0..KINDS.iter().map(|(_, weight)| weight).sum());
        let mut kind = Kind::Kill;
        for (candidate, weight) in KINDS {
            if at < weight {
                kind = candidate;
                break;
            }
            at -= weight;
        }
        let place = dice.random_range(0..nodes);
        let longest = match kind {
            Kind::Kill | Kind::KillAll | Kind::FailedSync => 3.0,
            Kind::Freeze | Kind::FullDisk | Kind::Drain | Kind::Leave => 8.0,
            Kind::Cut | Kind::OneWayCut | Kind::WrongClock => 12.0,
        };
        let side_of = dice.random_range(1..=(nodes / 2).max(1));
        let side = (0..side_of).map(|step| (place + step) % nodes).collect();
        let drawn = Drawn {
            kind,
            place,
            side,
            lasts: Duration::from_secs_f64(dice.random_range(0.2..longest)),
            clock_offset_ms: dice.random_range(-48 * 3_600_000..=48 * 3_600_000),
            outward: dice.random_bool(0.5),
        };
        (pause, drawn)
    }

    async fn inflict(&self, drawn: Drawn) -> anyhow::Result<()> {
        let Drawn { kind, place, side, lasts, clock_offset_ms, outward } = drawn;
        let node = &self.cluster.nodes[place];
        match kind {
            // Whoever is in trouble already is left to it, here and below.
            Kind::Kill => {
                let Some(mut held) = node.try_hold() else { return Ok(()) };
                let happened = self.begin(kind, [place], lasts);
                held.kill(lasts).await?;
                self.end(happened);
            }
            Kind::Freeze => {
                let Some(mut held) = node.try_hold() else { return Ok(()) };
                let happened = self.begin(kind, [place], lasts);
                held.freeze(lasts).await;
                self.end(happened);
            }
            Kind::Leave => {
                let Some(mut held) = node.try_hold() else { return Ok(()) };
                let happened = self.begin(kind, [place], lasts);
                held.leave(lasts).await?;
                self.end(happened);
            }
            Kind::FailedSync => {
                let Some(mut held) = node.try_hold() else { return Ok(()) };
                let happened = self.begin(kind, [place], lasts);
                node.plan().disk = Disk::FailsToSync;
                held.come_back_when_it_stops(NOTICES_WITHIN).await?;
                self.end(happened);
            }
            Kind::KillAll => {
                let all = self.cluster.nodes.iter().enumerate();
                let mut held: Vec<_> = all.filter_map(|(place, node)| Some((place, node.try_hold()?))).collect();
                let happened = self.begin(kind, held.iter().map(|(place, _)| *place), lasts);
                let kills = held.iter_mut().map(|(_, held)| held.kill(lasts));
                for killed in futures_util::future::join_all(kills).await {
                    killed?;
                }
                self.end(happened);
            }
            Kind::Cut | Kind::OneWayCut => {
                if self.cluster.nodes.len() < 2 || self.is_cut.swap(true, Ordering::SeqCst) {
                    return Ok(());
                }
                let happened = self.begin(kind, side.iter().copied(), lasts);
                let both = kind == Kind::Cut;
                cluster::cut(&self.cluster.nodes, &side, both || outward, both || !outward);
                tokio::time::sleep(lasts).await;
                cluster::join(&self.cluster.nodes);
                self.end(happened);
                self.is_cut.store(false, Ordering::SeqCst);
            }
            Kind::FullDisk => {
                let Some(held) = node.try_hold() else { return Ok(()) };
                let happened = self.begin(kind, [place], lasts);
                node.plan().disk = Disk::Full;
                tokio::time::sleep(lasts).await;
                node.plan().disk = Disk::Real;
                self.end(happened);
                drop(held);
            }
            Kind::WrongClock => {
                let happened = self.begin(kind, [place], lasts);
                node.plan().clock_offset_ms = clock_offset_ms;
                tokio::time::sleep(lasts).await;
                node.plan().clock_offset_ms = 0;
                self.end(happened);
            }
            Kind::Drain => {
                let Some(held) = node.try_hold() else { return Ok(()) };
                let happened = self.begin(kind, [place], lasts);
                let url = format!("http://{}/v1/nodes/{}/drain", node.http_addr, node.id);
                let patience = Duration::from_secs(5);
                // A node that is too busy to be told goes on as before.
                let _ = self.cluster.http.post(&url).timeout(patience).send().await;
                tokio::time::sleep(lasts).await;
                while !matches!(
                    self.cluster.http.delete(&url).timeout(patience).send().await,
                    Ok(told) if told.status().is_success()
                ) {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                self.end(happened);
                drop(held);
            }
        }
        Ok(())
    }

    fn begin(&self, kind: Kind, places: impl IntoIterator<Item = usize>, lasts: Duration) -> usize {
        let nodes: BTreeSet<String> = places.into_iter().map(|place| self.cluster.nodes[place].name.clone()).collect();
        let names: Vec<&str> = nodes.iter().map(String::as_str).collect();
        println!("{} {kind:?} {} for {:.1} s", elapsed(), names.join(" "), lasts.as_secs_f64());
        let mut log = self.log();
        log.push(Happened { kind, nodes, from: uptime(), until: None });
        log.len() - 1
    }

    fn end(&self, happened: usize) {
        if let Some(happened) = self.log().get_mut(happened) {
            happened.until = Some(uptime());
        }
    }

    pub fn log(&self) -> MutexGuard<'_, Vec<Happened>> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How often each kind has happened; a fault of several nodes counts once for each.
    pub fn counts(&self) -> BTreeMap<Kind, usize> {
        let mut counts = BTreeMap::new();
        for happened in self.log().iter() {
            let kind = if happened.kind == Kind::KillAll { Kind::Kill } else { happened.kind };
            *counts.entry(kind).or_default() += if kind == Kind::Cut { 1 } else { happened.nodes.len() };
        }
        counts
    }

    /// How many processes were killed.
    pub fn kills(&self) -> usize {
        self.counts().get(&Kind::Kill).copied().unwrap_or(0)
    }

    pub fn progress(&self) -> String {
        let counts: Vec<String> = self.counts().iter().map(|(kind, count)| format!("{kind:?} {count}")).collect();
        counts.join(", ")
    }
}
