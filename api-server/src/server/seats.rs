//! Who may be connected. When all seats are taken, the connection that has been idle longest loses its seat to the newcomer; only when
//! every connection waits for an answer is the newcomer turned away.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

/// The seats of a server.
pub(super) struct Seats {
    limit: usize,
    taken: Mutex<Vec<Weak<Seat>>>,
}

/// A connection's seat. Given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    state: Mutex<State>,
    evict: Notify,
}

#[derive(Debug)]
struct State {
    /// Requests being answered.
    busy: usize,
    idle_since: Instant,
}

/// While it lives its connection is busy, and keeps its seat.
pub(super) struct Busy<'a>(&'a Seat);

impl Seats {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, taken: Mutex::new(Vec::new()) }
    }

    fn live(&self) -> Vec<Arc<Seat>> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.retain(|seat| seat.strong_count() > 0);
        taken.iter().filter_map(Weak::upgrade).collect()
    }

    /// A seat for a newcomer, if need be that of the connection that has been idle longest.
    pub(super) fn take(&self) -> Option<Arc<Seat>> {
        let live = self.live();
        if live.len() >= self.limit {
            let idle = live.iter().filter_map(|seat| seat.idle_since().map(|since| (since, seat)));
            let (_, longest) = idle.min_by_key(|(since, _)| *since)?;
            longest.evict.notify_one();
        }
        let seat =
            Arc::new(Seat { state: Mutex::new(State { busy: 0, idle_since: Instant::now() }), evict: Notify::new() });
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(&seat));
        Some(seat)
    }

    /// Waits until no connection is busy.
    pub(super) async fn all_quiet(&self) {
        while self.live().iter().any(|seat| seat.idle_since().is_none()) {
            sleep(Duration::from_millis(1)).await;
        }
        // The last answers have been handed to hyper; let it write them.
        sleep(Duration::from_millis(1)).await;
    }
}

impl Seat {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Since when the connection has been idle; `None` while it is busy.
    fn idle_since(&self) -> Option<Instant> {
        let state = self.lock();
        (state.busy == 0).then_some(state.idle_since)
    }

    /// Marks the connection busy for as long as the result lives.
    pub(super) fn busy(&self) -> Busy<'_> {
        self.lock().busy += 1;
        Busy(self)
    }

    /// Ready when the seat has been given to another.
    pub(super) async fn evicted(&self) {
        self.evict.notified().await;
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.busy = state.busy.saturating_sub(1);
        state.idle_since = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread", start_paused = true)]
    async fn the_longest_idle_makes_room() {
        let seats = Seats::new(2);
        let first = seats.take().unwrap();
        tokio::time::advance(Duration::from_secs(1)).await;
        let second = seats.take().unwrap();
        let busy = first.busy();
        let _third = seats.take().unwrap();
        tokio::time::timeout(Duration::from_millis(1), second.evicted()).await.expect("the idle one is evicted");
        assert!(tokio::time::timeout(Duration::from_millis(1), first.evicted()).await.is_err(), "the busy one stays");
        drop(busy);
    }

    #[tokio::test(flavor = "current_thread", start_paused = true)]
    async fn a_full_house_of_busy_ones_turns_newcomers_away() {
        let seats = Seats::new(1);
        let only = seats.take().unwrap();
        let busy = only.busy();
        assert!(seats.take().is_none());
        drop(busy);
        assert!(seats.take().is_some());
    }
}
