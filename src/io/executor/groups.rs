//! A control group for a pod: limits that hold for all of its processes together, and an end that none of them escapes.
//!
//! A process group is left by whoever calls `setsid`, and limits by `setrlimit` hold for each process alone. A control
//! group is left by nobody, and counts everybody. Making one costs time, so only pods get one whose job sets processors or
//! memory aside, or whose number of processes the kernel would not limit otherwise (root's); and not every machine lets a node make any. Where it does not, everything is as for other pods: what is
//! set aside is reserved and not enforced, and the node says so when it starts.
//!
//! Groups are made below the one that the node itself is in, so that whatever the node is held to holds for its pods. Both
//! versions of Linux's control groups are understood, also side by side, as they often are: a controller of version 1 has
//! a hierarchy of its own; version 2 has one for all, which even without controllers counts processor time and can kill
//! a whole group at once. In version 2 a group with processes cannot give controllers to groups below it. A node that is
//! alone in its group therefore moves into a leaf of its own; one that is not alone goes without.
//!
//! In each hierarchy: `flockwork-<id of the node's directory>-<start>/<pod>`. What a start leaves there is killed and removed
//! by its guard, or else by the next start. Because each start has directories of its own, a guard that is still at it
//! does no harm to the pods of the next.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal};

use super::marker::{self, Origin};
use crate::io::machine::OwnGroups;
use crate::model::attempt::Usage;
use crate::model::id::AttemptKey;
use crate::model::resources::{Cpus, Memory};

/// The period over which processor time is dealt out, in microseconds.
const CPU_PERIOD_US: u64 = 100_000;
/// The least that the kernel accepts of it.
const LEAST_CPU_QUOTA_US: u64 = 1_000;

/// How often a group is looked at until nothing in it lives and it can be removed, and how far apart.
const LOOKS: u32 = 200;
const BETWEEN_LOOKS: Duration = Duration::from_millis(5);

/// Where this node makes groups.
#[derive(Debug)]
pub(super) struct Groups {
    /// The directories of all of its pods', one in each hierarchy.
    memory: Hierarchy,
    cpu: Hierarchy,
    /// Where the number of processes is limited, if it can be.
    pids: Option<Hierarchy>,
    /// The one hierarchy of version 2, where it is there beside controllers of version 1.
    unified: Option<PathBuf>,
}

/// What a group holds its processes to, all together. What is zero, or nothing, is not limited.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Bounds {
    pub(super) cpus: Cpus,
    pub(super) memory: Memory,
    /// How many there may be, threads included.
    pub(super) processes: Option<u64>,
}

/// Where a controller is.
#[derive(Debug, Clone)]
enum Hierarchy {
    V1(PathBuf),
    V2(PathBuf),
}

impl Hierarchy {
    fn path(&self) -> &Path {
        match self {
            Self::V1(path) | Self::V2(path) => path,
        }
    }

    fn of(&self, pod: &str) -> Self {
        match self {
            Self::V1(path) => Self::V1(path.join(pod)),
            Self::V2(path) => Self::V2(path.join(pod)),
        }
    }
}

/// One pod's group. Nobody is left in it when it has been ended.
#[derive(Debug)]
pub(super) struct Group {
    memory: Hierarchy,
    cpu: Hierarchy,
    pids: Option<Hierarchy>,
    unified: Option<PathBuf>,
}

/// What a group has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Seen {
    pub(super) usage: Usage,
    /// How many of its processes the kernel killed for want of memory.
    pub(super) memory_kills: u64,
}

/// What a pod's group is called.
pub(super) fn name_of(key: &AttemptKey) -> String {
    format!("{}.{}", key.job, marker::claim_name(key.claim))
}

impl Groups {
    /// Finds out whether groups can be made for this start of a node.
    ///
    /// # Errors
    /// For people: why not.
    pub(super) fn find(own: OwnGroups, origin: &Origin) -> Result<Self, String> {
        let name = format!("{}{:016x}", prefix_of(origin), origin.start);
        let memory = find_controller("memory", own.memory, own.unified.as_deref(), &name)?;
        let cpu = find_controller("cpu", own.cpu, own.unified.as_deref(), &name);
        let cpu = cpu.inspect_err(|_| remove(memory.path()))?;
        // Few jobs ask for it.
        let pids = find_controller("pids", own.pids, own.unified.as_deref(), &name).ok();
        let is_pure = matches!((&memory, &cpu), (Hierarchy::V2(_), Hierarchy::V2(_)));
        // A help, not a need.
        let unified = own.unified.filter(|_| !is_pure).map(|group| group.join(&name));
        let unified = unified.filter(|base| make(base).is_ok() && base.join("cgroup.kill").exists());
        let groups = Self { memory, cpu, pids, unified };
        // That they can be made is known now. Most nodes never need any.
        for base in groups.bases() {
            let _ = fs::remove_dir(base);
        }
        Ok(groups)
    }

    /// Makes the directories of all pods' groups, where they are not there yet.
    fn open(&self) -> io::Result<()> {
        let pids = self.pids.as_ref().map(|hierarchy| (hierarchy, "pids"));
        for (hierarchy, controller) in [(&self.memory, "memory"), (&self.cpu, "cpu")].into_iter().chain(pids) {
            make(hierarchy.path())?;
            if let Hierarchy::V2(base) = hierarchy {
                hand_down(base, controller)?;
            }
        }
        self.unified.iter().try_for_each(|base| make(base))
    }

    /// The directories of all pods' groups: whatever lives below any of them is this node's.
    pub(super) fn bases(&self) -> Vec<PathBuf> {
        each_once(&self.memory, &self.cpu, self.pids.as_ref(), self.unified.as_deref())
    }

    /// Whether a number of processes can be enforced.
    pub(super) fn can_count_processes(&self) -> bool {
        self.pids.is_some()
    }

    /// Makes a group that holds its processes to these bounds. Blocks.
    ///
    /// # Errors
    /// It cannot be made. Nothing of it is left.
    pub(super) fn make(&self, pod: &str, bounds: Bounds) -> io::Result<Group> {
        let group = Group {
            memory: self.memory.of(pod),
            cpu: self.cpu.of(pod),
            pids: self.pids.as_ref().filter(|_| bounds.processes.is_some()).map(|hierarchy| hierarchy.of(pod)),
            unified: self.unified.as_ref().map(|base| base.join(pod)),
        };
        self.open()?;
        let made = group.dirs().iter().try_for_each(|dir| make(dir)).and_then(|()| group.limit(bounds));
        if made.is_err() {
            group.dirs().iter().for_each(|dir| remove(dir));
        }
        made.map(|()| group)
    }

    /// Kills and removes what earlier starts of this node have left. Blocks.
    pub(super) fn clear_earlier(&self, origin: &Origin) {
        self.bases().iter().for_each(|base| clear_beside(base, origin));
    }

    /// Removes this start's directories. Blocks.
    pub(super) fn remove(&self) {
        self.bases().iter().for_each(|base| kill_and_remove(base));
    }
}

/// Kills and removes what earlier starts of this node have left beside this start's directory. Blocks.
pub(super) fn clear_beside(base: &Path, origin: &Origin) {
    let is_earlier = |other: &PathBuf| {
        let name = other.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        *other != base && name.starts_with(&prefix_of(origin))
    };
    let siblings = base.parent().map(subdirectories).unwrap_or_default();
    siblings.iter().filter(|other| is_earlier(other)).for_each(|other| kill_and_remove(other));
}

/// This start's directory in the group `above`.
pub(super) fn base_in(above: &Path, origin: &Origin) -> PathBuf {
    above.join(format!("{}{:016x}", prefix_of(origin), origin.start))
}

fn prefix_of(origin: &Origin) -> String {
    format!("flockwork-{:016x}-", origin.directory)
}

/// Ends a group and those below it for good. Blocks.
pub(super) fn kill_and_remove(dir: &Path) {
    kill_all_in(dir);
    remove(dir);
}

impl Group {
    fn dirs(&self) -> Vec<PathBuf> {
        each_once(&self.memory, &self.cpu, self.pids.as_ref(), self.unified.as_deref())
    }

    fn limit(&self, Bounds { cpus, memory, processes }: Bounds) -> io::Result<()> {
        if let (Some(processes), Some(pids)) = (processes, &self.pids) {
            // The same file in both versions.
            fs::write(pids.path().join("pids.max"), processes.to_string())?;
        }
        if memory.bytes > 0 {
            let bytes = memory.bytes.to_string();
            match &self.memory {
                Hierarchy::V1(dir) => {
                    fs::write(dir.join("memory.limit_in_bytes"), &bytes)?;
                    // With swap, in all. Not every kernel counts it.
                    let _ = fs::write(dir.join("memory.memsw.limit_in_bytes"), &bytes);
                }
                Hierarchy::V2(dir) => {
                    fs::write(dir.join("memory.max"), &bytes)?;
                    let _ = fs::write(dir.join("memory.swap.max"), "0");
                    // Half a pod is of no use to anybody.
                    let _ = fs::write(dir.join("memory.oom.group"), "1");
                }
            }
        }
        if cpus.millis > 0 {
            let quota = (u64::from(cpus.millis) * CPU_PERIOD_US / 1_000).max(LEAST_CPU_QUOTA_US);
            match &self.cpu {
                Hierarchy::V1(dir) => {
                    fs::write(dir.join("cpu.cfs_period_us"), CPU_PERIOD_US.to_string())?;
                    fs::write(dir.join("cpu.cfs_quota_us"), quota.to_string())?;
                }
                Hierarchy::V2(dir) => fs::write(dir.join("cpu.max"), format!("{quota} {CPU_PERIOD_US}"))?,
            }
        }
        Ok(())
    }

    /// Has `command` run in the group from its first instruction on.
    ///
    /// # Errors
    /// The group is not there any more.
    pub(super) fn apply(&self, command: &mut Command) -> io::Result<()> {
        let mut doors = Vec::new();
        for dir in self.dirs() {
            doors.push(OwnedFd::from(File::options().write(true).open(dir.join("cgroup.procs"))?));
        }
        let in_child = move || {
            for door in &doors {
                // "0" is whoever writes it.
                rustix::io::write(door, b"0")?;
            }
            Ok(())
        };
        #[expect(
            unsafe_code,
            reason = "between fork and exec only system calls are made; nothing is allocated or locked"
        )]
        // SAFETY: `write` is async-signal-safe, and the closure uses only what it was given before the fork.
        unsafe {
            command.pre_exec(in_child);
        }
        Ok(())
    }

    /// Kills whoever is left in it, reads what it has seen, and removes it. Blocks until all are gone.
    pub(super) fn end(self) -> Seen {
        match &self.unified {
            Some(dir) => kill_all_in(dir),
            None => kill_all_in(self.memory.path()),
        }
        let seen = self.seen();
        self.dirs().iter().for_each(|dir| remove(dir));
        seen
    }

    fn seen(&self) -> Seen {
        let (peak, kills) = match &self.memory {
            Hierarchy::V1(dir) => (dir.join("memory.max_usage_in_bytes"), dir.join("memory.oom_control")),
            Hierarchy::V2(dir) => (dir.join("memory.peak"), dir.join("memory.events")),
        };
        let statistics = self.unified.as_deref().unwrap_or(self.cpu.path()).join("cpu.stat");
        Seen {
            usage: Usage {
                cpu_ms: entry_in(&statistics, "usage_usec").map(|us| us / 1_000),
                peak_memory_bytes: fs::read_to_string(peak).ok().and_then(|text| text.trim().parse().ok()),
            },
            memory_kills: entry_in(&kills, "oom_kill").unwrap_or(0),
        }
    }
}

/// The directories of several hierarchies, some of which may be one.
fn each_once(memory: &Hierarchy, cpu: &Hierarchy, pids: Option<&Hierarchy>, unified: Option<&Path>) -> Vec<PathBuf> {
    let all = [memory.path(), cpu.path()].into_iter().chain(pids.map(Hierarchy::path)).chain(unified);
    let mut dirs: Vec<PathBuf> = Vec::new();
    for dir in all {
        if !dirs.iter().any(|known| known == dir) {
            dirs.push(dir.to_owned());
        }
    }
    dirs
}

/// Where groups with this controller can be made: below `v1`, its own hierarchy, or below the one of version 2.
fn find_controller(
    controller: &str,
    v1: Option<PathBuf>,
    unified: Option<&Path>,
    name: &str,
) -> Result<Hierarchy, String> {
    if let Some(own) = v1 {
        let base = own.join(name);
        return match make(&base) {
            Ok(()) => Ok(Hierarchy::V1(base)),
            Err(error) => Err(format!("{} cannot be made: {error}", base.display())),
        };
    }
    let own = unified.ok_or("no control groups are mounted")?;
    let offered = fs::read_to_string(own.join("cgroup.controllers")).unwrap_or_default();
    if !offered.split_whitespace().any(|one| one == controller) {
        return Err(format!("{} has no {controller} controller: it is not delegated to this node", own.display()));
    }
    let cannot = |error: io::Error| format!("the {controller} controller of {} cannot be used: {error}", own.display());
    hand_down(own, controller)
        .or_else(|_| move_into_leaf(own).and_then(|()| hand_down(own, controller)))
        .map_err(cannot)?;
    let base = own.join(name);
    make(&base).and_then(|()| hand_down(&base, controller)).map_err(cannot)?;
    Ok(Hierarchy::V2(base))
}

/// Gives a controller to the groups below this one.
fn hand_down(group: &Path, controller: &str) -> io::Result<()> {
    let control = group.join("cgroup.subtree_control");
    if fs::read_to_string(&control)?.split_whitespace().any(|one| one == controller) {
        return Ok(());
    }
    fs::write(control, format!("+{controller}"))
}

/// Moves this process out of the way, if it is alone in its group.
fn move_into_leaf(group: &Path) -> io::Result<()> {
    let me = std::process::id().to_string();
    let members = fs::read_to_string(group.join("cgroup.procs"))?;
    if members.split_whitespace().any(|pid| pid != me) {
        return Err(io::Error::other("this node shares its group with other processes"));
    }
    let leaf = group.join("node");
    make(&leaf)?;
    fs::write(leaf.join("cgroup.procs"), me)
}

pub(super) fn make(dir: &Path) -> io::Result<()> {
    match fs::create_dir(dir) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Removes a group, with those that its processes may have made below it, as soon as nobody is in it.
fn remove(dir: &Path) {
    subdirectories(dir).iter().for_each(|below| remove(below));
    for _ in 0..LOOKS {
        match fs::remove_dir(dir) {
            Err(error) if error.kind() != ErrorKind::NotFound => std::thread::sleep(BETWEEN_LOOKS),
            _ => return,
        }
    }
    tracing::warn!(group = %dir.display(), "a control group cannot be removed: the next start of this node tries again");
}

/// Kills all processes in a group and below it but this one, also those that were just being made. Blocks until they are
/// gone.
pub(super) fn kill_all_in(dir: &Path) {
    let myself = rustix::process::getpid();
    for _ in 0..LOOKS {
        let mut members = members_of(dir);
        let is_in_it = members.contains(&myself);
        members.retain(|pid| *pid != myself);
        if members.is_empty() {
            return;
        }
        let kill_at_once = || {
            let mut file = File::options().write(true).open(dir.join("cgroup.kill"))?;
            file.write_all(b"1")
        };
        if is_in_it || kill_at_once().is_err() {
            members.into_iter().for_each(|pid| kill_if_in(pid, dir));
        }
        std::thread::sleep(BETWEEN_LOOKS);
    }
}

/// The number might have passed to another process since the look: a pidfd holds on to one, so a second look makes sure.
fn kill_if_in(pid: Pid, dir: &Path) {
    if let Ok(process) = rustix::process::pidfd_open(pid, PidfdFlags::empty())
        && members_of(dir).contains(&pid)
    {
        let _ = rustix::process::pidfd_send_signal(&process, Signal::KILL);
    }
}

pub(super) fn members_of(dir: &Path) -> Vec<Pid> {
    let listed = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    let mut members: Vec<Pid> =
        listed.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok().filter(|pid| *pid > 1)?)).collect();
    for below in subdirectories(dir) {
        members.extend(members_of(&below));
    }
    members
}

fn subdirectories(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

fn entry_in(file: &Path, name: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_made_where_the_machine_delegates_them() {
        let root = tempfile::tempdir().unwrap();
        let own = root.path().to_owned();
        let nothing = OwnGroups { unified: None, memory: None, cpu: None, pids: None };
        let origin = Origin { directory: 1, start: 2 };
        assert!(Groups::find(nothing, &origin).unwrap_err().contains("no control groups"));
        let unified = || OwnGroups { unified: Some(own.clone()), memory: None, cpu: None, pids: None };
        fs::write(own.join("cgroup.controllers"), "cpu io\n").unwrap();
        assert!(Groups::find(unified(), &origin).unwrap_err().contains("memory"), "a controller is missing");
        // A file is no control group, but shows what would be asked of one.
        fs::write(own.join("cgroup.controllers"), "cpu io memory\n").unwrap();
        fs::write(own.join("cgroup.subtree_control"), "cpu memory\n").unwrap();
        let base = own.join("flockwork-0000000000000001-0000000000000002");
        fs::create_dir(&base).unwrap();
        fs::write(base.join("cgroup.subtree_control"), "cpu memory\n").unwrap();
        let groups = Groups::find(unified(), &origin).unwrap();
        assert_eq!(groups.bases(), std::slice::from_ref(&base), "one hierarchy for everything");
        assert!(!groups.can_count_processes());
        let bounds = Bounds { cpus: Cpus { millis: 1_500 }, memory: Memory { bytes: 1 << 20 }, processes: None };
        groups.make("pod", bounds).unwrap();
        let written = |name| fs::read_to_string(base.join("pod").join(name)).unwrap();
        assert_eq!((written("cpu.max"), written("memory.max")), ("150000 100000".into(), "1048576".into()));
    }

    #[test]
    fn what_a_group_has_seen_is_read_in_either_version() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        write("memory.peak", "4096\n");
        write("memory.events", "oom 2\noom_kill 1\noom_group_kill 1\n");
        write("cpu.stat", "usage_usec 12345\nuser_usec 1\n");
        write("memory.max_usage_in_bytes", "8192\n");
        write("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n");
        let at = dir.path().to_owned();
        let seen = |memory| Group { memory, cpu: Hierarchy::V2(at.clone()), pids: None, unified: None }.seen();
        let usage = |bytes| Usage { cpu_ms: Some(12), peak_memory_bytes: Some(bytes) };
        assert_eq!(seen(Hierarchy::V2(at.clone())), Seen { usage: usage(4096), memory_kills: 1 });
        assert_eq!(seen(Hierarchy::V1(at.clone())), Seen { usage: usage(8192), memory_kills: 3 });
    }
}
