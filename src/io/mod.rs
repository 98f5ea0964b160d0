//! The shells: they move bytes, keep the clock, and obey. What is interesting is one floor down.
#![allow(clippy::disallowed_methods, reason = "io owns the clock, the sockets and the tasks")]

pub mod executor;
