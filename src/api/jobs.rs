//! Reading jobs, waiting for them, and ending them.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::time::Instant;

use super::App;
use super::errors::{ApiError, ErrorBody};
use super::input::{JobPath, NoQuery, Query};
use super::nodes::find_node;
use super::reason::Names;
use super::views::{Content, JobView, NodeRef};
use crate::model::id::{JobId, NodeId, Partition};
use crate::model::record::{JobState, MAX_REASON_BYTES};
use crate::model::request::{Cursor, Explanation, Filter, JobAnswer};
use crate::model::time::{Timestamp, duration};
use crate::protocol::snapshot::Snapshot;

const DEFAULT_LIMIT: u32 = 100;
const MAX_LIMIT: u32 = 1_000;

/// A page of a list ends here, even if it has fewer jobs than were asked for.
const MAX_LIST_BYTES: usize = 8 << 20;

const DEFAULT_WAIT: Duration = Duration::from_secs(60);
const MAX_WAIT: Duration = Duration::from_secs(3_600);

/// How many nodes are asked for what a record names.
const MOST_HOLDERS: usize = 8;

/// A page of the list of all jobs.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct ListView {
    /// Newest first.
    #[schema(value_type = Vec<JobView>)]
    jobs: Vec<Box<RawValue>>,
    /// Where the next page begins; null on the last.
    next_cursor: Option<String>,
    /// Whether jobs may be missing because some nodes could not be asked and nobody else holds what they do.
    partial: bool,
    /// Those nodes.
    #[schema(value_type = Vec<String>)]
    missing: Vec<NodeId>,
}

/// List jobs
///
/// Newest first; any node answers for the whole cluster. Standard input above 1 KiB is left out
/// (`stdin_omitted_bytes`), and so are all but the last attempts (`attempts_omitted`). A page may end before the
/// limit where its jobs are large; `next_cursor` says where to go on.
#[utoipa::path(get, path = "/v1/jobs", tag = "jobs",
    params(
        ("state" = Option<JobState>, Query, description = "Only jobs in this state"),
        ("name" = Option<String>, Query, description = "Only jobs with exactly this name"),
        ("node" = Option<String>, Query, description = "Only jobs whose live or last attempt is on this node (id or name)"),
        ("overlapped" = Option<bool>, Query, description = "Only jobs with attempts that ran, or may have run, at once"),
        ("limit" = Option<u32>, Query, description = "At most this many, 1 to 1000; 100 if not given"),
        ("cursor" = Option<String>, Query, description = "The `next_cursor` of the page before"),
    ),
    responses((status = 200, body = ListView), (status = 422, description = "A parameter cannot be what it is", body = ErrorBody)))]
pub(super) async fn list(State(app): State<App>, mut query: Query) -> Result<Json<ListView>, ApiError> {
    let snapshot = app.handle().snapshot();
    let filter = Filter {
        state: query.take("state", state_of)?,
        name: query.take("name", |text| Ok(text.to_owned()))?,
        node: query.take("node", |text| match (find_node(&snapshot, text), text.parse()) {
            (Some(member), _) => Ok(member.facts.node),
            (None, Ok(forgotten)) => Ok(forgotten),
            (None, Err(_)) => Err(format!("no node has the id or name `{text}`")),
        })?,
        overlapped: query.take_flag("overlapped")?,
    };
    let limit = query.take("limit", |text| match text.parse::<u32>() {
        Ok(limit) if (1..=MAX_LIMIT).contains(&limit) => Ok(limit),
        _ => Err(format!("must be a number from 1 to {MAX_LIMIT}")),
    })?;
    let after = query.take("cursor", |text| {
        cursor_of(text).ok_or_else(|| "is not one that an earlier page gave as `next_cursor`".to_owned())
    })?;
    query.finish()?;
    let listing = app.answer(app.handle().list(filter, after, limit.unwrap_or(DEFAULT_LIMIT))).await?;
    let mut next = listing.next;
    let mut bytes = 0;
    let mut jobs = Vec::with_capacity(listing.records.len());
    for (at, record) in listing.records.iter().enumerate() {
        let view = serde_json::value::to_raw_value(&JobView::of_listed(record, &snapshot))
            .map_err(|error| ApiError::internal(format!("a job cannot be written: {error}")))?;
        bytes += view.get().len();
        jobs.push(view);
        if bytes > MAX_LIST_BYTES && at + 1 < listing.records.len() {
            next = Some(Cursor { submitted_at: record.submission.submitted_at, job: record.id });
            break;
        }
    }
    let partial = !listing.missing.is_empty();
    Ok(Json(ListView { jobs, next_cursor: next.map(cursor_text), partial, missing: listing.missing }))
}

/// Read a job
///
/// Its state and why, its attempts, and how well its replicas agree.
#[utoipa::path(get, path = "/v1/jobs/{id}", tag = "jobs",
    params(("id" = String, Path, description = "The job's id, or its unique beginning")),
    responses((status = 200, body = JobView), (status = 404, description = "No such job", body = ErrorBody),
        (status = 409, description = "The beginning of the id is not unique", body = ErrorBody)))]
pub(super) async fn read(
    State(app): State<App>,
    JobPath(prefix): JobPath,
    _: NoQuery,
) -> Result<Json<JobView>, ApiError> {
    let answer = app.answer(app.handle().job(prefix)).await?;
    Ok(Json(view_with_result(&app, &answer).await))
}

/// Cancel a job
///
/// Answers with the job as it is then: it may still be running while its attempt is being ended. Cancelling a job
/// that has ended changes nothing and is no error.
#[utoipa::path(delete, path = "/v1/jobs/{id}", tag = "jobs",
    params(("id" = String, Path, description = "The job's id, or its unique beginning"),
        ("reason" = Option<String>, Query, description = "Why, for people")),
    responses((status = 200, body = JobView), (status = 404, description = "No such job", body = ErrorBody),
        (status = 409, description = "The beginning of the id is not unique", body = ErrorBody)))]
pub(super) async fn cancel(
    State(app): State<App>,
    JobPath(prefix): JobPath,
    mut query: Query,
) -> Result<Json<JobView>, ApiError> {
    let reason = query.take("reason", |text| match text.len() {
        0..=MAX_REASON_BYTES => Ok(text.to_owned()),
        _ => Err(format!("must have at most {MAX_REASON_BYTES} bytes")),
    })?;
    query.finish()?;
    let reason = reason.unwrap_or_else(|| "asked for by a client".to_owned());
    let answer = app.answer(app.handle().cancel(prefix, reason)).await?;
    Ok(Json(view(&app, &answer)))
}

/// Wait until a job has ended
///
/// Answers 200 with the job as soon as it has ended. If the timeout passes first, also 200, with the job as it is
/// then and `"timed_out": true`: `state` tells the two apart.
#[utoipa::path(get, path = "/v1/jobs/{id}/wait", tag = "jobs",
    params(("id" = String, Path, description = "The job's id, or its unique beginning"),
        ("timeout" = Option<String>, Query, description = "How long to wait, as \"1m30s\" or in seconds; at most 1h, 1m if not given")),
    responses((status = 200, body = JobView), (status = 404, description = "No such job", body = ErrorBody),
        (status = 503, description = "The node shuts down: ask another", body = ErrorBody)))]
pub(super) async fn wait(
    State(app): State<App>,
    JobPath(prefix): JobPath,
    mut query: Query,
) -> Result<Response, ApiError> {
    let patience = query.take("timeout", |text| match duration::parse(text)? {
        patience if patience <= MAX_WAIT => Ok(patience),
        _ => Err(format!("must be at most {} seconds", MAX_WAIT.as_secs())),
    })?;
    query.finish()?;
    let _slot = app.long_slot()?;
    let deadline = Instant::now() + patience.unwrap_or(DEFAULT_WAIT);
    let mut answer = app.answer(app.handle().job(prefix)).await?;
    while !answer.record.state().is_terminal() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Json(JobView { timed_out: true, ..view(&app, &answer) }).into_response());
        }
        if let Some(news) = app.news_of(answer.record.id, Some(answer.version), left).await? {
            answer = news;
        }
    }
    Ok(Json(view_with_result(&app, &answer).await).into_response())
}

/// Where a job lives
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct WhereView {
    /// The job.
    #[schema(value_type = String)]
    id: JobId,
    /// The slice of the id space that it belongs to.
    #[schema(value_type = u16)]
    partition: Partition,
    /// The node that decides for it.
    owner: Option<NodeRef>,
    /// The nodes that keep it for good, whether or not they are up.
    home: Vec<NodeRef>,
    /// The nodes that keep and serve it now; the first is its owner once it has caught up.
    acting: Vec<NodeRef>,
    /// The nodes that should hold it, and whether each is known to hold just this record on disk.
    replicas: Vec<ReplicaView>,
    /// The node that took the submit.
    gateway: NodeRef,
    /// The node of its live attempt.
    executor: Option<NodeRef>,
}

/// A replica of a job.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct ReplicaView {
    /// Whose.
    #[schema(value_type = String)]
    node: NodeId,
    /// That node's name.
    name: String,
    /// Whether it is known to hold just this record on disk.
    agrees: bool,
}

/// Where a job lives
///
/// Its partition, the nodes that look after it, who holds it, and where it runs.
#[utoipa::path(get, path = "/v1/jobs/{id}/where", tag = "jobs",
    params(("id" = String, Path, description = "The job's id, or its unique beginning")),
    responses((status = 200, body = WhereView), (status = 404, description = "No such job", body = ErrorBody)))]
pub(super) async fn whereabouts(
    State(app): State<App>,
    JobPath(prefix): JobPath,
    _: NoQuery,
) -> Result<Json<WhereView>, ApiError> {
    let JobAnswer { record, replicas, .. } = app.answer(app.handle().job(prefix)).await?;
    let snapshot = app.answer(app.handle().fresh_snapshot()).await?;
    let names = Names(&snapshot.view);
    let placement = &snapshot.placement;
    let partition = placement.partition_of(record.id);
    let replica = |(node, agrees): (NodeId, bool)| ReplicaView { node, name: names.of(node), agrees };
    Ok(Json(WhereView {
        id: record.id,
        partition,
        owner: placement.owner(partition).map(|owner| NodeRef::new(owner, names)),
        home: NodeRef::all(placement.home(partition), names),
        acting: NodeRef::all(placement.acting(partition), names),
        replicas: replicas.into_iter().map(replica).collect(),
        gateway: NodeRef::new(record.submission.gateway, names),
        executor: record.current().map(|(_, attempt)| NodeRef::new(attempt.claim.executor.node, names)),
    }))
}

/// Why a job is, or is not, running.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct ExplanationView {
    /// The job.
    #[schema(value_type = String)]
    id: JobId,
    /// Its state.
    state: JobState,
    /// In a sentence.
    reason: String,
    /// Who decides for it, and says this.
    owner: NodeRef,
    /// When it is due, where it waits for a time.
    #[schema(value_type = Option<String>, format = DateTime)]
    due_at: Option<Timestamp>,
    /// How many jobs are before it in its owner's queue, where it waits for room.
    ahead: Option<u32>,
    /// Every live node, and what speaks against it.
    nodes: Vec<FitView>,
}

/// Whether a job fits a node.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct FitView {
    /// The node.
    #[schema(value_type = String)]
    node: NodeId,
    /// Its name.
    name: String,
    /// Whether the job could run there now.
    fits: bool,
    /// What speaks against it.
    obstacle: Option<String>,
}

/// Why a job is, or is not, running
///
/// As its owner sees it: what it waits for, and what speaks against each node.
#[utoipa::path(get, path = "/v1/jobs/{id}/explain", tag = "jobs",
    params(("id" = String, Path, description = "The job's id, or its unique beginning")),
    responses((status = 200, body = ExplanationView), (status = 404, description = "No such job", body = ErrorBody)))]
pub(super) async fn explain(
    State(app): State<App>,
    JobPath(prefix): JobPath,
    _: NoQuery,
) -> Result<Json<ExplanationView>, ApiError> {
    let Explanation { id, state, reason, owner, due_at, ahead, nodes } =
        app.answer(app.handle().explain(prefix)).await?;
    let snapshot = app.handle().snapshot();
    let names = Names(&snapshot.view);
    let fit = |(node, obstacle): (NodeId, Option<String>)| FitView {
        node,
        name: names.of(node),
        fits: obstacle.is_none(),
        obstacle,
    };
    let (owner, nodes) = (NodeRef::new(owner, names), nodes.into_iter().map(fit).collect());
    Ok(Json(ExplanationView { id, state, reason, owner, due_at, ahead, nodes }))
}

fn view(app: &App, answer: &JobAnswer) -> JobView {
    let snapshot: &Snapshot = &app.handle().snapshot();
    JobView::of_answer(answer, snapshot)
}

/// The same, and what the job came to, which is read from whoever holds it. A result that cannot be read now is left
/// out; its size is there.
async fn view_with_result(app: &App, answer: &JobAnswer) -> JobView {
    let view = view(app, answer);
    let Some((_, result)) = answer.record.result() else {
        return view;
    };
    match app.answer(app.handle().read_blob(result.blob(), holders_of(answer))).await {
        Ok(blob) => JobView { result: Some(Content(blob.bytes().clone())), ..view },
        Err(_) => view,
    }
}

/// The nodes that most likely have what a job's record names: whoever answered, those that act for it, those that ran
/// it.
pub(super) fn holders_of(answer: &JobAnswer) -> Vec<NodeId> {
    let acting = answer.replicas.iter().map(|(node, _)| *node);
    let executors = answer.record.attempts.values().rev().map(|attempt| attempt.claim.executor.node);
    let mut holders = Vec::new();
    for node in [answer.by].into_iter().chain(acting).chain(executors) {
        if !holders.contains(&node) && holders.len() < MOST_HOLDERS {
            holders.push(node);
        }
    }
    holders
}

fn state_of(text: &str) -> Result<JobState, String> {
    use JobState::{Cancelled, Failed, Pending, Running, Succeeded};
    let states = [Pending, Running, Succeeded, Failed, Cancelled];
    states.into_iter().find(|state| state.as_str() == text).ok_or_else(|| {
        let known: Vec<_> = states.iter().map(|state| state.as_str()).collect();
        format!("`{text}` is not a state: one of {}", known.join(", "))
    })
}

/// A cursor as opaque text: 8 bytes of time and 16 of id.
fn cursor_text(cursor: Cursor) -> String {
    let mut bytes = Vec::with_capacity(24);
    bytes.extend_from_slice(&cursor.submitted_at.unix_ms().to_be_bytes());
    bytes.extend_from_slice(&cursor.job.0.to_be_bytes());
    data_encoding::BASE64URL_NOPAD.encode(&bytes)
}

fn cursor_of(text: &str) -> Option<Cursor> {
    let bytes = data_encoding::BASE64URL_NOPAD.decode(text.as_bytes()).ok()?;
    let (time, job) = bytes.split_first_chunk::<8>()?;
    let job: [u8; 16] = job.try_into().ok()?;
    Some(Cursor { submitted_at: Timestamp(u64::from_be_bytes(*time)), job: JobId(u128::from_be_bytes(job)) })
}
