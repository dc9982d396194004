use crate::actor::Vmm;
use crate::config::{RateLimitChange, ResourceId};
use crate::error::{Error, Subject};

impl Vmm {
    /// Changes the limiters of a network interface.
    pub(crate) fn patch_net(&mut self, id: &ResourceId, rx: RateLimitChange, tx: RateLimitChange) -> Result<(), Error> {
        if self.plan.net_mut(id).is_none() {
            let what = format!("Unable to update the network device: there is no network interface `{id}`.");
            return Err(Error::invalid(Subject::Network, what));
        }
        if rx == RateLimitChange::default() && tx == rx {
            return Ok(());
        }
        Err(super::unsupported(
            Subject::Network,
            "To change the rate limiters of a started machine's network interface",
        ))
    }
}
