use crate::actor::Vmm;

impl Vmm {
    /// The guest has let go of devices that it was asked for.
    pub(super) fn take_back_devices(&mut self) {}
}
