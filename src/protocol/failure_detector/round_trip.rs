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
//!
//! One answer that comes late, alone, may be either. It is noted and asked about once more: if that answer is late as well,
//! the way has become longer, and both count. Members are probed in turn, once in a minute where there are a hundred, and so
//! a mistaken estimate would stay for long.

use std::time::Duration;

use crate::model::time::Moment;

/// The round trips seen so far, in brief.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct RoundTrip {
    estimate: Estimate,
    last: Option<Last>,
    /// A late answer that no other has confirmed yet.
    unconfirmed: Option<Duration>,
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
    /// A ping that was sent then was answered now. Was the member `in_doubt` when it was sent, and the answer not waited
    /// for any longer when it came?
    pub(super) fn observe(&mut self, sent: Moment, came: Moment, in_doubt: bool, is_late: bool) {
        if let Some(last) = self.last
            && came.since(last.came) < sent.since(last.sent) / 2
        {
            self.estimate = last.before;
            self.unconfirmed = None;
        }
        self.last = Some(Last { sent, came, before: self.estimate });
        if in_doubt {
            return;
        }
        let sample = came.since(sent);
        match self.unconfirmed.take() {
            None if is_late => self.unconfirmed = Some(sample),
            Some(earlier) if is_late => {
                self.estimate.take_in(earlier);
                self.estimate.take_in(sample);
            }
            Some(_) | None => self.estimate.take_in(sample),
        }
    }

    /// Whether the last answer was late, and the next one will tell why.
    pub(super) fn wants_another(&self) -> bool {
        self.unconfirmed.is_some()
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

impl Estimate {
    fn take_in(&mut self, sample: Duration) {
        *self = match self.smoothed {
            None => Self { smoothed: Some(sample), deviation: sample / 2 },
            Some(smoothed) => Self {
                smoothed: Some((smoothed * 7 + sample) / 8),
                deviation: (self.deviation * 3 + smoothed.abs_diff(sample)) / 4,
            },
        };
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
                trip.observe(now, now + Duration::from_millis(takes), false, takes > 100);
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
            trip.observe(at(second * 1_000), at(second * 1_000 + 2), false, false);
        }
        for (sent, in_doubt) in [(20_000, false), (20_400, false), (20_800, true), (22_400, true)] {
            trip.observe(at(sent), at(23_500), in_doubt, true);
        }
        assert!(trip.overdue_after() < Duration::from_millis(10), "{trip:?}");
        // Nor does the first answer of a member that comes back tell of one.
        trip.observe(at(25_000), at(27_000), true, true);
        assert!(trip.overdue_after() < Duration::from_millis(10), "{trip:?}");
    }

    #[test]
    fn a_late_answer_of_one_that_nobody_doubted_counts_when_the_next_is_late_too() {
        let mut trip = RoundTrip::default();
        let at = |ms| Moment::START + Duration::from_millis(ms);
        trip.observe(at(1_000), at(1_002), false, false);
        trip.observe(at(2_000), at(2_900), false, true);
        assert!(trip.wants_another() && trip.overdue_after() < Duration::from_millis(10), "{trip:?}");
        trip.observe(at(3_000), at(3_002), false, false);
        assert!(!trip.wants_another() && trip.overdue_after() < Duration::from_millis(10), "{trip:?}");
        trip.observe(at(4_000), at(4_900), false, true);
        trip.observe(at(6_000), at(6_900), false, true);
        assert!(!trip.wants_another() && trip.overdue_after() > Duration::from_millis(300), "{trip:?}");
    }
}
