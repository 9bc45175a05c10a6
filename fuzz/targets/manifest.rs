//! Any bytes as an index and as a manifest.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wardian_image::{Index, Manifest};

fuzz_target!(|data: &[u8]| {
    if let Ok(manifest) = Manifest::parse(data, "fuzz") {
        assert!(manifest.layers.len() <= 1024);
        let hex = manifest.config.digest.as_hex();
        assert!(hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()));
    }
    if let Ok(index) = Index::parse(data, "fuzz") {
        let tagged = index.clone().choose("fuzz", Some("v1"));
        if let (Ok(any), Ok(tagged)) = (index.choose("fuzz", None), tagged) {
            let _ = (any.is_index(), tagged.is_index());
        }
    }
});
