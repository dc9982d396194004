use super::Request;
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
    /// Stops vCPUs and devices; returns when nothing moves any more. Pausing a paused machine succeeds.
    Pause, Ask::Pause, pause
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
