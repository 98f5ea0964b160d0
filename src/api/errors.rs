//! Refusals as HTTP says them: a status, and one shape of body for every case.
//!
//! `{"error":{"code","message","hint","field"}}`, whoever refuses: a route, the guard before it, or the router
//! that found none. The node's own [`Refusal`]s come with a [`Code`]; a few more exist only here, because only
//! HTTP has methods, content types and origins.

use std::borrow::Cow;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::model::request::{Code, Refusal};
use crate::model::spec::InvalidField;

/// What a client is told instead of an answer. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ApiError {
    pub(super) status: StatusCode,
    pub(super) view: ErrorView,
}

/// The body of every refusal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub(super) struct ErrorBody {
    /// What is wrong.
    pub(super) error: ErrorView,
}

/// What is wrong, where, and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub(super) struct ErrorView {
    /// The class of the error, for programs: `malformed`, `forbidden`, `not_found`, `method_not_allowed`,
    /// `timeout`, `conflict`, `too_large`, `unsupported_media_type`, `invalid`, `slow_down`, `internal`,
    /// `unavailable` or `full`.
    #[schema(value_type = String, example = "invalid")]
    pub(super) code: Cow<'static, str>,
    /// What is wrong, for people.
    pub(super) message: String,
    /// What would be right, or what to do.
    pub(super) hint: Option<String>,
    /// The field, header or parameter at fault.
    pub(super) field: Option<String>,
}

impl ApiError {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, view: ErrorView { code: code.into(), message: message.into(), hint: None, field: None } }
    }

    /// It could not be read at all (400).
    pub(super) fn malformed(message: impl Into<String>) -> Self {
        Refusal::new(Code::Malformed, message).into()
    }

    /// A field, header or parameter cannot be what it is (422).
    pub(super) fn invalid(field: impl Into<String>, message: impl Into<String>) -> Self {
        InvalidField::new(field, message).into()
    }

    /// There is no such thing (404).
    pub(super) fn not_found(message: impl Into<String>) -> Self {
        Refusal::new(Code::NotFound, message).into()
    }

    /// It contradicts what is there (409).
    pub(super) fn conflict(message: impl Into<String>) -> Self {
        Refusal::new(Code::Conflict, message).into()
    }

    /// It is too large (413).
    pub(super) fn too_large(message: impl Into<String>) -> Self {
        Refusal::new(Code::TooLarge, message).into()
    }

    /// Too much at once (429).
    pub(super) fn slow_down(message: impl Into<String>) -> Self {
        Self::from(Refusal::new(Code::SlowDown, message)).with_hint("try again in a second, or ask another node")
    }

    /// The node cannot answer now (503).
    pub(super) fn unavailable(message: impl Into<String>) -> Self {
        Self::from(Refusal::new(Code::Unavailable, message)).with_hint("ask another node, or try again later")
    }

    /// A fault of our own (500).
    pub(super) fn internal(message: impl Into<String>) -> Self {
        Refusal::new(Code::Internal, message).into()
    }

    /// The client must not ask this from where it asks (403).
    pub(super) fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", message)
    }

    /// The path exists, but not for this method (405).
    pub(super) fn method_not_allowed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
    }

    /// The client was too slow to send its request (408).
    pub(super) fn timeout(message: impl Into<String>) -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "timeout", message)
    }

    /// The body is of a type that is not read here (415).
    pub(super) fn unsupported_media_type(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message)
    }

    /// With what to do about it.
    #[must_use]
    pub(super) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.view.hint = Some(hint.into());
        self
    }

    /// With the field, header or parameter at fault.
    #[must_use]
    pub(super) fn with_field(mut self, field: impl Into<String>) -> Self {
        self.view.field = Some(field.into());
        self
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let Refusal { code, message, hint, field } = refusal;
        let (status, name) = class(code);
        Self { status, view: ErrorView { code: name.into(), message, hint, field } }
    }
}

impl From<InvalidField> for ApiError {
    fn from(invalid: InvalidField) -> Self {
        Refusal::from(invalid).into()
    }
}

fn class(code: Code) -> (StatusCode, &'static str) {
    match code {
        Code::Malformed => (StatusCode::BAD_REQUEST, "malformed"),
        Code::NotFound => (StatusCode::NOT_FOUND, "not_found"),
        Code::Conflict => (StatusCode::CONFLICT, "conflict"),
        Code::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "too_large"),
        Code::Invalid => (StatusCode::UNPROCESSABLE_ENTITY, "invalid"),
        Code::SlowDown => (StatusCode::TOO_MANY_REQUESTS, "slow_down"),
        Code::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
        Code::Full => (StatusCode::INSUFFICIENT_STORAGE, "full"),
        Code::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = self.status;
        let mut response = (status, Json(ErrorBody { error: self.view })).into_response();
        if status == StatusCode::TOO_MANY_REQUESTS || status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
