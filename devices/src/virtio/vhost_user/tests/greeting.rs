//! Getting to know backends, most of which are of no use.

use super::super::message::{F_PROTOCOL_FEATURES, Header, protocol};
use super::*;
use zerocopy::IntoBytes;

const SHORT: Duration = Duration::from_millis(100);

#[track_caller]
fn refusal(traits: Traits) -> String {
    let backend = Backend::new(traits);
    Peer::meet_within(&backend.path, BlockModel::WISHES, PATIENCE).unwrap_err().to_string()
}

/// Of one that never says all of something, so that any time is long enough.
#[track_caller]
fn assert_silent(traits: Traits) {
    let backend = Backend::new(traits);
    let said = Peer::meet_within(&backend.path, BlockModel::WISHES, SHORT).unwrap_err().to_string();
    assert_eq!(said, "it did not answer within 100 ms");
}

#[test]
fn a_good_one_says_what_it_offers() {
    let backend = Backend::new(Traits::default());
    let peer = Peer::meet(&backend.path, BlockModel::WISHES).unwrap();
    assert_eq!(peer.offer().config, (0..60).collect::<Vec<u8>>());
    let known = protocol::MQ | protocol::REPLY_ACK | protocol::CONFIG | protocol::BACKEND_REQ;
    assert_eq!(peer.offer().protocol, known, "what is not understood is not agreed on");
    let heard = backend.until(Request::SetBackendReqFd);
    let set = heard.iter().find(|heard| heard.request == Request::SetProtocolFeatures as u32).unwrap();
    assert_eq!(set.number(), known);
    assert_eq!(heard.last().unwrap().fds.len(), 1);
}

#[test]
fn the_driver_is_offered_what_both_can_do() {
    let rig = Rig::new(Traits::default());
    // FLUSH; not more queues, not packed rings, not what is the protocol's.
    assert_eq!(rig.device.features(), FEATURES | 1 << 9);
    let mut config = [0; 8];
    rig.device.read_config(56, &mut config);
    assert_eq!(config, [56, 57, 58, 59, 0, 0, 0, 0]);
}

#[test]
fn one_that_is_not_there_is_a_clear_error() {
    let dir = tempfile::tempdir().unwrap();
    let error = Peer::meet(&dir.path().join("nobody"), BlockModel::WISHES).unwrap_err();
    assert!(error.to_string().contains("No such file"), "{error}");
}

#[test]
fn silence_has_an_end() {
    for request in [Request::GetFeatures, Request::GetProtocolFeatures, Request::GetQueueNum, Request::GetConfig] {
        assert_silent(Traits::with((request, Quirk::Silence)));
    }
}

#[test]
fn half_an_answer_is_none() {
    let header = Header::of(Request::GetFeatures as u32, true, false, 8);
    let whole = [header.as_bytes(), &F_PROTOCOL_FEATURES.to_le_bytes()].concat();
    for len in [0, 1, 11, 12, 13, 19] {
        let part = whole[..len].to_vec();
        let closes = Traits::with((Request::GetFeatures, Quirk::LastWords(part.clone())));
        assert_eq!(refusal(closes), "it closed the connection", "{len}");
        assert_silent(Traits::with((Request::GetFeatures, Quirk::Bytes(part))));
    }
}

#[test]
fn wrong_answers_end_it() {
    let say = |request: u32, reply, size, body: &[u8]| {
        let header = Header::of(request, reply, false, size);
        Traits::with((Request::GetFeatures, Quirk::Bytes([header.as_bytes(), body].concat())))
    };
    let one = Request::GetFeatures as u32;
    for (traits, text) in [
        (say(2, true, 8, &[0; 8]), "message 2, which nobody asked for"),
        (say(one, false, 8, &[0; 8]), "message 1, which nobody asked for"),
        (say(one, true, 4, &[0; 4]), "an answer to GetFeatures of 4 bytes"),
        (say(one, true, 4097, &[]), "a message of 4097 bytes"),
        (say(one, true, u32::MAX as usize, &[]), "a message of 4294967295 bytes"),
        (Traits::with((Request::GetFeatures, Quirk::Bytes(vec![0; 12]))), "a message with flags 0x0"),
        (Traits::with((Request::GetFeatures, Quirk::Bytes(vec![0xff; 64]))), "flags 0xffffffff"),
    ] {
        let said = refusal(traits);
        assert!(said.starts_with("it broke the protocol: ") && said.contains(text), "{said}");
    }
}

#[test]
fn one_that_cannot_do_what_is_needed_is_told_apart() {
    let without = |features: u64, protocol: u64| Traits {
        features: Traits::default().features & !features,
        protocol: Traits::default().protocol & !protocol,
        ..Traits::default()
    };
    assert_eq!(refusal(without(F_PROTOCOL_FEATURES, 0)), "it has no protocol features, which this device needs");
    assert_eq!(refusal(without(F_VERSION_1, 0)), "it knows only drivers from before virtio 1.0");
    assert!(refusal(without(0, protocol::CONFIG)).contains("protocol feature CONFIG"));
    assert_eq!(refusal(Traits { queues: 0, ..Traits::default() }), "it has 0 queues, and the device needs 1");
    let backend = Backend::new(Traits { protocol: 0, ..Traits::default() });
    let error = Peer::meet(&backend.path, FsModel::wishes(1)).unwrap_err();
    assert_eq!(error.to_string(), "it has 1 queues, and the device needs 2");
}

#[test]
fn absurd_configuration_spaces_are_none() {
    for len in [0usize, 1, 59, 61, 3000] {
        let said = refusal(Traits { config: vec![1; len], ..Traits::default() });
        let expected = if len == 0 { "does not tell the 60 bytes" } else { "it broke the protocol" };
        assert!(said.contains(expected), "{len}: {said}");
    }
    // One that says another length than it sends.
    let mut body = vec![0; 12 + 20];
    body[4] = 60;
    assert!(refusal(Traits::with((Request::GetConfig, Quirk::Body(body)))).contains("it broke the protocol"));
}

#[test]
fn a_file_system_needs_no_configuration_space_of_its_backend() {
    let backend = Backend::new(Traits { config: Vec::new(), ..Traits::default() });
    let peer = Peer::meet(&backend.path, FsModel::wishes(3)).unwrap();
    assert_eq!(peer.offer().protocol, protocol::MQ | protocol::REPLY_ACK);
}
