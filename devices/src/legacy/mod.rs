//! Legacy chips.
