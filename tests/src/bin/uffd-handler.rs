//! A page-fault handler as others write them: brings the memory of a snapshot page by page, by v1's handshake.
//!
//! `uffd-handler SOCKET MEMORY [FAULTS [silent]]` listens, takes one machine, and serves it from the file; after so many faults it ends, or does
//! nothing any more, which no handler should.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::process::ExitCode;
use std::time::Duration;

use mayfly_tests::sys::uffd::{self, Event};
use serde_json::Value;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// Of the host, and huge ones.
const PAGES: [u64; 2] = [4096, 2 << 20];

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match serve(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("uffd-handler: {error}");
            ExitCode::FAILURE
        }
    }
}

struct Mapping {
    start: u64,
    len: u64,
    offset: u64,
}

fn serve(words: &[String]) -> io::Result<()> {
    let (socket, memory, most, silent) = match words {
        [socket, memory] => (socket, memory, u64::MAX, false),
        [socket, memory, most] => (socket, memory, most.parse().map_err(io::Error::other)?, false),
        [socket, memory, most, _] => (socket, memory, most.parse().map_err(io::Error::other)?, true),
        _ => return Err(io::Error::other("usage: uffd-handler SOCKET MEMORY [FAULTS [silent]]")),
    };
    let memory = File::open(memory)?;
    let listener = UnixListener::bind(socket)?;
    eprintln!("listening");
    let (stream, _) = listener.accept()?;
    let mut message = vec![0; 1 << 16];
    let (len, uffd) = stream.recv_with_fd(&mut message).map_err(io::Error::from)?;
    let uffd = uffd.ok_or_else(|| io::Error::other("no userfaultfd"))?;
    let parsed: Value = serde_json::from_slice(&message[..len])?;
    let number = |value: &Value, key: &str| {
        value[key].as_u64().ok_or_else(|| io::Error::other(format!("no number {key} in {value}")))
    };
    let mut mappings = Vec::new();
    let mut page_len = 0;
    for value in parsed.as_array().ok_or_else(|| io::Error::other("no array"))? {
        page_len = number(value, "page_size")?;
        assert!(PAGES.contains(&page_len) && number(value, "page_size_kib")? == page_len, "{value}");
        mappings.push(Mapping {
            start: number(value, "base_host_virt_addr")?,
            len: number(value, "size")?,
            offset: number(value, "offset")?,
        });
    }
    eprintln!("mappings={}", mappings.len());
    let mut removed: Vec<(u64, u64)> = Vec::new();
    let mut faults = 0;
    let mut page = vec![0; page_len as usize];
    let zeroes = page.clone();
    loop {
        if silent && faults >= most {
            eprintln!("silent");
            std::thread::park();
            continue;
        }
        match uffd::next(&uffd, Duration::from_millis(100))? {
            Some(Event::Missing(address)) => {
                let address = address & !(page_len - 1);
                let mapping =
                    mappings.iter().find(|mapping| (mapping.start..mapping.start + mapping.len).contains(&address));
                let mapping = mapping.ok_or_else(|| io::Error::other(format!("a fault at {address:#x}")))?;
                if removed.iter().any(|(start, end)| (*start..*end).contains(&address)) {
                    // Not by UFFDIO_ZEROPAGE, which huge pages do not have.
                    uffd::copy(&uffd, address, &zeroes)?;
                } else {
                    memory.read_exact_at(&mut page, mapping.offset + address - mapping.start)?;
                    uffd::copy(&uffd, address, &page)?;
                }
                faults += 1;
                if faults >= most && !silent {
                    eprintln!("ending");
                    return Ok(());
                }
            }
            Some(Event::Removed(start, end)) => removed.push((start, end)),
            None => {}
        }
    }
}
