//! Getting to know a backend: what it can do, before any driver is there.
//!
//! [`Greeting`] is the conversation, whoever drives it: [`Peer::meet`], which waits, when a device is configured; the device's event loop,
//! which does not, when a backend is back.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::time::{Duration, Instant};

use zerocopy::IntoBytes;
use zerocopy::little_endian::U32;

use super::connection::{Answer, Broken, Connection, Inbox, send};
use super::message::{CONFIG_CHANGED, ConfigHeader, F_PROTOCOL_FEATURES, Header, Request, protocol};
use crate::sys::fd_stream::FdStream;
use crate::virtio::registers::F_VERSION_1;

/// How long a backend may take for an answer.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// Messages that a backend may send on its own before we had a look at other things. Honest ones have little to say.
const MOST_UNASKED: usize = 64;

/// What a device wants of its backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wishes {
    /// Rings.
    pub queues: u16,
    /// Bytes of the configuration space that the backend has; 0 if that is the frontend's.
    pub config_len: u8,
}

/// What a backend offers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Offer {
    /// virtio features.
    pub features: u64,
    /// Protocol features that both sides know.
    pub protocol: u64,
    /// The configuration space.
    pub config: Vec<u8>,
}

/// A conversation in which a backend says what it offers.
#[derive(Debug)]
pub(super) struct Greeting {
    wishes: Wishes,
    offer: Offer,
}

impl Greeting {
    /// Says hello.
    pub(super) fn begin(wishes: Wishes, connection: &mut Connection) -> Result<Self, Broken> {
        connection.tell(Request::SetOwner, &[], &[])?;
        connection.ask(Request::GetFeatures, &[])?;
        Ok(Self { wishes, offer: Offer::default() })
    }

    /// Goes on after an answer. What the backend offers, when all of it is known.
    pub(super) fn answered(&mut self, connection: &mut Connection, answer: &Answer) -> Result<Option<Offer>, Broken> {
        let Wishes { queues, config_len } = self.wishes;
        match answer.request {
            Request::GetFeatures => {
                self.offer.features = answer.number()?;
                if self.offer.features & F_PROTOCOL_FEATURES == 0 {
                    return Err(Broken::Unfit("it has no protocol features, which this device needs".to_owned()));
                }
                if self.offer.features & F_VERSION_1 == 0 {
                    return Err(Broken::Unfit("it knows only drivers from before virtio 1.0".to_owned()));
                }
                connection.ask(Request::GetProtocolFeatures, &[])?;
            }
            Request::GetProtocolFeatures => {
                let offered = answer.number()?;
                let mut known = protocol::MQ | protocol::REPLY_ACK | protocol::INFLIGHT_SHMFD;
                if config_len > 0 {
                    known |= protocol::CONFIG | protocol::BACKEND_REQ;
                    if offered & protocol::CONFIG == 0 {
                        return Err(Broken::Unfit(
                            "it does not tell its configuration space (protocol feature CONFIG)".to_owned(),
                        ));
                    }
                }
                self.offer.protocol = offered & known;
                connection.tell(Request::SetProtocolFeatures, &self.offer.protocol.to_le_bytes(), &[])?;
                connection.acknowledges = offered & protocol::REPLY_ACK != 0;
                if offered & protocol::MQ != 0 {
                    connection.ask(Request::GetQueueNum, &[])?;
                } else if queues > 1 {
                    return Err(too_few_queues(1, queues));
                } else {
                    return self.ask_config(connection);
                }
            }
            Request::GetQueueNum => {
                let count = answer.number()?;
                if count < queues.into() {
                    return Err(too_few_queues(count, queues));
                }
                return self.ask_config(connection);
            }
            Request::GetConfig => {
                self.offer.config = config_space(answer, config_len)?;
                return Ok(Some(std::mem::take(&mut self.offer)));
            }
            other => return Err(Broken::nonsense(format!("an answer to {other:?} in a greeting"))),
        }
        Ok(None)
    }

    fn ask_config(&mut self, connection: &mut Connection) -> Result<Option<Offer>, Broken> {
        if self.wishes.config_len == 0 {
            return Ok(Some(std::mem::take(&mut self.offer)));
        }
        ask_config(connection, self.wishes.config_len)?;
        Ok(None)
    }
}

fn too_few_queues(count: u64, wanted: u16) -> Broken {
    Broken::Unfit(format!("it has {count} queues, and the device needs {wanted}"))
}

/// Asks for the configuration space.
pub(super) fn ask_config(connection: &mut Connection, len: u8) -> Result<(), Broken> {
    let header = ConfigHeader { offset: U32::ZERO, size: U32::new(len.into()), flags: U32::ZERO };
    let body = [header.as_bytes(), &vec![0; len.into()]].concat();
    connection.ask(Request::GetConfig, &body)
}

/// The configuration space that the backend told.
pub(super) fn config_space(answer: &Answer, len: u8) -> Result<Vec<u8>, Broken> {
    let (header, config) = answer.shaped::<ConfigHeader>()?;
    if header.size.get() == 0 {
        return Err(Broken::Unfit(format!("it does not tell the {len} bytes of its configuration space")));
    }
    if header.size.get() != u32::from(len) || header.offset.get() != 0 || config.len() != usize::from(len) {
        return Err(answer.misshapen());
    }
    Ok(config.to_vec())
}

/// What a backend says on its own comes here.
#[derive(Debug)]
pub(super) struct Channel {
    stream: FdStream,
    inbox: Inbox,
    acknowledges: bool,
}

impl Channel {
    /// Makes one and gives the backend its end, if it has anything to say.
    pub(super) fn open(connection: &mut Connection, offer: &Offer) -> Result<Option<Self>, Broken> {
        if offer.protocol & protocol::BACKEND_REQ == 0 {
            return Ok(None);
        }
        let (stream, theirs) = FdStream::pair()?;
        connection.tell(Request::SetBackendReqFd, &[], &[theirs.as_raw_fd()])?;
        Ok(Some(Self { stream, inbox: Inbox::default(), acknowledges: connection.acknowledges }))
    }

    fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { stream: self.stream.try_clone()?, inbox: Inbox::default(), acknowledges: self.acknowledges })
    }

    /// Reads what there is. Whether the configuration space is another one.
    pub(super) fn listen(&mut self) -> Result<bool, Broken> {
        let mut changed = false;
        for _ in 0..MOST_UNASKED {
            let incoming = match self.inbox.next(&self.stream) {
                Ok(Some(incoming)) => incoming,
                // One that has no more to say may close its end.
                Ok(None) | Err(Broken::Closed) => return Ok(changed),
                Err(broken) => return Err(broken),
            };
            let code = incoming.header.request.get();
            let known = code == CONFIG_CHANGED && incoming.body.is_empty();
            changed |= known;
            if !known {
                log::warn!("a vhost-user backend says {code}, which nobody here understands");
            }
            if incoming.header.needs_reply() && self.acknowledges {
                let outcome = u64::from(!known).to_le_bytes();
                send(&self.stream, Header::of(code, true, false, outcome.len()), &outcome, &[])?;
            }
        }
        Err(Broken::nonsense(format!("{MOST_UNASKED} messages at once that nobody asked for")))
    }
}

impl AsRawFd for Channel {
    fn as_raw_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }
}

/// A backend that is known and has nothing to do yet.
#[derive(Debug)]
pub struct Peer {
    pub(super) connection: Connection,
    pub(super) channel: Option<Channel>,
    pub(super) offer: Offer,
    /// How long it took to get to know it.
    pub(super) took: Duration,
}

impl Peer {
    /// Connects to the backend at `path` and asks what it can do. Waits for some seconds at most.
    ///
    /// # Errors
    /// Why the backend is of no use: it is not there, does not answer, or cannot do what the device needs.
    pub fn meet(path: &Path, wishes: Wishes) -> Result<Self, Broken> {
        Self::meet_within(path, wishes, ANSWER_LIMIT)
    }

    pub(super) fn meet_within(path: &Path, wishes: Wishes, limit: Duration) -> Result<Self, Broken> {
        let asked = Instant::now();
        let deadline = asked.checked_add(limit).unwrap_or(asked);
        let mut connection = Connection::open(path)?;
        let mut greeting = Greeting::begin(wishes, &mut connection)?;
        let offer = loop {
            let answer = connection.wait(deadline, limit, None)?;
            if let Some(offer) = greeting.answered(&mut connection, &answer)? {
                break offer;
            }
        };
        let channel = Channel::open(&mut connection, &offer)?;
        Ok(Self { connection, channel, offer, took: asked.elapsed() })
    }

    /// The same backend, for a device that is made of it. Only one of the two may be used from now on; when one ends the connection, the
    /// other finds it ended.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            connection: self.connection.try_clone()?,
            channel: self.channel.as_ref().map(Channel::try_clone).transpose()?,
            offer: self.offer.clone(),
            took: self.took,
        })
    }

    /// Whether the backend is still there, as far as one can see.
    pub fn is_there(&self) -> bool {
        self.connection.is_open()
    }

    /// What it offers.
    pub fn offer(&self) -> &Offer {
        &self.offer
    }
}
