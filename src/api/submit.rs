//! Handing jobs in: one, many, or a finished one again.

use std::time::Instant;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::App;
use super::admission::Admitted;
use super::errors::{ApiError, ErrorBody, ErrorView};
use super::input::{JobPath, NoQuery, format_of, holds_many, read_body, read_many, read_one};
use super::views::SubmittedView;
use crate::model::id::JobId;
use crate::model::request::{Code, Draft, Refusal, Submitted};
use crate::model::spec::Spec;

const KEY_HEADER: &str = "Idempotency-Key";

/// The answer to a bulk submit.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct BulkView {
    /// In the order in which the specs were given.
    jobs: Vec<OutcomeView>,
}

/// What became of one spec of many.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(untagged)]
pub(super) enum OutcomeView {
    /// It is a job now, or was one before under the same key.
    Submitted(SubmittedView),
    /// It was refused; the others were not touched by that.
    Refused {
        /// Why.
        error: ErrorView,
    },
}

/// Submit jobs
///
/// One spec, or many: a JSON array of specs, or one spec a line with content type application/x-ndjson. Many are
/// answered by `{"jobs": [...]}` in the order given, each with its id and receipt or with its error; the status is
/// then the one that all have in common, or 207. A document that cannot be read is refused as a whole. At most
/// 10,000 jobs, 16 MiB, and 1 MiB for each spec.
#[utoipa::path(post, path = "/v1/jobs", tag = "jobs",
    params(("Idempotency-Key" = Option<String>, Header, description = "Sets the key of a single spec: the same key and spec are the same job, however often they are submitted")),
    request_body(content = Spec, description = "One spec; or an array of specs, or one a line as application/x-ndjson"),
    responses(
        (status = 201, description = "A new job, stored as durably as was asked", body = SubmittedView),
        (status = 200, description = "The job was there before, under the same key", body = SubmittedView),
        (status = 202, description = "Accepted, but on fewer nodes than was asked: the receipt says on how many", body = SubmittedView),
        (status = 207, description = "Many specs, of which some fared differently from others", body = BulkView),
        (status = 400, description = "Not readable", body = ErrorBody),
        (status = 409, description = "The key was used for another spec", body = ErrorBody),
        (status = 413, description = "Too large, or too many", body = ErrorBody),
        (status = 415, description = "Not JSON", body = ErrorBody),
        (status = 422, description = "A field cannot be what it is", body = ErrorBody),
        (status = 429, description = "Too much at once; try again after Retry-After seconds", body = ErrorBody),
        (status = 503, description = "Not ready", body = ErrorBody),
        (status = 507, description = "The disk is full", body = ErrorBody),
    ))]
pub(super) async fn submit(
    State(app): State<App>,
    _: NoQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let Some(format) = format_of(&headers)? else {
        return Err(ApiError::unsupported_media_type("the body's type is not given")
            .with_hint("send the header Content-Type: application/json")
            .with_field("Content-Type"));
    };
    let key = key_of(&headers)?;
    let body = read_body(&app, &headers, body).await?;
    if holds_many(&body, format) {
        if key.is_some() {
            return Err(ApiError::invalid(KEY_HEADER, "goes with a single spec; give each of many its own `key`"));
        }
        return submit_many(&app, read_many(&body, format).await?).await;
    }
    // Whoever is one too many is refused before anything else is done for it.
    let admitted = app.submit_slot()?;
    let draft = Draft { spec: with_key(read_one(&body).await?, key)?, retry_of: None };
    submit_one(&app, admitted, draft).await
}

/// Try a finished job again
///
/// Submits a new job with the same spec, without its key, that names the old one in `retry_of`. Only for jobs that
/// have ended. An Idempotency-Key header keeps a repeated request from submitting twice.
#[utoipa::path(post, path = "/v1/jobs/{id}/retry", tag = "jobs",
    params(("id" = String, Path, description = "The job's id, or its unique beginning"),
        ("Idempotency-Key" = Option<String>, Header, description = "The key of the new job")),
    responses(
        (status = 201, description = "A new job", body = SubmittedView),
        (status = 202, description = "Accepted, but on fewer nodes than was asked", body = SubmittedView),
        (status = 404, description = "No such job", body = ErrorBody),
        (status = 409, description = "The job has not ended, or the beginning of the id is not unique", body = ErrorBody),
    ))]
pub(super) async fn retry(
    State(app): State<App>,
    JobPath(prefix): JobPath,
    _: NoQuery,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let key = key_of(&headers)?;
    let old = app.answer(app.handle().job(prefix)).await?.record;
    let state = old.state();
    if !state.is_terminal() {
        return Err(ApiError::conflict(format!(
            "job {} is {}: only a job that has ended can be tried again",
            old.id,
            state.as_str()
        ))
        .with_hint("cancel it first, or wait until it ends"));
    }
    let spec = with_key(Spec { key: None, ..old.spec().clone() }, key)?;
    let admitted = app.submit_slot()?;
    submit_one(&app, admitted, Draft { spec, retry_of: Some(old.id) }).await
}

fn key_of(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let mut values = headers.get_all(KEY_HEADER).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(ApiError::malformed("the header is given twice").with_field(KEY_HEADER));
    }
    match std::str::from_utf8(value.as_bytes()) {
        Ok(key) => Ok(Some(key.to_owned())),
        Err(_) => Err(ApiError::malformed("the header is not UTF-8").with_field(KEY_HEADER)),
    }
}

fn with_key(spec: Spec, key: Option<String>) -> Result<Spec, ApiError> {
    let Some(key) = key else { return Ok(spec) };
    if spec.key.as_ref().is_some_and(|own| *own != key) {
        return Err(ApiError::invalid(KEY_HEADER, "differs from the spec's own `key`"));
    }
    let spec = Spec { key: Some(key), ..spec };
    spec.validate()?;
    Ok(spec)
}

async fn submit_one(app: &App, admitted: Admitted<'_>, draft: Draft) -> Result<Response, ApiError> {
    let retry_of = draft.retry_of;
    let outcome = app.answer(app.handle().submit(vec![draft])).await?.pop();
    let submitted = outcome.unwrap_or_else(|| Err(unanswered()))?;
    let (status, location) = (status_of(&submitted), location_of(submitted.id));
    // A wait for copies that are out of reach is no sign that too much is asked of this node.
    if status != StatusCode::ACCEPTED {
        admitted.answered(Instant::now());
    }
    let mut response = (status, Json(SubmittedView::new(submitted, retry_of))).into_response();
    if let Ok(location) = HeaderValue::from_str(&location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

async fn submit_many(app: &App, specs: Vec<Result<Spec, ApiError>>) -> Result<Response, ApiError> {
    let mut drafts = Vec::with_capacity(specs.len());
    let mut refused = Vec::with_capacity(specs.len());
    for spec in specs {
        refused.push(spec.map(|spec| drafts.push(Draft { spec, retry_of: None })).err());
    }
    let submitted = if drafts.is_empty() { Vec::new() } else { app.answer(app.handle().submit(drafts)).await? };
    let mut submitted = submitted.into_iter();
    let mut statuses = Vec::with_capacity(refused.len());
    let mut jobs = Vec::with_capacity(refused.len());
    for refused in refused {
        let outcome = match refused {
            Some(error) => Err(error),
            None => submitted.next().unwrap_or_else(|| Err(unanswered())).map_err(ApiError::from),
        };
        match outcome {
            Ok(submitted) => {
                statuses.push(status_of(&submitted));
                jobs.push(OutcomeView::Submitted(SubmittedView::new(submitted, None)));
            }
            Err(error) => {
                statuses.push(error.status);
                jobs.push(OutcomeView::Refused { error: error.view });
            }
        }
    }
    let status = match statuses.as_slice() {
        [] => StatusCode::OK,
        [first, rest @ ..] if rest.iter().all(|status| status == first) => *first,
        _ => StatusCode::MULTI_STATUS,
    };
    Ok((status, Json(BulkView { jobs })).into_response())
}

/// Less durability than was asked is what a client must notice first, new job or not.
fn status_of(submitted: &Submitted) -> StatusCode {
    if submitted.receipt.stored < submitted.receipt.wanted {
        StatusCode::ACCEPTED
    } else if submitted.existed {
        StatusCode::OK
    } else {
        StatusCode::CREATED
    }
}

fn location_of(job: JobId) -> String {
    format!("/v1/jobs/{job}")
}

fn unanswered() -> Refusal {
    Refusal::new(Code::Internal, "the node said nothing about this job")
}
