//! Runs pods: starts them, keeps what they write, ends them, and reports each end exactly once.
//!
//! Picture a workshop with a foreman. The driver hands in slips (start this, stop that) and never waits; the
//! foreman gives every pod a task that looks after it from its start to its end, and puts what happens into the
//! driver's letter box. A pod is a group of processes (`process`), a container (`container`) or an async function of
//! the embedding program (`handler`); what it writes goes into a capped log (`log`), which outlives it until its
//! job is swept.
//!
//! What always holds:
//! - For every [`start_pod`](Executor::start_pod) there is one [`PodEvent::Ended`], also when the pod never ran or
//!   the node shuts down. [`PodEvent::Started`] comes before it, where it comes at all.
//! - When the end is reported, nothing of the pod's process group runs, its log is complete, and its own
//!   directory is gone.
//! - No process group outlives its node. While the node lives, its tasks see to that; when it is killed, its
//!   guard does (`guard`); when both are killed, the next start does
//!   ([`reap_leftovers`](Executor::reap_leftovers)). Processes that left their group are found by a mark in
//!   their environment (`marker`), as well as Linux allows: before the end is reported where they hold the
//!   pod's output open, and otherwise about a second later. Those that have shed the mark as well are known by the control
//!   group that all pods of a node are in, where there is one (`household`).
//! - Pods of jobs that set processors or memory aside are held to it by control groups (`groups`) where the machine
//!   lets this node make any. Nobody leaves those.
//! - What is said of process groups goes for containers, by the same three, as far as Docker answers (`docker`).
//!
//! On disk, below the configured directory: `id`, a number that says whose marks are this node's;
//! `<job>/<claim>/`, the logs of an attempt; `tmp/<job>.<claim>/`, the directory that an attempt has for itself
//! while it runs; `tmp/<job>.<claim>.pod/`, where it finds its checkpoint and leaves its result.
//!
//! It does not know why a pod is started or stopped, what its exit means for the job, or that there are other
//! nodes.

mod cells;
mod container;
mod docker;
mod groups;
mod guard;
mod handler;
mod household;
mod identity;
mod log;
mod marker;
mod memory;
mod notes;
mod overseer;
mod process;
mod register;
mod sweeping;
mod telling;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::Pid;
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use super::pod_api::ReportError;
pub use guard::{GUARD_ARGUMENT, GuardProgram, guard_main};
pub use handler::{HandlerContext, HandlerError, Handlers, LogWriter, Reporter};

use crate::io::crash_points::{self, Step};
use crate::io::machine::OwnGroups;
use crate::io::pod_api::{PodApi, Voice};
use crate::io::store::BlobReader;
use crate::model::attempt::Usage;
use crate::model::blob::{Blob, MAX_RESULT_BYTES, MAX_TAIL_BYTES};
use crate::model::id::{AttemptKey, Generation, JobId};
use crate::model::request::Receipt;
use crate::model::spec::Driver;
use crate::model::time::Timestamp;
use crate::model::wire::{LogChunk, LogRequest, Stream};
use crate::protocol::effect::{Leavings, PodEnd, PodEvent, PodStart, Rejected};
use cells::{Cell, Cells};
use docker::Docker;
use groups::Groups;
use guard::{Guard, RENEW_EVERY, Watched};
use household::{Household, Tick};
use log::StreamLog;
use marker::{Mark, Origin};
use memory::MemoryWatch;
use notes::Notes;
use overseer::Cause;

/// How many processes are being spawned at one time. More than the machine has processors helps only where
/// spawning waits for a slow file system.
const SPAWNS_AT_ONCE: usize = 16;

/// The longest wait of one [`read_log`](Executor::read_log).
const MAX_LOG_WAIT: Duration = Duration::from_secs(60);

/// How long shutting down waits beyond the pods' grace period.
const SHUTDOWN_MARGIN: Duration = Duration::from_secs(10);

/// What an executor needs to know.
#[derive(Debug, Clone)]
pub struct ExecutorConfig {
    /// Where logs and the attempts' own directories are kept. Must belong to this executor alone.
    pub dir: PathBuf,
    /// What jobs see as `FLOCKWORK_NODE`.
    pub node_name: String,
    /// Which start of the node this is. Later ones are told by it how this one's pods ended.
    pub generation: Generation,
    /// How many of the newest bytes of each attempt's standard output, and of its standard error, are kept: at
    /// least half of this, at most all of it. Raising it costs disk for every attempt until its job is swept.
    pub log_limit_bytes: u64,
    /// From SIGTERM to SIGKILL, for pods that are stopped or out of time. Raising it gives jobs more time to save
    /// their work, and delays whatever waits for their end: a drain, a shutdown, the next attempt.
    pub stop_grace: Duration,
    /// What jobs of driver `handler` may run.
    pub handlers: Handlers,
    /// What ends the pods when this process is killed.
    pub guard: GuardProgram,
    /// Where checkpoints are read from. Without it, pods that have one to go on from cannot be started.
    pub blobs: Option<BlobReader>,
    /// The socket of this machine's Docker daemon, which need not be there yet. Without it no container is run.
    pub docker: Option<PathBuf>,
}

impl ExecutorConfig {
    /// The defaults: 64 MiB of log per attempt and stream, 5 seconds of grace, no handlers, a guard that works
    /// in any program.
    pub fn new(dir: impl Into<PathBuf>, node_name: impl Into<String>) -> Self {
        Self {
            dir: dir.into(),
            node_name: node_name.into(),
            generation: Generation(0),
            log_limit_bytes: 64 << 20,
            stop_grace: Duration::from_secs(5),
            handlers: Handlers::new(),
            guard: GuardProgram::default(),
            blobs: None,
            docker: None,
        }
    }
}

/// Runs pods. Cheap to clone; all clones are one executor.
#[derive(Debug, Clone)]
pub struct Executor {
    core: Arc<Core>,
}

/// What the tasks of all pods share.
#[derive(Debug)]
struct Core {
    config: ExecutorConfig,
    layout: Layout,
    cells: Cells,
    notes: Notes,
    origin: Origin,
    /// `/dev/null`, the input of most pods: to share it is less work than to open it for each.
    nothing: fs::File,
    /// What pods are given of the node's environment.
    passed_on: Vec<(&'static str, OsString)>,
    registry: Mutex<Registry>,
    events: mpsc::UnboundedSender<PodEvent>,
    tracker: TaskTracker,
    runtime: Handle,
    pod_api: PodApi,
    memory: MemoryWatch,
    docker: Docker,
    /// Where control groups are made, if this machine allows it.
    groups: Option<Groups>,
    /// The group of all pods that have none of their own, likewise.
    household: Option<Household>,
    guard: Option<Arc<Guard>>,
    spawning: Semaphore,
    sweeping: Semaphore,
    /// A pod has ended: processes that left its group may be about.
    strays: Notify,
    /// The last pod has ended.
    idle: Notify,
    /// There are no pods any more: what runs beside them ends as well.
    closing: CancellationToken,
}

#[derive(Debug, Default)]
struct Registry {
    pods: BTreeMap<AttemptKey, Arc<Pod>>,
    shutting_down: bool,
}

/// A pod that has been started and not been reported as ended.
#[derive(Debug)]
struct Pod {
    /// Nothing of it started earlier.
    since: Tick,
    /// When its node was told to start it. From then on it may stand still.
    asked: Instant,
    stop: CancellationToken,
    voice: Arc<Voice>,
    /// By which it proves that it is itself.
    token: String,
    /// How many processes the kernel had killed for want of memory when it started.
    memory_kills: OnceLock<u64>,
    /// What people should know about its end, as far as it is known before it is cleared up.
    remark: OnceLock<String>,
    /// What it used, where that is counted.
    usage: OnceLock<Usage>,
    /// When it ended, if that was before it was noticed.
    ended_at: OnceLock<Timestamp>,
    stdout: Arc<StreamLog>,
    stderr: Arc<StreamLog>,
    /// Its job was swept while it ran: sweep again when it has ended.
    swept: AtomicBool,
    /// Its own directories, while it runs.
    cell: Mutex<Option<Cell>>,
}

/// Where things are on disk.
#[derive(Debug)]
struct Layout {
    dir: PathBuf,
}

impl Layout {
    fn job(&self, job: JobId) -> PathBuf {
        self.dir.join(job.to_string())
    }

    /// Where an attempt's logs are.
    fn attempt(&self, key: AttemptKey) -> PathBuf {
        self.job(key.job).join(marker::claim_name(key.claim))
    }
}

impl Executor {
    /// Starts an executor, its guard, and the address that pods report to. Reports go to `events`; there are at most
    /// two for each pod, one a second of its progress, one every few seconds of what it writes, and as many checkpoints
    /// and results as memory is set aside for, so the queue needs no bound of its own. Must be called within a Tokio
    /// runtime; its tasks are spawned there, and counted by `tracker`.
    ///
    /// # Errors
    /// The directory cannot be made or read, the guard program cannot be started, or there is no runtime.
    /// Without an `awk`, the default guard is done without, with a warning.
    pub fn start(
        config: ExecutorConfig,
        events: mpsc::UnboundedSender<PodEvent>,
        tracker: TaskTracker,
    ) -> io::Result<Self> {
        let runtime = Handle::try_current().map_err(io::Error::other)?;
        // What jobs write is nobody else's business.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&config.dir)?;
        let layout = Layout { dir: fs::canonicalize(&config.dir)? };
        let origin = Origin { directory: directory_id(&layout)?, start: rand::random() };
        // Before the guard is started: a node must be alone in its group to move out of the way.
        let own = OwnGroups::of_this_process();
        let groups = find_groups(own.clone(), &origin);
        let household = household::make(&config.guard, &own, &origin);
        let notes = Notes::new(layout.dir.join("ended"), config.generation);
        let is_noted = config.guard != GuardProgram::Awk
            && notes.begin().inspect_err(|error| tracing::warn!(%error, "the pod guard can note nothing")).is_ok();
        let watched = Watched {
            origin: origin.clone(),
            notes: is_noted.then(|| notes.file()),
            docker: config.docker.clone(),
            groups: household::bases_of(groups.as_ref(), household.as_ref()),
            home: household.as_ref().map(|household| household.home().to_owned()),
        };
        let guard = match Guard::start(config.guard.clone(), watched) {
            Ok(started) => Some(started),
            Err(error) if config.guard == GuardProgram::Awk => {
                tracing::warn!(%error, "no pod guard: pods will outlive this program if it is killed");
                None
            }
            Err(error) => return Err(error),
        };
        let (guard, guard_process) = guard.unzip();
        // After the guard was started, which is to stay outside.
        let household = household.and_then(household::enter);
        let closing = CancellationToken::new();
        let pod_api = PodApi::start(events.clone(), tracker.clone(), closing.clone())?;
        let core = Arc::new(Core {
            nothing: fs::File::open("/dev/null")?,
            passed_on: process::passed_on(),
            cells: Cells::new(layout.dir.join("tmp")),
            notes,
            layout,
            origin,
            registry: Mutex::default(),
            events,
            tracker,
            runtime,
            pod_api,
            memory: MemoryWatch::new(),
            docker: Docker::at(config.docker.clone()),
            groups,
            household,
            config,
            guard,
            spawning: Semaphore::new(SPAWNS_AT_ONCE),
            sweeping: Semaphore::new(1),
            strays: Notify::new(),
            idle: Notify::new(),
            closing,
        });
        if let (Some(guard), Some(process)) = (&core.guard, guard_process) {
            core.tracker.spawn_on(Arc::clone(guard).keep(process, core.closing.clone()), &core.runtime);
            core.tracker.spawn_on(Arc::clone(guard).keep_leases(core.closing.clone()), &core.runtime);
        }
        core.tracker.spawn_on(sweeping::watch_for_strays(Arc::clone(&core)), &core.runtime);
        core.tracker.spawn_on(docker::keep_looking(Arc::clone(&core)), &core.runtime);
        Ok(Self { core })
    }

    /// Whether the processors and the memory that jobs set aside are enforced for processes.
    pub fn enforces_limits(&self) -> bool {
        self.core.groups.is_some()
    }

    /// Whether containers can be run at the moment.
    pub fn has_containers(&self) -> bool {
        self.core.docker.client().is_some()
    }

    /// Starts a pod. What becomes of it is reported as events; nothing blocks here.
    pub fn start_pod(&self, start: PodStart) {
        let core = &self.core;
        let key = start.key;
        let pod = Arc::new(Pod::new(core, key));
        {
            let mut registry = core.registry();
            if registry.shutting_down {
                pod.voice.revoke();
                let end = PodEnd::Unable { reason: "this node is shutting down".to_owned() };
                core.report(PodEvent::Ended { key, at: now(), end, left: Box::default() });
                return;
            }
            if registry.pods.contains_key(&key) {
                pod.voice.revoke();
                tracing::error!(?key, "a pod was to be started twice; the first goes on, and will be reported");
                return;
            }
            registry.pods.insert(key, Arc::clone(&pod));
        }
        core.tracker.spawn_on(run_pod(Arc::clone(core), pod, start), &core.runtime);
    }

    /// Ends a pod: SIGTERM to its group, SIGKILL after the grace period. One that is not there has ended already.
    pub fn stop_pod(&self, key: AttemptKey) {
        if let Some(pod) = self.core.registry().pods.get(&key) {
            pod.stop.cancel();
        }
    }

    /// A pod has no say any more, whether or not it still runs: its token is void.
    pub fn silence(&self, key: AttemptKey) {
        if let Some(pod) = self.core.registry().pods.get(&key) {
            pod.voice.revoke();
        }
    }

    /// Answers what a pod reported: see [`PodReport`](crate::protocol::effect::PodReport).
    pub fn answer_pod(&self, answer: u64, result: Result<Receipt, Rejected>) {
        self.core.pod_api.answer(answer, result);
    }

    /// Part of what an attempt wrote, whether it runs or has ended, in this start of the node or an earlier one.
    /// Waits for more, up to a minute, if the request says so. `end` is set once the attempt has ended and all
    /// was read.
    ///
    /// # Errors
    /// For people: the attempt is not known here, or its log cannot be read.
    pub async fn read_log(&self, request: LogRequest) -> Result<LogChunk, String> {
        let key = AttemptKey { job: request.job, claim: request.claim };
        let wait = Duration::from_millis(request.wait_ms.into()).min(MAX_LOG_WAIT);
        let pod = self.core.registry().pods.get(&key).cloned();
        let log = match pod {
            Some(pod) => Arc::clone(pod.log(request.stream)),
            None => {
                let dir = self.core.layout.attempt(key);
                let opening = tokio::task::spawn_blocking(move || StreamLog::open_ended(dir, request.stream));
                match opening.await.map_err(|_| "this node is shutting down".to_owned())? {
                    Ok(log) => Arc::new(log),
                    Err(error) if error.kind() == ErrorKind::NotFound => {
                        return Err("this node has no log of that attempt".to_owned());
                    }
                    Err(error) => return Err(format!("the log cannot be read: {error}")),
                }
            }
        };
        log.read(request.offset, request.limit, Instant::now() + wait).await
    }

    /// Stops all pods, and returns when every one has been reported as ended. The guard then goes; the tracker
    /// knows when it has. Pods that come after this are reported as [`PodEnd::Unable`]. What cannot be killed (a process that
    /// the kernel does not let go of, a handler that never awaits) is not waited for beyond the grace period and ten seconds,
    /// and not reported.
    pub async fn shut_down(&self) {
        let core = &self.core;
        {
            let mut registry = core.registry();
            registry.shutting_down = true;
            for pod in registry.pods.values() {
                pod.stop.cancel();
            }
        }
        let patience = core.config.stop_grace.saturating_add(SHUTDOWN_MARGIN);
        if tokio::time::timeout(patience, core.wait_until_idle()).await.is_err() {
            let pods: Vec<_> = core.registry().pods.keys().copied().collect();
            tracing::error!(?pods, "these pods cannot be ended, and end with this program");
        }
        core.kill_strays().await;
        let clearing = Arc::clone(core);
        // Nothing is lost where this fails: the next start removes what it finds.
        let _ = tokio::task::spawn_blocking(move || {
            clearing.cells.remove_spare();
            clearing.notes.end();
            if let Some(household) = &clearing.household {
                household.dissolve();
            }
            if let Some(groups) = &clearing.groups {
                groups.remove();
            }
        })
        .await;
        core.closing.cancel();
    }

    /// How many pods have been started and not been reported as ended.
    pub fn pods(&self) -> usize {
        self.core.registry().pods.len()
    }
}

impl Pod {
    fn new(core: &Core, key: AttemptKey) -> Self {
        let log = |stream| Arc::new(StreamLog::new(core.layout.attempt(key), stream, core.config.log_limit_bytes));
        let (voice, token) = core.pod_api.enroll(key);
        Self {
            since: Tick::now(),
            asked: Instant::now(),
            voice,
            token,
            memory_kills: OnceLock::new(),
            remark: OnceLock::new(),
            usage: OnceLock::new(),
            ended_at: OnceLock::new(),
            stop: CancellationToken::new(),
            stdout: log(Stream::Stdout),
            stderr: log(Stream::Stderr),
            swept: AtomicBool::new(false),
            cell: Mutex::default(),
        }
    }

    /// Notes what people should know about its end. The first remark counts.
    fn note(&self, remark: String) {
        let _ = self.remark.set(remark);
    }

    /// Whether it may have left anything on the disk. Looks at its own directories, and into none.
    fn has_files(&self) -> bool {
        let cell = self.cell.lock().unwrap_or_else(PoisonError::into_inner);
        let is_touched = cell.as_ref().is_some_and(|cell| !cell.is_untouched());
        is_touched || !self.stdout.is_empty() || !self.stderr.is_empty()
    }

    fn log(&self, stream: Stream) -> &Arc<StreamLog> {
        match stream {
            Stream::Stdout => &self.stdout,
            Stream::Stderr => &self.stderr,
        }
    }
}

impl Core {
    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn guard_adds(&self, group: Pid, leased: Option<&Mark>) {
        if let Some(guard) = &self.guard {
            guard.add(group, leased);
        }
    }

    /// A leased pod was killed, after its lease had lapsed: says how it ended, and notes when, if that was by the guard. A
    /// node that moves again may have told it to end for `cause` before it heard that it had ended long ago.
    async fn lapsed(self: &Arc<Self>, pod: &Pod, key: AttemptKey, cause: Option<Cause>) -> Option<PodEnd> {
        let core = Arc::clone(self);
        let looking = tokio::task::spawn_blocking(move || core.notes.end_of(key));
        let noted = looking.await.ok().flatten();
        if let Some(at) = noted {
            // It is set nowhere else.
            let _ = pod.ended_at.set(at);
        }
        (noted.is_some() || cause.is_none()).then_some(PodEnd::Lapsed)
    }

    /// Whether the node has stood still, since it was told to start the pod or just before it heard that, for so long that its
    /// guard ends what is leased.
    fn has_stood_still(&self, pod: &Pod) -> bool {
        let told = pod.asked.checked_sub(RENEW_EVERY).unwrap_or(pod.asked);
        self.guard.as_ref().is_some_and(|guard| guard.has_lapsed_since(told))
    }

    fn guard_removes(&self, group: Pid) {
        if let Some(guard) = &self.guard {
            guard.remove(group);
        }
    }

    fn guard_adds_container(&self, name: &str, leased: Option<&Mark>) {
        if let Some(guard) = &self.guard {
            guard.add_container(name, leased);
        }
    }

    fn guard_removes_container(&self, name: &str) {
        if let Some(guard) = &self.guard {
            guard.remove_container(name);
        }
    }

    fn report(&self, event: PodEvent) {
        // Nobody listens any more where the driver has gone before its executor.
        let _ = self.events.send(event);
    }

    /// Takes a pod off the books and reports it, as one step: whoever sees no pods has all reports.
    fn retire(&self, pod: &Pod, key: AttemptKey, end: PodEnd, left: Leavings) {
        let mut registry = self.registry();
        registry.pods.remove(&key);
        pod.voice.tell_begin();
        let at = pod.ended_at.get().copied().unwrap_or_else(now);
        self.report(PodEvent::Ended { key, at, end, left: Box::new(left) });
        if registry.pods.is_empty() {
            self.idle.notify_waiters();
        }
    }

    async fn wait_until_idle(&self) {
        loop {
            let mut idle = std::pin::pin!(self.idle.notified());
            idle.as_mut().enable();
            if self.registry().pods.is_empty() {
                return;
            }
            idle.await;
        }
    }
}

fn find_groups(own: OwnGroups, origin: &Origin) -> Option<Groups> {
    match Groups::find(own, origin) {
        Ok(groups) => {
            tracing::info!(groups = ?groups.bases(), "processors and memory that jobs set aside are enforced");
            Some(groups)
        }
        Err(why) => {
            tracing::info!(
                why,
                "processors and memory that jobs set aside are reserved, but not enforced: no control groups"
            );
            None
        }
    }
}

/// Looks after one pod from its start to its end.
async fn run_pod(core: Arc<Core>, pod: Arc<Pod>, start: PodStart) {
    let key = start.key;
    let driver = start.submission.spec.driver;
    let end = if pod.stop.is_cancelled() {
        Cause::Stopped.before_start()
    } else {
        let running = async {
            match driver {
                Driver::Process => process::run(&core, &pod, &start).await,
                Driver::Container => container::run(&core, &pod, &start).await,
                Driver::Handler => handler::run(&core, &pod, &start).await,
            }
        };
        tokio::select! {
            biased;
            end = running => end,
            never = telling::keep_telling(&core, &pod, key) => match never {},
        }
    };
    crash_points::pass(Step::Exit);
    pod.stdout.close();
    pod.stderr.close();
    let (clearing, ended) = (Arc::clone(&core), Arc::clone(&pod));
    let by_itself = match end {
        PodEnd::Exited(exit) => Some(exit),
        PodEnd::Silent(_)
        | PodEnd::Stopped(_)
        | PodEnd::Lapsed
        | PodEnd::CouldNotStart { .. }
        | PodEnd::Unable { .. } => None,
    };
    // A thread costs more than all else that is left to do for a job that has made no files: it is used only where there
    // are any.
    let has_files = pod.has_files();
    let clear = move || {
        let mut left = clear_up(&clearing, &ended, key, has_files);
        let kills = ended.memory_kills.get().copied();
        let seen = || by_itself.and_then(|exit| clearing.memory.remark(exit, kills));
        if let Some(remark) = ended.remark.get().cloned().or_else(seen) {
            left.remark = if left.remark.is_empty() { remark } else { format!("{remark}; {}", left.remark) };
        }
        left
    };
    let left = if has_files { tokio::task::spawn_blocking(clear).await.unwrap_or_default() } else { clear() };
    if driver != Driver::Handler {
        core.strays.notify_one();
    }
    core.retire(&pod, key, end, left);
    if pod.swept.load(Ordering::Relaxed) {
        core.remove_logs(key.job).await;
    }
}

/// Gathers what a pod that has ended leaves behind, and removes the rest. Blocks where there may be files.
fn clear_up(core: &Core, pod: &Pod, key: AttemptKey, has_files: bool) -> Leavings {
    let (progress, told) = pod.voice.revoke();
    let usage = pod.usage.get().copied();
    let mut left = Leavings { progress, result: told.map(Blob::new), usage, ..Leavings::default() };
    if !has_files {
        let cell = pod.cell.lock().unwrap_or_else(PoisonError::into_inner).take();
        cell.into_iter().for_each(|cell| core.cells.give_back_untouched(cell));
        return left;
    }
    for (log, tail) in [(&pod.stdout, &mut left.stdout), (&pod.stderr, &mut left.stderr)] {
        match log.tail(MAX_TAIL_BYTES) {
            Ok(newest) => *tail = newest.map(|(offset, bytes)| (offset, Blob::new(bytes))),
            Err(error) => tracing::warn!(job = %key.job, %error, "the end of a pod's log cannot be read"),
        }
    }
    let cell = pod.cell.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(cell) = cell {
        match read_result(&cell.result_file()) {
            Ok(Some(result)) => left.result = Some(Blob::new(result)),
            Ok(None) => {}
            Err(error) => left.remark = format!("its result is lost: {error}"),
        }
        if let Err(error) = core.cells.give_back(cell) {
            tracing::warn!(job = %key.job, %error, "a pod's own directory cannot be removed");
        }
    }
    left
}

/// What the job left in its result file, if it did. The job made the file, so it may be anything: it is not waited
/// for, and must be a plain file.
fn read_result(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => fs::File::from(file),
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("FLOCKWORK_RESULT_FILE is not a plain file"));
    }
    let mut result = Vec::new();
    file.take(MAX_RESULT_BYTES + 1).read_to_end(&mut result)?;
    if result.len() as u64 > MAX_RESULT_BYTES {
        return Err(io::Error::other(format!("it has more than the {MAX_RESULT_BYTES} bytes that are kept")));
    }
    Ok(Some(result))
}

/// The number by which marks say whose they are: made up once, kept with the directory.
fn directory_id(layout: &Layout) -> io::Result<u64> {
    let file = layout.dir.join("id");
    match fs::read_to_string(&file) {
        Ok(text) => {
            if let Ok(id) = u64::from_str_radix(text.trim(), 16) {
                return Ok(id);
            }
            tracing::warn!(file = %file.display(), "damaged, and made anew: pods of earlier starts are not found");
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let id: u64 = rand::random();
    fs::write(&file, format!("{id:016x}\n"))?;
    Ok(id)
}

fn now() -> Timestamp {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX))
}
