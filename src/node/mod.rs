//! A running node: one Peer, driven by one loop, with all its shells around it.

pub mod handle;
pub mod options;
