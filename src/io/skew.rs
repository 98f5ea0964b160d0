//! How far the wall clocks of others are from our own, as far as one can tell from what they send.
//!
//! Each probe says when it left by its sender's clock. Sender's time less ours at its arrival is the difference of
//! the clocks less the time it took to come. That time varies and is never negative, so the largest difference
//! seen lately is the nearest to the truth, and is short of it by the quickest way only: well under a millisecond
//! on a local network. Nothing is decided by it; it is shown to people, whose displayed times it explains.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::model::time::{Moment, Now, Timestamp};

/// For how long a measurement counts. Clocks drift apart by a few milliseconds in this time at the most.
const WINDOW: Duration = Duration::from_secs(60);

/// The most senders that are remembered. Anybody can send a datagram.
const MAX_SENDERS: usize = 4_096;

/// The best of a window, and of the one before it.
#[derive(Debug, Clone, Copy)]
struct Best {
    since: Moment,
    now: i64,
    before: Option<i64>,
}

/// The differences from everybody who sends here.
#[derive(Debug, Default)]
pub(super) struct Skews(Mutex<BTreeMap<SocketAddr, Best>>);

impl Skews {
    /// Something came from `from`, which left it at `sent_at` by its clock.
    pub(super) fn learn(&self, from: SocketAddr, now: Now, sent_at: Timestamp) {
        let seen = difference(sent_at, now.wall);
        let mut all = self.lock();
        if !all.contains_key(&from) && all.len() >= MAX_SENDERS {
            all.retain(|_, best| now.moment.since(best.since) < WINDOW * 2);
            if all.len() >= MAX_SENDERS {
                return;
            }
        }
        let best = all.entry(from).or_insert(Best { since: now.moment, now: seen, before: None });
        let age = now.moment.since(best.since);
        // A clock that was set is believed at once: no way takes longer than a probe waits for its answer.
        let was_set = seen.abs_diff(best.now) > MAX_WAY_MS;
        if was_set {
            *best = Best { since: now.moment, now: seen, before: None };
        } else if age >= WINDOW {
            *best = Best { since: now.moment, now: seen, before: (age < WINDOW * 2).then_some(best.now) };
        } else {
            best.now = best.now.max(seen);
        }
    }

    /// How far the clock of `from` is ahead, in milliseconds, if that was measured lately.
    pub(super) fn of(&self, from: SocketAddr, now: Moment) -> Option<i64> {
        let best = *self.lock().get(&from)?;
        (now.since(best.since) < WINDOW * 2).then(|| best.before.map_or(best.now, |before| before.max(best.now)))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<SocketAddr, Best>> {
        // Whoever panicked with the lock held left a map of numbers, which is as good as any.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A difference that changes by more than this is no matter of the way.
const MAX_WAY_MS: u64 = 5_000;

fn difference(theirs: Timestamp, ours: Timestamp) -> i64 {
    let (theirs, ours) = (i128::from(theirs.unix_ms()), i128::from(ours.unix_ms()));
    i64::try_from(theirs - ours).unwrap_or(if theirs > ours { i64::MAX } else { i64::MIN })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: i64 = 3_600_000;

    #[test]
    fn the_quickest_way_tells_the_clock_and_one_that_is_set_is_believed() {
        let (skews, peer) = (Skews::default(), SocketAddr::from(([127, 0, 0, 1], 7)));
        let at = |ms: u64| Now {
            moment: Moment::START + Duration::from_millis(ms),
            wall: Timestamp(1_700_000_000_000 + ms),
        };
        let hears = |ms: u64, ahead: i64, way: u64| {
            let sent = at(ms).wall.unix_ms().saturating_add_signed(ahead) - way;
            skews.learn(peer, at(ms), Timestamp(sent));
            skews.of(peer, at(ms).moment)
        };
        assert_eq!(skews.of(peer, at(0).moment), None);
        assert_eq!(hears(1_000, -HOUR_MS, 40), Some(-HOUR_MS - 40));
        assert_eq!(hears(2_000, -HOUR_MS, 1), Some(-HOUR_MS - 1));
        assert_eq!(hears(3_000, -HOUR_MS, 900), Some(-HOUR_MS - 1));
        assert_eq!(hears(4_000, 2 * HOUR_MS, 3), Some(2 * HOUR_MS - 3));
        assert_eq!(hears(70_000, 2 * HOUR_MS, 50), Some(2 * HOUR_MS - 3), "the window before counts as well");
        assert_eq!(skews.of(peer, at(400_000).moment), None, "long ago");
    }
}
