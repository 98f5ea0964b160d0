//! What the machine allows.

use std::fs::File;
use std::io::Write;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

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
