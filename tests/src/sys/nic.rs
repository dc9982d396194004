//! What a network card's driver tells of its queues, and how many it is to use (linux/ethtool.h); and taps with several queues.

use std::io;
use std::os::fd::AsRawFd;

use super::{checked, interface_request, socket};

const GET_DRIVER: u32 = 0x03;
const GET_STRINGS: u32 = 0x1b;
const GET_STATS: u32 = 0x1d;
const GET_CHANNELS: u32 = 0x3c;
const SET_CHANNELS: u32 = 0x3d;
/// `ETH_SS_STATS`.
const STATS: u32 = 1;
const NAME_LEN: usize = 32;

/// Sends `words` to the driver of an interface, and has its answer in their place.
fn ask(interface: &str, words: &mut [u32]) -> io::Result<()> {
    let socket = socket(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
    let mut request = interface_request(interface)?;
    request.ifr_ifru.ifru_data = words.as_mut_ptr().cast();
    // SAFETY: SIOCETHTOOL reads one ifreq, and as much behind its pointer as the command there says, for which callers have made room.
    checked(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) }).map(|_| ())
}

fn bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// The driver's counters by name.
///
/// # Errors
/// There is no such interface, or its driver has none.
pub fn counters(interface: &str) -> io::Result<Vec<(String, u64)>> {
    // `struct ethtool_drvinfo`, in which the number of counters is the 46th word.
    let mut driver = [0; 49];
    driver[0] = GET_DRIVER;
    ask(interface, &mut driver)?;
    let count = driver[45] as usize;
    let mut names = vec![0; 3 + count * NAME_LEN / 4];
    names[..3].copy_from_slice(&[GET_STRINGS, STATS, count as u32]);
    ask(interface, &mut names)?;
    let mut values = vec![0; 2 + 2 * count];
    values[..2].copy_from_slice(&[GET_STATS, count as u32]);
    ask(interface, &mut values)?;
    let text =
        |name: &[u8]| String::from_utf8_lossy(name.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned();
    let names = bytes(&names[3..]);
    let values = values[2..].chunks_exact(2).map(|half| u64::from(half[1]) << 32 | u64::from(half[0]));
    Ok(names.chunks_exact(NAME_LEN).map(text).zip(values).collect())
}

/// Has the driver use so many pairs of queues.
///
/// # Errors
/// It cannot.
pub fn use_pairs(interface: &str, pairs: u32) -> io::Result<()> {
    // `struct ethtool_channels`, whose last word is the number of pairs.
    let mut channels = [0; 9];
    channels[0] = GET_CHANNELS;
    ask(interface, &mut channels)?;
    channels[0] = SET_CHANNELS;
    channels[8] = pairs;
    ask(interface, &mut channels)
}

/// Makes a tap with room for several queues that outlives this process, or removes it.
///
/// # Errors
/// What the kernel says.
pub fn keep_tap(name: &str, keep: bool) -> io::Result<()> {
    super::set_tap_persistence(name, true, keep)
}
