//! A job's life as a client sees it.

use flockwork::model::attempt::{Exit, Phase};
use flockwork::model::report::Progress;
use flockwork::model::request::{Code, Refusal};
use serde_json::{Value, json};

use crate::fake::{A, B, SOON, world};
use crate::told;

#[tokio::test]
async fn a_job_is_submitted_read_and_found_by_the_beginning_of_its_id() {
    let world = world().await;
    let spec = json!({"command": ["echo", "hi"], "name": "hello", "timeout": "1m 30s", "retries": 1});
    let response = world.client.post(world.url("/v1/jobs")).json(&spec).send().await.unwrap();
    assert_eq!(response.status(), 201);
    let location = response.headers()["location"].to_str().unwrap().to_owned();
    let body: Value = response.json().await.unwrap();
    assert_eq!(body["receipt"], json!({"stored": 2, "wanted": 2, "replicas": ["a0a0a0a0", "b0b0b0b0"]}));
    assert_eq!(body["state"], "pending");
    let id = body["id"].as_str().unwrap();
    assert_eq!(location, format!("/v1/jobs/{id}"));

    let (status, job) = world.get(&format!("/v1/jobs/{}", &id[..6])).await;
    assert_eq!(status, 200);
    assert_eq!(job["id"], id);
    assert_eq!(job["name"], "hello");
    assert_eq!(job["final"], false);
    assert_eq!(job["reason"], "waiting for room");
    assert_eq!(job["spec"]["timeout"], "1m 30s");
    assert_eq!(job["submitted_at"], "2023-11-14T22:13:21.000Z");
    assert_eq!(job["started_at"], Value::Null);
    assert_eq!(job["attempts"], json!([]));
    assert_eq!(job["clock"], json!({"a0a0a0a0@1": 1}));
    assert_eq!(job["replicas"], json!({"agree": 1, "of": 2}));
    assert!(job["as_of"].is_string());
}

#[tokio::test]
async fn attempts_tell_what_happened_and_where() {
    let world = world().await;
    let id = world.submitted(json!({"command": ["flaky"], "retries": 2})).await;
    let first = world.start(id, A);
    world.finish(id, first, Phase::Failed, Some(Exit::Code(3)));
    let path = format!("/v1/jobs/{id}");
    let job = world.get(&path).await.1;
    assert_eq!(job["state"], "pending");
    assert_eq!(job["reason"], "attempt 1: exit code 3 on node-a; 0 of 2 retries used; waiting for the next");

    let second = world.start(id, B);
    let job = world.get(&path).await.1;
    assert_eq!((&job["state"], &job["reason"]), (&json!("running"), &json!("attempt 2 runs on node-b")));
    assert_eq!(job["exit_code"], Value::Null, "the job has not ended");
    world.finish(id, second, Phase::Lost, None);

    let third = world.start(id, A);
    world.finish(id, third, Phase::Succeeded, Some(Exit::Code(0)));
    let job = world.get(&path).await.1;
    assert_eq!((&job["state"], &job["exit_code"]), (&json!("succeeded"), &json!(0)));
    let attempts = job["attempts"].as_array().unwrap();
    let short = |at: usize| (&attempts[at]["number"], &attempts[at]["node_name"], &attempts[at]["phase"]);
    assert_eq!(short(0), (&json!(1), &json!("node-a"), &json!("failed")));
    assert_eq!(short(1), (&json!(2), &json!("node-b"), &json!("lost")));
    assert_eq!(short(2), (&json!(3), &json!("node-a"), &json!("succeeded")));
    assert_eq!(attempts[0]["exit_code"], 3);
    assert_eq!(attempts[0]["overlaps"], json!([]));
    let may_overlap = json!([{"number": 3, "node": "a0a0a0a0", "certain": false}]);
    assert_eq!(attempts[1]["overlaps"], may_overlap, "nobody heard the lost one end");
    assert_eq!(attempts[2]["overlaps"][0]["number"], 2);
}

#[tokio::test]
async fn a_timeout_is_124_and_a_signal_is_itself() {
    let world = world().await;
    for (exit, code, signal, timed_out) in [
        (Exit::TimedOut, json!(124), Value::Null, true),
        (Exit::Signal(9), Value::Null, json!(9), false),
        (Exit::Code(7), json!(7), Value::Null, false),
    ] {
        let id = world.submitted(json!({"command": ["sleep", "9"]})).await;
        let claim = world.start(id, B);
        world.finish(id, claim, Phase::Failed, Some(exit));
        let job = world.get(&format!("/v1/jobs/{id}")).await.1;
        for told in [&job, &job["attempts"][0]] {
            assert_eq!((&told["exit_code"], &told["signal"], &told["timed_out"]), (&code, &signal, &json!(timed_out)));
        }
        assert_eq!(job["state"], "failed");
    }
}

#[tokio::test]
async fn one_key_and_spec_is_one_job() {
    let world = world().await;
    let spec = json!({"command": ["true"]});
    let post = |spec: &Value| world.client.post(world.url("/v1/jobs")).header("Idempotency-Key", "k").json(spec);
    let (status, first) = told(post(&spec)).await;
    assert_eq!(status, 201);
    let (status, second) = told(post(&spec)).await;
    assert_eq!((status, &second["id"], &second["existed"]), (200, &first["id"], &json!(true)));
    let (status, refused) = told(post(&json!({"command": ["false"]}))).await;
    assert_eq!((status, &refused["error"]["field"]), (409, &json!("key")));
    assert_eq!(world.get(&format!("/v1/jobs/{}", first["id"].as_str().unwrap())).await.1["spec"]["key"], "k");
}

#[tokio::test]
async fn less_durability_than_asked_is_said_plainly() {
    let world = world().await;
    let (status, body) = world.submit(json!({"command": ["true"], "durability": "all"})).await;
    assert_eq!((status, &body["receipt"]["stored"], &body["receipt"]["wanted"]), (202, &json!(1), &json!(2)));
}

#[tokio::test]
async fn many_are_answered_each_for_itself_and_in_order() {
    let world = world().await;
    let good = json!({"command": ["true"]});
    let (status, body) = world.submit(json!([good, {"command": []}, good, {"colour": 1}])).await;
    assert_eq!(status, 207);
    let jobs = body["jobs"].as_array().unwrap();
    assert!(jobs[0]["id"].is_string() && jobs[2]["id"].is_string() && jobs[0]["id"] != jobs[2]["id"]);
    assert_eq!(jobs[1]["error"]["field"], "command");
    assert_eq!(jobs[3]["error"]["field"], "colour");

    assert_eq!(world.submit(json!([good, good])).await.0, 201);
    assert_eq!(world.submit(json!([{}, {}])).await.0, 422);
    assert_eq!(world.submit(json!([])).await, (200, json!({"jobs": []})));
    let lines = world.client.post(world.url("/v1/jobs")).header("content-type", "application/x-ndjson; charset=utf-8");
    let (status, body) = told(lines.body(format!("{good}\r\n\n{good}"))).await;
    assert_eq!((status, body["jobs"].as_array().unwrap().len()), (201, 2));
}

#[tokio::test]
async fn lists_are_filtered_and_paged() {
    let world = world().await;
    for nth in 0..5 {
        world.submitted(json!({"command": ["true"], "name": format!("job-{}", nth % 2)})).await;
    }
    let big = world.submitted(json!({"command": ["cat"], "stdin": "x".repeat(2_000)})).await;
    world.start(big, B);

    let (mut seen, mut path) = (Vec::new(), "/v1/jobs?limit=4".to_owned());
    loop {
        let page = world.get(&path).await.1;
        assert_eq!((&page["partial"], &page["missing"]), (&json!(false), &json!([])));
        seen.extend(page["jobs"].as_array().unwrap().iter().map(|job| job["id"].as_str().unwrap().to_owned()));
        match page["next_cursor"].as_str() {
            Some(cursor) => path = format!("/v1/jobs?limit=4&cursor={cursor}"),
            None => break,
        }
    }
    assert_eq!(seen.len(), 6);
    assert_eq!(seen[0], big.to_string(), "newest first");

    let listed = world.get("/v1/jobs?state=running&node=node-b").await.1;
    assert_eq!(listed["jobs"].as_array().unwrap().len(), 1);
    assert_eq!(listed["jobs"][0]["stdin_omitted_bytes"], 2_000);
    assert_eq!(listed["jobs"][0]["spec"].get("stdin"), None);
    assert_eq!(world.get("/v1/jobs?name=job-1").await.1["jobs"].as_array().unwrap().len(), 2);
    assert_eq!(world.get("/v1/jobs?state=failed").await.1["jobs"], json!([]));
    world.cut_off(B);
    let page = world.get("/v1/jobs").await.1;
    assert_eq!((&page["partial"], &page["missing"]), (&json!(true), &json!(["b0b0b0b0"])));
}

#[tokio::test]
async fn a_page_ends_early_where_its_jobs_are_large() {
    let world = world().await;
    let large = json!({"command": ["true", "x".repeat(900_000)]});
    for _ in 0..12 {
        world.submitted(large.clone()).await;
    }
    let first = world.get("/v1/jobs").await.1;
    let shown = first["jobs"].as_array().unwrap().len();
    assert!((2..12).contains(&shown), "{shown}");
    let rest = world.get(&format!("/v1/jobs?cursor={}", first["next_cursor"].as_str().unwrap())).await.1;
    assert_eq!(rest["jobs"].as_array().unwrap().len(), 12 - shown);
    assert_eq!(rest["next_cursor"], Value::Null);
}

#[tokio::test]
async fn a_cancelled_job_is_tried_again_as_a_new_one() {
    let world = world().await;
    let id = world.submitted(json!({"command": ["true"], "key": "once"})).await;
    let path = format!("/v1/jobs/{id}");
    let (status, job) = told(world.client.delete(world.url(&format!("{path}?reason=not%20needed")))).await;
    assert_eq!((status, &job["state"], &job["reason"]), (200, &json!("cancelled"), &json!("cancelled: not needed")));
    assert_eq!(told(world.client.delete(world.url(&path))).await.0, 200, "once more is no error");

    let (status, again) = told(world.client.post(world.url(&format!("{path}/retry")))).await;
    assert_eq!((status, &again["retry_of"]), (201, &json!(id.to_string())));
    assert_ne!(again["id"], json!(id.to_string()));
    let new = world.get(&format!("/v1/jobs/{}", again["id"].as_str().unwrap())).await.1;
    assert_eq!(new["retry_of"], json!(id.to_string()));
    assert_eq!(new["spec"].get("key"), None, "the key stays with the old job");
}

#[tokio::test]
async fn a_wait_ends_with_the_job_or_with_its_own_time() {
    let world = world().await;
    let id = world.submitted(json!({"command": ["true"]})).await;
    let (status, job) = world.get(&format!("/v1/jobs/{id}/wait?timeout=50ms")).await;
    assert_eq!((status, &job["state"], &job["timed_out"]), (200, &json!("pending"), &json!(true)));

    let path = format!("/v1/jobs/{id}/wait?timeout=1m");
    let waiting = world.get(&path);
    let acting = async {
        let claim = world.start(id, B);
        world.finish(id, claim, Phase::Succeeded, Some(Exit::Code(0)));
    };
    let ((status, job), ()) = tokio::time::timeout(SOON, async { tokio::join!(waiting, acting) }).await.unwrap();
    assert_eq!((status, &job["state"], &job["timed_out"]), (200, &json!("succeeded"), &json!(false)));
}

#[tokio::test]
async fn a_busy_node_says_when_to_come_back() {
    let world = world().await;
    world.refuse_everything(Some(Refusal::new(Code::SlowDown, "too much")));
    let post = world.client.post(world.url("/v1/jobs")).json(&json!({"command": ["true"]}));
    let response = post.send().await.unwrap();
    assert_eq!((response.status().as_u16(), response.headers()["retry-after"].to_str().unwrap()), (429, "1"));
    for (code, status) in [(Code::Full, 507), (Code::Unavailable, 503), (Code::Internal, 500)] {
        world.refuse_everything(Some(Refusal::new(code, "no")));
        assert_eq!(world.submit(json!({"command": ["true"]})).await.0, status);
    }
}

#[tokio::test]
async fn what_a_job_says_of_itself_is_shown() {
    let world = world().await;
    let id = world.submitted(json!({"command": ["true"]})).await;
    let (_, job) = world.get(&format!("/v1/jobs/{id}")).await;
    assert_eq!((&job["progress"], &job["checkpoint"], &job["result"]), (&json!(null), &json!(null), &json!(null)));
    let claim = world.start(id, B);
    let progress = Progress { serial: 1, permille: 425, message: "second pass".into() };
    world.report(id, claim, progress, b"seven bytes", "done: ✓".as_bytes());
    let (_, job) = world.get(&format!("/v1/jobs/{id}")).await;
    assert_eq!(job["progress"], json!({"fraction": 0.425, "message": "second pass"}));
    assert_eq!((&job["checkpoint"]["size"], &job["checkpoint"]["attempt"]), (&json!(11), &json!(1)));
    assert_eq!((&job["result"], &job["result_bytes"]), (&json!("done: ✓"), &json!(9)));

    let (_, list) = world.get("/v1/jobs").await;
    let listed = &list["jobs"][0];
    assert_eq!((&listed["result"], &listed["progress"]["fraction"]), (&json!(null), &json!(0.425)), "{listed}");

    let id = world.submitted(json!({"command": ["true"]})).await;
    let claim = world.start(id, B);
    let progress = Progress { serial: 1, permille: 1_000, message: String::new() };
    world.report(id, claim, progress, b"", &[0xff]);
    let (_, job) = world.get(&format!("/v1/jobs/{id}")).await;
    assert_eq!((&job["result"], &job["progress"]["fraction"]), (&json!({"base64": "/w=="}), &json!(1.0)));
    world.cut_off(A);
    world.cut_off(B);
    let (_, job) = world.get(&format!("/v1/jobs/{id}")).await;
    assert_eq!((&job["result"], &job["result_bytes"]), (&json!(null), &json!(1)), "nobody can be asked for it");
}
