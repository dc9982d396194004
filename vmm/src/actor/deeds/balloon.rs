use std::time::Duration;

use devices::virtio::any::AnyDevice;
use devices::virtio::balloon::{Balloon, NotActive, Stat};
use devices::virtio::cell::{ConfigChange, VirtioCell};

use crate::actor::Vmm;
use crate::config::{BalloonConfig, check_balloon, pages_of_mib};
use crate::error::{Error, Subject};
use crate::machine::DeviceName;
use crate::requests::{BalloonStatistics, HintingStatus};

fn refuse(what: impl std::fmt::Display) -> Error {
    Error::invalid(Subject::BalloonUpdate, what)
}

impl Vmm {
    /// Changes the size the balloon should have, and tells the guest. One that has no driver yet finds it when it has.
    pub(crate) fn update_balloon(&mut self, amount_mib: u32) -> Result<(), Error> {
        self.planned_balloon()?;
        check_balloon(amount_mib, self.plan.machine.mem_size_mib()).map_err(refuse)?;
        self.change_balloon(ConfigChange::Announce, |balloon| {
            balloon.set_target(pages_of_mib(amount_mib));
            Ok(())
        })?;
        self.planned_balloon()?.amount_mib = amount_mib;
        Ok(())
    }

    /// What the guest last said of its memory.
    pub(crate) fn balloon_statistics(&mut self) -> Result<BalloonStatistics, Error> {
        if self.planned_balloon()?.stats_polling_interval_s == 0 {
            return Err(refuse(
                "Statistics are not enabled: set stats_polling_interval_s of PUT /balloon to a number above 0.",
            ));
        }
        self.look_at_balloon(statistics)
    }

    /// Changes how often the guest is asked for statistics. Not whether: that has been settled with the driver.
    pub(crate) fn set_balloon_interval(&mut self, interval_s: u16) -> Result<(), Error> {
        let now = self.planned_balloon()?.stats_polling_interval_s;
        if (now == 0) != (interval_s == 0) {
            return Err(refuse("Statistics cannot be enabled/disabled after activation."));
        }
        if now == interval_s {
            return Ok(());
        }
        self.change_balloon(ConfigChange::Silent, |balloon| {
            balloon.set_stats_interval(Duration::from_secs(interval_s.into()));
            Ok(())
        })?;
        self.planned_balloon()?.stats_polling_interval_s = interval_s;
        Ok(())
    }

    /// Begins a run of free-page hinting.
    pub(crate) fn hinting_start(&mut self, acknowledge_on_stop: bool) -> Result<(), Error> {
        self.hinting_balloon()?;
        self.change_balloon(ConfigChange::Announce, |balloon| balloon.start_hinting(acknowledge_on_stop))
    }

    /// Ends a run of free-page hinting.
    pub(crate) fn hinting_stop(&mut self) -> Result<(), Error> {
        self.hinting_balloon()?;
        self.change_balloon(ConfigChange::Announce, Balloon::stop_hinting)
    }

    /// How a run of free-page hinting goes.
    pub(crate) fn hinting_status(&mut self) -> Result<HintingStatus, Error> {
        self.hinting_balloon()?;
        let status = self.look_at_balloon(Balloon::hinting)?;
        Ok(HintingStatus { host_cmd: status.host_cmd, guest_cmd: status.guest_cmd })
    }

    fn planned_balloon(&mut self) -> Result<&mut BalloonConfig, Error> {
        self.plan.balloon.as_mut().ok_or_else(|| refuse("No balloon device found."))
    }

    fn hinting_balloon(&mut self) -> Result<(), Error> {
        match self.planned_balloon()?.free_page_hinting {
            true => Ok(()),
            false => Err(refuse("Free-page hinting is not enabled: set free_page_hinting of PUT /balloon to true.")),
        }
    }

    /// The balloon is served by this thread, so it is never in the middle of something.
    fn balloon_cell(&self) -> Result<&VirtioCell, Error> {
        Ok(&**self.live_machine()?.device(&DeviceName::Balloon).ok_or_else(Error::gone)?)
    }

    fn change_balloon(
        &self,
        announce: ConfigChange,
        change: impl FnOnce(&mut Balloon) -> Result<(), NotActive>,
    ) -> Result<(), Error> {
        let cell = self.balloon_cell()?;
        cell.reconfigure(|device| match device {
            AnyDevice::Balloon(balloon) => change(balloon).map(|()| ((), announce)).map_err(|e| {
                refuse(format!(
                    "Device not activated yet: {e}. Try again when the guest has loaded its balloon driver."
                ))
            }),
            _ => Err(not_a_balloon(cell)),
        })
    }

    fn look_at_balloon<T>(&self, look: impl FnOnce(&Balloon) -> T) -> Result<T, Error> {
        let cell = self.balloon_cell()?;
        cell.look(|device| match device {
            AnyDevice::Balloon(balloon) => Ok(look(balloon)),
            _ => Err(not_a_balloon(cell)),
        })
    }
}

fn not_a_balloon(cell: &VirtioCell) -> Error {
    refuse(format!("{} is not a balloon.", cell.name()))
}

fn statistics(balloon: &Balloon) -> BalloonStatistics {
    let (target_pages, actual_pages) = (balloon.target_pages(), balloon.actual_pages());
    let mib = |pages: u32| pages / pages_of_mib(1);
    let guest = balloon.stats();
    BalloonStatistics {
        target_pages,
        actual_pages,
        target_mib: mib(target_pages),
        actual_mib: mib(actual_pages),
        swap_in: guest.get(Stat::SwapIn),
        swap_out: guest.get(Stat::SwapOut),
        major_faults: guest.get(Stat::MajorFaults),
        minor_faults: guest.get(Stat::MinorFaults),
        free_memory: guest.get(Stat::FreeMemory),
        total_memory: guest.get(Stat::TotalMemory),
        available_memory: guest.get(Stat::AvailableMemory),
        disk_caches: guest.get(Stat::DiskCaches),
        hugetlb_allocations: guest.get(Stat::HugetlbAllocations),
        hugetlb_failures: guest.get(Stat::HugetlbFailures),
        oom_kill: guest.get(Stat::OomKill),
        alloc_stall: guest.get(Stat::AllocStall),
        async_scan: guest.get(Stat::AsyncScan),
        direct_scan: guest.get(Stat::DirectScan),
        async_reclaim: guest.get(Stat::AsyncReclaim),
        direct_reclaim: guest.get(Stat::DirectReclaim),
    }
}
