//! Network card (virtio 1.3 §5.1).

use super::device::{Kind, Rings, VirtioDevice};
use super::queue::{RingError, Visit};

/// A tap.
#[derive(Debug)]
pub struct Tap;

impl Tap {
    /// Opens a tap.
    pub fn open(_name: &str) -> Result<Self, std::io::Error> {
        Err(std::io::Error::other("not written yet"))
    }
}

/// A network card.
pub struct Net;

impl VirtioDevice for Net {
    fn kind(&self) -> Kind {
        Kind::Net
    }
    fn queue_max_sizes(&self) -> &'static [u16] {
        &[256, 256]
    }
    fn features(&self) -> u64 {
        super::registers::F_VERSION_1
    }
    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }
    fn activate(&mut self, _accepted: u64, _rings: &mut Rings) -> Result<(), String> {
        Ok(())
    }
    fn on_doorbell(&mut self, _queue: u16, _rings: &mut Rings) -> Result<Visit, RingError> {
        Ok(Visit::Idle)
    }
    fn reset(&mut self) {}
}
/// x
#[allow(missing_docs)]
pub struct NetSpec {
    pub tap: Tap,
    pub mac: Option<[u8; 6]>,
    pub mtu: Option<u16>,
}
impl Net {
    /// x
    pub fn new(_s: NetSpec) -> std::io::Result<Self> {
        Ok(Self)
    }
}
impl Tap {
    /// x
    pub fn try_clone(&self) -> std::io::Result<Self> {
        Ok(Self)
    }
}
