//! The pods' own voice: what jobs say of themselves, to the node that runs them and to no other.
//!
//! A pod is given an address on loopback and a token that nobody else has. With both it can say that it is alive,
//! how far it has come, hand in work that the next attempt goes on from, and leave a result:
//!
//! ```text
//! POST $FLOCKWORK_POD_URL?kind=heartbeat
//! POST $FLOCKWORK_POD_URL?kind=progress      {"fraction": 0.4, "message": "second pass"}
//! POST $FLOCKWORK_POD_URL?kind=checkpoint    the bytes, up to 16 MiB
//! POST $FLOCKWORK_POD_URL?kind=result        the bytes, up to 64 KiB
//! Authorization: Bearer $FLOCKWORK_POD_TOKEN
//! ```
//!
//! The server is one of its own, with its own connections, memory and deadlines, so that pods cannot starve the
//! node's clients. Of what is said, only what matters goes on to the driver: a heartbeat never does, progress once a
//! second. A checkpoint and a result do at once, and are answered when they are stored on enough nodes: the answer says
//! on how many.
//!
//! What always holds: a token is good for one attempt, and for nothing from the moment at which that attempt has no
//! say any more; only its hash is kept, so that it cannot be guessed letter by letter from how long looking takes.
//! What is handed in counts whole or not at all. Every refusal says what is wrong, in the shape of the node's own
//! errors.
//!
//! Handlers, which run inside the node, have the same voice without the address.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Deserialize;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::model::blob::{Blob, MAX_CHECKPOINT_BYTES, MAX_RESULT_BYTES};
use crate::model::id::AttemptKey;
use crate::model::report::{MAX_MESSAGE_BYTES, PROGRESS_EVERY, Progress};
use crate::model::request::Receipt;
use crate::model::time::Timestamp;
use crate::protocol::effect::{PodEvent, PodReport, Rejected};

/// The path that pods post to.
const PATH: &str = "/pod-status";

/// Connections that are open at one time, at the most; more wait to be taken.
const CONNECTIONS: usize = 512;

/// How long a pod may take for a request's headers, and leave a connection idle.
const HEADER_TIMEOUT: Duration = Duration::from_secs(15);
/// What headers may take.
const HEADER_BYTES: usize = 16 << 10;
/// How long a pod may take to hand in a body.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a body may wait until there is memory for it.
const MEMORY_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a checkpoint or a result may take to be stored. The Peer has a deadline of its own, which is shorter.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// How much memory bodies take at one time, of all pods together, in KiB. Kept until what was handed in is stored.
const BODY_KIB_IN_ALL: u32 = 64 << 10;
/// The largest body of a report that is no checkpoint and no result.
const SMALL_BODY_BYTES: u64 = 4 << 10;
/// How much of a body that is too large is read and thrown away, so that the refusal is not lost with it.
const DISCARDED_BYTES: usize = 64 << 20;

/// Why what a pod said was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReportError {
    /// The token is not one, or not any more.
    #[error("this attempt has no say any more: it has ended, was stopped, or another has superseded it")]
    Stale,
    /// There is more than is kept.
    #[error("a {what} has at most {limit_bytes} bytes")]
    TooLarge {
        /// What was handed in.
        what: &'static str,
        /// The limit.
        limit_bytes: u64,
    },
    /// It cannot be what it is.
    #[error("{field}: {message}")]
    Invalid {
        /// Which part of it.
        field: &'static str,
        /// What is wrong, and what would be right.
        message: String,
    },
    /// The attempt is handing in another at this moment.
    #[error("this attempt is handing in something else at this moment")]
    Busy,
    /// Work that continues more than this attempt began with was saved already.
    #[error("a later attempt has saved more than this one")]
    Overtaken,
    /// No node could write it down.
    #[error("no node could write it to its disk in time")]
    NotStored,
    /// The node cannot say now whether it is stored.
    #[error("the node did not answer in time, or is shutting down")]
    Unavailable,
}

impl From<Rejected> for ReportError {
    fn from(rejected: Rejected) -> Self {
        match rejected {
            Rejected::Stale => Self::Stale,
            Rejected::Overtaken => Self::Overtaken,
            Rejected::NotStored => Self::NotStored,
        }
    }
}

/// The hash of a token.
type TokenHash = [u8; 32];

/// What all voices share, and the server that hears them. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct PodApi {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    url: String,
    voices: Mutex<BTreeMap<TokenHash, Arc<Voice>>>,
    awaited: Mutex<Awaited>,
    events: mpsc::UnboundedSender<PodEvent>,
    memory: Arc<Semaphore>,
    tracker: TaskTracker,
    runtime: Handle,
    closing: CancellationToken,
}

/// Reports that the driver has not answered yet.
#[derive(Debug, Default)]
struct Awaited {
    next: u64,
    answers: BTreeMap<u64, oneshot::Sender<Result<Receipt, Rejected>>>,
}

impl PodApi {
    /// Listens on a free port of loopback until `closing` is cancelled.
    ///
    /// # Errors
    /// There is no port, or no runtime.
    pub(crate) fn start(
        events: mpsc::UnboundedSender<PodEvent>,
        tracker: TaskTracker,
        closing: CancellationToken,
    ) -> io::Result<Self> {
        let runtime = Handle::try_current().map_err(io::Error::other)?;
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let addr = listener.local_addr()?;
        let listener = TcpListener::from_std(listener)?;
        let shared = Arc::new(Shared {
            url: format!("http://{addr}{PATH}"),
            voices: Mutex::default(),
            awaited: Mutex::default(),
            events,
            memory: Arc::new(Semaphore::new(BODY_KIB_IN_ALL as usize)),
            tracker: tracker.clone(),
            runtime: runtime.clone(),
            closing,
        });
        tracker.spawn_on(accept(Arc::clone(&shared), listener), &runtime);
        Ok(Self { shared })
    }

    /// Where pods post to.
    pub(crate) fn url(&self) -> &str {
        &self.shared.url
    }

    /// Gives an attempt its voice, and the token that is its alone.
    pub(crate) fn enroll(&self, key: AttemptKey) -> (Arc<Voice>, String) {
        let token = data_encoding::HEXLOWER.encode(&rand::random::<[u8; 32]>());
        let hash = hash_of(&token);
        let voice = Arc::new(Voice {
            key,
            hash,
            shared: Arc::clone(&self.shared),
            handing_in: Arc::new(Semaphore::new(1)),
            said: Mutex::new(Said {
                is_open: true,
                heard_at: Instant::now(),
                began_untold: None,
                waiting: 0,
                serial: 0,
                progress: None,
                written_at: None,
                is_timed: false,
                result: None,
            }),
        });
        lock(&self.shared.voices).insert(hash, Arc::clone(&voice));
        (voice, token)
    }

    /// The driver answers report `number`.
    pub(crate) fn answer(&self, number: u64, result: Result<Receipt, Rejected>) {
        let awaited = lock(&self.shared.awaited).answers.remove(&number);
        if let Some(answer) = awaited {
            // The pod may have gone.
            let _ = answer.send(result);
        }
    }
}

fn hash_of(token: &str) -> TokenHash {
    *blake3::hash(token.as_bytes()).as_bytes()
}

/// One attempt's voice.
#[derive(Debug)]
pub(crate) struct Voice {
    key: AttemptKey,
    hash: TokenHash,
    shared: Arc<Shared>,
    /// One body at a time: what an attempt saves replaces what it saved before.
    handing_in: Arc<Semaphore>,
    said: Mutex<Said>,
}

/// What an attempt has said.
#[derive(Debug)]
struct Said {
    is_open: bool,
    heard_at: Instant,
    /// When it began, while the driver does not know of it.
    began_untold: Option<Timestamp>,
    /// How many of its reports are being stored: meanwhile it is not silent, but waits.
    waiting: u32,
    /// Counts the reports that have an order.
    serial: u64,
    /// What is to be written down.
    progress: Option<Progress>,
    written_at: Option<Instant>,
    /// Somebody will write down the progress when it is time.
    is_timed: bool,
    result: Option<Bytes>,
}

impl Voice {
    /// The pod runs now, and is as good as heard. The driver learns of it by [`tell_begin`](Self::tell_begin), or before
    /// anything else that the pod has to say.
    pub(crate) fn begin(&self) {
        let mut said = lock(&self.said);
        said.heard_at = Instant::now();
        said.began_untold = Some(now());
    }

    /// Tells the driver that the pod runs, once.
    pub(crate) fn tell_begin(&self) {
        self.tell_begin_of(&mut lock(&self.said));
    }

    fn tell_begin_of(&self, said: &mut Said) {
        if let Some(at) = said.began_untold.take() {
            self.tell(PodEvent::Started { key: self.key, at });
        }
    }

    /// When anything was heard last.
    pub(crate) fn heard_at(&self) -> Instant {
        let said = lock(&self.said);
        if said.waiting > 0 { Instant::now() } else { said.heard_at }
    }

    /// Ends it: from now on the token is void. What was said last and is not written down yet: how far the attempt has
    /// come, and its result.
    pub(crate) fn revoke(&self) -> (Option<Progress>, Option<Bytes>) {
        lock(&self.shared.voices).remove(&self.hash);
        let mut said = lock(&self.said);
        said.is_open = false;
        (said.progress.take(), said.result.clone())
    }

    fn hear(&self) -> Result<MutexGuard<'_, Said>, ReportError> {
        let mut said = lock(&self.said);
        if !said.is_open {
            return Err(ReportError::Stale);
        }
        said.heard_at = Instant::now();
        Ok(said)
    }

    /// It is alive.
    pub(crate) fn heartbeat(&self) -> Result<(), ReportError> {
        self.hear().map(drop)
    }

    /// It has come this far: `fraction` is from 0 to 1.
    pub(crate) fn progress(self: &Arc<Self>, fraction: f64, message: String) -> Result<(), ReportError> {
        if !(0.0..=1.0).contains(&fraction) {
            let message = format!("{fraction} is not a part of the whole: it must be from 0 to 1");
            return Err(ReportError::Invalid { field: "fraction", message });
        }
        if message.len() > MAX_MESSAGE_BYTES || message.contains(char::is_control) {
            let message = format!("must be one line of at most {MAX_MESSAGE_BYTES} bytes");
            return Err(ReportError::Invalid { field: "message", message });
        }
        let mut said = self.hear()?;
        said.serial += 1;
        let permille = (fraction * 1_000.0).round() as u16;
        said.progress = Some(Progress { serial: said.serial, permille, message });
        if said.is_timed {
            return Ok(());
        }
        let next = said.written_at.map(|at| at + PROGRESS_EVERY).filter(|at| *at > Instant::now());
        match next {
            None => self.write_progress(&mut said),
            Some(at) => {
                said.is_timed = true;
                let voice = Arc::clone(self);
                let waiting = async move {
                    let closing = voice.shared.closing.clone();
                    if tokio::time::timeout_at(at, closing.cancelled()).await.is_err() {
                        let mut said = lock(&voice.said);
                        said.is_timed = false;
                        voice.write_progress(&mut said);
                    }
                };
                self.shared.tracker.spawn_on(waiting, &self.shared.runtime);
            }
        }
        Ok(())
    }

    fn write_progress(&self, said: &mut Said) {
        if let Some(progress) = said.progress.take().filter(|_| said.is_open) {
            said.written_at = Some(Instant::now());
            self.report(said, PodReport::Progress(progress));
        }
    }

    fn report(&self, said: &mut Said, report: PodReport) {
        self.tell_begin_of(said);
        self.tell(PodEvent::Reported { key: self.key, report });
    }

    fn tell(&self, event: PodEvent) {
        // Nobody listens any more where the driver has gone first.
        let _ = self.shared.events.send(event);
    }

    /// What it comes to; the last one counts. Answers as [`checkpoint`](Self::checkpoint) does.
    pub(crate) async fn result(&self, bytes: Bytes) -> Result<Receipt, ReportError> {
        if bytes.len() as u64 > MAX_RESULT_BYTES {
            return Err(ReportError::TooLarge { what: "result", limit_bytes: MAX_RESULT_BYTES });
        }
        // A copy, since a small part of a large buffer would hold on to all of it. Kept, so that it goes with the attempt's end
        // as well: what could not be stored now can be then.
        let bytes = Bytes::copy_from_slice(&bytes);
        let blob = Blob::new(bytes.clone());
        self.hand_in(Some(bytes), |answer, serial| PodReport::Result { answer, serial, blob }).await
    }

    /// Saves work to go on from. Answers once it is stored on as many nodes as can be had, or as were in time.
    pub(crate) async fn checkpoint(&self, bytes: Bytes) -> Result<Receipt, ReportError> {
        if bytes.len() as u64 > MAX_CHECKPOINT_BYTES {
            return Err(ReportError::TooLarge { what: "checkpoint", limit_bytes: MAX_CHECKPOINT_BYTES });
        }
        let hashing = tokio::task::spawn_blocking(move || Blob::new(bytes));
        let blob = hashing.await.map_err(|_| ReportError::Unavailable)?;
        self.hand_in(None, |answer, serial| PodReport::Checkpoint { answer, serial, at: now(), blob }).await
    }

    /// Reports what `make` makes of the number of the answer and that of the report, and waits for the answer. `result` is
    /// kept until the attempt ends.
    async fn hand_in(
        &self,
        result: Option<Bytes>,
        make: impl FnOnce(u64, u64) -> PodReport,
    ) -> Result<Receipt, ReportError> {
        let serial = {
            let mut said = self.hear()?;
            said.serial += 1;
            said.waiting += 1;
            if result.is_some() {
                said.result = result;
            }
            said.serial
        };
        let (answer_to, answered) = oneshot::channel();
        let answer = {
            let mut awaited = lock(&self.shared.awaited);
            awaited.next += 1;
            let number = awaited.next;
            awaited.answers.insert(number, answer_to);
            number
        };
        self.report(&mut lock(&self.said), make(answer, serial));
        let told = tokio::select! {
            told = timeout(ANSWER_TIMEOUT, answered) => Some(told),
            () = self.shared.closing.cancelled() => None,
        };
        {
            let mut said = lock(&self.said);
            said.waiting -= 1;
            said.heard_at = Instant::now();
        }
        match told {
            Some(Ok(Ok(result))) => result.map_err(ReportError::from),
            Some(Ok(Err(_)) | Err(_)) | None => {
                lock(&self.shared.awaited).answers.remove(&answer);
                Err(ReportError::Unavailable)
            }
        }
    }

    /// The right to hand in a body, one at a time.
    fn take_turn(&self) -> Result<OwnedSemaphorePermit, ReportError> {
        Arc::clone(&self.handing_in).try_acquire_owned().map_err(|_| ReportError::Busy)
    }
}

/// Takes connections until the last pod is gone.
async fn accept(shared: Arc<Shared>, listener: TcpListener) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let next = async {
            let slot = Arc::clone(&slots).acquire_owned().await;
            (slot, listener.accept().await)
        };
        let (slot, accepted) = tokio::select! {
            () = shared.closing.cancelled() => return,
            next = next => next,
        };
        match accepted {
            Ok((socket, _)) => {
                let serving = Arc::clone(&shared);
                shared.tracker.spawn(async move {
                    let _slot = slot;
                    tokio::select! {
                        () = serving.closing.cancelled() => {}
                        () = serve(&serving, socket) => {}
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot take a pod's connection");
                // Out of file descriptors, mostly. Trying again at once would only burn the processor.
                if timeout(Duration::from_millis(100), shared.closing.cancelled()).await.is_ok() {
                    return;
                }
            }
        }
    }
}

async fn serve(shared: &Arc<Shared>, socket: TcpStream) {
    let shared = Arc::clone(shared);
    let service = hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let shared = Arc::clone(&shared);
        async move { Ok::<_, Infallible>(answer(&shared, request.map(Body::new)).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(HEADER_BYTES)
        .serve_connection(TokioIo::new(socket), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a pod's connection ended badly");
    }
}

async fn answer(shared: &Shared, request: Request) -> Response {
    match hear_request(shared, request).await {
        Ok(response) => response,
        Err(refusal) => refusal.into_response(),
    }
}

/// A refusal, as HTTP says it.
struct Refused {
    status: StatusCode,
    code: &'static str,
    message: String,
    hint: Option<&'static str>,
    field: Option<&'static str>,
}

impl Refused {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), hint: None, field: None }
    }

    fn invalid(field: &'static str, message: impl Into<String>) -> Self {
        let refused = Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", message);
        Self { field: Some(field), ..refused }
    }
}

impl From<ReportError> for Refused {
    fn from(error: ReportError) -> Self {
        let message = error.to_string();
        match error {
            ReportError::Stale => Self::new(StatusCode::UNAUTHORIZED, "unauthorized", message),
            ReportError::TooLarge { .. } => Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message),
            ReportError::Invalid { field, message } => Self::invalid(field, message),
            ReportError::Busy => Self::new(StatusCode::TOO_MANY_REQUESTS, "slow_down", message),
            ReportError::Overtaken => Self::new(StatusCode::CONFLICT, "conflict", message),
            ReportError::NotStored => Self::new(StatusCode::INSUFFICIENT_STORAGE, "full", message),
            ReportError::Unavailable => Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message),
        }
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let Self { status, code, message, hint, field } = self;
        let body = json!({"error": {"code": code, "message": message, "hint": hint, "field": field}});
        let mut response = (status, axum::Json(body)).into_response();
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// What a pod may say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Heartbeat,
    Progress,
    Checkpoint,
    Result,
}

impl Kind {
    fn limit_bytes(self) -> u64 {
        match self {
            Self::Heartbeat | Self::Progress => SMALL_BODY_BYTES,
            Self::Checkpoint => MAX_CHECKPOINT_BYTES,
            Self::Result => MAX_RESULT_BYTES,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Heartbeat => "heartbeat",
            Self::Progress => "progress",
            Self::Checkpoint => "checkpoint",
            Self::Result => "result",
        }
    }
}

/// What comes with [`Kind::Progress`].
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ProgressBody {
    fraction: f64,
    #[serde(default)]
    message: String,
}

async fn hear_request(shared: &Shared, request: Request) -> Result<Response, Refused> {
    if request.uri().path() != PATH {
        let message = format!("there is no path {} here", request.uri().path());
        let hint = Some("post to the address in FLOCKWORK_POD_URL; a node's clients use another address");
        return Err(Refused { hint, ..Refused::new(StatusCode::NOT_FOUND, "not_found", message) });
    }
    if request.method() != Method::POST {
        let message = format!("{} is not possible here, only POST", request.method());
        return Err(Refused::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message));
    }
    let voice = voice_of(shared, &request)?;
    let kind = kind_of(&request)?;
    let body = match kind {
        Kind::Heartbeat | Kind::Progress => read_body(shared, kind, request).await?,
        Kind::Checkpoint | Kind::Result => {
            let _turn = voice.take_turn()?;
            let body = read_body(shared, kind, request).await?;
            return finish(&voice, kind, body).await;
        }
    };
    finish(&voice, kind, body).await
}

/// Does what a request is about, with what it handed in.
async fn finish(voice: &Arc<Voice>, kind: Kind, body: HandedIn) -> Result<Response, Refused> {
    match kind {
        Kind::Heartbeat => voice.heartbeat()?,
        Kind::Progress => {
            let ProgressBody { fraction, message } = serde_json::from_slice(&body.bytes).map_err(|error| {
                let message = format!("the body must be such as {{\"fraction\": 0.4, \"message\": \"…\"}}: {error}");
                Refused::invalid("body", message)
            })?;
            voice.progress(fraction, message)?;
        }
        Kind::Result => return Ok(stored(voice.result(body.bytes).await?)),
        Kind::Checkpoint => return Ok(stored(voice.checkpoint(body.bytes).await?)),
    }
    Ok(axum::Json(json!({})).into_response())
}

fn stored(receipt: Receipt) -> Response {
    let Receipt { stored, wanted, .. } = receipt;
    let status = if stored < wanted { StatusCode::ACCEPTED } else { StatusCode::OK };
    (status, axum::Json(json!({"stored": stored, "wanted": wanted}))).into_response()
}

fn voice_of(shared: &Shared, request: &Request) -> Result<Arc<Voice>, Refused> {
    let refused = |message: &str| {
        let hint = Some("send the header Authorization: Bearer, with the token in FLOCKWORK_POD_TOKEN");
        Refused { hint, ..Refused::new(StatusCode::UNAUTHORIZED, "unauthorized", message) }
    };
    let given = request.headers().get(header::AUTHORIZATION).ok_or_else(|| refused("there is no token"))?;
    let token = given.to_str().ok().and_then(|text| {
        let (scheme, token) = text.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    });
    let hash = hash_of(token.ok_or_else(|| refused("the header Authorization holds no bearer token"))?);
    lock(&shared.voices).get(&hash).cloned().ok_or_else(|| {
        refused("the token is of no attempt that runs here: it may have ended, been stopped, or been superseded")
    })
}

fn kind_of(request: &Request) -> Result<Kind, Refused> {
    let wrong = |message: String| Refused::invalid("kind", message);
    let query = request.uri().query().unwrap_or_default();
    let mut kind = None;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        if name != "kind" {
            return Err(Refused::invalid("query", format!("`{name}` is not known here, only `kind`")));
        }
        let known = [Kind::Heartbeat, Kind::Progress, Kind::Checkpoint, Kind::Result];
        let found = known.into_iter().find(|kind| kind.as_str() == value);
        let found =
            found.ok_or_else(|| wrong(format!("`{value}` is none of heartbeat, progress, checkpoint, result")))?;
        if kind.replace(found).is_some() {
            return Err(wrong("it is given twice".to_owned()));
        }
    }
    kind.ok_or_else(|| wrong("add ?kind=heartbeat, progress, checkpoint or result to the address".to_owned()))
}

/// A body, and the memory that was set aside for it.
struct HandedIn {
    bytes: Bytes,
    _memory: Option<OwnedSemaphorePermit>,
}

async fn read_body(shared: &Shared, kind: Kind, request: Request) -> Result<HandedIn, Refused> {
    let limit = kind.limit_bytes();
    let declared = request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    let body = request.into_body();
    if declared.is_some_and(|length: u64| length > limit) {
        discard(body).await;
        return Err(ReportError::TooLarge { what: kind.as_str(), limit_bytes: limit }.into());
    }
    let kibibytes = u32::try_from(declared.unwrap_or(limit).div_ceil(1 << 10)).unwrap_or(u32::MAX);
    let memory = match kind {
        Kind::Heartbeat | Kind::Progress => None,
        Kind::Checkpoint | Kind::Result => {
            let acquired = timeout(MEMORY_TIMEOUT, Arc::clone(&shared.memory).acquire_many_owned(kibibytes)).await;
            let message = "the pods of this node hand in more at this moment than it has memory for";
            let busy = || Refused::new(StatusCode::TOO_MANY_REQUESTS, "slow_down", message);
            Some(acquired.map_err(|_| busy())?.map_err(|_| busy())?)
        }
    };
    let reading = async {
        let mut stream = body.into_data_stream();
        let mut bytes = Vec::with_capacity(usize::try_from(declared.unwrap_or(0)).unwrap_or(0));
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|error| {
                Refused::new(StatusCode::BAD_REQUEST, "malformed", format!("the body ended early: {error}"))
            })?;
            if bytes.len() as u64 + chunk.len() as u64 > limit {
                return Err(Refused::from(ReportError::TooLarge { what: kind.as_str(), limit_bytes: limit }));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    };
    let bytes = timeout(BODY_TIMEOUT, reading)
        .await
        .map_err(|_| Refused::new(StatusCode::REQUEST_TIMEOUT, "timeout", "the body did not come in time"))??;
    Ok(HandedIn { bytes: bytes.into(), _memory: memory })
}

/// Reads a body that is refused, within bounds: a client that is still sending might not look at the answer.
async fn discard(body: Body) {
    let reading = async {
        let mut stream = body.into_data_stream();
        let mut seen = 0;
        while let Some(Ok(chunk)) = stream.next().await {
            seen += chunk.len();
            if seen > DISCARDED_BYTES {
                return;
            }
        }
    };
    // However it ends, the refusal follows.
    let _ = timeout(BODY_TIMEOUT, reading).await;
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn now() -> Timestamp {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX))
}
