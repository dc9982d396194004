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
/// x
pub struct UringHub;
impl UringHub {
    /// x
    pub fn new(_n: usize) -> std::io::Result<std::sync::Arc<Self>> {
        Err(std::io::Error::other("x"))
    }
    /// x
    pub fn attach(&self, _c: &std::sync::Arc<super::cell::VirtioCell>) {}
}
impl crate::event::Subscriber for UringHub {
    fn sources(&self) -> Vec<crate::event::Source> {
        vec![]
    }
    fn ready(&self, _t: u32) {}
}
/// x
pub enum Engine {
    /// x
    Sync,
    /// x
    Async(std::sync::Arc<UringHub>),
}
/// x
#[allow(missing_docs)]
pub struct BlockSpec {
    pub file: std::fs::File,
    pub read_only: bool,
    pub writeback: bool,
    pub engine: Engine,
}
impl Block {
    /// x
    pub fn new(_s: BlockSpec) -> std::io::Result<Self> {
        Ok(Self)
    }
    /// x
    pub fn replace_file(&mut self, _f: std::fs::File) -> std::io::Result<()> {
        Ok(())
    }
}
