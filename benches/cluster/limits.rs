//! What the machine allows, and what other systems that are installed make of it.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::nodes::eventually;

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
    const RECORD: [u8; 400] = [b'r'; 400];
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

/// Durable puts a second into beanstalkd, which syncs each (`-f0`), over so many connections at once; nothing where
/// it is not installed.
pub fn beanstalkd(connections: usize, seconds: f64) -> anyhow::Result<Option<f64>> {
    let dir = TempDir::new()?;
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let mut command = Command::new("beanstalkd");
    command.args(["-l", "127.0.0.1", "-p", &port.to_string(), "-f0", "-b"]).arg(dir.path()).process_group(0);
    let Ok(mut server) = command.spawn() else { return Ok(None) };
    let connect = || Ok(TcpStream::connect(("127.0.0.1", port)).ok());
    let rate = eventually("beanstalkd listens", connect).map(|_| {
        let (puts, begun) = (AtomicUsize::new(0), Instant::now());
        thread::scope(|scope| {
            for _ in 0..connections {
                scope.spawn(|| {
                    let mut stream = BufReader::new(TcpStream::connect(("127.0.0.1", port)).expect("it listens"));
                    let mut line = String::new();
                    while begun.elapsed().as_secs_f64() < seconds {
                        stream.get_mut().write_all(b"put 0 0 60 9\r\n/bin/true\r\n").expect("it reads");
                        line.clear();
                        stream.read_line(&mut line).expect("it answers");
                        assert!(line.starts_with("INSERTED"), "{line}");
                        puts.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        puts.load(Ordering::Relaxed) as f64 / begun.elapsed().as_secs_f64()
    });
    server.kill()?;
    server.wait()?;
    rate.map(Some)
}
