//! Dask, which keeps its tasks in memory. Its protocol is Python's, so a Python program runs it (`dask_cluster.py`).

use std::env;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rustix::process::{Pid, Signal, kill_process_group};
use tempfile::TempDir;

use super::spawn;
use crate::nodes::PATIENCE;

/// Which Python to run, where it is not the `python3` of the path.
const PYTHON: &str = "FLOCKWORK_BENCH_PYTHON";
/// How long its processes may take to end by themselves.
const GRACE: Duration = Duration::from_secs(5);

/// A running cluster of two workers with one thread each.
pub struct Dask {
    program: Child,
    /// The program and all that it started end when this is closed.
    questions: Option<ChildStdin>,
    answers: Receiver<String>,
    _dir: TempDir,
}

impl Dask {
    pub fn start() -> anyhow::Result<Self> {
        let dir = TempDir::new()?;
        let python = env::var(PYTHON).unwrap_or_else(|_| "python3".into());
        let mut command = Command::new(&python);
        command
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/cluster/peers/dask_cluster.py"))
            .arg(dir.path())
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut program = spawn(&mut command)?;
        let (questions, stdout) = (program.stdin.take(), program.stdout.take().context("it is piped")?);
        // Read on a thread, because a wait for a pipe cannot be bounded.
        let (answered, answers) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                // Nobody listens once the cluster has been dropped.
                let _ = answered.send(line);
            }
        });
        let started = Self { program, questions, answers, _dir: dir };
        let first = started.answer()?;
        ensure!(first == "ready", "{python}: {first}");
        Ok(started)
    }

    /// Tasks that do nothing, a second, of so many that are submitted at once.
    pub fn rate(&mut self, tasks: usize) -> anyhow::Result<f64> {
        self.ask(&format!("tasks {tasks}\n"))
    }

    /// Submits a task: the seconds until it runs.
    pub fn start_of_one(&mut self) -> anyhow::Result<f64> {
        self.ask("start\n")
    }

    fn ask(&mut self, question: &str) -> anyhow::Result<f64> {
        self.questions.as_mut().context("it is piped")?.write_all(question.as_bytes())?;
        let answer = self.answer()?;
        answer.parse().with_context(|| format!("Dask answered {answer:?}"))
    }

    fn answer(&self) -> anyhow::Result<String> {
        self.answers.recv_timeout(PATIENCE).context("Dask does not answer")
    }
}

impl Drop for Dask {
    fn drop(&mut self) {
        drop(self.questions.take());
        let give_up = Instant::now() + GRACE;
        while Instant::now() < give_up {
            // Once the program has ended, so have the processes that it started.
            if !matches!(self.program.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
        let _ = kill_process_group(Pid::from_child(&self.program), Signal::KILL);
        let _ = self.program.wait();
    }
}
