//! Pods that are async Rust functions of the embedding program.
//!
//! A handler is registered under a name before the node starts, and runs as a task for every job of driver
//! `handler` that names it. It ends like a process does, told in the same terms: `Ok` is exit code 0, an error
//! is exit code 1, a panic is exit code 101, as it is for a Rust program; the message goes to the attempt's
//! standard error. To be stopped, or out of time, is told by a cancelled token; a handler that has not returned
//! when the grace period is over is aborted where it next awaits, as if by SIGKILL. One that never awaits
//! cannot be ended by anything but the end of its program, and is reported as running for as long.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::log::StreamLog;
use super::overseer::{Cause, Order, Overseer};
use super::{Core, Pod, process};
use crate::io::pod_api::{ReportError, Voice};
use crate::model::attempt::Exit;
use crate::model::id::{Fence, JobId};
use crate::model::request::Receipt;
use crate::protocol::effect::{PodEnd, PodStart};

/// Why a handler failed. Any error will do, and so will a text.
pub type HandlerError = Box<dyn std::error::Error + Send + Sync>;

type Running = Pin<Box<dyn Future<Output = Result<(), HandlerError>> + Send>>;
type Handler = Arc<dyn Fn(HandlerContext) -> Running + Send + Sync>;

/// The functions that jobs of driver `handler` may name.
#[derive(Clone, Default)]
pub struct Handlers {
    by_name: BTreeMap<String, Handler>,
}

impl fmt::Debug for Handlers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.by_name.keys()).finish()
    }
}

impl Handlers {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets jobs run `handler` by `name`. A name that is taken is given to the new one.
    pub fn register<F, R>(&mut self, name: impl Into<String>, handler: F) -> &mut Self
    where
        F: Fn(HandlerContext) -> R + Send + Sync + 'static,
        R: Future<Output = Result<(), HandlerError>> + Send + 'static,
    {
        let handler: Handler = Arc::new(move |context| Box::pin(handler(context)));
        self.by_name.insert(name.into(), handler);
        self
    }

    /// All names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.by_name.keys().map(String::as_str)
    }
}

/// What a handler is given.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct HandlerContext {
    /// The job.
    pub job: JobId,
    /// Its name, if it has one.
    pub name: Option<String>,
    /// The attempt's number, from 1.
    pub attempt: u32,
    /// Grows with every attempt. Give it to whatever the handler writes to, which should refuse a smaller one
    /// than it has seen.
    pub fence: Fence,
    /// The name of the node that runs it.
    pub node: String,
    /// The job's `payload`.
    pub payload: Option<serde_json::Value>,
    /// The job's `env`.
    pub env: BTreeMap<String, String>,
    /// The work that an earlier attempt has saved, to go on from.
    pub checkpoint: Option<Bytes>,
    /// What the handler says of itself.
    pub report: Reporter,
    /// Cancelled when the handler should return: it is to be stopped, or its time is over. What it then returns
    /// no longer counts.
    pub cancelled: CancellationToken,
    /// The attempt's standard output.
    pub stdout: LogWriter,
    /// The attempt's standard error.
    pub stderr: LogWriter,
}

/// What a handler can say of itself. See [`ReportError`] for what can be wrong with it.
#[derive(Debug, Clone)]
pub struct Reporter(Arc<Voice>);

impl Reporter {
    /// It is alive: for jobs with a `heartbeat_timeout`.
    ///
    /// # Errors
    /// The attempt has no say any more.
    pub fn heartbeat(&self) -> Result<(), ReportError> {
        self.0.heartbeat()
    }

    /// It has come this far, from 0 to 1. Said as often as one likes, it is written down once a second.
    ///
    /// # Errors
    /// The attempt has no say any more, or this cannot be.
    pub fn progress(&self, fraction: f64, message: impl Into<String>) -> Result<(), ReportError> {
        self.0.progress(fraction, message.into())
    }

    /// Saves work that the next attempt is to go on from, wherever it runs. Returns once it is stored on as many nodes
    /// as make it safe, or as many as could be had in time: the receipt says.
    ///
    /// # Errors
    /// It is not saved.
    pub async fn checkpoint(&self, bytes: impl Into<Bytes>) -> Result<Receipt, ReportError> {
        self.0.checkpoint(bytes.into()).await
    }

    /// What the job comes to. The last one counts. Returns once it is stored, as [`checkpoint`](Self::checkpoint) does.
    ///
    /// # Errors
    /// It is not stored. Unless there is too much of it, it is tried once more with the attempt's end.
    pub async fn result(&self, bytes: impl Into<Bytes>) -> Result<Receipt, ReportError> {
        self.0.result(bytes.into()).await
    }
}

/// Writes to one of the attempt's two logs.
#[derive(Debug, Clone)]
pub struct LogWriter(Arc<StreamLog>);

impl LogWriter {
    /// Adds `bytes`. What comes after the attempt has ended is passed over.
    ///
    /// # Errors
    /// The disk did not take all of it; the rest is lost.
    pub async fn write(&self, bytes: impl Into<Vec<u8>>) -> io::Result<()> {
        let (log, bytes) = (Arc::clone(&self.0), bytes.into());
        tokio::task::spawn_blocking(move || log.append(&bytes)).await.map_err(io::Error::other)?
    }

    /// Adds a line.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub async fn line(&self, text: impl fmt::Display) -> io::Result<()> {
        self.write(format!("{text}\n")).await
    }
}

/// Runs the pod to its end.
pub(super) async fn run(core: &Arc<Core>, pod: &Arc<Pod>, start: &PodStart) -> PodEnd {
    let spec = &start.submission.spec;
    let checkpoint = match process::read_checkpoint(core, start).await {
        Ok(saved) => saved.map(|blob| blob.bytes().clone()),
        Err(end) => return end,
    };
    let name = spec.handler.as_deref().unwrap_or_default();
    let Some(handler) = core.config.handlers.by_name.get(name).cloned() else {
        return PodEnd::CouldNotStart { code: 127, reason: format!("this node has no handler `{name}`") };
    };
    let context = HandlerContext {
        job: start.key.job,
        name: spec.name.clone(),
        attempt: start.number,
        fence: start.fence,
        node: core.config.node_name.clone(),
        payload: spec.payload.clone(),
        checkpoint,
        report: Reporter(Arc::clone(&pod.voice)),
        env: spec.env.clone(),
        cancelled: CancellationToken::new(),
        stdout: LogWriter(Arc::clone(&pod.stdout)),
        stderr: LogWriter(Arc::clone(&pod.stderr)),
    };
    let cancelled = context.cancelled.clone();
    // Called inside the task, so that a panic before its first await is caught like any other.
    let mut task = core.tracker.spawn(async move { handler(context).await });
    pod.voice.begin();
    pod.voice.tell_begin();

    let mut overseer = Overseer::new(core, pod, spec);
    let outcome = loop {
        tokio::select! {
            biased;
            outcome = &mut task => break outcome,
            order = overseer.next_order() => match order {
                Order::AskToEnd => cancelled.cancel(),
                Order::Kill => task.abort(),
            },
        }
    };
    // What the handler has started and left behind can at least know that it is over.
    cancelled.cancel();
    let (exit, message) = match outcome {
        Ok(Ok(())) => (Exit::Code(0), None),
        Ok(Err(error)) => (Exit::Code(1), Some(with_sources(&*error))),
        Err(error) => match error.try_into_panic() {
            Ok(payload) => (Exit::Code(101), Some(format!("the handler panicked: {}", panic_message(&*payload)))),
            Err(_) => (Exit::Signal(rustix::process::Signal::KILL.as_raw()), None),
        },
    };
    if let Some(message) = message
        && let Err(error) = LogWriter(Arc::clone(&pod.stderr)).line(message).await
    {
        tracing::warn!(job = %start.key.job, %error, "a handler's error could not be written to its log");
    }
    Cause::end(overseer.cause(), exit)
}

fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

fn panic_message(payload: &(dyn Any + Send)) -> &str {
    match (payload.downcast_ref::<&str>(), payload.downcast_ref::<String>()) {
        (Some(text), _) => text,
        (None, Some(text)) => text,
        (None, None) => "without a message",
    }
}
