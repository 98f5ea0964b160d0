//! From the options of `run` and `submit` to a job's spec.
//!
//! The command line adds nothing to a spec that the HTTP side would not take: `--dry-run` prints exactly what
//! would be sent, and can be kept in a file and submitted from there.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::time::Duration;

use clap::Args;
use clap::builder::PossibleValuesParser;
use flockwork::model::resources::{Cpus, Memory};
use flockwork::model::spec::{Backoff, Driver, Durability, Limit, MAX_SPEC_BYTES, OnPartition, Pull, Spec, Stdin};
use flockwork::model::time::duration;

use super::failure::Failure;

/// The options that describe a job.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Job")]
pub(crate) struct JobOptions {
    /// A name for people; need not be unique
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// An environment variable; without a value, the one set here. May be repeated
    #[arg(long, value_name = "K=V", value_parser = environment_variable)]
    env: Vec<(String, String)>,
    /// The directory to run in, on the node that runs it [default: one of the attempt's own]
    #[arg(long, value_name = "DIR")]
    cwd: Option<String>,
    /// Who it runs as, on a node that runs as root: a name, or numbers [default: as its node]
    #[arg(long, value_name = "NAME|UID[:GID]")]
    user: Option<String>,
    /// Which rights new files do not get, in octal, for instance 027 [default: as its node]
    #[arg(long, value_name = "OCTAL")]
    umask: Option<String>,
    /// A limit of each process: address_space, core_size, file_size (sizes, such as 512MiB), cpu_time (seconds),
    /// open_files, processes (of its user, in all). May be repeated
    #[arg(long, value_name = "NAME=N", value_parser = limit)]
    limit: Vec<(Limit, u64)>,
    /// What the job reads from its standard input, at most 1 MiB: a file of this machine, or - for this command's own
    /// [default: nothing]
    #[arg(long, value_name = "FILE|-")]
    stdin: Option<String>,
    /// Processors to set aside, for instance 0.5; no more than these on nodes with the label limits=enforced
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    cpus: Option<Cpus>,
    /// Memory to set aside, for instance 512MiB; no more than this on nodes with the label limits=enforced
    #[arg(long, visible_alias = "memory", value_name = "SIZE", allow_negative_numbers = true)]
    mem: Option<Memory>,
    /// Slots to take
    #[arg(long, value_name = "N", default_value_t = 1, allow_negative_numbers = true)]
    slots: u32,
    /// A label that the node must have. May be repeated
    #[arg(long, value_name = "K=V", value_parser = key_value)]
    require: Vec<(String, String)>,
    /// How long one attempt may run, for instance 90 or 1m30s. It is told to end by SIGTERM then, and killed if it has not
    /// ended after five seconds
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = duration::parse)]
    timeout: Option<Duration>,
    /// How long an attempt may say nothing of itself (`flockwork pod heartbeat`, or any other of these) before it
    /// counts as hung, and is stopped and retried
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = duration::parse)]
    heartbeat_timeout: Option<Duration>,
    /// How long the job may wait for its first attempt
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = duration::parse)]
    queue_timeout: Option<Duration>,
    /// How long the job may take in all, waits and every attempt included
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = duration::parse)]
    total_timeout: Option<Duration>,
    /// How many failed attempts are followed by another
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    retries: u32,
    /// The wait before another attempt: the first one, what each further one is multiplied by, the longest. Each is made
    /// shorter at random, by up to a quarter, so that jobs that failed together do not all come back together
    #[arg(long, value_name = "TIME[,FACTOR,MAX]", allow_hyphen_values = true, value_parser = backoff, default_value = "1s,2,1m")]
    backoff: Backoff,
    /// Exit codes that are not worth another attempt, for instance 2,64
    #[arg(long, value_name = "CODES", value_delimiter = ',', value_parser = exit_code)]
    no_retry_on: Vec<i32>,
    /// How many attempts may be lost with their node
    #[arg(long, value_name = "N", default_value_t = 5, allow_negative_numbers = true)]
    lost_limit: u32,
    /// Idempotency key: the same key and spec are the same job, however often submitted [default: a random
    /// one, so that a submit whose answer was lost can be repeated safely]
    #[arg(long, value_name = "KEY")]
    pub(crate) key: Option<String>,
    /// How long to wait before the first attempt
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = duration::parse)]
    delay: Option<Duration>,
    /// How long the job is known after its end, at least 10m and to the hour [default: as long as the nodes keep jobs]
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = duration::parse)]
    ttl: Option<Duration>,
    /// Higher runs first among the jobs that wait on one node
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    priority: i32,
    /// How many synced copies the acknowledgement waits for
    #[arg(long, value_name = "HOW", default_value = "majority",
          value_parser = PossibleValuesParser::new(["one", "majority", "all"]))]
    durability: String,
    /// Where a majority of the nodes is out of reach: go on, or start nothing and end what runs
    #[arg(long, value_name = "HOW", default_value = "run", value_parser = PossibleValuesParser::new(["run", "pause"]))]
    on_partition: String,
    /// What runs it: a program of the node's machine, or a container of its Docker [default: process, and container where
    /// there is an --image]
    #[arg(long, value_name = "DRIVER",
          value_parser = PossibleValuesParser::new(["process", "container"]))]
    driver: Option<String>,
    /// The image of its container, which shares the network of its node
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    /// When the image is fetched: where the node has none, before every attempt, or never
    #[arg(long, value_name = "WHEN", default_value = "missing",
          value_parser = PossibleValuesParser::new(["missing", "always", "never"]))]
    pull: String,
}

impl JobOptions {
    /// The spec they describe, for `command`; not yet checked as a whole.
    pub(crate) fn spec(&self, command: Vec<String>) -> Result<Spec, Failure> {
        let durability = match self.durability.as_str() {
            "one" => Durability::One,
            "all" => Durability::All,
            _ => Durability::Majority,
        };
        Ok(Spec {
            command,
            name: self.name.clone(),
            env: self.env.iter().cloned().collect(),
            cwd: self.cwd.clone(),
            user: self.user.clone(),
            umask: self.umask.clone(),
            limits: self.limit.iter().copied().collect(),
            stdin: self.stdin.as_deref().map(read_stdin).transpose()?,
            cpus: self.cpus.unwrap_or_default(),
            memory: self.mem.unwrap_or_default(),
            slots: self.slots,
            require: self.require.iter().cloned().collect::<BTreeMap<_, _>>(),
            timeout: self.timeout,
            heartbeat_timeout: self.heartbeat_timeout,
            queue_timeout: self.queue_timeout,
            total_timeout: self.total_timeout,
            retries: self.retries,
            backoff: self.backoff,
            no_retry_on: self.no_retry_on.iter().copied().collect::<BTreeSet<_>>(),
            lost_limit: self.lost_limit,
            key: self.key.clone(),
            delay: self.delay,
            ttl: self.ttl,
            priority: self.priority,
            durability,
            on_partition: if self.on_partition == "pause" { OnPartition::Pause } else { OnPartition::Run },
            driver: match self.driver.as_deref() {
                Some("container") => Driver::Container,
                None if self.image.is_some() => Driver::Container,
                _ => Driver::Process,
            },
            image: self.image.clone(),
            pull: match self.pull.as_str() {
                "always" => Pull::Always,
                "never" => Pull::Never,
                _ => Pull::Missing,
            },
            handler: None,
            payload: None,
        })
    }
}

/// Checks a spec as a node would, so that a mistake is a usage error here and not a refusal there.
pub(crate) fn check(spec: &Spec) -> Result<(), Failure> {
    spec.validate().map_err(|invalid| Failure::usage(format!("the job cannot be: {invalid}")))
}

fn read_stdin(from: &str) -> Result<Stdin, Failure> {
    let unreadable = |error: std::io::Error| Failure::usage(format!("cannot read --stdin {from}: {error}"));
    let mut content = Vec::new();
    let limit = MAX_SPEC_BYTES as u64 + 1;
    let read = if from == "-" {
        std::io::stdin().lock().take(limit).read_to_end(&mut content)
    } else {
        std::fs::File::open(from).and_then(|file| file.take(limit).read_to_end(&mut content))
    };
    read.map_err(unreadable)?;
    if content.len() > MAX_SPEC_BYTES {
        return Err(Failure::usage(format!("--stdin {from} holds more than {MAX_SPEC_BYTES} bytes"))
            .with_hint("put large input where every node can read it, and give the job its path"));
    }
    Ok(Stdin(content))
}

/// Reads `K=V`.
pub(crate) fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write NAME=VALUE".to_owned()),
    }
}

fn exit_code(text: &str) -> Result<i32, String> {
    let code = text.trim().parse().ok().filter(|code| (0..=255).contains(code));
    code.ok_or_else(|| format!("`{text}` is no exit code, which is a number from 0 to 255"))
}

/// Reads `LIMIT=N`, where N may be a size.
fn limit(text: &str) -> Result<(Limit, u64), String> {
    let (name, value) = key_value(text)?;
    let known = || Limit::ALL.map(Limit::as_str).join(", ");
    let limit = Limit::ALL.into_iter().find(|limit| limit.as_str() == name.replace('-', "_"));
    let limit = limit.ok_or_else(|| format!("no limit is called `{name}`; there are {}", known()))?;
    let is_size = matches!(limit, Limit::AddressSpace | Limit::CoreSize | Limit::FileSize);
    let number = match value.parse() {
        Ok(number) => Some(number),
        Err(_) if is_size => value.parse::<Memory>().ok().map(|size| size.bytes),
        Err(_) => None,
    };
    let form = if is_size { "a size, such as 512MiB" } else { "a number" };
    number.map(|number| (limit, number)).ok_or_else(|| format!("`{value}` is not {form}"))
}

/// Reads `K=V`, or `K` for the variable of this environment.
fn environment_variable(text: &str) -> Result<(String, String), String> {
    if text.contains('=') {
        return key_value(text);
    }
    match std::env::var(text) {
        Ok(value) => Ok((text.to_owned(), value)),
        Err(std::env::VarError::NotPresent) => Err(format!("{text} is not set here: write {text}=VALUE")),
        Err(std::env::VarError::NotUnicode(_)) => Err(format!("the value of {text} is not UTF-8")),
    }
}

/// Reads `INITIAL`, `INITIAL,FACTOR` or `INITIAL,FACTOR,MAX`.
fn backoff(text: &str) -> Result<Backoff, String> {
    let mut parts = text.split(',').map(str::trim);
    let mut backoff = Backoff { initial: duration::parse(parts.next().unwrap_or_default())?, ..Backoff::default() };
    if let Some(factor) = parts.next() {
        backoff.factor = factor.parse().map_err(|_| format!("`{factor}` is not a factor, such as 2 or 1.5"))?;
    }
    backoff.max = match parts.next() {
        Some(max) => duration::parse(max)?,
        None => backoff.max.max(backoff.initial),
    };
    if parts.next().is_some() {
        return Err("write INITIAL, or INITIAL,FACTOR,MAX, for instance 1s,2,1m".to_owned());
    }
    Ok(backoff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backoff_may_be_short_or_complete() {
        assert_eq!(backoff("1s,2,1m"), Ok(Backoff::default()));
        let patient = backoff("5m").unwrap();
        assert_eq!((patient.initial, patient.max), (Duration::from_secs(300), Duration::from_secs(300)));
        for wrong in ["", "soon", "1s,x", "1s,2,", "1s,2,1m,4"] {
            assert!(backoff(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn limits_are_numbers_or_sizes() {
        assert_eq!(limit("file_size=1MiB"), Ok((Limit::FileSize, 1 << 20)));
        assert_eq!(limit("open-files=64"), Ok((Limit::OpenFiles, 64)));
        for wrong in ["open_files=1MiB", "processes=", "processes", "memory=1", "cpu_time=-1"] {
            assert!(limit(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_not_a_pair_is_named() {
        assert_eq!(key_value("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert!(key_value("=b").is_err());
        assert!(key_value("a").is_err());
        assert!(environment_variable("FLOCKWORK_TEST_SURELY_UNSET").unwrap_err().contains("not set"));
    }
}
