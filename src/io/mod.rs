//! The shells: they move bytes, keep the clock, and obey. What is interesting is one floor down.
#![allow(clippy::disallowed_methods, reason = "io owns the clock, the sockets and the tasks")]

pub mod blob_exchange;
pub mod clock;
pub mod crash_points;
pub mod datagram;
pub mod executor;
pub mod faults;
pub mod gossip;
pub mod machine;
pub mod pod_api;
mod skew;
pub mod store;
pub mod telemetry;
mod throttle;
pub mod transport;
