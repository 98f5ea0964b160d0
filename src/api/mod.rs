//! The HTTP edge: what programs, dashboards and people talk to.
//!
//! Every node has one, and any of them answers for the whole cluster. The edge is thin: it reads a request
//! strictly, asks the node one question through its [`Handle`], and writes the answer as JSON. It never sees the
//! protocol's state, and keeps none of its own but a few counters, so that nothing here can disagree with the
//! node.
//!
//! What always holds: every refusal has the same shape (`errors`); every buffer, queue and number of requests
//! is bounded, and every wait has a deadline; a panic while answering is one client's 500 and no more; a web page
//! that a person visits cannot use their browser to submit commands (`guard`); and the OpenAPI document is
//! generated from the handlers themselves, so it cannot lag behind.
//!
//! Requests come in two kinds. Short ones are answered at once and share one bound. Long ones (event streams,
//! followed logs, waits) hold a connection by their nature; they have a bound of their own, and end when the node
//! stops.
#![allow(clippy::disallowed_methods, reason = "the edge owns the deadlines of its sockets and requests")]

mod admission;
mod debug;
mod errors;
mod events;
mod faults;
mod guard;
mod health;
mod impact;
mod input;
mod jobs;
mod logs;
mod merges;
mod nodes;
mod page;
mod reason;
mod server;
mod stream;
mod submit;
mod views;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use self::admission::{Admission, Admitted};
use self::errors::ApiError;
use self::health::Counts;
use crate::io::faults::Faults;
use crate::model::id::JobId;
use crate::model::record::Version;
use crate::model::request::{Code, JobAnswer, Refusal};
use crate::node::handle::Handle;

/// The settings of the HTTP edge.
#[derive(Debug, Clone, PartialEq)]
pub struct ApiConfig {
    /// Names, besides `localhost` and every IP address, that clients may use for this node in their `Host`
    /// header. Any other name is refused: a page of a hostile site can make its own name point here, and then
    /// its visitors' browsers would let it read the answers.
    pub allowed_hosts: Vec<String>,
    /// How long a client may take to send a request's headers, and stay idle between requests. Longer is kinder
    /// to slow clients, and lets idle ones hold connections for longer.
    pub header_timeout: Duration,
    /// How long a client may take to send a request's body.
    pub body_timeout: Duration,
    /// How long the node may take to answer a short request; it has deadlines of its own, which are shorter.
    pub answer_timeout: Duration,
    /// How many connections are open at the most; more wait to be taken. Must exceed `max_long_requests`, or
    /// those leave none for the others.
    pub max_connections: usize,
    /// How many short requests are answered side by side; more are refused (429).
    pub max_requests: usize,
    /// How many event streams, followed logs and waits are open at the most; more are refused (429).
    pub max_long_requests: usize,
    /// How many bytes of request bodies are held at once, of all clients together; more are refused (429).
    pub max_body_bytes_in_all: usize,
    /// How long requests under way may take to finish when the node stops.
    pub shutdown_grace: Duration,
    /// The faults that `POST /debug/faults` sets. While they are disarmed, as they usually are, it is refused.
    pub faults: Faults,
}

impl Default for ApiConfig {
    fn default() -> Self {
        Self {
            allowed_hosts: Vec::new(),
            header_timeout: Duration::from_secs(15),
            body_timeout: Duration::from_secs(60),
            answer_timeout: Duration::from_secs(30),
            max_connections: 2_048,
            max_requests: 512,
            max_long_requests: 1_024,
            max_body_bytes_in_all: 256 << 20,
            shutdown_grace: Duration::from_secs(5),
            faults: Faults::disarmed(),
        }
    }
}

/// Serves HTTP on `listener` until `stop` is cancelled and the last request is done, or its grace period over.
///
/// # Errors
/// None that a client or a lack of file descriptors can cause; those are waited out.
pub async fn serve(
    listener: TcpListener,
    handle: Handle,
    config: ApiConfig,
    stop: CancellationToken,
) -> io::Result<()> {
    let app = App::new(handle, config, stop.clone());
    let router = router(&app);
    server::run(listener, router, app, stop).await
}

/// The OpenAPI document of this version, as `/openapi.json` serves it.
pub fn openapi() -> utoipa::openapi::OpenApi {
    let (short, unbounded) = documented_routes();
    unbounded.merge(short).into_openapi()
}

/// How long one long poll of the node takes at the most, where nothing happens.
const LONG_POLL: Duration = Duration::from_secs(10);

/// The pause before the node is asked again for news, after it could not tell.
const PAUSE_WITHOUT_NEWS: Duration = Duration::from_millis(250);

/// What every handler knows.
#[derive(Debug, Clone)]
struct App(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    handle: Handle,
    config: ApiConfig,
    stop: CancellationToken,
    counts: Counts,
    short: Arc<Semaphore>,
    submits: Admission,
    long: Arc<Semaphore>,
    body_bytes: Arc<Semaphore>,
}

impl App {
    fn new(handle: Handle, config: ApiConfig, stop: CancellationToken) -> Self {
        let semaphore = |permits: usize| Arc::new(Semaphore::new(permits.min(Semaphore::MAX_PERMITS)));
        Self(Arc::new(Shared {
            handle,
            short: semaphore(config.max_requests),
            submits: Admission::new(Instant::now()),
            long: semaphore(config.max_long_requests),
            body_bytes: semaphore(config.max_body_bytes_in_all),
            config,
            stop,
            counts: Counts::default(),
        }))
    }

    fn handle(&self) -> &Handle {
        &self.0.handle
    }

    fn config(&self) -> &ApiConfig {
        &self.0.config
    }

    fn counts(&self) -> &Counts {
        &self.0.counts
    }

    fn stop(&self) -> &CancellationToken {
        &self.0.stop
    }

    /// A place among the short requests.
    fn short_slot(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        Arc::clone(&self.0.short)
            .try_acquire_owned()
            .map_err(|_| ApiError::slow_down("this node answers as many requests as it can already"))
    }

    /// A place among the submits of single jobs.
    fn submit_slot(&self) -> Result<Admitted<'_>, ApiError> {
        let busy = || ApiError::slow_down("this node has as many submits under way as it answers soon");
        self.0.submits.admit(Instant::now()).ok_or_else(busy)
    }

    /// A place among the streams and waits, for as long as it is kept.
    fn long_slot(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        Arc::clone(&self.0.long)
            .try_acquire_owned()
            .map_err(|_| ApiError::slow_down("this node has as many streams and waits open as it can hold"))
    }

    /// Room for `bytes` more of a request's body, for as long as it is kept.
    fn budget_for_body(&self, bytes: usize) -> Result<OwnedSemaphorePermit, ApiError> {
        u32::try_from(bytes)
            .ok()
            .and_then(|bytes| Arc::clone(&self.0.body_bytes).try_acquire_many_owned(bytes).ok())
            .ok_or_else(|| ApiError::slow_down("this node holds as many request bodies as it can already"))
    }

    /// The node's answer, within the deadline.
    async fn answer<T>(&self, asked: impl Future<Output = Result<T, Refusal>>) -> Result<T, ApiError> {
        match timeout(self.config().answer_timeout, asked).await {
            Ok(answer) => answer.map_err(ApiError::from),
            Err(_) => Err(ApiError::unavailable("the node did not answer in time")),
        }
    }

    /// The job, as soon as it differs from `known`. `None`: there is no news within about `patience`, or nobody
    /// who could tell. An error is one that asking again will not mend.
    async fn news_of(
        &self,
        job: JobId,
        known: Option<Version>,
        patience: Duration,
    ) -> Result<Option<JobAnswer>, ApiError> {
        let patience = patience.min(LONG_POLL);
        let asked = timeout(patience + self.config().answer_timeout, self.handle().watch(job, known, patience));
        let told = tokio::select! {
            () = self.stop().cancelled() => return Err(shutting_down()),
            told = asked => told,
        };
        let refusal = match told {
            Ok(Ok(answer)) => return Ok((Some(answer.version) != known).then_some(answer)),
            Ok(Err(refusal)) => refusal,
            Err(_) => return Ok(None),
        };
        match refusal.code {
            Code::SlowDown | Code::Unavailable => {
                tokio::select! {
                    () = self.stop().cancelled() => Err(shutting_down()),
                    () = tokio::time::sleep(PAUSE_WITHOUT_NEWS) => Ok(None),
                }
            }
            Code::Malformed
            | Code::NotFound
            | Code::Conflict
            | Code::TooLarge
            | Code::Invalid
            | Code::Full
            | Code::Internal => Err(refusal.into()),
        }
    }
}

fn shutting_down() -> ApiError {
    ApiError::unavailable("this node is shutting down")
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "flockwork",
        description = "A leaderless job cluster: submit a command to any node; any node answers for all. \
                       Durations are \"1m30s\" or seconds, times RFC 3339 in UTC. A job is named by its id or by \
                       the beginning of it, four digits or more, where that is unique. Every refusal has the \
                       shape of ErrorBody, whatever refused: 400 unreadable, 403 a Host or Origin that is not \
                       allowed, 404, 405, 408 a body that does not come, 409, 413 too large, 415, 422 a field or \
                       parameter that cannot be what it is, 429 too much at once, 503 not ready, 507 disk full.",
    ),
    tags(
        (name = "jobs", description = "Submitting, reading and ending jobs"),
        (name = "nodes", description = "The cluster's members"),
        (name = "events", description = "What happens, as it happens"),
        (name = "debug", description = "What this node sees, for those who look after the cluster"),
        (name = "health", description = "For supervisors and monitoring"),
    )
)]
struct Document;

/// All routes, short ones and long ones, and their description.
fn documented_routes() -> (OpenApiRouter<App>, OpenApiRouter<App>) {
    let short = OpenApiRouter::new()
        .routes(routes!(jobs::list))
        .routes(routes!(submit::submit))
        .routes(routes!(jobs::read, jobs::cancel))
        .routes(routes!(submit::retry))
        .routes(routes!(jobs::whereabouts))
        .routes(routes!(jobs::explain))
        .routes(routes!(nodes::list))
        .routes(routes!(nodes::forget))
        .routes(routes!(impact::impact))
        .routes(routes!(nodes::drain, nodes::undrain, nodes::drain_progress))
        .routes(routes!(debug::convergence))
        .routes(routes!(debug::members))
        .routes(routes!(debug::ring))
        .routes(routes!(debug::copies))
        .routes(routes!(merges::report))
        .routes(routes!(faults::show, faults::set));
    let unbounded = OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(jobs::wait))
        .routes(routes!(logs::read))
        .routes(routes!(events::of_job))
        .routes(routes!(events::all))
        .routes(routes!(health::live))
        .routes(routes!(health::ready))
        .routes(routes!(health::metrics))
        .routes(routes!(document))
        .routes(routes!(page::page));
    (short, unbounded)
}

fn router(app: &App) -> Router {
    let (short, unbounded) = documented_routes();
    let short = short.layer(axum::middleware::from_fn_with_state(app.clone(), guard::take_slot));
    let (router, _) = unbounded.merge(short).split_for_parts();
    let router = router.route("/page.js", get(page::script)).route("/page.css", get(page::style));
    guarded(router, app)
}

/// What goes for every request, whatever it asks: from the outside in, it is counted, it cannot bring down the node,
/// and it comes from somebody who may ask.
fn guarded(router: Router<App>, app: &App) -> Router {
    let panics = app.clone();
    router
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(axum::middleware::from_fn_with_state(app.clone(), guard::admit))
        .layer(CatchPanicLayer::custom(move |_| {
            panics.counts().count_panic();
            ApiError::internal("answering failed; the node goes on").into_response()
        }))
        .layer(axum::middleware::from_fn_with_state(app.clone(), health::count))
        .with_state(app.clone())
}

async fn no_such_path(uri: Uri) -> ApiError {
    ApiError::not_found(format!("there is no path {}", uri.path()))
        .with_hint("GET /openapi.json lists all paths, and / is the page for people")
}

async fn no_such_method(method: Method, uri: Uri) -> ApiError {
    ApiError::method_not_allowed(format!("{method} is not possible for {}", uri.path()))
        .with_hint("the Allow header and GET /openapi.json say what is")
}

/// This document
///
/// Every path, parameter and shape.
#[utoipa::path(get, path = "/openapi.json", tag = "health",
    responses((status = 200, description = "The OpenAPI document", body = Object)))]
async fn document(_: input::NoQuery) -> Result<impl IntoResponse, ApiError> {
    let text =
        openapi_text().map_err(|error| ApiError::internal(format!("the document cannot be written: {error}")))?;
    Ok((StatusCode::OK, [(header::CONTENT_TYPE, "application/json")], text))
}

fn openapi_text() -> Result<Bytes, serde_json::Error> {
    static TEXT: std::sync::OnceLock<Bytes> = std::sync::OnceLock::new();
    if let Some(text) = TEXT.get() {
        return Ok(text.clone());
    }
    let text = Bytes::from(serde_json::to_vec(&openapi())?);
    Ok(TEXT.get_or_init(|| text).clone())
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::{Request, StatusCode};
    use tokio::sync::{broadcast, mpsc, watch};
    use tower::ServiceExt;

    use super::*;
    use crate::model::id::{Generation, Incarnation, NodeId};
    use crate::model::member::{ClusterSettings, Facts, Fingerprint, Load, PartitionSet, Status, View, WIRE_VERSION};
    use crate::model::resources::Resources;
    use crate::model::ring::Placement;
    use crate::protocol::snapshot::{Convergence, JobCounts, Snapshot};

    fn snapshot() -> Snapshot {
        let cluster =
            ClusterSettings { name: "c".into(), partitions: 1, replicas: 1, forget_after: Duration::from_secs(1) };
        let facts = Facts {
            node: NodeId(1),
            name: "n".into(),
            generation: Generation(1),
            incarnation: Incarnation(0),
            cluster_addr: ([127, 0, 0, 1], 1).into(),
            http_addr: ([127, 0, 0, 1], 2).into(),
            status: Status::Serving,
            revision: 0,
            capacity: Resources::default(),
            weight: 1,
            load: Load::default(),
            labels: [].into(),
            drivers: [].into(),
            held: PartitionSet::default(),
            ring: Fingerprint(0),
            cluster,
            wire_version: WIRE_VERSION,
            version: "0".into(),
            suspicions: [].into(),
            departed: [].into(),
            dismissed: [].into(),
        };
        Snapshot {
            now: crate::model::time::Now::default(),
            node: NodeId(1),
            generation: Generation(1),
            facts,
            not_ready: None,
            complaints: Vec::new(),
            local_health: 0,
            view: View::new(),
            placement: Arc::new(Placement::new(&View::new(), 1, 1)),
            convergence: Convergence::default(),
            jobs: JobCounts::default(),
            counters: Vec::new(),
            clock_skews_ms: Vec::new(),
        }
    }

    #[tokio::test]
    async fn a_panic_is_one_clients_500_and_is_counted() {
        let (commands, _) = mpsc::channel(1);
        let (_, snapshots) = watch::channel(Arc::new(snapshot()));
        let handle = Handle::new(commands, snapshots, broadcast::channel(1).0);
        let app = App::new(handle, ApiConfig::default(), CancellationToken::new());
        let panics = Router::new().route("/panics", get(async || -> StatusCode { panic!("as asked") }));
        let router = guarded(panics.route("/metrics", get(health::metrics)), &app);
        let ask = async |path: &str| {
            let request = Request::get(path).header("host", "localhost").body(Body::empty()).unwrap();
            let response = router.clone().oneshot(request).await.unwrap();
            let status = response.status();
            let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
            (status, String::from_utf8(bytes.to_vec()).unwrap())
        };
        let (status, body) = ask("/panics").await;
        assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
        assert!(body.contains("\"code\":\"internal\"") && !body.contains("as asked"), "{body}");
        let (_, metrics) = ask("/metrics").await;
        assert!(metrics.contains("flockwork_http_panics_total 1"), "{metrics}");
        assert!(metrics.contains("route=\"/panics\",status=\"500\"} 1"), "{metrics}");
    }
}
