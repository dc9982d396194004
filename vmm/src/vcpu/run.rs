//! The life of one vCPU thread.

use std::io;
use std::sync::Arc;

use devices::bus::Bus;
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};

use super::control::{Board, Wanted};
use super::metrics::{VcpuMetrics, measured};
use super::sys::{self, KickGuard};
use crate::arch::ticks::Scale;
use crate::exit::{ExitLatch, ExitReason};

/// Who hears that the guest finished handling a level-triggered interrupt.
pub type EndOfInterrupt = Arc<dyn Fn(u8) + Send + Sync>;

/// The buses a vCPU's accesses go to.
#[derive(Clone)]
pub struct Buses {
    /// Port I/O.
    pub pio: Arc<Bus>,
    /// Memory-mapped I/O.
    pub mmio: Arc<Bus>,
}

/// What KVM cannot do anything about: the host has no page for an address that is guest memory.
const NO_MEMORY: &str = "the guest touched memory that the host cannot provide: a snapshot's memory file or a file behind a pmem device became shorter or its disk is full, or there are no huge pages left";

/// A vCPU that is set up and ready to run.
pub struct Vcpu {
    index: u8,
    fd: VcpuFd,
    buses: Buses,
    end_of_interrupt: EndOfInterrupt,
    exit: Arc<ExitLatch>,
    metrics: Arc<VcpuMetrics>,
    scale: Scale,
}

/// Whether the guest can go on after an exit.
enum Next {
    Enter,
    Look,
    End(ExitReason),
}

impl Vcpu {
    /// Wraps a vCPU whose registers are set.
    pub fn new(index: u8, fd: VcpuFd, buses: Buses, end_of_interrupt: EndOfInterrupt, exit: Arc<ExitLatch>) -> Self {
        let scale = Scale::of_khz(fd.get_tsc_khz().unwrap_or(0));
        Self { index, fd, buses, end_of_interrupt, exit, metrics: Arc::default(), scale }
    }

    /// Which vCPU this is.
    pub fn index(&self) -> u8 {
        self.index
    }

    /// The same vCPU for looking at it from outside.
    pub(super) fn look_at(&self, vm: &VmFd) -> io::Result<VcpuFd> {
        sys::look_at(vm, &self.fd)
    }

    /// What it counts.
    pub fn metrics(&self) -> Arc<VcpuMetrics> {
        self.metrics.clone()
    }

    /// Runs the guest as long as that is wanted.
    pub(super) fn live(mut self, board: &Board) {
        let _guard = KickGuard::new(&mut self.fd);
        let mut has_run = false;
        loop {
            // Cleared before the board is read: a kick after this line makes KVM_RUN return at once.
            self.fd.set_kvm_immediate_exit(0);
            // The flag tells the guest's watchdogs that it was stopped; hosts without kvm-clock refuse, which is fine.
            let (fd, fails) = (&self.fd, &self.metrics.kvmclock_ctrl_fails);
            let paused = || {
                // Before its first instruction the guest has no clock yet.
                if has_run && fd.kvmclock_ctrl().is_err() {
                    fails.inc();
                }
            };
            if board.wanted(self.index, paused) == Wanted::End {
                return;
            }
            has_run = true;
            loop {
                match self.enter() {
                    Next::Enter => {}
                    Next::Look => break,
                    Next::End(reason) => {
                        self.exit.report(reason);
                        return;
                    }
                }
            }
        }
    }

    fn enter(&mut self) -> Next {
        let (metrics, scale) = (&*self.metrics, self.scale);
        match self.fd.run() {
            Ok(VcpuExit::IoOut(port, data)) => {
                let time = &metrics.exit_io_out_agg;
                measured(scale, &metrics.exit_io_out, time, || self.buses.pio.write(port.into(), data));
                Next::Enter
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                let time = &metrics.exit_io_in_agg;
                measured(scale, &metrics.exit_io_in, time, || self.buses.pio.read(port.into(), data));
                Next::Enter
            }
            Ok(VcpuExit::MmioWrite(addr, data)) => {
                let time = &metrics.exit_mmio_write_agg;
                measured(scale, &metrics.exit_mmio_write, time, || self.buses.mmio.write(addr, data));
                Next::Enter
            }
            Ok(VcpuExit::MmioRead(addr, data)) => {
                let time = &metrics.exit_mmio_read_agg;
                measured(scale, &metrics.exit_mmio_read, time, || self.buses.mmio.read(addr, data));
                Next::Enter
            }
            Ok(VcpuExit::IoapicEoi(vector)) => {
                (self.end_of_interrupt)(vector);
                Next::Enter
            }
            Ok(VcpuExit::Intr) => Next::Look,
            Ok(VcpuExit::Shutdown) => {
                // Which vCPU it was is all there is to tell: some processors reset the registers on the way out.
                log::warn!("vCPU {} shut down after a triple fault at {}", self.index, self.place());
                Next::End(ExitReason::TripleFault)
            }
            // With local APICs in the kernel a halt never comes here; be safe and let the guest go on.
            Ok(VcpuExit::Hlt) => Next::Look,
            Ok(VcpuExit::FailEntry(reason, cpu)) => {
                self.lost(format!("the CPU refused to enter the guest (hardware reason {reason:#x} on CPU {cpu})"))
            }
            Ok(VcpuExit::InternalError) => self.lost(format!("KVM internal error at {}", self.place())),
            Ok(VcpuExit::MemoryFault { gpa, .. }) => self.lost(format!("{NO_MEMORY} (guest address {gpa:#x})")),
            Ok(other) => {
                let what = format!("unexpected exit {other:?}");
                self.lost(what)
            }
            Err(error) => match error.errno() {
                libc::EINTR => Next::Look,
                libc::EAGAIN => Next::Enter,
                libc::EFAULT => self.lost(format!("{NO_MEMORY} (at {})", self.place())),
                _ => self.lost(format!("KVM_RUN failed: {error}")),
            },
        }
    }

    fn lost(&self, why: String) -> Next {
        self.metrics.failures.inc();
        Next::End(ExitReason::Lost(format!("vCPU {}: {why}", self.index)))
    }

    fn place(&self) -> String {
        match self.fd.get_regs() {
            Ok(regs) => format!("rip {:#x}", regs.rip),
            Err(_) => "an unknown place".to_owned(),
        }
    }
}
