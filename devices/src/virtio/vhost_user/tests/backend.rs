//! A backend of the test's own, on a thread: it answers as a good one would, unless it is told to be another one.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

use super::super::connection::{Inbox, Incoming, send};
use super::super::message::{ConfigHeader, F_PROTOCOL_FEATURES, Header, InflightArea, Request, VringState, protocol};
use crate::sys::fd_stream::FdStream;
use crate::virtio::registers::{F_EVENT_IDX, F_VERSION_1};

const PATIENCE: Duration = Duration::from_secs(10);

/// What a backend does about one request instead of what a good one does.
#[derive(Debug, Clone)]
pub enum Quirk {
    /// Nothing.
    Silence,
    /// It goes.
    Close,
    /// It says these bytes, whatever they are.
    Bytes(Vec<u8>),
    /// It says these bytes and goes.
    LastWords(Vec<u8>),
    /// It answers with this body.
    Body(Vec<u8>),
}

/// What a backend is.
#[derive(Debug, Clone)]
pub struct Traits {
    pub features: u64,
    pub protocol: u64,
    pub queues: u64,
    pub config: Vec<u8>,
    pub base: u16,
    pub quirks: HashMap<u32, Quirk>,
}

impl Default for Traits {
    fn default() -> Self {
        Self {
            features: F_VERSION_1 | F_EVENT_IDX | F_PROTOCOL_FEATURES | 1 << 9 | 1 << 12 | 1 << 34,
            protocol: protocol::MQ | protocol::REPLY_ACK | protocol::CONFIG | protocol::BACKEND_REQ | 1 << 15,
            queues: 4,
            config: (0..60).collect(),
            base: 5,
            quirks: HashMap::new(),
        }
    }
}

impl Traits {
    pub fn with(quirk: (Request, Quirk)) -> Self {
        let mut traits = Self::default();
        traits.quirks.insert(quirk.0 as u32, quirk.1);
        traits
    }
}

/// What a backend heard.
#[derive(Debug)]
pub struct Heard {
    pub request: u32,
    pub body: Vec<u8>,
    pub fds: Vec<OwnedFd>,
}

impl Heard {
    pub fn number(&self) -> u64 {
        u64::from_le_bytes(self.body[..8].try_into().unwrap())
    }
}

/// A listening backend.
pub struct Backend {
    pub path: PathBuf,
    pub traits: Arc<Mutex<Traits>>,
    pub heard: Receiver<Heard>,
    /// The connection it serves, if it does.
    pub connection: Arc<Mutex<Option<UnixStream>>>,
    _dir: tempfile::TempDir,
}

impl Backend {
    pub fn new(traits: Traits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("backend");
        let traits = Arc::new(Mutex::new(traits));
        let (sender, heard) = channel();
        let connection = Arc::default();
        serve(&path, traits.clone(), sender, Arc::clone(&connection));
        Self { path, traits, heard, connection, _dir: dir }
    }

    /// Ends the connection, as if the backend had been killed.
    pub fn kill(&self) {
        self.connection.lock().unwrap().take().unwrap().shutdown(std::net::Shutdown::Both).unwrap();
    }

    /// What it hears until and with `last`.
    #[track_caller]
    pub fn until(&self, last: Request) -> Vec<Heard> {
        let mut all = Vec::new();
        loop {
            let heard = self.heard.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("no {last:?} after {all:?}"));
            let done = heard.request == last as u32;
            all.push(heard);
            if done {
                return all;
            }
        }
    }
}

fn serve(path: &Path, traits: Arc<Mutex<Traits>>, sender: Sender<Heard>, place: Arc<Mutex<Option<UnixStream>>>) {
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else { return };
            *place.lock().unwrap() = Some(stream.try_clone().unwrap());
            let stream = FdStream::from(OwnedFd::from(stream));
            if !converse(&stream, &traits, &sender) {
                return;
            }
            place.lock().unwrap().take();
        }
    });
}

/// Serves one connection to its end. Whether anybody still cares.
fn converse(stream: &FdStream, traits: &Mutex<Traits>, sender: &Sender<Heard>) -> bool {
    let mut inbox = Inbox::default();
    let mut acknowledges = false;
    loop {
        let Incoming { header, body, fds } = match inbox.next(stream) {
            Ok(Some(incoming)) => incoming,
            Ok(None) => {
                stream.wait(PATIENCE, None).unwrap();
                continue;
            }
            Err(_) => return true,
        };
        let code = header.request.get();
        let traits = traits.lock().unwrap().clone();
        let answer = |body: &[u8], fds: &[i32]| send(stream, Header::of(code, true, false, body.len()), body, fds);
        let raw = |bytes: &[u8]| {
            let _ = stream.send(bytes, &[]);
        };
        let number = |n: u64| answer(&n.to_le_bytes(), &[]);
        if code == Request::SetProtocolFeatures as u32 {
            acknowledges = body[0] & protocol::REPLY_ACK as u8 != 0;
        }
        let outcome = match traits.quirks.get(&code) {
            Some(Quirk::Silence) => Ok(()),
            Some(Quirk::Close) => return true,
            Some(Quirk::Bytes(bytes)) => {
                raw(bytes);
                Ok(())
            }
            Some(Quirk::LastWords(bytes)) => {
                raw(bytes);
                return true;
            }
            Some(Quirk::Body(body)) => answer(body, &[]),
            None if code == Request::GetFeatures as u32 => number(traits.features),
            None if code == Request::GetProtocolFeatures as u32 => number(traits.protocol),
            None if code == Request::GetQueueNum as u32 => number(traits.queues),
            None if code == Request::GetConfig as u32 => {
                let len = U32::new(traits.config.len() as u32);
                let header = ConfigHeader { offset: U32::ZERO, size: len, flags: U32::ZERO };
                answer(&[header.as_bytes(), &traits.config].concat(), &[])
            }
            None if code == Request::GetVringBase as u32 => answer(
                VringState { number: U32::new(traits.base.into()), index: U32::new(body[0].into()) }.as_bytes(),
                &[],
            ),
            None if code == Request::GetInflightFd as u32 => {
                let mut file: File = tempfile::tempfile().unwrap();
                file.write_all(&[0; 4096]).unwrap();
                let area = InflightArea {
                    len: U64::new(4096),
                    offset: U64::ZERO,
                    queues: U16::new(1),
                    queue_size: U16::new(256),
                    padding: U32::ZERO,
                };
                answer(area.as_bytes(), &[std::os::fd::AsRawFd::as_raw_fd(&file)])
            }
            None if header.needs_reply() && acknowledges => number(0),
            None => Ok(()),
        };
        if outcome.is_err() {
            return true;
        }
        if sender.send(Heard { request: code, body, fds }).is_err() {
            return false;
        }
    }
}
