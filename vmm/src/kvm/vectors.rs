//! MSI-X vectors: an irqfd and a GSI for each, from a stock that they go back to.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devices::irq::Msi;
use devices::pci::msix::Vectors;
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::EventFd;

use super::{KvmError, Routes};
use crate::arch::layout::{IOAPIC_PINS, MAX_GSIS};

/// The GSIs behind the I/O APIC's pins: which of them are taken.
#[derive(Debug)]
pub struct Gsis {
    taken: Mutex<Vec<bool>>,
    /// The VM ends, and all of them with it.
    abandoned: AtomicBool,
}

impl Default for Gsis {
    fn default() -> Self {
        let taken = Mutex::new(vec![false; usize::from(MAX_GSIS) - usize::from(IOAPIC_PINS)]);
        Self { taken, abandoned: AtomicBool::new(false) }
    }
}

/// No GSI is left. The text is the v1 contract's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("Could not allocate GSI: The requested resource is not available.")]
pub struct NoGsi;

impl Gsis {
    fn lock(&self) -> MutexGuard<'_, Vec<bool>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Result<u32, NoGsi> {
        let mut taken = self.lock();
        let at = taken.iter().position(|taken| !taken).ok_or(NoGsi)?;
        taken[at] = true;
        Ok(at as u32 + u32::from(IOAPIC_PINS))
    }

    fn give_back(&self, gsi: u32) {
        if let Some(taken) = self.lock().get_mut((gsi as usize).wrapping_sub(IOAPIC_PINS.into())) {
            *taken = false;
        }
    }

    /// Nothing that is taken need be given back any more: the VM ends. KVM would take its time for each.
    pub fn abandon(&self) {
        self.abandoned.store(true, Ordering::Relaxed);
    }

    /// How many are taken.
    pub fn in_use(&self) -> usize {
        self.lock().iter().filter(|taken| **taken).count()
    }
}

/// Why a function gets no vectors.
#[derive(Debug, thiserror::Error)]
pub enum NoVectors {
    /// They are used up.
    #[error(transparent)]
    Gsi(#[from] NoGsi),
    /// The process has too many descriptors.
    #[error("no eventfd for an interrupt: {0}")]
    EventFd(std::io::Error),
    /// KVM refuses.
    #[error(transparent)]
    Kvm(#[from] KvmError),
}

/// The vectors of one function.
///
/// They are given back by [`Vectors::release`], or as they are dropped if that happened to none: whoever drops the last reference to a function may
/// be a vCPU that is just leaving it, which may not do that.
pub struct Lines {
    vm: Arc<VmFd>,
    routes: Arc<Routes>,
    gsis: Arc<Gsis>,
    lines: Vec<(u32, EventFd)>,
    released: AtomicBool,
}

impl Lines {
    /// So many vectors, without routes.
    pub fn new(vm: Arc<VmFd>, routes: Arc<Routes>, gsis: Arc<Gsis>, count: u16) -> Result<Self, NoVectors> {
        let mut lines =
            Self { vm, routes, gsis, lines: Vec::with_capacity(count.into()), released: AtomicBool::new(false) };
        for _ in 0..count {
            let bell = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(NoVectors::EventFd)?;
            let gsi = lines.gsis.take()?;
            if let Err(error) = lines.vm.register_irqfd(&bell, gsi) {
                lines.gsis.give_back(gsi);
                return Err(KvmError::call("KVM_IRQFD")(error).into());
            }
            lines.lines.push((gsi, bell));
        }
        Ok(lines)
    }
}

impl Vectors for Lines {
    fn route(&self, vector: u16, msi: Msi) {
        if let Some((gsi, _)) = self.lines.get(usize::from(vector)) {
            self.routes.set_vectors([(*gsi, Some(msi))]);
        }
    }

    fn raise(&self, vector: u16) {
        if let Some((_, bell)) = self.lines.get(usize::from(vector)) {
            // Fails only if 2^64 edges are pending; one of them will do.
            let _ = bell.write(1);
        }
    }

    fn release(&self) {
        if self.gsis.abandoned.load(Ordering::Relaxed) || self.released.swap(true, Ordering::Relaxed) {
            return;
        }
        self.routes.set_vectors(self.lines.iter().map(|(gsi, _)| (*gsi, None)));
        for (gsi, bell) in &self.lines {
            if let Err(error) = self.vm.unregister_irqfd(bell, *gsi) {
                log::warn!("interrupt {gsi} stays connected: {error}");
            }
            self.gsis.give_back(*gsi);
        }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kvm;

    /// F11: what is taken comes back, and the last one taken is refused with the contract's words.
    #[test]
    fn gsis_come_back() {
        let vm = Arc::new(kvm::create_vm(&kvm::open(&[]).expect("this test needs /dev/kvm")).unwrap());
        kvm::split_irqchip(&vm).unwrap();
        let (routes, gsis) = (Arc::new(Routes::new(vm.clone())), Arc::<Gsis>::default());
        let lines = |count| Lines::new(vm.clone(), routes.clone(), gsis.clone(), count);
        for _ in 0..100 {
            let some = lines(3).unwrap();
            some.route(1, Msi { address: 0xfee0_0000, data: 0x41 });
            some.route(9, Msi { address: 0xfee0_0000, data: 0x41 });
            assert_eq!(gsis.in_use(), 3);
        }
        assert_eq!(gsis.in_use(), 0);
        *gsis.lock() = vec![true; 10];
        gsis.lock()[4] = false;
        assert!(matches!(lines(2), Err(NoVectors::Gsi(NoGsi))));
        assert_eq!(gsis.in_use(), 9, "the one that was taken is given back");
    }
}
