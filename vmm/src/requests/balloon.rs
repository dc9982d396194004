use super::Request;
use crate::actor::Vmm;
use crate::config::BalloonConfig;
use crate::error::{Error, Subject};
use crate::lifecycle::Ask;

/// Gives the machine a balloon, or replaces the one it was to have.
#[derive(Debug)]
pub struct PutBalloon(pub BalloonConfig);

impl Request for PutBalloon {
    type Reply = ();
    const ASK: Ask = Ask::Configure;

    fn apply(self, vmm: &mut Vmm) -> Result<(), Error> {
        vmm.plan_mut().put_balloon(self.0)
    }
}

/// Reads the balloon's configuration, with what was changed since the start.
#[derive(Debug)]
pub struct GetBalloon;

impl Request for GetBalloon {
    type Reply = BalloonConfig;
    const ASK: Ask = Ask::Look;

    fn apply(self, vmm: &mut Vmm) -> Result<BalloonConfig, Error> {
        let balloon = vmm.plan().balloon.clone();
        balloon.ok_or_else(|| Error::invalid(Subject::Balloon, "No balloon device found."))
    }
}

/// Asks the guest of a started machine to give back that much memory in all.
#[derive(Debug)]
pub struct PatchBalloon {
    /// The balloon's new size in MiB.
    pub amount_mib: u32,
}

impl Request for PatchBalloon {
    type Reply = ();
    const ASK: Ask = Ask::Reconfigure;

    fn apply(self, vmm: &mut Vmm) -> Result<(), Error> {
        vmm.update_balloon(self.amount_mib)
    }
}

/// Reads what the guest last said of its memory.
#[derive(Debug)]
pub struct GetBalloonStatistics;

/// Reply to [`GetBalloonStatistics`]: the balloon's sizes, and of the guest's numbers those it sends (virtio 1.3 §5.5.6.3).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BalloonStatistics {
    /// Pages of 4 KiB the balloon should have.
    pub target_pages: u32,
    /// Pages of 4 KiB the balloon has.
    pub actual_pages: u32,
    /// MiB the balloon should have.
    pub target_mib: u32,
    /// MiB the balloon has.
    pub actual_mib: u32,
    /// Bytes swapped in.
    pub swap_in: Option<u64>,
    /// Bytes swapped out.
    pub swap_out: Option<u64>,
    /// Page faults that needed a disk.
    pub major_faults: Option<u64>,
    /// Page faults that did not.
    pub minor_faults: Option<u64>,
    /// Bytes not in use for anything.
    pub free_memory: Option<u64>,
    /// Bytes of memory the guest knows of.
    pub total_memory: Option<u64>,
    /// Bytes that could be given to a program without swapping.
    pub available_memory: Option<u64>,
    /// Bytes of memory that hold copies of files.
    pub disk_caches: Option<u64>,
    /// Huge pages given out.
    pub hugetlb_allocations: Option<u64>,
    /// Huge pages asked for in vain.
    pub hugetlb_failures: Option<u64>,
    /// Processes killed for want of memory.
    pub oom_kill: Option<u64>,
    /// Times an allocation had to wait.
    pub alloc_stall: Option<u64>,
    /// Pages looked at by the kernel's reclaim thread.
    pub async_scan: Option<u64>,
    /// Pages looked at by allocations themselves.
    pub direct_scan: Option<u64>,
    /// Pages freed by the kernel's reclaim thread.
    pub async_reclaim: Option<u64>,
    /// Pages freed by allocations themselves.
    pub direct_reclaim: Option<u64>,
}

impl Request for GetBalloonStatistics {
    type Reply = BalloonStatistics;
    const ASK: Ask = Ask::Act;

    fn apply(self, vmm: &mut Vmm) -> Result<BalloonStatistics, Error> {
        vmm.balloon_statistics()
    }
}

/// Changes how often the guest is asked for statistics.
#[derive(Debug)]
pub struct PatchBalloonStatistics {
    /// Seconds; 0 only where it was 0.
    pub interval_s: u16,
}

impl Request for PatchBalloonStatistics {
    type Reply = ();
    const ASK: Ask = Ask::Reconfigure;

    fn apply(self, vmm: &mut Vmm) -> Result<(), Error> {
        vmm.set_balloon_interval(self.interval_s)
    }
}

/// Begins a run of free-page hinting.
#[derive(Debug)]
pub struct StartHinting {
    /// When the guest says that it is done, tell it at once that it may use the pages again.
    pub acknowledge_on_stop: bool,
}

impl Request for StartHinting {
    type Reply = ();
    const ASK: Ask = Ask::Act;

    fn apply(self, vmm: &mut Vmm) -> Result<(), Error> {
        vmm.hinting_start(self.acknowledge_on_stop)
    }
}

/// Ends a run of free-page hinting: the guest may use the hinted pages again.
#[derive(Debug)]
pub struct StopHinting;

impl Request for StopHinting {
    type Reply = ();
    const ASK: Ask = Ask::Act;

    fn apply(self, vmm: &mut Vmm) -> Result<(), Error> {
        vmm.hinting_stop()
    }
}

/// Reads how a run of free-page hinting goes.
#[derive(Debug)]
pub struct GetHinting;

/// Reply to [`GetHinting`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HintingStatus {
    /// The command last shown to the guest.
    pub host_cmd: u32,
    /// The command the guest last answered with, if it ever did.
    pub guest_cmd: Option<u32>,
}

impl Request for GetHinting {
    type Reply = HintingStatus;
    const ASK: Ask = Ask::Act;

    fn apply(self, vmm: &mut Vmm) -> Result<HintingStatus, Error> {
        vmm.hinting_status()
    }
}
