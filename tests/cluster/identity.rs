//! Who a node is: its id, its name, its address and its disk, and what becomes of the cluster when one of them changes
//! or is used twice.

use serde_json::json;

use crate::cluster::Cluster;

#[tokio::test]
async fn of_two_processes_with_one_data_directory_the_newer_does_not_serve() {
    let mut cluster = Cluster::of(3).await;
    cluster.kill(2).await;
    let copy = cluster.add("node-2", Some(2));
    cluster.restart(&[2]).await;
    cluster.agree().await;

    cluster.outlive_the_second_of(2).await;
    cluster.start_in_vain(copy, "was the data directory copied").await;
    cluster.complains(2, "a newer process").await;
    cluster.complains(0, "two processes run as node").await;
    // The older one is what it was for the others, and works.
    let job = json!({"command": ["echo", "still here"]});
    for via in [2, 0] {
        let id = cluster.submit(via, job.clone()).await;
        assert_eq!(cluster.ended(1, &id).await["state"], "succeeded");
    }
    cluster.kill(copy).await;
    cluster.converge().await;
}

#[tokio::test]
async fn of_two_nodes_with_one_name_the_newer_does_not_serve() {
    let mut cluster = Cluster::of(3).await;
    let namesake = cluster.add("node-1", None);
    cluster.outlive_the_second_of(1).await;
    cluster.start_in_vain(namesake, "the name node-1 is taken").await;
    cluster.complains(1, "has this node's name").await;
    let id = cluster.shell(1, "echo still here").await;
    assert_eq!(cluster.ended(0, &id).await["state"], "succeeded");
    cluster.kill(namesake).await;
    cluster.agree().await;
}

#[tokio::test]
async fn a_node_comes_back_at_another_address_and_then_with_an_empty_disk() {
    let mut cluster = Cluster::of(3).await;
    let before = cluster.node(1).id.clone();
    cluster.kill(1).await;
    cluster.move_elsewhere(1);
    cluster.restart(&[1]).await;
    cluster.agree().await;
    assert_eq!(cluster.node(1).id, before);

    let id = cluster.shell(1, "echo kept by the others").await;
    cluster.ended(0, &id).await;
    // The guard would write to the disk while it is lost.
    cluster.kill_with_its_guard(1).await;
    cluster.lose_disk(1);
    cluster.restart(&[1]).await;
    cluster.converge().await;
    assert_ne!(cluster.node(1).id, before, "whoever has lost its disk is somebody else");
    assert_eq!(cluster.job(1, &id).await["state"], "succeeded");
}

#[tokio::test]
async fn all_are_restarted_one_after_the_other_and_then_together_without_their_seed() {
    let mut cluster = Cluster::of(4).await;
    let id = cluster.shell(0, "echo before").await;
    cluster.ended(1, &id).await;
    for node in [1, 2, 3] {
        cluster.leave(node).await;
        cluster.restart(&[node]).await;
        cluster.agree().await;
    }
    // The only seed is gone for good. Those that are left know each other from their disks.
    cluster.kill(0).await;
    cluster.kill_all(&[1, 2, 3]).await;
    cluster.restart(&[1, 2, 3]).await;
    cluster.agree().await;
    assert_eq!(cluster.job(2, &id).await["state"], "succeeded");
}
