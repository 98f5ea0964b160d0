//! beanstalkd, which syncs each job it is given (`-f0`).

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::Instant;

use anyhow::ensure;
use tempfile::TempDir;

use super::{JOB, Server, free_addr, rate};
use crate::nodes::PATIENCE;

/// A running beanstalkd.
pub struct Beanstalkd {
    _server: Server,
    addr: SocketAddr,
    _dir: TempDir,
}

/// A connection that gives it jobs.
pub struct Puts(BufReader<TcpStream>);

impl Beanstalkd {
    pub fn start() -> anyhow::Result<Self> {
        let (dir, addr) = (TempDir::new()?, free_addr()?);
        let mut command = Command::new("beanstalkd");
        command.args(["-l", "127.0.0.1", "-p", &addr.port().to_string(), "-f0", "-b"]).arg(dir.path());
        Ok(Self { _server: Server::start(&mut command, addr)?, addr, _dir: dir })
    }

    pub fn connect(&self) -> anyhow::Result<Puts> {
        let stream = TcpStream::connect(self.addr)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Puts(BufReader::new(stream)))
    }

    /// Durable puts a second over so many connections at once.
    pub fn rate(&self, connections: usize, seconds: f64) -> anyhow::Result<f64> {
        rate(connections, seconds, || self.connect(), Puts::put)
    }
}

impl Puts {
    /// Gives it a job, and waits for its answer: the seconds that took.
    pub fn put(&mut self) -> anyhow::Result<f64> {
        let begun = Instant::now();
        let job = [format!("put 0 0 60 {}\r\n", JOB.len()).as_bytes(), JOB, b"\r\n"].concat();
        self.0.get_mut().write_all(&job)?;
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        ensure!(line.starts_with("INSERTED"), "beanstalkd answered {line:?}");
        Ok(begun.elapsed().as_secs_f64())
    }
}
