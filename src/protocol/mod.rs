//! The protocol: what a node decides, as state machines that do no IO.
//!
//! Everything here is told the time and given its dice. `handle_*` takes something that happened, `poll_*`
//! gives something to do, plain nouns read.

pub mod blobs;
pub mod comparison;
pub mod effect;
pub mod failure_detector;
pub mod former;
pub mod gateway;
pub mod lifecycle;
pub mod membership;
pub mod numbers;
pub mod outbox;
pub mod peer;
pub mod records;
pub mod replication;
pub mod room;
pub mod sabotage;
pub mod scheduler;
pub mod snapshot;
pub mod sorted;
