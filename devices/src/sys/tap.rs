//! TAP interfaces (Linux Documentation/networking/tuntap.rst): Ethernet frames by file descriptor, each behind a virtio-net header.

use std::fs::{File, OpenOptions};
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use bitflags::bitflags;
use libc::{c_int, c_short, c_uint, ifreq};

use super::iovec::GuestIoVec;
use super::tap_queues::queue_count;

const TUN_DEVICE: &str = "/dev/net/tun";

/// Length in bytes of the header before each frame: `virtio_net_hdr_v1` (virtio 1.3 §5.1.6).
pub const HEADER_LEN: usize = 12;

bitflags! {
    /// Frames that may be handed to us unfinished (`TUN_F_*` of linux/if_tun.h).
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct Offloads: c_uint {
        /// Without their checksum. The others need it.
        const CSUM = 0x01;
        /// TCP over IPv4 larger than the MTU.
        const TSO4 = 0x02;
        /// TCP over IPv6 larger than the MTU.
        const TSO6 = 0x04;
        /// UDP to be fragmented by IP.
        const UFO = 0x10;
        /// UDP over IPv4 to be segmented (kernel 6.2).
        const USO4 = 0x20;
        /// UDP over IPv6 to be segmented (kernel 6.2). Only together with the former.
        const USO6 = 0x40;
    }
}

/// Why a tap cannot be used. Texts are part of the API's contract.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// Not a name an interface can have.
    #[error(
        "`{0}` is not an interface name (1 to 15 bytes without spaces, `/`, `:` or `%`). \
         Invalid TUN/TAP Backend provided by {0}. Check our documentation on setting up the network devices."
    )]
    Name(String),
    /// `/dev/net/tun` cannot be opened.
    #[error("{TUN_DEVICE} cannot be opened (is the tun module loaded, and may this user open it?): {0}")]
    NoTunDevice(#[source] io::Error),
    /// Another process has it. The text does not depend on the C library.
    #[error(
        "Resource busy (os error 16): another process uses the interface. \
         Invalid TUN/TAP Backend provided by {0}. Check our documentation on setting up the network devices."
    )]
    Busy(String),
    /// A tap that cannot have several queues.
    #[error(
        "the interface was created without multi_queue, and num_queues is more than 1: delete it and create it again by \
         `ip tuntap add dev {0} mode tap multi_queue`, or leave num_queues out. \
         Invalid TUN/TAP Backend provided by {0}. Check our documentation on setting up the network devices."
    )]
    SingleQueue(String),
    /// The kernel refuses to attach to the interface or to create it.
    #[error(
        "{source}: {hint}. \
         Invalid TUN/TAP Backend provided by {name}. Check our documentation on setting up the network devices."
    )]
    Refused {
        /// The interface.
        name: String,
        /// What the operator can do.
        hint: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// An open tap, or one of several queues of one; non-blocking.
#[derive(Debug)]
pub struct Tap {
    file: File,
    name: String,
    supported: Offloads,
    multi_queue: bool,
}

impl Tap {
    /// Attaches to the tap of this name, or creates it if there is none; then it lives as long as the descriptor, and is down. Of a tap
    /// that was created with several queues, one is used.
    pub fn open(name: &str) -> Result<Self, TapError> {
        match Self::attach(name, false) {
            Err(TapError::Refused { source, .. }) if source.raw_os_error() == Some(libc::EINVAL) => {
                let mut taps = Self::open_queues(name, 1)?;
                taps.pop().ok_or_else(|| TapError::Busy(name.to_owned()))
            }
            other => other,
        }
    }

    /// The same with so many queues, which the interface must have room for. Nobody else may have one.
    pub fn open_queues(name: &str, count: u8) -> Result<Vec<Self>, TapError> {
        Self::open_beside(name, 0, count)
    }

    /// Other queues of an open tap that may have some.
    pub fn open_more(&self, count: u8) -> Result<Vec<Self>, TapError> {
        Self::open_beside(&self.name, 1, count)
    }

    fn open_beside(name: &str, open: u32, count: u8) -> Result<Vec<Self>, TapError> {
        let taps = (0..count).map(|_| Self::attach(name, true)).collect::<Result<Vec<_>, _>>()?;
        match queue_count(name) {
            // Several processes can attach to such an interface; each would get a part of the frames.
            Ok(all) if all > open.saturating_add(count.into()) => Err(TapError::Busy(name.to_owned())),
            Ok(_) => Ok(taps),
            Err(source) => {
                let hint = "the kernel does not say who else uses the interface";
                Err(TapError::Refused { name: name.to_owned(), hint, source })
            }
        }
    }

    fn attach(name: &str, multi_queue: bool) -> Result<Self, TapError> {
        check_name(name)?;
        let file = open_tun()?;
        let refused = |hint| move |source| TapError::Refused { name: name.to_owned(), hint, source };
        let plain = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        let flags = if multi_queue { plain | libc::IFF_MULTI_QUEUE } else { plain };
        attach(&file, name, flags).map_err(|source| match source.raw_os_error() {
            Some(libc::EBUSY) => TapError::Busy(name.to_owned()),
            Some(libc::EINVAL) if multi_queue && is_single_queue(name, plain) => TapError::SingleQueue(name.to_owned()),
            Some(libc::EINVAL) => refused("an interface of this name exists and is not a tap")(source),
            Some(libc::EPERM) => {
                refused("the interface belongs to another user, or creating it needs CAP_NET_ADMIN")(source)
            }
            _ => refused("the interface cannot be attached to")(source),
        })?;
        let set_up = refused("the tap does not take the settings a network device needs");
        set(&file, libc::TUNSETVNETHDRSZ, HEADER_LEN as c_int).map_err(&set_up)?;
        // Without a limit on what is under way, writing never has to wait.
        set(&file, libc::TUNSETSNDBUF, c_int::MAX).map_err(&set_up)?;
        let supported = probe_offloads(&file);
        set_offloads(&file, Offloads::empty()).map_err(&set_up)?;
        Ok(Self { file, name: name.to_owned(), supported, multi_queue })
    }

    /// The same open tap under another descriptor.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { file: self.file.try_clone()?, name: self.name.clone(), ..*self })
    }

    /// Name of the interface.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether there may be other queues of it.
    pub fn is_multi_queue(&self) -> bool {
        self.multi_queue
    }

    /// Has the kernel use this queue of the tap, or leave it alone; what waits at it is then lost. It need not have been otherwise before.
    pub fn attach_queue(&self, attach: bool) -> io::Result<()> {
        // SAFETY: all zeroes is a valid `ifreq`.
        let mut request: ifreq = unsafe { mem::zeroed() };
        let flags = if attach { libc::IFF_ATTACH_QUEUE } else { libc::IFF_DETACH_QUEUE };
        request.ifr_ifru.ifru_flags = flags as c_short;
        // SAFETY: TUNSETQUEUE reads an `ifreq`.
        let result = unsafe { libc::ioctl(self.file.as_raw_fd(), libc::TUNSETQUEUE, &request) };
        match io::Error::last_os_error() {
            _ if result >= 0 => Ok(()),
            // It is so already (tun_set_queue of drivers/net/tun.c).
            error if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            error => Err(error),
        }
    }

    /// What [`Self::set_offloads`] can be asked for on this kernel.
    pub fn supported(&self) -> Offloads {
        self.supported
    }

    /// Frames that the guest can take unfinished.
    pub fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        set_offloads(&self.file, offloads)
    }

    /// Reads a header and a frame into `pieces`, without copying. What does not fit is lost, but counts in the length that is returned.
    /// [`io::ErrorKind::WouldBlock`] if there is none.
    pub fn read(&self, pieces: &[GuestIoVec]) -> io::Result<usize> {
        let iovecs = GuestIoVec::as_iovecs(pieces);
        // SAFETY: a `GuestIoVec` points at memory that the kernel may write (see the type's contract).
        let len = unsafe { libc::readv(self.file.as_raw_fd(), iovecs.as_ptr(), iovec_count(iovecs)) };
        usize::try_from(len).map_err(|_| io::Error::last_os_error())
    }

    /// Writes a header and a frame from `pieces`, without copying.
    pub fn write(&self, pieces: &[GuestIoVec]) -> io::Result<()> {
        let iovecs = GuestIoVec::as_iovecs(pieces);
        // SAFETY: as in `read`; the kernel only reads.
        let len = unsafe { libc::writev(self.file.as_raw_fd(), iovecs.as_ptr(), iovec_count(iovecs)) };
        if len < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// Most pieces one system call takes (`UIO_MAXIOV` of linux/uio.h).
pub const MAX_PIECES: usize = 1024;

fn iovec_count(iovecs: &[libc::iovec]) -> c_int {
    iovecs.len().min(MAX_PIECES) as c_int
}

fn check_name(name: &str) -> Result<(), TapError> {
    // dev_valid_name of net/core/dev.c; and no `%`, which would make the kernel choose a name.
    let legal = |byte: u8| !byte.is_ascii_whitespace() && !matches!(byte, 0 | 0x0b | b'/' | b':' | b'%');
    let fits = (1..libc::IFNAMSIZ).contains(&name.len()) && !matches!(name, "." | "..");
    if fits && name.bytes().all(legal) { Ok(()) } else { Err(TapError::Name(name.chars().take(40).collect())) }
}

fn open_tun() -> Result<File, TapError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(TUN_DEVICE)
        .map_err(TapError::NoTunDevice)
}

fn attach(file: &File, name: &str, flags: c_int) -> io::Result<()> {
    // SAFETY: all zeroes is a valid `ifreq`.
    let mut request: ifreq = unsafe { mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = flags as c_short;
    // SAFETY: TUNSETIFF takes an `ifreq` and may write the name back into it.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether attaching as the only queue works, or could, where attaching as one of several did not.
fn is_single_queue(name: &str, flags: c_int) -> bool {
    let outcome = open_tun().map(|file| attach(&file, name, flags));
    outcome.is_ok_and(|outcome| outcome.map_or_else(|error| error.raw_os_error() == Some(libc::EBUSY), |()| true))
}

fn set(file: &File, request: libc::Ioctl, value: c_int) -> io::Result<()> {
    // SAFETY: the requests this is used with read one `int`.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request, &value) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn set_offloads(file: &File, offloads: Offloads) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(offloads.bits())) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The richest set the kernel takes.
fn probe_offloads(file: &File) -> Offloads {
    let classic = Offloads::CSUM | Offloads::TSO4 | Offloads::TSO6;
    let with_ufo = classic | Offloads::UFO;
    let uso = Offloads::USO4 | Offloads::USO6;
    [with_ufo | uso, classic | uso, with_ufo, classic, Offloads::CSUM]
        .into_iter()
        .find(|set| set_offloads(file, *set).is_ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::test_net;
    use super::*;

    const CONTRACT: &str = "Invalid TUN/TAP Backend provided by";

    #[test]
    fn names() {
        for good in ["tap0", "a", "exactly15bytes_", "t.0-_"] {
            check_name(good).unwrap();
        }
        for bad in ["", "sixteen_bytes_ab", "a/b", "a b", "a\tb", "a\0b", "tap%d", "a:1", ".", "..", "äöüäöüäö"]
        {
            let error = Tap::open(bad).unwrap_err();
            assert!(matches!(error, TapError::Name(_)), "{bad}: {error}");
            assert!(error.to_string().contains(CONTRACT), "{error}");
        }
    }

    #[test]
    fn a_tap_has_one_owner() {
        test_net::own_network();
        let tap = Tap::open("tap0").unwrap();
        let error = Tap::open("tap0").unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, TapError::Busy(_)), "{text}");
        assert!(text.contains("Resource busy (os error 16)"), "{text}");
        assert!(text.contains("Invalid TUN/TAP Backend provided by tap0. Check our documentation"), "{text}");
        let clone = tap.try_clone().unwrap();
        drop(tap);
        assert!(Tap::open("tap0").is_err());
        drop(clone);
        Tap::open("tap0").unwrap();
    }

    #[test]
    fn persistent_taps_are_welcome() {
        test_net::own_network();
        let file = test_net::make_tun("tap7", libc::IFF_TAP);
        test_net::persist(&file);
        drop(file);
        for _ in 0..2 {
            let tap = Tap::open("tap7").unwrap();
            assert!(tap.supported().contains(Offloads::CSUM | Offloads::TSO4 | Offloads::TSO6));
            tap.set_offloads(tap.supported()).unwrap();
        }
    }

    #[test]
    fn several_queues_have_one_owner() {
        test_net::own_network();
        let taps = Tap::open_queues("many", 3).unwrap();
        assert!(taps.iter().all(Tap::is_multi_queue));
        // Attached or not, they are the owner's.
        for attach in [false, false, true, true, false] {
            taps[1].attach_queue(attach).unwrap();
        }
        for error in [Tap::open("many").unwrap_err(), Tap::open_queues("many", 2).unwrap_err()] {
            assert!(matches!(error, TapError::Busy(_)), "{error}");
        }
        drop(taps);
        // One that exists, and another process looks at it.
        let other = test_net::make_tun("many", libc::IFF_TAP | libc::IFF_MULTI_QUEUE);
        test_net::persist(&other);
        assert!(matches!(Tap::open("many"), Err(TapError::Busy(_))));
        drop(other);
        assert!(Tap::open("many").unwrap().is_multi_queue());
        assert_eq!(Tap::open_queues("many", 2).unwrap().len(), 2);
        let first = Tap::open("many").unwrap();
        let more = first.open_more(2).unwrap();
        assert!(matches!(first.open_more(1), Err(TapError::Busy(_))), "{more:?}");
    }

    #[test]
    fn a_tap_of_one_queue_has_no_others() {
        test_net::own_network();
        let file = test_net::make_tun("tap7", libc::IFF_TAP);
        test_net::persist(&file);
        // In use or not.
        for held in [Some(file), None] {
            let error = Tap::open_queues("tap7", 2).unwrap_err();
            assert!(matches!(error, TapError::SingleQueue(_)), "{held:?}: {error}");
            let text = error.to_string();
            assert!(
                text.contains("`ip tuntap add dev tap7 mode tap multi_queue`") && text.contains(CONTRACT),
                "{text}"
            );
        }
    }

    #[test]
    fn other_interfaces_are_refused_with_a_reason() {
        test_net::own_network();
        let tun = test_net::make_tun("tun0", libc::IFF_TUN);
        for name in ["tun0", "lo"] {
            let error = Tap::open(name).unwrap_err();
            assert!(matches!(error, TapError::Refused { .. }), "{error}");
            assert!(error.to_string().contains("is not a tap"), "{error}");
            assert!(error.to_string().contains(CONTRACT), "{error}");
        }
        drop(tun);
    }
}
