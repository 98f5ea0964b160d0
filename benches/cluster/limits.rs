//! What the machine allows, and what other systems that are installed make of it.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::ensure;
use tempfile::TempDir;

use crate::nodes::eventually;

/// As long as a typical job's record.
const RECORD: [u8; 400] = [b'r'; 400];

/// Processes that do nothing, a second: spawned and waited for by two threads, with nothing else done.
pub fn spawns(count: usize) -> f64 {
    let next = AtomicUsize::new(0);
    let begun = Instant::now();
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while next.fetch_add(1, Ordering::Relaxed) < count {
                    // Without anything to set up in the child, the standard library calls posix_spawn.
                    let status = Command::new("/bin/true").env_clear().status();
                    assert!(status.is_ok_and(|status| status.success()));
                }
            });
        }
    });
    count as f64 / begun.elapsed().as_secs_f64()
}

/// The same by `xargs -P2`, or nothing where that is missing.
pub fn xargs(count: usize) -> Option<f64> {
    let begun = Instant::now();
    let script = format!("seq {count} | xargs -P2 -n1 /bin/true");
    let status = Command::new("sh").args(["-c", &script]).stderr(Stdio::null()).status().ok()?;
    // GNU's true ignores its argument.
    status.success().then(|| count as f64 / begun.elapsed().as_secs_f64())
}

/// Durable writes of a record each, a second, by so many threads at once: each appends its record to one file and waits
/// until a sync covers it. One thread syncs for all that wait, which is the most a disk can be made to do.
pub fn synced_log(writers: usize, seconds: f64) -> anyhow::Result<f64> {
    let dir = TempDir::new()?;
    let file = File::create(dir.path().join("log"))?;
    let log = Log::default();
    let begun = Instant::now();
    let is_over = || begun.elapsed().as_secs_f64() > seconds;
    thread::scope(|scope| {
        for _ in 0..writers {
            scope.spawn(|| {
                while !is_over() {
                    let mut state = log.state.lock().unwrap();
                    state.pending.extend_from_slice(&RECORD);
                    state.written += 1;
                    let mine = state.written;
                    log.work.notify_one();
                    while state.synced < mine {
                        state = log.done.wait(state).unwrap();
                    }
                }
            });
        }
        scope.spawn(|| {
            let mut file = &file;
            loop {
                let mut state = log.state.lock().unwrap();
                while state.pending.is_empty() {
                    let (next, waited) = log.work.wait_timeout(state, Duration::from_millis(50)).unwrap();
                    state = next;
                    if waited.timed_out() && is_over() {
                        return;
                    }
                }
                let (batch, upto) = (std::mem::take(&mut state.pending), state.written);
                drop(state);
                file.write_all(&batch).expect("the disk takes it");
                file.sync_data().expect("the disk syncs it");
                log.state.lock().unwrap().synced = upto;
                log.done.notify_all();
            }
        });
    });
    let written = log.state.lock().unwrap().synced;
    Ok(written as f64 / begun.elapsed().as_secs_f64())
}

#[derive(Default)]
struct Log {
    state: Mutex<LogState>,
    work: Condvar,
    done: Condvar,
}

#[derive(Default)]
struct LogState {
    pending: Vec<u8>,
    written: u64,
    synced: u64,
}

/// Files of which each stands for the disk of a node: what a job's copies cost where nothing but their syncs takes time.
pub struct Disks {
    files: Vec<File>,
    _dir: TempDir,
}

impl Disks {
    pub fn new(count: usize) -> anyhow::Result<Self> {
        let dir = TempDir::new()?;
        let files = (0..count).map(|at| File::create(dir.path().join(at.to_string()))).collect::<Result<_, _>>()?;
        Ok(Self { files, _dir: dir })
    }

    /// Seconds until a record is synced in every file, by a thread each, all at once.
    pub fn sync(&self) -> f64 {
        let begun = Instant::now();
        thread::scope(|scope| {
            for mut file in &self.files {
                scope.spawn(move || {
                    file.write_all(&RECORD).expect("the disk takes it");
                    file.sync_data().expect("the disk syncs it");
                });
            }
        });
        begun.elapsed().as_secs_f64()
    }
}

/// A beanstalkd that syncs each job it is given (`-f0`).
pub struct Beanstalkd {
    server: Child,
    addr: SocketAddr,
    _dir: TempDir,
}

/// A connection that gives it jobs.
pub struct Puts(BufReader<TcpStream>);

impl Beanstalkd {
    /// Nothing where it is not installed.
    pub fn start() -> anyhow::Result<Option<Self>> {
        let dir = TempDir::new()?;
        let addr = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let mut command = Command::new("beanstalkd");
        command.args(["-l", "127.0.0.1", "-p", &addr.port().to_string(), "-f0", "-b"]).arg(dir.path()).process_group(0);
        let Ok(server) = command.spawn() else { return Ok(None) };
        let started = Self { server, addr, _dir: dir };
        eventually("beanstalkd listens", || Ok(TcpStream::connect(addr).ok()))?;
        Ok(Some(started))
    }

    pub fn connect(&self) -> anyhow::Result<Puts> {
        let stream = TcpStream::connect(self.addr)?;
        stream.set_nodelay(true)?;
        Ok(Puts(BufReader::new(stream)))
    }

    /// Durable puts a second over so many connections at once.
    pub fn rate(&self, connections: usize, seconds: f64) -> f64 {
        let (puts, begun) = (AtomicUsize::new(0), Instant::now());
        thread::scope(|scope| {
            for _ in 0..connections {
                scope.spawn(|| {
                    let mut connection = self.connect().expect("it listens");
                    while begun.elapsed().as_secs_f64() < seconds {
                        connection.put().expect("it takes a job");
                        puts.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        puts.load(Ordering::Relaxed) as f64 / begun.elapsed().as_secs_f64()
    }
}

impl Drop for Beanstalkd {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

impl Puts {
    /// Gives it a job, and waits for its answer: the seconds that took.
    pub fn put(&mut self) -> anyhow::Result<f64> {
        let begun = Instant::now();
        self.0.get_mut().write_all(b"put 0 0 60 9\r\n/bin/true\r\n")?;
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        ensure!(line.starts_with("INSERTED"), "beanstalkd answered {line:?}");
        Ok(begun.elapsed().as_secs_f64())
    }
}
