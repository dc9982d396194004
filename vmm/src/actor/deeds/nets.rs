use crate::actor::Vmm;
use crate::config::ResourceId;
use crate::error::{Error, Subject};

impl Vmm {
    pub(crate) fn patch_net(&mut self, id: &ResourceId) -> Result<(), Error> {
        match self.plan.nets().iter().any(|n| &n.config.id == id) {
            true => Ok(()),
            false => Err(Error::invalid(
                Subject::Network,
                format!("Unable to update the network device: there is no network interface `{id}`."),
            )),
        }
    }
}
