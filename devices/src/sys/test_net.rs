//! For tests: a network namespace of the calling thread's own, and the host's end of a tap in it.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use libc::{c_char, c_int, c_short, c_void, ifreq};

/// Length of the header before frames of a [`Peer`]: `virtio_net_hdr`, without `num_buffers`.
pub(crate) const PEER_HEADER_LEN: usize = 10;

fn check(result: c_int, what: &str) {
    assert!(result >= 0, "{what}: {}", io::Error::last_os_error());
}

/// Moves the calling thread into a fresh network namespace, where IPv6 says nothing of its own accord.
pub(crate) fn own_network() {
    // SAFETY: no pointers; only the calling thread is moved.
    let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    check(result, "network tests need root: a network namespace cannot be made");
    match std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        result => result.expect("IPv6 cannot be silenced in the test's own network namespace"),
    }
}

fn socket(domain: c_int, kind: c_int, protocol: c_int) -> OwnedFd {
    // SAFETY: no pointers.
    let fd = unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC, protocol) };
    check(fd, "network tests need root: a socket cannot be opened");
    // SAFETY: just made, owned by nobody else.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn request(name: &str) -> ifreq {
    // SAFETY: all zeroes is a valid `ifreq`.
    let mut request: ifreq = unsafe { mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as c_char;
    }
    request
}

/// Sets an interface up or down.
pub(crate) fn set_link(name: &str, up: bool) {
    let socket = socket(libc::AF_INET, libc::SOCK_DGRAM, 0);
    let mut request = request(name);
    request.ifr_ifru.ifru_flags = if up { libc::IFF_UP as c_short } else { 0 };
    // SAFETY: SIOCSIFFLAGS reads an `ifreq`.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) }, "link state");
}

/// Sets an interface's MTU.
pub(crate) fn set_mtu(name: &str, mtu: c_int) {
    let socket = socket(libc::AF_INET, libc::SOCK_DGRAM, 0);
    let mut request = request(name);
    request.ifr_ifru.ifru_mtu = mtu;
    // SAFETY: SIOCSIFMTU reads an `ifreq`.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFMTU, &request) }, "MTU");
}

fn index(name: &str) -> c_int {
    let socket = socket(libc::AF_INET, libc::SOCK_DGRAM, 0);
    let mut request = request(name);
    // SAFETY: SIOCGIFINDEX reads the name in an `ifreq` and writes the index, which is then read.
    unsafe {
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFINDEX, &mut request), name);
        request.ifr_ifru.ifru_ifindex
    }
}

/// Deletes an interface (`RTM_DELLINK`).
pub(crate) fn delete_link(name: &str) {
    let index = index(name);
    let socket = socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE);
    let mut message = Vec::new();
    message.extend(32u32.to_ne_bytes());
    message.extend(libc::RTM_DELLINK.to_ne_bytes());
    message.extend(((libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16).to_ne_bytes());
    message.extend([0; 8]);
    // struct ifinfomsg: family, pad, type, index, flags, change.
    message.extend([0; 4]);
    message.extend(index.to_ne_bytes());
    message.extend([0; 8]);
    let mut answer = [0u8; 64];
    // SAFETY: both buffers are valid for their lengths.
    unsafe {
        check(libc::send(socket.as_raw_fd(), message.as_ptr().cast(), message.len(), 0) as c_int, "delete link");
        check(libc::recv(socket.as_raw_fd(), answer.as_mut_ptr().cast(), answer.len(), 0) as c_int, "delete link");
    }
    assert_eq!(answer[16..20], [0; 4], "the kernel refuses to delete {name}");
}

/// Makes a tun or tap that this module keeps open, with these flags besides `IFF_NO_PI`.
pub(crate) fn make_tun(name: &str, flags: c_int) -> std::fs::File {
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .expect("network tests need root and the tun module: /dev/net/tun cannot be opened");
    let mut request = request(name);
    request.ifr_ifru.ifru_flags = (flags | libc::IFF_NO_PI) as c_short;
    // SAFETY: TUNSETIFF takes an `ifreq` and may write to it.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &mut request) }, "TUNSETIFF");
    file
}

/// Makes an interface outlive its descriptor.
pub(crate) fn persist(file: &std::fs::File) {
    // SAFETY: TUNSETPERSIST takes its argument by value.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETPERSIST, 1 as libc::c_ulong) }, "TUNSETPERSIST");
}

/// The host at the other end of a tap: sends and receives whole frames, each behind a `virtio_net_hdr`.
pub(crate) struct Peer(OwnedFd);

impl Peer {
    /// On this interface.
    pub(crate) fn new(name: &str) -> Self {
        const ALL: u16 = (libc::ETH_P_ALL as u16).to_be();
        let socket = socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_NONBLOCK, ALL.into());
        // SAFETY: all zeroes is a valid address; filled in below.
        let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = ALL;
        address.sll_ifindex = index(name);
        let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        let yes: c_int = 1;
        let option = |option| {
            // SAFETY: the option is one `int`.
            let result = unsafe {
                let value: *const c_int = &yes;
                libc::setsockopt(socket.as_raw_fd(), libc::SOL_PACKET, option, value.cast(), 4)
            };
            check(result, "packet socket option");
        };
        option(libc::PACKET_VNET_HDR);
        // Without what we send ourselves.
        option(libc::PACKET_IGNORE_OUTGOING);
        // SAFETY: `address` is valid and `len` long.
        let result =
            unsafe { libc::bind(socket.as_raw_fd(), std::ptr::from_ref(&address).cast::<libc::sockaddr>(), len) };
        check(result, "packet socket");
        Self(socket)
    }

    /// Sends header and frame.
    pub(crate) fn send(&self, header: [u8; PEER_HEADER_LEN], frame: &[u8]) -> io::Result<()> {
        let message = [&header[..], frame].concat();
        // SAFETY: the buffer is valid for its length.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), message.as_ptr().cast::<c_void>(), message.len(), 0) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// The next frame with its header, if there is one.
    pub(crate) fn receive(&self) -> Option<([u8; PEER_HEADER_LEN], Vec<u8>)> {
        let mut message = vec![0u8; 1 << 17];
        // SAFETY: the buffer is valid for its length.
        let len = unsafe { libc::recv(self.0.as_raw_fd(), message.as_mut_ptr().cast::<c_void>(), message.len(), 0) };
        let len = usize::try_from(len).ok()?;
        let frame = message[PEER_HEADER_LEN..len].to_vec();
        Some((*message.first_chunk()?, frame))
    }
}
