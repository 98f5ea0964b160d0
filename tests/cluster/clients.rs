//! Clients of a cluster: the node they talk to dies, they say the same thing twice, and they exit as their job did.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpListener;

use crate::cluster::{Cluster, text};
use crate::processes::{gone, just_one, long_sleep, signal};
use crate::program::{Running, program};
use crate::seconds;

#[tokio::test]
async fn a_client_with_two_addresses_gets_over_the_death_of_its_node() {
    let mut cluster = Cluster::of(4).await;
    let gate = tempfile::TempDir::new().unwrap();
    let opened = gate.path().join("open");
    let wait_for_gate = format!("echo before; until [ -e {} ]; do sleep 0.05; done; echo after", opened.display());

    let mut running = cluster.begin(&[0, 1], &["run", "--", "sh", "-c", &wait_for_gate]);
    assert_eq!(running.line().await, "before");
    let id = cluster.shell(1, &wait_for_gate).await;
    let waiting = cluster.begin(&[0, 1], &["wait", &id]);
    let mut following = cluster.begin(&[0, 1], &["logs", "-f", &id]);
    assert_eq!(following.line().await, "before");

    cluster.kill(0).await;
    let told = cluster.flockwork(&[0, 1], &["run", "--", "echo", "the next call works"]).await;
    assert_eq!(told.good(), "the next call works\n");
    std::fs::write(opened, "").unwrap();
    // Where the dead node ran the job itself, the next attempt says "before" once more.
    let (run, wait, logs) = tokio::join!(running.told(), waiting.told(), following.told());
    wait.good();
    for out in [run.good(), logs.good()] {
        assert!(out == "before\nafter\n" || out == "before\nbefore\nafter\n", "{out:?}");
    }
}

#[tokio::test]
async fn clients_that_submit_while_nodes_die_in_turn_lose_nothing() {
    const NODES: usize = 4;
    const CLIENTS: usize = 3;
    const JOBS: usize = 25;
    let mut cluster = Cluster::of(NODES).await;
    let dir = tempfile::TempDir::new().unwrap();
    let (numbers, ledger) = (dir.path().join("numbers"), dir.path().join("ledger"));
    std::fs::write(&numbers, (0..JOBS).map(|number| format!("{number}\n")).collect::<String>()).unwrap();

    for victim in 0..NODES {
        let begin = |client: usize| {
            let script = format!("sleep 0.1; echo {victim} {client} $1 >> {}", ledger.display());
            let job = ["submit", "--wait", "-a", numbers.to_str().unwrap(), "--", "sh", "-c", &script, "sh"];
            cluster.begin(&[victim, (victim + 1) % NODES], &job)
        };
        let mut clients: Vec<_> = (0..CLIENTS).map(begin).collect();
        // The first client is told of its jobs now; the others are somewhere on the way there.
        clients[0].line().await;
        cluster.kill(victim).await;
        for told in join_all(clients.into_iter().map(Running::told)).await {
            // A receipt that the death cut short is told by 6.
            assert!(matches!(told.code, Some(0 | 6)), "{told:?}");
            assert!(told.err.contains("25 of 25 succeeded"), "{told:?}");
        }
        cluster.restart(&[victim]).await;
        cluster.agree().await;
    }
    let jobs = cluster.list(0, 100, "&state=succeeded").await.len();
    assert_eq!(jobs, NODES * CLIENTS * JOBS, "what was submitted again under its key made no second job");
    let ledger = std::fs::read_to_string(ledger).unwrap();
    let runs: BTreeSet<&str> = ledger.lines().collect();
    assert_eq!(runs.len(), jobs, "every job ran to its end");
    cluster.converge().await;
}

#[tokio::test]
async fn run_ends_as_its_job_does() {
    let cluster = Cluster::of(3).await;
    let run = |arguments: &[&str]| {
        let arguments: Vec<String> = ["run"].iter().chain(arguments).map(|word| (*word).to_owned()).collect();
        let running = cluster.begin(&[0], &arguments.iter().map(String::as_str).collect::<Vec<_>>());
        running.told()
    };
    let told = run(&["--", "sh", "-c", "echo hi; exit 3"]).await;
    assert_eq!((told.code, told.out.as_str()), (Some(3), "hi\n"), "{told:?}");

    let told = run(&["--", "no-such-program-anywhere"]).await;
    assert_eq!((told.code, told.out.as_str()), (Some(127), ""), "{told:?}");
    assert!(told.err.contains("no-such-program-anywhere"), "{told:?}");
    let told = run(&["--", "/"]).await;
    assert_eq!(told.code, Some(126), "{told:?}");

    let told = run(&["--", "sh", "-c", "kill -15 $$"]).await;
    assert_eq!(told.code, Some(128 + 15), "{told:?}");
    let told = run(&["--timeout", "300ms", "--", "sleep", &long_sleep()]).await;
    assert_eq!(told.code, Some(124), "{told:?}");

    let sleep = long_sleep();
    let running = cluster.begin(&[1], &["run", "--", "sleep", &sleep]);
    just_one(&sleep, seconds(20)).await;
    let [id] = cluster.list(0, 10, "&state=running").await.into_keys().collect::<Vec<_>>().try_into().unwrap();
    cluster.flockwork(&[2], &["cancel", &id, "--reason", "seen enough"]).await.good();
    let told = running.told().await;
    assert_eq!(told.code, Some(130), "{told:?}");
    assert!(told.err.contains("seen enough"), "{told:?}");
    gone(&sleep, seconds(10)).await;

    let told = cluster.flockwork(&[0], &["wait", &id]).await;
    assert_eq!(told.code, Some(130), "{told:?}");
    let told = cluster.flockwork(&[0], &["job", "ffffffffffffffffffffffffffffffff"]).await;
    assert_eq!(told.code, Some(3), "{told:?}");
}

#[tokio::test]
async fn ctrl_c_in_run_cancels_the_job_and_waits_for_its_end() {
    let cluster = Cluster::of(3).await;
    let sleep = long_sleep();
    let running =
        cluster.begin(&[0], &["run", "--", "sh", "-c", &format!("trap 'echo bye; exit' TERM; sleep {sleep} & wait")]);
    just_one(&sleep, seconds(20)).await;
    signal(running.pid(), Signal::INT);
    let told = running.told().await;
    assert_eq!((told.code, told.out.as_str()), (Some(130), "bye\n"), "{told:?}");
    gone(&sleep, seconds(10)).await;
}

#[tokio::test]
async fn ctrl_c_in_run_is_heard_before_the_submit_is_answered() {
    let home = tempfile::TempDir::new().unwrap();
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = silent.local_addr().unwrap().to_string();
    let mut running = program(home.path()).args(["run", "--addr", &addr, "--", "true"]).spawn().unwrap();
    let (_connection, _) = silent.accept().await.unwrap();
    let mut remarks = BufReader::new(running.stderr.take().unwrap()).lines();
    for remark in ["waiting for the answer", "may have been accepted"] {
        signal(running.id().unwrap(), Signal::INT);
        let said = remarks.next_line().await.unwrap();
        assert!(said.as_ref().is_some_and(|said| said.contains(remark)), "{said:?}");
    }
    assert_eq!(running.wait().await.unwrap().code(), Some(130));
}

#[tokio::test]
async fn one_key_is_one_job_whoever_is_told_it_and_however_often() {
    let cluster = Cluster::of(3).await;
    for round in 0..5 {
        let spec = json!({"command": ["echo", "once"], "key": format!("round {round}")});
        let answers = join_all((0..9).map(|turn| cluster.post(turn % 3, &spec))).await;
        let ids: BTreeSet<String> = answers.iter().map(|(_, body)| text(&body["id"])).collect();
        assert_eq!(ids.len(), 1, "{answers:?}");
        let new = answers.iter().filter(|(_, body)| body["existed"] == false);
        assert_eq!(new.count(), 1, "one made it, and the others found it: {answers:?}");

        let other = json!({"command": ["echo", "something else"], "key": format!("round {round}")});
        for (status, body) in join_all((0..3).map(|via| cluster.post(via, &other))).await {
            assert_eq!((status, &body["error"]["code"]), (409, &json!("conflict")), "{body}");
        }
    }
    assert_eq!(cluster.list(0, 100, "").await.len(), 5);
    let spec = json!({"command": ["echo", "once"], "key": "round 0"});
    assert_eq!(cluster.post(1, &spec).await.0, 200, "and later it is still found");

    // Two specs that come under one key at the same time: one of them wins.
    let spec = |word: usize| json!({"command": ["echo", word.to_string()], "key": "a race"});
    let rivals: Vec<Value> = (0..6).map(|turn| spec(turn % 2)).collect();
    let answers = join_all(rivals.iter().enumerate().map(|(turn, spec)| cluster.post(turn % 3, spec))).await;
    let accepted: BTreeSet<String> =
        answers.iter().filter(|(status, _)| *status < 300).map(|(_, body)| text(&body["id"])).collect();
    assert_eq!(accepted.len(), 1, "{answers:?}");
    assert_eq!(answers.iter().filter(|(status, _)| *status == 409).count(), 3, "{answers:?}");
}
