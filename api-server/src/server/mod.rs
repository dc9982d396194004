//! The API socket: binding it, accepting connections, and serving each without letting one hold up the others.

mod answer;
mod gate;
mod head;
mod seats;

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::sleep;

use crate::app::App;
use gate::Gate;
use seats::{Seat, Seats};

/// Most connections at a time.
const SEATS: usize = 64;
/// How long to wait after a failed accept: out of descriptors, most likely, and trying again at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long answers may take to leave when the machine has ended.
const FAREWELL: Duration = Duration::from_millis(100);

/// The bound API socket. The file is removed when this is dropped.
pub(crate) struct Socket {
    listener: std::os::unix::net::UnixListener,
    path: PathBuf,
}

impl Socket {
    /// Binds the socket, which must not exist yet. Its permissions are the umask's.
    pub(crate) fn bind(path: &Path) -> io::Result<Self> {
        let listener = std::os::unix::net::UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, path: path.to_owned() })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // It may be gone already; nothing can be done about it here.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Serves until `end` is ready.
pub(crate) async fn serve(socket: &Socket, app: App, end: impl Future<Output = ()>) -> io::Result<()> {
    let listener = UnixListener::from_std(socket.listener.try_clone()?)?;
    let seats = Arc::new(Seats::new(SEATS));
    let router = Router::new().fallback(answer::answer).with_state(app.clone());
    tokio::pin!(end);
    loop {
        tokio::select! {
            biased;
            () = &mut end => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => match seats.take() {
                    Some(seat) => {
                        tokio::spawn(converse(stream, seat, router.clone(), app.payload_limit()));
                    }
                    None => refuse(&stream),
                },
                Err(_) => sleep(ACCEPT_PAUSE).await,
            },
        }
    }
    // Answers that are on their way should arrive; the machine is gone, so no new ones are started.
    let _ = tokio::time::timeout(FAREWELL, seats.all_quiet()).await;
    Ok(())
}

/// One connection, from accept to hang-up or until its seat is given to another.
async fn converse(stream: UnixStream, seat: Arc<Seat>, router: Router, payload_limit: usize) {
    let router = router.layer(axum::Extension(seat.clone()));
    let mut http = hyper::server::conn::http1::Builder::new();
    http.header_read_timeout(None).max_buf_size(64 << 10).auto_date_header(false).title_case_headers(true);
    let service = TowerToHyperService::new(router);
    let connection = http.serve_connection(TokioIo::new(Gate::new(stream, payload_limit)), service);
    tokio::select! {
        // A client that misbehaves or hangs up is no error of ours.
        _ = connection => {}
        () = seat.evicted() => {}
    }
}

/// Tells a client that there is no room. One try: it has just connected, so its buffer is empty.
fn refuse(stream: &UnixStream) {
    const BODY: &str = "{ \"error\": \"Too many open connections\" }";
    let text = format!(
        "HTTP/1.1 503 \r\nServer: Mayfly API\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{BODY}",
        BODY.len()
    );
    let _ = stream.try_write(text.as_bytes());
}

#[cfg(test)]
mod tests;
