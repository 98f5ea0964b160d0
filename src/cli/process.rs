//! A node as a child process: started, told apart from its parent's settings, stopped or killed.
//!
//! `up` and `demo` run real `flockwork node` processes, not threads that play at being machines. A child prints
//! one JSON line when it is ready, which tells the ports it was given. It holds the read end of a pipe whose
//! write end only the parent has: when the parent dies, however suddenly, the pipe closes and the node leaves.
//! It is its own process group, so that Ctrl-C in the terminal reaches the parent alone, which then says
//! goodbye in its own order.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};

use super::failure::{Failure, Kind};

/// How long a node may take to become ready: its join grace and more.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// The longest line that a node may announce itself with.
const MAX_ANNOUNCEMENT_BYTES: u64 = 64 << 10;

/// What a node says when it is ready, as one JSON line with `-o json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Announcement {
    /// Its id.
    pub(crate) node: String,
    /// Its name.
    pub(crate) name: String,
    /// Where peers reach it.
    pub(crate) cluster_addr: String,
    /// Where clients reach it.
    pub(crate) http_addr: String,
    /// Its process.
    pub(crate) pid: u32,
}

/// How to start a node.
#[derive(Debug, Clone)]
pub(crate) struct Launch {
    /// Its name.
    pub(crate) name: String,
    /// Holds its data (`data/`) and its log (`log`).
    pub(crate) dir: PathBuf,
    /// Where it listens for peers; `None` picks a free loopback port.
    pub(crate) listen: Option<String>,
    /// Where it listens for clients.
    pub(crate) http: Option<String>,
    /// Another node's cluster address.
    pub(crate) seed: Option<String>,
    /// How many jobs it runs side by side; `None` leaves it to the node.
    pub(crate) slots: Option<u32>,
    /// Whether it can be told to pretend faults.
    pub(crate) pretends_faults: bool,
}

impl Launch {
    fn arguments(&self) -> Vec<String> {
        let anywhere = || "127.0.0.1:0".to_owned();
        let mut arguments: Vec<String> =
            ["node", "--profile", "local", "--cluster", "local", "--name"].into_iter().map(str::to_owned).collect();
        arguments.push(self.name.clone());
        arguments.extend(["--data-dir".to_owned(), self.data_dir().display().to_string()]);
        arguments.extend(["--listen".to_owned(), self.listen.clone().unwrap_or_else(anywhere)]);
        arguments.extend(["--http".to_owned(), self.http.clone().unwrap_or_else(anywhere)]);
        if let Some(seed) = &self.seed {
            arguments.extend(["--seed".to_owned(), seed.clone()]);
        }
        if let Some(slots) = &self.slots {
            arguments.extend(["--slots".to_owned(), slots.to_string()]);
        }
        if self.pretends_faults {
            arguments.push("--enable-fault-injection".to_owned());
        }
        arguments
    }

    fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Where its log goes.
    pub(crate) fn log(&self) -> PathBuf {
        self.dir.join("log")
    }
}

/// A running node of ours.
#[derive(Debug)]
pub(crate) struct NodeProcess {
    launch: Launch,
    /// What it said when it was ready.
    pub(crate) announcement: Announcement,
    child: Child,
    /// Held open for as long as the node shall run.
    lifeline: Option<ChildStdin>,
}

impl NodeProcess {
    /// Starts a node and waits until it is ready.
    pub(crate) async fn start(launch: Launch) -> Result<Self, Failure> {
        let cannot = |what: &str, error: &io::Error| {
            Failure::internal(format!("cannot start node {}: {what}: {error}", launch.name))
        };
        std::fs::create_dir_all(launch.data_dir()).map_err(|e| cannot("its directory", &e))?;
        let log = File::options().create(true).append(true).open(launch.log()).map_err(|e| cannot("its log", &e))?;
        let program = std::env::current_exe().map_err(|e| cannot("the program itself is not to be found", &e))?;
        let mut command = Command::new(&program);
        // Settings of this shell are for commands, not for the nodes of a local cluster.
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("FLOCKWORK_") && name != "FLOCKWORK_LOG") {
                command.env_remove(&name);
            }
        }
        let mut child = command
            .args(launch.arguments())
            .args(["--config", "/dev/null", "--output", "json", "--until-stdin-closes"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| cannot(&program.display().to_string(), &e))?;
        let lifeline = child.stdin.take();
        let announcement = match announcement_of(&mut child).await {
            Ok(announcement) => announcement,
            Err(why) => {
                let last_words = last_lines(&launch.log(), 3);
                let hint =
                    if last_words.is_empty() { format!("its log is {}", launch.log().display()) } else { last_words };
                let message = format!("node {} did not become ready: {why}", launch.name);
                return Err(Failure::new(Kind::Failed, message).with_hint(hint));
            }
        };
        Ok(Self { launch, announcement, child, lifeline })
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.launch.name
    }

    /// Where its log is.
    pub(crate) fn log(&self) -> PathBuf {
        self.launch.log()
    }

    /// How to start it once more in the same place.
    pub(crate) fn relaunch(&self, seed: Option<&str>) -> Launch {
        Launch {
            listen: Some(self.announcement.cluster_addr.clone()),
            http: Some(self.announcement.http_addr.clone()),
            seed: seed.map(str::to_owned).or_else(|| self.launch.seed.clone()),
            ..self.launch.clone()
        }
    }

    /// The end of its process, whenever that comes.
    pub(crate) async fn ended(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Kills it at once, as a power failure would.
    pub(crate) async fn kill(&mut self) -> io::Result<()> {
        self.child.kill().await
    }

    /// Lets it leave, and kills it if it has not within the time.
    pub(crate) async fn stop(&mut self, within: Duration) -> io::Result<()> {
        drop(self.lifeline.take());
        match tokio::time::timeout(within, self.child.wait()).await {
            Ok(ended) => ended.map(drop),
            Err(_) => self.child.kill().await,
        }
    }
}

/// The command that starts a node by hand.
pub(crate) fn shell_command(launch: &Launch) -> String {
    let program = std::env::current_exe().map_or_else(|_| "flockwork".to_owned(), |path| path.display().to_string());
    let words = std::iter::once(program).chain(launch.arguments());
    words.map(|word| quoted(&word)).collect::<Vec<_>>().join(" ")
}

fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@,".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

async fn announcement_of(child: &mut Child) -> Result<Announcement, String> {
    let Some(stdout) = child.stdout.take() else { return Err("its output is not connected".to_owned()) };
    let mut line = String::new();
    let mut reader = BufReader::new(stdout.take(MAX_ANNOUNCEMENT_BYTES));
    let announced = async {
        match reader.read_line(&mut line).await {
            Ok(0) => match child.wait().await {
                Ok(status) => Err(format!("it ended with {status}")),
                Err(error) => Err(format!("it ended, and how is not known: {error}")),
            },
            Ok(_) => serde_json::from_str(&line).map_err(|error| format!("it announced itself oddly: {error}")),
            Err(error) => Err(format!("its output cannot be read: {error}")),
        }
    };
    tokio::time::timeout(READY_WITHIN, announced)
        .await
        .unwrap_or_else(|_| Err(format!("{} seconds were not enough", READY_WITHIN.as_secs())))
}

/// The last lines of a log, on one line; as much as is cheap to find.
fn last_lines(log: &Path, count: usize) -> String {
    let text = std::fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let mut lines: VecDeque<&str> = VecDeque::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        lines.push_back(line.trim());
        if lines.len() > count {
            lines.pop_front();
        }
    }
    lines.into_iter().collect::<Vec<_>>().join(" | ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_printed_command_survives_a_shell() {
        let launch = Launch {
            name: "n1".into(),
            dir: "/tmp/it's here".into(),
            listen: Some("127.0.0.1:4001".into()),
            http: None,
            seed: Some("127.0.0.1:4000".into()),
            slots: None,
            pretends_faults: false,
        };
        let command = shell_command(&launch);
        assert!(command.contains(" node --profile local "), "{command}");
        assert!(command.contains("'/tmp/it'\\''s here/data'"), "{command}");
        assert!(command.ends_with("--listen 127.0.0.1:4001 --http 127.0.0.1:0 --seed 127.0.0.1:4000"), "{command}");
    }
}
