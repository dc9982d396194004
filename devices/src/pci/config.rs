//! The configuration space of one function (PCI Local Bus 3.0 §6): 256 bytes, of which a guest may change some bits.

/// Length in bytes.
pub const LEN: usize = 256;

/// Offset of the command register.
pub const COMMAND: usize = 0x04;
/// The function answers at its BARs.
pub const COMMAND_MEMORY: u16 = 1 << 1;
/// The function may write to memory.
const COMMAND_BUS_MASTER: u16 = 1 << 2;
/// The function does not use its interrupt pin.
const COMMAND_INTX_DISABLE: u16 = 1 << 10;
const STATUS: usize = 0x06;
/// There is a list of capabilities.
const STATUS_CAPABILITIES: u16 = 1 << 4;
const BAR0: usize = 0x10;
/// The BAR is 64 bits wide, of memory that has side effects.
const BAR_MEMORY_64: u32 = 0b100;
const CAPABILITIES: usize = 0x34;
/// Length of the header, which has what decides where a function answers. Capabilities follow.
pub const HEADER_LEN: usize = 0x40;

/// Who a function is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Who made it.
    pub vendor: u16,
    /// What it is, as its maker calls it.
    pub device: u16,
    /// Base class, subclass and programming interface (PCI Code and ID Assignment).
    pub class: [u8; 3],
    /// Which revision.
    pub revision: u8,
    /// Who made the card.
    pub subsystem_vendor: u16,
    /// Which card.
    pub subsystem: u16,
}

/// A configuration space. What it holds at offsets that nobody put anything at is zero and stays so.
#[derive(Debug, Clone)]
pub struct ConfigSpace {
    bytes: [u8; LEN],
    /// Bits that a guest may change.
    writable: [u8; LEN],
    /// Where the next capability goes, and where its predecessor keeps the way to it.
    next: usize,
    link: usize,
}

impl ConfigSpace {
    /// Of a function without BARs and capabilities.
    pub fn new(identity: Identity) -> Self {
        let mut space = Self { bytes: [0; LEN], writable: [0; LEN], next: HEADER_LEN, link: CAPABILITIES };
        let [base, sub, interface] = identity.class;
        space.put(0x00, &identity.vendor.to_le_bytes());
        space.put(0x02, &identity.device.to_le_bytes());
        space.put(0x08, &[identity.revision, interface, sub, base]);
        space.put(0x2c, &identity.subsystem_vendor.to_le_bytes());
        space.put(0x2e, &identity.subsystem.to_le_bytes());
        let command = COMMAND_MEMORY | COMMAND_BUS_MASTER | COMMAND_INTX_DISABLE;
        space.allow(COMMAND, &command.to_le_bytes());
        space
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        for (to, from) in self.bytes.iter_mut().skip(at).zip(bytes) {
            *to = *from;
        }
    }

    fn allow(&mut self, at: usize, mask: &[u8]) {
        for (to, from) in self.writable.iter_mut().skip(at).zip(mask) {
            *to = *from;
        }
    }

    /// Gives the function memory of `len` bytes (a power of two, 16 at least) behind BAR 0 and 1, at `base` for a start.
    pub fn add_bar(&mut self, base: u64, len: u64) {
        let mask = !len.saturating_sub(1) & !0xf;
        self.put(BAR0, &((base & mask) | u64::from(BAR_MEMORY_64)).to_le_bytes());
        self.allow(BAR0, &mask.to_le_bytes());
    }

    /// Where BAR 0 and 1 say that the function's memory is, if the function answers there (PCI 3.0 §6.2.5).
    pub fn bar(&self) -> Option<u64> {
        let command = u16::from_le_bytes(self.array(COMMAND));
        let base = u64::from_le_bytes(self.array(BAR0)) & !0xf;
        (command & COMMAND_MEMORY != 0).then_some(base)
    }

    /// Adds a capability: its id and what follows the two bytes of its header, with the bits of that which a guest may change. Returns where it
    /// is. One for which there is no room is left out.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> usize {
        let at = self.next;
        let end = at.saturating_add(2).saturating_add(body.len());
        debug_assert!(end <= LEN, "capabilities are counted by whoever writes a device");
        if end > LEN {
            return at;
        }
        self.put(at, &[id, 0]);
        self.put(at.saturating_add(2), body);
        self.allow(at.saturating_add(2), writable);
        self.put(self.link, &[at as u8]);
        let status = u16::from_le_bytes(self.array(STATUS)) | STATUS_CAPABILITIES;
        self.put(STATUS, &status.to_le_bytes());
        self.link = at.saturating_add(1);
        self.next = end.next_multiple_of(4);
        at
    }

    /// The bytes at `at`; zeroes behind the end.
    pub fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut bytes = [0; N];
        self.read(at, &mut bytes);
        bytes
    }

    /// Fills `data` from `at`; zeroes behind the end.
    pub fn read(&self, at: usize, data: &mut [u8]) {
        data.fill(0);
        for (to, from) in data.iter_mut().zip(self.bytes.iter().skip(at)) {
            *to = *from;
        }
    }

    /// A guest writes `data` at `at`: the bits change that it may change.
    pub fn write(&mut self, at: usize, data: &[u8]) {
        for ((to, mask), from) in self.bytes.iter_mut().zip(&self.writable).skip(at).zip(data) {
            *to = (*to & !mask) | (from & mask);
        }
    }

    /// All of it, for a saved state.
    pub fn save(&self) -> Vec<u8> {
        self.bytes.to_vec()
    }

    /// Takes up what was saved, as far as a guest could have written it.
    pub fn restore(&mut self, saved: &[u8]) {
        self.write(0, saved);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WHO: Identity = Identity {
        vendor: 0x1af4,
        device: 0x1042,
        class: [1, 0x80, 0],
        revision: 1,
        subsystem_vendor: 0x1af4,
        subsystem: 0x42,
    };

    fn space() -> ConfigSpace {
        let mut space = ConfigSpace::new(WHO);
        space.add_bar(0x7f_c000_0000, 0x8_0000);
        space.add_capability(0x11, &[2, 0, 0, 0x80, 0, 0, 0, 0x80, 4, 0], &[0, 0xc0]);
        space.add_capability(0x09, &[16, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0x38, 0, 0, 0], &[]);
        space
    }

    #[test]
    fn a_guest_finds_the_header() {
        let space = space();
        assert_eq!(u32::from_le_bytes(space.array(0)), 0x1042_1af4);
        assert_eq!(u32::from_le_bytes(space.array(8)), 0x0180_0001);
        assert_eq!(u32::from_le_bytes(space.array(0x2c)), 0x0042_1af4);
        assert_eq!(u64::from_le_bytes(space.array(0x10)), 0x7f_c000_0004);
        assert_eq!(space.bar(), None, "nothing answers before the guest says so");
    }

    #[test]
    fn capabilities_are_a_list() {
        let space = space();
        assert_eq!(space.array::<1>(6)[0] & 0x10, 0x10);
        let mut at = usize::from(space.array::<1>(0x34)[0]);
        let mut ids = Vec::new();
        while at != 0 {
            let [id, next] = space.array(at);
            assert!(at.is_multiple_of(4));
            ids.push(id);
            at = next.into();
        }
        assert_eq!(ids, [0x11, 0x09]);
    }

    /// How every guest asks for the length of a BAR.
    #[test]
    fn a_bar_tells_its_length() {
        let mut space = space();
        space.write(0x10, &[0xff; 8]);
        assert_eq!(u64::from_le_bytes(space.array(0x10)), 0xffff_ffff_fff8_0004);
        space.write(0x10, &0x7f_d000_0000u64.to_le_bytes());
        space.write(COMMAND, &[2]);
        assert_eq!(space.bar(), Some(0x7f_d000_0000));
    }

    proptest! {
        /// Whatever is written where: what is not for a guest to change does not change, and what was saved comes back.
        #[test]
        fn only_some_bits_change(script in proptest::collection::vec((0usize..LEN + 8, any::<[u8; 8]>(), 0usize..=8), 0..40)) {
            let (fresh, mut space) = (space(), space());
            for (at, data, len) in script {
                space.write(at, &data[..len]);
            }
            for at in 0..LEN {
                let fixed = !fresh.writable[at];
                prop_assert_eq!(space.bytes[at] & fixed, fresh.bytes[at] & fixed, "byte {:#x}", at);
            }
            let mut again = fresh.clone();
            again.restore(&space.save());
            prop_assert_eq!(again.bytes, space.bytes);
        }
    }
}
