//! Clients that behave badly, and the end.

use std::time::{Duration, Instant};

use flockwork::api::ApiConfig;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::fake::{SOON, World, world, world_with};

async fn connect(world: &World) -> TcpStream {
    TcpStream::connect(world.addr).await.unwrap()
}

/// Sends `head` and then up to `most` bytes of `piece`, while reading. Returns what was sent, and the answer.
async fn push(world: &World, head: String, piece: Vec<u8>, most: usize) -> (usize, String) {
    let (mut reading, mut writing) = connect(world).await.into_split();
    let sending = tokio::spawn(async move {
        writing.write_all(head.as_bytes()).await.unwrap();
        let mut sent = 0;
        while sent < most && writing.write_all(&piece).await.is_ok() {
            sent += piece.len();
        }
        sent
    });
    let mut answer = Vec::new();
    // A reset after the answer is the client's own fault: it was told, and went on.
    let _ = tokio::time::timeout(SOON, reading.read_to_end(&mut answer)).await.expect("the connection is closed");
    drop(reading);
    (sending.await.unwrap(), String::from_utf8_lossy(&answer).into_owned())
}

#[tokio::test]
async fn a_hundred_megabytes_are_refused_without_being_read() {
    let world = world().await;
    let size = 100 << 20;
    let head = format!(
        "POST /v1/jobs HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {size}\r\n\r\n"
    );
    let (sent, answer) = push(&world, head, vec![b' '; 64 << 10], size).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert!(answer.contains("too_large"), "{answer}");
    assert!(sent < size / 2, "{sent} bytes were taken");
}

#[tokio::test]
async fn a_body_without_a_length_is_refused_where_it_grows_too_large() {
    let world = world().await;
    let head = "POST /v1/jobs HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
                transfer-encoding: chunked\r\n\r\n";
    let chunk = [b"10000\r\n".as_slice(), &vec![b' '; 0x10000], b"\r\n"].concat();
    let (sent, answer) = push(&world, head.to_owned(), chunk, 100 << 20).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert!(sent < 50 << 20, "{sent} bytes were taken");
}

#[tokio::test]
async fn clients_that_are_slow_to_ask_are_dropped() {
    let short = Duration::from_millis(200);
    let world = world_with(ApiConfig { header_timeout: short, body_timeout: short, ..ApiConfig::default() }).await;
    let mut silent = connect(&world).await;
    let mut halfway = connect(&world).await;
    halfway.write_all(b"GET /livez HTTP/1.1\r\nhost: local").await.unwrap();
    let mut bodiless = connect(&world).await;
    bodiless
        .write_all(b"POST /v1/jobs HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{")
        .await
        .unwrap();
    for (stream, expected) in [(&mut silent, ""), (&mut halfway, ""), (&mut bodiless, "HTTP/1.1 408")] {
        let mut answer = String::new();
        tokio::time::timeout(SOON, stream.read_to_string(&mut answer)).await.expect("dropped").unwrap();
        assert!(answer.starts_with(expected), "{answer}");
    }
    assert_eq!(world.get("/livez").await.0, 200);
}

#[tokio::test]
async fn bodies_share_one_budget_and_get_it_back() {
    let world = world_with(ApiConfig { max_body_bytes_in_all: 1_000, ..ApiConfig::default() }).await;
    let (status, _) = world.submit(json!({"command": ["true"], "stdin": "x".repeat(2_000)})).await;
    assert_eq!(status, 429);
    for _ in 0..5 {
        assert_eq!(world.submit(json!({"command": ["true"], "stdin": "x".repeat(800)})).await.0, 201);
    }
}

#[tokio::test]
async fn streams_are_bounded_and_make_room_when_they_end() {
    let world = world_with(ApiConfig { max_long_requests: 1, ..ApiConfig::default() }).await;
    let id = world.submitted(json!({"command": ["true"]})).await;
    let open = world.client.get(world.url("/v1/events")).send().await.unwrap();
    let wait = format!("/v1/jobs/{id}/wait?timeout=1ms");
    assert_eq!(world.get(&wait).await.0, 429);
    assert_eq!(world.get("/v1/jobs").await.0, 200, "short requests have a bound of their own");
    drop(open);
    let deadline = Instant::now() + SOON;
    while world.get(&wait).await.0 != 200 {
        assert!(Instant::now() < deadline, "the place was not given back");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn when_the_node_stops_what_waits_ends_and_what_runs_finishes() {
    let world = world().await;
    let id = world.submitted(json!({"command": ["true"]})).await;
    let lines = world
        .client
        .get(world.url(&format!("/v1/jobs/{id}/logs?follow")))
        .header("accept", "application/x-ndjson")
        .send()
        .await
        .unwrap();
    let events = world.client.get(world.url("/v1/events")).send().await.unwrap();
    let idle = connect(&world).await;
    let (client, url) = (world.client.clone(), world.url(&format!("/v1/jobs/{id}/wait")));
    let waiting = tokio::spawn(async move { client.get(url).send().await.unwrap().status() });
    let metrics = world.url("/metrics");
    tokio::task::yield_now().await;

    let began = Instant::now();
    world.stop.cancel();
    assert!(events.text().await.unwrap().starts_with(": listening"), "a clean end");
    let last = lines.text().await.unwrap();
    assert!(last.contains("\"unavailable\""), "the log is not whole, and says so: {last}");
    tokio::time::timeout(SOON, world.served).await.expect("the server ends").unwrap().unwrap();
    assert!(began.elapsed() < Duration::from_secs(4), "nothing used up the grace period");
    drop(idle);
    assert!(world.client.get(metrics).send().await.is_err(), "nobody listens");
    // The wait was either under way and was told to ask elsewhere, or had not yet been taken.
    if let Ok(status) = waiting.await {
        assert_eq!(status, 503);
    }
}
