use super::{Answer, Request, Submit};
use crate::actor::Vmm;
use crate::error::Error;
use crate::lifecycle::Ask;

macro_rules! life_request {
    ($(#[$doc:meta])* $name:ident, $ask:expr, $method:ident) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $name;

        impl Request for $name {
            type Reply = ();
            const ASK: Ask = $ask;

            fn apply(self, vmm: &mut Vmm) -> Result<(), Error> {
                vmm.$method()
            }
        }
    };
}

life_request!(
    /// Builds the machine as configured and runs it.
    Start, Ask::Start, start
);
life_request!(
    /// Runs a paused machine again. Resuming a running machine succeeds.
    Resume, Ask::Resume, resume
);
life_request!(
    /// Writes the metrics line now.
    FlushMetrics, Ask::Act, flush_metrics
);
life_request!(
    /// Types Ctrl-Alt-Del on the guest's keyboard.
    SendCtrlAltDel, Ask::Act, send_ctrl_alt_del
);

/// Stops vCPUs and devices; answered when nothing moves any more, which may take as long as what the devices have begun does. Pausing a
/// paused machine succeeds.
#[derive(Debug)]
pub struct Pause;

impl Submit for Pause {
    type Reply = ();
    const ASK: Ask = Ask::Pause;

    fn begin(self, vmm: &mut Vmm, answer: Answer<()>) {
        vmm.pause(answer);
    }
}
