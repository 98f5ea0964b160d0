//! Telling pods that ran out of memory from those that were killed for another reason.
//!
//! A pod that the kernel kills for want of memory ends by SIGKILL, like one that somebody killed by hand, and the
//! kernel does not say whom it chose. It counts its victims, though. So the count is looked at when pods start, once a
//! second at the most, and again when one has been killed: where it has risen meanwhile, that is said, and no more.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::io::machine::MemoryKills;
use crate::model::attempt::Exit;

/// How old a count may be that a pod starts with.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What a shell makes of a child that was killed.
const CODE_OF_KILLED_CHILD: i32 = 137;

/// Watches the count.
#[derive(Debug)]
pub(super) struct MemoryWatch {
    kills: MemoryKills,
    last: Mutex<Option<(Instant, Option<u64>)>>,
}

impl MemoryWatch {
    pub(super) fn new() -> Self {
        Self { kills: MemoryKills::around_this_process(), last: Mutex::default() }
    }

    /// The count for a pod that starts now. Blocks for a moment.
    pub(super) fn count_at_start(&self) -> Option<u64> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        match *last {
            Some((at, count)) if now.duration_since(at) < LOOK_EVERY => count,
            _ => {
                let count = self.kills.count();
                *last = Some((now, count));
                count
            }
        }
    }

    /// What is known of memory and a pod's end. `at_start` is the count it started with. Blocks for a moment.
    pub(super) fn remark(&self, exit: Exit, at_start: Option<u64>) -> Option<String> {
        let was_killed = match exit {
            Exit::Signal(signal) => signal == rustix::process::Signal::KILL.as_raw(),
            Exit::Code(code) => code == CODE_OF_KILLED_CHILD,
            Exit::TimedOut => false,
        };
        if !was_killed {
            return None;
        }
        let (before, after) = (at_start?, self.kills.count()?);
        let victims = after.checked_sub(before).filter(|victims| *victims > 0)?;
        let processes = if victims == 1 { "process" } else { "processes" };
        let scope = self.kills.scope;
        Some(format!("out of memory: the kernel killed {victims} {processes} {scope} for want of memory meanwhile"))
    }
}
