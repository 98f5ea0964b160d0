//! Bad input to real nodes: each gets the right status and names the field, changes nothing, and the node serves on.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use reqwest::{Body, Method};
use serde_json::{Value, json};

use crate::cluster::{Cluster, told};
use crate::program::Running;

#[tokio::test]
async fn bad_input_is_answered_by_its_field_and_harms_nothing() {
    let cluster = Cluster::of(3).await;
    let nul = Value::Null;
    let spec = |fields: &str| format!(r#"{{"command":["true"],{fields}}}"#);
    let posts = [
        (r#"{"command":["#.to_owned(), 400, "malformed", &nul),
        (r#"{"command":["true"]} x"#.to_owned(), 400, "malformed", &nul),
        (spec(r#""colour":"red""#), 422, "invalid", &json!("colour")),
        (spec(r#""timeout":-5"#), 422, "invalid", &json!("timeout")),
        (spec(r#""timeout":"-1m""#), 422, "invalid", &json!("timeout")),
        (spec(r#""cwd":"relative""#), 422, "invalid", &json!("cwd")),
        (spec(r#""env":{"A=B":"c"}"#), 422, "invalid", &json!("env")),
        (spec(r#""backoff":{"factor":0}"#), 422, "invalid", &json!("backoff.factor")),
        (r#"{"command":[]}"#.to_owned(), 422, "invalid", &json!("command")),
        (r#"{"command":[""]}"#.to_owned(), 422, "invalid", &json!("command")),
    ];
    for (body, status, code, field) in posts {
        refused(&cluster, Method::POST, "/v1/jobs", body, status, code, field).await;
    }
    let not_utf8 = b"{\"command\":[\"true\"],\"cwd\":\"/tmp/\xff\"}";
    refused(&cluster, Method::POST, "/v1/jobs", &not_utf8[..], 400, "malformed", &nul).await;
    refused(&cluster, Method::POST, "/v1/jobs", vec![b' '; 100 << 20], 413, "too_large", &nul).await;

    let id = json!("id");
    let nobody = "/v1/jobs/ffffffffffffffffffffffffffffffff";
    for tail in ["", "/logs", "/wait", "/where", "/explain", "/events"] {
        refused(&cluster, Method::GET, &format!("{nobody}{tail}"), "", 404, "not_found", &nul).await;
    }
    refused(&cluster, Method::DELETE, nobody, "", 404, "not_found", &nul).await;
    refused(&cluster, Method::GET, "/v1/jobs/%ff%fe", "", 400, "malformed", &id).await;
    refused(&cluster, Method::GET, "/v1/jobs/my-job", "", 404, "not_found", &id).await;
    refused(&cluster, Method::GET, "/v1/jobs?limit=-1", "", 422, "invalid", &json!("limit")).await;

    assert!(cluster.list(0, 10, "").await.is_empty(), "nothing was changed");
    for via in cluster.live() {
        let id = cluster.shell(via, "echo I serve on").await;
        assert_eq!(cluster.ended(via, &id).await["state"], "succeeded");
        assert_eq!(cluster.metric(via, "flockwork_panics_total").await, 0.0);
    }
}

async fn refused(
    cluster: &Cluster,
    method: Method,
    path: &str,
    body: impl Into<Body>,
    status: u16,
    code: &str,
    field: &Value,
) {
    let request = cluster.request(0, method, path).header("content-type", "application/json").body(body);
    let (told_status, answer) = told(request).await;
    let error = &answer["error"];
    assert_eq!((told_status, &error["code"], &error["field"]), (status, &json!(code), field), "{path}: {answer}");
    assert!(!error["message"].as_str().unwrap().is_empty(), "{answer}");
}

#[tokio::test]
async fn the_command_line_names_what_is_wrong_with_what_was_typed() {
    let home = tempfile::TempDir::new().unwrap();
    let not_utf8 = OsStr::from_bytes(b"/tmp/\xff");
    let typed: [(&[&OsStr], &str); 5] = [
        (&["run", "--timeout", "-1s", "--", "true"].map(OsStr::new), "timeout"),
        (&["run", "--cwd", "here", "--", "true"].map(OsStr::new), "cwd"),
        (&["run", "--", ""].map(OsStr::new), "command"),
        (&["run", "--"].map(OsStr::new), "CMD"),
        (&[OsStr::new("run"), OsStr::new("--"), OsStr::new("cat"), not_utf8], "UTF-8"),
    ];
    for (arguments, named) in typed {
        let told = Running::start(crate::program::program(home.path()), arguments).told().await;
        assert_eq!((told.code, told.out.as_str()), (Some(2), ""), "{told:?}");
        assert!(told.err.contains(named), "{told:?}");
    }
    let mut command = crate::program::program(home.path());
    command.env("FLOCKWORK_ADDR", "127.0.0.1:1,127.0.0.1:2");
    let told = Running::start(command, ["ps"]).told().await;
    assert_eq!(told.code, Some(5), "{told:?}");
    assert!(told.err.contains("none of 2 nodes answers"), "{told:?}");
}
