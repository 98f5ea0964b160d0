//! What is left behind: processes that outlived their pods, what an earlier start of the node did not end, and logs that
//! nobody will ask for any more.
//!
//! Not known here: when a job is swept, and what becomes of the ends that are found.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::household::Tick;
use super::marker::{self, Mark};
use super::{Core, Executor, docker, now};
use crate::io::machine;
use crate::model::id::{AttemptKey, JobId};
use crate::protocol::former::FormerEnds;

/// How long after a pod's end the machine is searched for processes that left its group, and so how far apart
/// such searches are at the least.
const STRAY_DELAY: Duration = Duration::from_secs(1);

/// How many times the duration of the last search must pass before the next: it takes at most a fiftieth of one
/// processor, however many processes there are.
const STRAY_IDLE_FACTOR: u32 = 50;

/// How often, and how far apart, the leftovers of an earlier start are looked for until none is found.
const LOOKS_FOR_LEFTOVERS: u32 = 100;
const BETWEEN_LOOKS: Duration = Duration::from_millis(20);

impl Executor {
    /// Ends what an earlier start of this node has left running, removes its pods' own directories, and says whose
    /// processes and containers were found. To be called once, before the first pod is started.
    pub async fn reap_leftovers(&self) -> Vec<AttemptKey> {
        let (core, origin, tmp) = (Arc::clone(&self.core), self.core.origin.clone(), self.core.cells.dir().to_owned());
        let reaping = tokio::task::spawn_blocking(move || {
            let mut keys = Vec::new();
            for _ in 0..LOOKS_FOR_LEFTOVERS {
                // A killed process is found once more until it is gone, and one that was just forking has a child.
                let found = marker::kill_marked(|mark| {
                    mark.origin.directory == origin.directory && mark.origin.start != origin.start
                });
                if found.is_empty() {
                    break;
                }
                keys.extend(found.into_iter().map(|mark| mark.key));
                std::thread::sleep(BETWEEN_LOOKS);
            }
            if let Some(groups) = &core.groups {
                groups.clear_earlier(&origin);
            }
            if let Some(household) = &core.household {
                household.clear_earlier(&origin);
            }
            if let Err(error) = remove_all(&tmp) {
                tracing::warn!(dir = %tmp.display(), %error, "leftovers of an earlier start cannot be removed");
            }
            keys
        });
        let mut keys = reaping.await.unwrap_or_default();
        keys.extend(docker::look_and_tidy(&self.core).await.into_iter().map(|mark| mark.key));
        keys.sort();
        keys.dedup();
        keys
    }

    /// What is known of the ends of pods of earlier starts. `found` is what was found of them, and ended, just now.
    pub async fn former_ends(&self, found: &[AttemptKey]) -> FormerEnds {
        let (core, at) = (Arc::clone(&self.core), now());
        let reading = tokio::task::spawn_blocking(move || core.notes.of_earlier_starts());
        let noted = reading.await.unwrap_or_default();
        let mut ends = FormerEnds { booted_at: machine::booted_at(), ..FormerEnds::default() };
        for (generation, noted) in noted {
            ends.starts.extend(noted.all.map(|at| (generation, at)));
            ends.pods.extend(noted.single);
        }
        for key in found {
            ends.pods.entry(*key).or_insert(at);
        }
        ends
    }

    /// Removes the logs of a job; those of its pods that still run, when they have ended.
    pub fn sweep(&self, job: JobId) {
        let mut running = false;
        for (key, pod) in &self.core.registry().pods {
            if key.job == job {
                pod.swept.store(true, Ordering::Relaxed);
                running = true;
            }
        }
        if !running {
            let core = Arc::clone(&self.core);
            self.core.tracker.spawn_on(async move { core.remove_logs(job).await }, &self.core.runtime);
        }
    }

    /// Removes the logs of jobs that last wrote to them more than `age` ago and have no pod here. The record of a
    /// job may have left this node long before its logs are of no more use, so they have a limit of their own.
    pub fn sweep_older(&self, age: Duration) {
        let live: BTreeSet<JobId> = self.core.registry().pods.keys().map(|key| key.job).collect();
        let dir = self.core.layout.dir.clone();
        let executor = self.clone();
        let sweeping = async move {
            let looking = tokio::task::spawn_blocking(move || old_jobs(&dir, age, &live));
            for job in looking.await.unwrap_or_default() {
                executor.sweep(job);
            }
        };
        self.core.tracker.spawn_on(sweeping, &self.core.runtime);
    }
}

impl Core {
    pub(super) async fn remove_logs(&self, job: JobId) {
        let Ok(_one_at_a_time) = self.sweeping.acquire().await else { return };
        let dir = self.layout.job(job);
        let removing = tokio::task::spawn_blocking(move || remove_all(&dir));
        if let Ok(Err(error)) = removing.await {
            tracing::warn!(%job, %error, "a job's logs cannot be removed");
        }
    }

    /// Kills the processes of this start whose pods have ended.
    pub(super) async fn kill_strays(self: &Arc<Self>) {
        let core = Arc::clone(self);
        let killing = tokio::task::spawn_blocking(move || {
            let found =
                marker::kill_marked(|mark| mark.origin == core.origin && !core.registry().pods.contains_key(&mark.key));
            // The clock is read first: a pod that begins from now on has nothing that is older.
            let now = Tick::now();
            let since = core.registry().pods.values().map(|pod| pod.since).min();
            let nameless = core.household.as_ref().map(|all| all.kill_older_than(since.map_or(now, |at| at.min(now))));
            (found, nameless.unwrap_or(0))
        });
        let (found, nameless) = killing.await.unwrap_or_default();
        for Mark { key, .. } in found {
            tracing::info!(job = %key.job, "a process that had left its pod was killed");
        }
        if nameless > 0 {
            tracing::info!(count = nameless, "processes were killed that had left their pods, whichever those were");
        }
    }
}

/// Searches the machine after pods have ended: not after each, but for all that ended within a while.
pub(super) async fn watch_for_strays(core: Arc<Core>) {
    let mut pause = STRAY_DELAY;
    loop {
        tokio::select! {
            () = core.closing.cancelled() => return,
            () = core.strays.notified() => {}
        }
        if tokio::time::timeout(pause, core.closing.cancelled()).await.is_ok() {
            return;
        }
        let begun = Instant::now();
        core.kill_strays().await;
        pause = STRAY_DELAY.max(begun.elapsed() * STRAY_IDLE_FACTOR);
    }
}

/// Removes a directory with what is in it. One that is not there is as good; an empty one is the common case.
fn remove_all(dir: &Path) -> io::Result<()> {
    match fs::remove_dir(dir).or_else(|_| fs::remove_dir_all(dir)) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The jobs whose directories, and all attempts' in them, have not been touched for `age`.
fn old_jobs(dir: &Path, age: Duration, live: &BTreeSet<JobId>) -> Vec<JobId> {
    let is_old = |path: &Path| {
        let modified = fs::metadata(path).and_then(|metadata| metadata.modified());
        modified.is_ok_and(|at| at.elapsed().is_ok_and(|passed| passed > age))
    };
    let entries = |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    entries(dir)
        .filter_map(|path| Some((path.file_name()?.to_str()?.parse::<JobId>().ok()?, path)))
        .filter(|(job, path)| {
            let untouched = |attempt: PathBuf| is_old(&attempt) && entries(&attempt).all(|log| is_old(&log));
            !live.contains(job) && is_old(path) && entries(path).all(untouched)
        })
        .map(|(job, _)| job)
        .collect()
}
