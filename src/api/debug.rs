//! What this node sees, for those who look after the cluster: whether its view agrees with the others', whom it
//! believes what of, where the ring puts everything, and what each replica of a job holds.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::net::SocketAddr;

use axum::Json;
use axum::extract::State;
use serde::Serialize;

use super::App;
use super::errors::{ApiError, ErrorBody, ErrorView};
use super::input::{JobPath, NoQuery};
use super::nodes::{since, state_word};
use super::reason::Names;
use super::views::{JobView, NodeRef, clock_as_text};
use crate::model::id::{Generation, Incarnation, JobId, NodeId, Partition};
use crate::model::member::{Member, MemberState, Status};
use crate::model::record::Record;
use crate::model::request::Refusal;
use crate::model::time::Timestamp;
use crate::protocol::gateway::Copy;
use crate::protocol::membership::Verdict;
use crate::protocol::snapshot::{Moving, Snapshot};

/// How far the node is from agreement with the others.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct ConvergenceView {
    /// All live members compute one ring, and nothing has been behind for longer than the settling time.
    converged: bool,
    /// Since when it has been as `converged` says.
    #[schema(value_type = String, format = DateTime)]
    since: Timestamp,
    /// The node that says this.
    #[schema(value_type = String)]
    node: NodeId,
    /// What it makes of each member.
    #[schema(value_type = BTreeMap<String, MemberView>)]
    members: BTreeMap<NodeId, MemberView>,
    /// Whose ring is like its own.
    ring: RingAgreementView,
    /// The partitions that it acts for.
    partitions: PartitionsView,
    /// Records it holds that belong elsewhere.
    strays: u32,
    /// How far records have moved since the ring changed, as far as this node has a part in it; null when nothing is left.
    moving: Option<MovingView>,
}

/// How far records have moved since nodes joined, left, drained, died or changed their weight.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct MovingView {
    /// When the ring changed.
    #[schema(value_type = String, format = DateTime)]
    since: Timestamp,
    /// Records that this node still has to hand over.
    records_left: u32,
    /// Of so many.
    records: u64,
    /// How many it has handed over in a second, in the mean.
    records_per_second: f64,
    /// Partitions of this node that are still behind.
    partitions_left: u32,
    /// Of so many.
    partitions: u32,
    /// Records that wait to be sent to nodes that lack them.
    waiting_to_be_sent: u64,
}

impl MovingView {
    fn new(moving: &Moving, snapshot: &Snapshot) -> Self {
        let Moving { since, since_moment, records, handed_over, partitions, waiting_to_be_sent } = *moving;
        let convergence = &snapshot.convergence;
        // A first look right after the change would make a rate of nothing.
        let seconds = snapshot.now.moment.since(since_moment).as_secs_f64().max(1.0);
        Self {
            since,
            records_left: convergence.strays,
            records: records.max(u64::from(convergence.strays)),
            records_per_second: (handed_over as f64 / seconds * 10.0).round() / 10.0,
            partitions_left: convergence.behind.len() as u32,
            partitions: partitions.max(convergence.behind.len() as u32),
            waiting_to_be_sent,
        }
    }
}

/// A member as the node sees it.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct MemberView {
    /// Its name.
    name: String,
    /// The verdict: `alive`, `suspect`, `down`, `left` or `draining`.
    #[schema(value_type = String)]
    state: &'static str,
    /// What it says it is doing.
    #[schema(value_type = String)]
    status: Status,
    /// Since when it is in its state.
    #[schema(value_type = String, format = DateTime)]
    since: Timestamp,
    /// Which start of it.
    #[schema(value_type = u64)]
    generation: Generation,
    /// Raised each time it refutes a suspicion.
    #[schema(value_type = u64)]
    incarnation: Incarnation,
}

/// The rings that the members compute.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct RingAgreementView {
    /// Whether all are like this node's own.
    agree: bool,
    /// This node's own.
    own: String,
    /// Each live member's, as it gossips it.
    #[schema(value_type = BTreeMap<String, String>)]
    fingerprints: BTreeMap<NodeId, String>,
}

/// How many of a node's partitions are in step.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct PartitionsView {
    /// Those it acts for.
    total: u32,
    /// Those of them that agree with every other live replica.
    in_sync: u32,
    /// The others.
    #[schema(value_type = Vec<u16>)]
    behind: Vec<Partition>,
}

impl MemberView {
    fn new(member: &Member, snapshot: &Snapshot) -> Self {
        Self {
            name: member.facts.name.clone(),
            state: state_word(member),
            status: member.facts.status,
            since: since(member, snapshot),
            generation: member.facts.generation,
            incarnation: member.facts.incarnation,
        }
    }
}

/// Convergence
///
/// Whether this node agrees with the others about the members, the ring and the records. Converged: all rings are
/// equal, and nothing has been behind for longer than the settling time.
#[utoipa::path(get, path = "/debug/convergence", tag = "debug", responses((status = 200, body = ConvergenceView)))]
pub(super) async fn convergence(State(app): State<App>, _: NoQuery) -> Result<Json<ConvergenceView>, ApiError> {
    let snapshot = app.answer(app.handle().fresh_snapshot()).await?;
    let convergence = &snapshot.convergence;
    let own = snapshot.placement.fingerprint();
    Ok(Json(ConvergenceView {
        converged: convergence.converged,
        since: convergence.since,
        node: snapshot.node,
        members: snapshot.view.iter().map(|(node, member)| (*node, MemberView::new(member, &snapshot))).collect(),
        ring: RingAgreementView {
            agree: convergence.fingerprints.iter().all(|(_, theirs)| *theirs == own),
            own: own.to_string(),
            fingerprints: convergence.fingerprints.iter().map(|(node, print)| (*node, print.to_string())).collect(),
        },
        partitions: PartitionsView {
            total: convergence.acting,
            in_sync: convergence.in_sync,
            behind: convergence.behind.clone(),
        },
        strays: convergence.strays,
        moving: convergence.moving.as_ref().map(|moving| MovingView::new(moving, &snapshot)),
    }))
}

/// Every member, with all it says about itself.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct MembersView {
    /// The node that says this.
    #[schema(value_type = String)]
    node: NodeId,
    /// How far it distrusts its own ears: 0 is healthy, 8 the worst. It waits so many times longer for others.
    local_health: u32,
    /// Until when it gives no verdict, because it was paused or starved itself.
    #[schema(value_type = Option<String>, format = DateTime)]
    withheld_until: Option<Timestamp>,
    /// Why it must not serve, if it must not.
    conflict: Option<String>,
    /// What else is wrong and worth a look.
    complaints: Vec<String>,
    /// By id.
    members: Vec<MemberDetailView>,
    /// The latest changes as this node saw them, oldest first.
    history: Vec<VerdictView>,
}

/// A change of a member, as this node saw it.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct VerdictView {
    /// When.
    #[schema(value_type = String, format = DateTime)]
    at: Timestamp,
    /// Who.
    #[serde(flatten)]
    node: NodeRef,
    /// The verdict until then; null for one just met.
    #[schema(value_type = Option<String>)]
    was: Option<MemberState>,
    /// The verdict from then on; null for one that was forgotten.
    #[schema(value_type = Option<String>)]
    is: Option<MemberState>,
    /// Why.
    reason: String,
}

/// A suspicion, as this node holds it.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct DoubtView {
    /// Since when.
    #[schema(value_type = String, format = DateTime)]
    since: Timestamp,
    /// When the grace period runs out, as things stand.
    #[schema(value_type = String, format = DateTime)]
    until: Timestamp,
    /// Who votes against the member.
    voters: Vec<NodeRef>,
    /// Whether this node's own probe failed too; without that it gives no verdict.
    silent: bool,
    /// Whether the member's machine refuses connections.
    refused: bool,
    /// Whether the member is only remembered from an earlier start of this node.
    remembered: bool,
}

/// A member, with what it gossips about itself.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct MemberDetailView {
    /// Its id.
    #[schema(value_type = String)]
    id: NodeId,
    /// What this node makes of it.
    #[serde(flatten)]
    member: MemberView,
    /// Where its peers reach it.
    #[schema(value_type = String)]
    cluster_addr: SocketAddr,
    /// Where clients reach it.
    #[schema(value_type = String)]
    http_addr: SocketAddr,
    /// Its share of the ring.
    weight: u16,
    /// How many partitions it holds records of.
    partitions_held: usize,
    /// The ring that it computes.
    ring: String,
    /// What it believes the cluster agreed on.
    cluster: ClusterView,
    /// What it speaks.
    wire_version: u16,
    /// Its program's version.
    version: String,
    /// How long it usually takes to answer a probe of this node, in milliseconds.
    round_trip_ms: Option<f64>,
    /// How far its wall clock is ahead of this node's, in milliseconds; negative if it is behind. Nothing depends on it.
    clock_skew_ms: Option<i64>,
    /// The suspicion against it, if there is one.
    doubt: Option<DoubtView>,
    /// Whom it suspects.
    suspicions: Vec<SuspicionView>,
}

/// What a cluster agreed on.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct ClusterView {
    /// Its name.
    name: String,
    /// How many partitions there are.
    partitions: u32,
    /// How many nodes keep each record.
    replicas: u32,
    /// After how long a down member is forgotten, in seconds.
    forget_after_seconds: f64,
}

/// A vote of one node that another is gone.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct SuspicionView {
    /// Who is suspected.
    #[serde(flatten)]
    node: NodeRef,
    /// In which start.
    #[schema(value_type = u64)]
    generation: Generation,
    /// And incarnation: a higher one refutes this.
    #[schema(value_type = u64)]
    incarnation: Incarnation,
}

/// Members
///
/// Everything that this node knows about each member: who suspects it since when and until when, how long it takes to
/// answer, what was decided about it, and why.
#[utoipa::path(get, path = "/debug/members", tag = "debug", responses((status = 200, body = MembersView)))]
pub(super) async fn members(State(app): State<App>, _: NoQuery) -> Result<Json<MembersView>, ApiError> {
    let snapshot = app.answer(app.handle().fresh_snapshot()).await?;
    let report = app.answer(app.handle().members()).await?;
    let names = Names(&snapshot.view);
    let skews: BTreeMap<NodeId, i64> = snapshot.clock_skews_ms.iter().copied().collect();
    let detail = |member: &Member| {
        let facts = &member.facts;
        let reported = report.members.iter().find(|reported| reported.node == facts.node);
        let doubt = reported.and_then(|reported| reported.suspicion.as_ref()).map(|doubt| DoubtView {
            since: doubt.since,
            until: doubt.until,
            voters: doubt.voters.iter().map(|voter| NodeRef::new(*voter, names)).collect(),
            silent: doubt.silent,
            refused: doubt.refused,
            remembered: doubt.remembered,
        });
        let suspicion = |(node, (generation, incarnation)): (&NodeId, &(Generation, Incarnation))| SuspicionView {
            node: NodeRef::new(*node, names),
            generation: *generation,
            incarnation: *incarnation,
        };
        MemberDetailView {
            id: facts.node,
            member: MemberView::new(member, &snapshot),
            cluster_addr: facts.cluster_addr,
            http_addr: facts.http_addr,
            weight: facts.weight,
            partitions_held: facts.held.iter().count(),
            ring: facts.ring.to_string(),
            cluster: ClusterView {
                name: facts.cluster.name.clone(),
                partitions: facts.cluster.partitions,
                replicas: facts.cluster.replicas,
                forget_after_seconds: facts.cluster.forget_after.as_secs_f64(),
            },
            wire_version: facts.wire_version,
            version: facts.version.clone(),
            round_trip_ms: reported.and_then(|reported| reported.round_trip_ms),
            clock_skew_ms: skews.get(&facts.node).copied(),
            doubt,
            suspicions: facts.suspicions.iter().map(suspicion).collect(),
        }
    };
    let verdict = |verdict: &Verdict| VerdictView {
        at: verdict.at,
        node: NodeRef::new(verdict.node, names),
        was: verdict.was,
        is: verdict.is,
        reason: verdict.reason.clone(),
    };
    Ok(Json(MembersView {
        node: snapshot.node,
        local_health: report.local_health,
        withheld_until: report.withheld_until,
        conflict: report.conflict.clone(),
        complaints: report.complaints.clone(),
        members: snapshot.view.values().map(detail).collect(),
        history: report.history.iter().map(verdict).collect(),
    }))
}

/// The ring that a node computes.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct RingView {
    /// Equal for all who compute the same lists.
    fingerprint: String,
    /// What falls to each node.
    shares: Vec<ShareView>,
    /// Every partition, in order.
    partitions: Vec<PartitionView>,
}

/// What falls to a node.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct ShareView {
    /// The node.
    #[serde(flatten)]
    node: NodeRef,
    /// How many partitions it decides for.
    owned: u32,
    /// How many it serves now.
    acting: u32,
    /// How many it keeps for good.
    home: u32,
}

/// Who looks after a partition.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct PartitionView {
    /// Which.
    #[schema(value_type = u16)]
    partition: Partition,
    /// Who keeps it for good.
    #[schema(value_type = Vec<String>)]
    home: Vec<NodeId>,
    /// Who serves it now; the first decides.
    #[schema(value_type = Vec<String>)]
    acting: Vec<NodeId>,
}

/// The ring
///
/// The home and acting list of every partition, and what falls to each node.
#[utoipa::path(get, path = "/debug/ring", tag = "debug", responses((status = 200, body = RingView)))]
pub(super) async fn ring(State(app): State<App>, _: NoQuery) -> Result<Json<RingView>, ApiError> {
    let snapshot = app.answer(app.handle().fresh_snapshot()).await?;
    let placement = &snapshot.placement;
    let mut shares: BTreeMap<NodeId, (u32, u32, u32)> = BTreeMap::new();
    for partition in placement.all() {
        if let Some(owner) = placement.owner(partition) {
            shares.entry(owner).or_default().0 += 1;
        }
        for node in placement.acting(partition) {
            shares.entry(*node).or_default().1 += 1;
        }
        for node in placement.home(partition) {
            shares.entry(*node).or_default().2 += 1;
        }
    }
    let names = Names(&snapshot.view);
    let share = |(node, (owned, acting, home))| ShareView { node: NodeRef::new(node, names), owned, acting, home };
    let lists = |partition| PartitionView {
        partition,
        home: placement.home(partition).to_vec(),
        acting: placement.acting(partition).to_vec(),
    };
    Ok(Json(RingView {
        fingerprint: placement.fingerprint().to_string(),
        shares: shares.into_iter().map(share).collect(),
        partitions: placement.all().map(lists).collect(),
    }))
}

/// What each replica holds of a job.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct CopiesView {
    /// The job.
    #[schema(value_type = String)]
    id: JobId,
    /// Whether all that could be asked hold just the same.
    agree: bool,
    /// Each node of the job's lists.
    replicas: Vec<CopyView>,
    /// How the clocks of each two copies relate.
    comparisons: Vec<ComparisonView>,
}

/// One replica.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct CopyView {
    /// Whose.
    #[serde(flatten)]
    node: NodeRef,
    /// Whether it has the record; null where it could not be asked.
    present: Option<bool>,
    /// Why it could not be asked.
    error: Option<ErrorView>,
    /// What its copy comes down to: equal copies have equal versions.
    version: Option<String>,
    /// Which writes its copy includes, by `node@generation`.
    clock: Option<BTreeMap<String, u64>>,
    /// The job, as its copy has it.
    record: Option<JobView>,
}

/// How the vector clocks of two copies relate.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct ComparisonView {
    /// The one.
    #[schema(value_type = String)]
    a: NodeId,
    /// The other.
    #[schema(value_type = String)]
    b: NodeId,
    /// `BEFORE`: b knows all that a does, and more. `AFTER`: the reverse. `CONCURRENT`: each knows something that
    /// the other does not. `EQUAL`: the same.
    #[schema(value_type = String, example = "EQUAL")]
    order: &'static str,
}

/// The replicas of a job
///
/// What every node of the job's home and acting lists holds itself, with its vector clock, and how these clocks
/// relate.
#[utoipa::path(get, path = "/debug/jobs/{id}", tag = "debug",
    params(("id" = String, Path, description = "The job's id, or its unique beginning")),
    responses((status = 200, body = CopiesView), (status = 404, description = "Nobody has it", body = ErrorBody)))]
pub(super) async fn copies(
    State(app): State<App>,
    JobPath(prefix): JobPath,
    _: NoQuery,
) -> Result<Json<CopiesView>, ApiError> {
    // A whole id needs no owner to be found, so that this works where the owner is what is being looked into.
    let id = if prefix.low == prefix.high { prefix.low } else { app.answer(app.handle().job(prefix)).await?.record.id };
    let copies = app.answer(app.handle().copies(id)).await?;
    if copies.iter().all(|copy| matches!(copy.record, Ok(None))) {
        return Err(Refusal::no_such_job(prefix).into());
    }
    let held: Vec<(NodeId, &Record)> = copies
        .iter()
        .filter_map(|copy| copy.record.as_ref().ok()?.as_deref().map(|record| (copy.node, record)))
        .collect();
    let mut comparisons = Vec::new();
    for (at, (a, first)) in held.iter().enumerate() {
        for (b, second) in &held[at + 1..] {
            comparisons.push(ComparisonView { a: *a, b: *b, order: relation(first, second) });
        }
    }
    let someone_lacks_it = copies.iter().any(|copy| matches!(copy.record, Ok(None)));
    let agree = !someone_lacks_it && held.windows(2).all(|pair| pair[0].1 == pair[1].1);
    let snapshot = app.handle().snapshot();
    let replicas = copies.iter().map(|copy| copy_view(copy, &snapshot)).collect();
    Ok(Json(CopiesView { id, agree, replicas, comparisons }))
}

fn relation(a: &Record, b: &Record) -> &'static str {
    match a.clock.partial_cmp(&b.clock) {
        Some(Ordering::Less) => "BEFORE",
        Some(Ordering::Greater) => "AFTER",
        Some(Ordering::Equal) => "EQUAL",
        None => "CONCURRENT",
    }
}

fn copy_view(copy: &Copy, snapshot: &Snapshot) -> CopyView {
    let node = NodeRef::new(copy.node, Names(&snapshot.view));
    let nothing = CopyView { node, present: None, error: None, version: None, clock: None, record: None };
    match &copy.record {
        Err(refusal) => CopyView { error: Some(ApiError::from(refusal.clone()).view), ..nothing },
        Ok(None) => CopyView { present: Some(false), ..nothing },
        Ok(Some(record)) => CopyView {
            present: Some(true),
            version: Some(format!("{:?}", record.version())),
            clock: Some(clock_as_text(&record.clock)),
            record: Some(JobView::of_copy(record, snapshot)),
            ..nothing
        },
    }
}
