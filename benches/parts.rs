//! What the parts cost: the ring, merging, digests, the codecs, records at rest, and a Peer's whole loop without any IO.
//!
//! ```text
//! cargo bench --bench parts -- [WORD]
//! ```
//!
//! The figures are times on whatever machine this is, good for telling one version of a part from the next. What they
//! come to on a real node, next to what the machine allows, is told by `cargo bench --bench cluster`.
#![allow(clippy::unwrap_used, reason = "a benchmark stops at what it cannot do")]

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use flockwork::model::attempt::{Exit, Fate, Phase};
use flockwork::model::config::{Config, Profile};
use flockwork::model::id::{Actor, Dot, Generation, Incarnation, JobId, NodeId, Partition};
use flockwork::model::member::{
    Facts, Fingerprint, Load, Member, MemberState, PartitionSet, Status, View, WIRE_VERSION,
};
use flockwork::model::packed::{PackedRecord, Packer};
use flockwork::model::record::{Record, Submission};
use flockwork::model::request::{Draft, Filter};
use flockwork::model::resources::{Cpus, Memory, Resources};
use flockwork::model::ring::Placement;
use flockwork::model::spec::Spec;
use flockwork::model::time::{Moment, Now, Timestamp};
use flockwork::model::wire::{Frame, Message};
use flockwork::protocol::effect::{Commit, Effect, Leavings, PodEnd, PodEvent};
use flockwork::protocol::former::FormerEnds;
use flockwork::protocol::gateway::{Ask, AskId};
use flockwork::protocol::peer::{Peer, Start};
use flockwork::protocol::records::Records;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const PARTITIONS: u32 = 1_024;
const REPLICAS: u32 = 3;
const START: Timestamp = Timestamp(1_750_000_000_000);

fn main() {
    divan::main();
}

fn actor(node: u32) -> Actor {
    Actor { node: NodeId(node), generation: Generation(1_750_000_000) }
}

fn dot(node: u32, counter: u64) -> Dot {
    Dot { actor: actor(node), counter }
}

fn dice() -> StdRng {
    StdRng::seed_from_u64(7)
}

fn random_id(dice: &mut StdRng) -> JobId {
    JobId(u128::from(dice.next_u64()) << 64 | u128::from(dice.next_u64()))
}

fn no_op() -> Spec {
    Spec { command: vec!["/bin/true".into()], ..Spec::default() }
}

/// Of a job that was submitted, and no more.
fn waiting(id: JobId, number: u64) -> Record {
    let submission = Submission {
        spec: no_op(),
        submitted_at: START + Duration::from_millis(number),
        gateway: NodeId(1),
        home: vec![NodeId(1), NodeId(2), NodeId(3)],
        retry_of: None,
    };
    Record::new(id, Arc::new(submission), dot(1, number * 4 + 1))
}

/// Of a job whose one attempt succeeded.
fn ended(id: JobId, number: u64) -> Record {
    let mut record = waiting(id, number);
    let (claim, at) = (dot(1, number * 4 + 2), START + Duration::from_millis(number + 5));
    record.claim(claim, actor(2), at);
    record.start(dot(2, number * 4 + 3), claim, at);
    let (phase, exit, end) = (Phase::Succeeded, Some(Exit::Code(0)), dot(2, number * 4 + 4));
    record.advance(claim, Fate { phase, by_executor: true, dot: end, at, exit, reason: String::new() });
    record
}

fn facts(node: u32, config: &Config) -> Facts {
    let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, 1 + node as u16));
    Facts {
        node: NodeId(node),
        name: format!("n{node}"),
        generation: actor(node).generation,
        incarnation: Incarnation::default(),
        cluster_addr: addr,
        http_addr: addr,
        status: Status::Joining,
        revision: 0,
        capacity: config.capacity,
        weight: config.weight,
        load: Load::default(),
        labels: BTreeMap::new(),
        drivers: config.drivers.clone(),
        held: PartitionSet::default(),
        ring: Fingerprint::default(),
        cluster: config.cluster.clone(),
        wire_version: WIRE_VERSION,
        version: String::new(),
        suspicions: BTreeMap::new(),
        departed: BTreeMap::new(),
        dismissed: BTreeMap::new(),
    }
}

fn config() -> Config {
    let capacity = Resources { cpus: Cpus::whole(64), memory: Memory { bytes: 1 << 40 }, slots: 64 };
    let config = Config::new(Profile::Local, capacity);
    let cluster = flockwork::model::member::ClusterSettings { replicas: 1, ..config.cluster.clone() };
    Config { cluster, ..config }
}

mod ring {
    use super::*;

    fn view(members: u32) -> View {
        let config = config();
        let member = |node| {
            let facts = Facts { status: Status::Serving, ..facts(node, &config) };
            (facts.node, Member { facts, state: MemberState::Alive, since: Moment::START })
        };
        (0..members).map(member).collect()
    }

    /// From nothing, with the lists of all partitions.
    #[divan::bench(args = [3, 10, 100, 1_000])]
    fn new(bencher: Bencher<'_, '_>, members: u32) {
        let view = view(members);
        bencher.bench(|| Placement::new(black_box(&view), PARTITIONS, REPLICAS));
    }

    /// After one member's death: the circle is kept.
    #[divan::bench(args = [3, 10, 100, 1_000])]
    fn after_a_death(bencher: Bencher<'_, '_>, members: u32) {
        let mut view = view(members);
        let before = Placement::new(&view, PARTITIONS, REPLICAS);
        view.get_mut(&NodeId(1)).unwrap().state = MemberState::Down;
        bencher.bench(|| before.after(black_box(&view), REPLICAS));
    }

    /// Whom to offer a job to.
    #[divan::bench(args = [3, 100])]
    fn walk(bencher: Bencher<'_, '_>, members: u32) {
        let placement = Placement::new(&view(members), PARTITIONS, REPLICAS);
        let mut dice = dice();
        bencher.with_inputs(|| random_id(&mut dice)).bench_local_values(|job| placement.walk(job));
    }
}

mod record {
    use super::*;

    /// A copy that knows the end comes to one that knows the claim.
    #[divan::bench]
    fn merge(bencher: Bencher<'_, '_>) {
        let ended = ended(JobId(1), 1);
        bencher.with_inputs(|| waiting(JobId(1), 1)).bench_local_refs(|record| record.merge(black_box(&ended)));
    }

    #[divan::bench]
    fn clone(bencher: Bencher<'_, '_>) {
        let ended = ended(JobId(1), 1);
        bencher.bench(|| Record::clone(black_box(&ended)));
    }

    /// Encoded and hashed, once for every change.
    #[divan::bench]
    fn version(bencher: Bencher<'_, '_>) {
        let ended = ended(JobId(1), 1);
        bencher.bench(|| black_box(&ended).version());
    }

    #[divan::bench]
    fn pack(bencher: Bencher<'_, '_>) {
        let (ended, mut packer) = (ended(JobId(1), 1), Packer::default());
        bencher.bench_local(|| packer.pack(black_box(&ended)));
    }

    #[divan::bench]
    fn unpack(bencher: Bencher<'_, '_>) {
        let packed = PackedRecord::from(&ended(JobId(1), 1));
        bencher.bench(|| black_box(&packed).unpack());
    }
}

mod codec {
    use super::*;

    /// As many records as fit into one push.
    fn push() -> Frame {
        let mut dice = dice();
        let records = (0..256).map(|number| Arc::new(ended(random_id(&mut dice), number))).collect();
        Frame::Message(Message::Push { seq: 1, records, blobs: Vec::new(), lacking: Vec::new(), known_for: Vec::new() })
    }

    #[divan::bench]
    fn encode_push_of_256(bencher: Bencher<'_, '_>) {
        let push = push();
        let bytes = rmp_serde::to_vec_named(&push).unwrap().len();
        bencher.counter(BytesCount::new(bytes)).bench(|| rmp_serde::to_vec_named(black_box(&push)).unwrap());
    }

    #[divan::bench]
    fn decode_push_of_256(bencher: Bencher<'_, '_>) {
        let encoded = rmp_serde::to_vec_named(&push()).unwrap();
        let bytes = BytesCount::new(encoded.len());
        bencher.counter(bytes).bench(|| rmp_serde::from_slice::<Frame>(black_box(&encoded)).unwrap());
    }
}

mod records {
    use super::*;

    fn known(count: u64) -> Records {
        let mut dice = dice();
        let stored = (0..count).map(|number| PackedRecord::from(&ended(random_id(&mut dice), number))).collect();
        Records::load(PARTITIONS, stored, Moment::START, |_, _| Moment::START)
    }

    /// A change of one of a hundred thousand, with all indexes and the digest.
    #[divan::bench]
    fn put(bencher: Bencher<'_, '_>) {
        let (mut records, mut dice, mut number) = (known(100_000), dice(), 0);
        bencher
            .with_inputs(|| {
                number += 1;
                Arc::new(ended(random_id(&mut dice), number))
            })
            .bench_local_values(|record| records.put(Moment::START, record));
    }

    /// The newest hundred of a hundred thousand.
    #[divan::bench]
    fn first_page(bencher: Bencher<'_, '_>) {
        let records = known(100_000);
        let all = records.partitions_held();
        bencher.bench(|| records.list(black_box(&Filter::default()), None, 100, all));
    }

    /// One that is not there, by name, among a hundred thousand: nothing is unpacked.
    #[divan::bench]
    fn page_of_a_name_that_none_has(bencher: Bencher<'_, '_>) {
        let records = known(100_000);
        let all = records.partitions_held();
        let filter = Filter { name: Some("nightly".into()), ..Filter::default() };
        bencher.bench(|| records.list(black_box(&filter), None, 100, all));
    }

    /// What is compared with another node, of all partitions.
    #[divan::bench]
    fn digests(bencher: Bencher<'_, '_>) {
        let records = known(100_000);
        bencher.bench(|| (0..PARTITIONS as u16).map(|at| records.digest(Partition(at), 0)).max());
    }
}

mod peer {
    use super::*;

    /// A node on its own, with a disk that takes no time and pods that end at once.
    struct World {
        peer: Peer,
        now: Now,
        next_ask: u64,
        replies: usize,
        /// The commit under way, if any, and what has happened since.
        under_way: Option<Commit>,
        ended: usize,
    }

    impl World {
        fn new() -> Self {
            let config = config();
            let facts = facts(1, &config);
            let now = Now { moment: Moment::START, wall: START };
            let start = Start {
                config,
                facts,
                has_seeds: false,
                records: Vec::new(),
                known_at: BTreeMap::new(),
                blobs: Vec::new(),
                members: Vec::new(),
                former_ends: FormerEnds::default(),
                seed: 1,
            };
            let peer = Peer::new(now, start);
            let mut world = Self { peer, now, next_ask: 1, replies: 0, under_way: None, ended: 0 };
            while world.peer.snapshot(world.now).not_ready.is_some() {
                world.wait();
            }
            world
        }

        /// Until whatever comes next.
        fn wait(&mut self) {
            let next = self.peer.poll_timeout().unwrap();
            let passes = next.since(self.now.moment);
            self.now = Now { moment: self.now.moment + passes, wall: self.now.wall + passes };
            self.peer.handle_timeout(self.now);
            self.work();
        }

        /// Until nothing is left to do, without any time passing.
        fn work(&mut self) {
            loop {
                let mut pods = Vec::new();
                while let Some(effect) = self.peer.poll_effect(self.now) {
                    match effect {
                        Effect::Commit(commit) => self.under_way = Some(commit),
                        Effect::StartPod(start) => pods.push(start.key),
                        Effect::Reply(_) => self.replies += 1,
                        Effect::Send { .. }
                        | Effect::Probe { .. }
                        | Effect::Gossip { .. }
                        | Effect::Call { .. }
                        | Effect::StopPod(_)
                        | Effect::Silence(_)
                        | Effect::AnswerPod { .. }
                        | Effect::FetchBlob { .. }
                        | Effect::Tell { .. }
                        | Effect::Sweep(_)
                        | Effect::Note(_) => {}
                    }
                }
                if self.under_way.is_none() && pods.is_empty() {
                    return;
                }
                for key in pods {
                    let at = self.now.wall;
                    self.peer.handle_pod(self.now, PodEvent::Started { key, at });
                    let (end, left) = (PodEnd::Exited(Exit::Code(0)), Box::<Leavings>::default());
                    self.peer.handle_pod(self.now, PodEvent::Ended { key, at, end, left });
                    self.ended += 1;
                }
                if let Some(commit) = self.under_way.take() {
                    self.peer.handle_committed(self.now, commit.number);
                }
            }
        }

        fn submit(&mut self, jobs: usize) {
            let draft = Draft { spec: no_op(), retry_of: None };
            self.peer.handle_ask(self.now, AskId(self.next_ask), Ask::Submit(vec![draft; jobs]));
            self.next_ask += 1;
            self.work();
        }
    }

    /// Jobs from their submit to their ends: all that a node thinks about them.
    #[divan::bench(args = [1, 100, 1_000], sample_size = 1)]
    fn jobs(bencher: Bencher<'_, '_>, jobs: usize) {
        let mut world = World::new();
        bencher.counter(ItemsCount::new(jobs)).bench_local(|| {
            let before = world.ended;
            world.submit(jobs);
            assert_eq!(world.ended, before + jobs, "every job ran");
        });
    }
}
