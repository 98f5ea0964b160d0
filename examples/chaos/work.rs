//! The client: hands in jobs all the time, to any node, again and again until each is acknowledged.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::Options;
use crate::cluster::Cluster;
use crate::ledger::SCRIPT;

/// How long a node may take to answer before another one is asked.
const ANSWER_WITHIN: Duration = Duration::from_secs(6);
/// How long a client waits before it asks again: at first, and at the most. Who goes on asking a busy cluster at the
/// same pace keeps it busy with the same jobs.
const FIRST_PAUSE: Duration = Duration::from_millis(300);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// How often jobs are handed in.
const BATCH_EVERY: Duration = Duration::from_millis(500);
/// Batches that wait for their acknowledgement. Beyond it nothing new is handed in.
const MOST_BATCHES: usize = 64;
/// One job in so many lasts longer than a moment.
const LONG_ONES: u32 = 12;
/// How many times half a second these last at the most.
const MOST_TURNS: u32 = 12;

pub struct Work {
    nodes: Vec<std::net::SocketAddr>,
    http: reqwest::Client,
    ledger: PathBuf,
    per_second: f64,
    seed: u64,
    dice: Mutex<StdRng>,
    /// By key: the id of every job that was acknowledged as it asked to be.
    acknowledged: Mutex<BTreeMap<String, String>>,
    handed_in: AtomicU64,
    retries: AtomicU64,
    short: AtomicU64,
    waited: Mutex<Vec<Duration>>,
    /// Why requests were repeated, and how often.
    reasons: Mutex<BTreeMap<String, u64>>,
}

impl Work {
    pub fn new(cluster: &Cluster, options: &Options) -> anyhow::Result<Self> {
        Ok(Self {
            nodes: cluster.nodes.iter().map(|node| node.http_addr).collect(),
            http: reqwest::Client::builder().no_proxy().timeout(ANSWER_WITHIN).build()?,
            ledger: cluster.ledger.canonicalize()?,
            per_second: options.jobs_per_second,
            seed: options.seed,
            dice: Mutex::new(StdRng::seed_from_u64(options.seed ^ 0x5eed)),
            acknowledged: Mutex::default(),
            handed_in: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            short: AtomicU64::new(0),
            waited: Mutex::default(),
            reasons: Mutex::default(),
        })
    }

    /// Hands in jobs until `stop`, and returns when every one of them is acknowledged.
    pub async fn hand_in(self: Arc<Self>, stop: CancellationToken) {
        let mut batches = JoinSet::new();
        let mut ticks = tokio::time::interval(BATCH_EVERY);
        let mut due = 0.0;
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                _ = ticks.tick() => {}
            }
            while batches.try_join_next().is_some() {}
            if batches.len() >= MOST_BATCHES {
                continue;
            }
            due += self.per_second * BATCH_EVERY.as_secs_f64();
            let specs: Vec<Value> = (0..due as u64).map(|_| self.spec()).collect();
            due -= specs.len() as f64;
            if !specs.is_empty() {
                batches.spawn(Arc::clone(&self).hand_in_batch(specs));
            }
        }
        while batches.join_next().await.is_some() {}
    }

    fn spec(&self) -> Value {
        let number = self.handed_in.fetch_add(1, Ordering::Relaxed);
        let key = format!("chaos-{}-{number}", self.seed);
        let mut dice = self.dice();
        let turns = if dice.random_ratio(1, LONG_ONES) { dice.random_range(1..=MOST_TURNS) } else { 0 };
        json!({
            "command": ["sh", "-c", SCRIPT, "sh", key, turns.to_string()],
            "env": {"LEDGER": self.ledger},
            "name": key,
            "key": key,
            "lost_limit": 1_000,
        })
    }

    /// Asks one node after the other, until all of them are on as many disks as they asked for.
    async fn hand_in_batch(self: Arc<Self>, mut specs: Vec<Value>) {
        let begun = Instant::now();
        let mut pause = None;
        while !specs.is_empty() {
            if let Some(pause) = pause {
                self.retries.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(pause).await;
            }
            pause = Some(pause.map_or(FIRST_PAUSE, |pause: Duration| LONGEST_PAUSE.min(pause * 2)));
            let via = self.nodes[self.dice().random_range(0..self.nodes.len())];
            let asked = self.http.post(format!("http://{via}/v1/jobs")).json(&specs).send().await;
            let answer = match asked {
                Ok(answer) => answer.json::<Value>().await,
                Err(error) => Err(error),
            };
            let answer = match answer {
                Ok(answer) => answer,
                Err(error) => {
                    self.count(if error.is_timeout() { "no answer in time" } else { "no connection" });
                    continue;
                }
            };
            let Some(jobs) = answer["jobs"].as_array().filter(|jobs| jobs.len() == specs.len()) else {
                self.count(answer["error"]["message"].as_str().unwrap_or("an answer of another kind"));
                continue;
            };
            let mut left = Vec::new();
            for (spec, job) in specs.into_iter().zip(jobs) {
                let receipt = &job["receipt"];
                let is_enough = receipt["stored"].as_u64() >= receipt["wanted"].as_u64() && receipt.is_object();
                match (job["id"].as_str(), spec["key"].as_str()) {
                    (Some(id), Some(key)) if is_enough => {
                        self.acknowledged().insert(key.to_owned(), id.to_owned());
                        self.waited.lock().unwrap_or_else(PoisonError::into_inner).push(begun.elapsed());
                        continue;
                    }
                    (Some(_), _) => {
                        self.short.fetch_add(1, Ordering::Relaxed);
                    }
                    (None, _) => self.count(job["error"]["message"].as_str().unwrap_or("no reason")),
                }
                left.push(spec);
            }
            specs = left;
        }
    }

    fn count(&self, reason: &str) {
        let mut reasons = self.reasons.lock().unwrap_or_else(PoisonError::into_inner);
        *reasons.entry(reason.to_owned()).or_default() += 1;
    }

    /// Why requests were repeated, or single jobs of them, and how often.
    pub fn reasons(&self) -> String {
        let reasons = self.reasons.lock().unwrap_or_else(PoisonError::into_inner);
        let reasons: Vec<String> = reasons.iter().map(|(reason, count)| format!("{count} × {reason}")).collect();
        reasons.join("; ")
    }

    fn dice(&self) -> MutexGuard<'_, StdRng> {
        self.dice.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The ids of the acknowledged jobs, by key.
    pub fn acknowledged(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many jobs were handed in and never acknowledged.
    pub fn unacknowledged(&self) -> u64 {
        self.handed_in.load(Ordering::Relaxed).saturating_sub(self.acknowledged().len() as u64)
    }

    pub fn progress(&self) -> String {
        format!(
            "{} jobs handed in, {} acknowledged, {} requests repeated, {} short receipts",
            self.handed_in.load(Ordering::Relaxed),
            self.acknowledged().len(),
            self.retries.load(Ordering::Relaxed),
            self.short.load(Ordering::Relaxed),
        )
    }

    /// How long acknowledgements took, in the middle and at the end of the tail.
    pub fn latency(&self) -> String {
        let mut waited = self.waited.lock().unwrap_or_else(PoisonError::into_inner).clone();
        waited.sort();
        let at = |share: f64| waited.get((waited.len() as f64 * share) as usize).copied().unwrap_or_default();
        format!("half within {:.2?}, 99 of 100 within {:.2?}, retries included", at(0.5), at(0.99))
    }
}
