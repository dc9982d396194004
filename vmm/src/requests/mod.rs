//! What can be asked of a machine: one request, one struct.
//!
//! A request says by [`Request::ASK`] what it is, so that [`crate::lifecycle::permit`] can judge it before it is applied. `apply` runs
//! on the VMM thread. A request that fails leaves the machine as it was.

mod balloon;
mod boot_source;
mod clones;
mod cpu_config;
mod drives;
mod entropy;
mod fs;
mod instance;
mod life;
mod machine_config;
mod memory_hotplug;
mod mmds;
mod nets;
mod pmem;
mod serial;
mod snapshots;
mod unplug;
mod vcpu_hotplug;
mod vsock;

pub use balloon::{
    BalloonStatistics, GetBalloon, GetBalloonStatistics, GetHinting, HintingStatus, PatchBalloon,
    PatchBalloonStatistics, PutBalloon, StartHinting, StopHinting,
};
pub use boot_source::PutBootSource;
pub use clones::{Child, CloneMachine, CloneSnapshot, Cloned, Clones, HowToClone, MAX_CHILDREN};
pub use cpu_config::PutCpuConfig;
pub use drives::{PatchDrive, PutDrive};
pub use entropy::PutEntropy;
pub use fs::PutFs;
pub use instance::{GetConfig, GetInstance, InstanceInfo};
pub use life::{FlushMetrics, Pause, Resume, SendCtrlAltDel, Start};
pub use machine_config::{GetMachineConfig, PatchMachineConfig, PutMachineConfig};
pub use memory_hotplug::{GetMemoryHotplug, MemoryHotplugStatus, PatchMemoryHotplug, PutMemoryHotplug};
pub use mmds::{GetMmds, PatchMmds, PutMmds, PutMmdsConfig};
pub use nets::{PatchNet, PutNet};
pub use pmem::{PatchPmem, PutPmem};
pub use serial::PutSerial;
pub use snapshots::{
    CancelSnapshot, CreateSnapshot, GetSnapshotProgress, LoadSnapshot, MemoryBackend, NetOverride, Overrides,
    SnapshotKind, SnapshotProgress, VsockOverride,
};
pub use unplug::{Permit, Unplug};
pub use vcpu_hotplug::{GetVcpus, PatchVcpus, VcpuStatus};
pub use vsock::PutVsock;

use crate::actor::Vmm;
use crate::error::Error;
use crate::lifecycle::Ask;

/// What goes through the VMM thread's mailbox. Most requests are a [`Request`], done at once; one that may take long, because the host
/// may, implements this itself and lets the VMM thread go on meanwhile.
pub trait Submit: Send + 'static {
    /// What the caller gets back.
    type Reply: Send + 'static;

    /// What kind of request this is, for the phase table.
    const ASK: Ask;

    /// Does it or has it done, and sees to it that `answer` is called. Called only if the phase table permits [`Self::ASK`].
    fn begin(self, vmm: &mut Vmm, answer: Answer<Self::Reply>);
}

/// Tells the caller what came of a request. Dropping it instead says that the VMM has ended.
pub type Answer<T> = Box<dyn FnOnce(Result<T, Error>) + Send>;

impl<R: Request> Submit for R {
    type Reply = R::Reply;
    const ASK: Ask = R::ASK;

    fn begin(self, vmm: &mut Vmm, answer: Answer<R::Reply>) {
        answer(self.apply(vmm));
    }
}

/// One thing that can be asked of the VMM thread and is done at once.
pub trait Request: Send + 'static {
    /// What the caller gets back.
    type Reply: Send + 'static;

    /// What kind of request this is, for the phase table.
    const ASK: Ask;

    /// Does it. Called only if the phase table permits [`Self::ASK`].
    fn apply(self, vmm: &mut Vmm) -> Result<Self::Reply, Error>;
}
