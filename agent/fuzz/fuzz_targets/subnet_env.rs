//! `subnet.env`, which another flannel or an administrator may have written: never a panic, and only whole networks.

#![no_main]

use libfuzzer_sys::fuzz_target;
use selvage::host::subnet_file::Previous;

fuzz_target!(|input: &[u8]| {
    let text = String::from_utf8_lossy(input);
    let previous = Previous::parse(&text);
    for net in [previous.network, previous.subnet].into_iter().flatten() {
        assert_eq!(net, net.trunc());
    }
    for net in [previous.network_v6, previous.subnet_v6]
        .into_iter()
        .flatten()
    {
        assert_eq!(net, net.trunc());
    }
});
