//! `flockwork node`: from flags, environment and settings file to a node's options, and its life as a process.
//!
//! Everything is checked before anything is opened; above all, that a node without security stays on loopback
//! unless somebody says in so many words that it should not.

use std::collections::BTreeMap;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;

use clap::builder::FalseyValueParser;
use clap::{ArgMatches, Args};
use flockwork::io::telemetry::LogFormat;
use flockwork::model::config::{Config, DEFAULT_RETENTION, Profile};
use flockwork::model::member::ClusterSettings;
use flockwork::model::resources::{Cpus, Memory, Resources};
use flockwork::model::time::duration;
use flockwork::node::options::{
    DEFAULT_CLUSTER_PORT, DEFAULT_HTTP_PORT, DEFAULT_LOG_LIMIT_BYTES, NodeOptions, check_reach,
};
use std::time::Duration;

use super::config::{Setting, Sources, timing};
use super::failure::Failure;
use super::job_options::key_value;
use super::state::user_folder;

/// `flockwork node`.
#[derive(Debug, Clone, Args)]
pub(crate) struct NodeArgs {
    #[command(flatten)]
    pub(crate) settings: NodeFlags,
    /// For whom the log on standard error is written; FLOCKWORK_LOG says how much of it
    #[arg(long, value_enum, value_name = "FORMAT", env = "FLOCKWORK_LOG_FORMAT", default_value = "text")]
    pub(crate) log_format: LogFormat,
    /// Leave when standard input is closed: for programs that start nodes of their own
    #[arg(long, hide = true)]
    pub(crate) until_stdin_closes: bool,
    /// Let clients tell this node to pretend faults, by POST /debug/faults: for tests of what a cluster lives through
    #[arg(long, hide = true)]
    pub(crate) enable_fault_injection: bool,
}

/// The settings of a node, as flags and environment variables.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Node")]
pub(crate) struct NodeFlags {
    /// Its name, for people; unique in the cluster [default: made from its id]
    #[arg(long, value_name = "NAME", env = "FLOCKWORK_NAME")]
    name: Option<String>,
    /// Where it keeps its identity, its records and its jobs' logs [default: ~/.local/share/flockwork/node]
    #[arg(long, value_name = "DIR", env = "FLOCKWORK_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// Where to listen for peers, by TCP and UDP; port 0 picks a free one [default: 127.0.0.1:7071]
    #[arg(long, value_name = "HOST:PORT", env = "FLOCKWORK_LISTEN")]
    listen: Option<String>,
    /// Where to listen for clients; port 0 picks a free one [default: 127.0.0.1:7070]
    #[arg(long, value_name = "HOST:PORT", env = "FLOCKWORK_HTTP")]
    http: Option<String>,
    /// The host that peers and clients are told, where it is not the one listened on
    #[arg(long, value_name = "HOST", env = "FLOCKWORK_ADVERTISE")]
    advertise: Option<String>,
    /// Another node's cluster address. Any one that answers will do; none founds a cluster. May be repeated
    #[arg(long = "seed", value_name = "HOST:PORT", env = "FLOCKWORK_SEED", value_delimiter = ',')]
    seeds: Option<Vec<String>>,
    /// How many jobs run here side by side [default: what the machine has]
    #[arg(long, value_name = "N", env = "FLOCKWORK_SLOTS")]
    slots: Option<u32>,
    /// Processors for jobs [default: all]
    #[arg(long, value_name = "N", env = "FLOCKWORK_CPUS")]
    cpus: Option<Cpus>,
    /// Memory for jobs [default: all]
    #[arg(long, value_name = "SIZE", env = "FLOCKWORK_MEMORY")]
    memory: Option<Memory>,
    /// What jobs can ask for by --require. May be repeated
    #[arg(long = "label", value_name = "K=V", value_parser = key_value)]
    labels: Option<Vec<(String, String)>>,
    /// How far apart the nodes are; sets every timing: local, lan or wan [default: lan]
    #[arg(long, value_name = "PROFILE", env = "FLOCKWORK_PROFILE", value_parser = profile)]
    profile: Option<Profile>,
    /// How many nodes keep each job's record; the same on every node [default: 3]
    #[arg(long, value_name = "R", env = "FLOCKWORK_REPLICAS")]
    replicas: Option<u32>,
    /// How many slices the jobs are divided into; the same on every node, a power of two [default: 1024]
    #[arg(long, value_name = "Q", env = "FLOCKWORK_PARTITIONS")]
    partitions: Option<u32>,
    /// The cluster's name; a node of another name is not let in [default: flockwork]
    #[arg(long, value_name = "NAME", env = "FLOCKWORK_CLUSTER")]
    cluster: Option<String>,
    /// After how long a node that is down is forgotten; the same on every node [default: 1day]
    #[arg(long, value_name = "TIME", env = "FLOCKWORK_FORGET_AFTER", value_parser = duration::parse)]
    forget_after: Option<Duration>,
    /// How long finished jobs are kept, counted from when all replicas agree on their end [default: 7days]
    #[arg(long, value_name = "TIME", env = "FLOCKWORK_RETENTION", value_parser = duration::parse)]
    retention: Option<Duration>,
    /// How much of each output stream of an attempt is kept [default: 64MiB]
    #[arg(long, value_name = "SIZE", env = "FLOCKWORK_LOG_LIMIT")]
    log_limit: Option<Memory>,
    /// Where this machine's Docker listens, for jobs that are containers: unix:///PATH, or off
    /// [default: DOCKER_HOST, or unix:///var/run/docker.sock]
    #[arg(long, value_name = "WHERE", env = "FLOCKWORK_DOCKER")]
    docker: Option<String>,
    /// A host name that clients may use for this node, besides localhost and addresses. May be repeated
    #[arg(long = "allow-host", value_name = "NAME", env = "FLOCKWORK_ALLOW_HOSTS", value_delimiter = ',')]
    allow_hosts: Option<Vec<String>>,
    /// Listen beyond loopback although whoever reaches the node can run commands on it
    #[arg(long, env = "FLOCKWORK_INSECURE", value_parser = FalseyValueParser::new())]
    insecure: bool,
}

/// A node's settings, each with where it came from. What the machine decides is still open.
#[derive(Debug, Clone)]
pub(crate) struct NodePlan {
    pub(crate) name: Setting<Option<String>>,
    pub(crate) data_dir: Setting<PathBuf>,
    pub(crate) listen: Setting<SocketAddr>,
    pub(crate) http: Setting<SocketAddr>,
    pub(crate) advertise: Setting<Option<String>>,
    pub(crate) seeds: Setting<Vec<String>>,
    pub(crate) slots: Setting<Option<u32>>,
    pub(crate) cpus: Setting<Option<Cpus>>,
    pub(crate) memory: Setting<Option<Memory>>,
    pub(crate) labels: Setting<BTreeMap<String, String>>,
    pub(crate) profile: Setting<Profile>,
    pub(crate) replicas: Setting<u32>,
    pub(crate) partitions: Setting<u32>,
    pub(crate) cluster: Setting<String>,
    pub(crate) forget_after: Setting<Duration>,
    pub(crate) retention: Setting<Duration>,
    pub(crate) log_limit: Setting<Memory>,
    pub(crate) docker: Setting<String>,
    pub(crate) allow_hosts: Setting<Vec<String>>,
    pub(crate) insecure: Setting<bool>,
    timing: flockwork::model::config::Timing,
}

impl NodePlan {
    /// Settles every setting, and checks what can be checked without opening anything.
    pub(crate) fn settle(flags: &NodeFlags, matches: &ArgMatches, sources: &Sources<'_>) -> Result<Self, Failure> {
        let flags = flags.clone();
        let file = sources.file.node.clone();
        let data_dir = user_folder("XDG_DATA_HOME", ".local/share").map(|folder| folder.join("node"));
        let loopback = |port: u16| format!("127.0.0.1:{port}");
        let profile = sources.settle("profile", flags.profile, file.profile, Profile::default());
        // A switch that was not turned on was not given: the file may still turn it on.
        let insecure = flags.insecure.then_some(true);
        let was_typed = matches.value_source("insecure") != Some(clap::parser::ValueSource::DefaultValue);
        let plan = Self {
            name: sources.settle("name", flags.name.map(Some), file.name.map(Some), None),
            data_dir: sources.settle("data_dir", flags.data_dir, file.data_dir, data_dir.unwrap_or_default()),
            listen: address(
                "listen",
                sources.settle("listen", flags.listen, file.listen, loopback(DEFAULT_CLUSTER_PORT)),
            )?,
            http: address("http", sources.settle("http", flags.http, file.http, loopback(DEFAULT_HTTP_PORT)))?,
            advertise: sources.settle("advertise", flags.advertise.map(Some), file.advertise.map(Some), None),
            seeds: sources.settle("seeds", flags.seeds, file.seeds, Vec::new()),
            slots: sources.settle("slots", flags.slots.map(Some), file.slots.map(Some), None),
            cpus: sources.settle("cpus", flags.cpus.map(Some), file.cpus.map(Some), None),
            memory: sources.settle("memory", flags.memory.map(Some), file.memory.map(Some), None),
            labels: sources.settle(
                "labels",
                flags.labels.map(|labels| labels.into_iter().collect()),
                file.labels,
                BTreeMap::new(),
            ),
            timing: timing(profile.value, &file.timing)?,
            profile,
            replicas: sources.settle("replicas", flags.replicas, file.replicas, 3),
            partitions: sources.settle("partitions", flags.partitions, file.partitions, 1_024),
            cluster: sources.settle("cluster", flags.cluster, file.cluster, "flockwork".to_owned()),
            retention: sources.settle("retention", flags.retention, file.retention, DEFAULT_RETENTION),
            forget_after: sources.settle(
                "forget_after",
                flags.forget_after,
                file.forget_after,
                Duration::from_secs(24 * 3_600),
            ),
            log_limit: sources.settle(
                "log_limit",
                flags.log_limit,
                file.log_limit,
                Memory { bytes: DEFAULT_LOG_LIMIT_BYTES },
            ),
            docker: sources.settle("docker", flags.docker, file.docker, usual_docker()),
            allow_hosts: sources.settle("allow_hosts", flags.allow_hosts, file.allow_hosts, Vec::new()),
            insecure: sources.settle("insecure", insecure.filter(|_| was_typed), file.insecure, false),
        };
        plan.check()?;
        Ok(plan)
    }

    fn check(&self) -> Result<(), Failure> {
        if !self.data_dir.value.is_absolute() && self.data_dir.value.as_os_str().is_empty() {
            return Err(Failure::usage("no place for the node's data: neither HOME nor XDG_DATA_HOME is set")
                .with_hint("name one with --data-dir"));
        }
        for (field, addr) in [("--listen", self.listen.value), ("--http", self.http.value)] {
            check_reach(field, addr, self.insecure.value).map_err(|invalid| {
                Failure::usage(invalid.to_string())
                    .with_hint("--insecure (or FLOCKWORK_INSECURE=1) says so on the command line")
            })?;
        }
        // Port 0 or not: what else is wrong is wrong before anything is opened.
        let machine = Resources { cpus: Cpus::whole(1), memory: Memory::default(), slots: 1 };
        self.options(machine, self.http.value)?.validate().map_err(|invalid| Failure::usage(invalid.to_string()))
    }

    /// The options to start a node with, on a machine that has `machine` for jobs, whose HTTP listener is bound
    /// to `http_addr`.
    pub(crate) fn options(&self, machine: Resources, http_addr: SocketAddr) -> Result<NodeOptions, Failure> {
        let capacity = Resources {
            cpus: self.cpus.value.unwrap_or(machine.cpus),
            memory: self.memory.value.unwrap_or(machine.memory),
            slots: self.slots.value.unwrap_or(machine.slots),
        };
        let advertise = self.advertise.value.clone();
        Ok(NodeOptions {
            name: self.name.value.clone(),
            data_dir: self.data_dir.value.clone(),
            listen: self.listen.value,
            http_addr: advertised(http_addr, advertise.as_deref())?,
            advertise,
            seeds: self.seeds.value.clone(),
            config: Config {
                retention: self.retention.value,
                cluster: ClusterSettings {
                    name: self.cluster.value.clone(),
                    partitions: self.partitions.value,
                    replicas: self.replicas.value,
                    forget_after: self.forget_after.value,
                },
                timing: self.timing.clone(),
                labels: self.labels.value.clone(),
                ..Config::new(self.profile.value, capacity)
            },
            insecure: self.insecure.value,
            log_limit_bytes: self.log_limit.value.bytes,
            docker: docker_socket(&self.docker)?,
            faults: flockwork::io::faults::Faults::disarmed(),
        })
    }

    /// Every setting as TOML would have it, and where it came from.
    pub(crate) fn shown(&self) -> Vec<(&'static str, Option<serde_json::Value>, super::config::Source)> {
        fn entry<T: serde::Serialize>(
            name: &'static str,
            setting: &Setting<T>,
        ) -> (&'static str, Option<serde_json::Value>, super::config::Source) {
            let value = serde_json::to_value(&setting.value).ok().filter(|value| !value.is_null());
            (name, value, setting.source.clone())
        }
        let written = |time: &Duration| humantime::format_duration(*time).to_string();
        vec![
            entry("name", &self.name),
            entry("data_dir", &self.data_dir),
            entry("listen", &self.listen),
            entry("http", &self.http),
            entry("advertise", &self.advertise),
            entry("seeds", &self.seeds),
            entry("slots", &self.slots),
            entry("cpus", &self.cpus),
            entry("memory", &self.memory),
            entry("labels", &self.labels),
            entry("profile", &self.profile),
            entry("replicas", &self.replicas),
            entry("partitions", &self.partitions),
            entry("cluster", &self.cluster),
            entry("retention", &self.retention.clone().map(|time| written(&time))),
            entry("forget_after", &self.forget_after.clone().map(|time| written(&time))),
            entry("log_limit", &self.log_limit),
            entry("docker", &self.docker),
            entry("allow_hosts", &self.allow_hosts),
            entry("insecure", &self.insecure),
        ]
    }
}

/// Where Docker's own command line would look.
fn usual_docker() -> String {
    std::env::var("DOCKER_HOST")
        .ok()
        .filter(|host| !host.is_empty())
        .unwrap_or_else(|| "unix:///var/run/docker.sock".to_owned())
}

/// The socket that was named, if containers are wanted.
fn docker_socket(setting: &Setting<String>) -> Result<Option<PathBuf>, Failure> {
    let text = setting.value.as_str();
    match text.strip_prefix("unix://") {
        _ if text == "off" => Ok(None),
        Some(path) if path.starts_with('/') && !path.contains(char::is_control) => Ok(Some(path.into())),
        // Somebody told Docker's own programs of a daemon elsewhere, which is none for this node's pods.
        _ if setting.source == super::config::Source::Default => Ok(None),
        _ => Err(Failure::usage(format!("--docker {text}: write unix:///PATH, or off")).with_hint(
            "a container shares directories and the network with its node, so its Docker is this machine's",
        )),
    }
}

/// What others are told: the address listened on, at the advertised host if one is named.
fn advertised(bound: SocketAddr, host: Option<&str>) -> Result<SocketAddr, Failure> {
    match host {
        None => Ok(bound),
        Some(host) => resolve("advertise", host.trim_matches(['[', ']']), bound.port()),
    }
}

fn address(name: &str, setting: Setting<String>) -> Result<Setting<SocketAddr>, Failure> {
    let text = setting.value.clone();
    let wrong = || Failure::usage(format!("--{name} {text}: write HOST:PORT, for instance 127.0.0.1:7071"));
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let port: u16 = port.parse().map_err(|_| wrong())?;
    let addr = resolve(name, host.trim_matches(['[', ']']), port)?;
    Ok(setting.map(|_| addr))
}

fn resolve(name: &str, host: &str, port: u16) -> Result<SocketAddr, Failure> {
    let wrong = |why: String| Failure::usage(format!("--{name} {host}: {why}"));
    let mut found = (host, port).to_socket_addrs().map_err(|error| wrong(error.to_string()))?;
    found.next().ok_or_else(|| wrong("the name has no address".to_owned()))
}

fn profile(text: &str) -> Result<Profile, String> {
    match text {
        "local" => Ok(Profile::Local),
        "lan" => Ok(Profile::Lan),
        "wan" => Ok(Profile::Wan),
        _ => Err("it must be local, lan or wan".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, FromArgMatches};

    use super::super::failure::Kind;
    use super::*;

    fn plan(arguments: &[&str]) -> Result<NodePlan, Failure> {
        let all = ["flockwork", "node", "--config", "/dev/null", "--data-dir", "/tmp/x"].iter().chain(arguments);
        let matches = super::super::Cli::command().try_get_matches_from(all).unwrap();
        let matches = matches.subcommand_matches("node").unwrap();
        let flags = NodeFlags::from_arg_matches(matches).unwrap();
        let sources = Sources::read(matches, Some("/dev/null".as_ref())).unwrap();
        NodePlan::settle(&flags, matches, &sources)
    }

    #[test]
    fn a_node_stays_on_loopback_unless_told_in_so_many_words() {
        assert!(plan(&[]).unwrap().listen.value.ip().is_loopback());
        for option in ["--listen", "--http"] {
            let failure = plan(&[option, "0.0.0.0:7071", "--advertise", "10.0.0.1"]).unwrap_err();
            assert_eq!(failure.kind, Kind::Usage);
            assert!(failure.message.contains(option) && failure.hint.unwrap().contains("--insecure"));
        }
        let open = plan(&["--listen", "0.0.0.0:7071", "--insecure", "--advertise", "10.0.0.1"]).unwrap();
        let options = open.options(Resources { slots: 4, ..Resources::default() }, open.http.value).unwrap();
        assert_eq!(options.http_addr, "10.0.0.1:7070".parse().unwrap());
        assert!(plan(&["--listen", "0.0.0.0:7071", "--insecure"]).unwrap_err().message.contains("advertise"));
    }

    #[test]
    fn the_machine_decides_what_nobody_said() {
        let machine = Resources { cpus: Cpus::whole(96), memory: Memory { bytes: 1 << 30 }, slots: 96 };
        let bound = "127.0.0.1:1".parse().unwrap();
        let config = plan(&["--slots", "3", "--label", "disk=ssd"]).unwrap().options(machine, bound).unwrap().config;
        assert_eq!(
            (config.capacity.slots, config.capacity.memory.bytes, config.weight),
            (3, 1 << 30, flockwork::model::config::MAX_WEIGHT)
        );
        assert_eq!(config.labels["disk"], "ssd");
        let half = plan(&["--cpus", "0.5"]).unwrap().options(machine, bound).unwrap().config;
        assert_eq!(half.weight, 1);
    }

    #[test]
    fn what_cannot_be_is_named_before_anything_is_opened() {
        for (arguments, named) in [
            (&["--partitions", "1000"][..], "partitions"),
            (&["--replicas", "0"], "replicas"),
            (&["--slots", "0"], "slots"),
            (&["--name", ""], "name"),
            (&["--listen", "7071"], "--listen"),
            (&["--docker", "tcp://10.0.0.1:2375"], "--docker"),
            (&["--listen", "127.0.0.1:99999"], "--listen"),
        ] {
            let failure = plan(arguments).unwrap_err();
            assert_eq!(failure.kind, Kind::Usage);
            assert!(failure.message.contains(named), "{arguments:?}: {}", failure.message);
        }
    }
}
