//! Real nodes, real jobs, real trouble; and then an account of every job.
//!
//! ```text
//! cargo build && cargo run --example chaos -- --seconds 120
//! ```
//!
//! Starts a cluster of `flockwork node` processes, each on a loopback address of its own, and hands in jobs all the
//! time. Meanwhile it kills nodes, freezes them, cuts them off from each other, fills their disks, lets their syncs
//! fail, sets their clocks wrong, drains them and lets them leave. Then it mends everything, waits for calm, and
//! asks what must be true (`verdict`): no acknowledged job is lost, every one has ended, its output is right, what
//! ran is what the records say, nothing ran twice at once without being reported, and all replicas are equal.
//!
//! What the jobs did is taken from a ledger that they write themselves, outside of flockwork. Kills, freezes and
//! restarts are real; cuts, full disks, failing syncs and wrong clocks are what nodes pretend where they are
//! started with `--enable-fault-injection` (`flockwork::io::faults`). The same seed makes the same plan of trouble;
//! what comes of it depends on the machine.
//!
//! A run that is long enough to trust a cluster for. In the middle of so much trouble, five nodes that share two processors
//! run some 40 jobs a second; what is handed in faster waits, and is still to be run when all is mended:
//!
//! ```text
//! cargo build --release && cargo run --release --example chaos -- \
//!     --seconds 1200 --jobs 100000 --kills 200 --jobs-per-second 85 --calm-within 1800
//! ```

#![allow(clippy::disallowed_methods, reason = "a program of its own, with its own clock and dice")]
#![allow(unreachable_pub, reason = "one program in several files")]

mod cluster;
mod faults;
mod ledger;
mod verdict;
mod work;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use tokio_util::sync::CancellationToken;

use cluster::Cluster;
use faults::Trouble;
use work::Work;

/// How many times longer than it was meant to be the trouble may last, until there was as much as was asked for.
const LONGEST: u32 = 3;
/// How often the progress is told.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// Run a cluster through trouble, and check that it kept its promises
#[derive(Debug, Clone, Parser)]
pub struct Options {
    /// For how long there is trouble, in seconds; up to three times that, until there was as much as is asked for below
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Go on until so many jobs are acknowledged
    #[arg(long, default_value_t = 0)]
    jobs: usize,
    /// Go on until so many processes were killed
    #[arg(long, default_value_t = 0)]
    kills: usize,
    /// How many nodes
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..=32))]
    nodes: u8,
    /// How many of them keep each record
    #[arg(long, default_value_t = 3)]
    replicas: u32,
    /// Which plan of trouble
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many jobs are handed in each second
    #[arg(long, default_value_t = 20.0)]
    jobs_per_second: f64,
    /// The mean time between two faults, in seconds
    #[arg(long, default_value_t = 2.0)]
    fault_every: f64,
    /// How long the cluster may take to come to rest at the end, in seconds
    #[arg(long, default_value_t = 180)]
    calm_within: u64,
    /// The program [default: `flockwork` in the folder above this example's]
    #[arg(long)]
    program: Option<PathBuf>,
    /// Keep all files here [default: a temporary folder, which is kept only if a promise was broken]
    #[arg(long)]
    dir: Option<PathBuf>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let outcome = runtime.context("cannot start the runtime").and_then(|runtime| runtime.block_on(run(&options)));
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(125)
        }
    }
}

/// Whether all promises were kept.
async fn run(options: &Options) -> anyhow::Result<bool> {
    let program = match &options.program {
        Some(program) => program.clone(),
        None => {
            let here = std::env::current_exe().context("this program is not to be found")?;
            here.ancestors().nth(2).context("it is in no folder")?.join("flockwork")
        }
    };
    anyhow::ensure!(program.is_file(), "{} is not there: `cargo build` makes it", program.display());
    let temporary = match options.dir {
        Some(_) => None,
        None => Some(tempfile::Builder::new().prefix("flockwork-chaos-").tempdir()?),
    };
    let dir = match (&options.dir, &temporary) {
        (Some(dir), _) => dir.clone(),
        (None, Some(temporary)) => temporary.path().to_owned(),
        (None, None) => unreachable!("one of the two was made"),
    };
    let begun = Instant::now();
    println!(
        "chaos: {} nodes, {} replicas, seed {}, {} s of trouble; files in {}",
        options.nodes,
        options.replicas,
        options.seed,
        options.seconds,
        dir.display()
    );
    let cluster = Arc::new(Cluster::start(&program, &dir, options).await?);
    let stop = CancellationToken::new();
    let work = Arc::new(Work::new(&cluster, options)?);
    let handing_in = tokio::spawn(Arc::clone(&work).hand_in(stop.clone()));
    let keeping_told = tokio::spawn(Arc::clone(&cluster).keep_told());
    let trouble = Arc::new(Trouble::new(Arc::clone(&cluster), options));
    let mut making_trouble = tokio::spawn(Arc::clone(&trouble).make(stop.clone()));

    let meant = Duration::from_secs(options.seconds);
    let is_enough = |after: Duration| {
        let all_there = work.acknowledged().len() >= options.jobs && trouble.kills() >= options.kills;
        after >= if all_there { meant } else { meant * LONGEST }
    };
    while !is_enough(begun.elapsed()) {
        let left = meant.saturating_sub(begun.elapsed());
        tokio::select! {
            () = tokio::time::sleep(if left.is_zero() { TELL_EVERY } else { left.min(TELL_EVERY) }) => {}
            ended = &mut making_trouble => {
                ended.context("the trouble maker failed")??;
                anyhow::bail!("the trouble ended too soon");
            }
        }
        println!("{} {}; {}; repeated: {}", cluster::elapsed(), work.progress(), trouble.progress(), work.reasons());
    }
    stop.cancel();
    making_trouble.await.context("the trouble maker failed")??;
    println!("{} everything is mended; handing in the last jobs, and waiting for calm", cluster::elapsed());
    let mut handing_in = handing_in;
    let patience = tokio::time::sleep(Duration::from_secs(options.calm_within));
    tokio::pin!(patience);
    loop {
        tokio::select! {
            () = &mut patience => {
                // The verdict finds that some were never acknowledged.
                handing_in.abort();
                break;
            }
            handed_in = &mut handing_in => break handed_in.context("handing in failed")?,
            () = tokio::time::sleep(TELL_EVERY) => println!("{} {}; repeated: {}", cluster::elapsed(), work.progress(), work.reasons()),
        }
    }
    let verdict = verdict::reach(&cluster, &work, &trouble, options).await;
    keeping_told.abort();
    cluster.stop().await;
    let kept = match verdict {
        Ok(verdict) => {
            println!("\n{verdict}");
            verdict.is_good()
        }
        Err(error) => {
            println!("\nno verdict: {error:#}");
            false
        }
    };
    if let Some(temporary) = temporary.filter(|_| !kept) {
        println!("the files are kept in {}", temporary.keep().display());
    }
    Ok(kept)
}
