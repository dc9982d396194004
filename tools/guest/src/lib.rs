//! x
/// e
pub static ELF: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/guest.elf"));
/// e
pub static ELF_PVH: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/guest-pvh.elf"));
