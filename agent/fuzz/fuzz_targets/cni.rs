//! What the CNI plugin reads: a configuration from the runtime and `subnet.env`. Never a panic, and what comes out is JSON.
//!
//! The input is the configuration, a zero byte, and the file.

#![no_main]

use libfuzzer_sys::fuzz_target;
use selvage::flannel::cni;

fuzz_target!(|input: &[u8]| {
    let end = input.iter().position(|b| *b == 0).unwrap_or(input.len());
    let (stdin, file) = input.split_at(end);
    if let Ok(json) = cni::delegate_configuration(stdin, file.get(1..).unwrap_or_default()) {
        assert!(json.starts_with('{') && json.ends_with('}'), "{json}");
    }
});
