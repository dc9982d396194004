//! `mode=mmds`: a client of the metadata service.

use core::fmt::{self, Write};

use crate::block_mode::word;
use crate::dma::Dma;
use crate::net::{self, Net};
use crate::tcp::{self, Connection, Ends, Trouble};
use crate::{Machine, cpu, say};

const SERVER: [u8; 4] = [169, 254, 169, 254];
const OWN: [u8; 4] = [169, 254, 1, 1];
const FIRST_PORT: u16 = 40_000;
/// Largest answer that is kept.
const ANSWER: u64 = 96 << 10;
/// Bytes of a body that are shown.
const SHOWN: usize = 72;

/// Text under construction.
pub struct Text {
    bytes: [u8; 1024],
    len: usize,
}

impl Text {
    pub const EMPTY: Self = Self { bytes: [0; 1024], len: 0 };

    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.len + text.len();
        self.bytes.get_mut(self.len..end).ok_or(fmt::Error)?.copy_from_slice(text.as_bytes());
        self.len = end;
        Ok(())
    }
}

/// A network card and the way to the service.
pub struct Link {
    pub net: Net,
    pub ends: Ends,
    pub answer: Dma,
    connection: Option<Connection>,
    next_port: u16,
}

/// Status and body of an answer.
pub struct Answer {
    pub status: u64,
    pub body: &'static [u8],
}

impl Link {
    /// Starts the card and finds the service. `None` if nobody answers for its address.
    pub fn up(machine: &mut Machine, net: Net) -> Option<Self> {
        let mut net = net;
        let server_mac = tcp::resolve(&mut net, machine.clock, OWN, SERVER)?;
        let ends = Ends { mac: net.mac, server_mac, ip: OWN, server: SERVER };
        let answer = machine.arena.take(ANSWER, 4096);
        Some(Self { net, ends, answer, connection: None, next_port: FIRST_PORT })
    }

    /// A port not used before.
    pub fn port(&mut self) -> u16 {
        self.next_port = self.next_port.wrapping_add(1).max(FIRST_PORT);
        self.next_port
    }

    /// Asks over the connection there is, or a new one.
    pub fn ask(&mut self, machine: &Machine, request: &[u8]) -> Result<Answer, Trouble> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let port = self.port();
                Connection::open(&mut self.net, machine.clock, self.ends, port)?
            }
        };
        let len = connection.ask(&mut self.net, machine.clock, request, self.answer, is_whole)?;
        if !connection.ended {
            self.connection = Some(connection);
        }
        Ok(parse(self.answer.part(0, len as u64).bytes()))
    }

    /// Ends the connection.
    pub fn hang_up(&mut self) {
        if let Some(connection) = self.connection.take() {
            connection.close(&mut self.net);
        }
    }
}

fn head_end(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4)
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().take_while(|byte| byte.is_ascii_digit()).fold(0, |sum, byte| sum * 10 + u64::from(byte - b'0'))
}

fn body_len(head: &[u8]) -> u64 {
    const NAME: &[u8] = b"Content-Length: ";
    let at = head.windows(NAME.len()).position(|bytes| bytes == NAME);
    at.map_or(0, |at| number(&head[at + NAME.len()..]))
}

/// Whether an answer is there with all of its body.
pub fn is_whole(bytes: &[u8]) -> bool {
    head_end(bytes).is_some_and(|end| (bytes.len() - end) as u64 >= body_len(&bytes[..end]))
}

/// Takes an answer apart.
pub fn parse(bytes: &'static [u8]) -> Answer {
    let end = head_end(bytes).unwrap_or(bytes.len());
    Answer { status: bytes.get(9..).map_or(0, number), body: &bytes[end..] }
}

/// The beginning of a body as one word.
struct Word<'a>(&'a [u8]);

impl fmt::Display for Word<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0.iter().take(SHOWN) {
            f.write_char(if byte.is_ascii_graphic() { (*byte).into() } else { '_' })?;
        }
        Ok(())
    }
}

/// Runs the mode.
pub fn run(machine: &mut Machine) {
    let line = machine.command_line;
    let Some(window) = net::chosen_window(machine) else {
        say!("error=no-interface");
        return;
    };
    let net = match Net::start(machine, window) {
        Ok(net) => net,
        Err(refusal) => {
            say!("error={}", word(refusal));
            return;
        }
    };
    let Some(mut link) = Link::up(machine, net) else {
        say!("error=no-answer");
        return;
    };
    let [a, b, c, d, e, f] = link.ends.server_mac;
    say!("service={a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
    let header = line.text("header").unwrap_or("X-Nothing:here");
    let mut token = Text::EMPTY;
    if let Some(ttl) = line.text("ttl") {
        let mut request = Text::EMPTY;
        let _ = write!(
            request,
            "PUT /latest/api/token HTTP/1.1\r\nX-metadata-token-ttl-seconds: {ttl}\r\n{header}\r\n\r\n"
        );
        match link.ask(machine, request.as_bytes()) {
            Ok(Answer { status, body }) => {
                say!("token_status={status} token={}", Word(body));
                if let (200, Ok(text)) = (status, core::str::from_utf8(body)) {
                    let _ = write!(token, "{text}");
                }
            }
            Err(trouble) => say!("token_error={}", name(trouble)),
        }
    } else if let Some(text) = line.text("token") {
        let _ = write!(token, "{text}");
    }
    let token = core::str::from_utf8(token.as_bytes()).unwrap_or_default();

    let mut request = Text::EMPTY;
    let (method, path) = (line.text("method").unwrap_or("GET"), line.text("path").unwrap_or("/"));
    let _ = write!(request, "{method} {path} HTTP/1.1\r\n{header}\r\n");
    if !token.is_empty() {
        let _ = write!(request, "X-metadata-token: {token}\r\n");
    }
    let _ = write!(request, "\r\n");
    let (requests, fresh, quiet) =
        (line.number("requests", 1), line.switch("fresh", false), line.switch("quiet", false));
    let idle_ms = line.number("idle_ms", 0);
    let (mut good, mut failed) = (0u64, 0u64);
    let begun = cpu::cycles();
    for _ in 0..requests {
        match link.ask(machine, request.as_bytes()) {
            Ok(Answer { status, body }) => {
                good += u64::from(status == 200);
                if !quiet {
                    say!("status={status} len={} body={}", body.len(), Word(body));
                }
            }
            Err(trouble) => {
                failed += 1;
                say!("trouble={}", name(trouble));
            }
        }
        if fresh {
            link.hang_up();
        }
        let rest = machine.clock.deadline_ms(idle_ms);
        while idle_ms != 0 && !rest.passed() {
            cpu::pause();
        }
    }
    let elapsed = cpu::cycles() - begun;
    link.hang_up();
    say!("requests={requests} good={good} failed={failed} elapsed_ns={}", machine.clock.nanoseconds(elapsed));
}

fn name(trouble: Trouble) -> &'static str {
    match trouble {
        Trouble::Reset => "reset",
        Trouble::Silence => "silence",
    }
}
