//! The HTTP server on the API socket: accepting, framing, limits, and the end.
//!
//! Runs on the main thread, in a current-thread runtime, and never blocks. Which request does what is the porch's and the routes'
//! business.

mod connections;
mod framed;
mod head;
mod listener;

use std::io::{ErrorKind, IoSlice};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use log::{info, warn};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tower::ServiceExt;
use vmm::ExitReason;

use connections::{Connection, Connections};
use framed::Framed;

pub(crate) use framed::Limits;
pub(crate) use head::REFUSED;
#[cfg(feature = "fuzz")]
pub(crate) use head::reads_head;
pub(crate) use listener::Listener;

/// Most connections at a time. The reference has 10; more cost little and keep one careless client from blocking the others.
const MAX_CONNECTIONS: usize = 64;
/// How long accepting rests after a failure that would only repeat itself (no file descriptor left).
const ACCEPT_REST: Duration = Duration::from_millis(50);
/// How long answers that are on their way may take once the machine has ended.
const LAST_ANSWERS: Duration = Duration::from_millis(100);

/// The answer to a client for whom there is no room.
const NO_ROOM: &[u8] = b"HTTP/1.1 503 \r\nServer: Firecracker API\r\nConnection: close\r\n\
    Content-Type: application/json\r\nContent-Length: 40\r\n\r\n{ \"error\": \"Too many open connections\" }";

/// Serves `router` until the machine ends, and returns why it did.
pub(crate) async fn serve(
    listener: UnixListener,
    router: Router,
    limits: Limits,
    exit: oneshot::Receiver<ExitReason>,
) -> ExitReason {
    let connections = Arc::new(Connections::new(MAX_CONNECTIONS));
    let (closing, closed) = watch::channel(false);
    let mut tasks = JoinSet::new();
    let mut exit = pin!(exit);
    info!("API server started.");
    let reason = loop {
        tokio::select! {
            reason = &mut exit => break reason,
            // Collects what has ended, so that the set does not grow.
            Some(_) = tasks.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => match connections.admit() {
                    Some(connection) => {
                        let task = converse(stream, connection.clone(), router.clone(), limits, closed.clone());
                        let connections = connections.clone();
                        tasks.spawn(async move {
                            task.await;
                            connections.remove(&connection);
                        });
                    }
                    // By the call that answers use: another would need a rule of its own (see `syscalls`).
                    // The send buffer of a fresh socket has room; a client that is gone does not matter.
                    None => drop(stream.try_write_vectored(&[IoSlice::new(NO_ROOM)])),
                },
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    warn!("The API server could not accept a connection: {error}");
                    connections.spare_one();
                    tokio::time::sleep(ACCEPT_REST).await;
                }
            },
        }
    };
    drop(listener);
    let _ = closing.send(true);
    // Whoever is still being answered gets a moment; the process does not wait for the others.
    let _ = tokio::time::timeout(LAST_ANSWERS, async { while tasks.join_next().await.is_some() {} }).await;
    reason.unwrap_or_else(|_| ExitReason::Lost("the VMM thread ended without a reason".to_owned()))
}

/// One connection from its first byte to its last.
async fn converse(
    stream: UnixStream,
    connection: Arc<Connection>,
    router: Router,
    limits: Limits,
    mut closed: watch::Receiver<bool>,
) {
    let stream = Framed::new(stream, limits, connection.clone());
    let service = service_fn(|request| {
        let serving = connection.serving();
        let answer = router.clone().oneshot(request);
        async move {
            let answer = answer.await;
            drop(serving);
            answer
        }
    });
    let http = http1::Builder::new()
        .header_read_timeout(None)
        .auto_date_header(false)
        .title_case_headers(true)
        // A client may close its sending half after the request and still wait for the answer.
        .half_close(true)
        .max_buf_size(64 << 10)
        .serve_connection(TokioIo::new(stream), service);
    let mut http = pin!(http);
    tokio::select! {
        // A broken connection concerns nobody but its client.
        _ = http.as_mut() => {}
        () = connection.evicted() => {}
        // A sender that is gone without a word means the end as well.
        () = async { drop(closed.wait_for(|closed| *closed).await) } => {
            http.as_mut().graceful_shutdown();
            let _ = http.await;
        }
    }
}

#[cfg(test)]
mod tests;
