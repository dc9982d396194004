//! Settings of the whole process that make a monitor smaller and its starts steadier.

use std::ffi::CStr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

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

/// What the kernel says the process may do and where it is, as it was when it started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// Effective, permitted, inheritable and bounding capabilities, one bit each (linux/capability.h).
    pub capabilities: Capabilities,
    /// Programs that it runs gain no privileges.
    pub no_new_privs: bool,
    /// Whether it leaves core dumps and can be traced by its own user.
    pub dumpable: bool,
    /// Real user and group.
    pub ids: (u32, u32),
    /// Name, soft and hard limit; `None` for no limit.
    pub limits: Vec<(&'static str, Option<u64>, Option<u64>)>,
    /// Kind and number of each namespace, where there is a `/proc`.
    pub namespaces: Vec<(String, String)>,
    /// Lines of `/proc/self/cgroup`, where there is a `/proc`.
    pub cgroups: Vec<String>,
}

/// Sets of capabilities.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// In force.
    pub effective: u64,
    /// That can be taken up again.
    pub permitted: u64,
    /// That programs could inherit.
    pub inheritable: u64,
    /// Beyond which nothing can be gained.
    pub bounding: u64,
}

static STANDING: OnceLock<Standing> = OnceLock::new();
/// [`be_confined`] was called, so [`look_around`] will be.
static BEGUN: AtomicBool = AtomicBool::new(false);
/// Whether the process was told to gain no privileges, before it told itself.
static NO_NEW_PRIVS: AtomicBool = AtomicBool::new(false);

/// What was found out by [`look_around`], which may still be at it; nothing, in a process that never calls it.
pub fn standing() -> Standing {
    if BEGUN.load(Ordering::Relaxed) { STANDING.wait().clone() } else { Standing::default() }
}

/// First thing of a process that will run a machine. One that was told to gain no privileges is meant to be confined: it leaves no core
/// dumps, and its user cannot trace it.
pub fn be_confined() {
    // SAFETY: integers only.
    unsafe {
        let told = libc::prctl(libc::PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1;
        if told {
            libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0);
        }
        NO_NEW_PRIVS.store(told, Ordering::Relaxed);
    }
    BEGUN.store(true, Ordering::Relaxed);
}

/// Finds out what the process may do. To be called before its threads may no longer ask; later calls do nothing.
pub fn look_around() {
    STANDING.get_or_init(observe);
}

fn observe() -> Standing {
    let directory = std::fs::read_dir("/proc/self/ns").into_iter().flatten().flatten();
    let namespaces = directory.filter_map(|entry| {
        let kind = entry.file_name().into_string().ok()?;
        Some((kind, std::fs::read_link(entry.path()).ok()?.to_string_lossy().into_owned()))
    });
    let cgroups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mut standing = Standing {
        capabilities: capabilities(),
        no_new_privs: NO_NEW_PRIVS.load(Ordering::Relaxed),
        // SAFETY: integers only.
        dumpable: unsafe { libc::prctl(libc::PR_GET_DUMPABLE, 0, 0, 0, 0) } == 1,
        // SAFETY: no pointers.
        ids: unsafe { (libc::getuid(), libc::getgid()) },
        limits: limits(),
        namespaces: namespaces.collect(),
        cgroups: cgroups.lines().map(str::to_owned).collect(),
    };
    standing.namespaces.sort();
    standing
}

fn capabilities() -> Capabilities {
    /// `struct __user_cap_header_struct` and two of `struct __user_cap_data_struct` (linux/capability.h, version 3).
    #[repr(C)]
    struct Header {
        version: u32,
        pid: libc::c_int,
    }
    const VERSION_3: u32 = 0x2008_0522;
    let mut header = Header { version: VERSION_3, pid: 0 };
    let mut data = [[0u32; 3]; 2];
    // SAFETY: both are as long as this version of the call wants.
    unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) };
    let [low, high] = data;
    let wide = |which: usize| match (low.get(which), high.get(which)) {
        (Some(low), Some(high)) => u64::from(*low) | u64::from(*high) << 32,
        _ => 0,
    };
    let in_bounds = |bit: u32| {
        // SAFETY: integers only. An unknown capability, and there are none behind it, is an error.
        match unsafe { libc::prctl(libc::PR_CAPBSET_READ, libc::c_ulong::from(bit), 0, 0, 0) } {
            present @ 0.. => Some((bit, present == 1)),
            _ => None,
        }
    };
    let known = (0..u64::BITS).map_while(in_bounds);
    let bounding = known.fold(0, |set, (bit, present)| set | u64::from(present) << bit);
    Capabilities { effective: wide(0), permitted: wide(1), inheritable: wide(2), bounding }
}

fn limits() -> Vec<(&'static str, Option<u64>, Option<u64>)> {
    let known = [
        ("core", libc::RLIMIT_CORE),
        ("fsize", libc::RLIMIT_FSIZE),
        ("memlock", libc::RLIMIT_MEMLOCK),
        ("no-file", libc::RLIMIT_NOFILE),
        ("no-proc", libc::RLIMIT_NPROC),
    ];
    let read = |(name, which)| {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: a structure of the right type to write to.
        unsafe { libc::getrlimit(which, &mut limit) };
        let finite = |value| Some(value).filter(|value| *value != libc::RLIM_INFINITY);
        (name, finite(limit.rlim_cur), finite(limit.rlim_max))
    };
    known.map(read).to_vec()
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

/// The kernel's release, such as `6.1.0-48-amd64`; empty if it does not say.
pub fn kernel_release() -> String {
    // SAFETY: plain data, for which all zeroes is a value.
    let mut about: libc::utsname = unsafe { std::mem::zeroed() };
    // SAFETY: a struct of the right type to write to.
    if unsafe { libc::uname(&raw mut about) } != 0 {
        return String::new();
    }
    let release = about.release.iter().map(|byte| byte.cast_unsigned()).take_while(|byte| *byte != 0).collect();
    String::from_utf8(release).unwrap_or_default()
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
