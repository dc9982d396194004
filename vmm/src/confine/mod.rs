//! Fences around the threads of the process: what each may ask of the kernel, whatever its guest makes of it.
//!
//! Two kinds, each of which must fail before something gets out: a seccomp filter for each thread, made of the system calls that this
//! machine's devices declare ([`devices::syscalls`]) and those of [`calls`]; and Landlock domains ([`landlock`]). Threads enter theirs
//! by themselves, first thing, through [`Fence::enter`]; a [`Gate`] tells when all have. The VMM thread enters its own last, when the
//! machine is built. What was done is told by [`report`].

pub mod calls;
mod filter;
mod gate;
pub mod landlock;
mod report;

use std::sync::Arc;

pub use filter::{FilterError, Filters, Program};
pub use gate::Gate;
pub use report::{Report, ThreadFence, report};

pub use devices::syscalls::{Arg, Call};

use crate::threads::Role;

/// Which filters threads get.
#[derive(Debug, Clone, Default)]
pub enum Seccomp {
    /// Those made for this machine.
    #[default]
    Own,
    /// Those that the operator brings.
    Brought(Arc<Filters>),
    /// None.
    Off,
}

/// What a thread enters before it does anything else.
#[derive(Debug, Clone)]
pub struct Fence {
    role: Role,
    program: Option<Arc<Program>>,
    /// No file may be opened any more.
    files: bool,
}

/// A fence could not be put up, so the thread must not go on.
#[derive(Debug, thiserror::Error)]
#[error("a thread cannot be confined: {0}")]
pub struct FenceError(#[from] FilterError);

impl Seccomp {
    /// The fence of a thread with this role that makes the calls of these lists. With `files` it may open some later on.
    ///
    /// # Errors
    /// A list that no filter can be made of, which is a mistake of ours.
    pub fn fence(&self, role: Role, lists: &[&[Call]], files: bool) -> Result<Fence, FilterError> {
        let program = match self {
            Self::Own => Some(Arc::new(Program::of(lists)?)),
            Self::Brought(filters) => filters.of(role),
            Self::Off => None,
        };
        Ok(Fence { role, program, files })
    }
}

impl Fence {
    /// No fence at all, for tests and for those who switched them off.
    pub fn none(role: Role) -> Self {
        Self { role, program: None, files: true }
    }

    /// Whom it is for.
    pub fn role(&self) -> Role {
        self.role
    }

    /// The same fence for another thread of the kind.
    pub fn for_role(&self, role: Role) -> Self {
        Self { role, ..self.clone() }
    }

    /// Puts the fence up around the calling thread, for good.
    ///
    /// # Errors
    /// What the kernel says. Landlock is a second fence: a kernel without it is no error.
    pub fn enter(&self) -> Result<(), FenceError> {
        let closed = !self.files && landlock::forbid_files();
        if let Some(program) = &self.program {
            program.install()?;
        }
        // A filter of ours says no by itself; of one that was brought nobody knows.
        let refused = closed || self.program.as_ref().is_some_and(|program| program.rules().is_some());
        report::note(self.role, self.program.as_deref(), self.files || !refused);
        Ok(())
    }
}
