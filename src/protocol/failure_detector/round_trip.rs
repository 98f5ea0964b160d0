//! How long a member usually takes to answer, and so how long it is given.
//!
//! The estimator is that of TCP (Jacobson and Karels, "Congestion Avoidance and Control", SIGCOMM 1988; RFC
//! 6298, section 2): a smoothed mean and a smoothed deviation. Every ping has a number of its own, so an
//! answer always tells which ping it answers, and Karn's ambiguity cannot arise.

use std::time::Duration;

/// The round trips seen so far, in brief.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct RoundTrip {
    smoothed: Option<Duration>,
    deviation: Duration,
}

impl RoundTrip {
    /// Takes in one measured round trip.
    pub(super) fn observe(&mut self, sample: Duration) {
        match self.smoothed {
            None => {
                self.smoothed = Some(sample);
                self.deviation = sample / 2;
            }
            Some(smoothed) => {
                self.deviation = (self.deviation * 3 + smoothed.abs_diff(sample)) / 4;
                self.smoothed = Some((smoothed * 7 + sample) / 8);
            }
        }
    }

    /// The smoothed round trip, once there is one.
    pub(super) fn smoothed(&self) -> Option<Duration> {
        self.smoothed
    }

    /// After how long an answer is overdue; zero while nothing was measured.
    pub(super) fn overdue_after(&self) -> Duration {
        self.smoothed.map_or(Duration::ZERO, |smoothed| smoothed + self.deviation * 4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_follows_the_round_trips_up_and_down() {
        let mut trip = RoundTrip::default();
        assert_eq!(trip.overdue_after(), Duration::ZERO);
        for _ in 0..20 {
            trip.observe(Duration::from_millis(2));
        }
        assert!(trip.overdue_after() < Duration::from_millis(5));
        for _ in 0..20 {
            trip.observe(Duration::from_millis(300));
        }
        assert!(trip.overdue_after() > Duration::from_millis(300));
        for _ in 0..60 {
            trip.observe(Duration::from_millis(2));
        }
        assert!(trip.overdue_after() < Duration::from_millis(10));
    }
}
