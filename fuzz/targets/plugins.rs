//! Any bytes as what network plugins answer, and as a list of CNI plugins.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wardian_network::fuzzed;

fuzz_target!(|data: &[u8]| {
    for error in fuzzed::errors(data) {
        assert!(error.len() < 16 << 10 && !error.contains(char::is_control), "{error:?}");
    }
});
