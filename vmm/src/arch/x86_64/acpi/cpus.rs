//! DSDT nodes of the vCPUs of a machine to which some can be added: how a guest learns of those that come and go, and lets go of one.
//!
//! Linux: `drivers/acpi/acpi_processor.c`. The registers are those of [`devices::legacy::cpu_hotplug`].

use acpi_tables::Aml;
use acpi_tables::aml::{
    Acquire, Add, Arg, BufferData, Device, Equal, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule,
    If, LessThan, Local, Method, MethodCall, Mutex, Name, Notify, ONE, OpRegion, OpRegionSpace, Path, Release, Return,
    Store, While, ZERO,
};
use devices::legacy::cpu_hotplug::{EJECT, INSERTING, PRESENT, REMOVING};

use super::{CpuNode, Raw, madt};
use crate::arch::layout;

/// The method that finds out which vCPUs came, and which are to go.
pub(super) const SCAN: &str = "\\_SB_.CSCN";
/// Bytes of the registers.
const LEN: u8 = layout::CPU_HOTPLUG_PORTS;
/// Bus check and eject request (ACPI 6.5 §5.6.6).
const NOTIFY_DEVICE_CHECK: u8 = 1;
const NOTIFY_EJECT_REQUEST: u8 = 3;
/// Present, enabled, shown, working (ACPI 6.5 §6.3.7).
const STATUS_ALL: u8 = 0xf;
/// As long as it takes.
const FOR_EVER: u16 = 0xffff;

// The fields are single bits in this order.
const _: () = assert!(PRESENT == 1 && INSERTING == 2 && REMOVING == 4 && EJECT == 8);

fn selected() -> Path {
    Path::new("CSEL")
}

fn lock() -> (Acquire, Release) {
    (Acquire::new(Path::new("CLCK"), FOR_EVER), Release::new(Path::new("CLCK")))
}

pub(super) fn append(aml: &mut Vec<u8>, node: CpuNode) {
    registers(aml, node.port);
    status(aml);
    eject(aml);
    notify(aml, node.max);
    scan(aml, node.max);
    for id in 0..node.max {
        processor(aml, id);
    }
}

fn registers(aml: &mut Vec<u8>, port: u16) {
    Mutex::new(Path::new("CLCK"), 0).to_aml_bytes(aml);
    OpRegion::new(Path::new("CREG"), OpRegionSpace::SystemIO, &port, &LEN).to_aml_bytes(aml);
    // What is not written of a byte is written as zero, which means nothing.
    Field::new(
        Path::new("CREG"),
        FieldAccessType::Byte,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
        vec![
            FieldEntry::Named(*b"CSEL", 8),
            FieldEntry::Named(*b"CPRE", 1),
            FieldEntry::Named(*b"CINS", 1),
            FieldEntry::Named(*b"CREM", 1),
            FieldEntry::Named(*b"CEJE", 1),
            FieldEntry::Reserved(4),
        ],
    )
    .to_aml_bytes(aml);
}

/// `CSTA(vCPU)`: what its `_STA` is.
fn status(aml: &mut Vec<u8>) {
    let (acquire, release) = lock();
    let (present, here) = (Path::new("CPRE"), Local(0));
    let is_present = Equal::new(&present, &ONE);
    Method::new(
        Path::new("CSTA"),
        1,
        true,
        vec![
            &acquire,
            &Store::new(&selected(), &Arg(0)),
            &Store::new(&here, &ZERO),
            &If::new(&is_present, vec![&Store::new(&here, &STATUS_ALL)]),
            &release,
            &Return::new(&here),
        ],
    )
    .to_aml_bytes(aml);
}

/// `CEJT(vCPU)`: the guest gives it back.
fn eject(aml: &mut Vec<u8>) {
    let (acquire, release) = lock();
    Method::new(
        Path::new("CEJT"),
        1,
        true,
        vec![&acquire, &Store::new(&selected(), &Arg(0)), &Store::new(&Path::new("CEJE"), &ONE), &release],
    )
    .to_aml_bytes(aml);
}

/// `CTFY(vCPU, what)`: notifies its driver.
fn notify(aml: &mut Vec<u8>, max: u8) {
    let mut cases = Vec::new();
    for id in 0..max {
        let path = Path::new(&name(id));
        let which = Equal::new(&Arg(0), &id);
        If::new(&which, vec![&Notify::new(&path, &Arg(1))]).to_aml_bytes(&mut cases);
    }
    Method::new(Path::new("CTFY"), 2, true, vec![&Raw(cases)]).to_aml_bytes(aml);
}

/// `CSCN()`: looks at each vCPU. The registers hear that it is known before its driver does, so that nothing is taken back behind its back.
fn scan(aml: &mut Vec<u8>, max: u8) {
    let (acquire, release) = lock();
    let id = Local(0);
    let (inserting, removing) = (Path::new("CINS"), Path::new("CREM"));
    let (is_inserting, is_removing) = (Equal::new(&inserting, &ONE), Equal::new(&removing, &ONE));
    let tell = |what: &'static u8| MethodCall::new(Path::new("CTFY"), vec![&Local(0), what]);
    Method::new(
        Path::new("CSCN"),
        0,
        true,
        vec![
            &acquire,
            &Store::new(&id, &ZERO),
            &While::new(
                &LessThan::new(&id, &max),
                vec![
                    &Store::new(&selected(), &id),
                    &If::new(&is_inserting, vec![&Store::new(&inserting, &ONE), &tell(&NOTIFY_DEVICE_CHECK)]),
                    &If::new(&is_removing, vec![&Store::new(&removing, &ONE), &tell(&NOTIFY_EJECT_REQUEST)]),
                    &Add::new(&id, &id, &ONE),
                ],
            ),
            &release,
        ],
    )
    .to_aml_bytes(aml);
}

/// A vCPU. Its `_UID` is its processor's id in the MADT, which `_MAT` says once more: enabled, for when it is there. The first one cannot be
/// ejected.
fn processor(aml: &mut Vec<u8>, id: u8) {
    let madt_entry = BufferData::new(madt::processor(id, true).to_vec());
    let is_here = MethodCall::new(Path::new("CSTA"), vec![&id]);
    let give_back = MethodCall::new(Path::new("CEJT"), vec![&id]);
    let uid = Name::new(Path::new("_UID"), &id);
    let hid = Name::new(Path::new("_HID"), &"ACPI0007");
    let mat = Name::new(Path::new("_MAT"), &madt_entry);
    let returned = Return::new(&is_here);
    let sta = Method::new(Path::new("_STA"), 0, true, vec![&returned]);
    let ej0 = Method::new(Path::new("_EJ0"), 1, true, vec![&give_back]);
    let mut children: Vec<&dyn Aml> = vec![&hid, &uid, &mat, &sta];
    if id > 0 {
        children.push(&ej0);
    }
    Device::new(Path::new(&name(id)), children).to_aml_bytes(aml);
}

fn name(id: u8) -> String {
    format!("C{id:03X}")
}
