#![no_main]
//! Packets of both ends of the keeper's protocol: what is understood is said again in the same words.

use libfuzzer_sys::fuzz_target;
use std::os::fd::OwnedFd;
use wardian_runtime::wire;
use wardian_sys::packet;

fn packet(bytes: &[u8], fds: usize) -> packet::Message {
    let fds = (0..fds).map(|_| OwnedFd::from(std::fs::File::open("/dev/null").unwrap())).collect();
    packet::Message { bytes: bytes.to_vec(), fds, whole: true }
}

fuzz_target!(|data: &[u8]| {
    let Some((fds, json)) = data.split_first() else { return };
    let fds = usize::from(fds % 16);
    if let Ok((seq, op)) = wire::decode(packet(json, fds)) {
        let (bytes, again) = wire::encode(seq, op).unwrap();
        assert_eq!(again.len(), fds, "a descriptor is lost");
        let (_, op) = wire::decode(packet(&bytes, fds)).unwrap();
        assert_eq!(wire::encode(seq, op).unwrap().0, bytes);
    }
    if let Ok(message) = wire::decode_reply(packet(json, fds)) {
        let (bytes, again) = wire::encode_reply(message).unwrap();
        let message = wire::decode_reply(packet(&bytes, again.len())).unwrap();
        assert_eq!(wire::encode_reply(message).unwrap().0, bytes);
    }
});
