//! The checkers can fail.

use flockwork::model::record::JobState;
use flockwork::model::spec::Spec;

use super::{PATIENCE, SECOND, cluster};
use crate::pods::work;

#[test]
fn the_checkers_notice_a_lost_disk() {
    let mut world = cluster(3);
    let job = world.submit(0, Spec { delay: Some(PATIENCE), ..work(50, 0) });
    for node in 0..3 {
        world.kill(node);
        world.nodes[node].disk.records.remove(&job);
    }
    world.calm_down_and_check();
    assert!(world.findings.violations.iter().any(|violation| violation.checker == "acknowledged jobs are known"));
}

#[test]
fn the_checkers_notice_a_copy_that_was_tampered_with() {
    let mut world = cluster(3);
    let job = world.submit(0, work(50, 0));
    world.wait_for(job, JobState::Succeeded);
    world.run_for(SECOND);
    world.nodes[1].disk.records.remove(&job);
    world.calm_down_and_check();
    let found: Vec<&str> = world.findings.violations.iter().map(|violation| violation.checker).collect();
    assert!(found.contains(&"what is known is on disk"), "{found:?}");
}
