//! How long a member usually takes to answer, and so how long it is given.
//!
//! The estimator is that of TCP (Jacobson and Karels, "Congestion Avoidance and Control", SIGCOMM 1988; RFC
//! 6298, section 2): a smoothed mean and a smoothed deviation. Every ping has a number of its own, so an
//! answer always tells which ping it answers, and Karn's ambiguity cannot arise.
//!
//! Another one does. A process that was frozen answers all that gathered meanwhile at one moment, and each answer
//! looks like a long way there and back. Taken at its word, it would be waited for patiently for minutes to come. But
//! answers that were asked for one after the other and come together have waited at their sender, not on the way: of
//! such a salvo only the last counts. And an answer of a member that was in doubt when it was asked tells when its
//! silence ended, and nothing of the way.

use std::time::Duration;

use crate::model::time::Moment;

/// The round trips seen so far, in brief.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct RoundTrip {
    estimate: Estimate,
    last: Option<Last>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Estimate {
    smoothed: Option<Duration>,
    deviation: Duration,
}

/// The last answer, and what was estimated before it.
#[derive(Debug, Clone, Copy)]
struct Last {
    sent: Moment,
    came: Moment,
    before: Estimate,
}

impl RoundTrip {
    /// A ping that was sent then was answered now. Was the member `in_doubt` when it was sent?
    pub(super) fn observe(&mut self, sent: Moment, came: Moment, in_doubt: bool) {
        if let Some(last) = self.last
            && came.since(last.came) < sent.since(last.sent) / 2
        {
            self.estimate = last.before;
        }
        let before = self.estimate;
        self.last = Some(Last { sent, came, before });
        if in_doubt {
            return;
        }
        let sample = came.since(sent);
        self.estimate = match before.smoothed {
            None => Estimate { smoothed: Some(sample), deviation: sample / 2 },
            Some(smoothed) => Estimate {
                smoothed: Some((smoothed * 7 + sample) / 8),
                deviation: (before.deviation * 3 + smoothed.abs_diff(sample)) / 4,
            },
        };
    }

    /// The smoothed round trip, once there is one.
    pub(super) fn smoothed(&self) -> Option<Duration> {
        self.estimate.smoothed
    }

    /// After how long an answer is overdue; zero while nothing was measured.
    pub(super) fn overdue_after(&self) -> Duration {
        let Estimate { smoothed, deviation } = self.estimate;
        smoothed.map_or(Duration::ZERO, |smoothed| smoothed + deviation * 4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_follows_the_round_trips_up_and_down() {
        let mut trip = RoundTrip::default();
        let mut now = Moment::START;
        let mut pings = |trip: &mut RoundTrip, count: u32, takes: u64| {
            for _ in 0..count {
                now = now + Duration::from_secs(1);
                trip.observe(now, now + Duration::from_millis(takes), false);
            }
        };
        assert_eq!(trip.overdue_after(), Duration::ZERO);
        pings(&mut trip, 20, 2);
        assert!(trip.overdue_after() < Duration::from_millis(5));
        pings(&mut trip, 20, 300);
        assert!(trip.overdue_after() > Duration::from_millis(300));
        pings(&mut trip, 60, 2);
        assert!(trip.overdue_after() < Duration::from_millis(10));
    }

    #[test]
    fn what_a_frozen_process_held_back_is_no_long_way() {
        let mut trip = RoundTrip::default();
        let at = |ms| Moment::START + Duration::from_millis(ms);
        for second in 1..20 {
            trip.observe(at(second * 1_000), at(second * 1_000 + 2), false);
        }
        for (sent, in_doubt) in [(20_000, false), (20_400, false), (20_800, true), (22_400, true)] {
            trip.observe(at(sent), at(23_500), in_doubt);
        }
        assert!(trip.overdue_after() < Duration::from_millis(10), "{trip:?}");
        // Nor does the first answer of a member that comes back tell of one.
        trip.observe(at(25_000), at(27_000), true);
        assert!(trip.overdue_after() < Duration::from_millis(10), "{trip:?}");
        // A single late answer of one that nobody doubted may have been a long way, and counts.
        trip.observe(at(30_000), at(30_900), false);
        assert!(trip.overdue_after() > Duration::from_millis(300), "{trip:?}");
    }
}
