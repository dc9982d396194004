//! Chains against a second reading of the standard.

use proptest::prelude::*;

use super::*;
use crate::virtio::test_driver::TestDriver;

const SIZE: u16 = 16;
const TABLE: u64 = 0x1000;
const RAM: u64 = TestDriver::RAM_LEN as u64;

type Raw = (u64, u32, u16, u16);

fn put(driver: &TestDriver, table: u64, descriptors: &[Raw]) {
    for (i, (addr, len, flags, next)) in descriptors.iter().enumerate() {
        driver.write_descriptor(table, i as u16, *addr, *len, *flags, *next);
    }
}

fn load(driver: &TestDriver, indirect: bool, head: u16) -> Result<Chain, BadChain> {
    let mut chain = Chain::new();
    chain.load(&driver.ram, Table { addr: GuestAddress(TABLE), size: SIZE, indirect }, head).map(|()| chain)
}

#[test]
fn what_is_wrong_is_named() {
    let driver = TestDriver::new(0, 1);
    let inner = 0x4000;
    let check = |descriptors: &[Raw], expected: BadChain| {
        put(&driver, TABLE, descriptors);
        assert_eq!(load(&driver, true, 0).map(|_| ()), Err(expected), "{descriptors:x?}");
    };
    check(&[(0, 1, 1, 0)], BadChain::TooLong);
    check(&[(0, 1, 1, 1), (0, 1, 1, 0)], BadChain::TooLong);
    check(&[(0, 1, 1, SIZE)], BadChain::Index(SIZE));
    check(&[(0, 1, 1, u16::MAX)], BadChain::Index(u16::MAX));
    check(&[(RAM, 1, 0, 0)], BadChain::Address(RAM));
    check(&[(RAM - 1, 2, 0, 0)], BadChain::Address(RAM - 1));
    check(&[(u64::MAX, 1, 0, 0)], BadChain::Address(u64::MAX));
    check(&[(u64::MAX, u32::MAX, 0, 0)], BadChain::Address(u64::MAX));
    check(&[(0, 1, 3, 1), (0, 1, 0, 0)], BadChain::Order);
    check(&[(inner, 0, 4, 0)], BadChain::Indirect);
    check(&[(inner, 15, 4, 0)], BadChain::Indirect);
    check(&[(inner, 32, 5, 1)], BadChain::Indirect);
    check(&[(inner, 16 << 16, 4, 0)], BadChain::Indirect);
    check(&[(RAM - 16, 32, 4, 0)], BadChain::Address(RAM - 16));
    put(&driver, inner, &[(inner, 16, 4, 0)]);
    check(&[(inner, 16, 4, 0)], BadChain::Indirect);
    put(&driver, inner, &[(0, 1, 1, 2)]);
    check(&[(inner, 32, 4, 0)], BadChain::Index(2));
    assert_eq!(load(&driver, false, 0).map(|_| ()), Err(BadChain::Indirect), "not negotiated");
    assert_eq!(load(&driver, true, SIZE).map(|_| ()), Err(BadChain::Index(SIZE)));
}

/// A table longer than the queue may be used for what fits (virtio 1.3 §2.7.5.3.1: a chain is no longer than the queue).
#[test]
fn an_indirect_chain_is_as_long_as_the_queue() {
    let driver = TestDriver::new(0, 1);
    let inner = 0x4000;
    let descriptor = |i: u16, last: u16| (0x8000, 1, u16::from(i != last), i + 1);
    put(&driver, TABLE, &[(inner, 16 * 40, 4, 0)]);
    put(&driver, inner, &(0..SIZE).map(|i| descriptor(i, SIZE - 1)).collect::<Vec<_>>());
    assert_eq!(load(&driver, true, 0).unwrap().readable().len(), usize::from(SIZE));
    put(&driver, inner, &(0..=SIZE).map(|i| descriptor(i, SIZE)).collect::<Vec<_>>());
    assert_eq!(load(&driver, true, 0).map(|_| ()), Err(BadChain::TooLong));
}

#[test]
fn four_gigabytes_are_too_much() {
    let ram = GuestRam::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap();
    let driver = TestDriver { ram, irq: std::sync::Arc::default(), queues: Vec::new() };
    // 16 descriptors cannot reach 4 GiB in a megabyte, so the lengths are checked with the addresses: the first bad one ends it.
    put(&driver, TABLE, &[(0, 0x10_0000, 1, 1), (0, u32::MAX, 0, 0)]);
    assert_eq!(load(&driver, true, 0).map(|_| ()), Err(BadChain::TooLarge));
}

/// What the standard says about a chain, told in another way: walk, collect, judge. `None` is a refusal of any kind.
fn model(table: &[Raw], inner: &[Raw], inner_at: u64, indirect: bool, head: u16) -> Option<(Vec<(u64, u32)>, usize)> {
    let mut list = table;
    let mut index = usize::from(head);
    let mut pieces: Vec<(u64, u32, bool)> = Vec::new();
    let mut inside = false;
    loop {
        let (addr, len, flags, next) = *list.get(index)?;
        if flags & 4 != 0 {
            if inside || !indirect || flags & 1 != 0 || addr != inner_at || len as usize != inner.len() * 16 {
                return None;
            }
            (list, index, inside) = (inner, 0, true);
            continue;
        }
        if pieces.len() == usize::from(SIZE) || (len > 0 && addr.checked_add(len.into())? > RAM) {
            return None;
        }
        pieces.push((addr, len, flags & 2 != 0));
        if flags & 1 == 0 {
            break;
        }
        index = next.into();
    }
    let readable = pieces.iter().take_while(|p| !p.2).count();
    if pieces.iter().skip(readable).any(|p| !p.2)
        || pieces.iter().map(|p| u64::from(p.1)).sum::<u64>() > u32::MAX.into()
    {
        return None;
    }
    Some((pieces.into_iter().map(|p| (p.0, p.1)).collect(), readable))
}

const INNER: u64 = 0x4000;

fn descriptor(entries: u16, inner_entries: u32) -> impl Strategy<Value = Raw> {
    let addr = prop_oneof![20 => 0..RAM, 1 => (RAM - 64)..(RAM + 64), 1 => any::<u64>()];
    let len = prop_oneof![20 => 0u32..5000, 1 => any::<u32>()];
    let flags = prop_oneof![10 => Just(1u16), 6 => Just(3), 3 => Just(0), 3 => Just(2)];
    let next = prop_oneof![20 => 0..entries, 1 => any::<u16>()];
    prop_oneof![
        12 => (addr, len, flags, next),
        1 => Just((INNER, inner_entries * 16, 4, 0)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Random graphs: accepted exactly when the model accepts them, with the same pieces; never a panic, never endless.
    #[test]
    fn random_graphs(
        table in proptest::collection::vec(descriptor(SIZE, 6), usize::from(SIZE)),
        inner in proptest::collection::vec(descriptor(6, 6), 6),
        indirect in any::<bool>(),
        head in 0..SIZE + 1,
    ) {
        // Both tables lie in RAM, where buffers may overlap them: they are only read here.
        let driver = TestDriver::new(0, 1);
        put(&driver, TABLE, &table);
        put(&driver, INNER, &inner);
        let expected = model(&table, &inner, INNER, indirect, head);
        let got = load(&driver, indirect, head);
        match (expected, got) {
            (Some((pieces, readable)), Ok(chain)) => {
                let all: Vec<&GuestIoVec> = chain.readable().iter().chain(chain.writable()).collect();
                prop_assert_eq!(chain.readable().len(), readable);
                prop_assert_eq!(all.len(), pieces.len());
                for (piece, (addr, len)) in all.iter().zip(&pieces) {
                    prop_assert_eq!(piece.len(), *len as usize);
                    if *len > 0 {
                        let host = ram::piece(&driver.ram, GuestAddress(*addr), *len as usize).unwrap();
                        prop_assert_eq!(piece.as_ptr(), host.as_ptr());
                    }
                }
            }
            (None, Err(_)) => {}
            (expected, got) => prop_assert!(false, "the model says {:?}, the chain {:?}", expected, got),
        }
    }

    /// Cutting, reading and writing agree with doing the same to one flat run of bytes.
    #[test]
    fn cuts_agree_with_bytes(lens in proptest::collection::vec(0usize..40, 0..12), skip in 0usize..200, len in 0usize..200) {
        let driver = TestDriver::new(0, 1);
        let mut pieces = Vec::new();
        let mut flat = Vec::new();
        for (i, piece_len) in lens.iter().enumerate() {
            let at = GuestAddress(0x100 * i as u64);
            let bytes: Vec<u8> = (0..*piece_len).map(|b| (i * 41 + b) as u8).collect();
            driver.ram.write_slice(&bytes, at).unwrap();
            pieces.push(ram::piece(&driver.ram, at, *piece_len).unwrap());
            flat.extend(bytes);
        }
        let expected = flat.get(skip..skip + len);
        let mut part = Vec::new();
        // Nothing is nothing wherever it is.
        prop_assert_eq!(cut(&pieces, skip, len, &mut part).is_some(), expected.is_some() || len == 0);
        if let Some(expected) = expected {
            prop_assert_eq!(GuestIoVec::total(&part), len);
            let mut bytes = vec![0; len];
            prop_assert!(read_bytes(&part, &mut bytes).is_some());
            prop_assert_eq!(&bytes, expected);
            let mut more = vec![0; len + 1];
            prop_assert!(read_bytes(&part, &mut more).is_none());
            let new: Vec<u8> = bytes.iter().map(|b| b ^ 0x5a).collect();
            prop_assert!(write_bytes(&part, &new).is_some());
            prop_assert!(write_bytes(&part, &more).is_none());
            let mut all = vec![0; flat.len()];
            prop_assert!(read_bytes(&pieces, &mut all).is_some());
            prop_assert_eq!(&all[..skip], &flat[..skip]);
            prop_assert_eq!(&all[skip + len..], &flat[skip + len..]);
        }
    }
}
