//! The boot recipe. The order is the point: see the comments.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Instant;

use devices::bus::BusBuilder;
use devices::event::Subscriber;
use devices::legacy::boot_timer::BootTimer;
use devices::legacy::cpu_hotplug::CpuSet;
use devices::legacy::i8042::I8042;
use devices::legacy::ioapic::IoApic;
use devices::legacy::power::{PowerEvent, PowerSink, SleepRegisters};
use devices::legacy::pvpanic::PvPanic;
use devices::legacy::serial::{Com1, SerialInput, SerialSink};
use devices::mmds::Mmds;
use devices::ram::GuestRam;
use devices::sys::terminal::RawTerminal;
use devices::virtio::block::UringHub;
use kvm_bindings::CpuId;
use kvm_ioctls::{Kvm, VmFd};
use vmm_sys_util::eventfd::EventFd;

use super::Machine;
use super::attach::{Board, Places};
use super::cpus::{self, Cpus};
use super::fences::Fences;
use super::foundation::Foundation;
use super::identity::{Identity, Notice};
use super::pci::{Pci, SlotPlan};
use super::placement::Placement;
use super::prefetch::Prefetch;
use super::roster::{DeviceName, Home, Seat};
use super::saved::{self, Saved, State};
use super::served::Served;
use super::spread::Spread;
use crate::arch::layout::{self, COM1_GSI, I8042_GSI};
use crate::arch::{acpi, cpuid, mptable, msr, regs, template};
use crate::blueprint::Plan;
use crate::boot::{self, CommandLine, Entry};
use crate::config::{CpuTemplate, IoEngine, MachineConfig, ResourceId, Template, Transport};
use crate::confine::{Fence, FilterError, Seccomp};
use crate::error::{Error, Kind, Subject};
use crate::event_loop::EventLoop;
use crate::exit::{ExitLatch, ExitReason};
use crate::io_thread::IoThread;
use crate::kvm::{self, Routes};
use crate::memory::{DirtyMap, Memory};
use crate::sys::clock::process_cpu_time;
use crate::vcpu::{Buses, Crew, EndOfInterrupt, Vcpu};

/// What a machine needs from those around it.
pub struct Surroundings {
    /// Hears why the machine ends.
    pub exit: Arc<ExitLatch>,
    /// Give the guest the boot-timer byte.
    pub boot_timer: bool,
    /// What the metadata service says.
    pub mmds: Arc<Mmds>,
    /// Which filters threads get.
    pub seccomp: Seccomp,
    /// Clones may be made of the machine later on.
    pub clonable: bool,
    /// Devices are on a PCI bus, and may come and go.
    pub pci: bool,
    /// Called on a vCPU when the guest has let go of a device.
    pub on_release: Arc<dyn Fn() + Send + Sync>,
}

/// A machine that is built, whose threads are on their way behind their fences. Only one that is sealed can run.
pub struct Assembled {
    machine: Machine,
}

impl Assembled {
    /// Puts up the fence of the calling thread, the VMM's, for good, and waits until all others are up.
    pub fn seal(self) -> Result<Machine, Error> {
        let Self { machine } = self;
        let Machine { fences, exit, .. } = &machine;
        // Ours while the others put up theirs: the kernel takes its time to compile each.
        fences.of_vmm(&machine.seats, machine.cpus.is_some()).map_err(start_error)?.enter().map_err(start_error)?;
        fences.gate.wait().map_err(|error| {
            // This thread could build no other machine any more.
            exit.report(ExitReason::Lost(format!("a thread could not be confined: {error}")));
            start_error(error)
        })?;
        Ok(machine)
    }
}

pub(super) fn start_error(what: impl std::fmt::Display) -> Error {
    Error::new(Kind::Host, Subject::Start, what)
}

/// Hands the guest's power requests to the VMM thread.
struct Power(Arc<ExitLatch>);

impl PowerSink for Power {
    fn request(&self, event: PowerEvent) {
        self.0.report(match event {
            PowerEvent::Reset => ExitReason::GuestReboot,
            PowerEvent::PowerOff => ExitReason::GuestPowerOff,
        });
    }
}

/// Where a machine comes from.
#[derive(Clone, Copy)]
pub enum Origin<'a> {
    /// It boots what its plan says.
    Boot,
    /// It was saved, and goes on.
    Saved(&'a Saved),
}

/// Builds a machine as planned, up to but not including its first, or its next, instruction; on a foundation that is there already, if one
/// is. Subscribers are added to `events`; on an error the caller clears them, everything else undoes itself.
pub fn assemble(
    plan: &Plan,
    origin: Origin<'_>,
    around: &Surroundings,
    events: &mut EventLoop,
    foundation: Option<Foundation>,
) -> Result<Assembled, Error> {
    let started = Instant::now();
    let no_kernel = || Error::invalid(Subject::Start, "Cannot start microvm without kernel configuration.");
    let saved = match origin {
        Origin::Boot => None,
        Origin::Saved(saved) => Some(saved),
    };
    // A machine that goes on was told its command line before.
    let mut line = match saved {
        None => plan.boot_source.as_ref().ok_or_else(no_kernel)?.command_line.clone(),
        Some(_) => CommandLine::default(),
    };

    plan.check_sharing()?;

    // 1. The VM, if there is none yet, and its memory slots, before any interrupt chip exists (see `memory`).
    let Foundation { fences, files, kvm, vm, vcpu: parked } = match foundation {
        Some(foundation) => foundation,
        None => Foundation::lay(plan.machine.cpu_template().capabilities(), around)?,
    };
    let pmem_starts = |id: &ResourceId| saved?.state.pmem_start(id);
    let mut memory = Memory::new(&kvm, &vm, plan, saved.map(|saved| &saved.memory), around.clonable, &pmem_starts)
        .map_err(start_error)?;
    // From here on, whoever touches memory may wait for another process.
    let watch = match &mut memory.faults {
        Some(faults) => Some(faults.watch(around.exit.clone()).map_err(start_error)?),
        None => None,
    };
    let watch = match watch {
        Some(watch) => Some((helper(fences.of_watch(), &fences, vec![watch.clone()], &around.exit)?, watch)),
        None => None,
    };
    let pager = match memory.pager.take() {
        Some(pager) => {
            Some(helper(fences.of_pager(), &fences, vec![pager.at_work(around.exit.clone())], &around.exit)?)
        }
        None => None,
    };
    let ram = &memory.ram;
    // Only Intel processors without unrestricted guest use it; there it becomes a slot, so it belongs here too.
    vm.set_tss_address(layout::KVM_TSS.0 as usize)
        .map_err(kvm::KvmError::call("KVM_SET_TSS_ADDR"))
        .map_err(start_error)?;

    // 2. Interrupts: local APICs in KVM, the IOAPIC here.
    kvm::split_irqchip(&vm).map_err(start_error)?;
    let routes = Arc::new(Routes::new(vm.clone()));
    let ioapic = Arc::new(IoApic::new(routes.clone()));

    // 3. Devices on two buses.
    let mut pio = BusBuilder::new();
    let mut mmio = BusBuilder::new();
    let power: Arc<dyn PowerSink> = Arc::new(Power(around.exit.clone()));
    let serial = Arc::new(
        console(plan, saved, irq_line(&vm, COM1_GSI)?).map_err(|e| start_error(format!("serial console: {e}")))?,
    );
    let keyboard = Arc::new(I8042::new(irq_line(&vm, I8042_GSI)?, power.clone()));
    if let Some(saved) = saved {
        keyboard.restore(&saved.state.platform.i8042);
    }
    let (serial_again, keyboard_again) = (serial.clone(), keyboard.clone());
    ioapic.connect(COM1_GSI, move || serial_again.repeat());
    ioapic.connect(I8042_GSI, move || keyboard_again.repeat());
    let put = |bus: &mut BusBuilder, base: u64, len: u64, device| bus.insert(base, len, device).map_err(start_error);
    put(&mut pio, layout::COM1_PORT.into(), layout::COM1_PORTS.into(), serial.clone())?;
    put(&mut pio, layout::I8042_PORT.into(), layout::I8042_PORTS.into(), keyboard.clone())?;
    put(&mut pio, layout::SLEEP_CONTROL_PORT.into(), 2, Arc::new(SleepRegisters::new(power)))?;
    let exit = around.exit.clone();
    let pvpanic = Arc::new(PvPanic::new(move |_| exit.note_panic()));
    put(&mut pio, layout::PVPANIC_PORT.into(), PvPanic::PORTS.into(), pvpanic.clone())?;
    put(&mut mmio, layout::IOAPIC.0, layout::IOAPIC_LEN, ioapic.clone())?;
    if around.boot_timer {
        put(&mut mmio, layout::BOOT_TIMER.0, layout::PAGE_SIZE, Arc::new(boot_timer(started)))?;
    }
    let max_vcpus = plan.machine.max_vcpus();
    let saved_pci = saved.and_then(|saved| saved.state.pci.as_ref());
    let with_pci = saved.map_or(around.pci, |_| saved_pci.is_some());
    // Whatever comes and goes shares this interrupt.
    let hotplug = if max_vcpus.is_some() || with_pci { Some(cpus::notice(&vm, &ioapic)?) } else { None };
    let cpus = match &hotplug {
        Some(notice) if max_vcpus.is_some() => {
            let saved = saved.and_then(|saved| saved.state.cpus.as_ref());
            Some(Cpus::new(&plan.machine, saved, notice.clone(), &mut pio)?)
        }
        _ => None,
    };
    let pci = match &hotplug {
        Some(notice) if with_pci => {
            let released = around.on_release.clone();
            Some(Pci::new(&vm, &routes, notice.clone(), move || released(), &mut pio, &mut mmio)?)
        }
        _ => None,
    };
    let admitted = cpus.as_ref().map_or(CpuSet::first(plan.machine.vcpu_count()), Cpus::present);
    let places = match &pci {
        Some(pci) => Places::Pci(pci, SlotPlan::new(saved_pci)),
        None => {
            line.push_pci_off().map_err(start_error)?;
            Places::Mmio(Placement::default())
        }
    };
    let transport = places.transport();
    // Later on nobody may look how many processors there are, so ask before devices come that may want to know.
    let hotpluggable = pci.is_some() && around.pci;
    let spread = Spread::here(hotpluggable || plan.has_several_queues(transport));
    let hubs = uring_hubs(plan, transport, spread);
    let mut board = Board::new(&vm, &memory, &ioapic, &mut mmio, &mut line, places, spread);
    board.attach_all(plan, &hubs, &around.mmds)?;
    let (seats, nodes) = board.done();

    // 4. What the guest finds in memory, and its vCPUs: tables and registers, then threads that stand still.
    let buses = Buses { pio: Arc::new(pio.freeze()), mmio: Arc::new(mmio.freeze()) };
    let chip = ioapic.clone();
    let end_of_interrupt: EndOfInterrupt = Arc::new(move |vector| chip.end_of_interrupt(vector));
    let finish = |index, fd| Vcpu::new(index, fd, buses.clone(), end_of_interrupt.clone(), around.exit.clone());
    let [generation_id, clock] = identity_notices(&vm, &ioapic)?;
    let (identity, vcpus) = match saved {
        None => {
            let source = plan.boot_source.as_ref().ok_or_else(no_kernel)?;
            let loaded = boot::load(ram, &source.kernel, source.initrd.as_ref(), &line).map_err(start_error)?;
            let vcpus = plan.machine.vcpu_count();
            let input = acpi::AcpiInput {
                vcpus,
                hotplug_cpus: plan.machine.max_vcpus().map(|max| acpi::CpuNode { max, port: layout::CPU_HOTPLUG_PORT }),
                pci: pci.is_some(),
                virtio: &nodes,
                com1: Some(acpi::PortNode::COM1),
                i8042: Some(acpi::PortNode::I8042),
                identity: Some(acpi::IdentityNode::HERE),
                pvpanic: Some(layout::PVPANIC_PORT),
            };
            let identity = Identity::boot(ram.clone(), generation_id, clock).map_err(start_error)?;
            let rsdp = acpi::write_tables(ram, &input).map_err(start_error)?;
            mptable::write(ram, vcpus).map_err(start_error)?;
            if let Some(pci) = &pci {
                pci.fill(&seats, None)?;
            }
            let entry = boot::write_handoff(ram, &loaded, Some(rsdp)).map_err(start_error)?;
            (identity, make_vcpus(&kvm, &vm, ram, &plan.machine, entry, finish)?)
        }
        Some(saved) => {
            let vcpus = revive_vcpus(&kvm, &vm, saved, finish)?;
            revive_devices(&seats, &saved.state)?;
            routes.together(|| {
                ioapic.restore(&saved.state.platform.ioapic);
                pci.as_ref().map_or(Ok(()), |pci| pci.fill(&seats, saved_pci))
            })?;
            (Identity::saved(ram.clone(), generation_id, clock), vcpus)
        }
    };
    let vcpu_fence = fences.of_vcpus(&seats).map_err(start_error)?;
    let crew = Crew::muster(&vm, vcpus, admitted, &vcpu_fence, &fences.gate, parked)
        .map_err(|e| start_error(format!("cannot start a vCPU thread: {e}")))?;

    // 5. Events. Doorbells are bound later, when a driver is ready.
    events.add(serial.clone()).map_err(start_error)?;
    for seat in seats.iter().filter(|seat| seat.home == Home::Vmm) {
        events.add(seat.cell.clone()).map_err(start_error)?;
    }
    let io_threads = io_threads(&seats, hubs, &fences, &around.exit)?;
    log::debug!("machine assembled in {} us", started.elapsed().as_micros());
    let prefetch = match saved.and_then(|saved| saved.working_set.clone()) {
        Some(wanted) => {
            let thread = helper(fences.of_prefetch(), &fences, Vec::new(), &around.exit)?;
            Some(Prefetch::new(thread, wanted))
        }
        None => None,
    };
    let _terminal = RawTerminal::enter();
    let unsaved = nothing_written(&memory);
    let names = plan.pmems().iter().map(|config| DeviceName::Pmem(config.id.clone()));
    let pmems = names.zip(std::mem::take(&mut memory.pmems)).collect();
    let machine = Machine {
        crew,
        seats,
        io_threads,
        files,
        keyboard,
        serial,
        pvpanic,
        ioapic,
        identity,
        cpus,
        pci,
        hotpluggable,
        spread,
        pmems,
        fences: Arc::new(fences),
        exit: around.exit.clone(),
        _terminal,
        kvm,
        vm,
        memory,
        over_base: unsaved.clone(),
        unsaved,
        watch,
        _pager: pager,
        prefetch,
    };
    Ok(Assembled { machine })
}

/// Nothing, with room for what will be written if that is to be known.
pub(super) fn nothing_written(memory: &Memory) -> DirtyMap {
    if memory.slots.logs() { DirtyMap::new(&memory.layout()) } else { DirtyMap::default() }
}

/// The interrupts by which the guest learns that its generation id and its clock changed.
fn identity_notices(vm: &VmFd, ioapic: &IoApic) -> Result<[Arc<Notice<EventFd>>; 2], Error> {
    let notice = |gsi| -> Result<_, Error> {
        let notice = Notice::new(irq_line(vm, gsi)?);
        let again = notice.clone();
        ioapic.connect(gsi, move || again.repeat());
        Ok(notice)
    };
    Ok([notice(layout::GENERATION_ID_GSI)?, notice(layout::VM_CLOCK_GSI)?])
}

/// The vCPUs of a saved machine, and its clock.
fn revive_vcpus(
    kvm: &Kvm,
    vm: &VmFd,
    saved: &Saved,
    finish: impl Fn(u8, kvm_ioctls::VcpuFd) -> Vcpu,
) -> Result<Vec<Vcpu>, Error> {
    let xsave_len = saved::xsave_len(vm);
    let fds = (0u8..).zip(&saved.state.vcpus.0).map(|(index, state)| {
        let fd = vm.create_vcpu(index.into()).map_err(kvm::KvmError::call("KVM_CREATE_VCPU")).map_err(start_error)?;
        Ok((index, state, fd))
    });
    let fds = fds.collect::<Result<Vec<_>, Error>>()?;
    // Before the vCPUs: registers of theirs refer to it.
    saved::restore_clock(kvm, vm, &saved.state.platform.clock, saved.clock_realtime).map_err(start_error)?;
    let vcpus = fds.into_iter().map(|(index, state, fd)| {
        state.restore(&fd, xsave_len).map_err(|e| start_error(format!("vCPU {index}: {e}")))?;
        Ok(finish(index, fd))
    });
    vcpus.collect()
}

/// The devices of a saved machine, which were just attached again.
fn revive_devices(seats: &[Seat], state: &State) -> Result<(), Error> {
    let found = &state.devices.0;
    if found.len() != seats.len() {
        let (saved, here) = (found.len(), seats.len());
        return Err(start_error(format!("it has the state of {saved} devices, and the machine has {here}")));
    }
    for seat in seats {
        let name = seat.name.to_string();
        let state = found.iter().find(|(known, _)| *known == name);
        let (_, state) = state.ok_or_else(|| start_error(format!("it does not have the state of {name}")))?;
        seat.cell.restore(state).map_err(|e| start_error(format!("{name}: {e}")))?;
    }
    Ok(())
}

/// An eventfd that raises `gsi`.
pub(super) fn irq_line(vm: &VmFd, gsi: u32) -> Result<EventFd, Error> {
    let line = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(start_error)?;
    vm.register_irqfd(&line, gsi).map_err(kvm::KvmError::call("KVM_IRQFD")).map_err(start_error)?;
    Ok(line)
}

fn console(plan: &Plan, saved: Option<&Saved>, line: EventFd) -> std::io::Result<Com1> {
    let output = match &plan.serial.file {
        Some(file) => SerialSink::file(file)?,
        None => SerialSink::stdout()?,
    };
    let (output, input) = (output.limited(plan.serial.config.rate_limiter), SerialInput::stdin()?);
    match saved {
        None => Com1::new(line, output, input),
        Some(saved) => Com1::restored(&saved.state.platform.com1, line, output, input),
    }
}

/// A thread for each device that may block, and one for each io_uring and all drives on it; several for a device with several lanes.
fn io_threads(
    seats: &[Seat],
    hubs: Vec<Arc<UringHub>>,
    fences: &Fences,
    exit: &Arc<ExitLatch>,
) -> Result<Vec<Served>, Error> {
    let mut threads = Vec::new();
    let mut start = |seats: &[&Seat], nth, hub| -> Result<(), Error> {
        threads.push(Served::start(threads.len(), seats, nth, hub, fences, exit).map_err(start_error)?);
        Ok(())
    };
    for seat in seats.iter().filter(|seat| seat.home == Home::Own) {
        (0..seat.threads).try_for_each(|nth| start(&[seat], nth, None))?;
    }
    for (nth, hub) in hubs.into_iter().enumerate() {
        let on_it = |seat: &&Seat| seat.home == Home::Uring && nth < seat.threads;
        let drives: Vec<&Seat> = seats.iter().filter(on_it).collect();
        start(&drives, nth, Some(hub))?;
    }
    Ok(threads)
}

/// A thread that helps the machine, and has nothing to do with its devices.
fn helper(
    fence: Result<Fence, FilterError>,
    fences: &Fences,
    subscribers: Vec<Arc<dyn Subscriber>>,
    exit: &Arc<ExitLatch>,
) -> Result<IoThread, Error> {
    let fence = fence.map_err(start_error)?;
    let kind = fence.role().kind();
    IoThread::start(fence, &fences.gate, subscribers, exit.clone())
        .map_err(|e| start_error(format!("cannot start the thread {kind}: {e}")))
}

/// Logs how long the guest took from the start request to the moment it says it is up.
fn boot_timer(started: Instant) -> BootTimer {
    let cpu_before = process_cpu_time();
    BootTimer::new(move || {
        let wall_us = started.elapsed().as_micros();
        let cpu_us = process_cpu_time().saturating_sub(cpu_before).as_micros();
        log::info!(
            "Guest-boot-time = {wall_us:>6} us {:>4} ms, {cpu_us:>6} CPU us {:>4} CPU ms",
            wall_us / 1000,
            cpu_us / 1000
        );
    })
}

/// The rings for drives with the Async engine, if there are any and the host allows it.
fn uring_hubs(plan: &Plan, transport: Transport, spread: Spread) -> Vec<Arc<UringHub>> {
    let drives = plan.drives().iter().filter(|d| d.config.io_engine == IoEngine::Async);
    spread.rings(drives.map(|d| transport.queues(d.config.num_queues, plan.machine.vcpu_count()).into()))
}

/// What KVM offers with the machine's CPU template applied, and the template. Fails rather than to boot another processor than the one
/// asked for.
fn processor<'a>(kvm: &Kvm, machine: &'a MachineConfig) -> Result<(CpuId, Cow<'a, Template>), Error> {
    let supported = kvm
        .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
        .map_err(kvm::KvmError::call("KVM_GET_SUPPORTED_CPUID"))
        .map_err(start_error)?;
    let template = match machine.cpu_template() {
        CpuTemplate::None => return Ok((supported, Cow::default())),
        CpuTemplate::Named(name) => Cow::Owned(name.for_host(&supported).map_err(start_error)?),
        CpuTemplate::Custom(custom) => Cow::Borrowed(&custom.registers),
    };
    Ok((template::apply_cpuid(&supported, &template).map_err(start_error)?, template))
}

fn make_vcpus(
    kvm: &Kvm,
    vm: &VmFd,
    ram: &GuestRam,
    machine: &MachineConfig,
    entry: Entry,
    finish: impl Fn(u8, kvm_ioctls::VcpuFd) -> Vcpu,
) -> Result<Vec<Vcpu>, Error> {
    let call = |name| move |error| start_error(kvm::KvmError::call(name)(error));
    let (supported, template) = processor(kvm, machine)?;
    let boot_msrs = msr::boot_msrs();
    // Those that are not there yet, too: no thread is started, and no vCPU made, behind the fences.
    let count = machine.most_vcpus();
    (0..count)
        .map(|index| {
            let fd = vm.create_vcpu(index.into()).map_err(call("KVM_CREATE_VCPU"))?;
            let tsc_khz = fd.get_tsc_khz().unwrap_or(0);
            let table = cpuid::guest_table(&supported, index, count, machine.smt(), tsc_khz).map_err(start_error)?;
            // Before the MSRs: since Linux 6.13 some of them exist only if the table says so.
            fd.set_cpuid2(&table).map_err(call("KVM_SET_CPUID2"))?;
            let changed = msr::template_msrs(&template.msrs, |msrs| fd.get_msrs(msrs)).map_err(start_error)?;
            msr::write_template(&changed, |msrs| fd.set_msrs(msrs)).map_err(start_error)?;
            // After the template's, so that the boot protocol wins.
            let skipped = msr::write(&boot_msrs, |msrs| fd.set_msrs(msrs)).map_err(start_error)?;
            if index == 0 && !skipped.is_empty() {
                log::debug!("this host has no MSRs {skipped:#x?}");
            }
            if index == 0 {
                let sregs = fd.get_sregs().map_err(call("KVM_GET_SREGS"))?;
                let state = regs::boot_state(ram, entry, sregs).map_err(start_error)?;
                fd.set_sregs(&state.sregs).map_err(call("KVM_SET_SREGS"))?;
                fd.set_regs(&state.regs).map_err(call("KVM_SET_REGS"))?;
                fd.set_fpu(&state.fpu).map_err(call("KVM_SET_FPU"))?;
            }
            Ok(finish(index, fd))
        })
        .collect()
}
