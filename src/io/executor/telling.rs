//! Telling, while a pod runs, what it has written last, so that the end of its log outlives its node.
//!
//! Think of a reporter who files a paragraph now and then, and only when something has happened. The first goes out
//! [`FIRST_AFTER`] the first output; those that follow are further and further apart, up to [`AT_MOST_EVERY`], as long as
//! there is more to tell. A pod that says nothing is waited for and not looked at. One that ends before the first
//! paragraph is due has cost a timer: its end carries what it wrote.
//!
//! Not known here: where it goes, and that each replaces the one before.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::{Core, Pod, now};
use crate::model::blob::{Blob, MAX_TAIL_BYTES};
use crate::model::id::AttemptKey;
use crate::model::wire::Stream;
use crate::protocol::effect::{PodEvent, PodReport};

/// How long after an output the end of the log is told, if that has not been done lately. Raising it spares jobs of this
/// length a commit and a push to the replicas; what a job wrote in this time before its node died is lost.
const FIRST_AFTER: Duration = Duration::from_secs(5);

/// How far apart two tellings of one pod are at the most, while it goes on writing: each after twice as long as the last,
/// up to this. What all pods of a node cost is their number times 32 KiB, divided by this.
const AT_MOST_EVERY: Duration = Duration::from_secs(30);

/// Tells whenever it is time to. Ends only by being dropped.
pub(super) async fn keep_telling(core: &Arc<Core>, pod: &Arc<Pod>, key: AttemptKey) -> Infallible {
    let (mut told_out, mut told_err) = (0, 0);
    let mut pace = Pace::default();
    loop {
        tokio::select! {
            () = pod.stdout.grows_beyond(told_out) => {}
            () = pod.stderr.grows_beyond(told_err) => {}
        }
        sleep_until(pace.due(Instant::now())).await;
        let (out, err) = (pod.stdout.end(), pod.stderr.end());
        let (at, read) = (now(), Arc::clone(pod));
        let reading = tokio::task::spawn_blocking(move || {
            let grown = |stream, grown: bool| if grown { end_of(&read, stream) } else { None };
            (grown(Stream::Stdout, out > told_out), grown(Stream::Stderr, err > told_err))
        });
        if let Ok((stdout, stderr)) = reading.await
            && (stdout.is_some() || stderr.is_some())
        {
            pod.voice.tell_begin();
            core.report(PodEvent::Reported { key, report: PodReport::Output { at, stdout, stderr } });
        }
        (told_out, told_err) = (out, err);
        pace.told(Instant::now());
    }
}

/// The end of one output. Nothing where it cannot be read now: the next telling will do.
fn end_of(pod: &Pod, stream: Stream) -> Option<(u64, Blob)> {
    match pod.log(stream).tail(MAX_TAIL_BYTES) {
        Ok(newest) => newest.map(|(offset, bytes)| (offset, Blob::new(bytes))),
        Err(error) => {
            tracing::debug!(%error, "the end of a running pod's log cannot be read");
            None
        }
    }
}

/// When to tell next.
#[derive(Debug, Default)]
struct Pace {
    told_at: Option<Instant>,
    pause: Duration,
}

impl Pace {
    /// There is something to tell since `now`.
    fn due(&self, now: Instant) -> Instant {
        let first = now + FIRST_AFTER;
        self.told_at.map_or(first, |at| first.max(at + self.pause))
    }

    fn told(&mut self, now: Instant) {
        self.pause = if self.told_at.is_none() { FIRST_AFTER * 2 } else { (self.pause * 2).min(AT_MOST_EVERY) };
        self.told_at = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tellings_are_further_and_further_apart_and_soon_after_a_silence() {
        let begun = Instant::now();
        let at = |seconds: u64| begun + Duration::from_secs(seconds);
        let (mut pace, mut told) = (Pace::default(), Vec::new());
        let mut now = at(100);
        for _ in 0..5 {
            now = pace.due(now);
            told.push((now - begun).as_secs());
            pace.told(now);
        }
        assert_eq!(told, [105, 115, 135, 165, 195]);
        assert_eq!(pace.due(at(1_000)), at(1_005));
    }
}
