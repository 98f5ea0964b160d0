//! Telling a node to pretend faults, where it was started for that.
//!
//! Only for tests: without `--enable-fault-injection` at its start a node refuses, and pretends nothing.

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;

use super::App;
use super::errors::{ApiError, ErrorBody};
use super::input::NoQuery;
use crate::io::faults::Plan;

/// The faults that the node pretends
///
/// 403 unless the node was started with `--enable-fault-injection`.
#[utoipa::path(get, path = "/debug/faults", tag = "debug",
    responses((status = 200, body = Plan), (status = 403, description = "Not on this node", body = ErrorBody)))]
pub(super) async fn show(State(app): State<App>, _: NoQuery) -> Result<Json<Plan>, ApiError> {
    app.config().faults.plan().map(Json).ok_or_else(not_here)
}

/// Pretend faults
///
/// The plan takes the place of what was pretended; `{}` ends all of it. 403 unless the node was started with
/// `--enable-fault-injection`.
#[utoipa::path(post, path = "/debug/faults", tag = "debug", request_body = Plan,
    responses((status = 200, body = Plan), (status = 403, description = "Not on this node", body = ErrorBody),
        (status = 422, description = "No such fault", body = ErrorBody)))]
pub(super) async fn set(State(app): State<App>, _: NoQuery, body: Bytes) -> Result<Json<Plan>, ApiError> {
    let faults = &app.config().faults;
    faults.plan().ok_or_else(not_here)?;
    let plan: Plan = serde_json::from_slice(&body).map_err(|error| ApiError::invalid("body", error.to_string()))?;
    if !faults.set(plan.clone()) {
        return Err(not_here());
    }
    Ok(Json(plan))
}

fn not_here() -> ApiError {
    ApiError::forbidden("this node does not pretend faults")
        .with_hint("start it with --enable-fault-injection, and never where it does real work")
}
