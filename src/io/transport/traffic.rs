//! How much goes over the peer connections, and how much of it only finds out whether two nodes hold the same.
//!
//! Bytes are those of whole frames with their lengths: greetings, and what TCP and the layers below add, are not in them.
//! What was sent is what was given to a link; a link that breaks loses some of it.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::model::wire::{Frame, Message};

/// The length before each frame.
const LENGTH_BYTES: usize = 4;

/// What has been counted since the start, of all links together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Given to the links.
    pub sent: Count,
    /// Received from peers.
    pub received: Count,
    /// Of what was sent, the frames that compare what two nodes hold, the records that they fetch included.
    pub comparison_sent: Count,
    /// Of what was received, the same.
    pub comparison_received: Count,
}

/// Frames, and their bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Count {
    /// How many.
    pub frames: u64,
    /// How long, in all.
    pub bytes: u64,
}

/// The counters behind [`Traffic`].
#[derive(Debug, Default)]
pub(super) struct Meters {
    sent: Meter,
    received: Meter,
    comparison_sent: Meter,
    comparison_received: Meter,
}

#[derive(Debug, Default)]
struct Meter {
    frames: AtomicU64,
    bytes: AtomicU64,
}

impl Meter {
    fn add(&self, bytes: usize) {
        self.frames.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn read(&self) -> Count {
        Count { frames: self.frames.load(Ordering::Relaxed), bytes: self.bytes.load(Ordering::Relaxed) }
    }
}

impl Meters {
    pub(super) fn count_sent(&self, frame: &Frame, encoded_bytes: usize) {
        self.sent.add(encoded_bytes + LENGTH_BYTES);
        if compares(frame) {
            self.comparison_sent.add(encoded_bytes + LENGTH_BYTES);
        }
    }

    pub(super) fn count_received(&self, frame: &Frame, encoded_bytes: usize) {
        self.received.add(encoded_bytes + LENGTH_BYTES);
        if compares(frame) {
            self.comparison_received.add(encoded_bytes + LENGTH_BYTES);
        }
    }

    pub(super) fn read(&self) -> Traffic {
        Traffic {
            sent: self.sent.read(),
            received: self.received.read(),
            comparison_sent: self.comparison_sent.read(),
            comparison_received: self.comparison_received.read(),
        }
    }
}

fn compares(frame: &Frame) -> bool {
    let Frame::Message(message) = frame else {
        return false;
    };
    matches!(
        message,
        Message::Compare { .. } | Message::Differ { .. } | Message::Fetch { .. } | Message::Fetched { .. }
    )
}
