//! The clock that the lower floors are told.
//!
//! Both readings of one [`Now`] are taken together. The moment comes from the monotonic clock, which nobody can
//! set, and which does not count the time that a machine was suspended: a node that slept finds its timers where
//! it left them. The wall time may jump in either direction, and is only shown.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::io::faults::Faults;
use crate::model::time::{Moment, Now, Timestamp};

/// A clock whose moments count from its creation.
#[derive(Debug, Clone)]
pub struct Clock {
    started: Instant,
    faults: Faults,
}

impl Clock {
    /// Starts at [`Moment::START`].
    #[expect(clippy::new_without_default, reason = "a clock that starts now is not a default value")]
    pub fn new() -> Self {
        Self::with_faults(Faults::disarmed())
    }

    /// The same, with a wall clock that may be told to be wrong.
    pub fn with_faults(faults: Faults) -> Self {
        Self { started: Instant::now(), faults }
    }

    /// Both clocks.
    pub fn now(&self) -> Now {
        Now { moment: self.moment(), wall: self.wall() }
    }

    /// The wall clock alone.
    pub fn wall(&self) -> Timestamp {
        Timestamp(wall().unix_ms().saturating_add_signed(self.faults.clock_offset_ms()))
    }

    /// The monotonic clock alone.
    pub fn moment(&self) -> Moment {
        Moment::from_start(self.started.elapsed())
    }

    /// When `moment` comes, for a timer.
    pub fn instant(&self, moment: Moment) -> Instant {
        // A moment beyond what the platform can name is as good as never; a day is long enough for any timer
        // to be looked at again.
        const LATER: std::time::Duration = std::time::Duration::from_secs(86_400);
        self.started.checked_add(moment.since_start()).unwrap_or_else(|| Instant::now() + LATER)
    }
}

/// The wall clock. A machine that believes itself before 1970 is at 1970.
pub fn wall() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn moments_count_from_the_clock_and_lead_back_to_instants() {
        let clock = Clock::new();
        let (first, second) = (clock.now().moment, clock.now().moment);
        assert!(first <= second && second < Moment::START + Duration::from_secs(60));
        let due = Moment::START + Duration::from_secs(5);
        assert_eq!(clock.instant(due), clock.started + Duration::from_secs(5));
        assert!(clock.instant(Moment::from_start(Duration::MAX)) > Instant::now());
    }
}
