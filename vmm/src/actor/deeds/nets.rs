use crate::actor::Vmm;
use crate::config::{RateLimitChange, ResourceId};
use crate::error::{Error, Subject};
use crate::machine::DeviceName;

impl Vmm {
    /// Changes the limiters of a network interface.
    pub(crate) fn patch_net(&mut self, id: &ResourceId, rx: RateLimitChange, tx: RateLimitChange) -> Result<(), Error> {
        if self.plan.net_mut(id).is_none() {
            let what = format!("Unable to update the network device: there is no network interface `{id}`.");
            return Err(Error::invalid(Subject::Network, what));
        }
        self.change_limits(&DeviceName::Net(id.clone()), &[rx, tx])?;
        if let Some(noted) = self.plan.net_mut(id) {
            noted.config.rx_rate_limiter = noted.config.rx_rate_limiter.changed(rx);
            noted.config.tx_rate_limiter = noted.config.tx_rate_limiter.changed(tx);
        }
        Ok(())
    }
}
