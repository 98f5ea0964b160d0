//! Whatever is wrong with a request gets its own status and names what is wrong.

use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use crate::fake::{World, world};
use crate::told;

async fn refused(request: RequestBuilder, status: u16, code: &str, field: Option<&str>) -> String {
    let (told_status, body) = told(request).await;
    let error = &body["error"];
    assert_eq!((told_status, error["code"].as_str(), error["field"].as_str()), (status, Some(code), field), "{body}");
    let message = error["message"].as_str().unwrap();
    assert!(!message.is_empty());
    message.to_owned()
}

fn post(world: &World, body: impl Into<reqwest::Body>) -> RequestBuilder {
    world.client.post(world.url("/v1/jobs")).header("content-type", "application/json").body(body)
}

#[tokio::test]
async fn a_spec_that_cannot_be_is_refused_by_its_field() {
    let world = world().await;
    let command = r#""command":["true"]"#;
    let cases = [
        (r#"{"colour":1}"#.to_owned(), "colour"),
        (format!(r#"{{{command},"backoff":{{"foo":1}}}}"#), "backoff.foo"),
        (format!(r#"{{{command},"retries":"many"}}"#), "retries"),
        (format!(r#"{{{command},"retries":-1}}"#), "retries"),
        (format!(r#"{{{command},"backoff":{{"initial":[]}}}}"#), "backoff.initial"),
        (r#"{"command":["true",1]}"#.to_owned(), "command[1]"),
        (format!(r#"{{{command},"env":{{"A":1}}}}"#), "env.A"),
        (format!(r#"{{{command},"timeout":-5}}"#), "timeout"),
        (format!(r#"{{{command},"timeout":"-5s"}}"#), "timeout"),
        (format!(r#"{{{command},"timeout":0}}"#), "timeout"),
        (format!(r#"{{{command},"memory":"lots"}}"#), "memory"),
        (format!(r#"{{{command},"stdin":{{"base64":"!"}}}}"#), "stdin"),
        (format!(r#"{{{command},"durability":"some"}}"#), "durability"),
        (format!(r#"{{{command},"slots":0}}"#), "slots"),
        (r#"{"command":[]}"#.to_owned(), "command"),
        (r#"{}"#.to_owned(), "command"),
        (r#""echo hi""#.to_owned(), "spec"),
        (r#"null"#.to_owned(), "spec"),
    ];
    for (spec, field) in cases {
        refused(post(&world, spec), 422, "invalid", Some(field)).await;
    }
    assert_eq!(world.jobs_held(), 0, "nothing was changed");
}

#[tokio::test]
async fn what_cannot_be_read_says_where() {
    let world = world().await;
    let message = refused(post(&world, "{\"command\":\n [\"true\""), 400, "malformed", None).await;
    assert!(message.contains("line 2 column 8"), "{message}");
    refused(post(&world, ""), 400, "malformed", None).await;
    refused(post(&world, "[{}"), 400, "malformed", None).await;
    refused(post(&world, "{} {}"), 400, "malformed", None).await;
    refused(post(&world, &b"{\"name\":\"\xff\"}"[..]), 400, "malformed", None).await;
    refused(post(&world, r#"{"command":["a"],"cpus":1e999}"#), 400, "malformed", Some("cpus")).await;
    let deep = "[".repeat(100_000);
    refused(post(&world, deep), 400, "malformed", None).await;
    let lines = world.client.post(world.url("/v1/jobs")).header("content-type", "application/x-ndjson");
    let message = refused(lines.body("{\"command\":[\"true\"]}\n\nnonsense\n"), 400, "malformed", None).await;
    assert!(message.contains("line 3 of the body"), "{message}");
    assert_eq!(world.jobs_held(), 0, "nothing was changed");
}

#[tokio::test]
async fn too_much_is_refused() {
    let world = world().await;
    let spec = json!({"command": ["true"], "stdin": "x".repeat(1 << 20)}).to_string();
    refused(post(&world, spec.clone()), 413, "too_large", None).await;
    let (status, body) = told(post(&world, format!("[{spec}, {{\"command\":[\"true\"]}}]"))).await;
    assert_eq!((status, &body["jobs"][0]["error"]["code"]), (207, &json!("too_large")), "{body}");
    assert_eq!(body["jobs"][1]["state"], "pending");
    let many = format!("[{}]", vec![r#"{"command":["true"]}"#; 10_001].join(","));
    refused(post(&world, many), 413, "too_large", None).await;
    let lines = world.client.post(world.url("/v1/jobs")).header("content-type", "application/x-ndjson");
    refused(lines.body("{\"command\":[\"true\"]}\n".repeat(10_001)), 413, "too_large", None).await;
    assert_eq!(world.jobs_held(), 1);
}

#[tokio::test]
async fn paths_queries_and_headers_are_read_strictly() {
    let world = world().await;
    let get = |path: &str| world.client.get(world.url(path));

    refused(get("/v1/jobs/ffffffffffffffffffffffffffffffff"), 404, "not_found", None).await;
    refused(get("/v1/jobs/ffff"), 404, "not_found", None).await;
    refused(get("/v1/jobs/my-job"), 404, "not_found", Some("id")).await;
    refused(get("/v1/jobs/ff"), 422, "invalid", Some("id")).await;
    refused(get("/v1/jobs/%ff%fe"), 400, "malformed", Some("id")).await;
    refused(get("/v1/jobs?name=%ff"), 400, "malformed", Some("name")).await;
    refused(get("/v1/jobs?colour=red"), 422, "invalid", Some("colour")).await;
    refused(get("/v1/jobs?limit=1&limit=2"), 400, "malformed", Some("limit")).await;
    refused(get("/v1/jobs?limit=0"), 422, "invalid", Some("limit")).await;
    refused(get("/v1/jobs?limit=1001"), 422, "invalid", Some("limit")).await;
    refused(get("/v1/jobs?state=sleeping"), 422, "invalid", Some("state")).await;
    refused(get("/v1/jobs?node=nobody"), 422, "invalid", Some("node")).await;
    refused(get("/v1/jobs?cursor=AAAA"), 422, "invalid", Some("cursor")).await;
    refused(get("/v1/nodes?verbose"), 422, "invalid", Some("verbose")).await;
    refused(get("/v1/nothing"), 404, "not_found", None).await;
}

#[tokio::test]
async fn routes_refuse_what_does_not_go_with_them() {
    let world = world().await;
    let id = world.submitted(json!({"command": ["true"]})).await;
    let job = |tail: &str| world.url(&format!("/v1/jobs/{id}{tail}"));
    refused(world.client.get(job("/wait?timeout=soon")), 422, "invalid", Some("timeout")).await;
    refused(world.client.get(job("/wait?timeout=2h")), 422, "invalid", Some("timeout")).await;
    refused(world.client.get(job("/logs?stream=both")), 422, "invalid", Some("stream")).await;
    refused(world.client.get(job("/logs?attempt=first")), 422, "invalid", Some("attempt")).await;
    refused(world.client.get(job("/logs?attempt=7")), 404, "not_found", Some("attempt")).await;
    refused(world.client.get(job("/logs?follow=maybe")), 422, "invalid", Some("follow")).await;
    refused(world.client.delete(job(&format!("?reason={}", "x".repeat(2_000)))), 422, "invalid", Some("reason")).await;
    refused(world.client.post(job("/retry")), 409, "conflict", None).await;
    refused(world.client.put(job("")), 405, "method_not_allowed", None).await;
    let allowed = world.client.put(job("")).send().await.unwrap().headers()["allow"].clone();
    assert!(allowed.to_str().unwrap().contains("DELETE"), "{allowed:?}");
    refused(world.client.request(Method::PATCH, world.url("/v1/jobs")), 405, "method_not_allowed", None).await;
    refused(world.client.post(world.url("/v1/nodes/nobody/drain")), 404, "not_found", None).await;

    let spec = r#"{"command":["true"]}"#;
    let bare = world.client.post(world.url("/v1/jobs"));
    refused(bare.body(spec), 415, "unsupported_media_type", Some("Content-Type")).await;
    for content_type in ["text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin1"] {
        let typed = world.client.post(world.url("/v1/jobs")).header("content-type", content_type);
        refused(typed.body(spec), 415, "unsupported_media_type", Some("Content-Type")).await;
    }
    let packed = post(&world, spec).header("content-encoding", "gzip");
    refused(packed, 415, "unsupported_media_type", Some("Content-Encoding")).await;
    let keyed = |spec: Value| post(&world, spec.to_string()).header("idempotency-key", "one");
    let other = json!({"command": ["true"], "key": "two"});
    refused(keyed(other), 422, "invalid", Some("Idempotency-Key")).await;
    refused(keyed(json!([{"command": ["true"]}])), 422, "invalid", Some("Idempotency-Key")).await;
    assert_eq!(world.jobs_held(), 1);
}

#[tokio::test]
async fn a_beginning_that_several_ids_have_is_a_conflict() {
    let world = world().await;
    for last in 0..2_u128 {
        world.plant(flockwork::model::id::JobId(0xabcd << 112 | last));
    }
    refused(world.client.get(world.url("/v1/jobs/abcd")), 409, "conflict", None).await;
    let (status, body) = world.get(&format!("/v1/jobs/abcd{}", "0".repeat(28))).await;
    assert_eq!((status, &body["state"]), (200, &json!("pending")));
}

#[tokio::test]
async fn pages_from_elsewhere_get_nowhere() {
    let world = world().await;
    let spec = r#"{"command":["true"]}"#;
    let rebound = post(&world, spec).header("host", "evil.example");
    refused(rebound, 403, "forbidden", Some("Host")).await;
    for origin in ["http://evil.example", "null", "http://127.0.0.1:1"] {
        refused(post(&world, spec).header("origin", origin), 403, "forbidden", Some("Origin")).await;
    }
    let read = world.client.get(world.url("/v1/jobs")).header("origin", "http://evil.example");
    refused(read, 403, "forbidden", Some("Origin")).await;
    assert_eq!(world.jobs_held(), 0);
    let own = post(&world, spec).header("origin", format!("http://{}", world.addr));
    assert_eq!(told(own).await.0, 201);
    let by_name = post(&world, spec).header("host", format!("localhost:{}", world.addr.port()));
    assert_eq!(told(by_name).await.0, 201);
}
