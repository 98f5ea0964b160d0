//! What an attempt says of itself while it runs, and what it leaves behind.
//!
//! All of it is written by the attempt's own executor, in order; the serial numbers say which came later. So each
//! of these values joins by the maximum of a total order, and none ever goes back.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::blob::{BlobRef, MAX_CHECKPOINT_BYTES};
use super::id::{Dot, NodeId};
use super::spec::InvalidField;
use super::time::Timestamp;

/// The longest message that goes with progress, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 256;

/// How often an attempt's progress is written down at the most. What comes in between is overtaken.
pub const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// How far an attempt says it has come. Joins by maximum: the later one counts, also where it says less.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Progress {
    /// Counts the attempt's reports.
    pub serial: u64,
    /// Thousandths of the whole.
    pub permille: u16,
    /// In the attempt's own words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

impl Progress {
    /// Checks what came from outside.
    ///
    /// # Errors
    /// What cannot be.
    pub fn validate(&self) -> Result<(), InvalidField> {
        if self.permille > 1_000 || self.message.len() > MAX_MESSAGE_BYTES {
            return Err(InvalidField::new("progress", "it is more than all, or its message is too long"));
        }
        Ok(())
    }
}

/// Work that an attempt has saved, for the next one to go on from.
///
/// Joins by maximum, in the order of the fields, and so never goes back: an attempt that continues saved work
/// comes after all that it continues, however often its predecessor, out of touch, still saves.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Checkpoint {
    /// How many resumptions it continues: 0 in an attempt that began at the beginning, else one more than the
    /// checkpoint it began with.
    pub chain: u32,
    /// The number of the attempt that saved it.
    pub number: u32,
    /// Its node.
    pub node: NodeId,
    /// Counts the attempt's reports.
    pub serial: u64,
    /// The attempt.
    pub claim: Dot,
    /// The content.
    pub blob: BlobRef,
    /// When, by the node's clock.
    pub saved_at: Timestamp,
}

impl Checkpoint {
    /// Checks what came from outside.
    ///
    /// # Errors
    /// What cannot be.
    pub fn validate(&self) -> Result<(), InvalidField> {
        if self.blob.size > MAX_CHECKPOINT_BYTES {
            return Err(InvalidField::new("checkpoint", format!("it has more than {MAX_CHECKPOINT_BYTES} bytes")));
        }
        Ok(())
    }
}

/// The last part of one output of an attempt that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Tail {
    /// Where it begins in all that was ever written.
    pub offset: u64,
    /// What was written from there on.
    pub blob: BlobRef,
}

/// The last parts of both outputs. None of an output that was never written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Tails {
    /// Standard output's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdout: Option<Tail>,
    /// Standard error's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stderr: Option<Tail>,
}

impl Tails {
    /// Whether nothing was written at all.
    pub fn is_empty(&self) -> bool {
        self.stdout.is_none() && self.stderr.is_none()
    }

    /// Both, as far as there are any.
    pub fn iter(&self) -> impl Iterator<Item = Tail> {
        self.stdout.into_iter().chain(self.stderr)
    }

    /// Joins by maximum. They are written once, with the attempt's end, so only where somebody broke the rules is
    /// there anything to choose.
    pub(super) fn merge(&mut self, other: &Self) {
        self.stdout = self.stdout.max(other.stdout);
        self.stderr = self.stderr.max(other.stderr);
    }
}
