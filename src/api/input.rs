//! What clients send, read strictly: paths, query parameters, bodies, specs.
//!
//! Whatever is wrong is named: the parameter, the header, or the field by its path inside the spec
//! (`backoff.initial`, `command[1]`). Nothing is guessed and nothing unknown is passed over, because a
//! misspelt option that is silently ignored is found out too late. Memory is bounded before it is used: a body
//! is counted while it arrives, against its own limit and against one budget for all bodies together.

use std::collections::BTreeMap;
use std::fmt;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequestParts, RawPathParams};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Uri, header};
use futures_util::StreamExt;
use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde_json::error::Category;
use serde_json::value::RawValue;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};

use super::App;
use super::errors::ApiError;
use crate::model::id::JobIdPrefix;
use crate::model::spec::{MAX_SPEC_BYTES, Spec};

/// The largest request body.
pub(super) const MAX_BODY_BYTES: usize = 16 << 20;

/// How many jobs one request may submit.
pub(super) const MAX_JOBS_PER_REQUEST: usize = 10_000;

/// Bodies above this size are read apart from the threads that serve everybody.
const LARGE_BODY_BYTES: usize = 256 << 10;

// --- Paths and queries ---

/// The job that a path names, by its id or the beginning of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct JobPath(pub(super) JobIdPrefix);

impl<S: Send + Sync> FromRequestParts<S> for JobPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let text = path_parameter(parts, state).await?;
        match text.parse() {
            Ok(prefix) => Ok(Self(prefix)),
            Err(error) if text.len() < JobIdPrefix::MIN_DIGITS && text.bytes().all(|b| b.is_ascii_hexdigit()) => {
                Err(ApiError::invalid("id", error.to_string()))
            }
            Err(error) => Err(ApiError::not_found(format!("no job has the id `{text}`"))
                .with_hint(error.to_string())
                .with_field("id")),
        }
    }
}

/// The node that a path names, by its id or its name.
#[derive(Debug, Clone)]
pub(super) struct NodePath(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for NodePath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        path_parameter(parts, state).await.map(Self)
    }
}

async fn path_parameter<S: Send + Sync>(parts: &mut Parts, state: &S) -> Result<String, ApiError> {
    let parameters = RawPathParams::from_request_parts(parts, state)
        .await
        .map_err(|_| ApiError::malformed("the path is not UTF-8 after percent-decoding").with_field("id"))?;
    let named = parameters.iter().find(|(name, _)| *name == "id").map(|(_, value)| value.to_owned());
    named.ok_or_else(|| ApiError::internal("this route names nothing"))
}

/// The parameters after the `?`. Each is taken by its name; what is left over in the end is refused.
#[derive(Debug)]
pub(super) struct Query {
    given: BTreeMap<String, String>,
    known: Vec<&'static str>,
}

impl Query {
    fn read(uri: &Uri) -> Result<Self, ApiError> {
        let mut given = BTreeMap::new();
        for pair in uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = decoded(name).ok_or_else(|| undecodable(&name.escape_debug().to_string()))?;
            let value = decoded(value).ok_or_else(|| undecodable(&name))?;
            if given.insert(name.clone(), value).is_some() {
                let twice = format!("the query parameter `{name}` is given twice");
                return Err(ApiError::malformed(twice).with_field(name));
            }
        }
        Ok(Self { given, known: Vec::new() })
    }

    /// The parameter `name` as `parse` reads it. An empty value is none.
    pub(super) fn take<T>(
        &mut self,
        name: &'static str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Option<T>, ApiError> {
        self.known.push(name);
        match self.given.remove(name) {
            Some(value) if !value.is_empty() => {
                parse(&value).map(Some).map_err(|message| ApiError::invalid(name, message))
            }
            _ => Ok(None),
        }
    }

    /// A switch: `?name`, `?name=true` and `?name=1` turn it on, `false` and `0` off.
    pub(super) fn take_flag(&mut self, name: &'static str) -> Result<bool, ApiError> {
        self.known.push(name);
        match self.given.remove(name).as_deref() {
            None | Some("false" | "0") => Ok(false),
            Some("" | "true" | "1") => Ok(true),
            Some(other) => Err(ApiError::invalid(name, format!("`{other}` is neither true nor false"))),
        }
    }

    /// Refuses what was given and not taken.
    pub(super) fn finish(self) -> Result<(), ApiError> {
        let Some(unknown) = self.given.into_keys().next() else { return Ok(()) };
        let hint = match self.known.as_slice() {
            [] => "there are none here".to_owned(),
            known => format!("known here: {}", known.join(", ")),
        };
        let message = format!("there is no query parameter `{unknown}` here");
        Err(ApiError::invalid(unknown, message).with_hint(hint))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Query {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        Self::read(&parts.uri)
    }
}

/// For routes that take no query parameters.
#[derive(Debug, Clone, Copy)]
pub(super) struct NoQuery;

impl<S: Send + Sync> FromRequestParts<S> for NoQuery {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        Query::read(&parts.uri)?.finish().map(|()| Self)
    }
}

fn undecodable(name: &str) -> ApiError {
    ApiError::malformed(format!("the query parameter `{name}` is not UTF-8 after percent-decoding")).with_field(name)
}

/// Percent-decoded, `+` read as a space; `None` if that is not UTF-8, or a `%` stands alone.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut digit = || rest.next().and_then(|b| char::from(b).to_digit(16));
                let (high, low) = (digit()?, digit()?);
                (high << 4 | low) as u8
            }
            b'+' => b' ',
            other => other,
        });
    }
    String::from_utf8(bytes).ok()
}

// --- Bodies ---

/// How the specs of a body are written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// One JSON document: a spec, or an array of specs.
    Json,
    /// A JSON document on each line.
    NdJson,
}

/// The format that the headers announce, if it is one that is read here.
pub(super) fn format_of(headers: &HeaderMap) -> Result<Option<Format>, ApiError> {
    let refused = |message: String, field: &str| {
        Err(ApiError::unsupported_media_type(message)
            .with_hint("send application/json, or application/x-ndjson for one spec a line, in UTF-8")
            .with_field(field))
    };
    if let Some(encoding) = headers.get(header::CONTENT_ENCODING)
        && encoding != "identity"
    {
        return refused("compressed bodies are not read".to_owned(), "Content-Encoding");
    }
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return Ok(None) };
    let text = String::from_utf8_lossy(value.as_bytes()).to_ascii_lowercase();
    let mut parts = text.split(';').map(str::trim);
    let format = match parts.next() {
        Some("application/json") => Format::Json,
        Some("application/x-ndjson" | "application/ndjson" | "application/jsonl") => Format::NdJson,
        _ => return refused(format!("a body of type `{text}` is not read"), "Content-Type"),
    };
    let charset = parts.find_map(|part| part.strip_prefix("charset="));
    if charset.is_some_and(|charset| !matches!(charset.trim_matches('"'), "utf-8" | "utf8")) {
        return refused(format!("a body of type `{text}` is not read"), "Content-Type");
    }
    Ok(Some(format))
}

/// A whole body, and the part of the budget for bodies that it takes.
#[derive(Debug)]
pub(super) struct ReadBody {
    pub(super) bytes: Bytes,
    _budget: Option<OwnedSemaphorePermit>,
}

/// Reads a body to its end, unless it is too large, too slow, or too much beside the others.
pub(super) async fn read_body(app: &App, headers: &HeaderMap, body: Body) -> Result<ReadBody, ApiError> {
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > MAX_BODY_BYTES as u64) {
        return Err(body_too_large());
    }
    let deadline = Instant::now() + app.config().body_timeout;
    let mut frames = body.into_data_stream();
    let mut bytes = Vec::new();
    let mut budget: Option<OwnedSemaphorePermit> = None;
    loop {
        let frame = timeout_at(deadline, frames.next())
            .await
            .map_err(|_| ApiError::timeout("the body did not arrive in time"))?;
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|error| ApiError::malformed(format!("the body broke off: {error}")))?;
        if bytes.len() + frame.len() > MAX_BODY_BYTES {
            return Err(body_too_large());
        }
        let more = app.budget_for_body(frame.len())?;
        match &mut budget {
            Some(budget) => budget.merge(more),
            None => budget = Some(more),
        }
        bytes.extend_from_slice(&frame);
    }
    Ok(ReadBody { bytes: bytes.into(), _budget: budget })
}

fn body_too_large() -> ApiError {
    ApiError::too_large(format!("the body is larger than {} MiB", MAX_BODY_BYTES >> 20))
        .with_hint("submit in several requests")
}

// --- Specs ---

/// Whether a body is a list of specs, and not a single one.
pub(super) fn holds_many(body: &ReadBody, format: Format) -> bool {
    match format {
        Format::NdJson => true,
        Format::Json => body.bytes.trim_ascii_start().starts_with(b"["),
    }
}

/// Reads the one spec of a body.
pub(super) async fn read_one(body: &ReadBody) -> Result<Spec, ApiError> {
    read(body, |bytes| {
        let document: &RawValue = serde_json::from_slice(bytes).map_err(|error| unreadable(&error, ""))?;
        read_spec(document)
    })
    .await
}

/// Reads the specs of a body, each for itself, in order. The outer error: the document as a whole cannot be read.
pub(super) async fn read_many(body: &ReadBody, format: Format) -> Result<Vec<Result<Spec, ApiError>>, ApiError> {
    read(body, move |bytes| specs_of(bytes, format)).await
}

fn specs_of(bytes: &[u8], format: Format) -> Result<Vec<Result<Spec, ApiError>>, ApiError> {
    let documents = match format {
        Format::NdJson => lines_of(bytes)?,
        Format::Json => {
            let Documents(documents) = serde_json::from_slice(bytes).map_err(|error| unreadable(&error, ""))?;
            check_count(documents.len())?;
            documents
        }
    };
    Ok(documents.into_iter().map(read_spec).collect())
}

/// Reads where it holds nobody up.
async fn read<T: Send + 'static>(
    body: &ReadBody,
    parse: impl FnOnce(&[u8]) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    if body.bytes.len() <= LARGE_BODY_BYTES {
        return parse(&body.bytes);
    }
    let bytes = body.bytes.clone();
    let read = tokio::task::spawn_blocking(move || parse(&bytes)).await;
    read.unwrap_or_else(|_| Err(ApiError::internal("reading the body failed")))
}

fn lines_of(bytes: &[u8]) -> Result<Vec<&RawValue>, ApiError> {
    let mut documents = Vec::new();
    for (at, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        if line.trim_ascii().is_empty() {
            continue;
        }
        check_count(documents.len() + 1)?;
        let place = format!("line {} of the body: ", at + 1);
        documents.push(serde_json::from_slice(line).map_err(|error| unreadable(&error, &place))?);
    }
    Ok(documents)
}

fn check_count(jobs: usize) -> Result<(), ApiError> {
    if jobs <= MAX_JOBS_PER_REQUEST {
        return Ok(());
    }
    Err(ApiError::too_large(format!("more than {MAX_JOBS_PER_REQUEST} jobs in one request"))
        .with_hint("submit in several requests"))
}

fn unreadable(error: &serde_json::Error, place: &str) -> ApiError {
    ApiError::malformed(format!("{place}not readable as JSON: {error}"))
}

/// One spec, from its own text. Checked for unknown fields, wrong types and impossible values.
fn read_spec(document: &RawValue) -> Result<Spec, ApiError> {
    let text = document.get();
    if text.len() > MAX_SPEC_BYTES {
        return Err(ApiError::too_large(format!("the spec is larger than {} KiB", MAX_SPEC_BYTES >> 10))
            .with_hint("keep large input in files or in a store that the job reads"));
    }
    if !text.starts_with('{') {
        return Err(ApiError::invalid("spec", "must be an object, for instance {\"command\": [\"echo\", \"hi\"]}"));
    }
    let mut unknown = Vec::new();
    let mut track = serde_path_to_error::Track::new();
    let mut json = serde_json::Deserializer::from_str(text);
    let read: Result<Spec, _> =
        serde_ignored::deserialize(serde_path_to_error::Deserializer::new(&mut json, &mut track), |path| {
            unknown.push(path.to_string());
        });
    let spec = read.map_err(|error| {
        let message = without_place(&error);
        match (error.classify(), track.path().to_string()) {
            (Category::Data, path) if path != "." => ApiError::invalid(path, message),
            (Category::Data, _) => ApiError::invalid("spec", message),
            // The document as a whole was readable, so this is a value that JSON can write and nobody can hold.
            (Category::Syntax | Category::Eof | Category::Io, path) => ApiError::malformed(message).with_field(path),
        }
    })?;
    if let Some(field) = unknown.first() {
        let message = format!("a spec has no field `{}`", unknown.join("`, `"));
        let hint = "GET /openapi.json lists the fields under components.schemas.Spec";
        return Err(ApiError::invalid(field, message).with_hint(hint));
    }
    spec.validate()?;
    Ok(spec)
}

/// The message without the line and column: they would count from the beginning of the spec, wherever in the
/// body that is; the field's path says more.
fn without_place(error: &serde_json::Error) -> String {
    let message = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    message.strip_suffix(&place).unwrap_or(&message).to_owned()
}

/// The elements of an array, unread; one more than are allowed is enough to know.
struct Documents<'a>(Vec<&'a RawValue>);

impl<'de> serde::Deserialize<'de> for Documents<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Elements;

        impl<'de> Visitor<'de> for Elements {
            type Value = Vec<&'de RawValue>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array of specs")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Self::Value, A::Error> {
                let mut documents = Vec::new();
                while documents.len() <= MAX_JOBS_PER_REQUEST {
                    match elements.next_element()? {
                        Some(document) => documents.push(document),
                        None => return Ok(documents),
                    }
                }
                while elements.next_element::<IgnoredAny>()?.is_some() {}
                Ok(documents)
            }
        }

        deserializer.deserialize_seq(Elements).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(text: &str) -> Result<Query, ApiError> {
        Query::read(&format!("/?{text}").parse().unwrap())
    }

    #[test]
    fn a_query_is_decoded_and_nothing_is_left_over() {
        let mut read = query("name=a%20b+c&follow&limit=").unwrap();
        assert_eq!(read.take("name", |text| Ok(text.to_owned())).unwrap().as_deref(), Some("a b c"));
        assert!(read.take_flag("follow").unwrap());
        assert_eq!(read.take("limit", |text| text.parse::<u32>().map_err(|e| e.to_string())).unwrap(), None);
        read.finish().unwrap();
        assert_eq!(query("a=%ff").unwrap_err().view.field.as_deref(), Some("a"));
        assert_eq!(query("a=%2").unwrap_err().view.field.as_deref(), Some("a"));
        assert_eq!(query("a=1&a=2").unwrap_err().view.field.as_deref(), Some("a"));
        assert_eq!(query("colour=red").unwrap().finish().unwrap_err().view.field.as_deref(), Some("colour"));
    }

    #[test]
    fn a_spec_must_not_come_as_an_array_of_its_fields() {
        let read = specs_of(br#"[[["echo","hi"]], 7]"#, Format::Json).unwrap();
        assert!(read.iter().all(|spec| spec.as_ref().unwrap_err().view.field.as_deref() == Some("spec")));
    }
}
