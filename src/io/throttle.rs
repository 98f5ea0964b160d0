//! A log line that a stranger can cause a thousand times a second is written a few times a minute, with the
//! number of those left out. Nothing is lost by it: whatever is left out of the log is still counted.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lets one line through, then none for a while.
#[derive(Debug)]
pub(super) struct Throttle {
    every: Duration,
    state: Mutex<(Option<Instant>, u64)>,
}

impl Throttle {
    /// Lets a line through at most once in `every`.
    pub(super) fn new(every: Duration) -> Self {
        Self { every, state: Mutex::default() }
    }

    /// Whether a line may be written now, and how many were left out before it.
    pub(super) fn admit(&self) -> Option<u64> {
        let now = Instant::now();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.0.is_some_and(|last| now.duration_since(last) < self.every) {
            state.1 += 1;
            return None;
        }
        state.0 = Some(now);
        Some(std::mem::take(&mut state.1))
    }
}

impl Default for Throttle {
    fn default() -> Self {
        Self::new(Duration::from_secs(10))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_becomes_one_line_and_a_count() {
        let throttle = Throttle::new(Duration::from_millis(20));
        assert_eq!(throttle.admit(), Some(0));
        assert_eq!((throttle.admit(), throttle.admit()), (None, None));
        let deadline = Instant::now() + Duration::from_secs(5);
        let next = std::iter::repeat_with(|| throttle.admit()).find(|line| line.is_some() || Instant::now() > deadline);
        assert!(next.flatten().is_some_and(|left_out| left_out >= 2));
    }
}
