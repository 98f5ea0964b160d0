//! What takes long by its nature: logs that are followed, events.

use flockwork::model::attempt::{Exit, Phase};
use flockwork::model::id::NodeId;
use flockwork::model::member::{MemberState, Status};
use flockwork::model::request::{Event, EventKind};
use flockwork::model::time::Timestamp;
use flockwork::model::wire::Stream;
use serde_json::{Value, json};

use crate::fake::{A, B, SOON, World, world};

/// A response whose body is read as it comes, up to a separator at a time.
struct Pieces {
    response: reqwest::Response,
    read: Vec<u8>,
    separator: &'static [u8],
}

impl Pieces {
    async fn of(world: &World, path: &str, accept: &str, separator: &'static str) -> Self {
        let request = world.client.get(world.url(path)).header("accept", accept);
        let response = tokio::time::timeout(SOON, request.send()).await.unwrap().unwrap();
        assert_eq!(response.status(), 200);
        Self { response, read: Vec::new(), separator: separator.as_bytes() }
    }

    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(at) = self.read.windows(self.separator.len()).position(|part| part == self.separator) {
                let rest = self.read.split_off(at + self.separator.len());
                let mut piece = std::mem::replace(&mut self.read, rest);
                piece.truncate(at);
                return Some(String::from_utf8(piece).unwrap());
            }
            let chunk = tokio::time::timeout(SOON, self.response.chunk()).await.expect("nothing comes").unwrap();
            match chunk {
                Some(chunk) => self.read.extend_from_slice(&chunk),
                None => return None,
            }
        }
    }

    async fn line(&mut self) -> Value {
        serde_json::from_str(&self.next().await.expect("a line")).unwrap()
    }
}

#[tokio::test]
async fn a_finished_log_comes_as_it_was_written() {
    let world = world().await;
    let id = world.submitted(json!({"command": ["true"]})).await;
    let path = format!("/v1/jobs/{id}/logs");
    let text = async |query: &str| {
        let response = world.client.get(world.url(&format!("{path}{query}"))).send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["x-content-type-options"], "nosniff");
        response.bytes().await.unwrap().to_vec()
    };
    assert_eq!(text("").await, b"", "nothing has run");
    let claim = world.start(id, B);
    let long: Vec<u8> = (0..200_000_u32).map(|n| n as u8).collect();
    world.log(claim, Stream::Stdout, &long);
    world.log(claim, Stream::Stderr, b"<script>");
    world.finish(id, claim, Phase::Failed, Some(Exit::Code(1)));
    assert_eq!(text("?stream=stdout").await, long);
    assert_eq!(text("?stream=stderr&attempt=1").await, b"<script>");
    assert_eq!(text("").await, [long.as_slice(), b"<script>"].concat());
    assert_eq!(text("?follow=true&attempt=1&stream=stderr").await, b"<script>");

    // Of what is on a node that is gone, the end is kept with the record.
    world.cut_off(B);
    let tail = &long[200_000 - (16 << 10)..];
    let response = world.client.get(world.url(&format!("{path}?stream=stdout"))).send().await.unwrap();
    assert!(response.headers().contains_key("x-flockwork-tail"), "{response:?}");
    assert_eq!(response.headers()["x-flockwork-log-from"], (200_000 - (16 << 10)).to_string().as_str());
    assert_eq!(response.bytes().await.unwrap(), tail);
    let mut lines = Pieces::of(&world, &path, "application/x-ndjson", "\n").await;
    let line = lines.line().await;
    assert_eq!((&line["stream"], &line["tail"]), (&json!("stdout"), &json!(true)), "{line}");
    assert!(line["missing"].as_str().is_some_and(|why| why.contains("reached")), "{line}");
    assert_eq!(lines.line().await["offset"], 200_000 - (16 << 10));
    // Nothing is missing of what was short.
    assert_eq!(lines.line().await, json!({"stream": "stderr", "attempt": 1, "offset": 0, "text": "<script>"}));
    assert_eq!(lines.line().await, json!({"end": true, "state": "failed"}));
}

#[tokio::test]
async fn a_log_without_even_an_end_is_said_to_be_missing() {
    let world = world().await;
    let id = world.submitted(json!({"command": ["true"]})).await;
    let claim = world.start(id, B);
    world.log(claim, Stream::Stdout, b"cut short");
    world.finish(id, claim, Phase::Lost, None);
    world.cut_off(B);
    assert_eq!(world.get(&format!("/v1/jobs/{id}/logs")).await.0, 503);
}

#[tokio::test]
async fn of_an_attempt_that_died_running_there_is_what_was_told_and_of_when() {
    let world = world().await;
    let id = world.submitted(json!({"command": ["true"]})).await;
    let claim = world.start(id, B);
    world.tell_output(id, claim, "so far\n", 0, Timestamp(1_700_000_000_000));
    world.finish(id, claim, Phase::Lost, None);
    world.cut_off(B);
    let path = format!("/v1/jobs/{id}/logs");
    let mut lines = Pieces::of(&world, &path, "application/x-ndjson", "\n").await;
    let line = lines.line().await;
    assert_eq!((&line["tail"], &line["as_of"]), (&json!(true), &json!("2023-11-14T22:13:20.000Z")), "{line}");
    assert_eq!(lines.line().await["text"], "so far\n");
    let response = world.client.get(world.url(&path)).send().await.unwrap();
    let told = response.headers()["x-flockwork-tail"].to_str().unwrap();
    assert!(told.contains("as it was at 2023-11-14T22:13:20"), "{told}");
    assert!(!response.headers().contains_key("x-flockwork-log-from"), "nothing is missing before it");
    assert_eq!(response.text().await.unwrap(), "so far\n");
    assert_eq!(world.get(&format!("/v1/jobs/{id}")).await.1["attempts"][0]["stdout_bytes"], 7);
}

#[tokio::test]
async fn following_goes_on_with_the_next_attempt_and_ends_with_the_job() {
    let world = world().await;
    let id = world.submitted(json!({"command": ["true"], "retries": 3})).await;
    let mut lines = Pieces::of(&world, &format!("/v1/jobs/{id}/logs?follow"), "application/x-ndjson", "\n").await;

    let first = world.start(id, B);
    world.log(first, Stream::Stdout, b"one\n");
    assert_eq!(lines.line().await, json!({"stream": "stdout", "attempt": 1, "offset": 0, "text": "one\n"}));
    world.log(first, Stream::Stdout, "é".as_bytes().split_at(1).0);
    world.log(first, Stream::Stderr, &[0xff]);
    assert_eq!(lines.line().await, json!({"stream": "stderr", "attempt": 1, "offset": 0, "base64": "/w=="}));
    world.log(first, Stream::Stdout, "é".as_bytes().split_at(1).1);
    assert_eq!(lines.line().await, json!({"stream": "stdout", "attempt": 1, "offset": 4, "text": "é"}));
    world.finish(id, first, Phase::Failed, Some(Exit::Code(1)));

    let second = world.start(id, A);
    world.log(second, Stream::Stderr, b"two\n");
    assert_eq!(lines.line().await, json!({"stream": "stderr", "attempt": 2, "offset": 0, "text": "two\n"}));
    world.finish(id, second, Phase::Succeeded, Some(Exit::Code(0)));
    assert_eq!(lines.line().await, json!({"end": true, "state": "succeeded"}));
    assert_eq!(lines.next().await, None);
}

#[tokio::test]
async fn a_log_that_was_lost_with_its_node_is_passed_over() {
    let world = world().await;
    let id = world.submitted(json!({"command": ["true"]})).await;
    let path = format!("/v1/jobs/{id}/logs?follow&stream=stdout&attempt=all");
    let mut lines = Pieces::of(&world, &path, "application/x-ndjson", "\n").await;
    let first = world.start(id, B);
    world.log(first, Stream::Stdout, b"begun\n");
    assert_eq!(lines.line().await["text"], "begun\n");
    world.cut_off(B);
    world.finish(id, first, Phase::Lost, None);
    let lost = lines.line().await;
    assert_eq!((&lost["attempt"], &lost["node_name"]), (&json!(1), &json!("node-b")));
    assert!(lost["missing"].is_string());
    let second = world.start(id, A);
    world.log(second, Stream::Stdout, b"again\n");
    assert_eq!(lines.line().await["text"], "again\n");
    world.finish(id, second, Phase::Succeeded, Some(Exit::Code(0)));
    assert_eq!(lines.line().await["end"], true);
}

#[tokio::test]
async fn the_clusters_events_are_told_and_a_slow_reader_hears_that_it_missed_some() {
    let world = world().await;
    let mut events = Pieces::of(&world, "/v1/events", "text/event-stream", "\n\n").await;
    assert_eq!(events.next().await.unwrap(), ": listening");
    let down = |seq| Event {
        seq,
        at: Timestamp(1_700_000_000_000),
        kind: EventKind::Member {
            node: B,
            name: "node-b".into(),
            state: MemberState::Down,
            status: Status::Serving,
            was: Some(MemberState::Suspect),
            reason: "nobody reached it".into(),
        },
    };
    let tell = |node: NodeId, seq| world.events.send((node, down(seq))).unwrap();
    tell(A, 7);
    let event = events.next().await.unwrap();
    let mut fields = event.lines();
    assert_eq!((fields.next(), fields.next()), (Some("id: a0a0a0a0-7"), Some("event: member")));
    let data: Value = serde_json::from_str(fields.next().unwrap().strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!((&data["kind"], &data["name"], &data["state"]), (&json!("member"), &json!("node-b"), &json!("down")));
    assert_eq!((&data["was"], &data["told_by"]), (&json!("suspect"), &json!("a0a0a0a0")));

    // More than the channel holds, without a pause in which the server could read.
    for seq in 0..40 {
        tell(A, seq);
    }
    let event = events.next().await.unwrap();
    assert_eq!(event, "event: lagged\ndata: {\"missed\":24}");

    let back = world.client.get(world.url("/v1/events")).header("last-event-id", "a0a0a0a0-7").send().await.unwrap();
    let mut events = Pieces { response: back, read: Vec::new(), separator: b"\n\n" };
    assert_eq!(events.next().await.unwrap(), "event: lagged\ndata: {\"missed\":null}");
}

#[tokio::test]
async fn a_jobs_events_end_with_it() {
    let world = world().await;
    let id = world.submitted(json!({"command": ["true"]})).await;
    let path = format!("/v1/jobs/{id}/events");
    let mut events = Pieces::of(&world, &path, "text/event-stream", "\n\n").await;
    let state_in = |event: &str| {
        let data = event.lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
        serde_json::from_str::<Value>(data).unwrap()["state"].as_str().unwrap().to_owned()
    };
    assert_eq!(state_in(&events.next().await.unwrap()), "pending");
    let claim = world.start(id, B);
    world.finish(id, claim, Phase::Succeeded, Some(Exit::Code(0)));
    let last = loop {
        let event = events.next().await.unwrap();
        if state_in(&event) == "succeeded" {
            break event;
        }
    };
    assert_eq!(events.next().await.unwrap(), "event: end\ndata: {\"state\":\"succeeded\"}");
    assert_eq!(events.next().await, None);

    let seen = last.lines().find_map(|line| line.strip_prefix("id: ")).unwrap();
    let back = world.client.get(world.url(&path)).header("last-event-id", seen).send().await.unwrap();
    assert_eq!(back.status(), 204);
}
