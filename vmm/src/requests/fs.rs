use super::{Answer, Submit};
use crate::actor::Vmm;
use crate::config::FsConfig;
use crate::lifecycle::Ask;

/// Meets the process that serves a file system and adds the file system, or replaces the one of the same id.
#[derive(Debug)]
pub struct PutFs(pub FsConfig);

impl Submit for PutFs {
    type Reply = ();
    const ASK: Ask = Ask::Configure;

    fn begin(self, vmm: &mut Vmm, answer: Answer<()>) {
        vmm.meet_fs(self.0, answer);
    }
}
