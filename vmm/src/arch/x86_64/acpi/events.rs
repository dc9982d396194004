//! The generic event device (ACPI 6.5 §5.6.9), of which there is one: it has the interrupts, and `_EVT` says what each of them means.
//!
//! A room that raises an interrupt adds an [`Event`] for it. An interrupt may stand for several things: then all of them are looked at.

use acpi_tables::Aml;
use acpi_tables::aml::{Arg, Device, Equal, If, Method, MethodCall, Name, Notify, Path, ResourceTemplate, ZERO};

use super::Raw;
use super::dsdt::interrupt;

/// "Look at me": the status change code of the generation id's specification, which the clock's driver takes as well.
const CHANGED: u8 = 0x80;

/// What an interrupt may mean.
pub(super) enum Meaning {
    /// The device at this path has changed.
    Changed(&'static str),
    /// The method at this path finds out what has happened, and notifies whom it concerns.
    Scan(&'static str),
}

/// An interrupt, and everything it may mean.
pub(super) struct Event {
    pub(super) gsi: u32,
    pub(super) meanings: Vec<Meaning>,
}

impl Meaning {
    fn append(&self, aml: &mut Vec<u8>) {
        match self {
            Meaning::Changed(path) => Notify::new(&Path::new(path), &CHANGED).to_aml_bytes(aml),
            Meaning::Scan(path) => MethodCall::new(Path::new(path), Vec::new()).to_aml_bytes(aml),
        }
    }
}

pub(super) fn append(aml: &mut Vec<u8>, events: &[Event]) {
    if events.is_empty() {
        return;
    }
    let argument = Arg(0);
    let interrupts: Vec<_> = events.iter().map(|event| interrupt(event.gsi)).collect();
    let mut cases = Vec::new();
    for event in events {
        let mut terms = Vec::new();
        event.meanings.iter().for_each(|meaning| meaning.append(&mut terms));
        let which = Equal::new(&argument, &event.gsi);
        If::new(&which, vec![&Raw(terms)]).to_aml_bytes(&mut cases);
    }
    Device::new(
        Path::new("GED_"),
        vec![
            &Name::new(Path::new("_HID"), &"ACPI0013"),
            &Name::new(Path::new("_UID"), &ZERO),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(interrupts.iter().map(|interrupt| interrupt as &dyn Aml).collect()),
            ),
            &Method::new(Path::new("_EVT"), 1, true, vec![&Raw(cases)]),
        ],
    )
    .to_aml_bytes(aml);
}
