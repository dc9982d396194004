//! How many queues of a tap are open, by whomever: asked of the kernel by rtnetlink (rtnetlink(7)), because nothing else tells.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Attributes of a link, of what it is, and of a tap (linux/if_link.h).
const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_TUN_NUM_QUEUES: u16 = 8;
const IFLA_TUN_NUM_DISABLED_QUEUES: u16 = 9;

/// Headers before the attributes: `nlmsghdr` and `ifinfomsg`.
const HEADER_LEN: usize = 16;
const LINK_LEN: usize = 16;
/// A link's answer has about 2 KiB.
const ANSWER_LEN: usize = 32 << 10;

/// Queues of this interface that somebody has open, attached or not. 0 if the kernel does not count them (before Linux 4.20).
pub(super) fn queue_count(name: &str) -> io::Result<u32> {
    // SAFETY: no pointers.
    let fd = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_ROUTE) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just made, owned by nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let question = question(name);
    // SAFETY: the buffer is valid for its length.
    let sent = unsafe { libc::send(socket.as_raw_fd(), question.as_ptr().cast(), question.len(), 0) };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut answer = vec![0u8; ANSWER_LEN];
    // SAFETY: the buffer is valid for its length.
    let len = unsafe { libc::recv(socket.as_raw_fd(), answer.as_mut_ptr().cast(), answer.len(), 0) };
    let len = usize::try_from(len).map_err(|_| io::Error::last_os_error())?;
    count(answer.get(..len).unwrap_or_default())
}

fn question(name: &str) -> Vec<u8> {
    let mut attribute = name.as_bytes().to_vec();
    attribute.push(0);
    let len = (mem::size_of::<u32>() + attribute.len()) as u16;
    attribute.resize(attribute.len().next_multiple_of(4), 0);
    let mut message = Vec::new();
    message.extend(((HEADER_LEN + LINK_LEN + 4 + attribute.len()) as u32).to_ne_bytes());
    message.extend(libc::RTM_GETLINK.to_ne_bytes());
    message.extend((libc::NLM_F_REQUEST as u16).to_ne_bytes());
    message.extend([0; 8]);
    message.extend([0; LINK_LEN]);
    message.extend(len.to_ne_bytes());
    message.extend(IFLA_IFNAME.to_ne_bytes());
    message.extend(attribute);
    message
}

fn count(answer: &[u8]) -> io::Result<u32> {
    let short = || io::Error::from(io::ErrorKind::UnexpectedEof);
    let kind = answer.get(4..6).and_then(|kind| kind.try_into().ok()).map(u16::from_ne_bytes).ok_or_else(short)?;
    if i32::from(kind) == libc::NLMSG_ERROR {
        let number = answer.get(HEADER_LEN..).and_then(|rest| rest.first_chunk()).ok_or_else(short)?;
        return Err(io::Error::from_raw_os_error(i32::from_ne_bytes(*number).saturating_neg()));
    }
    let link = answer.get(HEADER_LEN + LINK_LEN..).ok_or_else(short)?;
    let tap = find(link, IFLA_LINKINFO).and_then(|info| find(info, IFLA_INFO_DATA)).unwrap_or_default();
    let number =
        |kind| find(tap, kind).and_then(|value| value.first_chunk()).map_or(0, |value| u32::from_ne_bytes(*value));
    Ok(number(IFLA_TUN_NUM_QUEUES).saturating_add(number(IFLA_TUN_NUM_DISABLED_QUEUES)))
}

/// What the attribute of this kind holds.
fn find(mut attributes: &[u8], kind: u16) -> Option<&[u8]> {
    /// `NLA_TYPE_MASK`: the other bits are flags.
    const KIND: u16 = 0x3fff;
    loop {
        let [len, tag] =
            [attributes.get(..2)?, attributes.get(2..4)?].map(|two| two.try_into().map(u16::from_ne_bytes));
        let (len, tag) = (usize::from(len.ok()?), tag.ok()? & KIND);
        let value = attributes.get(4..len)?;
        if tag == kind {
            return Some(value);
        }
        attributes = attributes.get(len.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_net;
    use super::*;

    #[test]
    fn the_kernel_counts_open_queues() {
        test_net::own_network();
        let flags = libc::IFF_TAP | libc::IFF_MULTI_QUEUE;
        let first = test_net::make_tun("many", flags);
        assert_eq!(queue_count("many").unwrap(), 1);
        let second = test_net::make_tun("many", flags);
        assert_eq!(queue_count("many").unwrap(), 2);
        drop(second);
        assert_eq!(queue_count("many").unwrap(), 1);
        drop(first);
        assert_eq!(queue_count("many").unwrap_err().raw_os_error(), Some(libc::ENODEV));
        assert_eq!(queue_count("lo").unwrap(), 0);
    }

    #[test]
    fn half_an_answer_is_none() {
        assert!(count(&[0; 31]).is_err());
        assert_eq!(count(&[0; 32]).unwrap(), 0);
        assert_eq!(find(&[4, 0, 1, 0, 5, 0, 2, 0, 9], 2), Some(&[9][..]));
        assert_eq!(find(&[0, 0, 1, 0], 2), None);
        assert_eq!(find(&[200, 0, 2, 0], 2), None);
    }
}
