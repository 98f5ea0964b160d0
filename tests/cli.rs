//! The command line as scripts see it: exit codes, output, settings, and what it does when nodes are gone.
//!
//! The nodes here are small impostors that speak just enough of the HTTP interface, so that every answer, and
//! every silence, can be chosen.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a test has its own clock, and stops at what it cannot do"
)]

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use assert_cmd::Command;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

const JOB: &str = "3f2a9c0417be5d6880aa10c2fe49b7d1";

/// The program, in a home of its own, with nothing of this shell's settings.
struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn flockwork(&self, arguments: &[&str]) -> Command {
        let mut command = Command::cargo_bin("flockwork").unwrap();
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("FLOCKWORK_") || name.starts_with("XDG_"))
        {
            command.env_remove(name);
        }
        command.env("HOME", self.path()).args(arguments).timeout(Duration::from_secs(60));
        command
    }

    fn write_settings(&self, text: &str) {
        let folder = self.path().join(".config/flockwork");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("config.toml"), text).unwrap();
    }
}

/// What an impostor was asked: method and path with query, and the body.
type Asked = Arc<Mutex<Vec<(String, Bytes)>>>;

/// A node that answers as `answer` says: the request line (`GET /v1/nodes`) and how often that was asked before.
struct Impostor {
    addr: SocketAddr,
    asked: Asked,
    _runtime: tokio::runtime::Runtime,
}

impl Impostor {
    fn new(answer: impl Fn(&str, usize, &Bytes) -> Response + Clone + Send + Sync + 'static) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let asked: Asked = Asked::default();
        let noted = Arc::clone(&asked);
        let router = Router::new().fallback(move |request: Request| {
            let (answer, noted) = (answer.clone(), Arc::clone(&noted));
            async move {
                let line = format!("{} {}", request.method(), request.uri());
                let body = axum::body::to_bytes(request.into_body(), 1 << 24).await.unwrap();
                let before = {
                    let mut noted = noted.lock().unwrap();
                    let before = noted.iter().filter(|(known, _)| *known == line).count();
                    noted.push((line.clone(), body.clone()));
                    before
                };
                answer(&line, before, &body)
            }
        });
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let addr = listener.local_addr().unwrap();
        runtime.spawn(async move { axum::serve(listener, router).await });
        Self { addr, asked, _runtime: runtime }
    }

    fn addr(&self) -> String {
        self.addr.to_string()
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().iter().map(|(line, _)| line.clone()).collect()
    }

    fn bodies(&self) -> Vec<Value> {
        self.asked.lock().unwrap().iter().filter_map(|(_, body)| serde_json::from_slice(body).ok()).collect()
    }
}

fn reply(status: u16, body: impl Into<Body>) -> Response {
    let status = StatusCode::from_u16(status).unwrap();
    Response::builder().status(status).header("content-type", "application/json").body(body.into()).unwrap()
}

fn json_reply(status: u16, body: &Value) -> Response {
    reply(status, body.to_string())
}

fn refusal(status: u16, message: &str) -> Response {
    json_reply(status, &json!({"error": {"code": "x", "message": message, "hint": "do better", "field": null}}))
}

fn submitted() -> Response {
    let receipt = json!({"stored": 3, "wanted": 2, "replicas": ["0000000a", "0000000b"]});
    json_reply(201, &json!({"id": JOB, "state": "pending", "receipt": receipt}))
}

/// A job that has ended, with these fields.
fn ended(fields: Value) -> Value {
    let mut job = json!({"id": JOB, "state": "failed", "reason": "because"});
    for (name, value) in fields.as_object().unwrap() {
        job[name] = value.clone();
    }
    job
}

/// An address where nobody listens.
fn nobody() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

fn stdout_of(assert: &assert_cmd::assert::Assert) -> String {
    String::from_utf8(assert.get_output().stdout.clone()).unwrap()
}

fn stderr_of(assert: &assert_cmd::assert::Assert) -> String {
    String::from_utf8(assert.get_output().stderr.clone()).unwrap()
}

// --- Usage ---

#[test]
fn every_command_teaches_by_example() {
    let home = Home::new();
    for command in [
        "up",
        "demo",
        "node",
        "run",
        "submit",
        "ps",
        "job",
        "logs",
        "wait",
        "cancel",
        "retry",
        "where",
        "explain",
        "nodes",
        "impact",
        "drain",
        "undrain",
        "forget",
        "debug",
        "completions",
    ] {
        let help = stdout_of(&home.flockwork(&[command, "--help"]).assert().code(0));
        assert!(help.contains("Examples:"), "{command} --help has no examples:\n{help}");
    }
    let top = stdout_of(&home.flockwork(&["--help"]).assert().code(0));
    assert!(top.contains("Examples:") && !top.contains("pod-guard"));
}

#[test]
fn what_cannot_be_is_a_usage_error() {
    let home = Home::new();
    for arguments in [
        &["frobnicate"][..],
        &["run"],
        &["run", "--timeout", "soon", "--", "true"],
        &["run", "--timeout", "0", "--", "true"],
        &["run", "--retires", "3", "--", "true"],
        &["submit", "--no-retry-on", "SIGKILL", "--", "true"],
        &["submit", "--no-retry-on", "256", "--", "true"],
        &["submit", "--ttl", "1m", "--", "true"],
        &["submit", "-x"],
        &["run", "--cpus", "many", "--", "true"],
        &["run", "--slots", "0", "--", "true"],
        &["run", "--cwd", "here", "--", "true"],
        &["run", "--driver", "handler", "--", "true"],
        &["run", "--env", "FLOCKWORK_TEST_SURELY_UNSET", "--", "true"],
        &["run", "--stdin", "/surely/absent", "--", "true"],
        &["submit", "--file", "x", "--", "true"],
        &["submit", "-a", "x"],
        &["job", "xyz"],
        &["job", "12"],
        &["ps", "--addr", "https://127.0.0.1:1"],
        &["ps", "--config", "/surely/absent"],
        &["node", "--listen", "0.0.0.0:0"],
        &["node", "--http", "0.0.0.0:0"],
        &["node", "--partitions", "1000"],
    ] {
        let assert = home.flockwork(arguments).assert().code(2);
        assert!(stderr_of(&assert).starts_with("error: "), "{arguments:?}: {}", stderr_of(&assert));
        assert_eq!(stdout_of(&assert), "");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn an_argument_that_is_not_utf8_is_named() {
    use std::os::unix::ffi::OsStrExt;
    let mut command = Home::new().flockwork(&["run", "--", "cat"]);
    let assert = command.arg(std::ffi::OsStr::from_bytes(b"caf\xe9")).assert().code(2);
    assert!(stderr_of(&assert).contains("argument 4 is not UTF-8: caf"), "{}", stderr_of(&assert));
}

#[test]
fn a_dry_run_prints_what_would_be_sent_and_sends_nothing() {
    let home = Home::new();
    let arguments = [
        "run",
        "--dry-run",
        "--name",
        "n",
        "--env",
        "A=b=c",
        "--mem",
        "512MiB",
        "--cpus",
        "0.5",
        "--timeout",
        "90",
        "--backoff",
        "2s,3,1h",
        "--no-retry-on",
        "2,3",
        "--priority",
        "-5",
        "--durability",
        "all",
        "--stdin",
        "-",
        "--require",
        "disk=ssd",
        "--retries",
        "4",
        "sh",
        "-c",
        "exit 3",
    ];
    let assert = home.flockwork(&arguments).write_stdin("hello").env("FLOCKWORK_ADDR", nobody()).assert().code(0);
    let spec: Value = serde_json::from_str(&stdout_of(&assert)).unwrap();
    let expected = json!({
        "command": ["sh", "-c", "exit 3"], "name": "n", "env": {"A": "b=c"}, "memory": "512MiB", "cpus": 0.5,
        "timeout": "1m 30s", "backoff": {"initial": "2s", "factor": 3.0, "max": "1h"}, "no_retry_on": [2, 3],
        "priority": -5, "durability": "all", "stdin": "hello", "require": {"disk": "ssd"}, "retries": 4,
        "slots": 1, "lost_limit": 5, "driver": "process",
    });
    assert_eq!(spec, expected);
}

#[test]
fn a_line_each_makes_a_job_each() {
    let home = Home::new();
    let arguments = ["submit", "--dry-run", "-a", "-", "--name", "get {#}", "--key", "night", "--", "curl", "{}/x"];
    let assert = home.flockwork(&arguments).write_stdin("a b\nc\n").assert().code(0);
    let specs: Vec<Value> = stdout_of(&assert).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(specs.len(), 2);
    assert_eq!(specs[0]["command"], json!(["curl", "a b/x"]));
    assert_eq!((&specs[1]["name"], &specs[1]["key"]), (&json!("get 2"), &json!("night/2")));
}

#[test]
fn completions_are_scripts_and_survive_a_closed_pipe() {
    let home = Home::new();
    for shell in ["bash", "zsh", "fish"] {
        assert!(stdout_of(&home.flockwork(&["completions", shell]).assert().code(0)).contains("flockwork"));
    }
    let program = assert_cmd::cargo::cargo_bin("flockwork");
    let script = format!("{} completions bash | true; exit ${{PIPESTATUS[0]}}", program.display());
    let ended = std::process::Command::new("bash").args(["-c", &script]).output().unwrap();
    assert_eq!((ended.status.code(), ended.stderr.as_slice()), (Some(0), &b""[..]));
}

// --- Settings ---

#[test]
fn a_flag_beats_the_environment_which_beats_the_file() {
    let home = Home::new();
    let addr_of = |command: &mut Command| {
        let shown: Value = serde_json::from_str(&stdout_of(&command.assert().code(0))).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        (text(&shown["addr"]["value"][0]), text(&shown["addr"]["source"]))
    };
    let show = ["config", "show", "-o", "json"];
    assert_eq!(addr_of(&mut home.flockwork(&show)), ("127.0.0.1:7070".into(), "default".into()));
    home.write_settings("addr = \"file:1\"\n[node]\nslots = 7\n");
    assert_eq!(addr_of(&mut home.flockwork(&show)), ("file:1".into(), "file".into()));
    let mut command = home.flockwork(&show);
    command.env("FLOCKWORK_ADDR", "environment:1,x:2");
    assert_eq!(addr_of(&mut command), ("environment:1".into(), "environment".into()));
    let mut command = home.flockwork(&show);
    command.env("FLOCKWORK_ADDR", "environment:1").args(["--addr", "flag:1"]);
    assert_eq!(addr_of(&mut command), ("flag:1".into(), "flag".into()));
}

#[test]
fn shown_settings_are_a_settings_file() {
    let home = Home::new();
    let text = stdout_of(&home.flockwork(&["config", "show", "--slots", "4", "--label", "a=b"]).assert().code(0));
    assert!(text.contains("slots = 4"), "{text}");
    home.write_settings(&text);
    let shown = stdout_of(&home.flockwork(&["config", "show", "-o", "json"]).assert().code(0));
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown["node"]["slots"], json!({"value": 4, "source": "file"}));
    assert_eq!(shown["node"]["labels"]["value"], json!({"a": "b"}));
}

#[test]
fn a_misspelt_setting_stops_every_command_but_help() {
    let home = Home::new();
    home.write_settings("adr = \"x:1\"\n");
    let assert = home.flockwork(&["ps"]).assert().code(2);
    assert!(stderr_of(&assert).contains("adr"), "{}", stderr_of(&assert));
    home.flockwork(&["completions", "bash"]).assert().code(0);
}

// --- Nodes that are gone ---

#[test]
fn nobody_there_is_exit_code_5_and_says_what_to_do() {
    let assert = Home::new().flockwork(&["ps", "--addr", &format!("{},{}", nobody(), nobody())]).assert().code(5);
    let stderr = stderr_of(&assert);
    assert!(stderr.contains("none of 2 nodes answers") && stderr.contains("connection refused"), "{stderr}");
    assert!(stderr.contains("hint: ") && stderr.contains("flockwork up"), "{stderr}");
}

#[test]
fn the_next_address_is_tried_when_one_is_gone_or_not_ready() {
    let starting = Impostor::new(|_, _, _| refusal(503, "not ready yet"));
    let serving = Impostor::new(|_, _, _| json_reply(200, &json!({"jobs": [{"id": JOB, "state": "running"}]})));
    let addresses = [nobody(), starting.addr(), serving.addr()].join(",");
    let assert = Home::new().flockwork(&["ps", "-o", "id", "--addr", &addresses]).assert().code(0);
    assert_eq!(stdout_of(&assert), format!("{JOB}\n"));
    assert_eq!(starting.asked().len(), 1);
}

#[test]
fn a_submit_whose_answer_was_lost_is_the_same_submit_elsewhere() {
    // The first node takes the job and dies before it answers.
    let broken = Impostor::new(|_, _, _| {
        let body = futures_util::stream::iter([Err::<Bytes, _>(std::io::Error::other("gone"))]);
        reply(201, Body::from_stream(body))
    });
    let healthy = Impostor::new(|_, _, _| submitted());
    let home = Home::new();
    let addresses = [broken.addr(), healthy.addr()].join(",");
    let assert = home.flockwork(&["submit", "--addr", &addresses, "--", "true"]).assert().code(0);
    assert_eq!(stdout_of(&assert), format!("{JOB}\n"));
    let keys: Vec<Value> = [&broken, &healthy].iter().map(|node| node.bodies()[0]["key"].clone()).collect();
    assert!(keys[0].as_str().is_some_and(|key| key.starts_with("cli-")));
    assert_eq!(keys[0], keys[1]);
}

#[test]
fn output_goes_on_elsewhere_where_it_broke_off() {
    let piece = |offset: u64, text: &str| {
        json!({"stream": "stdout", "attempt": 1, "offset": offset, "text": text}).to_string() + "\n"
    };
    let (first, second) = (piece(0, "one "), piece(4, "two\n"));
    let cut_off = first.clone();
    let dying = Impostor::new(move |line, _, _| {
        if line.starts_with("POST") {
            return submitted();
        }
        let body: [std::io::Result<Bytes>; 2] =
            [Ok(cut_off.clone().into_bytes().into()), Err(std::io::Error::other("gone"))];
        if line.contains("/logs") {
            reply(200, Body::from_stream(futures_util::stream::iter(body)))
        } else {
            refusal(503, "shutting down")
        }
    });
    let other = Impostor::new(move |line, _, _| {
        if line.contains("/logs") {
            reply(200, format!("{first}{second}{{\"end\": true, \"state\": \"succeeded\"}}\n"))
        } else {
            json_reply(200, &ended(json!({"state": "succeeded", "exit_code": 0})))
        }
    });
    let addresses = [dying.addr(), other.addr()].join(",");
    // The job has ended by the time the first node is gone, and its output is still shown to the end.
    let assert = Home::new().flockwork(&["run", "--addr", &addresses, "--", "x"]).assert().code(0);
    assert_eq!(stdout_of(&assert), "one two\n", "{}", stderr_of(&assert));
}

#[test]
fn output_that_the_node_has_let_go_of_is_counted() {
    let node = Impostor::new(move |line, _, _| {
        if line.starts_with("POST") {
            submitted()
        } else if line.contains("/logs") {
            let piece = |offset: u64, text: &str| {
                json!({"stream": "stdout", "attempt": 1, "offset": offset, "text": text}).to_string() + "\n"
            };
            let (one, two, three) = (piece(0, "one\n"), piece(4, "two\n"), piece(1_000, "ten\n"));
            reply(200, format!("{one}{two}{three}{{\"end\": true, \"state\": \"succeeded\"}}\n"))
        } else {
            let remark = "its result is lost: it has more than the 65536 bytes that are kept";
            let attempt = json!({"number": 1, "phase": "succeeded", "exit_code": 0, "remark": remark});
            json_reply(200, &ended(json!({"state": "succeeded", "exit_code": 0, "attempts": [attempt]})))
        }
    });
    for command in [&["run", "--addr", &node.addr(), "--", "x"][..], &["logs", "--addr", &node.addr(), JOB]] {
        let assert = Home::new().flockwork(command).assert().code(0);
        assert_eq!(stdout_of(&assert), "one\ntwo\nten\n");
        let told = stderr_of(&assert);
        assert!(told.contains("992 bytes of stdout of attempt 1") && told.contains("--log-limit"), "{told}");
        assert_eq!(told.contains("but its result is lost"), command[0] == "run", "{told}");
    }
}

// --- Exit codes ---

/// A cluster of one node, where the job ends like this after writing a little.
fn cluster_where(job: Value) -> Impostor {
    Impostor::new(move |line, _, _| {
        if line.starts_with("POST /v1/jobs") {
            submitted()
        } else if line.contains("/logs") {
            let out = json!({"stream": "stdout", "attempt": 1, "offset": 0, "base64": "/wAK"});
            let err = json!({"stream": "stderr", "attempt": 1, "offset": 0, "text": "oh\n"});
            reply(200, format!("{out}\n{err}\n{{\"end\":true,\"state\":\"failed\"}}\n"))
        } else {
            json_reply(200, &job)
        }
    })
}

#[test]
fn run_shows_the_bytes_and_ends_as_the_job_did() {
    for (fields, code) in [
        (json!({"state": "succeeded", "exit_code": 0}), 0),
        (json!({"exit_code": 7}), 7),
        (json!({"exit_code": 126}), 126),
        (json!({"signal": 15}), 143),
        (json!({"exit_code": 124, "timed_out": true}), 124),
        (json!({"timed_out": true}), 124),
        (json!({"state": "cancelled", "signal": 9}), 130),
        (json!({}), 1),
    ] {
        let node = cluster_where(ended(fields));
        let assert = Home::new().flockwork(&["run", "--addr", &node.addr(), "--", "x"]).assert().code(code);
        assert_eq!(assert.get_output().stdout, b"\xff\0\n");
        assert!(stderr_of(&assert).contains("oh\n"));
        let assert = Home::new().flockwork(&["wait", "--addr", &node.addr(), JOB]).assert().code(code);
        assert!(stdout_of(&assert).starts_with(JOB));
    }
}

#[test]
fn waiting_for_several_says_whether_all_went_well() {
    let node = Impostor::new(|line, _, _| {
        let good = line.contains("00000000000000000000000000000001");
        let (state, id) = if good { ("succeeded", "1") } else { ("failed", "2") };
        json_reply(200, &json!({"id": format!("{id:0>32}"), "state": state, "exit_code": i32::from(!good) * 9}))
    });
    let home = Home::new();
    let (one, two) = ("00000000000000000000000000000001", "00000000000000000000000000000002");
    home.flockwork(&["wait", "--addr", &node.addr(), one, one]).assert().code(0);
    home.flockwork(&["wait", "--addr", &node.addr(), one, two]).assert().code(1);
    home.flockwork(&["wait", "--addr", &node.addr(), two]).assert().code(9);
}

#[test]
fn a_wait_that_is_over_first_is_exit_code_124() {
    let node = Impostor::new(|_, _, _| json_reply(200, &json!({"id": JOB, "state": "running", "timed_out": true})));
    Home::new().flockwork(&["wait", "--timeout", "0.2", "--addr", &node.addr(), JOB]).assert().code(124);
}

#[test]
fn refusals_are_told_apart_and_shown_with_their_hint() {
    for (status, code) in [(404, 3), (409, 4), (413, 4), (422, 4), (507, 4), (500, 125)] {
        let node = Impostor::new(move |_, _, _| refusal(status, "no such luck"));
        let assert = Home::new().flockwork(&["job", "--addr", &node.addr(), JOB]).assert().code(code);
        assert_eq!(stderr_of(&assert), "error: no such luck\nhint: do better\n");
    }
    let stranger = Impostor::new(|_, _, _| reply(200, "<html>"));
    let assert = Home::new().flockwork(&["job", "--addr", &stranger.addr(), JOB]).assert().code(125);
    assert!(stderr_of(&assert).contains("is it a flockwork node"));
}

#[test]
fn less_durability_than_asked_is_exit_code_6() {
    let node = Impostor::new(|_, _, _| {
        let receipt = json!({"stored": 1, "wanted": 2, "replicas": ["0000000a"]});
        json_reply(202, &json!({"id": JOB, "state": "pending", "receipt": receipt}))
    });
    let assert = Home::new().flockwork(&["submit", "--addr", &node.addr(), "--", "true"]).assert().code(6);
    assert_eq!(stdout_of(&assert), format!("{JOB}\n"));
    assert!(stderr_of(&assert).contains("below the asked durability"));
}

// --- Many, and the last ---

#[test]
fn of_many_jobs_each_is_told_for_itself() {
    let node = Impostor::new(|_, _, body| {
        let specs: Vec<Value> = serde_json::from_slice(body).unwrap();
        let answers: Vec<Value> = specs
            .iter()
            .enumerate()
            .map(|(at, spec)| match spec["command"][1].as_str() {
                Some("bad") => json!({"error": {"message": "that one not", "hint": null}}),
                _ => json!({"id": format!("{at:032x}"), "state": "pending"}),
            })
            .collect();
        json_reply(207, &json!({"jobs": answers}))
    });
    let home = Home::new();
    let mut command = home.flockwork(&["submit", "-a", "-", "--addr", &node.addr(), "--", "echo"]);
    let assert = command.write_stdin("good\nbad\nfine\n").assert().code(4);
    assert_eq!(stdout_of(&assert), format!("{:032x}\n{:032x}\n", 0, 2));
    assert!(stderr_of(&assert).contains("error: that one not"));
    let last = std::fs::read_to_string(home.path().join(".local/state/flockwork/last")).unwrap();
    assert_eq!(last, format!("{:032x}", 2));
}

#[test]
fn last_is_the_newest_job_of_this_user() {
    let home = Home::new();
    home.flockwork(&["job", "last", "--addr", &nobody()]).assert().code(3);
    let node = cluster_where(ended(json!({})));
    home.flockwork(&["submit", "--addr", &node.addr(), "--", "true"]).assert().code(0);
    home.flockwork(&["cancel", "--addr", &node.addr(), "--reason", "a b", "last"]).assert().code(0);
    assert_eq!(node.asked().last().unwrap(), &format!("DELETE /v1/jobs/{JOB}?reason=a+b"));
}

#[test]
fn a_node_that_drains_is_asked_at_its_own_address() {
    let itself = Impostor::new(|_, _, _| json_reply(200, &json!({})));
    let addr = itself.addr();
    let other = Impostor::new(move |_, _, _| {
        json_reply(200, &json!({"nodes": [{"id": "0000000a", "name": "n1", "addresses": {"http": addr.clone()}}]}))
    });
    let home = Home::new();
    home.flockwork(&["drain", "--no-wait", "--addr", &other.addr(), "n1"]).assert().code(0);
    home.flockwork(&["undrain", "--addr", &other.addr(), "0000000a"]).assert().code(0);
    assert_eq!(itself.asked(), ["POST /v1/nodes/0000000a/drain", "DELETE /v1/nodes/0000000a/drain"]);
    home.flockwork(&["drain", "--addr", &other.addr(), "n2"]).assert().code(3);
}

#[test]
fn what_depends_on_a_node_is_a_table_for_people_and_json_for_programs() {
    let impact = json!({
        "node": "0000000a", "name": "n1", "state": "alive", "safe": false,
        "jobs": {"running": 3, "stuck": 1, "stuck_jobs": [JOB]},
        "partitions": {"total": 1024, "owned": 300, "kept": 900, "unknown": 0},
        "records": {"kept": 70, "below_majority": 5, "only_here": 2},
        "members": {"alive": 2, "majority": true},
    });
    let told = impact.clone();
    let node = Impostor::new(move |line, _, _| match line {
        "GET /v1/nodes" => json_reply(200, &json!({"nodes": [{"id": "0000000a", "name": "n1"}]})),
        "GET /v1/nodes/0000000a/impact" => json_reply(200, &told),
        _ => json_reply(409, &json!({"error": {"message": "n1 is alive", "hint": "drain it"}})),
    });
    let home = Home::new();
    let shown = stdout_of(&home.flockwork(&["impact", "n1", "--addr", &node.addr()]).assert().code(0));
    assert!(shown.starts_with("n1 (0000000a), alive: cannot go without harm"), "{shown}");
    let counts = |line: &str| shown.lines().find(|told| told.contains(line)).map(|told| told.to_owned());
    assert!(counts("only there").is_some_and(|line| line.contains('2')), "{shown}");
    assert!(counts("jobs stuck").is_some_and(|line| line.contains(&JOB[..8])), "{shown}");
    let raw = stdout_of(&home.flockwork(&["impact", "n1", "-o", "json", "--addr", &node.addr()]).assert().code(0));
    assert_eq!(serde_json::from_str::<Value>(&raw).unwrap(), impact);
    let refused = home.flockwork(&["forget", "n1", "--addr", &node.addr()]).assert().code(4);
    assert!(stderr_of(&refused).contains("hint: drain it"));
    assert_eq!(node.asked().last().unwrap(), "DELETE /v1/nodes/0000000a");
}

#[test]
fn a_name_cannot_steer_the_terminal() {
    let node = Impostor::new(|_, _, _| {
        json_reply(200, &json!({"jobs": [{"id": JOB, "state": "pending", "name": "\u{1b}[2J"}]}))
    });
    let text = stdout_of(&Home::new().flockwork(&["ps", "--addr", &node.addr()]).assert().code(0));
    assert!(!text.contains('\u{1b}') && text.contains("\\u{1b}[2J"), "{text}");
}

#[cfg(unix)]
#[test]
fn ctrl_c_in_run_cancels_the_job_and_waits_for_its_end() {
    let cancelled = Arc::new(Mutex::new(false));
    let node = Impostor::new(move |line, _, _| {
        if line.starts_with("POST") {
            return submitted();
        }
        if line.starts_with("DELETE") {
            *cancelled.lock().unwrap() = true;
        }
        let over = *cancelled.lock().unwrap();
        if line.contains("/logs") {
            let end = if over { "{\"end\":true,\"state\":\"cancelled\"}\n" } else { "" };
            return reply(200, end);
        }
        std::thread::sleep(Duration::from_millis(50));
        json_reply(200, &json!({"id": JOB, "state": if over { "cancelled" } else { "running" }}))
    });
    let home = Home::new();
    let program = assert_cmd::cargo::cargo_bin("flockwork");
    let child = std::process::Command::new(program)
        .args(["run", "--addr", &node.addr(), "--", "sleep", "99"])
        .env("HOME", home.path())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let asked_for_logs = || node.asked().iter().any(|line| line.contains("/wait"));
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while !asked_for_logs() && std::time::Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(130), "{}", String::from_utf8_lossy(&ended.stderr));
    assert!(node.asked().iter().any(|line| line.starts_with(&format!("DELETE /v1/jobs/{JOB}"))));
}
