//! What would happen if a node went now: which jobs it runs and whether others could, what it keeps and whether others
//! have that too.

use axum::Json;
use axum::extract::State;
use serde::Serialize;

use super::App;
use super::errors::{ApiError, ErrorBody};
use super::input::{NoQuery, NodePath};
use super::nodes::{member_named, state_word};
use crate::model::id::{JobId, NodeId};
use crate::model::member::{MemberState, majority_in_reach};
use crate::model::request::Dependents;
use crate::protocol::snapshot::Snapshot;

/// What would happen if a node went now.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct ImpactView {
    /// The node.
    #[schema(value_type = String, example = "a3f19c02")]
    node: NodeId,
    /// Its name.
    name: String,
    /// The verdict on it.
    #[schema(value_type = String, example = "alive")]
    state: &'static str,
    /// Nothing would be lost, nothing would wait for it, and everybody who could tell was asked.
    safe: bool,
    /// What it runs.
    jobs: JobsAtStake,
    /// What it looks after.
    partitions: PartitionsAtStake,
    /// What it holds copies of.
    records: RecordsAtStake,
    /// Who would be left.
    members: MembersLeft,
}

/// Jobs that a node runs. They would begin another attempt elsewhere.
#[derive(Debug, Serialize, utoipa::ToSchema)]
struct JobsAtStake {
    /// All of them.
    running: u64,
    /// Those that no other live node could run, room aside.
    stuck: u64,
    /// Some of these.
    #[schema(value_type = Vec<String>)]
    stuck_jobs: Vec<JobId>,
}

/// Partitions by what a node has to do with them.
#[derive(Debug, Serialize, utoipa::ToSchema)]
struct PartitionsAtStake {
    /// All that there are.
    total: u32,
    /// Those that it decides for; others would take over.
    owned: u32,
    /// Those that it serves as a replica, the owned ones included.
    kept: u32,
    /// Those about whose jobs nobody who decides for them could be asked: nothing here counts these.
    unknown: u32,
}

/// Records that a node should hold a copy of.
#[derive(Debug, Serialize, utoipa::ToSchema)]
struct RecordsAtStake {
    /// All of them.
    kept: u64,
    /// Those of which fewer copies than a majority of the replicas would be known to be left.
    below_majority: u64,
    /// Those of these of which none would be.
    only_here: u64,
}

/// The other members.
#[derive(Debug, Serialize, utoipa::ToSchema)]
struct MembersLeft {
    /// How many of them are alive.
    alive: u32,
    /// Whether they are a majority of all members, this one counted as down: where they are not, jobs that were
    /// submitted with `on_partition: pause` do not run.
    majority: bool,
}

impl ImpactView {
    fn new(snapshot: &Snapshot, node: NodeId, name: String, state: &'static str, dependents: Dependents) -> Self {
        let Dependents { partitions, running, stuck, stuck_jobs, held, thin, only_here } = dependents;
        let placement = &snapshot.placement;
        let owned = placement.all().filter(|partition| placement.acting(*partition).first() == Some(&node)).count();
        let kept = placement.all().filter(|partition| placement.acting(*partition).contains(&node)).count();
        let (total, told) = (placement.partitions(), partitions.iter().count() as u32);
        let unknown = total.saturating_sub(told);
        let mut left = snapshot.view.clone();
        if let Some(member) = left.get_mut(&node).filter(|member| member.is_live()) {
            member.state = MemberState::Down;
        }
        let alive = left.values().filter(|member| member.state == MemberState::Alive).count() as u32;
        Self {
            node,
            name,
            state,
            safe: only_here == 0 && stuck == 0 && unknown == 0,
            jobs: JobsAtStake { running, stuck, stuck_jobs },
            partitions: PartitionsAtStake { total, owned: owned as u32, kept: kept as u32, unknown },
            records: RecordsAtStake { kept: held, below_majority: thin, only_here },
            members: MembersLeft { alive, majority: majority_in_reach(&left) },
        }
    }
}

/// What depends on a node
///
/// What would happen if it went now, without a goodbye: how many jobs it runs and whether another node could run them, how
/// many partitions it looks after, and of how many records too few copies are known to be elsewhere. A drain makes all
/// of it nothing.
#[utoipa::path(get, path = "/v1/nodes/{id}/impact", tag = "nodes",
    params(("id" = String, Path, description = "The node's id or name")),
    responses((status = 200, body = ImpactView), (status = 404, description = "No such node", body = ErrorBody)))]
pub(super) async fn impact(
    State(app): State<App>,
    NodePath(text): NodePath,
    _: NoQuery,
) -> Result<Json<ImpactView>, ApiError> {
    let snapshot = app.answer(app.handle().fresh_snapshot()).await?;
    let member = member_named(&snapshot, &text)?;
    let dependents = app.answer(app.handle().dependents(member.facts.node)).await?;
    let (node, name, state) = (member.facts.node, member.facts.name.clone(), state_word(member));
    Ok(Json(ImpactView::new(&snapshot, node, name, state, dependents)))
}
