//! Calls that threads make whatever the machine is, by the thread's role. Those of devices are beside the devices.

use devices::syscalls::{Arg, BLKGETSIZE64, Call};
use libc::*;

const fn bits(value: c_int) -> u32 {
    value.cast_unsigned()
}

/// Every thread: memory, locks, time, last words, its end.
pub const EVERY: &[Call] = &[
    Call::any(SYS_futex, "locks, and waiting for threads"),
    Call::any(SYS_write, "log lines, metrics, bells"),
    Call::any(SYS_read, "bells and timers"),
    Call::any(SYS_close, "descriptors that are dropped"),
    Call::with(
        SYS_fcntl,
        &[Arg::is(1, bits(F_GETFD))],
        "debug builds look whether a descriptor is open before they close it",
    ),
    Call::any(SYS_brk, "the allocator"),
    Call::with(SYS_mmap, &[Arg::without(2, PROT_EXEC as u32)], "the allocator; nothing that could be run"),
    Call::any(SYS_munmap, "the allocator, stacks of threads that ended"),
    Call::any(SYS_mremap, "the allocator"),
    Call::with(SYS_madvise, &[Arg::is(2, MADV_DONTNEED as u32)], "the stack of a thread that ends"),
    Call::any(SYS_getrandom, "the seed of hash maps"),
    Call::any(SYS_clock_gettime, "where the vDSO cannot tell the time"),
    Call::any(SYS_clock_nanosleep, "a second fatal signal waits for the first one's last words"),
    Call::any(SYS_poll, "whether whoever reads the log has room"),
    Call::any(SYS_sched_yield, "contended locks of the standard library"),
    Call::any(SYS_restart_syscall, "a wait that was interrupted by SIGSTOP"),
    Call::any(SYS_getpid, "which thread this is, for a last line"),
    Call::any(SYS_gettid, "as above"),
    Call::with(SYS_prctl, &[Arg::is(0, bits(PR_GET_NAME))], "as above"),
    Call::any(SYS_rt_sigreturn, "the end of a signal handler"),
    Call::any(SYS_rt_sigprocmask, "the end of a thread, and of the process by abort"),
    Call::with(SYS_tgkill, &[Arg::is(2, bits(SIGABRT))], "the end of the process by abort"),
    Call::with(SYS_rt_sigaction, &[Arg::is(0, bits(SIGABRT))], "as above"),
    Call::any(SYS_sigaltstack, "the end of a thread"),
    Call::with(SYS_ioctl, &[Arg::is(1, TCSETS as u32)], "last words leave the terminal as it was"),
    Call::with(SYS_ioctl, &[Arg::is(1, TCGETS as u32)], "some C libraries look whether that worked"),
    Call::any(SYS_exit, "the end of a thread"),
    Call::any(SYS_exit_group, "the end of the process"),
];

/// Threads with an event loop.
pub const EVENT_LOOP: &[Call] =
    &[Call::any(SYS_epoll_wait, "events"), Call::any(SYS_epoll_ctl, "what is waited for comes and goes")];

/// Threads that serve devices change what KVM does for them: KVM's own requests, each on a descriptor of this machine.
pub const DEVICES: &[Call] = &[Call::with(SYS_ioctl, &[Arg::is(1, KVM_IOEVENTFD)], "a doorbell that needs no exit")];

/// The VMM thread, once the machine is built.
pub const VMM: &[Call] = &[
    Call::with(SYS_tgkill, &[Arg::is(2, KICK)], "vCPUs leave the guest"),
    Call::any(SYS_timerfd_settime, "metrics, every minute"),
    Call::any(SYS_timerfd_gettime, "limiters that are changed, time limits that are stopped"),
    Call::any(SYS_unlink, "sockets go with the process"),
    Call::any(SYS_statx, "whether they are still the ones that were made"),
    Call::any(SYS_fstat, "the same on old kernels"),
];

/// The VMM thread takes the state of a machine that stands still: questions to KVM only.
pub const SAVE: &[Call] = &[
    Call::with(SYS_ioctl, &[Arg::is(1, 0x8004_ae98)], "KVM_GET_MP_STATE"),
    Call::with(SYS_ioctl, &[Arg::is(1, KVM_GET_REGS)], "KVM_GET_REGS"),
    Call::with(SYS_ioctl, &[Arg::is(1, 0x8138_ae83)], "KVM_GET_SREGS"),
    Call::with(SYS_ioctl, &[Arg::is(1, 0x9000_aecf)], "KVM_GET_XSAVE2"),
    Call::with(SYS_ioctl, &[Arg::is(1, 0x9000_aea4)], "KVM_GET_XSAVE, before Linux 5.17"),
    Call::with(SYS_ioctl, &[Arg::is(1, 0x8188_aea6)], "KVM_GET_XCRS"),
    Call::with(SYS_ioctl, &[Arg::is(1, 0x8080_aea1)], "KVM_GET_DEBUGREGS"),
    Call::with(SYS_ioctl, &[Arg::is(1, 0x8400_ae8e)], "KVM_GET_LAPIC"),
    Call::with(SYS_ioctl, &[Arg::is(1, 0xc008_ae88)], "KVM_GET_MSRS"),
    Call::with(SYS_ioctl, &[Arg::is(1, 0x8040_ae9f)], "KVM_GET_VCPU_EVENTS"),
    Call::with(SYS_ioctl, &[Arg::is(1, 0xc008_ae91)], "KVM_GET_CPUID2"),
    Call::with(SYS_ioctl, &[Arg::is(1, 0xaea3)], "KVM_GET_TSC_KHZ"),
    Call::with(SYS_ioctl, &[Arg::is(1, 0xc004_ae02)], "KVM_GET_MSR_INDEX_LIST"),
    Call::with(SYS_ioctl, &[Arg::is(1, 0x8030_ae7c)], "KVM_GET_CLOCK"),
    Call::with(SYS_ioctl, &[Arg::is(1, 0xae03)], "KVM_CHECK_EXTENSION"),
    Call::with(SYS_ioctl, &[Arg::is(1, 0x4010_ae42)], "KVM_GET_DIRTY_LOG"),
];

/// The VMM thread of a machine whose vCPUs come and go, while those stand still.
pub const HOTPLUG_VCPUS: &[Call] = &[
    Call::with(SYS_ioctl, &[Arg::is(1, 0x4004_ae99)], "KVM_SET_MP_STATE: one that comes waits to be started"),
    Call::with(SYS_ioctl, &[Arg::is(1, 0x4400_ae8f)], "KVM_SET_LAPIC: the timer of one that has gone stops"),
];

/// vCPU threads.
pub const VCPU: &[Call] = &[
    Call::with(SYS_ioctl, &[Arg::is(1, KVM_RUN)], "the guest"),
    Call::with(SYS_ioctl, &[Arg::is(1, KVM_KVMCLOCK_CTRL)], "a guest that was paused is told"),
    Call::with(SYS_ioctl, &[Arg::is(1, KVM_GET_REGS)], "where a guest that is lost was"),
    Call::with(SYS_ioctl, &[Arg::is(1, KVM_SET_GSI_ROUTING)], "the guest programs the IOAPIC"),
];

/// vCPU threads of a machine with a PCI bus.
pub const VCPU_PCI: &[Call] =
    &[Call::with(SYS_ioctl, &[Arg::is(1, KVM_IOEVENTFD)], "the guest moves a BAR, and its doorbells with it")];

/// Machines with hot-pluggable memory: whoever serves that.
pub const MEMORY_SLOTS: &[Call] =
    &[Call::with(SYS_ioctl, &[Arg::is(1, KVM_SET_USER_MEMORY_REGION)], "memory is plugged and unplugged")];

/// The thread that opens files for devices that get another one.
pub const FILES: &[Call] = &[
    Call::any(SYS_openat2, "another file for a drive"),
    Call::any(SYS_openat, "the same on kernels before 5.6"),
    Call::any(SYS_statx, "what kind of file it is"),
    Call::any(SYS_fstat, "the same on old kernels"),
    Call::any(SYS_fstatfs, "whether it is one of /proc"),
    Call::with(SYS_ioctl, &[Arg::is(1, BLKGETSIZE64)], "how long a block device is"),
    Call::with(SYS_fcntl, &[Arg::is(1, bits(F_GETFL))], "whether reading waits"),
    Call::with(SYS_fcntl, &[Arg::is(1, bits(F_SETFL))], "that it does"),
    Call::with(SYS_fcntl, &[Arg::is(1, bits(F_DUPFD_CLOEXEC))], "a second descriptor, for the device"),
    Call::any(SYS_readlink, "a snapshot's file that is a link"),
    Call::any(SYS_flock, "nobody else writes the same snapshot"),
    Call::any(SYS_ftruncate, "a snapshot's file has holes"),
    Call::any(SYS_pwrite64, "memory, for a snapshot"),
    Call::with(SYS_ioctl, &[Arg::is(1, 0x4004_9409)], "FICLONE: a snapshot on top of an older one"),
    Call::any(SYS_mincore, "which of it was touched"),
    Call::any(SYS_sysinfo, "whether some of it may be swapped out"),
    Call::any(SYS_uname, "on which kernel a snapshot was taken"),
    Call::any(SYS_utimensat, "the files of a snapshot belong together"),
    Call::any(SYS_fsync, "a snapshot is on the disk"),
    Call::any(SYS_rename, "and then gets its name"),
    Call::any(SYS_unlink, "or nothing is left of it"),
];

/// The same thread, where clones may be made: it makes files in memory, and hands them to processes that wait for that.
pub const CLONES: &[Call] = &[
    Call::any(SYS_memfd_create, "memory that clones share"),
    Call::with(SYS_fcntl, &[Arg::is(1, bits(F_ADD_SEALS))], "which nobody changes"),
    Call::with(SYS_madvise, &[Arg::is(2, bits(MADV_DONTDUMP))], "and which is in no core dump"),
    Call::with(SYS_socket, &[Arg::is(0, bits(AF_UNIX))], "the process that is to be a clone"),
    Call::any(SYS_pread64, "whether a memory file is the state file's"),
    Call::any(SYS_setsockopt, "it must answer in time"),
    Call::any(SYS_connect, "as above"),
    Call::any(SYS_sendmsg, "the memory, by its descriptor"),
    Call::any(SYS_sendto, "the state, where write is not used for that"),
    Call::any(SYS_recvfrom, "the answer, likewise"),
];

/// The same thread, where devices come and go: it makes them, starts the threads that serve them, which have its filter and a narrower one of their
/// own, and takes them apart.
pub const PLUG: &[Call] = &[
    Call::any(SYS_eventfd2, "doorbells and interrupts"),
    Call::any(SYS_timerfd_create, "rate limiters"),
    Call::any(SYS_epoll_create1, "the event loop of a thread"),
    Call::with(SYS_ioctl, &[Arg::is(1, KVM_IRQFD)], "interrupts that reach the guest"),
    Call::with(SYS_ioctl, &[Arg::is(1, KVM_SET_GSI_ROUTING)], "and that do so no more"),
    Call::with(SYS_ioctl, &[Arg::is(1, KVM_SET_USER_MEMORY_REGION)], "a file in the guest's memory"),
    Call::with(SYS_madvise, &[Arg::is(2, bits(MADV_DONTDUMP))], "which is in no core dump"),
    Call::any(SYS_clone3, "a thread"),
    Call::any(SYS_clone, "the same where that is not known"),
    Call::with(SYS_mprotect, &[Arg::without(2, PROT_EXEC as u32)], "its stack"),
    Call::any(SYS_set_robust_list, "its locks"),
    Call::any(SYS_rseq, "its place on a processor"),
    Call::any(SYS_sched_getaffinity, "the C library, asked where a stack is, looks that up as well"),
    Call::with(SYS_prctl, &[Arg::is(0, bits(PR_SET_NAME))], "its name"),
    Call::with(SYS_prctl, &[Arg::is(0, bits(PR_SET_NO_NEW_PRIVS))], "its fence"),
    Call::with(SYS_prctl, &[Arg::is(0, bits(PR_SET_SECCOMP))], "its filter"),
    Call::any(SYS_seccomp, "the same"),
    Call::any(SYS_landlock_create_ruleset, "it opens no files"),
    Call::any(SYS_landlock_restrict_self, "the same"),
];

/// The thread that brings memory from a file.
pub const PAGER: &[Call] = &[
    Call::any(SYS_pread64, "a page of the file"),
    Call::with(SYS_ioctl, &[Arg::is(1, 0xc028_aa03)], "UFFDIO_COPY: it is where it is missing"),
    Call::with(SYS_ioctl, &[Arg::is(1, 0xc020_aa04)], "UFFDIO_ZEROPAGE: likewise, of zeroes"),
    Call::with(SYS_ioctl, &[Arg::is(1, 0x8010_aa02)], "UFFDIO_WAKE: it is there already"),
];

/// The thread that brings memory that will be wanted.
pub const PREFETCH: &[Call] = &[
    Call::with(SYS_madvise, &[Arg::is(2, 22)], "MADV_POPULATE_READ"),
    Call::with(SYS_madvise, &[Arg::is(2, 23)], "MADV_POPULATE_WRITE"),
    Call::with(SYS_madvise, &[Arg::is(2, bits(MADV_WILLNEED))], "before Linux 5.14"),
];

/// The signal that makes a vCPU leave the guest: the first real-time signal that the C library leaves to programs.
const KICK: u32 = 34;

// include/uapi/linux/kvm.h.
const KVM_RUN: u32 = 0xae80;
const KVM_GET_REGS: u32 = 0x8090_ae81;
const KVM_KVMCLOCK_CTRL: u32 = 0xaead;
const KVM_IRQFD: u32 = 0x4020_ae76;
const KVM_IOEVENTFD: u32 = 0x4040_ae79;
const KVM_SET_GSI_ROUTING: u32 = 0x4008_ae6a;
const KVM_SET_USER_MEMORY_REGION: u32 = 0x4020_ae46;
