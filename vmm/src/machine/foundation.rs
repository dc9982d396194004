//! What every machine stands on, whatever it will be: made beforehand where somebody waits for one.

use std::sync::Arc;

use kvm_ioctls::{Kvm, VmFd};

use super::assemble::{Surroundings, start_error};
use super::fences::Fences;
use crate::config::Capability;
use crate::error::Error;
use crate::exit::ExitLatch;
use crate::io_thread::IoThread;
use crate::kvm;
use crate::sys::signals;
use crate::threads::Parked;
use crate::vcpu::Crew;

/// A VM without memory, and the thread that every machine has; where somebody waits, one for its first vCPU, too.
pub struct Foundation {
    pub(super) fences: Fences,
    pub(super) files: IoThread,
    pub(super) kvm: Kvm,
    pub(super) vm: Arc<VmFd>,
    pub(super) vcpu: Option<Parked>,
}

impl Foundation {
    /// For a machine that asks for these changes to the list of capabilities that KVM must have.
    pub fn lay(capabilities: &[Capability], around: &Surroundings) -> Result<Self, Error> {
        let fences = Fences::new(around.seccomp.clone(), around.clonable, around.pci);
        // First, because it puts up its fence while the rest is done.
        let files = files_thread(&fences, &around.exit)?;
        let kvm = kvm::open(capabilities).map_err(start_error)?;
        let vm = Arc::new(kvm::create_vm(&kvm).map_err(start_error)?);
        Ok(Self { fences, files, kvm, vm, vcpu: None })
    }

    /// With all that is the same for every machine, for whoever waits for one.
    pub fn lay_ahead(around: &Surroundings) -> Result<Self, Error> {
        let vcpu = Crew::park().map_err(start_error)?;
        Ok(Self { vcpu: Some(vcpu), ..Self::lay(&[], around)? })
    }
}

/// A thread that may open files when no other may: another one for a drive, or those of a snapshot.
fn files_thread(fences: &Fences, exit: &Arc<ExitLatch>) -> Result<IoThread, Error> {
    let fence = fences.of_files().map_err(start_error)?;
    let thread = IoThread::start(fence, &fences.gate, Vec::new(), exit.clone())
        .map_err(|e| start_error(format!("cannot start the thread that opens files: {e}")))?;
    // A snapshot that becomes too large costs the snapshot.
    thread.run(signals::hear_of_too_large_files_by_errors);
    Ok(thread)
}
