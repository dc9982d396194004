//! Fields of the v1 API that are understood but not acted on yet.

/// A field that is well formed but asks for something this version does not do.
///
/// It is its own type, not an error text, because the caller first has to ask whether the request is allowed in this phase at all:
/// "not after the start" wins over "not in this version".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Later(pub(crate) &'static str);

/// The sentence for `what`, used for fields, endpoints and command-line flags alike.
pub(crate) fn later(what: &str) -> String {
    format!("{what} is not supported yet by this version of Mayfly.")
}
