//! When a pod is to be ended, and how firmly.
//!
//! A pod ends by itself, or for one of three causes: somebody stops it, its time is over, or it was silent for too
//! long. Whatever the cause and whatever kind of pod, it is asked to end first, and made to after the grace period.
//! The overseer says which is due; how a pod is asked and made to end is for whoever runs it.

use std::time::Duration;

use rustix::process::Signal;
use tokio::time::Instant;

use super::{Core, Pod};
use crate::model::attempt::Exit;
use crate::model::spec::Spec;
use crate::protocol::effect::PodEnd;

/// Why a pod is being ended. The first reason counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    Stopped,
    TimedOut,
    /// It said nothing of itself for this long.
    Silent(Duration),
}

impl Cause {
    /// What to report of a pod that ended with `exit`, by itself or for a cause.
    pub(super) fn end(cause: Option<Self>, exit: Exit) -> PodEnd {
        match cause {
            None => PodEnd::Exited(exit),
            Some(Self::Stopped) => PodEnd::Stopped(exit),
            Some(Self::TimedOut) => PodEnd::Exited(Exit::TimedOut),
            Some(Self::Silent(limit)) => PodEnd::Silent(limit),
        }
    }

    /// What to report of a pod that was ended before there was anything to end.
    pub(super) fn before_start(self) -> PodEnd {
        Self::end(Some(self), Exit::Signal(Signal::TERM.as_raw()))
    }
}

/// What is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// It may still save its work.
    AskToEnd,
    /// The grace period is over.
    Kill,
}

/// Watches one pod that runs.
#[derive(Debug)]
pub(super) struct Overseer<'a> {
    pod: &'a Pod,
    grace: Duration,
    cause: Option<Cause>,
    /// Of its run time while there is no cause, of the grace period after.
    deadline: Option<Instant>,
    silence_limit: Option<Duration>,
}

impl<'a> Overseer<'a> {
    /// Begins to watch a pod that was just started.
    pub(super) fn new(core: &Core, pod: &'a Pod, spec: &Spec) -> Self {
        Self {
            pod,
            grace: core.config.stop_grace,
            cause: None,
            deadline: spec.timeout.and_then(|timeout| Instant::now().checked_add(timeout)),
            silence_limit: spec.heartbeat_timeout,
        }
    }

    /// Why the pod is being ended, if it is.
    pub(super) fn cause(&self) -> Option<Cause> {
        self.cause
    }

    /// Waits until something is due: one order to ask, then one to kill, then nothing for ever. Safe to drop and to
    /// call again.
    pub(super) async fn next_order(&mut self) -> Order {
        if self.cause.is_some() {
            until(self.deadline).await;
            self.deadline = None;
            return Order::Kill;
        }
        let cause = tokio::select! {
            biased;
            () = self.pod.stop.cancelled() => Cause::Stopped,
            limit = self.silence() => Cause::Silent(limit),
            () = until(self.deadline) => Cause::TimedOut,
        };
        self.cause = Some(cause);
        self.deadline = Instant::now().checked_add(self.grace);
        Order::AskToEnd
    }

    /// Returns the limit when the pod has said nothing for so long, and never where there is none.
    async fn silence(&self) -> Duration {
        loop {
            let limit = self.silence_limit.unwrap_or_default();
            let too_long_at = self.silence_limit.and_then(|limit| self.pod.voice.heard_at().checked_add(limit));
            if too_long_at.is_some_and(|at| at <= Instant::now()) {
                return limit;
            }
            until(too_long_at).await;
        }
    }
}

/// Returns at `deadline`, or never.
async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
