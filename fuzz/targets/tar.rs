//! Any bytes as a tar. Checksums are made right first, or hardly any mutation would get beyond them.
#![no_main]

use std::collections::HashSet;

use libfuzzer_sys::fuzz_target;
use tar::Header;
use wardian_fuzz::{BLOCK, Cage, fix_checksums};

fuzz_target!(|data: &[u8]| {
    let mut tar = data.to_vec();
    fix_checksums(&mut tar);
    let _ = Cage::default().unpack(&tar, &devices(&tar));
});

/// Of every block that could be a header.
fn devices(tar: &[u8]) -> HashSet<u64> {
    let (blocks, _) = tar.as_chunks::<BLOCK>();
    let number = |block| {
        let header = Header::from_byte_slice(block);
        let part = |field: std::io::Result<Option<u32>>| field.ok().map(Option::unwrap_or_default);
        Some(rustix::fs::makedev(part(header.device_major())?, part(header.device_minor())?))
    };
    blocks.iter().filter_map(|block| number(block)).collect()
}
