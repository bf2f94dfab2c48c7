//! `agent.toml`: never a panic, and every mistake has words.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use selvage::settings;

fuzz_target!(|text: &str| {
    if let Err(error) = settings::check_file(text, Path::new("/etc/selvage/agent.toml")) {
        assert!(error.to_string().contains("agent.toml"), "{error}");
    }
});
