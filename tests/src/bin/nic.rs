//! What the Linux tier needs of networks and its busybox cannot do: taps with several queues, a look at a card's queues, and streams that are
//! checked both ways.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use mayfly_tests::sys::nic;

const USAGE: &str = "usage: nic make-tap NAME | remove-tap NAME | packets CARD | use-pairs CARD NUMBER | echo PORT | check HOST:PORT MIB SEED";
/// How long a peer may say nothing.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let outcome = match words[..] {
        ["make-tap", name] => nic::keep_tap(name, true),
        ["remove-tap", name] => nic::keep_tap(name, false),
        ["packets", card] => packets(card),
        ["use-pairs", card, pairs] => number(pairs).and_then(|pairs| nic::use_pairs(card, pairs as u32)),
        ["echo", port] => number(port).and_then(|port| echo(port as u16)),
        ["check", peer, mib, seed] => number(mib).and_then(|mib| check(peer, mib << 20, number(seed)?)),
        _ => Err(io::Error::other(USAGE)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nic: {error}");
            ExitCode::FAILURE
        }
    }
}

fn number(word: &str) -> io::Result<u64> {
    word.parse().map_err(|e| io::Error::other(format!("{word}: {e}")))
}

/// Packets of each queue, on a line: `rx0=… tx0=… rx1=…`.
fn packets(card: &str) -> io::Result<()> {
    let mut line = Vec::new();
    for (name, value) in nic::counters(card)? {
        // `rx_queue_0_packets` before Linux 6.8, `rx0_packets` since.
        let Some(queue) = name.strip_suffix("_packets") else { continue };
        line.push(format!("{}={value}", queue.replace("_queue_", "")));
    }
    println!("{}", line.join(" "));
    Ok(())
}

/// Sends back what connections bring, for ever.
fn echo(port: u16) -> io::Result<()> {
    for connection in TcpListener::bind(("0.0.0.0", port))?.incoming() {
        let mut connection = connection?;
        thread::spawn(move || -> io::Result<()> {
            let mut reader = connection.try_clone()?;
            io::copy(&mut reader, &mut connection)?;
            connection.shutdown(Shutdown::Write)
        });
    }
    Ok(())
}

/// The bytes of a stream, 64 KiB at a time.
fn stream(seed: u64, len: u64) -> impl Iterator<Item = Vec<u8>> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len.div_ceil(1 << 16)).map(move |_| {
        let mut block = Vec::with_capacity(1 << 16);
        while block.len() < 1 << 16 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            block.extend(state.to_le_bytes());
        }
        block
    })
}

/// Sends a stream to an echo, and fails unless all of it comes back as it was.
fn check(peer: &str, len: u64, seed: u64) -> io::Result<()> {
    let connection = TcpStream::connect(peer)?;
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.set_write_timeout(Some(PATIENCE))?;
    let mut writer = connection.try_clone()?;
    let sender = thread::spawn(move || -> io::Result<()> {
        stream(seed, len).try_for_each(|block| writer.write_all(&block))?;
        writer.shutdown(Shutdown::Write)
    });
    let mut reader = connection;
    for (number, block) in stream(seed, len).enumerate() {
        let mut back = vec![0; block.len()];
        reader.read_exact(&mut back)?;
        if back != block {
            return Err(io::Error::other(format!("block {number} came back changed")));
        }
    }
    sender.join().map_err(|_| io::Error::other("the sender panicked"))?
}
