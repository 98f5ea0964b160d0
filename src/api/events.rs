//! What happens, as it happens: Server-Sent Events.
//!
//! A stream begins where the client comes in; nothing is kept for those who come back. So a client that names the
//! last event it saw, or reads too slowly, is told that it has missed some, and should read the state again. A
//! comment line every few seconds shows that the stream lives.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{Event as SseEvent, KeepAlive};
use axum::response::{IntoResponse, Response, Sse};
use futures_util::stream::{self, Stream, StreamExt};
use serde::Serialize;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{OwnedSemaphorePermit, broadcast};

use super::App;
use super::errors::{ApiError, ErrorBody};
use super::input::{JobPath, NoQuery};
use super::reason::Names;
use super::views::JobView;
use crate::model::id::{JobId, NodeId};
use crate::model::member::{MemberState, Status};
use crate::model::record::JobState;
use crate::model::request::{Event, EventKind, JobAnswer};
use crate::model::time::Timestamp;

/// How often a silent stream says that it lives.
const HEARTBEAT: Duration = Duration::from_secs(10);

const LAST_EVENT_ID: &str = "last-event-id";

/// Something that happened.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub(super) enum EventView {
    /// A member changed.
    Member {
        /// The node that tells.
        #[schema(value_type = String)]
        told_by: NodeId,
        /// When, by its clock.
        #[schema(value_type = String, format = DateTime)]
        at: Timestamp,
        /// Which member.
        #[schema(value_type = String)]
        node: NodeId,
        /// Its name.
        name: String,
        /// The verdict of the node that tells: `alive`, `suspect`, `down` or `left`.
        #[schema(value_type = String)]
        state: MemberState,
        /// What the member says it is doing.
        #[schema(value_type = String)]
        status: Status,
        /// The verdict until now; null for one just met.
        #[schema(value_type = Option<String>)]
        was: Option<MemberState>,
        /// Why, for people.
        reason: String,
    },
    /// A job's state or its current attempt changed.
    Job {
        /// The node that tells: the job's owner.
        #[schema(value_type = String)]
        told_by: NodeId,
        /// When, by its clock.
        #[schema(value_type = String, format = DateTime)]
        at: Timestamp,
        /// Which job.
        #[schema(value_type = String)]
        id: JobId,
        /// Its name or command.
        title: String,
        /// Its state now.
        state: JobState,
        /// The number of the attempt that tells how it stands.
        attempt: Option<u32>,
        /// The node of that attempt.
        #[schema(value_type = Option<String>)]
        node: Option<NodeId>,
        /// That node's name.
        node_name: Option<String>,
        /// In a few words.
        reason: String,
    },
    /// A member that had been gone for long is no longer counted as one.
    Forgotten {
        /// The node that tells.
        #[schema(value_type = String)]
        told_by: NodeId,
        /// When, by its clock.
        #[schema(value_type = String, format = DateTime)]
        at: Timestamp,
        /// Which member.
        #[schema(value_type = String)]
        node: NodeId,
        /// Its name.
        name: String,
    },
    /// Two attempts of a job ran, or may have run, at the same time.
    Overlap {
        /// The node that tells: the job's owner.
        #[schema(value_type = String)]
        told_by: NodeId,
        /// When, by its clock.
        #[schema(value_type = String, format = DateTime)]
        at: Timestamp,
        /// Which job.
        #[schema(value_type = String)]
        id: JobId,
        /// Its name, or its command.
        title: String,
        /// The two attempts.
        attempts: Vec<RanBeside>,
        /// Both are known to have run on; otherwise one may have been dead by then.
        certain: bool,
    },
    /// A record that another node sent cannot be, and was not taken.
    Rejected {
        /// The node that tells: the one that did not take it.
        #[schema(value_type = String)]
        told_by: NodeId,
        /// When, by its clock.
        #[schema(value_type = String, format = DateTime)]
        at: Timestamp,
        /// Which job.
        #[schema(value_type = String)]
        id: JobId,
        /// Who sent it.
        #[schema(value_type = String)]
        from: NodeId,
        /// What is wrong with it.
        reason: String,
    },
}

impl EventView {
    fn new(told_by: NodeId, event: Event, names: Names<'_>) -> Self {
        let at = event.at;
        match event.kind {
            EventKind::Member { node, name, state, status, was, reason } => {
                Self::Member { told_by, at, node, name, state, status, was, reason }
            }
            EventKind::Forgotten { node, name } => Self::Forgotten { told_by, at, node, name },
            EventKind::Job { job, title, state, attempt, node, reason } => {
                let node_name = node.map(|node| names.of(node));
                Self::Job { told_by, at, id: job, title, state, attempt, node, node_name, reason }
            }
            EventKind::Overlap { job, title, attempts, certain } => {
                let attempts = attempts.map(|(number, node)| RanBeside { number, node, node_name: names.of(node) });
                Self::Overlap { told_by, at, id: job, title, attempts: attempts.into(), certain }
            }
            EventKind::Rejected { job, from, reason } => Self::Rejected { told_by, at, id: job, from, reason },
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Member { .. } => "member",
            Self::Forgotten { .. } => "forgotten",
            Self::Job { .. } => "job",
            Self::Overlap { .. } => "overlap",
            Self::Rejected { .. } => "rejected",
        }
    }
}

/// One of the attempts that overlap.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct RanBeside {
    /// Its number.
    number: u32,
    /// Where it ran.
    #[schema(value_type = String)]
    node: NodeId,
    /// That node's name.
    node_name: String,
}

#[derive(Debug, Serialize)]
struct Missed {
    /// How many, where that is known.
    missed: Option<u64>,
}

/// Follow the cluster
///
/// Membership and job state changes of the whole cluster from now on, as Server-Sent Events: `member` and `job`,
/// each with an id. `lagged` (`{"missed": n}`, null if not known) says that this reader has missed some, because it
/// was too slow or came back: read the state again.
#[utoipa::path(get, path = "/v1/events", tag = "events",
    responses((status = 200, description = "A stream without end", body = EventView, content_type = "text/event-stream"),
        (status = 429, description = "Too many streams are open", body = ErrorBody)))]
pub(super) async fn all(State(app): State<App>, _: NoQuery, headers: HeaderMap) -> Result<Response, ApiError> {
    let slot = app.long_slot()?;
    let came_back = headers.contains_key(LAST_EVENT_ID);
    let events = app.handle().events();
    let follower = Follower { app, events, greeting: Some(came_back), _slot: slot };
    Ok(event_stream(stream::unfold(follower, |mut follower| async move {
        let event = follower.next().await?;
        Some((event, follower))
    })))
}

struct Follower {
    app: App,
    events: broadcast::Receiver<(NodeId, Event)>,
    /// What is still to be said first: whether the reader came back.
    greeting: Option<bool>,
    _slot: OwnedSemaphorePermit,
}

impl Follower {
    async fn next(&mut self) -> Option<SseEvent> {
        match self.greeting.take() {
            Some(true) => return Some(lagged(None)),
            Some(false) => return Some(SseEvent::default().comment("listening")),
            None => {}
        }
        let told = tokio::select! {
            () = self.app.stop().cancelled() => return None,
            told = self.events.recv() => told,
        };
        match told {
            Ok((told_by, event)) => {
                let id = format!("{told_by}-{}", event.seq);
                let view = EventView::new(told_by, event, Names(&self.app.handle().snapshot().view));
                Some(with_json(SseEvent::default().id(id).event(view.name()), &view))
            }
            Err(RecvError::Lagged(missed)) => Some(lagged(Some(missed))),
            Err(RecvError::Closed) => None,
        }
    }
}

/// Follow a job
///
/// The job as it is, and again after every change, as Server-Sent Events named `job`. After the one that shows it
/// ended, `end` follows and the stream is over. A client that comes back having seen just that (Last-Event-ID) gets
/// 204, which tells a browser not to come back again.
#[utoipa::path(get, path = "/v1/jobs/{id}/events", tag = "events",
    params(("id" = String, Path, description = "The job's id, or its unique beginning")),
    responses((status = 200, description = "A stream until the job has ended", body = JobView, content_type = "text/event-stream"),
        (status = 204, description = "The job has ended, and the client has seen that"),
        (status = 404, description = "No such job", body = ErrorBody),
        (status = 429, description = "Too many streams are open", body = ErrorBody)))]
pub(super) async fn of_job(
    State(app): State<App>,
    JobPath(prefix): JobPath,
    _: NoQuery,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let slot = app.long_slot()?;
    let answer = app.answer(app.handle().job(prefix)).await?;
    let seen = headers.get(LAST_EVENT_ID).is_some_and(|id| id.as_bytes() == id_of(&answer).as_bytes());
    if seen && answer.record.state().is_terminal() {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let follower = JobFollower { app, known: answer, stage: Stage::Show, _slot: slot };
    Ok(event_stream(stream::unfold(follower, |mut follower| async move {
        let event = follower.next().await?;
        Some((event, follower))
    })))
}

struct JobFollower {
    app: App,
    known: JobAnswer,
    stage: Stage,
    _slot: OwnedSemaphorePermit,
}

/// What comes next in a job's stream.
enum Stage {
    Show,
    AwaitChange,
    SayEnd,
    Over,
}

impl JobFollower {
    async fn next(&mut self) -> Option<SseEvent> {
        loop {
            match self.stage {
                Stage::Show => {
                    let ended = self.known.record.state().is_terminal();
                    self.stage = if ended { Stage::SayEnd } else { Stage::AwaitChange };
                    let view = JobView::of_answer(&self.known, &self.app.handle().snapshot());
                    return Some(with_json(SseEvent::default().id(id_of(&self.known)).event("job"), &view));
                }
                Stage::AwaitChange => {
                    let known = Some(self.known.version);
                    match self.app.news_of(self.known.record.id, known, super::LONG_POLL).await {
                        Ok(None) => {}
                        Ok(Some(news)) => {
                            self.known = news;
                            self.stage = Stage::Show;
                        }
                        Err(error) => {
                            self.stage = Stage::Over;
                            return Some(with_json(
                                SseEvent::default().event("error"),
                                &ErrorBody { error: error.view },
                            ));
                        }
                    }
                }
                Stage::SayEnd => {
                    self.stage = Stage::Over;
                    let state = self.known.record.state();
                    return Some(with_json(SseEvent::default().event("end"), &Ended { state }));
                }
                Stage::Over => return None,
            }
        }
    }
}

#[derive(Debug, Serialize)]
struct Ended {
    state: JobState,
}

fn id_of(answer: &JobAnswer) -> String {
    format!("{:?}", answer.version)
}

fn lagged(missed: Option<u64>) -> SseEvent {
    with_json(SseEvent::default().event("lagged"), &Missed { missed })
}

/// The event with its data. What cannot be written is said in a comment, and the stream goes on.
fn with_json(event: SseEvent, data: &impl Serialize) -> SseEvent {
    event.json_data(data).unwrap_or_else(|error| SseEvent::default().comment(format!("an event was lost: {error}")))
}

fn event_stream(events: impl Stream<Item = SseEvent> + Send + 'static) -> Response {
    Sse::new(events.map(Ok::<_, Infallible>)).keep_alive(KeepAlive::new().interval(HEARTBEAT)).into_response()
}
