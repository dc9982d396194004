//! One epoll loop. It watches file descriptors edge-triggered for [`Subscriber`]s and level-triggered for its owner.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use devices::event::{Interest, Subscriber};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// Events taken from the kernel at once.
const BATCH: usize = 32;
/// Marks the owner's own descriptors.
const OWNER: u32 = u32::MAX;

/// An event loop and those who take part in it.
pub struct EventLoop {
    epoll: Epoll,
    /// Places of those that left are taken by those that come.
    subscribers: Vec<Option<Arc<dyn Subscriber>>>,
}

impl EventLoop {
    /// An empty loop.
    pub fn new() -> io::Result<Self> {
        Ok(Self { epoll: Epoll::new()?, subscribers: Vec::new() })
    }

    /// Watches one of the owner's descriptors, level-triggered; [`Self::turn`] reports it as `token`.
    pub fn watch(&self, fd: RawFd, token: u32) -> io::Result<()> {
        let event = EpollEvent::new(EventSet::IN, pack(OWNER, token));
        self.epoll.ctl(ControlOperation::Add, fd, event)
    }

    /// Adds a subscriber and watches its sources. A source that cannot be polled (a regular file is always ready) is left out.
    pub fn add(&mut self, subscriber: Arc<dyn Subscriber>) -> io::Result<()> {
        let place = self.subscribers.iter().position(Option::is_none).unwrap_or(self.subscribers.len());
        let index = u32::try_from(place).map_err(io::Error::other)?;
        for source in subscriber.sources() {
            let interest = match source.interest {
                Interest::Readable => EventSet::IN,
                Interest::Writable => EventSet::OUT,
            };
            let event = EpollEvent::new(interest | EventSet::EDGE_TRIGGERED, pack(index, source.token));
            match self.epoll.ctl(ControlOperation::Add, source.fd, event) {
                Err(error) if error.raw_os_error() != Some(libc::EPERM) => return Err(error),
                _ => {}
            }
        }
        match self.subscribers.get_mut(place) {
            Some(free) => *free = Some(subscriber),
            None => self.subscribers.push(Some(subscriber)),
        }
        Ok(())
    }

    /// Waits for events, hands those of subscribers to them and calls `owner` with the tokens of its own.
    pub fn turn(&self, mut owner: impl FnMut(u32)) -> io::Result<()> {
        let mut events = [EpollEvent::default(); BATCH];
        let count = match self.epoll.wait(-1, &mut events) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            other => other?,
        };
        for event in events.iter().take(count) {
            let (index, token) = unpack(event.data());
            if index == OWNER {
                owner(token);
            } else if let Some(Some(subscriber)) = self.subscribers.get(index as usize) {
                subscriber.ready(token);
            }
        }
        Ok(())
    }

    /// Forgets all subscribers. Their descriptors leave the loop as they are closed.
    pub fn clear(&mut self) {
        for subscriber in self.subscribers.drain(..).flatten() {
            unwatch(&self.epoll, &*subscriber);
        }
    }

    /// Forgets the subscribers that have one of these descriptors among their sources.
    pub fn forget(&mut self, fds: &[RawFd]) {
        for place in &mut self.subscribers {
            let is_one = |subscriber: &Arc<dyn Subscriber>| subscriber.sources().iter().any(|s| fds.contains(&s.fd));
            if let Some(subscriber) = place.take_if(|subscriber| is_one(subscriber)) {
                unwatch(&self.epoll, &*subscriber);
            }
        }
    }
}

fn unwatch(epoll: &Epoll, subscriber: &dyn Subscriber) {
    for source in subscriber.sources() {
        let _ = epoll.ctl(ControlOperation::Delete, source.fd, EpollEvent::default());
    }
}

fn pack(index: u32, token: u32) -> u64 {
    u64::from(index) << 32 | u64::from(token)
}

fn unpack(data: u64) -> (u32, u32) {
    ((data >> 32) as u32, data as u32)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use std::os::fd::AsRawFd;

    use devices::event::Source;
    use vmm_sys_util::eventfd::EventFd;

    use super::*;

    struct Once {
        bell: EventFd,
        calls: AtomicU32,
    }

    impl Subscriber for Once {
        fn sources(&self) -> Vec<Source> {
            vec![Source { fd: self.bell.as_raw_fd(), interest: Interest::Readable, token: 7 }]
        }
        fn ready(&self, token: u32) {
            assert_eq!(token, 7);
            self.calls.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// An unread eventfd wakes its subscriber once per ring, not for ever.
    #[test]
    fn subscribers_are_edge_triggered_and_owners_level_triggered() {
        let mut events = EventLoop::new().unwrap();
        let once = Arc::new(Once { bell: EventFd::new(libc::EFD_NONBLOCK).unwrap(), calls: AtomicU32::new(0) });
        events.add(once.clone()).unwrap();
        let mine = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        events.watch(mine.as_raw_fd(), 3).unwrap();
        mine.write(1).unwrap();
        once.bell.write(1).unwrap();
        let mut owner_calls = 0;
        for _ in 0..3 {
            events
                .turn(|token| {
                    assert_eq!(token, 3);
                    owner_calls += 1;
                })
                .unwrap();
        }
        assert_eq!(once.calls.load(Ordering::Relaxed), 1);
        assert_eq!(owner_calls, 3);
        once.bell.write(1).unwrap();
        events.turn(|_| ()).unwrap();
        assert_eq!(once.calls.load(Ordering::Relaxed), 2);
        // One that is forgotten leaves its place to the next.
        events.forget(&[once.bell.as_raw_fd()]);
        once.bell.write(1).unwrap();
        events.add(once.clone()).unwrap();
        assert_eq!((events.subscribers.len(), Arc::strong_count(&once)), (1, 2));
    }
}
