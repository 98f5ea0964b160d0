//! What the command line remembers for its user between two calls: the newest job it submitted (`last`), and
//! the local cluster that `flockwork up` runs at the moment.
//!
//! Small files in `$XDG_STATE_HOME/flockwork` (`~/.local/state/flockwork`). They are conveniences: whoever has
//! no home directory, or a full disk, can do everything but say `last`. Each file is written beside its place
//! and moved there, so a reader never sees half of one.

use std::io;
use std::path::{Path, PathBuf};

use flockwork::model::id::JobId;
use serde::{Deserialize, Serialize};

use super::failure::{Failure, Kind};

const LAST_JOB: &str = "last";
const LOCAL_CLUSTER: &str = "local-cluster.json";

/// The running local cluster, as `flockwork up` notes it down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LocalCluster {
    /// The process of `flockwork up`.
    pub(crate) pid: i32,
    /// Its nodes' HTTP addresses.
    pub(crate) addresses: Vec<String>,
    /// Where its nodes keep their data.
    pub(crate) dir: PathBuf,
}

/// The user's state folder.
#[derive(Debug, Clone)]
pub(crate) struct StateFolder(Option<PathBuf>);

impl StateFolder {
    /// The folder of this user, by the environment.
    pub(crate) fn of_user() -> Self {
        Self(user_folder("XDG_STATE_HOME", ".local/state"))
    }

    /// Remembers the newest submitted job. A failure only costs the word `last`.
    pub(crate) fn remember_last(&self, job: &str) -> io::Result<()> {
        self.write(LAST_JOB, job.as_bytes())
    }

    /// The newest submitted job.
    pub(crate) fn last(&self) -> Result<JobId, Failure> {
        let text = self.path(LAST_JOB).and_then(|path| std::fs::read_to_string(path).ok());
        text.and_then(|text| text.trim().parse().ok()).ok_or_else(|| {
            Failure::new(Kind::NotFound, "no job was submitted from here yet, so there is no `last`")
                .with_hint("`flockwork ps` lists the jobs")
        })
    }

    /// Notes the running local cluster down for other commands.
    pub(crate) fn write_local_cluster(&self, cluster: &LocalCluster) -> io::Result<()> {
        self.write(LOCAL_CLUSTER, &serde_json::to_vec_pretty(cluster)?)
    }

    /// The running local cluster. A note left by a process that is gone counts for nothing.
    pub(crate) fn local_cluster(&self) -> Option<LocalCluster> {
        let text = std::fs::read(self.path(LOCAL_CLUSTER)?).ok()?;
        let cluster: LocalCluster = serde_json::from_slice(&text).ok()?;
        let pid = rustix::process::Pid::from_raw(cluster.pid)?;
        rustix::process::test_kill_process(pid).is_ok().then_some(cluster)
    }

    /// Takes the note away, if it is still this process's own.
    pub(crate) fn forget_local_cluster(&self, pid: i32) {
        if self.local_cluster().is_some_and(|cluster| cluster.pid == pid)
            && let Some(path) = self.path(LOCAL_CLUSTER)
        {
            // A note that stays behind is ignored once its process is gone.
            let _ = std::fs::remove_file(path);
        }
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        self.0.as_ref().map(|folder| folder.join(name))
    }

    fn write(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let Some(folder) = &self.0 else {
            return Err(io::Error::new(io::ErrorKind::NotFound, "neither XDG_STATE_HOME nor HOME is set"));
        };
        std::fs::create_dir_all(folder)?;
        let draft = folder.join(format!("{name}.{}", std::process::id()));
        std::fs::write(&draft, content)?;
        std::fs::rename(&draft, folder.join(name))
    }
}

/// `$variable/flockwork`, or `~/fallback/flockwork`; by the rules of XDG a relative path counts for nothing.
pub(crate) fn user_folder(variable: &str, fallback: &str) -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute(variable).or_else(|| absolute("HOME").map(|home| home.join(fallback)))?;
    Some(base.join(Path::new("flockwork")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_note_of_a_dead_process_counts_for_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateFolder(Some(folder.path().join("deeper")));
        assert_eq!(state.local_cluster(), None);
        let mine = std::process::id() as i32;
        let cluster = LocalCluster { pid: mine, addresses: vec!["127.0.0.1:1".into()], dir: "/tmp".into() };
        state.write_local_cluster(&cluster).unwrap();
        assert_eq!(state.local_cluster(), Some(cluster.clone()));
        state.forget_local_cluster(mine + 1);
        assert!(state.local_cluster().is_some(), "only its own process takes the note away");
        // Above the highest pid that Linux gives out.
        state.write_local_cluster(&LocalCluster { pid: (1 << 22) + 1, ..cluster }).unwrap();
        assert_eq!(state.local_cluster(), None);
    }

    #[test]
    fn last_is_what_was_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateFolder(Some(folder.path().to_owned()));
        assert_eq!(state.last().unwrap_err().kind, Kind::NotFound);
        state.remember_last(&JobId(7).to_string()).unwrap();
        assert_eq!(state.last().unwrap(), JobId(7));
        assert_eq!(StateFolder(None).last().unwrap_err().kind, Kind::NotFound);
    }
}
