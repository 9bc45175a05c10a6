//! Any bytes as a header, a zero byte, and a body of a registry's answer.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let end = data.iter().position(|byte| *byte == 0).unwrap_or(data.len());
    let (header, body) = data.split_at(end);
    wardian_image::registry::fuzzed::answer(header, body.get(1..).unwrap_or_default());
});
