//! Where settings come from: flag, else environment variable, else file, else default.
//!
//! The file is TOML, `~/.config/flockwork/config.toml` unless `--config` or FLOCKWORK_CONFIG names another:
//!
//! ```toml
//! addr = ["10.0.0.5:7070", "10.0.0.6:7070"]   # which nodes commands talk to
//! output = "table"
//!
//! [node]                                      # how `flockwork node` runs
//! data_dir = "/var/lib/flockwork"
//! seeds = ["10.0.0.6:7071"]
//! labels = { disk = "ssd" }
//!
//! [node.timing]                               # seldom needed: the profile sets them all
//! probe_interval = "1s"
//! ```
//!
//! An unknown setting is an error, for it is most likely a misspelt one. Every settled value remembers where
//! it came from, so that `flockwork config show` can answer the question people really have: why this value?

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ArgMatches;
use clap::parser::ValueSource;
use flockwork::model::config::{Profile, Timing};
use flockwork::model::resources::{Cpus, Memory};
use flockwork::model::time::duration;
use flockwork::node::options::DEFAULT_HTTP_PORT;
use serde::{Deserialize, Serialize};

use super::failure::Failure;
use super::render::OutputForm;
use super::state::{StateFolder, user_folder};

/// The settings file.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct SettingsFile {
    pub(crate) addr: Option<OneOrMany>,
    pub(crate) output: Option<OutputForm>,
    pub(crate) node: NodeSettings,
}

/// The part of the settings file that concerns `flockwork node`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct NodeSettings {
    pub(crate) name: Option<String>,
    pub(crate) data_dir: Option<PathBuf>,
    pub(crate) listen: Option<String>,
    pub(crate) http: Option<String>,
    pub(crate) advertise: Option<String>,
    pub(crate) seeds: Option<Vec<String>>,
    pub(crate) slots: Option<u32>,
    pub(crate) cpus: Option<Cpus>,
    pub(crate) memory: Option<Memory>,
    pub(crate) labels: Option<BTreeMap<String, String>>,
    pub(crate) profile: Option<Profile>,
    pub(crate) replicas: Option<u32>,
    pub(crate) partitions: Option<u32>,
    pub(crate) cluster: Option<String>,
    #[serde(with = "duration::option")]
    pub(crate) forget_after: Option<Duration>,
    #[serde(with = "duration::option")]
    pub(crate) retention: Option<Duration>,
    pub(crate) log_limit: Option<Memory>,
    pub(crate) docker: Option<String>,
    pub(crate) allow_hosts: Option<Vec<String>>,
    pub(crate) insecure: Option<bool>,
    /// Those of the profile's timings that are to differ.
    pub(crate) timing: toml::Table,
}

/// `addr = "a,b"` or `addr = ["a", "b"]`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged, expecting = "an address, or a list of addresses")]
pub(crate) enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    fn into_list(self) -> Vec<String> {
        match self {
            Self::One(text) => text.split(',').map(|part| part.trim().to_owned()).collect(),
            Self::Many(list) => list,
        }
    }
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Source {
    Flag,
    Environment,
    File,
    Default,
    /// The cluster that `flockwork up` runs at the moment.
    LocalCluster,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Flag => "flag",
            Self::Environment => "environment",
            Self::File => "file",
            Self::Default => "default",
            Self::LocalCluster => "running local cluster",
        })
    }
}

/// A value, and where it came from.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Setting<T> {
    pub(crate) value: T,
    pub(crate) source: Source,
}

impl<T> Setting<T> {
    /// The same setting as another value.
    pub(crate) fn map<U>(self, change: impl FnOnce(T) -> U) -> Setting<U> {
        Setting { value: change(self.value), source: self.source }
    }
}

/// What settling a setting needs to know besides the setting itself.
#[derive(Debug)]
pub(crate) struct Sources<'a> {
    /// Of the command at hand.
    matches: &'a ArgMatches,
    /// The file's content; empty if there is none.
    pub(crate) file: SettingsFile,
    /// Which file that was.
    pub(crate) path: Option<PathBuf>,
}

impl<'a> Sources<'a> {
    /// Reads the settings file: `named`, or the user's own if there is one.
    pub(crate) fn read(matches: &'a ArgMatches, named: Option<&Path>) -> Result<Self, Failure> {
        let path = match named {
            Some(named) => Some(named.to_owned()),
            None => user_folder("XDG_CONFIG_HOME", ".config").map(|f| f.join("config.toml")).filter(|p| p.exists()),
        };
        let file = path.as_deref().map(read_file).transpose()?.unwrap_or_default();
        Ok(Self { matches, file, path })
    }

    /// Settles one setting. `id` is the command line's name of it, and `given` what the command line or the
    /// environment said.
    pub(crate) fn settle<T>(&self, id: &str, given: Option<T>, file: Option<T>, default: T) -> Setting<T> {
        match (given, file) {
            (Some(value), _) => {
                let from_environment = self.matches.value_source(id) == Some(ValueSource::EnvVariable);
                Setting { value, source: if from_environment { Source::Environment } else { Source::Flag } }
            }
            (None, Some(value)) => Setting { value, source: Source::File },
            (None, None) => Setting { value: default, source: Source::Default },
        }
    }

    /// The nodes to talk to. Where nobody said, the default port, then the nodes of the local cluster that
    /// this user runs at the moment: the first that answers is asked.
    pub(crate) fn addresses(&self, given: Option<Vec<String>>, state: &StateFolder) -> Setting<Vec<String>> {
        let default = vec![format!("127.0.0.1:{DEFAULT_HTTP_PORT}")];
        let mut addresses = self.settle("addr", given, self.file.addr.clone().map(OneOrMany::into_list), default);
        if addresses.source == Source::Default
            && let Some(local) = state.local_cluster()
        {
            addresses.value.extend(local.addresses);
            addresses.source = Source::LocalCluster;
        }
        addresses
    }
}

fn read_file(path: &Path) -> Result<SettingsFile, Failure> {
    let wrong = |why: String| Failure::usage(format!("cannot use the settings file {}: {why}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    toml::from_str(&text).map_err(|error| wrong(one_line(&error.to_string())))
}

/// The parser draws a picture of the place over several lines; an error is one line here.
fn one_line(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    match (lines.first(), lines.last()) {
        (Some(first), Some(last)) if lines.len() > 1 => format!("{}: {last}", first.trim_start_matches("TOML parse ")),
        _ => lines.concat(),
    }
}

/// The timings of `profile`, with the file's own on top.
pub(crate) fn timing(profile: Profile, changes: &toml::Table) -> Result<Timing, Failure> {
    let wrong = |error: &dyn fmt::Display| Failure::usage(format!("[node.timing]: {}", one_line(&error.to_string())));
    let mut table = toml::Table::try_from(Timing::of(profile)).map_err(|error| wrong(&error))?;
    table.extend(changes.clone());
    table.try_into().map_err(|error| wrong(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_setting_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        std::fs::write(&path, "[node]\nslotz = 3\n").unwrap();
        let failure = read_file(&path).unwrap_err();
        assert!(failure.message.contains("slotz") && failure.message.contains("line 2"), "{}", failure.message);
        assert!(!failure.message.contains('\n'));
        assert!(read_file(&folder.path().join("absent")).is_err(), "a file that was named must be there");
    }

    #[test]
    fn a_single_timing_changes_nothing_else_of_the_profile() {
        let changes = "probe_interval = \"3s\"".parse::<toml::Table>().unwrap();
        let timing = timing(Profile::Local, &changes).unwrap();
        assert_eq!(timing, Timing { probe_interval: Duration::from_secs(3), ..Timing::of(Profile::Local) });
        let misspelt = "prob_interval = \"3s\"".parse::<toml::Table>().unwrap();
        assert!(super::timing(Profile::Local, &misspelt).unwrap_err().message.contains("prob_interval"));
    }

    #[test]
    fn addresses_may_be_a_list_or_a_text() {
        let read = |text: &str| toml::from_str::<SettingsFile>(text).unwrap().addr.unwrap().into_list();
        assert_eq!(read("addr = \"a:1, b:2\""), ["a:1", "b:2"]);
        assert_eq!(read("addr = [\"a:1\", \"b:2\"]"), ["a:1", "b:2"]);
    }
}
