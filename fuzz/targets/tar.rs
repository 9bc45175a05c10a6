//! Any bytes as a tar. Checksums are made right first, or hardly any mutation would get beyond them.
#![no_main]

use std::collections::HashSet;

use libfuzzer_sys::fuzz_target;
use tar::{EntryType, GnuExtSparseHeader, Header};
use wardian_fuzz::Cage;

const BLOCK: usize = 512;

fuzz_target!(|data: &[u8]| {
    let mut tar = data.to_vec();
    fix_checksums(&mut tar);
    let _ = Cage::default().unpack(&tar, &devices(&tar));
});

fn fix_checksums(tar: &mut [u8]) {
    let mut at = 0;
    while let Some(block) = tar.get_mut(at..at + BLOCK) {
        at += BLOCK;
        if block.iter().all(|b| *b == 0) {
            continue;
        }
        let mut header = Header::new_old();
        header.as_mut_bytes().copy_from_slice(block);
        header.set_cksum();
        block.copy_from_slice(header.as_bytes());
        let size = header.entry_size().unwrap_or_default();
        let kind = header.entry_type();
        let mut more = kind == EntryType::GNUSparse && header.as_gnu().is_some_and(|gnu| gnu.is_extended());
        while more && let Some(block) = tar.get(at..at + BLOCK) {
            let mut extension = GnuExtSparseHeader::new();
            extension.as_mut_bytes().copy_from_slice(block);
            more = extension.is_extended();
            at += BLOCK;
        }
        let data = !matches!(kind.as_byte(), b'1'..=b'6');
        if data && size < tar.len() as u64 {
            at += (size as usize).next_multiple_of(BLOCK);
        }
    }
}

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
