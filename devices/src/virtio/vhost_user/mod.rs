//! Devices whose rings another process serves (vhost-user): a frontend, and the drive and the file system that use it.
//!
//! `message` is the protocol in bytes, `connection` whole messages, `peer` getting to know a backend, `frontend` the life of a connection,
//! `driver` the rings it is for, `whereabouts` what they tell of a backend that is lost, `device` what the cell sees. The backend maps guest
//! memory, is rung by the guest's doorbells (ioeventfds) directly, and rings an eventfd per ring, which the device's event loop turns into
//! an interrupt.
//!
//! A backend is trusted with guest memory, and with nothing else: it cannot hang the VMM, nor have it keep memory without bound, nor crash
//! it. The `vhost` crate is not used because its frontend cannot be held to that: it sends and receives in loops that begin anew when the
//! socket's time is up, so that only another thread could end a wait for a silent backend.

mod block;
mod connection;
mod device;
mod driver;
mod frontend;
mod fs;
mod memory;
mod message;
mod metrics;
mod peer;
pub mod syscalls;
#[cfg(test)]
mod tests;
mod whereabouts;

pub use block::BlockModel;
pub use connection::Broken;
pub use device::{Model, VhostUser};
pub use frontend::FrontendSpec;
pub use fs::{FsModel, TAG_LEN};
pub use memory::{SharedMemory, SharedRegion, TooManyRegions};
pub use metrics::VhostUserMetrics;
pub use peer::{Offer, Peer, Wishes};
