//! Another file for a drive at work.

use std::io;

use super::{BackingFile, Block};
use crate::virtio::any::AnyDevice;
use crate::virtio::cell::{ConfigChange, VirtioCell};

/// Puts another file behind the drive in `cell`, in all of its lanes: what is in flight is finished first, and the driver hears of the new
/// capacity. After an error the old file is still in use.
pub fn swap_file(cell: &VirtioCell, file: BackingFile) -> io::Result<()> {
    cell.reconfigure_lanes(|first, others| {
        let mut others: Vec<&mut Block> = others.iter_mut().filter_map(|lane| block(lane)).collect();
        match block(first) {
            Some(first) => first.replace_file(&mut others, file).map(|()| ((), ConfigChange::Announce)),
            None => Err(io::Error::other(format!("{} is not a drive.", cell.name()))),
        }
    })
}

fn block(device: &mut AnyDevice) -> Option<&mut Block> {
    match device {
        AnyDevice::Block(block) => Some(&mut **block),
        _ => None,
    }
}
