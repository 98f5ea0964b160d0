//! NATS JetStream: a work queue in files, with jobs that are published, pulled in batches and acknowledged.
//!
//! A message counts as stored when it has been written to its file, and files are synced only now and then. Versions
//! from 2.10 on have an option to sync each message (`sync_interval: always`). Version 2.9, which Debian 12 installs,
//! refuses to start with it, so that is not measured, and each row says that nothing was synced.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{JOB, Server, free_addr, rate};
use crate::nodes::PATIENCE;

/// Messages in a pull, of which JetStream has a thousand under way at most.
const BATCH: usize = 256;
/// Published before the first of their acknowledgements is waited for.
const BULK: usize = 1_000;
/// Threads that pull.
const WORKERS: usize = 2;
/// How long a pull waits for messages.
const PULL: Duration = Duration::from_millis(100);
/// Between two looks at how many messages are left.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// A running server with a stream for jobs.
pub struct Nats {
    _server: Server,
    addr: SocketAddr,
    _dir: TempDir,
}

/// A connection, with a subject of its own for answers to it.
pub struct Client {
    stream: BufReader<TcpStream>,
    inbox: String,
}

/// What comes from the server: a message of the stream, the answer to a request, or a status.
struct Message {
    /// Where to acknowledge a message of the stream.
    reply: Option<String>,
    body: Vec<u8>,
}

impl Nats {
    pub fn start() -> anyhow::Result<Self> {
        let (dir, addr) = (TempDir::new()?, free_addr()?);
        let mut command = Command::new("nats-server");
        command.args(["-a", "127.0.0.1", "-p", &addr.port().to_string(), "-js", "-sd"]).arg(dir.path());
        let server = Server::start(command.stderr(Stdio::null()), addr)?;
        let started = Self { _server: server, addr, _dir: dir };
        let stream = json!({"name": "jobs", "subjects": ["jobs"], "retention": "workqueue", "storage": "file"});
        started.connect()?.ask("STREAM.CREATE.jobs", &stream)?;
        Ok(started)
    }

    pub fn connect(&self) -> anyhow::Result<Client> {
        let stream = TcpStream::connect(self.addr)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        stream.read_line(&mut line)?;
        let info: Value = serde_json::from_str(line.trim_start_matches("INFO "))?;
        let inbox = format!("answers.{}", info["client_id"]);
        let hello = json!({"verbose": false, "pedantic": false, "headers": true, "no_responders": true, "protocol": 1});
        stream.get_mut().write_all(format!("CONNECT {hello}\r\nSUB {inbox} 1\r\n").as_bytes())?;
        Ok(Client { stream, inbox })
    }

    /// Acknowledged publishes a second, over so many connections at once of which each waits for every one.
    pub fn rate(&self, connections: usize, seconds: f64) -> anyhow::Result<f64> {
        rate(connections, seconds, || self.connect(), Client::publish)
    }

    /// Jobs a second, of so many, from being published to the last one's acknowledgement by a worker.
    pub fn work(&self, jobs: usize) -> anyhow::Result<f64> {
        let mut client = self.connect()?;
        let workers = json!({"stream_name": "jobs", "config": {"durable_name": "workers", "ack_policy": "explicit"}});
        client.ask("CONSUMER.DURABLE.CREATE.jobs.workers", &workers)?;
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            let pullers: Vec<_> = (0..WORKERS)
                .map(|_| {
                    scope.spawn(|| {
                        let mut puller = self.connect()?;
                        while !is_over.load(Ordering::Relaxed) {
                            puller.pull()?;
                        }
                        anyhow::Ok(())
                    })
                })
                .collect();
            let begun = Instant::now();
            let took = client.publish_all(jobs).and_then(|()| client.until_empty()).map(|()| begun.elapsed());
            is_over.store(true, Ordering::Relaxed);
            pullers.into_iter().try_for_each(|puller| puller.join().expect("it does not panic"))?;
            Ok(jobs as f64 / took?.as_secs_f64())
        })
    }
}

impl Client {
    /// Publishes a job, and waits until it is acknowledged: the seconds that took.
    pub fn publish(&mut self) -> anyhow::Result<f64> {
        let begun = Instant::now();
        let job = self.job();
        self.stream.get_mut().write_all(&job)?;
        self.expect_stored()?;
        Ok(begun.elapsed().as_secs_f64())
    }

    fn publish_all(&mut self, jobs: usize) -> anyhow::Result<()> {
        let job = self.job();
        for begin in (0..jobs).step_by(BULK) {
            let count = BULK.min(jobs - begin);
            self.stream.get_mut().write_all(&job.repeat(count))?;
            (0..count).try_for_each(|_| self.expect_stored())?;
        }
        Ok(())
    }

    fn job(&self) -> Vec<u8> {
        publication("jobs", Some(&self.inbox), JOB)
    }

    fn expect_stored(&mut self) -> anyhow::Result<()> {
        let answer = self.next()?.body;
        // An error comes before all else.
        ensure!(answer.starts_with(b"{\"stream\""), "NATS answered {}", String::from_utf8_lossy(&answer));
        Ok(())
    }

    /// Takes up to a batch of jobs, and acknowledges them.
    fn pull(&mut self) -> anyhow::Result<()> {
        let request = json!({"batch": BATCH, "expires": PULL.as_nanos() as u64});
        self.request("CONSUMER.MSG.NEXT.jobs.workers", &request)?;
        let mut acks = Vec::new();
        for _ in 0..BATCH {
            // A status ends a batch that did not get full in time.
            let Some(reply) = self.next()?.reply else { break };
            acks.extend(publication(&reply, None, b"+ACK"));
        }
        self.stream.get_mut().write_all(&acks)?;
        Ok(())
    }

    /// Waits until all jobs are acknowledged, for then they are gone.
    fn until_empty(&mut self) -> anyhow::Result<()> {
        let give_up = Instant::now() + PATIENCE;
        while self.ask("STREAM.INFO.jobs", &json!({}))?["state"]["messages"] != 0 {
            ensure!(Instant::now() < give_up, "NATS' stream does not get empty");
            thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }

    /// The answer to a request to JetStream.
    fn ask(&mut self, what: &str, body: &Value) -> anyhow::Result<Value> {
        self.request(what, body)?;
        let answer: Value = serde_json::from_slice(&self.next()?.body)?;
        ensure!(answer["error"].is_null(), "NATS answered {answer} to {what}");
        Ok(answer)
    }

    fn request(&mut self, what: &str, body: &Value) -> anyhow::Result<()> {
        let request = publication(&format!("$JS.API.{what}"), Some(&self.inbox), body.to_string().as_bytes());
        Ok(self.stream.get_mut().write_all(&request)?)
    }

    fn next(&mut self) -> anyhow::Result<Message> {
        let mut line = String::new();
        loop {
            line.clear();
            ensure!(self.stream.read_line(&mut line)? > 0, "nats-server hung up");
            let words: Vec<&str> = line.split_whitespace().collect();
            let (reply, headers, size) = match words[..] {
                ["MSG", _subject, _subscription, size] => (None, "0", size),
                ["MSG", _subject, _subscription, reply, size] => (Some(reply), "0", size),
                ["HMSG", _subject, _subscription, headers, size] => (None, headers, size),
                ["HMSG", _subject, _subscription, reply, headers, size] => (Some(reply), headers, size),
                ["PING"] => {
                    self.stream.get_mut().write_all(b"PONG\r\n")?;
                    continue;
                }
                ["INFO", ..] => continue,
                _ => bail!("nats-server said {line:?}"),
            };
            let (headers, size): (usize, usize) = (headers.parse()?, size.parse()?);
            // A line's end stands behind it.
            let mut body = vec![0; size + 2];
            self.stream.read_exact(&mut body)?;
            let body = body.get(headers..size).context("its headers are a part of it")?.to_vec();
            return Ok(Message { reply: reply.map(str::to_owned), body });
        }
    }
}

fn publication(subject: &str, reply: Option<&str>, body: &[u8]) -> Vec<u8> {
    let head = format!("PUB {subject} {} {}\r\n", reply.unwrap_or_default(), body.len());
    [head.as_bytes(), body, b"\r\n"].concat()
}
