//! Stories of faults, each told with many seeds. A failing one prints the line that replays it.

use super::simulation::{HostId, World, ms, secs};
use super::soak::{nobody_was_condemned, soak};
use super::*;
use rand::{RngExt, SeedableRng, rngs::StdRng};

/// Names a single seed to replay.
const SEED_VARIABLE: &str = "MEMBERSHIP_SEED";

/// Asks for more seeds than a quick run has.
const SEEDS_VARIABLE: &str = "MEMBERSHIP_SEEDS";

/// Tells `story` once for every seed.
fn tell(name: &str, seeds: u64, story: impl Fn(u64) -> Result<(), String>) {
    let number = |variable| std::env::var(variable).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = number(SEEDS_VARIABLE).unwrap_or(seeds);
    for seed in number(SEED_VARIABLE).map_or(0..seeds, |seed| seed..seed + 1) {
        if let Err(wrong) = story(seed) {
            panic!("{wrong}\nreplay: {SEED_VARIABLE}={seed} cargo test --lib membership::stories::{name}");
        }
    }
}

fn ensure(holds: bool, otherwise: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise.to_owned()) }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// How long after `fault` the last of `count` nodes knows, over many seeds.
fn times_to_know(count: usize, seeds: u64, fault: impl Fn(&mut World, HostId)) -> Vec<Duration> {
    let known = |seed| {
        let mut world = World::running(seed, count);
        let wait = ms(world.rng.random_range(0..400));
        world.run(wait);
        fault(&mut world, 5);
        world.run_until_agreed(secs(30)).expect("a dead member is noticed")
    };
    (0..seeds).map(known).collect()
}

#[test]
fn a_killed_node_is_down_everywhere_and_its_next_start_is_alive() {
    tell("a_killed_node_is_down_everywhere_and_its_next_start_is_alive", 20, |seed| {
        let mut world = World::running(seed, 10);
        world.crash(3);
        // A round may pass until somebody's list comes to it: SWIM bounds it by 2n - 1 probe intervals.
        world.run_until_agreed(secs(9))?;
        world.start(3);
        world.run_until_agreed(secs(10))?;
        nobody_was_condemned(&world)
    });
}

#[test]
fn the_last_of_many_learns_of_a_death_within_seconds() {
    let frozen = median(times_to_know(24, 15, World::freeze));
    let killed = |connected| {
        let crash = |world: &mut World, host| {
            world.set_links(connected);
            world.crash(host);
        };
        median(times_to_know(24, 15, crash))
    };
    let (connected, unconnected) = (killed(true), killed(false));
    println!("24 nodes, median to the last: frozen {frozen:?}, killed {connected:?}, unconnected {unconnected:?}");
    assert!(frozen < ms(2_000), "a frozen node: {frozen:?}");
    assert!(connected < ms(800), "a killed node that the others are connected to: {connected:?}");
    assert!(unconnected < ms(1_300), "a killed node that nobody is connected to: {unconnected:?}");
}

#[test]
fn a_frozen_node_is_down_and_refutes_when_it_runs_again() {
    tell("a_frozen_node_is_down_and_refutes_when_it_runs_again", 20, |seed| {
        let mut world = World::running(seed, 10);
        let (generation, incarnation) = (world.member(4).me().generation, world.member(4).me().incarnation);
        world.freeze(4);
        world.run_until_agreed(secs(6))?;
        world.run(secs(20));
        world.thaw(4);
        world.run_until_agreed(secs(5))?;
        ensure(world.member(4).me().generation == generation, "it is the same start")?;
        ensure(world.member(4).me().incarnation > incarnation, "it has refuted")?;
        ensure(world.late_ticks == 1, "it has noticed its pause, once")?;
        // What it did not hear while it was frozen is held against nobody.
        nobody_was_condemned(&world)
    });
}

#[test]
fn a_short_pause_is_survived_by_refuting() {
    tell("a_short_pause_is_survived_by_refuting", 20, |seed| {
        let mut world = World::running(seed, 10);
        world.freeze(4);
        world.run(ms(1_100));
        world.thaw(4);
        world.run_until_agreed(secs(3))?;
        ensure(world.downs.is_empty(), "nobody was condemned")
    });
}

#[test]
fn a_paused_observer_condemns_nobody() {
    tell("a_paused_observer_condemns_nobody", 20, |seed| {
        let mut world = World::running(seed, 10);
        for pause in [ms(700), ms(1_500), secs(4), secs(30)] {
            world.freeze(7);
            world.run(pause);
            world.downs.clear();
            world.thaw(7);
            world.run(secs(10));
            ensure(world.downs.iter().all(|down| down.by != 7), "a paused node condemned somebody")?;
            world.run_until_agreed(secs(5))?;
        }
        Ok(())
    });
}

#[test]
fn a_restart_at_a_new_address_replaces_the_old_one() {
    tell("a_restart_at_a_new_address_replaces_the_old_one", 20, |seed| {
        let mut world = World::running(seed, 10);
        world.crash(3);
        world.run(ms(seed * 150));
        world.hosts[3].port = 7_777;
        world.start(3);
        world.run(secs(3));
        world.run_until_agreed(secs(5))?;
        let addr = world.addr(3);
        let id = world.hosts[3].id;
        for host in (0..10).filter(|host| *host != 3) {
            let member = &world.member(host).view()[&id];
            ensure(member.facts.cluster_addr == addr, "the new address is known")?;
        }
        ensure((0..10).all(|host| world.member(host).conflict().is_none()), "nobody takes it for a second process")?;
        nobody_was_condemned(&world)
    });
}

#[test]
fn a_node_that_leaves_is_left_and_not_down() {
    tell("a_node_that_leaves_is_left_and_not_down", 20, |seed| {
        let mut world = World::running(seed, 10);
        world.leave(6);
        world.run_until_agreed(secs(3))?;
        world.run(secs(20));
        world.run_until_agreed(ms(1))?;
        ensure(world.downs.is_empty(), "nobody was condemned")?;
        let gone = world.hosts[6].id;
        let has_left = |facts: &Facts| facts.node == gone && facts.status == Status::Left;
        ensure(
            world.member(0).remembered().iter().any(has_left),
            "its goodbye is remembered, for those who missed it",
        )?;
        world.start(6);
        world.run_until_agreed(secs(6)).map(|_| ())
    });
}

#[test]
fn a_cut_between_two_condemns_neither() {
    tell("a_cut_between_two_condemns_neither", 20, |seed| {
        let mut world = World::running(seed, 10);
        world.cut(&[2], &[8], true);
        world.run(secs(60));
        nobody_was_condemned(&world)?;
        world.run_until_agreed(secs(2)).map(|_| ())
    });
}

#[test]
fn a_cut_in_one_direction_condemns_neither() {
    tell("a_cut_in_one_direction_condemns_neither", 20, |seed| {
        let mut world = World::running(seed, 10);
        world.cut_one_way(2, 8, true);
        world.cut_one_way(5, 2, true);
        world.run(secs(60));
        nobody_was_condemned(&world)?;
        world.run_until_agreed(secs(2)).map(|_| ())
    });
}

#[test]
fn a_firewall_that_refuses_condemns_nobody() {
    tell("a_firewall_that_refuses_condemns_nobody", 10, |seed| {
        let mut world = World::running(seed, 10);
        world.cut(&[2], &[8], true);
        let refused = world.hosts[8].id;
        for _ in 0..200 {
            let now = world.moment();
            world.member(2).handle_refused(now, refused);
            world.drain(2);
            world.run(ms(100));
        }
        nobody_was_condemned(&world)
    });
}

#[test]
fn a_member_that_few_can_reach_lives_by_refuting() {
    tell("a_member_that_few_can_reach_lives_by_refuting", 20, |seed| {
        let mut world = World::running(seed, 10);
        world.cut(&[9], &[0, 1, 2, 3, 4], true);
        world.run(secs(60));
        nobody_was_condemned(&world)
    });
}

#[test]
fn a_member_that_a_single_other_can_reach_lives_through_it() {
    tell("a_member_that_a_single_other_can_reach_lives_through_it", 20, |seed| {
        let mut world = World::running(seed, 10);
        let cut_off: Vec<HostId> = (0..7 + seed as usize % 2).collect();
        world.cut(&[9], &cut_off, true);
        world.run(secs(60));
        nobody_was_condemned(&world)
    });
}

#[test]
fn heavy_loss_condemns_nobody() {
    tell("heavy_loss_condemns_nobody", 15, |seed| {
        let mut world = World::running(seed, 10);
        world.network.loss_percent = 30;
        world.network.no_links = seed % 2 == 0;
        world.run(secs(120));
        nobody_was_condemned(&world)
    });
}

#[test]
fn a_slow_network_is_waited_for() {
    tell("a_slow_network_is_waited_for", 10, |seed| {
        let mut world = World::running(seed, 10);
        world.network.slowness = ms(150);
        world.run(secs(60));
        nobody_was_condemned(&world)
    });
}

#[test]
fn two_halves_part_and_merge_again_without_seeds() {
    tell("two_halves_part_and_merge_again_without_seeds", 20, |seed| {
        let mut world = World::running(seed, 10);
        let (left, right) = ([0, 1, 2, 3, 4], [5, 6, 7, 8, 9]);
        world.cut(&left, &right, true);
        world.run_until_side_agreed(&left, secs(30))?;
        world.run_until_side_agreed(&right, secs(30))?;
        world.run(secs(60));
        world.cut(&left, &right, false);
        world.run_until_agreed(secs(12)).map(|_| ())
    });
}

/// A node that nobody can reach, and that reaches nobody.
fn a_lonely_node(seed: u64, rules: Rules) -> Result<(), String> {
    let mut world = World::running_by(seed, 10, rules);
    let others: Vec<HostId> = (1..10).collect();
    world.cut(&[0], &others, true);
    world.run(secs(4));
    ensure(world.downs.iter().all(|down| down.by != 0), "it condemned before the full grace period")?;
    world.run_until_side_agreed(&others, secs(10))?;
    world.run_until_side_agreed(&[0], secs(120))?;
    world.cut(&[0], &others, false);
    world.run_until_agreed(secs(12)).map(|_| ())
}

#[test]
fn a_lonely_node_doubts_itself_before_it_condemns_the_others() {
    tell("a_lonely_node_doubts_itself_before_it_condemns_the_others", 10, |seed| a_lonely_node(seed, Rules::default()));
}

#[test]
fn the_last_one_of_all_knows_that_it_is_alone_however_unwell_it_was() {
    tell("the_last_one_of_all_knows_that_it_is_alone_however_unwell_it_was", 20, |seed| {
        let mut world = World::running(seed, 5);
        for _ in 0..3 {
            world.freeze(4);
            world.run(secs(2));
            world.thaw(4);
            world.run(ms(100));
        }
        (0..4).for_each(|host| world.crash(host));
        world.run_until_agreed(secs(50)).map(|_| ())
    });
}

#[test]
fn a_starting_node_takes_the_members_it_knew_as_suspects() {
    tell("a_starting_node_takes_the_members_it_knew_as_suspects", 10, |seed| {
        let mut world = World::running(seed, 5);
        let others = [1, 2, 3, 4];
        for host in 0..5 {
            world.crash(host);
        }
        // It is the first to come back, and its machine can see that the others' processes are gone.
        world.start(0);
        world.run(ms(4_500));
        let all_doubted = others.iter().all(|host| world.state(0, *host) == Some(MemberState::Suspect));
        ensure(all_doubted, "the remembered are suspects for a full grace period")?;
        world.run(secs(2));
        let all_down = others.iter().all(|host| world.state(0, *host) == Some(MemberState::Down));
        ensure(all_down, "and down after it")?;
        // Those who come back later know each other, seeds or not.
        for host in others {
            world.start(host);
        }
        world.run_until_agreed(secs(10)).map(|_| ())
    });
}

#[test]
fn a_member_that_was_gone_for_long_is_forgotten_and_can_come_back() {
    tell("a_member_that_was_gone_for_long_is_forgotten_and_can_come_back", 5, |seed| {
        let mut world = World::new(seed, 6);
        for host in &mut world.hosts {
            host.settings.forget_after = secs(30);
        }
        (0..6).for_each(|host| world.start(host));
        world.run_until_agreed(secs(20))?;
        world.crash(2);
        world.run(secs(40));
        let forgotten = |world: &World| [0, 1, 3, 4, 5].iter().all(|host| world.state(*host, 2).is_none());
        ensure(forgotten(&world), "it is in nobody's view")?;
        ensure(world.member(0).me().suspicions.is_empty(), "nobody votes against it any more")?;
        // A newcomer hears of it from old gossip, finds it dead, and does not bring it back for the others.
        let newcomer = world.add_host();
        world.hosts[newcomer].settings.forget_after = secs(30);
        world.start(newcomer);
        world.run(secs(10));
        ensure(forgotten(&world), "old gossip brings it back for nobody")?;
        world.start(2);
        world.run_until_agreed(secs(8)).map(|_| ())
    });
}

#[test]
fn members_out_of_reach_for_so_long_that_they_are_forgotten_still_return() {
    tell("members_out_of_reach_for_so_long_that_they_are_forgotten_still_return", 5, |seed| {
        let mut world = World::new(seed, 6);
        for host in &mut world.hosts {
            host.settings.forget_after = secs(30);
        }
        (0..6).for_each(|host| world.start(host));
        world.run_until_agreed(secs(20))?;
        world.cut(&[0, 1], &[2, 3, 4, 5], true);
        world.run(secs(90));
        ensure(
            world.state(4, 0).is_none() && world.state(2, 1).is_none(),
            "the greater side has forgotten the lesser",
        )?;
        ensure(world.state(0, 4) == Some(MemberState::Down), "the lesser side forgets nobody")?;
        ensure(!majority_in_reach(world.member(0).view()), "and does not take itself for all there is")?;
        ensure(world.member(0).complaints().len() == 1, "but says so")?;
        world.cut(&[0, 1], &[2, 3, 4, 5], false);
        // The lesser side tries those who are down again and again, and they hear of it.
        world.run_until_agreed(secs(20)).map(|_| ())
    });
}

#[test]
fn halves_forget_nobody_and_find_each_other_again() {
    tell("halves_forget_nobody_and_find_each_other_again", 5, |seed| {
        let mut world = World::new(seed, 6);
        for host in &mut world.hosts {
            host.settings.forget_after = secs(30);
        }
        (0..6).for_each(|host| world.start(host));
        world.run_until_agreed(secs(20))?;
        world.cut(&[0, 1, 2], &[3, 4, 5], true);
        world.run(secs(90));
        let remembers = |a: HostId, b: HostId| world.state(a, b) == Some(MemberState::Down);
        ensure(remembers(0, 4) && remembers(4, 0), "neither half is a majority")?;
        world.cut(&[0, 1, 2], &[3, 4, 5], false);
        world.run_until_agreed(secs(20)).map(|_| ())
    });
}

#[test]
fn members_forgotten_by_hand_on_both_sides_still_return() {
    tell("members_forgotten_by_hand_on_both_sides_still_return", 5, |seed| {
        let mut world = World::running(seed, 6);
        world.cut(&[0, 1, 2], &[3, 4, 5], true);
        world.run(secs(30));
        for here in 0..6 {
            let there = if here < 3 { 3 } else { 0 };
            for gone in there..there + 3 {
                let (now, gone) = (world.moment(), world.hosts[gone].id);
                world.member(here).dismiss(now, gone).map_err(|cannot| cannot.to_string())?;
            }
        }
        ensure(world.state(0, 4).is_none() && world.state(4, 0).is_none(), "the sides have forgotten each other")?;
        world.cut(&[0, 1, 2], &[3, 4, 5], false);
        // Now it takes somebody who names the other side: an operator, or the gossip library's seeds.
        world.gossip_with(0, 4, true);
        world.run(secs(3));
        world.member(0).update_own(|own| own.load.backlog += 1);
        world.drain(0);
        world.gossip_with(0, 4, true);
        world.run_until_agreed(secs(20)).map(|_| ())
    });
}

#[test]
fn of_two_nodes_with_one_name_the_newer_refuses() {
    tell("of_two_nodes_with_one_name_the_newer_refuses", 10, |seed| {
        let mut world = World::running(seed, 5);
        let newcomer = world.add_host();
        world.hosts[newcomer].name = "n1".to_owned();
        world.start(newcomer);
        world.run(secs(3));
        let refusal = world.member(newcomer).conflict().unwrap_or_default();
        ensure(refusal.contains("the name n1 is taken"), &format!("the newcomer says: {refusal}"))?;
        ensure(world.member(newcomer).me().status == Status::Joining, "it does not serve")?;
        ensure(world.member(1).conflict().is_none(), "the older one serves on")?;
        ensure(!world.member(1).complaints().is_empty(), "and complains")?;
        // Once the older one is gone, the name is free: a machine that lost its disk comes back like this.
        world.crash(1);
        world.run(secs(5));
        ensure(world.member(newcomer).conflict().is_none(), "the name is free again")
    });
}

#[test]
fn of_two_processes_with_one_id_the_newer_refuses() {
    tell("of_two_processes_with_one_id_the_newer_refuses", 10, |seed| {
        let mut world = World::running(seed, 5);
        let copy = world.add_host();
        world.hosts[copy].id = world.hosts[1].id;
        world.hosts[copy].set_generation(500);
        world.start(copy);
        world.run(secs(3));
        let refusal = world.member(copy).conflict().unwrap_or_default();
        ensure(refusal.contains("already runs as node"), &format!("the copy says: {refusal}"))?;
        ensure(world.member(1).conflict().is_none(), "the older one serves on")?;
        let original = world.addr(1);
        let id = world.hosts[1].id;
        for host in [0, 2, 3, 4] {
            let seen = world.member(host).view()[&id].facts.cluster_addr;
            ensure(seen == original, "the others stay with the one that answers")?;
        }
        ensure(world.member(0).complaints().iter().any(|line| line.contains("two processes")), "and say so")
    });
}

#[test]
fn a_node_with_other_settings_is_no_member_and_says_why() {
    tell("a_node_with_other_settings_is_no_member_and_says_why", 10, |seed| {
        let mut world = World::running(seed, 5);
        let odd = world.add_host();
        world.hosts[odd].settings.replicas = 5;
        world.start(odd);
        world.run(secs(3));
        let refusal = world.member(odd).conflict().unwrap_or_default();
        ensure(refusal.contains("replicas is 5 here and 3 there"), &format!("it says: {refusal}"))?;
        ensure((0..5).all(|host| world.state(host, odd).is_none()), "nobody admits it")?;
        ensure((0..5).all(|host| world.member(host).conflict().is_none()), "the others serve on")?;
        ensure(world.member(0).complaints().iter().any(|line| line.contains("replicas")), "and say what differs")
    });
}

#[test]
fn after_any_faults_all_views_tell_the_truth() {
    tell("after_any_faults_all_views_tell_the_truth", 200, |seed| soak(seed, Rules::default(), |_| {}));
}

#[test]
fn the_same_seed_is_the_same_run() {
    let run = |seed| {
        let mut world = World::running(seed, 8);
        world.network.loss_percent = 10;
        world.crash(2);
        world.run(secs(20));
        let now = world.moment();
        let reports: Vec<_> = [0, 1, 3].map(|host| world.member(host).report(now)).into();
        (world.packets, reports)
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1).0, run(2).0);
}

/// Of so many seeds, how many end in what the checkers call wrong.
fn caught(seeds: u64, story: impl Fn(u64) -> Result<(), String>) -> usize {
    (0..seeds).filter(|seed| story(*seed).is_err()).count()
}

#[test]
fn the_checkers_notice_when_nobody_refutes() {
    let rules = Rules { refutation: false, ..Rules::default() };
    let condemned = caught(5, |seed| {
        let mut world = World::running_by(seed, 10, rules);
        world.cut(&[9], &[0, 1, 2, 3, 4, 5, 6, 7], true);
        world.run(secs(60));
        nobody_was_condemned(&world)
    });
    assert!(condemned >= 3, "without refutation a member that a single other can reach must be condemned: {condemned}");
}

#[test]
fn the_checkers_notice_when_nothing_is_compared() {
    let found = caught(5, |seed| {
        let mut world = World::running(seed, 10);
        world.network.without_comparison = true;
        let newcomer = world.add_host();
        world.start(newcomer);
        world.run_until_agreed(secs(60)).map(|_| ())
    });
    assert_eq!(found, 5, "where news are only handed on, a newcomer must remain unknown to some");
}

#[test]
fn the_checkers_notice_when_nobody_doubts_itself() {
    let rules = Rules { lifeguard: false, ..Rules::default() };
    let condemned = caught(5, |seed| a_lonely_node(seed, rules));
    assert_eq!(condemned, 5, "without local health a node that hears nobody must condemn all others early");
}

/// Whatever a peer sends, nothing panics, and a cluster that is left alone afterwards is whole.
#[test]
fn nonsense_from_peers_does_no_lasting_harm() {
    tell("nonsense_from_peers_does_no_lasting_harm", 10, |seed| {
        let mut world = World::running(seed, 5);
        let mut dice = StdRng::seed_from_u64(seed);
        for _ in 0..1_000 {
            let any = |dice: &mut StdRng| [0, 1, 5, u64::MAX - 1, u64::MAX][dice.random_range(0..5)];
            let (now, victim) = (world.moment(), dice.random_range(0..5));
            let node = world.hosts[dice.random_range(0..5)].id;
            let addr = world.addr(dice.random_range(0..5));
            let (seq, generation) = (any(&mut dice), Generation(any(&mut dice).max(101)));
            let incarnation = Incarnation(any(&mut dice));
            let body = match dice.random_range(0..5) {
                0 => ProbeBody::Ping { seq, suspected: Some((Generation(101), incarnation)) },
                1 => ProbeBody::Ack { seq, generation, incarnation },
                2 => ProbeBody::PingReq { seq, target: node, target_addr: addr },
                3 => ProbeBody::IndirectAck { seq, target: node, generation, incarnation },
                _ => ProbeBody::Nack { seq },
            };
            let to = world.hosts[victim].id;
            let probe = Probe { cluster: "sim".to_owned(), from: node, generation, to, body };
            world.member(victim).handle_probe(now, addr, probe, dice.random_bool(0.5));
            world.drain(victim);
            world.run(ms(5));
        }
        let mut facts = world.member(1).me().clone();
        facts.suspicions.insert(world.hosts[0].id, (Generation(101), Incarnation(u64::MAX)));
        let now = world.moment();
        world.member(0).handle_facts(now, vec![facts]);
        ensure(world.member(0).me().incarnation.0 < 1 << 34, "nonsense uses up no incarnations")?;
        world.run(secs(5));
        world.run_until_agreed(secs(10)).map(|_| ())
    });
}

#[test]
fn packets_for_another_cluster_or_node_are_not_answered() {
    let mut world = World::running(1, 2);
    let (now, from, to, addr) = (world.moment(), world.hosts[0].id, world.hosts[1].id, world.addr(0));
    let ping = |cluster: &str, to| Probe {
        cluster: cluster.to_owned(),
        from,
        generation: Generation(101),
        to,
        body: ProbeBody::Ping { seq: 1, suspected: None },
    };
    let mut answers = |probe| {
        world.member(1).handle_probe(now, addr, probe, false);
        std::iter::from_fn(|| world.member(1).poll_output()).count()
    };
    assert_eq!(answers(ping("another", to)), 0);
    assert_eq!(answers(ping("sim", NodeId(77))), 0);
    assert_eq!(answers(ping("sim", to)), 1);
}

#[test]
fn what_the_node_says_about_itself_is_its_own_apart_from_its_membership() {
    let mut world = World::running(1, 3);
    let before = world.member(0).me().clone();
    let epoch = world.member(0).view_epoch();
    world.member(0).update_own(|own| {
        own.load.backlog = 7;
        own.incarnation = Incarnation(99);
        own.suspicions.insert(NodeId(5), (Generation(1), Incarnation(0)));
    });
    assert_eq!(world.member(0).poll_output(), Some(MembershipOutput::OwnFactsChanged { urgent: false }));
    assert_eq!(world.member(0).me().load.backlog, 7);
    assert_eq!(world.member(0).me().incarnation, before.incarnation);
    assert!(world.member(0).me().suspicions.is_empty());
    assert_eq!(world.member(0).view_epoch(), epoch, "load places nothing");
    world.member(0).update_own(|own| own.weight = 3);
    assert_eq!(world.member(0).view_epoch(), epoch + 1);
}
