//! The guard: a small process that sees to it that no pod outlives its node, whatever ends the node.
//!
//! A node that is killed with SIGKILL cannot clean up. Its guard can: it holds one end of a pipe from the node, which the
//! kernel closes when the node is gone, however it went. The guard then kills every process group in the `register`, a
//! file in memory that the two share, looks for processes that carry the mark of this start of the node (`marker`), kills
//! those too, and ends. It ignores polite signals and leads a group of its own, so that what is meant for the node
//! spares it. While the node lives the guard sleeps: a pod that comes and goes costs two writes to memory and wakes nobody.
//! (To tell it each through the pipe, which is still done where there is no register, took a tenth of all processor time
//! where jobs are short.)
//!
//! The window: a pod is put into the register right after it is spawned, by the thread that spawned it. A node that
//! is killed between the two leaves a pod that is on no list, but it carries the mark (the guard looks
//! repeatedly, since the process may still be on its way to its program). Without `/proc` the window is real:
//! the few microseconds between two system calls.
//!
//! A node that is frozen (SIGSTOP, a hypervisor's pause) is not gone, so its pipe stays open. Pods that must not run
//! in two places are therefore **leased**: these are told through the pipe (`+123`, `*123` and the pod's mark, `-123`), and
//! the node renews all leases with a `t` every second. When it has not for [`LEASE`], the guard kills the leased pods,
//! those of their processes that left the group too. That is long before the other nodes, which wait out such jobs' pause,
//! start them elsewhere. A node that was only slow learns from its own watch that it let the leases lapse
//! ([`Guard::has_lapsed_since`]).
//!
//! Control groups, where the node makes any, are all below a few directories of its own (`g /sys/fs/cgroup/…`): whoever is
//! in there at the end is killed, whatever became of groups and marks. One of them is the node's own (`household`), which
//! every pod inherits; the guard is kept out of it.
//!
//! Containers are not children of anybody here, so it is Docker that must end them. The guard is told the daemon's socket
//! (`d /run/docker.sock`) and each container by its name, before it is made (`c+name`, and `c*name` and its mark for a
//! leased one) and after it is gone (`c-name`). At the end it asks the daemon to remove them, in a few lines of HTTP of its
//! own. A daemon that does not answer is made up for by the marks, which the processes in containers carry as well:
//! a node that runs as root may kill them. What is left even then is removed by the next start of the node.
//!
//! What it ends it notes, with the time, in a file in the node's directory (`n /var/lib/…`, see `notes`): a node that moves
//! again, or is back, reads there when its pods ended.
//!
//! A guard that dies is replaced, and the new one is told everything again. A node without its guard for a
//! moment is not a fault worth ending pods for.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, BufRead, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, Signal};
use tokio::process::{Child, Command};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::groups;
use super::household;
use super::marker::{self, Mark, Origin};
use super::notes;
use super::register::{self, Place, Register};

/// The argument that makes the `flockwork` program a guard: its `main` calls [`guard_main`] then.
pub const GUARD_ARGUMENT: &str = "pod-guard";

/// A guard that is no longer needed has this long to notice.
const FAREWELL: Duration = Duration::from_secs(5);

/// A guard that lived for less than this is not replaced at once, but after this time.
const LEAST_LIFE: Duration = Duration::from_secs(1);

/// Enough for the groups of a hundred thousand pods.
const PIPE_BYTES: usize = 1 << 20;

/// How often, and how far apart, the marks are looked for once the node is gone.
const LOOKS: u32 = 10;
const BETWEEN_LOOKS: Duration = Duration::from_millis(50);

/// How long a leased pod may run on without its node's renewal. Raising it spares the pods of a node that is slow for a
/// moment; it must stay below the time that other nodes give a lost executor of such a job, which is over six seconds
/// after they found it gone.
pub(super) const LEASE: Duration = Duration::from_secs(4);
/// How often leases are renewed, while there are any.
pub(super) const RENEW_EVERY: Duration = Duration::from_secs(1);
/// By how much the node's own watch over its leases is the stricter.
const LEASE_SLACK: Duration = Duration::from_millis(200);

/// How long the guard waits for one answer of Docker, and for all of them.
const DOCKER_WITHIN: Duration = Duration::from_secs(10);
const ALL_OF_DOCKER_WITHIN: Duration = Duration::from_secs(60);

/// Lines that the guard has read and not yet acted upon.
const LINES_AHEAD: usize = 1_024;

/// What to run as the guard.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum GuardProgram {
    /// The program that is running, with [`GUARD_ARGUMENT`]. For programs whose `main` calls [`guard_main`]
    /// when it is given that argument, and for no other.
    ThisProgram,
    /// A program and arguments that end up in [`guard_main`].
    Program(PathBuf, Vec<OsString>),
    /// An `awk` script that does the most of it, for programs that only embed a node. It knows nothing of marks, leases
    /// and containers.
    #[default]
    Awk,
}

/// Each line is a group that began or ended. `kill` is asked in one go at the end, as it is the shell's own.
const AWK_SCRIPT: &str = r#"/^\+[0-9]+$/ { groups[substr($0, 2)] = 1 }
/^-[0-9]+$/ { delete groups[substr($0, 2)] }
END { for (group in groups) if (group + 0 > 1) system("kill -s KILL -- -" group) }"#;

impl GuardProgram {
    /// Whether it ends up in [`guard_main`], which knows what a register is.
    fn reads_registers(&self) -> bool {
        match self {
            Self::ThisProgram | Self::Program(..) => true,
            Self::Awk => false,
        }
    }

    fn command(&self) -> io::Result<Command> {
        let mut command = match self {
            Self::ThisProgram => {
                // The file may have been replaced since, by an upgrade; the program that runs is still there.
                let program = std::env::current_exe().ok().filter(|file| file.exists());
                let mut command = Command::new(program.unwrap_or_else(|| "/proc/self/exe".into()));
                command.arg(GUARD_ARGUMENT);
                command
            }
            Self::Program(program, arguments) => {
                let mut command = Command::new(program);
                command.args(arguments);
                command
            }
            Self::Awk => {
                let mut command = Command::new("awk");
                command.arg(AWK_SCRIPT);
                command
            }
        };
        let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
        // Without its environment, a guard inside a pod of another node does not carry that pod's mark, and
        // lives to do its work when that pod is ended.
        command.env_clear().env("PATH", path).current_dir("/").process_group(0);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        Ok(command)
    }
}

/// What every guard of a node is told at first.
#[derive(Debug)]
pub(super) struct Watched {
    /// Whose marks are the node's.
    pub(super) origin: Origin,
    /// Where the guard notes what it has ended.
    pub(super) notes: Option<PathBuf>,
    /// The socket of the daemon that has its containers.
    pub(super) docker: Option<PathBuf>,
    /// The control groups below which nobody but its pods is.
    pub(super) groups: Vec<PathBuf>,
    /// The control group that a guard is moved to, so that it is in none of those.
    pub(super) home: Option<PathBuf>,
}

/// The node's end.
#[derive(Debug)]
pub(super) struct Guard {
    program: GuardProgram,
    watched: Watched,
    roll: Mutex<Roll>,
    broken: Notify,
}

#[derive(Debug)]
struct Roll {
    /// Each group, and how the guard knows of it.
    groups: BTreeMap<i32, Known>,
    /// Nothing where the guard cannot read it.
    register: Option<Register>,
    /// Each container, with its pod's mark where it is leased.
    containers: BTreeMap<String, Option<String>>,
    pipe: Option<OwnedFd>,
    /// When the leases were last renewed, or would have been if there had been any.
    renewed: Instant,
    /// When it was last noticed that they were not renewed in time.
    lapsed: Option<Instant>,
}

/// How the guard knows of a group.
#[derive(Debug)]
enum Known {
    /// It is in the register.
    Registered(Place),
    /// It was told through the pipe, with its pod's mark where it is leased.
    Told(Option<String>),
}

impl Known {
    fn is_leased(&self) -> bool {
        matches!(self, Self::Told(Some(_)))
    }
}

impl Roll {
    fn new(register: Option<Register>) -> Self {
        Self {
            register,
            groups: BTreeMap::new(),
            containers: BTreeMap::new(),
            pipe: None,
            renewed: Instant::now(),
            lapsed: None,
        }
    }

    fn has_leases(&self) -> bool {
        self.groups.values().any(Known::is_leased) || self.containers.values().any(Option::is_some)
    }

    /// Looks at the clock: whether the leases have been let lapse, or would have been.
    fn look(&mut self, now: Instant) {
        if now.duration_since(self.renewed) + LEASE_SLACK >= LEASE {
            self.lapsed = Some(now);
        }
    }
}

/// Says that the guard's standard output is the register.
const READ_REGISTER: &str = "r\n";

/// Never blocks, and never writes a part of a line: pipes take up to `PIPE_BUF` bytes whole or not at all.
fn tell(pipe: &OwnedFd, line: &str) -> Result<(), Errno> {
    rustix::io::retry_on_intr(|| rustix::io::write(pipe, line.as_bytes())).map(drop)
}

fn tell_all(pipe: &OwnedFd, watched: &Watched, roll: &Roll) -> Result<(), Errno> {
    tell(pipe, &format!("of {}\n", watched.origin))?;
    watched.groups.iter().try_for_each(|base| tell(pipe, &format!("g {}\n", base.display())))?;
    if let Some(file) = &watched.notes {
        tell(pipe, &format!("n {}\n", file.display()))?;
    }
    if let Some(socket) = &watched.docker {
        tell(pipe, &format!("d {}\n", socket.display()))?;
    }
    if roll.register.is_some() {
        tell(pipe, READ_REGISTER)?;
    }
    for (group, known) in &roll.groups {
        match known {
            Known::Told(leased) => tell(pipe, &introduction(*group, leased.as_deref()))?,
            Known::Registered(_) => {}
        }
    }
    roll.containers.iter().try_for_each(|(name, leased)| tell(pipe, &container_line(name, leased.as_deref())))
}

fn container_line(name: &str, leased: Option<&str>) -> String {
    match leased {
        None => format!("c+{name}\n"),
        Some(mark) => format!("c*{name} {mark}\n"),
    }
}

fn introduction(group: i32, leased: Option<&str>) -> String {
    match leased {
        None => format!("+{group}\n"),
        Some(mark) => format!("+{group}\n*{group} {mark}\n"),
    }
}

impl Guard {
    /// Starts the guard, which can then be told of pods. [`keep`](Self::keep) must be run beside it.
    pub(super) fn start(program: GuardProgram, watched: Watched) -> io::Result<(Arc<Self>, Child)> {
        let register = program.reads_registers().then(Register::new).and_then(|made| {
            made.inspect_err(|error| tracing::debug!(%error, "the pod guard is told each pod by name")).ok()
        });
        let roll = Mutex::new(Roll::new(register));
        let guard = Arc::new(Self { program, watched, roll, broken: Notify::new() });
        let child = guard.spawn()?;
        Ok((guard, child))
    }

    /// A guard process that knows every pod there is.
    fn spawn(&self) -> io::Result<Child> {
        let (theirs, ours) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&ours, true)?;
        // A smaller one does for a few thousand pods.
        let _ = rustix::pipe::fcntl_setpipe_size(&ours, PIPE_BYTES);
        let mut command = self.program.command()?;
        command.stdin(Stdio::from(theirs));
        if let Some(register) = &self.roll().register {
            command.stdout(Stdio::from(register.share()?));
        }
        let mut child = command.spawn()?;
        if let (Some(home), Some(pid)) = (&self.watched.home, child.id())
            && let Err(error) = household::move_to(home, pid)
        {
            // It kills everybody there but itself.
            tracing::debug!(%error, "the pod guard is in the control group of its node");
        }
        let mut roll = self.roll();
        if let Err(error) = tell_all(&ours, &self.watched, &roll) {
            // Before its pipe is closed, for the reason given in `keep`.
            child.start_kill()?;
            return Err(error.into());
        }
        roll.pipe = Some(ours);
        Ok(child)
    }

    /// Puts a pod's process group on the list; with a lease, where its mark is given.
    pub(super) fn add(&self, group: Pid, leased: Option<&Mark>) {
        let group = group.as_raw_nonzero().get();
        let leased = leased.map(ToString::to_string);
        let mut roll = self.roll();
        if leased.is_none()
            && let Some(place) = roll.register.as_mut().and_then(|register| register.add(group))
        {
            roll.groups.insert(group, Known::Registered(place));
            return;
        }
        let line = introduction(group, leased.as_deref());
        roll.groups.insert(group, Known::Told(leased));
        self.tell(&roll, &line);
    }

    /// Puts a container on the list, which need not be there yet.
    pub(super) fn add_container(&self, name: &str, leased: Option<&Mark>) {
        let leased = leased.map(ToString::to_string);
        let mut roll = self.roll();
        let line = container_line(name, leased.as_deref());
        roll.containers.insert(name.to_owned(), leased);
        self.tell(&roll, &line);
    }

    /// Takes it off.
    pub(super) fn remove_container(&self, name: &str) {
        let mut roll = self.roll();
        if roll.containers.remove(name).is_some() {
            self.tell(&roll, &format!("c-{name}\n"));
        }
    }

    /// Renews the leases, if there are any. That this node moves is noted in any case: a lease may be wanted soon.
    fn renew(&self) {
        let mut roll = self.roll();
        let now = Instant::now();
        roll.look(now);
        roll.renewed = now;
        if roll.has_leases() {
            self.tell(&roll, "t\n");
        }
    }

    /// Whether the guard may have ended leased pods since then, because this process was frozen or far too slow.
    pub(super) fn has_lapsed_since(&self, then: Instant) -> bool {
        let mut roll = self.roll();
        roll.look(Instant::now());
        roll.lapsed.is_some_and(|at| at >= then)
    }

    /// Renews the leases for as long as the node lives and moves.
    pub(super) async fn keep_leases(self: Arc<Self>, closing: CancellationToken) {
        while tokio::time::timeout(RENEW_EVERY, closing.cancelled()).await.is_err() {
            self.renew();
        }
    }

    /// Takes it off.
    pub(super) fn remove(&self, group: Pid) {
        let mut roll = self.roll();
        match roll.groups.remove(&group.as_raw_nonzero().get()) {
            Some(Known::Registered(place)) => {
                if let Some(register) = &mut roll.register {
                    register.remove(place);
                }
            }
            Some(Known::Told(_)) => {
                self.tell(&roll, &format!("-{}\n", group.as_raw_nonzero()));
            }
            None => {}
        }
    }

    fn tell(&self, roll: &Roll, line: &str) {
        if roll.pipe.as_ref().is_some_and(|pipe| tell(pipe, line).is_err()) {
            self.broken.notify_one();
        }
    }

    /// Replaces the guard whenever it is gone or does not listen; sends it home when `closing` is cancelled.
    pub(super) async fn keep(self: Arc<Self>, mut child: Child, closing: CancellationToken) {
        loop {
            let since = Instant::now();
            tokio::select! {
                () = closing.cancelled() => {
                    self.say_goodbye();
                    if tokio::time::timeout(FAREWELL, child.wait()).await.is_err() {
                        tracing::warn!("the pod guard does not end, and is killed");
                        end(&mut child).await;
                    }
                    return;
                }
                _ = child.wait() => {}
                // It must be dead before its pipe is closed: to a guard that lives, that is the end of the node.
                () = self.broken.notified() => end(&mut child).await,
            }
            tracing::warn!("the pod guard has ended, and is replaced");
            let mut pause = LEAST_LIFE.saturating_sub(since.elapsed());
            child = loop {
                if tokio::time::timeout(pause, closing.cancelled()).await.is_ok() {
                    return;
                }
                match self.spawn() {
                    Ok(child) => break child,
                    Err(error) => tracing::warn!(%error, "the pod guard cannot be started"),
                }
                pause = LEAST_LIFE;
            };
        }
    }

    /// The node is closing and has looked for marks itself.
    fn say_goodbye(&self) {
        let mut roll = self.roll();
        self.tell(&roll, "bye\n");
        roll.pipe = None;
    }

    fn roll(&self) -> MutexGuard<'_, Roll> {
        self.roll.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn end(child: &mut Child) {
    if let Err(error) = child.kill().await {
        tracing::warn!(%error, "the pod guard could not be killed");
    }
}

/// What the guard process knows.
#[derive(Debug, Default)]
struct Watch {
    origin: Option<Origin>,
    /// Where to note what was ended.
    notes: Option<PathBuf>,
    docker: Option<PathBuf>,
    control_groups: Vec<PathBuf>,
    groups: BTreeMap<i32, Option<Mark>>,
    /// The register is this process's standard output.
    has_register: bool,
    containers: BTreeMap<String, Option<Mark>>,
    /// When the leased ones are to be killed.
    lapse_at: Option<std::time::Instant>,
}

impl Watch {
    fn hear(&mut self, line: &str, now: std::time::Instant) {
        let number = |digits: &str| digits.parse::<i32>().ok().filter(|group| *group > 1);
        if let Some(text) = line.strip_prefix("of ") {
            self.origin = Origin::parse(text);
        } else if let Some(file) = line.strip_prefix("n ") {
            self.notes = Some(file.into());
        } else if let Some(socket) = line.strip_prefix("d ") {
            self.docker = Some(socket.into());
        } else if let Some(base) = line.strip_prefix("g ") {
            self.control_groups.push(base.into());
        } else if line == READ_REGISTER.trim_end() {
            self.has_register = true;
        } else if line == "bye" {
            self.origin = None;
            self.notes = None;
            self.control_groups.clear();
        } else if line == "t" {
            self.lapse_at = self.lapse_at.and(now.checked_add(LEASE));
        } else if let Some(group) = line.strip_prefix('+').and_then(number) {
            self.groups.insert(group, None);
        } else if let Some(group) = line.strip_prefix('-').and_then(number) {
            self.groups.remove(&group);
            self.mind_leases(now);
        } else if let Some((group, mark)) = line.strip_prefix('*').and_then(|rest| rest.split_once(' '))
            && let Some(leased) = number(group).and_then(|group| self.groups.get_mut(&group))
        {
            *leased = Mark::parse(mark);
            self.mind_leases(now);
        } else if let Some(name) = line.strip_prefix("c+").filter(|name| is_container_name(name)) {
            self.containers.insert(name.to_owned(), None);
        } else if let Some(name) = line.strip_prefix("c-") {
            self.containers.remove(name);
            self.mind_leases(now);
        } else if let Some((name, mark)) = line.strip_prefix("c*").and_then(|rest| rest.split_once(' '))
            && is_container_name(name)
        {
            self.containers.insert(name.to_owned(), Mark::parse(mark));
            self.mind_leases(now);
        }
    }

    /// There is a first lease from now on, or the last has gone.
    fn mind_leases(&mut self, now: std::time::Instant) {
        let has_leases = self.groups.values().chain(self.containers.values()).any(Option::is_some);
        self.lapse_at = if has_leases { self.lapse_at.or(now.checked_add(LEASE)) } else { None };
    }

    /// The node does not renew its leases: ends what it leased.
    fn end_leased(&mut self) {
        let leased: Vec<(i32, Mark)> =
            self.groups.iter().filter_map(|(group, mark)| Some((*group, mark.clone()?))).collect();
        for (group, _) in &leased {
            kill_group(*group);
            self.groups.remove(group);
        }
        let containers: Vec<(String, Mark)> =
            self.containers.iter().filter_map(|(name, mark)| Some((name.clone(), mark.clone()?))).collect();
        let marks: Vec<&Mark> = leased.iter().map(|(_, mark)| mark).chain(containers.iter().map(|(_, m)| m)).collect();
        for base in &self.control_groups {
            marks.iter().for_each(|mark| groups::kill_all_in(&base.join(groups::name_of(&mark.key))));
        }
        // What was just forking when its group was killed has a child.
        for _ in 0..LOOKS {
            if marker::kill_marked(|mark| marks.contains(&mark)).is_empty() {
                break;
            }
            std::thread::sleep(BETWEEN_LOOKS);
        }
        self.note(Some(&Vec::from_iter(leased.iter().map(|(_, mark)| mark))));
        // The node may live, and ask why it ended: it removes it.
        self.ask_docker(containers.iter().map(|(name, _)| format!("POST /containers/{name}/kill?signal=KILL")));
        self.note(Some(&Vec::from_iter(containers.iter().map(|(_, mark)| mark))));
        for (name, _) in &containers {
            self.containers.remove(name);
        }
        self.lapse_at = None;
    }

    /// Leaves word that these pods were ended, or all.
    fn note(&self, ended: Option<&[&Mark]>) {
        if let Some(file) = self.notes.as_deref().filter(|_| ended.is_none_or(|marks| !marks.is_empty())) {
            notes::write(file, ended);
        }
    }

    /// The node is gone: ends everything.
    fn end_all(self) {
        self.groups.keys().copied().for_each(kill_group);
        if self.has_register {
            register::read(io::stdout().as_fd()).into_iter().for_each(kill_group);
        }
        self.control_groups.iter().for_each(|base| groups::kill_all_in(base));
        if let Some(origin) = &self.origin {
            for look in 0..LOOKS {
                let found = marker::kill_marked(|mark| mark.origin == *origin);
                // The node may be started again at any moment. What is found after the first look is rare, and later.
                if look == 0 || !found.is_empty() {
                    self.note(None);
                }
                std::thread::sleep(BETWEEN_LOOKS);
            }
        }
        self.control_groups.iter().for_each(|base| groups::kill_and_remove(base));
        self.ask_docker(self.containers.keys().map(|name| format!("DELETE /containers/{name}?force=true&v=true")));
        if !self.containers.is_empty() {
            self.note(None);
        }
    }

    /// Asks Docker for what it is to do with containers, one after the other. Its answers only tell that it has done it:
    /// where it has not, nobody is left who could do more.
    #[expect(clippy::disallowed_methods, reason = "the guard is a program of its own, with a clock")]
    fn ask_docker(&self, requests: impl Iterator<Item = String>) {
        let Some(socket) = &self.docker else { return };
        let begun = std::time::Instant::now();
        for request in requests.take_while(|_| begun.elapsed() < ALL_OF_DOCKER_WITHIN) {
            let asked = UnixStream::connect(socket).and_then(|mut docker| {
                docker.set_read_timeout(Some(DOCKER_WITHIN))?;
                docker.set_write_timeout(Some(DOCKER_WITHIN))?;
                let head =
                    format!("{request} HTTP/1.1\r\nHost: docker\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
                docker.write_all(head.as_bytes())?;
                docker.read(&mut [0; 64])
            });
            if asked.is_err() {
                return;
            }
        }
    }
}

/// What may stand in a request as it is.
fn is_container_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

fn kill_group(group: i32) {
    if let Some(group) = Pid::from_raw(group) {
        // One that is gone already is as good.
        let _ = rustix::process::kill_process_group(group, Signal::KILL);
    }
}

/// What the guard process does, from its first breath to its last. Reads from standard input.
#[expect(clippy::disallowed_methods, reason = "the guard is a program of its own, with a clock and a thread")]
pub fn guard_main() -> ! {
    ignore_polite_signals();
    let (read, lines) = sync_channel(LINES_AHEAD);
    std::thread::spawn(move || {
        // An error is an end like any other: there is nobody left to hear of it.
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            if read.send(line).is_err() {
                return;
            }
        }
    });
    let mut watch = Watch::default();
    loop {
        let now = std::time::Instant::now();
        let heard = match watch.lapse_at {
            None => lines.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(at) => lines.recv_timeout(at.saturating_duration_since(now)),
        };
        match heard {
            Ok(line) => watch.hear(&line, std::time::Instant::now()),
            Err(RecvTimeoutError::Timeout) => watch.end_leased(),
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    watch.end_all();
    std::process::exit(0)
}

/// Service managers send SIGTERM to all processes of a service at once, and the guard must be the last to go.
/// A handler that nobody listens to ignores them without any unsafe code.
fn ignore_polite_signals() {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
    let ignored = runtime.map(|runtime| {
        let _inside = runtime.enter();
        for kind in [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()] {
            // One that cannot be ignored may end the guard; the node starts another.
            let _ = signal(kind);
        }
    });
    if let Err(error) = ignored {
        let _ = writeln!(io::stderr(), "the pod guard cannot ignore signals: {error}");
    }
}
