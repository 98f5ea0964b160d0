//! The Docker daemon of this machine: whether it can be reached, and what is left on it.
//!
//! A daemon may start after its node, end before it, and come back. So it is looked at from time to time, and the node
//! says that it can run containers only while one answers. It is spoken to over its socket on this machine and no
//! other way: pods share directories and the network with their node, which a daemon elsewhere could not give them.
//!
//! Containers of this node carry labels: the node's directory, by which all of them are found, and their pod's mark
//! (`marker`), by which those of an earlier start are told from those that run. They are removed whenever a daemon
//! comes into reach, so nothing of a node that died while its daemon was away survives the next meeting of the two.

use std::collections::HashMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bollard::API_DEFAULT_VERSION;
use bollard::errors::Error;
use bollard::query_parameters::{ListContainersOptions, RemoveContainerOptions};
use tokio::sync::Notify;

use super::Core;
use super::marker::{Mark, Origin};

/// The labels of a container, beside the one that holds its mark: for people who look at the daemon's own list.
pub(super) const LABEL_OF_DIRECTORY: &str = "flockwork.directory";
pub(super) const LABEL_OF_POD: &str = "flockwork.pod";
pub(super) const LABEL_OF_JOB: &str = "flockwork.job";
pub(super) const LABEL_OF_ATTEMPT: &str = "flockwork.attempt";
pub(super) const LABEL_OF_NODE: &str = "flockwork.node";

/// How often the daemon is looked at, and how long one look takes at the most.
const LOOK_EVERY: Duration = Duration::from_secs(5);
const LOOK_WITHIN: Duration = Duration::from_secs(3);

/// How long the daemon may take for an answer. Raising it is kinder to a daemon under load, and delays what waits for a
/// daemon that hangs.
const CALL_WITHIN: Duration = Duration::from_secs(60);

/// The daemon, as far as it is known.
#[derive(Debug)]
pub(super) struct Docker {
    socket: Option<PathBuf>,
    client: Mutex<Option<bollard::Docker>>,
    /// Something may be left on it.
    untidy: AtomicBool,
    look_now: Notify,
}

impl Docker {
    /// The daemon at this socket, which has not been looked at yet. Without a socket there is none.
    pub(super) fn at(socket: Option<PathBuf>) -> Self {
        Self { socket, client: Mutex::default(), untidy: AtomicBool::new(true), look_now: Notify::new() }
    }

    /// The way to the daemon, if it answered when it was last looked at.
    pub(super) fn client(&self) -> Option<bollard::Docker> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// It did not answer, or something is left on it: it is looked at soon.
    pub(super) fn doubt(&self) {
        self.untidy.store(true, Ordering::Relaxed);
        self.look_now.notify_one();
    }

    /// Finds out whether it can be reached.
    async fn look(&self) {
        let Some(socket) = &self.socket else { return };
        let known = self.client();
        let looked = tokio::time::timeout(LOOK_WITHIN, async {
            match &known {
                Some(client) => client.ping().await.map(|_| client.clone()),
                None => {
                    let path = socket.to_string_lossy();
                    let client = bollard::Docker::connect_with_unix(&path, CALL_WITHIN.as_secs(), API_DEFAULT_VERSION)?;
                    client.negotiate_version().await
                }
            }
        });
        let found = looked.await.unwrap_or(Err(Error::RequestTimeoutError));
        match (&known, &found) {
            (None, Ok(_)) => {
                tracing::info!(socket = %socket.display(), "Docker answers: this node can run containers");
                self.untidy.store(true, Ordering::Relaxed);
            }
            (Some(_), Err(error)) => {
                tracing::warn!(socket = %socket.display(), error = %in_words(error), "Docker does not answer: no containers here until it does");
            }
            (None, Err(error)) => tracing::debug!(socket = %socket.display(), error = %in_words(error), "no Docker"),
            (Some(_), Ok(_)) => {}
        }
        *self.client.lock().unwrap_or_else(PoisonError::into_inner) = found.ok();
    }

    /// Removes the containers of this directory whose marks `doomed` picks. Answers with them.
    async fn remove_marked(&self, origin: &Origin, doomed: impl Fn(&Mark) -> bool) -> Vec<Mark> {
        let Some(client) = self.client() else { return Vec::new() };
        if !self.untidy.swap(false, Ordering::Relaxed) {
            return Vec::new();
        }
        let label = format!("{LABEL_OF_DIRECTORY}={:016x}", origin.directory);
        let filters = HashMap::from([("label".to_owned(), vec![label])]);
        let options = ListContainersOptions { all: true, filters: Some(filters), ..ListContainersOptions::default() };
        let listed = call(client.list_containers(Some(options))).await;
        let listed = listed.unwrap_or_else(|error| {
            tracing::warn!(error = %in_words(&error), "Docker does not list its containers");
            self.untidy.store(true, Ordering::Relaxed);
            Vec::new()
        });
        let mut removed = Vec::new();
        for container in listed {
            let labels = container.labels.unwrap_or_default();
            let mark = labels.get(LABEL_OF_POD).and_then(|mark| Mark::parse(mark));
            let (Some(id), Some(mark)) = (container.id, mark) else { continue };
            if doomed(&mark) && self.remove(&client, &id).await {
                removed.push(mark);
            }
        }
        removed
    }

    /// Ends and removes a container, and says whether it is gone. If not, it will be tried again.
    pub(super) async fn remove(&self, client: &bollard::Docker, container: &str) -> bool {
        let options = RemoveContainerOptions { force: true, v: true, link: false };
        match call(client.remove_container(container, Some(options))).await {
            Ok(()) => true,
            Err(error) if status_of(&error) == Some(404) => true,
            Err(error) => {
                tracing::warn!(container, error = %in_words(&error), "a container cannot be removed yet");
                self.doubt();
                false
            }
        }
    }
}

/// Looks at the daemon, and removes what is left on it by pods that are none any more: of earlier starts, or of this
/// one. Answers with the marks of what was removed.
pub(super) async fn look_and_tidy(core: &Core) -> Vec<Mark> {
    core.docker.look().await;
    let removed = core.docker.remove_marked(&core.origin, |mark| {
        mark.origin.start != core.origin.start || !core.registry().pods.contains_key(&mark.key)
    });
    let removed = removed.await;
    for mark in &removed {
        core.guard_removes_container(&container_name(mark));
    }
    removed
}

/// Looks at the daemon for as long as the node lives.
pub(super) async fn keep_looking(core: Arc<Core>) {
    if core.docker.socket.is_none() {
        return;
    }
    loop {
        tokio::select! {
            () = core.closing.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
            // At once, but not without a pause where one fault follows the other.
            () = core.docker.look_now.notified() => tokio::time::sleep(LOOK_EVERY / 20).await,
        }
        for Mark { key, .. } in look_and_tidy(&core).await {
            tracing::info!(job = %key.job, "a container that was left over was removed");
        }
    }
}

/// What a pod's container is called.
pub(super) fn container_name(mark: &Mark) -> String {
    format!("flockwork-{}-{}", mark.key.job, super::marker::claim_name(mark.key.claim))
}

/// Waits for an answer of the daemon, with a deadline.
pub(super) async fn call<T>(answer: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    tokio::time::timeout(CALL_WITHIN, answer).await.unwrap_or(Err(Error::RequestTimeoutError))
}

/// The HTTP status of an answer that refuses. Other errors mean that there was none.
pub(super) fn status_of(error: &Error) -> Option<u16> {
    if let Error::DockerResponseServerError { status_code, .. } = error { Some(*status_code) } else { None }
}

/// For people: what the daemon said, or why it could not.
pub(super) fn in_words(error: &Error) -> String {
    if let Error::DockerResponseServerError { message: said, .. } | Error::DockerStreamError { error: said } = error {
        return said.trim().to_owned();
    }
    if matches!(error, Error::RequestTimeoutError) {
        return "Docker took too long to answer".to_owned();
    }
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        let more = inner.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = inner.source();
    }
    text
}
