//! The machine: everything between "configured" and "gone".
//!
//! [`assemble`] is the boot recipe; `placement` says where devices go; this file is what can be done with a machine that exists.

mod assemble;
mod attach;
mod placement;

pub use assemble::{Surroundings, assemble};

use std::sync::Arc;

use devices::legacy::i8042::I8042;
use devices::legacy::serial::Com1;
use devices::ram::GuestRam;
use devices::sys::terminal::RawTerminal;
use devices::virtio::cell::VirtioCell;
use kvm_ioctls::VmFd;

use crate::config::ResourceId;
use crate::vcpu::Crew;

/// A machine whose guest can run. vCPUs stand still until [`Machine::resume`].
///
/// Fields are dropped in order: first the threads that run the guest, last the memory they run in.
pub struct Machine {
    crew: Crew,
    cells: Vec<Arc<VirtioCell>>,
    drives: Vec<(ResourceId, Arc<VirtioCell>)>,
    keyboard: Arc<I8042>,
    serial: Arc<Com1>,
    /// The terminal on standard input is raw while the machine exists.
    _terminal: Option<RawTerminal>,
    _vm: Arc<VmFd>,
    _ram: GuestRam,
}

impl Machine {
    /// Lets devices and vCPUs run.
    pub fn resume(&self) {
        for cell in &self.cells {
            cell.resume();
        }
        self.crew.run();
    }

    /// Stops vCPUs, then devices; nothing moves when this returns.
    pub fn pause(&self) {
        self.crew.pause();
        for cell in &self.cells {
            cell.pause();
        }
    }

    /// Types Ctrl-Alt-Del; `false` if the guest has not emptied the keyboard's buffer.
    pub fn press_ctrl_alt_del(&self) -> bool {
        self.keyboard.press_ctrl_alt_del()
    }

    /// The cell of a drive.
    pub fn drive(&self, id: &ResourceId) -> Option<&Arc<VirtioCell>> {
        self.drives.iter().find(|(name, _)| name == id).map(|(_, cell)| cell)
    }

    /// Ends the guest: vCPU threads end, devices finish what is in flight and make it durable.
    pub fn shut_down(self) {
        let Self { crew, cells, serial, .. } = self;
        drop(crew);
        for cell in &cells {
            if let Err(error) = cell.shut_down() {
                log::error!("{}: not everything the guest wrote is durable: {error}", cell.name());
            }
        }
        serial.finish();
    }
}
