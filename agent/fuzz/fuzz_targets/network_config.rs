//! The network config, which an administrator writes for the whole cluster: never a panic, and what is accepted reads back
//! as the same.

#![no_main]

use libfuzzer_sys::fuzz_target;
use selvage::plan::backend::BackendConfig;
use selvage::cluster::network_config::NetworkConfig;

fuzz_target!(|text: &str| {
    let Ok(config) = NetworkConfig::parse(text) else {
        return;
    };
    for network in config.networks() {
        assert_eq!(network, network.trunc());
    }
    let json = config.to_json().unwrap();
    let again = NetworkConfig::parse(&json).unwrap();
    assert_eq!(again.to_json().unwrap(), json);
    let (first, second) = (BackendConfig::parse(&config), BackendConfig::parse(&again));
    assert_eq!(first.ok(), second.ok());
});
