//! What the Kubernetes store reads of others: the network config of a ConfigMap, the API server's list of nodes, and the
//! events of a watch. Never a panic, each subnet has one lease at the most, and bad words change nothing.
//!
//! The input is lines: the config, a page of the list, then events.

#![no_main]

use std::collections::BTreeSet;

use libfuzzer_sys::fuzz_target;
use selvage::cluster::lease::kube::foreign::Told;
use selvage::cluster::network_config::NetworkConfig;

/// For inputs whose own config is none.
const PLAIN: &str = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/48"}"#;

fn check(told: &Told) {
    let (leases, unreadable) = told.all();
    let keys: BTreeSet<_> = leases.iter().map(|lease| lease.key).collect();
    assert_eq!(keys.len(), leases.len());
    assert!(unreadable.iter().all(|key| !keys.contains(key)));
    for key in keys {
        assert!(key.nets().next().is_some());
        assert!(key.nets().all(|net| net == net.trunc()));
    }
}

fuzz_target!(|input: &[u8]| {
    let mut lines = input.split(|byte| *byte == b'\n');
    let config = lines.next().and_then(|line| std::str::from_utf8(line).ok());
    let config = config.and_then(|text| NetworkConfig::parse(text).ok());
    let config = config.unwrap_or_else(|| NetworkConfig::parse(PLAIN).unwrap());
    let mut told = Told::new(&config);
    let _ = told.page(lines.next().unwrap_or_default());
    check(&told);
    for line in lines {
        let before = told.all();
        if told.event(line).is_err() {
            assert!(told.all() == before);
        }
        check(&told);
    }
});
