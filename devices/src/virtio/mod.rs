//! virtio devices (virtio 1.3) and what they share.
//!
//! `queue` and `chain` are the only code that touches rings. `registers` holds what a driver negotiates, whichever the transport;
//! `cell` puts device, rings and registers under the device's one lock; `transport` maps registers into the guest's address space.

pub mod any;
pub mod balloon;
pub mod block;
pub mod cell;
pub mod chain;
mod config_space;
pub mod device;
pub mod mem;
pub mod net;
pub mod pmem;
pub mod queue;
pub mod registers;
pub mod rng;
pub mod state;
pub mod status;
pub mod transport;
pub mod vhost_user;
pub mod vsock;

#[cfg(any(test, feature = "test-driver"))]
pub mod fuzz;
#[cfg(any(test, feature = "test-driver"))]
pub mod test_driver;
