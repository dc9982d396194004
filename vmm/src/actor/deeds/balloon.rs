use crate::actor::Vmm;
use crate::config::{BalloonConfig, check_balloon};
use crate::error::{Error, Subject};
use crate::requests::{BalloonStatistics, HintingStatus};

fn refuse(what: impl std::fmt::Display) -> Error {
    Error::invalid(Subject::BalloonUpdate, what)
}

impl Vmm {
    /// Changes the size the balloon should have, and tells the guest.
    pub(crate) fn update_balloon(&mut self, amount_mib: u32) -> Result<(), Error> {
        self.planned_balloon()?;
        check_balloon(amount_mib, self.plan.machine.mem_size_mib()).map_err(refuse)?;
        Err(super::unsupported(Subject::BalloonUpdate, "To change the balloon of a started machine"))
    }

    /// What the guest last said of its memory.
    pub(crate) fn balloon_statistics(&mut self) -> Result<BalloonStatistics, Error> {
        if self.planned_balloon()?.stats_polling_interval_s == 0 {
            return Err(refuse(
                "Statistics are not enabled: set stats_polling_interval_s of PUT /balloon to a number above 0.",
            ));
        }
        Err(super::unsupported(Subject::BalloonUpdate, "To read the balloon's statistics"))
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
        Err(super::unsupported(Subject::BalloonUpdate, "To change the interval of the balloon's statistics"))
    }

    /// Begins a run of free-page hinting.
    pub(crate) fn hinting_start(&mut self, _acknowledge_on_stop: bool) -> Result<(), Error> {
        self.hinting_balloon()?;
        Err(super::unsupported(Subject::BalloonUpdate, "Free-page hinting"))
    }

    /// Ends a run of free-page hinting.
    pub(crate) fn hinting_stop(&mut self) -> Result<(), Error> {
        self.hinting_balloon()?;
        Err(super::unsupported(Subject::BalloonUpdate, "Free-page hinting"))
    }

    /// How a run of free-page hinting goes.
    pub(crate) fn hinting_status(&mut self) -> Result<HintingStatus, Error> {
        self.hinting_balloon()?;
        Err(super::unsupported(Subject::BalloonUpdate, "Free-page hinting"))
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
}
