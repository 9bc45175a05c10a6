//! Any bytes as an image's config.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wardian_image::ImageConfig;

fuzz_target!(|data: &[u8]| {
    if let Ok(config) = ImageConfig::parse(data, "fuzz") {
        for id in &config.diff_ids {
            assert!(id.as_hex().len() == 64 && id.to_string().parse::<wardian_image::Digest>().is_ok());
        }
    }
});
