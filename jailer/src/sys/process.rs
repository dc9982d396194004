//! What the process is and may do: descriptors, namespaces, identity, capabilities.

use std::convert::Infallible;
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::process::{Pid, Resource, Rlimit, WaitOptions, getpid, setrlimit, setsid, waitpid};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::error::{Doing, Error};

fn checked(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Closes everything that was inherited but the standard three, whoever else shares the table.
pub(crate) fn close_inherited_files() {
    // SAFETY: no descriptor above these is ours yet.
    unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_UNSHARE) };
}

/// Limits a resource, soft and hard.
pub(crate) fn limit(resource: Resource, value: u64) -> io::Result<()> {
    Ok(setrlimit(resource, Rlimit { current: Some(value), maximum: Some(value) })?)
}

/// Leaves namespaces. This process has one thread.
pub(crate) fn unshare(flags: UnshareFlags) -> io::Result<()> {
    // SAFETY: neither the table of descriptors nor memory is among what is left.
    Ok(unsafe { unshare_unsafe(flags) }?)
}

/// Joins a network namespace.
pub(crate) fn join_network(path: &Path) -> Result<(), Error> {
    let file = File::open(path).doing(|| format!("Failed to open {}", path.display()))?;
    let kind = Some(rustix::thread::LinkNameSpaceType::Network);
    rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&file), kind)
        .doing(|| format!("Cannot join the network namespace {}", path.display()))
}

/// The user's keys stay outside. A kernel without keyrings has none to leave.
pub(crate) fn forget_keys() {
    const JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: no name, so a new keyring without one.
    unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>()) };
}

/// Copies the calling process. The number of the child in the parent; nothing in the child.
pub(crate) fn fork() -> io::Result<Option<Pid>> {
    // SAFETY: this process has one thread, so the child may do whatever it likes.
    match checked(unsafe { libc::fork() }.into())? {
        0 => Ok(None),
        pid => Ok(i32::try_from(pid).ok().and_then(Pid::from_raw)),
    }
}

/// Ends the process without running anything else of it.
pub(crate) fn end(code: i32) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(code) }
}

/// Leaves session and terminal; the calling process ends, and its grandchild goes on.
pub(crate) fn daemonize(null: &File) -> io::Result<()> {
    if fork()?.is_some() {
        end(0);
    }
    setsid()?;
    if fork()?.is_some() {
        end(0);
    }
    standard_streams(null)
}

/// Makes all three standard streams this file.
pub(crate) fn standard_streams(file: &File) -> io::Result<()> {
    for stream in 0..3 {
        // SAFETY: replaces a standard stream, of which nothing is buffered.
        checked(unsafe { libc::dup2(file.as_raw_fd(), stream) }.into())?;
    }
    Ok(())
}

/// This process's own number.
pub(crate) fn own_number() -> i32 {
    getpid().as_raw_nonzero().get()
}

/// Whether this process leads its session, so that its end would hang up on the others.
pub(crate) fn leads_session() -> bool {
    // Not rustix's: a session whose leader is in none of our process namespaces has the number 0, which its type does not hold.
    // SAFETY: integers only.
    let leader = unsafe { libc::getsid(0) };
    leader == own_number()
}

/// Starts a session of its own.
pub(crate) fn own_session() -> io::Result<()> {
    Ok(setsid().map(drop)?)
}

/// Waits until a process that a descriptor stands for has ended.
pub(crate) fn wait_for(pidfd: &OwnedFd) {
    let mut entry = libc::pollfd { fd: pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid entry.
    while unsafe { libc::poll(&raw mut entry, 1, -1) } < 0 {}
}

/// A descriptor of a process.
pub(crate) fn descriptor(pid: i32) -> io::Result<OwnedFd> {
    let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?)
}

/// Collects a child that ends at once.
pub(crate) fn reap(pid: Pid) {
    let _ = waitpid(Some(pid), WaitOptions::empty());
}

/// Signals, their mask and the file mode mask are as the kernel gives them to a first process.
pub(crate) fn reset_signals() {
    /// `struct sigaction` of the kernel: the default action, no flags, no mask.
    const DEFAULT: [u64; 4] = [0; 4];
    // By the kernel's own call: the C library keeps two signals to itself, which may be ignored all the same.
    for signal in 1..=64 {
        // SAFETY: a structure as the kernel has it, whose mask is 8 bytes long. SIGKILL and SIGSTOP are refused.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, DEFAULT.as_ptr(), 0, 8) };
    }
    // SAFETY: an empty set, filled in before it is used.
    unsafe {
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
    // As the reference leaves it: tools look for a socket of mode 0755. Nobody else gets into the directory all the same.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
}

/// Capabilities that a process can never have again. Before the ids are given up, as it takes one to do so.
pub(crate) fn empty_bounding_set() -> io::Result<()> {
    for capability in 0..64 {
        // SAFETY: integers only.
        let outcome = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability as libc::c_ulong, 0, 0, 0) };
        match checked(outcome.into()) {
            Ok(_) => {}
            // The first one that this kernel does not know; there are none behind it.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Root is a user like any other from now on, also in programs that are run.
pub(crate) fn lock_secure_bits() -> io::Result<()> {
    // SECBIT_NOROOT, SECBIT_NO_CAP_AMBIENT_RAISE, each with its lock, and SECBIT_KEEP_CAPS_LOCKED (linux/securebits.h).
    const BITS: libc::c_ulong = 1 << 0 | 1 << 1 | 1 << 5 | 1 << 6 | 1 << 7;
    // SAFETY: integers only.
    checked(unsafe { libc::prctl(libc::PR_SET_SECUREBITS, BITS, 0, 0, 0) }.into()).map(drop)
}

/// Gives up all groups but one, and the user.
pub(crate) fn become_user(uid: u32, gid: u32) -> io::Result<()> {
    // SAFETY: integers, and an empty list. This process has one thread, so the thread's ids are the process's.
    unsafe {
        checked(libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()))?;
        checked(libc::syscall(libc::SYS_setresgid, gid, gid, gid))?;
        checked(libc::syscall(libc::SYS_setresuid, uid, uid, uid))?;
    }
    Ok(())
}

/// No capability in any set, and no program gains any.
pub(crate) fn drop_capabilities() -> io::Result<()> {
    /// `struct __user_cap_header_struct` (linux/capability.h, version 3).
    #[repr(C)]
    struct Header {
        version: u32,
        pid: libc::c_int,
    }
    let header = Header { version: 0x2008_0522, pid: 0 };
    let none = [[0u32; 3]; 2];
    // SAFETY: both are as long as this version of the call wants; the rest takes integers only.
    unsafe {
        checked(libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0).into())?;
        checked(libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()))?;
        checked(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0).into())?;
    }
    Ok(())
}

/// Becomes a program with an empty environment. Comes back only with an error.
pub(crate) fn run(program: &Path, arguments: &[&OsStr]) -> io::Result<Infallible> {
    let text = |text: &OsStr| CString::new(text.as_bytes()).map_err(io::Error::from);
    let path = text(program.as_os_str())?;
    let arguments = arguments.iter().map(|argument| text(argument)).collect::<io::Result<Vec<_>>>()?;
    let mut pointers = vec![path.as_ptr()];
    pointers.extend(arguments.iter().map(|argument| argument.as_ptr()));
    pointers.push(std::ptr::null());
    let environment = [std::ptr::null()];
    // SAFETY: both lists end with a null pointer, and their strings outlive the call.
    unsafe { libc::execve(path.as_ptr(), pointers.as_ptr(), environment.as_ptr()) };
    Err(io::Error::last_os_error())
}

/// Two ends of a pipe, closed when a program is run.
pub(crate) fn pipe() -> io::Result<(File, File)> {
    let mut ends: [RawFd; 2] = [0; 2];
    // SAFETY: a place for both descriptors, which belong to nobody else.
    unsafe {
        checked(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC).into())?;
        let [reader, writer] = ends.map(|fd| File::from_raw_fd(fd));
        Ok((reader, writer))
    }
}
