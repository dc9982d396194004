//! How a guest hears by ACPI that a slot was filled or should be emptied, and how it says that it let go of one.
//!
//! | port | read | write |
//! |---|---|---|
//! | +0 | slots that were filled, a bit for each | clears those bits |
//! | +4 | slots that should be emptied | clears those bits |
//! | +8 | nothing | the slots whose bits are set may be emptied |
//!
//! The DSDT's `PSCN` reads and clears the first two and notifies the slots' devices; their `_EJ0` writes the third. Each port is 32 bits wide.

use std::sync::atomic::{AtomicU32, Ordering};

use serde::{Deserialize, Serialize};

use crate::bus::BusDevice;

/// How many ports there are.
pub const PORTS: u16 = 12;

const FILLED: u64 = 0;
const LEAVING: u64 = 4;
const EJECT: u64 = 8;

/// What a guest was not told, or did not do, yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct HotplugState {
    /// Slots that were filled.
    pub filled: u32,
    /// Slots that should be emptied.
    pub leaving: u32,
    /// Slots that were asked to be emptied and whose guest may still do it, whether or not it looked.
    pub asked: u32,
}

/// The ports.
pub struct HotplugPorts {
    filled: AtomicU32,
    leaving: AtomicU32,
    asked: AtomicU32,
    /// Slots that the guest let go of and nobody took note of.
    ejected: AtomicU32,
    /// The guest should look.
    look: Box<dyn Fn() + Send + Sync>,
    /// The guest let go of something.
    released: Box<dyn Fn() + Send + Sync>,
}

impl HotplugPorts {
    /// Nothing to tell. `look` interrupts the guest; `released` is called on a vCPU when the guest lets go of a slot.
    pub fn new(look: impl Fn() + Send + Sync + 'static, released: impl Fn() + Send + Sync + 'static) -> Self {
        Self {
            filled: AtomicU32::new(0),
            leaving: AtomicU32::new(0),
            asked: AtomicU32::new(0),
            ejected: AtomicU32::new(0),
            look: Box::new(look),
            released: Box::new(released),
        }
    }

    fn bit(slot: u8) -> u32 {
        1u32.checked_shl(slot.into()).unwrap_or(0)
    }

    /// A slot was filled.
    pub fn fill(&self, slot: u8) {
        self.filled.fetch_or(Self::bit(slot), Ordering::SeqCst);
        (self.look)();
    }

    /// A slot should be emptied.
    pub fn ask_to_leave(&self, slot: u8) {
        self.asked.fetch_or(Self::bit(slot), Ordering::SeqCst);
        self.leaving.fetch_or(Self::bit(slot), Ordering::SeqCst);
        (self.look)();
    }

    /// A slot is empty, however that came about: the guest has nothing to look for there.
    pub fn emptied(&self, slot: u8) {
        for bits in [&self.filled, &self.leaving, &self.asked, &self.ejected] {
            bits.fetch_and(!Self::bit(slot), Ordering::SeqCst);
        }
    }

    /// Slots that the guest let go of since this was last asked.
    pub fn take_ejected(&self) -> u32 {
        // A vCPU may say so while the slot is emptied and filled again: what is in it now nobody asked for.
        self.ejected.swap(0, Ordering::SeqCst) & self.asked.load(Ordering::SeqCst)
    }

    /// Whether the guest has something to look at.
    pub fn is_pending(&self) -> bool {
        (self.filled.load(Ordering::SeqCst) | self.leaving.load(Ordering::SeqCst)) != 0
    }

    /// What outlives the process.
    pub fn save(&self) -> HotplugState {
        HotplugState {
            filled: self.filled.load(Ordering::SeqCst),
            leaving: self.leaving.load(Ordering::SeqCst),
            asked: self.asked.load(Ordering::SeqCst),
        }
    }

    /// Takes up what was saved.
    pub fn restore(&self, state: HotplugState) {
        self.filled.store(state.filled, Ordering::SeqCst);
        self.leaving.store(state.leaving, Ordering::SeqCst);
        self.asked.store(state.asked, Ordering::SeqCst);
    }
}

impl BusDevice for HotplugPorts {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let value = match offset {
            FILLED => self.filled.load(Ordering::SeqCst),
            LEAVING => self.leaving.load(Ordering::SeqCst),
            _ => 0,
        };
        match <&mut [u8; 4]>::try_from(&mut *data) {
            Ok(word) => *word = value.to_le_bytes(),
            Err(_) => data.fill(0),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let Ok(word) = <[u8; 4]>::try_from(data) else { return };
        let bits = u32::from_le_bytes(word);
        match offset {
            FILLED => {
                self.filled.fetch_and(!bits, Ordering::SeqCst);
            }
            LEAVING => {
                self.leaving.fetch_and(!bits, Ordering::SeqCst);
            }
            EJECT => {
                // A guest lets go only of what it was asked for: other slots are not its to empty.
                let let_go = bits & self.asked.load(Ordering::SeqCst);
                if let_go != 0 && self.ejected.fetch_or(let_go, Ordering::SeqCst) & let_go != let_go {
                    (self.released)();
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;

    fn ports() -> (HotplugPorts, Arc<AtomicU32>, Arc<AtomicU32>) {
        let (looks, releases) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let (look, release) = (looks.clone(), releases.clone());
        let count = |counter: Arc<AtomicU32>| {
            move || {
                counter.fetch_add(1, Ordering::SeqCst);
            }
        };
        (HotplugPorts::new(count(look), count(release)), looks, releases)
    }

    fn read(ports: &HotplugPorts, offset: u64) -> u32 {
        let mut data = [0xee; 4];
        ports.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn a_slot_comes_and_goes() {
        let (ports, looks, releases) = ports();
        ports.fill(3);
        assert_eq!((read(&ports, FILLED), looks.load(Ordering::SeqCst)), (8, 1));
        ports.write(FILLED, &8u32.to_le_bytes());
        assert!(!ports.is_pending());
        ports.write(EJECT, &8u32.to_le_bytes());
        assert_eq!(ports.take_ejected(), 0, "nobody asked for that");
        ports.ask_to_leave(3);
        assert_eq!((read(&ports, LEAVING), looks.load(Ordering::SeqCst)), (8, 2));
        ports.write(LEAVING, &u32::MAX.to_le_bytes());
        for _ in 0..5 {
            ports.write(EJECT, &u32::MAX.to_le_bytes());
        }
        assert_eq!(releases.load(Ordering::SeqCst), 1, "once, however often it is said");
        assert_eq!(ports.take_ejected(), 8);
        ports.emptied(3);
        assert_eq!(ports.save(), HotplugState::default());
    }

    /// A vCPU looked at what was asked for before the slot was emptied, and says that it let go of it after the slot was filled again.
    #[test]
    fn who_comes_next_is_not_let_go_of() {
        let (ports, ..) = ports();
        ports.ask_to_leave(3);
        ports.emptied(3);
        ports.ejected.fetch_or(8, Ordering::SeqCst);
        ports.fill(3);
        assert_eq!(ports.take_ejected(), 0);
    }

    proptest! {
        /// Whatever a guest does, it empties only what it was asked to empty.
        #[test]
        fn any_access(asked in any::<u32>(), script in proptest::collection::vec((0u64..16, 0usize..=8, any::<u64>(), any::<bool>()), 0..50)) {
            let (ports, _, _) = ports();
            for slot in (0..32).filter(|slot| asked >> slot & 1 != 0) {
                ports.ask_to_leave(slot);
            }
            for (offset, len, value, write) in script {
                let mut data = value.to_le_bytes();
                if write { ports.write(offset, &data[..len]) } else { ports.read(offset, &mut data[..len]) }
            }
            prop_assert_eq!(ports.take_ejected() & !asked, 0);
            prop_assert_eq!(ports.save().asked, asked);
        }
    }
}
