//! The malicious cases: names, and which observations are acceptable.
//!
//! The guest prints one line per case,
//! `case=NAME outcome=WORD status=0x… recovered=yes|no|no-device …`, with facts
//! such as `used_len`. The words, all observations by the guest:
//!
//! | word | seen |
//! |---|---|
//! | `needs-reset` | DEVICE_NEEDS_RESET in the status |
//! | `driver-ok-refused`, `ready-refused`, `features-refused`, `start-refused` | the status or ready bit did not stick |
//! | `features-accepted` | FEATURES_OK stuck |
//! | `ignored` | no effect: ordinary I/O still works |
//! | `ok`, `ioerr`, `unsupp` | the request's status byte: 0, 1, 2 |
//! | `len0`, `untouched` | returned without a status byte, length zero or not |
//! | `completed` | a transmitted chain came back |
//! | `alive` | the machine is still there |
//! | `reset` | the connection was reset |
//! | `answered` | a connection is served, or a proper request on one that was abused |
//! | `capped` | a request got no more random bytes than the most there is for one |
//! | `zeroed` | pages in the balloon read zero, or what was stored since; all others what was stored in them |
//! | `silent` | nothing within the patience (`patience_ms`, 500) |
//! | `error`, `nack` | the response of a memory device |
//! | `quiet` | nothing was written after a reset |
//! | `gone`, `kept` | unplugged memory is nowhere to be seen; plugged memory survives a reset, and functions stay on the bus |
//! | `moved` | I/O goes on where the registers were moved to |
//! | `too-much`, `foreign-data`, `kept-all`, `old-memory`, `lost`, `plugged`, `busy`, `plug-failed`, `unplug-failed`, `unplug-all-failed`, `not-offered`, `written`, `accepted`, `flush-failed`, `late-completion`, `processed-early`, `followed`, `read-failed`, `unmoved`, `reset-hangs`, `odd-status`, `first-read-failed` | never acceptable |
//! | `ending`, `survived` | before and after something that ends the machine |
//! | `skipped-…` | the machine has no such device or feature |
//!
//! `recovered=yes` means that after a reset the device did ordinary I/O.
//! G4 and G26 need two vCPUs.

/// What a case needs from the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Nothing.
    Machine,
    /// A drive. Sector contents may be overwritten.
    Drive,
    /// A read-only drive; `mayfly.drive=` selects it.
    ReadOnlyDrive,
    /// A network interface.
    Interface,
    /// A drive and a second processor. `skipped-one-processor` without.
    Race,
    /// A network interface and a second processor.
    InterfaceRace,
    /// Hot-pluggable memory, of which the host asks for more than two blocks and less
    /// than all after the start; and a drive.
    Mem,
    /// Persistent memory: device 0 writable, device 1 read-only; and a drive.
    Pmem,
    /// An entropy device.
    Entropy,
    /// A socket device, and a host program that listens on port 60 and reads nothing.
    Sockets,
    /// A network interface with the metadata service behind it, and `mayfly.service=1`.
    Service,
    /// A balloon with everything it can have.
    Balloon,
    /// The same and a second processor; for `g21-hint`, the host starts a run of hinting that it does not end.
    BalloonRace,
    /// A balloon and a drive whose sectors hold `11` in each byte, and hot-pluggable memory as for [`Needs::Mem`].
    InFlight,
    /// A PCI bus and two drives on it.
    Bus,
    /// The same and a second processor.
    BusRace,
    /// A balloon. The machine may be gone afterwards, or not. Not part of `all`.
    BalloonEnd,
    /// Nothing; the machine is gone afterwards. Not part of `all`.
    End,
}

/// A case and what a correct VMM may make of it.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Name on the command line; the row of the threat catalogue comes first.
    pub name: &'static str,
    /// What it takes.
    pub needs: Needs,
    /// The acceptable words.
    pub accept: &'static [&'static str],
}

impl Case {
    /// Whether the outcome is acceptable.
    pub fn accepts(&self, outcome: &str) -> bool {
        self.accept.contains(&outcome)
    }
}

/// Looks a case up by name.
pub fn case(name: &str) -> Option<&'static Case> {
    CASES.iter().find(|case| case.name == name)
}

/// The queue must not come up.
const REFUSED: &[&str] = &["needs-reset", "driver-ok-refused", "ready-refused", "start-refused"];
const IGNORED: &[&str] = &["ignored"];
const IGNORED_OR_RESET: &[&str] = &["ignored", "needs-reset"];
const FEATURES_REFUSED: &[&str] = &["features-refused", "needs-reset"];
/// A chain that cannot be walked.
const BROKEN_CHAIN: &[&str] = &["needs-reset", "len0"];
/// A chain that can be walked, but whose memory is not RAM.
const BAD_MEMORY: &[&str] = &["needs-reset", "len0", "ioerr"];
/// A chain that is no request, but may have a status byte to say so.
const BAD_REQUEST: &[&str] = &["needs-reset", "len0", "ioerr", "unsupp"];
const IOERR: &[&str] = &["ioerr"];
/// Malformed frames are dropped and given back, or stop the device.
const DROPPED: &[&str] = &["completed", "needs-reset"];
const COMPLETED: &[&str] = &["completed"];
const ALIVE: &[&str] = &["alive"];
const RESET: &[&str] = &["reset"];
/// Dropped, or refused with a reset: no connection in either case.
const NO_CONNECTION: &[&str] = &["silent", "reset"];
const ANSWERED: &[&str] = &["answered"];
const REFUSED_BLOCKS: &[&str] = &["error"];
const ZEROED: &[&str] = &["zeroed"];
const ENDING: &[&str] = &["ending"];

const fn drive(name: &'static str, accept: &'static [&'static str]) -> Case {
    Case { name, needs: Needs::Drive, accept }
}

const fn interface(name: &'static str, accept: &'static [&'static str]) -> Case {
    Case { name, needs: Needs::Interface, accept }
}

const fn mem(name: &'static str, accept: &'static [&'static str]) -> Case {
    Case { name, needs: Needs::Mem, accept }
}

const fn pmem(name: &'static str, accept: &'static [&'static str]) -> Case {
    Case { name, needs: Needs::Pmem, accept }
}

const fn entropy(name: &'static str, accept: &'static [&'static str]) -> Case {
    Case { name, needs: Needs::Entropy, accept }
}

const fn service(name: &'static str, accept: &'static [&'static str]) -> Case {
    Case { name, needs: Needs::Service, accept }
}

const fn sockets(name: &'static str, accept: &'static [&'static str]) -> Case {
    Case { name, needs: Needs::Sockets, accept }
}

const fn balloon(name: &'static str, accept: &'static [&'static str]) -> Case {
    Case { name, needs: Needs::Balloon, accept }
}

const fn bus(name: &'static str, accept: &'static [&'static str]) -> Case {
    Case { name, needs: Needs::Bus, accept }
}

const fn machine(name: &'static str, accept: &'static [&'static str]) -> Case {
    Case { name, needs: Needs::Machine, accept }
}

const fn end(name: &'static str) -> Case {
    Case { name, needs: Needs::End, accept: ENDING }
}

/// All cases, in the order `all` runs them; those that end the machine last.
pub const CASES: &[Case] = &[
    drive("g1-size-zero", REFUSED),
    drive("g1-size-three", REFUSED),
    drive("g1-size-over-max", REFUSED),
    drive("g1-size-65535", REFUSED),
    drive("g2-rewrite-size", IGNORED),
    drive("g2-rewrite-desc", IGNORED),
    drive("g2-rewrite-avail", IGNORED),
    drive("g2-rewrite-used", IGNORED),
    drive("g2-rewrite-ready", IGNORED),
    drive("g3-desc-misaligned", REFUSED),
    drive("g3-avail-misaligned", REFUSED),
    drive("g3-used-misaligned", REFUSED),
    drive("g3-overlap", REFUSED),
    drive("g3-past-ram", REFUSED),
    drive("g3-used-past-ram", REFUSED),
    drive("g3-wrap", REFUSED),
    drive("g3-used-wrap", REFUSED),
    drive("g3-device-window", REFUSED),
    drive("g3-hole", REFUSED),
    drive("g5-no-features-ok", REFUSED),
    drive("g5-no-acknowledge", REFUSED),
    drive("g5-no-version-1", FEATURES_REFUSED),
    drive("g5-feature-not-offered", FEATURES_REFUSED),
    drive("g5-features-late", IGNORED),
    drive("g5-clear-bits", IGNORED_OR_RESET),
    drive("g5-kick-before-driver-ok", IGNORED_OR_RESET),
    drive("g5-reset-storm", ALIVE),
    drive("g6-self-loop", BROKEN_CHAIN),
    drive("g6-two-cycle", BROKEN_CHAIN),
    drive("g6-full-cycle", BROKEN_CHAIN),
    drive("g6-next-out-of-range", BROKEN_CHAIN),
    drive("g6-next-65535", BROKEN_CHAIN),
    drive("g7-nested", BROKEN_CHAIN),
    drive("g7-len-not-16", BROKEN_CHAIN),
    drive("g7-len-zero", BROKEN_CHAIN),
    drive("g7-len-4g", BROKEN_CHAIN),
    drive("g7-loop", BROKEN_CHAIN),
    drive("g7-longer-than-queue", BROKEN_CHAIN),
    drive("g7-table-in-device-window", BROKEN_CHAIN),
    drive("g7-table-in-hole", BROKEN_CHAIN),
    drive("g7-not-negotiated", BROKEN_CHAIN),
    drive("g8-avail-ahead", &["needs-reset"]),
    drive("g8-avail-backwards", &["needs-reset"]),
    drive("g8-head-out-of-range", BROKEN_CHAIN),
    drive("g8-head-65535", BROKEN_CHAIN),
    drive("g8-same-head-twice", &["ok", "needs-reset"]),
    drive("g8-buffer-in-device-window", BAD_MEMORY),
    drive("g8-buffer-past-ram", BAD_MEMORY),
    drive("g8-buffer-wraps", BAD_MEMORY),
    Case { name: "g9-write-read-only", needs: Needs::ReadOnlyDrive, accept: IOERR },
    Case { name: "g9-discard-read-only", needs: Needs::ReadOnlyDrive, accept: &["ioerr", "unsupp"] },
    drive("g9-sector-overflow", IOERR),
    drive("g9-sector-byte-overflow", IOERR),
    drive("g9-beyond-capacity", IOERR),
    drive("g9-straddles-end", IOERR),
    drive("g9-write-straddles-end", IOERR),
    drive("g9-unaligned-length", BAD_REQUEST),
    // Linux never sends a read of nothing; an empty success harms nobody.
    drive("g9-zero-length", &["ok", "needs-reset", "len0", "ioerr", "unsupp"]),
    drive("g9-no-data", &["ok", "needs-reset", "len0", "ioerr", "unsupp"]),
    drive("g9-unknown-type", &["unsupp"]),
    drive("g9-status-not-writable", BROKEN_CHAIN),
    drive("g9-status-empty", BROKEN_CHAIN),
    // With its data not writable, this is a read of nothing.
    drive("g9-direction-swapped", &["ok", "needs-reset", "len0", "ioerr", "unsupp"]),
    drive("g9-header-writable", BAD_REQUEST),
    drive("g9-header-short", BAD_REQUEST),
    drive("g9-header-only", BROKEN_CHAIN),
    drive("g9-status-only", BAD_REQUEST),
    drive("g9-write-from-writable", &["ok", "needs-reset", "len0", "ioerr", "unsupp"]),
    interface("g13-total-4g", DROPPED),
    interface("g13-many-64k", DROPPED),
    interface("g13-one-byte", DROPPED),
    interface("g13-header-only", DROPPED),
    interface("g13-empty", DROPPED),
    interface("g13-writable", DROPPED),
    interface("g13-header-split", COMPLETED),
    interface("g13-gso-hdr-len", DROPPED),
    interface("g13-gso-size-zero", DROPPED),
    interface("g13-gso-unknown", DROPPED),
    interface("g13-csum-past-end", DROPPED),
    entropy("g14-claims-4g", &["capped"]),
    entropy("g14-over-4g", BROKEN_CHAIN),
    entropy("g14-past-ram", BROKEN_CHAIN),
    entropy("g14-device-window", BROKEN_CHAIN),
    entropy("g14-readable", BROKEN_CHAIN),
    entropy("g14-empty", BROKEN_CHAIN),
    entropy("g14-many-requests", ALIVE),
    sockets("g15-len-over-buffers", RESET),
    sockets("g15-len-4g", RESET),
    sockets("g15-unknown-op", RESET),
    sockets("g15-op-zero", RESET),
    sockets("g15-twice", RESET),
    sockets("g15-unasked-response", RESET),
    sockets("g15-unknown-type", RESET),
    sockets("g15-to-nowhere", RESET),
    sockets("g15-to-any", RESET),
    sockets("g15-to-64-bits", RESET),
    sockets("g15-from-somebody", IGNORED),
    sockets("g15-from-host", IGNORED),
    sockets("g15-no-room", IGNORED),
    sockets("g15-all-room", IGNORED),
    sockets("g15-read-more-than-sent", IGNORED),
    sockets("g15-over-credit", RESET),
    sockets("g15-header-short", IGNORED),
    sockets("g15-header-missing", IGNORED_OR_RESET),
    sockets("g15-header-writable", IGNORED),
    sockets("g16-many-connections", &["capped"]),
    sockets("g16-reset-storm", IGNORED),
    sockets("g17-ports", RESET),
    sockets("g17-nobody-storm", RESET),
    sockets("g18-no-buffers", ALIVE),
    balloon("g20-named-twice", ZEROED),
    balloon("g20-out-of-ram", IGNORED),
    balloon("g20-split-numbers", ZEROED),
    balloon("g20-ragged-count", ZEROED),
    balloon("g20-numbers-writable", IGNORED),
    balloon("g20-numbers-4g", ALIVE),
    balloon("g20-own-numbers", ZEROED),
    balloon("g20-own-rings", ALIVE),
    balloon("g20-all-then-touch", ZEROED),
    balloon("g20-deflate-nonsense", IGNORED),
    balloon("g20-statistics-4g", ALIVE),
    balloon("g20-statistics-past-ram", BROKEN_CHAIN),
    balloon("g20-statistics-storm", ALIVE),
    balloon("g20-hints-unasked", IGNORED),
    balloon("g20-hint-command-long", IGNORED),
    balloon("g20-report-of-nothing", IGNORED),
    balloon("g20-report-past-ram", BROKEN_CHAIN),
    balloon("g20-configuration-writes", IGNORED),
    balloon("g20-inflate-storm", ZEROED),
    Case { name: "g21-inflate", needs: Needs::BalloonRace, accept: ZEROED },
    Case { name: "g21-report", needs: Needs::BalloonRace, accept: ZEROED },
    Case { name: "g21-hint", needs: Needs::BalloonRace, accept: ZEROED },
    Case { name: "g11-reset", needs: Needs::InFlight, accept: &["quiet"] },
    Case { name: "g11-inflate", needs: Needs::InFlight, accept: ZEROED },
    Case { name: "g11-unplug", needs: Needs::InFlight, accept: ALIVE },
    drive("g19-kick-storm", ALIVE),
    drive("g19-notify-unknown-queue", IGNORED),
    drive("g19-undefined-registers", IGNORED),
    drive("g19-odd-widths", IGNORED),
    machine("g19-unclaimed-memory", ALIVE),
    machine("g19-unclaimed-ports", ALIVE),
    machine("g23-serial-flood", ALIVE),
    machine("g23-serial-registers", ALIVE),
    mem("g22-without-feature", FEATURES_REFUSED),
    mem("g22-unaligned", REFUSED_BLOCKS),
    mem("g22-no-blocks", REFUSED_BLOCKS),
    mem("g22-below-region", REFUSED_BLOCKS),
    mem("g22-behind-region", REFUSED_BLOCKS),
    mem("g22-straddles-end", REFUSED_BLOCKS),
    mem("g22-address-wraps", REFUSED_BLOCKS),
    mem("g22-boot-memory", REFUSED_BLOCKS),
    mem("g22-more-than-requested", &["nack"]),
    mem("g22-plug-twice", REFUSED_BLOCKS),
    mem("g22-unplug-twice", REFUSED_BLOCKS),
    mem("g22-overlap", REFUSED_BLOCKS),
    mem("g22-unknown-request", REFUSED_BLOCKS),
    mem("g22-no-answer", &["len0"]),
    mem("g22-short-answer", &["len0"]),
    mem("g22-never-plugged", IGNORED),
    mem("g22-after-unplug", &["gone"]),
    mem("g22-device-writes-unplugged", &["ok", "ioerr", "len0", "needs-reset"]),
    mem("g22-storm", ALIVE),
    mem("g22-reset-keeps", &["kept"]),
    pmem("g24-write-read-only", IGNORED),
    pmem("g24-device-writes-read-only", BAD_MEMORY),
    pmem("g24-rings-in-pmem", REFUSED),
    pmem("g24-rings-in-read-only", REFUSED),
    pmem("g24-flush-storm", ALIVE),
    pmem("g24-unknown-request", IOERR),
    pmem("g24-no-answer", &["len0"]),
    pmem("g24-answer-read-only", &["len0"]),
    service("g25-proper", ANSWERED),
    service("g25-ihl-short", NO_CONNECTION),
    service("g25-ihl-long", NO_CONNECTION),
    service("g25-version", NO_CONNECTION),
    service("g25-total-long", NO_CONNECTION),
    service("g25-total-short", NO_CONNECTION),
    service("g25-fragment", NO_CONNECTION),
    service("g25-offset-short", NO_CONNECTION),
    service("g25-offset-long", NO_CONNECTION),
    service("g25-ip-checksum", NO_CONNECTION),
    service("g25-tcp-checksum", NO_CONNECTION),
    service("g25-source-broadcast", NO_CONNECTION),
    service("g25-all-flags", NO_CONNECTION),
    service("g25-options-proper", ANSWERED),
    service("g25-options", &["answered", "silent", "reset"]),
    service("g25-truncated", NO_CONNECTION),
    service("g25-overlap", ANSWERED),
    service("g25-far-ahead", ANSWERED),
    service("g25-syn-flood", ALIVE),
    service("g25-reset-storm", ALIVE),
    service("g25-long-head", &["answered", "reset"]),
    service("g25-pipelined", ALIVE),
    service("g25-nonsense", ANSWERED),
    service("g25-arp-spoof", ANSWERED),
    drive("g27-crossing", IGNORED),
    drive("g27-string-copy", IGNORED),
    Case { name: "g4-registers-while-starting", needs: Needs::Race, accept: ALIVE },
    Case { name: "g26-descriptors", needs: Needs::Race, accept: ALIVE },
    Case { name: "g26-block-header", needs: Needs::Race, accept: ALIVE },
    Case { name: "g26-available-ring", needs: Needs::Race, accept: ALIVE },
    Case { name: "g26-net-header", needs: Needs::InterfaceRace, accept: ALIVE },
    machine("g27-sleep-garbage", ALIVE),
    machine("g27-reset-garbage", ALIVE),
    machine("g27-panic-garbage", ALIVE),
    machine("g27-vcpu-garbage", ALIVE),
    bus("g28-foreign-messages", IGNORED),
    bus("g28-no-such-vector", IGNORED),
    bus("g28-mask-storm", ALIVE),
    bus("g28-reset-while-unmasked", ALIVE),
    bus("g28-pending-writes", IGNORED),
    bus("g28-table-widths", IGNORED),
    bus("g28-bar-on-ram", IGNORED),
    bus("g28-bar-on-another", IGNORED),
    bus("g28-bar-on-platform", IGNORED),
    bus("g28-bar-outside", IGNORED),
    bus("g28-bar-misaligned", IGNORED),
    bus("g28-bar-moves-in-flight", &["moved"]),
    bus("g28-bar-sizing", IGNORED),
    bus("g28-decode-off", IGNORED),
    bus("g28-configuration-writes", IGNORED),
    bus("g28-configuration-ports", IGNORED),
    bus("g28-window-garbage", IGNORED),
    bus("g28-hotplug-ports", &["kept"]),
    bus("g28-status-widths", REFUSED),
    bus("g28-rewrite-addresses", IGNORED),
    bus("g28-rewrite-halves", IGNORED),
    bus("g28-rewrite-vectors", IGNORED),
    Case { name: "g28-bar-race", needs: Needs::BusRace, accept: ALIVE },
    machine("g29-ioapic-entries", ALIVE),
    machine("g29-ioapic-registers", ALIVE),
    machine("g29-eoi-storm", ALIVE),
    end("g27-i8042-reset"),
    end("g27-triple-fault"),
    end("g27-interrupt-storm"),
    end("g27-fetch-device"),
    end("g27-fetch-hole"),
    Case { name: "g20-page-tables", needs: Needs::BalloonEnd, accept: &["ending", "survived"] },
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{CASES, case};

    /// The names in the guest's own tables, read from its source.
    fn names_in_guest() -> BTreeSet<&'static str> {
        let sources = [
            include_str!("bare/hostile/balloon.rs"),
            include_str!("bare/hostile/geometry.rs"),
            include_str!("bare/hostile/in_flight.rs"),
            include_str!("bare/hostile/status.rs"),
            include_str!("bare/hostile/chains.rs"),
            include_str!("bare/hostile/entropy.rs"),
            include_str!("bare/hostile/requests.rs"),
            include_str!("bare/hostile/mem.rs"),
            include_str!("bare/hostile/mmds.rs"),
            include_str!("bare/hostile/network.rs"),
            include_str!("bare/hostile/pci.rs"),
            include_str!("bare/hostile/pci/bars.rs"),
            include_str!("bare/hostile/pmem.rs"),
            include_str!("bare/hostile/storms.rs"),
            include_str!("bare/hostile/vsock.rs"),
            include_str!("bare/hostile/platform.rs"),
            include_str!("bare/hostile/races.rs"),
        ];
        let quoted = sources.iter().flat_map(|text| text.split('"').skip(1).step_by(2));
        quoted.filter(|s| s.starts_with('g') && s[1..].starts_with(|c: char| c.is_ascii_digit())).collect()
    }

    #[test]
    fn table_and_guest_have_the_same_cases() {
        let table: BTreeSet<_> = CASES.iter().map(|case| case.name).collect();
        assert_eq!(table.len(), CASES.len(), "a name twice");
        assert_eq!(table, names_in_guest());
    }

    #[test]
    fn cases_accept_only_their_words() {
        let overflow = case("g9-sector-overflow").expect("the case exists");
        assert!(overflow.accepts("ioerr"));
        assert!(!overflow.accepts("ok") && !overflow.accepts("silent"));
        assert!(case("g99").is_none());
    }
}
