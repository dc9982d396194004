//! The cellar: system calls that no crate wraps for us.

pub mod advice;
pub mod calls;
pub mod clock;
pub mod fatal;
pub mod landlock;
pub mod lifeline;
pub mod map;
pub mod memfd;
pub mod open;
pub mod pages;
pub mod poll;
pub mod process;
pub mod signal_stack;
pub mod signals;
pub mod socket;
pub mod uffd;

pub use devices::sys::terminal;
