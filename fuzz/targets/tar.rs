//! Any bytes as a tar. Checksums are made right first, or hardly any mutation would get beyond them.
#![no_main]

use std::collections::HashSet;

use libfuzzer_sys::fuzz_target;
use tar::Header;
use wardian_archive::Stream;
use wardian_fuzz::{BLOCK, Cage, fix_checksums};

fuzz_target!(|data: &[u8]| {
    let mut tar = data.to_vec();
    fix_checksums(&mut tar);
    let _ = Cage::default().unpack(&tar, &devices(&tar));
    stream_in(&tar);
});

/// Of every block that could be a header.
fn devices(tar: &[u8]) -> HashSet<u64> {
    let (blocks, _) = tar.as_chunks::<BLOCK>();
    let number = |block: &[u8; BLOCK]| {
        let mut header = Header::from_byte_slice(block).clone();
        // Records may say what else is in it.
        header.as_mut_bytes()[100..148].fill(0);
        header.set_cksum();
        let entry = Stream::new(&header.as_bytes()[..], u64::MAX).next(false).ok()??;
        Some(rustix::fs::makedev(entry.device.0, entry.device.1))
    };
    blocks.iter().filter(|block| matches!(block[156], b'3' | b'4')).filter_map(number).collect()
}

/// As the helper in a container reads it.
fn stream_in(tar: &[u8]) {
    let mut stream = Stream::lenient(tar);
    while let Ok(Some(entry)) = stream.next(true) {
        if let Some(sparse) = &entry.sparse {
            let (mut end, mut data) = (0, 0);
            for (at, length) in &sparse.segments {
                assert!(*at >= end, "segments overlap");
                end = at + length;
                data += length;
            }
            assert!(end <= sparse.real && data == entry.size, "a map that does not fit");
        }
        if stream.skip(entry.size, &entry.path).is_err() {
            return;
        }
    }
}
