//! Who is connected, and who has to go when there are too many.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// A request that has been arriving for longer than this may lose its connection to a newcomer.
const GRACE: Duration = Duration::from_millis(250);

/// The open connections.
#[derive(Debug)]
pub(super) struct Connections {
    limit: usize,
    open: Mutex<Vec<Arc<Connection>>>,
}

/// What is known of one connection.
#[derive(Debug)]
pub(crate) struct Connection {
    doing: Mutex<Doing>,
    evicted: Notify,
}

#[derive(Debug)]
struct Doing {
    /// Since when a request has been arriving.
    receiving: Option<Instant>,
    /// Whether a handler is at work.
    serving: bool,
    /// When the connection last became idle.
    idle_since: Instant,
}

impl Connections {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, open: Mutex::new(Vec::new()) }
    }

    /// Makes room for one more connection: while there is room, for nothing; otherwise the one that has been idle longest has to go,
    /// or else the one whose request has been arriving longest. `None` if all are at work.
    pub(super) fn admit(&self) -> Option<Arc<Connection>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.len() >= self.limit && !evict(&mut open) {
            return None;
        }
        let connection = Arc::new(Connection::new());
        open.push(connection.clone());
        Some(connection)
    }

    /// Closes one connection, if one can be spared.
    pub(super) fn spare_one(&self) {
        evict(&mut self.open.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Forgets a connection that has ended.
    pub(super) fn remove(&self, connection: &Arc<Connection>) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).retain(|c| !Arc::ptr_eq(c, connection));
    }
}

fn evict(open: &mut Vec<Arc<Connection>>) -> bool {
    let victim = open.iter().enumerate().filter_map(|(at, c)| Some((c.worth()?, at))).min();
    let Some((_, at)) = victim else { return false };
    open.swap_remove(at).evicted.notify_one();
    true
}

impl Connection {
    pub(super) fn new() -> Self {
        Self {
            doing: Mutex::new(Doing { receiving: None, serving: false, idle_since: Instant::now() }),
            evicted: Notify::new(),
        }
    }

    fn doing(&self) -> std::sync::MutexGuard<'_, Doing> {
        self.doing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first byte of a request has arrived.
    pub(super) fn receiving(&self) {
        self.doing().receiving.get_or_insert_with(Instant::now);
    }

    /// The last byte of a request has arrived.
    pub(super) fn received(&self) {
        let mut doing = self.doing();
        doing.receiving = None;
        doing.idle_since = Instant::now();
    }

    /// A handler works until the guard is dropped.
    pub(super) fn serving(self: &Arc<Self>) -> Serving {
        self.doing().serving = true;
        Serving(self.clone())
    }

    /// Waits until this connection has to go.
    pub(super) async fn evicted(&self) {
        self.evicted.notified().await;
    }

    /// The smaller, the sooner it may go; `None` for one that must not be disturbed.
    fn worth(&self) -> Option<(bool, Instant)> {
        let doing = self.doing();
        match doing.receiving {
            Some(since) => (since.elapsed() >= GRACE).then_some((true, since)),
            None => (!doing.serving).then_some((false, doing.idle_since)),
        }
    }
}

/// Marks a connection as being served.
#[derive(Debug)]
pub(super) struct Serving(Arc<Connection>);

impl Drop for Serving {
    fn drop(&mut self) {
        let mut doing = self.0.doing();
        doing.serving = false;
        doing.idle_since = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_idle_goes_first_and_the_busy_stay() {
        let all = Connections::new(3);
        let busy = all.admit().unwrap();
        let serving = busy.serving();
        let old = all.admit().unwrap();
        let young = all.admit().unwrap();
        young.received();
        let is_open = |c| all.open.lock().unwrap().iter().any(|o| Arc::ptr_eq(o, c));
        let fourth = all.admit().unwrap();
        assert!(is_open(&busy) && !is_open(&old) && is_open(&young));
        // All at work, one of them with a request that has only just begun to arrive.
        let _a = young.serving();
        fourth.receiving();
        assert!(all.admit().is_none());
        drop(serving);
        assert!(all.admit().is_some());
        assert!(!is_open(&busy));
    }

    #[test]
    fn a_request_that_never_finishes_arriving_can_be_evicted() {
        let all = Connections::new(1);
        let slow = all.admit().unwrap();
        slow.doing().receiving = Instant::now().checked_sub(GRACE);
        assert!(all.admit().is_some());
    }
}
