//! What a node is started with: the protocol's settings, and where its sockets and files are.
//!
//! The command line builds these options from flags, environment and a file; an embedding program builds
//! them by hand. Both are held to the same rules by [`NodeOptions::validate`], above all to this one: whoever
//! can reach a node can run commands on it, so a node without security listens on loopback only.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use crate::io::faults::Faults;
use crate::model::config::Config;
use crate::model::spec::InvalidField;

/// Where peers reach a node unless it is told otherwise.
pub const DEFAULT_CLUSTER_PORT: u16 = 7071;

/// Where clients reach a node unless it is told otherwise.
pub const DEFAULT_HTTP_PORT: u16 = 7070;

/// How much of one attempt's output is kept, for each of its two streams, unless set: 64 MiB.
pub const DEFAULT_LOG_LIMIT_BYTES: u64 = 64 << 20;

/// Everything a node is started with.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeOptions {
    /// For people; unique in the cluster. Made from the node's id if absent.
    pub name: Option<String>,
    /// Where the node keeps its identity, its records and its jobs' logs. One running node per directory.
    pub data_dir: PathBuf,
    /// Where to listen for peers, by TCP and UDP. Port 0 picks a free one.
    pub listen: SocketAddr,
    /// Where clients reach the node, as peers are told: the address of the HTTP listener once it is bound.
    pub http_addr: SocketAddr,
    /// The host that peers and clients are told, where it is not the one listened on (all interfaces, or
    /// behind an address translation).
    pub advertise: Option<String>,
    /// Other nodes' cluster addresses, as `host:port`. Any one that answers will do; none founds a cluster.
    pub seeds: Vec<String>,
    /// How the node takes part.
    pub config: Config,
    /// Listen beyond loopback although anybody who reaches the node can run commands on it.
    pub insecure: bool,
    /// How much of one attempt's output is kept, for each of its two streams, in bytes.
    pub log_limit_bytes: u64,
    /// The socket of this machine's Docker daemon, which need not be there yet. The node takes jobs with driver
    /// `container` while a daemon answers at it; without a socket it takes none.
    pub docker: Option<PathBuf>,
    /// What the node may be told to pretend; disarmed except in tests of what a cluster lives through.
    pub faults: Faults,
}

impl NodeOptions {
    /// A node that keeps its files in `data_dir`, listens on a free port of loopback, and joins nobody.
    pub fn new(data_dir: impl Into<PathBuf>, config: Config) -> Self {
        let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self {
            name: None,
            data_dir: data_dir.into(),
            listen: loopback,
            http_addr: loopback,
            advertise: None,
            seeds: Vec::new(),
            config,
            insecure: false,
            log_limit_bytes: DEFAULT_LOG_LIMIT_BYTES,
            docker: None,
            faults: Faults::disarmed(),
        }
    }

    /// Checks the options and their relations, the protocol's settings included.
    ///
    /// # Errors
    /// The first option that cannot be what it is, and what would be right.
    pub fn validate(&self) -> Result<(), InvalidField> {
        if let Some(name) = &self.name
            && (name.is_empty() || name.len() > 64 || !name.bytes().all(|b| b.is_ascii_graphic()))
        {
            return Err(InvalidField::new("name", "must have 1 to 64 visible ASCII characters"));
        }
        check_reach("listen", self.listen, self.insecure)?;
        check_reach("http", self.http_addr, self.insecure)?;
        if self.listen.ip().is_unspecified() && self.advertise.is_none() {
            let message = format!("peers cannot reach {}: name this machine's own address by advertise", self.listen);
            return Err(InvalidField::new("advertise", message));
        }
        self.config.validate()
    }
}

/// Refuses an address beyond loopback unless `insecure` says that it is meant. `field` is the option's name.
/// Checked before a socket is bound, so that nothing is open for even a moment.
///
/// # Errors
/// The address can be reached from other machines.
pub fn check_reach(field: &str, addr: SocketAddr, insecure: bool) -> Result<(), InvalidField> {
    if addr.ip().to_canonical().is_loopback() || insecure {
        return Ok(());
    }
    let message = format!(
        "{addr} can be reached from other machines, and whoever reaches a node can run commands on it; \
         listen on 127.0.0.1, or say insecure if the network keeps everybody else out"
    );
    Err(InvalidField::new(field, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn reach(addr: &str, insecure: bool) -> Result<(), InvalidField> {
        check_reach("listen", addr.parse().unwrap(), insecure)
    }

    #[test]
    fn nobody_listens_to_the_world_by_accident() {
        assert_eq!(reach("127.0.0.1:7071", false), Ok(()));
        assert_eq!(reach("[::1]:7071", false), Ok(()));
        assert_eq!(reach("[::ffff:127.0.0.1]:7071", false), Ok(()));
        assert_eq!(reach("0.0.0.0:7071", false).unwrap_err().field, "listen");
        assert!(reach("10.0.0.1:7071", false).is_err());
        assert_eq!(reach("0.0.0.0:7071", true), Ok(()));
    }
}
