//! How many submits are answered side by side: as many as are answered soon, and no more.
//!
//! Whoever comes when a queue is long waits for all of it, and a queue that is fed faster than it is worked off makes
//! everybody wait, for nothing: the work done a second is the same. So the number of submits under way is limited, and
//! whoever would be one too many is refused at once and may ask another node, or again. The right limit depends on the
//! machine, the disk and the replicas. It is found as TCP finds the room of a network path: raised a little
//! while answers come soon, lowered by a fifth when they do not (Chiu and Jain, "Analysis of the increase and decrease
//! algorithms for congestion avoidance", 1989). Soon is relative to the quickest answers of the last while.
//!
//! Not known here: what a submit is. Requests for many jobs at once are not counted: they take as long as they are
//! large, and are bounded by the bytes of their bodies.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// However slow the answers are, so many may be under way: with fewer, commits would carry too little each.
const LEAST: usize = 16;
/// However quick they are.
const MOST: usize = 512;
/// At first.
const FIRST: usize = 128;

/// The limit is looked at again after so many answers, and no sooner than this.
const ANSWERS: u32 = 16;
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Answers come soon if they take no longer, on average, than this many times the quickest...
const TIMES_THE_QUICKEST: u32 = 5;
/// ...or than this.
const ALWAYS_SOON: Duration = Duration::from_millis(10);
/// The quickest answers are those of the last one or two spans of this length.
const REMEMBERED: Duration = Duration::from_secs(30);

/// Lets submits in, or not.
#[derive(Debug)]
pub(super) struct Admission(Mutex<State>);

#[derive(Debug)]
struct State {
    limit: usize,
    under_way: usize,
    /// What has been seen since the limit was last looked at.
    since: Instant,
    answers: u32,
    took: Duration,
    was_reached: bool,
    /// The quickest answers of this span and of the one before.
    quickest: [Option<Duration>; 2],
    span_since: Instant,
    /// Answers were slow in this span, and more was asked than the least: what was quickest says nothing of a node at
    /// its ease.
    span_was_busy: bool,
}

/// A submit that was let in, until it is dropped.
#[derive(Debug)]
pub(super) struct Admitted<'a> {
    admission: &'a Admission,
    since: Instant,
}

impl Admission {
    pub(super) fn new(now: Instant) -> Self {
        Self(Mutex::new(State {
            limit: FIRST,
            under_way: 0,
            since: now,
            answers: 0,
            took: Duration::ZERO,
            was_reached: false,
            quickest: [None; 2],
            span_since: now,
            span_was_busy: false,
        }))
    }

    /// Lets one more in, if there is room.
    pub(super) fn admit(&self, now: Instant) -> Option<Admitted<'_>> {
        let mut state = self.state();
        if state.under_way >= state.limit {
            state.was_reached = true;
            return None;
        }
        state.under_way += 1;
        Some(Admitted { admission: self, since: now })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Admitted<'_> {
    /// It was answered as it asked. What is dropped without that tells nothing of how quick the node is.
    pub(super) fn answered(self, now: Instant) {
        self.admission.state().learn(now, now.saturating_duration_since(self.since));
    }
}

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        self.admission.state().under_way -= 1;
    }
}

impl State {
    fn learn(&mut self, now: Instant, took: Duration) {
        self.answers += 1;
        self.took += took;
        self.was_reached |= self.under_way >= self.limit;
        let quickest = self.quickest[0].get_or_insert(took);
        *quickest = took.min(*quickest);
        if self.answers < ANSWERS || now.saturating_duration_since(self.since) < LOOK_EVERY {
            return;
        }
        let quickest = self.quickest.iter().flatten().min().copied().unwrap_or(took);
        let soon = (quickest * TIMES_THE_QUICKEST).max(ALWAYS_SOON);
        if self.took / self.answers > soon {
            self.span_was_busy |= self.limit > LEAST;
            self.limit = (self.limit * 4 / 5).max(LEAST);
        } else if self.was_reached {
            self.limit = (self.limit + self.limit / 8 + 1).min(MOST);
        }
        (self.since, self.answers, self.took, self.was_reached) = (now, 0, Duration::ZERO, false);
        if now.saturating_duration_since(self.span_since) >= REMEMBERED {
            if !std::mem::take(&mut self.span_was_busy) {
                self.quickest = [None, self.quickest[0]];
            }
            self.span_since = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node that does so much a second, whatever is under way, and clients that always have one more to submit.
    struct Node {
        admission: Admission,
        now: Instant,
        a_second: u32,
    }

    impl Node {
        fn new(a_second: u32) -> Self {
            let now = Instant::now();
            Self { admission: Admission::new(now), now, a_second }
        }

        /// So many clients for a while: how long the last ones that were let in waited, and how many were not.
        fn run(&mut self, clients: usize, span: Duration) -> (Duration, usize) {
            let begun = self.now;
            let (mut took, mut refused) = (Duration::ZERO, 0);
            while self.now - begun < span {
                let asked = self.now;
                let admitted: Vec<_> = (0..clients).filter_map(|_| self.admission.admit(asked)).collect();
                refused = clients - admitted.len();
                for (place, one) in admitted.into_iter().enumerate() {
                    took = Duration::from_secs(place as u64 + 1) / self.a_second;
                    self.now = asked + took;
                    one.answered(self.now);
                }
            }
            (took, refused)
        }
    }

    #[test]
    fn a_few_are_always_let_in() {
        let mut node = Node::new(1_000);
        assert_eq!(node.run(8, Duration::from_secs(10)).1, 0);
        let mut slow = Node::new(5);
        assert_eq!(slow.run(LEAST, Duration::from_secs(300)).1, 0);
    }

    #[test]
    fn under_pressure_the_wait_stays_short_and_the_rest_is_refused() {
        let mut node = Node::new(2_000);
        node.run(4, Duration::from_secs(2));
        let (took, refused) = node.run(400, Duration::from_secs(120));
        assert!(took < ALWAYS_SOON * 4, "{took:?}");
        assert!(refused > 200, "{refused}");
        assert!(node.run(4, Duration::from_secs(1)).1 == 0, "when it is over, all is as before");
    }

    #[test]
    fn a_quick_node_takes_more_than_at_first() {
        let mut node = Node::new(100_000);
        let (_, refused) = node.run(400, Duration::from_secs(20));
        assert_eq!(refused, 0);
    }

    #[test]
    fn what_was_given_up_makes_room_and_teaches_nothing() {
        let node = Node::new(1);
        let all: Vec<_> = (0..FIRST).filter_map(|_| node.admission.admit(node.now)).collect();
        assert!(all.len() == FIRST && node.admission.admit(node.now).is_none());
        drop(all);
        assert!(node.admission.admit(node.now).is_some());
        assert_eq!(node.admission.state().answers, 0);
    }
}
