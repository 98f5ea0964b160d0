//! The cluster's members, as this node sees them; draining and forgetting them.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use axum::Json;
use axum::extract::State;
use axum::http::Method;
use serde::Serialize;

use super::App;
use super::errors::{ApiError, ErrorBody};
use super::input::{NoQuery, NodePath};
use super::views::NodeRef;
use crate::model::id::{Generation, Incarnation, NodeId};
use crate::model::member::{Facts, Load, Member, MemberState, Status};
use crate::model::resources::Resources;
use crate::model::spec::Driver;
use crate::model::time::Timestamp;
use crate::protocol::snapshot::Snapshot;

/// All members.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct NodesView {
    /// By id; the asked node included.
    nodes: Vec<NodeView>,
}

/// A member.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct NodeView {
    /// Its id.
    #[schema(value_type = String, example = "a3f19c02")]
    id: NodeId,
    /// Its name.
    name: String,
    /// Whether it is the node that answers.
    is_self: bool,
    /// Where it is reached.
    addresses: AddressesView,
    /// `alive`, `suspect`, `down`, `left`, or `draining` where it is alive and takes nothing new.
    #[schema(value_type = String, example = "alive")]
    state: &'static str,
    /// What it says it is doing: `joining`, `returning`, `serving`, `draining`, `readonly` or `left`.
    #[schema(value_type = String, example = "serving")]
    status: Status,
    /// Since when the asked node sees it in its state.
    #[schema(value_type = String, format = DateTime)]
    since: Timestamp,
    /// Which start of it.
    #[schema(value_type = u64)]
    generation: Generation,
    /// Raised each time it refutes a suspicion.
    #[schema(value_type = u64)]
    incarnation: Incarnation,
    /// What it has for jobs.
    capacity: ResourcesView,
    /// How busy it is.
    load: LoadView,
    /// Its places for jobs.
    slots: SlotsView,
    /// Jobs it decides for that are due and have found no room.
    backlog: u32,
    /// What jobs can ask for by `require`.
    labels: BTreeMap<String, String>,
    /// What it can run.
    drivers: Vec<Driver>,
    /// Its share of the ring, relative to the others'.
    weight: u16,
    /// Its program's version.
    version: String,
}

/// Where a node is reached.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct AddressesView {
    /// By its peers.
    #[schema(value_type = String, example = "127.0.0.1:7400")]
    cluster: SocketAddr,
    /// By clients.
    #[schema(value_type = String, example = "127.0.0.1:7401")]
    http: SocketAddr,
}

/// An amount of everything that is counted.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub(super) struct ResourcesView {
    /// Processors.
    cpus: f64,
    /// Memory.
    #[schema(example = "512MiB")]
    memory: String,
    /// Places for jobs.
    slots: u32,
}

impl From<Resources> for ResourcesView {
    fn from(resources: Resources) -> Self {
        let cpus = f64::from(resources.cpus.millis) / 1_000.0;
        Self { cpus, memory: resources.memory.to_string(), slots: resources.slots }
    }
}

/// How busy a node is.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct LoadView {
    /// What its pods and its open offers have set aside.
    used: ResourcesView,
    /// Processor use of the whole machine, from 0 to 1.
    cpu: f64,
    /// Memory of the whole machine that is available, in bytes.
    memory_available_bytes: u64,
}

/// A node's places for jobs.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct SlotsView {
    /// All.
    total: u32,
    /// Those taken.
    used: u32,
    /// Those free.
    free: u32,
}

impl NodeView {
    fn new(member: &Member, snapshot: &Snapshot) -> Self {
        let Facts {
            node,
            name,
            generation,
            incarnation,
            cluster_addr,
            http_addr,
            status,
            capacity,
            weight,
            load,
            labels,
            drivers,
            version,
            ..
        } = member.facts.clone();
        let Load { used, backlog, cpu_permille, memory_available_bytes } = load;
        Self {
            id: node,
            name,
            is_self: node == snapshot.node,
            addresses: AddressesView { cluster: cluster_addr, http: http_addr },
            state: state_word(member),
            status,
            since: since(member, snapshot),
            generation,
            incarnation,
            capacity: capacity.into(),
            load: LoadView { used: used.into(), cpu: f64::from(cpu_permille) / 1_000.0, memory_available_bytes },
            slots: SlotsView {
                total: capacity.slots,
                used: used.slots,
                free: capacity.slots.saturating_sub(used.slots),
            },
            backlog,
            labels,
            drivers: drivers.into_iter().collect(),
            weight,
            version,
        }
    }
}

/// The verdict in one word; draining is said of those that would be alive otherwise.
pub(super) fn state_word(member: &Member) -> &'static str {
    match (member.state, member.facts.status) {
        (MemberState::Alive, Status::Draining) => "draining",
        (
            MemberState::Alive,
            Status::Joining | Status::Returning | Status::Serving | Status::ReadOnly | Status::Left,
        ) => "alive",
        (MemberState::Suspect, _) => "suspect",
        (MemberState::Down, _) => "down",
        (MemberState::Left, _) => "left",
    }
}

/// Since when the member is in its state, on the wall clock.
pub(super) fn since(member: &Member, snapshot: &Snapshot) -> Timestamp {
    let for_ms = u64::try_from(snapshot.now.moment.since(member.since).as_millis()).unwrap_or(u64::MAX);
    Timestamp(snapshot.now.wall.unix_ms().saturating_sub(for_ms))
}

/// The member with this id or name. Of several with one name, which is an error they report themselves, a live one.
pub(super) fn find_node<'a>(snapshot: &'a Snapshot, text: &str) -> Option<&'a Member> {
    let by_id = text.parse::<NodeId>().ok().and_then(|node| snapshot.view.get(&node));
    let named = || snapshot.view.values().filter(|member| member.facts.name == text);
    by_id.or_else(|| named().find(|member| member.is_live())).or_else(|| named().next())
}

/// List the nodes
///
/// Every member that the asked node knows, itself included, as it sees them.
#[utoipa::path(get, path = "/v1/nodes", tag = "nodes", responses((status = 200, body = NodesView)))]
pub(super) async fn list(State(app): State<App>, _: NoQuery) -> Result<Json<NodesView>, ApiError> {
    let snapshot = app.answer(app.handle().fresh_snapshot()).await?;
    Ok(Json(NodesView { nodes: snapshot.view.values().map(|member| NodeView::new(member, &snapshot)).collect() }))
}

/// Drain a node
///
/// It finishes what it runs, hands on what it keeps, and takes nothing new. Only the node itself does this: ask it
/// at its own address. Another one answers 409 and names that address.
#[utoipa::path(post, path = "/v1/nodes/{id}/drain", tag = "nodes",
    params(("id" = String, Path, description = "The asked node's own id or name")),
    responses((status = 200, description = "It drains", body = NodeView),
        (status = 404, description = "No such node", body = ErrorBody),
        (status = 409, description = "That is another node; the hint says where to ask it", body = ErrorBody)))]
pub(super) async fn drain(
    State(app): State<App>,
    NodePath(text): NodePath,
    _: NoQuery,
) -> Result<Json<NodeView>, ApiError> {
    set_draining(&app, &text, true).await
}

/// Stop draining a node
///
/// As with draining, only the node itself does this.
#[utoipa::path(delete, path = "/v1/nodes/{id}/drain", tag = "nodes",
    params(("id" = String, Path, description = "The asked node's own id or name")),
    responses((status = 200, description = "It serves as before", body = NodeView),
        (status = 404, description = "No such node", body = ErrorBody),
        (status = 409, description = "That is another node; the hint says where to ask it", body = ErrorBody)))]
pub(super) async fn undrain(
    State(app): State<App>,
    NodePath(text): NodePath,
    _: NoQuery,
) -> Result<Json<NodeView>, ApiError> {
    set_draining(&app, &text, false).await
}

/// How far a node has drained.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct DrainView {
    /// Whether it drains at all.
    draining: bool,
    /// Nothing runs on it, and everything it kept is with others: it can be taken away.
    done: bool,
    /// Jobs that still run on it.
    running: u64,
    /// Records that it still has to hand over.
    to_hand_over: u32,
    /// Partitions that it still serves; while there are any, no other node is there to take them.
    partitions: u32,
}

/// How far a node has drained
///
/// As with draining, only the node itself knows.
#[utoipa::path(get, path = "/v1/nodes/{id}/drain", tag = "nodes",
    params(("id" = String, Path, description = "The asked node's own id or name")),
    responses((status = 200, body = DrainView), (status = 404, description = "No such node", body = ErrorBody),
        (status = 409, description = "That is another node; the hint says where to ask it", body = ErrorBody)))]
pub(super) async fn drain_progress(
    State(app): State<App>,
    NodePath(text): NodePath,
    _: NoQuery,
) -> Result<Json<DrainView>, ApiError> {
    let snapshot = app.answer(app.handle().fresh_snapshot()).await?;
    own_node(&snapshot, &text, &Method::GET)?;
    let draining = snapshot.facts.status == Status::Draining;
    let (running, convergence) = (snapshot.jobs.pods, &snapshot.convergence);
    let (to_hand_over, partitions) = (convergence.strays, convergence.acting);
    let done = draining && running == 0 && to_hand_over == 0 && partitions == 0;
    Ok(Json(DrainView { draining, done, running, to_hand_over, partitions }))
}

/// Forget a node
///
/// Says that a node which is down, or has left, will not come back: it loses its places on the ring at once instead of
/// after `forget_after`, on all nodes, and nothing waits for it any longer. What it alone had is lost unless it does come
/// back, which it may, as a node that joins anew. A node that lives is drained and stopped instead: 409.
#[utoipa::path(delete, path = "/v1/nodes/{id}", tag = "nodes",
    params(("id" = String, Path, description = "The node's id or name")),
    responses((status = 200, description = "It is forgotten", body = NodeRef),
        (status = 404, description = "No such node", body = ErrorBody),
        (status = 409, description = "It is not down", body = ErrorBody)))]
pub(super) async fn forget(
    State(app): State<App>,
    NodePath(text): NodePath,
    _: NoQuery,
) -> Result<Json<NodeRef>, ApiError> {
    let snapshot = app.answer(app.handle().fresh_snapshot()).await?;
    let member = member_named(&snapshot, &text)?;
    app.answer(app.handle().forget(member.facts.node)).await?;
    Ok(Json(NodeRef { node: member.facts.node, name: member.facts.name.clone() }))
}

/// The member that `text` names, if there is one.
pub(super) fn member_named<'a>(snapshot: &'a Snapshot, text: &str) -> Result<&'a Member, ApiError> {
    find_node(snapshot, text).ok_or_else(|| {
        ApiError::not_found(format!("no node has the id or name `{text}`")).with_hint("GET /v1/nodes lists them")
    })
}

/// The asked node, if it is the one that `text` names.
fn own_node(snapshot: &Snapshot, text: &str, method: &Method) -> Result<NodeId, ApiError> {
    let member = member_named(snapshot, text)?;
    let node = member.facts.node;
    if node == snapshot.node {
        return Ok(node);
    }
    let address = member.facts.http_addr;
    Err(ApiError::conflict(format!("{} is another node, and drains only when asked itself", member.facts.name))
        .with_hint(format!("{method} http://{address}/v1/nodes/{node}/drain")))
}

async fn set_draining(app: &App, text: &str, on: bool) -> Result<Json<NodeView>, ApiError> {
    let snapshot = app.answer(app.handle().fresh_snapshot()).await?;
    let node = own_node(&snapshot, text, if on { &Method::POST } else { &Method::DELETE })?;
    app.answer(app.handle().drain(on)).await?;
    let snapshot = app.answer(app.handle().fresh_snapshot()).await?;
    let member = snapshot.view.get(&node).ok_or_else(|| ApiError::internal("the node does not see itself"))?;
    Ok(Json(NodeView::new(member, &snapshot)))
}
