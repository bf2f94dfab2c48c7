//! Lease keys and values, which every node of the cluster may write: never a panic, one spelling for one key, and values
//! read back as the same.
//!
//! The input is a key, a line feed, and a value.

#![no_main]

use libfuzzer_sys::fuzz_target;
use selvage::cluster::lease::{LeaseAttrs, SubnetKey};

fuzz_target!(|input: &[u8]| {
    let end = input
        .iter()
        .position(|b| *b == b'\n')
        .unwrap_or(input.len());
    let (key, value) = input.split_at(end);
    if let Ok(name) = std::str::from_utf8(key)
        && let Ok(key) = SubnetKey::parse_name(name)
    {
        assert_eq!(key.name(), name);
        assert!(key.nets().next().is_some());
        assert!(key.nets().all(|net| net == net.trunc()));
    }
    if let Some(value) = value.get(1..)
        && let Ok(attrs) = LeaseAttrs::parse(value)
    {
        let json = attrs.to_json().unwrap();
        assert_eq!(LeaseAttrs::parse(json.as_bytes()).unwrap(), attrs);
    }
});
