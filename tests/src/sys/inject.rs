//! Makes a thread of another process make a system call, as whoever has taken that thread over would (ptrace(2)).

use std::io;

use super::checked;

/// `WIFSTOPPED` with SIGTRAP and the bit of PTRACE_O_TRACESYSGOOD.
const SYSCALL_STOP: libc::c_int = libc::SIGTRAP | 0x80;
/// Results by which the kernel says that a call is to be made again after a signal (include/linux/errno.h).
const RESTARTS: std::ops::RangeInclusive<i64> = -516..=-512;

/// What became of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was made: what it returned, an error as a negative number.
    Made(i64),
    /// A filter caught it.
    Caught,
}

/// A thread that is stopped and does what it is told. Must be used by the thread that made it.
#[derive(Debug)]
pub struct Puppet {
    tid: libc::pid_t,
    /// As it was, and will be.
    registers: libc::user_regs_struct,
}

/// How often a thread is looked for at a system call, and how long after each other.
const TRIES: u32 = 20;
const SOON: std::time::Duration = std::time::Duration::from_millis(20);

impl Puppet {
    /// Stops a thread, which must be in a system call or have just come out of one.
    ///
    /// # Errors
    /// What ptrace(2) says, or that the thread is somewhere else.
    pub fn seize(tid: u32) -> io::Result<Self> {
        let tid = libc::pid_t::try_from(tid).map_err(io::Error::other)?;
        let options = libc::PTRACE_O_TRACESYSGOOD;
        // SAFETY: requests without pointers into our memory.
        unsafe {
            traced(libc::ptrace(libc::PTRACE_SEIZE, tid, 0, options))?;
            traced(libc::ptrace(libc::PTRACE_INTERRUPT, tid, 0, 0))?;
        }
        wait(tid)?;
        let mut puppet = Self { tid, registers: registers(tid)? };
        for _ in 0..TRIES {
            if puppet.is_at_a_call() {
                break;
            }
            // It is on its way to the next one.
            // SAFETY: requests without pointers into our memory.
            unsafe {
                traced(libc::ptrace(libc::PTRACE_CONT, tid, 0, 0))?;
                std::thread::sleep(SOON);
                traced(libc::ptrace(libc::PTRACE_INTERRUPT, tid, 0, 0))?;
            }
            wait(tid)?;
            puppet.registers = registers(tid)?;
        }
        if !puppet.is_at_a_call() {
            return Err(io::Error::other("the thread is not at a system call"));
        }
        let back = &mut puppet.registers;
        if RESTARTS.contains(&back.rax.cast_signed()) && back.orig_rax.cast_signed() >= 0 {
            // We have taken the kernel's chance to make it again.
            back.rax = back.orig_rax;
            back.rip -= 2;
        }
        back.orig_rax = u64::MAX;
        Ok(puppet)
    }

    fn is_at_a_call(&self) -> bool {
        // `syscall` is 0f 05.
        // SAFETY: reads a word of the other process.
        let code = unsafe { libc::ptrace(libc::PTRACE_PEEKTEXT, self.tid, self.registers.rip - 2, 0) };
        code & 0xffff == 0x050f
    }

    fn begin(&self, number: i64, arguments: [u64; 6]) -> io::Result<()> {
        let mut registers = self.registers;
        let at_call = if registers_at_call(self.tid, registers.rip)? { registers.rip } else { registers.rip - 2 };
        let [rdi, rsi, rdx, r10, r8, r9] = arguments;
        registers = libc::user_regs_struct {
            rip: at_call,
            rax: number.cast_unsigned(),
            rdi,
            rsi,
            rdx,
            r10,
            r8,
            r9,
            ..registers
        };
        set_registers(self.tid, &registers)
    }

    /// Has it make a call. If a filter catches it, the signal for that is taken away, and the thread can go on.
    ///
    /// # Errors
    /// What ptrace(2) says.
    pub fn call(&mut self, number: i64, arguments: [u64; 6]) -> io::Result<Outcome> {
        self.begin(number, arguments)?;
        // Into the call, and out of it.
        for _ in 0..2 {
            resume(self.tid, libc::PTRACE_SYSCALL, 0)?;
            let status = wait(self.tid)?;
            if libc::WSTOPSIG(status) != SYSCALL_STOP {
                return Err(io::Error::other(format!("stopped by signal {}", libc::WSTOPSIG(status))));
            }
        }
        if !is_pending(self.tid, libc::SIGSYS)? {
            return Ok(Outcome::Made(registers(self.tid)?.rax.cast_signed()));
        }
        resume(self.tid, libc::PTRACE_CONT, 0)?;
        let status = wait(self.tid)?;
        assert_eq!(libc::WSTOPSIG(status), libc::SIGSYS, "the signal that was pending");
        Ok(Outcome::Caught)
    }

    /// Has it map a page of its own and puts these bytes there; where that is.
    ///
    /// # Errors
    /// What ptrace(2) says, or that the thread may not map memory.
    pub fn hold(&mut self, bytes: &[u8]) -> io::Result<u64> {
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        let call = [0, 4096, protection as u64, flags as u64, u64::MAX, 0];
        let Outcome::Made(place @ 0..) = self.call(libc::SYS_mmap, call)? else {
            return Err(io::Error::other("the thread may not map memory"));
        };
        let memory = std::fs::File::options().write(true).open(format!("/proc/{}/mem", self.tid))?;
        std::os::unix::fs::FileExt::write_all_at(&memory, bytes, place.cast_unsigned())?;
        Ok(place.cast_unsigned())
    }

    /// Has it make a call, and go on with what comes of it.
    ///
    /// # Errors
    /// What ptrace(2) says.
    pub fn let_go_with(self, number: i64, arguments: [u64; 6]) -> io::Result<()> {
        self.begin(number, arguments)?;
        resume(self.tid, libc::PTRACE_DETACH, 0)
    }

    /// Lets it go on as if nothing had been.
    ///
    /// # Errors
    /// What ptrace(2) says.
    pub fn let_go(self) -> io::Result<()> {
        set_registers(self.tid, &self.registers)?;
        resume(self.tid, libc::PTRACE_DETACH, 0)
    }
}

fn traced(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn resume(tid: libc::pid_t, how: libc::c_uint, signal: libc::c_int) -> io::Result<()> {
    // SAFETY: no pointers.
    traced(unsafe { libc::ptrace(how, tid, 0, signal) })
}

fn wait(tid: libc::pid_t) -> io::Result<libc::c_int> {
    let mut status = 0;
    // SAFETY: a place for the status.
    checked(unsafe { libc::waitpid(tid, &raw mut status, libc::__WALL) })?;
    if libc::WIFSTOPPED(status) { Ok(status) } else { Err(io::Error::other("the thread has ended")) }
}

fn registers(tid: libc::pid_t) -> io::Result<libc::user_regs_struct> {
    // SAFETY: integers only, for which zero is a value.
    let mut registers = unsafe { std::mem::zeroed() };
    // SAFETY: a place for the registers.
    traced(unsafe { libc::ptrace(libc::PTRACE_GETREGS, tid, 0, &raw mut registers) })?;
    Ok(registers)
}

fn set_registers(tid: libc::pid_t, registers: &libc::user_regs_struct) -> io::Result<()> {
    // SAFETY: registers to read.
    traced(unsafe { libc::ptrace(libc::PTRACE_SETREGS, tid, 0, &raw const *registers) })
}

/// Whether `rip` is at the instruction itself and not behind it.
fn registers_at_call(tid: libc::pid_t, rip: u64) -> io::Result<bool> {
    // SAFETY: reads a word of the other process.
    Ok(unsafe { libc::ptrace(libc::PTRACE_PEEKTEXT, tid, rip, 0) } & 0xffff == 0x050f)
}

fn is_pending(tid: libc::pid_t, signal: libc::c_int) -> io::Result<bool> {
    let status = std::fs::read_to_string(format!("/proc/{tid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("SigPnd:"));
    let set = line.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).ok_or(io::ErrorKind::InvalidData)?;
    Ok(set & 1 << (signal - 1) != 0)
}
