//! What a client of the Garden API sends: bodies, and payloads in pieces.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wardian_garden::wire::{ContainerSpec, Payload, ProcessSpec};
use wardian_garden::{Decoder, decode, encode};

/// All values, and whether nonsense ended them.
fn values(pieces: impl Iterator<Item = Vec<u8>>) -> (Vec<Payload>, bool) {
    let (mut decoder, mut found) = (Decoder::default(), Vec::new());
    for piece in pieces {
        decoder.push(&piece);
        loop {
            match decoder.next_value() {
                Ok(Some(value)) => found.push(value),
                Ok(None) => break,
                Err(_) => return (found, true),
            }
        }
    }
    (found, false)
}

fuzz_target!(|input: &[u8]| {
    // What was understood is understood again, and means the same.
    if let Ok(spec) = decode::<ContainerSpec>(input) {
        assert_eq!(decode::<ContainerSpec>(&encode(&spec)).unwrap(), spec);
    }
    if let Ok(spec) = decode::<ProcessSpec>(input) {
        assert_eq!(decode::<ProcessSpec>(&encode(&spec)).unwrap(), spec);
    }
    let Some((size, rest)) = input.split_first() else { return };
    let whole = values(std::iter::once(rest.to_vec()));
    let pieces = values(rest.chunks(usize::from(*size).max(1)).map(<[u8]>::to_vec));
    assert_eq!(whole, pieces);
});
