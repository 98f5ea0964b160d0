//! What this machine has, and how busy it is.
//!
//! "This machine" is what the process may use: the processors it may run on and the memory there is, or less
//! where a control group (a container, a service with limits) grants less. Limits apply at every level of the
//! hierarchy, so each is looked at and the tightest counts. Both versions of Linux's control groups are
//! understood, wherever they are mounted.
//!
//! Everything is read from small text files that the kernel makes up on the spot; a sample takes a fifth
//! of a millisecond. A file that is missing, or says something strange, is a thing not known, and never a failure: no
//! limit, no load, no memory. What is not known of the memory counts as none, so that only jobs that ask for no
//! memory come here.

use std::fs;
use std::path::{Component, Path, PathBuf};

use crate::model::resources::{Cpus, Memory, Resources};
use crate::model::time::Timestamp;

/// How busy the machine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MachineLoad {
    /// Use of the processors since the sample before, in thousandths of all of them.
    pub cpu_permille: u16,
    /// Memory that can be had without swapping, in bytes.
    pub memory_available_bytes: u64,
    /// Room on the data directory's disk for this process, in bytes.
    pub disk_available_bytes: u64,
}

/// The machine, watched.
#[derive(Debug)]
pub struct Machine {
    /// "/", except in tests.
    root: PathBuf,
    disk: PathBuf,
    groups: Groups,
    before: Option<Usage>,
}

/// The control groups that this process is in, from the innermost out.
#[derive(Debug, Default)]
struct Groups {
    cpu: Vec<PathBuf>,
    memory: Vec<PathBuf>,
}

/// The innermost control groups that this process is in, where they are mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnGroups {
    /// In the one hierarchy of version 2.
    pub unified: Option<PathBuf>,
    /// In the memory controller's hierarchy of version 1.
    pub memory: Option<PathBuf>,
    /// In the processor controller's.
    pub cpu: Option<PathBuf>,
    /// In that of the controller of the number of processes.
    pub pids: Option<PathBuf>,
}

impl OwnGroups {
    /// Looks now: a process can be moved.
    pub fn of_this_process() -> Self {
        let root = Path::new("/");
        let read = |path| fs::read_to_string(root.join(path)).unwrap_or_default();
        let (memberships, mounts) = (read("proc/self/cgroup"), read("proc/self/mountinfo"));
        let innermost = |controller| levels(root, &memberships, &mounts, controller).into_iter().next();
        Self {
            unified: innermost(None),
            memory: innermost(Some("memory")).filter(|group| group.join("memory.limit_in_bytes").exists()),
            cpu: innermost(Some("cpu")).filter(|group| group.join("cpu.cfs_quota_us").exists()),
            // Its root has no file of its own to be known by.
            pids: innermost(Some("pids")).filter(|group| group.join("cgroup.procs").exists()),
        }
    }
}

/// A reading of a counter of use. In any unit: only ratios are taken.
#[derive(Debug, Clone, Copy)]
struct Usage {
    busy: u64,
    total: u64,
}

impl Machine {
    /// Watches this machine, and the disk that holds `disk`.
    pub fn new(disk: &Path) -> Self {
        Self::under(Path::new("/"), disk)
    }

    fn under(root: &Path, disk: &Path) -> Self {
        let groups = Groups::of_this_process(root);
        let mut machine = Self { root: root.to_owned(), disk: disk.to_owned(), groups, before: None };
        machine.before = machine.usage();
        machine
    }

    /// What there is for jobs. One slot for each processor, or part of one.
    pub fn capacity(&self) -> Resources {
        let granted = self.groups.cpu_quota_millis().unwrap_or(u64::MAX);
        let millis = u32::try_from(granted.min(self.processors() * 1_000)).unwrap_or(u32::MAX).max(1);
        let memory = self.memory_total().min(self.groups.memory_limit());
        Resources { cpus: Cpus { millis }, memory: Memory { bytes: memory }, slots: millis.div_ceil(1_000) }
    }

    /// How busy it is now.
    pub fn sample(&mut self) -> MachineLoad {
        let now = self.usage();
        let cpu_permille = match (self.before, now) {
            (Some(before), Some(now)) => {
                let total = now.total.saturating_sub(before.total);
                let busy = now.busy.saturating_sub(before.busy).min(total);
                u16::try_from((u128::from(busy) * 1_000).checked_div(u128::from(total)).unwrap_or(0)).unwrap_or(1_000)
            }
            (Some(_) | None, None) | (None, Some(_)) => 0,
        };
        self.before = now.or(self.before);
        let free = self.meminfo("MemAvailable").or_else(|| self.meminfo("MemFree")).unwrap_or(0);
        MachineLoad {
            cpu_permille,
            memory_available_bytes: free.min(self.groups.memory_available()),
            disk_available_bytes: available_bytes(&self.disk),
        }
    }

    /// How many processors this process may run on.
    fn processors(&self) -> u64 {
        let status = fs::read_to_string(self.root.join("proc/self/status")).unwrap_or_default();
        let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        match allowed.map(count_in_ranges) {
            Some(count) if count > 0 => count,
            _ => std::thread::available_parallelism().map_or(1, |count| count.get() as u64),
        }
    }

    fn memory_total(&self) -> u64 {
        self.meminfo("MemTotal").unwrap_or(0)
    }

    fn meminfo(&self, name: &str) -> Option<u64> {
        let text = fs::read_to_string(self.root.join("proc/meminfo")).ok()?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        let kibibytes: u64 = value.trim().trim_end_matches("kB").trim_end().parse().ok()?;
        kibibytes.checked_mul(1 << 10)
    }

    /// Counts the time of all processors since the machine started.
    fn usage(&self) -> Option<Usage> {
        let text = fs::read_to_string(self.root.join("proc/stat")).ok()?;
        let counters = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
        // user nice system idle iowait irq softirq steal; what follows is contained in the first two.
        let times: Vec<u64> = counters.split_whitespace().take(8).map_while(|time| time.parse().ok()).collect();
        let total = times.iter().fold(0, |sum: u64, time| sum.saturating_add(*time));
        let idle = times.get(3)?.saturating_add(times.get(4).copied().unwrap_or(0));
        Some(Usage { busy: total.saturating_sub(idle), total })
    }
}

/// Counts the processes that the kernel has killed for want of memory, where they could be pods of this node.
#[derive(Debug)]
pub struct MemoryKills {
    file: PathBuf,
    /// Where they were killed, for people.
    pub scope: &'static str,
}

impl MemoryKills {
    /// Looks at this process's own control group, which its pods are in as well; else at the whole machine.
    pub fn around_this_process() -> Self {
        Self::under(Path::new("/"))
    }

    fn under(root: &Path) -> Self {
        let groups = Groups::of_this_process(root);
        let own = groups.memory.first().into_iter();
        let files = own.flat_map(|level| ["memory.events", "memory.oom_control"].map(|file| level.join(file)));
        match files.into_iter().find(|file| kills_in(file).is_some()) {
            Some(file) => Self { file, scope: "in this node's control group" },
            None => Self { file: root.join("proc/vmstat"), scope: "on this machine" },
        }
    }

    /// How many there were so far. Nothing where the kernel does not say.
    pub fn count(&self) -> Option<u64> {
        kills_in(&self.file)
    }
}

fn kills_in(file: &Path) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

impl Groups {
    fn of_this_process(root: &Path) -> Self {
        let read = |path| fs::read_to_string(root.join(path)).unwrap_or_default();
        let (memberships, mounts) = (read("proc/self/cgroup"), read("proc/self/mountinfo"));
        // Both versions may be in use side by side, with each controller in one of them.
        let with_controller = |controller, file_of_v1| {
            let v1 = levels(root, &memberships, &mounts, Some(controller));
            let is_there = v1.iter().any(|level| level.join(file_of_v1).exists());
            if is_there { v1 } else { levels(root, &memberships, &mounts, None) }
        };
        Self {
            cpu: with_controller("cpu", "cpu.cfs_quota_us"),
            memory: with_controller("memory", "memory.limit_in_bytes"),
        }
    }

    /// The tightest bandwidth limit, in thousandths of a processor.
    fn cpu_quota_millis(&self) -> Option<u64> {
        let millis = |quota: u64, period: u64| quota.checked_mul(1_000)?.checked_div(period);
        let limits = self.cpu.iter().filter_map(|level| {
            if let Ok(text) = fs::read_to_string(level.join("cpu.max")) {
                let (quota, period) = text.trim().split_once(' ')?;
                return millis(quota.parse().ok()?, period.parse().ok()?);
            }
            // No limit is written as -1 here, and so is no number.
            millis(number_in(&level.join("cpu.cfs_quota_us"))?, number_in(&level.join("cpu.cfs_period_us"))?)
        });
        limits.min()
    }

    fn memory_limit(&self) -> u64 {
        self.memory.iter().filter_map(|level| memory_limit_of(level)).min().unwrap_or(u64::MAX)
    }

    /// What the limits leave. Page cache that nobody has touched for a while goes when memory is needed, and so
    /// does not count as used.
    fn memory_available(&self) -> u64 {
        let left = self.memory.iter().filter_map(|level| {
            // Version 1 writes "no limit" as a number. Where there is none, nothing else needs to be read: what a group
            // uses is counted together from all processors for every reader.
            let limit = memory_limit_of(level).filter(|limit| *limit < NO_LIMIT)?;
            let used =
                number_in(&level.join("memory.current")).or_else(|| number_in(&level.join("memory.usage_in_bytes")))?;
            let statistics = fs::read_to_string(level.join("memory.stat")).unwrap_or_default();
            let of = |name: &str| {
                statistics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
            };
            let idle_cache: u64 = of("total_inactive_file").or_else(|| of("inactive_file")).unwrap_or(0);
            Some(limit.saturating_sub(used.saturating_sub(idle_cache)))
        });
        left.min().unwrap_or(u64::MAX)
    }
}

/// No machine has so many bytes.
const NO_LIMIT: u64 = 1 << 62;

fn memory_limit_of(level: &Path) -> Option<u64> {
    number_in(&level.join("memory.max")).or_else(|| number_in(&level.join("memory.limit_in_bytes")))
}

/// The directories of this process's group and of all that enclose it, as far as they are mounted here. A
/// hierarchy of version 1 has its controllers' names, the one of version 2 has none.
fn levels(root: &Path, memberships: &str, mounts: &str, controller: Option<&str>) -> Vec<PathBuf> {
    let group = memberships.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, group) = (fields.next()?, fields.next()?, fields.next()?);
        let is_it = match controller {
            Some(name) => controllers.split(',').any(|one| one == name),
            None => controllers.is_empty(),
        };
        is_it.then_some(group)
    });
    let mount = mounts.lines().find_map(|line| {
        let (place, kind) = line.split_once(" - ")?;
        let mut place = place.split(' ').skip(3);
        let (mounted, at) = (place.next()?, place.next()?);
        let mut kind = kind.split(' ');
        let is_it = match controller {
            Some(name) => kind.next()? == "cgroup" && kind.nth(1)?.split(',').any(|one| one == name),
            None => kind.next()? == "cgroup2",
        };
        is_it.then_some((mounted, at))
    });
    let (Some(group), Some((mounted, at))) = (group, mount) else {
        return Vec::new();
    };
    let top = root.join(at.trim_start_matches('/'));
    // In a container the group is often named as the host sees it, while only its own directory is mounted.
    let below = Path::new(group).strip_prefix(mounted).unwrap_or(Path::new(""));
    let innermost = top.join(below);
    // A process that was moved out of its namespace's sight has a group that begins with "..".
    let is_visible = innermost.is_dir() && !below.components().any(|part| part == Component::ParentDir);
    let innermost = if is_visible { innermost } else { top.clone() };
    innermost.ancestors().take_while(|level| level.starts_with(&top)).map(Path::to_owned).collect()
}

fn number_in(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// How many numbers a list such as "0-3,8" has.
fn count_in_ranges(list: &str) -> u64 {
    let count = |range: &str| -> Option<u64> {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        Some(u64::from(last.checked_sub(first)?) + 1)
    };
    list.trim().split(',').filter_map(count).sum()
}

fn available_bytes(path: &Path) -> u64 {
    rustix::fs::statvfs(path).map_or(0, |disk| disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// When the machine was started, by its wall clock. Nothing where the kernel does not say.
pub fn booted_at() -> Option<Timestamp> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    let seconds: u64 = text.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok())?;
    Some(Timestamp(seconds.checked_mul(1_000)?))
}

/// The machine's own name, without its domain, where it has one.
pub fn hostname() -> Option<String> {
    let system = rustix::system::uname();
    let name = system.nodename().to_str().ok()?.split('.').next()?.trim();
    (!name.is_empty()).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    /// A machine with 4 processors and 8 GiB, of which 6 are available.
    fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        write(&root, "proc/self/status", "Name:\tx\nCpus_allowed_list:\t0-2,7\n");
        write(&root, "proc/meminfo", "MemTotal:        8388608 kB\nMemFree: 1 kB\nMemAvailable:    6291456 kB\n");
        write(&root, "proc/stat", "cpu  100 0 100 800 0 0 0 0 0 0\ncpu0 1 2 3 4\n");
        for (path, text) in files {
            write(&root, path, text);
        }
        root
    }

    fn write(root: &tempfile::TempDir, path: &str, text: &str) {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn watch(root: &tempfile::TempDir) -> Machine {
        Machine::under(root.path(), root.path())
    }

    #[test]
    fn without_limits_everything_is_ours() {
        let root = machine(&[]);
        let mut machine = watch(&root);
        let expected = Resources { cpus: Cpus::whole(4), memory: Memory { bytes: 8 * GIB }, slots: 4 };
        assert_eq!(machine.capacity(), expected);
        write(&root, "proc/stat", "cpu  150 0 150 1000 100 0 0 0 0 0\n");
        let load = machine.sample();
        assert_eq!((load.cpu_permille, load.memory_available_bytes), (250, 6 * GIB));
        assert!(load.disk_available_bytes > 0);
        assert_eq!(machine.sample().cpu_permille, 0, "no time has passed");
    }

    #[test]
    fn the_tightest_group_of_version_2_counts() {
        let root = machine(&[
            ("proc/self/cgroup", "0::/outer/inner\n"),
            ("proc/self/mountinfo", "31 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw\n"),
            ("sys/fs/cgroup/outer/cpu.max", "150000 100000\n"),
            ("sys/fs/cgroup/outer/memory.max", "max\n"),
            ("sys/fs/cgroup/outer/inner/cpu.max", "max 100000\n"),
            ("sys/fs/cgroup/outer/inner/memory.max", "2147483648\n"),
            ("sys/fs/cgroup/outer/inner/memory.current", "1610612736\n"),
            ("sys/fs/cgroup/outer/inner/memory.stat", "anon 5\ninactive_file 536870912\n"),
        ]);
        let mut machine = watch(&root);
        let expected = Resources { cpus: Cpus { millis: 1_500 }, memory: Memory { bytes: 2 * GIB }, slots: 2 };
        assert_eq!(machine.capacity(), expected);
        assert_eq!(machine.sample().memory_available_bytes, GIB);
    }

    #[test]
    fn in_a_container_of_version_1_only_its_own_group_is_mounted() {
        let root = machine(&[
            ("proc/self/cgroup", "4:memory:/docker/ab12\n3:cpu,cpuacct:/docker/ab12\n0::/\n"),
            (
                "proc/self/mountinfo",
                "40 30 0:35 /docker/ab12 /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n\
                 41 30 0:36 /docker/ab12 /sys/fs/cgroup/cpu ro master:2 - cgroup cgroup rw,cpu,cpuacct\n\
                 42 30 0:37 / /sys/fs/cgroup/unified ro - cgroup2 cgroup2 rw\n",
            ),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "1073741824\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "536870912\n"),
            ("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n"),
            ("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"),
        ]);
        let mut machine = watch(&root);
        let expected = Resources { cpus: Cpus::whole(4), memory: Memory { bytes: GIB }, slots: 4 };
        assert_eq!(machine.capacity(), expected);
        assert_eq!(machine.sample().memory_available_bytes, GIB / 2);
    }

    #[test]
    fn a_machine_that_tells_nothing_or_nonsense_has_a_processor_and_no_memory() {
        let silent = tempfile::tempdir().unwrap();
        let mut machine_of_nothing = watch(&silent);
        assert!(machine_of_nothing.capacity().cpus.millis >= 1_000);
        assert_eq!(machine_of_nothing.capacity().memory.bytes, 0);
        assert_eq!(machine_of_nothing.sample().cpu_permille, 0);

        let odd = machine(&[
            ("proc/self/status", "Cpus_allowed_list:\t7-2,x,\n"),
            ("proc/meminfo", "MemTotal: 99999999999999999999 kB\nMemAvailable\n"),
            ("proc/stat", "cpu  18446744073709551615 18446744073709551615 1\n"),
            ("proc/self/cgroup", "::\n0::/../..\n"),
            ("proc/self/mountinfo", "- cgroup2\n1 2 3 / /sys/fs/cgroup rw - cgroup2\n"),
            ("sys/fs/cgroup/cpu.max", "5 0\n"),
        ]);
        let mut machine_of_nonsense = watch(&odd);
        assert!(machine_of_nonsense.capacity().cpus.millis >= 1_000);
        assert_eq!(machine_of_nonsense.sample().memory_available_bytes, 0);
    }

    #[test]
    fn kills_for_want_of_memory_are_counted_where_the_pods_are() {
        let whole = machine(&[("proc/vmstat", "oom_killed_not 9\noom_kill 4\n")]);
        let kills = MemoryKills::under(whole.path());
        assert_eq!((kills.count(), kills.scope), (Some(4), "on this machine"));

        let grouped = machine(&[
            ("proc/self/cgroup", "0::/outer/inner\n"),
            ("proc/self/mountinfo", "31 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw\n"),
            ("sys/fs/cgroup/outer/inner/memory.events", "low 0\noom 3\noom_kill 2\noom_group_kill 0\n"),
            ("proc/vmstat", "oom_kill 40\n"),
        ]);
        let kills = MemoryKills::under(grouped.path());
        assert_eq!((kills.count(), kills.scope), (Some(2), "in this node's control group"));
        assert_eq!(MemoryKills::under(tempfile::tempdir().unwrap().path()).count(), None);
    }

    #[test]
    fn this_machine_tells_something() {
        let mut here = Machine::new(Path::new("/"));
        let (capacity, load) = (here.capacity(), here.sample());
        assert!(capacity.cpus.millis > 0 && capacity.slots > 0 && load.cpu_permille <= 1_000);
        assert!(load.memory_available_bytes <= capacity.memory.bytes);
        assert!(hostname().is_none_or(|name| !name.is_empty() && !name.contains('.')));
    }
}
