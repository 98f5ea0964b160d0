//! The lowest floor: values. Ids, time, settings, specs, records, resources, the ring, what peers say to
//! each other. Nothing here acts, waits or asks the machine anything.

pub mod attempt;
pub mod blob;
pub mod config;
pub mod id;
pub mod member;
pub mod packed;
pub mod record;
pub mod report;
pub mod request;
pub mod resources;
pub mod ring;
pub mod spec;
pub mod time;
pub mod wire;
