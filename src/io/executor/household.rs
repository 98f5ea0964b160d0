//! The control group of the node and of all that it starts: whoever comes from here is known by it, whatever it sheds.
//!
//! A process can leave its process group, its session and its environment, and then nothing tells any more whose it is. A
//! control group it inherits, as everybody does, and cannot leave without the rights to. To make one for each pod costs
//! more than a short job, so the node makes one for itself and moves in before its first pod: what its pods start is in it
//! too, at no cost for any of them. Only pods with limits of their own have groups of their own (`groups`).
//!
//! The guard stays outside. When its node is gone, it kills whoever is left in the group: nothing outlives its node. While
//! the node lives, a process of unknown origin that is older than every pod that runs must be from one that has ended,
//! and is ended as well. One that is younger than some pod may be that one's, and is left alone until it has ended.
//!
//! It is done only by the `flockwork` program: a program that embeds a node may have children of its own. And only where
//! groups can be made: in the one hierarchy of version 2, also where that is empty beside version 1, or else in that of
//! version 1's `pids` controller.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rustix::process::{Pid, PidfdFlags, Signal};
use rustix::time::ClockId;

use super::groups::{self, Groups};
use super::guard::GuardProgram;
use super::marker::Origin;
use crate::io::machine::OwnGroups;

/// The group of this node.
#[derive(Debug)]
pub(super) struct Household {
    /// This start's directory, which may have the groups of single pods as well.
    base: PathBuf,
    /// In it, the group that the node is in.
    group: PathBuf,
    /// Where the node came from, and its guard stays.
    home: PathBuf,
}

/// A point of the time since the machine was started, as the kernel counts it for processes: in ticks of a hundredth of a
/// second, usually.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Tick(u64);

impl Tick {
    pub(super) fn now() -> Self {
        let now = rustix::time::clock_gettime(ClockId::Boottime);
        let per_second = rustix::param::clock_ticks_per_second();
        let (seconds, nanos) = (u64::try_from(now.tv_sec).unwrap_or(0), u64::try_from(now.tv_nsec).unwrap_or(0));
        Self(seconds * per_second + nanos * per_second / 1_000_000_000)
    }
}

impl Household {
    /// Makes the group, which nobody is in yet. `own` is where groups are made, as for [`groups::Groups`].
    ///
    /// # Errors
    /// For people: why there is none.
    pub(super) fn make(own: &OwnGroups, origin: &Origin) -> Result<Self, String> {
        let now = OwnGroups::of_this_process();
        let places = [(&own.unified, now.unified), (&own.pids, now.pids)];
        let mut why = "no control groups are mounted".to_owned();
        for (above, home) in places {
            let (Some(above), Some(home)) = (above, home) else { continue };
            let base = groups::base_in(above, origin);
            let group = base.join("all");
            match groups::make(&base).and_then(|()| groups::make(&group)) {
                Ok(()) if group.join("cgroup.procs").exists() => return Ok(Self { base, group, home }),
                Ok(()) => why = format!("{} is no control group", group.display()),
                Err(error) => why = format!("{} cannot be made: {error}", group.display()),
            }
        }
        Err(why)
    }

    /// Moves this process in. What it has started before stays where it is.
    ///
    /// # Errors
    /// It cannot be moved. Nothing of the group is left.
    pub(super) fn enter(&self) -> io::Result<()> {
        let entered = move_to(&self.group, std::process::id());
        if entered.is_err() {
            let _ = fs::remove_dir(&self.group);
            let _ = fs::remove_dir(&self.base);
        }
        entered
    }

    /// Whatever lives below this is the node's.
    pub(super) fn base(&self) -> &Path {
        &self.base
    }

    /// Where the guard is to be.
    pub(super) fn home(&self) -> &Path {
        &self.home
    }

    /// Kills whoever started before `bound`, but for this process and its own children. Says how many there were. Blocks.
    ///
    /// A process that was just forked for a pod is a child of this one, and its children are younger than the pod.
    pub(super) fn kill_older_than(&self, bound: Tick) -> usize {
        let is_meant = |pid: &Pid| origin_of(*pid).is_some_and(|of| of.started < bound && !of.is_ours);
        let older = groups::members_of(&self.group).into_iter().filter(is_meant);
        older.filter(|pid| self.kill_if_still(*pid, bound)).count()
    }

    /// The number might have passed to another process since the look: a pidfd holds on to one, so a second look makes sure.
    fn kill_if_still(&self, pid: Pid, bound: Tick) -> bool {
        let Ok(process) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else { return false };
        let is_it = groups::members_of(&self.group).contains(&pid)
            && origin_of(pid).is_some_and(|of| of.started < bound && !of.is_ours);
        is_it && rustix::process::pidfd_send_signal(&process, Signal::KILL).is_ok()
    }

    /// Kills and removes what earlier starts of this node have left. Blocks.
    pub(super) fn clear_earlier(&self, origin: &Origin) {
        groups::clear_beside(&self.base, origin);
    }

    /// Moves this process back, and ends whoever else is there. Blocks.
    pub(super) fn dissolve(&self) {
        if let Err(error) = move_to(&self.home, std::process::id()) {
            tracing::warn!(%error, group = %self.group.display(), "this node cannot leave its control group");
            groups::kill_all_in(&self.base);
            return;
        }
        groups::kill_and_remove(&self.base);
    }
}

/// The control groups below which nobody is but this node, and what it starts.
pub(super) fn bases_of(groups: Option<&Groups>, household: Option<&Household>) -> Vec<PathBuf> {
    let mut bases = groups.map(Groups::bases).unwrap_or_default();
    let shared = household.map(|household| household.base().to_owned()).filter(|base| !bases.contains(base));
    bases.extend(shared);
    bases
}

/// Makes the group of a node. Only where this process is nothing but a node, and has a guard that knows of groups.
pub(super) fn make(guard: &GuardProgram, own: &OwnGroups, origin: &Origin) -> Option<Household> {
    if *guard != GuardProgram::ThisProgram {
        return None;
    }
    Household::make(own, origin).map_err(|why| say_without(&why)).ok()
}

pub(super) fn enter(household: Household) -> Option<Household> {
    let entered = household.enter();
    entered.map(|()| household).map_err(|error| say_without(&error.to_string())).ok()
}

fn say_without(why: &str) {
    tracing::info!(
        why,
        "processes of jobs that leave their session and clear their environment can outlive them: no control group"
    );
}

/// Moves a process to a group. What is no control group has no such file, and gets none.
pub(super) fn move_to(group: &Path, process: u32) -> io::Result<()> {
    let mut door = fs::File::options().write(true).open(group.join("cgroup.procs"))?;
    door.write_all(process.to_string().as_bytes())
}

struct Descent {
    /// It is this process, or a child of it.
    is_ours: bool,
    started: Tick,
}

/// Nothing of a process that has ended, also if nobody has taken notice yet.
fn origin_of(pid: Pid) -> Option<Descent> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    // Behind the program's name, which may contain anything, follow: the state, the parent, and so on.
    let mut fields = stat.rsplit(')').next()?.split_whitespace();
    let (state, parent) = (fields.next()?, fields.next()?);
    let started = Tick(fields.nth(17)?.parse().ok()?);
    let is_ours = pid == rustix::process::getpid() || parent.parse() == Ok(std::process::id());
    (!matches!(state, "Z" | "X")).then_some(Descent { is_ours, started })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_tells_when_it_started_and_whose_child_it_is() {
        let before = Tick::now();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let after = Tick::now();
        let found = origin_of(Pid::from_child(&child)).unwrap();
        assert!(before <= found.started && found.started <= after, "{before:?} {:?} {after:?}", found.started);
        assert!(found.is_ours && origin_of(rustix::process::getpid()).unwrap().is_ours);
        assert!(!origin_of(Pid::INIT).unwrap().is_ours);
        child.kill().unwrap();
        while origin_of(Pid::from_child(&child)).is_some() {
            std::thread::yield_now();
        }
        child.wait().unwrap();
    }
}
