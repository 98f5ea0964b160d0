//! The listener: takes connections, bounds them, and lets go of them in the end.
//!
//! A connection is one task. A client that is slow to send its headers, or that stays idle between requests, is
//! dropped after a while; a slot is free again then. When the node stops, nothing new is taken, requests under
//! way may finish within the grace period, and what waits by its nature (streams, long polls) has been told by
//! the same token to end.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::App;
use super::stream::PatientStream;

/// What a client's headers may take.
const MAX_HEADER_BYTES: usize = 64 << 10;

/// The pause after a connection could not be taken, most likely because there are no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// After how long an idle connection's other end is asked whether it is still there.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(60);

/// Serves until `stop` is cancelled and the last connection is gone, or its grace period over.
pub(super) async fn run(listener: TcpListener, router: Router, app: App, stop: CancellationToken) -> io::Result<()> {
    let slots = Arc::new(Semaphore::new(app.config().max_connections));
    let mut connections = JoinSet::new();
    loop {
        let slot = tokio::select! {
            () = stop.cancelled() => break,
            slot = Arc::clone(&slots).acquire_owned() => slot.map_err(io::Error::other)?,
        };
        let accepted = loop {
            tokio::select! {
                () = stop.cancelled() => break None,
                Some(ended) = connections.join_next() => note_panic(&app, ended),
                accepted = listener.accept() => break Some(accepted),
            }
        };
        match accepted {
            None => break,
            Some(Ok((socket, _))) => {
                let (router, stop, header_timeout) = (router.clone(), stop.clone(), app.config().header_timeout);
                connections.spawn(async move {
                    serve_connection(socket, router, header_timeout, stop).await;
                    drop(slot);
                });
            }
            Some(Err(error)) => {
                warn!(%error, "cannot take a client's connection");
                tokio::select! {
                    () = stop.cancelled() => break,
                    () = sleep(ACCEPT_PAUSE) => {}
                }
            }
        }
    }
    drop(listener);
    let all_gone = async {
        while let Some(ended) = connections.join_next().await {
            note_panic(&app, ended);
        }
    };
    if timeout(app.config().shutdown_grace, all_gone).await.is_err() {
        warn!(connections = connections.len(), "clients are cut off: the grace period is over");
        connections.shutdown().await;
    }
    Ok(())
}

fn note_panic(app: &App, ended: Result<(), tokio::task::JoinError>) {
    if ended.is_err_and(|error| error.is_panic()) {
        app.counts().count_panic();
    }
}

async fn serve_connection(socket: TcpStream, router: Router, header_timeout: Duration, stop: CancellationToken) {
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_AFTER);
    if let Err(error) = socket.set_nodelay(true).and_then(|()| SockRef::from(&socket).set_tcp_keepalive(&keepalive)) {
        debug!(%error, "a client's socket refuses its options");
    }
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(header_timeout)
        .max_buf_size(MAX_HEADER_BYTES)
        .serve_connection(TokioIo::new(PatientStream::new(socket)), TowerToHyperService::new(router));
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "a client's connection ended badly");
    }
}
