//! Settings of the whole process that make a monitor smaller and its starts steadier.

use std::ffi::CStr;

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

/// Gives the calling thread a name (at most 15 bytes are kept).
pub fn name_this_thread(name: &CStr) {
    // SAFETY: the name is a NUL-terminated string for the length of the call, which cannot fail with a valid one (prctl(2)).
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
}

/// A thread's name, without an allocation.
#[derive(Debug, Clone, Copy)]
pub struct ThreadName([u8; 16]);

impl ThreadName {
    /// Of the calling thread: its name as the kernel knows it, `main` for the process's first one. Safe in signal handlers.
    pub fn of_this_thread() -> Self {
        let mut name = [0; 16];
        // SAFETY: a buffer of the 16 bytes that PR_GET_NAME wants (prctl(2)), and then no pointers.
        let is_main = unsafe {
            libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr());
            // Not `libc::gettid`: std declares that symbol weak, link-time optimisation makes one declaration of the two, and for a weak
            // one the linker takes nothing from a static C library. It would be a call to address 0.
            libc::syscall(libc::SYS_gettid) == libc::c_long::from(libc::getpid())
        };
        if is_main {
            name = *b"main\0\0\0\0\0\0\0\0\0\0\0\0";
        }
        Self(name)
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        let name = self.0.split(|byte| *byte == 0).next().unwrap_or_default();
        std::str::from_utf8(name).unwrap_or("?")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_know_their_names() {
        let named = std::thread::Builder::new().name("vcpu 7".to_owned());
        let name = named.spawn(ThreadName::of_this_thread).unwrap().join().unwrap();
        assert_eq!(name.as_str(), "vcpu 7");
    }
}
