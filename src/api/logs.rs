//! What jobs wrote: the logs of their attempts, read from the nodes that ran them.
//!
//! A log lives with its attempt, on the attempt's node, as two streams without a common order. Reading one is a
//! series of questions "what comes after byte n?"; following is asking so that the other side waits for more. When
//! a followed attempt is lost or fails and another starts, reading goes on there, and it ends when the job has and
//! everything was read. Of a log whose node cannot be reached any more there is still the last part, which is kept with the job's
//! record when an attempt ends; what is missing before it is said. A log of which there is not even that is said to be
//! missing, and passed over: what comes after it is worth more than an error.
//!
//! Plain bytes are for people and pipes; lines of JSON are for programs that want to know which bytes came from
//! where.

use std::io;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, BoxStream, StreamExt};
use serde::Serialize;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::App;
use super::errors::{ApiError, ErrorBody, ErrorView};
use super::input::{JobPath, Query};
use super::jobs::holders_of;
use super::reason::Names;
use crate::model::attempt::{Attempt, Phase};
use crate::model::id::{Dot, Fence, NodeId};
use crate::model::record::JobState;
use crate::model::request::{Code, JobAnswer, Refusal};
use crate::model::time::Timestamp;
use crate::model::wire::{LogChunk, LogRequest, Stream};

/// How much of a log is asked for at a time.
const CHUNK_BYTES: u32 = 64 << 10;

/// How long the other side may wait for more of a live attempt's log. Short, because meanwhile the attempt may
/// have been lost and have a successor.
const WAIT_FOR_MORE: Duration = Duration::from_secs(2);

/// How long to wait for the end of a log whose attempt has ended already.
const WAIT_FOR_END: Duration = Duration::from_millis(500);

/// How long to wait for news of the job after its log could not be read.
const WAIT_FOR_NEWS: Duration = Duration::from_millis(500);

/// Says of plain bytes that they begin with the last part of a log whose node cannot be reached.
const TAIL_HEADER: &str = "x-flockwork-tail";

/// Says of plain bytes from which byte of the log on they are there, where what was written before is gone.
const FROM_HEADER: &str = "x-flockwork-log-from";

/// Which attempts are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Which {
    /// The one that tells how the job stands; when following, also those after it.
    Telling,
    /// Every one, from the first.
    All,
    /// Those with this number.
    Number(u32),
}

/// A piece of what a client is told.
#[derive(Debug)]
enum Part {
    /// Bytes of a log.
    Bytes { attempt: u32, stream: Stream, offset: u64, bytes: Vec<u8> },
    /// A log, or the rest of it, that cannot be read.
    Missing { attempt: u32, stream: Stream, node_name: String, refusal: Refusal },
    /// The same, but for its last part, which comes next, from this byte on.
    OnlyTail { attempt: u32, stream: Stream, node_name: String, why: String, from: u64, as_of: Option<Timestamp> },
    /// Everything was read.
    End(JobState),
    /// Not everything was read, but reading is over.
    Broken(ApiError),
}

/// A line of a log read as lines of JSON. The last line is `end` or `error`.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(untagged)]
pub(super) enum LogLine {
    /// Bytes of a log that are UTF-8.
    Text {
        /// Which output.
        stream: Stream,
        /// Of which attempt.
        attempt: u32,
        /// From which byte.
        offset: u64,
        /// What was written.
        text: String,
    },
    /// Bytes of a log that are not.
    Bytes {
        /// Which output.
        stream: Stream,
        /// Of which attempt.
        attempt: u32,
        /// From which byte.
        offset: u64,
        /// What was written.
        base64: String,
    },
    /// A log, or the rest of it, that cannot be read.
    Missing {
        /// Which output.
        stream: Stream,
        /// Of which attempt.
        attempt: u32,
        /// The name of the node that ran it.
        node_name: String,
        /// Why.
        missing: String,
        /// Whether the last part of it is there nevertheless, and comes next.
        tail: bool,
        /// When that part was taken, where the attempt may have written more after that.
        #[serde(skip_serializing_if = "Option::is_none")]
        #[schema(value_type = Option<String>, format = DateTime)]
        as_of: Option<Timestamp>,
    },
    /// Everything was read.
    End {
        /// Always true.
        end: bool,
        /// The job's state.
        state: JobState,
    },
    /// Not everything was read; ask again, or another node.
    Error {
        /// Why.
        error: ErrorView,
    },
}

/// Read a job's output
///
/// As plain bytes: of one stream, or of both (unless followed: all of stdout, then all of stderr). With
/// `Accept: application/x-ndjson` as lines of JSON that say which stream, attempt and byte each piece belongs to; the
/// last line is `{"end": true, "state": …}` once all was read, or has an `error`. With `follow`, goes on with the
/// next attempt when one is lost or failed and another starts, and ends when the job has ended. Of a log on a
/// node that cannot be reached there is the last part, if its attempt has ended or ran for more than a few seconds: a line
/// with `"tail": true` says so, or the header `x-flockwork-tail`, and both say of when it is, where the attempt may have
/// written more; otherwise it is passed over, with a line that says so. A node keeps the newest part of each log only:
/// what is missing shows in the offsets of the lines. Plain bytes of which the beginning is missing come with the header
/// `x-flockwork-log-from`, the offset of the first, unless they are followed.
#[utoipa::path(get, path = "/v1/jobs/{id}/logs", tag = "jobs",
    params(
        ("id" = String, Path, description = "The job's id, or its unique beginning"),
        ("follow" = Option<bool>, Query, description = "Wait for more until the job has ended"),
        ("stream" = Option<Stream>, Query, description = "Only this output; both if not given"),
        ("attempt" = Option<String>, Query, description = "A number: only that attempt. `all`: every attempt from the first. If not given, the one that tells how the job stands and, when following, those after it"),
    ),
    responses(
        (status = 200, description = "The output", content((String = "text/plain"), (LogLine = "application/x-ndjson"))),
        (status = 404, description = "No such job, attempt or log", body = ErrorBody),
        (status = 429, description = "Too many streams are open", body = ErrorBody),
        (status = 503, description = "The node that has the log cannot be reached", body = ErrorBody)))]
pub(super) async fn read(
    State(app): State<App>,
    JobPath(prefix): JobPath,
    mut query: Query,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let follow = query.take_flag("follow")?;
    let streams = query.take("stream", |text| match text {
        "stdout" => Ok(vec![Stream::Stdout]),
        "stderr" => Ok(vec![Stream::Stderr]),
        _ => Err(format!("`{text}` is neither stdout nor stderr")),
    })?;
    let which = query.take("attempt", |text| match (text, text.parse()) {
        ("all", _) => Ok(Which::All),
        (_, Ok(number)) => Ok(Which::Number(number)),
        (_, Err(_)) => Err(format!("`{text}` is neither the number of an attempt nor `all`")),
    })?;
    query.finish()?;
    let slot = app.long_slot()?;
    let answer = app.answer(app.handle().job(prefix)).await?;
    let mut reading = Reading {
        app,
        streams: streams.unwrap_or_else(|| vec![Stream::Stdout, Stream::Stderr]),
        which: which.unwrap_or(Which::Telling),
        follow,
        answer,
        last: None,
        queued: Vec::new(),
        over: false,
        whole_characters: false,
        _slot: slot,
    };
    if let Which::Number(number) = reading.which
        && (!follow || reading.answer.record.state().is_terminal())
        && reading.next_attempt().is_none()
    {
        return Err(ApiError::not_found(format!("the job has no attempt {number} with a log")).with_field("attempt"));
    }
    if accepts_lines(&headers) {
        reading.whole_characters = true;
        let lines = parts(reading).map(|part| line_of(part).map_err(io::Error::other));
        return Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response());
    }
    let mut parts = parts(reading);
    let mut first = Vec::new();
    if !follow {
        // While nothing has been sent, what is missing can still be the answer itself.
        match parts.next().await {
            Some(Part::Missing { refusal, .. }) => return Err(refusal.into()),
            Some(Part::Broken(error)) => return Err(error),
            Some(part @ (Part::Bytes { .. } | Part::OnlyTail { .. } | Part::End(_))) => first.push(part),
            None => {}
        }
    }
    let (mut only_tail, mut from) = (None, 0);
    match first.first() {
        Some(Part::Bytes { offset, .. }) => from = *offset,
        Some(Part::OnlyTail { from: offset, as_of, .. }) => {
            let as_of = as_of.map(|at| format!(", as it was at {at}")).unwrap_or_default();
            (only_tail, from) = (Some(format!("only the last part can be reached{as_of}")), *offset);
        }
        Some(Part::Missing { .. } | Part::End(_) | Part::Broken(_)) | None => {}
    }
    let bytes = stream::iter(first).chain(parts).filter_map(async |part| match part {
        Part::Bytes { bytes, .. } => Some(Ok(Bytes::from(bytes))),
        Part::Missing { .. } | Part::OnlyTail { .. } | Part::End(_) => None,
        // The only way left to say that this is not the end.
        Part::Broken(error) => Some(Err(io::Error::other(error.view.message))),
    });
    let headers = [
        (header::CONTENT_TYPE, "text/plain; charset=utf-8"),
        // What a job wrote must never be taken for a page of this node.
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    let mut response = (headers, Body::from_stream(bytes.boxed())).into_response();
    if let Some(told) = only_tail.and_then(|text| HeaderValue::try_from(text).ok()) {
        response.headers_mut().insert(TAIL_HEADER, told);
    }
    if from > 0 {
        response.headers_mut().insert(FROM_HEADER, HeaderValue::from(from));
    }
    Ok(response)
}

fn accepts_lines(headers: &HeaderMap) -> bool {
    headers.get_all(header::ACCEPT).iter().any(|value| {
        value.to_str().is_ok_and(|text| {
            let mut types = text.split(',').map(|part| part.split(';').next().unwrap_or_default().trim());
            types.any(|accepted| accepted.eq_ignore_ascii_case("application/x-ndjson"))
        })
    })
}

fn line_of(part: Part) -> serde_json::Result<Bytes> {
    let line = match part {
        Part::Bytes { attempt, stream, offset, bytes } => match String::from_utf8(bytes) {
            Ok(text) => LogLine::Text { stream, attempt, offset, text },
            Err(error) => {
                let base64 = data_encoding::BASE64.encode(error.as_bytes());
                LogLine::Bytes { stream, attempt, offset, base64 }
            }
        },
        Part::Missing { attempt, stream, node_name, refusal } => {
            LogLine::Missing { stream, attempt, node_name, missing: refusal.message, tail: false, as_of: None }
        }
        Part::OnlyTail { attempt, stream, node_name, why, as_of, .. } => {
            LogLine::Missing { stream, attempt, node_name, missing: why, tail: true, as_of }
        }
        Part::End(state) => LogLine::End { end: true, state },
        Part::Broken(error) => LogLine::Error { error: error.view },
    };
    let mut bytes = serde_json::to_vec(&line)?;
    bytes.push(b'\n');
    Ok(bytes.into())
}

/// The reading of a job's logs, attempt by attempt.
struct Reading {
    app: App,
    streams: Vec<Stream>,
    which: Which,
    follow: bool,
    /// The job, as last heard of.
    answer: JobAnswer,
    /// The last attempt that was begun.
    last: Option<(Fence, Dot)>,
    /// Logs that are still to be read one after the other.
    queued: Vec<LogReader>,
    over: bool,
    whole_characters: bool,
    _slot: OwnedSemaphorePermit,
}

fn parts(reading: Reading) -> BoxStream<'static, Part> {
    stream::unfold(reading, |mut reading| async move {
        let step = reading.next_step().await?;
        Some((step, reading))
    })
    .flatten()
    .boxed()
}

impl Reading {
    /// The parts that come next: of a log, of an attempt's two logs side by side, or the end.
    async fn next_step(&mut self) -> Option<BoxStream<'static, Part>> {
        if let Some(reader) = self.queued.pop() {
            return Some(reader.parts());
        }
        loop {
            if self.over {
                return None;
            }
            if self.app.stop().is_cancelled() {
                return Some(self.last_part(Part::Broken(super::shutting_down())));
            }
            if let Some((key, attempt)) = self.next_attempt() {
                let mut readers = self.readers(key, &attempt);
                self.last = Some(key);
                if self.follow {
                    return Some(stream::select_all(readers.into_iter().map(LogReader::parts)).boxed());
                }
                readers.reverse();
                self.queued = readers;
                return self.queued.pop().map(LogReader::parts);
            }
            let state = self.answer.record.state();
            let number_was_read = matches!(self.which, Which::Number(_)) && self.last.is_some();
            if !self.follow || state.is_terminal() || number_was_read {
                return Some(self.last_part(Part::End(state)));
            }
            match self.app.news_of(self.answer.record.id, Some(self.answer.version), super::LONG_POLL).await {
                Ok(Some(news)) => self.answer = news,
                Ok(None) => {}
                Err(error) => return Some(self.last_part(Part::Broken(error))),
            }
        }
    }

    fn last_part(&mut self, part: Part) -> BoxStream<'static, Part> {
        self.over = true;
        stream::iter([part]).boxed()
    }

    /// The next attempt whose log is wanted. One that was given back before it began has none.
    fn next_attempt(&self) -> Option<((Fence, Dot), Attempt)> {
        let record = &self.answer.record;
        let mut wanted: Vec<_> = record
            .attempts
            .iter()
            .filter(|(_, attempt)| attempt.fate.phase != Phase::Returned || attempt.started_at.is_some())
            .map(|(dot, attempt)| ((attempt.fence(), *dot), attempt))
            .filter(|(key, attempt)| match (self.which, self.last) {
                (Which::Number(number), _) if attempt.claim.number != number => false,
                (Which::Number(_) | Which::All, last) => last.is_none_or(|last| *key > last),
                (Which::Telling, None) => record.telling().is_some_and(|telling| telling.fence() == key.0),
                (Which::Telling, Some(last)) => self.follow && *key > last,
            })
            .collect();
        wanted.sort_by_key(|(key, _)| *key);
        wanted.first().map(|(key, attempt)| (*key, Attempt::clone(attempt)))
    }

    fn readers(&self, (_, claim): (Fence, Dot), attempt: &Attempt) -> Vec<LogReader> {
        let reader = |stream: &Stream| LogReader {
            app: self.app.clone(),
            answer: self.answer.clone(),
            claim,
            number: attempt.claim.number,
            node: attempt.claim.executor.node,
            stream: *stream,
            follow: self.follow,
            offset: 0,
            held_back: Vec::new(),
            whole_characters: self.whole_characters,
            over: false,
            tail: None,
        };
        self.streams.iter().map(reader).collect()
    }
}

/// The reading of one log.
struct LogReader {
    app: App,
    /// The job, as last heard of.
    answer: JobAnswer,
    claim: Dot,
    number: u32,
    node: NodeId,
    stream: Stream,
    follow: bool,
    /// How far it was read.
    offset: u64,
    /// The beginning of a character whose rest has not come.
    held_back: Vec<u8>,
    /// Whether characters must not be cut in two.
    whole_characters: bool,
    over: bool,
    /// The last part of a log that cannot be read, once it was fetched.
    tail: Option<LogChunk>,
}

impl LogReader {
    fn parts(self) -> BoxStream<'static, Part> {
        stream::unfold(self, |mut reader| async move {
            let part = reader.next().await?;
            Some((part, reader))
        })
        .boxed()
    }

    async fn next(&mut self) -> Option<Part> {
        if let Some(chunk) = self.tail.take() {
            self.over = true;
            return self.take(chunk);
        }
        while !self.over {
            let live = self.is_live();
            let wait = match (self.follow, live) {
                (false, _) => Duration::ZERO,
                (true, true) => WAIT_FOR_MORE,
                (true, false) => WAIT_FOR_END,
            };
            let asked = self.ask(wait);
            let told = tokio::select! {
                // Whoever reads the attempts one after the other says why this ends here.
                () = self.app.stop().cancelled() => {
                    self.over = true;
                    return None;
                }
                told = asked => told,
            };
            match told {
                Ok(chunk) => {
                    let (nothing_new, end) = (chunk.bytes.is_empty(), chunk.end);
                    // Of a live attempt there may be more, unless nobody waits for it.
                    self.over = end || (nothing_new && !(self.follow && live));
                    if let Some(part) = self.take(chunk) {
                        return Some(part);
                    }
                    if !self.over
                        && nothing_new
                        && let Err(error) = self.hear_news(Duration::ZERO).await
                    {
                        self.over = true;
                        return Some(Part::Broken(error));
                    }
                }
                // The pod may not have started yet, or its node may be going down.
                Err(refusal) if self.follow && live => {
                    if self.hear_news(WAIT_FOR_NEWS).await.is_err() {
                        return Some(self.missing(refusal));
                    }
                }
                // What never started has written nothing, and that is all there is to read.
                Err(refusal) if refusal.code == Code::NotFound && !self.has_started() => self.over = true,
                Err(refusal) => match self.missing_but_for_tail(refusal).await {
                    Some(part) => return Some(part),
                    None => self.over = true,
                },
            }
        }
        let rest = std::mem::take(&mut self.held_back);
        (!rest.is_empty()).then(|| self.bytes(rest))
    }

    fn ask(&self, wait: Duration) -> impl Future<Output = Result<LogChunk, Refusal>> + use<> {
        let request = LogRequest {
            job: self.answer.record.id,
            claim: self.claim,
            stream: self.stream,
            offset: self.offset,
            limit: CHUNK_BYTES,
            wait_ms: wait.as_millis() as u32,
        };
        let (app, node) = (self.app.clone(), self.node);
        async move {
            let deadline = wait + app.config().answer_timeout;
            timeout(deadline, app.handle().read_log(node, request)).await.unwrap_or_else(|_| {
                Err(Refusal::new(Code::Unavailable, "the node that has the log did not answer in time"))
            })
        }
    }

    /// Whether the attempt may still write, by what was last heard.
    fn is_live(&self) -> bool {
        self.answer.record.attempts.get(&self.claim).is_some_and(|attempt| attempt.is_live())
    }

    fn has_started(&self) -> bool {
        self.answer.record.attempts.get(&self.claim).is_some_and(|attempt| attempt.started_at.is_some())
    }

    /// Waits for news of the job. An error means that there will be none.
    async fn hear_news(&mut self, patience: Duration) -> Result<(), ApiError> {
        if let Some(news) = self.app.news_of(self.answer.record.id, Some(self.answer.version), patience).await? {
            self.answer = news;
        }
        Ok(())
    }

    /// What of a chunk can be told, and notes how far it goes.
    fn take(&mut self, chunk: LogChunk) -> Option<Part> {
        if chunk.bytes.is_empty() {
            return None;
        }
        let gap = chunk.offset > self.offset;
        let mut bytes = if gap { Vec::new() } else { std::mem::take(&mut self.held_back) };
        self.held_back.clear();
        self.offset = self.offset.max(chunk.offset) + chunk.bytes.len() as u64;
        bytes.extend_from_slice(&chunk.bytes);
        if self.whole_characters && !self.over {
            let cut = bytes.len() - unfinished(&bytes);
            self.held_back = bytes.split_off(cut);
        }
        (!bytes.is_empty()).then(|| self.bytes(bytes))
    }

    fn bytes(&self, bytes: Vec<u8>) -> Part {
        let offset = self.offset - (bytes.len() + self.held_back.len()) as u64;
        Part::Bytes { attempt: self.number, stream: self.stream, offset, bytes }
    }

    /// The log cannot be read where it is: what is kept of it with the record is told instead, and what is missing
    /// before that. Nothing, where nothing was written.
    async fn missing_but_for_tail(&mut self, refusal: Refusal) -> Option<Part> {
        // Its end may have come after the job was last heard of.
        let _ = self.hear_news(Duration::ZERO).await;
        let Some(attempt) = self.answer.record.attempts.get(&self.claim) else {
            return Some(self.missing(refusal));
        };
        let tail = match self.stream {
            Stream::Stdout => attempt.tails.stdout,
            Stream::Stderr => attempt.tails.stderr,
        };
        // Whoever tells how its attempt ended keeps what was written last.
        let told_its_end = !attempt.is_live() && attempt.fate.by_executor && attempt.fate.phase != Phase::Lost;
        let Some(tail) = tail else {
            // It was nothing, then.
            return (!told_its_end).then(|| self.missing(refusal));
        };
        let reading = self.app.handle().read_blob(tail.blob, holders_of(&self.answer));
        let Ok(blob) = self.app.answer(reading).await else { return Some(self.missing(refusal)) };
        // What was read before the node was gone is not told again.
        let known = usize::try_from(self.offset.saturating_sub(tail.offset)).unwrap_or(usize::MAX);
        let bytes = blob.bytes().get(known..).unwrap_or_default().to_vec();
        let chunk = LogChunk { offset: tail.offset.max(self.offset), bytes, end: true };
        if tail.offset <= self.offset && told_its_end {
            // It goes on just where reading was: nothing is missing.
            self.over = true;
            return self.take(chunk);
        }
        if chunk.bytes.is_empty() {
            // All that it tells was read before its node was gone.
            return Some(self.missing(refusal));
        }
        if tail.offset > self.offset {
            self.held_back.clear();
        }
        let from = chunk.offset;
        let as_of = tail.as_of.filter(|_| !told_its_end);
        self.tail = Some(chunk);
        let node_name = Names(&self.app.handle().snapshot().view).of(self.node);
        let why = refusal.message;
        Some(Part::OnlyTail { attempt: self.number, stream: self.stream, node_name, why, from, as_of })
    }

    fn missing(&mut self, refusal: Refusal) -> Part {
        self.over = true;
        let node_name = Names(&self.app.handle().snapshot().view).of(self.node);
        Part::Missing { attempt: self.number, stream: self.stream, node_name, refusal }
    }
}

/// How many bytes at the end are the beginning of a character whose rest is missing.
fn unfinished(bytes: &[u8]) -> usize {
    let tail = &bytes[bytes.len().saturating_sub(3)..];
    for (at, byte) in tail.iter().enumerate().rev() {
        let length = match byte {
            0xC2..=0xDF => 2,
            0xE0..=0xEF => 3,
            0xF0..=0xF4 => 4,
            // The middle of a character: look for its beginning.
            0x80..=0xBF => continue,
            _ => return 0,
        };
        let here = tail.len() - at;
        return if here < length { here } else { 0 };
    }
    0
}

#[cfg(test)]
mod tests {
    use super::unfinished;

    #[test]
    fn a_character_is_held_back_until_it_is_whole() {
        assert_eq!(unfinished("abc".as_bytes()), 0);
        assert_eq!(unfinished("ä".as_bytes()), 0);
        assert_eq!(unfinished(&"aä".as_bytes()[..2]), 1);
        assert_eq!(unfinished(&"a€".as_bytes()[..3]), 2);
        assert_eq!(unfinished(&"a🦆".as_bytes()[..4]), 3);
        assert_eq!(unfinished("a🦆".as_bytes()), 0);
        assert_eq!(unfinished(&[0x80, 0x80, 0x80]), 0);
        assert_eq!(unfinished(&[]), 0);
    }
}
