//! The main story: a thousand jobs, five nodes, and one of them killed in the middle.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;

use reqwest::Method;
use serde_json::{Value, json};

use crate::cluster::{Cluster, text, told};

const JOBS: usize = 1_000;
const NODES: usize = 5;
const VICTIM: usize = 2;

#[tokio::test]
async fn a_thousand_jobs_outlive_a_node_that_is_killed_while_they_run() {
    let mut cluster = Cluster::alone(NODES).await;
    let ledger = tempfile::NamedTempFile::new().unwrap();
    let share = JOBS / NODES;
    let submits = (0..NODES).map(|via| submit_in_bulk(&cluster, via, via * share..(via + 1) * share, ledger.path()));
    let ids = futures_util::future::join_all(submits).await.concat();
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), JOBS);

    cluster.ended(0, &ids[10]).await;
    cluster.kill(VICTIM).await;
    let jobs = cluster.all_ended(0, &ids).await;
    for job in &jobs {
        assert_eq!(job["state"], "succeeded", "{job}");
    }
    let interrupted = jobs.iter().filter(|job| job["attempts"].as_array().unwrap().len() > 1).count();
    assert!(interrupted > 0, "the node was killed while it ran jobs");
    assert!(cluster.list(0, 500, "&state=succeeded&node=node-2").await.len() < JOBS, "and others ran the most");
    cluster.converge().await;
    let debug = cluster.flockwork(&[0], &["debug", "-o", "json"]).await.good();
    assert_eq!(serde_json::from_str::<Value>(&debug).unwrap()["converged"], true, "{debug}");

    cluster.restart(&[VICTIM]).await;
    cluster.converge().await;
    let listed = cluster.list(VICTIM, 300, "&state=succeeded").await;
    assert_eq!(listed.keys().collect::<BTreeSet<_>>(), ids.iter().collect(), "the node that was away knows all");
    let outputs = cluster.outputs(VICTIM, &ids).await;
    for (number, output) in outputs.iter().enumerate() {
        assert_eq!(*output, format!("{number} squared is {}\n", number * number));
    }

    // What the jobs wrote down themselves, past flockwork, is what flockwork says of them.
    let mut runs = vec![0; JOBS];
    for line in std::fs::read_to_string(ledger.path()).unwrap().lines() {
        runs[line.parse::<usize>().unwrap()] += 1;
    }
    for (job, runs) in jobs.iter().zip(runs) {
        let attempts = job["attempts"].as_array().unwrap().len();
        assert!((1..=attempts).contains(&runs), "it ran to its end {runs} times: {job}");
    }
}

/// Submits the jobs with these numbers in one request: an array to every other node, lines to the rest.
async fn submit_in_bulk(cluster: &Cluster, via: usize, numbers: Range<usize>, ledger: &Path) -> Vec<String> {
    const SCRIPT: &str = "sleep 0.$(($1 % 3)); echo $1 squared is $(($1 * $1)); echo $1 >> $2";
    let spec = |number: usize| json!({"command": ["sh", "-c", SCRIPT, "sh", number.to_string(), ledger]});
    let specs: Vec<Value> = numbers.map(spec).collect();
    let request = cluster.request(via, Method::POST, "/v1/jobs");
    let request = if via.is_multiple_of(2) {
        request.json(&specs)
    } else {
        let lines: String = specs.iter().map(|spec| format!("{spec}\n")).collect();
        request.header("content-type", "application/x-ndjson").body(lines)
    };
    let (status, body) = told(request).await;
    assert_eq!(status, 201, "{body}");
    let jobs = body["jobs"].as_array().unwrap();
    assert_eq!(jobs.len(), specs.len());
    jobs.iter().map(|job| text(&job["id"])).collect()
}
