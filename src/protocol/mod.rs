//! The protocol: what a node decides, as state machines that do no IO.
//!
//! Everything here is told the time and given its dice. `handle_*` takes something that happened, `poll_*`
//! gives something to do, plain nouns read.

pub mod effect;
mod failure_detector;
pub mod gateway;
pub mod membership;
pub mod snapshot;
