//! What a driver negotiates, whichever transport carries it: features, queue geometry, status.
//!
//! Geometry is frozen as soon as a queue is ready or the driver is set up (CVE-2026-5747 class): later writes are counted and ignored
//! until the device is reset.

use std::sync::Arc;

use super::queue::Geometry;
use super::state::{BadState, RegistersState};
use super::status::{self, Change, Status};

/// VIRTIO_F_VERSION_1 (virtio 1.3 §6).
pub const F_VERSION_1: u64 = 1 << 32;
/// VIRTIO_F_INDIRECT_DESC.
pub const F_INDIRECT_DESC: u64 = 1 << 28;
/// VIRTIO_F_EVENT_IDX.
pub const F_EVENT_IDX: u64 = 1 << 29;
/// VIRTIO_F_IN_ORDER.
pub const F_IN_ORDER: u64 = 1 << 35;

/// Which 64-bit address of a queue is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Area {
    /// Descriptor table.
    Descriptors,
    /// Available ring.
    Available,
    /// Used ring.
    Used,
}

/// What the transport has to do after a status write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    None,
    /// Bring the device back to its initial state.
    Reset,
    /// The driver is set up: make queues and activate the device.
    Activate,
}

/// The registers of one device.
#[derive(Debug)]
pub struct Registers {
    offered: u64,
    required: u64,
    max_sizes: Arc<[u16]>,
    /// A queue has its largest size until the driver says otherwise.
    sized: bool,
    accepted: u64,
    device_features_page: u32,
    driver_features_page: u32,
    queue_select: u32,
    queues: Vec<Geometry>,
    status: Status,
    generation: u32,
    /// Writes that made no sense and were ignored, and were not yet taken note of.
    refused: u64,
}

impl Registers {
    /// Registers of a device that offers these features and queues.
    pub fn new(offered: u64, max_sizes: &[u16]) -> Self {
        Self::blank(offered, max_sizes.into(), false)
    }

    fn blank(offered: u64, max_sizes: Arc<[u16]>, sized: bool) -> Self {
        let size = |max: &u16| if sized { *max } else { 0 };
        Self {
            offered,
            required: F_VERSION_1,
            accepted: 0,
            device_features_page: 0,
            driver_features_page: 0,
            queue_select: 0,
            queues: max_sizes.iter().map(|max| Geometry { size: size(max), ..Geometry::default() }).collect(),
            sized,
            max_sizes,
            status: Status::empty(),
            generation: 0,
            refused: 0,
        }
    }

    /// The same, of a device that works only with these features.
    pub fn requiring(self, required: u64) -> Self {
        Self { required: required | F_VERSION_1, ..self }
    }

    /// The same, with queues that have their largest size for a start, as drivers find them on PCI (§4.1.4.3, queue_size). On MMIO they have
    /// none. For registers that no driver has seen.
    pub fn sized(self) -> Self {
        Self::blank(self.offered, self.max_sizes, true).requiring(self.required)
    }

    fn refuse(&mut self, what: &str) {
        self.refused = self.refused.saturating_add(1);
        crate::guest_warn!("virtio register write ignored: {what} (status {:#x})", self.status.bits());
    }

    /// How many writes made no sense and were ignored since this was last asked.
    pub fn take_refused(&mut self) -> u64 {
        std::mem::take(&mut self.refused)
    }

    /// Features the driver accepted.
    pub fn accepted(&self) -> u64 {
        self.accepted
    }

    /// Features the device offers.
    pub fn offered(&self) -> u64 {
        self.offered
    }

    /// Selects 32 of the device's feature bits.
    pub fn select_device_features(&mut self, page: u32) {
        self.device_features_page = page;
    }

    /// The selected 32 bits of the offered features.
    pub fn device_features(&self) -> u32 {
        half(self.offered, self.device_features_page)
    }

    /// Selects 32 of the driver's feature bits.
    pub fn select_driver_features(&mut self, page: u32) {
        self.driver_features_page = page;
    }

    /// Accepts features; ignored once they are agreed on (§3.1.1 step 5).
    pub fn accept_features(&mut self, bits: u32) {
        if self.status.contains(Status::FEATURES_OK) {
            return self.refuse("features after FEATURES_OK");
        }
        match self.driver_features_page {
            0 => self.accepted = (self.accepted & !0xffff_ffff) | u64::from(bits),
            1 => self.accepted = (self.accepted & 0xffff_ffff) | (u64::from(bits) << 32),
            _ if bits == 0 => {}
            _ => self.refuse("features beyond bit 63"),
        }
    }

    /// Which 32 of the device's feature bits are selected.
    pub fn device_features_page(&self) -> u32 {
        self.device_features_page
    }

    /// Which 32 of the driver's feature bits are selected.
    pub fn driver_features_page(&self) -> u32 {
        self.driver_features_page
    }

    /// The selected 32 bits of the features that the driver accepted.
    pub fn driver_features(&self) -> u32 {
        half(self.accepted, self.driver_features_page)
    }

    /// Which queue is selected.
    pub fn queue_select(&self) -> u32 {
        self.queue_select
    }

    /// Selects a queue.
    pub fn select_queue(&mut self, index: u32) {
        self.queue_select = index;
    }

    /// Largest size of the selected queue; 0 if there is no such queue.
    pub fn queue_max_size(&self) -> u16 {
        self.max_sizes.get(self.queue_select as usize).copied().unwrap_or(0)
    }

    /// The selected queue.
    pub fn queue(&self) -> Option<&Geometry> {
        self.queues.get(self.queue_select as usize)
    }

    /// Every queue's geometry with its largest size.
    pub fn queues(&self) -> impl Iterator<Item = (Geometry, u16)> + '_ {
        self.queues.iter().copied().zip(self.max_sizes.iter().copied())
    }

    fn queue_to_change(&mut self, what: &str) -> Option<&mut Geometry> {
        let set_up = self.status.contains(Status::FEATURES_OK)
            && !self.status.intersects(Status::DRIVER_OK | Status::FAILED | Status::NEEDS_RESET);
        let exists = self.queues.get(self.queue_select as usize).is_some_and(|q| !q.ready);
        if !set_up || !exists {
            self.refuse(what);
            return None;
        }
        self.queues.get_mut(self.queue_select as usize)
    }

    /// Sets the size of the selected queue. Judged when the driver says DRIVER_OK.
    pub fn set_queue_size(&mut self, size: u32) {
        if let Some(queue) = self.queue_to_change("queue size") {
            // 0 is never a legal size, so it stands for everything that does not fit.
            queue.size = u16::try_from(size).unwrap_or(0);
        }
    }

    /// Sets the low or high half of one of the selected queue's addresses.
    pub fn set_queue_address(&mut self, area: Area, high: bool, half: u32) {
        let Some(queue) = self.queue_to_change("queue address") else { return };
        let address = queue.address_mut(area);
        *address = if high {
            (*address & 0xffff_ffff) | (u64::from(half) << 32)
        } else {
            (*address & !0xffff_ffff) | u64::from(half)
        };
    }

    /// Makes the selected queue ready. It cannot be made unready but by a reset.
    pub fn set_queue_ready(&mut self, ready: u32) {
        match ready {
            1 => {
                if let Some(queue) = self.queue_to_change("queue ready") {
                    queue.ready = true;
                }
            }
            0 if self.queue().is_some_and(|q| !q.ready) => {}
            _ => self.refuse("queue ready"),
        }
    }

    /// The status field.
    pub fn status(&self) -> Status {
        self.status
    }

    /// A driver is set up, and the device works for it.
    pub fn is_set_up(&self) -> bool {
        self.status.contains(Status::DRIVER_OK) && !self.is_broken()
    }

    /// Nothing goes on until the driver resets the device.
    pub fn is_broken(&self) -> bool {
        self.status.contains(Status::NEEDS_RESET)
    }

    /// A driver's write to the status field.
    pub fn write_status(&mut self, value: u32) -> Action {
        match status::judge(self.status, value) {
            Change::Reset => Action::Reset,
            Change::Refused => {
                self.refuse("status");
                Action::None
            }
            Change::Step(mut new) => {
                let added = new.difference(self.status);
                if added.contains(Status::FEATURES_OK) && !self.features_agree() {
                    // §3.1.1 step 6: the driver reads the status back and sees that the bit did not stick.
                    self.refuse("features that were not offered, or not those that are required");
                    new = self.status | added.intersection(Status::ACKNOWLEDGE | Status::DRIVER);
                    self.status = new;
                    return Action::None;
                }
                self.status = new;
                let dead = Status::FAILED | Status::NEEDS_RESET;
                if added.contains(Status::DRIVER_OK) && !new.intersects(dead) { Action::Activate } else { Action::None }
            }
        }
    }

    fn features_agree(&self) -> bool {
        self.accepted & !self.offered == 0 && self.required & !self.accepted == 0
    }

    /// The device gives up until it is reset (§2.1.2).
    pub fn needs_reset(&mut self) {
        self.status |= Status::NEEDS_RESET;
    }

    /// Back to the initial state.
    pub fn reset(&mut self) {
        let generation = self.generation;
        *self = Self::blank(self.offered, self.max_sizes.clone(), self.sized).requiring(self.required);
        self.generation = generation;
    }

    /// What outlives the process.
    pub fn save(&self) -> RegistersState {
        RegistersState {
            accepted: self.accepted,
            device_features_page: self.device_features_page,
            driver_features_page: self.driver_features_page,
            queue_select: self.queue_select,
            queues: self.queues.clone(),
            status: self.status.bits(),
            generation: self.generation,
        }
    }

    /// Takes up what was saved, if a driver could have brought it about. The geometry of queues is judged when they are made.
    pub fn restore(&mut self, state: &RegistersState) -> Result<(), BadState> {
        let impossible = |what: String| BadState::Impossible(what);
        let status = Status::from_bits(state.status)
            .filter(|status| {
                let steps = status.difference(Status::NEEDS_RESET);
                steps.is_empty() || matches!(status::judge(Status::empty(), steps.bits()), Change::Step(_))
            })
            .ok_or_else(|| impossible(format!("a device status of {:#x} is none", state.status)))?;
        if state.queues.len() != self.queues.len() {
            let (saved, here) = (state.queues.len(), self.queues.len());
            return Err(impossible(format!("it has {saved} queues, and the device has {here}")));
        }
        let set_up = status.contains(Status::FEATURES_OK);
        if set_up {
            let missing = state.accepted & !self.offered;
            if missing != 0 {
                return Err(BadState::Features { accepted: state.accepted, offered: self.offered, missing });
            }
            if self.required & !state.accepted != 0 {
                return Err(impossible(format!("features {:#x} are too few for the device", state.accepted)));
            }
        } else if state.queues.iter().any(|queue| queue.ready) {
            return Err(impossible("queues are ready before features were agreed on".to_owned()));
        }
        self.accepted = state.accepted;
        self.device_features_page = state.device_features_page;
        self.driver_features_page = state.driver_features_page;
        self.queue_select = state.queue_select;
        self.queues.clone_from(&state.queues);
        self.status = status;
        self.generation = state.generation;
        Ok(())
    }

    /// Changes whenever the configuration space does (§4.2.2 ConfigGeneration).
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// The configuration space changed.
    pub fn bump_generation(&mut self) {
        self.generation = self.generation.wrapping_add(1);
    }
}

/// 32 of the feature bits.
fn half(bits: u64, page: u32) -> u32 {
    match page {
        0 => bits as u32,
        1 => (bits >> 32) as u32,
        _ => 0,
    }
}

#[cfg(test)]
mod tests;
