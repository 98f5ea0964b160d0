//! How a command fails: one clear line, a hint, and an exit code that scripts can rely on.
//!
//! A [`Failure`] says whose fault it is, because that is what the exit code tells: the person's (usage, not
//! found, refused), the cluster's (nobody reachable) or flockwork's own. Output that nobody reads any more
//! (`flockwork ps | head`) is no failure at all, and is only carried this way to end the program early.

use std::fmt;
use std::io;

/// The exit codes of the program, apart from those that a job itself ends with.
pub(crate) mod exit {
    pub(crate) const SUCCESS: u8 = 0;
    pub(crate) const FAILED: u8 = 1;
    pub(crate) const USAGE: u8 = 2;
    pub(crate) const NOT_FOUND: u8 = 3;
    pub(crate) const REFUSED: u8 = 4;
    pub(crate) const UNREACHABLE: u8 = 5;
    pub(crate) const LESS_DURABLE: u8 = 6;
    pub(crate) const TIMED_OUT: u8 = 124;
    pub(crate) const INTERNAL: u8 = 125;
    pub(crate) const CANCELLED: u8 = 130;
}

/// Whose fault a failure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The command was understood, and what it stands for failed.
    Failed,
    /// The command line, the environment or the settings file is wrong. Nothing was done.
    Usage,
    /// There is no such job or node.
    NotFound,
    /// A node understood the request and will not carry it out. Nothing was changed.
    Refused,
    /// No node answered, or none was ready. A request that was under way may have been carried out.
    Unreachable,
    /// Flockwork's own: an answer that makes no sense, a file that cannot be written.
    Internal,
    /// Whoever read our output has stopped reading.
    OutputClosed,
}

/// Why a command did not do what was asked.
#[derive(Debug)]
pub(crate) struct Failure {
    /// Whose fault.
    pub(crate) kind: Kind,
    /// What is wrong, in one line.
    pub(crate) message: String,
    /// What to do about it.
    pub(crate) hint: Option<String>,
}

impl Failure {
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: None }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(Kind::Internal, message)
    }

    #[must_use]
    pub(crate) fn with_hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// The exit code that says so.
    pub(crate) fn exit_code(&self) -> u8 {
        match self.kind {
            Kind::Failed => exit::FAILED,
            Kind::Usage => exit::USAGE,
            Kind::NotFound => exit::NOT_FOUND,
            Kind::Refused => exit::REFUSED,
            Kind::Unreachable => exit::UNREACHABLE,
            Kind::Internal => exit::INTERNAL,
            Kind::OutputClosed => exit::SUCCESS,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Only for the program's own output, where a closed pipe is the one expected error.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Self::new(Kind::OutputClosed, "nobody reads the output any more")
        } else {
            Self::internal(format!("cannot write the output: {error}"))
        }
    }
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Self {
        Self::internal(format!("JSON that makes no sense here: {error}"))
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::internal(format!("{error:#}"))
    }
}

/// What a command comes to: an exit code, or why there is none.
pub(crate) type Outcome = Result<u8, Failure>;
