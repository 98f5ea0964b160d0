//! What an attempt says of itself while it runs, and what it leaves behind.
//!
//! All of it is written by the attempt's own executor, in order; the serial numbers say which came later. So each
//! of these values joins by the maximum of a total order, and none ever goes back.

use std::cmp::Ordering;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::blob::{BlobId, BlobRef, MAX_CHECKPOINT_BYTES};
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

/// What an attempt came to, as far as it has said: the last one counts.
///
/// Joins by maximum, in the order of the fields. What is left with the attempt's end comes after all that was posted
/// before, and is written as it was when nothing else was: without a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Outcome {
    /// Counts the attempt's reports; [`AT_THE_END`](Self::AT_THE_END) for what is left with its end.
    #[serde(default = "at_the_end", skip_serializing_if = "is_at_the_end")]
    pub serial: u64,
    /// The name of the content.
    pub id: BlobId,
    /// Its size in bytes.
    pub size: u64,
}

impl Outcome {
    /// Comes after every report.
    pub const AT_THE_END: u64 = u64::MAX;

    /// What was posted as the attempt's report `serial`.
    pub fn posted(serial: u64, blob: BlobRef) -> Self {
        Self { serial, id: blob.id, size: blob.size }
    }

    /// What is left with the attempt's end.
    pub fn left(blob: BlobRef) -> Self {
        Self::posted(Self::AT_THE_END, blob)
    }

    /// The content.
    pub fn blob(&self) -> BlobRef {
        BlobRef { id: self.id, size: self.size }
    }
}

fn at_the_end() -> u64 {
    Outcome::AT_THE_END
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
fn is_at_the_end(serial: &u64) -> bool {
    *serial == Outcome::AT_THE_END
}

/// The last part of one output of an attempt.
///
/// Ordered by where it ends in all that was ever written, since that only grows; the rest makes the order total.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tail {
    /// Where it begins in all that was ever written.
    pub offset: u64,
    /// What was written from there on.
    pub blob: BlobRef,
    /// When it was taken, by the node's clock, if that was while the attempt ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub as_of: Option<Timestamp>,
}

impl Tail {
    /// Where it ends in all that was ever written.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.blob.size)
    }

    fn order(&self) -> impl Ord {
        (self.end(), self.offset, self.blob, self.as_of)
    }
}

impl Ord for Tail {
    fn cmp(&self, other: &Self) -> Ordering {
        self.order().cmp(&other.order())
    }
}

impl PartialOrd for Tail {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
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

    /// Joins by maximum, each for itself: of one output, the tail that reaches further is the later one.
    pub(super) fn merge(&mut self, other: &Self) {
        self.stdout = self.stdout.max(other.stdout);
        self.stderr = self.stderr.max(other.stderr);
    }
}

#[cfg(test)]
mod tests {
    use super::super::blob::Blob;
    use super::*;

    #[test]
    fn an_outcome_without_a_number_is_what_older_versions_wrote_with_the_end() {
        let blob = Blob::new("42").reference();
        let (old, new) =
            (rmp_serde::to_vec_named(&blob).unwrap(), rmp_serde::to_vec_named(&Outcome::left(blob)).unwrap());
        assert_eq!(old, new);
        assert_eq!(rmp_serde::from_slice::<Outcome>(&old).unwrap(), Outcome::left(blob));
        let posted = Outcome::posted(3, blob);
        assert_eq!(rmp_serde::from_slice::<Outcome>(&rmp_serde::to_vec_named(&posted).unwrap()).unwrap(), posted);
        assert!(posted < Outcome::posted(4, Blob::new("1").reference()) && posted < Outcome::left(blob));
    }

    #[test]
    fn of_two_tails_the_one_that_reaches_further_is_the_later() {
        let tail = |offset, bytes: &'static str, at: Option<u64>| Tail {
            offset,
            blob: Blob::new(bytes).reference(),
            as_of: at.map(Timestamp),
        };
        let tails = [tail(0, "abc", Some(9)), tail(0, "abcd", Some(1)), tail(3, "de", None)];
        assert!(tails.is_sorted());
    }
}
