//! The network that a platform gives, on a drive or by the hypervisor: never a panic, and never a file for networkd with
//! another section or key than the form has.

#![no_main]

use libfuzzer_sys::fuzz_target;
use selvage::appliance::metadata::static_network::{Form, parse};

/// How lines of the files may begin.
const STARTS: [&str; 29] = [
    "PermanentMACAddress=",
    "LinkLocalAddressing=",
    "# From ",
    "[Match]",
    "[Link]",
    "[Network]",
    "[Route]",
    "[DHCPv4]",
    "[DHCPv6]",
    "[IPv6AcceptRA]",
    "MACAddress=",
    "Name=",
    "Driver=",
    "Type=ether",
    "Kind=!*",
    "MTUBytes=",
    "RequiredForOnline=no",
    "DHCP=",
    "IPv6AcceptRA=",
    "KeepConfiguration=dynamic",
    "Address=",
    "DNS=",
    "Domains=",
    "Destination=",
    "Gateway=",
    "Metric=",
    "GatewayOnLink=yes",
    "Use",
    "RouteMetric=",
];

fuzz_target!(|bytes: &[u8]| {
    for form in [Form::NetworkConfig, Form::NetworkData] {
        let Ok(network) = parse(form, bytes) else {
            continue;
        };
        for (_, text) in network.files("a\ndrive") {
            for line in text.lines().filter(|line| !line.is_empty()) {
                assert!(
                    STARTS.iter().any(|start| line.starts_with(start)),
                    "{line:?}"
                );
            }
        }
    }
});
