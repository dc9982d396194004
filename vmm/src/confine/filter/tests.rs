use std::os::unix::process::ExitStatusExt;

use proptest::prelude::*;

use super::*;

/// What a child that did this ends with, behind this filter: its own code, or SIGSYS.
fn child(program: &Program, work: impl FnOnce() -> libc::c_int) -> Result<i32, i32> {
    // SAFETY: the child makes system calls only and ends by one.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let code = if program.install().is_ok() { work() } else { 99 };
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(code) };
    }
    let mut status = 0;
    // SAFETY: our own child, and a place for its status.
    assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
    let status = std::process::ExitStatus::from_raw(status);
    status.code().ok_or_else(|| status.signal().unwrap_or(0))
}

const END: &[Call] = &[Call::any(libc::SYS_exit_group, "the child's end")];

/// Makes a call without pointers. What a child says of its success.
fn call(number: libc::c_long, args: [libc::c_int; 3]) -> libc::c_int {
    let [a, b, c] = args;
    // SAFETY: callers pick calls that take integers only.
    if unsafe { libc::syscall(number, a, b, c) } < 0 { 1 } else { 7 }
}

fn with(program: &Program, number: libc::c_long, args: [libc::c_int; 3]) -> Result<i32, i32> {
    child(program, || call(number, args))
}

#[test]
fn what_is_listed_passes_and_the_rest_is_fatal() {
    let program = Program::of(&[END, &[Call::any(libc::SYS_getppid, "the test")]]).unwrap();
    assert_eq!(with(&program, libc::SYS_getppid, [0; 3]), Ok(7));
    assert_eq!(with(&program, libc::SYS_getuid, [0; 3]), Err(libc::SIGSYS));
    // A call of the x32 interface is another one.
    assert_eq!(with(&program, libc::SYS_getppid | 0x4000_0000, [0; 3]), Err(libc::SIGSYS));
}

#[test]
fn arguments_are_looked_at() {
    const CALLS: &[Call] = &[
        Call::with(libc::SYS_socket, &[Arg::is(0, libc::AF_UNIX as u32), Arg::is(2, 0)], "the test"),
        Call::with(libc::SYS_dup, &[Arg::without(0, 4)], "the test"),
    ];
    let program = Program::of(&[END, CALLS]).unwrap();
    assert_eq!(program.rules(), Some(3));
    let socket = |family, protocol| with(&program, libc::SYS_socket, [family, 1, protocol]);
    assert_eq!(socket(libc::AF_UNIX, 0), Ok(7));
    assert_eq!(socket(libc::AF_INET, 0), Err(libc::SIGSYS));
    assert_eq!(socket(libc::AF_UNIX, 1), Err(libc::SIGSYS));
    let dup = |fd| with(&program, libc::SYS_dup, [fd, 0, 0]);
    assert_eq!(dup(0), Ok(7));
    assert_eq!(dup(4), Err(libc::SIGSYS));
    assert_eq!(dup(6), Err(libc::SIGSYS));
}

#[test]
fn any_arguments_win_and_nothing_counts_twice() {
    const STRICT: Call = Call::with(libc::SYS_dup, &[Arg::is(0, 1)], "strict");
    const OTHER: Call = Call::with(libc::SYS_dup, &[Arg::is(0, 2)], "other");
    let loose = Call::any(libc::SYS_dup, "loose");
    assert_eq!(Program::of(&[END, &[STRICT, OTHER, STRICT]]).unwrap().rules(), Some(3));
    let program = Program::of(&[END, &[STRICT], &[loose], &[OTHER]]).unwrap();
    assert_eq!(program.rules(), Some(2));
    assert_eq!(with(&program, libc::SYS_dup, [0; 3]), Ok(7));
}

/// As seccompiler's compiler writes it.
fn file(threads: &[(&str, &[u64])]) -> Vec<u8> {
    let mut bytes = (threads.len() as u64).to_le_bytes().to_vec();
    for (name, code) in threads {
        bytes.extend((name.len() as u64).to_le_bytes());
        bytes.extend(name.as_bytes());
        bytes.extend((code.len() as u64).to_le_bytes());
        bytes.extend(code.iter().flat_map(|word| word.to_le_bytes()));
    }
    bytes
}

/// `BPF_RET | BPF_K` with SECCOMP_RET_ALLOW, and with SECCOMP_RET_KILL_PROCESS.
const ALLOW: u64 = 0x7fff_0000 << 32 | 0x06;
const KILL: u64 = 0x8000_0000 << 32 | 0x06;

#[test]
fn a_file_of_filters_is_taken() {
    let filters = Filters::parse(&file(&[("vmm", &[ALLOW]), ("api", &[ALLOW]), ("vcpu", &[KILL])])).unwrap();
    let of = |role| filters.of(role).unwrap();
    for role in [Role::Vmm, Role::Api, Role::Io(3), Role::Files] {
        assert_eq!(with(&of(role), libc::SYS_getuid, [0; 3]), Ok(7), "{role:?}");
    }
    assert_eq!(with(&of(Role::Vcpu(1)), libc::SYS_getuid, [0; 3]), Err(libc::SIGSYS));
}

#[test]
fn a_file_that_is_none_is_refused_with_a_reason() {
    let good = file(&[("vmm", &[ALLOW]), ("api", &[ALLOW]), ("vcpu", &[ALLOW])]);
    let why = |bytes: &[u8]| Filters::parse(bytes).unwrap_err().to_string();
    for (bytes, reason) in [
        (b"{}".to_vec(), "ends too early"),
        (good[..good.len() - 1].to_vec(), "ends too early"),
        ([&good[..], &[0]].concat(), "1 bytes are left over"),
        (file(&[("vmm", &[ALLOW]), ("api", &[ALLOW])]), "none for thread vcpu"),
        (file(&[("vmm", &[]), ("api", &[ALLOW]), ("vcpu", &[ALLOW])]), "0 instructions"),
        (vec![0xff; 8], "ends too early"),
        (vec![0; MOST_BYTES + 1], "are the most"),
    ] {
        assert!(why(&bytes).contains(reason), "{}", why(&bytes));
    }
}

proptest! {
    #[test]
    fn no_file_does_harm(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = Filters::parse(&bytes);
    }
}
