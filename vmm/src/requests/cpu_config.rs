use std::sync::Arc;

use super::Request;
use crate::actor::Vmm;
use crate::config::{CpuTemplate, CustomTemplate};
use crate::error::Error;
use crate::lifecycle::Ask;

/// Puts a custom CPU template in the place of the machine's template, whether that was a custom or a named one.
#[derive(Debug)]
pub struct PutCpuConfig(pub CustomTemplate);

impl Request for PutCpuConfig {
    type Reply = ();
    const ASK: Ask = Ask::Configure;

    fn apply(self, vmm: &mut Vmm) -> Result<(), Error> {
        let plan = vmm.plan_mut();
        plan.machine = plan.machine.clone().with_cpu_template(CpuTemplate::Custom(Arc::new(self.0)));
        Ok(())
    }
}
