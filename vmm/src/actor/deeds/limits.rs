use crate::actor::Vmm;
use crate::config::RateLimitChange;
use crate::error::Error;
use crate::machine::DeviceName;

impl Vmm {
    /// Changes the rate limiters of a device, in the order of its dials. Here and now: no device is waited for, and as all changes are made
    /// on this thread, the plan can note them in the order in which the device hears of them.
    pub(super) fn change_limits(&self, name: &DeviceName, changes: &[RateLimitChange]) -> Result<(), Error> {
        let cell = self.live_machine()?.device(name).ok_or_else(Error::gone)?;
        for (dial, change) in cell.limit_dials().iter().zip(changes) {
            if *change != RateLimitChange::default() {
                dial.turn(*change);
            }
        }
        Ok(())
    }
}
