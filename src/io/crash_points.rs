//! Places at which a node can be made to die, so that tests can show what becomes of its jobs.
//!
//! A death by kill -9 can come between any two steps, and most of those gaps last for microseconds: whoever kills from
//! outside never hits them. So a debug build looks at the environment variable `FLOCKWORK_DIE_AT`, which names one
//! step of an attempt's life, and kills itself there, as the kernel would. In a release build there is nothing of this.

/// A step of an attempt's life, at this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A record with a new claim is about to be written to the disk.
    Claim,
    /// The claim is safe, and its pod about to be started.
    Start,
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
    pub const ALL: [Self; 7] =
        [Self::Claim, Self::Start, Self::Spawn, Self::Running, Self::Exit, Self::Report, Self::Save];

    /// As the variable names it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Claim => "claim",
            Self::Start => "start",
            Self::Spawn => "spawn",
            Self::Running => "running",
            Self::Exit => "exit",
            Self::Report => "report",
            Self::Save => "save",
        }
    }
}

/// Dies here, if that was asked for.
#[cfg(debug_assertions)]
pub(crate) fn pass(step: Step) {
    if std::env::var_os("FLOCKWORK_DIE_AT").is_some_and(|asked| asked == step.as_str()) {
        tracing::warn!(step = step.as_str(), "dying here, as was asked");
        // Should it fail, the node lives, and the test that waits for its death says so.
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}

/// Dies nowhere.
#[cfg(not(debug_assertions))]
pub(crate) fn pass(_step: Step) {}
