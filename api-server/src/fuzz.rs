//! Entry points for fuzzing: bytes that a client could send, read as far as possible without doing anything.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::server;
use crate::wire;

/// Reads `data` as the body of some request, and turns it into a configuration value. What is accepted must be echoed so that it is
/// accepted again and means the same. Returns whether it was accepted.
pub fn bodies(data: &[u8]) -> bool {
    let Some((which, body)) = data.split_first() else { return false };
    match which % 16 {
        0 => echoed::<wire::Drive, vmm::config::DriveConfig>(body),
        1 => echoed::<wire::Net, vmm::config::NetConfig>(body),
        2 => echoed::<wire::Pmem, vmm::config::PmemConfig>(body),
        3 => echoed::<wire::Vsock, vmm::config::VsockConfig>(body),
        4 => echoed::<wire::Balloon, vmm::config::BalloonConfig>(body),
        5 => echoed::<wire::Entropy, vmm::config::EntropyConfig>(body),
        6 => echoed::<wire::MemoryHotplug, vmm::config::MemoryHotplugConfig>(body),
        7 => read::<wire::DrivePatch>(body),
        8 => read::<wire::NetPatch>(body),
        9 => read::<wire::MachineConfig>(body),
        10 => read::<wire::MachineConfigPatch>(body),
        11 => read::<wire::BootSource>(body),
        12 => read::<wire::Logger>(body),
        13 => read::<wire::Serial>(body),
        14 => read::<wire::CpuConfig>(body),
        _ => read::<crate::config_file::ConfigFile>(body),
    }
}

fn read<W: DeserializeOwned>(body: &[u8]) -> bool {
    serde_json::from_slice::<W>(body).is_ok()
}

fn echoed<W, C>(body: &[u8]) -> bool
where
    W: DeserializeOwned + Serialize + TryInto<C> + From<C>,
    C: Clone + PartialEq + std::fmt::Debug,
{
    let value = |bytes: &[u8]| serde_json::from_slice::<W>(bytes).ok().and_then(|wire| wire.try_into().ok());
    let Some(config): Option<C> = value(body) else { return false };
    let echo = serde_json::to_vec(&W::from(config.clone())).unwrap_or_default();
    // A path that is not UTF-8 cannot come out of JSON, so everything can be written as JSON again.
    assert_eq!(value(&echo), Some(config), "the echo means something else");
    true
}

/// Reads `data` as the head of a request. Returns whether it was understood.
pub fn heads(data: &[u8]) -> bool {
    server::reads_head(data)
}
