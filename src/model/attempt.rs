//! One execution of a job: the decision that it shall run, and what became of it.
//!
//! An attempt is a part of its job's [`Record`](super::record::Record), and a product of joins as that is: the claim never
//! changes, and of everything else the greater counts.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::blob::BlobRef;
use super::id::{Actor, Clock, Dot, Fence};
use super::report::{Outcome, Progress, Tails};
use super::time::Timestamp;

/// How far an attempt has come. In this order: what is said later in it overrules what is said earlier.
///
/// `Lost` is an observer's opinion, and gives way to anything that the executor itself says of the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The owner decided that it shall run.
    Claimed,
    /// Its pod was started.
    Running,
    /// Its executor went down or restarted under it.
    Lost,
    /// The executor gave it back without running it; counts against nothing.
    Returned,
    /// It ran, and ended badly.
    Failed,
    /// It was ended because the job was stopped, or another attempt superseded it.
    Stopped,
    /// It ended with exit code 0.
    Succeeded,
}

impl Phase {
    /// Whether the attempt runs, or is about to.
    pub fn is_live(self) -> bool {
        match self {
            Self::Claimed | Self::Running => true,
            Self::Lost | Self::Returned | Self::Failed | Self::Stopped | Self::Succeeded => false,
        }
    }
}

/// How a pod ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// With this exit code.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// It ran longer than the spec's `timeout` and was ended.
    TimedOut,
}

impl Exit {
    /// By SIGKILL.
    pub const KILLED: Self = Self::Signal(9);
}

/// The latest that is known of an attempt, and who said so. Joins by maximum, in the order of the fields.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Fate {
    /// How far it has come.
    pub phase: Phase,
    /// Whether the executor says this of its own attempt, rather than an observer.
    #[serde(rename = "own")]
    pub by_executor: bool,
    /// The write that says it.
    pub dot: Dot,
    /// When it happened, by the writer's clock.
    pub at: Timestamp,
    /// How the pod ended, where one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<Exit>,
    /// Why, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// What the owner wrote when it decided that an attempt shall run. Named by the dot of that write, and
/// never changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Counts the job's attempts from 1. Owners that did not know of each other may give one number twice.
    pub number: u32,
    /// The node that shall run it, in one of its starts.
    pub executor: Actor,
    /// When, by the owner's clock.
    pub at: Timestamp,
    /// Which writes the owner knew.
    pub seen: Clock,
    /// The chain of the checkpoint that the owner knew, which this attempt is to go on from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resumed_from: Option<u32>,
}

impl Claim {
    /// Any total order will do: two claims with one dot differ only where somebody broke the rules.
    fn order(&self) -> (u32, Actor, Timestamp, Option<u32>, &BTreeMap<Actor, u64>) {
        (self.number, self.executor, self.at, self.resumed_from, &self.seen.dots)
    }

    /// The chain of the checkpoints that this attempt saves.
    pub fn chain(&self) -> u32 {
        self.resumed_from.map_or(0, |chain| chain.saturating_add(1))
    }
}

/// One execution of the job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// The decision.
    pub claim: Claim,
    /// When its pod was started, by the executor's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// What became of it.
    pub fate: Fate,
    /// How far it says it has come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// What it came to, as far as it has said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Outcome>,
    /// The ends of its two outputs: now and then while it runs and writes, and with its end.
    #[serde(default, skip_serializing_if = "Tails::is_empty")]
    pub tails: Tails,
    /// What it used of its machine, as far as that was counted. Written with its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Box<Usage>>,
}

/// What an attempt used of its machine in all. Merges by the larger, field by field: counts only grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Processor time, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_ms: Option<u64>,
    /// The most memory that it had at one time, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_memory_bytes: Option<u64>,
}

impl Usage {
    fn merge(self, other: Self) -> Self {
        Self {
            cpu_ms: self.cpu_ms.max(other.cpu_ms),
            peak_memory_bytes: self.peak_memory_bytes.max(other.peak_memory_bytes),
        }
    }

    /// Either, or what both come to.
    pub(super) fn merge_into(own: &mut Option<Box<Self>>, other: Option<&Self>) {
        if let Some(other) = other {
            *own = Some(Box::new(own.as_deref().map_or(*other, |own| own.merge(*other))));
        }
    }
}

impl Attempt {
    /// Whether it runs, or is about to.
    pub fn is_live(&self) -> bool {
        self.fate.phase.is_live()
    }

    /// What its executor found worth saying of its end, beside how it ended.
    pub fn remark(&self) -> Option<&str> {
        let is_told = !self.is_live() && self.fate.by_executor && !self.fate.reason.is_empty();
        is_told.then_some(self.fate.reason.as_str())
    }

    /// Which of two live attempts goes on: the one with the higher fence.
    pub fn fence(&self) -> Fence {
        Fence::new(self.claim.number, self.claim.executor.node)
    }

    pub(super) fn merge(&mut self, other: &Self) {
        if other.claim.order() > self.claim.order() {
            self.claim = other.claim.clone();
        }
        self.started_at = self.started_at.max(other.started_at);
        if other.fate > self.fate {
            self.fate = other.fate.clone();
        }
        if other.progress > self.progress {
            self.progress.clone_from(&other.progress);
        }
        self.result = self.result.max(other.result);
        self.tails.merge(&other.tails);
        Usage::merge_into(&mut self.usage, other.usage.as_deref());
    }

    /// The blobs that it names.
    pub(super) fn blobs(&self) -> impl Iterator<Item = BlobRef> {
        self.result.map(|result| result.blob()).into_iter().chain(self.tails.iter().map(|tail| tail.blob))
    }

    /// Whether its executor itself said how it ended, in a write that `seen` includes.
    pub(super) fn end_was_seen(&self, seen: &Clock) -> bool {
        !self.is_live() && self.fate.by_executor && seen.get(&self.fate.dot.actor) >= self.fate.dot.counter
    }

    /// Whether it may have run: it started, or its executor never said that it did not. A node that was restarted
    /// does not know what its earlier start did after it last wrote to its disk.
    pub fn may_have_run(&self) -> bool {
        self.started_at.is_some() || self.fate.phase == Phase::Lost
    }

    /// Whether it is certain that it ran on, unless its end was seen. Who was killed while nobody could say so, with its node
    /// or by the guard of one that stood still, may have died before anybody else began. When that was is told later, and by
    /// a clock: a clock may be wrong, so it is shown and proves nothing.
    pub(super) fn ran_on(&self) -> bool {
        let was_killed_unseen = self.fate.phase == Phase::Returned && self.fate.exit == Some(Exit::KILLED);
        self.started_at.is_some() && self.fate.phase != Phase::Lost && !was_killed_unseen
    }
}

/// Two attempts that ran, or may have run, at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Overlap {
    /// The one, by the dot of its claim.
    pub first: Dot,
    /// The other.
    pub second: Dot,
    /// Both are known to have run; otherwise one may have died before it started, or before the other did.
    pub certain: bool,
}
