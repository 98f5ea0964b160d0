//! The `flockwork` program as a user runs it: arguments in; an exit code, output and remarks out.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

use crate::seconds;

/// The longest that any command of a story takes.
const COMMAND_WITHIN: Duration = seconds(90);

/// The program with nothing of this test's own surroundings: no settings, and a home (and place for temporary files) of its own.
pub fn program(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flockwork"));
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("FLOCKWORK_") && name != "FLOCKWORK_LOG") {
            command.env_remove(&name);
        }
    }
    command.env("HOME", home).env("TMPDIR", home).env_remove("XDG_STATE_HOME").env_remove("XDG_CONFIG_HOME");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// What a command said, and how it ended.
#[derive(Debug)]
pub struct Told {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Told {
    /// Its output, for a command that must have gone well.
    #[track_caller]
    pub fn good(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.out
    }
}

/// A command that is under way.
#[derive(Debug)]
pub struct Running {
    child: Child,
    out: Lines<BufReader<ChildStdout>>,
    told: String,
}

impl Running {
    pub fn start<A: AsRef<OsStr>>(mut command: Command, arguments: impl IntoIterator<Item = A>) -> Self {
        let mut child = command.args(arguments).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, out, told: String::new() }
    }

    pub fn pid(&self) -> u32 {
        self.child.id().expect("it is waited for only at the end")
    }

    /// The next line of its output.
    pub async fn line(&mut self) -> String {
        let line = timeout(COMMAND_WITHIN, self.out.next_line()).await.expect("a line in time").unwrap();
        let Some(line) = line else { panic!("no line follows {:?}", self.told) };
        self.told.push_str(&line);
        self.told.push('\n');
        line
    }

    /// Waits for its end.
    pub async fn told(mut self) -> Told {
        let mut err = String::new();
        let mut stderr = self.child.stderr.take().unwrap();
        let reading = async {
            let out = async {
                while let Some(line) = self.out.next_line().await.unwrap() {
                    self.told.push_str(&line);
                    self.told.push('\n');
                }
            };
            let (read, ()) = tokio::join!(stderr.read_to_string(&mut err), out);
            read.unwrap();
            self.child.wait().await.unwrap()
        };
        let ended = timeout(COMMAND_WITHIN, reading).await;
        match ended {
            Ok(status) => Told { code: status.code(), out: self.told, err },
            Err(_) => panic!("it did not end within {COMMAND_WITHIN:?}, having said {:?} and {err:?}", self.told),
        }
    }
}
