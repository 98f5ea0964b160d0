//! Stories of networks that are cut in two, of clocks that are wrong, and of what can be read about it afterwards.

use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::cluster::{Cluster, last_attempt, text, told};
use crate::processes::{gone, just_one, long_sleep, sleepers};
use crate::{eventually, seconds};

async fn cluster_that_can_be_cut(nodes: usize) -> Cluster {
    Cluster::with(nodes, |_| "--slots 8 --enable-fault-injection".to_owned()).await
}

#[tokio::test]
async fn both_sides_of_a_cut_go_on_and_one_page_tells_what_ran_twice() {
    let cluster = cluster_that_can_be_cut(5).await;
    let sleeps: Vec<String> = (0..15).map(|_| long_sleep()).collect();
    let mut ids = Vec::new();
    for (turn, sleep) in sleeps.iter().enumerate() {
        ids.push(cluster.submit(turn % 5, json!({"command": ["sleep", sleep]})).await);
    }
    let mut places = Vec::new();
    for id in &ids {
        places.push(cluster.runs_on(0, id).await);
    }
    let small_side: Vec<usize> = vec![places[0], (places[0] + 1) % 5];
    let large_side: Vec<usize> = (0..5).filter(|place| !small_side.contains(place)).collect();
    let names: Vec<&str> = small_side.iter().map(|place| cluster.node(*place).name.as_str()).collect();
    let cut = cluster.flockwork(&[0], &[&["cut", "-o", "json"], &names[..]].concat()).await.good();
    let cut: Value = serde_json::from_str(&cut).unwrap();
    assert_eq!(cut["sides"][0].as_array().map(Vec::len), Some(2), "{cut}");
    assert_eq!(cut["sides"][1].as_array().map(Vec::len), Some(3), "{cut}");
    for (here, there) in
        [(large_side[0], small_side[0]), (large_side[0], small_side[1]), (small_side[0], large_side[0])]
    {
        cluster.sees(here, there, "down").await;
    }

    // Each side takes jobs and ends them, and starts once more what it believes lost.
    let mut quick = Vec::new();
    for via in [small_side[0], large_side[0]] {
        let id = cluster.shell(via, "echo both sides go on").await;
        assert_eq!(cluster.ended(via, &id).await["state"], "succeeded");
        quick.push(id);
    }
    let far: Vec<&String> =
        ids.iter().zip(&places).filter(|(_, at)| small_side.contains(at)).map(|(id, _)| id).collect();
    for id in &far {
        let again = |job: &Value| last_attempt(job)["phase"] == "running" && last_attempt(job)["number"] != 1;
        cluster.job_where(large_side[0], id, again).await;
    }

    // Whoever is asked takes the other side for dead; they are told nevertheless.
    let healed = cluster.flockwork(&[small_side[0]], &["heal", "-o", "id"]).await.good();
    assert_eq!(healed.lines().count(), 5, "{healed}");
    cluster.agree().await;
    cluster.converge().await;
    for sleep in &sleeps {
        just_one(sleep, seconds(20)).await;
    }
    for id in ids.iter().chain(&quick) {
        let states: Vec<Value> = futures_util::future::join_all((0..5).map(|via| cluster.job(via, id)))
            .await
            .into_iter()
            .map(|job| job["state"].clone())
            .collect();
        assert!(states.iter().all(|state| *state == states[0]), "{id}: {states:?}");
    }

    for via in [small_side[0], large_side[0]] {
        let (status, report) = cluster.get(via, "/debug/merges").await;
        assert_eq!(status, 200, "{report}");
        let merged = report["jobs"].as_array().unwrap();
        for id in &far {
            let job = merged.iter().find(|job| job["id"] == id.as_str()).unwrap_or_else(|| panic!("{id}: {report}"));
            let pair = &job["overlaps"][0];
            assert_eq!((&pair["certain"], &pair["first"]["phase"]), (&json!(true), &json!("stopped")), "{job}");
            assert!(pair["seconds"].as_f64() > Some(0.0), "{job}");
        }
        assert!(report["certain"].as_u64() >= Some(far.len() as u64), "{report}");
        assert!(report["absences"].as_array().unwrap().iter().all(|away| away["until"].is_string()), "{report}");
    }
    let page = cluster.flockwork(&[large_side[0]], &["merges"]).await.good();
    println!("{page}");
    for part in ["is back", &far[0][..8], "stopped", "ran twice at once for certain"] {
        assert!(page.contains(part), "{part} is missing in:\n{page}");
    }
    for id in &ids {
        cluster.cancel(small_side[0], id, "the story is over").await;
    }
    cluster.all_ended(large_side[0], &ids).await;
}

#[tokio::test]
async fn a_job_that_asks_for_it_never_runs_on_both_sides_of_a_cut() {
    let cluster = cluster_that_can_be_cut(3).await;
    let sleep = long_sleep();
    let id = cluster.submit(0, json!({"command": ["sleep", sleep], "on_partition": "pause"})).await;
    let alone = cluster.runs_on(0, &id).await;
    let others = [(alone + 1) % 3, (alone + 2) % 3];
    let first_pod = just_one(&sleep, seconds(10)).await;

    cluster.cut_off(&[alone]).await;
    // From here on two at a time would be the failure, so it is looked at all the time.
    let until = Instant::now() + seconds(60);
    loop {
        let pods = sleepers(&sleep);
        assert!(pods.len() <= 1, "it runs twice: {pods:?}");
        if pods.iter().any(|pod| *pod != first_pod) {
            break;
        }
        assert!(Instant::now() < until, "it was not started on the other side");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert!(others.contains(&cluster.runs_on(others[0], &id).await));
    // Where most are out of reach, nothing of the kind is begun either.
    let waiting = long_sleep();
    let (_, body) = cluster.post(alone, &json!({"command": ["sleep", waiting], "on_partition": "pause"})).await;
    let waiting_id = text(&body["id"]);
    tokio::time::sleep(seconds(3)).await;
    assert_eq!(sleepers(&waiting), Vec::<u32>::new());
    assert_eq!(cluster.job(alone, &waiting_id).await["state"], "pending");

    cluster.heal().await;
    cluster.agree().await;
    cluster.converge().await;
    just_one(&sleep, seconds(10)).await;
    just_one(&waiting, seconds(20)).await;
    let (_, report) = cluster.get(alone, "/debug/merges").await;
    let pairs: Vec<&Value> =
        report["jobs"].as_array().unwrap().iter().flat_map(|job| job["overlaps"].as_array().unwrap()).collect();
    assert!(pairs.iter().all(|pair| pair["seconds"].as_f64().unwrap_or(0.0) == 0.0), "they did not meet: {report}");
    for id in [&id, &waiting_id] {
        cluster.cancel(alone, id, "the story is over").await;
    }
    gone(&sleep, seconds(10)).await;
}

#[tokio::test]
async fn a_clock_that_is_hours_wrong_is_shown_and_changes_nothing_else() {
    let cluster = cluster_that_can_be_cut(3).await;
    cluster.pretend(1, &json!({"clock_offset_ms": -7_200_000})).await;
    cluster.pretend(2, &json!({"clock_offset_ms": 18_000_000})).await;
    let ids: Vec<String> = {
        let specs: Vec<Value> = (0..30).map(|n| json!({"command": ["echo", n.to_string()]})).collect();
        let mut ids = cluster.submit_all(1, &specs[..15], false).await;
        ids.extend(cluster.submit_all(2, &specs[15..], true).await);
        ids
    };
    for job in cluster.all_ended(0, &ids).await {
        assert_eq!(job["state"], "succeeded", "{job}");
    }
    let skew_of = async |node: usize| {
        let (_, members) = cluster.get(0, "/debug/members").await;
        let member =
            members["members"].as_array().unwrap().iter().find(|member| member["id"] == *cluster.node(node).id);
        member.and_then(|member| member["clock_skew_ms"].as_i64())
    };
    for (node, wanted) in [(1, -7_200_000), (2, 18_000_000)] {
        eventually("the skew is measured", seconds(30), async || match skew_of(node).await {
            Some(skew) if (skew - wanted).abs() < 1_000 => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
    }
    assert!(cluster.metric(0, "flockwork_clock_skew_max_milliseconds").await > 17_000_000.0);
    let wide = cluster.flockwork(&[0], &["nodes", "-o", "wide"]).await.good();
    assert!(wide.contains("CLOCK") && wide.contains("-2h00m") && wide.contains("+5h00m"), "{wide}");
    cluster.heal().await;
    cluster.converge().await;
}

#[tokio::test]
async fn a_node_pretends_nothing_unless_it_was_started_for_it() {
    let cluster = Cluster::of(1).await;
    for method in [Method::GET, Method::POST] {
        let (status, refused) = told(cluster.request(0, method, "/debug/faults").json(&json!({}))).await;
        assert_eq!((status, &refused["error"]["code"]), (403, &json!("forbidden")), "{refused}");
        assert!(refused["error"]["hint"].as_str().unwrap().contains("--enable-fault-injection"), "{refused}");
    }
    for command in [&["heal"][..], &["cut", "node-0"]] {
        let refused = cluster.flockwork(&[0], command).await;
        assert_eq!(refused.code, Some(4), "{refused:?}");
        assert!(refused.err.contains("node-0: ") && refused.err.contains("--enable-fault-injection"), "{refused:?}");
    }
}

#[tokio::test]
async fn a_cut_that_cannot_be_is_refused_and_cuts_nothing() {
    let cluster = cluster_that_can_be_cut(2).await;
    let nothing = cluster.flockwork(&[0], &["cut", "nobody"]).await;
    assert_eq!(nothing.code, Some(3), "{nothing:?}");
    let all = cluster.flockwork(&[0], &["cut", "node-0", "node-1"]).await;
    assert_eq!(all.code, Some(2), "{all:?}");
    // What else a node pretends stays through a cut and its end.
    cluster.pretend(1, &json!({"clock_offset_ms": 5})).await;
    for command in [&["cut", "node-1"][..], &["heal"]] {
        cluster.flockwork(&[0], command).await.good();
    }
    for (node, clock_offset_ms) in [(0, 0), (1, 5)] {
        let (_, plan) = cluster.get(node, "/debug/faults").await;
        let as_before = json!({"drop_to": [], "drop_from": [], "disk": "real", "clock_offset_ms": clock_offset_ms});
        assert_eq!(plan, as_before, "node {node}");
    }
}
