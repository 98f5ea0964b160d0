//! Places at which a node can be made to die or to freeze, so that tests can show what becomes of its jobs.
//!
//! A death by kill -9 can come between any two steps, and most of those gaps last for microseconds: whoever kills from
//! outside never hits them. So a debug build looks at the environment variable `FLOCKWORK_DIE_AT`, which names one
//! step of an attempt's life, and kills itself there, as the kernel would; with `FLOCKWORK_FREEZE_AT` it stops there, as by
//! kill -STOP, the first time that it comes by. In a release build there is nothing of this.

/// A step of an attempt's life, at this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A record with a new claim is about to be written to the disk.
    Claim,
    /// The claim is safe, and its pod about to be started.
    Start,
    /// All is ready for the pod's process, which does not run yet.
    Launch,
    /// The pod's process runs, and nobody knows of it: neither the guard nor the driver.
    Spawn,
    /// The driver hears that the pod runs, and nobody else does.
    Running,
    /// The pod has ended, and nothing of what it left was gathered.
    Exit,
    /// The driver hears of the end, and nobody else does.
    Report,
    /// The record with the end is about to be written to the disk.
    Save,
}

impl Step {
    /// Every step, in order.
    pub const ALL: [Self; 8] =
        [Self::Claim, Self::Start, Self::Launch, Self::Spawn, Self::Running, Self::Exit, Self::Report, Self::Save];

    /// As the variable names it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Claim => "claim",
            Self::Start => "start",
            Self::Launch => "launch",
            Self::Spawn => "spawn",
            Self::Running => "running",
            Self::Exit => "exit",
            Self::Report => "report",
            Self::Save => "save",
        }
    }
}

/// Dies or freezes here, if that was asked for.
#[cfg(debug_assertions)]
#[expect(clippy::disallowed_methods, reason = "the thread is to stand still")]
pub(crate) fn pass(step: Step) {
    use std::sync::atomic::{AtomicBool, Ordering};

    use rustix::process::{Signal, getpid, kill_process};

    static HAS_FROZEN: AtomicBool = AtomicBool::new(false);
    let is_asked = |variable| std::env::var_os(variable).is_some_and(|asked| asked == step.as_str());
    // Should it fail, the node lives, and the test that waits for its death says so.
    if is_asked("FLOCKWORK_DIE_AT") {
        tracing::warn!(step = step.as_str(), "dying here, as was asked");
        let _ = kill_process(getpid(), Signal::KILL);
    }
    if is_asked("FLOCKWORK_FREEZE_AT") && !HAS_FROZEN.swap(true, Ordering::Relaxed) {
        tracing::warn!(step = step.as_str(), "freezing here, as was asked");
        let mut last = std::time::Instant::now();
        let mut runs_on = kill_process(getpid(), Signal::STOP).is_ok();
        // Another thread may take the signal, and this one run on for a moment: it is over when time has leapt.
        while runs_on {
            let now = std::time::Instant::now();
            runs_on = now.duration_since(last) < std::time::Duration::from_millis(20);
            last = now;
        }
    }
}

/// Does nothing.
#[cfg(not(debug_assertions))]
pub(crate) fn pass(_step: Step) {}
