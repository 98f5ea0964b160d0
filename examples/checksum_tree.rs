//! Checksums and compresses every file of a directory tree, spread over a cluster: one job per file.
//!
//! ```text
//! flockwork up                                              in one terminal
//! cargo run --example checksum_tree -- DIR --addr A,B,C     in another, with the addresses that `up` printed
//! ```
//!
//! The files are handed in by the hundred, to each node in turn. Each job is three standard tools; it writes
//! three lines, which are gathered here and, at the end, compared with what the same tools say without flockwork.
//! The nodes must see the files under the same names: one machine, or a shared file system.
//!
//! Worth copying into a program of your own:
//! - Any node answers for all jobs. A request that one node does not answer goes to the next ([`Cluster`]), and
//!   every job carries an idempotency key, so that handing it in twice makes one job.
//! - A job's output is kept by the node that ran it. If that node is gone when the output is wanted, the work is
//!   handed in anew; that is safe here, because a checksum may well be computed twice.

#![allow(clippy::disallowed_methods, reason = "a program of its own, with its own clock and dice")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Parser;
use futures_util::{StreamExt, TryStreamExt, stream};
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

/// What each job runs, in a directory of its own: the file's size, its size when compressed, its checksum.
const WORK: &str = "gzip -nc < \"$1\" > packed && wc -c < \"$1\" && wc -c < packed && sha256sum < \"$1\"";

/// How many jobs one request hands in.
const BATCH: usize = 100;

/// How many answers are awaited side by side.
const AT_ONCE: usize = 16;

/// How long a node may take to answer, apart from the time it was asked to wait.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// How long no node at all may answer before this gives up.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often the work on one file is handed in, where its output is lost with a node.
const MOST_ROUNDS: u32 = 5;

/// Checksum and compress every file of a tree, one job per file
#[derive(Debug, Parser)]
struct Options {
    /// The tree; links in it are not followed
    dir: PathBuf,
    /// The nodes' HTTP addresses
    #[arg(long, env = "FLOCKWORK_ADDR", value_delimiter = ',', default_value = "127.0.0.1:7070")]
    addr: Vec<String>,
    /// Write the checksums here, in the form that `sha256sum --check` reads
    #[arg(long)]
    manifest: Option<PathBuf>,
}

/// What is known of a file's content.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Sums {
    bytes: u64,
    packed_bytes: u64,
    sha256: String,
}

impl Sums {
    /// Reads what [`WORK`] writes.
    fn parse(output: &str) -> anyhow::Result<Self> {
        let words: Vec<&str> = output.split_whitespace().collect();
        let [bytes, packed_bytes, sha256, "-"] = words[..] else { bail!("this is no result: {output:?}") };
        Ok(Self { bytes: bytes.parse()?, packed_bytes: packed_bytes.parse()?, sha256: sha256.to_owned() })
    }
}

/// A file's result, and how it came about.
#[derive(Debug)]
struct Done {
    sums: Sums,
    node: String,
    /// It took more than one attempt.
    again: bool,
}

/// One file to be worked on.
#[derive(Debug)]
struct Work {
    file: String,
    /// What makes its idempotency keys unlike all others.
    key: String,
}

impl Work {
    /// Names the work of this `run`, file by file.
    fn new(run: u64) -> impl Fn((usize, String)) -> Self {
        move |(number, file)| Self { file, key: format!("checksum_tree/{run:016x}/{number}") }
    }

    fn spec(&self, round: u32) -> Value {
        json!({
            "command": ["sh", "-c", WORK, "sh", self.file],
            "key": format!("{}/{round}", self.key),
            "timeout": "10m",
            "retries": 2,
        })
    }

    /// Waits for the job's end and reads its output; hands the work in anew where the output is out of reach.
    async fn result(&self, cluster: &Cluster, mut id: String) -> anyhow::Result<Done> {
        for round in 1..=MOST_ROUNDS {
            if round > 1 {
                id = cluster.submit(vec![self.spec(round)], 0).await?.pop().context("an id for every job")?;
            }
            let job = cluster.ended(&id).await?;
            ensure!(job["state"] == "succeeded", "job {id}: {}", job["reason"]);
            if let Some(output) = cluster.output(&id).await {
                let attempts = job["attempts"].as_array().context("a job has attempts")?;
                let told = attempts.iter().rfind(|attempt| attempt["phase"] == "succeeded");
                let node = told.and_then(|attempt| attempt["node_name"].as_str()).context("one of them succeeded")?;
                let again = round > 1 || attempts.len() > 1;
                return Ok(Done { sums: Sums::parse(&output)?, node: node.to_owned(), again });
            }
        }
        bail!("its output was lost {MOST_ROUNDS} times")
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let root = options.dir.canonicalize().with_context(|| format!("cannot find {}", options.dir.display()))?;
    let files = files_below(&root)?;
    ensure!(!files.is_empty(), "there is no file below {}", root.display());
    let cluster = Cluster::new(options.addr)?;

    let started = Instant::now();
    let work: Vec<Work> = files.into_iter().enumerate().map(Work::new(rand::random())).collect();
    let bar = ProgressBar::new(work.len() as u64)
        .with_style(ProgressStyle::with_template("{bar:40} {pos}/{len} files, {elapsed}, {eta} left")?);
    let handed_in: Vec<Vec<String>> = stream::iter(work.chunks(BATCH).enumerate())
        .map(|(at, batch)| cluster.submit(batch.iter().map(|work| work.spec(1)).collect(), at))
        .buffered(cluster.addresses.len())
        .try_collect()
        .await?;
    let submitted_after = started.elapsed();
    let results: BTreeMap<&String, Done> = stream::iter(work.iter().zip(handed_in.into_iter().flatten()))
        .map(async |(work, id)| {
            let done = work.result(&cluster, id).await.with_context(|| format!("no result for {}", work.file))?;
            bar.inc(1);
            anyhow::Ok((&work.file, done))
        })
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await?;
    let took = started.elapsed();
    bar.finish_and_clear();

    report(&cluster, &results, submitted_after, took);
    if let Some(path) = options.manifest {
        let lines: String = results.iter().map(|(file, done)| format!("{}  {file}\n", done.sums.sha256)).collect();
        std::fs::write(&path, lines).with_context(|| format!("cannot write {}", path.display()))?;
        println!("checksums in  {}", path.display());
    }
    compare(&results)
}

fn report(cluster: &Cluster, results: &BTreeMap<&String, Done>, submitted_after: Duration, took: Duration) {
    let bytes: u64 = results.values().map(|done| done.sums.bytes).sum();
    let packed: u64 = results.values().map(|done| done.sums.packed_bytes).sum();
    let mut by_node = BTreeMap::<&str, usize>::new();
    for done in results.values() {
        *by_node.entry(&done.node).or_default() += 1;
    }
    let by_node: Vec<String> = by_node.iter().map(|(node, jobs)| format!("{node} {jobs}")).collect();
    println!(
        "files         {}, handed in to {} nodes in {submitted_after:.1?}",
        results.len(),
        cluster.addresses.len()
    );
    println!("bytes         {bytes}, compressed {packed} ({:.0}%)", 100.0 * packed as f64 / bytes.max(1) as f64);
    println!("worked on by  {}", by_node.join(", "));
    println!("run again     {}", results.values().filter(|done| done.again).count());
    println!("took          {took:.1?}");
}

/// Holds every result against the same tools, run here one after the other.
fn compare(results: &BTreeMap<&String, Done>) -> anyhow::Result<()> {
    let started = Instant::now();
    let scratch = tempfile::tempdir()?;
    let mut differ = 0;
    for (file, done) in results {
        let local = Command::new("sh").args(["-c", WORK, "sh", file.as_str()]).current_dir(scratch.path()).output()?;
        ensure!(local.status.success(), "{file} cannot be read here: {}", String::from_utf8_lossy(&local.stderr));
        let expected = Sums::parse(&String::from_utf8(local.stdout)?)?;
        if expected != done.sums {
            differ += 1;
            eprintln!("{file}: the cluster says {:?}, this machine {expected:?}", done.sums);
        }
    }
    println!("locally       {:.1?}, one after the other", started.elapsed());
    ensure!(differ == 0, "{differ} of {} results differ", results.len());
    println!("compared      all {} results are equal", results.len());
    Ok(())
}

/// The nodes, any of which will do.
#[derive(Debug)]
struct Cluster {
    addresses: Vec<String>,
    /// The one that answered last.
    favourite: AtomicUsize,
    http: reqwest::Client,
}

impl Cluster {
    fn new(addresses: Vec<String>) -> anyhow::Result<Self> {
        let http = reqwest::Client::builder().connect_timeout(Duration::from_secs(3)).no_proxy().build()?;
        Ok(Self { addresses, favourite: AtomicUsize::new(0), http })
    }

    /// Hands in jobs, beginning with the node `at`; returns their ids in the same order.
    async fn submit(&self, specs: Vec<Value>, at: usize) -> anyhow::Result<Vec<String>> {
        let answer = self.insist(Method::POST, "/v1/jobs", Some(json!(specs)), at).await?;
        let jobs = answer["jobs"].as_array().with_context(|| format!("refused: {answer}"))?;
        let ids = jobs.iter().map(|job| match job["id"].as_str() {
            Some(id) => Ok(id.to_owned()),
            None => bail!("refused: {}", job["error"]),
        });
        ids.collect()
    }

    /// The job, once it has ended.
    async fn ended(&self, id: &str) -> anyhow::Result<Value> {
        let path = format!("/v1/jobs/{id}/wait?timeout=10s");
        loop {
            let job = self.insist(Method::GET, &path, None, self.favourite.load(Ordering::Relaxed)).await?;
            match job["state"].as_str() {
                Some("pending" | "running") => {}
                Some(_) => return Ok(job),
                None => bail!("refused: {job}"),
            }
        }
    }

    /// What the job wrote, unless no node can get at it.
    async fn output(&self, id: &str) -> Option<String> {
        let path = format!("/v1/jobs/{id}/logs?stream=stdout");
        for at in 0..self.addresses.len() {
            let at = at + self.favourite.load(Ordering::Relaxed);
            if let Ok((StatusCode::OK, output)) = self.ask(&Method::GET, &path, None, at).await {
                return Some(output);
            }
        }
        None
    }

    /// Asks one node after the other, beginning with the node `at`, until one answers for good.
    async fn insist(&self, method: Method, path: &str, body: Option<Value>, mut at: usize) -> anyhow::Result<Value> {
        let give_up = Instant::now() + PATIENCE;
        let mut pause = Duration::from_millis(50);
        loop {
            let why = match self.ask(&method, path, body.as_ref(), at).await {
                // Too busy, or on its way out: another node may be better off.
                Ok((StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE, why)) => why,
                Ok((_, answer)) => {
                    self.favourite.store(at, Ordering::Relaxed);
                    return serde_json::from_str(&answer).with_context(|| format!("this is no JSON: {answer}"));
                }
                Err(error) => error.to_string(),
            };
            ensure!(Instant::now() < give_up, "no node answers; the last try: {why}");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(2));
            at += 1;
        }
    }

    /// Asks the node `at`, counted around.
    async fn ask(
        &self,
        method: &Method,
        path: &str,
        body: Option<&Value>,
        at: usize,
    ) -> reqwest::Result<(StatusCode, String)> {
        let address = &self.addresses[at % self.addresses.len()];
        let request = self.http.request(method.clone(), format!("http://{address}{path}")).timeout(ANSWER_WITHIN);
        let request = match body {
            Some(body) => request.json(body),
            None => request,
        };
        let answer = request.send().await?;
        Ok((answer.status(), answer.text().await?))
    }
}

/// All regular files of the tree, in order.
fn files_below(root: &Path) -> anyhow::Result<Vec<String>> {
    let mut files = Vec::new();
    let mut left = vec![root.to_owned()];
    while let Some(dir) = left.pop() {
        for entry in std::fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                left.push(entry.path());
            } else if kind.is_file() {
                // JSON is UTF-8, and so is everything in a spec.
                match entry.path().into_os_string().into_string() {
                    Ok(file) => files.push(file),
                    Err(raw) => eprintln!("left out, its name is not UTF-8: {}", raw.display()),
                }
            }
        }
    }
    files.sort();
    Ok(files)
}
