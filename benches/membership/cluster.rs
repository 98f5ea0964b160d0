//! A cluster of processes, what is done to it, and when each of them has noticed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// What is waited for at the most.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two starts when the cluster forms.
const START_EVERY: Duration = Duration::from_millis(30);
/// Calm between two measurements, so that each begins in a cluster that is well: a process that was frozen distrusts
/// itself for some seconds.
const CALM: Duration = Duration::from_secs(2);
const CALM_AFTER_FREEZING: Duration = Duration::from_secs(8);
/// How long a process that was asked to leave may take.
const EXIT_WITHIN: Duration = Duration::from_secs(30);
/// Of each process's log.
const LINES_KEPT: usize = 12;

/// A program whose processes form a cluster, and how to handle them. Processes are known by their places.
pub(crate) trait System {
    fn name(&self) -> &'static str;
    /// The program, ready to be started at `place`, with its log on standard error or output.
    fn command(&self, place: usize) -> Command;
    /// What reads a line of the log, and tells what it says of interest.
    fn reader(&self) -> fn(&str) -> Option<Sight>;
    /// The process at `place` is to say something urgent, which the others then see as `Changed` by it.
    fn change(&self, place: usize, number: usize);
    /// Takes the change back, where there is something to take back. The others then see it `Alive`.
    fn change_back(&self, place: usize) -> bool;
    /// Asks for a graceful leave.
    fn leave_signal(&self) -> Signal;
    /// The bytes that the process at `place` has sent, if it tells.
    fn sent_bytes(&self, place: usize) -> Option<f64>;
}

/// What one process has seen of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Sight {
    Alive(usize),
    Suspected(usize),
    Down(usize),
    Left(usize),
    Changed(usize),
}

impl Sight {
    /// The name of the process at a place, by which logs name it.
    pub(crate) fn name_of(place: usize) -> String {
        format!("n{place}")
    }

    /// The place of a name.
    pub(crate) fn place_of(name: &str) -> Option<usize> {
        name.strip_prefix('n')?.parse().ok()
    }
}

#[derive(Debug)]
struct Seen {
    at: Instant,
    by: usize,
    what: Sight,
}

/// When the processes knew something.
#[derive(Debug, Clone, Copy)]
struct Known {
    median: Instant,
    last: Instant,
    last_by: usize,
}

/// What an idle cluster takes.
pub(crate) struct Idle {
    pub cpu_ms_per_s: f64,
    pub rss_mb: f64,
    /// Of that, what is the process's own; the rest are pages of the program's file, which all processes share.
    pub own_mb: f64,
    pub traffic: String,
}

/// What befell a cluster on a machine that is busy with other things.
pub(crate) struct Overload {
    pub false_downs: usize,
    pub suspicions: usize,
}

pub(crate) struct Cluster<'a> {
    system: &'a dyn System,
    processes: BTreeMap<usize, Child>,
    frozen: BTreeSet<usize>,
    count: usize,
    told: mpsc::Sender<Seen>,
    tells: mpsc::Receiver<Seen>,
    seen: Vec<Seen>,
    false_downs: usize,
    /// The latest lines of each process's log, for when something goes wrong.
    logs: BTreeMap<usize, Arc<Mutex<VecDeque<String>>>>,
}

impl<'a> Cluster<'a> {
    pub(crate) fn new(system: &'a dyn System, count: usize) -> Self {
        let (told, tells) = mpsc::channel();
        Self {
            system,
            processes: BTreeMap::new(),
            frozen: BTreeSet::new(),
            count,
            told,
            tells,
            seen: Vec::new(),
            false_downs: 0,
            logs: BTreeMap::new(),
        }
    }

    fn start(&mut self, place: usize) {
        let mut child = self
            .system
            .command(place)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        self.listen(place, child.stdout.take().expect("it is piped"));
        self.listen(place, child.stderr.take().expect("it is piped"));
        self.processes.insert(place, child);
    }

    /// Takes the time of every line as it comes, in a thread that does nothing else.
    fn listen(&mut self, by: usize, log: impl std::io::Read + Send + 'static) {
        let told = self.told.clone();
        let kept = Arc::clone(self.logs.entry(by).or_default());
        let (lines, read) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(log).lines().map_while(Result::ok) {
                if lines.send((Instant::now(), line)).is_err() {
                    return;
                }
            }
        });
        // Reading what a line means can wait; a thread of its own keeps it from delaying the next line's time.
        let read_line = self.system.reader();
        thread::spawn(move || {
            for (at, line) in read {
                let mut kept = kept.lock().expect("nobody panics with it");
                kept.truncate(LINES_KEPT - 1);
                kept.push_front(line.clone());
                drop(kept);
                if let Some(what) = read_line(&line)
                    && told.send(Seen { at, by, what }).is_err()
                {
                    return;
                }
            }
        });
    }

    /// Starts everybody, one after the other; how long after the last start the last of them saw all others.
    pub(crate) fn join(&mut self) -> Option<Duration> {
        for place in 0..self.count {
            self.start(place);
            self.settle(START_EVERY);
        }
        let last_start = Instant::now() - START_EVERY;
        let everybody: BTreeSet<usize> = (0..self.count).collect();
        let mut last = last_start;
        for place in 0..self.count {
            let others = everybody.iter().copied().filter(|other| *other != place).collect();
            last = last.max(self.wait_for(0, &others, Sight::Alive(place))?.last);
        }
        Some(last - last_start)
    }

    /// Lets time pass.
    pub(crate) fn settle(&mut self, span: Duration) {
        let until = Instant::now() + span;
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            if let Ok(seen) = self.tells.recv_timeout(left) {
                self.take(seen);
            }
        }
    }

    fn take(&mut self, seen: Seen) {
        if let Sight::Down(about) = seen.what {
            let runs = |place: usize| self.processes.contains_key(&place) && !self.frozen.contains(&place);
            if runs(about) && runs(seen.by) {
                self.false_downs += 1;
                println!("false: n{} takes n{about} for down", seen.by);
            }
        }
        self.seen.push(seen);
    }

    /// When `observers` saw `what`, counting from sight number `from`.
    fn wait_for(&mut self, from: usize, observers: &BTreeSet<usize>, what: Sight) -> Option<Known> {
        let deadline = Instant::now() + PATIENCE;
        let mut missing = observers.clone();
        let mut times = Vec::new();
        let mut next = from;
        loop {
            while let Some(seen) = self.seen.get(next) {
                next += 1;
                if seen.what == what && missing.remove(&seen.by) {
                    times.push((seen.at, seen.by));
                }
            }
            if missing.is_empty() {
                times.sort_unstable();
                let ((median, _), (last, last_by)) = (*times.get(times.len() / 2)?, *times.last()?);
                return Some(Known { median, last, last_by });
            }
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                println!("{}: {what:?} was never seen by {missing:?}; its log ended with", self.system.name());
                let (Sight::Alive(place)
                | Sight::Suspected(place)
                | Sight::Down(place)
                | Sight::Left(place)
                | Sight::Changed(place)) = what;
                for line in self.logs[&place].lock().expect("nobody panics with it").iter().rev() {
                    println!("    {line}");
                }
                return None;
            };
            if let Ok(seen) = self.tells.recv_timeout(left) {
                self.take(seen);
            }
        }
    }

    /// All that run, but for `place`.
    fn others(&self, place: usize) -> BTreeSet<usize> {
        self.processes.keys().copied().filter(|other| *other != place).collect()
    }

    fn signal(&self, place: usize, signal: Signal) {
        let child = &self.processes[&place];
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("a process id")).expect("it is not zero");
        kill_process(pid, signal).expect("it runs");
    }

    /// Freezes a process until all others believe it down.
    pub(crate) fn freeze(&mut self, victim: usize) -> Option<Duration> {
        let (from, others) = (self.seen.len(), self.others(victim));
        self.frozen.insert(victim);
        let began = Instant::now();
        self.signal(victim, Signal::STOP);
        let known = self.wait_for(from, &others, Sight::Down(victim));
        let from = self.seen.len();
        self.signal(victim, Signal::CONT);
        self.wait_for(from, &others, Sight::Alive(victim));
        self.frozen.remove(&victim);
        self.settle(CALM_AFTER_FREEZING);
        self.tell("frozen", victim, known, began)
    }

    /// Kills a process, waits until all others believe it down, and starts it again.
    pub(crate) fn kill(&mut self, victim: usize) -> Option<Duration> {
        let (from, others) = (self.seen.len(), self.others(victim));
        let mut child = self.processes.remove(&victim).expect("it runs");
        let began = Instant::now();
        child.kill().expect("it runs");
        child.wait().expect("it was started here");
        let known = self.wait_for(from, &others, Sight::Down(victim));
        self.start_again(victim, &others);
        self.tell("killed", victim, known, began)
    }

    /// Has a process say something urgent.
    pub(crate) fn change(&mut self, speaker: usize) -> Option<Duration> {
        let (from, others) = (self.seen.len(), self.others(speaker));
        let began = Instant::now();
        self.system.change(speaker, from);
        let known = self.wait_for(from, &others, Sight::Changed(speaker));
        let from = self.seen.len();
        if self.system.change_back(speaker) {
            self.wait_for(from, &others, Sight::Alive(speaker));
        }
        self.settle(CALM);
        self.tell("changed", speaker, known, began)
    }

    /// Has a process leave, and starts it again.
    pub(crate) fn leave(&mut self, leaver: usize) -> Option<Duration> {
        let (from, others) = (self.seen.len(), self.others(leaver));
        let began = Instant::now();
        self.signal(leaver, self.system.leave_signal());
        let known = self.wait_for(from, &others, Sight::Left(leaver));
        let mut child = self.processes.remove(&leaver).expect("it runs");
        let deadline = Instant::now() + EXIT_WITHIN;
        while child.try_wait().expect("it was started here").is_none() {
            if Instant::now() > deadline {
                println!("n{leaver} does not end; killing it");
                child.kill().expect("it runs");
            }
            self.settle(Duration::from_millis(20));
        }
        self.start_again(leaver, &others);
        self.tell("left", leaver, known, began)
    }

    fn start_again(&mut self, place: usize, others: &BTreeSet<usize>) {
        let from = self.seen.len();
        self.start(place);
        self.wait_for(from, others, Sight::Alive(place));
        self.settle(CALM);
    }

    fn tell(&self, what: &str, place: usize, known: Option<Known>, began: Instant) -> Option<Duration> {
        let Known { median, last, last_by } = known?;
        let (median, last) = (median - began, last - began);
        println!(
            "{}: n{place} {what}: half of the others know after {median:.2?}, n{last_by} last after {last:.2?}",
            self.system.name()
        );
        Some(last)
    }

    /// How many processes that ran were believed down by others that ran.
    pub(crate) fn false_downs(&self) -> usize {
        self.false_downs
    }

    /// What the cluster takes while nothing happens.
    pub(crate) fn idle(&mut self, span: Duration) -> Idle {
        let sent = |cluster: &Self| -> Option<f64> {
            cluster.processes.keys().map(|place| cluster.system.sent_bytes(*place)).sum()
        };
        let cpu = |cluster: &Self| -> Duration { cluster.processes.values().map(|child| cpu_time(child.id())).sum() };
        let (began, sent_before, cpu_before) = (Instant::now(), sent(self), cpu(self));
        self.settle(span);
        let (took, sent_after, cpu_after) = (began.elapsed().as_secs_f64(), sent(self), cpu(self));
        let nodes = self.processes.len() as f64;
        let median_mb = |field| {
            let mut memory: Vec<u64> = self.processes.values().map(|child| memory_kb(child.id(), field)).collect();
            memory.sort_unstable();
            memory[memory.len() / 2] as f64 / 1_024.0
        };
        let traffic = sent_before.zip(sent_after).map(|(before, after)| (after - before) / took / nodes);
        Idle {
            cpu_ms_per_s: (cpu_after - cpu_before).as_secs_f64() * 1_000.0 / took / nodes,
            rss_mb: median_mb("VmRSS:"),
            own_mb: median_mb("RssAnon:"),
            traffic: traffic.map_or_else(|| "not told".to_owned(), |bytes| format!("{:.1} kB/s sent", bytes / 1_000.0)),
        }
    }

    /// Runs beside twice as many busy processes as there are processors.
    pub(crate) fn overload(&mut self, span: Duration) -> Overload {
        let processors = thread::available_parallelism().map_or(2, usize::from);
        println!("{}: {} busy processes beside the cluster, for {span:?}", self.system.name(), processors * 2);
        let busy = || Command::new("sh").args(["-c", "while :; do :; done"]).spawn().expect("a shell starts");
        let mut crowd: Vec<Child> = (0..processors * 2).map(|_| busy()).collect();
        let (from, downs) = (self.seen.len(), self.false_downs);
        self.settle(span);
        for child in &mut crowd {
            // They end in no other way.
            let _ = child.kill();
            let _ = child.wait();
        }
        let suspicions = self.seen[from..].iter().filter(|seen| matches!(seen.what, Sight::Suspected(_))).count();
        Overload { false_downs: self.false_downs - downs, suspicions }
    }
}

impl Drop for Cluster<'_> {
    fn drop(&mut self) {
        for child in self.processes.values_mut() {
            // Some may have ended.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The processor time that a process has taken.
fn cpu_time(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let after_name = stat.rsplit_once(')').expect("the name is in parentheses").1;
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    // Numbers 14 and 15 of proc(5), in ticks of a hundredth of a second.
    let ticks: u64 = fields[11..13].iter().filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 1_000 / rustix::param::clock_ticks_per_second())
}

/// A figure of the process's status, such as `VmRSS:`.
fn memory_kb(pid: u32, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let figure = status.lines().find_map(|line| line.strip_prefix(field));
    figure.and_then(|figure| figure.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}
