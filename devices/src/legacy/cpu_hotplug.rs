//! The registers by which a guest learns which vCPUs come and go, and by which it lets them go.
//!
//! A chip of our own: its only driver is the AML in the DSDT. It keeps which vCPUs the guest has, and what the guest was not told yet. Which
//! of them may run is the machine's business: it hears of an ejected one by a bell, and reads here what became of it.
//!
//! | offset | read | written |
//! |---|---|---|
//! | 0 | the vCPU that is selected | selects a vCPU |
//! | 1 | bit 0: the guest has it; bit 1: it came; bit 2: it is to go | bit 1: heard that it came; bit 2: heard that it is to go; bit 3: it is ejected |

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::bus::BusDevice;
use crate::irq::IrqLine;

const SELECT: u64 = 0;
const STATUS: u64 = 1;

/// The guest has the vCPU.
pub const PRESENT: u8 = 1 << 0;
/// It came, and the guest has not said that it knows.
pub const INSERTING: u8 = 1 << 1;
/// It is to go, likewise.
pub const REMOVING: u8 = 1 << 2;
/// The guest gives it back.
pub const EJECT: u8 = 1 << 3;

crate::metric_group! {
    /// What happened to vCPUs.
    pub struct CpuHotplugMetrics {
    }
    beyond v1 {
        /// vCPUs the guest was given.
        insert_count: Counter,
        /// vCPUs the guest was asked for.
        remove_count: Counter,
        /// vCPUs the guest gave back.
        eject_count: Counter,
        /// vCPUs that were taken back before the guest said that it knew of them.
        withdraw_count: Counter,
        /// Accesses that made no sense.
        invalid_count: Counter,
    }
}

/// A set of vCPUs, by index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CpuSet(u32);

impl CpuSet {
    /// Most vCPUs in a set.
    pub const MAX: u8 = 32;

    /// The first so many vCPUs, at most [`Self::MAX`].
    pub fn first(count: u8) -> Self {
        Self(u32::MAX.checked_shr(u32::from(Self::MAX.saturating_sub(count))).unwrap_or(0))
    }

    /// One vCPU, or none if the index is too large.
    pub fn one(index: u8) -> Self {
        Self(1_u32.checked_shl(index.into()).unwrap_or(0))
    }

    /// Whether this vCPU is in it.
    pub fn has(self, index: u8) -> bool {
        self.0 & Self::one(index).0 != 0
    }

    /// How many are in it.
    pub fn count(self) -> u8 {
        // 32 at most.
        self.0.count_ones() as u8
    }

    /// Whether nobody is in it.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Those in either.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Those in both.
    #[must_use]
    pub fn within(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Those that are not in the other one.
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// The indices, lowest first.
    pub fn iter(self) -> impl Iterator<Item = u8> {
        (0..Self::MAX).filter(move |index| self.has(*index))
    }
}

/// What outlives the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuHotplugState {
    /// How many the guest should have.
    wanted: u8,
    selected: u8,
    present: CpuSet,
    inserting: CpuSet,
    removing: CpuSet,
    /// The guest was asked for them and may give them back any moment, and now it should have them after all.
    returning: CpuSet,
}

impl CpuHotplugState {
    /// The vCPUs that the guest has.
    pub fn present(&self) -> CpuSet {
        self.present
    }

    /// Whether a machine with at most so many vCPUs could be so.
    pub fn check(&self, max: u8) -> Result<(), String> {
        let all = CpuSet::first(max);
        let sets = [self.present, self.inserting, self.removing, self.returning];
        if self.wanted == 0 || self.wanted > max {
            return Err(format!("{} vCPUs are wanted, and 1 to {max} are possible", self.wanted));
        }
        if sets.into_iter().any(|set| !set.without(all).is_empty()) {
            return Err(format!("something is said of a vCPU that is not one of {max}"));
        }
        let beyond = [self.inserting, self.removing, self.returning].into_iter();
        if !self.present.has(0) || beyond.map(|set| set.without(self.present)).any(|set| !set.is_empty()) {
            return Err("a vCPU that the guest does not have is to be plugged or unplugged".to_owned());
        }
        Ok(())
    }
}

struct Inner {
    state: CpuHotplugState,
    /// Ejected, and the machine has not heard of it.
    ejected: CpuSet,
    /// Those of them that the guest should have again.
    again: CpuSet,
}

/// What the machine has to do for the guest to have as many vCPUs as it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CpuChange {
    /// The guest does not have these any more: they must not run.
    pub gone: CpuSet,
    /// The guest should have these: once they may run, [`CpuHotplug::insert`] tells it.
    pub wanted: CpuSet,
}

/// The registers.
pub struct CpuHotplug<L> {
    inner: Mutex<Inner>,
    max: u8,
    bell: L,
    metrics: Arc<CpuHotplugMetrics>,
}

impl<L: IrqLine> CpuHotplug<L> {
    /// Number of ports.
    pub const PORTS: u8 = 2;

    /// Of a guest that boots with the first `count` of at most `max` vCPUs. `bell` rings when one is ejected.
    pub fn new(count: u8, max: u8, bell: L) -> Self {
        let empty = CpuSet::default();
        let state = CpuHotplugState {
            wanted: count,
            selected: 0,
            present: CpuSet::first(count),
            inserting: empty,
            removing: empty,
            returning: empty,
        };
        Self::restored(state, max, bell)
    }

    /// Of a guest that goes on. The state was [checked](CpuHotplugState::check).
    pub fn restored(state: CpuHotplugState, max: u8, bell: L) -> Self {
        let inner = Inner { state, ejected: CpuSet::default(), again: CpuSet::default() };
        Self { inner: Mutex::new(inner), max, bell, metrics: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts what happened.
    pub fn metrics(&self) -> Arc<CpuHotplugMetrics> {
        self.metrics.clone()
    }

    /// Rings when a vCPU is ejected.
    pub fn bell(&self) -> &L {
        &self.bell
    }

    /// What outlives the process. What was ejected has been [taken](Self::settle).
    pub fn save(&self) -> CpuHotplugState {
        self.lock().state
    }

    /// How many vCPUs the guest should have.
    pub fn wanted(&self) -> u8 {
        self.lock().state.wanted
    }

    /// Whether there is something that the guest has not said it knows.
    pub fn is_untold(&self) -> bool {
        let state = self.lock().state;
        !state.inserting.and(state.removing).is_empty()
    }

    /// From now on the guest should have the first `count` vCPUs. Those it has and should not have it is asked for, once more if it was asked
    /// before; one that it has not said it knows of it loses at once.
    pub fn want(&self, count: u8) -> CpuChange {
        let inner = &mut *self.lock();
        let state = &mut inner.state;
        let wanted = CpuSet::first(count.min(self.max)).and(CpuSet::one(0));
        let surplus = state.present.without(wanted);
        let gone = surplus.within(state.inserting);
        let removing = surplus.without(gone);
        // It was asked for, and may be on its way.
        let returning = state.present.within(wanted).without(CpuSet::first(state.wanted));
        state.wanted = wanted.count();
        state.present = state.present.without(gone);
        state.inserting = state.inserting.without(gone);
        state.removing = removing;
        state.returning = state.returning.and(returning).within(wanted).within(state.present);
        self.metrics.withdraw_count.add(gone.count().into());
        self.metrics.remove_count.add(removing.count().into());
        // What was ejected a moment ago is among those that are wanted, or not, like any other.
        inner.again = CpuSet::default();
        CpuChange { gone: gone.and(std::mem::take(&mut inner.ejected)), wanted: wanted.without(state.present) }
    }

    /// These may run, and the guest is to be told.
    pub fn insert(&self, vcpus: CpuSet) {
        let state = &mut self.lock().state;
        let new = vcpus.within(CpuSet::first(self.max)).without(state.present);
        state.present = state.present.and(new);
        state.inserting = state.inserting.and(new);
        self.metrics.insert_count.add(new.count().into());
    }

    /// What was ejected since this was last asked, and which of it the guest should have again.
    pub fn settle(&self) -> CpuChange {
        let inner = &mut *self.lock();
        CpuChange { gone: std::mem::take(&mut inner.ejected), wanted: std::mem::take(&mut inner.again) }
    }

    fn status(&self) -> u8 {
        let state = self.lock().state;
        let bits = [(state.present, PRESENT), (state.inserting, INSERTING), (state.removing, REMOVING)];
        bits.into_iter().filter(|(set, _)| set.has(state.selected)).fold(0, |status, (_, bit)| status | bit)
    }

    /// Takes what was written to the status register of the selected vCPU. `false` if it makes no sense.
    fn heard(&self, value: u8) -> bool {
        let inner = &mut *self.lock();
        let state = &mut inner.state;
        let index = state.selected;
        let vcpu = CpuSet::one(index).within(state.present);
        let known = INSERTING | REMOVING | EJECT;
        if vcpu.is_empty() || value & known == 0 || (value & EJECT != 0 && index == 0) {
            return false;
        }
        if value & INSERTING != 0 {
            state.inserting = state.inserting.without(vcpu);
        }
        if value & REMOVING != 0 {
            state.removing = state.removing.without(vcpu);
        }
        if value & EJECT != 0 {
            inner.again = inner.again.and(vcpu.within(state.returning));
            for set in [&mut state.present, &mut state.inserting, &mut state.removing, &mut state.returning] {
                *set = set.without(vcpu);
            }
            inner.ejected = inner.ejected.and(vcpu);
            self.metrics.eject_count.inc();
            self.bell.raise();
        }
        true
    }

    fn nonsense(&self, what: &str) {
        self.metrics.invalid_count.inc();
        crate::guest_warn!("vCPU hotplug: {what}");
    }
}

impl<L: IrqLine> BusDevice for CpuHotplug<L> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match (offset, &mut *data) {
            (SELECT, [byte]) => *byte = self.lock().state.selected,
            (STATUS, [byte]) => *byte = self.status(),
            _ => {
                data.fill(0);
                self.nonsense("the guest read more than one byte at a time");
            }
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match (offset, data) {
            // A vCPU that does not exist can be selected; nothing is true of it.
            (SELECT, [index]) => self.lock().state.selected = *index,
            (STATUS, [value]) => {
                if !self.heard(*value) {
                    self.nonsense(
                        "the guest told of a vCPU that it does not have, cannot eject, or nothing that is known",
                    );
                }
            }
            _ => self.nonsense("the guest wrote more than one byte at a time"),
        }
    }
}

#[cfg(test)]
mod tests;
