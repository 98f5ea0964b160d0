//! For supervisors and monitoring: whether the process lives, whether the node serves, and what has been counted.
//!
//! Metrics are Prometheus text. Their names come from the node's own counters; labels are taken from small fixed
//! sets (routes as they are written here, never paths as they were asked), so their number stays bounded.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use axum::Json;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::App;
use super::errors::{ApiError, ErrorBody};
use super::input::NoQuery;
use super::nodes::state_word;
use crate::io::telemetry::panics;
use crate::protocol::snapshot::{Convergence, JobCounts, Snapshot};

/// What the edge itself counts.
#[derive(Debug, Default)]
pub(super) struct Counts {
    requests: Mutex<BTreeMap<(&'static str, String, u16), u64>>,
    panics: AtomicU64,
}

impl Counts {
    pub(super) fn count_panic(&self) {
        self.panics.fetch_add(1, Ordering::Relaxed);
    }

    fn requests(&self) -> MutexGuard<'_, BTreeMap<(&'static str, String, u16), u64>> {
        // Whoever panicked with the lock held left a map of numbers, which is as good as any.
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts every answered request by method, route and status.
pub(super) async fn count(State(app): State<App>, request: Request, next: Next) -> Response {
    let method = match *request.method() {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::DELETE => "DELETE",
        _ => "other",
    };
    let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str).to_owned();
    let response = next.run(request).await;
    *app.counts().requests().entry((method, route, response.status().as_u16())).or_default() += 1;
    response
}

/// The process lives.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct LiveView {
    alive: bool,
}

/// Is the process alive?
///
/// 200 as long as it answers at all. Restart it when it does not.
#[utoipa::path(get, path = "/livez", tag = "health", responses((status = 200, body = LiveView)))]
pub(super) async fn live(_: NoQuery) -> Json<LiveView> {
    Json(LiveView { alive: true })
}

/// The node serves.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct ReadyView {
    ready: bool,
}

/// Does the node serve?
///
/// 503 with the reason while it joins, cannot write to its disk, or shuts down. Send clients elsewhere meanwhile.
#[utoipa::path(get, path = "/readyz", tag = "health",
    responses((status = 200, body = ReadyView), (status = 503, description = "Not now, and why", body = ErrorBody)))]
pub(super) async fn ready(State(app): State<App>, _: NoQuery) -> Result<Json<ReadyView>, ApiError> {
    if app.stop().is_cancelled() {
        return Err(super::shutting_down());
    }
    let snapshot = app.answer(app.handle().fresh_snapshot()).await?;
    match &snapshot.not_ready {
        None => Ok(Json(ReadyView { ready: true })),
        Some(reason) => Err(ApiError::unavailable(reason.clone())),
    }
}

/// Metrics
///
/// Prometheus text.
#[utoipa::path(get, path = "/metrics", tag = "health",
    responses((status = 200, description = "Prometheus text", body = String, content_type = "text/plain")))]
pub(super) async fn metrics(State(app): State<App>, _: NoQuery) -> impl IntoResponse {
    // A node that is too busy to be asked still has what it last showed.
    let snapshot = app.handle().fresh_snapshot().await.unwrap_or_else(|_| app.handle().snapshot());
    let text = metrics_text(&app, &snapshot);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
}

/// The text exposition format, one family after the other.
#[derive(Debug, Default)]
struct Exposition(String);

impl Exposition {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: u64) {
        self.0.push_str(name);
        for (at, (label, text)) in labels.iter().enumerate() {
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{}{label}=\"{text}\"", if at == 0 { '{' } else { ',' });
        }
        let end = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.0, "{end} {value}");
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) {
        self.family(name, "gauge", help);
        self.sample(name, &[], value);
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.family(name, "counter", help);
        self.sample(name, &[], value);
    }
}

fn metrics_text(app: &App, snapshot: &Snapshot) -> String {
    let mut text = Exposition::default();
    text.family("flockwork_info", "gauge", "Which node and version this is.");
    let (id, name) = (snapshot.node.to_string(), snapshot.facts.name.as_str());
    text.sample("flockwork_info", &[("node", &id), ("name", name), ("version", &snapshot.facts.version)], 1);
    text.gauge("flockwork_ready", "Whether the node serves.", u64::from(snapshot.not_ready.is_none()));

    text.gauge(
        "flockwork_local_health",
        "How far the node distrusts its own ears: 0 is healthy, 8 the worst.",
        u64::from(snapshot.local_health),
    );
    text.gauge(
        "flockwork_complaints",
        "Things wrong with the members, as /debug/members tells.",
        snapshot.complaints.len() as u64,
    );

    let skew = snapshot.clock_skews_ms.iter().map(|(_, skew)| skew.unsigned_abs()).max().unwrap_or(0);
    text.gauge(
        "flockwork_clock_skew_max_milliseconds",
        "How far the wall clock of a member is from this node's, at the most.",
        skew,
    );

    let mut by_state: BTreeMap<&str, u64> =
        ["alive", "suspect", "down", "left", "draining"].into_iter().map(|state| (state, 0)).collect();
    for member in snapshot.view.values() {
        *by_state.entry(state_word(member)).or_default() += 1;
    }
    text.family("flockwork_members", "gauge", "Members by this node's verdict.");
    for (state, members) in by_state {
        text.sample("flockwork_members", &[("state", state)], members);
    }

    let JobCounts { held, open, owned, waiting, pods } = snapshot.jobs;
    text.family("flockwork_jobs", "gauge", "Jobs by what this node has to do with them.");
    for (role, jobs) in [("held", held), ("open", open), ("owned", owned), ("waiting", waiting), ("running_here", pods)]
    {
        text.sample("flockwork_jobs", &[("role", role)], jobs);
    }

    let Convergence { converged, acting, in_sync, strays, ref behind, .. } = snapshot.convergence;
    text.gauge("flockwork_converged", "Whether this node agrees with all others.", u64::from(converged));
    text.family("flockwork_partitions", "gauge", "Partitions that this node acts for.");
    for (state, partitions) in
        [("acting", u64::from(acting)), ("in_sync", u64::from(in_sync)), ("behind", behind.len() as u64)]
    {
        text.sample("flockwork_partitions", &[("state", state)], partitions);
    }
    text.gauge("flockwork_stray_records", "Records held that belong elsewhere.", u64::from(strays));

    let moving = snapshot.convergence.moving.unwrap_or_default();
    text.gauge(
        "flockwork_moving_records",
        "Records that this node was to hand over since the ring changed; the strays are left of them.",
        moving.records,
    );
    text.gauge(
        "flockwork_moving_partitions",
        "Partitions of this node that were behind since the ring changed, at the most.",
        u64::from(moving.partitions),
    );
    text.gauge(
        "flockwork_records_waiting_to_be_sent",
        "Records that wait to be sent to nodes that lack them while the ring's change has something left to do.",
        moving.waiting_to_be_sent,
    );

    for (name, value) in &snapshot.counters {
        text.counter(&counter_name(name), "Counted since the start.", *value);
    }
    text.counter("flockwork_panics_total", "Panics anywhere in the process; each is logged as an error.", panics());
    text.counter(
        "flockwork_http_panics_total",
        "Requests whose answering panicked.",
        app.counts().panics.load(Ordering::Relaxed),
    );
    text.family("flockwork_http_requests_total", "counter", "Answered requests.");
    for ((method, route, status), requests) in app.counts().requests().iter() {
        let labels = [("method", *method), ("route", route.as_str()), ("status", &status.to_string())];
        text.sample("flockwork_http_requests_total", &labels, *requests);
    }
    text.0
}

/// The node's name for a counter, as Prometheus wants it.
fn counter_name(name: &str) -> String {
    let plain: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    let prefix = if plain.starts_with("flockwork_") { "" } else { "flockwork_" };
    let suffix = if plain.ends_with("_total") { "" } else { "_total" };
    format!("{prefix}{plain}{suffix}")
}
