//! Pods as they happen: real programs, real signals, real deaths.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test stops at what surprises it, and has a clock"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use flockwork::io::executor::{Executor, ExecutorConfig, GuardProgram, HandlerError, Handlers, guard_main};
use flockwork::model::attempt::Exit;
use flockwork::model::id::{Actor, AttemptKey, Dot, Fence, Generation, JobId, NodeId};
use flockwork::model::record::Submission;
use flockwork::model::spec::{Driver, Limit, Spec, Stdin};
use flockwork::model::time::Timestamp;
use flockwork::model::wire::{LogRequest, Stream};
use flockwork::protocol::effect::{PodEnd, PodEvent, PodStart};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

/// Nothing here takes so long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// An executor, and the driver's letter box.
struct Workshop {
    executor: Executor,
    events: mpsc::UnboundedReceiver<PodEvent>,
    tracker: TaskTracker,
    dir: TempDir,
    /// How many jobs were named here rather than by the test.
    named: u128,
}

impl Workshop {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut ExecutorConfig)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = ExecutorConfig::new(dir.path(), "a-node");
        config.stop_grace = Duration::from_millis(300);
        change(&mut config);
        let (sender, events) = mpsc::unbounded_channel();
        let tracker = TaskTracker::new();
        let executor = Executor::start(config, sender, tracker.clone()).unwrap();
        Self { executor, events, tracker, dir, named: 0 }
    }

    /// Starts job `number` and answers with the name of its attempt.
    fn start(&self, number: u128, spec: Spec) -> AttemptKey {
        let start = pod(number, spec);
        let key = start.key;
        self.executor.start_pod(start);
        key
    }

    async fn next_event(&mut self) -> PodEvent {
        tokio::time::timeout(PATIENCE, self.events.recv()).await.expect("an event in time").unwrap()
    }

    async fn started(&mut self) {
        let event = self.next_event().await;
        assert!(matches!(event, PodEvent::Started { .. }), "{event:?}");
    }

    /// The end of the next pod that ends.
    async fn end(&mut self) -> PodEnd {
        loop {
            if let PodEvent::Ended { end, .. } = self.next_event().await {
                return end;
            }
        }
    }

    async fn run(&mut self, spec: Spec) -> (PodEnd, String, String) {
        self.named += 1;
        let key = self.start(1_000 + self.named, spec);
        let end = self.end().await;
        let text = |(_, bytes)| String::from_utf8(bytes).unwrap();
        (end, text(self.log(key, Stream::Stdout).await), text(self.log(key, Stream::Stderr).await))
    }

    /// A whole log to its end, and the offset at which what was kept of it begins.
    async fn log(&self, key: AttemptKey, stream: Stream) -> (u64, Vec<u8>) {
        let (mut begin, mut at, mut all) = (None, 0, Vec::new());
        loop {
            let Ok(chunk) = self.executor.read_log(request(key, stream, at)).await else {
                // Of an attempt that wrote nothing, nothing is kept.
                assert_eq!(begin, None, "a log does not vanish while it is read");
                return (0, Vec::new());
            };
            begin = begin.or(Some(chunk.offset));
            assert!(all.is_empty() || chunk.offset == at, "a hole in the log");
            at = chunk.offset + chunk.bytes.len() as u64;
            all.extend(chunk.bytes);
            if chunk.end {
                return (begin.unwrap(), all);
            }
        }
    }

    /// Shuts down, and returns when nothing of the executor is left.
    async fn close(&self) {
        self.executor.shut_down().await;
        self.tracker.close();
        tokio::time::timeout(PATIENCE, self.tracker.wait()).await.expect("every task ends");
    }

    /// The first line that the pod writes, as a number.
    async fn number_told(&self, key: AttemptKey) -> i32 {
        let mut text = String::new();
        while !text.ends_with('\n') {
            let chunk = self.executor.read_log(request(key, Stream::Stdout, text.len() as u64)).await.unwrap();
            text.push_str(std::str::from_utf8(&chunk.bytes).unwrap());
            assert!(!chunk.end, "ended without a number: {text}");
        }
        text.trim().parse().unwrap()
    }
}

fn request(key: AttemptKey, stream: Stream, offset: u64) -> LogRequest {
    LogRequest { job: key.job, claim: key.claim, stream, offset, limit: 1 << 16, wait_ms: 30_000 }
}

fn pod(number: u128, spec: Spec) -> PodStart {
    let node = NodeId(0xa1);
    let claim = Dot { actor: Actor { node, generation: Generation(7) }, counter: 1 };
    let submission = Submission { spec, submitted_at: Timestamp(0), gateway: node, home: vec![node], retry_of: None };
    PodStart {
        key: AttemptKey { job: JobId(number), claim },
        number: 2,
        fence: Fence::new(2, node),
        submission: Arc::new(submission),
        checkpoint: None,
    }
}

fn program(command: &[&str]) -> Spec {
    Spec { command: command.iter().map(|word| (*word).to_owned()).collect(), ..Spec::default() }
}

fn sh(script: &str) -> Spec {
    program(&["sh", "-c", script])
}

fn handler(name: &str) -> Spec {
    Spec { driver: Driver::Handler, handler: Some(name.to_owned()), ..Spec::default() }
}

fn handlers(register: impl FnOnce(&mut Handlers)) -> Workshop {
    Workshop::with(|config| register(&mut config.handlers))
}

/// Whether the process runs, or is only waited for by somebody who does not come.
fn is_alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

/// Returns when the process is gone; fails if it stays.
async fn wait_until_gone(pid: i32) {
    let Ok(process) = rustix::process::pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()) else { return };
    let patience = Timespec { tv_sec: PATIENCE.as_secs().try_into().unwrap(), tv_nsec: 0 };
    let poll = move || rustix::event::poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&patience)).unwrap();
    assert_eq!(tokio::task::spawn_blocking(poll).await.unwrap(), 1, "process {pid} still runs");
}

const OK: PodEnd = PodEnd::Exited(Exit::Code(0));

#[track_caller]
fn assert_could_not_start(end: &PodEnd, expected: i32, mentions: &str) {
    let PodEnd::CouldNotStart { code, reason } = end else { panic!("{end:?}") };
    assert!(*code == expected && reason.contains(mentions), "{end:?}");
}

#[tokio::test]
async fn a_program_writes_and_exits() {
    let mut shop = Workshop::new();
    let (end, out, err) = shop.run(sh("echo hi; echo oh >&2; exit 3")).await;
    assert_eq!((end, out.as_str(), err.as_str()), (PodEnd::Exited(Exit::Code(3)), "hi\n", "oh\n"));
    assert_eq!(shop.executor.pods(), 0);
    let (end, _, _) = shop.run(sh("kill -9 $$")).await;
    assert_eq!(end, PodEnd::Exited(Exit::Signal(9)));
}

#[tokio::test]
async fn what_cannot_start_says_what_is_missing() {
    let mut shop = Workshop::new();
    let dir = shop.dir.path().join("files");
    fs::create_dir(&dir).unwrap();
    let file = |name: &str, text: &str, mode: u32| {
        let path = dir.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let plain = file("plain", "hello", 0o644);
    let no_interpreter = file("script", "#!/no/such/interpreter\n", 0o755);
    let no_program = file("letter", "dear reader", 0o755);
    for (command, code, mentions) in [
        ("no-such-program", 127, "no program `no-such-program`"),
        ("/no/such/program", 127, "`/no/such/program` does not exist"),
        (&plain, 126, "not marked as executable"),
        ("/", 126, "a directory"),
        (&no_interpreter, 127, "interpreter"),
        (&no_program, 126, "#!"),
    ] {
        let (end, _, _) = shop.run(program(&[command])).await;
        assert_could_not_start(&end, code, mentions);
    }
    for (cwd, mentions) in [("/no/such/dir", "/no/such/dir does not exist"), ("/dev/null", "not a directory")] {
        let (end, _, _) = shop.run(Spec { cwd: Some(cwd.to_owned()), ..sh("true") }).await;
        assert_could_not_start(&end, 126, mentions);
    }
    let path = BTreeMap::from([("PATH".to_owned(), format!("/no/such/dir:{}", dir.display()))]);
    let (end, _, _) = shop.run(Spec { env: path, ..program(&["plain"]) }).await;
    assert_could_not_start(&end, 126, "files/plain");
}

#[tokio::test]
async fn a_job_sees_its_own_environment_and_a_directory_of_its_own() {
    let mut shop = Workshop::new();
    let env = BTreeMap::from([("GREETING".to_owned(), "hi".to_owned()), ("FLOCKWORK_NODE".to_owned(), "x".to_owned())]);
    let script = "pwd; touch left-over; env | grep -v -e ^PWD= -e ^OLDPWD= -e ^SHLVL= -e ^_= | cut -d= -f1 | sort | xargs; \
                  echo $GREETING $FLOCKWORK_JOB_NAME $FLOCKWORK_ATTEMPT $FLOCKWORK_NODE; echo $FLOCKWORK_TMPDIR; \
                  mktemp";
    let (end, out, _) = shop.run(Spec { env, name: Some("a-job".to_owned()), ..sh(script) }).await;
    assert_eq!(end, OK);
    let lines: Vec<_> = out.lines().collect();
    let allowed = BTreeSet::from([
        "FLOCKWORK_ATTEMPT",
        "FLOCKWORK_CHECKPOINT_FILE",
        "FLOCKWORK_FENCE",
        "FLOCKWORK_JOB_ID",
        "FLOCKWORK_JOB_NAME",
        "FLOCKWORK_NODE",
        "FLOCKWORK_POD",
        "FLOCKWORK_POD_TOKEN",
        "FLOCKWORK_POD_URL",
        "FLOCKWORK_RESULT_FILE",
        "FLOCKWORK_TMPDIR",
        "GREETING",
        "HOME",
        "LANG",
        "LC_ALL",
        "LC_CTYPE",
        "LOGNAME",
        "PATH",
        "SHELL",
        "TMPDIR",
        "TZ",
        "USER",
    ]);
    for name in lines[1].split(' ') {
        assert!(allowed.contains(name), "{name}");
    }
    assert_eq!(lines[2], "hi a-job 2 a-node");
    assert_eq!(lines[3], lines[0]);
    assert!(lines[4].starts_with(lines[0]), "{}", lines[4]);
    assert_eq!(fs::read_dir(lines[0]).unwrap().count(), 0, "nothing of the attempt is left");
}

#[tokio::test]
async fn a_relative_program_is_seen_from_the_working_directory() {
    let mut shop = Workshop::new();
    let (end, out, _) = shop.run(Spec { cwd: Some("/bin".to_owned()), ..program(&["./echo", "hi"]) }).await;
    assert_eq!((end, out.as_str()), (OK, "hi\n"));
}

#[tokio::test]
async fn a_job_has_the_umask_and_the_limits_it_asked_for() {
    let mut shop = Workshop::new();
    let limits = BTreeMap::from([(Limit::OpenFiles, 64), (Limit::FileSize, 4_096), (Limit::CoreSize, 0)]);
    let script = "umask; ulimit -n; ulimit -c; head -c 10000 /dev/zero > large; wc -c < large";
    let (end, out, _) = shop.run(Spec { umask: Some("027".to_owned()), limits, ..sh(script) }).await;
    assert_eq!((end, out.as_str()), (OK, "0027\n64\n0\n4096\n"));
}

#[tokio::test]
async fn a_job_runs_as_the_user_it_asked_for() {
    let mut shop = Workshop::new();
    let of = |user: &str, script: &str| Spec { user: Some(user.to_owned()), ..sh(script) };
    let (end, ..) = shop.run(of("surely-nobody-here", "id")).await;
    assert_could_not_start(&end, 126, "nobody is called");
    if !rustix::process::geteuid().is_root() {
        eprintln!("the rest is skipped: only root can be another user");
        return;
    }
    let script = "id -u; id -g; id -G; echo mine > file && cat file; echo 42 > $FLOCKWORK_RESULT_FILE";
    let (end, out, err) = shop.run(of("65534:65533", script)).await;
    assert_eq!((end, out.as_str(), err.as_str()), (OK, "65534\n65533\n65533\nmine\n", ""));
    let (_, out, _) = shop.run(of("12345678:9", "echo $HOME:${USER-none}:${LOGNAME-none}")).await;
    assert_eq!(out, "/:none:none\n", "whoever has no account is not taken for the node's user");
    let home = tempfile::tempdir().unwrap();
    std::fs::set_permissions(home.path(), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let cwd = Some(home.path().to_str().unwrap().to_owned());
    let (end, ..) = shop.run(Spec { cwd, ..of("65534", "pwd") }).await;
    assert_could_not_start(&end, 126, "`65534` may not enter");
}

#[tokio::test]
async fn a_process_that_ignores_sigterm_is_killed_when_its_time_is_over() {
    let mut shop = Workshop::new();
    let script = "trap 'echo asked' TERM; echo ready; while :; do sleep 1000 & wait; done";
    let (end, out, _) = shop.run(Spec { timeout: Some(Duration::from_millis(400)), ..sh(script) }).await;
    assert_eq!(end, PodEnd::Exited(Exit::TimedOut));
    assert!(out.starts_with("ready\nasked\n"), "{out}");
}

#[tokio::test]
async fn a_stopped_pod_is_asked_first() {
    let mut shop = Workshop::with(|config| config.stop_grace = PATIENCE);
    let key = shop.start(1, sh("trap 'exit 7' TERM; echo $$; sleep 1000 & wait"));
    let pid = shop.number_told(key).await;
    shop.executor.stop_pod(key);
    assert_eq!(shop.end().await, PodEnd::Stopped(Exit::Code(7)));
    assert!(!is_alive(pid));
    shop.executor.stop_pod(key);

    // One that is halted is woken to hear it.
    let key = shop.start(2, sh("echo $$; exec sleep 1000"));
    let pid = shop.number_told(key).await;
    rustix::process::kill_process(Pid::from_raw(pid).unwrap(), Signal::STOP).unwrap();
    shop.executor.stop_pod(key);
    assert_eq!(shop.end().await, PodEnd::Stopped(Exit::Signal(15)));
}

#[tokio::test]
async fn children_die_with_their_pod() {
    let mut shop = Workshop::new();
    let key = shop.start(1, sh("sh -c \"trap '' TERM HUP; while :; do sleep 100; done\" & echo $!"));
    assert_eq!(shop.end().await, OK);
    let (_, out) = shop.log(key, Stream::Stdout).await;
    let child: i32 = String::from_utf8(out).unwrap().trim().parse().unwrap();
    assert!(!is_alive(child));
}

/// A script that starts `command` in a session of its own, reads its pid from the pipe `pid`, prints it and exits.
fn daemon(command: &str) -> String {
    format!("mkfifo pid; setsid {command} & read pid < pid; echo $pid; exit 4")
}

#[tokio::test]
async fn a_daemon_that_holds_the_output_open_does_not_hold_up_the_end() {
    let mut shop = Workshop::new();
    let (end, out, _) = shop.run(sh(&daemon("sh -c 'echo $$ > pid; exec sleep 1000'"))).await;
    assert_eq!(end, PodEnd::Exited(Exit::Code(4)));
    wait_until_gone(out.trim().parse().unwrap()).await;
}

#[tokio::test]
async fn a_daemon_without_a_trace_of_its_pod_is_given_up() {
    let mut shop = Workshop::new();
    let (end, out, _) = shop.run(sh(&daemon("env -i /bin/sh -c 'echo $$ > pid; exec /bin/sleep 1000'"))).await;
    assert_eq!(end, PodEnd::Exited(Exit::Code(4)));
    let daemon = Pid::from_raw(out.trim().parse().unwrap()).unwrap();
    rustix::process::kill_process(daemon, Signal::KILL).unwrap();
}

#[tokio::test]
async fn a_silent_daemon_is_found_after_the_end() {
    let mut shop = Workshop::new();
    let (end, out, _) = shop.run(sh(&daemon("sh -c 'echo $$ > pid; exec sleep 1000 > /dev/null 2>&1'"))).await;
    assert_eq!(end, PodEnd::Exited(Exit::Code(4)));
    wait_until_gone(out.trim().parse().unwrap()).await;
}

#[tokio::test]
async fn of_too_much_output_the_end_is_kept() {
    const WRITTEN: u64 = 10_000_000;
    let mut shop = Workshop::with(|config| config.log_limit_bytes = 1_000_000);
    let key = shop.start(1, sh(&format!("seq 1 10000000 | head -c {WRITTEN}; head -c 3000000 /dev/zero >&2")));
    assert_eq!(shop.end().await, OK);
    let expected: Vec<u8> = (1..2_000_000).flat_map(|n: u32| format!("{n}\n").into_bytes()).take(10_000_000).collect();
    let (begin, kept) = shop.log(key, Stream::Stdout).await;
    assert!((500_000..=1_000_000).contains(&kept.len()), "{}", kept.len());
    assert_eq!(begin + kept.len() as u64, WRITTEN);
    assert!(kept == expected[begin as usize..], "the bytes stand where their offsets say");
    let on_disk: u64 = files_below(shop.dir.path()).into_iter().map(|file| fs::metadata(file).unwrap().len()).sum();
    assert!(on_disk < 2_100_000, "{on_disk}");

    // The job is swept, and nothing is left.
    shop.executor.sweep(key.job);
    shop.close().await;
    assert_eq!(files_below(shop.dir.path()), [shop.dir.path().join("id")]);
    let unknown = shop.executor.read_log(request(key, Stream::Stdout, 0)).await.unwrap_err();
    assert!(unknown.contains("no log"), "{unknown}");
}

fn files_below(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(files_below(&path)) } else { files.push(path) }
    }
    files
}

#[tokio::test]
async fn a_log_can_be_followed_while_it_is_written() {
    let mut shop = Workshop::new();
    // Each line is written only when the one before has been read here. A pipe for each: of one that is opened
    // again, a reader may find the end that its last writer is about to make.
    let pipes: Vec<_> = (1..=3).map(|n| shop.dir.path().join(format!("go.{n}"))).collect();
    assert!(Command::new("mkfifo").args(&pipes).status().unwrap().success());
    let go = shop.dir.path().join("go").display().to_string();
    let key = shop.start(1, sh(&format!("for n in 1 2 3; do echo $n; read go < {go}.$n; done")));
    let mut seen = String::new();
    for (lines_before, pipe) in pipes.into_iter().enumerate() {
        while seen.lines().count() <= lines_before {
            let chunk = shop.executor.read_log(request(key, Stream::Stdout, seen.len() as u64)).await.unwrap();
            assert!(!chunk.end);
            seen.push_str(std::str::from_utf8(&chunk.bytes).unwrap());
        }
        tokio::task::spawn_blocking(move || fs::write(pipe, "go\n")).await.unwrap().unwrap();
    }
    let last = shop.executor.read_log(request(key, Stream::Stdout, seen.len() as u64)).await.unwrap();
    assert_eq!((seen.as_str(), last.end, last.bytes.len()), ("1\n2\n3\n", true, 0));
    assert_eq!(shop.end().await, OK);
    // Who does not want to wait is not made to.
    let missing = LogRequest { wait_ms: 0, ..request(pod(9, sh("")).key, Stream::Stdout, 0) };
    assert!(shop.executor.read_log(missing).await.is_err());
}

#[tokio::test]
async fn input_and_output_are_bytes() {
    let mut shop = Workshop::new();
    let input: Vec<u8> = (0..=255).cycle().take(300_000).collect();
    let key = shop.start(1, Spec { stdin: Some(Stdin(input.clone())), ..program(&["cat"]) });
    assert_eq!(shop.end().await, OK);
    assert!(shop.log(key, Stream::Stdout).await == (0, input));
    let (end, out, _) = shop.run(program(&["cat"])).await;
    assert_eq!((end, out.as_str()), (OK, ""), "without input there is an end of input");
}

#[tokio::test]
async fn input_that_nobody_reads_is_nobodys_problem() {
    let mut shop = Workshop::new();
    let unread = Some(Stdin(vec![b'x'; 1 << 20]));
    assert_eq!(
        shop.run(Spec { stdin: unread.clone(), ..sh("exec <&-; exit 5") }).await.0,
        PodEnd::Exited(Exit::Code(5))
    );
    let stuck = Spec { stdin: unread, timeout: Some(Duration::from_millis(200)), ..program(&["sleep", "1000"]) };
    assert_eq!(shop.run(stuck).await.0, PodEnd::Exited(Exit::TimedOut));
}

#[tokio::test]
async fn shutting_down_ends_every_pod_and_refuses_new_ones() {
    let mut shop = Workshop::new();
    for number in 0..8 {
        shop.start(number, sh("sleep 1000 & sleep 1000"));
    }
    shop.started().await;
    shop.close().await;
    assert_eq!(shop.executor.pods(), 0);
    shop.start(8, sh("true"));
    let mut ended = BTreeSet::new();
    while let Ok(event) = shop.events.try_recv() {
        if let PodEvent::Ended { key, end, .. } = event {
            let expected = if key.job == JobId(8) {
                matches!(end, PodEnd::Unable { .. })
            } else {
                matches!(end, PodEnd::Stopped(_))
            };
            assert!(expected, "{end:?}");
            assert!(ended.insert(key), "{key:?} ended twice");
        }
    }
    assert_eq!(ended.len(), 9);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_at_once_are_each_reported_once() {
    let mut shop = Workshop::new();
    for number in 0..200 {
        shop.start(number, sh(&format!("echo {number}; exit {}", number % 7)));
    }
    let (mut started, mut ended) = (BTreeSet::new(), BTreeSet::new());
    while ended.len() < 200 {
        match shop.next_event().await {
            PodEvent::Started { key, .. } => assert!(started.insert(key)),
            PodEvent::Reported { .. } => panic!("nobody said anything"),
            PodEvent::Ended { key, end, .. } => {
                assert!(started.contains(&key) && ended.insert(key));
                assert_eq!(end, PodEnd::Exited(Exit::Code((key.job.0 % 7) as i32)));
                assert_eq!(shop.log(key, Stream::Stdout).await, (0, format!("{}\n", key.job.0).into_bytes()));
            }
        }
    }
    shop.close().await;
    assert!(shop.events.try_recv().is_err());
    assert_eq!(fs::read_dir(shop.dir.path().join("tmp")).unwrap().count(), 0);
}

#[tokio::test]
async fn handlers_end_as_processes_do() {
    let mut shop = handlers(|handlers| {
        handlers
            .register("greet", async |context| {
                assert_eq!((context.attempt, context.fence), (2, Fence::new(2, NodeId(0xa1))));
                context.stdout.line(format!("hello {}", context.payload.unwrap())).await?;
                Ok(())
            })
            .register("fail", async |_| Err(HandlerError::from("no luck")))
            .register("panic", async |_| panic!("ouch {}", 1));
    });
    let greet = Spec { payload: Some(serde_json::json!({"who": "you"})), ..handler("greet") };
    let (end, out, _) = shop.run(greet).await;
    assert_eq!((end, out.as_str()), (OK, "hello {\"who\":\"you\"}\n"));
    let (end, _, err) = shop.run(handler("fail")).await;
    assert_eq!((end, err.as_str()), (PodEnd::Exited(Exit::Code(1)), "no luck\n"));
    let (end, _, err) = shop.run(handler("panic")).await;
    assert_eq!(end, PodEnd::Exited(Exit::Code(101)));
    assert!(err.ends_with("panicked: ouch 1\n"), "{err}");
    let (end, _, _) = shop.run(handler("missing")).await;
    assert_could_not_start(&end, 127, "no handler `missing`");
}

#[tokio::test]
async fn a_handler_is_asked_to_end_and_then_ended() {
    let mut shop = handlers(|handlers| {
        handlers
            .register("polite", async |context| {
                context.stdout.line(1).await?;
                context.cancelled.cancelled().await;
                context.stdout.line("bye").await?;
                Ok(())
            })
            .register("stubborn", async |context| {
                context.stdout.line(1).await?;
                std::future::pending().await
            });
    });
    let key = shop.start(1, handler("polite"));
    shop.number_told(key).await;
    shop.executor.stop_pod(key);
    assert_eq!(shop.end().await, PodEnd::Stopped(Exit::Code(0)));
    assert_eq!(shop.log(key, Stream::Stdout).await, (0, b"1\nbye\n".to_vec()));

    let key = shop.start(2, handler("stubborn"));
    shop.number_told(key).await;
    shop.executor.stop_pod(key);
    assert_eq!(shop.end().await, PodEnd::Stopped(Exit::Signal(9)));

    shop.start(3, Spec { timeout: Some(Duration::from_millis(50)), ..handler("stubborn") });
    assert_eq!(shop.end().await, PodEnd::Exited(Exit::TimedOut));
}

/// This test program again, as something else: the role is given in its environment, and played by `play_a_role`.
fn in_role(role: &str) -> (String, Vec<String>) {
    let this = std::env::current_exe().unwrap().to_str().unwrap().to_owned();
    let words = [&format!("FLOCKWORK_TEST_ROLE={role}"), &this, "play_a_role", "--exact", "--nocapture"];
    ("/usr/bin/env".to_owned(), words.map(str::to_owned).to_vec())
}

fn own_guard() -> GuardProgram {
    let (program, arguments) = in_role("guard");
    GuardProgram::Program(program.into(), arguments.into_iter().map(Into::into).collect())
}

/// No test of its own, unless it is told to be: then a guard, or a node with one pod.
#[test]
fn play_a_role() {
    let guard = match std::env::var("FLOCKWORK_TEST_ROLE").as_deref() {
        Ok("guard") => guard_main(),
        Ok("node") => own_guard(),
        Ok("node-with-awk") => GuardProgram::Awk,
        // A guard that guards nothing.
        Ok("node-alone") => GuardProgram::Program("/bin/cat".into(), Vec::new()),
        _ => return,
    };
    let dir = std::env::var("FLOCKWORK_TEST_DIR").unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let (sender, _events) = mpsc::unbounded_channel();
        let config = ExecutorConfig { guard, ..ExecutorConfig::new(dir, "doomed") };
        let executor = Executor::start(config, sender, TaskTracker::new()).unwrap();
        // A pod that goes on in its group, and in a daemon outside of it.
        let script = "setsid sh -c 'echo $$; exec sleep 1000' & echo $$; exec sleep 1000";
        let start = pod(1, sh(script));
        let key = start.key;
        executor.start_pod(start);
        let mut text = String::new();
        while text.lines().count() < 2 || !text.ends_with('\n') {
            let chunk = executor.read_log(request(key, Stream::Stdout, text.len() as u64)).await.unwrap();
            text.push_str(std::str::from_utf8(&chunk.bytes).unwrap());
        }
        println!("pids: {}", text.split_whitespace().collect::<Vec<_>>().join(" "));
        std::future::pending::<()>().await;
    });
}

/// A node in a process of its own, with one pod that has two processes.
struct Node {
    process: Child,
    pids: Vec<i32>,
}

impl Node {
    fn start(role: &str, dir: &Path) -> Self {
        let (program, arguments) = in_role(role);
        let mut command = Command::new(program);
        command.args(arguments).env("FLOCKWORK_TEST_DIR", dir).stdout(Stdio::piped()).stdin(Stdio::null());
        let mut process = command.spawn().unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let pids = lines.map_while(Result::ok).find_map(|line| Some(line.split_once("pids: ")?.1.to_owned()));
        let pids: Vec<i32> = pids.unwrap().split(' ').map(|pid| pid.parse().unwrap()).collect();
        assert!(pids.len() == 2 && pids.iter().all(|pid| is_alive(*pid)));
        Self { process, pids }
    }

    /// Kills it with SIGKILL, and says which processes its pod had.
    fn kill(mut self) -> Vec<i32> {
        self.process.kill().unwrap();
        assert_eq!(self.process.wait().unwrap().signal(), Some(9));
        self.pids
    }

    /// The guard that it has now, if any.
    fn guard(&self) -> Option<i32> {
        let node = i32::try_from(self.process.id()).unwrap();
        let children = fs::read_dir(format!("/proc/{node}/task")).unwrap().flatten().flat_map(|thread| {
            let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            children.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<i32>>()
        });
        children.into_iter().find(|child| {
            let environment = fs::read(format!("/proc/{child}/environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|variable| variable == b"FLOCKWORK_TEST_ROLE=guard")
        })
    }
}

#[tokio::test]
async fn no_pod_outlives_a_node_that_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    for pid in Node::start("node", dir.path()).kill() {
        wait_until_gone(pid).await;
    }
}

#[tokio::test]
async fn a_guard_that_dies_is_replaced_and_told_everything() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start("node", dir.path());
    let guard = node.guard().unwrap();
    // Politeness does not impress it; SIGKILL does, and is no reason for the pods to go.
    for signal in [Signal::TERM, Signal::KILL] {
        rustix::process::kill_process(Pid::from_raw(guard).unwrap(), signal).unwrap();
    }
    wait_until_gone(guard).await;
    // Nothing outside of the node could tell when it has its next guard.
    let replaced = async {
        while node.guard().is_none_or(|next| next == guard) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, replaced).await.unwrap();
    assert!(node.pids.iter().all(|pid| is_alive(*pid)));
    for pid in node.kill() {
        wait_until_gone(pid).await;
    }
}

#[tokio::test]
async fn a_guard_that_is_no_program_of_ours_ends_the_groups_at_least() {
    let dir = tempfile::tempdir().unwrap();
    let pids = Node::start("node-with-awk", dir.path()).kill();
    // The leader of a group, but not of a session: the one of the two that did not leave.
    // Asked of /proc, because in a container the session may be one from outside, which has no number there (0).
    let stayed = |pid: i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let session = stat.rsplit(')').next().and_then(|fields| fields.split_whitespace().nth(3));
        session != Some(pid.to_string().as_str())
    };
    for pid in pids.into_iter().filter(|pid| stayed(*pid)) {
        wait_until_gone(pid).await;
    }
    assert_eq!(reaped_in(dir.path()).await, 1, "the daemon waits for the next start");
}

#[tokio::test]
async fn what_even_the_guard_left_is_ended_by_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let pids = Node::start("node-alone", dir.path()).kill();
    assert!(pids.iter().all(|pid| is_alive(*pid)), "nobody has ended them");
    assert_eq!(reaped_in(dir.path()).await, 1);
    for pid in pids {
        wait_until_gone(pid).await;
    }
    assert!(!dir.path().join("tmp").exists());
    // The log of the attempt is still there to be read.
    let (sender, _events) = mpsc::unbounded_channel();
    let executor = Executor::start(ExecutorConfig::new(dir.path(), "next"), sender, TaskTracker::new()).unwrap();
    let chunk = executor.read_log(request(pod(1, sh("")).key, Stream::Stdout, 0)).await.unwrap();
    assert_eq!((chunk.end, chunk.bytes.iter().filter(|byte| **byte == b'\n').count()), (true, 2));
}

/// Starts a node where one was killed, and says of how many pods it found something.
async fn reaped_in(dir: &Path) -> usize {
    let (sender, _events) = mpsc::unbounded_channel();
    let executor = Executor::start(ExecutorConfig::new(dir, "next"), sender, TaskTracker::new()).unwrap();
    let found = executor.reap_leftovers().await;
    assert!(executor.reap_leftovers().await.is_empty());
    executor.shut_down().await;
    found.len()
}
