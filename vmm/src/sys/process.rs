//! Settings of the whole process that make a monitor smaller and its starts steadier.

/// Descriptors a machine may need: two per vCPU and about five per device, with room to spare.
const DESCRIPTORS: libc::c_int = 512;

/// Call first thing in `main`, before there are threads.
///
/// Grows the descriptor table once: grown later, with threads around, each doubling waits for an RCU grace period (milliseconds). And
/// keeps the allocator to one arena: this process has few threads that allocate little, and an arena per thread costs address space, page
/// tables and dirty pages.
pub fn prepare() {
    // SAFETY: no pointers. Standard input may be closed, or the limit lower than this; the table then stays as it is.
    unsafe {
        let high = libc::fcntl(libc::STDIN_FILENO, libc::F_DUPFD_CLOEXEC, DESCRIPTORS);
        if high >= 0 {
            libc::close(high);
        }
    }
    // SAFETY: no pointers; called before other threads could allocate.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}
