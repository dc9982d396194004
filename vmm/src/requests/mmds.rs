use std::sync::Arc;

use devices::mmds::{Document, StoreError};

use super::Request;
use crate::actor::Vmm;
use crate::config::MmdsConfig;
use crate::error::{Error, Kind, Subject};
use crate::lifecycle::{Ask, Phase};

/// Replaces what the metadata service says.
#[derive(Debug)]
pub struct PutMmds(pub Document);

/// Merges into what the metadata service says.
#[derive(Debug)]
pub struct PatchMmds(pub Document);

/// Reads what the metadata service says, as JSON text.
#[derive(Debug)]
pub struct GetMmds;

/// Configures how guests reach the metadata service.
#[derive(Debug)]
pub struct PutMmdsConfig(pub MmdsConfig);

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::TooLarge => Error::new(Kind::TooLarge, Subject::MmdsLimit, error),
            StoreError::NotInitialized => Error::invalid(Subject::Mmds, error),
        }
    }
}

/// A machine that was started without a metadata service has none: there is nobody to read it.
fn check_there_is_one(vmm: &Vmm) -> Result<(), Error> {
    let configurable = vmm.phase() == Phase::Configuring;
    if configurable || vmm.plan().mmds().is_some() || vmm.mmds().store().is_initialized() {
        Ok(())
    } else {
        Err(StoreError::NotInitialized.into())
    }
}

impl Request for PutMmds {
    type Reply = ();
    const ASK: Ask = Ask::Tell;

    fn apply(self, vmm: &mut Vmm) -> Result<(), Error> {
        check_there_is_one(vmm)?;
        Ok(vmm.mmds().store().put(self.0)?)
    }
}

impl Request for PatchMmds {
    type Reply = ();
    const ASK: Ask = Ask::Tell;

    fn apply(self, vmm: &mut Vmm) -> Result<(), Error> {
        check_there_is_one(vmm)?;
        Ok(vmm.mmds().store().patch(self.0)?)
    }
}

impl Request for GetMmds {
    type Reply = Arc<[u8]>;
    const ASK: Ask = Ask::Look;

    fn apply(self, vmm: &mut Vmm) -> Result<Arc<[u8]>, Error> {
        check_there_is_one(vmm)?;
        Ok(vmm.mmds().store().json())
    }
}

impl Request for PutMmdsConfig {
    type Reply = ();
    const ASK: Ask = Ask::Configure;

    fn apply(self, vmm: &mut Vmm) -> Result<(), Error> {
        vmm.plan_mut().put_mmds(self.0)
    }
}
