//! The main story: a thousand jobs, five nodes, and one of them killed in the middle.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::cluster::Cluster;

const JOBS: usize = 1_000;
const NODES: usize = 5;
const VICTIM: usize = 2;

#[tokio::test]
async fn a_thousand_jobs_outlive_a_node_that_is_killed_while_they_run() {
    let mut cluster = Cluster::alone(NODES).await;
    let ledger = tempfile::NamedTempFile::new().unwrap();
    let spec = |number: usize| {
        const SCRIPT: &str = "sleep 0.$(($1 % 3)); echo $1 squared is $(($1 * $1)); echo $1 >> $2";
        json!({"command": ["sh", "-c", SCRIPT, "sh", number.to_string(), ledger.path()]})
    };
    let specs: Vec<Value> = (0..JOBS).map(spec).collect();
    // One request to each node: an array to every other one, lines to the rest.
    let shares = specs.chunks(JOBS / NODES).enumerate();
    let submits = shares.map(|(via, share)| cluster.submit_all(via, share, via % 2 == 1));
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
