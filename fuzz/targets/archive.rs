//! Any bytes as an archive with an image: what `docker save` writes, and an OCI layout in a tar. What it can open is unpacked.
#![no_main]

use std::fs::{self, File};
use std::os::fd::AsFd;

use libfuzzer_sys::fuzz_target;
use wardian_fuzz::{Cage, LIMITS, fix_checksums};
use wardian_image::{Remote, Settings, Source, Watch};

fuzz_target!(|data: &[u8]| {
    let mut tar = data.to_vec();
    fix_checksums(&mut tar);
    let files = tempfile::tempdir().expect("a temporary directory");
    let path = files.path().join("archive");
    fs::write(&path, &tar).expect("an archive");
    let _ = Source::detect(&path);
    let remote = Remote::new(Settings::default()).expect("no certificates");
    for scheme in ["docker-archive", "oci-archive"] {
        let source = Source::parse(&format!("{scheme}://{}", path.display())).expect("an address");
        let Ok(image) = source.open(&remote) else { continue };
        let cages: Vec<Cage> = image.layers.iter().map(|_| Cage::default()).collect();
        let roots: Vec<File> = cages.iter().map(|cage| File::open(cage.root()).expect("a root")).collect();
        for (index, layer) in image.layers.iter().enumerate() {
            assert!(layer.chain_id.len() == 64 && layer.chain_id.bytes().all(|b| b.is_ascii_hexdigit()));
            let before = cages[index].outside();
            let below: Vec<_> = roots[..index].iter().rev().map(File::as_fd).collect();
            let unpacked = layer.unpack(roots[index].as_fd(), &below, &LIMITS, &Watch::default());
            assert_eq!(cages[index].outside(), before, "something outside of the root changed");
            match unpacked {
                Ok(done) => assert!(done.entries <= LIMITS.max_entries && done.bytes <= LIMITS.max_bytes),
                Err(_) => break,
            }
        }
    }
});
