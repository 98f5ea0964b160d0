//! Pods that are processes of the machine.
//!
//! A pod is a process group: the program that was asked for leads it, and what it starts belongs to it. From
//! outside, its life is short to tell. It is spawned; what it writes is read and kept; when it is to end, by a
//! request or by its time limit, the group is sent SIGTERM, and SIGKILL after the grace period; when its first
//! process has ended, everything that is left of the group is killed, what was written is read to the end, and
//! the exit is reported.
//!
//! Some care lies in the order of things.
//! - The group is killed while its leader is dead but not yet reaped: until then the number of the group cannot
//!   become another's.
//! - A daemon that left the group may hold on to the pod's output for ever. The reading is given a moment; then
//!   whatever carries the pod's mark (`marker`) is killed; then, soon, the reading is given up.
//! - Programs are looked up here rather than by the C library: that says plainly what is missing, and keeps
//!   spawning on `posix_spawn`, which costs the same however much memory the node has.
//! - What blocks (looking up, spawning, writing logs, removing directories) runs on threads made for it. Waiting
//!   does not: the end of a process is an event of its pidfd.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe::{Receiver, Sender};
use tokio::sync::oneshot;

use super::groups::{self, Bounds, Group, Groups};
use super::identity::{self, Account, Identity};
use super::log::StreamLog;
use super::marker::{self, Mark};
use super::overseer::{Cause, Order, Overseer};
use super::{Core, Pod};
use crate::io::crash_points::{self, Step};
use crate::model::attempt::Exit;
use crate::model::blob::Blob;
use crate::model::spec::{Limit, OnPartition, Spec};
use crate::protocol::effect::{PodEnd, PodStart};

/// The variables of the node's own environment that every pod is given beside `PATH`. Who is who, where programs are, how to
/// write text and time; nothing else, so that a job does not depend on how its node was started.
const PASSED_ON: [&str; 8] = ["HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "LC_CTYPE", "TZ"];

/// The `PATH` of pods, which is the node's, where neither the node nor the job has one.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// After the end of its group, how long a pod's output may stay open before what holds it is looked for, and how
/// long after that it is read at the most.
const DRAIN: Duration = Duration::from_millis(100);
const DRAIN_AFTER_KILL: Duration = Duration::from_secs(2);

/// A pod that ends within this time, and says nothing of itself, is told of once: that it ran and how it ended. So its job is
/// written down and sent to the replicas once less. Raising it shows for longer that a job has not begun which has.
const SHORT: Duration = Duration::from_millis(20);

/// How often, with waits that double from a millisecond, a killed group is looked at until it is empty. In the
/// common case there was nobody in it but its leader, and the first look says so.
const LOOKS_AT_A_KILLED_GROUP: u32 = 8;

/// Why a job's limit of processes cannot be kept.
const ROOT_IS_BEYOND_LIMITS: &str = "the kernel does not hold root to a number of processes, and this node cannot make \
     control groups that do: add --user, or leave the limit of processes out";

/// What is read at once: little at first, more where there is more.
const FIRST_READ_BYTES: usize = 4 << 10;
const LARGEST_READ_BYTES: usize = 64 << 10;

/// What every pod is given of the node's environment. Where the node is the `flockwork` program, its `PATH` ends with
/// the directory of that, so that scripts find `flockwork pod`.
pub(super) fn passed_on() -> Vec<(&'static str, OsString)> {
    let mut path = std::env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into());
    let program = std::env::current_exe().ok().filter(|file| file.file_name() == Some(OsStr::new("flockwork")));
    if let Some(dir) = program.as_deref().and_then(Path::parent)
        && !std::env::split_paths(&path).any(|known| known == dir)
        && let Ok(longer) = std::env::join_paths(std::env::split_paths(&path).chain([dir.to_owned()]))
    {
        path = longer;
    }
    let others = PASSED_ON.into_iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
    [("PATH", path)].into_iter().chain(others).collect()
}

/// A pod that was just spawned.
struct Spawned {
    child: Child,
    /// The leader's pid, which is also the number of its group.
    group: Pid,
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    control: Option<Group>,
}

/// Why a pod that must not run twice does not begin: others may run it by now.
pub(super) const STOOD_STILL: &str = "this node stood still before it began";

/// Runs the pod to its end.
pub(super) async fn run(core: &Arc<Core>, pod: &Arc<Pod>, start: &PodStart) -> PodEnd {
    let spawned = {
        let Ok(_permit) = core.spawning.acquire().await else { return unable("this node is shutting down") };
        if pod.stop.is_cancelled() {
            return Cause::Stopped.before_start();
        }
        let saved = match read_checkpoint(core, start).await {
            Ok(saved) => saved,
            Err(end) => return end,
        };
        let (core, pod, start) = (Arc::clone(core), Arc::clone(pod), start.clone());
        match tokio::task::spawn_blocking(move || spawn(&core, &pod, &start, saved.as_ref())).await {
            Ok(Ok(spawned)) => spawned,
            Ok(Err(end)) => return end,
            Err(_) => return unable("this node is shutting down"),
        }
    };
    pod.voice.begin();
    supervise(core, pod, start, spawned).await
}

async fn supervise(core: &Arc<Core>, pod: &Arc<Pod>, start: &PodStart, mut spawned: Spawned) -> PodEnd {
    let group = spawned.group;
    let spec = &start.submission.spec;
    let input = spec.stdin.as_ref().map_or(&[][..], |stdin| &stdin.0);
    let (stdin, stdout, stderr) = (spawned.stdin.take(), spawned.stdout.take(), spawned.stderr.take());
    let mut outputs = std::pin::pin!(async {
        tokio::join!(keep_output(stdout, &pod.stdout), keep_output(stderr, &pod.stderr));
    });
    let mut feeding = std::pin::pin!(feed(stdin, input));
    let mut exited = std::pin::pin!(wait_for_exit(group));
    let (mut drained, mut fed) = (false, false);
    let mut short = std::pin::pin!(tokio::time::sleep(SHORT));
    let mut is_short = true;
    let mut overseer = Overseer::new(core, pod, spec);
    loop {
        tokio::select! {
            biased;
            () = &mut exited => break,
            order = overseer.next_order() => match order {
                Order::AskToEnd => ask_to_end(group),
                Order::Kill => kill(group),
            },
            () = &mut outputs, if !drained => drained = true,
            () = &mut feeding, if !fed => fed = true,
            () = &mut short, if is_short => {
                is_short = false;
                pod.voice.tell_begin();
            }
        }
    }
    let cause = overseer.cause();
    kill(group);
    core.guard_removes(group);
    let exit = match spawned.child.wait() {
        Ok(status) => exit_of(status),
        Err(error) => {
            // Somebody else in this program waits for any child there is, and was faster.
            tracing::error!(job = %start.key.job, %error, "a pod's exit status was lost");
            Exit::Code(125)
        }
    };
    wait_until_empty(group).await;
    if let Some(control) = spawned.control.take() {
        end_control(pod, spec, control).await;
    }
    if !drained && tokio::time::timeout(DRAIN, &mut outputs).await.is_err() {
        let (origin, key) = (core.origin.clone(), start.key);
        let killing = tokio::task::spawn_blocking(move || {
            let mine = Mark { origin, key };
            marker::kill_marked(|mark| *mark == mine).len()
        });
        let killed = killing.await.unwrap_or_default();
        let given_up = tokio::time::timeout(DRAIN_AFTER_KILL, &mut outputs).await.is_err();
        tracing::debug!(job = %start.key.job, killed, given_up, "a pod's output was held open after its end");
    }
    let is_killed = exit == Exit::Signal(Signal::KILL.as_raw());
    if spec.on_partition == OnPartition::Pause
        && is_killed
        && core.has_stood_still(pod)
        && let Some(end) = core.lapsed(pod, start.key, cause).await
    {
        return end;
    }
    Cause::end(cause, exit)
}

/// The saved work that the pod is to go on from.
pub(super) async fn read_checkpoint(core: &Core, start: &PodStart) -> Result<Option<Blob>, PodEnd> {
    let Some(checkpoint) = start.checkpoint else { return Ok(None) };
    let Some(blobs) = &core.config.blobs else { return Err(unable("this node keeps no checkpoints")) };
    let read = blobs.read(checkpoint).await;
    read.map(Some).map_err(|error| unable(&format!("the checkpoint cannot be read: {error}")))
}

/// Gives the pod its directories and starts its process. Blocks.
fn spawn(core: &Core, pod: &Pod, start: &PodStart, saved: Option<&Blob>) -> Result<Spawned, PodEnd> {
    let spec = &start.submission.spec;
    let cell = core.cells.take().map_err(|error| {
        unable(&format!("a directory for the job cannot be made in {}: {error}", core.cells.dir().display()))
    })?;
    let places = Places { checkpoint: cell.checkpoint_file(), result: cell.result_file(), tmp: cell.own() };
    let (own_dir, told) = (cell.own(), told_to_job(core, pod, start, places));
    let (rooms, checkpoint_file) = ([cell.own(), cell.exchange()], cell.checkpoint_file());
    let above = [core.layout.dir.clone(), core.cells.dir().to_owned(), cell.path().to_owned()];
    // Whatever comes of it now, the cell is taken back when the attempt is over.
    *pod.cell.lock().unwrap_or_else(PoisonError::into_inner) = Some(cell);
    if let Some(saved) = saved
        && let Err(error) = fs::write(checkpoint_file, saved.bytes())
    {
        return Err(unable(&format!("the checkpoint cannot be written: {error}")));
    }
    let account = spec.user.as_deref().map(Account::of).transpose().map_err(|why| cannot(126, why))?;
    let identity = account.as_ref().map(|account| account.identity);
    if let Some(identity) = identity {
        // The cell is not as it was made then, and is not used for another.
        let owned = identity.owns(&rooms);
        let reachable = || let_others_through(&above);
        if let Err(error) = owned.and_then(|()| reachable()) {
            return Err(cannot(126, format!("this node cannot run it as another user: {error}")));
        }
    }
    let cwd = spec.cwd.as_ref().map_or(own_dir.as_path(), Path::new);
    if spec.cwd.is_some() {
        check_directory(cwd)?;
    }
    let Some((name, arguments)) = spec.command.split_first() else {
        return Err(cannot(126, "there is no command to run".to_owned()));
    };
    let nodes_path = core.passed_on.iter().find(|(name, _)| *name == "PATH").map(|(_, path)| path.as_os_str());
    let path = spec.env.get("PATH").map(OsStr::new).or(nodes_path).unwrap_or_default();
    // What is wrong with a path will be asked when it cannot be executed, which is rare.
    let program = if name.contains('/') { cwd.join(name) } else { look_up(name, path, cwd)? };

    let mut command = Command::new(&program);
    command.arg0(name).args(arguments).current_dir(cwd).process_group(0);
    command.env_clear();
    command.envs(core.passed_on.iter().map(|(name, value)| (name, value)));
    if let Some(account) = &account {
        account.introduce(&mut command);
    }
    command.env("TMPDIR", &own_dir).envs(&spec.env).envs(told);
    identity::apply(&mut command, spec, identity);
    let has_input = spec.stdin.as_ref().is_some_and(|stdin| !stdin.0.is_empty());
    command.stdin(if has_input {
        Stdio::piped()
    } else {
        core.nothing.try_clone().map_or_else(|_| Stdio::null(), Stdio::from)
    });
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    if let Some(count) = core.memory.count_at_start() {
        // It is set nowhere else.
        let _ = pod.memory_kills.set(count);
    }
    let control = control_group(core, start, identity, &mut command)?;
    let leased = spec.on_partition == OnPartition::Pause;
    crash_points::pass(Step::Launch);
    if leased && core.has_stood_still(pod) {
        control.map(Group::end);
        return Err(unable(STOOD_STILL));
    }
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            control.map(Group::end);
            let failure = match &spec.user {
                Some(user) if error.kind() == ErrorKind::PermissionDenied => {
                    let cwd = cwd.display();
                    let what = format!("`{user}` may not enter {cwd}, or not execute {}", program.display());
                    cannot(126, format!("{what}: {error}"))
                }
                _ => spawn_failure(&error, name, &program),
            };
            let is_the_jobs = matches!(failure, PodEnd::CouldNotStart { .. });
            return Err(look_up(name, path, cwd).err().filter(|_| is_the_jobs).unwrap_or(failure));
        }
    };
    crash_points::pass(Step::Spawn);
    let group = Pid::from_child(&child);
    let mark = Mark { origin: core.origin.clone(), key: start.key };
    core.guard_adds(group, leased.then_some(&mark));
    if leased && core.has_stood_still(pod) {
        // The node stood still before the guard knew of it.
        kill(group);
    }
    Ok(Spawned {
        group,
        stdin: child.stdin.take().map(OwnedFd::from),
        stdout: child.stdout.take().map(OwnedFd::from),
        stderr: child.stderr.take().map(OwnedFd::from),
        child,
        control,
    })
}

/// Makes the pod's control group, if its job is to have one, and has `command` run in it.
fn control_group(
    core: &Core,
    start: &PodStart,
    identity: Option<Identity>,
    command: &mut Command,
) -> Result<Option<Group>, PodEnd> {
    let spec = &start.submission.spec;
    let processes = spec.limits.get(&Limit::Processes).copied().filter(|_| identity::is_beyond_limits(identity));
    if processes.is_some() && !core.groups.as_ref().is_some_and(Groups::can_count_processes) {
        return Err(cannot(126, ROOT_IS_BEYOND_LIMITS.to_owned()));
    }
    let bounds = Bounds { cpus: spec.cpus, memory: spec.memory, processes };
    let is_bounded = spec.cpus.millis > 0 || spec.memory.bytes > 0 || processes.is_some();
    let Some(groups) = core.groups.as_ref().filter(|_| is_bounded) else { return Ok(None) };
    let wrong = |error: io::Error| unable(&format!("a control group for it cannot be made on this node: {error}"));
    let group = groups.make(&groups::name_of(&start.key), bounds).map_err(wrong)?;
    match group.apply(command) {
        Ok(()) => Ok(Some(group)),
        Err(error) => {
            group.end();
            Err(wrong(error))
        }
    }
}

/// Ends the pod's control group, and notes what it has seen.
async fn end_control(pod: &Pod, spec: &Spec, control: Group) {
    let Ok(seen) = tokio::task::spawn_blocking(move || control.end()).await else { return };
    let _ = pod.usage.set(seen.usage);
    if seen.memory_kills > 0 {
        let processes = if seen.memory_kills == 1 { "process" } else { "processes" };
        let killed = format!("the kernel killed {} {processes} of it", seen.memory_kills);
        pod.note(if spec.memory.bytes > 0 {
            format!("out of memory: it reached its limit of {}, and {killed}", spec.memory)
        } else {
            format!("out of memory: {killed}")
        });
    }
}

/// Lets other users reach what is theirs below these directories, without showing them what else is there.
fn let_others_through(dirs: &[PathBuf]) -> io::Result<()> {
    for dir in dirs {
        let mode = fs::metadata(dir)?.permissions().mode();
        fs::set_permissions(dir, fs::Permissions::from_mode(mode & !0o066 | 0o011))?;
    }
    Ok(())
}

/// Where a job finds what is its own, as it sees it.
pub(super) struct Places {
    pub(super) checkpoint: PathBuf,
    pub(super) result: PathBuf,
    pub(super) tmp: PathBuf,
}

/// The variables by which a job knows what it is. They win over the job's own of the same name.
pub(super) fn told_to_job(core: &Core, pod: &Pod, start: &PodStart, places: Places) -> Vec<(&'static str, OsString)> {
    let (mark_name, mark) = Mark { origin: core.origin.clone(), key: start.key }.variable();
    vec![
        (mark_name, mark.into()),
        ("FLOCKWORK_JOB_ID", start.key.job.to_string().into()),
        ("FLOCKWORK_JOB_NAME", start.submission.spec.name.clone().unwrap_or_default().into()),
        ("FLOCKWORK_ATTEMPT", start.number.to_string().into()),
        ("FLOCKWORK_FENCE", start.fence.to_string().into()),
        ("FLOCKWORK_NODE", core.config.node_name.clone().into()),
        ("FLOCKWORK_POD_URL", core.pod_api.url().into()),
        ("FLOCKWORK_POD_TOKEN", pod.token.clone().into()),
        ("FLOCKWORK_CHECKPOINT_FILE", places.checkpoint.into()),
        ("FLOCKWORK_RESULT_FILE", places.result.into()),
        ("FLOCKWORK_TMPDIR", places.tmp.into()),
    ]
}

fn check_directory(cwd: &Path) -> Result<(), PodEnd> {
    let wrong = |what: &str| cannot(126, format!("the working directory {} {what}", cwd.display()));
    match fs::metadata(cwd) {
        Ok(metadata) if !metadata.is_dir() => Err(wrong("is not a directory")),
        Ok(_) if rustix::fs::access(cwd, rustix::fs::Access::EXEC_OK).is_err() => Err(wrong("cannot be entered")),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => Err(wrong("does not exist on this node")),
        Err(error) => Err(wrong(&format!("cannot be used: {error}"))),
    }
}

/// The file to execute for `name`, by the rules of `execvp`: a name with a slash is a path, seen from the working
/// directory; any other is looked for in the directories of `path`.
fn look_up(name: &str, path: &OsStr, cwd: &Path) -> Result<PathBuf, PodEnd> {
    if name.contains('/') {
        let program = cwd.join(name);
        return match usable(&program) {
            Usable::Yes => Ok(program),
            Usable::Missing => Err(cannot(127, format!("`{name}` does not exist on this node"))),
            Usable::No(why) => Err(cannot(126, format!("`{name}` cannot be executed: {why}"))),
        };
    }
    let mut refused = None;
    for dir in std::env::split_paths(path) {
        let program = cwd.join(dir).join(name);
        match usable(&program) {
            Usable::Yes => return Ok(program),
            Usable::Missing => {}
            Usable::No(why) => refused = refused.or(Some((program, why))),
        }
    }
    match refused {
        Some((program, why)) => Err(cannot(126, format!("`{}` cannot be executed: {why}", program.display()))),
        None => {
            let path = path.to_string_lossy();
            Err(cannot(127, format!("no program `{name}` on this node, looking in {path}")))
        }
    }
}

enum Usable {
    Yes,
    Missing,
    No(String),
}

fn usable(program: &Path) -> Usable {
    match fs::metadata(program) {
        Ok(metadata) if metadata.is_dir() => Usable::No("it is a directory".to_owned()),
        Ok(_) if rustix::fs::access(program, rustix::fs::Access::EXEC_OK).is_ok() => Usable::Yes,
        Ok(_) => Usable::No("it is not marked as executable".to_owned()),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Usable::Missing,
        Err(error) => Usable::No(error.to_string()),
    }
}

/// Whose fault it is that a process did not start. What is not known to be the node's is taken to be the job's:
/// a job that no node can start must not wander from node to node for ever.
fn spawn_failure(error: &io::Error, name: &str, program: &Path) -> PodEnd {
    match Errno::from_io_error(error) {
        Some(Errno::AGAIN | Errno::NOMEM | Errno::MFILE | Errno::NFILE) => {
            unable(&format!("this node has no room for another process: {error}"))
        }
        // The program is there, it was looked up a moment ago: what is missing is what it names to be run by.
        Some(Errno::NOENT) => {
            cannot(127, format!("{} is there, but not the interpreter or loader that it names", program.display()))
        }
        Some(Errno::NOEXEC) => {
            cannot(126, format!("`{name}` is no program of this machine, nor a script that begins with #!"))
        }
        Some(Errno::TOOBIG) => cannot(126, format!("arguments and environment are too long for `{name}`: {error}")),
        _ => cannot(126, format!("`{name}` cannot be executed: {error}")),
    }
}

pub(super) fn unable(reason: &str) -> PodEnd {
    PodEnd::Unable { reason: reason.to_owned() }
}

pub(super) fn cannot(code: i32, reason: String) -> PodEnd {
    PodEnd::CouldNotStart { code, reason }
}

/// SIGCONT wakes those that were halted, or else they would not notice.
fn ask_to_end(group: Pid) {
    for signal in [Signal::TERM, Signal::CONT] {
        // No such group means that it is over, which the wait for its end will tell.
        let _ = rustix::process::kill_process_group(group, signal);
    }
}

/// Only for a leader that is not reaped. It may have moved itself to another group, so it is named as well.
fn kill(leader: Pid) {
    let _ = rustix::process::kill_process_group(leader, Signal::KILL);
    let _ = rustix::process::kill_process(leader, Signal::KILL);
}

/// Killed processes need a moment to be gone, and "ended" shall mean that they are. There is no event for the
/// end of a group of which one is not the parent.
async fn wait_until_empty(group: Pid) {
    for look in 0..LOOKS_AT_A_KILLED_GROUP {
        if rustix::process::test_kill_process_group(group) == Err(Errno::SRCH) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1 << look)).await;
    }
}

/// Returns when the process has ended, and leaves it to be reaped.
async fn wait_for_exit(pid: Pid) {
    if let Ok(pidfd) = rustix::process::pidfd_open(pid, PidfdFlags::empty())
        && let Ok(pidfd) = watch(pidfd)
        && pidfd.readable().await.is_ok()
    {
        return;
    }
    wait_with_thread(pid).await;
}

/// The way without a pidfd, for an old kernel or a node that has no more files.
async fn wait_with_thread(pid: Pid) {
    let (done, waited) = oneshot::channel::<()>();
    let waiting = std::thread::Builder::new().name("pod-wait".to_owned()).spawn(move || {
        let wait = || rustix::process::waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
        let _ = rustix::io::retry_on_intr(wait);
        drop(done);
    });
    match waiting {
        Ok(_) => drop(waited.await),
        Err(error) => {
            // Neither files nor threads are left. A pod that nobody can wait for is ended.
            tracing::error!(%error, "a pod cannot be waited for, and is killed");
            kill(pid);
        }
    }
}

#[expect(
    deprecated,
    reason = "deprecated for types whose descriptor may change while it is watched; this one's cannot"
)]
fn watch(pidfd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(pidfd, Interest::READABLE)
}

fn exit_of(status: ExitStatus) -> Exit {
    match (status.code(), status.signal()) {
        (Some(code), _) => Exit::Code(code),
        (None, Some(signal)) => Exit::Signal(signal),
        (None, None) => Exit::Code(125),
    }
}

/// Reads what the pod writes until its last writer has closed it.
async fn keep_output(pipe: Option<OwnedFd>, log: &Arc<StreamLog>) {
    let Some(pipe) = pipe.and_then(|pipe| non_blocking(pipe, Receiver::from_owned_fd_unchecked)) else { return };
    let mut buffer = Vec::new();
    let mut complained = false;
    loop {
        if pipe.readable().await.is_err() {
            return;
        }
        buffer.reserve(FIRST_READ_BYTES);
        match pipe.try_read_buf(&mut buffer) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => continue,
            Err(error) => {
                tracing::warn!(%error, "a pod's output cannot be read");
                return;
            }
        }
        let (log, filled) = (Arc::clone(log), std::mem::take(&mut buffer));
        let writing = tokio::task::spawn_blocking(move || (log.append(&filled), filled)).await;
        let Ok((outcome, mut filled)) = writing else { return };
        if let (Err(error), false) = (outcome, complained) {
            tracing::warn!(%error, "a pod's output cannot be kept, and is lost");
            complained = true;
        }
        let was_full = filled.len() == filled.capacity();
        filled.clear();
        if was_full && filled.capacity() < LARGEST_READ_BYTES {
            filled.reserve_exact(filled.capacity() * 4);
        }
        buffer = filled;
    }
}

/// Writes the pod's input and closes it. A pod that reads no further has read what it wanted.
async fn feed(pipe: Option<OwnedFd>, mut input: &[u8]) {
    let Some(pipe) = pipe.and_then(|pipe| non_blocking(pipe, Sender::from_owned_fd_unchecked)) else { return };
    while !input.is_empty() {
        if pipe.writable().await.is_err() {
            return;
        }
        match pipe.try_write(input) {
            Ok(written) => input = &input[written..],
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => return,
        }
    }
}

/// Our end of a pipe for the runtime to watch. Whether the pod's end blocks is not touched by this.
fn non_blocking<T>(pipe: OwnedFd, watched: impl FnOnce(OwnedFd) -> io::Result<T>) -> Option<T> {
    let registered = rustix::io::ioctl_fionbio(&pipe, true).map_err(io::Error::from).and_then(|()| watched(pipe));
    registered.inspect_err(|error| tracing::warn!(%error, "a pod's pipe cannot be used")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn without_pidfds_an_end_is_noticed_too() {
        let mut child = Command::new("sh").args(["-c", "exit 3"]).spawn().unwrap();
        wait_with_thread(Pid::from_child(&child)).await;
        // It was left to be reaped.
        assert_eq!(child.try_wait().unwrap().and_then(|status| status.code()), Some(3));
    }

    #[test]
    fn a_node_without_room_is_not_the_fault_of_the_job() {
        let end = |errno: Errno| spawn_failure(&errno.into(), "x", Path::new("/bin/x"));
        for errno in [Errno::AGAIN, Errno::NOMEM, Errno::MFILE, Errno::NFILE] {
            assert!(matches!(end(errno), PodEnd::Unable { .. }), "{errno}");
        }
        for (errno, expected) in [(Errno::NOENT, 127), (Errno::NOEXEC, 126), (Errno::ACCESS, 126)] {
            assert!(matches!(end(errno), PodEnd::CouldNotStart { code, .. } if code == expected), "{errno}");
        }
    }
}
