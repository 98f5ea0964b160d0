//! Talking HTTP to the cluster, whichever of its nodes is there.
//!
//! Think of the cluster as one office with several counters. A client has the addresses of some of them and
//! a favourite, the one that served it last; when that one is shut (refuses the connection, keeps silent, or
//! says that it is not ready) the next is tried, and so on around. Any node answers for the whole cluster, so
//! the answer is as good.
//!
//! A request whose answer was lost may have been carried out. Reading twice is harmless, and so is a submit
//! whose jobs carry idempotency keys; everything else says [`Repeat::OnlyIfUnsent`], and a lost answer is then
//! reported instead of risking that it is done twice.
//!
//! Every wait here has an end: to connect, to be answered, to find anybody at all, and (where a node stays silent)
//! to hear that it is still alive.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use reqwest::{Method, StatusCode, header};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::Instant;

use super::failure::{Failure, Kind};

/// How long a node may take to accept a connection.
const CONNECT_WITHIN: Duration = Duration::from_secs(3);

/// How long a node may be silent, with an answer or in the middle of a stream, before it is asked whether it is
/// still there.
const SILENCE: Duration = Duration::from_secs(3);

/// How long a node may take to answer, where the request does not say otherwise.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// How long nodes that are there, but busy or not yet ready, are asked again.
const BUSY_PATIENCE: Duration = Duration::from_secs(10);

/// How long a command that is in the middle of something (`run`, `wait`, `logs -f`) looks for any node.
const FOLLOWING_PATIENCE: Duration = Duration::from_secs(60);

/// The longest answer that is read.
const MAX_ANSWER_BYTES: usize = 256 << 20;

/// The pause before all addresses are tried again; it doubles up to the second.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// Whether a request may be carried out twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// It makes no difference.
    Freely,
    /// It does: send it again only where it certainly was not carried out.
    OnlyIfUnsent,
}

/// One request.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    method: Method,
    path: String,
    query: Vec<(&'static str, String)>,
    body: Option<Vec<u8>>,
    accept: &'static str,
    idempotency_key: Option<String>,
    answer_within: Duration,
    repeat: Repeat,
}

impl Request {
    fn new(method: Method, path: impl Into<String>, repeat: Repeat) -> Self {
        let (path, accept) = (path.into(), "application/json");
        Self {
            method,
            path,
            query: Vec::new(),
            body: None,
            accept,
            idempotency_key: None,
            answer_within: ANSWER_WITHIN,
            repeat,
        }
    }

    pub(crate) fn get(path: impl Into<String>) -> Self {
        Self::new(Method::GET, path, Repeat::Freely)
    }

    pub(crate) fn post(path: impl Into<String>, repeat: Repeat) -> Self {
        Self::new(Method::POST, path, repeat)
    }

    pub(crate) fn delete(path: impl Into<String>, repeat: Repeat) -> Self {
        Self::new(Method::DELETE, path, repeat)
    }

    #[must_use]
    pub(crate) fn query(mut self, name: &'static str, value: impl ToString) -> Self {
        self.query.push((name, value.to_string()));
        self
    }

    #[must_use]
    pub(crate) fn json(mut self, body: &Value) -> Self {
        self.body = Some(body.to_string().into_bytes());
        self
    }

    #[must_use]
    pub(crate) fn accept(self, accept: &'static str) -> Self {
        Self { accept, ..self }
    }

    /// With a random idempotency key: sent again, it is still one request.
    #[must_use]
    pub(crate) fn with_random_key(self) -> Self {
        Self { idempotency_key: Some(random_key()), repeat: Repeat::Freely, ..self }
    }

    #[must_use]
    pub(crate) fn answer_within(self, answer_within: Duration) -> Self {
        Self { answer_within, ..self }
    }
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    /// 2xx.
    pub(crate) status: StatusCode,
    /// Null where the body was empty.
    pub(crate) body: Value,
}

impl Answer {
    /// The body as what it should be.
    pub(crate) fn read<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        T::deserialize(&self.body).map_err(|error| {
            Failure::internal(format!("the node's answer makes no sense here: {error}"))
                .with_hint("is the node of another version? `flockwork nodes -o json` shows what each one runs")
        })
    }
}

/// Talks to one of several nodes.
#[derive(Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    /// `http://host:port`, at least one.
    bases: Vec<String>,
    /// The one that answered last.
    favourite: AtomicUsize,
    /// How long to look for anybody when every address refuses.
    patience: Duration,
}

/// Why one address gave no answer.
#[derive(Debug)]
enum Trouble {
    /// The request did not get there.
    Unsent(String),
    /// It was turned down for now: nothing was done.
    Busy(StatusCode, Option<Refused>),
    /// It got there, and the answer did not come back.
    Lost(String),
}

#[derive(Debug, Deserialize)]
struct ErrorBody {
    error: Refused,
}

#[derive(Debug, Deserialize)]
struct Refused {
    message: String,
    #[serde(default)]
    hint: Option<String>,
}

impl Client {
    /// A client of the nodes at `addresses`, as people write them.
    pub(crate) fn new(addresses: &[String]) -> Result<Self, Failure> {
        let bases: Vec<String> = addresses.iter().map(|address| base_of(address)).collect::<Result<_, _>>()?;
        if bases.is_empty() {
            return Err(Failure::usage("no address to ask").with_hint("--addr 127.0.0.1:7070"));
        }
        // Nodes are asked directly: a proxy for the web knows nothing of this cluster.
        let http = reqwest::Client::builder()
            .no_proxy()
            .connect_timeout(CONNECT_WITHIN)
            .user_agent(concat!("flockwork/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| Failure::internal(format!("cannot prepare to speak HTTP: {error}")))?;
        Ok(Self { http, bases, favourite: AtomicUsize::new(0), patience: Duration::ZERO })
    }

    /// The same client for a command that is in the middle of something: it goes on looking for a node where a
    /// first contact would give up.
    pub(crate) fn persistent(self) -> Self {
        Self { patience: FOLLOWING_PATIENCE, ..self }
    }

    /// Asks, and reads the whole answer.
    pub(crate) async fn ask(&self, request: &Request) -> Result<Answer, Failure> {
        self.around(request, async |base| {
            let response = self.send(base, request, Some(request.answer_within)).await?;
            let status = response.status();
            let body = read_body(response).await?;
            Ok((status, body))
        })
        .await
        .and_then(|(status, body)| {
            let (status, body) = refuse_errors(status, &body)?;
            Ok(Answer { status, body })
        })
    }

    /// Asks, and reads the answer as `T`.
    pub(crate) async fn read<T: DeserializeOwned>(&self, request: &Request) -> Result<T, Failure> {
        self.ask(request).await?.read()
    }

    /// Asks for something that may never end. The stream knows which node it comes from.
    pub(crate) async fn open(&self, request: &Request) -> Result<Stream<'_>, Failure> {
        let (status, outcome) = self
            .around(request, async |base| {
                let sent = self.send(base, request, None);
                let response = tokio::time::timeout(request.answer_within, sent)
                    .await
                    .unwrap_or_else(|_| Err(Trouble::Lost("no answer in time".to_owned())))?;
                let status = response.status();
                if status.is_success() {
                    return Ok((status, Ok((base.to_owned(), response))));
                }
                Ok((status, Err(read_body(response).await?)))
            })
            .await?;
        match outcome {
            Ok((base, response)) => Ok(Stream { client: self, base, response }),
            Err(body) => match refuse_errors(status, &body) {
                Err(failure) => Err(failure),
                Ok((status, _)) => Err(Failure::internal(format!("a stream that begins with {status}"))),
            },
        }
    }

    /// Turns from the present node to the next, after it proved to be gone in the middle of something.
    fn turn_from(&self, base: &str) {
        if let Some(at) = self.bases.iter().position(|known| known == base) {
            self.favourite.store((at + 1) % self.bases.len(), Ordering::Relaxed);
        }
    }

    /// Tries `attempt` at every address in turn, beginning with the favourite, until one gives an answer.
    async fn around<T>(
        &self,
        request: &Request,
        attempt: impl AsyncFn(&str) -> Result<T, Trouble>,
    ) -> Result<T, Failure> {
        let begun = Instant::now();
        let mut pause = PAUSES.0;
        loop {
            let favourite = self.favourite.load(Ordering::Relaxed);
            let mut troubles = Vec::new();
            for step in 0..self.bases.len() {
                let at = (favourite + step) % self.bases.len();
                let base = &self.bases[at];
                match attempt(base).await {
                    Ok(answer) => {
                        self.favourite.store(at, Ordering::Relaxed);
                        return Ok(answer);
                    }
                    Err(Trouble::Lost(why)) if request.repeat == Repeat::OnlyIfUnsent => {
                        let message = format!("{base} took the request, and its answer was lost ({why})");
                        return Err(Failure::new(Kind::Unreachable, message)
                            .with_hint("it may have been carried out: look with `flockwork ps` before you repeat it"));
                    }
                    Err(trouble) => troubles.push((base.as_str(), trouble)),
                }
            }
            let somebody_is_there = troubles.iter().any(|(_, trouble)| !matches!(trouble, Trouble::Unsent(_)));
            let patience = if somebody_is_there { self.patience.max(BUSY_PATIENCE) } else { self.patience };
            if begun.elapsed() + pause > patience {
                return Err(nobody(troubles));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    async fn send(
        &self,
        base: &str,
        request: &Request,
        within: Option<Duration>,
    ) -> Result<reqwest::Response, Trouble> {
        let mut builder = self
            .http
            .request(request.method.clone(), format!("{base}{}", request.path))
            .header(header::ACCEPT, request.accept);
        if !request.query.is_empty() {
            builder = builder.query(&request.query);
        }
        if let Some(key) = &request.idempotency_key {
            builder = builder.header("Idempotency-Key", key);
        }
        if let Some(body) = &request.body {
            builder = builder.header(header::CONTENT_TYPE, "application/json").body(body.clone());
        }
        if let Some(within) = within {
            builder = builder.timeout(within);
        }
        let mut sending = std::pin::pin!(builder.send());
        // Where nobody else could be asked instead, silence is waited out.
        let can_turn = self.bases.len() > 1 && request.repeat == Repeat::Freely;
        let sent = loop {
            match tokio::time::timeout(SILENCE, &mut sending).await {
                Ok(sent) => break sent,
                Err(_) if can_turn && !self.is_alive(base).await => {
                    return Err(Trouble::Lost("it no longer answers".to_owned()));
                }
                Err(_) => {}
            }
        };
        let response = sent.map_err(|error| {
            let why = innermost(&error);
            if error.is_connect() || error.is_builder() { Trouble::Unsent(why) } else { Trouble::Lost(why) }
        })?;
        let status = response.status();
        if status == StatusCode::SERVICE_UNAVAILABLE || status == StatusCode::TOO_MANY_REQUESTS {
            let body = read_body(response).await.unwrap_or_default();
            return Err(Trouble::Busy(status, serde_json::from_slice::<ErrorBody>(&body).ok().map(|body| body.error)));
        }
        Ok(response)
    }

    /// Whether a node that has been silent is still there: a frozen machine keeps its connections open.
    async fn is_alive(&self, base: &str) -> bool {
        let asked = self.http.get(format!("{base}/livez")).timeout(CONNECT_WITHIN).send().await;
        asked.is_ok_and(|answer| answer.status().is_success())
    }
}

/// An answer that is read as it comes.
#[derive(Debug)]
pub(crate) struct Stream<'a> {
    client: &'a Client,
    base: String,
    response: reqwest::Response,
}

impl Stream<'_> {
    /// The next bytes; nothing at the proper end. A stream that breaks, or whose node is gone, ends with an
    /// error.
    pub(crate) async fn next(&mut self) -> Result<Option<bytes::Bytes>, String> {
        loop {
            match tokio::time::timeout(SILENCE, self.response.chunk()).await {
                Ok(Ok(chunk)) => return Ok(chunk),
                Ok(Err(error)) => return Err(innermost(&error)),
                Err(_) if !self.client.is_alive(&self.base).await => return Err("it no longer answers".to_owned()),
                Err(_) => {}
            }
        }
    }

    /// Ends it before its proper end: another node is to be asked next. Says what happened.
    pub(crate) fn give_up(self, why: &str) -> String {
        self.client.turn_from(&self.base);
        format!("{} was lost: {why}", self.base.trim_start_matches("http://"))
    }
}

async fn read_body(mut response: reqwest::Response) -> Result<Vec<u8>, Trouble> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| Trouble::Lost(innermost(&error)))? {
        if body.len() + chunk.len() > MAX_ANSWER_BYTES {
            return Err(Trouble::Lost(format!("the answer is longer than {MAX_ANSWER_BYTES} bytes")));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// Turns an answer that says no into the failure it stands for.
fn refuse_errors(status: StatusCode, body: &[u8]) -> Result<(StatusCode, Value), Failure> {
    if status.is_success() {
        if body.is_empty() {
            return Ok((status, Value::Null));
        }
        let body = serde_json::from_slice(body).map_err(|_| {
            Failure::internal("the answer is not JSON").with_hint("is it a flockwork node that --addr names?")
        })?;
        return Ok((status, body));
    }
    let Ok(ErrorBody { error }) = serde_json::from_slice(body) else {
        return Err(Failure::internal(format!("the answer is {status}, and does not say why"))
            .with_hint("is it a flockwork node that --addr names?"));
    };
    let kind = match status {
        StatusCode::NOT_FOUND => Kind::NotFound,
        StatusCode::INSUFFICIENT_STORAGE => Kind::Refused,
        status if status.is_client_error() => Kind::Refused,
        _ => Kind::Internal,
    };
    Err(Failure { kind, message: error.message, hint: error.hint })
}

/// No address gave an answer: the failure that says what became of each.
fn nobody(troubles: Vec<(&str, Trouble)>) -> Failure {
    // A cluster that is there and overloaded refuses; that is not the same as being gone.
    if troubles.iter().all(|(_, t)| matches!(t, Trouble::Busy(StatusCode::TOO_MANY_REQUESTS, _))) {
        let error = troubles.into_iter().find_map(|(_, trouble)| match trouble {
            Trouble::Busy(_, error) => error,
            Trouble::Unsent(_) | Trouble::Lost(_) => None,
        });
        let (message, hint) = error.map_or_else(
            || ("the node has too much to do at once".to_owned(), None),
            |Refused { message, hint }| (message, hint),
        );
        return Failure { kind: Kind::Refused, message, hint };
    }
    let mut message = match troubles.len() {
        1 => "no node answers: ".to_owned(),
        count => format!("none of {count} nodes answers: "),
    };
    for (at, (base, trouble)) in troubles.iter().enumerate() {
        let separator = if at == 0 { "" } else { "; " };
        let why = match trouble {
            Trouble::Unsent(why) | Trouble::Lost(why) => why.as_str(),
            Trouble::Busy(_, Some(error)) => &error.message,
            Trouble::Busy(_, None) => "not ready",
        };
        // Writing into a String cannot fail.
        let _ = write!(message, "{separator}{} ({why})", base.trim_start_matches("http://"));
    }
    Failure::new(Kind::Unreachable, message)
        .with_hint("start a cluster with `flockwork up`, or name a node with --addr HOST:PORT or FLOCKWORK_ADDR")
}

/// The cause at the bottom: "Connection refused" says more than "error sending request".
fn innermost(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "no answer in time".to_owned();
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    let text = cause.to_string();
    text.split(" (os error").next().unwrap_or_default().to_lowercase()
}

/// An idempotency key that nobody else will think of.
pub(crate) fn random_key() -> String {
    format!("cli-{:032x}", rand::random::<u128>())
}

/// `host:port`, `host` or `http://host:port`, as the start of a URL.
pub(crate) fn base_of(address: &str) -> Result<String, Failure> {
    let wrong = |why: &str| {
        Failure::usage(format!("`{address}` is not a node's address: {why}"))
            .with_hint("write HOST:PORT, for instance 127.0.0.1:7070, and commas between several")
    };
    let text = address.trim();
    let text = text.strip_prefix("http://").unwrap_or(text);
    if text.contains("://") {
        return Err(wrong("only http:// is spoken"));
    }
    let text = text.trim_end_matches('/');
    if text.is_empty() || text.contains(['/', '?', '#', '@']) || text.contains(char::is_whitespace) {
        return Err(wrong("it is neither a host nor HOST:PORT"));
    }
    let has_port = match text.strip_prefix('[') {
        Some(v6) => v6.contains("]:"),
        None => text.contains(':'),
    };
    let with_port =
        if has_port { text.to_owned() } else { format!("{text}:{}", flockwork::node::options::DEFAULT_HTTP_PORT) };
    let port = with_port.rsplit(':').next().unwrap_or_default();
    if port.parse::<u16>().is_err() {
        return Err(wrong(&format!("{port} is not a port")));
    }
    let base = format!("http://{with_port}");
    reqwest::Url::parse(&base).map_err(|error| wrong(&error.to_string()))?;
    Ok(base)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_people_write_them() {
        assert_eq!(base_of("127.0.0.1:9").unwrap(), "http://127.0.0.1:9");
        assert_eq!(base_of("http://node-a:7070/").unwrap(), "http://node-a:7070");
        assert_eq!(base_of(" node-a ").unwrap(), "http://node-a:7070");
        assert_eq!(base_of("[::1]").unwrap(), "http://[::1]:7070");
        assert_eq!(base_of("[::1]:80").unwrap(), "http://[::1]:80");
        for wrong in ["", "https://a", "a:b", "a:70707", "a/b", "a b", "me@a"] {
            assert_eq!(base_of(wrong).unwrap_err().kind, Kind::Usage, "{wrong}");
        }
    }
}
