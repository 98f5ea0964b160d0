use super::*;

const ME: NodeId = NodeId(1);
const GENERATION: Generation = Generation(9);

fn addr(node: NodeId) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, node.0 as u8], 7_000))
}

fn at(ms: u64) -> Moment {
    Moment::from_start(Duration::from_millis(ms))
}

fn watching(others: &[u32]) -> FailureDetector {
    let mut detector = FailureDetector::new(Moment::START, "c", ME, GENERATION, &Timing::default(), 7);
    for node in others.iter().map(|other| NodeId(*other)) {
        let target = Target { addr: addr(node), generation: GENERATION, standing: Standing::Trusted, suspected: None };
        detector.set_target(node, target);
    }
    detector
}

fn outputs(detector: &mut FailureDetector) -> Vec<DetectorOutput> {
    std::iter::from_fn(|| detector.poll_output()).collect()
}

/// The pings among `outputs`: to whom, and their numbers.
fn pings(outputs: &[DetectorOutput]) -> Vec<(NodeId, u64)> {
    outputs
        .iter()
        .filter_map(|output| match output {
            DetectorOutput::Send { to, probe: Probe { body: ProbeBody::Ping { seq, .. }, .. }, .. } => {
                Some((*to, *seq))
            }
            DetectorOutput::Send { .. } | DetectorOutput::Found(_) => None,
        })
        .collect()
}

fn found(outputs: &[DetectorOutput]) -> Vec<Finding> {
    outputs
        .iter()
        .filter_map(|output| match output {
            DetectorOutput::Found(finding) => Some(finding.clone()),
            DetectorOutput::Send { .. } => None,
        })
        .collect()
}

fn ack(from: NodeId, seq: u64) -> Probe {
    let body = ProbeBody::Ack { seq, generation: GENERATION, incarnation: Incarnation(0) };
    Probe { cluster: "c".to_owned(), from, generation: GENERATION, to: ME, body }
}

fn nack(from: NodeId, seq: u64) -> Probe {
    Probe { body: ProbeBody::Nack { seq }, ..ack(from, seq) }
}

/// Lets time pass up to `until`, without an answer from anybody.
fn pass(detector: &mut FailureDetector, until: Moment) -> Vec<DetectorOutput> {
    let mut all = outputs(detector);
    while detector.poll_timeout() <= until {
        let due = detector.poll_timeout();
        detector.handle_timeout(due);
        all.extend(outputs(detector));
    }
    all
}

#[test]
fn everybody_is_probed_once_before_anybody_is_probed_twice() {
    let mut detector = watching(&[2, 3, 4, 5, 6]);
    let mut order = Vec::new();
    while order.len() < 15 {
        let due = detector.poll_timeout();
        detector.handle_timeout(due);
        for (node, seq) in pings(&outputs(&mut detector)) {
            detector.handle_probe(due, addr(node), ack(node, seq), false);
            order.push(node);
        }
    }
    for round in order.chunks(5) {
        let distinct: std::collections::BTreeSet<_> = round.iter().collect();
        assert_eq!(distinct.len(), 5, "{round:?}");
    }
}

#[test]
fn an_answer_counts_only_from_whom_was_asked() {
    let mut detector = watching(&[2]);
    detector.look(at(10), NodeId(2), Duration::ZERO, false);
    let (_, seq) = pings(&outputs(&mut detector))[0];
    detector.handle_probe(at(11), addr(NodeId(3)), ack(NodeId(3), seq), false);
    detector.handle_probe(at(11), addr(NodeId(2)), ack(NodeId(2), seq.wrapping_add(77)), false);
    assert_eq!(found(&outputs(&mut detector)), []);
    detector.handle_probe(at(11), addr(NodeId(2)), ack(NodeId(2), seq), false);
    assert_eq!(found(&outputs(&mut detector)).len(), 1);
    // And once.
    detector.handle_probe(at(12), addr(NodeId(2)), ack(NodeId(2), seq), false);
    assert_eq!(found(&outputs(&mut detector)), []);
}

#[test]
fn silence_is_found_only_after_the_second_and_the_third_way() {
    let mut detector = watching(&[2, 3, 4]);
    detector.look(at(0), NodeId(2), Duration::ZERO, false);
    let all = pass(&mut detector, at(380));
    let by_link =
        all.iter().filter(|output| matches!(output, DetectorOutput::Send { to: NodeId(2), by_link: true, .. }));
    assert_eq!(by_link.count(), 1);
    let asked = all.iter().filter(|output| {
        let is_request = |probe: &Probe| matches!(probe.body, ProbeBody::PingReq { target: NodeId(2), .. });
        matches!(output, DetectorOutput::Send { probe, .. } if is_request(probe))
    });
    assert_eq!(asked.count(), 2, "both others are asked");
    assert_eq!(found(&all), []);
    let silent = Finding::Silent { node: NodeId(2), generation: GENERATION };
    assert!(found(&pass(&mut detector, at(410))).contains(&silent));
}

#[test]
fn helpers_that_say_nothing_at_all_make_a_node_doubt_itself() {
    let health_after = |helpers_answer: bool| {
        let mut detector = watching(&[2, 3, 4]);
        detector.look(at(0), NodeId(2), Duration::ZERO, false);
        let mut seq_of_request = None;
        for output in pass(&mut detector, at(160)) {
            if let DetectorOutput::Send { probe: Probe { body: ProbeBody::PingReq { seq, .. }, .. }, .. } = output {
                seq_of_request = Some(seq);
            }
        }
        for helper in [NodeId(3), NodeId(4)].into_iter().filter(|_| helpers_answer) {
            detector.handle_probe(at(200), addr(helper), nack(helper, seq_of_request.unwrap()), false);
        }
        while !found(&outputs(&mut detector)).iter().any(|f| matches!(f, Finding::Silent { node: NodeId(2), .. })) {
            let due = detector.poll_timeout();
            detector.handle_timeout(due);
        }
        detector.health()
    };
    assert_eq!(health_after(true), 0);
    assert!(health_after(false) >= 2);
}

#[test]
fn what_was_heard_saves_one_probe_and_not_two() {
    let mut detector = watching(&[2]);
    detector.look(at(0), NodeId(2), Duration::ZERO, false);
    detector.handle_heard(at(100), NodeId(2));
    let mut all = pass(&mut detector, at(401));
    assert_eq!(found(&all), []);
    assert_eq!(detector.counters().saved_by_hearing, 1);
    while found(&all).is_empty() {
        let due = detector.poll_timeout();
        detector.handle_timeout(due);
        detector.handle_heard(due, NodeId(2));
        all.extend(outputs(&mut detector));
    }
    assert_eq!(detector.counters().saved_by_hearing, 1);
}

#[test]
fn a_helper_passes_on_what_it_hears_and_says_when_it_hears_nothing() {
    let mut detector = watching(&[2, 3]);
    let request = |seq, target: u32| {
        let target = NodeId(target);
        Probe { body: ProbeBody::PingReq { seq, target, target_addr: addr(target) }, ..ack(NodeId(2), seq) }
    };
    detector.handle_probe(at(0), addr(NodeId(2)), request(5, 3), false);
    let (to, seq) = pings(&outputs(&mut detector))[0];
    assert_eq!(to, NodeId(3));
    let all = pass(&mut detector, at(140));
    let nacks = |all: &[DetectorOutput]| {
        let is_nack = |probe: &Probe| probe.body == ProbeBody::Nack { seq: 5 } && probe.to == NodeId(2);
        all.iter().filter(|output| matches!(output, DetectorOutput::Send { probe, .. } if is_nack(probe))).count()
    };
    assert_eq!(nacks(&all), 1);
    // Late, but better than never.
    detector.handle_probe(at(150), addr(NodeId(3)), ack(NodeId(3), seq), false);
    let passed_on = outputs(&mut detector).into_iter().any(|output| {
        matches!(
            output,
            DetectorOutput::Send {
                to: NodeId(2),
                probe: Probe { body: ProbeBody::IndirectAck { seq: 5, .. }, .. },
                ..
            }
        )
    });
    assert!(passed_on);
}

#[test]
fn requests_beyond_a_bound_are_ignored() {
    let mut detector = watching(&[2]);
    for seq in 0..10_000 {
        let target = NodeId(3);
        let body = ProbeBody::PingReq { seq, target, target_addr: addr(target) };
        detector.handle_probe(at(1), addr(NodeId(2)), Probe { body, ..ack(NodeId(2), 0) }, false);
    }
    assert_eq!(detector.relays.len(), MOST_RELAYS);
    assert_eq!(outputs(&mut detector).len(), MOST_RELAYS);
    pass(&mut detector, at(10_000));
    assert!(detector.relays.is_empty());
}

#[test]
fn a_member_that_usually_takes_long_is_waited_for() {
    let mut detector = watching(&[2]);
    let mut now = at(0);
    for _ in 0..10 {
        detector.look(now, NodeId(2), Duration::ZERO, false);
        let (_, seq) = pings(&outputs(&mut detector))[0];
        now = now + Duration::from_millis(300);
        detector.handle_probe(now, addr(NodeId(2)), ack(NodeId(2), seq), false);
        outputs(&mut detector);
    }
    assert!(detector.patience(NodeId(2)) > Duration::from_millis(300));
    assert!(detector.patience(NodeId(2)) <= Timing::default().probe_interval * MOST_PATIENCE);
}
