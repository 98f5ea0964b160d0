//! Pods that are containers of the machine's Docker daemon.
//!
//! To everybody else it is a pod like any other: the same logs, limits, stops and reports. From outside: the image is
//! pulled if it must be; the container is made, listened to and started; when it is to end, its first process is sent
//! SIGTERM, and all of it SIGKILL after the grace period; when it has ended, why is asked, and it is removed.
//!
//! What it shares with its node, and nothing else: the network, so that it reaches the node's address for pods on
//! loopback as processes do; and two directories, mounted below [`INSIDE`]. The first process is the daemon's little
//! init, which passes signals on and reaps: programs are not written to be the first.
//!
//! Some care lies in this:
//! - Its name is told to the guard before it is made, so that there is no moment in which nobody would end it.
//! - It is removed whatever happened, also when its making was answered with an error: the daemon may have made it.
//! - Docker says how a program ended in a shell's way. A code from 129 to 159 is therefore taken for a signal; that a
//!   program itself ended with such a code cannot be told from it.
//! - A daemon that does not answer says nothing about its containers, which may go on without it. It is asked again for
//!   a while; then the pod is given up, and its processes are killed by their mark where this node may do that.

use std::fs;
use std::future::Future;
use std::os::unix::fs::PermissionsExt;
use std::pin::Pin;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bollard::container::{AttachContainerResults, LogOutput};
use bollard::errors::Error;
use bollard::models::{ContainerCreateBody, HostConfig, HostConfigLogConfig, Mount, MountType, ResourcesUlimits};
use bollard::query_parameters::{
    AttachContainerOptions, CreateContainerOptions, CreateImageOptions, InspectContainerOptions, KillContainerOptions,
    StartContainerOptions, WaitContainerOptions,
};
use futures_util::{Stream, StreamExt};
use rustix::process::Signal;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::docker::{self, call, in_words, status_of};
use super::log::StreamLog;
use super::marker::{self, Mark};
use super::overseer::{Cause, Order, Overseer};
use super::process::{Places, STOOD_STILL, cannot, read_checkpoint, told_to_job, unable};
use super::{Core, Pod};
use crate::io::crash_points::{self, Step};
use crate::model::attempt::Exit;
use crate::model::blob::Blob;
use crate::model::spec::{Limit, OnPartition, Pull, Spec};
use crate::protocol::effect::{PodEnd, PodStart};

/// Where a container finds what it shares with its node.
const INSIDE: &str = "/flockwork";

/// The code of an attempt whose image or settings Docker refuses, as its own command line has it.
const REFUSED: i32 = 125;

/// How long pulling an image may go on without a word from the daemon.
const PULL_SILENCE: Duration = Duration::from_secs(300);

/// How long after its end a container's output is read at the most.
const DRAIN: Duration = Duration::from_secs(5);

/// For how long a daemon that does not answer is asked again, and how far apart.
const DAEMON_PATIENCE: Duration = Duration::from_secs(30);
const BETWEEN_QUESTIONS: Duration = Duration::from_millis(500);

/// How far apart the attempts to kill a container are, until it has ended.
const BETWEEN_KILLS: Duration = Duration::from_secs(2);

/// A container whose output ended before it did is listened to again: first after this time, then after doubled ones up
/// to the second. The daemon was restarted, or the container closed its outputs.
const LISTEN_AGAIN: Duration = Duration::from_secs(1);
const LISTEN_AGAIN_AT_LAST: Duration = Duration::from_secs(60);

/// How many pieces of output are written to the logs in one go.
const PIECES_AT_ONCE: usize = 16;

/// The period over which processor time is dealt out, in microseconds.
const CPU_PERIOD_US: i64 = 100_000;
/// The least that the kernel accepts of it.
const LEAST_CPU_QUOTA_US: i64 = 1_000;

type Pieces = Pin<Box<dyn Stream<Item = Result<LogOutput, Error>> + Send>>;

/// A container, and the daemon that has it.
struct Container<'a> {
    core: &'a Arc<Core>,
    client: bollard::Docker,
    mark: Mark,
    name: String,
}

/// How a container came to its end.
enum Ended {
    /// As a shell would say it.
    Code(i64),
    /// The same, after the daemon had been away.
    CodeAfterAbsence(i64),
    /// Somebody removed it.
    Removed,
    /// The daemon does not come back.
    Unknown,
}

/// Runs the pod to its end.
pub(super) async fn run(core: &Arc<Core>, pod: &Arc<Pod>, start: &PodStart) -> PodEnd {
    let Some(client) = core.docker.client() else { return unable("Docker does not answer on this node any more") };
    let mark = Mark { origin: core.origin.clone(), key: start.key };
    let container = Container { core, client, name: docker::container_name(&mark), mark };
    match container.prepare(pod, start).await {
        Ok(attached) => container.supervise(pod, start, attached).await,
        Err(end) => end,
    }
}

impl Container<'_> {
    /// Gets the image, makes the container, listens to it and starts it.
    async fn prepare(&self, pod: &Arc<Pod>, start: &PodStart) -> Result<AttachContainerResults, PodEnd> {
        let spec = &start.submission.spec;
        let saved = read_checkpoint(self.core, start).await?;
        let image = spec.image.as_deref().unwrap_or_default();
        tokio::select! {
            biased;
            () = pod.stop.cancelled() => return Err(Cause::Stopped.before_start()),
            fetched = self.fetch_image(image, spec.pull) => fetched?,
        }
        let Ok(_permit) = self.core.spawning.acquire().await else {
            return Err(unable("this node is shutting down"));
        };
        if pod.stop.is_cancelled() {
            return Err(Cause::Stopped.before_start());
        }
        let (core, kept, own_start) = (Arc::clone(self.core), Arc::clone(pod), start.clone());
        let making = tokio::task::spawn_blocking(move || make_rooms(&core, &kept, &own_start, saved.as_ref()));
        let body = making.await.map_err(|_| unable("this node is shutting down"))??;
        let leased = (spec.on_partition == OnPartition::Pause).then_some(&self.mark);
        self.core.guard_adds_container(&self.name, leased);
        let begun = self.begin(pod, body, leased.is_some()).await;
        if begun.is_err() && !self.remove().await {
            self.kill_by_mark().await;
        }
        begun
    }

    async fn begin(
        &self,
        pod: &Pod,
        body: ContainerCreateBody,
        is_leased: bool,
    ) -> Result<AttachContainerResults, PodEnd> {
        let stdin = body.open_stdin == Some(true);
        let options = CreateContainerOptions { name: Some(self.name.clone()), ..CreateContainerOptions::default() };
        call(self.client.create_container(Some(options), body)).await.map_err(|error| self.failure(&error))?;
        let attached = call(self.client.attach_container(&self.name, Some(everything(stdin)))).await;
        let attached = attached.map_err(|error| self.failure(&error))?;
        if pod.stop.is_cancelled() {
            return Err(Cause::Stopped.before_start());
        }
        // The guard found nothing to end where the node stood still before it was there.
        let has_stood_still = || is_leased && self.core.has_stood_still(pod);
        if has_stood_still() {
            return Err(unable(STOOD_STILL));
        }
        let started = call(self.client.start_container(&self.name, None::<StartContainerOptions>)).await;
        started.map_err(|error| self.failure(&error))?;
        if has_stood_still() {
            return Err(PodEnd::Lapsed);
        }
        crash_points::pass(Step::Spawn);
        Ok(attached)
    }

    /// Sees to it that the daemon has the image.
    async fn fetch_image(&self, image: &str, pull: Pull) -> Result<(), PodEnd> {
        let is_there = match call(self.client.inspect_image(image)).await {
            Ok(_) => true,
            Err(error) if status_of(&error) == Some(404) => false,
            Err(error) => return Err(self.failure(&error)),
        };
        match (pull, is_there) {
            (Pull::Missing | Pull::Never, true) => return Ok(()),
            (Pull::Never, false) => {
                let reason = format!("the image `{image}` is not on this node, and pull is never");
                return Err(cannot(REFUSED, reason));
            }
            (Pull::Missing, false) | (Pull::Always, _) => {}
        }
        let options = CreateImageOptions { from_image: Some(with_tag(image)), ..CreateImageOptions::default() };
        let puller = self.client.clone().with_timeout(PULL_SILENCE);
        let mut words = std::pin::pin!(puller.create_image(Some(options), None, None));
        loop {
            let failed = match tokio::time::timeout(PULL_SILENCE, words.next()).await {
                Ok(None) => return Ok(()),
                Ok(Some(Ok(_))) => continue,
                Ok(Some(Err(error))) => in_words(&error),
                Err(_) => format!("nothing came for {} seconds", PULL_SILENCE.as_secs()),
            };
            return Err(cannot(REFUSED, format!("the image `{image}` cannot be pulled: {failed}")));
        }
    }

    async fn supervise(&self, pod: &Arc<Pod>, start: &PodStart, attached: AttachContainerResults) -> PodEnd {
        pod.voice.begin();
        pod.voice.tell_begin();
        let spec = &start.submission.spec;
        let AttachContainerResults { output, input } = attached;
        let mut outputs = keep_output(output, pod);
        let mut feeding = std::pin::pin!(feed(input, spec.stdin.as_ref().map_or(&[][..], |stdin| &stdin.0)));
        let mut ended = std::pin::pin!(self.wait());
        let mut overseer = Overseer::new(self.core, pod, spec);
        let (mut is_open, mut is_fed, mut pause) = (true, false, LISTEN_AGAIN);
        let mut ending = None;
        let how = loop {
            tokio::select! {
                biased;
                how = &mut ended => break how,
                order = overseer.next_order() => ending = Some(self.carry_out(order)),
                () = &mut outputs, if is_open => is_open = false,
                () = &mut feeding, if !is_fed => is_fed = true,
                () = tokio::time::sleep(pause), if !is_open => {
                    pause = (pause * 2).min(LISTEN_AGAIN_AT_LAST);
                    if let Ok(again) = call(self.client.attach_container(&self.name, Some(everything(false)))).await {
                        outputs = keep_output(again.output, pod);
                        is_open = true;
                    }
                }
            }
        };
        drop(ending);
        if is_open && tokio::time::timeout(DRAIN, &mut outputs).await.is_err() {
            tracing::debug!(job = %start.key.job, "a container's output stayed open after its end");
        }
        let (exit, mut was_away) = match how {
            Ended::Code(code) => (exit_of(code), false),
            Ended::CodeAfterAbsence(code) => (exit_of(code), true),
            Ended::Removed => (Exit::Signal(Signal::KILL.as_raw()), false),
            Ended::Unknown => {
                self.kill_by_mark().await;
                (Exit::Signal(Signal::KILL.as_raw()), true)
            }
        };
        was_away |= !self.note_why(pod, spec).await;
        self.remove().await;
        let is_killed = matches!(exit, Exit::Signal(_));
        if overseer.cause().is_none() && is_killed && was_away {
            return unable("Docker stopped answering on its node while it ran");
        }
        if spec.on_partition == OnPartition::Pause
            && is_killed
            && self.core.has_stood_still(pod)
            && let Some(end) = self.core.lapsed(pod, start.key, overseer.cause()).await
        {
            return end;
        }
        Cause::end(overseer.cause(), exit)
    }

    /// Returns when the container has ended.
    async fn wait(&self) -> Ended {
        let mut away_since = None;
        loop {
            let asked = Instant::now();
            let options = WaitContainerOptions { condition: "not-running".to_owned() };
            let heard = std::pin::pin!(self.client.wait_container(&self.name, Some(options))).next().await;
            let code = match heard {
                Some(Ok(answer)) => Some(answer.status_code),
                Some(Err(Error::DockerContainerWaitError { code, .. })) => Some(code),
                Some(Err(error)) if status_of(&error) == Some(404) => return Ended::Removed,
                Some(Err(_)) | None => None,
            };
            if asked.elapsed() > DAEMON_PATIENCE {
                away_since = None;
            }
            match (code, away_since) {
                (Some(code), None) => return Ended::Code(code),
                (Some(code), Some(_)) => return Ended::CodeAfterAbsence(code),
                (None, None) => away_since = Some(Instant::now()),
                (None, Some(since)) if since.elapsed() > DAEMON_PATIENCE => return Ended::Unknown,
                (None, Some(_)) => {}
            }
            self.core.docker.doubt();
            tokio::time::sleep(BETWEEN_QUESTIONS).await;
        }
    }

    /// Ends the container, without waiting for it. Dropped when it has ended.
    fn carry_out(&self, order: Order) -> AbortOnDropHandle<()> {
        let (client, name, mark) = (self.client.clone(), self.name.clone(), self.mark.clone());
        let ending = async move {
            let send = async |signal: &str| {
                let options = KillContainerOptions { signal: signal.to_owned() };
                call(client.kill_container(&name, Some(options))).await
            };
            match order {
                Order::AskToEnd => {
                    if let Err(error) = send("SIGTERM").await {
                        tracing::debug!(name, error = %in_words(&error), "a container cannot be asked to end");
                    }
                }
                Order::Kill => loop {
                    if let Err(error) = send("SIGKILL").await {
                        tracing::debug!(name, error = %in_words(&error), "a container cannot be killed by Docker");
                        kill_by_mark(mark.clone()).await;
                    }
                    tokio::time::sleep(BETWEEN_KILLS).await;
                },
            }
        };
        AbortOnDropHandle::new(self.core.tracker.spawn_on(ending, &self.core.runtime))
    }

    async fn kill_by_mark(&self) {
        kill_by_mark(self.mark.clone()).await;
    }

    /// Notes what people should know of its end. Says whether the daemon answers.
    async fn note_why(&self, pod: &Pod, spec: &Spec) -> bool {
        let told = call(self.client.inspect_container(&self.name, None::<InspectContainerOptions>)).await;
        let state = match told {
            Ok(told) => told.state.unwrap_or_default(),
            Err(error) => return status_of(&error).is_some(),
        };
        if state.oom_killed == Some(true) {
            let limit = if spec.memory.bytes > 0 { format!("of {} ", spec.memory) } else { String::new() };
            pod.note(format!("out of memory: its container reached its limit {limit}and was killed for it"));
        } else if let Some(error) = state.error.filter(|error| !error.is_empty()) {
            pod.note(error);
        }
        true
    }

    /// Removes it, and says whether it is gone; the guard forgets it then.
    async fn remove(&self) -> bool {
        let is_gone = self.core.docker.remove(&self.client, &self.name).await;
        if is_gone {
            self.core.guard_removes_container(&self.name);
        }
        is_gone
    }

    /// Whose fault it is that a container cannot be had. A daemon that answers with a refusal was asked for something
    /// that it cannot do, most likely anywhere; one that does not answer is this node's trouble.
    fn failure(&self, error: &Error) -> PodEnd {
        let words = in_words(error);
        if status_of(error).is_none() {
            self.core.docker.doubt();
            return unable(&format!("Docker does not answer on this node: {words}"));
        }
        if words.contains("no space left on device") {
            return unable(&format!("Docker has no room on this node: {words}"));
        }
        cannot(REFUSED, format!("Docker refuses its container: {words}"))
    }
}

async fn kill_by_mark(mine: Mark) {
    // Blocks: it looks at every process. Where it is cut short, the node's end or the next look at Docker does it.
    let _ = tokio::task::spawn_blocking(move || marker::kill_marked(|mark| *mark == mine).len()).await;
}

/// Gives the pod its directories, and says what its container is to be. Blocks.
fn make_rooms(core: &Core, pod: &Pod, start: &PodStart, saved: Option<&Blob>) -> Result<ContainerCreateBody, PodEnd> {
    let cell = core.cells.take().map_err(|error| {
        unable(&format!("a directory for the job cannot be made in {}: {error}", core.cells.dir().display()))
    })?;
    let rooms = [(cell.own(), "tmp"), (cell.exchange(), "exchange")];
    let checkpoint_file = cell.checkpoint_file();
    *pod.cell.lock().unwrap_or_else(PoisonError::into_inner) = Some(cell);
    // Who the container's user is only Docker knows. Others of this machine are kept out by the directory around these.
    let open_up = |path: &std::path::Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode));
    let opened = rooms.iter().try_for_each(|(room, _)| open_up(room, 0o777));
    opened.map_err(|error| unable(&format!("a directory for the job cannot be opened to it: {error}")))?;
    if let Some(saved) = saved {
        let written = fs::write(&checkpoint_file, saved.bytes()).and_then(|()| open_up(&checkpoint_file, 0o644));
        written.map_err(|error| unable(&format!("the checkpoint cannot be written: {error}")))?;
    }
    let mounts = rooms.iter().map(|(room, name)| Mount {
        typ: Some(MountType::BIND),
        source: Some(room.to_string_lossy().into_owned()),
        target: Some(format!("{INSIDE}/{name}")),
        ..Mount::default()
    });
    let places = Places {
        checkpoint: format!("{INSIDE}/exchange/checkpoint").into(),
        result: format!("{INSIDE}/exchange/result").into(),
        tmp: format!("{INSIDE}/tmp").into(),
    };
    let told = told_to_job(core, pod, start, places);
    Ok(describe(core, start, mounts.collect(), told.iter().map(|(name, value)| (*name, value.to_string_lossy()))))
}

/// What Docker is asked for.
fn describe<'a>(
    core: &Core,
    start: &PodStart,
    mounts: Vec<Mount>,
    told: impl Iterator<Item = (&'a str, std::borrow::Cow<'a, str>)>,
) -> ContainerCreateBody {
    let spec = &start.submission.spec;
    let mark = Mark { origin: core.origin.clone(), key: start.key };
    let labels = [
        (docker::LABEL_OF_DIRECTORY, format!("{:016x}", core.origin.directory)),
        (docker::LABEL_OF_POD, mark.to_string()),
        (docker::LABEL_OF_JOB, start.key.job.to_string()),
        (docker::LABEL_OF_ATTEMPT, start.number.to_string()),
        (docker::LABEL_OF_NODE, core.config.node_name.clone()),
    ];
    let env = spec.env.iter().map(|(name, value)| format!("{name}={value}"));
    let has_input = spec.stdin.as_ref().is_some_and(|stdin| !stdin.0.is_empty());
    ContainerCreateBody {
        image: spec.image.clone(),
        cmd: (!spec.command.is_empty()).then(|| spec.command.clone()),
        // Of two of one name the last counts.
        env: Some(env.chain(told.map(|(name, value)| format!("{name}={value}"))).collect()),
        user: spec.user.clone(),
        working_dir: spec.cwd.clone(),
        labels: Some(labels.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        attach_stdin: Some(has_input),
        open_stdin: Some(has_input),
        stdin_once: Some(has_input),
        host_config: Some(HostConfig {
            network_mode: Some("host".to_owned()),
            mounts: Some(mounts),
            init: Some(true),
            // Its output is read here, and kept once.
            log_config: Some(HostConfigLogConfig { typ: Some("none".to_owned()), config: None }),
            ulimits: Some(spec.limits.iter().map(|(limit, value)| ulimit(*limit, *value)).collect()),
            ..limits(spec)
        }),
        ..ContainerCreateBody::default()
    }
}

/// What its control group is to hold it to. What a job does not set aside is not limited.
fn limits(spec: &Spec) -> HostConfig {
    let memory = (spec.memory.bytes > 0).then(|| i64::try_from(spec.memory.bytes).unwrap_or(i64::MAX));
    let millis = i64::from(spec.cpus.millis);
    let quota = millis.saturating_mul(CPU_PERIOD_US / 1_000).max(LEAST_CPU_QUOTA_US);
    HostConfig {
        memory,
        // With swap, in all: no swap.
        memory_swap: memory,
        // Its user may be root, whom no ulimit holds to it. Docker's own first process comes on top.
        pids_limit: spec.limits.get(&Limit::Processes).map(|most| i64::try_from(*most).unwrap_or(i64::MAX - 1) + 1),
        cpu_period: (millis > 0).then_some(CPU_PERIOD_US),
        cpu_quota: (millis > 0).then_some(quota),
        ..HostConfig::default()
    }
}

fn ulimit(limit: Limit, value: u64) -> ResourcesUlimits {
    let name = match limit {
        Limit::AddressSpace => "as",
        Limit::CoreSize => "core",
        Limit::CpuTime => "cpu",
        Limit::FileSize => "fsize",
        Limit::OpenFiles => "nofile",
        Limit::Processes => "nproc",
    };
    let value = i64::try_from(value).unwrap_or(i64::MAX);
    ResourcesUlimits { name: Some(name.to_owned()), soft: Some(value), hard: Some(value) }
}

/// Docker pulls all tags of an image that is named without one.
fn with_tag(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or(image);
    if last.contains([':', '@']) { image.to_owned() } else { format!("{image}:latest") }
}

fn everything(stdin: bool) -> AttachContainerOptions {
    AttachContainerOptions { stdin, stdout: true, stderr: true, stream: true, ..AttachContainerOptions::default() }
}

fn exit_of(code: i64) -> Exit {
    match i32::try_from(code) {
        Ok(code @ 129..=159) => Exit::Signal(code - 128),
        Ok(code) => Exit::Code(code),
        Err(_) => Exit::Code(REFUSED),
    }
}

/// Keeps what the container writes until there is no more.
fn keep_output(output: Pieces, pod: &Pod) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(keep_pieces(output, [Arc::clone(&pod.stdout), Arc::clone(&pod.stderr)]))
}

async fn keep_pieces(output: Pieces, logs: [Arc<StreamLog>; 2]) {
    let mut pieces = output.ready_chunks(PIECES_AT_ONCE);
    let mut complained = false;
    while let Some(some) = pieces.next().await {
        let (mut stdout, mut stderr, mut is_over) = (Vec::new(), Vec::new(), false);
        for piece in some {
            match piece {
                Ok(LogOutput::StdOut { message } | LogOutput::Console { message }) => {
                    stdout.extend_from_slice(&message);
                }
                Ok(LogOutput::StdErr { message }) => stderr.extend_from_slice(&message),
                Ok(LogOutput::StdIn { .. }) => {}
                Err(error) => {
                    tracing::debug!(error = %in_words(&error), "a container's output cannot be read on");
                    is_over = true;
                }
            }
        }
        for (log, bytes) in logs.iter().zip([stdout, stderr]) {
            let log = Arc::clone(log);
            if !bytes.is_empty()
                && let Ok(Err(error)) = tokio::task::spawn_blocking(move || log.append(&bytes)).await
                && !std::mem::replace(&mut complained, true)
            {
                tracing::warn!(%error, "a pod's output cannot be kept, and is lost");
            }
        }
        if is_over {
            return;
        }
    }
}

/// Writes the pod's input and closes it. A pod that reads no further has read what it wanted. The connection carries
/// its output too, so it stays open in the other direction.
async fn feed(mut pipe: Pin<Box<dyn AsyncWrite + Send>>, input: &[u8]) {
    if input.is_empty() {
        return;
    }
    let fed = async {
        pipe.write_all(input).await?;
        pipe.shutdown().await
    };
    if let Err(error) = fed.await {
        tracing::debug!(%error, "a container did not take all of its input");
    }
}
