//! Where virtio-mmio devices go: each gets the next register window and the next interrupt, in the order they are attached.

use crate::arch::layout::{GENERATION_ID_GSI, VIRTIO_GSI_FIRST, VIRTIO_GSI_LAST, VIRTIO_MMIO_LEN, VIRTIO_MMIO_START};

/// Interrupts kept back for the generation id and clock devices, which have no window.
const RESERVED_GSIS: u32 = VIRTIO_GSI_LAST + 1 - GENERATION_ID_GSI;

/// A device's window and interrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Guest address of the register window.
    pub window: u64,
    /// Interrupt number.
    pub gsi: u32,
}

/// No interrupt is left. The text is the v1 contract's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("Could not allocate GSI: The requested resource is not available.")]
pub struct Full;

/// Hands out places.
#[derive(Debug, Default)]
pub struct Placement {
    taken: u32,
}

impl Placement {
    /// Most virtio devices a machine may have.
    pub const CAPACITY: u32 = VIRTIO_GSI_LAST - VIRTIO_GSI_FIRST + 1 - RESERVED_GSIS;

    /// The next place.
    pub fn next(&mut self) -> Result<Place, Full> {
        if self.taken >= Self::CAPACITY {
            return Err(Full);
        }
        let n = self.taken;
        self.taken += 1;
        Ok(Place { window: VIRTIO_MMIO_START.0 + u64::from(n) * VIRTIO_MMIO_LEN, gsi: VIRTIO_GSI_FIRST + n })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seventeen_places_then_none() {
        let mut placement = Placement::default();
        let first = placement.next().unwrap();
        assert_eq!(first, Place { window: 0xc000_1000, gsi: 5 });
        let last = (1..17).map(|_| placement.next().unwrap()).last().unwrap();
        assert_eq!(last, Place { window: 0xc001_1000, gsi: 21 });
        assert_eq!(placement.next(), Err(Full));
    }
}
