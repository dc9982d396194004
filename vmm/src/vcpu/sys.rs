//! Getting a thread out of `KVM_RUN`.
//!
//! A signal interrupts the call; to close the gap between "nothing is wanted of me" and the call itself, the handler also sets
//! `immediate_exit` in the thread's own run page, which makes the next `KVM_RUN` return at once.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd};
use std::os::unix::thread::JoinHandleExt;
use std::ptr::null_mut;
use std::sync::OnceLock;
use std::thread::JoinHandle;

use kvm_bindings::kvm_run;
use kvm_ioctls::{VcpuFd, VmFd};

thread_local! {
    /// The run page of this thread's vCPU while it may run; null otherwise.
    static RUN_PAGE: Cell<*mut kvm_run> = const { Cell::new(null_mut()) };
}

/// The same vCPU by another descriptor, for whoever wants to look at it while its thread stands still.
pub(super) fn look_at(vm: &VmFd, vcpu: &VcpuFd) -> io::Result<VcpuFd> {
    // SAFETY: the descriptor is open as long as `vcpu` lives.
    let again = unsafe { BorrowedFd::borrow_raw(vcpu.as_raw_fd()) }.try_clone_to_owned()?;
    // SAFETY: a vCPU's descriptor, and nobody else's.
    unsafe { vm.create_vcpu_from_rawfd(again.into_raw_fd()) }.map_err(io::Error::from)
}

/// The signal that kicks a vCPU.
fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN()
}

extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let page = RUN_PAGE.with(Cell::get);
    if !page.is_null() {
        // SAFETY: `KickGuard` keeps the pointer set only while the vCPU's run page is mapped, and this handler runs on the thread that
        // owns both. The write is volatile because the kernel reads the field.
        unsafe { (&raw mut (*page).immediate_exit).write_volatile(1) };
    }
}

/// Installs the kick handler, once per process.
pub(super) fn install_kick_handler() -> io::Result<()> {
    static DONE: OnceLock<Result<(), i32>> = OnceLock::new();
    let outcome = DONE
        .get_or_init(|| vmm_sys_util::signal::register_signal_handler(kick_signal(), on_kick).map_err(|e| e.errno()));
    outcome.map_err(io::Error::from_raw_os_error)
}

/// While it lives, a kick of this thread makes its vCPU's `KVM_RUN` return.
pub(super) struct KickGuard;

impl KickGuard {
    /// For the vCPU this thread is about to run.
    pub(super) fn new(vcpu: &mut VcpuFd) -> Self {
        RUN_PAGE.with(|page| page.set(vcpu.get_kvm_run()));
        Self
    }
}

impl Drop for KickGuard {
    fn drop(&mut self) {
        RUN_PAGE.with(|page| page.set(null_mut()));
    }
}

/// Kicks the vCPU of a thread.
pub(super) fn kick(thread: &JoinHandle<()>) {
    // SAFETY: the handle is not joined yet, so the thread id is valid, even if the thread has finished. The signal has a handler.
    unsafe { libc::pthread_kill(thread.as_pthread_t(), kick_signal()) };
}
