//! The laws that the model promises, held against random histories.
//!
//! A record's copies are written to on several nodes, out of touch with each other, and merged now and then;
//! whatever the history was, merging must be commutative, associative and idempotent, and equal records must
//! look equal to a digest. A ring is built from random members; whoever comes, goes or dies, the lists must
//! change only as consistent hashing promises.
//!
//! `LAW_CASES` sets the number of cases of the merge laws; it is 100,000 where `CI` is set and 4,000 elsewhere.
#![allow(clippy::unwrap_used, reason = "a test stops at what it cannot do")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use flockwork::model::attempt::{Exit, Fate, Overlap, Phase, Usage};
use flockwork::model::blob::{Blob, BlobRef};
use flockwork::model::id::{Actor, Dot, Generation, Incarnation, JobId, NodeId, Partition};
use flockwork::model::member::{
    ClusterSettings, Facts, Fingerprint, Load, Member, MemberState, PartitionSet, Status, View, WIRE_VERSION,
};
use flockwork::model::record::{JobState, Record, Stop, StopKind, Submission};
use flockwork::model::report::{Checkpoint, Outcome, Progress, Tail, Tails};
use flockwork::model::resources::Resources;
use flockwork::model::ring::Placement;
use flockwork::model::spec::{Driver, Spec};
use flockwork::model::time::{Moment, Timestamp};
use proptest::prelude::*;

fn merge_cases() -> ProptestConfig {
    let asked = std::env::var("LAW_CASES").ok().and_then(|cases| cases.parse().ok());
    let cases = asked.unwrap_or(if std::env::var_os("CI").is_some() { 100_000 } else { 4_000 });
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

fn ring_cases() -> ProptestConfig {
    ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() }
}

// ---- Records -------------------------------------------------------------------------------------------------

const COPIES: usize = 3;

/// One node with its copy of the record.
#[derive(Debug, Clone)]
struct Writer {
    actor: Actor,
    next_write: u64,
    copy: Record,
}

impl Writer {
    fn next_dot(&mut self) -> Dot {
        let dot = Dot { actor: self.actor, counter: self.next_write };
        self.next_write += 1;
        dot
    }
}

/// A step of a history: which kind, at which node, and a number to choose by.
type Step = (u8, u8, u8);

fn actor(node: usize, generation: u64) -> Actor {
    Actor { node: NodeId(node as u32), generation: Generation(generation) }
}

fn submission() -> Arc<Submission> {
    let spec = Spec { command: vec!["true".into()], retries: 1, lost_limit: 1, ..Spec::default() };
    let (submitted_at, gateway) = (Timestamp(1), NodeId(0));
    Arc::new(Submission { spec, submitted_at, gateway, home: vec![NodeId(0), NodeId(1)], retry_of: None })
}

fn first_dot() -> Dot {
    Dot { actor: actor(0, 1), counter: 1 }
}

fn new_record() -> Record {
    Record::new(JobId(7), submission(), first_dot())
}

/// Three nodes that hold copies of one job, after everything in `steps` has happened to them.
fn history(steps: &[Step]) -> [Record; COPIES] {
    let writer = |node| Writer { actor: actor(node, 1), next_write: 2, copy: new_record() };
    let mut writers: [Writer; COPIES] = std::array::from_fn(writer);
    for (at, (kind, node, pick)) in steps.iter().enumerate() {
        let (node, pick) = (usize::from(*node) % COPIES, usize::from(*pick));
        let time = Timestamp(10 + at as u64);
        if kind % 11 == 0 {
            let other = writers[pick % COPIES].copy.clone();
            writers[node].copy.merge(&other);
        } else {
            write(&mut writers[node], kind % 11, pick, time);
        }
    }
    writers.map(|writer| writer.copy)
}

fn write(writer: &mut Writer, kind: u8, pick: usize, at: Timestamp) {
    let claims: Vec<Dot> = writer.copy.attempts.keys().copied().collect();
    let chosen = (!claims.is_empty()).then(|| claims[pick % claims.len()]);
    let dot = writer.next_dot();
    let copy = &mut writer.copy;
    match (kind, chosen) {
        (1, _) => copy.claim(dot, actor(pick % COPIES, 1 + (pick / COPIES % 2) as u64), at),
        (2, Some(claim)) => copy.start(dot, claim, at),
        (3 | 4, Some(claim)) => {
            let phases = [Phase::Returned, Phase::Failed, Phase::Stopped, Phase::Succeeded, Phase::Lost];
            let phase = phases[pick % phases.len()];
            let exit = (phase == Phase::Failed).then_some(Exit::Code(pick as i32 % 3));
            copy.advance(claim, Fate { phase, by_executor: true, dot, at, exit, reason: String::new() });
        }
        (5, Some(claim)) => {
            let reason = "its node is down".to_owned();
            copy.advance(claim, Fate { phase: Phase::Lost, by_executor: false, dot, at, exit: None, reason });
        }
        (6, _) => {
            let kind = if pick.is_multiple_of(2) { StopKind::Cancelled } else { StopKind::TimedOut };
            copy.request_stop(Stop { kind, dot, at, reason: "enough".into() });
        }
        (7, _) => {
            // A restart: writes go on under another name.
            writer.actor.generation = Generation(writer.actor.generation.0 + 1);
            writer.next_write = 1;
        }
        (8, Some(claim)) => {
            let progress = Progress { serial: pick as u64 % 5, permille: pick as u16 % 1_001, message: String::new() };
            copy.report_progress(dot, claim, progress);
        }
        (9, Some(claim)) => {
            let attempt = &copy.attempts[&claim];
            let (chain, number) = (attempt.claim.chain(), attempt.claim.number);
            let node = attempt.claim.executor.node;
            let before = copy.checkpoint.clone();
            let (serial, blob) = (pick as u64 % 7, blob(pick % 5));
            copy.save_checkpoint(dot, Checkpoint { chain, number, node, serial, claim, blob, saved_at: at });
            assert!(copy.checkpoint >= before, "checkpoints never go back");
        }
        (10, Some(claim)) => {
            let tail = |of: usize| (of > 0).then(|| Tail { offset: of as u64, blob: blob(pick % of + 1), as_of: None });
            let tails = Tails { stdout: tail(pick % 3), stderr: tail(pick / 3 % 3) };
            let outcome = match pick % 4 {
                0 => Some(Outcome::left(blob(pick % 3))),
                1 | 2 => Some(Outcome::posted(pick as u64 % 5, blob(pick % 3))),
                _ => None,
            };
            let before = (copy.attempts[&claim].result, copy.attempts[&claim].tails);
            copy.leave(dot, claim, outcome, tails);
            let attempt = &copy.attempts[&claim];
            assert!(attempt.result >= before.0 && attempt.tails.stdout >= before.1.stdout, "neither goes back");
            let counted = |of: usize| (of > 0).then_some(of as u64);
            copy.count_usage(dot, claim, Usage { cpu_ms: counted(pick % 3), peak_memory_bytes: counted(pick / 2 % 3) });
        }
        _ => {}
    }
}

fn blob(number: usize) -> BlobRef {
    Blob::new(vec![number as u8; number]).reference()
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(any::<Step>(), 0..14)
}

/// Copies that no history need lead to, as a faulty peer might send them: any dots, any fates, differing
/// submissions. Merging must keep its laws for them too.
fn arbitrary_record() -> impl Strategy<Value = Record> {
    let attempt = (0_u8..4, 0_u8..3, any::<u16>(), any::<bool>());
    (prop::collection::vec(attempt, 0..4), any::<u8>(), prop::option::of(any::<u8>())).prop_map(
        |(attempts, flavour, stop)| {
            let mut record = new_record();
            if flavour.is_multiple_of(3) {
                let mut other = Submission::clone(&record.submission);
                other.gateway = NodeId(u32::from(flavour % 4));
                other.spec.name = (flavour % 2 == 0).then(|| "other".into());
                record.submission = Arc::new(other);
            }
            for (counter, node, bits, by_executor) in attempts {
                let dot = Dot { actor: actor(usize::from(node), 1), counter: 2 + u64::from(counter) };
                record.claim(
                    dot,
                    actor(usize::from(bits % 3), u64::from(bits / 3 % 2)),
                    Timestamp(u64::from(bits % 5)),
                );
                let attempt = record.attempts.get_mut(&dot).expect("it was just claimed");
                attempt.claim.number = u32::from(bits % 4) + 1;
                let phases = [Phase::Claimed, Phase::Running, Phase::Lost, Phase::Failed, Phase::Succeeded];
                attempt.fate.phase = phases[usize::from(bits) / 16 % phases.len()];
                attempt.fate.by_executor = by_executor;
                attempt.started_at = (bits % 7 > 2).then_some(Timestamp(u64::from(bits % 7)));
            }
            if let Some((claim, attempt)) = record.attempts.last_key_value().filter(|_| flavour % 5 < 3) {
                let (chain, number, node) =
                    (u32::from(flavour % 2), attempt.claim.number, NodeId(u32::from(flavour % 3)));
                let (serial, claim, saved_at) = (u64::from(flavour % 4), *claim, Timestamp(u64::from(flavour % 7)));
                let blob = blob(usize::from(flavour % 6));
                record.checkpoint = Some(Checkpoint { chain, number, node, serial, claim, blob, saved_at });
            }
            if let Some(stop) = stop {
                let kind = if stop % 2 == 0 { StopKind::Cancelled } else { StopKind::TimedOut };
                let dot = Dot { actor: actor(usize::from(stop % 3), 1), counter: 9 };
                record.request_stop(Stop { kind, dot, at: Timestamp(u64::from(stop / 2 % 2)), reason: String::new() });
            }
            record
        },
    )
}

fn merged(first: &Record, second: &Record) -> Record {
    let mut merged = first.clone();
    merged.merge(second);
    merged
}

fn check_laws([a, b, c]: &[Record; 3]) {
    let ab = merged(a, b);
    let ba = merged(b, a);
    assert_eq!(ab, ba, "commutative");
    let ab_c = merged(&ab, c);
    let a_bc = merged(a, &merged(b, c));
    assert_eq!(ab_c, a_bc, "associative");
    assert_eq!(merged(&ab_c, a), ab_c, "idempotent: what was merged already changes nothing");
    assert_eq!(merged(a, a), *a, "idempotent");
    assert_eq!((ab.version(), ab.state()), (ba.version(), ba.state()), "equal records look equal");
    assert_eq!((ab_c.version(), ab_c.state()), (a_bc.version(), a_bc.state()), "equal records look equal");
    if a != b {
        assert_ne!(a.version(), b.version(), "records that differ look different");
    }
}

proptest! {
    #![proptest_config(merge_cases())]

    #[test]
    fn copies_of_one_history_merge_lawfully(steps in steps()) {
        let copies = history(&steps);
        for copy in &copies {
            prop_assert_eq!(copy.validate(), Ok(()), "what nodes write is valid");
        }
        check_laws(&copies);
    }

    #[test]
    fn any_copies_merge_lawfully(a in arbitrary_record(), b in arbitrary_record(), c in arbitrary_record()) {
        check_laws(&[a, b, c]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: merge_cases().cases / 10, ..merge_cases() })]

    #[test]
    fn a_record_survives_its_encoding(steps in steps()) {
        for copy in history(&steps) {
            let packed = rmp_serde::to_vec_named(&copy).unwrap();
            let unpacked: Record = rmp_serde::from_slice(&packed).unwrap();
            prop_assert_eq!(unpacked.version(), copy.version());
            prop_assert_eq!(unpacked, copy);
        }
    }

    #[test]
    fn knowing_more_never_takes_an_end_back(steps in steps()) {
        let copies = history(&steps);
        let all = merged(&merged(&copies[0], &copies[1]), &copies[2]);
        let ended = |copy: &Record| copy.attempts.values().any(|attempt| attempt.fate.phase == Phase::Succeeded);
        if copies.iter().any(ended) {
            prop_assert_eq!(all.state(), JobState::Succeeded);
        }
        for copy in &copies {
            for (dot, attempt) in &copy.attempts {
                prop_assert!(all.attempts[dot].fate >= attempt.fate);
            }
        }
        prop_assert!(copies.iter().all(|copy| all.stop >= copy.stop));
    }

    #[test]
    fn attempts_in_turn_never_overlap(ends in prop::collection::vec((any::<bool>(), 0_usize..3, 0_u8..4), 1..6)) {
        let mut owner = Writer { actor: actor(0, 1), next_write: 2, copy: new_record() };
        let mut executors: Vec<Writer> = (1..4).map(|node| Writer { actor: actor(node, 1), ..owner.clone() }).collect();
        for (at, (starts, executor, end)) in ends.into_iter().enumerate() {
            let time = Timestamp(at as u64);
            let executor = &mut executors[executor];
            let claim = owner.next_dot();
            owner.copy.claim(claim, executor.actor, time);
            executor.copy.merge(&owner.copy);
            if starts {
                let dot = executor.next_dot();
                executor.copy.start(dot, claim, time);
            }
            let phase = [Phase::Returned, Phase::Failed, Phase::Stopped, Phase::Succeeded][usize::from(end)];
            let (dot, reason) = (executor.next_dot(), String::new());
            executor.copy.advance(claim, Fate { phase, by_executor: true, dot, at: time, exit: None, reason });
            owner.copy.merge(&executor.copy);
        }
        prop_assert_eq!(owner.copy.overlaps(), vec![]);
    }
}

/// A record with one attempt on each executor: claimed by the same owner without knowing of the other's end.
fn two_attempts(started: [bool; 2]) -> (Record, [Dot; 2]) {
    let claims = [2, 3].map(|counter| Dot { actor: actor(0, 1), counter });
    let mut record = new_record();
    for (at, claim) in claims.into_iter().enumerate() {
        record.claim(claim, actor(1 + at, 1), Timestamp(1));
        if started[at] {
            record.start(Dot { actor: actor(1 + at, 1), counter: 1 }, claim, Timestamp(2));
        }
    }
    (record, claims)
}

fn observed_loss(dot: Dot) -> Fate {
    Fate { phase: Phase::Lost, by_executor: false, dot, at: Timestamp(3), exit: None, reason: String::new() }
}

#[test]
fn two_that_run_at_once_overlap_for_certain() {
    let (record, [first, second]) = two_attempts([true, true]);
    assert_eq!(record.overlaps(), [Overlap { first, second, certain: true }]);
    let (record, _) = two_attempts([true, false]);
    assert_eq!(record.overlaps(), [], "what was only claimed did not run");
}

#[test]
fn a_lost_attempt_may_overlap_its_successor_until_its_executor_speaks() {
    let (mut record, [first, second]) = two_attempts([true, true]);
    let observer = |counter| Dot { actor: actor(0, 1), counter };
    record.advance(first, observed_loss(observer(4)));
    assert_eq!(record.overlaps(), [Overlap { first, second, certain: false }]);
    let word = Dot { actor: actor(1, 1), counter: 2 };
    record.advance(first, Fate { phase: Phase::Failed, by_executor: true, ..observed_loss(word) });
    assert_eq!(record.overlaps(), [Overlap { first, second, certain: true }], "it lived and ran on");
}

#[test]
fn the_executors_word_overrules_the_opinion_that_it_is_lost() {
    for phase in [Phase::Lost, Phase::Returned, Phase::Failed, Phase::Stopped, Phase::Succeeded] {
        let (mut opinion, [claim, _]) = two_attempts([true, false]);
        let mut word = opinion.clone();
        opinion.advance(claim, observed_loss(Dot { actor: actor(0, 1), counter: 4 }));
        let dot = Dot { actor: actor(1, 1), counter: 2 };
        let said = Fate { phase, by_executor: true, ..observed_loss(dot) };
        word.advance(claim, said.clone());
        assert_eq!(merged(&opinion, &word).attempts[&claim].fate, said);
        assert_eq!(merged(&word, &opinion).attempts[&claim].fate, said);
    }
}

#[test]
fn the_result_is_that_of_the_attempt_that_succeeded_or_else_the_last_before_it() {
    let (mut record, [first, second]) = two_attempts([true, true]);
    let mut counter = 10;
    let mut dot = || {
        counter += 1;
        Dot { actor: actor(0, 1), counter }
    };
    let shown = |record: &Record| record.result().map(|(attempt, result)| (attempt.claim.number, result.blob()));
    assert_eq!(shown(&record), None);
    record.leave(dot(), first, Some(Outcome::posted(1, blob(1))), Tails::default());
    record.leave(dot(), first, Some(Outcome::posted(2, blob(2))), Tails::default());
    assert_eq!(shown(&record), Some((1, blob(2))), "the last that it posted");
    let mut succeeded = observed_loss(dot());
    (succeeded.phase, succeeded.by_executor) = (Phase::Succeeded, true);
    let mut silent = record.clone();
    silent.advance(second, succeeded.clone());
    assert_eq!(shown(&silent), Some((1, blob(2))), "the one that succeeded said nothing");
    record.leave(dot(), second, Some(Outcome::posted(1, blob(3))), Tails::default());
    assert_eq!(shown(&record), Some((2, blob(3))), "while both run, that of the newer");
    record.advance(first, succeeded);
    assert_eq!(shown(&record), Some((1, blob(2))), "the one that succeeded counts, whatever others said");
}

#[test]
fn two_starts_of_one_node_never_overlap() {
    let claims = [2, 3].map(|counter| Dot { actor: actor(0, 1), counter });
    let mut record = new_record();
    record.claim(claims[0], actor(1, 1), Timestamp(1));
    record.start(Dot { actor: actor(1, 1), counter: 1 }, claims[0], Timestamp(2));
    record.advance(claims[0], observed_loss(Dot { actor: actor(0, 1), counter: 4 }));
    record.claim(claims[1], actor(1, 2), Timestamp(4));
    record.start(Dot { actor: actor(1, 2), counter: 1 }, claims[1], Timestamp(5));
    assert_eq!(record.overlaps(), [], "the earlier start's pods were ended before the later one began");
}

#[test]
fn an_end_that_is_told_late_and_by_a_clock_neither_proves_an_overlap_nor_that_there_was_none() {
    for (phase, ended_at) in [(Phase::Lost, 1_000), (Phase::Lost, 5_000), (Phase::Returned, 1_000)] {
        let (mut record, [first, second]) = two_attempts([true, true]);
        let dot = Dot { actor: actor(1, 2), counter: 1 };
        let (at, exit) = (Timestamp(ended_at), Some(Exit::KILLED));
        record.advance(first, Fate { phase, by_executor: true, at, exit, ..observed_loss(dot) });
        assert_eq!(record.overlaps(), [Overlap { first, second, certain: false }]);
    }
}

#[test]
fn a_restart_that_owns_up_makes_no_overlap_certain() {
    let (mut record, [first, second]) = two_attempts([true, true]);
    let dot = Dot { actor: actor(1, 2), counter: 1 };
    record.advance(first, Fate { by_executor: true, ..observed_loss(dot) });
    assert_eq!(record.overlaps(), [Overlap { first, second, certain: false }], "it may have died before");
}

// ---- The ring ------------------------------------------------------------------------------------------------

const PARTITIONS: u32 = 256;

fn facts(node: u32, weight: u16) -> Facts {
    let addr = "127.0.0.1:1".parse().unwrap();
    Facts {
        node: NodeId(node),
        name: format!("n{node}"),
        generation: Generation(1),
        incarnation: Incarnation(0),
        cluster_addr: addr,
        http_addr: addr,
        status: Status::Serving,
        revision: 0,
        capacity: Resources::default(),
        weight,
        load: Load::default(),
        labels: BTreeMap::new(),
        drivers: BTreeSet::from([Driver::Process]),
        held: PartitionSet::default(),
        ring: Fingerprint::default(),
        cluster: ClusterSettings {
            name: "laws".into(),
            partitions: PARTITIONS,
            replicas: 3,
            forget_after: Duration::from_secs(60),
        },
        wire_version: WIRE_VERSION,
        version: String::new(),
        suspicions: BTreeMap::new(),
        departed: BTreeMap::new(),
        dismissed: BTreeMap::new(),
    }
}

fn view_of(members: impl IntoIterator<Item = (u32, u16)>) -> View {
    let member = |(node, weight)| {
        let member = Member { facts: facts(node, weight), state: MemberState::Alive, since: Moment::START };
        (NodeId(node), member)
    };
    members.into_iter().map(member).collect()
}

fn equal_view(nodes: &BTreeSet<u32>) -> View {
    view_of(nodes.iter().map(|node| (*node, 1)))
}

fn some_nodes(range: std::ops::Range<usize>) -> impl Strategy<Value = BTreeSet<u32>> {
    prop::collection::btree_set(any::<u32>(), range)
}

fn lists(placement: &Placement) -> Vec<(Vec<NodeId>, Vec<NodeId>)> {
    let lists = |partition| (placement.home(partition).to_vec(), placement.acting(partition).to_vec());
    placement.all().map(lists).collect()
}

proptest! {
    #![proptest_config(ring_cases())]

    #[test]
    fn a_newcomer_only_pushes_others_back(nodes in some_nodes(1..9), newcomer in any::<u32>(), replicas in 1_u32..5) {
        prop_assume!(!nodes.contains(&newcomer));
        let before = Placement::new(&equal_view(&nodes), PARTITIONS, replicas);
        let mut with = nodes.clone();
        with.insert(newcomer);
        let after = Placement::new(&equal_view(&with), PARTITIONS, replicas);
        for partition in before.all() {
            let mut others: Vec<NodeId> = after.home(partition).to_vec();
            others.retain(|node| *node != NodeId(newcomer));
            prop_assert_eq!(&others[..], &before.home(partition)[..others.len()]);
            prop_assert!(before.home(partition).len() - others.len() <= 1);
        }
    }

    #[test]
    fn lists_have_as_many_distinct_nodes_as_there_can_be(nodes in some_nodes(1..7), replicas in 1_u32..6) {
        let placement = Placement::new(&equal_view(&nodes), PARTITIONS, replicas);
        let length = nodes.len().min(replicas as usize);
        for (home, acting) in lists(&placement) {
            prop_assert_eq!(home.len(), length);
            prop_assert_eq!(home.iter().collect::<BTreeSet<_>>().len(), length);
            prop_assert_eq!(home, acting);
        }
        let walk = placement.walk(JobId(u128::from(replicas)));
        prop_assert_eq!(walk.len(), nodes.len());
        prop_assert_eq!(walk.into_iter().map(|node| node.0).collect::<BTreeSet<_>>(), nodes);
    }

    #[test]
    fn a_death_changes_no_home_list_and_is_skipped(nodes in some_nodes(2..8), pick in any::<prop::sample::Index>()) {
        let mut view = equal_view(&nodes);
        let before = Placement::new(&view, PARTITIONS, 3);
        let dead = NodeId(*pick.get(&nodes.iter().copied().collect::<Vec<_>>()));
        for (state, status) in [
            (MemberState::Down, Status::Serving),
            (MemberState::Alive, Status::Returning),
            (MemberState::Alive, Status::ReadOnly),
        ] {
            let member = view.get_mut(&dead).expect("it is one of them");
            (member.state, member.facts.status) = (state, status);
            let after = Placement::new(&view, PARTITIONS, 3);
            for partition in before.all() {
                prop_assert_eq!(before.home(partition), after.home(partition));
                let mut expected = before.acting(partition).to_vec();
                expected.retain(|node| *node != dead);
                prop_assert_eq!(&after.acting(partition)[..expected.len()], &expected[..]);
                prop_assert_eq!(after.acting(partition).len(), 3.min(nodes.len() - 1));
                prop_assert!(!after.acting(partition).contains(&dead));
            }
            prop_assert_ne!(before.fingerprint(), after.fingerprint());
        }
    }

    #[test]
    fn those_who_leave_drain_or_join_have_no_place(nodes in some_nodes(2..8), pick in any::<prop::sample::Index>()) {
        let mut view = equal_view(&nodes);
        let gone = NodeId(*pick.get(&nodes.iter().copied().collect::<Vec<_>>()));
        let mut rest = view.clone();
        rest.remove(&gone);
        let without = Placement::new(&rest, PARTITIONS, 3);
        for (state, status) in [
            (MemberState::Left, Status::Left),
            (MemberState::Alive, Status::Draining),
            (MemberState::Alive, Status::Joining),
        ] {
            let member = view.get_mut(&gone).expect("it is one of them");
            (member.state, member.facts.status) = (state, status);
            let placement = Placement::new(&view, PARTITIONS, 3);
            prop_assert_eq!(lists(&placement), lists(&without));
            prop_assert_eq!(placement.fingerprint(), without.fingerprint());
        }
    }

    #[test]
    fn whoever_sees_the_same_computes_the_same(members in prop::collection::btree_map(any::<u32>(), 1_u16..4, 1..7)) {
        let forwards = view_of(members.iter().map(|(node, weight)| (*node, *weight)));
        let backwards = view_of(members.iter().rev().map(|(node, weight)| (*node, *weight)));
        let (first, second) = (Placement::new(&forwards, 64, 3), Placement::new(&backwards, 64, 3));
        prop_assert_eq!(first.fingerprint(), second.fingerprint());
        prop_assert_eq!(lists(&first), lists(&second));
    }
}

#[test]
fn when_nobody_else_is_left_those_who_drain_keep_what_they_have() {
    let mut view = equal_view(&BTreeSet::from([1, 2]));
    for member in view.values_mut() {
        member.facts.status = Status::Draining;
    }
    let placement = Placement::new(&view, PARTITIONS, 3);
    assert!(placement.all().all(|partition| placement.acting(partition).len() == 2));
    view.get_mut(&NodeId(1)).unwrap().state = MemberState::Down;
    let placement = Placement::new(&view, PARTITIONS, 3);
    assert!(placement.all().all(|partition| placement.acting(partition) == [NodeId(2)]));
}

/// Clusters that are the same in every run, so that a bound on a share is a fact and not a chance.
fn fixed_clusters(size: u32) -> impl Iterator<Item = BTreeSet<u32>> {
    (0..12_u32).map(move |cluster| (0..size).map(|node| (cluster * 1_000 + node).wrapping_mul(0x9e37_79b9)).collect())
}

#[test]
fn a_newcomer_takes_about_one_part_in_n() {
    for size in [3, 8, 15] {
        let mut shares = Vec::new();
        for nodes in fixed_clusters(size) {
            let view = equal_view(&nodes);
            let mut without = view.clone();
            let newcomer = without.pop_first().expect("there are several").0;
            let (before, after) = (Placement::new(&without, 1_024, 1), Placement::new(&view, 1_024, 1));
            let moved: Vec<Partition> = after.all().filter(|p| before.home(*p) != after.home(*p)).collect();
            assert!(moved.iter().all(|partition| after.owner(*partition) == Some(newcomer)));
            shares.push(moved.len() as f64 / 1_024.0 * f64::from(size));
        }
        let mean = shares.iter().sum::<f64>() / shares.len() as f64;
        assert!((0.8..1.25).contains(&mean), "of {size}: {shares:?}");
        assert!(shares.iter().all(|share| (0.4..2.0).contains(share)), "of {size}: {shares:?}");
    }
}

#[test]
fn shares_follow_weights() {
    let mut ratios = Vec::new();
    for nodes in fixed_clusters(5) {
        let heavy = *nodes.first().expect("there are several");
        let view = view_of(nodes.iter().map(|node| (*node, if *node == heavy { 4 } else { 1 })));
        let placement = Placement::new(&view, 1_024, 3);
        let owned = placement.all().filter(|partition| placement.owner(*partition) == Some(NodeId(heavy))).count();
        ratios.push(owned as f64 / (1_024.0 * 4.0 / 8.0));
    }
    let mean = ratios.iter().sum::<f64>() / ratios.len() as f64;
    assert!((0.9..1.1).contains(&mean), "{ratios:?}");
    assert!(ratios.iter().all(|ratio| (0.7..1.3).contains(ratio)), "{ratios:?}");
}

#[test]
fn a_checkpoint_gives_way_only_to_one_that_continues_more() {
    let mut record = new_record();
    let claim_by = |record: &mut Record, counter, node| {
        let dot = Dot { actor: actor(0, 1), counter };
        record.claim(dot, actor(node, 1), Timestamp(counter));
        dot
    };
    let save = |record: &mut Record, counter, claim: Dot, serial| {
        let attempt = &record.attempts[&claim].claim;
        let (chain, number, node) = (attempt.chain(), attempt.number, attempt.executor.node);
        let (dot, blob) = (Dot { actor: actor(node.0 as usize, 1), counter }, blob(counter as usize));
        record.save_checkpoint(dot, Checkpoint { chain, number, node, serial, claim, blob, saved_at: Timestamp(1) })
    };
    let first = claim_by(&mut record, 2, 1);
    assert!(save(&mut record, 1, first, 1) && save(&mut record, 2, first, 2));
    let cut_off = record.clone();
    let second = claim_by(&mut record, 3, 2);
    assert_eq!(record.attempts[&second].claim.resumed_from, Some(0));
    assert!(save(&mut record, 1, second, 1), "what continues a checkpoint comes after it");

    // The first attempt, out of touch, goes on saving. However much it does, it changes nothing.
    let mut cut_off = cut_off;
    assert!(save(&mut cut_off, 3, first, 50));
    let merged = merged(&cut_off, &record);
    assert_eq!(merged.checkpoint, record.checkpoint);
    assert_eq!(merged.blobs().len(), 1, "only the newest is kept");
}

#[test]
fn what_an_older_version_wrote_is_still_read() {
    let mut record = new_record();
    record.claim(Dot { actor: actor(0, 1), counter: 2 }, actor(1, 1), Timestamp(2));
    // Field names are written out, so what is not in there was not written, and an older reader or writer agrees.
    let packed = rmp_serde::to_vec_named(&record).unwrap();
    for added in ["checkpoint", "progress", "result", "tails", "resumed_from"] {
        let is_written = packed.windows(added.len()).any(|part| part == added.as_bytes());
        assert!(!is_written, "{added} is written only where there is one");
    }
    assert_eq!(rmp_serde::from_slice::<Record>(&packed).unwrap(), record);
}
