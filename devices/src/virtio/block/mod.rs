//! Block device (virtio 1.3 §5.2).

use super::device::{Kind, Rings, VirtioDevice};
use super::queue::{RingError, Visit};

/// A block device.
pub struct Block;

impl VirtioDevice for Block {
    fn kind(&self) -> Kind {
        Kind::Block
    }
    fn queue_max_sizes(&self) -> &'static [u16] {
        &[256]
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
