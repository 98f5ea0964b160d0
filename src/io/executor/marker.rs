//! The mark that every pod process carries, and how to find those that carry it.
//!
//! A process group is not a fence: a program that calls `setsid` leaves it, and so does every daemon. What a
//! child does not shed by accident is its environment. So each pod is given `FLOCKWORK_POD`, which names the
//! node's directory, the node's start and the attempt, and whoever must know what is left of a pod reads the
//! environments that Linux shows in `/proc`.
//!
//! This is best effort, as a net under the process groups: a process that clears its environment or hides it
//! (another user's, or one that is not dumpable) is not found, nor is any where there is no `/proc`.

use std::fmt;
use std::fs;

use rustix::process::{Pid, PidfdFlags, Signal};

use crate::model::id::{Actor, AttemptKey, Dot, Generation, NodeId};

/// The environment variable that carries the mark.
const VARIABLE: &str = "FLOCKWORK_POD";

/// One start of one node's executor, as marks name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Origin {
    /// Of the directory; the same in every start.
    pub(super) directory: u64,
    /// Of the start.
    pub(super) start: u64,
}

/// The mark of one pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) origin: Origin,
    pub(super) key: AttemptKey,
}

impl Mark {
    /// The environment variable to give to the pod.
    pub(super) fn variable(&self) -> (&'static str, String) {
        (VARIABLE, self.to_string())
    }

    /// Reads what [`Display`](fmt::Display) wrote.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('/');
        let directory = u64::from_str_radix(parts.next()?, 16).ok()?;
        let start = u64::from_str_radix(parts.next()?, 16).ok()?;
        let job = parts.next()?.parse().ok()?;
        let claim = parse_claim(parts.next()?)?;
        Some(Self { origin: Origin { directory, start }, key: AttemptKey { job, claim } })
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.origin, self.key.job, claim_name(self.key.claim))
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}/{:016x}", self.directory, self.start)
    }
}

impl Origin {
    /// Reads what [`Display`](fmt::Display) wrote.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (directory, start) = text.split_once('/')?;
        let number = |digits| u64::from_str_radix(digits, 16).ok();
        Some(Self { directory: number(directory)?, start: number(start)? })
    }
}

/// A claim as a file name: node, generation and counter.
pub(super) fn claim_name(claim: Dot) -> String {
    format!("{}-{}-{}", claim.actor.node, claim.actor.generation.0, claim.counter)
}

fn parse_claim(text: &str) -> Option<Dot> {
    let mut parts = text.split('-');
    let node: NodeId = parts.next()?.parse().ok()?;
    let generation = Generation(parts.next()?.parse().ok()?);
    let counter = parts.next()?.parse().ok()?;
    Some(Dot { actor: Actor { node, generation }, counter })
}

/// Kills every process of this machine with a mark that `doomed` picks, and what is left of the group that it
/// leads. Blocks: it looks at every process. Answers with the marks found, one for each process.
pub(super) fn kill_marked(doomed: impl Fn(&Mark) -> bool) -> Vec<Mark> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    // A node may itself have been started by a job of its earlier self, one that was to restart it.
    let myself = rustix::process::getpid();
    let mut found = Vec::new();
    for entry in processes.flatten() {
        let pid = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
        let Some(pid) = pid else { continue };
        if pid != myself && mark_of(pid).is_some_and(|mark| doomed(&mark)) {
            found.extend(kill_if(pid, &doomed));
        }
    }
    found
}

/// The pid might have passed to another process since the look. A pidfd holds on to one process, so a second
/// look through it makes sure.
fn kill_if(pid: Pid, doomed: impl Fn(&Mark) -> bool) -> Option<Mark> {
    let process = rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok()?;
    let mark = mark_of(pid).filter(|mark| doomed(mark))?;
    if leads_its_group(pid) {
        // A failure means that it ended by itself, which is as good.
        let _ = rustix::process::kill_process_group(pid, Signal::KILL);
    }
    let _ = rustix::process::pidfd_send_signal(&process, Signal::KILL);
    Some(mark)
}

/// Asked of `/proc`: a group that was made outside of this process's namespace has no number here, and is shown as 0,
/// which the call for it has no word for.
fn leads_its_group(pid: Pid) -> bool {
    let pid = pid.as_raw_nonzero().to_string();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // Behind the program's name, which may contain anything, follow: the state, the parent, the group.
    let group = stat.rsplit(')').next().and_then(|fields| fields.split_whitespace().nth(2));
    group == Some(pid.as_str())
}

fn mark_of(pid: Pid) -> Option<Mark> {
    let environment = fs::read(format!("/proc/{}/environ", pid.as_raw_nonzero())).ok()?;
    environment
        .split(|byte| *byte == 0)
        .filter_map(|variable| variable.strip_prefix(VARIABLE.as_bytes())?.strip_prefix(b"="))
        .find_map(|value| Mark::parse(std::str::from_utf8(value).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::JobId;

    #[test]
    fn a_mark_is_read_as_it_is_written() {
        let claim = Dot { actor: Actor { node: NodeId(0xab), generation: Generation(7) }, counter: 9 };
        let origin = Origin { directory: u64::MAX, start: 1 };
        let mark = Mark { origin: origin.clone(), key: AttemptKey { job: JobId(3), claim } };
        assert_eq!(Mark::parse(&mark.variable().1), Some(mark));
        assert_eq!(Origin::parse(&origin.to_string()), Some(origin));
        assert_eq!(Mark::parse("1/2/3/4"), None);
    }
}
