//! The routes for those who look: nodes, places, replicas, health, metrics, the document, the page.

use flockwork::model::record::{Stop, StopKind};
use flockwork::model::time::Timestamp;
use serde_json::{Value, json};

use crate::fake::{A, B, world};
use crate::told;

#[tokio::test]
async fn nodes_are_told_as_they_are_seen() {
    let world = world().await;
    let nodes = world.get("/v1/nodes").await.1;
    let node = &nodes["nodes"][1];
    assert_eq!((&node["id"], &node["name"], &node["state"]), (&json!("b0b0b0b0"), &json!("node-b"), &json!("suspect")));
    assert_eq!(node["slots"], json!({"total": 4, "used": 1, "free": 3}));
    assert_eq!(node["capacity"], json!({"cpus": 4.0, "memory": "8GiB", "slots": 4}));
    assert_eq!(node["addresses"]["http"], "127.0.0.1:7402");
    assert_eq!((&node["incarnation"], &node["labels"]["zone"]), (&json!(2), &json!("east")));
    assert_eq!(node["since"], "2023-11-14T22:21:30.000Z", "ten seconds before the snapshot");
}

#[tokio::test]
async fn a_node_drains_itself_and_names_the_address_of_another() {
    let world = world().await;
    let drain = world.url("/v1/nodes/node-a/drain");
    let (status, node) = told(world.client.post(&drain)).await;
    assert_eq!((status, &node["state"]), (200, &json!("draining")));
    let (status, node) = told(world.client.delete(&drain)).await;
    assert_eq!((status, &node["state"]), (200, &json!("alive")));
    let (status, refused) = told(world.client.post(world.url("/v1/nodes/b0b0b0b0/drain"))).await;
    assert_eq!(status, 409);
    assert_eq!(refused["error"]["hint"], "POST http://127.0.0.1:7402/v1/nodes/b0b0b0b0/drain");
}

#[tokio::test]
async fn what_depends_on_a_node_is_told_before_it_goes() {
    let world = world().await;
    let (status, impact) = world.get("/v1/nodes/node-b/impact").await;
    assert_eq!((status, &impact["node"], &impact["state"]), (200, &json!("b0b0b0b0"), &json!("suspect")));
    assert_eq!(impact["jobs"], json!({"running": 3, "stuck": 1, "stuck_jobs": [format!("{:032x}", 7)]}));
    assert_eq!(impact["records"], json!({"kept": 20, "below_majority": 5, "only_here": 2}));
    let partitions = &impact["partitions"];
    assert_eq!(
        (&partitions["total"], &partitions["kept"], &partitions["unknown"]),
        (&json!(16), &json!(16), &json!(1))
    );
    assert_eq!(impact["members"], json!({"alive": 1, "majority": false}));
    assert_eq!(impact["safe"], false);
    assert_eq!(world.get("/v1/nodes/nobody/impact").await.0, 404);
}

#[tokio::test]
async fn only_a_node_that_is_down_is_forgotten() {
    let world = world().await;
    let (status, refused) = told(world.client.delete(world.url("/v1/nodes/node-b"))).await;
    assert_eq!((status, &refused["error"]["code"]), (409, &json!("conflict")));
    assert!(refused["error"]["hint"].as_str().unwrap().contains("flockwork drain node-b"), "{refused}");
    assert_eq!(told(world.client.delete(world.url("/v1/nodes/nobody"))).await.0, 404);
}

#[tokio::test]
async fn members_are_told_with_the_reasons() {
    let world = world().await;
    let told = world.get("/debug/members").await.1;
    assert_eq!((&told["local_health"], &told["conflict"]), (&json!(1), &Value::Null));
    assert_eq!(told["complaints"], json!(["two processes run as node b0b0b0b0"]));
    let (own, other) = (&told["members"][0], &told["members"][1]);
    assert_eq!((&own["doubt"], &own["round_trip_ms"]), (&Value::Null, &Value::Null));
    assert_eq!((&other["round_trip_ms"], &other["state"]), (&json!(0.25), &json!("suspect")));
    let doubt = json!({
        "since": "2023-11-14T22:21:30.000Z",
        "until": "2023-11-14T22:21:35.000Z",
        "voters": [{"node": "a0a0a0a0", "name": "node-a"}],
        "silent": true,
        "refused": false,
        "remembered": false,
    });
    assert_eq!(other["doubt"], doubt);
    let verdict = &told["history"][0];
    assert_eq!(
        (&verdict["name"], &verdict["was"], &verdict["is"]),
        (&json!("node-b"), &json!("alive"), &json!("suspect"))
    );
    let metrics = world.client.get(world.url("/metrics")).send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains("\nflockwork_local_health 1\n") && metrics.contains("\nflockwork_complaints 1\n"));
}

#[tokio::test]
async fn a_job_can_be_located_and_explained() {
    let world = world().await;
    let id = world.submitted(json!({"command": ["true"]})).await;
    world.start(id, B);
    let place = world.get(&format!("/v1/jobs/{id}/where")).await.1;
    assert_eq!(place["partition"], 0, "the id begins with four zero bits");
    assert_eq!(place["executor"], json!({"node": "b0b0b0b0", "name": "node-b"}));
    assert_eq!(place["gateway"]["name"], "node-a");
    assert_eq!(place["acting"][0], place["owner"]);
    assert_eq!(place["home"].as_array().unwrap().len(), 2);
    assert_eq!(place["replicas"][1], json!({"node": "b0b0b0b0", "name": "node-b", "agrees": false}));

    let why = world.get(&format!("/v1/jobs/{id}/explain")).await.1;
    assert_eq!((&why["reason"], &why["ahead"]), (&json!("waiting for room"), &json!(3)));
    let obstacle = json!({"node": "a0a0a0a0", "name": "node-a", "fits": false, "obstacle": "no free slot"});
    assert_eq!((&why["nodes"][0], &why["nodes"][1]["fits"]), (&obstacle, &json!(true)));
}

#[tokio::test]
async fn replicas_are_compared_by_their_clocks() {
    let world = world().await;
    let id = world.submitted(json!({"command": ["true"]})).await;
    let path = format!("/debug/jobs/{}", &id.to_string()[..8]);
    let order = |copies: &Value| copies["comparisons"][0]["order"].as_str().unwrap().to_owned();
    let copies = world.get(&path).await.1;
    assert_eq!((copies["agree"].as_bool(), order(&copies).as_str()), (Some(true), "EQUAL"));
    assert_eq!(copies["comparisons"][0]["a"], "a0a0a0a0");

    let stop = |dot| Stop { kind: StopKind::Cancelled, dot, at: Timestamp(1), reason: String::new() };
    world.set_copy(B, |record, dot| record.request_stop(stop(dot)));
    let copies = world.get(&path).await.1;
    assert_eq!((copies["agree"].as_bool(), order(&copies).as_str()), (Some(false), "BEFORE"));
    assert_eq!(copies["replicas"][1]["record"]["state"], "cancelled");
    assert_eq!(copies["replicas"][0]["clock"], json!({"a0a0a0a0@1": 1}));

    world.set_copy(A, |record, dot| record.request_stop(stop(dot)));
    assert_eq!(order(&world.get(&path).await.1), "CONCURRENT");
    assert_eq!(world.get(&format!("/debug/jobs/{}", "e".repeat(32))).await.0, 404);
}

#[tokio::test]
async fn convergence_says_who_differs() {
    let world = world().await;
    let seen = world.get("/debug/convergence").await.1;
    assert_eq!(
        (&seen["converged"], &seen["strays"], &seen["ring"]["agree"]),
        (&json!(false), &json!(2), &json!(false))
    );
    assert_eq!(seen["partitions"], json!({"total": 16, "in_sync": 15, "behind": []}));
    let moving = json!({
        "since": "2023-11-14T22:21:30.000Z", "records_left": 2, "records": 40, "records_per_second": 3.8,
        "partitions_left": 0, "partitions": 5, "waiting_to_be_sent": 7,
    });
    assert_eq!(seen["moving"], moving);
    assert_eq!(seen["members"]["b0b0b0b0"]["state"], "suspect");
    assert_eq!(seen["ring"]["fingerprints"]["b0b0b0b0"], "0000000000000001");
    let ring = world.get("/debug/ring").await.1;
    assert_eq!(ring["partitions"].as_array().unwrap().len(), 16);
    let owned: u64 = ring["shares"].as_array().unwrap().iter().map(|share| share["owned"].as_u64().unwrap()).sum();
    assert_eq!(owned, 16);
    let members = world.get("/debug/members").await.1;
    assert_eq!(members["members"][0]["cluster"]["replicas"], 2);
}

#[tokio::test]
async fn health_and_metrics() {
    let world = world().await;
    assert_eq!(world.get("/livez").await.0, 200);
    assert_eq!(world.get("/readyz").await, (200, json!({"ready": true})));
    world.set_not_ready("joining: no seed has answered");
    let (status, body) = world.get("/readyz").await;
    assert_eq!((status, &body["error"]["message"]), (503, &json!("joining: no seed has answered")));
    assert_eq!(world.get("/livez").await.0, 200);
    world.get("/v1/jobs/nobody-has-this").await;

    let response = world.client.get(world.url("/metrics")).send().await.unwrap();
    assert!(response.headers()["content-type"].to_str().unwrap().starts_with("text/plain; version=0.0.4"));
    let text = response.text().await.unwrap();
    for line in [
        "flockwork_ready 0",
        "flockwork_members{state=\"suspect\"} 1",
        "flockwork_jobs{role=\"held\"} 3",
        "flockwork_probes_sent_total 42",
        "flockwork_http_panics_total 0",
        "flockwork_http_requests_total{method=\"GET\",route=\"/v1/jobs/{id}\",status=\"404\"} 1",
        "flockwork_http_requests_total{method=\"GET\",route=\"/readyz\",status=\"503\"} 1",
    ] {
        assert!(text.lines().any(|told| told == line), "{line} is not in\n{text}");
    }
    assert!(!text.contains("nobody-has-this"), "paths as asked would be labels without bound");
}

#[tokio::test]
async fn the_document_names_every_route() {
    let world = world().await;
    let document = world.get("/openapi.json").await.1;
    let mut named: Vec<String> = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        named.extend(methods.as_object().unwrap().keys().map(|method| format!("{method} {path}")));
    }
    named.sort();
    let expected = [
        "delete /v1/jobs/{id}",
        "delete /v1/nodes/{id}",
        "delete /v1/nodes/{id}/drain",
        "get /",
        "get /debug/convergence",
        "get /debug/faults",
        "get /debug/jobs/{id}",
        "get /debug/members",
        "get /debug/merges",
        "get /debug/ring",
        "get /livez",
        "get /metrics",
        "get /openapi.json",
        "get /readyz",
        "get /v1/events",
        "get /v1/jobs",
        "get /v1/jobs/{id}",
        "get /v1/jobs/{id}/events",
        "get /v1/jobs/{id}/explain",
        "get /v1/jobs/{id}/logs",
        "get /v1/jobs/{id}/wait",
        "get /v1/jobs/{id}/where",
        "get /v1/nodes",
        "get /v1/nodes/{id}/drain",
        "get /v1/nodes/{id}/impact",
        "post /debug/faults",
        "post /v1/jobs",
        "post /v1/jobs/{id}/retry",
        "post /v1/nodes/{id}/drain",
    ];
    assert_eq!(named, expected);
    let schemas = document["components"]["schemas"].as_object().unwrap();
    for schema in ["Spec", "Backoff", "JobView", "AttemptView", "SubmittedView", "BulkView", "ErrorBody", "NodeView"] {
        assert!(schemas.contains_key(schema), "{schema}");
    }
    assert!(schemas["JobView"]["properties"]["final"].is_object());
    // Every reference leads somewhere.
    let text = document.to_string();
    for reference in text.split("#/components/schemas/").skip(1) {
        let name = reference.split('"').next().unwrap();
        assert!(schemas.contains_key(name), "{name} is referred to and missing");
    }
}

#[tokio::test]
async fn the_page_comes_whole_and_asks_nobody_else() {
    let world = world().await;
    for (path, content_type) in [("/", "text/html"), ("/page.js", "text/javascript"), ("/page.css", "text/css")] {
        let response = world.client.get(world.url(path)).send().await.unwrap();
        assert_eq!(response.status(), 200);
        let headers = response.headers().clone();
        assert!(headers["content-type"].to_str().unwrap().starts_with(content_type));
        assert!(headers["content-security-policy"].to_str().unwrap().starts_with("default-src 'none'"));
        let text = response.text().await.unwrap();
        assert!(text.len() > 500 && !text.contains("http://") && !text.contains("https://"), "{path}");
    }
}
