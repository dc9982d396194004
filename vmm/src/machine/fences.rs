//! Which fence each thread of a machine gets, by the devices it serves.

use std::sync::Arc;

use devices::legacy::syscalls::CONSOLE;
use devices::syscalls::{Call, Needs};
use devices::virtio::{balloon, block, mem, net, pmem, rng, vhost_user, vsock};

use super::roster::{DeviceName, Home, Seat};
use crate::confine::{Fence, FilterError, Gate, Seccomp, calls};
use crate::threads::Role;

/// The fences of a machine's threads, and the gate where they meet.
pub(super) struct Fences {
    seccomp: Seccomp,
    clonable: bool,
    /// Devices may come and go.
    plug: bool,
    pub(super) gate: Arc<Gate>,
}

/// What a device needs of the kernel. All of these are in [`rules`], too.
fn needs(seat: &Seat) -> &'static Needs {
    match (&seat.name, seat.home) {
        (DeviceName::Drive(_), Home::Uring) => &block::syscalls::ASYNC,
        (DeviceName::Drive(_), _) => &block::syscalls::SYNC,
        (DeviceName::VhostUserDrive(_) | DeviceName::Fs(_), _) => &vhost_user::syscalls::NEEDS,
        (DeviceName::Balloon, _) => &balloon::syscalls::NEEDS,
        (DeviceName::Net(_), _) => &net::syscalls::NEEDS,
        (DeviceName::Pmem(_), _) => &pmem::syscalls::NEEDS,
        (DeviceName::Vsock, _) => &vsock::syscalls::NEEDS,
        (DeviceName::Rng, _) => &rng::syscalls::NEEDS,
        (DeviceName::Memory, _) => &mem::syscalls::NEEDS,
    }
}

/// What besides that whoever serves this device, or resets it, needs: the machine's memory is behind it, or several lanes are.
fn besides(seat: &Seat) -> &'static [Call] {
    match &seat.name {
        DeviceName::Memory => calls::MEMORY_SLOTS,
        DeviceName::Net(_) if seat.cell.lane_count() > 1 => net::syscalls::QUEUE_PAIRS,
        _ => &[],
    }
}

/// What devices need that may come while the machine runs.
const PLUGGABLE: [&Needs; 4] =
    [&block::syscalls::ASYNC, &block::syscalls::SYNC, &net::syscalls::NEEDS, &pmem::syscalls::NEEDS];

/// Every call that filters for machines let through, by the threads that are meant to make it (`vmm`, `vcpu`, `io`, `files`, or `*` for
/// any). For whoever wants to know which of them are never made.
pub fn rules() -> Vec<(&'static [&'static str], Call)> {
    const DEVICES: [&Needs; 10] = [
        &CONSOLE,
        &block::syscalls::ASYNC,
        &block::syscalls::SYNC,
        &balloon::syscalls::NEEDS,
        &net::syscalls::NEEDS,
        &pmem::syscalls::NEEDS,
        &vsock::syscalls::NEEDS,
        &rng::syscalls::NEEDS,
        &mem::syscalls::NEEDS,
        &vhost_user::syscalls::NEEDS,
    ];
    const LOOPS: &[&str] = &["vmm", "io"];
    let mut lists: Vec<(&[&str], &[Call])> = vec![
        (&["*"], calls::EVERY),
        (&["*"], calls::EVENT_LOOP),
        (LOOPS, calls::DEVICES),
        (LOOPS, calls::MEMORY_SLOTS),
        (LOOPS, net::syscalls::QUEUE_PAIRS),
        (&["vmm"], calls::VMM),
        (&["vmm"], calls::SAVE),
        (&["vmm"], calls::HOTPLUG_VCPUS),
        (&["vcpu"], calls::VCPU),
        (&["vcpu"], calls::VCPU_PCI),
        (&["files"], calls::FILES),
        (&["files"], calls::CLONES),
        (&["files"], calls::PLUG),
        (&["files"], net::syscalls::OPENING),
        (&["files"], block::syscalls::MAKING_RINGS),
        (&["pager"], calls::PAGER),
        (&["prefetch"], calls::PREFETCH),
    ];
    for needs in DEVICES {
        lists.extend([(LOOPS, needs.event_loop), (&["vcpu"], needs.vcpu), (&["vmm"], needs.end)]);
    }
    lists.iter().flat_map(|(who, calls)| calls.iter().map(|call| (*who, *call))).collect()
}

impl Fences {
    /// For a machine of which clones can be made or not, and whose devices come and go or not.
    pub(super) fn new(seccomp: Seccomp, clonable: bool, plug: bool) -> Self {
        Self { seccomp, clonable, plug, gate: Arc::default() }
    }

    /// For the vCPU threads of a machine with these devices.
    pub(super) fn of_vcpus(&self, seats: &[Seat]) -> Result<Fence, FilterError> {
        // A machine that begins without devices may get some.
        let on_pci = self.plug || seats.iter().any(|seat| seat.card.is_some());
        let pci = if on_pci { calls::VCPU_PCI } else { &[] };
        let mut lists = vec![calls::EVERY, calls::VCPU, CONSOLE.vcpu, pci];
        lists.extend(seats.iter().flat_map(|seat| [needs(seat).vcpu, besides(seat)]));
        if self.plug {
            lists.extend(PLUGGABLE.map(|needs| needs.vcpu).into_iter().chain([net::syscalls::QUEUE_PAIRS]));
        }
        self.seccomp.fence(Role::Vcpu(0), &lists, false)
    }

    /// For the thread that serves these devices and no others.
    pub(super) fn of_io<'a>(&self, index: usize, seats: impl Iterator<Item = &'a Seat>) -> Result<Fence, FilterError> {
        let mut lists = vec![calls::EVERY, calls::EVENT_LOOP, calls::DEVICES];
        // A device that goes while the machine runs comes to its end here.
        let end = |seat| if self.plug { needs(seat).end } else { &[] };
        lists.extend(seats.flat_map(|seat| [needs(seat).event_loop, besides(seat), end(seat)]));
        self.seccomp.fence(Role::Io(index), &lists, false)
    }

    /// For the thread that opens files, which is all it does.
    pub(super) fn of_files(&self) -> Result<Fence, FilterError> {
        let clones = if self.clonable { calls::CLONES } else { &[] };
        let mut lists = vec![calls::EVERY, calls::EVENT_LOOP, calls::FILES, clones];
        if self.plug {
            // A thread that it starts has both filters, so this one lets through what devices' threads do.
            lists.extend([calls::PLUG, calls::DEVICES, net::syscalls::QUEUE_PAIRS, net::syscalls::OPENING]);
            lists.push(block::syscalls::MAKING_RINGS);
            lists.extend(PLUGGABLE.iter().flat_map(|needs| [needs.event_loop, needs.end]));
        }
        self.seccomp.fence(Role::Files, &lists, true)
    }

    /// For the thread that waits for the end of a page-fault handler, and has nothing to do with the guest.
    pub(super) fn of_watch(&self) -> Result<Fence, FilterError> {
        self.seccomp.fence(Role::Watch, &[calls::EVERY, calls::EVENT_LOOP], false)
    }

    /// For the thread that brings memory from a file.
    pub(super) fn of_pager(&self) -> Result<Fence, FilterError> {
        self.seccomp.fence(Role::Pager, &[calls::EVERY, calls::EVENT_LOOP, calls::PAGER], false)
    }

    /// For the thread that brings memory that will be wanted.
    pub(super) fn of_prefetch(&self) -> Result<Fence, FilterError> {
        self.seccomp.fence(Role::Prefetch, &[calls::EVERY, calls::EVENT_LOOP, calls::PREFETCH], false)
    }

    /// For the VMM thread of a machine with these devices, and with vCPUs that come and go or not.
    pub(super) fn of_vmm(&self, seats: &[Seat], hotplug_vcpus: bool) -> Result<Fence, FilterError> {
        let mut lists = vec![
            calls::EVERY,
            calls::EVENT_LOOP,
            calls::DEVICES,
            calls::VMM,
            calls::SAVE,
            CONSOLE.event_loop,
            CONSOLE.end,
            if hotplug_vcpus { calls::HOTPLUG_VCPUS } else { &[] },
        ];
        let own = seats.iter().filter(|seat| seat.home == Home::Vmm);
        lists.extend(own.flat_map(|seat| [needs(seat).event_loop, besides(seat)]));
        lists.extend(seats.iter().map(|seat| needs(seat).end));
        if self.plug {
            // A network interface may come that this thread serves.
            lists.extend([net::syscalls::NEEDS.event_loop, net::syscalls::QUEUE_PAIRS]);
            lists.extend(PLUGGABLE.map(|needs| needs.end));
        }
        self.seccomp.fence(Role::Vmm, &lists, false)
    }
}
