//! Places in the guest's address space where writes are no device's business but have to be told: read-only persistent memory.
//!
//! On a machine whose devices come and go the bus knows only the range that all of it lies in.

use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock};

use devices::bus::BusDevice;

/// A range of addresses, and who is told of accesses there.
type Place = (Range<u64>, Arc<dyn BusDevice>);

/// Who is told of accesses where, in a range of the bus that begins at `start`.
pub(super) struct Traps {
    start: u64,
    places: RwLock<Vec<Place>>,
}

impl Traps {
    pub(super) fn new(start: u64) -> Self {
        Self { start, places: RwLock::default() }
    }

    pub(super) fn set(&self, start: u64, len: u64, trap: Arc<dyn BusDevice>) {
        let place = start..start.saturating_add(len);
        self.places.write().unwrap_or_else(PoisonError::into_inner).push((place, trap));
    }

    pub(super) fn clear(&self, start: u64) {
        self.places.write().unwrap_or_else(PoisonError::into_inner).retain(|(place, _)| place.start != start);
    }

    fn find(&self, offset: u64) -> Option<(Arc<dyn BusDevice>, u64)> {
        let addr = self.start.checked_add(offset)?;
        let places = self.places.read().unwrap_or_else(PoisonError::into_inner);
        let (place, trap) = places.iter().find(|(place, _)| place.contains(&addr))?;
        Some((trap.clone(), addr.checked_sub(place.start)?))
    }
}

impl BusDevice for Traps {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match self.find(offset) {
            Some((trap, offset)) => trap.read(offset, data),
            None => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some((trap, offset)) = self.find(offset) {
            trap.write(offset, data);
        }
    }
}
