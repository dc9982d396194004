//! The terminal on standard input: raw while a guest's console is on it, and back as it was at the end, however that comes.

use std::mem::MaybeUninit;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use libc::{STDIN_FILENO, termios};

static BEFORE: OnceLock<termios> = OnceLock::new();
static IS_RAW: AtomicBool = AtomicBool::new(false);

/// Restores the terminal when dropped. Exits that drop nothing call [`restore`] instead.
#[derive(Debug)]
pub struct RawTerminal(());

impl RawTerminal {
    /// Makes the terminal on standard input raw: keys arrive one by one, unechoed, Ctrl-C included. Output processing stays on, because
    /// our own log lines end in a bare newline. `None` if standard input is no terminal or we are in the background.
    pub fn enter() -> Option<Self> {
        let now = attributes()?;
        // SAFETY: no pointers.
        let in_foreground = unsafe { libc::tcgetpgrp(STDIN_FILENO) == libc::getpgrp() };
        if !in_foreground {
            return None;
        }
        let before = BEFORE.get_or_init(|| now);
        let mut raw = *before;
        raw.c_iflag &=
            !(libc::IGNBRK | libc::BRKINT | libc::PARMRK | libc::ISTRIP | libc::INLCR | libc::IGNCR | libc::ICRNL);
        raw.c_iflag &= !libc::IXON;
        raw.c_lflag &= !(libc::ECHO | libc::ECHONL | libc::ICANON | libc::ISIG | libc::IEXTEN);
        IS_RAW.store(true, Ordering::SeqCst);
        set_attributes(&raw);
        Some(Self(()))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Puts the terminal back as it was before [`RawTerminal::enter`]; does nothing the second time. Safe in panic hooks and signal handlers:
/// it neither locks nor allocates.
pub fn restore() {
    if IS_RAW.swap(false, Ordering::SeqCst)
        && let Some(before) = BEFORE.get()
    {
        set_attributes(before);
    }
}

fn attributes() -> Option<termios> {
    let mut now = MaybeUninit::uninit();
    // SAFETY: `now` is written in full when the call succeeds, and only then read.
    unsafe { (libc::tcgetattr(STDIN_FILENO, now.as_mut_ptr()) == 0).then(|| now.assume_init()) }
}

/// Sets the attributes even from the background, where the kernel would otherwise stop us with SIGTTOU (termios(4)).
fn set_attributes(to: &termios) {
    let (mut blocked, mut before) = (MaybeUninit::uninit(), MaybeUninit::uninit());
    // SAFETY: the sets are initialised by `sigemptyset` and `pthread_sigmask` before they are used; `to` is valid. Failures leave the
    // terminal or the mask as it was, and there is nobody to tell.
    unsafe {
        libc::sigemptyset(blocked.as_mut_ptr());
        libc::sigaddset(blocked.as_mut_ptr(), libc::SIGTTOU);
        if libc::pthread_sigmask(libc::SIG_BLOCK, blocked.as_ptr(), before.as_mut_ptr()) == 0 {
            libc::tcsetattr(STDIN_FILENO, libc::TCSANOW, to);
            libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), std::ptr::null_mut());
        }
    }
}
