//! seccomp filters: from lists of calls to programs, and programs that the operator brings.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;

use devices::syscalls::{Arg, Call};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, sock_filter,
};

use crate::threads::Role;

/// Most instructions the kernel takes (BPF_MAXINSNS).
const MOST_INSTRUCTIONS: usize = 4096;
/// Largest file of filters.
const MOST_BYTES: usize = 100_000;
/// Bytes of an instruction.
const INSTRUCTION: usize = 8;
/// Threads that a file of filters must know: those that v1 has.
const WANTED: [&str; 3] = ["vmm", "api", "vcpu"];

/// Why there is no filter.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// A list that makes no filter.
    #[error("seccomp: {0}")]
    Compile(#[from] seccompiler::BackendError),
    /// The kernel refuses it.
    #[error("seccomp: {0}")]
    Install(#[from] seccompiler::Error),
    /// A file that is none of filters.
    #[error("{0}")]
    File(String),
}

/// A filter in the kernel's language.
#[derive(Debug, Clone)]
pub struct Program {
    instructions: BpfProgram,
    /// Calls that it lets through, each set of arguments on its own. `None` of one that was brought.
    rules: Option<usize>,
}

impl Program {
    /// Lets the calls of the lists through. Any other ends the process by SIGSYS, which names it.
    pub(super) fn of(lists: &[&[Call]]) -> Result<Self, FilterError> {
        let mut rules = BTreeMap::<i64, Vec<&'static [Arg]>>::new();
        for call in lists.iter().copied().flatten() {
            let known = rules.entry(call.number).or_default();
            if !known.contains(&call.args) {
                known.push(call.args);
            }
        }
        for known in rules.values_mut() {
            // A call with any arguments makes its other rules superfluous.
            if known.iter().any(|args| args.is_empty()) {
                *known = vec![&[]];
            }
        }
        let count = rules.values().map(Vec::len).sum();
        let rules = rules.into_iter().map(|(number, known)| Ok((number, compile(&known)?)));
        let rules = rules.collect::<Result<_, FilterError>>()?;
        let filter = SeccompFilter::new(rules, SeccompAction::Trap, SeccompAction::Allow, TargetArch::x86_64)?;
        Ok(Self { instructions: filter.try_into()?, rules: Some(count) })
    }

    /// Installs it on the calling thread, for good. Sets `no_new_privs`, too.
    pub(super) fn install(&self) -> Result<(), FilterError> {
        Ok(seccompiler::apply_filter(&self.instructions)?)
    }

    /// How many calls it lets through.
    pub fn rules(&self) -> Option<usize> {
        self.rules
    }

    /// How long it is.
    pub fn instructions(&self) -> usize {
        self.instructions.len()
    }
}

/// The rules of one call. None at all means any arguments.
fn compile(known: &[&[Arg]]) -> Result<Vec<SeccompRule>, FilterError> {
    let restricted = known.iter().filter(|args| !args.is_empty());
    let rule = |args: &&[Arg]| -> Result<SeccompRule, FilterError> {
        let conditions = args.iter().map(|Arg { index, mask, value }| {
            let how = if *mask == u32::MAX { SeccompCmpOp::Eq } else { SeccompCmpOp::MaskedEq((*mask).into()) };
            Ok(SeccompCondition::new(*index, SeccompCmpArgLen::Dword, how, (*value).into())?)
        });
        Ok(SeccompRule::new(conditions.collect::<Result<_, FilterError>>()?)?)
    };
    restricted.map(rule).collect()
}

/// Filters that the operator brings, by the thread's role.
#[derive(Debug)]
pub struct Filters(HashMap<String, Arc<Program>>);

impl Filters {
    /// Reads what seccompiler's compiler writes: a map from a thread's name to its instructions, each a 64-bit number; all numbers and
    /// lengths are 64 bits long and little-endian.
    ///
    /// # Errors
    /// A text that says what is wrong with the file.
    pub fn parse(bytes: &[u8]) -> Result<Self, FilterError> {
        let wrong = |what: &str| FilterError::File(format!("not a file of seccomp filters: {what}"));
        if bytes.len() > MOST_BYTES {
            return Err(wrong(&format!("it has {} bytes, and {MOST_BYTES} are the most", bytes.len())));
        }
        let mut rest = bytes;
        let mut take = |count: usize| -> Result<&[u8], FilterError> {
            let (taken, left) = rest.split_at_checked(count).ok_or_else(|| wrong("it ends too early"))?;
            rest = left;
            Ok(taken)
        };
        let mut filters = HashMap::new();
        for _ in 0..length(take(INSTRUCTION)?) {
            let name = length(take(INSTRUCTION)?);
            let name = std::str::from_utf8(take(name)?).map_err(|_| wrong("a thread's name is no text"))?.to_owned();
            let count = length(take(INSTRUCTION)?);
            if count == 0 || count > MOST_INSTRUCTIONS {
                return Err(wrong(&format!(
                    "thread {name} has {count} instructions, and 1 to {MOST_INSTRUCTIONS} are allowed"
                )));
            }
            let code = take(count.saturating_mul(INSTRUCTION))?;
            let instructions = code.chunks_exact(INSTRUCTION).map(instruction).collect();
            filters.insert(name, Arc::new(Program { instructions, rules: None }));
        }
        if !rest.is_empty() {
            return Err(wrong(&format!("{} bytes are left over", rest.len())));
        }
        if let Some(missing) = WANTED.iter().find(|name| !filters.contains_key(**name)) {
            return Err(wrong(&format!("there is none for thread {missing}")));
        }
        Ok(Self(filters))
    }

    /// The one for a role. Threads that v1 does not have do a part of what its VMM thread does.
    pub(super) fn of(&self, role: Role) -> Option<Arc<Program>> {
        let name = match role {
            Role::Api => "api",
            Role::Vcpu(_) => "vcpu",
            Role::Vmm | Role::Io(_) | Role::Files | Role::Watch | Role::Pager | Role::Prefetch => "vmm",
        };
        self.0.get(name).cloned()
    }
}

fn length(bytes: &[u8]) -> usize {
    let number = bytes.try_into().map_or(u64::MAX, u64::from_le_bytes);
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// `struct sock_filter` (include/uapi/linux/filter.h).
fn instruction(bytes: &[u8]) -> sock_filter {
    let at = |index: usize| bytes.get(index).copied().unwrap_or(0);
    sock_filter {
        code: u16::from_le_bytes([at(0), at(1)]),
        jt: at(2),
        jf: at(3),
        k: u32::from_le_bytes([at(4), at(5), at(6), at(7)]),
    }
}

impl From<FilterError> for io::Error {
    fn from(error: FilterError) -> Self {
        io::Error::other(error)
    }
}

#[cfg(test)]
mod tests;
