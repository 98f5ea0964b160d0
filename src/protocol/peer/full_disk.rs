//! A disk that is full, and when it is trusted again.
//!
//! A full disk is seldom full for good, and seldom quite full: a small write goes through, the next one fails. A node
//! that served again after each good write would come and go all the time, and everybody would place work anew each
//! time. So it is tried again after a pause that grows with each failure, and serves only when nothing has failed for
//! as long again. What it does meanwhile, and what it was doing before, is the Peer's to know.

use std::time::Duration;

use crate::model::member::Status;
use crate::model::time::Moment;

/// The first pause, and the longest.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(8);
/// A failure so long after the last one begins anew.
const FORGIVEN_AFTER: Duration = Duration::from_secs(60);

/// What is known of a disk on which writes failed for want of space.
#[derive(Debug, Default)]
pub(super) struct FullDisk {
    failed_at: Option<Moment>,
    pause: Duration,
    due: Option<(Moment, Due)>,
}

/// What a full disk calls for next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    /// To write once more.
    Retry,
    /// To serve again: writes have gone well for a while.
    Recovery,
}

impl FullDisk {
    pub(super) fn handle_failure(&mut self, now: Moment) {
        let is_another = self.failed_at.is_some_and(|at| now.since(at) < FORGIVEN_AFTER);
        self.pause = if is_another { (self.pause * 2).min(LONGEST) } else { SHORTEST };
        self.failed_at = Some(now);
        self.due = Some((now + self.pause, Due::Retry));
    }

    /// A write went well while the node was read-only.
    pub(super) fn handle_success(&mut self, now: Moment) {
        if !matches!(self.due, Some((_, Due::Recovery))) {
            self.due = Some((now + self.pause, Due::Recovery));
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Moment> {
        self.due.map(|(at, _)| at)
    }

    /// What is due now. It is said once.
    pub(super) fn handle_timeout(&mut self, now: Moment) -> Option<Due> {
        self.due.take_if(|(at, _)| *at <= now).map(|(_, due)| due)
    }
}

/// What a node that was read-only goes back to, if it was to drain, or no longer to drain, in the meantime.
pub(super) fn drained(before: Status, on: bool) -> Status {
    match (before, on) {
        (Status::Serving | Status::Draining, true) => Status::Draining,
        (Status::Serving | Status::Draining, false) => Status::Serving,
        (Status::Joining | Status::Returning | Status::ReadOnly | Status::Left, _) => before,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_disk_that_fails_now_and_then_is_not_trusted_until_it_has_been_well_for_a_while() {
        let (mut disk, start) = (FullDisk::default(), Moment::default());
        disk.handle_failure(start);
        assert_eq!(disk.handle_timeout(start + SECOND), Some(Due::Retry));
        disk.handle_success(start + SECOND);
        disk.handle_failure(start + SECOND * 2);
        assert_eq!(disk.handle_timeout(start + SECOND * 3), None);
        assert_eq!(disk.handle_timeout(start + SECOND * 4), Some(Due::Retry));
        disk.handle_success(start + SECOND * 4);
        disk.handle_success(start + SECOND * 5);
        assert_eq!(disk.poll_timeout(), Some(start + SECOND * 6));
        assert_eq!(disk.handle_timeout(start + SECOND * 6), Some(Due::Recovery));
        assert_eq!(disk.poll_timeout(), None);
    }

    #[test]
    fn the_pause_has_a_bound_and_old_failures_are_forgiven() {
        let (mut disk, mut now) = (FullDisk::default(), Moment::default());
        for _ in 0..10 {
            disk.handle_failure(now);
            now = disk.poll_timeout().unwrap();
            assert_eq!(disk.handle_timeout(now), Some(Due::Retry));
        }
        disk.handle_failure(now);
        assert_eq!(disk.poll_timeout(), Some(now + LONGEST));
        now = now + FORGIVEN_AFTER;
        disk.handle_failure(now);
        assert_eq!(disk.poll_timeout(), Some(now + SHORTEST));
    }
}
