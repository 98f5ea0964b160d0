//! flockwork: a leaderless peer-to-peer job cluster.

pub mod api;
pub mod io;
pub mod model;
pub mod node;
pub mod protocol;
