//! The whole service, from frame to frame: a client that knows TCP, and segments from one that does not.

mod client;
mod hostile;

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::test_frames as frames;
use super::{Checksum, DEFAULT_ADDRESS, Document, Manner, Mmds, Protocol, Stack};

const V1: Manner = Manner { protocol: Protocol::V1, imds_compat: false };
const V2: Manner = Manner { protocol: Protocol::V2, imds_compat: false };

fn document(value: Value) -> Document {
    match value {
        Value::Object(object) => object.into(),
        other => panic!("{other} is no object"),
    }
}

/// A service with something to say, and a clock.
struct Rig {
    mmds: Arc<Mmds>,
    stack: Stack,
    now: Instant,
}

impl Rig {
    fn new(manner: Manner) -> Self {
        let now = Instant::now();
        let mmds = Arc::new(Mmds::new([5; 32], 1 << 20, now));
        mmds.store().put(document(json!({"a": "b", "long": "x".repeat(100_000)}))).unwrap();
        let stack = Stack::new(mmds.clone(), manner, DEFAULT_ADDRESS, 7, now);
        Self { mmds, stack, now }
    }

    fn give(&mut self, frame: &[u8]) {
        self.stack.take(frame, Checksum::Whole, self.now);
    }

    fn fetch(&mut self) -> Option<Vec<u8>> {
        let frame = self.stack.front()?.to_vec();
        assert_eq!(frame[..6], frames::GUEST_MAC);
        self.stack.pop(true, self.now);
        Some(frame)
    }

    /// Lets time pass as a card does: whenever the stack wants to be woken, it is.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.stack.wake_at(self.now).filter(|at| *at <= end) {
            self.now = at;
            self.stack.wake(at);
        }
        self.now = end;
    }
}
